from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rlroute.algorithms.advantages import (
    compute_gae,
    compute_group_advantages,
    compute_normalised_sum_advantages,
    compute_rloo_advantages,
    normalise_advantages,
)

NAN = math.nan
DIGITS = {"atol": 5e-5, "rtol": 0.0}  # Router-R1's worked numbers have four decimals


def gae(reward, value, valid=None, terminated=True, bootstrap=0.0, discount=0.9, gae_lambda=0.8):
    reward_BT = torch.tensor([reward])
    valid_BT = torch.tensor([valid or [True] * len(reward)])
    return compute_gae(
        reward_BT,
        torch.tensor([value]),
        valid_BT,
        torch.tensor([terminated]),
        torch.tensor([bootstrap]),
        discount,
        gae_lambda,
    )


def test_gae_of_one_step_is_reward_minus_value():
    adv_BT, return_BT = gae([0.7], [0.5])
    torch.testing.assert_close(adv_BT, torch.tensor([[0.2]]))
    torch.testing.assert_close(return_BT, torch.tensor([[0.7]]))


def test_gae_equals_its_closed_form_over_three_steps():
    # deltas: 1 + .9*2 - 1 = 1.8;  0 + .9*3 - 2 = .7;  4 - 3 = 1;  decay .9 * .8 = .72
    adv_BT, return_BT = gae([1.0, 0.0, 4.0], [1.0, 2.0, 3.0])
    expected = torch.tensor([[1.8 + 0.72 * 0.7 + 0.72**2 * 1.0, 0.7 + 0.72 * 1.0, 1.0]])
    torch.testing.assert_close(adv_BT, expected)
    torch.testing.assert_close(return_BT, expected + torch.tensor([[1.0, 2.0, 3.0]]))


def test_a_truncated_episode_goes_on_in_the_bootstrap_value_and_a_terminated_one_does_not():
    truncated, _ = gae([1.0], [0.5], terminated=False, bootstrap=10.0)
    torch.testing.assert_close(truncated, torch.tensor([[1 + 0.9 * 10 - 0.5]]))
    terminated, _ = gae([1.0], [0.5], terminated=True, bootstrap=10.0)
    torch.testing.assert_close(terminated, torch.tensor([[0.5]]))


def test_padding_changes_nothing_and_gets_nothing():
    short, short_return = gae([1.0, 2.0], [0.5, 0.5], terminated=False, bootstrap=3.0)
    padded, padded_return = gae(
        [1.0, 2.0, 99.0], [0.5, 0.5, 77.0], [True, True, False], terminated=False, bootstrap=3.0
    )
    torch.testing.assert_close(padded[:, :2], short)
    torch.testing.assert_close(padded_return[:, :2], short_return)
    assert padded[0, 2] == 0
    assert padded_return[0, 2] == 0


@pytest.mark.parametrize("gae_lambda", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("discount", [0.9, 1.0])
@pytest.mark.parametrize("terminated", [True, False])
def test_environment_tokens_between_policy_tokens_are_skipped_as_one_transition(
    gae_lambda, discount, terminated
):
    options = {"terminated": terminated, "bootstrap": 3.0}
    options |= {"discount": discount, "gae_lambda": gae_lambda}
    compact, compact_return = gae([0.25, 1.0], [0.5, 0.75], **options)
    for junk in (77.0, NAN):
        holed, holed_return = gae(
            [0.25, junk, 1.0], [0.5, junk, 0.75], [True, False, True], **options
        )
        torch.testing.assert_close(holed[:, [0, 2]], compact)
        torch.testing.assert_close(holed_return[:, [0, 2]], compact_return)
        assert holed[0, 1] == 0


def test_a_mask_of_one_zero_one_in_numbers():
    # last step: 1 - .75 = .25; first: .25 + .9 * .75 - .5 + .9 * .8 * .25 = .605
    adv_BT, return_BT = gae([0.25, 9.0, 1.0], [0.5, 9.0, 0.75], [True, False, True])
    torch.testing.assert_close(adv_BT, torch.tensor([[0.605, 0.0, 0.25]]))
    torch.testing.assert_close(return_BT[:, [0, 2]], torch.tensor([[1.105, 1.0]]))


@given(
    reward_T=arrays(np.float64, 9, elements=st.floats(-5, 5)),
    value_T=arrays(np.float64, 9, elements=st.floats(-5, 5)),
    valid_T=arrays(np.bool_, 9),
    gae_lambda=st.floats(0, 1),
)
def test_gae_over_any_mask_is_that_of_the_compacted_row(reward_T, value_T, valid_T, gae_lambda):
    if not valid_T.any():
        return
    options = {"terminated": False, "bootstrap": 0.5, "gae_lambda": gae_lambda}
    whole, _ = gae(reward_T.tolist(), value_T.tolist(), valid_T.tolist(), **options)
    compact, _ = gae(reward_T[valid_T].tolist(), value_T[valid_T].tolist(), **options)
    torch.testing.assert_close(whole[:, torch.from_numpy(valid_T)], compact)
    assert (whole[:, torch.from_numpy(~valid_T)] == 0).all()


def test_lambda_one_without_discount_gives_the_return_to_go():
    _, return_BT = gae([1.0, 2.0, 3.0], [9.0, -4.0, 2.5], discount=1.0, gae_lambda=1.0)
    torch.testing.assert_close(return_BT, torch.tensor([[6.0, 5.0, 3.0]]))


def test_group_advantages_are_deviations_from_the_mean_of_the_group():
    adv_NG, valid_NG = compute_group_advantages(
        torch.tensor([[1.0, 0.0, 0.5, 0.5], [2.0, 2.0, 2.0, 6.0]]), scale_by_std=False
    )
    expected = torch.tensor([[0.5, -0.5, 0.0, 0.0], [-1.0, -1.0, -1.0, 3.0]])
    torch.testing.assert_close(adv_NG, expected)
    assert valid_NG.all()


def test_scaling_divides_by_the_standard_deviation_of_the_sample():
    adv_NG, _ = compute_group_advantages(torch.tensor([[1.0, 2.0, 3.0]]), scale_by_std=True)
    torch.testing.assert_close(adv_NG, torch.tensor([[-1.0, 0.0, 1.0]]) / (1 + 1e-4))


def test_a_group_of_equal_rewards_has_no_advantage():
    for scale in (False, True):
        adv_NG, _ = compute_group_advantages(torch.full((1, 4), 0.3), scale_by_std=scale)
        torch.testing.assert_close(adv_NG, torch.zeros(1, 4), atol=1e-3, rtol=0)


def test_an_undefined_member_leaves_mean_and_std():
    whole, _ = compute_group_advantages(torch.tensor([[1.0, 2.0, 3.0]]), scale_by_std=True)
    holed, valid_NG = compute_group_advantages(
        torch.tensor([[1.0, NAN, 2.0, 3.0]]), scale_by_std=True
    )
    torch.testing.assert_close(holed[:, [0, 2, 3]], whole)
    assert holed[0, 1] == 0
    assert valid_NG.tolist() == [[True, False, True, True]]


@pytest.mark.parametrize("reward", [[NAN, NAN, 5.0], [NAN, NAN, NAN]])
def test_a_group_with_fewer_than_two_rewards_has_nothing_to_compare(reward):
    for compute in (
        lambda reward_NG: compute_group_advantages(reward_NG, scale_by_std=False),
        lambda reward_NG: compute_group_advantages(reward_NG, scale_by_std=True),
        compute_rloo_advantages,
    ):
        adv_NG, valid_NG = compute(torch.tensor([reward]))
        assert adv_NG.tolist() == [[0, 0, 0]]
        assert not valid_NG.any()


def test_leave_one_out_compares_with_the_mean_of_the_others():
    adv_NG, _ = compute_rloo_advantages(torch.tensor([[1.0, 2.0, 6.0]]))
    torch.testing.assert_close(adv_NG, torch.tensor([[1 - 4, 2 - 3.5, 6 - 1.5]]))
    holed, valid_NG = compute_rloo_advantages(torch.tensor([[1.0, NAN, 2.0, 6.0]]))
    torch.testing.assert_close(holed[:, [0, 2, 3]], adv_NG)
    assert valid_NG.tolist() == [[True, False, True, True]]


@given(
    reward_NG=arrays(np.float32, (3, 5), elements=st.floats(-10, 10, width=32)),
    hole_NG=arrays(np.bool_, (3, 5)),
    scale=st.booleans(),
)
def test_group_advantages_sum_to_zero_and_are_always_numbers(reward_NG, hole_NG, scale):
    reward_NG = torch.from_numpy(np.where(hole_NG, np.float32(np.nan), reward_NG)).double()
    for adv_NG, valid_NG in (
        compute_group_advantages(reward_NG, scale_by_std=scale),
        compute_rloo_advantages(reward_NG),
    ):
        assert adv_NG.isfinite().all()
        assert (adv_NG[~valid_NG] == 0).all()
        torch.testing.assert_close(adv_NG.sum(dim=1), torch.zeros(3).double(), atol=1e-9, rtol=0)


@given(shift=st.floats(-5, 5, width=32))
def test_a_constant_added_to_all_rewards_of_a_group_changes_no_advantage(shift):
    reward_NG = torch.tensor([[0.1, 0.9, 0.4, 0.0]]).double()
    for compute in (
        lambda value: compute_group_advantages(value, scale_by_std=True)[0],
        lambda value: compute_rloo_advantages(value)[0],
    ):
        torch.testing.assert_close(compute(reward_NG), compute(reward_NG + shift))


def test_terms_normalised_apart_add_up_by_their_weights():
    # (1, 2, 3): mean 2, std 1;  (0, 0, 6): mean 2, std sqrt(12)
    terms_TNG = torch.tensor([[[1.0, 2.0, 3.0]], [[0.0, 0.0, 6.0]]]).double()
    weight_TNG = torch.tensor([[[0.4]], [[0.6]]]).double()
    adv_NG, valid_NG = compute_normalised_sum_advantages(terms_TNG, weight_TNG, epsilon=0.0)
    small = -2 / math.sqrt(12) * 0.6
    expected = torch.tensor([[-0.4 + small, small, 0.4 - 2 * small]]).double()
    torch.testing.assert_close(adv_NG, expected)
    assert valid_NG.all()


def test_one_normalised_term_is_the_scaled_group_advantage():
    reward_NG = torch.tensor([[1.0, 0.4, 0.0, -1.0], [1.0, NAN, 0.0, 0.0]])
    alone, valid_NG = compute_normalised_sum_advantages(reward_NG[None], torch.ones(1, 1, 1))
    scaled, expected_NG = compute_group_advantages(reward_NG, scale_by_std=True)
    torch.testing.assert_close(alone, scaled)
    assert torch.equal(valid_NG, expected_NG)


def test_a_term_that_is_equal_in_the_group_moves_nothing():
    outcome_NG = torch.tensor([[1.0, 0.0, 1.0]])
    terms_TNG = torch.stack([outcome_NG, torch.full((1, 3), 0.5)])
    both, _ = compute_normalised_sum_advantages(terms_TNG, torch.ones(2, 1, 1))
    alone, _ = compute_normalised_sum_advantages(outcome_NG[None], torch.ones(1, 1, 1))
    torch.testing.assert_close(both, alone)


def test_a_group_with_fewer_than_two_whole_members_is_undefined():
    terms_TNG = torch.tensor([[[1.0, 2.0, NAN]], [[0.0, NAN, 1.0]]])
    adv_NG, valid_NG = compute_normalised_sum_advantages(terms_TNG, torch.ones(2, 1, 1))
    assert adv_NG.tolist() == [[0, 0, 0]]
    assert not valid_NG.any()


@given(
    terms_TNG=arrays(np.float32, (2, 3, 4), elements=st.floats(-3, 3, width=32)),
    weight_TNG=arrays(np.float32, (2, 3, 4), elements=st.floats(0, 1, width=32)),
    hole=st.tuples(st.integers(0, 1), st.integers(0, 3)),
    junk=st.floats(-9, 9, width=32),
)
def test_a_dropped_member_changes_nothing_for_the_others(terms_TNG, weight_TNG, hole, junk):
    term, member = hole
    terms_TNG, weight_TNG = (torch.from_numpy(array).double() for array in (terms_TNG, weight_TNG))
    others = [index for index in range(4) if index != member]
    expected, _ = compute_normalised_sum_advantages(terms_TNG[..., others], weight_TNG[..., others])
    terms_TNG[1 - term, :, member] = junk
    terms_TNG[term, :, member] = NAN
    weight_TNG[..., member] = NAN
    adv_NG, valid_NG = compute_normalised_sum_advantages(terms_TNG, weight_TNG)
    torch.testing.assert_close(adv_NG[:, others], expected)
    assert (adv_NG[:, member] == 0).all()
    assert not valid_NG[:, member].any()
    assert valid_NG[:, others].all()


@given(
    outcome_NG=arrays(np.float64, (2, 4), elements=st.sampled_from([0.0, 0.25, 0.5, 1.0])),
    cost_NG=arrays(np.float64, (2, 4), elements=st.sampled_from([0.0, 0.125, 0.75, 1.0])),
    factor=st.floats(0.01, 100),
    shift=st.floats(-10, 10),
)
def test_the_unit_and_the_zero_of_a_term_do_not_matter(outcome_NG, cost_NG, factor, shift):
    weight_TNG = torch.tensor([0.4, 0.6]).double().reshape(2, 1, 1)
    plain, moved = (
        compute_normalised_sum_advantages(
            torch.from_numpy(np.stack([outcome_NG, cost])), weight_TNG, epsilon=1e-9
        )[0]
        for cost in (cost_NG, factor * cost_NG + shift)
    )
    torch.testing.assert_close(plain, moved, atol=1e-4, rtol=0)


def test_normalisation_takes_the_statistics_it_is_given():
    adv = normalise_advantages(torch.tensor([1.0, 3.0]), torch.tensor(1.0), torch.tensor(2.0))
    torch.testing.assert_close(adv, torch.tensor([0.0, 1.0]))


# --- Router-R1's worked numbers -------------------------------------------------------------------


def compute_router_r1_advantages():
    """Return the raw advantages [2, 3] and returns of its two sequences: rewards 1 and -1."""
    return compute_gae(
        torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]]),
        torch.tensor([[0.2, 0.4, 0.6], [0.0, 0.0, 0.0]]),
        torch.ones(2, 3, dtype=torch.bool),
        torch.tensor([True, True]),
        torch.zeros(2),
        1.0,
        1.0,
    )


def test_router_r1s_worked_returns_and_raw_advantages():
    adv_BT, return_BT = compute_router_r1_advantages()
    torch.testing.assert_close(return_BT, torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]]))
    torch.testing.assert_close(adv_BT, torch.tensor([[0.8, 0.6, 0.4], [-1.0, -1.0, -1.0]]))


def test_router_r1s_worked_whitened_advantages_with_its_unbiased_variance():
    adv_BT, _ = compute_router_r1_advantages()
    whitened_BT = normalise_advantages(adv_BT, adv_BT.mean(), adv_BT.std())
    expected = torch.tensor([[1.1294, 0.9035, 0.6776], [-0.9035, -0.9035, -0.9035]])
    torch.testing.assert_close(whitened_BT, expected, **DIGITS)


def test_the_trainers_variance_divides_by_n_where_router_r1s_divides_by_n_minus_1():
    # a factor of sqrt(N / (N - 1)): 1.095 for these six tokens, 1.0001 for 5,000
    targets = pytest.importorskip("rlroute.trainers.targets", reason="the extra `train` is absent")
    adv_BT, _ = compute_router_r1_advantages()
    alone = SimpleNamespace(accelerator=SimpleNamespace(reduce=lambda value, reduction: value))
    mean, std = targets.compute_moments(alone, adv_BT, torch.ones(2, 3, dtype=torch.bool))
    whitened_BT = normalise_advantages(adv_BT, mean, std)
    expected = torch.tensor([[1.1294, 0.9035, 0.6776], [-0.9035, -0.9035, -0.9035]])
    torch.testing.assert_close(whitened_BT, expected * math.sqrt(6 / 5), atol=6e-5, rtol=0.0)


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        ([1.0, 0.4, 0.0, -1.0], [1.0706, 0.3569, -0.1190, -1.3085]),
        ([1.0, 0.0], [0.7071, -0.7071]),
        ([0.4, 0.4, 0.4], [0.0, 0.0, 0.0]),
    ],
)
def test_router_r1s_worked_group_advantages_with_its_epsilon(reward, expected):
    adv_NG, _ = compute_group_advantages(
        torch.tensor([reward], dtype=torch.float64), scale_by_std=True, epsilon=1e-6
    )
    torch.testing.assert_close(adv_NG, torch.tensor([expected], dtype=torch.float64), **DIGITS)


def test_the_greater_epsilon_here_shrinks_router_r1s_worked_numbers_by_its_share_of_the_std():
    reward_NG = torch.tensor([[1.0, 0.4, 0.0, -1.0]])  # standard deviation 0.8406
    adv_NG, _ = compute_group_advantages(reward_NG, scale_by_std=True)
    expected = torch.tensor([[1.0706, 0.3569, -0.1190, -1.3085]]) * 0.8406 / (0.8406 + 1e-4)
    torch.testing.assert_close(adv_NG, expected, **DIGITS)
    assert abs(adv_NG[0, 0] - 1.0706) > 1e-4


def test_a_group_of_one_is_undefined_where_router_r1_keeps_its_raw_reward():
    # a raw reward beside deviations from means would push whatever was sampled up, right or wrong
    for scale in (False, True):
        adv_NG, valid_NG = compute_group_advantages(torch.tensor([[0.7]]), scale_by_std=scale)
        assert adv_NG.tolist() == [[0.0]]
        assert valid_NG.tolist() == [[False]]
