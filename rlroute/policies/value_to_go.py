"""What the rest of a session is still worth, by queries left and money left: dynamic programming.

    V_0(b) = 0
    V_n(b) = mean over train queries of  max over k of  s_k + V_{n-1}(b - c_k)
             over the candidates whose bound fits into b; 0 where none does: the session ends there

with predicted scores s and costs c (in units of a reference). It is the generalisation of one price
of money (`rlroute.policies.money_price`): there every unit is worth the same, while V knows that a
bound has to fit, that what is left over at the end buys nothing, and that a little more may open
the way to a better candidate.

Queries are taken as independent draws from the train split, and a cost as what was predicted.
Money stands on a grid of ratios, V linear in its logarithm between grid points: 0 below the grid
(half of the least bound pays for nobody), level above it (there every bound fits every time).

What it leaves out: predictions, and the policies that look ahead by it
(`rlroute.policies.priced_scorer`, `rlroute.policies.query_session_baselines`).

How to use: `values = solve_value_to_go(score_QK, cost_QK, bound_QK, legal_QK, queries=10)`,
`values.read(left_B, money_B)`.

Source: Bellman's recursion for a stochastic knapsack; `rlroute.data.session_optimum` is the exact
one of a made world.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlroute.policies.money_price import Float64Array
from rlroute.types import BoolArray, IntArray

GRID = 96
AMPLE = 1.25  # times the dearest bound at every query: the last cell then holds no step of V
QUERIES_USED = 2000  # of the train split, evenly spaced: more change nothing


@dataclass(frozen=True)
class ValueToGo:
    """V [T + 1, G]: the expected sum of scores of 0 to T queries with so much money.

    `log_money_G` holds the logarithms of the grid, evenly spaced.
    """

    log_money_G: Float64Array
    value_TG: Float64Array

    def read(self, left_B: IntArray, money_B: Float64Array) -> Float64Array:
        """Return V at `left_B` queries and money of the same shape [B] or [B, K]."""
        grid_G = self.log_money_G
        step = (grid_G[-1] - grid_G[0]) / (len(grid_G) - 1)
        log_money_B = np.log(np.maximum(money_B, np.finfo(np.float64).tiny))
        place_B = np.clip((log_money_B - grid_G[0]) / step, 0.0, len(grid_G) - 1.0)
        low_B = np.minimum(place_B.astype(np.int64), len(grid_G) - 2)
        before_B, after_B = self.value_TG[left_B, low_B], self.value_TG[left_B, low_B + 1]
        return np.asarray(before_B + (place_B - low_B) * (after_B - before_B))

    def pick(
        self,
        score_BK: Float64Array,
        cost_BK: Float64Array,
        mask_BK: BoolArray,
        left_B: IntArray,
        money_B: Float64Array,
    ) -> IntArray:
        """Return the allowed candidate of the largest s + V [B], with `left_B` queries from here.

        `money_B` is what is left; where it is infinite the best score is taken.
        """
        ample_B1 = np.isinf(money_B)[:, None]
        after_BK = np.where(ample_B1, 0.0, money_B[:, None]) - cost_BK
        rest_BK = self.read(np.broadcast_to((left_B - 1)[:, None], cost_BK.shape), after_BK)
        worth_BK = score_BK + np.where(ample_B1, 0.0, rest_BK)
        return np.asarray(np.where(mask_BK, worth_BK, -np.inf).argmax(axis=1))


def solve_value_to_go(
    score_QK: Float64Array,
    cost_QK: Float64Array,
    bound_QK: Float64Array,
    legal_QK: BoolArray,
    queries: int,
) -> ValueToGo:
    """Return V of sessions of so many queries; money in the unit of costs and bounds.

    Rows where nobody is legal belong to no session and are left out.
    """
    usable_N = np.flatnonzero(legal_QK.any(axis=1))
    usable_N = usable_N[:: max(1, len(usable_N) // QUERIES_USED)]
    score_NK, cost_NK, legal_NK = score_QK[usable_N], cost_QK[usable_N], legal_QK[usable_N]
    bound_NK = np.where(legal_NK, bound_QK[usable_N], np.inf)
    lowest = bound_NK.min() / 2
    highest = AMPLE * queries * bound_QK[usable_N][legal_NK].max()
    money_G = np.geomspace(max(lowest, highest * 1e-9), highest, GRID)  # a free candidate: bound 0
    values = ValueToGo(np.log(money_G), np.zeros((queries + 1, GRID)))
    for left in range(1, queries + 1):
        rest_NK = np.full(cost_NK.shape, left - 1)
        for place, money in enumerate(money_G):
            fits_NK = bound_NK <= money
            worth_NK = score_NK + values.read(rest_NK, money - cost_NK)
            best_N = np.where(fits_NK, worth_NK, -np.inf).max(axis=1)
            values.value_TG[left, place] = np.where(fits_NK.any(axis=1), best_N, 0.0).mean()
    return values
