"""Learning from logs: pseudo-rewards by hand, and unbiased over all logs that could have been."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from rlroute.algorithms.losses import compute_expected_loss
from rlroute.algorithms.off_policy import (
    compute_pairwise_conservative_loss,
    compute_pseudo_rewards,
    compute_self_normalised_loss,
    compute_weights,
)

REWARD_QK = np.array([[1.0, 0.2, 0.0], [0.0, 0.9, 0.4]], dtype=np.float32)
BEHAVIOUR_QK = np.array([[0.5, 0.25, 0.25], [0.1, 0.3, 0.6]], dtype=np.float32)
MODEL_QK = np.array([[0.8, 0.1, 0.3], [0.2, 0.7, 0.5]], dtype=np.float32)


def make_log(picks: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The rewards and propensities that a log of these picks holds."""
    picked_QK = np.zeros(REWARD_QK.shape, dtype=bool)
    picked_QK[np.arange(len(picks)), picks] = True
    blank = np.float32(np.nan)
    return np.where(picked_QK, REWARD_QK, blank), np.where(picked_QK, BEHAVIOUR_QK, blank)


def list_logs() -> list[tuple[float, np.ndarray, np.ndarray]]:
    """All logs with their probabilities."""
    logs = []
    for picks in itertools.product(range(3), repeat=2):
        chance = math.prod(float(BEHAVIOUR_QK[q, k]) for q, k in enumerate(picks))
        logs.append((chance, *make_log(picks)))
    return logs


def compute_gradient(logits_QK: torch.Tensor, reward_QK: np.ndarray) -> torch.Tensor:
    logits_QK = logits_QK.clone().requires_grad_()
    logp_QK = logits_QK.log_softmax(dim=-1)
    (gradient,) = torch.autograd.grad(
        compute_expected_loss(logp_QK, torch.as_tensor(reward_QK)), logits_QK
    )
    return gradient


def test_pseudo_rewards_are_those_computed_by_hand() -> None:
    reward_QK, propensity_QK = make_log((1, 2))
    weight_QK = compute_weights(propensity_QK, None)
    assert weight_QK == pytest.approx(np.array([[0, 4, 0], [0, 0, 1 / 0.6]]), rel=1e-6)
    ips_QK = compute_pseudo_rewards(reward_QK, weight_QK)
    assert ips_QK == pytest.approx(np.array([[0, 0.8, 0], [0, 0, 0.4 / 0.6]]), rel=1e-6)
    robust_QK = compute_pseudo_rewards(reward_QK, weight_QK, MODEL_QK)
    wanted_QK = MODEL_QK.copy()
    wanted_QK[0, 1] += 4 * (0.2 - 0.1)
    wanted_QK[1, 2] += (0.4 - 0.5) / 0.6
    assert robust_QK == pytest.approx(wanted_QK, rel=1e-5)


def test_a_weight_limit_clips_the_inverse_propensities() -> None:
    _, propensity_QK = make_log((1, 0))
    assert compute_weights(propensity_QK, 5.0).max() == 5.0
    assert compute_weights(propensity_QK, None).max() == pytest.approx(10.0)


@pytest.mark.parametrize("model_QK", [None, MODEL_QK, np.zeros_like(MODEL_QK) + 7])
def test_the_gradient_over_all_logs_is_the_exact_expected_gradient(model_QK) -> None:
    logits_QK = torch.tensor([[0.3, -0.2, 0.1], [0.0, 0.5, -1.0]])
    exact_QK = compute_gradient(logits_QK, REWARD_QK)
    mean_QK = torch.zeros_like(exact_QK)
    for chance, reward_QK, propensity_QK in list_logs():
        weight_QK = compute_weights(propensity_QK, None)
        pseudo_QK = compute_pseudo_rewards(reward_QK, weight_QK, model_QK)
        mean_QK += chance * compute_gradient(logits_QK, pseudo_QK)
    assert torch.allclose(mean_QK, exact_QK, atol=1e-6)


def test_with_a_right_model_wrong_propensities_do_no_harm() -> None:
    logits_QK = torch.tensor([[0.3, -0.2, 0.1], [0.0, 0.5, -1.0]])
    exact_QK = compute_gradient(logits_QK, REWARD_QK)
    mean_QK = torch.zeros_like(exact_QK)
    for chance, reward_QK, propensity_QK in list_logs():
        wrong_QK = compute_weights(propensity_QK * 0.5, None)
        pseudo_QK = compute_pseudo_rewards(reward_QK, wrong_QK, REWARD_QK)
        mean_QK += chance * compute_gradient(logits_QK, pseudo_QK)
    assert torch.allclose(mean_QK, exact_QK, atol=1e-6)


def test_a_fair_model_lowers_the_variance_of_the_gradient() -> None:
    logits_QK = torch.tensor([[0.3, -0.2, 0.1], [0.0, 0.5, -1.0]])
    exact_QK = compute_gradient(logits_QK, REWARD_QK)
    variance = {}
    for name, model_QK in (("ips", None), ("doubly robust", MODEL_QK)):
        variance[name] = sum(
            chance
            * float(
                (
                    compute_gradient(
                        logits_QK,
                        compute_pseudo_rewards(
                            reward_QK, compute_weights(propensity_QK, None), model_QK
                        ),
                    )
                    - exact_QK
                )
                .square()
                .sum()
            )
            for chance, reward_QK, propensity_QK in list_logs()
        )
    assert variance["doubly robust"] < 0.25 * variance["ips"]


def test_snips_is_the_ratio_of_the_worked_example_and_blind_to_a_constant() -> None:
    # weights 2, 4, 0, 0 and rewards 1, 1: earned 6 of 6 (metrics, section 8)
    weight_NK = torch.tensor([[2.0, 0.0], [0.0, 4.0], [0.0, 0.0], [0.0, 0.0]])
    reward_NK = torch.tensor([[1.0, math.nan], [math.nan, 1.0], [math.nan] * 2, [math.nan] * 2])
    sure_NK = torch.tensor([[0.0, -30.0], [-30.0, 0.0], [0.0, -30.0], [0.0, -30.0]])
    loss = compute_self_normalised_loss(sure_NK.log_softmax(1), reward_NK, weight_NK)
    assert float(loss) / 4 == pytest.approx(-1.0)
    logits_NK = torch.tensor([[0.4, -0.1]] * 4, requires_grad=True)
    one, other = (
        torch.autograd.grad(
            compute_self_normalised_loss(
                logits_NK.log_softmax(1), reward_NK * torch.tensor([[1.0, 0.5]]) + shift, weight_NK
            ),
            logits_NK,
        )[0]
        for shift in (0.0, 3.0)
    )
    assert torch.allclose(one, other, atol=1e-5)
    assert one.abs().max() > 0.01


def test_snips_without_weight_is_zero() -> None:
    logp_NK = torch.zeros(2, 2, requires_grad=True).log_softmax(1)
    loss = compute_self_normalised_loss(logp_NK, torch.full((2, 2), math.nan), torch.zeros(2, 2))
    loss.backward()
    assert float(loss) == 0.0


def test_the_conservative_loss_is_that_of_the_worked_example() -> None:
    # Q = (1, 2), logged 0, reward 1.5, alpha 1: .25 + 1.313262
    loss = compute_pairwise_conservative_loss(
        torch.tensor([[1.0, 2.0]]),
        torch.tensor([[1.5, math.nan]]),
        torch.tensor([[True, False]]),
        alpha=1.0,
    )
    assert float(loss) == pytest.approx(1.563262, abs=1e-6)
