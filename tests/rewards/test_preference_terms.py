"""The worked example of PersonalizedRouter's users, and the terms of latency and liking."""

from __future__ import annotations

import numpy as np
import pytest

from rlroute.data.users import from_effect_weight
from rlroute.rewards.base import Outcomes, RewardStack
from rlroute.rewards.cost import CostTerm
from rlroute.rewards.outcome import OutcomeTerm
from rlroute.rewards.preferences import BiasTerm, LatencyTerm
from rlroute.types import RLRouteError

ARMS = Outcomes(np.float32([0.9, 0.6]), np.float32([0.8, 0.1]), np.array([False, False]))
STACK = RewardStack((OutcomeTerm(), CostTerm(reference_usd=1.0)))


def score_arms(weight: float) -> np.ndarray:
    """Return `weight * effect - (1 - weight) * cost` of both arms by way of the cost weight."""
    user = from_effect_weight(weight)
    cost_weight_2 = np.full(2, user.cost_weight, np.float32)
    return weight * STACK.combine(STACK.score(ARMS), cost_weight_2)


def test_the_worked_example_of_users_who_weigh_effect_against_cost() -> None:
    # other-routers sheet, section 13: arms (.9, .8) and (.6, .1)
    assert score_arms(0.5) == pytest.approx([0.05, 0.25])
    assert score_arms(0.9) == pytest.approx([0.73, 0.53])
    one = Outcomes(np.float32([0.8]), np.float32([0.3]), np.array([False]))
    for weight, expected in ((0.2, -0.08), (0.5, 0.25), (1.0, 0.80)):
        cost_weight_1 = np.float32([from_effect_weight(weight).cost_weight])
        utility_1 = weight * STACK.combine(STACK.score(one), cost_weight_1)
        assert utility_1 == pytest.approx([expected])


def test_a_user_to_whom_the_effect_is_nothing_has_no_cost_weight() -> None:
    with pytest.raises(RLRouteError, match="above 0 and up to 1, not 0"):
        from_effect_weight(0)


def test_latency_and_liking_enter_with_their_own_weights() -> None:
    stack = RewardStack((OutcomeTerm(), CostTerm(2.0), LatencyTerm(10.0), BiasTerm()))
    outcomes = Outcomes(
        np.float32([1, 0.5]),
        np.float32([1, 2]),
        np.array([False, False]),
        latency_seconds_N=np.float32([5, 10]),
        bias_N=np.float32([0, 0.25]),
    )
    terms = stack.score(outcomes)
    found_2 = stack.combine(terms, np.float32([0.2, 0.2]), np.float32([0.4, 0.1]))
    # 1 - .2 * .5 - .4 * .5; .5 - .2 * 1 - .1 * 1 + .25
    assert found_2 == pytest.approx([0.7, 0.45])


def test_a_failed_call_is_neither_quick_nor_liked_and_an_unknown_latency_is_no_zero() -> None:
    stack = RewardStack((LatencyTerm(1.0), BiasTerm()))
    outcomes = Outcomes(
        np.float32([1, 1]),
        np.float32([0, 0]),
        np.array([True, False]),
        latency_seconds_N=np.float32([0.1, np.nan]),
        bias_N=np.float32([0.5, 0.5]),
    )
    terms = stack.score(outcomes)
    assert np.isnan(terms["latency"]).all()
    assert np.isnan(terms["bias"][0])
    reward_2 = stack.combine(terms, np.zeros(2, np.float32), np.zeros(2, np.float32))
    assert np.isnan(reward_2).all()


def test_a_latency_weight_goes_with_a_latency_term() -> None:
    terms = STACK.score(ARMS)
    one_2 = np.ones(2, np.float32)
    with pytest.raises(ValueError, match="neither alone"):
        STACK.combine(terms, one_2, one_2)
    timed = RewardStack((LatencyTerm(1.0),))
    with pytest.raises(ValueError, match="neither alone"):
        timed.combine({"latency": one_2}, one_2)
