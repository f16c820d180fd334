"""Greedy episodes on held-out questions, at one or more cost weights.

It leaves out the sampled episodes of training, and intervals (`rlroute.evaluation`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object

from rlroute.rewards.multi_round import MultiRoundReward
from rlroute.trainers.text_metrics import list_replies
from rlroute.trainers.text_problem import TextRollouts, plan_evaluation
from rlroute.types import FloatArray, Query, RLRouteError, TextTrajectory

TERMS = ("format", "outcome", "charge_usd")


@dataclass(frozen=True)
class OperatingPoint:
    """Means over greedy episodes at one cost weight; `charge_usd` is USD per question.

    `episodes` counts those that count; `failed` had a failed call and are left out.
    """

    cost_weight: float
    reward: float
    success: float
    valid_format: float
    charge_usd: float
    calls: float
    episodes: int
    failed: int


def read_terms(trajectory: TextTrajectory) -> dict[str, float]:
    """Return an episode's reward terms; NaN where it failed."""
    terms: Mapping[str, float | None] = trajectory.transitions[-1].reward_terms
    undefined = trajectory.failure is not None
    values = {name: None if undefined else terms[name] for name in TERMS}
    return {name: float("nan") if value is None else value for name, value in values.items()}


def stack_terms(trajectories: Sequence[TextTrajectory]) -> dict[str, FloatArray]:
    """Return the reward terms of episodes as arrays: name -> [N]."""
    rows = [read_terms(trajectory) for trajectory in trajectories]
    return {name: np.array([row[name] for row in rows], dtype=np.float32) for name in TERMS}


def measure_point(
    trajectories: Sequence[TextTrajectory], reward: MultiRoundReward, cost_weight: float
) -> OperatingPoint:
    """Return the means of episodes that were played at one cost weight.

    Raises:
        RLRouteError: every episode failed, so there is nothing to measure.
    """
    terms = stack_terms(trajectories)
    weight_N = np.full(len(trajectories), cost_weight, dtype=np.float32)
    rewards = reward.score(terms, weight_N, frozen=True)
    kept_N = ~np.isnan(rewards["reward"])
    if not kept_N.any():
        raise RLRouteError(f"all {len(trajectories)} validation episodes had a failed call")
    calls_N = np.array([len(list_replies(item)) for item in trajectories])
    return OperatingPoint(
        cost_weight=cost_weight,
        reward=float(rewards["reward"][kept_N].mean()),
        success=float(terms["outcome"][kept_N].mean()),
        valid_format=float((terms["format"][kept_N] == 0).mean()),
        charge_usd=float(terms["charge_usd"][kept_N].mean()),
        calls=float(calls_N[kept_N].mean()),
        episodes=int(kept_N.sum()),
        failed=int((~kept_N).sum()),
    )


def measure_sweep(
    rollouts: TextRollouts,
    queries: Sequence[Query],
    reward: MultiRoundReward,
    cost_weights: Sequence[float],
    seed: int,
) -> list[OperatingPoint]:
    """Play every question greedily at each cost weight; the processes share the questions."""
    processes = PartialState()
    plan = plan_evaluation(len(queries), seed)
    part = plan.select_rows(slice(processes.process_index, None, processes.num_processes))
    points = []
    for cost_weight in cost_weights:
        own = rollouts.play(queries, part, temperature=0.0, cost_weight=cost_weight)
        points.append(measure_point(gather_object(own), reward, cost_weight))
    return points


def name_validation_metrics(points: Sequence[OperatingPoint]) -> dict[str, float]:
    """Return the means over the sweep, and each point under its cost weight, as eval metrics."""
    metrics = {
        f"eval/{name}": float(np.mean([getattr(point, name) for point in points]))
        for name in ("reward", "success", "valid_format", "charge_usd", "calls")
    }
    if len(points) > 1:
        for point in points:
            values = asdict(point)
            weight = values.pop("cost_weight")
            for name in ("reward", "success", "charge_usd", "calls"):
                metrics[f"eval/{name}/at_{weight:g}"] = values[name]
    return metrics
