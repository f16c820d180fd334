"""BudgetMem's PPO: one ratio and one advantage for all decisions of an episode."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlroute.algorithms.advantages import compute_joint_advantages, normalise_advantages
from rlroute.algorithms.losses import (
    compute_clipped_loss,
    compute_clipped_value_loss,
    compute_joint_clipped_loss,
)
from rlroute.rewards.memory import MemoryReward, MemoryRewardConfig

CLIP = 0.2


def gradient(loss: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, of)[0]


def draw(shape: tuple[int, ...], seed: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize(
    ("outcome", "cost", "weight", "value", "returns", "raw", "standardised"),
    [
        ([1, 0], [0.2, 0.8], 0.5, 0.0, [1.1, 0.4], [1.1, 0.4], [0.7071, -0.7071]),
        ([1, 0, 0.5], [0, 1, 0.5], 0.3, 0.1, [1.0, 0.3, 0.65], [0.9, 0.2, 0.55], [1, -1, 0]),
        ([1, 1], [0.5, 0.5], 0.5, 0.2, [1.25, 1.25], [1.05, 1.05], [0, 0]),
    ],
)
def test_worked_advantages(outcome, cost, weight, value, returns, raw, standardised):
    plain = MemoryReward(MemoryRewardConfig.model_validate({"alignment": None}))
    terms = {"outcome": np.array(outcome, np.float32), "cost": np.array(cost, np.float32)}
    return_B = torch.as_tensor(plain.combine(terms, np.full(len(outcome), weight, np.float32)))
    torch.testing.assert_close(return_B, torch.tensor(returns))
    everyone_B = torch.ones(len(outcome), dtype=torch.bool)
    adv_B = compute_joint_advantages(return_B, torch.full_like(return_B, value), everyone_B)
    torch.testing.assert_close(adv_B, torch.tensor(raw))
    scaled_B = normalise_advantages(adv_B, adv_B.mean(), adv_B.std())  # the std of a sample
    np.testing.assert_allclose(scaled_B, standardised, atol=5e-5)


def test_an_undefined_return_has_no_advantage():
    adv_B = compute_joint_advantages(
        torch.tensor([1.25, math.nan]), torch.tensor([0.2, 0.3]), torch.tensor([True, False])
    )
    torch.testing.assert_close(adv_B, torch.tensor([1.05, 0.0]))


@given(seed=st.integers(0, 10_000), rows=st.integers(1, 6), scale=st.sampled_from([0.05, 0.5, 2.0]))
def test_with_one_decision_the_joint_loss_is_that_of_the_decision(seed, rows, scale):
    old_N, adv_N = draw((rows,), seed), draw((rows,), seed + 1)
    logp_N = (old_N + draw((rows,), seed + 2, scale)).requires_grad_()
    valid_N = draw((rows,), seed + 3) > -0.5
    single = compute_clipped_loss(logp_N, old_N, adv_N, valid_N, CLIP)
    joint = compute_joint_clipped_loss(
        logp_N[:, None], old_N[:, None], adv_N, valid_N[:, None], CLIP
    )
    for name in ("total", "kl", "clipped"):
        torch.testing.assert_close(getattr(joint, name), getattr(single, name))
    torch.testing.assert_close(gradient(joint.total, logp_N), gradient(single.total, logp_N))


def test_at_the_behaviour_policy_the_gradient_is_the_sum_of_those_of_the_decisions():
    logits_BTK = draw((4, 5, 3), seed=0).requires_grad_()
    action_BT1 = torch.randint(3, (4, 5, 1), generator=torch.Generator().manual_seed(1))
    logp_BT = logits_BTK.log_softmax(dim=-1).gather(2, action_BT1).squeeze(2)
    old_BT, adv_B = logp_BT.detach(), draw((4,), seed=2)
    valid_BT = torch.ones(4, 5, dtype=torch.bool)
    valid_BT[1, 2:] = False
    joint = compute_joint_clipped_loss(logp_BT, old_BT, adv_B, valid_BT, CLIP)
    by_decision = compute_clipped_loss(
        logp_BT.flatten(),
        old_BT.flatten(),
        adv_B.repeat_interleave(5),
        valid_BT.flatten(),
        CLIP,
    )
    found = torch.autograd.grad(joint.total, logits_BTK, retain_graph=True)[0]
    torch.testing.assert_close(found, gradient(by_decision.total, logits_BTK))
    assert found[0].abs().max() > 0
    assert joint.kl == 0
    assert joint.clipped == 0


def test_the_ratio_is_the_product_over_the_decisions():
    ratio_BT = torch.tensor([[1.05, 1.05, 1.05], [1.2, 0.9, 1.0]])
    logp_BT = ratio_BT.log().requires_grad_()
    adv_B = torch.tensor([2.0, -3.0])
    valid_BT = torch.ones(2, 3, dtype=torch.bool)
    loss = compute_joint_clipped_loss(logp_BT, torch.zeros(2, 3), adv_B, valid_BT, CLIP)
    joint_B = torch.tensor([1.05**3, 1.08])
    assert loss.total.item() == pytest.approx(-(joint_B * adv_B).sum().item(), rel=1e-6)
    assert loss.kl.item() == pytest.approx((joint_B - 1 - joint_B.log()).sum().item(), rel=1e-4)
    assert loss.clipped == 0
    expected_BT = -(joint_B * adv_B)[:, None].expand(2, 3)  # every decision is blamed alike
    torch.testing.assert_close(gradient(loss.total, logp_BT), expected_BT)


def test_decisions_that_are_each_within_the_clip_range_are_clipped_together():
    logp_BT = torch.full((1, 5), math.log(1.1)).requires_grad_()
    valid_BT = torch.ones(1, 5, dtype=torch.bool)
    old_BT, adv_B = torch.zeros(1, 5), torch.ones(1)
    joint = compute_joint_clipped_loss(logp_BT, old_BT, adv_B, valid_BT, CLIP)
    assert joint.clipped == 1  # an episode counts once
    assert joint.total.item() == pytest.approx(-1.2)
    assert gradient(joint.total, logp_BT).abs().max() == 0
    by_decision = compute_clipped_loss(
        logp_BT.flatten(), old_BT.flatten(), torch.ones(5), valid_BT.flatten(), CLIP
    )
    assert by_decision.clipped == 0


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_summed_log_ratio_is_held_within_its_limit(sign):
    logp_BT = torch.full((1, 4), 5.0 * sign).requires_grad_()
    valid_BT = torch.ones(1, 4, dtype=torch.bool)
    loss = compute_joint_clipped_loss(
        logp_BT, torch.zeros(1, 4), torch.tensor([-1.0]), valid_BT, CLIP
    )
    expected = max(math.exp(10.0 * sign), 1 - CLIP)
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert gradient(loss.total, logp_BT).abs().max() == 0
    near = compute_joint_clipped_loss(
        logp_BT, torch.zeros(1, 4), torch.tensor([-1.0]), valid_BT, CLIP, max_log_ratio=1.0
    )
    assert near.total.item() == pytest.approx(max(math.exp(sign), 1 - CLIP), rel=1e-5)


def test_what_is_not_valid_contributes_nothing_whatever_stands_there():
    logp_BT = torch.tensor([[-1.0, -math.inf], [math.nan, 7.0]], requires_grad=True)
    old_BT = torch.tensor([[-1.1, 0.0], [0.0, math.nan]])
    valid_BT = torch.tensor([[True, False], [False, False]])
    adv_B = torch.tensor([1.0, 0.0])
    loss = compute_joint_clipped_loss(logp_BT, old_BT, adv_B, valid_BT, CLIP)
    assert loss.total.item() == pytest.approx(-math.exp(0.1))
    assert loss.kl.item() == pytest.approx(math.exp(0.1) - 1.1, rel=1e-3)
    torch.testing.assert_close(
        gradient(loss.total, logp_BT), torch.tensor([[-math.exp(0.1), 0.0], [0.0, 0.0]])
    )
    nobody = compute_joint_clipped_loss(
        logp_BT, old_BT, adv_B, torch.zeros(2, 2, dtype=torch.bool), CLIP
    )
    assert (nobody.total, nobody.kl, nobody.clipped) == (0, 0, 0)


def test_the_originals_value_loss_is_twice_ours_by_the_number_of_episodes():
    value_B, old_B = torch.tensor([0.9, 0.1, 0.5]), torch.tensor([0.2, 0.2, 0.5])
    return_B = torch.tensor([1.0, 0.0, 0.7])
    near_B = old_B + (value_B - old_B).clamp(-0.2, 0.2)
    original = torch.max((value_B - return_B) ** 2, (near_B - return_B) ** 2).mean()
    ours = compute_clipped_value_loss(
        value_B, return_B, old_B, torch.ones(3, dtype=torch.bool), clip=0.2
    )
    assert original.item() == pytest.approx(2 * ours.item() / 3)
    assert original.item() == pytest.approx((0.36 + 0.01 + 0.04) / 3)
