"""Prices of money: what is spent at a price, the price of a budget, dual ascent."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlroute.policies.money_price import PriceCurve, ascend_price, pick_by_price, solve_prices

# Two candidates: 0.5 for 1, and 0.5 + gain for 4: the dear one is worth it below gain / 3.
GAINS = np.array([0.3, 0.15, 0.06, 0.03])
SCORE_QK = np.stack([np.full(4, 0.5), 0.5 + GAINS], axis=1)
COST_QK = np.tile([1.0, 4.0], (4, 1))
LEGAL_QK = np.ones((4, 2), dtype=bool)


@pytest.mark.parametrize(("price", "dear"), [(0.0, 4), (0.015, 3), (0.03, 2), (0.07, 1), (0.2, 0)])
def test_the_dear_candidate_is_taken_where_its_gain_pays(price, dear):
    pick_Q = pick_by_price(SCORE_QK, COST_QK, LEGAL_QK, np.array([[price]]))
    assert pick_Q.tolist() == [1] * dear + [0] * (4 - dear)


def test_a_hole_is_not_picked():
    legal_QK = np.array([[True, False]] * 4)
    assert pick_by_price(SCORE_QK, COST_QK, legal_QK, np.zeros((1, 1))).tolist() == [0] * 4


@pytest.mark.parametrize(
    ("money", "low", "high"),
    [(3.26, 0.009, 0.011), (2.51, 0.018, 0.022), (1.76, 0.045, 0.055), (1.01, 0.09, 0.11)],
)
def test_the_curve_has_the_price_at_which_just_that_much_is_spent(money, low, high):
    # 3, 2, 1 and 0 dear picks cost 3.25, 2.5, 1.75 and 1 per query; each from gain / 3 on
    curve = solve_prices(SCORE_QK, COST_QK, LEGAL_QK, knots=2000)
    assert low < curve.find_price(np.array([money]))[0] < high
    spent = COST_QK[
        np.arange(4), pick_by_price(SCORE_QK, COST_QK, LEGAL_QK, np.array([[high]]))
    ].mean()
    assert spent <= money


@given(st.integers(0, 10_000))
def test_more_money_never_has_a_higher_price(seed):
    generator = np.random.default_rng(seed)
    legal_QK = generator.random((30, 4)) < 0.8
    legal_QK[:, 0] = True
    curve = solve_prices(generator.random((30, 4)), generator.random((30, 4)) ** 3, legal_QK)
    price_B = curve.find_price(np.geomspace(1e-4, 10, 50))
    assert (np.diff(price_B) <= 1e-12).all()
    assert (np.diff(curve.log_money_N) >= 0).all()


def test_beyond_its_ends_a_curve_is_level():
    curve = PriceCurve(np.log([0.1, 1.0]), np.log([5.0, 0.5]))
    assert curve.find_price(np.array([0.0, 0.1, np.sqrt(0.1), 1.0, 50.0])) == pytest.approx(
        [5.0, 5.0, np.sqrt(2.5), 0.5, 0.5]
    )


def test_one_step_of_dual_ascent_is_the_formula():
    # price 0 takes both dear ones: C = 4, B = 1; rate 0.1 / B^2: 0 + 0.1 * (4 - 1) = 0.3
    one = (SCORE_QK[None, :2], COST_QK[None, :2], COST_QK[None, :2], LEGAL_QK[None, :2])
    assert ascend_price(*one, budget=1.0) == pytest.approx(0.3)
    # with money for everything the price stays at max(0, ...) = 0
    assert ascend_price(*one, budget=8.0) == 0.0


@pytest.mark.parametrize(("budget", "low", "high"), [(1.75, 0.05, 0.1), (2.5, 0.02, 0.05)])
def test_dual_ascent_finds_a_price_at_which_the_budget_is_spent(budget, low, high):
    rows_ST = np.random.default_rng(0).integers(0, 4, (6000, 10))
    price = ascend_price(
        SCORE_QK[rows_ST], COST_QK[rows_ST], COST_QK[rows_ST], LEGAL_QK[rows_ST], budget
    )
    assert low * 0.95 < price < high * 1.05
