"""What an update works on: a model with its optimiser, and the rows of a batch that it reads.

What it leaves out: advantages (`rlroute.trainers.targets`) and steps (`rlroute.trainers.update`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from rlroute.policies.mlp import CandidateScorer, QueryBasis, draw_dropout_mask
from rlroute.rewards.base import RewardStack
from rlroute.seeding import make_torch_generator
from rlroute.types import Batch, FloatArray, IntArray

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.optim import Optimizer


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
    KL term holds on to. `basis` is what `score_candidates` keeps of a batch: the batch, and what of
    its queries does not change while it is learnt from.
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
    basis: tuple[Batch, QueryBasis] | None = None

    @cached_property  # Accelerate reads the metadata of packages at every call
    def scorer(self) -> Any:
        """The policy without the wrapper that exchanges gradients."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def plain_optimiser(self) -> Any:
        """The optimiser without Accelerate's wrapper, which looks for packages at every call."""
        return getattr(self.optimiser, "optimizer", self.optimiser)

    def take_step(self) -> None:
        """Take an optimiser step: the wrapper's where gradients are scaled or summed by XLA."""
        summed = str(self.accelerator.distributed_type).endswith("XLA")
        wrapped = summed or self.accelerator.scaler is not None
        (self.optimiser if wrapped else self.plain_optimiser).step()


def gather_rows(accelerator: Any, value_B: Tensor) -> tuple[IntArray, IntArray]:
    """Return a whole number per row of all processes [E], in their order, and rows per process [P].

    Processes may hold different numbers of rows.
    """
    count_1 = torch.tensor([len(value_B)], device=value_B.device)
    rows_P = accelerator.gather(count_1).cpu().numpy()
    padded = accelerator.gather(accelerator.pad_across_processes(value_B))
    padded_PR = padded.cpu().numpy().reshape(len(rows_P), -1)
    inside_PR = np.arange(padded_PR.shape[1]) < rows_P[:, None]
    return padded_PR[inside_PR], rows_P


def score_candidates(learner: Learner, batch: Batch, part: MinibatchPart) -> DecisionScores:
    """Run a candidate scorer on rows of a batch; its dropout is drawn from the coordinates."""
    device, steps = learner.accelerator.device, batch.valid_BT.shape[1]
    generator = make_torch_generator(learner.recipe.seed, "dropout", *part.coordinates)
    mask_CH = draw_dropout_mask(part.total, learner.scorer.config, generator)
    mask_BH = None
    if mask_CH is not None:  # one mask for all steps of an episode
        whole = len(part.place_B) == part.total
        mask_BH = repeat_rows((mask_CH if whole else mask_CH[part.place_B]).to(device), steps)
    rows_B = part.rows_B
    scores: DecisionScores = learner.model(
        read_queries(learner, batch, rows_B),
        torch.as_tensor(batch.candidate_features_KD, device=device),
        torch.as_tensor(batch.mask_BTK[rows_B], device=device).flatten(0, 1),
        repeat_rows(torch.as_tensor(batch.cost_weight_B[rows_B], device=device), steps),
        mask_BH,
        **read_preferences(batch, rows_B, device, steps),
    )
    return scores


def read_queries(learner: Learner, batch: Batch, rows_B: IntArray) -> Tensor | QueryBasis:
    """Return the features of rows of a batch; of queries of one step what is made of them.

    That is made once per batch, for all minibatches of all epochs.
    """
    device, scorer = learner.accelerator.device, learner.scorer
    if batch.valid_BT.shape[1] > 1 or not isinstance(scorer, CandidateScorer):
        return torch.as_tensor(batch.features_BTF[rows_B], device=device).flatten(0, 1)
    if learner.basis is None or learner.basis[0] is not batch:
        basis = scorer.prepare_queries(
            torch.as_tensor(batch.features_BTF[:, 0], device=device),
            torch.as_tensor(batch.candidate_features_KD, device=device),
        )
        learner.basis = (batch, basis)
    return learner.basis[1].select_rows(torch.as_tensor(rows_B, device=device))


def read_preferences(
    batch: Batch, rows_B: IntArray, device: torch.device, steps: int
) -> dict[str, Tensor]:
    """Return what rows weigh beside cost, once per step, as a scorer takes it; often nothing."""
    found = {
        "latency_weight_B": batch.latency_weight_B,
        "candidate_bias_BK": batch.candidate_bias_BK,
    }
    return {
        name: repeat_rows(torch.as_tensor(value_B[rows_B], device=device), steps)
        for name, value_B in found.items()
        if value_B is not None
    }


def combine_rewards(rewards: Rewards, terms: Mapping[str, FloatArray], batch: Batch) -> FloatArray:
    """Return the reward [B, T] (or [B, K]) of terms at the weights of the batch's episodes."""
    cost_weight_B1 = batch.cost_weight_B[:, None]
    if batch.latency_weight_B is None:
        return rewards.combine(terms, cost_weight_B1)
    assert isinstance(rewards, RewardStack)  # no other shape weighs latency
    return rewards.combine(terms, cost_weight_B1, batch.latency_weight_B[:, None])


def repeat_rows(value_B: Tensor, steps: int) -> Tensor:
    """Return each row once per step; itself where there is one step."""
    return value_B if steps == 1 else value_B.repeat_interleave(steps, dim=0)
