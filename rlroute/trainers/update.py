"""One update of a decision policy: advantages, minibatches, losses, optimiser steps.

Every process holds a slice of the batch. Advantages need whole groups only, and those lie within a
slice; what needs the whole batch (normalisation, minibatch order, dropout, counts) is computed from
coordinates or from sums over processes. A minibatch's loss is its sum over rows divided by the rows
that all processes hold of it, so one process and many take the same step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from rlroute.algorithms.advantages import (
    compute_gae,
    compute_group_advantages,
    compute_joint_advantages,
    compute_rloo_advantages,
    normalise_advantages,
)
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
from rlroute.policies.mlp import draw_dropout_mask
from rlroute.seeding import draw_permutation, make_torch_generator
from rlroute.trainers.memory_recipe import MemoryGRPOConfig, MemoryPPOConfig, MemoryRLOOConfig
from rlroute.trainers.recipe import (
    ExpectedGradientConfig,
    GRPOConfig,
    PPOConfig,
    RLOOConfig,
)
from rlroute.trainers.step_targets import compute_step_advantages
from rlroute.types import REFERENCE, Batch, FloatArray, IntArray

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.optim import Optimizer

Sums = dict[str, Tensor]


class DecisionScores(Protocol):
    """What a policy's network says of N decisions."""

    @property
    def logp_BK(self) -> Tensor:
        """Log-probabilities [N, K] over the allowed candidates."""

    @property
    def value_B(self) -> Tensor:
        """The critic's values [N]."""


class Rewards(Protocol):
    """How reward terms become one reward."""

    def combine(self, values: Mapping[str, FloatArray], cost_weight_N: FloatArray) -> FloatArray:
        """Return the reward, shaped as the terms; NaN where a term is undefined."""


@dataclass(frozen=True)
class MinibatchPart:
    """This process's part of a minibatch of `total` rows: its rows, and their places among all.

    `coordinates` (update, epoch, number) say which minibatch it is. A `void` part counts for
    nothing: it keeps step with the other processes, which have more rows.
    """

    rows_B: IntArray
    place_B: IntArray
    total: int
    coordinates: tuple[int, int, int]
    void: bool = False

    def split(self, size: int | None, most: int) -> list[MinibatchPart]:
        """Return parts of at most `size` rows, as many as a process with `most` rows needs."""
        if size is None:
            return [self]
        pieces = np.array_split(np.arange(len(self.rows_B)), max(-(-most // size), 1))
        return [
            replace(self, rows_B=self.rows_B[piece], place_B=self.place_B[piece])
            if len(piece)
            else replace(self, rows_B=np.array([0]), place_B=np.array([0]), void=True)
            for piece in pieces
        ]


ScoreRows = Callable[["Learner", Batch, MinibatchPart], DecisionScores]


@dataclass
class Learner:
    """The model and optimiser as Accelerate prepared them, with what an update needs beside.

    `score_rows` runs the model on some rows of a batch, all T decisions of a row one after the
    other, at most `micro_batch` rows in a pass. `reference` is a frozen copy of the policy that the
    KL term holds on to.
    """

    accelerator: Accelerator
    model: torch.nn.Module
    optimiser: Optimizer
    score_rows: ScoreRows
    rewards: Rewards
    recipe: Any  # seed, updates, algorithm, optimiser: Recipe or StepRecipe
    entropy_weight: float = 0.0  # of the current update; the loop sets it from the recipe
    micro_batch: int | None = None
    reference: torch.nn.Module | None = None

    @property
    def scorer(self) -> Any:
        """The policy without the wrapper that exchanges gradients."""
        return self.accelerator.unwrap_model(self.model)


def score_candidates(learner: Learner, batch: Batch, part: MinibatchPart) -> DecisionScores:
    """Run a candidate scorer on rows of a batch; its dropout is drawn from the coordinates."""
    device, steps = learner.accelerator.device, batch.valid_BT.shape[1]
    generator = make_torch_generator(learner.recipe.seed, "dropout", *part.coordinates)
    mask_CH = draw_dropout_mask(part.total, learner.scorer.config, generator)
    mask_BH = None
    if mask_CH is not None:  # one mask for all steps of an episode
        mask_BH = mask_CH[part.place_B].to(device).repeat_interleave(steps, dim=0)
    rows_B = part.rows_B
    scores: DecisionScores = learner.model(
        torch.as_tensor(batch.features_BTF[rows_B], device=device).flatten(0, 1),
        torch.as_tensor(batch.candidate_features_KD, device=device),
        torch.as_tensor(batch.mask_BTK[rows_B], device=device).flatten(0, 1),
        torch.as_tensor(batch.cost_weight_B[rows_B], device=device).repeat_interleave(steps),
        mask_BH,
    )
    return scores


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
