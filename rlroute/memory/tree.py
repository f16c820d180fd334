"""All that a pipeline can do with a set of questions, in arrays: every tier of every module.

A `TierTree` answers as `TierOutcomes` do (`rlroute.memory.outcomes`), by looking up, so that
thousands of episodes take a step at once and training costs nothing. `enumerate_tree`
(`rlroute.memory.enumerate`) makes one; `save_tree` and `load_tree` (`rlroute.memory.tree_files`)
keep it in a folder.

Axes: Q questions, K tiers of the filter, X extractors, N tiers of an extractor (as many as the one
with the most has; what an extractor lacks is never read, its costs are NaN), L leaves (the tiers of
all modules, see `outcomes`), E the state's embedding.

What it leaves out: what the modules said. The texts stay in the pipeline's store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from rlroute.memory.base import MemoryQuestion
from rlroute.memory.outcomes import Answers, PipelineFacts
from rlroute.memory.states import combine_notes
from rlroute.types import BoolArray, FloatArray, IntArray, UsdArray

# The arrays of a tree, all with the questions as first axis, and their types.
TREE_ARRAYS = {
    "query_QE": np.float32,
    "retrieved_QE": np.float32,
    "filtered_QKE": np.float32,
    "notes_QKXNE": np.float32,
    "has_notes_QKXN": np.bool_,
    "filter_cost_QK": np.float64,
    "extract_cost_QKXN": np.float64,
    "summary_cost_QL": np.float64,
    "answer_cost_QL": np.float64,
    "leaf_score_QL": np.float32,
}


@dataclass(frozen=True)
class TierTree:
    """The outcomes of Q questions under all tiers; see the module's text for the axes.

    Costs are in USD: of each module's run (`summary_cost_QL` that of the summary alone), and of the
    answer. A cost is NaN where the run failed or one failed that it depends on; so are
    `leaf_score_QL`, scores in [0, 1]. Embeddings are 0 there. `encoder_fingerprint` says what made
    them.
    """

    facts: PipelineFacts
    questions: tuple[MemoryQuestion, ...]
    encoder_fingerprint: str
    query_QE: FloatArray
    retrieved_QE: FloatArray
    filtered_QKE: FloatArray
    notes_QKXNE: FloatArray
    has_notes_QKXN: BoolArray
    filter_cost_QK: UsdArray
    extract_cost_QKXN: UsdArray
    summary_cost_QL: UsdArray
    answer_cost_QL: UsdArray
    leaf_score_QL: FloatArray

    @cached_property
    def leaf_cost_QL(self) -> UsdArray:
        """What the modules of each leaf cost together, in USD; the answer's cost is apart."""
        tier_LM = self.facts.list_leaves()
        questions, leaves = self.summary_cost_QL.shape
        index_N = np.repeat(np.arange(questions), leaves)
        tier_NM = np.tile(tier_LM, (questions, 1))
        cost_N = self.filter_cost_QK[index_N, tier_NM[:, 0]]
        cost_N = cost_N + self._sum_extractors(index_N, tier_NM)
        return cost_N.reshape(questions, leaves) + self.summary_cost_QL

    def look(self, question_index_B: IntArray, step: int, tier_BM: IntArray) -> FloatArray:
        """Return the state before the decision at `step` [B, E]; zero where a run failed."""
        if step == 0:
            return self.retrieved_QE[question_index_B]
        filtered_BE = self.filtered_QKE[question_index_B, tier_BM[:, 0]]
        if step < len(self.facts.modules) - 1:
            return filtered_BE
        place = self._place_extractors(question_index_B, tier_BM)
        state_BE = combine_notes(self.notes_QKXNE[place], self.has_notes_QKXN[place], filtered_BE)
        state_BE[np.isnan(self.extract_cost_QKXN[place]).any(axis=1)] = 0
        return state_BE

    def run(self, question_index_B: IntArray, step: int, tier_BM: IntArray) -> UsdArray:
        """Return what the stage that ends at `step` costs [B]; 0 inside a stage, NaN if failed."""
        last = len(self.facts.modules) - 1
        if step == last:
            return self.summary_cost_QL[question_index_B, self.facts.number_leaves(tier_BM)]
        if step == last - 1:
            return self._sum_extractors(question_index_B, tier_BM)
        cost_B = self.filter_cost_QK[question_index_B, tier_BM[:, 0]]
        return cost_B if step == 0 else np.where(np.isnan(cost_B), np.nan, 0.0)

    def answer(self, question_index_B: IntArray, tier_BM: IntArray) -> Answers:
        """Return the scores and what the answers cost."""
        leaf_B = self.facts.number_leaves(tier_BM)
        return Answers(
            score_B=self.leaf_score_QL[question_index_B, leaf_B],
            cost_usd_B=self.answer_cost_QL[question_index_B, leaf_B],
        )

    def select(self, indices: Sequence[int] | IntArray) -> TierTree:
        """Return the tree of some of the questions, in the order of `indices`."""
        index_N = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            questions=tuple(self.questions[index] for index in index_N.tolist()),
            **{name: getattr(self, name)[index_N] for name in TREE_ARRAYS},
        )

    def find_reference_cost(self) -> float:
        """Return the mean cost of the dearest static choice of tiers in USD, failures left out."""
        cost_QL = self.leaf_cost_QL
        known_QL = ~np.isnan(cost_QL)
        total_L = np.where(known_QL, cost_QL, 0.0).sum(axis=0)
        return float((total_L / np.maximum(known_QL.sum(axis=0), 1)).max())

    def find_largest_costs(self) -> UsdArray:
        """Return the largest cost of each tier of each module [M, K] in USD.

        K is the number of tiers of the module with the most; what a module lacks, or what failed
        throughout, is infinite.
        """
        counts = self.facts.tier_counts
        largest_MK = np.full((len(counts), max(counts)), np.inf)
        largest_MK[0, : counts[0]] = find_largest(self.filter_cost_QK)
        for place, tiers in enumerate(counts[1:-1]):
            cost_NK = self.extract_cost_QKXN[:, :, place, :tiers].reshape(-1, tiers)
            largest_MK[place + 1, :tiers] = find_largest(cost_NK)
        largest_MK[-1, : counts[-1]] = find_largest(self.summary_cost_QL.reshape(-1, counts[-1]))
        return largest_MK

    def _place_extractors(
        self, question_index_B: IntArray, tier_BM: IntArray
    ) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        """Return where the chosen runs of the extractors stand [B, X] in arrays of [Q, K, X, N]."""
        place_1X = np.arange(len(self.facts.modules) - 2)[None]
        return question_index_B[:, None], tier_BM[:, :1], place_1X, tier_BM[:, 1:-1]

    def _sum_extractors(self, question_index_B: IntArray, tier_BM: IntArray) -> UsdArray:
        """Return what the chosen tiers of the extractors cost together [B]."""
        cost_BX = self.extract_cost_QKXN[self._place_extractors(question_index_B, tier_BM)]
        return add_in_order(cost_BX)


def add_in_order(cost_BX: UsdArray) -> UsdArray:
    """Return the sums of rows [B], added from the first to the last as one would by hand."""
    total_B = np.zeros(len(cost_BX))
    for column_B in cost_BX.T:
        total_B = total_B + column_B
    return total_B


def find_largest(cost_NK: UsdArray) -> UsdArray:
    """Return the largest of each column [K], failed runs (NaN) left out; infinite if all failed."""
    known_NK = ~np.isnan(cost_NK)
    largest_K = np.where(known_NK, cost_NK, -np.inf).max(axis=0)
    return np.where(known_NK.any(axis=0), largest_K, np.inf)
