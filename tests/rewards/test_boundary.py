"""Classes, normalised costs and rewards against worked numbers of the method's sheet."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlroute.config import parse_config
from rlroute.rewards.boundary import (
    Boundary,
    BoundaryOutcomes,
    BoundaryReward,
    BoundaryRewardConfig,
    TaxonomyConfig,
    classify,
    make_yardstick,
    normalise_cost,
)
from rlroute.types import Prices, RLRouteError


def make_boundary(solved_small: int, solved_large: int, of: int = 5, **costs: float) -> Boundary:
    scores = [
        tuple(1.0 if k < solved else 0.0 for k in range(of))
        for solved in (solved_small, solved_large)
    ]
    return Boundary(*scores, costs.get("small", 0.0), costs.get("large", 10.0))


def make_ends(score, cost, *, hard=False, low=0.0, high=1.0, failed=False) -> BoundaryOutcomes:
    one = lambda value: np.array([value], dtype=np.float32)  # noqa: E731
    return BoundaryOutcomes(
        one(score), one(cost), one(low), one(high), np.array([hard]), np.array([failed])
    )


@pytest.mark.parametrize(
    ("small", "large", "label"),
    [
        (5, 5, "easy"),
        (3, 5, "easy"),
        (2, 5, "hard"),
        (0, 1, "hard"),
        (0, 0, "intractable"),
        (1, 0, "easy"),
        (2, 2, "easy"),
        (0, 4, "hard"),
    ],
)
def test_the_classes_of_the_sheet(small, large, label):
    assert classify(make_boundary(small, large), TaxonomyConfig()) == label


@pytest.mark.parametrize(
    ("small", "large", "label"),
    [(0.7, 0.9, "easy"), (0.3, 0.34, "easy"), (0.3, 0.36, "hard"), (0.01, 0.04, "intractable")],
)
def test_graded_scores_need_a_gap_to_be_hard(small, large, label):
    boundary = Boundary((small,), (large,), 0.0, 1.0)
    assert classify(boundary, TaxonomyConfig(graded=True)) == label


@given(st.integers(0, 5), st.integers(0, 5), st.booleans())
def test_every_task_has_a_class(small, large, graded):
    assert classify(make_boundary(small, large), TaxonomyConfig(graded=graded))


def find_share(label: str, rate_small: float, rate_large: float) -> float:
    """Return how often tasks of these true rates get a label from five rollouts each."""

    def weigh(k: int, rate: float) -> float:
        return math.comb(5, k) * rate**k * (1 - rate) ** (5 - k)

    return sum(
        weigh(small, rate_small) * weigh(large, rate_large)
        for small in range(6)
        for large in range(6)
        if classify(make_boundary(small, large), TaxonomyConfig()) == label
    )


def test_labels_from_five_rollouts_are_coarse():
    assert find_share("easy", 0.4, 1.0) == pytest.approx(0.31744, abs=1e-9)
    assert find_share("easy", 0.8, 1.0) == pytest.approx(0.94208, abs=1e-9)
    assert find_share("intractable", 0.1, 0.2) == pytest.approx(0.19349, abs=5e-6)


def test_costs_on_the_scale_of_the_boundary_policies():
    large = Prices(2.0, 8.0).compute_cost(3000, 200)
    small = Prices(0.4, 1.6).compute_cost(3000, 200)
    assert (large, small) == pytest.approx((0.0076, 0.00152))
    low, high = 12 * small, 12 * large
    assert (low, high) == pytest.approx((0.01824, 0.0912))
    mixed = 3 * large + 9 * small
    assert mixed == pytest.approx(0.03648)
    cost_N = np.array([mixed, 0.10, 0.01])
    found_N = normalise_cost(cost_N, np.full(3, low), np.full(3, high))
    np.testing.assert_allclose(found_N, [0.25, 1.0, 0.0], atol=1e-6)


def test_equal_boundary_costs_normalise_to_zero():
    assert normalise_cost(np.array([3.0]), np.array([1.0]), np.array([1.0])).tolist() == [0.0]


def test_a_cheap_policy_that_wanders_swaps_the_bounds():
    boundary = Boundary((0.0,), (1.0,), cost_small=5.0, cost_large=2.0)
    assert (boundary.cost_low, boundary.cost_high) == (2.0, 5.0)


@pytest.mark.parametrize(
    ("hard", "score", "cost", "gate", "reward"),
    [
        (False, 1, 0.0, True, 1.00),
        (False, 1, 1.0, True, 0.70),
        (False, 0, 0.0, True, 0.00),
        (False, 0, 1.0, True, -0.30),
        (True, 1, 0.25, True, 1.425),
        (True, 1, 1.0, True, 1.20),
        (True, 0, 0.6, True, 0.00),
        (True, 0, 0.6, False, -0.18),
        (False, 0, 0.5, True, -0.15),  # intractable: failing cheaply is the goal
    ],
)
def test_the_rewards_of_the_sheet(hard, score, cost, gate, reward):
    stack = BoundaryReward(BoundaryRewardConfig(gate=gate))
    terms = stack.score(make_ends(score, cost, hard=hard))
    found = stack.combine(terms, np.array([0.3], dtype=np.float32))
    assert found[0] == pytest.approx(reward, abs=1e-6)


@pytest.mark.parametrize(("score", "cost", "charged"), [(1, 0.4, 0.4), (0, 0.4, 0.0)])
def test_costs_may_be_charged_on_successes_only(score, cost, charged):
    stack = BoundaryReward(BoundaryRewardConfig(charge="success"))
    assert stack.score(make_ends(score, cost))["cost"][0] == pytest.approx(charged)


def test_a_gate_that_would_not_hold_is_refused():
    with pytest.raises(RLRouteError, match="gate: charge 'success' frees every failure"):
        parse_config(BoundaryRewardConfig, {"charge": "success", "gate": False}, "reward")
    written = parse_config(BoundaryRewardConfig, {"charge": "success"}, "reward").model_dump()
    assert parse_config(BoundaryRewardConfig, written, "reward").charge == "success"


def test_a_failed_call_leaves_every_term_undefined():
    stack = BoundaryReward(BoundaryRewardConfig())
    terms = stack.score(make_ends(1, 0.0, failed=True))
    assert all(np.isnan(value_N).all() for value_N in terms.values())
    assert np.isnan(stack.combine(terms, np.array([0.3], dtype=np.float32))).all()


@pytest.mark.parametrize(
    ("solved", "hard", "references"),
    [
        ((0, 4), True, (0.0, 0.9)),
        ((5, 5), False, (1.0, 0.7)),
        ((0, 0), False, (0.0, -0.3)),
        ((4, 5), False, (0.8, 0.7)),
    ],
)
def test_the_reference_rewards_of_the_sheet(solved, hard, references):
    stack = BoundaryReward(BoundaryRewardConfig())
    weight_N = np.array([0.3], dtype=np.float32)
    found_N2 = stack.compute_references([make_boundary(*solved)], np.array([hard]), weight_N)
    np.testing.assert_allclose(found_N2[0], references, atol=1e-6)


def test_the_dearer_boundary_policy_pays_even_where_it_is_the_small_one():
    stack = BoundaryReward(BoundaryRewardConfig())
    boundary = Boundary((1.0,), (1.0,), cost_small=5.0, cost_large=2.0)
    found_N2 = stack.compute_references(
        [boundary], np.array([False]), np.array([0.3], dtype=np.float32)
    )
    np.testing.assert_allclose(found_N2[0], (0.7, 1.0), atol=1e-6)


@pytest.mark.parametrize(("hard", "threshold"), [(False, 0.30), (True, 0.20)])
def test_going_from_all_small_to_all_large_pays_above_the_threshold(hard, threshold):
    stack, weight = BoundaryReward(BoundaryRewardConfig()), np.array([0.3], dtype=np.float32)
    boundary = Boundary((0.0,), (threshold,), 0.0, 1.0)
    small, large = stack.compute_references([boundary], np.array([hard]), weight)[0]
    assert large == pytest.approx(small, abs=1e-6)


def test_every_success_beats_every_failure_of_the_same_class():
    stack, weight = BoundaryReward(BoundaryRewardConfig()), np.array([0.3], dtype=np.float32)
    for hard in (False, True):
        dearest = stack.combine(stack.score(make_ends(1, 1.0, hard=hard)), weight)
        cheapest = stack.combine(stack.score(make_ends(0, 0.0, hard=hard)), weight)
        assert dearest[0] > cheapest[0]


# --- One scale for all tasks ----------------------------------------------------------------------


def test_on_the_scale_of_train_a_step_too_many_is_paid_for():
    stack = BoundaryReward(parse_config(BoundaryRewardConfig, {"scale": "train"}, "test"))
    yardstick = make_yardstick(Boundary((1.0,), (1.0,), 1.0, 4.0), TaxonomyConfig(), train_cost=2.0)
    assert (yardstick.cost_low, yardstick.cost_high) == (0.0, 2.0)
    ends = BoundaryOutcomes(
        score_N=np.ones(3, dtype=np.float32),
        cost_N=np.array([0.5, 2.0, 5.0], dtype=np.float32),
        cost_low_N=np.full(3, yardstick.cost_low, dtype=np.float32),
        cost_high_N=np.full(3, yardstick.cost_high, dtype=np.float32),
        hard_N=np.zeros(3, dtype=np.bool_),
        failed_N=np.zeros(3, dtype=np.bool_),
    )
    np.testing.assert_allclose(stack.score(ends)["cost"], [0.25, 1.0, 2.5])
    clipped = BoundaryReward(BoundaryRewardConfig()).score(ends)["cost"]
    np.testing.assert_allclose(clipped, [0.25, 1.0, 1.0])


def test_on_the_scale_of_train_the_references_are_shares_of_its_cost():
    stack = BoundaryReward(parse_config(BoundaryRewardConfig, {"scale": "train"}, "test"))
    boundary = Boundary((0.5,), (1.0,), cost_small=1.0, cost_large=5.0)
    weight_N = np.array([0.3], dtype=np.float32)
    found_N2 = stack.compute_references([boundary], np.array([False]), weight_N, train_cost=2.0)
    np.testing.assert_allclose(found_N2[0], (0.5 - 0.15, 1.0 - 0.75), atol=1e-6)
