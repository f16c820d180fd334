"""What money is worth when a budget has to last: the price at which a policy spends just that much.

What it is: with predicted scores s and costs c (in units of a reference), a policy that takes the
candidate of the largest s - price * c spends C(price) per query on average, the less the higher the
price. `solve_prices` turns that round: money per query -> price. `ascend_price` finds one such
price by dual ascent on sessions, price <- max(0, price + rate * (C - B)).

What it leaves out: predictions, and the policies that spend by a price
(`rlroute.policies.priced_scorer`, `rlroute.policies.query_session_baselines`).

How to use: `curve = solve_prices(score_QK, cost_QK, legal_QK)`, `curve.find_price(money_B)`.

Source: the usual Lagrangian relaxation of a budget constraint.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rlroute.types import BoolArray, IntArray

Float64Array = npt.NDArray[np.float64]

KNOTS = 64
LOWEST_PRICE, HIGHEST_PRICE = 1e-3, 1e4  # of scores in [0, 1] and costs in units of the reference
ASCENT_RATE, ASCENT_HALF_LIFE = 0.1, 100


@dataclass(frozen=True)
class PriceCurve:
    """The price at each amount of money per query: logarithms of both at N knots, money rising."""

    log_money_N: Float64Array
    log_price_N: Float64Array

    def find_price(self, money_B: Float64Array) -> Float64Array:
        """Return the prices [B] for money per query; beyond the ends those of the ends."""
        log_money_B = np.log(np.maximum(money_B, np.finfo(np.float64).tiny))
        price_B: Float64Array = np.exp(np.interp(log_money_B, self.log_money_N, self.log_price_N))
        return price_B


def pick_by_price(
    score_QK: Float64Array, cost_QK: Float64Array, legal_QK: BoolArray, price_Q1: Float64Array
) -> IntArray:
    """Return the legal candidate of the largest score - price * cost [Q]."""
    worth_QK = np.where(legal_QK, score_QK - price_Q1 * cost_QK, -np.inf)
    return np.asarray(worth_QK.argmax(axis=1))


def solve_prices(
    score_QK: Float64Array, cost_QK: Float64Array, legal_QK: BoolArray, knots: int = KNOTS
) -> PriceCurve:
    """Return the curve of queries with predicted scores and costs; `knots` prices are tried."""
    rows = np.arange(len(score_QK))
    price_N = np.geomspace(LOWEST_PRICE, HIGHEST_PRICE, knots)
    money_N = np.array(
        [
            cost_QK[rows, pick_by_price(score_QK, cost_QK, legal_QK, np.array([[price]]))].mean()
            for price in price_N
        ]
    )
    log_money_N = np.log(np.maximum(money_N, np.finfo(np.float64).tiny))
    falling_N = np.minimum.accumulate(log_money_N)  # it is falling but for rounding
    return PriceCurve(falling_N[::-1].copy(), np.log(price_N)[::-1].copy())


def ascend_price(
    score_STK: Float64Array,
    cost_STK: Float64Array,
    paid_STK: Float64Array,
    legal_STK: BoolArray,
    budget: float,
) -> float:
    """Return the price of money under a budget per query, by dual ascent over S sessions.

    Picks are by predicted scores and costs, and C is what they really cost (`paid_STK`). The rate
    falls, and the mean of the second half counts.
    """
    price, seen = 0.0, []
    for number in range(len(score_STK)):
        one = (score_STK[number], cost_STK[number], legal_STK[number])
        pick_T = pick_by_price(*one, np.array([[price]]))
        spent = float(paid_STK[number][np.arange(len(pick_T)), pick_T].mean())
        rate = ASCENT_RATE / budget**2 / np.sqrt(1 + number / ASCENT_HALF_LIFE)
        price = max(0.0, price + rate * (spent - budget))
        seen.append(price)
    return float(np.mean(seen[len(seen) // 2 :]))
