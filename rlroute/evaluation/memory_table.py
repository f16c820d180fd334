"""What there is to choose from, and what came of choices: the arrays that an evaluation works on.

What it is: `TierTable` holds all outcomes of Q questions over the L leaves of the tier tree (a leaf
is a tier for each of M modules); `play_leaves` says what a contender gets that picks leaves, and
`play_tiers` takes what a live run got. Both give a `TierPlayed`.

A failed run is NaN. It is never picked by anybody who knows better, never cheap, never scored: a
question whose picked leaf failed has no value, and is counted.

What it leaves out: where the arrays come from (`rlroute.memory.tree`), measuring
(`memory_measures`), contenders (`rlroute.policies.tier_baselines`).

How to use: `play_leaves(table, make_one_hot(leaf_Q, table.leaves))`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from rlroute.evaluation.frontier import Float64Array
from rlroute.evaluation.memory_results import MemoryModule, Shares
from rlroute.types import BoolArray, FloatArray, IntArray, RLRouteError


@dataclass(frozen=True)
class TierTable:
    """All outcomes of the questions of a split.

    `score_QL` in [0, 1], `cost_usd_QL` of the memory's modules and `answer_cost_usd_QL` are NaN
    where a run failed. `kind_Q` and `history_Q` name each question's kind and history, `query_QE`
    embeds it, `leaf_tier_LM` are the tiers of each leaf.

    Raises:
        RLRouteError: shapes that do not fit together, no questions, a score outside [0, 1], or a
            negative cost.
    """

    score_QL: npt.NDArray[np.floating]
    cost_usd_QL: npt.NDArray[np.floating]
    answer_cost_usd_QL: npt.NDArray[np.floating]
    kind_Q: tuple[str, ...]
    history_Q: tuple[str, ...]
    query_QE: FloatArray
    leaf_tier_LM: IntArray
    modules: tuple[MemoryModule, ...]

    def __post_init__(self) -> None:
        questions, leaves = len(self.kind_Q), len(self.leaf_tier_LM)
        if not questions:
            raise RLRouteError("tier table: it has no questions, needs at least one")
        for name in ("score_QL", "cost_usd_QL", "answer_cost_usd_QL"):
            shape = getattr(self, name).shape
            if shape != (questions, leaves):
                raise RLRouteError(
                    f"tier table: {name} has shape {shape}, must be questions x leaves, "
                    f"{(questions, leaves)}"
                )
            value_QL = getattr(self, name)
            known = value_QL[~np.isnan(value_QL)]
            top = 1.0 if name == "score_QL" else np.inf
            if known.size and not (known.min() >= 0 and known.max() <= top):
                raise RLRouteError(
                    f"tier table: {name} reaches from {known.min():g} to {known.max():g}, "
                    f"must be from 0 to {top:g}"
                )
        if len(self.history_Q) != questions or len(self.query_QE) != questions:
            raise RLRouteError(
                f"tier table: {questions} kinds, {len(self.history_Q)} histories and "
                f"{len(self.query_QE)} embeddings: there must be one each for every question"
            )
        if self.leaf_tier_LM.shape != (leaves, len(self.modules)):
            raise RLRouteError(
                f"tier table: leaf_tier_LM has shape {self.leaf_tier_LM.shape}, must be leaves x "
                f"modules, {(leaves, len(self.modules))}"
            )

    @property
    def leaves(self) -> int:
        """The number of leaves."""
        return len(self.leaf_tier_LM)

    @cached_property
    def present_QL(self) -> BoolArray:
        """True where nothing failed."""
        total_QL = self.score_QL + self.cost_usd_QL + self.answer_cost_usd_QL
        return np.asarray(np.isfinite(total_QL))

    @cached_property
    def share_LMK(self) -> Float64Array:
        """1 at each leaf's tier of each module; tiers that a module does not have stay 0."""
        widest = max(len(module.tiers) for module in self.modules)
        one_hot_LMK: Float64Array = np.eye(widest)[self.leaf_tier_LM]
        return one_hot_LMK

    def compute_utility(self, cost_weight: float, reference_usd: float) -> Float64Array:
        """Return score minus cost weight times cost over the reference [Q, L], NaN where failed."""
        cost_QL = self.cost_usd_QL.astype(np.float64) / reference_usd
        utility_QL = self.score_QL.astype(np.float64) - cost_weight * cost_QL
        return np.where(self.present_QL, utility_QL, np.nan)

    def take(self, rows: npt.ArrayLike) -> TierTable:
        """Return the questions at these places."""
        place_Q = np.arange(len(self.kind_Q))[np.asarray(rows)]
        return TierTable(
            score_QL=self.score_QL[place_Q],
            cost_usd_QL=self.cost_usd_QL[place_Q],
            answer_cost_usd_QL=self.answer_cost_usd_QL[place_Q],
            kind_Q=tuple(self.kind_Q[q] for q in place_Q),
            history_Q=tuple(self.history_Q[q] for q in place_Q),
            query_QE=self.query_QE[place_Q],
            leaf_tier_LM=self.leaf_tier_LM,
            modules=self.modules,
        )


@dataclass(frozen=True)
class TierPlayed:
    """What a contender got for each of Q questions at one cost weight.

    Where its choice is random, these are expected values over what did not fail. Score and costs
    are NaN where all failed; `failed_Q` is the probability of that. `share_QMK` are the
    probabilities of the tiers of each module, 0 for tiers that a module does not have.
    """

    score_Q: Float64Array
    cost_usd_Q: Float64Array
    answer_cost_usd_Q: Float64Array
    share_QMK: Float64Array
    failed_Q: Float64Array

    @property
    def known(self) -> bool:
        """Whether there is a value for any question."""
        return not bool(np.isnan(self.score_Q).all())

    def compute_utility(self, cost_weight: float, reference_usd: float) -> Float64Array:
        """Return score minus cost weight times cost over the reference [Q], NaN where failed."""
        return self.score_Q - cost_weight * self.cost_usd_Q / reference_usd


def play_leaves(table: TierTable, probability_QL: npt.ArrayLike) -> TierPlayed:
    """Return what probabilities of leaves [Q, L] (rows sum to 1) give, as expected values."""
    probability_QL = np.asarray(probability_QL, np.float64)
    held_QL = np.where(table.present_QL, probability_QL, 0.0)
    mass_Q = held_QL.sum(axis=1)
    known_Q = mass_Q > 0
    held_QL = held_QL / np.where(known_Q, mass_Q, 1.0)[:, None]

    def average(value_QL: npt.NDArray[np.floating]) -> Float64Array:
        filled_QL = np.where(held_QL > 0, value_QL, 0.0)
        mean_Q: Float64Array = np.where(known_Q, (held_QL * filled_QL).sum(axis=1), np.nan)
        return mean_Q

    return TierPlayed(
        score_Q=average(table.score_QL),
        cost_usd_Q=average(table.cost_usd_QL),
        answer_cost_usd_Q=average(table.answer_cost_usd_QL),
        share_QMK=np.tensordot(probability_QL, table.share_LMK, axes=1),
        failed_Q=np.clip(1.0 - mass_Q, 0.0, 1.0),
    )


def play_tiers(
    score_Q: npt.ArrayLike,
    cost_usd_Q: npt.ArrayLike,
    answer_cost_usd_Q: npt.ArrayLike,
    tier_QM: IntArray,
    modules: Sequence[MemoryModule],
) -> TierPlayed:
    """Return what was really played: one episode for each question, NaN where a call failed."""
    rows = [np.asarray(one, np.float64) for one in (score_Q, cost_usd_Q, answer_cost_usd_Q)]
    failed_Q = ~np.isfinite(np.sum(rows, axis=0))
    score_Q, cost_usd_Q, answer_cost_usd_Q = (np.where(failed_Q, np.nan, one) for one in rows)
    return TierPlayed(
        score_Q=score_Q,
        cost_usd_Q=cost_usd_Q,
        answer_cost_usd_Q=answer_cost_usd_Q,
        share_QMK=np.eye(max(len(module.tiers) for module in modules))[tier_QM],
        failed_Q=failed_Q.astype(np.float64),
    )


# --- Means over questions -------------------------------------------------------------------------


def average_leaves(value_QL: npt.NDArray[np.floating], present_QL: BoolArray) -> Float64Array:
    """Return the mean of each leaf [L] over the questions where it did not fail; NaN for none."""
    count_L = present_QL.sum(axis=0)
    total_L = np.where(present_QL, value_QL, 0.0).sum(axis=0, dtype=np.float64)
    mean_L: Float64Array = np.where(count_L > 0, total_L / np.maximum(count_L, 1), np.nan)
    return mean_L


def find_reference(table: TierTable) -> float:
    """Return the mean cost in USD of the dearest static assignment: the unit of cost weights.

    Raises:
        RLRouteError: every assignment is free, or every run failed.
    """
    cost_L = average_leaves(table.cost_usd_QL, table.present_QL)
    reference = 0.0 if np.isnan(cost_L).all() else float(np.nanmax(cost_L))
    if reference <= 0:
        raise RLRouteError(
            "tier table: no assignment of tiers has a cost above 0 USD, so a cost weight means "
            "nothing; state a reference in USD"
        )
    return reference


def list_static_points(table: TierTable) -> tuple[tuple[float, float], ...]:
    """Return mean cost in USD and quality of each static assignment that has a value."""
    cost_L = average_leaves(table.cost_usd_QL, table.present_QL)
    score_L = average_leaves(table.score_QL, table.present_QL)
    rows = zip(cost_L.tolist(), score_L.tolist(), strict=True)
    return tuple(row for row in rows if not np.isnan(row).any())


# --- Tiers ----------------------------------------------------------------------------------------


def average_shares(share_QMK: Float64Array, modules: Sequence[MemoryModule]) -> Shares:
    """Return the mean shares of the tiers of each module."""
    mean_MK = share_QMK.mean(axis=0)
    return tuple(
        tuple(mean_MK[m, : len(module.tiers)].tolist()) for m, module in enumerate(modules)
    )


def compute_information(share_QK: Float64Array, kind_Q: Sequence[str]) -> float:
    """Return the mutual information in bits between a question's kind and the tier it gets.

    At least 0 and at most the entropy of either. It is that of the sample, which lies a little
    above that of the population (`MemoryPoint`).
    """
    label_Q = np.array(kind_Q)
    joint_CK = np.stack([share_QK[label_Q == kind].sum(axis=0) for kind in sorted(set(kind_Q))])
    joint_CK = joint_CK / joint_CK.sum()
    apart_CK = joint_CK.sum(axis=1, keepdims=True) * joint_CK.sum(axis=0, keepdims=True)
    held_CK = joint_CK > 0
    bits = float((joint_CK[held_CK] * np.log2(joint_CK[held_CK] / apart_CK[held_CK])).sum())
    return max(0.0, bits)
