"""Every estimator's mean over all samples against the exact policy gradient, on a problem so small
that all samples can be enumerated: one query, four candidates, three picks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from math import nan

import pytest
import torch
from torch import Tensor

from rlroute.algorithms.advantages import (
    compute_group_advantages,
    compute_leave_one_out_advantages,
    compute_rloo_advantages,
)
from rlroute.algorithms.losses import compute_expected_loss, compute_policy_gradient_loss
from rlroute.algorithms.prior import compute_prior_advantages

REWARD_K = torch.tensor([1.0, -0.5, 0.25, 0.6], dtype=torch.float64)
LOGIT_K = torch.tensor([0.2, -0.7, 1.1, 0.0], dtype=torch.float64)
PICKS = 3
SAMPLES = [torch.tensor(picks) for picks in itertools.product(range(4), repeat=PICKS)]
Estimate = Callable[[Tensor], Tensor]


def compute_exact_gradient() -> Tensor:
    logit_K = LOGIT_K.clone().requires_grad_()
    loss = compute_expected_loss(logit_K.log_softmax(0)[None], REWARD_K[None])
    return torch.autograd.grad(loss, logit_K)[0]


def find_gradients(estimate: Estimate) -> tuple[Tensor, Tensor]:
    """Return the chance of each sample [S] and its gradient [S, K]; `estimate` gives advantages."""
    chances, gradients = [], []
    for action_B in SAMPLES:
        logit_K = LOGIT_K.clone().requires_grad_()
        logp_B = logit_K.log_softmax(0)[action_B]
        valid_B = torch.ones(PICKS, dtype=torch.bool)
        loss = compute_policy_gradient_loss(logp_B, estimate(REWARD_K[action_B]), valid_B) / PICKS
        gradients.append(torch.autograd.grad(loss, logit_K)[0])
        chances.append(logp_B.detach().sum().exp())
    return torch.stack(chances), torch.stack(gradients)


def average_gradient(estimate: Estimate) -> Tensor:
    chance_S, gradient_SK = find_gradients(estimate)
    assert chance_S.sum().item() == pytest.approx(1.0)
    return (chance_S[:, None] * gradient_SK).sum(0)


def compute_batch_advantages(reward_B: Tensor) -> Tensor:
    count = torch.tensor(float(len(reward_B)), dtype=torch.float64)
    return compute_leave_one_out_advantages(reward_B, reward_B.sum(), count)


@pytest.mark.parametrize(
    "estimate",
    [
        lambda reward_B: reward_B,
        compute_batch_advantages,
        lambda reward_B: compute_rloo_advantages(reward_B[None])[0][0],
    ],
    ids=["reinforce none", "reinforce batch", "rloo"],
)
def test_an_unbiased_estimator_is_the_exact_gradient_on_average(estimate):
    torch.testing.assert_close(average_gradient(estimate), compute_exact_gradient())


def compute_anchored(reward_B: Tensor) -> Tensor:
    """Return advantages of picks in a group that also holds every candidate once, forced."""
    group = torch.cat([reward_B, REWARD_K])[None]
    return compute_group_advantages(group, scale_by_std=False)[0][0, :PICKS]


@pytest.mark.parametrize(
    ("estimate", "members"),
    [
        (lambda reward_B: compute_group_advantages(reward_B[None], scale_by_std=False)[0][0], 3),
        (compute_anchored, 3 + 4),
    ],
    ids=["grpo", "forced arms"],
)
def test_a_reward_in_its_own_mean_shortens_the_gradient_by_its_share_of_the_group(
    estimate, members
):
    expected = compute_exact_gradient() * (1 - 1 / members)
    torch.testing.assert_close(average_gradient(estimate), expected)


def test_forced_arms_make_the_gradient_less_noisy_than_a_group_of_the_policys_own():
    def spread(estimate: Estimate) -> float:
        chance_S, gradient_SK = find_gradients(estimate)
        scaled_SK = gradient_SK / (chance_S[:, None] * gradient_SK).sum(0).norm()
        mean_K = (chance_S[:, None] * scaled_SK).sum(0)
        return float((chance_S * ((scaled_SK - mean_K) ** 2).sum(1)).sum())

    alone = spread(
        lambda reward_B: compute_group_advantages(reward_B[None], scale_by_std=False)[0][0]
    )
    assert spread(compute_anchored) < 0.8 * alone


def test_a_prior_points_the_same_way_with_less_noise_than_no_baseline():
    truth = float((LOGIT_K.softmax(0) * REWARD_K).sum())
    variance = float((LOGIT_K.softmax(0) * (REWARD_K - truth) ** 2).sum())

    def shrink(reward_B: Tensor) -> Tensor:
        prior_N = torch.tensor([truth], dtype=torch.float64)
        return compute_prior_advantages(
            reward_B[None], prior_N, torch.full_like(prior_N, variance)
        )[0][0]

    found, exact = average_gradient(shrink), compute_exact_gradient()
    cosine = torch.nn.functional.cosine_similarity(found, exact, dim=0)
    assert cosine > 0.95
    assert 0.7 < found.norm() / exact.norm() < 1.05
    chance_S, shrunk_SK = find_gradients(shrink)
    plain_SK = find_gradients(lambda reward_B: reward_B)[1]
    error = [(chance_S * ((one - exact) ** 2).sum(1)).sum() for one in (shrunk_SK, plain_SK)]
    assert error[0] < 0.9 * error[1]


def test_undefined_and_lone_rewards_have_no_leave_one_out_advantage():
    reward_B = torch.tensor([1.0, nan, 4.0])
    found = compute_leave_one_out_advantages(reward_B, torch.tensor(5.0), torch.tensor(2.0))
    assert found.tolist() == [-3.0, 0.0, 3.0]
    lone = compute_leave_one_out_advantages(
        torch.tensor([2.0]), torch.tensor(2.0), torch.tensor(1.0)
    )
    assert lone.tolist() == [0.0]


def test_decisions_that_are_not_valid_have_exactly_no_gradient():
    logp_N = torch.tensor([-1.0, -torch.inf], requires_grad=True)
    loss = compute_policy_gradient_loss(
        logp_N, torch.tensor([2.0, 3.0]), torch.tensor([True, False])
    )
    assert loss.item() == 2.0
    assert torch.autograd.grad(loss, logp_N)[0].tolist() == [-2.0, 0.0]


def test_remix_coefficients_are_those_of_leave_one_out():
    # sheet, section 15: losses 1, 2, 3 give -.5, 0, +.5, which are 1/3 of (L - mean of the others)
    loss_B = torch.tensor([1.0, 2.0, 3.0])
    adv_NG, _ = compute_rloo_advantages(loss_B[None])
    assert (adv_NG[0] / 3).tolist() == pytest.approx([-0.5, 0.0, 0.5])
    batch_B = compute_leave_one_out_advantages(loss_B, loss_B.sum(), torch.tensor(3.0))
    assert (batch_B / 3).tolist() == pytest.approx([-0.5, 0.0, 0.5])
