"""One update of a decision policy: advantages, minibatches, losses, optimiser steps.

Every process holds a slice of the batch (of more or fewer rows where groups are of unequal size).
Advantages need whole groups only, and those lie within a slice; what needs the whole batch
(normalisation, minibatch order, dropout, counts) is computed from coordinates or from sums over
processes. A minibatch's loss is its sum over rows divided by the rows
that all processes hold of it, so one process and many take the same step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlroute.algorithms.horizons import compute_horizon_value_loss, count_hacked
from rlroute.algorithms.losses import (
    PolicyLoss,
    compute_clipped_loss,
    compute_clipped_value_loss,
    compute_entropy,
    compute_expected_loss,
    compute_joint_clipped_loss,
    compute_k3,
    compute_policy_gradient_loss,
    compute_reference_loss,
)
from rlroute.algorithms.off_policy import (
    compute_pairwise_conservative_loss,
    compute_self_normalised_loss,
)
from rlroute.rollout.rows import select_rows
from rlroute.seeding import draw_permutation
from rlroute.trainers.learner import DecisionScores, Learner, MinibatchPart, gather_rows
from rlroute.trainers.memory_recipe import MemoryPPOConfig
from rlroute.trainers.recipe import (
    ConservativeConfig,
    ExpectedGradientConfig,
    LogAlgorithm,
    OffPolicyConfig,
    PPOConfig,
    ReinforceConfig,
    has_critic,
)
from rlroute.trainers.targets import Targets, compute_targets, has_joint_credit
from rlroute.types import FORCED, Batch

Sums = dict[str, Tensor]


def update_policy(learner: Learner, batch: Batch, update: int) -> dict[str, float]:
    """Take the optimiser steps of one update and return its policy metrics.

    `batch` is this process's slice; slices lie in the order of the processes.
    """
    recipe, accelerator = learner.recipe, learner.accelerator
    batch, targets = leave_out_forced(batch, compute_targets(learner, batch))
    targets = add_reference(learner, batch, targets)
    steps_E, rows_P = gather_rows(accelerator, targets.valid_BT.sum(dim=1))  # of all processes
    process_E = np.repeat(np.arange(len(rows_P)), rows_P)
    first_row = int(rows_P[: accelerator.process_index].sum())
    epochs, minibatches, target_kl = read_schedule(recipe)
    totals: Sums = {}
    for epoch in range(epochs):
        order_E = draw_permutation(len(steps_E), recipe.seed, "minibatch", update, epoch)
        sums: Sums = {}
        for number, chunk in enumerate(np.array_split(order_E, minibatches)):
            place_B = np.flatnonzero(process_E[chunk] == accelerator.process_index)
            part = MinibatchPart(
                chunk[place_B] - first_row, place_B, len(chunk), (update, epoch, number)
            )
            most = int(np.bincount(process_E[chunk]).max())
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
    if isinstance(recipe.algorithm, ExpectedGradientConfig | LogAlgorithm | ReinforceConfig):
        return 1, 1, None  # the gradient is exact, or that of the present policy alone
    algorithm = recipe.algorithm
    return algorithm.epochs, algorithm.minibatches, algorithm.target_kl


def leave_out_forced(batch: Batch, targets: Targets) -> tuple[Batch, Targets]:
    """Leave out one-step episodes whose action was forced: they have served as a yardstick."""
    if batch.role_B is None:
        return batch, targets
    row_N = np.flatnonzero(batch.role_B != FORCED)
    chosen_N = torch.as_tensor(row_N, device=targets.valid_BT.device)
    kept = replace(
        targets,
        adv_BT=targets.adv_BT[chosen_N],
        return_BT=targets.return_BT[chosen_N],
        valid_BT=targets.valid_BT[chosen_N],
    )
    return select_rows(batch, row_N), kept


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
    learner.plain_optimiser.zero_grad()
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
    learner.take_step()
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
        if isinstance(algorithm, LogAlgorithm):
            policy_loss = compute_log_loss(algorithm, batch, targets, scores, rows_B)
        else:
            reward_NK = targets.reward_BK[rows_B][valid_N]
            policy_loss = compute_expected_loss(logp_NK[valid_N], reward_NK)
        loss = policy_loss - learner.entropy_weight * entropy
        return loss, sums | {"policy_loss": policy_loss.detach()}
    assert not isinstance(algorithm, ExpectedGradientConfig | LogAlgorithm)
    rows = rows_B.cpu().numpy()
    steps = targets.valid_BT.shape[1]
    action_N = torch.as_tensor(batch.action_BT[rows], device=logp_NK.device).flatten()
    old_logp_N = torch.as_tensor(batch.logp_BT[rows], device=logp_NK.device).flatten()
    logp_N = logp_NK.gather(1, action_N[:, None]).squeeze(1)
    adv_N = targets.adv_BT[rows_B].flatten()
    if isinstance(algorithm, ReinforceConfig):
        policy_loss = compute_policy_gradient_loss(logp_N, adv_N, valid_N)
        loss = policy_loss - learner.entropy_weight * entropy
        sums |= {"policy_loss": policy_loss.detach()}
        return add_critic(learner, batch, targets, scores, rows_B, loss, sums)
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
    return add_critic(learner, batch, targets, scores, rows_B, loss, sums)


def add_critic(
    learner: Learner,
    batch: Batch,
    targets: Targets,
    scores: DecisionScores,
    rows_B: Tensor,
    loss: Tensor,
    sums: Sums,
) -> tuple[Tensor, Sums]:
    """Add the critic's loss and its sums, where the algorithm has one."""
    algorithm = learner.recipe.algorithm
    if not has_critic(algorithm):
        return loss, sums
    value_loss, found = compute_critic_loss(algorithm, batch, targets, scores.value_B, rows_B)
    if targets.return_BTV is not None:
        value_loss, hacked = compute_horizon_loss(targets, scores, rows_B)
        found |= {"value_loss": value_loss.detach(), "hacked": hacked}
    return loss + algorithm.value_weight * value_loss, sums | found


def compute_horizon_loss(targets: Targets, scores: Any, rows_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of a critic with several heads, and how often the actor's looks the best."""
    assert targets.return_BTV is not None
    assert targets.adv_BTV is not None
    valid_N = targets.valid_BT[rows_B].flatten()
    adv_NV = targets.adv_BTV[rows_B].flatten(0, 1)
    used_NV = torch.zeros_like(adv_NV)
    used_NV[:, 0] = 1
    return_NV = targets.return_BTV[rows_B].flatten(0, 1)
    loss = compute_horizon_value_loss(scores.value_BV, return_NV, valid_N)
    return loss, count_hacked(adv_NV, used_NV, valid_N).to(loss)


def compute_log_loss(
    algorithm: LogAlgorithm, batch: Batch, targets: Targets, scores: Any, rows_B: Tensor
) -> Tensor:
    """Return the loss of what is learnt from a log, summed over its queries.

    The pseudo-rewards of IPS and the doubly robust form lie in the targets already.
    """
    assert targets.reward_BK is not None
    assert batch.log_weight_BK is not None
    reward_NK = targets.reward_BK[rows_B]
    weight_NK = torch.as_tensor(batch.log_weight_BK, device=reward_NK.device)[rows_B]
    if isinstance(algorithm, ConservativeConfig):
        cost_weight_N = torch.as_tensor(batch.cost_weight_B, device=reward_NK.device)[rows_B]
        utility_NK = scores.quality_BK - cost_weight_N[:, None] * scores.cost_BK
        logged_NK = weight_NK > 0
        return compute_pairwise_conservative_loss(utility_NK, reward_NK, logged_NK, algorithm.alpha)
    assert isinstance(algorithm, OffPolicyConfig)
    if algorithm.estimator == "snips":
        return compute_self_normalised_loss(scores.logp_BK, reward_NK, weight_NK)
    return compute_expected_loss(scores.logp_BK, reward_NK)


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
    algorithm: PPOConfig | ReinforceConfig,
    batch: Batch,
    targets: Targets,
    value_N: Tensor,
    rows_B: Tensor,
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
    if "hacked" in total:
        metrics["policy/hack_rate"] = total["hacked"] / count
    if "value_loss" in total:
        known = max(total["value_count"], 1.0)
        variance = total["return_squared"] / known - (total["return"] / known) ** 2
        left = total["error_squared"] / known - (total["error"] / known) ** 2
        metrics["policy/value_loss"] = total["value_loss"] / count
        metrics["policy/explained_variance"] = 1 - left / variance if variance > 0 else float("nan")
    return metrics
