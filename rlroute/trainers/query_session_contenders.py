"""The baselines of query sessions: forecasts of train, and rules that spend a budget by them.

What it is: forecasts are the 40 nearest train queries (`NearestNeighbours`). Cheapest-sufficient is
a sweep of thresholds, of which val chooses one for each budget. The Lagrangian's price of a budget
is found by dual ascent on train sessions, at each cap of the recipe; the adaptive one reads a curve
of prices at every query, and dynamic programming a value to go. For all three, train queries are
forecast by folds that leave them out, since a query is its own nearest neighbour. "hindsight" knows
all outcomes: a bound, no baseline.

What it leaves out: the rules themselves (`rlroute.policies.query_session_baselines`), and baselines
that every world has (`rlroute.trainers.step_contenders`).

How to use: `list_session_contenders(arena, world)`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from rlroute.policies.baselines import NearestNeighbours
from rlroute.policies.money_price import Float64Array, PriceCurve, ascend_price, solve_prices
from rlroute.policies.query_session_baselines import (
    Forecast,
    HindsightPolicy,
    LookAheadPolicy,
    PricePolicy,
    SufficientPolicy,
)
from rlroute.policies.stepwise import StepPolicy
from rlroute.policies.value_to_go import ValueToGo, solve_value_to_go
from rlroute.seeding import draw_permutation
from rlroute.trainers.step_arena import Arena, Contender
from rlroute.types import SplitName
from rlroute.worlds.query_session import QuerySessionWorld
from rlroute.worlds.query_session_tasks import SessionData

FOLDS = 5
THRESHOLDS = tuple(step / 20 for step in range(21))


class SessionForecasts:
    """What is predicted of the queries of each split, in the order of the world's executors."""

    def __init__(self, world: QuerySessionWorld) -> None:
        self.data: SessionData = world.data
        self.seed = world.config.seed
        self.neighbours = NearestNeighbours(self.data.prepared.splits["train"])

    @functools.cached_property
    def of_train(self) -> tuple[Float64Array, Float64Array]:
        """Predicted score and cost [Q, K] of the train queries, each by the other folds."""
        train = self.data.prepared.splits["train"]
        queries = len(train.features_QF)
        place_Q = draw_permutation(queries, self.seed, "folds")
        found_2QK = np.empty((2, queries, len(self.data.executors)))
        for fold_N in np.array_split(place_Q, min(FOLDS, queries)):
            rest = train.select_queries(np.setdiff1d(np.arange(queries), fold_N))
            found_2QK[:, fold_N] = NearestNeighbours(rest).predict(train.features_QF[fold_N])
        score_QK, cost_QK = found_2QK[:, :, self.data.column_K]
        return score_QK, cost_QK

    def load(self, split: SplitName) -> Forecast:
        """Return the forecast of val or test."""
        features_QF = self.data.prepared.splits[split].features_QF
        score_QK, cost_QK = self.neighbours.predict(features_QF)
        column_K = self.data.column_K
        sessions = self.data.splits[split].session_ST
        return Forecast(score_QK[:, column_K], cost_QK[:, column_K], sessions)

    def solve_curve(self) -> PriceCurve:
        """Return the price of money on the train queries."""
        return solve_prices(*self.of_train, self.data.splits["train"].legal_QK)

    def solve_values(self) -> ValueToGo:
        """Return the value to go of the train queries."""
        train = self.data.splits["train"]
        bound_QK = train.bound_usd_QK / self.data.cost_reference_usd
        queries = train.session_ST.shape[1]
        return solve_value_to_go(*self.of_train, bound_QK, train.legal_QK, queries)

    def ascend(self, caps: Sequence[float], queries: int) -> PriceCurve:
        """Return the price that dual ascent finds for each cap in USD."""
        train = self.data.splits["train"]
        rows_ST, reference = train.session_ST, self.data.cost_reference_usd
        score_STK, cost_STK = (value_QK[rows_ST] for value_QK in self.of_train)
        paid_STK = train.cost_usd_QK[rows_ST] / reference
        money_N = np.array(sorted(caps)) / reference / queries
        price_N = [
            ascend_price(score_STK, cost_STK, paid_STK, train.legal_QK[rows_ST], float(money))
            for money in money_N
        ]
        floor = np.finfo(np.float64).tiny  # a price of 0 has no logarithm
        return PriceCurve(np.log(money_N), np.log(np.maximum(price_N, floor)))


def list_session_contenders(arena: Arena, world: QuerySessionWorld) -> list[Contender]:
    """Return the baselines of query sessions, and the bound with hindsight."""
    forecasts = SessionForecasts(world)
    load = functools.cache(forecasts.load)

    def make_sufficient(threshold: float, split: SplitName) -> StepPolicy:
        """Return the policy of a threshold."""
        return SufficientPolicy(load(split), threshold)

    def make_priced(adaptive: bool, split: SplitName) -> StepPolicy:
        """Return the policy of a fixed or an adaptive price."""
        curve = adaptive_curve() if adaptive else fixed_curve()
        return PricePolicy(load(split), curve, adaptive)

    def make_looking_ahead(split: SplitName) -> StepPolicy:
        """Return the policy of dynamic programming."""
        return LookAheadPolicy(load(split), values())

    def make_hindsight(split: SplitName) -> StepPolicy:
        """Return the policy that knows the outcomes."""
        facts = world.data.splits[split]
        cost_QK = facts.cost_usd_QK / world.data.cost_reference_usd
        known = Forecast(facts.score_QK.astype(np.float64), cost_QK, facts.session_ST)
        return HindsightPolicy(known, facts.legal_QK)

    adaptive_curve = functools.cache(forecasts.solve_curve)
    values = functools.cache(forecasts.solve_values)
    caps = [cap for setting in arena.settings if (cap := setting.cap)]
    found = [
        Contender(
            f"sufficient {one:.2f}",
            "sweep",
            functools.partial(make_sufficient, one),
            "cheapest sufficient",
        )
        for one in THRESHOLDS
    ]
    if caps and arena.recipe.budget.unit == "usd":
        fixed_curve = functools.cache(lambda: forecasts.ascend(sorted(set(caps)), world.horizon))
        priced = (("Lagrangian", False), ("Lagrangian, adaptive", True))
        found += [
            Contender(name, "rule", functools.partial(make_priced, adaptive))
            for name, adaptive in priced
        ]
        found.append(Contender("dynamic programming", "rule", make_looking_ahead))
        found.append(Contender("hindsight", "optimal", make_hindsight))
    return found
