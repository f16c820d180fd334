from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlroute.algorithms.offline import (
    blend_towards,
    choose_at_cost_weight,
    compute_bootstrapped_targets,
    compute_cloning_loss,
    compute_conservative_loss,
    compute_discounted_return,
    relabel_budgets,
)

COST_ST = torch.tensor([[120.0, 900.0, 150.0, 1100.0]], dtype=torch.float64)
QUALITY_ST = torch.tensor([[0.12, 0.15, 0.11, 0.16]], dtype=torch.float64)
ALL_VALID_ST = torch.ones(1, 4, dtype=torch.bool)
PENALTY, DISCOUNT = 5.0, 0.99


# --- Hindsight budget relabelling -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "shares", "rewards", "bankrupt", "final", "expected_return"),
    [
        (500.0, [1, 0.76], [0.12, -4.85], True, -520.0, -4.6815),
        (1500.0, [1, 0.92, 0.32, 0.22], [0.12, 0.15, 0.11, -4.84], True, -770.0, -4.31994),
        (3000.0, [1, 0.96, 0.66, 0.61], [0.12, 0.15, 0.11, 0.16], False, 730.0, 0.53156),
    ],
)
def test_relabelling_gives_the_worked_example(
    budget, shares, rewards, bankrupt, final, expected_return
):
    found = relabel_budgets(COST_ST, QUALITY_ST, ALL_VALID_ST, torch.tensor([budget]), PENALTY)
    turns = len(shares)
    assert found.valid_SMT[0, 0].tolist() == [t < turns for t in range(4)]
    assert found.last_SMT[0, 0].tolist() == [t == turns - 1 for t in range(4)]
    assert (found.balance_SMT[0, 0, :turns] / budget).tolist() == pytest.approx(shares)
    assert found.reward_SMT[0, 0, :turns].tolist() == pytest.approx(rewards)
    assert found.bankrupt_SM.item() is bankrupt
    assert found.final_balance_SM.item() == final
    returned = compute_discounted_return(found.reward_SMT[0, 0], DISCOUNT).item()
    assert returned == pytest.approx(expected_return, abs=5e-6)


def test_the_budgets_of_one_call_do_not_touch_each_other():
    budgets = [500.0, 1500.0, 3000.0]
    together = relabel_budgets(COST_ST, QUALITY_ST, ALL_VALID_ST, torch.tensor(budgets), PENALTY)
    for m, budget in enumerate(budgets):
        alone = relabel_budgets(COST_ST, QUALITY_ST, ALL_VALID_ST, torch.tensor([budget]), PENALTY)
        torch.testing.assert_close(together.reward_SMT[:, m], alone.reward_SMT[:, 0])
        torch.testing.assert_close(together.balance_SMT[:, m], alone.balance_SMT[:, 0])


def test_a_balance_of_exactly_zero_is_no_bankruptcy():
    budget = torch.tensor([COST_ST.sum().item()])
    found = relabel_budgets(COST_ST, QUALITY_ST, ALL_VALID_ST, budget, PENALTY)
    assert not found.bankrupt_SM.any()
    assert found.final_balance_SM.item() == 0


def test_padding_is_never_reached_and_never_paid():
    valid_ST = torch.tensor([[True, True, False, False]])
    costly_ST = torch.where(valid_ST, COST_ST, math.nan)
    found = relabel_budgets(costly_ST, QUALITY_ST, valid_ST, torch.tensor([2000.0]), PENALTY)
    assert found.valid_SMT[0, 0].tolist() == [True, True, False, False]
    assert found.last_SMT[0, 0].tolist() == [False, True, False, False]
    assert found.final_balance_SM.item() == 2000 - 120 - 900


sessions = st.lists(
    st.tuples(st.integers(0, 50), st.floats(0, 1, allow_nan=False)), min_size=1, max_size=6
)


@given(sessions, st.lists(st.integers(1, 200), min_size=1, max_size=4))
def test_relabelling_walks_until_the_first_bankruptcy(turns, budgets):
    cost_ST = torch.tensor([[float(cost) for cost, _ in turns]])
    quality_ST = torch.tensor([[quality for _, quality in turns]], dtype=torch.float64)
    valid_ST = torch.ones(1, len(turns), dtype=torch.bool)
    budgets_M = torch.tensor(budgets, dtype=torch.float64)
    found = relabel_budgets(cost_ST, quality_ST, valid_ST, budgets_M, PENALTY)
    for m, budget in enumerate(budgets):
        balance, rewards = float(budget), []
        for cost, quality in turns:  # the plain walk
            balance -= cost
            rewards.append(quality - (PENALTY if balance < 0 else 0))
            if balance < 0:
                break
        assert int(found.valid_SMT[0, m].sum()) == len(rewards)
        assert found.reward_SMT[0, m].sum().item() == pytest.approx(sum(rewards))
        assert found.bankrupt_SM[0, m].item() == (balance < 0)
        assert found.final_balance_SM[0, m].item() == balance
        assert found.last_SMT[0, m].sum().item() == 1


# --- Losses ---------------------------------------------------------------------------------------


def test_the_conservative_loss_gives_the_worked_example():
    score_NK, action_N = torch.tensor([[1.0, 2.0]]), torch.tensor([0])
    loss = compute_conservative_loss(score_NK, action_N, torch.tensor([1.5]), alpha=1.0)
    assert loss.squared_error.item() == pytest.approx(0.25)
    assert loss.conservative.item() == pytest.approx(1.313262, abs=1e-6)
    assert loss.total.item() == pytest.approx(1.563262, abs=1e-6)


def test_alpha_weighs_the_conservative_term_alone():
    score_NK, action_N = torch.tensor([[1.0, 2.0], [0.5, -1.0]]), torch.tensor([0, 1])
    target_N = torch.tensor([1.5, 0.0])
    plain = compute_conservative_loss(score_NK, action_N, target_N, alpha=0.0)
    both = compute_conservative_loss(score_NK, action_N, target_N, alpha=0.3)
    torch.testing.assert_close(plain.total, plain.squared_error)
    torch.testing.assert_close(both.total, plain.squared_error + 0.3 * both.conservative)


def test_the_conservative_term_lowers_what_the_log_did_not_choose():
    score_NK = torch.tensor([[1.0, 2.0, 0.0]], requires_grad=True)
    loss = compute_conservative_loss(score_NK, torch.tensor([1]), torch.tensor([2.0]), alpha=1.0)
    (gradient_NK,) = torch.autograd.grad(loss.total, score_NK)
    assert (gradient_NK[0, [0, 2]] > 0).all()
    assert gradient_NK[0, 1] < 0


def test_targets_look_one_turn_ahead_and_not_beyond_the_end():
    reward_N = torch.tensor([0.5, -4.5])
    next_score_NK = torch.tensor([[1.0, 3.0], [7.0, 9.0]], requires_grad=True)
    target_N = compute_bootstrapped_targets(
        reward_N, next_score_NK, torch.tensor([False, True]), DISCOUNT
    )
    assert target_N.tolist() == pytest.approx([0.5 + 0.99 * 3.0, -4.5])
    assert not target_N.requires_grad


def test_cloning_is_the_cross_entropy_of_the_logged_executor():
    score_NK = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    loss = compute_cloning_loss(score_NK, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(1.313262 + math.log(2), abs=1e-6)


def test_polyak_moves_a_share_of_the_way():
    target, online = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    expected = target.weight + 0.25 * (online.weight - target.weight)
    blend_towards(target, online, 0.25)
    torch.testing.assert_close(target.weight, expected)


# --- Inference ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cost_weight", "chosen"), [(0.0, 1), (5e-4, 1), (1e-3, 1), (1.1e-3, 1), (1.2e-3, 0)]
)
def test_the_sweep_gives_the_worked_example(cost_weight, chosen):
    score_NK, cost_K = torch.tensor([[1.0, 2.0]]), torch.tensor([100.0, 1000.0])
    assert choose_at_cost_weight(score_NK, cost_K, cost_weight).tolist() == [chosen]


def test_the_sweep_switches_at_one_nine_hundredth_and_ties_go_to_the_cheaper():
    score_NK, cost_K = torch.tensor([[1.0, 2.0]]), torch.tensor([100.0, 1000.0])
    assert choose_at_cost_weight(score_NK, cost_K, 1 / 900 - 1e-9).item() == 1
    assert choose_at_cost_weight(score_NK, cost_K, 1 / 900 + 1e-9).item() == 0
    even_NK = torch.tensor([[3.0, 3.0]])
    assert choose_at_cost_weight(even_NK, cost_K, 0.0).item() == 0


@given(
    st.lists(st.floats(-5, 5, allow_nan=False), min_size=3, max_size=3),
    st.floats(0, 1, allow_nan=False),
    st.floats(0, 1, allow_nan=False),
)
def test_a_greater_cost_weight_never_chooses_a_dearer_executor(scores, first, second):
    score_NK, cost_K = torch.tensor([scores]), torch.tensor([1.0, 3.0, 10.0])
    low, high = sorted((first, second))
    patient = choose_at_cost_weight(score_NK, cost_K, low).item()
    thrifty = choose_at_cost_weight(score_NK, cost_K, high).item()
    assert thrifty <= patient
