"""Baselines of cascades: one pick and stop, whom a cascade asks, and the look-ahead."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlroute.policies.cascade_baselines import (
    CheckedAnswers,
    CheckedCascade,
    LookAhead,
    TaskPicks,
    measure_plan,
    plan_cascade,
)
from rlroute.policies.step_scorer import EstimateColumns
from rlroute.policies.stepwise import StepInputs

STOP = 0
COLUMNS = EstimateColumns(expected=1, charge=4, sharpness=1.0)


def make_inputs(mask_BK, features_BF=None, cost_weight: float = 0.5) -> StepInputs:
    mask_BK = np.asarray(mask_BK, dtype=np.bool_)
    lanes = len(mask_BK)
    features_BF = np.zeros((lanes, 7)) if features_BF is None else features_BF
    return StepInputs(
        lane_B=np.arange(lanes),
        row_B=np.arange(lanes),
        task_index_B=np.arange(lanes),
        features_BF=np.asarray(features_BF, dtype=np.float32),
        candidate_features_KD=np.ones((mask_BK.shape[1], 3), dtype=np.float32),
        mask_BK=mask_BK,
        cost_weight_B=np.full(lanes, cost_weight, dtype=np.float32),
        uniform_B=np.zeros(lanes),
        rest=STOP,
    )


def make_answers(score_QK, passed_QK, cost_QK=None) -> CheckedAnswers:
    """Answers of candidates that cost 0.1, 0.5 and 1; NaN is a hole."""
    score_QK = np.asarray(score_QK, dtype=np.float32)
    present_QK = np.isfinite(score_QK)
    cost_QK = np.tile([0.1, 0.5, 1.0][: score_QK.shape[1]], (len(score_QK), 1))
    return CheckedAnswers(
        score_QK,
        np.where(present_QK, cost_QK, np.nan),
        present_QK,
        np.asarray(passed_QK, dtype=np.bool_) & present_QK,
    )


@given(st.integers(0, 2**32 - 1))
def test_nobody_takes_what_is_masked(seed):
    rng = np.random.default_rng(seed)
    policies = [
        TaskPicks(lambda weight: rng.integers(0, 3, 30)),
        CheckedCascade(lambda weight: (1, 2), confidence_column=0),
        LookAhead(COLUMNS),
    ]
    for policy in policies:
        policy.start(30)
        for _ in range(3):
            mask_BK = rng.random((30, 3)) < 0.5
            mask_BK[~mask_BK.any(axis=1), 1] = True
            taken = policy.decide(make_inputs(mask_BK, rng.random((30, 7)).round()))
            assert mask_BK[np.arange(30), taken.action_B].all()


def test_a_pick_is_asked_and_then_the_episode_is_stopped():
    asked = []

    def choose(cost_weight):
        asked.append(cost_weight)
        return np.array([2, 1])

    policy = TaskPicks(choose)
    policy.start(2)
    assert policy.decide(make_inputs([[0, 1, 1], [0, 1, 1]])).action_B.tolist() == [2, 1]
    assert policy.decide(make_inputs([[1, 1, 0], [1, 0, 1]])).action_B.tolist() == [STOP, STOP]
    assert asked == [0.5]  # once for each cost weight


def test_a_cascade_goes_on_until_an_answer_passes():
    policy = CheckedCascade(lambda weight: (1, 2), confidence_column=0)
    policy.start(3)
    before = make_inputs([[0, 1, 1], [0, 1, 1], [0, 0, 1]], np.ones((3, 7)))
    assert policy.decide(before).action_B.tolist() == [1, 1, 2]  # a hole is passed over
    features_BF = np.array([[1.0] + [0.0] * 6, [0.0] * 7, [0.0] * 7])
    after = make_inputs([[1, 0, 1], [1, 0, 1], [1, 0, 0]], features_BF)
    assert policy.decide(after).action_B.tolist() == [STOP, 2, STOP]


def test_the_look_ahead_takes_the_best_estimate_at_the_cost_weight():
    # confidence, expected of (stop, small, large), charges of the same
    features_BF = np.array([[1, 0.5, 0.6, 0.9, 0.0, 0.1, 1.0]])
    for weight, action in ((0.1, 2), (0.4, 1), (2.0, 0)):
        inputs = make_inputs([[1, 1, 1]], features_BF, weight)
        assert LookAhead(COLUMNS).decide(inputs).action_B.tolist() == [action]


# --- Plans ----------------------------------------------------------------------------------------


def test_a_plan_pays_for_all_that_it_asks():
    answers = make_answers([[1, 1], [0, 1], [0, 0], [1, 0]], [[1, 1], [0, 1], [0, 0], [0, 0]])
    assert measure_plan(answers, (0,), 1.0) == pytest.approx(0.5 - 0.1)
    assert measure_plan(answers, (1,), 1.0) == pytest.approx(0.5 - 0.5)
    # the first stops at once; the others go on, and the fourth loses a right answer by it
    assert measure_plan(answers, (0, 1), 1.0) == pytest.approx(0.5 - (0.1 + 3 * 0.6) / 4)


def test_the_plan_is_cheap_to_dear_and_as_long_as_it_pays():
    right = np.array([[1, 1, 1]] * 5 + [[0, 1, 1]] * 3 + [[0, 0, 1]] * 2)
    answers = make_answers(right, right)
    assert plan_cascade(answers, 0.0, 3) == (0, 1, 2) or plan_cascade(answers, 0.0, 3) == (2,)
    assert plan_cascade(answers, 0.2, 3) == (0, 1, 2)
    assert plan_cascade(answers, 0.2, 1) == (0,) or len(plan_cascade(answers, 0.2, 1)) == 1
    assert plan_cascade(answers, 5.0, 3) == (0,)


def test_a_hole_costs_nothing_and_counts_nothing():
    answers = make_answers([[np.nan, 1], [1, 1]], [[0, 1], [1, 1]])
    assert measure_plan(answers, (0,), 1.0) == pytest.approx(0.9)  # of the second query alone
    assert measure_plan(answers, (0, 1), 1.0) == pytest.approx((0.5 + 0.9) / 2)
