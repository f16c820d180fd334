"""Advantages of many-step episodes: groups with forced members, references and static episodes.

A group's baseline is over its members, forced ones included, and the reference rewards of the
static policies where the recipe says so. A static episode is measured by the same baseline without
being a part of it, and is only learnt from on hard tasks, where it comes out above.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlroute.algorithms.advantages import compute_rloo_advantages
from rlroute.algorithms.reference import (
    GroupBaseline,
    compute_anchored_baseline,
    compute_blend_baseline,
    forbid_rewarded_failures,
)
from rlroute.trainers.recipe import RLOOConfig
from rlroute.trainers.step_recipe import StepGRPOConfig
from rlroute.types import REFERENCE, Batch


def compute_step_advantages(
    algorithm: StepGRPOConfig | RLOOConfig, batch: Batch, return_B: Tensor
) -> tuple[Tensor, Tensor]:
    """Return each episode's advantage [B], for all its decisions, and where it is defined [B].

    The episodes of a group stand together, its static one (where there is one) last.
    """
    ends = batch.ends
    assert ends is not None
    size = int((batch.group_B == batch.group_B[0]).sum())
    return_NG = return_B.reshape(-1, size)
    if isinstance(algorithm, RLOOConfig):
        adv_NG, valid_NG = compute_rloo_advantages(return_NG)
        return adv_NG.reshape(-1), valid_NG.reshape(-1)
    device = return_B.device
    static_NG = torch.as_tensor(ends.role_B == REFERENCE, device=device).reshape(-1, size)
    members = size - int(static_NG[0].sum())
    reference_NR = torch.as_tensor(ends.reference_BR, device=device)[::size]
    baseline = compute_baseline(algorithm, return_NG[:, :members], reference_NR)
    adv_NG, valid_NG = baseline.measure(return_NG, scale_by_std=algorithm.scale_by_std)
    if algorithm.hold_failures:
        failed_NG = torch.as_tensor(ends.score_B == 0, device=device).reshape(-1, size)
        solvable_N = torch.as_tensor(ends.solvable_B, device=device)[::size]
        adv_NG = forbid_rewarded_failures(adv_NG, failed_NG, solvable_N)
    hard_NG = torch.as_tensor(ends.hard_B, device=device).reshape(-1, size)
    valid_NG = valid_NG & (~static_NG | (hard_NG & (adv_NG > 0)))
    return adv_NG.reshape(-1), valid_NG.reshape(-1)


def compute_baseline(
    algorithm: StepGRPOConfig, reward_NM: Tensor, reference_NR: Tensor
) -> GroupBaseline:
    """Return what the members of each group are measured by."""
    if algorithm.baseline == "blend":
        return compute_blend_baseline(reward_NM, reference_NR, weight=algorithm.blend_weight)
    if algorithm.baseline == "anchored":
        return compute_anchored_baseline(reward_NM, reference_NR)
    return compute_anchored_baseline(reward_NM, reference_NR[:, :0])
