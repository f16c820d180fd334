"""Baselines that take the first candidate that is good enough, cheapest first.

What it is: `CheapestSufficient` reads predictions and pays for its pick alone; `PaidProbes` asks
one candidate after the other, looks at each answer, and pays for all that it asked.

What it leaves out: a fallible check. `PaidProbes` sees the true score of an answer that it has paid
for, as where tests or a proof checker are at hand: with it, a lower score than this is the price of
not looking. Where answers cannot be checked it is no rival, only a yardstick.

How to use: `CheapestSufficient(neighbours, train, val)`, `PaidProbes(train, val)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rlroute.evaluation.metrics import (
    TIE_TOLERANCE,
    average_candidates,
    average_picks,
    compute_utility,
    make_one_hot,
    pick_best,
)
from rlroute.policies.table_baselines import (
    Float64Array,
    KeptPrediction,
    OutcomePredictor,
    check_candidates,
    list_candidate_ids,
    list_outcomes,
)
from rlroute.types import BoolArray, FloatArray, IntArray

if TYPE_CHECKING:
    from rlroute.data.routing_data import RoutingData

# Predicted qualities that may count as sufficient.
THRESHOLDS = tuple(step / 50 for step in range(51))
# True scores that may count as sufficient where scores are not all 0 or 1.
PROBE_THRESHOLDS = (1.0, 0.5)


class CheapestSufficient:
    """Picks the cheapest candidate whose predicted quality reaches a threshold.

    Where none reaches it, the best predicted one. At each cost weight the threshold is the one of
    the best mean utility on the validation split, ties to the lowest.
    """

    def __init__(self, predictor: OutcomePredictor, train: RoutingData, val: RoutingData) -> None:
        self.name = "sufficient"
        self.kept = KeptPrediction(predictor, train)
        score_QK, cost_QK = predictor.predict(val.features_QF)
        present_QK = val.table.present_QK
        picks = [
            make_one_hot(pick_sufficient(score_QK, cost_QK, present_QK, one), present_QK.shape[1])
            for one in THRESHOLDS
        ]
        true_score_QK, true_cost_QK = list_outcomes(val)
        self.quality_N = np.array([average_picks(true_score_QK, one).mean() for one in picks])
        self.cost_N = np.array([average_picks(true_cost_QK, one).mean() for one in picks])

    def choose_threshold(self, cost_weight: float) -> float:
        """Return the threshold of the best mean utility on the validation split."""
        utility_N = self.quality_N - cost_weight * self.cost_N
        return THRESHOLDS[int(np.argmax(utility_N >= utility_N.max() - TIE_TOLERANCE))]

    def compute_probabilities(self, data: RoutingData, cost_weight: float) -> FloatArray:
        """Return [Q, K], 1 at the pick among the present candidates.

        Raises:
            RLRouteError: the candidates are not those it was fitted on.
        """
        score_QK, cost_QK = self.kept.predict(data)
        threshold = self.choose_threshold(cost_weight)
        pick_Q = pick_sufficient(score_QK, cost_QK, data.table.present_QK, threshold)
        return make_one_hot(pick_Q, score_QK.shape[1]).astype(np.float32)


def pick_sufficient(
    score_QK: Float64Array, cost_QK: Float64Array, present_QK: BoolArray, threshold: float
) -> IntArray:
    """Return per query the cheapest present candidate of score >= threshold [Q].

    Where none is, the present one of the best score, ties to the cheapest.
    """
    sufficient_QK = present_QK & (score_QK >= threshold - TIE_TOLERANCE)
    cheapest_Q = np.argmin(np.where(sufficient_QK, cost_QK, np.inf), axis=1)
    best_Q = pick_best(score_QK, cost_QK, present_QK)
    return np.where(sufficient_QK.any(1), cheapest_Q, best_Q)


@dataclass(frozen=True)
class ProbePlan:
    """Which candidates are asked, in this order, until a score reaches the threshold."""

    column_N: tuple[int, ...]
    threshold: float


class PaidProbes:
    """Asks candidates from the cheapest on, looks at each answer, stops at the first good one.

    All that was asked is paid, also where the answer is thrown away. The best answer seen is given,
    ties to the first. Which candidates are asked is built up on train at each cost weight, adding
    the one that raises mean utility most, as long as one does; val chooses the threshold. A
    candidate without outcome for a query is passed over. Where none of the plan has one, the
    cheapest that has is asked.
    """

    name = "paid probes"

    def __init__(self, train: RoutingData, val: RoutingData) -> None:
        self.train, self.val = train, val
        self.candidate_ids = list_candidate_ids(train)
        self.cost_K = average_candidates(train.table.cost_usd_QK, train.table.present_QK)
        score_QK = train.table.score_QK[train.table.present_QK]
        binary = bool(np.isin(score_QK, (0, 1)).all())
        self.thresholds = PROBE_THRESHOLDS[:1] if binary else PROBE_THRESHOLDS
        self._plans: dict[float, ProbePlan] = {}

    def choose_plan(self, cost_weight: float) -> ProbePlan:
        """Return the plan for a cost weight, chosen on train (whom) and val (how good)."""
        if cost_weight not in self._plans:
            plans = [self.build_plan(threshold, cost_weight) for threshold in self.thresholds]
            self._plans[cost_weight] = max(
                plans, key=lambda plan: self.compute_mean_utility(plan, self.val, cost_weight)
            )
        return self._plans[cost_weight]

    def build_plan(self, threshold: float, cost_weight: float) -> ProbePlan:
        """Return the plan that adding one candidate after the other comes to on train."""
        plan, best = ProbePlan((), threshold), -np.inf
        while len(plan.column_N) < len(self.cost_K):
            longer = [
                self.order_plan((*plan.column_N, k), threshold)
                for k in range(len(self.cost_K))
                if k not in plan.column_N
            ]
            utility_N = [self.compute_mean_utility(one, self.train, cost_weight) for one in longer]
            if max(utility_N) <= best + TIE_TOLERANCE:
                break
            best = max(utility_N)
            plan = longer[utility_N.index(best)]
        return plan

    def order_plan(self, columns: Sequence[int], threshold: float) -> ProbePlan:
        """Return a plan of these candidates, the cheapest on train first."""
        ordered = sorted(columns, key=lambda k: (self.cost_K[k], k))
        return ProbePlan(tuple(ordered), threshold)

    def compute_mean_utility(self, plan: ProbePlan, data: RoutingData, cost_weight: float) -> float:
        """Return the mean over queries of score - cost_weight * all that was paid, normalised."""
        pick_Q, paid_usd_Q = self.ask(plan, data)
        score_Q = data.table.score_QK[np.arange(len(pick_Q)), pick_Q].astype(np.float64)
        cost_Q = paid_usd_Q / data.cost_reference_usd
        return float(compute_utility(score_Q, cost_Q, cost_weight).mean())

    def ask(self, plan: ProbePlan, data: RoutingData) -> tuple[IntArray, Float64Array]:
        """Return whose answer is given [Q] and what was paid in all, in USD [Q]."""
        score_QK, present_QK = data.table.score_QK, data.table.present_QK
        cost_usd_QK = data.table.cost_usd_QK.astype(np.float64)
        open_Q = np.ones(len(score_QK), np.bool_)
        best_Q = np.full(len(score_QK), -np.inf)
        pick_Q = np.argmin(np.where(present_QK, self.cost_K, np.inf), axis=1)
        paid_usd_Q = np.zeros(len(score_QK))
        for k in plan.column_N:
            asked_Q = open_Q & present_QK[:, k]
            paid_usd_Q[asked_Q] += cost_usd_QK[asked_Q, k]
            better_Q = asked_Q & (score_QK[:, k] > best_Q)
            pick_Q[better_Q] = k
            best_Q[better_Q] = score_QK[better_Q, k]
            open_Q &= ~(asked_Q & (score_QK[:, k] >= plan.threshold))
        unasked_Q = np.flatnonzero(np.isinf(best_Q))
        paid_usd_Q[unasked_Q] = cost_usd_QK[unasked_Q, pick_Q[unasked_Q]]
        return pick_Q, paid_usd_Q

    def compute_probabilities(self, data: RoutingData, cost_weight: float) -> FloatArray:
        """Return [Q, K], 1 at the candidate whose answer is given.

        Raises:
            RLRouteError: the candidates are not those it was fitted on.
        """
        check_candidates(self.name, self.candidate_ids, data)
        pick_Q, _ = self.ask(self.choose_plan(cost_weight), data)
        return make_one_hot(pick_Q, len(self.cost_K)).astype(np.float32)

    def compute_probe_cost(self, data: RoutingData, cost_weight: float) -> Float64Array:
        """Return what was paid for answers that are not given, in USD [Q]."""
        pick_Q, paid_usd_Q = self.ask(self.choose_plan(cost_weight), data)
        own_usd_Q = data.table.cost_usd_QK[np.arange(len(pick_Q)), pick_Q].astype(np.float64)
        return np.maximum(paid_usd_Q - own_usd_Q, 0.0)
