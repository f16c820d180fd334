"""McNemar, sign flips and equivalence against numbers worked out by hand or published."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from rlroute.evaluation.tests_of_difference import (
    compute_equivalence,
    compute_mcnemar,
    compute_permutation_p,
    count_queries_needed,
)
from rlroute.types import RLRouteError


def make_pairs(only_first, only_second, both=3, neither=2):
    first_Q = [1] * only_first + [0] * only_second + [1] * both + [0] * neither
    second_Q = [0] * only_first + [1] * only_second + [1] * both + [0] * neither
    return first_Q, second_Q


def test_mcnemar_of_one_against_seven_is_the_published_number():
    found = compute_mcnemar(*make_pairs(1, 7))  # Fagerland et al.: exact 0.0703, mid-p 0.0391
    assert (found.only_first, found.only_second) == (1, 7)
    assert found.exact_p == pytest.approx(18 / 256)
    assert found.mid_p == pytest.approx(10 / 256)


def test_mcnemar_without_a_difference_finds_none():
    same = compute_mcnemar([1, 0, 1], [1, 0, 1])
    assert (same.exact_p, same.mid_p) == (1, 1)
    even = compute_mcnemar(*make_pairs(3, 3))
    assert (even.exact_p, even.mid_p) == (1, 1)


def test_the_router_of_the_example_is_right_where_the_best_single_is():
    found = compute_mcnemar([1, 1, 1, 0], [1, 1, 1, 0])  # R against L: the same three queries
    assert (found.only_first, found.only_second) == (0, 0)


@given(st.integers(0, 30), st.integers(0, 30))
def test_mcnemar_is_symmetric_and_mid_p_is_never_above_the_exact_one(only_first, only_second):
    found = compute_mcnemar(*make_pairs(only_first, only_second))
    turned = compute_mcnemar(*make_pairs(only_second, only_first))
    assert (found.exact_p, found.mid_p) == (turned.exact_p, turned.mid_p)
    assert 0 < found.mid_p <= found.exact_p <= 1


def test_mcnemar_refuses_graded_scores_and_other_lengths():
    with pytest.raises(RLRouteError, match="0 or 1"):
        compute_mcnemar([0.5, 1], [1, 1])
    with pytest.raises(RLRouteError, match="0 or 1"):
        compute_mcnemar([math.nan, 1], [1, 1])
    with pytest.raises(RLRouteError, match="one score per query"):
        compute_mcnemar([1], [1, 0])


def test_the_permutation_test_is_exact_where_the_flips_are_few():
    assert compute_permutation_p([1, 1, 1, 1]) == pytest.approx(2 / 16)
    assert compute_permutation_p([1, 1, 1, 1, 0, 0]) == pytest.approx(2 / 16)
    # of 8 flips of 1, 2, 3 the sums 6 and 4 on either side are as large as 4
    assert compute_permutation_p([-1, 2, 3]) == pytest.approx(4 / 8)
    assert compute_permutation_p([0, 0, 0]) == 1
    assert compute_permutation_p([0, 0.5]) == 1


def test_the_permutation_test_agrees_with_the_exact_binomial_one_on_signs():
    first_Q, second_Q = (np.array(side) for side in make_pairs(20, 45))
    exact = compute_mcnemar(first_Q, second_Q).exact_p
    assert compute_permutation_p(first_Q - second_Q, seed=4) == pytest.approx(exact, abs=0.002)


def test_the_permutation_test_repeats_with_its_seed():
    difference_Q = np.random.default_rng(0).normal(0.2, 1, 60)
    found = [compute_permutation_p(difference_Q, permutations=999, seed=s) for s in (1, 1, 2)]
    assert found[0] == found[1] != found[2]


def test_equivalence_is_two_one_sided_t_tests():
    difference_Q = np.random.default_rng(3).normal(0.001, 0.05, 2000)
    found = compute_equivalence(difference_Q, margin=0.005)
    above = ttest_1samp(difference_Q, -0.005, alternative="greater").pvalue
    below = ttest_1samp(difference_Q, 0.005, alternative="less").pvalue
    assert found.p_value == pytest.approx(max(above, below))
    interval = ttest_1samp(difference_Q, 0).confidence_interval(0.90)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.equivalent
    assert not compute_equivalence(difference_Q, margin=0.002).equivalent


@given(st.integers(0, 1000), st.floats(0.01, 0.5))
def test_equivalent_means_that_the_interval_lies_within_the_margin(seed, margin):
    difference_Q = np.random.default_rng(seed).normal(0.1, 0.5, 40)
    found = compute_equivalence(difference_Q, margin)
    assert found.equivalent == (-margin < found.low and found.high < margin)


def test_few_queries_never_show_equivalence():
    difference_Q = [0.0, 0.0, 1.0, -1.0, 0.0, 0.0, 0.0, 0.0]
    found = compute_equivalence(difference_Q)
    assert found.difference == 0
    assert not found.equivalent


def test_a_constant_difference_is_decided_without_an_error():
    assert compute_equivalence([0.0, 0.0]).equivalent
    assert not compute_equivalence([0.25, 0.25]).equivalent
    assert not compute_equivalence([-0.25, -0.25]).equivalent


@pytest.mark.parametrize("difference_Q", [[0.1], [0.1, math.nan], [[0.1, 0.2]]])
def test_equivalence_of_too_little_or_of_holes_is_refused(difference_Q):
    with pytest.raises(RLRouteError, match="paired test"):
        compute_equivalence(difference_Q)


def test_a_margin_of_nothing_is_refused():
    with pytest.raises(RLRouteError, match="margin"):
        compute_equivalence([0.1, 0.2], 0.0)


def test_a_point_at_24_percent_disagreement_takes_about_9600_queries():
    assert count_queries_needed(0.24, 0.01) == 9596
    assert count_queries_needed(0.24, -0.01) == 9596
    for disagreement, difference in ((0.24, 0.0), (0.01, 0.02), (1.2, 0.1)):
        with pytest.raises(RLRouteError, match="cannot come from"):
            count_queries_needed(disagreement, difference)
