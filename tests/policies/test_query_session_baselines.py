"""Rules that spend a session's budget, and the best that hindsight could do with it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlroute.policies.money_price import PriceCurve
from rlroute.policies.query_session_baselines import (
    Forecast,
    HindsightPolicy,
    LookAheadPolicy,
    PricePolicy,
    SufficientPolicy,
    plan_hindsight,
    read_money,
)
from rlroute.policies.stepwise import StepInputs
from rlroute.policies.value_to_go import solve_value_to_go

SCORE_QK = np.array([[0.5, 0.9], [0.8, 0.9], [0.1, 0.2], [0.5, 0.6]])
COST_QK = np.tile([0.1, 1.0], (4, 1))
FORECAST = Forecast(SCORE_QK, COST_QK, np.array([[0, 1], [2, 3]]))


def make_inputs(sessions, *, left=1.0, per_step=0.5, capped=1.0, mask=None) -> StepInputs:
    """Return what lanes see whose dearest bound is the reference."""
    lanes = np.arange(len(sessions))
    row = [0.0, 0.0, left, 0.0, capped, 1.0, per_step]
    return StepInputs(
        lane_B=lanes,
        row_B=lanes,
        task_index_B=np.array(sessions),
        features_BF=np.array([row] * len(sessions), dtype=np.float32),
        candidate_features_KD=np.zeros((2, 1), dtype=np.float32),
        mask_BK=np.ones((len(sessions), 2), dtype=bool) if mask is None else np.array(mask),
        cost_weight_B=np.zeros(len(sessions), dtype=np.float32),
        uniform_B=np.zeros(len(sessions)),
    )


def decide(policy, *inputs) -> list[list[int]]:
    policy.start(2)
    return [policy.decide(one).action_B.tolist() for one in inputs]


def test_the_query_at_hand_is_found_by_what_is_left():
    assert FORECAST.find_queries(make_inputs([0, 1])).tolist() == [0, 2]
    assert FORECAST.find_queries(make_inputs([0, 1], left=0.5)).tolist() == [1, 3]


def test_money_is_infinite_without_a_cap_and_where_it_is_not_scarce():
    assert read_money(make_inputs([0]).features_BF).tolist() == [0.5]
    assert read_money(make_inputs([0], capped=0.0).features_BF).tolist() == [np.inf]
    assert read_money(make_inputs([0], per_step=1.0).features_BF).tolist() == [np.inf]


def test_cheapest_sufficient_takes_the_cheapest_above_the_threshold_or_the_best():
    both = [make_inputs([0, 1]), make_inputs([0, 1], left=0.5)]
    assert decide(SufficientPolicy(FORECAST, 0.5), *both) == [[0, 1], [0, 0]]
    assert decide(SufficientPolicy(FORECAST, 0.85), *both) == [[1, 1], [1, 1]]
    masked = make_inputs([0, 1], mask=[[True, False], [True, False]])
    assert decide(SufficientPolicy(FORECAST, 0.85), masked) == [[0, 0]]


def test_one_price_stays_and_the_adaptive_one_follows_what_is_left():
    # 0.4 and 0.1 more for 0.9 more money: worth it below 0.44 and 0.11
    curve = PriceCurve(np.log([0.1, 0.5]), np.log([2.0, 0.3]))
    first = make_inputs([0, 0], per_step=0.5)
    poor, rich = (make_inputs([0, 0], left=0.5, per_step=one) for one in (0.1, 1.0))
    assert decide(PricePolicy(FORECAST, curve, adaptive=False), first, rich) == [[1, 1], [0, 0]]
    assert decide(PricePolicy(FORECAST, curve, adaptive=True), first, rich) == [[1, 1], [1, 1]]
    assert decide(PricePolicy(FORECAST, curve, adaptive=True), first, poor) == [[1, 1], [0, 0]]
    fixed = PricePolicy(FORECAST, curve, adaptive=False)
    decide(fixed, first)
    assert decide(fixed, make_inputs([0, 0], per_step=0.1)) == [[0, 0]]  # another session's price


# --- With hindsight -------------------------------------------------------------------------------


def try_all(score_TK, cost_TK, legal_TK, cap) -> float:
    """Return the best total by trying all picks of every number of first queries."""
    size, best = len(score_TK), 0.0
    for served in range(size + 1):
        options = [np.flatnonzero(legal_TK[turn]) for turn in range(served)]
        for picks in itertools.product(*options):
            rows = np.arange(served)
            if cost_TK[rows, list(picks)].sum() <= cap:
                best = max(best, float(score_TK[rows, list(picks)].sum()))
    return best / size


def test_looking_ahead_spends_where_the_rest_of_the_session_can_spare_it():
    legal_QK = np.ones_like(SCORE_QK, dtype=bool)
    values = solve_value_to_go(SCORE_QK, COST_QK, COST_QK, legal_QK, queries=2)
    policy = LookAheadPolicy(FORECAST, values)
    # 1.2 for two queries: the dear one leaves enough for a cheap one (.475 on average), the cheap
    # one for a dear one (.65): .9 + .475 against .5 + .65, and .2 + .475 against .1 + .65
    assert decide(policy, make_inputs([0, 1], per_step=0.6)) == [[1, 0]]
    # .6 for the last query, where nothing comes after it: the better one of those that may act
    last = make_inputs([0, 1], left=0.5, per_step=0.6)
    masked = make_inputs([0, 1], left=0.5, per_step=0.6, mask=[[True, False]] * 2)
    assert decide(policy, last, masked) == [[1, 1], [0, 0]]
    for inputs in (make_inputs([0, 1], capped=0.0), make_inputs([0, 1], per_step=1.0)):
        assert decide(policy, inputs) == [[1, 1]]  # money is not scarce


@given(st.integers(0, 100_000), st.booleans())
@settings(max_examples=150)
def test_the_plan_with_hindsight_is_the_best_of_all(seed, binary):
    generator = np.random.default_rng(seed)
    score_NTK = generator.integers(0, 2 if binary else 101, (3, 4, 3)) / (1 if binary else 100)
    cost_NTK = generator.integers(1, 20, (3, 4, 3)).astype(float)
    legal_NTK = generator.random((3, 4, 3)) < 0.8
    legal_NTK[:, :, 0] = True
    score_NTK = np.where(legal_NTK, score_NTK, np.nan)
    cap_N = generator.integers(0, 60, 3).astype(float)
    pick_NT, value_N = plan_hindsight(score_NTK, cost_NTK, legal_NTK, cap_N)
    for n in range(3):
        assert value_N[n] == pytest.approx(
            try_all(score_NTK[n], cost_NTK[n], legal_NTK[n], cap_N[n])
        )
        assert legal_NTK[n, np.arange(4), pick_NT[n]].all()
        paid_T = cost_NTK[n, np.arange(4), pick_NT[n]].cumsum()
        served = int((paid_T <= cap_N[n]).sum())
        earned = score_NTK[n, np.arange(served), pick_NT[n, :served]].sum() / 4
        assert earned >= value_N[n] - 1e-9  # the picks do earn what the plan says


def test_the_hindsight_policy_plays_its_plan():
    known = Forecast(np.array([[0.0, 1.0], [1.0, 1.0]]), COST_QK[:2], np.array([[0, 1]]))
    policy = HindsightPolicy(known, np.ones((2, 2), dtype=bool))
    # 2 * 0.6 pays for one dear answer: the first query needs it, the second does not
    steps = [make_inputs([0], per_step=0.6), make_inputs([0], left=0.5, per_step=0.2)]
    assert decide(policy, *steps) == [[1], [0]]
    # 2 * 0.4 does not
    assert decide(policy, make_inputs([0], per_step=0.4)) == [[0]]
