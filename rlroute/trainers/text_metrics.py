"""What the episodes of an update say of a run: rewards, calls, cost, format, and signs of collapse.

It leaves out what the loss says (`rlroute.trainers.text`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlroute.evaluation.metrics import compute_selection_entropy
from rlroute.types import (
    Candidate,
    FloatArray,
    Reply,
    TextTrajectory,
)

MAXIMUM_SHARE = 0.95  # of all calls to one candidate: above it the policy is that candidate
MINIMUM_VALID = 0.5  # of episodes in valid format: below it the text has come apart


def count_episodes(
    trajectories: Sequence[TextTrajectory], retried: Sequence[TextTrajectory] = ()
) -> dict[str, float]:
    """Return sums over this process's episodes, which may be added up over processes.

    `retried` are failed attempts that another one took the place of: they count as failures and as
    money spent, and as nothing else.
    """
    sums: defaultdict[str, float] = defaultdict(float)
    for trajectory in trajectories:
        replies = list_replies(trajectory)
        sums["episodes"] += 1
        sums["turns"] += len(trajectory.transitions)
        sums["calls"] += len(replies)
        sums["truncated"] += trajectory.transitions[-1].truncated
        sums["tokens"] += sum(len(step.decision.token_ids) for step in trajectory.transitions)
        sums["cached"] += sum(reply.cached for reply in replies)
        sums["billed_usd"] += sum(reply.cost_usd for reply in replies if not reply.cached)
        for reply in replies:
            sums[f"pick/{reply.call.candidate_id}"] += 1
            if reply.failure is not None:
                sums[f"errors/{reply.failure.value}"] += 1
        sums["dropped"] += trajectory.failure is not None
    for reply in (reply for trajectory in retried for reply in list_replies(trajectory)):
        sums["billed_usd"] += 0.0 if reply.cached else reply.cost_usd
        if reply.failure is not None:
            sums[f"errors/{reply.failure.value}"] += 1
    return dict(sums)


def list_replies(trajectory: TextTrajectory) -> list[Reply]:
    """Return the replies of an episode in order."""
    return [reply for step in trajectory.transitions for reply in step.replies]


def name_text_metrics(
    sums: Mapping[str, float],
    rewards: Mapping[str, FloatArray],
    candidates: Sequence[Candidate],
    group_size: int,
) -> dict[str, float]:
    """Turn sums and rewards over all processes into metrics under their fixed names."""
    metrics: dict[str, float] = {}
    for name in ("format", "outcome", "cost"):
        defined_N = rewards[name][~np.isnan(rewards[name])]
        metrics[f"reward/{name}/mean"] = float(defined_N.mean()) if len(defined_N) else np.nan
        metrics[f"reward/{name}/std"] = float(defined_N.std()) if len(defined_N) else np.nan
        metrics[f"reward/{name}/frac_undefined"] = 1 - len(defined_N) / len(rewards[name])
    reward_N = rewards["reward"]
    metrics["reward/mean"] = mean_of(reward_N)
    if group_size > 1:
        spread_N = np.array(
            [np.nanstd(row) if has_two(row) else 0.0 for row in reward_N.reshape(-1, group_size)]
        )
        metrics["group/frac_zero_std"] = float((spread_N < 1e-8).mean())
    episodes, calls = sums["episodes"], sums["calls"]
    metrics["group/dropped"] = sums["dropped"]
    metrics["format/valid_rate"] = mean_of(
        np.where(np.isnan(rewards["format"]), np.nan, rewards["format"] == 0)
    )
    metrics["cost/usd_per_query"] = mean_of(rewards["charge_usd"])
    metrics["cost/usd_billed"] = sums["billed_usd"]
    metrics["cache/hit_rate"] = sums["cached"] / calls if calls else 0.0
    metrics["episode/calls"] = calls / episodes
    metrics["episode/turns"] = sums["turns"] / episodes
    metrics["episode/tokens"] = sums["tokens"] / episodes
    metrics["episode/frac_truncated"] = sums["truncated"] / episodes
    metrics |= {name: value for name, value in sums.items() if name.startswith("errors/")}
    share_K = np.array([sums.get(f"pick/{item.id}", 0.0) / max(calls, 1) for item in candidates])
    for candidate, share in zip(candidates, share_K, strict=True):
        metrics[f"selection/share/{candidate.id}"] = float(share)
    metrics["selection/entropy"] = compute_selection_entropy(share_K)
    metrics["collapse/alarm"] = float(is_collapsed(metrics, share_K))
    return metrics


def is_collapsed(metrics: Mapping[str, float], share_K: FloatArray) -> bool:
    """Tell whether nearly all calls go to one of several candidates, or the format falls apart."""
    one_for_all = len(share_K) > 1 and share_K.max() > MAXIMUM_SHARE
    return bool(one_for_all or metrics["format/valid_rate"] < MINIMUM_VALID)


def mean_of(value_N: FloatArray) -> float:
    """Return the mean of the defined values, NaN where there is none."""
    defined_N = value_N[~np.isnan(value_N)]
    return float(defined_N.mean()) if len(defined_N) else float("nan")


def has_two(value_N: FloatArray) -> bool:
    """Tell whether at least two values are defined."""
    return bool((~np.isnan(value_N)).sum() >= 2)


def describe_text_episodes(
    trajectories: Sequence[TextTrajectory], rewards: Mapping[str, FloatArray], count: int
) -> list[dict[str, Any]]:
    """Return the first episodes as plain rows: question, text, calls, reward terms.

    `rewards` [N] are those of the same episodes, in their order.
    """
    rows = []
    for number, trajectory in enumerate(trajectories[:count]):
        steps = trajectory.transitions
        row: dict[str, Any] = {
            "query": trajectory.query.id,
            "question": trajectory.query.text,
            "cost_weight": steps[0].observation.cost_weight,
            "text": "".join(
                ("" if turn == 0 else step.observation.text) + step.decision.text
                for turn, step in enumerate(steps)
            ),
            "calls": ", ".join(reply.call.candidate_id for reply in list_replies(trajectory)),
            "policy_version": steps[0].decision.policy_version,
            "failure": trajectory.failure.value if trajectory.failure else "",
        }
        for name in ("format", "outcome", "cost", "charge_usd", "reward"):
            value = float(rewards[name][number])
            row[name] = None if np.isnan(value) else value
        rows.append(row)
    return rows
