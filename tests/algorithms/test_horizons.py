"""Several horizons in the critic, one for the actor.

Worked numbers: Representation over Routing (arXiv 2604.13517). What the source warns of, mixtures
of the heads' advantages, is written out here only to show what the decoupled actor does not do.
"""

from __future__ import annotations

import pytest
import torch

from rlroute.algorithms.advantages import compute_gae
from rlroute.algorithms.horizons import (
    compute_horizon_gae,
    compute_horizon_value_loss,
    count_hacked,
)

ADV_V = torch.tensor([1.0, 0.2, -0.3, 0.1])  # discounts .5, .9, .99, .999


def mix(attention_V: torch.Tensor) -> float:
    return float((attention_V.softmax(0) * ADV_V).sum())


def test_the_worked_mixture_can_be_raised_without_better_behaviour_and_the_actors_head_cannot():
    assert mix(torch.zeros(4)) == pytest.approx(0.25)
    assert mix(torch.tensor([50.0, 0.0, 0.0, 0.0])) == pytest.approx(1.0)
    # one step of reward 0: each head's advantage is minus its value, and the actor's is head 0
    value_BTV = -ADV_V[[3, 0, 1, 2]].reshape(1, 1, 4)
    adv_BTV, _ = compute_horizon_gae(
        torch.zeros(1, 1),
        value_BTV,
        torch.ones(1, 1, dtype=torch.bool),
        torch.ones(1, dtype=torch.bool),
        (0.999, 0.5, 0.9, 0.99),
        gae_lambda=0.95,
    )
    assert adv_BTV[0, 0, 0].item() == pytest.approx(0.1)


def test_the_worked_inverse_errors_favour_the_shortest_horizon():
    weight_V = 1 / torch.tensor([0.1, 0.5, 1.0, 2.0])
    weight_V = weight_V / weight_V.sum()
    assert weight_V.tolist() == pytest.approx([0.7407, 0.1481, 0.0741, 0.0370], abs=5e-5)
    # so an actor that follows them uses the head whose advantage happens to be the largest here
    valid_N = torch.ones(1, dtype=torch.bool)
    assert count_hacked(ADV_V[None], weight_V[None], valid_N).item() == 1


def test_each_head_is_estimated_by_its_own_discount():
    generator = torch.Generator().manual_seed(0)
    reward_BT = torch.rand(3, 4, generator=generator)
    value_BTV = torch.rand(3, 4, 2, generator=generator)
    valid_BT = torch.tensor([[True] * 4, [True, True, False, False], [True, False, False, False]])
    terminated_B = torch.ones(3, dtype=torch.bool)
    adv_BTV, return_BTV = compute_horizon_gae(
        reward_BT, value_BTV, valid_BT, terminated_B, (1.0, 0.5), 0.9
    )
    for head, discount in enumerate((1.0, 0.5)):
        adv_BT, return_BT = compute_gae(
            reward_BT, value_BTV[..., head], valid_BT, terminated_B, torch.zeros(3), discount, 0.9
        )
        assert torch.equal(adv_BTV[..., head], adv_BT)
        assert torch.equal(return_BTV[..., head], return_BT)


def test_a_far_reward_is_worth_little_to_a_short_horizon():
    reward_BT = torch.zeros(1, 11)
    reward_BT[0, -1] = 1
    valid_BT = torch.ones(1, 11, dtype=torch.bool)
    _, return_BTV = compute_horizon_gae(
        reward_BT,
        torch.zeros(1, 11, 2),
        valid_BT,
        torch.ones(1, dtype=torch.bool),
        (0.999, 0.5),
        gae_lambda=1.0,
    )
    assert return_BTV[0, 0].tolist() == pytest.approx([0.999**10, 0.5**10])


def test_the_critics_loss_is_the_mean_over_its_heads_at_valid_steps():
    value_NV = torch.tensor([[1.0, 3.0], [9.0, 9.0]], requires_grad=True)
    return_NV = torch.tensor([[0.0, 1.0], [torch.nan, 0.0]])
    loss = compute_horizon_value_loss(value_NV, return_NV, torch.tensor([True, False]))
    assert loss.item() == pytest.approx(0.5 * (1 + 4) / 2)
    slope = torch.autograd.grad(loss, value_NV)[0]
    assert slope.tolist() == [[0.5, 1.0], [0.0, 0.0]]


def test_the_hack_rate_counts_valid_steps_where_the_head_in_use_is_the_largest():
    adv_NV = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [0.0, 3.0]])
    fixed_NV = torch.tensor([[1.0, 0.0]]).expand(4, 2)
    valid_N = torch.tensor([True, True, True, False])
    assert count_hacked(adv_NV, fixed_NV, valid_N).item() == 2
    assert count_hacked(adv_NV, adv_NV, valid_N).item() == 3  # attention that follows advantages
