"""Baselines for sessions of queries under one budget: they forecast, and spend by a rule.

| baseline         | what                                                                          |
| ---------------- | ----------------------------------------------------------------------------- |
| SufficientPolicy | the cheapest candidate whose forecast score reaches a threshold               |
| PricePolicy      | the largest forecast score - price * forecast cost, at one price per session  |
|                  | (by its budget), or at a price found anew from what is left at each query     |
| LookAheadPolicy  | the largest forecast score + value to go of what is then left                 |
| HindsightPolicy  | what would have been best, had all outcomes been known: the upper bound       |

A `Forecast` holds predicted scores and costs of a split's queries, and the sessions that they stand
in; it says nothing of other queries. Money is counted in units of the cost reference.

`plan_hindsight` is exact: a multiple-choice knapsack over the session's queries by dynamic
programming over the total score, which is whole where scores are 0 or 1 and counted in hundredths
otherwise. Every query but the last ones has to be served, since a session cannot be left and joined
again. Where its picks are played, the mask may keep one back whose bound does not fit although its
cost would have; so what is played is a little below the plan.

What it leaves out: who predicts, and how thresholds and prices are chosen
(`rlroute.trainers.query_session_contenders`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from rlroute.policies.decision import Decisions
from rlroute.policies.money_price import PriceCurve, pick_by_price
from rlroute.policies.priced_scorer import (
    CAPPED_COLUMN,
    DEAREST_COLUMN,
    PER_STEP_COLUMN,
    STEPS_LEFT_COLUMN,
)
from rlroute.policies.step_baselines import take_for_sure
from rlroute.policies.stepwise import StepInputs
from rlroute.policies.table_baselines_cascade import pick_sufficient
from rlroute.policies.value_to_go import ValueToGo
from rlroute.types import BoolArray, FloatArray, IntArray

Float64Array = npt.NDArray[np.float64]
HUNDREDTHS = 100


@dataclass(frozen=True, eq=False)
class Forecast:
    """Predicted score [Q, K] and cost [Q, K] (in units of the reference) and sessions [S, T]."""

    score_QK: Float64Array
    cost_QK: Float64Array
    session_ST: IntArray

    def find_queries(self, inputs: StepInputs) -> IntArray:
        """Return the row of the query at hand in each lane [B]."""
        size = self.session_ST.shape[1]
        left_B = np.rint(inputs.features_BF[:, STEPS_LEFT_COLUMN] * size).astype(np.int64)
        return np.asarray(self.session_ST[inputs.task_index_B, size - left_B])


def read_money(features_BF: FloatArray) -> Float64Array:
    """Return what is left per query that is left [B], in units of the reference.

    It is infinite without a cap, and where it pays for the dearest candidate at every query.
    """
    share_B = features_BF[:, PER_STEP_COLUMN].astype(np.float64)
    money_B = share_B * np.exp(features_BF[:, DEAREST_COLUMN].astype(np.float64))
    scarce_B = (features_BF[:, CAPPED_COLUMN] > 0) & (share_B < 1)
    return np.where(scarce_B, money_B, np.inf)


@dataclass(frozen=True)
class SufficientPolicy:
    """The cheapest candidate whose forecast score reaches the threshold, else the best one."""

    forecast: Forecast
    threshold: float
    version: int = 0

    def start(self, lanes: int) -> None:
        """Do nothing: every query stands alone."""

    def decide(self, inputs: StepInputs) -> Decisions:
        """Choose among those that the budget allows."""
        rows_B, forecast = self.forecast.find_queries(inputs), self.forecast
        pick_B = pick_sufficient(
            forecast.score_QK[rows_B], forecast.cost_QK[rows_B], inputs.mask_BK, self.threshold
        )
        return take_for_sure(pick_B, inputs)


@dataclass
class PricePolicy:
    """The largest forecast score - price * cost; `curve` turns money per query into a price.

    With `adaptive` the price follows what is left, else it is the one of the whole budget. Where
    money is not scarce the price is 0.
    """

    forecast: Forecast
    curve: PriceCurve
    adaptive: bool
    version: int = 0
    price_L: Float64Array = field(default_factory=lambda: np.zeros(0))

    def start(self, lanes: int) -> None:
        """Forget the prices of other sessions."""
        self.price_L = np.full(lanes, np.nan)

    def decide(self, inputs: StepInputs) -> Decisions:
        """Choose among those that the budget allows."""
        money_B = read_money(inputs.features_BF)
        price_B = np.where(np.isinf(money_B), 0.0, self.curve.find_price(money_B))
        first_B = np.isnan(self.price_L[inputs.lane_B])
        self.price_L[inputs.lane_B[first_B]] = price_B[first_B]
        if not self.adaptive:
            price_B = self.price_L[inputs.lane_B]
        rows_B, forecast = self.forecast.find_queries(inputs), self.forecast
        pick_B = pick_by_price(
            *(forecast.score_QK[rows_B], forecast.cost_QK[rows_B], inputs.mask_BK),
            price_B[:, None],
        )
        return take_for_sure(pick_B, inputs)


@dataclass(frozen=True)
class LookAheadPolicy:
    """The largest forecast score + what the rest of the session is then worth (`values`).

    Where money is not scarce it is the best forecast score.
    """

    forecast: Forecast
    values: ValueToGo
    version: int = 0

    def start(self, lanes: int) -> None:
        """Do nothing: what is left of a budget says all."""

    def decide(self, inputs: StepInputs) -> Decisions:
        """Choose among those that the budget allows."""
        size = self.forecast.session_ST.shape[1]
        left_B = np.rint(inputs.features_BF[:, STEPS_LEFT_COLUMN] * size).astype(np.int64)
        money_B = read_money(inputs.features_BF) * left_B
        rows_B, forecast = self.forecast.find_queries(inputs), self.forecast
        pick_B = self.values.pick(
            *(forecast.score_QK[rows_B], forecast.cost_QK[rows_B], inputs.mask_BK),
            *(left_B, money_B),
        )
        return take_for_sure(pick_B, inputs)


# --- With hindsight -------------------------------------------------------------------------------


@dataclass
class HindsightPolicy:
    """The best picks of each session, all outcomes known; `forecast` holds the outcomes."""

    forecast: Forecast
    legal_QK: BoolArray
    version: int = 0
    pick_LT: IntArray = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))

    def start(self, lanes: int) -> None:
        """Make room for so many plans."""
        self.pick_LT = np.full((lanes, self.forecast.session_ST.shape[1]), -1, dtype=np.int64)

    def decide(self, inputs: StepInputs) -> Decisions:
        """Plan sessions that begin, and choose as planned."""
        size = self.forecast.session_ST.shape[1]
        fresh_B = self.pick_LT[inputs.lane_B, 0] < 0
        if fresh_B.any():
            rows_NT = self.forecast.session_ST[inputs.task_index_B[fresh_B]]
            pick_NT, _ = plan_hindsight(
                self.forecast.score_QK[rows_NT],
                self.forecast.cost_QK[rows_NT],
                self.legal_QK[rows_NT],
                # what is shown is a float32: a hair less is surely there
                read_money(inputs.features_BF[fresh_B]) * size * (1 - 1e-6),
            )
            self.pick_LT[inputs.lane_B[fresh_B]] = pick_NT
        left_B = np.rint(inputs.features_BF[:, STEPS_LEFT_COLUMN] * size).astype(np.int64)
        return take_for_sure(self.pick_LT[inputs.lane_B, size - left_B], inputs)


def plan_hindsight(
    score_NTK: Float64Array, cost_NTK: Float64Array, legal_NTK: BoolArray, cap_N: Float64Array
) -> tuple[IntArray, Float64Array]:
    """Return the best picks [N, T] of N sessions under caps, and their mean scores [N].

    Queries at the end that are not served get the legal candidate of the least cost as a pick.
    """
    known = score_NTK[legal_NTK]
    scale = 1 if np.isin(known, (0.0, 1.0)).all() else HUNDREDTHS
    sessions, size, candidates = score_NTK.shape
    unit_NTK = np.rint(np.where(legal_NTK, score_NTK, 0) * scale).astype(np.int64)
    most = size * scale
    total_J = np.arange(most + 1)
    least_NJ = np.where(total_J == 0, 0.0, np.inf) + np.zeros((sessions, 1))
    choice_TNJ = np.zeros((size, sessions, most + 1), dtype=np.int64)
    best_N, served_N = np.zeros(sessions, dtype=np.int64), np.zeros(sessions, dtype=np.int64)
    for turn in range(size):
        found_NJ = np.full_like(least_NJ, np.inf)
        for k in range(candidates):
            before_NJ = total_J - unit_NTK[:, turn, k][:, None]
            cost_NJ = np.take_along_axis(least_NJ, np.maximum(before_NJ, 0), axis=1)
            cost_NJ = cost_NJ + cost_NTK[:, turn, k][:, None]
            possible_NJ = (before_NJ >= 0) & legal_NTK[:, turn, k][:, None]
            cheaper_NJ = possible_NJ & (cost_NJ < found_NJ)
            found_NJ = np.where(cheaper_NJ, cost_NJ, found_NJ)
            choice_TNJ[turn] = np.where(cheaper_NJ, k, choice_TNJ[turn])
        least_NJ = found_NJ
        within_NJ = np.isfinite(least_NJ) & (least_NJ <= cap_N[:, None])
        reached_N = np.where(within_NJ, total_J, -1).max(axis=1)
        better_N = reached_N >= np.maximum(best_N, 0)
        best_N = np.where(better_N, reached_N, best_N)
        served_N = np.where(better_N, turn + 1, served_N)
    cheapest_NT = np.where(legal_NTK, cost_NTK, np.inf).argmin(axis=2)
    pick_NT, left_N = cheapest_NT.copy(), best_N.copy()
    rows_N = np.arange(sessions)
    for turn in reversed(range(size)):
        own_N = turn < served_N
        chosen_N = choice_TNJ[turn, rows_N, left_N]
        pick_NT[own_N, turn] = chosen_N[own_N]
        left_N = np.where(own_N, left_N - unit_NTK[rows_N, turn, chosen_N], left_N)
    return pick_NT, best_N / (size * scale)
