"""The prior-shrunk baseline: the sheet's worked numbers, what it gains, and how little it can lose.

Worked numbers: V0.5 (arXiv 2603.10848), rewards in {-1, +1}, so the variance of one reward is 1.
"""

from __future__ import annotations

from math import comb, nan, sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlroute.algorithms.prior import (
    PriorBaseline,
    bound_variance,
    compute_objective,
    compute_prior_advantages,
    find_growing,
    fuse_baseline,
)

PRICE = 0.0039


def fuse(rewards: list[float], prior: float, variance: float = 1.0) -> PriorBaseline:
    return fuse_baseline(
        torch.tensor([rewards], dtype=torch.float64),
        torch.tensor([prior], dtype=torch.float64),
        torch.tensor([variance], dtype=torch.float64),
    )


@pytest.mark.parametrize(
    ("rewards", "prior", "bias", "weight", "baseline"),
    [
        ([-1, 1, -1, 1], 0.8, 0.39, 0.6094, 0.3125),
        ([1, 1, -1, 1], 0.6, 0.0, 0.0, 0.6),
        ([-1, -1, -1, -1], 0.5, 2.0, 0.8889, -0.8333),
        ([-1, 1] * 8, 0.8, 0.5775, 0.9023, 0.0781),
    ],
)
def test_the_worked_baselines(rewards, prior, bias, weight, baseline):
    found = fuse(rewards, prior)
    assert found.bias_N.item() == pytest.approx(bias, abs=5e-5)
    assert found.weight_N.item() == pytest.approx(weight, abs=5e-5)
    assert found.baseline_N.item() == pytest.approx(baseline, abs=5e-5)
    assert found.count_N.item() == len(rewards)


@pytest.mark.parametrize(
    ("bias", "count", "weight", "mse"),
    [(0.01, 4, 0.0385, None), (0.25, 4, 0.5, 0.125), (0.25, 16, 0.8, 0.05)],
)
def test_the_worked_weights_and_errors_of_a_known_bias(bias, count, weight, mse):
    # a mean whose squared distance from the prior is what is expected: bias^2 + noise
    gap = sqrt(bias + 1 / count)
    found = fuse([gap] * count, 0.0)
    assert found.weight_N.item() == pytest.approx(weight, abs=5e-5)
    if mse is not None:
        objective = compute_objective(
            torch.tensor([bias]), torch.ones(1), torch.tensor([count]), price=0.0
        )
        assert objective.item() == pytest.approx(mse, abs=1e-6)


def test_the_worked_look_ahead_stops_at_twelve():
    bias_N = torch.full((4,), 0.25)
    count_N = torch.tensor([4, 8, 12, 16])
    objective_N = compute_objective(bias_N, torch.ones(4), count_N, PRICE)
    worked = [0.1406, 0.11453, 0.10930, 0.11240]
    assert objective_N.tolist() == pytest.approx(worked, abs=5e-5)
    zero_N = torch.zeros(4)
    found = PriorBaseline(zero_N, zero_N, bias_N, torch.ones(4), count_N)
    assert find_growing(found, 4, PRICE).tolist() == [True, True, False, False]
    assert find_growing(found, 1, PRICE)[:3].tolist() == [True, True, False]


def test_a_group_that_agrees_with_its_prior_does_not_grow_and_one_that_contradicts_it_does():
    reward_NG = torch.tensor([[1.0, 1.0, -1.0, 1.0], [-1.0, -1.0, -1.0, -1.0]])
    found = fuse_baseline(reward_NG, torch.tensor([0.6, 0.9]), torch.ones(2))
    assert find_growing(found, 4, PRICE).tolist() == [False, True]
    assert find_growing(found, 4, price=1.0).tolist() == [False, False]


def test_undefined_rewards_count_for_nothing():
    found = fuse([-1, 1, nan, -1, 1, nan], 0.8)
    assert found.baseline_N.item() == pytest.approx(0.3125)
    assert found.count_N.item() == 4
    nobody = fuse([nan, nan], 0.8)
    assert (nobody.baseline_N.item(), nobody.weight_N.item()) == (0.8, 0.0)
    assert not find_growing(nobody, 4, PRICE).any()
    adv_NG, valid_NG = compute_prior_advantages(
        torch.tensor([[1.0, nan]]), torch.tensor([0.25]), torch.tensor([4.0])
    )
    assert adv_NG.tolist() == [[0.75, 0.0]]  # |1 - 0.25| is within the noise: the prior rules
    assert valid_NG.tolist() == [[True, False]]


def test_without_variance_the_mean_is_exact():
    found = fuse([0.5, 0.5], 0.9, variance=0.0)
    assert (found.baseline_N.item(), found.weight_N.item()) == (0.5, 1.0)
    assert not find_growing(found, 4, PRICE).any()


@given(
    rewards=st.lists(st.floats(-3, 3), min_size=1, max_size=6),
    prior=st.floats(-3, 3),
    variance=st.floats(1e-3, 4),
    scale=st.floats(0.1, 10),
)
def test_the_prior_moves_the_baseline_by_no_more_than_the_standard_error_in_any_unit(
    rewards, prior, variance, scale
):
    found = fuse(rewards, prior, variance)
    mean = sum(rewards) / len(rewards)
    baseline = found.baseline_N.item()
    assert abs(baseline - mean) <= sqrt(variance / len(rewards)) + 1e-9
    assert min(mean, prior) - 1e-9 <= baseline <= max(mean, prior) + 1e-9
    scaled = fuse([scale * one for one in rewards], scale * prior, scale**2 * variance)
    assert scaled.baseline_N.item() == pytest.approx(scale * baseline, abs=1e-6)
    assert scaled.bias_N.item() == pytest.approx(scale**2 * found.bias_N.item(), abs=1e-6)
    grown = [find_growing(*one) for one in ((found, 4, PRICE), (scaled, 4, scale**2 * PRICE))]
    now, then = (
        compute_objective(found.bias_N, found.variance_N, found.count_N + more, PRICE).item()
        for more in (0, 4)
    )
    assert abs(now - then) < 1e-6 or grown[0] == grown[1]


def measure_errors(success: float, prior: float, size: int = 4) -> tuple[float, float]:
    """Return the exact mean squared errors of the fused baseline and of the group's mean."""
    truth, fused, plain = 2 * success - 1, 0.0, 0.0
    for wins in range(size + 1):
        chance = comb(size, wins) * success**wins * (1 - success) ** (size - wins)
        rewards = [1.0] * wins + [-1.0] * (size - wins)
        fused += chance * (fuse(rewards, prior).baseline_N.item() - truth) ** 2
        plain += chance * (sum(rewards) / size - truth) ** 2
    return fused, plain


@pytest.mark.parametrize("success", [0.2, 0.35, 0.5, 0.65, 0.8])
def test_a_right_prior_at_least_halves_the_baselines_squared_error(success):
    fused, plain = measure_errors(success, prior=2 * success - 1)
    assert plain == pytest.approx(4 * success * (1 - success) / 4)
    assert fused < 0.5 * plain


@pytest.mark.parametrize("success", [0.0, 0.2, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("prior", [-1.0, -0.5, 0.0, 0.5, 1.0])
def test_a_wrong_prior_costs_no_more_than_the_bound(success, prior):
    fused, plain = measure_errors(success, prior)
    assert sqrt(fused) <= sqrt(plain) + sqrt(1 / 4) + 1e-9


def test_the_variance_is_measured_but_never_below_what_the_prior_expects():
    reward_NG = torch.tensor([[0.0, 1.0, 0.0, 1.0], [1.0, 1.0, nan, 1.0], [nan, nan, nan, nan]])
    found_N = bound_variance(reward_NG, torch.tensor([0.1, 0.16, 0.2]))
    assert found_N.tolist() == pytest.approx([1 / 3, 0.16, 0.2])
