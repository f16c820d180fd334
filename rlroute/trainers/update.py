"""One update of a decision policy: advantages, minibatches, losses, optimiser steps.

Every process holds a slice of the batch. Advantages need whole groups only, and those lie within a
slice; what needs the whole batch (normalisation, minibatch order, dropout, counts) is computed from
coordinates or from sums over processes. A minibatch's loss is its sum over rows divided by the rows
that all processes hold of it, so one process and many take the same step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlroute.algorithms.losses import (
    PolicyLoss,
    compute_clipped_loss,
    compute_clipped_value_loss,
    compute_entropy,
    compute_expected_loss,
    compute_joint_clipped_loss,
    compute_k3,
    compute_reference_loss,
)
from rlroute.seeding import draw_permutation
from rlroute.trainers.learner import DecisionScores, Learner, MinibatchPart
from rlroute.trainers.memory_recipe import MemoryPPOConfig
from rlroute.trainers.recipe import ExpectedGradientConfig, PPOConfig
from rlroute.trainers.targets import Targets, compute_targets, has_joint_credit
from rlroute.types import Batch

Sums = dict[str, Tensor]


def update_policy(learner: Learner, batch: Batch, update: int) -> dict[str, float]:
    """Take the optimiser steps of one update and return its policy metrics.

    `batch` is this process's slice; slices are equal and lie in the order of the processes.
    """
    recipe, accelerator = learner.recipe, learner.accelerator
    targets = add_reference(learner, batch, compute_targets(learner, batch))
    rows_per_process = len(batch.group_B)
    first_row = accelerator.process_index * rows_per_process
    steps_E = accelerator.gather(targets.valid_BT.sum(dim=1)).cpu().numpy()  # of all processes
    epochs, minibatches, target_kl = read_schedule(recipe)
    totals: Sums = {}
    for epoch in range(epochs):
        order_E = draw_permutation(len(steps_E), recipe.seed, "minibatch", update, epoch)
        sums: Sums = {}
        for number, chunk in enumerate(np.array_split(order_E, minibatches)):
            place_B = np.flatnonzero((chunk >= first_row) & (chunk < first_row + rows_per_process))
            part = MinibatchPart(
                chunk[place_B] - first_row, place_B, len(chunk), (update, epoch, number)
            )
            most = int(np.bincount(chunk // rows_per_process).max())
            found = step_on_minibatch(
                learner,
                batch,
                targets,
                part.split(learner.micro_batch, most),
                count=int(steps_E[chunk].sum()),
            )
            sums = {name: sums.get(name, 0.0) + value for name, value in found.items()}
        totals = {name: totals.get(name, 0.0) + value for name, value in sums.items()}
        if target_kl is not None and epoch + 1 < epochs:
            kl = float(accelerator.reduce(sums["kl"], reduction="sum"))
            if kl / max(steps_E.sum(), 1) > target_kl:
                break
    return summarise_update(learner, totals, epoch + 1)


def read_schedule(recipe: Any) -> tuple[int, int, float | None]:
    """Return epochs, minibatches and target KL of the algorithm."""
    if isinstance(recipe.algorithm, ExpectedGradientConfig):
        return 1, 1, None  # the gradient is exact: there is nothing to reuse
    algorithm = recipe.algorithm
    return algorithm.epochs, algorithm.minibatches, algorithm.target_kl


def add_reference(learner: Learner, batch: Batch, targets: Targets) -> Targets:
    """Add the frozen copy's log-probs of the actions taken, where the KL term is on."""
    if learner.reference is None:
        return targets
    rows_B = np.arange(len(batch.group_B))
    frozen = replace(learner, model=learner.reference)
    whole = MinibatchPart(rows_B, rows_B, len(rows_B), (0, 0, 0))
    parts = whole.split(learner.micro_batch, len(rows_B))
    with torch.no_grad():
        logp_NK = torch.cat([learner.score_rows(frozen, batch, part).logp_BK for part in parts])
    action_N = torch.as_tensor(batch.action_BT, device=logp_NK.device).flatten()
    logp_N = logp_NK.gather(1, action_N[:, None]).squeeze(1)
    return replace(targets, reference_logp_BT=logp_N.reshape(targets.valid_BT.shape))


def step_on_minibatch(
    learner: Learner,
    batch: Batch,
    targets: Targets,
    parts: Sequence[MinibatchPart],
    *,
    count: int,
) -> Sums:
    """Take one optimiser step on this process's part of a minibatch, in passes of some rows.

    `count` is how many decisions everyone has in it. Returns sums over the valid rows of this
    process for the metrics.
    """
    accelerator, recipe = learner.accelerator, learner.recipe
    learner.optimiser.zero_grad()
    sums: Sums = {}
    for part in parts:
        scores = learner.score_rows(learner, batch, part)
        rows_B = torch.as_tensor(part.rows_B, device=accelerator.device)
        loss, found = compute_loss(learner, batch, targets, scores, rows_B)
        share = 0.0 if part.void else 1.0
        # gradients are averaged over processes, the loss is a sum over all of them
        accelerator.backward(loss * share * accelerator.num_processes / max(count, 1))
        sums = {name: sums.get(name, 0.0) + share * value for name, value in found.items()}
    grad_norm = accelerator.clip_grad_norm_(
        learner.model.parameters(), recipe.optimiser.max_grad_norm
    )
    learner.optimiser.step()
    share = 1 / accelerator.num_processes  # every process knows the whole norm and the whole step
    sums["grad_norm"] = grad_norm.detach().to(sums["valid"]) * share
    sums["steps"] = torch.full_like(sums["valid"], share)
    return sums


def compute_loss(
    learner: Learner, batch: Batch, targets: Targets, scores: DecisionScores, rows_B: Tensor
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
    steps = targets.valid_BT.shape[1]
    action_N = torch.as_tensor(batch.action_BT[rows], device=logp_NK.device).flatten()
    old_logp_N = torch.as_tensor(batch.logp_BT[rows], device=logp_NK.device).flatten()
    logp_N = logp_NK.gather(1, action_N[:, None]).squeeze(1)
    adv_N = targets.adv_BT[rows_B].flatten()
    own_N = valid_N
    if targets.static_B is not None:
        own_N = valid_N & ~targets.static_B[rows_B].repeat_interleave(steps)
    if has_joint_credit(algorithm):
        policy = compute_joint_loss(algorithm, logp_N, old_logp_N, targets, rows_B)
    else:
        policy = compute_clipped_loss(logp_N, old_logp_N, adv_N, own_N, algorithm.clip_range)
    loss = policy.total - learner.entropy_weight * entropy
    sums |= {"policy_loss": policy.total.detach(), "kl": policy.kl, "clipped": policy.clipped}
    if targets.static_B is not None:
        static_loss = compute_reference_loss(logp_N, adv_N, valid_N & ~own_N)
        loss = loss + static_loss
        sums["policy_loss"] = sums["policy_loss"] + static_loss.detach()
    if targets.reference_logp_BT is not None:
        kl_ref = compute_k3(logp_N, targets.reference_logp_BT[rows_B].flatten(), own_N)
        loss = loss + algorithm.kl_weight * kl_ref
        sums["kl_ref"] = kl_ref.detach()
    if isinstance(algorithm, PPOConfig):
        value_loss, found = compute_critic_loss(algorithm, batch, targets, scores.value_B, rows_B)
        loss = loss + algorithm.value_weight * value_loss
        sums |= found
    return loss, sums


def compute_joint_loss(
    algorithm: Any, logp_N: Tensor, old_logp_N: Tensor, targets: Targets, rows_B: Tensor
) -> PolicyLoss:
    """Return the loss of one ratio per episode; an episode weighs as much as its decisions."""
    valid_BT = targets.valid_BT[rows_B]
    shape, steps = valid_BT.shape, valid_BT.shape[1]
    found = compute_joint_clipped_loss(
        logp_N.reshape(shape),
        old_logp_N.reshape(shape),
        targets.adv_BT[rows_B, 0],
        valid_BT,
        algorithm.clip_range,
    )
    return PolicyLoss(found.total * steps, found.kl * steps, found.clipped * steps)


def compute_critic_loss(
    algorithm: PPOConfig, batch: Batch, targets: Targets, value_N: Tensor, rows_B: Tensor
) -> tuple[Tensor, Sums]:
    """Return the critic's loss summed over the decisions it learns at, and sums for the metrics.

    Where it learns at the first decision only, that one weighs as much as all of an episode.
    """
    where_BT = targets.valid_BT if targets.value_valid_BT is None else targets.value_valid_BT
    weight = 1 if targets.value_valid_BT is None else where_BT.shape[1]
    valid_N = where_BT[rows_B].flatten()
    return_N = targets.return_BT[rows_B].flatten()
    clip = algorithm.value_clip if isinstance(algorithm, MemoryPPOConfig) else None
    old_BT = torch.as_tensor(batch.value_BT, device=value_N.device)
    loss = weight * compute_clipped_value_loss(
        value_N, return_N, old_BT[rows_B].flatten(), valid_N, clip
    )
    error_N, known_N = (return_N - value_N.detach())[valid_N], return_N[valid_N]
    return loss, {
        "value_loss": loss.detach(),
        "value_count": valid_N.sum().to(loss),
        "error_squared": (error_N**2).sum(),
        "error": error_N.sum(),
        "return_squared": (known_N**2).sum(),
        "return": known_N.sum(),
    }


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
    if "kl_ref" in total:
        metrics["policy/kl_ref"] = total["kl_ref"] / count
    if "value_loss" in total:
        known = max(total["value_count"], 1.0)
        variance = total["return_squared"] / known - (total["return"] / known) ** 2
        left = total["error_squared"] / known - (total["error"] / known) ** 2
        metrics["policy/value_loss"] = total["value_loss"] / count
        metrics["policy/explained_variance"] = 1 - left / variance if variance > 0 else float("nan")
    return metrics
