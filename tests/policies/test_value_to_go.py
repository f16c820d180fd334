"""The value to go: worked by hand, against every policy of a small world, and what it must obey."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlroute.policies.value_to_go import ValueToGo, solve_value_to_go

# One kind of query: a cheap answer is right half the time, a dear one always.
SCORE_QK, COST_QK = np.array([[0.5, 1.0]]), np.array([[1.0, 3.0]])
LEGAL_QK = np.ones((1, 2), dtype=bool)


def solve(queries=3, score=SCORE_QK, cost=COST_QK, bound=None, legal=LEGAL_QK) -> ValueToGo:
    return solve_value_to_go(score, cost, cost if bound is None else bound, legal, queries)


def read(values: ValueToGo, left: int, money: float) -> float:
    return float(values.read(np.array([left]), np.array([money]))[0])


def test_a_worked_example_by_hand():
    values = solve()
    # V_1: nothing below 1, .5 below 3, 1 from there on; V_2: two cheap ones from 2, one of each
    # from 4, two dear ones from 6; between grid points of 5% the step is spread over one cell
    for left, money, expected in [
        *((1, 0.9, 0.0), (1, 1.2, 0.5), (1, 2.8, 0.5), (1, 3.3, 1.0)),
        *((2, 1.2, 0.5), (2, 2.4, 1.0), (2, 3.7, 1.0), (2, 4.5, 1.5), (2, 6.6, 2.0)),
        *((3, 3.7, 1.5), (3, 5.6, 2.0), (3, 7.8, 2.5), (3, 10.0, 3.0)),
    ]:
        assert read(values, left, money) == pytest.approx(expected, abs=0.02), (left, money)
    assert read(values, 0, 9.0) == 0
    assert read(values, 3, 1e9) == pytest.approx(3)
    assert read(values, 3, -1.0) == 0


def test_who_leaves_too_little_for_the_rest_is_not_picked():
    score_QK = np.array([[0.6, 1.0]])
    values = solve(score=score_QK)
    mask_BK = np.ones((4, 2), dtype=bool)
    left_B, money_B = np.array([2, 2, 1, 3]), np.array([3.4, 6.5, 3.4, np.inf])
    score_BK, cost_BK = np.tile(score_QK, (4, 1)), np.tile(COST_QK, (4, 1))
    # with 3.4 for two, a dear answer ends the session: 1.0 against 1.2
    assert values.pick(score_BK, cost_BK, mask_BK, left_B, money_B).tolist() == [0, 1, 1, 1]
    mask_BK[:, 1] = False
    assert values.pick(score_BK, cost_BK, mask_BK, left_B, money_B).tolist() == [0, 0, 0, 0]


def test_a_bound_has_to_fit_although_the_cost_would():
    values = solve(queries=1, bound=np.array([[2.0, 6.0]]))
    assert read(values, 1, 1.9) == pytest.approx(0, abs=0.02)
    assert read(values, 1, 3.5) == pytest.approx(0.5, abs=0.02)  # a dear call costs 3, bound 6
    assert read(values, 1, 6.4) == pytest.approx(1.0, abs=0.02)


def test_holes_and_rows_without_anybody_are_left_out():
    score = np.array([[0.5, 1.0], [0.9, 0.9], [np.nan, 0.7]])
    cost = np.array([[1.0, 3.0], [1.0, 3.0], [np.nan, 3.0]])
    legal = np.array([[True, True], [False, False], [False, True]])
    values = solve_value_to_go(
        np.nan_to_num(score), np.nan_to_num(cost), np.nan_to_num(cost), legal, 1
    )
    assert read(values, 1, 3.3) == pytest.approx((1.0 + 0.7) / 2)
    assert read(values, 1, 2.0) == pytest.approx((0.5 + 0.0) / 2, abs=0.02)


def play_all(score_K, cost_K, queries: int, money: float) -> float:
    """Return the best that any sequence of picks reaches where all queries are alike."""
    best = 0.0
    for picks in itertools.product(range(len(score_K)), repeat=queries):
        left, earned = money, 0.0
        for k in picks:
            if cost_K[k] > left:
                break
            left, earned = left - cost_K[k], earned + score_K[k]
        best = max(best, earned)
    return best


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(0, 1), min_size=3, max_size=3),
    st.lists(st.integers(1, 8), min_size=3, max_size=3),
    st.integers(1, 4),
    st.floats(0.5, 40),
)
def test_it_lies_between_the_best_of_a_little_less_and_of_a_little_more_money(
    score, cost, queries, money
):
    score_QK, cost_QK = np.array([score]), np.array([cost], dtype=float)
    values = solve(queries, score_QK, cost_QK, legal=np.ones((1, 3), dtype=bool))
    found = read(values, queries, money)
    width = float(np.exp(values.log_money_G[1] - values.log_money_G[0]))
    slack = width ** (2 * queries)  # each step interpolates within one cell of the grid
    assert found <= play_all(score, cost, queries, money * slack) + 1e-9
    assert found >= play_all(score, cost, queries, money / slack) - 1e-9


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000))
def test_more_money_or_more_queries_are_never_worth_less(seed):
    draw = np.random.default_rng(seed)
    score_QK, cost_QK = draw.random((20, 4)), np.exp(draw.normal(size=(20, 4)))
    legal_QK = draw.random((20, 4)) < 0.8
    values = solve_value_to_go(score_QK, cost_QK, cost_QK * 1.5, legal_QK, 4).value_TG
    assert (np.diff(values, axis=1) >= -1e-12).all()
    assert (np.diff(values, axis=0) >= -1e-12).all()
    assert values[-1].max() <= 4
