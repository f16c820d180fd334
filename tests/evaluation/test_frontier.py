"""The frontier against the worked numbers of the literature, and its properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlroute.evaluation.frontier import (
    compute_aiq,
    compute_aiq_released_code,
    compute_cost_at,
    compute_hull,
    compute_quality_at,
)
from rlroute.types import RLRouteError

SINGLES = ([1, 4, 10], [0.50, 0.50, 0.75])
WITH_ROUTER = ([1, 4, 10, 6.25], [0.50, 0.50, 0.75, 0.75])
ORACLE = ([1, 1.75, 4], [0.50, 0.75, 1.00])

points = st.lists(
    st.tuples(st.integers(0, 1000), st.integers(0, 100)), min_size=1, max_size=30
).map(lambda pairs: (np.array(pairs)[:, 0] / 100, np.array(pairs)[:, 1] / 100))


def as_pairs(hull):
    return [
        (cost, quality) for cost, quality in zip(*(axis.tolist() for axis in hull), strict=True)
    ]


def test_the_hull_of_single_models_drops_the_dominated_one():
    assert as_pairs(compute_hull(*SINGLES)) == [(1, 0.5), (10, 0.75)]


def test_a_router_shortens_the_hull():
    assert as_pairs(compute_hull(*WITH_ROUTER)) == [(1, 0.5), (6.25, 0.75)]


def test_the_oracle_curve_is_its_own_hull():
    assert as_pairs(compute_hull(*ORACLE)) == [(1, 0.5), (1.75, 0.75), (4, 1.0)]


def test_points_on_the_line_between_neighbours_are_dropped():
    assert as_pairs(compute_hull([0, 1, 2], [0, 0.5, 1])) == [(0, 0), (2, 1)]


def test_at_equal_cost_the_best_quality_is_kept():
    assert as_pairs(compute_hull([1, 1, 1], [0.2, 0.9, 0.3])) == [(1, 0.9)]


def test_quality_at_a_budget_is_the_height_of_the_hull():
    hull = compute_hull(*ORACLE)
    assert compute_quality_at(hull, 2.5) == pytest.approx(0.8333, abs=5e-5)
    assert compute_quality_at(hull, 99) == 1.0
    assert compute_quality_at(hull, 0.5) is None


def test_cost_at_a_quality_is_none_when_never_reached():
    hull = compute_hull(*ORACLE)
    assert compute_cost_at(hull, 0.75) == 1.75
    assert compute_cost_at(hull, 0.1) == 1
    assert compute_cost_at(compute_hull(*SINGLES), 0.76) is None


def test_aiq_of_the_worked_example():
    assert compute_aiq(*SINGLES, 1, 10) == pytest.approx(0.6250)
    assert compute_aiq(*WITH_ROUTER, 1, 10) == pytest.approx(0.6771, abs=5e-5)
    assert compute_aiq(*ORACLE, 1, 10) == pytest.approx(0.9375)


def test_aiq_of_the_released_code_is_another_number():
    assert compute_aiq_released_code(*ORACLE, 10) == pytest.approx(0.84375)


def test_aiq_counts_nothing_left_of_the_first_point():
    assert compute_aiq([5.5], [1.0], 1, 10) == pytest.approx(0.5)
    assert compute_aiq([20], [1.0], 1, 10) == 0


def test_aiq_cuts_a_hull_that_leaves_the_range():
    assert compute_aiq([0, 20], [0, 1], 5, 15) == pytest.approx(0.5)


def test_aiq_of_a_range_without_length_is_the_height():
    assert compute_aiq([1, 2], [0.2, 0.4], 1.5, 1.5) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("cost", "quality"), [([], []), ([1], [0.5, 0.6]), ([np.nan], [1]), ([1], [np.inf])]
)
def test_bad_points_are_refused_in_one_line(cost, quality):
    with pytest.raises(RLRouteError) as error:
        compute_hull(cost, quality)
    assert "\n" not in str(error.value)


def test_a_reversed_range_is_refused():
    with pytest.raises(RLRouteError, match="reversed"):
        compute_aiq([1], [1], 2, 1)


@given(points)
def test_the_hull_rises_and_is_concave_and_no_point_lies_above_it(pair):
    cost_N, quality_N = pair
    hull = cost_H, quality_H = compute_hull(cost_N, quality_N)
    assert (np.diff(cost_H) > 0).all()
    assert (np.diff(quality_H) > 0).all()
    assert (np.diff(np.diff(quality_H) / np.diff(cost_H)) < 1e-9).all()
    for cost, quality in zip(cost_N, quality_N, strict=True):
        assert compute_quality_at(hull, cost) >= quality - 1e-9


@given(points, st.randoms())
def test_the_order_of_the_points_changes_nothing(pair, random):
    cost_N, quality_N = pair
    order = list(range(len(cost_N)))
    random.shuffle(order)
    assert as_pairs(compute_hull(cost_N[order], quality_N[order])) == as_pairs(
        compute_hull(cost_N, quality_N)
    )


@given(points, st.tuples(st.floats(0, 10), st.floats(0, 1)))
def test_one_more_point_never_lowers_aiq(pair, point):
    cost_N, quality_N = pair
    more = np.append(cost_N, point[0]), np.append(quality_N, point[1])
    assert compute_aiq(*more, 0, 10) >= compute_aiq(cost_N, quality_N, 0, 10) - 1e-9
