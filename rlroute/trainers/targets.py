"""What a batch is learnt towards: reward terms combined, advantages and returns, by algorithm.

Advantages need whole groups only, and those lie within a process's slice; what needs the whole
batch (means and deviations) is computed from sums over processes.

What it leaves out: the formulas (`rlroute.algorithms`), losses and steps
(`rlroute.trainers.update`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlroute.algorithms.advantages import (
    compute_gae,
    compute_group_advantages,
    compute_joint_advantages,
    compute_rloo_advantages,
    normalise_advantages,
)
from rlroute.trainers.learner import Learner
from rlroute.trainers.memory_recipe import MemoryGRPOConfig, MemoryPPOConfig, MemoryRLOOConfig
from rlroute.trainers.recipe import (
    ExpectedGradientConfig,
    GRPOConfig,
    PPOConfig,
    RLOOConfig,
)
from rlroute.trainers.step_targets import compute_step_advantages
from rlroute.types import REFERENCE, Batch


@dataclass(frozen=True)
class Targets:
    """What a batch is learnt towards, on the device, T steps per episode.

    `valid_BT` is False on padding, on whole episodes whose reward is undefined, and where there was
    no choice. `reward_BK` is there under full feedback only; `static_B` marks episodes of a static
    policy, `reference_logp_BT` holds the log-probs of the frozen copy.
    """

    adv_BT: Tensor
    return_BT: Tensor
    valid_BT: Tensor
    reward_BK: Tensor | None = None
    static_B: Tensor | None = None
    reference_logp_BT: Tensor | None = None
    value_valid_BT: Tensor | None = None


def compute_targets(learner: Learner, batch: Batch) -> Targets:
    """Combine the reward terms and turn them into advantages and returns."""
    device, algorithm = learner.accelerator.device, learner.recipe.algorithm
    weight_B1 = batch.cost_weight_B[:, None]
    reward_BT = torch.as_tensor(
        learner.rewards.combine(batch.reward_terms_BT, weight_B1), device=device
    )
    inside_BT = torch.as_tensor(batch.valid_BT, device=device)
    return_B = torch.where(inside_BT, reward_BT, 0.0).sum(dim=1)  # undefined if any step is
    valid_BT = inside_BT & ~return_B.isnan()[:, None]
    zero_BT = torch.zeros_like(reward_BT)
    if isinstance(algorithm, ExpectedGradientConfig):
        if batch.outcome_terms_BK is None:
            raise ValueError("the expected gradient needs full feedback")
        reward_BK = learner.rewards.combine(batch.outcome_terms_BK, weight_B1)
        reward_BK_on_device = torch.as_tensor(reward_BK, device=device)
        return Targets(zero_BT, zero_BT, valid_BT, reward_BK=reward_BK_on_device)
    if has_joint_credit(algorithm):
        return compute_joint_targets(learner, batch, return_B, valid_BT)
    if isinstance(algorithm, PPOConfig):
        adv_BT, return_BT = compute_gae(
            reward_BT.nan_to_num(0.0),
            torch.as_tensor(batch.value_BT, device=device),
            valid_BT,
            torch.as_tensor(batch.terminated_B, device=device),
            torch.zeros_like(return_B),
            algorithm.discount,
            algorithm.gae_lambda,
        )
        valid_BT = keep_choices(batch, valid_BT)
        if algorithm.normalise_advantages:
            adv_BT = normalise_advantages(adv_BT, *compute_moments(learner, adv_BT, valid_BT))
        return Targets(adv_BT, return_BT, valid_BT)
    if batch.ends is None or isinstance(algorithm, MemoryGRPOConfig | MemoryRLOOConfig):
        adv_B, valid_B = compute_group_relative(algorithm, return_B)
        valid_BT = keep_choices(batch, valid_BT) & valid_B[:, None]
        return Targets(adv_B[:, None] + zero_BT, zero_BT, valid_BT)
    adv_B, valid_B = compute_step_advantages(algorithm, batch, return_B)
    static_B = torch.as_tensor(batch.ends.role_B == REFERENCE, device=device)
    valid_BT = keep_choices(batch, valid_BT) & valid_B[:, None]
    return Targets(adv_B[:, None] + zero_BT, zero_BT, valid_BT, static_B=static_B)


def has_joint_credit(algorithm: Any) -> bool:
    """Say whether an episode's decisions share one ratio and one advantage."""
    return isinstance(algorithm, MemoryPPOConfig) and algorithm.credit == "joint"


def compute_joint_targets(
    learner: Learner, batch: Batch, return_B: Tensor, valid_BT: Tensor
) -> Targets:
    """Return one advantage per episode, over the value of its first state; the critic learns there.

    As in the source the advantages are divided by the standard deviation of a sample, and left as
    they are where there is only one.
    """
    first_B = valid_BT[:, 0]
    value_B = torch.as_tensor(batch.value_BT[:, 0], device=return_B.device)
    adv_B = compute_joint_advantages(return_B, value_B, first_B)
    if learner.recipe.algorithm.normalise_advantages:
        mean, std = compute_moments(learner, adv_B, first_B, unbiased=True)
        if std > 0:
            adv_B = normalise_advantages(adv_B, mean, std)
    where_BT = torch.zeros_like(valid_BT)
    where_BT[:, 0] = first_B
    zero_BT = torch.zeros_like(valid_BT, dtype=adv_B.dtype)
    return Targets(
        adv_B[:, None] + zero_BT,
        return_B.nan_to_num(0.0)[:, None] + zero_BT,
        valid_BT,
        value_valid_BT=where_BT,
    )


def keep_choices(batch: Batch, valid_BT: Tensor) -> Tensor:
    """Leave out steps at which there was nothing to choose."""
    if batch.ends is None:
        return valid_BT
    return valid_BT & torch.as_tensor(batch.ends.free_BT, device=valid_BT.device)


def compute_group_relative(
    algorithm: GRPOConfig | RLOOConfig, return_B: Tensor
) -> tuple[Tensor, Tensor]:
    """Return each episode's advantage over its group [B] and where it is defined [B]."""
    return_NG = return_B.reshape(-1, algorithm.group_size)
    if isinstance(algorithm, GRPOConfig):
        adv_NG, valid_NG = compute_group_advantages(return_NG, scale_by_std=algorithm.scale_by_std)
    else:
        adv_NG, valid_NG = compute_rloo_advantages(return_NG)
    return adv_NG.reshape(-1), valid_NG.reshape(-1)


def compute_moments(
    learner: Learner, value_BT: Tensor, valid_BT: Tensor, *, unbiased: bool = False
) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the valid entries over all processes.

    `unbiased` divides by the number of entries less one; a single entry has no deviation, 0.
    """
    value_N = value_BT[valid_BT].double()
    local_3 = torch.stack(
        [value_N.sum(), (value_N**2).sum(), torch.as_tensor(float(len(value_N))).to(value_N)]
    )
    total, total_of_squares, count = learner.accelerator.reduce(local_3, reduction="sum")
    mean = total / count.clamp(min=1)
    variance = (total_of_squares / count.clamp(min=1) - mean**2).clamp(min=0)
    if unbiased:
        variance = variance * count / (count - 1).clamp(min=1)
    return mean.float(), variance.sqrt().float()
