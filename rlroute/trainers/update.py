"""One update of a decision policy: advantages, minibatches, losses, optimiser steps.

Every process holds a slice of the batch. Advantages need whole groups only, and those lie within a
slice; what needs the whole batch (normalisation, minibatch order, dropout, counts) is computed from
coordinates or from sums over processes. A minibatch's loss is its sum over rows divided by the rows
that all processes hold of it, so one process and many take the same step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rlroute.algorithms.advantages import (
    compute_gae,
    compute_group_advantages,
    compute_rloo_advantages,
    normalise_advantages,
)
from rlroute.algorithms.losses import (
    compute_clipped_loss,
    compute_entropy,
    compute_expected_loss,
    compute_value_loss,
)
from rlroute.policies.mlp import CandidateScorer, ScorerConfig, Scores, draw_dropout_mask
from rlroute.rewards.base import RewardStack
from rlroute.seeding import draw_permutation, make_torch_generator
from rlroute.trainers.recipe import (
    ExpectedGradientConfig,
    GRPOConfig,
    PPOConfig,
    Recipe,
    RLOOConfig,
)
from rlroute.types import Batch, IntArray

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.optim import Optimizer

Sums = dict[str, Tensor]


@dataclass
class Learner:
    """The model and optimiser as Accelerate prepared them, with what an update needs beside."""

    accelerator: Accelerator
    model: torch.nn.Module
    optimiser: Optimizer
    config: ScorerConfig
    rewards: RewardStack
    recipe: Recipe
    entropy_weight: float = 0.0  # of the current update; the loop sets it from the recipe

    @property
    def scorer(self) -> CandidateScorer:
        """The policy without the wrapper that exchanges gradients."""
        scorer: CandidateScorer = self.accelerator.unwrap_model(self.model)
        return scorer


@dataclass(frozen=True)
class Targets:
    """What a batch is learnt towards, on the device, T steps per episode.

    `valid_BT` is False on padding and on whole episodes whose reward is undefined. `reward_BK` is
    there under full feedback only.
    """

    adv_BT: Tensor
    return_BT: Tensor
    valid_BT: Tensor
    reward_BK: Tensor | None


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
        return Targets(zero_BT, zero_BT, valid_BT, torch.as_tensor(reward_BK, device=device))
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
        if algorithm.normalise_advantages:
            adv_BT = normalise_advantages(adv_BT, *compute_moments(learner, adv_BT, valid_BT))
        return Targets(adv_BT, return_BT, valid_BT, None)
    adv_B, valid_B = compute_group_relative(algorithm, return_B)
    return Targets(adv_B[:, None] + zero_BT, zero_BT, valid_BT & valid_B[:, None], None)


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


def compute_moments(learner: Learner, value_BT: Tensor, valid_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the valid entries over all processes."""
    value_N = value_BT[valid_BT].double()
    local_3 = torch.stack(
        [value_N.sum(), (value_N**2).sum(), torch.as_tensor(float(len(value_N))).to(value_N)]
    )
    total, total_of_squares, count = learner.accelerator.reduce(local_3, reduction="sum")
    mean = total / count.clamp(min=1)
    variance = (total_of_squares / count.clamp(min=1) - mean**2).clamp(min=0)
    return mean.float(), variance.sqrt().float()


def update_policy(learner: Learner, batch: Batch, update: int) -> dict[str, float]:
    """Take the optimiser steps of one update and return its policy metrics.

    `batch` is this process's slice; slices are equal and lie in the order of the processes.
    """
    recipe, accelerator = learner.recipe, learner.accelerator
    targets = compute_targets(learner, batch)
    rows_per_process = len(batch.group_B)
    first_row = accelerator.process_index * rows_per_process
    steps_E = accelerator.gather(targets.valid_BT.sum(dim=1)).cpu().numpy()  # of all processes
    epochs, minibatches, target_kl = read_schedule(recipe)
    totals: Sums = {}
    for epoch in range(epochs):
        order_E = draw_permutation(len(steps_E), recipe.seed, "minibatch", update, epoch)
        sums: Sums = {}
        for number, chunk in enumerate(np.array_split(order_E, minibatches)):
            place = np.flatnonzero((chunk >= first_row) & (chunk < first_row + rows_per_process))
            generator = make_torch_generator(recipe.seed, "dropout", update, epoch, number)
            dropout_mask_CH = draw_dropout_mask(len(chunk), learner.config, generator)
            part = step_on_minibatch(
                learner,
                batch,
                targets,
                rows_B=chunk[place] - first_row,
                dropout_mask_BH=None if dropout_mask_CH is None else dropout_mask_CH[place],
                count=int(steps_E[chunk].sum()),
            )
            sums = {name: sums.get(name, 0.0) + value for name, value in part.items()}
        totals = {name: totals.get(name, 0.0) + value for name, value in sums.items()}
        if target_kl is not None and epoch + 1 < epochs:
            kl = float(accelerator.reduce(sums["kl"], reduction="sum"))
            if kl / max(steps_E.sum(), 1) > target_kl:
                break
    return summarise_update(learner, totals, epoch + 1)


def read_schedule(recipe: Recipe) -> tuple[int, int, float | None]:
    """Return epochs, minibatches and target KL of the algorithm."""
    if isinstance(recipe.algorithm, ExpectedGradientConfig):
        return 1, 1, None  # the gradient is exact: there is nothing to reuse
    algorithm = recipe.algorithm
    return algorithm.epochs, algorithm.minibatches, algorithm.target_kl


def step_on_minibatch(
    learner: Learner,
    batch: Batch,
    targets: Targets,
    *,
    rows_B: IntArray,
    dropout_mask_BH: Tensor | None,
    count: int,
) -> Sums:
    """Take one optimiser step on this process's rows of a minibatch; `count` rows are everyone's.

    Returns sums over the valid rows of this process for the metrics.
    """
    accelerator, recipe = learner.accelerator, learner.recipe
    device = accelerator.device
    steps = batch.valid_BT.shape[1]
    if dropout_mask_BH is not None:  # one mask for all steps of an episode
        dropout_mask_BH = dropout_mask_BH.to(device).repeat_interleave(steps, dim=0)
    scores: Scores = learner.model(
        torch.as_tensor(batch.features_BTF[rows_B], device=device).flatten(0, 1),
        torch.as_tensor(batch.candidate_features_KD, device=device),
        torch.as_tensor(batch.mask_BTK[rows_B], device=device).flatten(0, 1),
        torch.as_tensor(batch.cost_weight_B[rows_B], device=device).repeat_interleave(steps),
        dropout_mask_BH,
    )
    loss, sums = compute_loss(
        learner, batch, targets, scores, torch.as_tensor(rows_B, device=device)
    )
    learner.optimiser.zero_grad()
    # gradients are averaged over processes, the loss is a sum over all of them
    accelerator.backward(loss * accelerator.num_processes / max(count, 1))
    grad_norm = accelerator.clip_grad_norm_(
        learner.model.parameters(), recipe.optimiser.max_grad_norm
    )
    learner.optimiser.step()
    share = 1 / accelerator.num_processes  # every process knows the whole norm and the whole step
    sums["grad_norm"] = grad_norm.detach().to(loss) * share
    sums["steps"] = torch.full_like(loss.detach(), share)
    return sums


def compute_loss(
    learner: Learner, batch: Batch, targets: Targets, scores: Scores, rows_B: Tensor
) -> tuple[Tensor, Sums]:
    """Return the loss summed over the valid decisions of some rows, and sums for the metrics."""
    algorithm = learner.recipe.algorithm
    valid_N = targets.valid_BT[rows_B].flatten()
    logp_NK = scores.logp_BK
    entropy = torch.where(valid_N, compute_entropy(logp_NK), 0.0).sum()
    sums = {"entropy": entropy.detach(), "valid": valid_N.sum().to(entropy)}
    if targets.reward_BK is not None:
        policy_loss = compute_expected_loss(logp_NK[valid_N], targets.reward_BK[rows_B][valid_N])
        loss = policy_loss - learner.entropy_weight * entropy
        return loss, sums | {"policy_loss": policy_loss.detach()}
    assert not isinstance(algorithm, ExpectedGradientConfig)
    rows = rows_B.cpu().numpy()
    action_N = torch.as_tensor(batch.action_BT[rows], device=logp_NK.device).flatten()
    old_logp_N = torch.as_tensor(batch.logp_BT[rows], device=logp_NK.device).flatten()
    policy = compute_clipped_loss(
        logp_NK.gather(1, action_N[:, None]).squeeze(1),
        old_logp_N,
        targets.adv_BT[rows_B].flatten(),
        valid_N,
        algorithm.clip_range,
    )
    loss = policy.total - learner.entropy_weight * entropy
    sums |= {"policy_loss": policy.total.detach(), "kl": policy.kl, "clipped": policy.clipped}
    if isinstance(algorithm, PPOConfig):
        return_N = targets.return_BT[rows_B].flatten()
        value_loss = compute_value_loss(scores.value_B, return_N, valid_N)
        loss = loss + algorithm.value_weight * value_loss
        error_N, known_N = (return_N - scores.value_B.detach())[valid_N], return_N[valid_N]
        sums |= {
            "value_loss": value_loss.detach(),
            "error_squared": (error_N**2).sum(),
            "error": error_N.sum(),
            "return_squared": (known_N**2).sum(),
            "return": known_N.sum(),
        }
    return loss, sums


def summarise_update(learner: Learner, totals: Sums, epochs: int) -> dict[str, float]:
    """Add the sums up over all processes and return the policy metrics."""
    names = list(totals)
    local = torch.stack([totals[name].double() for name in names])
    reduced = learner.accelerator.reduce(local, reduction="sum").tolist()
    total = dict(zip(names, reduced, strict=True))
    count = max(total["valid"], 1.0)
    metrics = {
        "policy/entropy": total["entropy"] / count,
        "policy/loss": total["policy_loss"] / count,
        "policy/grad_norm": total["grad_norm"] / total["steps"],
        "policy/epochs": float(epochs),
    }
    if "kl" in total:
        metrics["policy/kl"] = total["kl"] / count
        metrics["policy/clip_frac"] = total["clipped"] / count
    if "value_loss" in total:
        variance = total["return_squared"] / count - (total["return"] / count) ** 2
        left = total["error_squared"] / count - (total["error"] / count) ** 2
        metrics["policy/value_loss"] = total["value_loss"] / count
        metrics["policy/explained_variance"] = 1 - left / variance if variance > 0 else float("nan")
    return metrics
