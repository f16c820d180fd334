"""What a batch is learnt towards: reward terms combined, advantages and returns, by algorithm.

Advantages need whole groups only, and those lie within a process's slice; what needs the whole
batch (means and deviations) is computed from sums over processes.

What it leaves out: the formulas (`rlroute.algorithms`), losses and steps
(`rlroute.trainers.update`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlroute.algorithms.advantages import (
    compute_gae,
    compute_group_advantages,
    compute_joint_advantages,
    compute_leave_one_out_advantages,
    compute_rloo_advantages,
    normalise_advantages,
)
from rlroute.algorithms.groups import gather_groups, spread_groups
from rlroute.algorithms.horizons import compute_horizon_gae
from rlroute.algorithms.prior import bound_variance, compute_prior_advantages
from rlroute.trainers.learner import Learner, MinibatchPart, combine_rewards
from rlroute.trainers.memory_recipe import MemoryGRPOConfig, MemoryPPOConfig, MemoryRLOOConfig
from rlroute.trainers.recipe import (
    ExpectedGradientConfig,
    GRPOConfig,
    LogAlgorithm,
    PPOConfig,
    PriorGRPOConfig,
    ReinforceConfig,
    RLOOConfig,
)
from rlroute.trainers.step_recipe import StepPPOConfig
from rlroute.trainers.step_targets import compute_step_advantages
from rlroute.types import FORCED, REFERENCE, Batch, RLRouteError


@dataclass(frozen=True)
class Targets:
    """What a batch is learnt towards, on the device, T steps per episode.

    `valid_BT` is False on padding, on whole episodes whose reward is undefined, and where there was
    no choice. `reward_BK` is there under full feedback only; `static_B` marks episodes of a static
    policy, `reference_logp_BT` holds the log-probs of the frozen copy. `adv_BTV` and `return_BTV`
    are by all heads of a critic that has several, the actor's first.
    """

    adv_BT: Tensor
    return_BT: Tensor
    valid_BT: Tensor
    reward_BK: Tensor | None = None
    static_B: Tensor | None = None
    reference_logp_BT: Tensor | None = None
    value_valid_BT: Tensor | None = None
    adv_BTV: Tensor | None = None
    return_BTV: Tensor | None = None


def compute_targets(learner: Learner, batch: Batch) -> Targets:
    """Combine the reward terms and turn them into advantages and returns."""
    device, algorithm = learner.accelerator.device, learner.recipe.algorithm
    reward_BT = torch.as_tensor(
        combine_rewards(learner.rewards, batch.reward_terms_BT, batch), device=device
    )
    inside_BT = torch.as_tensor(batch.valid_BT, device=device)
    return_B = torch.where(inside_BT, reward_BT, 0.0).sum(dim=1)  # undefined if any step is
    valid_BT = inside_BT & ~return_B.isnan()[:, None]
    zero_BT = torch.zeros_like(reward_BT)
    if isinstance(algorithm, ExpectedGradientConfig | LogAlgorithm):
        if batch.outcome_terms_BK is None:
            raise ValueError("the expected gradient needs full feedback, or a log")
        reward_BK = combine_rewards(learner.rewards, batch.outcome_terms_BK, batch)
        reward_BK_on_device = torch.as_tensor(reward_BK, device=device)
        return Targets(zero_BT, zero_BT, valid_BT, reward_BK=reward_BK_on_device)
    if has_joint_credit(algorithm):
        return compute_joint_targets(learner, batch, return_B, valid_BT)
    if isinstance(algorithm, PPOConfig):
        return compute_ppo_targets(learner, batch, reward_BT, valid_BT)
    if isinstance(algorithm, ReinforceConfig):
        return compute_reinforce_targets(learner, batch, reward_BT, valid_BT)
    if batch.ends is None or isinstance(algorithm, MemoryGRPOConfig | MemoryRLOOConfig):
        adv_B, valid_B = compute_group_relative(algorithm, batch, return_B)
        valid_BT = keep_choices(batch, valid_BT) & valid_B[:, None]
        return Targets(adv_B[:, None] + zero_BT, zero_BT, valid_BT)
    adv_B, valid_B = compute_step_advantages(algorithm, batch, return_B)
    static_B = torch.as_tensor(batch.ends.role_B == REFERENCE, device=device)
    valid_BT = keep_choices(batch, valid_BT) & valid_B[:, None]
    return Targets(adv_B[:, None] + zero_BT, zero_BT, valid_BT, static_B=static_B)


def compute_ppo_targets(
    learner: Learner, batch: Batch, reward_BT: Tensor, valid_BT: Tensor
) -> Targets:
    """Return generalised advantages and returns; with several horizons those of all heads too."""
    algorithm, device = learner.recipe.algorithm, reward_BT.device
    critic = algorithm.critic if isinstance(algorithm, StepPPOConfig) else None
    discounts = (algorithm.discount,) if critic is None else critic.heads
    value_BTV = torch.as_tensor(batch.value_BT, device=device)[:, :, None]
    adv_BTV, return_BTV = compute_horizon_gae(
        reward_BT.nan_to_num(0.0),
        value_BTV if critic is None else score_heads(learner, batch),
        valid_BT,
        torch.as_tensor(batch.terminated_B, device=device),
        discounts,
        algorithm.gae_lambda,
    )
    adv_BT = adv_BTV[:, :, 0]
    valid_BT = keep_choices(batch, valid_BT)
    if algorithm.normalise_advantages:
        adv_BT = normalise_advantages(adv_BT, *compute_moments(learner, adv_BT, valid_BT))
    found = Targets(adv_BT, return_BTV[:, :, 0], valid_BT)
    return found if critic is None else replace(found, adv_BTV=adv_BTV, return_BTV=return_BTV)


def score_heads(learner: Learner, batch: Batch) -> Tensor:
    """Return the values [B, T, V] of all heads of the critic, as the batch was played."""
    row_B = np.arange(len(batch.group_B))
    whole = MinibatchPart(row_B, row_B, len(row_B), (0, 0, 0))
    with torch.no_grad():
        scores: Any = learner.score_rows(replace(learner, model=learner.scorer), batch, whole)
    value_BTV: Tensor = scores.value_BV.unflatten(0, batch.valid_BT.shape)
    return value_BTV


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
    """Leave out steps at which there was nothing to choose, or whose action was forced."""
    if batch.ends is None:
        if batch.role_B is None:
            return valid_BT
        return valid_BT & torch.as_tensor(batch.role_B != FORCED, device=valid_BT.device)[:, None]
    return valid_BT & torch.as_tensor(batch.ends.free_BT, device=valid_BT.device)


def compute_reinforce_targets(
    learner: Learner, batch: Batch, reward_BT: Tensor, valid_BT: Tensor
) -> Targets:
    """Return the return to go of each step minus the recipe's baseline, and the returns."""
    algorithm, zero_BT = learner.recipe.algorithm, torch.zeros_like(reward_BT)
    if algorithm.baseline == "batch":
        return_B = torch.where(valid_BT, reward_BT, 0.0).sum(dim=1)
        known_B = valid_BT.any(dim=1)
        local_2 = torch.stack([return_B[known_B].double().sum(), known_B.double().sum()])
        total, count = learner.accelerator.reduce(local_2, reduction="sum").to(return_B)
        adv_B = compute_leave_one_out_advantages(return_B, total, count)
        return Targets(adv_B[:, None] + zero_BT, zero_BT, valid_BT)
    value_BT = zero_BT
    if algorithm.baseline == "none" and bool((batch.valid_BT & ~valid_BT.cpu().numpy()).any()):
        raise RLRouteError(
            "algorithm.baseline: none cannot learn where calls fail (without a baseline a failure "
            "looks better than every reward below 0); use batch or critic"
        )
    if algorithm.baseline == "critic":
        value_BT = torch.as_tensor(batch.value_BT, device=reward_BT.device)
    adv_BT, return_BT = compute_gae(
        reward_BT.nan_to_num(0.0),
        value_BT,
        valid_BT,
        torch.as_tensor(batch.terminated_B, device=reward_BT.device),
        torch.zeros_like(reward_BT[:, 0]),
        discount=1.0,
        gae_lambda=1.0,
    )
    return Targets(adv_BT, return_BT, valid_BT)


def compute_group_relative(
    algorithm: GRPOConfig | RLOOConfig | PriorGRPOConfig, batch: Batch, return_B: Tensor
) -> tuple[Tensor, Tensor]:
    """Return each episode's advantage over its group [B] and where it is defined [B]."""
    group_B = torch.as_tensor(batch.group_B, device=return_B.device)
    return_NG = spread_groups(return_B, group_B)
    if isinstance(algorithm, PriorGRPOConfig):
        mean_NG, expected_NG = (
            spread_groups(torch.as_tensor(value, device=group_B.device), group_B)
            for value in (batch.prior_mean_B, batch.prior_variance_B)
        )
        variance_N = bound_variance(return_NG, expected_NG[:, 0])
        adv_NG, valid_NG = compute_prior_advantages(return_NG, mean_NG[:, 0], variance_N)
    elif isinstance(algorithm, GRPOConfig):
        adv_NG, valid_NG = compute_group_advantages(return_NG, scale_by_std=algorithm.scale_by_std)
    else:
        adv_NG, valid_NG = compute_rloo_advantages(return_NG)
    return gather_groups(adv_NG, group_B), gather_groups(valid_NG, group_B)


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
