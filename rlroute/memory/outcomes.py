"""What came of tiers: the one interface behind which pipelines run now or were run before.

An episode is one question and M decisions, one tier for each module in the pipeline's order. The
modules of a stage (filter; all extractors; summary) are chosen for one after the other and run
together, after the last of them was chosen for. Lanes go through the modules in lock-step:

    for step, module in enumerate(facts.modules):
        state_BE = outcomes.look(question_index_B, step, tier_BM)     # columns before `step` count
        ... tiers are chosen, tier_BM[:, step] ...
        cost_usd_B = outcomes.run(question_index_B, step, tier_BM)    # 0 inside a stage
    answers = outcomes.answer(question_index_B, tier_BM)

`TierTree` (`rlroute.memory.tree`) holds all of it in arrays, `LiveOutcomes`
(`rlroute.memory.live`) runs the pipeline. A run that failed makes the costs of its lane NaN from
there on, and its score.

The state is the mean embedding of what the module is going to read: of the retrieved chunks for the
filter, of the filtered chunks for extractors, and for the summary of the extractors' notes (those
of one module embedded as one text, modules without notes left out; the filtered chunks where none
has any).

Leaves number all M tiers of an episode in row-major order (the last module's tier runs fastest).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rlroute.memory.base import MemoryQuestion, Role
from rlroute.types import FloatArray, IntArray, UsdArray


@dataclass(frozen=True)
class ModuleFacts:
    """What a policy and a report say of a module; tiers from the cheapest to the dearest."""

    name: str
    role: Role
    description: str
    tiers: tuple[str, ...]


@dataclass(frozen=True)
class PipelineFacts:
    """The modules in order. `fingerprint` is a hash of all that outcomes depend on."""

    modules: tuple[ModuleFacts, ...]
    fingerprint: str

    @property
    def tier_counts(self) -> tuple[int, ...]:
        """The number of tiers of each module."""
        return tuple(len(module.tiers) for module in self.modules)

    @property
    def leaves(self) -> int:
        """The number of ways to choose a tier for every module."""
        return int(np.prod(self.tier_counts))

    def find_stage(self, step: int) -> slice:
        """Return the places of the modules that run together with the module at `step`."""
        last = len(self.modules) - 1
        if step in (0, last):
            return slice(step, step + 1)
        return slice(1, last)

    def number_leaves(self, tier_BM: IntArray) -> IntArray:
        """Return the leaf of each row of tiers [B]."""
        return np.asarray(np.ravel_multi_index(tuple(tier_BM.T), self.tier_counts), dtype=np.int64)

    def list_leaves(self) -> IntArray:
        """Return the tiers of all leaves [L, M]."""
        places = np.unravel_index(np.arange(self.leaves), self.tier_counts)
        return np.stack(places, axis=1).astype(np.int64)


@dataclass(frozen=True)
class Answers:
    """How B episodes ended: scores in [0, 1] and what the answer cost; NaN where a call failed."""

    score_B: FloatArray
    cost_usd_B: UsdArray


class TierOutcomes(Protocol):
    """The questions of a split, and what comes of every choice of tiers; see the module's text."""

    @property
    def facts(self) -> PipelineFacts:
        """The pipeline's modules and tiers."""

    @property
    def questions(self) -> Sequence[MemoryQuestion]:
        """The questions, in a fixed order."""

    @property
    def query_QE(self) -> FloatArray:
        """The embeddings of the questions, of length 1."""

    def look(self, question_index_B: IntArray, step: int, tier_BM: IntArray) -> FloatArray:
        """Return the state before the decision at `step` [B, E]; zero where a run failed."""

    def run(self, question_index_B: IntArray, step: int, tier_BM: IntArray) -> UsdArray:
        """Run the stage that ends at `step` and return what it costs [B] in USD.

        Inside a stage nothing is run and the cost is 0. NaN where a run failed, now or before.
        """

    def answer(self, question_index_B: IntArray, tier_BM: IntArray) -> Answers:
        """Answer from the summaries."""
