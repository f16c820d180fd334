"""What a batch says of a run: reward terms, selections and cost, summed over all processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from rlroute.algorithms.groups import spread_groups
from rlroute.data.routing_data import RoutingData
from rlroute.evaluation.metrics import compute_selection_entropy
from rlroute.evaluation.sampling import RoutingPolicy
from rlroute.trainers.learner import Learner, combine_rewards
from rlroute.types import FORCED, Batch


def summarise_batch(learner: Learner, batch: Batch, data: RoutingData) -> dict[str, float]:
    """Return the metrics of a batch under their fixed names."""
    own_B = np.ones(len(batch.group_B), dtype=np.bool_)
    if batch.role_B is not None:
        own_B = batch.role_B != FORCED  # what was forced says nothing of the policy
    inside_BT = batch.valid_BT & own_B[:, None]
    sums: dict[str, float] = {"steps": inside_BT.sum(), "episodes": own_B.sum()}
    paid_BT = np.where(batch.valid_BT, batch.reward_terms_BT["cost"], 0.0).astype(np.float64)
    sums["paid"] = np.nansum(paid_BT)  # by everyone, forced or not
    for name, value_BT in batch.reward_terms_BT.items():
        defined_N = value_BT[inside_BT & ~np.isnan(value_BT)].astype(np.float64)
        sums[f"{name}/sum"] = defined_N.sum()
        sums[f"{name}/squares"] = (defined_N**2).sum()
        sums[f"{name}/count"] = len(defined_N)
    if learner.recipe.algorithm.group_size > 1:
        reward_BT = combine_rewards(learner.rewards, batch.reward_terms_BT, batch)
        return_B = torch.as_tensor(np.where(batch.valid_BT, reward_BT, 0.0).sum(axis=1))
        return_NG = spread_groups(return_B, torch.as_tensor(batch.group_B)).numpy()
        sums["groups"] = len(return_NG)
        sums["groups/members"] = len(return_B)
        sums["groups/zero_std"] = (np.nanstd(return_NG, axis=1) < 1e-8).sum()
    picks_K = np.bincount(batch.action_BT[inside_BT], minlength=len(data.table.candidates))
    sums |= {f"pick/{k}": count for k, count in enumerate(picks_K)}
    sums["dropped"] = batch.dropped
    return name_metrics(reduce_sums(learner, sums), batch, data)


def reduce_sums(learner: Learner, sums: dict[str, float]) -> dict[str, float]:
    """Add named numbers up over all processes."""
    local = torch.tensor(
        [float(value) for value in sums.values()],
        dtype=torch.float64,
        device=learner.accelerator.device,
    )
    reduced = learner.accelerator.reduce(local, reduction="sum").tolist()
    return dict(zip(sums, reduced, strict=True))


def name_metrics(total: dict[str, float], batch: Batch, data: RoutingData) -> dict[str, float]:
    """Turn sums over all processes into metrics."""
    metrics: dict[str, float] = {}
    for name in batch.reward_terms_BT:
        count = max(total[f"{name}/count"], 1.0)
        mean = total[f"{name}/sum"] / count
        variance = max(total[f"{name}/squares"] / count - mean**2, 0.0)
        metrics[f"reward/{name}/mean"] = mean
        metrics[f"reward/{name}/std"] = variance**0.5
        metrics[f"reward/{name}/frac_undefined"] = 1 - total[f"{name}/count"] / total["steps"]
    if "groups" in total:
        metrics["group/frac_zero_std"] = total["groups/zero_std"] / total["groups"]
        metrics["group/size_mean"] = total["groups/members"] / total["groups"]
    metrics["group/dropped"] = total["dropped"]
    share_K = np.array(
        [total[f"pick/{k}"] / total["steps"] for k in range(len(data.table.candidates))]
    )
    for candidate, share in zip(data.table.candidates, share_K, strict=True):
        metrics[f"selection/share/{candidate.id}"] = float(share)
    metrics["selection/entropy"] = compute_selection_entropy(share_K)
    metrics["cost/usd_per_query"] = metrics["reward/cost/mean"] * data.cost_reference_usd
    metrics["cost/usd_update"] = total["paid"] * data.cost_reference_usd
    return metrics


def describe_episodes(batch: Batch, data: RoutingData, count: int) -> list[dict[str, Any]]:
    """Return the first episodes of a batch as plain rows (query ids, not texts)."""
    rows = []
    for b in range(min(count, len(batch.group_B))):
        query = data.table.queries[batch.query_index_B[b]]
        for t in np.flatnonzero(batch.valid_BT[b]):
            row = {
                "query": query.id,
                "task": query.task,
                "cost_weight": float(batch.cost_weight_B[b]),
                **describe_weights(batch, b),
                "turn": int(t),
                "candidate": data.table.candidates[batch.action_BT[b, t]].id,
                "probability": float(np.exp(batch.logp_BT[b, t])),
                "value": float(batch.value_BT[b, t]),
            }
            for name, value_BT in batch.reward_terms_BT.items():
                value = float(value_BT[b, t])
                row[f"reward/{name}"] = None if np.isnan(value) else value
            rows.append(row)
    return rows


def describe_weights(batch: Batch, b: int) -> dict[str, float]:
    """Return what an episode weighs beside cost."""
    if batch.latency_weight_B is None:
        return {}
    return {"latency_weight": float(batch.latency_weight_B[b])}


def describe_decisions(
    policy: RoutingPolicy, data: RoutingData, cost_weights: Sequence[float], count: int = 100
) -> list[dict[str, Any]]:
    """Return what a policy picks for the first queries of a split, beside the best pick."""
    table = data.table
    rows = []
    for cost_weight in cost_weights:
        pick_Q = policy.compute_probabilities(data, cost_weight).argmax(axis=1)
        best_Q = np.nanargmax(table.score_QK - cost_weight * data.normalised_cost_QK, axis=1)
        for q, query in enumerate(table.queries[:count]):
            pick, best = int(pick_Q[q]), int(best_Q[q])
            rows.append(
                {
                    "query": query.id,
                    "task": query.task,
                    "cost_weight": cost_weight,
                    "candidate": table.candidates[pick].id,
                    "score": float(table.score_QK[q, pick]),
                    "cost_usd": float(table.cost_usd_QK[q, pick]),
                    "best candidate": table.candidates[best].id,
                    "best score": float(table.score_QK[q, best]),
                }
            )
    return rows
