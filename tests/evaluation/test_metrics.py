"""Metrics against worked numbers: four queries, three models S, M, L, and the router S, L, L, M."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlroute.evaluation import metrics
from rlroute.evaluation.frontier import compute_aiq, compute_hull
from rlroute.types import RLRouteError

SCORE_QK = np.array([[1, 1, 1], [0, 1, 1], [0, 0, 1], [1, 0, 0]], np.float32)
COST_QK = np.tile(np.array([1, 4, 10], np.float32), (4, 1))
PRESENT_QK = np.ones((4, 3), bool)
TABLE = (SCORE_QK, COST_QK, PRESENT_QK)
ROUTER_QK = metrics.make_one_hot([0, 2, 2, 1], 3)

SHARE_N = [0, 0.25, 0.5, 0.75, 1]
QUALITY_N = [0.60, 0.68, 0.75, 0.79, 0.80]

ORACLE_CURVE = ([1, 1.75, 4], [0.5, 0.75, 1.0])


def measure(probability_QK):
    quality = metrics.average_picks(SCORE_QK, probability_QK).mean()
    return quality, metrics.average_picks(COST_QK, probability_QK).mean()


def test_the_router_of_the_example_has_its_quality_and_cost():
    assert measure(ROUTER_QK) == (0.75, 6.25)


def test_the_single_candidates_have_their_means():
    assert metrics.average_candidates(SCORE_QK, PRESENT_QK).tolist() == [0.5, 0.5, 0.75]
    assert metrics.average_candidates(COST_QK, PRESENT_QK).tolist() == [1, 4, 10]


def test_best_and_cheapest_single_are_found():
    assert metrics.find_best_single(*TABLE) == 2
    assert metrics.find_cheapest_single(COST_QK, PRESENT_QK) == 0


def test_a_tie_for_the_best_single_goes_to_the_cheaper():
    assert metrics.find_best_single(SCORE_QK[:, 1::-1], COST_QK[:, 1::-1], PRESENT_QK[:, :2]) == 1


def test_random_picks_have_the_mean_of_the_table():
    quality, cost = measure(metrics.make_uniform(PRESENT_QK))
    assert quality == pytest.approx(7 / 12)
    assert cost == pytest.approx(5)


def test_the_quality_oracle_breaks_ties_to_the_cheapest():
    pick_Q = metrics.pick_oracle(*TABLE)
    assert pick_Q.tolist() == [0, 1, 2, 0]
    assert measure(metrics.make_one_hot(pick_Q, 3)) == (1.0, 4.0)


def test_the_oracle_picks_the_cheapest_where_all_fail():
    assert metrics.pick_oracle(np.zeros((1, 3)), [[5, 2, 9]], np.ones((1, 3))).tolist() == [1]


def test_the_task_oracle_picks_the_best_single_of_each_task():
    pick_Q = metrics.pick_task_oracle(*TABLE, ["a", "a", "b", "b"])
    assert pick_Q.tolist() == [1, 1, 0, 0]  # M at 4 ties with L at 10, S ties with L


def test_gap_closed_and_gains_of_the_example():
    assert metrics.compute_gap_closed(0.75, 0.75, 1.0) == 0
    assert metrics.compute_gap_closed(0.5, 0.75, 1.0) == -1
    assert metrics.compute_gap_closed(0.75, 0.75, 0.75) is None
    assert metrics.compute_gap_to_oracle(0.75, 1.0) == 0.25
    assert metrics.compute_relative_gain(0.75, 0.75) == 0
    assert metrics.compute_relative_gain(0.75, 7 / 12) == pytest.approx(2 / 7)
    assert metrics.compute_relative_gain(0.75, 0.0) is None


def test_the_oracle_at_a_cost_weight_has_the_utility_of_the_example():
    utility_QK = metrics.compute_utility(SCORE_QK, COST_QK, 0.05)
    pick_Q = metrics.pick_oracle(*TABLE, cost_weight=0.05)
    chosen_Q = utility_QK[np.arange(4), pick_Q]
    assert chosen_Q.tolist() == pytest.approx([0.95, 0.80, 0.50, 0.95])
    assert chosen_Q.mean() == pytest.approx(0.800)


def test_regret_of_the_example():
    utility_QK = metrics.compute_utility(SCORE_QK, COST_QK, 0.05)
    assert metrics.average_picks(utility_QK, ROUTER_QK).mean() == pytest.approx(0.4375)
    regret_Q = metrics.compute_regret(*TABLE, ROUTER_QK, 0.05)
    assert regret_Q.mean() == pytest.approx(0.3625)
    assert metrics.compute_cumulative_regret(regret_Q)[-1] == pytest.approx(4 * 0.3625)


def test_two_model_metrics_of_the_example():
    recovered_N = metrics.compute_gap_recovered(QUALITY_N, 0.60, 0.80)
    assert recovered_N.tolist() == pytest.approx([0, 0.40, 0.75, 0.95, 1])
    assert metrics.compute_call_threshold(SHARE_N, recovered_N, 0.5) == pytest.approx(
        0.3214, abs=5e-5
    )
    assert metrics.compute_call_threshold(SHARE_N, recovered_N, 0.8) == pytest.approx(0.5625)
    assert metrics.compute_average_gap_recovered(SHARE_N, recovered_N) == pytest.approx(0.650)


def test_random_routing_has_a_threshold_equal_to_its_target():
    assert metrics.compute_call_threshold([0, 1], [0, 1], 0.37) == pytest.approx(0.37)


def test_the_threshold_is_the_first_crossing_of_a_curve_that_falls_again():
    share_N, recovered_N = [0, 0.2, 0.4, 0.6, 1], [0, 0.8, 0.3, 0.9, 1.0]
    assert metrics.compute_call_threshold(share_N, recovered_N, 0.4) == pytest.approx(0.1)
    assert metrics.compute_call_threshold(share_N[::-1], recovered_N[::-1], 0.4) == pytest.approx(
        0.1
    )


def test_two_model_metrics_that_are_not_defined_are_none():
    assert metrics.compute_gap_recovered([0.5], 0.8, 0.8) is None
    assert metrics.compute_call_threshold([0, 1], [0, 0.4], 0.5) is None
    with pytest.raises(RLRouteError, match="from 0 to 1"):
        metrics.compute_average_gap_recovered([0, 0.5], [0, 1])


def test_audc_of_the_oracle_curve_equals_its_aiq():
    cost_N, quality_N = np.array(ORACLE_CURVE[0]) / 10, ORACLE_CURVE[1]
    assert metrics.compute_audc(cost_N, quality_N, 0.1, 1) == pytest.approx(0.9375)
    assert compute_aiq(cost_N, quality_N, 0.1, 1) == pytest.approx(0.9375)


def test_audc_takes_the_raw_curve_where_aiq_takes_the_hull():
    cost_N, quality_N = [0, 0.5, 1], [0, 0, 1]
    assert metrics.compute_audc(cost_N, quality_N, 0, 1) == pytest.approx(0.25)
    assert compute_aiq(cost_N, quality_N, 0, 1) == pytest.approx(0.5)


def test_quality_neutral_cost_of_the_example():
    oracle, router = compute_hull(*ORACLE_CURVE), compute_hull([6.25], [0.75])
    assert metrics.compute_quality_neutral_cost(oracle, 0.75, 10) == pytest.approx(0.175)
    assert metrics.compute_quality_neutral_cost(router, 0.75, 10) == pytest.approx(0.625)
    assert metrics.compute_cost_saved(router, 0.75, 10) == pytest.approx(0.375)
    assert metrics.compute_quality_neutral_cost(router, 0.76, 10) == math.inf
    assert metrics.compute_cost_saved(router, 0.76, 10) == -math.inf


def test_a_quality_that_is_free_costs_all_of_a_free_reference_and_endlessly_more_than_nothing():
    free, paid = compute_hull([0], [0.75]), compute_hull([6.25], [0.75])
    assert metrics.compute_quality_neutral_cost(free, 0.75, 0) == 1
    assert metrics.compute_cost_saved(free, 0.75, 0) == 0
    assert metrics.compute_quality_neutral_cost(paid, 0.75, 0) == math.inf


def test_peak_quality_of_the_example():
    assert metrics.compute_peak(ORACLE_CURVE[1]) == 1.0
    assert metrics.compute_peak([0.75]) == 0.75


def test_selection_shares_and_entropy():
    share_K = metrics.compute_selection_shares(ROUTER_QK)
    assert share_K.tolist() == [0.25, 0.25, 0.5]
    assert metrics.compute_selection_entropy(share_K) == pytest.approx(1.5 * math.log(2))
    assert metrics.compute_selection_entropy([1, 0, 0]) == 0


def test_a_hole_is_masked_and_never_zero():
    score_QK, cost_QK, present_QK = SCORE_QK.copy(), COST_QK.copy(), PRESENT_QK.copy()
    score_QK[3, 0] = cost_QK[3, 0] = np.nan
    present_QK[3, 0] = False
    assert metrics.average_candidates(score_QK, present_QK)[0] == pytest.approx(1 / 3)
    assert metrics.pick_oracle(score_QK, cost_QK, present_QK).tolist() == [0, 1, 2, 1]
    assert metrics.make_uniform(present_QK)[3].tolist() == [0, 0.5, 0.5]
    assert metrics.average_picks(score_QK, metrics.make_uniform(present_QK))[3] == 0
    regret_Q = metrics.compute_regret(score_QK, cost_QK, present_QK, ROUTER_QK, 0.05)
    assert np.isfinite(regret_Q).all()
    pick_Q = metrics.pick_task_oracle(score_QK, cost_QK, present_QK, ["a", "a", "b", "b"])
    assert pick_Q.tolist() == [1, 1, 2, 2]  # in task b, S is known for one query only, and fails
    score_QK[2, 0] = 1
    pick_Q = metrics.pick_task_oracle(score_QK, cost_QK, present_QK, ["a", "a", "b", "b"])
    assert pick_Q.tolist() == [1, 1, 0, 2]  # S is best in task b, and absent for its second query


def test_a_row_or_column_without_outcomes_is_refused():
    empty = np.zeros((2, 2), bool)
    with pytest.raises(RLRouteError, match="column 0"):
        metrics.average_candidates(np.zeros((2, 2)), empty)
    with pytest.raises(RLRouteError, match="row 0"):
        metrics.make_uniform(empty)
    with pytest.raises(RLRouteError, match="row 0"):
        metrics.pick_task_oracle(np.zeros((2, 2)), np.zeros((2, 2)), empty, ["a", "a"])


@given(st.integers(0, 2**32 - 1), st.floats(0, 5))
def test_no_policy_beats_the_oracle_at_its_cost_weight(seed, cost_weight):
    generator = np.random.default_rng(seed)
    score_QK, cost_QK = generator.random((6, 4)), generator.random((6, 4))
    present_QK = generator.random((6, 4)) < 0.7
    present_QK[:, 0] = True
    probability_QK = np.where(present_QK, generator.random((6, 4)) + 1e-3, 0)
    probability_QK /= probability_QK.sum(1, keepdims=True)
    utility_QK = metrics.compute_utility(score_QK, cost_QK, cost_weight)
    oracle_QK = metrics.make_one_hot(
        metrics.pick_oracle(score_QK, cost_QK, present_QK, cost_weight), 4
    )
    oracle_Q = metrics.average_picks(utility_QK, oracle_QK)
    assert (metrics.average_picks(utility_QK, probability_QK) <= oracle_Q + 1e-8).all()
    regret_Q = metrics.compute_regret(score_QK, cost_QK, present_QK, oracle_QK, cost_weight)
    assert regret_Q == pytest.approx(np.zeros(6), abs=1e-8)
