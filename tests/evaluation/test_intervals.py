"""The paired bootstrap: resamples, percentiles, pairing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlroute.evaluation.intervals import (
    Estimate,
    compute_paired_standard_error,
    draw_resamples,
    make_estimate,
)
from rlroute.types import RLRouteError


def test_a_resample_is_a_multiset_of_the_queries():
    weight_RQ = draw_resamples(7, 50, seed=3)
    assert weight_RQ.shape == (50, 7)
    assert weight_RQ.sum(1) == pytest.approx(np.ones(50))
    count_RQ = weight_RQ * 7
    assert count_RQ == pytest.approx(count_RQ.round())


def test_the_same_seed_draws_the_same_resamples():
    assert (draw_resamples(20, 5, seed=1) == draw_resamples(20, 5, seed=1)).all()
    assert (draw_resamples(20, 5, seed=1) != draw_resamples(20, 5, seed=2)).any()


def test_the_interval_of_a_mean_is_two_standard_errors_wide():
    score_Q = np.random.default_rng(0).random(400)
    estimate = make_estimate(score_Q.mean(), draw_resamples(400, 4000, seed=0) @ score_Q)
    half_width = 1.96 * score_Q.std() / math.sqrt(400)
    assert estimate.low == pytest.approx(score_Q.mean() - half_width, abs=0.003)
    assert estimate.high == pytest.approx(score_Q.mean() + half_width, abs=0.003)


def test_the_standard_error_of_a_paired_difference_is_the_worked_number():
    assert compute_paired_standard_error(0.10, 0.14, 350) == pytest.approx(0.026, abs=5e-4)


def test_the_bootstrap_of_a_paired_difference_agrees_with_its_standard_error():
    generator = np.random.default_rng(5)
    kind_Q = generator.choice(3, size=350, p=[0.10, 0.14, 0.76])
    difference_Q = np.select([kind_Q == 0, kind_Q == 1], [-1.0, 1.0])
    sample_R = draw_resamples(350, 4000, seed=1) @ difference_Q
    expected = compute_paired_standard_error((kind_Q == 0).mean(), (kind_Q == 1).mean(), 350)
    assert sample_R.std() == pytest.approx(expected, rel=0.05)


def test_a_router_never_differs_from_itself_in_a_paired_bootstrap():
    score_Q = np.random.default_rng(0).random(50)
    weight_RQ = draw_resamples(50, 100, seed=0)
    estimate = make_estimate(0.0, weight_RQ @ score_Q - weight_RQ @ score_Q)
    assert (estimate.low, estimate.high) == (0, 0)
    assert not estimate.excludes_zero


def test_an_interval_may_reach_to_infinity_and_is_never_nan():
    estimate = make_estimate(0.3, np.concatenate((np.full(90, 0.3), np.full(10, np.inf))))
    assert estimate == Estimate(0.3, 0.3, np.inf)


def test_an_estimate_changes_its_unit():
    assert Estimate(1.0, 0.5, 2.0).scale(1000) == Estimate(1000, 500, 2000)
    assert Estimate(1.0, 0.5, 2.0).excludes_zero


@pytest.mark.parametrize(("queries", "resamples"), [(0, 10), (10, 0)])
def test_an_empty_bootstrap_is_refused(queries, resamples):
    with pytest.raises(RLRouteError, match="at least one"):
        draw_resamples(queries, resamples, seed=0)
