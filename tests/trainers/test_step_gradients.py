"""Who is learnt from in many-step episodes, and by which gradient, worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from step_groups import (
    EXECUTORS_KD,
    STEPS,
    combine,
    compute,
    compute_gradient_by_hand,
    find_gradient,
    make_batch,
    make_grpo,
    make_recipe,
    make_scorer,
    score_by_hand,
)

from rlroute.types import FORCED, MEMBER, REFERENCE


def test_an_episodes_advantage_goes_to_all_its_decisions_and_every_decision_weighs_alike():
    # lengths 5, 2, 3 and 1: the sum over 11 decisions is divided by 11, not by episode
    batch = make_batch(
        (1, 0, 1, 0), (0.2, 0, 0.9, 0), group=2, lengths=(5, 2, 3, 1), references=(0, 0.9)
    )
    recipe = make_grpo()
    adv_B, valid_B = compute(recipe, batch)
    expected = compute_gradient_by_hand(batch, adv_B, valid_B, np.zeros(4, dtype=np.bool_))
    found, metrics = find_gradient(recipe, batch)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert metrics["policy/grad_norm"] == pytest.approx(np.linalg.norm(expected), abs=1e-6)
    assert metrics["policy/kl"] == pytest.approx(0, abs=1e-6)


def test_decisions_without_a_choice_have_exactly_no_gradient():
    mask_BTK = np.ones((4, STEPS, 2), dtype=np.bool_)
    mask_BTK[:, 2:, 1] = False  # the budget is spent after two steps
    batch = make_batch(
        (1, 0, 1, 0), (0.2, 0, 0.9, 0), group=2, mask_BTK=mask_BTK, references=(0, 0.9)
    )
    found, _ = find_gradient(make_grpo(), batch)
    changed_BTF = batch.features_BTF.copy()
    changed_BTF[:, 2:] = 1e3  # what they saw is not learnt from
    again, _ = find_gradient(make_grpo(), replace(batch, features_BTF=changed_BTF))
    np.testing.assert_array_equal(found, again)
    adv_B, valid_B = compute(make_grpo(), batch)
    expected = compute_gradient_by_hand(batch, adv_B, valid_B, np.zeros(4, dtype=np.bool_))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    only = np.zeros_like(mask_BTK)
    only[..., 0] = True
    nothing = make_batch((1, 0, 1, 0), (0.2, 0, 0.9, 0), group=2, mask_BTK=only)
    for algorithm in (
        {"kind": "grpo", "group_size": 2, "episodes": 4},
        {"kind": "ppo", "episodes": 4},
    ):
        found, metrics = find_gradient(make_recipe(algorithm), nothing)
        assert (found == 0).all()
        assert metrics["policy/loss"] == 0


def test_forced_episodes_have_exactly_no_gradient_though_they_move_the_mean():
    roles = [MEMBER, MEMBER, FORCED, FORCED]
    batch = make_batch((1, 0, 0, 1), (0.2, 0, 0, 1), group=4, roles=roles)
    recipe = make_grpo(forced_arms=True, baseline="group")
    found, _ = find_gradient(recipe, batch)
    changed_BTF = batch.features_BTF.copy()
    changed_BTF[2:] = 1e3
    again, _ = find_gradient(recipe, replace(batch, features_BTF=changed_BTF))
    np.testing.assert_array_equal(found, again)
    adv_B, _ = compute(recipe, batch)
    learnt_B = np.array([True, True, False, False])
    expected = compute_gradient_by_hand(batch, adv_B, learnt_B, np.zeros(4, dtype=np.bool_))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_reference_above_the_mean_is_learnt_from_by_its_shaped_probability():
    roles = [MEMBER, MEMBER, REFERENCE]
    batch = make_batch(
        (0, 0, 1), (0.1, 0.3, 1.0), group=3, roles=roles, lengths=(5, 3, 4), references=(0, 0.9)
    )
    recipe = make_grpo(reference_rollout=True)
    adv_B, valid_B = compute(recipe, batch)
    static_B = np.array([False, False, True])
    expected = compute_gradient_by_hand(batch, adv_B, valid_B, static_B)
    found, _ = find_gradient(recipe, batch)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_reference_that_does_not_count_is_not_among_the_decisions():
    roles = [MEMBER, MEMBER, REFERENCE]
    batch = make_batch((1, 0, 0), (0.1, 0, 1), group=3, roles=roles, references=(0, 0.9))
    members = make_batch((1, 0), (0.1, 0), group=2, references=(0, 0.9))
    members = replace(members, features_BTF=batch.features_BTF[:2], action_BT=batch.action_BT[:2])
    found, _ = find_gradient(make_grpo(reference_rollout=True), batch)
    alone, _ = find_gradient(make_grpo(), members)
    np.testing.assert_allclose(found, alone, atol=1e-7)


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 100])
@pytest.mark.parametrize("kind", ["grpo", "ppo", "rloo"])
def test_passes_of_a_few_rows_change_no_gradient(micro_batch, kind):
    batch = make_batch(
        *((1, 0, 1, 0, 0, 1), (0.2, 0, 0.9, 0, 0, 0.3)),
        **{"group": 3, "lengths": (5, 2, 3, 1, 4, 5), "references": (0, 0.9)},
        **({"roles": [MEMBER, MEMBER, REFERENCE] * 2} if kind == "grpo" else {}),
    )
    fields = {"kind": kind, "kl_weight": 0.1}
    if kind != "ppo":
        fields |= {"group_size": 3, "episodes": 6}
    if kind == "grpo":
        fields |= {"group_size": 2, "episodes": 4, "reference_rollout": True}
    recipe = make_recipe(fields | {"epochs": 2, "minibatches": 2})
    whole, metrics = find_gradient(recipe, batch, reference=make_scorer(1))
    parted, again = find_gradient(recipe, batch, micro_batch=micro_batch, reference=make_scorer(1))
    np.testing.assert_allclose(parted, whole, atol=1e-6)
    assert again == pytest.approx(metrics, rel=1e-5, abs=1e-6)
    assert np.abs(whole).max() > 1e-3


def test_the_kl_to_the_warm_start_is_measured_and_pulls_back():
    batch = make_batch((1, 1), (0.2, 0.2), group=2, references=(0.5, 0.5))
    flat = replace(batch, ends=replace(batch.ends, reference_BR=batch.ends.reference_BR[:, :0]))
    frozen = make_scorer(1)
    recipe = make_grpo(kl_weight=0.5, baseline="group")
    found, metrics = find_gradient(recipe, flat, reference=frozen)
    own_BTK = score_by_hand(make_scorer(0).executor_tower.weight.detach().numpy(), batch)
    other_BTK = score_by_hand(frozen.executor_tower.weight.detach().numpy(), batch)[1]
    x_BTH, logp_BTK = own_BTK
    action_BT1 = batch.action_BT[..., None]
    log_ratio_BT = np.take_along_axis(other_BTK - logp_BTK, action_BT1, axis=2)[..., 0]
    assert metrics["policy/kl_ref"] == pytest.approx(
        (np.exp(log_ratio_BT) - 1 - log_ratio_BT).mean(), rel=1e-4
    )
    # advantages are 0, so all that is left is the gradient of 0.5 * (r - 1 - log r), by logp 1 - r
    expected = np.zeros_like(found)
    for b in range(2):
        for t in range(STEPS):
            p_K = np.exp(logp_BTK[b, t])
            slope = np.outer(x_BTH[b, t], EXECUTORS_KD[batch.action_BT[b, t]] - p_K @ EXECUTORS_KD)
            expected += 0.5 * (1 - np.exp(log_ratio_BT[b, t])) * slope / (2 * STEPS)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    own, metrics = find_gradient(recipe, flat, reference=make_scorer(0))
    assert metrics["policy/kl_ref"] == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(own, 0, atol=1e-6)


def test_ppo_learns_from_undelayed_choices_and_never_from_undefined_episodes():
    batch = make_batch((1, 0, np.nan, 1), (0.2, 0, 0, 0.5), group=1, lengths=(5, 2, 4, 3))
    recipe = make_recipe(
        {"kind": "ppo", "episodes": 4, "epochs": 1, "minibatches": 1, "normalise_advantages": False}
    )
    found, _ = find_gradient(recipe, batch)
    # no discount, values 0: every decision has its episode's reward as advantage
    reward_B = np.nan_to_num(combine(recipe, batch).numpy())
    learnt_B = np.array([True, True, False, True])
    expected = compute_gradient_by_hand(batch, reward_B, learnt_B, np.zeros(4, dtype=np.bool_))
    np.testing.assert_allclose(found, expected, atol=1e-6)
