from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlroute.rewards.base import Outcomes, RewardStack, collect_outcomes
from rlroute.rewards.cost import CostTerm
from rlroute.rewards.outcome import OutcomeTerm
from rlroute.types import Call, FailureKind, Query, Reply

CALL = Call("a", Query("q", "text"), "text")
STACK = RewardStack((OutcomeTerm(), CostTerm(reference_usd=0.004)))
NAN = np.float32(np.nan)


def score(*replies: Reply) -> dict[str, np.ndarray]:
    return STACK.score(collect_outcomes(replies))


def test_gold_scores_one_empty_scores_zero_and_a_failed_call_is_undefined():
    terms = score(
        Reply(CALL, score=1.0, cost_usd=0.002),
        Reply(CALL, score=0.0, cost_usd=0.0),
        Reply(CALL, failure=FailureKind.SERVER),
    )
    np.testing.assert_allclose(terms["outcome"], [1, 0, np.nan])
    np.testing.assert_allclose(terms["cost"], [0.5, 0, np.nan])


@pytest.mark.parametrize("failure", list(FailureKind))
@pytest.mark.parametrize("billed", [0.0, 0.001])
def test_no_failure_is_cheap_whatever_it_was_billed(failure, billed):
    terms = score(Reply(CALL, failure=failure, cost_usd=billed))
    assert np.isnan(terms["outcome"]).all()
    assert np.isnan(terms["cost"]).all()


def test_an_ungraded_reply_has_a_cost_and_no_outcome():
    terms = score(Reply(CALL, text="42", cost_usd=0.004))
    assert np.isnan(terms["outcome"][0])
    assert terms["cost"][0] == 1
    assert np.isnan(STACK.combine(terms, np.zeros(1, dtype=np.float32))).all()


def test_an_undefined_term_makes_the_reward_undefined_even_at_weight_zero():
    terms = {"outcome": np.array([1, NAN, 1]), "cost": np.array([0.5, 0.5, NAN])}
    reward_N = STACK.combine(terms, np.zeros(3, dtype=np.float32))
    np.testing.assert_array_equal(np.isnan(reward_N), [False, True, True])


@given(outcome=st.floats(0, 1, width=32), cost=st.floats(0, 4, width=32), weight=st.floats(0, 9))
def test_the_reward_is_outcome_minus_weighed_cost(outcome, cost, weight):
    terms = {"outcome": np.float32([outcome]), "cost": np.float32([cost])}
    reward_1 = STACK.combine(terms, np.array([weight], dtype=np.float32))
    assert reward_1.dtype == np.float32
    assert reward_1[0] == pytest.approx(outcome - weight * cost, abs=1e-5)


def test_terms_of_every_candidate_combine_with_one_cost_weight_per_query():
    terms = {
        "outcome": np.float32([[1, 0, np.nan], [1, 1, 1]]),
        "cost": np.float32([[1, 0.5, np.nan], [1, 0.5, 0]]),
    }
    reward_BK = STACK.combine(terms, np.float32([[1], [2]]))
    np.testing.assert_allclose(reward_BK, [[0, -0.5, np.nan], [-1, 0, 1]])


def test_terms_do_not_touch_each_other_and_keep_their_order():
    outcomes = Outcomes(np.float32([1]), np.float32([0.002]), np.array([False]))
    assert list(STACK.score(outcomes)) == ["outcome", "cost"]


@pytest.mark.parametrize("reference", [0.0, -1.0, float("nan")])
def test_a_cost_reference_must_be_positive(reference):
    with pytest.raises(ValueError, match="above 0"):
        CostTerm(reference_usd=reference)
