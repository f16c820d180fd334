from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlroute.algorithms.losses import (
    compute_clipped_loss,
    compute_clipped_value_loss,
    compute_entropy,
    compute_expected_loss,
)

NAN = math.nan
CLIP = 0.2


def gradient(loss: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, of)[0]


def masked_logp(logits_NK: torch.Tensor, mask_NK: torch.Tensor) -> torch.Tensor:
    return logits_NK.masked_fill(~mask_NK, -math.inf).log_softmax(dim=-1)


def test_at_ratio_one_the_gradient_is_the_policy_gradient():
    logp_N = torch.tensor([-0.5, -1.0, -2.0], requires_grad=True)
    adv_N = torch.tensor([2.0, -3.0, 0.5])
    valid_N = torch.tensor([True, True, True])
    loss = compute_clipped_loss(logp_N, logp_N.detach(), adv_N, valid_N, CLIP)
    torch.testing.assert_close(gradient(loss.total, logp_N), -adv_N)
    assert loss.total.item() == pytest.approx(-(2.0 - 3.0 + 0.5))
    assert loss.kl == 0
    assert loss.clipped == 0


@pytest.mark.parametrize(
    ("ratio", "adv", "moves"),
    [
        (1.5, 1.0, False),  # better than thought, taken more often already
        (0.5, -1.0, False),  # worse than thought, taken less often already
        (1.5, -1.0, True),
        (0.5, 1.0, True),
        (1.1, 1.0, True),
    ],
)
def test_beyond_the_clip_range_there_is_no_gradient_in_the_direction_of_the_gain(ratio, adv, moves):
    logp_N = torch.tensor([math.log(ratio)], requires_grad=True)
    valid_N = torch.tensor([True])
    loss = compute_clipped_loss(logp_N, torch.zeros(1), torch.tensor([adv]), valid_N, CLIP)
    expected = -ratio * adv if moves else 0.0
    assert gradient(loss.total, logp_N).item() == pytest.approx(expected)
    assert loss.clipped == float(abs(ratio - 1) > CLIP)


def test_the_kl_estimate_is_k3_summed_over_valid_rows():
    ratio_N = torch.tensor([1.5, 0.5, 9.0])
    valid_N = torch.tensor([True, True, False])
    loss = compute_clipped_loss(ratio_N.log(), torch.zeros(3), torch.zeros(3), valid_N, CLIP)
    assert loss.kl.item() == pytest.approx(0.5 - math.log(1.5) + -0.5 - math.log(0.5))


def test_invalid_rows_contribute_nothing_whatever_they_hold():
    logp_N = torch.tensor([-1.0, -1.0, -1.0], requires_grad=True)
    old_logp_N = torch.tensor([-1.0, NAN, -50.0])
    adv_N = torch.tensor([1.0, NAN, math.inf])
    valid_N = torch.tensor([True, False, False])
    loss = compute_clipped_loss(logp_N, old_logp_N, adv_N, valid_N, CLIP)
    assert loss.total.item() == -1
    assert gradient(loss.total, logp_N).tolist() == [-1, 0, 0]
    value_N = torch.tensor([0.5, 0.5, 0.5], requires_grad=True)
    returns_N = torch.tensor([1.5, NAN, math.inf])
    value_loss = compute_clipped_value_loss(value_N, returns_N, value_N, valid_N, None)
    assert value_loss.item() == 0.5
    assert gradient(value_loss, value_N).tolist() == [-1, 0, 0]


def test_masked_candidates_get_exactly_no_gradient_from_any_loss():
    logits_NK = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mask_NK = torch.ones(4, 5, dtype=torch.bool)
    mask_NK[:, 2] = mask_NK[0, 4] = False
    reward_NK = torch.rand(4, 5).masked_fill(~mask_NK, NAN)
    logp_NK = masked_logp(logits_NK, mask_NK)
    chosen_N = logp_NK[:, 0]
    for loss in (
        compute_expected_loss(logp_NK, reward_NK),
        compute_clipped_loss(
            chosen_N, chosen_N.detach(), torch.ones(4), torch.ones(4, dtype=torch.bool), CLIP
        ).total,
        compute_entropy(logp_NK).sum(),
    ):
        slope_NK = torch.autograd.grad(loss, logits_NK, retain_graph=True)[0]
        assert (slope_NK[~mask_NK] == 0).all()
        assert slope_NK.isfinite().all()
        assert slope_NK[mask_NK].abs().sum() > 0


def test_the_expected_loss_is_minus_the_expectation_and_its_gradient_that_of_autograd():
    logits_NK = torch.tensor([[0.3, -1.0, 0.5], [2.0, 0.0, -0.5]], requires_grad=True)
    reward_NK = torch.tensor([[1.0, 0.2, -0.4], [0.0, 0.7, 0.7]])
    exact = -(logits_NK.softmax(dim=-1) * reward_NK).sum()
    loss = compute_expected_loss(logits_NK.log_softmax(dim=-1), reward_NK)
    torch.testing.assert_close(loss, exact)
    torch.testing.assert_close(gradient(loss, logits_NK), gradient(exact, logits_NK))


@given(logits=st.lists(st.floats(-3, 3), min_size=4, max_size=4))
def test_the_expected_gradient_is_the_mean_of_reinforces_gradients_over_all_actions(logits):
    reward_K = torch.tensor([1.0, 0.0, 0.4, -2.0]).double()
    logits_K = torch.tensor(logits).double().requires_grad_()
    logp_NK = logits_K.log_softmax(dim=-1)[None]
    expected = gradient(compute_expected_loss(logp_NK, reward_K[None]), logits_K)
    baseline = 0.3  # any baseline leaves the mean as it is
    mean = torch.zeros(4).double()
    for action in range(4):
        logp_1 = logits_K.log_softmax(dim=-1)[action : action + 1]
        loss = compute_clipped_loss(
            logp_1,
            logp_1.detach(),
            reward_K[action : action + 1] - baseline,
            torch.tensor([True]),
            CLIP,
        )
        mean += logp_1.detach().exp() * gradient(loss.total, logits_K)
    torch.testing.assert_close(mean, expected)


def test_an_undefined_reward_is_left_out_and_not_taken_for_zero():
    logits_NK = torch.tensor([[0.0, 0.0, 5.0]], requires_grad=True)
    loss = compute_expected_loss(logits_NK.log_softmax(dim=-1), torch.tensor([[-1.0, -0.5, NAN]]))
    assert loss.item() == pytest.approx(0.75)  # both known candidates are equally likely
    slope_NK = gradient(loss, logits_NK)
    assert slope_NK[0, 2] == 0
    assert slope_NK[0].tolist() == pytest.approx([0.125, -0.125, 0.0])


def test_a_query_without_any_reward_contributes_nothing():
    logits_NK = torch.zeros(2, 2, requires_grad=True)
    loss = compute_expected_loss(
        logits_NK.log_softmax(dim=-1), torch.tensor([[NAN, NAN], [1.0, 0.0]])
    )
    assert loss.item() == pytest.approx(-0.5)
    assert gradient(loss, logits_NK)[0].tolist() == [0, 0]
    nothing = compute_expected_loss(torch.zeros(1, 2), torch.full((1, 2), NAN))
    assert nothing.item() == 0


def test_entropy_is_in_nats_and_masked_candidates_count_nothing():
    mask_NK = torch.tensor([[True, True, False, True, True], [False, True, False, False, False]])
    entropy_N = compute_entropy(masked_logp(torch.zeros(2, 5), mask_NK))
    torch.testing.assert_close(entropy_N, torch.tensor([math.log(4), 0.0]))


def test_the_value_loss_is_half_the_squared_error():
    value_N, return_N = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 2.5])
    valid_N = torch.tensor([True, True])
    loss = compute_clipped_value_loss(value_N, return_N, value_N, valid_N, None)
    assert loss.item() == pytest.approx(0.5 * (4 + 0.25))
