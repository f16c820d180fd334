"""Off-policy estimates: the worked log of four rows, and logs of a table whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlroute.evaluation.off_policy import OutcomePredictions, estimate_off_policy
from rlroute.types import RLRouteError

# mu = (.50, .25, .25); log (q1,S,1), (q2,L,1), (q3,M,0), (q4,S,0); the target picks S, L, L, M
REWARD_N, PROPENSITY_N, TARGET_N = [1, 1, 0, 0], [0.5, 0.25, 0.25, 0.5], [1, 1, 0, 0]


def test_the_worked_log_has_its_estimates():
    found = estimate_off_policy(REWARD_N, PROPENSITY_N, TARGET_N)
    assert found.ips.value == 1.5
    assert found.snips is not None
    assert found.snips.value == 1.0
    assert found.effective_rows == pytest.approx(1.8)
    assert found.doubly_robust is None


def test_right_predictions_make_the_doubly_robust_estimate_right():
    # scores of the table: the picks S, L, M, S have 1, 1, 0, 1; those of the target 1, 1, 1, 0.
    # The fourth logged reward is another sample of its pick, and the target gives it no weight.
    predictions = OutcomePredictions(logged_N=[1, 1, 0, 1], target_N=[1, 1, 1, 0])
    found = estimate_off_policy(REWARD_N, PROPENSITY_N, TARGET_N, predictions)
    assert found.doubly_robust is not None
    assert found.doubly_robust.value == 0.75


def test_predictions_of_nothing_leave_inverse_propensities():
    predictions = OutcomePredictions(np.zeros(4), np.zeros(4))
    found = estimate_off_policy(REWARD_N, PROPENSITY_N, TARGET_N, predictions)
    assert found.doubly_robust == found.ips


def test_a_log_of_the_target_itself_is_a_mean():
    found = estimate_off_policy([1, 0, 1, 1], [0.3, 0.2, 0.9, 1], [0.3, 0.2, 0.9, 1])
    assert found.ips == found.snips
    assert found.ips.value == 0.75
    assert found.effective_rows == 4


def test_a_target_that_never_picks_as_logged_has_no_estimate_to_normalise():
    found = estimate_off_policy([1, 1], [0.5, 0.5], [0, 0])
    assert found.snips is None
    assert found.effective_rows == 0
    assert found.ips.value == 0


def test_all_estimates_hold_the_truth_of_a_large_log():
    rng = np.random.default_rng(0)
    rows, chance_K, mu_K, pi_K = 4000, [0.2, 0.5, 0.9], [0.6, 0.3, 0.1], [0.1, 0.2, 0.7]
    pick_N = rng.choice(3, rows, p=mu_K)
    reward_N = (rng.random(rows) < np.array(chance_K)[pick_N]).astype(float)
    expected = float(np.dot(pi_K, chance_K))
    predictions = OutcomePredictions(np.array(chance_K)[pick_N], np.full(rows, expected))
    found = estimate_off_policy(
        reward_N, np.array(mu_K)[pick_N], np.array(pi_K)[pick_N], predictions, bootstrap=200
    )
    for one in (found.ips, found.snips, found.doubly_robust):
        assert one is not None
        assert one.value == pytest.approx(0.75, abs=0.06)
        assert one.low < 0.75 < one.high
    assert found.doubly_robust.high - found.doubly_robust.low < found.ips.high - found.ips.low
    assert 0 < found.effective_rows < rows / 4


def test_intervals_of_four_rows_are_as_wide_as_they_should_be():
    found = estimate_off_policy(REWARD_N, PROPENSITY_N, TARGET_N)
    assert found.ips.high - found.ips.low > 2


@pytest.mark.parametrize(
    ("reward", "propensity", "target", "message"),
    [
        ([1, 1], [0.5, 0.0], [1, 1], "row 1: a pick that was made"),
        ([1, 1], [0.5, 1.5], [1, 1], "row 1: a propensity"),
        ([1, 1], [0.5, 0.5], [-0.1, 1], "row 0: a target probability"),
        ([1, math.nan], [0.5, 0.5], [1, 1], "row 1 is not finite"),
        ([1], [0.5, 0.5], [1, 1], "same number of rows"),
        ([], [], [], "same number of rows"),
    ],
)
def test_a_bad_log_is_refused_by_row(reward, propensity, target, message):
    with pytest.raises(RLRouteError, match=message):
        estimate_off_policy(reward, propensity, target)


def test_predictions_of_another_length_are_refused():
    with pytest.raises(RLRouteError, match="predictions"):
        estimate_off_policy([1, 1], [0.5, 0.5], [1, 1], OutcomePredictions([1], [1]))
