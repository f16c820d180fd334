"""RouterArena's metrics against worked numbers: its table, and the router S, L, L, M."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlroute.evaluation.metrics import make_one_hot, make_uniform, pick_oracle
from rlroute.evaluation.router_arena import (
    compute_arena_score,
    compute_cost_rating,
    compute_optimality,
    compute_robustness,
)
from rlroute.types import RLRouteError

SCORE_QK = np.array([[1, 1, 1], [0, 1, 1], [0, 0, 1], [1, 0, 0]], np.float32)
COST_QK = np.tile(np.array([1, 4, 10], np.float32), (4, 1))
PRESENT_QK = np.ones((4, 3), bool)
TABLE = (SCORE_QK, COST_QK, PRESENT_QK)
ROUTER_QK = make_one_hot([0, 2, 2, 1], 3)


@pytest.mark.parametrize(
    ("accuracy", "usd", "rating", "score"),
    [
        (0.70, 0.50, 0.5587, 0.6843),
        (0.70, 1.00, 0.4940, 0.6744),
        (0.75, 10, 0.2793, 0.6504),
        (0.65, 0.05, 0.7734, 0.6596),
    ],
)
def test_the_arena_score_has_the_worked_numbers(accuracy, usd, rating, score):
    assert compute_cost_rating(usd) == pytest.approx(rating, abs=5e-5)
    assert compute_arena_score(accuracy, usd) == pytest.approx(score, abs=5e-5)


def test_doubling_the_cost_takes_the_same_from_the_rating_everywhere():
    for usd in (0.05, 0.5, 10):
        lost = compute_cost_rating(usd) - compute_cost_rating(2 * usd)
        assert lost == pytest.approx(1 / 15.47, abs=5e-5)


def test_costs_are_clamped_and_a_missing_one_is_an_error():
    assert compute_cost_rating(0) == compute_cost_rating(0.0044) == 1
    assert compute_cost_rating(1e6) == compute_cost_rating(200) == 0
    assert compute_arena_score(0.9, 1e6) == compute_arena_score(0, 1) == 0
    for usd in (math.nan, math.inf, -0.1):
        with pytest.raises(RLRouteError, match="finite"):
            compute_arena_score(0.5, usd)
    with pytest.raises(RLRouteError, match="accuracy"):
        compute_arena_score(1.1, 1)
    with pytest.raises(RLRouteError, match="beta"):
        compute_arena_score(0.5, 1, beta=0)


@given(st.floats(0.01, 1), st.floats(0.005, 199))
def test_the_arena_score_tends_to_the_accuracy_as_beta_falls(accuracy, usd):
    assert compute_arena_score(accuracy, usd, beta=1e-9) == pytest.approx(accuracy, rel=1e-3)


def test_optimality_of_the_example():
    found = compute_optimality(*TABLE, ROUTER_QK)
    assert found.selection == 0.50
    assert found.accuracy == 0.75
    assert found.cost == pytest.approx(15 / 21)


def test_the_oracle_is_optimal_and_random_picks_have_their_expectation():
    oracle = compute_optimality(*TABLE, make_one_hot(pick_oracle(*TABLE), 3))
    assert (oracle.selection, oracle.accuracy, oracle.cost) == (1, 1, 1)
    random = compute_optimality(*TABLE, make_uniform(PRESENT_QK))
    assert random.selection == pytest.approx(1 / 3)
    assert random.accuracy == pytest.approx(7 / 12)


def test_optimality_counts_only_queries_that_a_candidate_solves_and_no_hole():
    score_QK = np.vstack((SCORE_QK, [[0, 0, np.nan]]))
    cost_QK = np.vstack((COST_QK, [[1, 4, np.nan]]))
    present_QK = np.isfinite(score_QK)
    router_QK = np.vstack((ROUTER_QK, [[1, 0, 0]]))
    assert compute_optimality(score_QK, cost_QK, present_QK, router_QK) == compute_optimality(
        *TABLE, ROUTER_QK
    )


def test_optimality_that_is_not_defined_is_none():
    nothing = compute_optimality(np.zeros((4, 3)), COST_QK, PRESENT_QK, ROUTER_QK)
    assert (nothing.selection, nothing.accuracy, nothing.cost) == (None, None, None)
    wrong = compute_optimality(
        SCORE_QK[1:], COST_QK[1:], PRESENT_QK[1:], make_one_hot([0, 0, 1], 3)
    )
    assert (wrong.selection, wrong.accuracy, wrong.cost) == (0, 0, None)


def test_graded_answers_are_right_from_a_stated_score_on():
    score_QK = np.array([[0.6, 0.9]])
    assert compute_optimality(score_QK, [[1, 2]], [[1, 1]], [[1, 0]]).accuracy is None
    assert compute_optimality(score_QK, [[1, 2]], [[1, 1]], [[1, 0]], right_from=0.5).cost == 1


def test_robustness_is_the_share_of_picks_that_stay():
    assert compute_robustness([0, 1, 2, 1], [0, 1, 1, 1]) == 0.75
    assert compute_robustness([2, 2], [2, 2]) == 1
    for pair in (([0], [0, 1]), ([], [])):
        with pytest.raises(RLRouteError, match="robustness"):
            compute_robustness(*pair)
