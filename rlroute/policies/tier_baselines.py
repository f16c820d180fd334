"""Baselines of memory-tier routing: whom a trained policy is compared with, on the same outcomes.

| baseline       | what                                                                           |
| -------------- | ------------------------------------------------------------------------------ |
| StaticTiers    | one assignment for all questions: all first tiers, all middle, all last        |
| RandomTiers    | every assignment with the same probability, as an exact expectation            |
| BestStatic     | for each cost weight the best assignment of all on train                       |
| KindStatic     | the same for each kind of question; it is told the true kind of a test         |
|                | question, so it bounds what a static choice by kind can do                     |
| TierClassifier | supervised learning on the enumerated train tree, from question embeddings     |
| TierOracle     | each question's best assignment; it knows the outcomes: the upper bound        |

Each has `pick(table, cost_weight)`, which returns probabilities of the leaves [Q, L]. Utility is
score minus cost weight times cost over the reference (USD); ties go to the cheapest. What failed is
not learnt from; a static assignment's mean is over the train questions on which it did not fail.

What it leaves out: learning by trial (the trained policies), measuring
(`rlroute.evaluation.memory_measures`).

How to use: `for one in fit_tier_baselines(train, val, reference_usd): one.pick(test, 0.3)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rlroute.evaluation.frontier import Float64Array, compute_hull
from rlroute.evaluation.memory_measures import MemoryPlays
from rlroute.evaluation.memory_results import MemoryKind, MemoryModule
from rlroute.evaluation.memory_table import TierTable, average_leaves, play_leaves
from rlroute.evaluation.metrics import (
    average_picks,
    make_one_hot,
    pick_best,
    pick_oracle,
)
from rlroute.extras import require
from rlroute.types import FloatArray, IntArray, RLRouteError

RIDGE_PENALTIES = (0.1, 1.0, 10.0)
LOGISTIC_STRENGTHS = (1.0, 30.0)  # the inverse of the penalty


class TierBaseline(Protocol):
    """Something that assigns tiers to questions."""

    name: str
    kind: MemoryKind

    def pick(self, table: TierTable, cost_weight: float) -> Float64Array:
        """Return the probabilities of the leaves [Q, L]."""


# --- Static assignments ---------------------------------------------------------------------------


@dataclass
class StaticTiers:
    """One leaf for all questions, at any cost weight."""

    name: str
    leaf: int
    kind: MemoryKind = "static"

    def pick(self, table: TierTable, cost_weight: float) -> Float64Array:
        """Return 1 at the leaf."""
        return make_one_hot(np.full(len(table.kind_Q), self.leaf), table.leaves)


@dataclass
class RandomTiers:
    """Every leaf with the same probability."""

    name: str = "random"
    kind: MemoryKind = "random"

    def pick(self, table: TierTable, cost_weight: float) -> Float64Array:
        """Return equal probabilities."""
        return np.full(table.score_QL.shape, 1.0 / table.leaves)


class BestStatic:
    """The best leaf on train for each cost weight; ties to the cheapest.

    Raises:
        RLRouteError: every run of the train split failed.
    """

    kind: MemoryKind = "best_static"

    def __init__(self, train: TierTable, reference_usd: float, name: str = "best static") -> None:
        self.name, self.reference_usd = name, reference_usd
        self.score_L = average_leaves(train.score_QL, train.present_QL)
        self.cost_usd_L = average_leaves(train.cost_usd_QL, train.present_QL)
        if np.isnan(self.score_L).all():
            raise RLRouteError(f"{name}: every run of its {len(train.kind_Q)} questions failed")

    def choose(self, cost_weight: float) -> int:
        """Return the leaf."""
        utility_L = self.score_L - cost_weight * self.cost_usd_L / self.reference_usd
        known_L = ~np.isnan(utility_L)
        return int(pick_best(utility_L[None], self.cost_usd_L[None], known_L[None])[0])

    def list_frontier(self) -> list[int]:
        """Return the leaves on the train split's frontier of all static assignments."""
        known_N = np.flatnonzero(~np.isnan(self.score_L))
        cost_N, score_N = self.cost_usd_L[known_N], self.score_L[known_N]
        return [
            int(known_N[np.flatnonzero((cost_N == cost) & (score_N == score))[0]])
            for cost, score in zip(*compute_hull(cost_N, score_N), strict=True)
        ]

    def pick(self, table: TierTable, cost_weight: float) -> Float64Array:
        """Return 1 at the leaf that was chosen on train."""
        return StaticTiers(self.name, self.choose(cost_weight)).pick(table, cost_weight)


class KindStatic:
    """The best leaf on train for each kind of question and cost weight.

    It reads the true kind of a test question. A kind that train does not hold gets the best leaf
    of all.
    """

    name = "best static per kind"
    kind: MemoryKind = "kind_static"

    def __init__(self, train: TierTable, reference_usd: float) -> None:
        self.overall = BestStatic(train, reference_usd)
        kind_Q = np.array(train.kind_Q)
        parts = {kind: train.take(kind_Q == kind) for kind in sorted(set(train.kind_Q))}
        self.by_kind = {
            kind: BestStatic(part, reference_usd, f"best static for '{kind}'")
            for kind, part in parts.items()
            if part.present_QL.any()
        }

    def pick(self, table: TierTable, cost_weight: float) -> Float64Array:
        """Return 1 at the leaf of each question's kind."""
        leaf_by_kind = {
            kind: self.by_kind.get(kind, self.overall).choose(cost_weight)
            for kind in set(table.kind_Q)
        }
        return make_one_hot([leaf_by_kind[kind] for kind in table.kind_Q], table.leaves)


@dataclass
class TierOracle:
    """The leaf of the best utility of each question, of those that did not fail."""

    reference_usd: float
    name: str = "oracle"
    kind: MemoryKind = "oracle"

    def pick(self, table: TierTable, cost_weight: float) -> Float64Array:
        """Return 1 at the oracle's leaf."""
        return make_one_hot(
            pick_oracle_leaves(table, cost_weight, self.reference_usd), table.leaves
        )


def pick_oracle_leaves(table: TierTable, cost_weight: float, reference_usd: float) -> IntArray:
    """Return each question's best leaf [Q], ties to the cheapest; 0 where all leaves failed."""
    cost_QL = table.cost_usd_QL / reference_usd
    return pick_oracle(table.score_QL, cost_QL, table.present_QL, cost_weight)


# --- Supervised learning --------------------------------------------------------------------------


class TierClassifier:
    """Supervised learning on the enumerated train tree, from the embeddings of questions alone.

    Two ways, of which the one with the better mean utility on val is taken at each cost weight:
    ridge regression of every leaf's score and cost, then the leaf of the best predicted utility;
    and for each module a logistic classifier of the tier that the oracle takes at that weight. The
    penalty of each way is chosen on val as well. It needs the outcomes of every leaf.

    Raises:
        RLRouteError: scikit-learn is not installed, or every run of train or val failed.
    """

    name = "classifier"
    kind: MemoryKind = "classifier"

    def __init__(self, train: TierTable, val: TierTable, reference_usd: float) -> None:
        for name, table in (("train", train), ("val", val)):
            if not table.present_QL.any():
                raise RLRouteError(f"classifier: every run of the {name} split failed")
        self.train, self.val, self.reference_usd = train, val, reference_usd
        self.ridges = [RidgeLeaves(train, reference_usd, penalty) for penalty in RIDGE_PENALTIES]
        self._chosen: dict[float, RidgeLeaves | LogisticTiers] = {}

    def choose(self, cost_weight: float) -> RidgeLeaves | LogisticTiers:
        """Return the way that is best on val at a cost weight."""
        if cost_weight not in self._chosen:
            utility_QL = self.val.compute_utility(cost_weight, self.reference_usd)
            logistics = [
                LogisticTiers(self.train, self.reference_usd, cost_weight, strength)
                for strength in LOGISTIC_STRENGTHS
            ]

            def judge(way: RidgeLeaves | LogisticTiers) -> float:
                leaf_Q = way.predict(self.val.query_QE, cost_weight)
                value_Q = average_picks(utility_QL, make_one_hot(leaf_Q, self.val.leaves))
                known_Q = ~np.isnan(value_Q)
                return float(value_Q[known_Q].mean()) if known_Q.any() else -np.inf

            ways: list[RidgeLeaves | LogisticTiers] = [*self.ridges, *logistics]
            self._chosen[cost_weight] = max(ways, key=judge)
        return self._chosen[cost_weight]

    def pick(self, table: TierTable, cost_weight: float) -> Float64Array:
        """Return 1 at the predicted leaf."""
        leaf_Q = self.choose(cost_weight).predict(table.query_QE, cost_weight)
        return make_one_hot(leaf_Q, table.leaves)


class RidgeLeaves:
    """Ridge regression of score and relative cost of every leaf, each from where it did not fail.

    Leaves that failed on all train questions are never predicted.
    """

    def __init__(self, train: TierTable, reference_usd: float, penalty: float) -> None:
        model = require("sklearn.linear_model", "train")
        self.penalty, leaves = penalty, train.leaves
        features = train.query_QE.shape[1]
        self.slope_2LE = np.zeros((2, leaves, features))
        self.start_2L = np.full((2, leaves), np.nan)
        outcome_2QL = np.stack([train.score_QL, train.cost_usd_QL / reference_usd])
        # Leaves with the same holes are fitted at once: without failures, all of them.
        pattern_PQ, group_L = np.unique(train.present_QL.T, axis=0, return_inverse=True)
        for p, present_Q in enumerate(pattern_PQ):
            if not present_Q.any():
                continue
            place_G = np.flatnonzero(group_L.ravel() == p)
            target_2QG = outcome_2QL[:, present_Q][:, :, place_G].astype(np.float64)
            fitted = model.Ridge(alpha=penalty).fit(
                train.query_QE[present_Q].astype(np.float64), np.concatenate(target_2QG, axis=1)
            )
            self.slope_2LE[:, place_G] = fitted.coef_.reshape(2, len(place_G), features)
            self.start_2L[:, place_G] = fitted.intercept_.reshape(2, len(place_G))

    def predict(self, query_QE: FloatArray, cost_weight: float) -> IntArray:
        """Return the leaf of the best predicted utility [Q]; ties to the cheapest."""
        slope_2EL = self.slope_2LE.transpose(0, 2, 1)
        score_QL, cost_QL = query_QE @ slope_2EL + self.start_2L[:, None]
        return pick_best(score_QL - cost_weight * cost_QL, cost_QL, ~np.isnan(score_QL))


class LogisticTiers:
    """For each module a logistic classifier of the oracle's tier at one cost weight."""

    def __init__(
        self, train: TierTable, reference_usd: float, cost_weight: float, strength: float
    ) -> None:
        model = require("sklearn.linear_model", "train")
        self.strength = strength
        self.tier_counts = tuple(len(module.tiers) for module in train.modules)
        known_Q = train.present_QL.any(axis=1)
        leaf_Q = pick_oracle_leaves(train, cost_weight, reference_usd)
        tier_QM = train.leaf_tier_LM[leaf_Q][known_Q]
        query_QE = train.query_QE[known_Q].astype(np.float64)
        self.leaf_by_tiers = {tuple(row): leaf for leaf, row in enumerate(train.leaf_tier_LM)}
        self.classifiers = [
            model.LogisticRegression(C=strength, max_iter=300).fit(query_QE, tier_Q)
            if len(set(tier_Q.tolist())) > 1
            else int(tier_Q[0])  # the oracle takes one tier for all
            for tier_Q in tier_QM.T
        ]

    def predict(self, query_QE: FloatArray, cost_weight: float) -> IntArray:
        """Return the leaf of the predicted tiers [Q]; fitted for one weight, it reads none."""
        columns = [
            np.full(len(query_QE), one)
            if isinstance(one, int)
            else one.predict(query_QE.astype(np.float64))
            for one in self.classifiers
        ]
        return np.array([self.leaf_by_tiers[tuple(row)] for row in np.stack(columns, axis=1)])


# --- All of them ----------------------------------------------------------------------------------


def list_level_statics(
    leaf_tier_LM: IntArray, modules: Sequence[MemoryModule]
) -> list[StaticTiers]:
    """Return the assignments of all first, all middle and all last tiers, the cheapest first.

    They are named by the tier where all modules name it alike, such as "all Low". Without a module
    of three tiers or more there is no middle one.
    """
    found: dict[int, StaticTiers] = {}
    for word, part in (("cheapest", 0.0), ("middle", 0.5), ("dearest", 1.0)):
        tier_M = [int(part * (len(module.tiers) - 1)) for module in modules]
        names = {module.tiers[tier] for module, tier in zip(modules, tier_M, strict=True)}
        leaf = int(np.flatnonzero((leaf_tier_LM == tier_M).all(axis=1))[0])
        name = f"all {names.pop() if len(names) == 1 else word}"
        found.setdefault(leaf, StaticTiers(name, leaf))
    return list(found.values())


def fit_tier_baselines(
    train: TierTable, val: TierTable, reference_usd: float
) -> list[TierBaseline]:
    """Return all baselines, fitted on train; val chooses the classifier's way and penalty.

    Raises:
        RLRouteError: see `BestStatic` and `TierClassifier`.
    """
    return [
        *list_level_statics(train.leaf_tier_LM, train.modules),
        RandomTiers(),
        BestStatic(train, reference_usd),
        KindStatic(train, reference_usd),
        TierClassifier(train, val, reference_usd),
        TierOracle(reference_usd),
    ]


def play_baseline(
    baseline: TierBaseline, table: TierTable, cost_weights: Sequence[float]
) -> MemoryPlays:
    """Return what a baseline gets at each cost weight, and at the points of its frontier."""
    more: list[int] = []
    if isinstance(baseline, StaticTiers | RandomTiers):
        plays = [play_leaves(table, baseline.pick(table, 0.0))] * len(cost_weights)
    else:
        plays = [play_leaves(table, baseline.pick(table, weight)) for weight in cost_weights]
    if isinstance(baseline, BestStatic):
        more = baseline.list_frontier()
    return MemoryPlays(
        name=baseline.name,
        kind=baseline.kind,
        plays=tuple(plays),
        more=tuple(play_leaves(table, StaticTiers("", leaf).pick(table, 0.0)) for leaf in more),
    )
