"""Numbers of step-by-step evaluations: worked examples, pairing, failures, frontiers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlroute.evaluation.intervals import draw_resamples
from rlroute.evaluation.step_measures import (
    StepPlayed,
    StepYardstick,
    average_resamples,
    average_rollouts,
    compute_gap_recovered,
    estimate_mean,
    estimate_ratio,
    measure_above,
    measure_classes,
    measure_curves,
    measure_point,
)
from rlroute.evaluation.step_results import StepSetting

SETTING = StepSetting(cap=4, cost_weight=0.3)
NAN = float("nan")


def make_played(
    success: list[float], cost: list[float], picks: list[list[int]] | None = None, **changes: Any
) -> StepPlayed:
    """Return what a policy did on tasks with these scores and costs; NaN marks a failed call."""
    success_Q, cost_Q = np.array(success), np.array(cost)
    lost_Q = success_Q * 0
    picks_QK = np.array(picks if picks is not None else [[2, 1]] * len(success), dtype=float)
    stated: dict[str, Any] = {
        "success_Q": success_Q,
        "cost_usd_Q": cost_Q + lost_Q,
        "calls_Q": picks_QK[:, 1] + lost_Q,
        "steps_Q": picks_QK.sum(axis=1) + lost_Q,
        "used_Q": picks_QK[:, 1] / 4 + lost_Q,
        "exhausted_Q": lost_Q,
        "reward_Q": success_Q - 0.3 * cost_Q / 10,
        "picks_QK": picks_QK + lost_Q[:, None],
        "episodes": len(success),
        "failed": int(np.isnan(success_Q).sum()),
        "violations": 0,
    }
    return StepPlayed(**(stated | changes))


# Four tasks, three executors of cost 1, 4 and 10, and a router that picks S, L, L, M.
SMALL = make_played([1, 0, 0, 1], [1, 1, 1, 1])
MIDDLE = make_played([1, 1, 0, 0], [4, 4, 4, 4])
LARGE = make_played([1, 1, 1, 0], [10, 10, 10, 10])
ROUTER = make_played([1, 1, 1, 0], [1, 10, 10, 4])


def make_weights(tasks: int = 4, resamples: int = 200) -> Any:
    weight_RQ = draw_resamples(tasks, resamples, seed=0)
    return np.concatenate([np.full((1, tasks), 1 / tasks), weight_RQ])


def make_yardstick(
    small: StepPlayed = SMALL, large: StepPlayed = LARGE, resamples: int = 200
) -> StepYardstick:
    classes = ["easy", "hard", "hard", "intractable"]
    weight_SQ = make_weights(len(small.success_Q), resamples)
    return StepYardstick(small, large, classes, ("small", "large"), weight_SQ)


# --- Worked numbers -------------------------------------------------------------------------------


def test_the_gap_recovered_is_the_part_of_the_way_from_small_to_large() -> None:
    assert compute_gap_recovered(0.66, 0.40, 0.667) == pytest.approx(0.9738, abs=5e-5)
    assert compute_gap_recovered(0.7, 0.4, 0.667) == pytest.approx(1.1236, abs=5e-5)
    assert compute_gap_recovered(0.5, 0.5, 0.5) is None
    assert compute_gap_recovered(0.5, 0.6, 0.5) is None


def test_a_curve_is_the_mean_height_of_the_hull_between_the_static_policies() -> None:
    families: dict[str, Any] = {
        "router": ("policy", [ROUTER]),
        "static": ("static", [SMALL, MIDDLE, LARGE]),
        "always large": ("static", [LARGE]),
        "all of them": ("sweep", [MIDDLE, LARGE, ROUTER]),
        "twin": ("run", [ROUTER]),
    }
    curves = {one.family: one for one in measure_curves(families, make_yardstick())}
    assert curves["static"].area.value == pytest.approx(0.6250)
    assert curves["always large"].area.value == pytest.approx(0.6250)
    assert curves["router"].area.value == pytest.approx(0.6771, abs=5e-5)
    assert curves["all of them"].area.value == pytest.approx(0.6771, abs=5e-5)
    assert curves["router"].cost_usd == (1.0, 6.25)
    assert curves["router"].success == (0.5, 0.75)
    assert curves["router"].lead is None
    lead = curves["static"].lead
    assert lead is not None
    assert lead.value == pytest.approx(0.6771 - 0.6250, abs=5e-5)
    equal = curves["twin"].lead
    assert equal is not None
    assert (equal.value, equal.low, equal.high) == (0, 0, 0)  # paired: the same hull each time


def test_a_policy_stands_above_the_height_of_the_baselines_at_its_own_cost() -> None:
    above = measure_above(ROUTER, [SMALL, MIDDLE, LARGE], make_weights())
    assert above is not None
    height = 0.5 + 0.25 * (6.25 - 1) / 9
    assert above.value == pytest.approx(0.75 - height)
    on_the_hull = measure_above(SMALL, [SMALL, LARGE], make_weights())
    assert on_the_hull is not None
    assert (on_the_hull.value, on_the_hull.low, on_the_hull.high) == (0, 0, 0)
    assert measure_above(SMALL, [LARGE], make_weights()) is None  # nothing is as cheap


def test_a_point_relates_to_the_static_policies_on_the_same_tasks() -> None:
    point = measure_point(ROUTER, None, SETTING, make_yardstick(), [SMALL, LARGE])
    assert point.success is not None
    assert point.success_kept is not None
    assert point.cost_ratio is not None
    assert (point.success.value, point.success_kept.value) == (0.75, 1.0)
    assert (point.success_kept.low, point.success_kept.high) == (1.0, 1.0)  # right where L is
    assert point.cost_ratio.value == pytest.approx(0.625)
    assert point.gap_recovered == pytest.approx(1.0)
    assert (point.lead, point.reward_lead) == (None, None)
    assert point.utilisation == pytest.approx(0.25)
    assert (point.calls, point.steps, point.exhausted) == (1.0, 3.0, 0.0)
    assert point.share_by_executor == pytest.approx({"small": 2 / 3, "large": 1 / 3})
    assert (point.cap, point.cost_weight, point.violations) == (4, 0.3, 0)
    assert json.dumps(point.gap_recovered)


def test_leads_are_differences_on_the_same_tasks() -> None:
    yardstick = make_yardstick()
    point = measure_point(MIDDLE, ROUTER, SETTING, yardstick)
    assert point.lead is not None
    assert point.reward_lead is not None
    assert point.lead.value == pytest.approx(0.25)
    assert point.lead.low >= 0.0  # the router is right wherever the middle one is
    assert point.reward_lead.value == pytest.approx(0.25 - 0.03 * (6.25 - 4))
    assert point.above_baselines is None
    equal = measure_point(ROUTER, ROUTER, SETTING, yardstick).lead
    assert equal is not None
    assert (equal.low, equal.high) == (0.0, 0.0)


def test_classes_have_their_own_means() -> None:
    picks = [[3, 0], [1, 2], [0, 4], [3, 1]]
    played = make_played([1, 1, 0, 0], [1, 2, 4, 3], picks)
    found = measure_classes(played, ["easy", "hard", "hard", "intractable"])
    assert list(found) == ["easy", "hard", "intractable"]
    assert (found["easy"].tasks, found["hard"].tasks) == (1, 2)
    assert (found["hard"].success, found["hard"].cost_usd) == (0.5, 3.0)
    assert found["hard"].dear_share == pytest.approx(6 / 7)  # of steps, not of episodes
    assert found["easy"].dear_share == 0.0


# --- Failed calls ---------------------------------------------------------------------------------


def test_failed_episodes_enter_no_mean_and_leads_take_the_common_tasks() -> None:
    partly = make_played([1, NAN, 0, 1], [1, 5, 4, 3])
    yardstick = make_yardstick()
    point = measure_point(partly, ROUTER, SETTING, yardstick)
    assert (point.episodes, point.failed) == (4, 1)
    assert point.success is not None
    assert point.cost_usd is not None
    assert point.lead is not None
    assert point.success.value == pytest.approx(2 / 3)
    assert point.cost_usd.value == pytest.approx(8 / 3)
    assert point.lead.value == pytest.approx(0.0)  # tasks 0, 2 and 3: 2 of 3 each
    assert point.by_class["hard"].tasks == 1
    assert point.success_kept is not None
    assert point.success_kept.value == pytest.approx(1.0)


def test_a_policy_whose_calls_all_failed_has_no_value_and_no_curve() -> None:
    dead = make_played([NAN] * 4, [1] * 4)
    yardstick = make_yardstick()
    point = measure_point(dead, ROUTER, SETTING, yardstick, [SMALL, LARGE])
    unknown = (point.success, point.cost_usd, point.lead, point.above_baselines, point.calls)
    assert unknown == (None,) * 5
    assert (point.success_kept, point.gap_recovered) == (None, None)
    assert point.by_class == {}
    assert sum(point.share_by_executor.values()) == 0.0
    families: dict[str, Any] = {"router": ("policy", [ROUTER]), "dead": ("random", [dead])}
    assert [one.family for one in measure_curves(families, yardstick)] == ["router"]
    assert measure_curves(families, make_yardstick(large=dead)) == ()
    above = measure_above(ROUTER, [SMALL, dead, LARGE], make_weights())
    assert above == measure_above(ROUTER, [SMALL, LARGE], make_weights())


def test_a_ratio_over_nothing_is_not_told() -> None:
    none_solved = np.zeros(4)
    assert estimate_ratio(ROUTER.success_Q, none_solved, make_weights()) is None
    rarely = np.array([1.0, 0, 0, 0])
    found = estimate_ratio(ROUTER.success_Q, rarely, make_weights())
    assert found is not None  # resamples without the one solved task are left out
    assert found.value == 3.0
    assert np.isfinite([found.low, found.high]).all()


def test_an_interval_is_made_of_resamples_that_hold_a_value() -> None:
    value_Q = np.full(30, np.nan)
    value_Q[3] = 0.25
    weight_SQ = make_weights(30)
    assert np.isnan(average_resamples(value_Q, weight_SQ)).any()
    found = estimate_mean(value_Q, weight_SQ)
    assert found is not None
    assert (found.value, found.low, found.high) == (0.25, 0.25, 0.25)
    assert estimate_mean(np.full(30, np.nan), weight_SQ) is None


@given(
    st.integers(1, 4).flatmap(
        lambda tasks: st.lists(
            st.lists(st.one_of(st.just(NAN), st.floats(0, 1)), min_size=tasks, max_size=tasks),
            min_size=1,
            max_size=4,
        )
    )
)
def test_rollouts_of_a_task_are_averaged_over_those_that_did_not_fail(
    rows: list[list[float]],
) -> None:
    value_RQ = np.array(rows)
    found_Q = average_rollouts(value_RQ.reshape(-1), value_RQ.shape[1])
    for column, value in enumerate(found_Q):
        known = value_RQ[~np.isnan(value_RQ[:, column]), column]
        if len(known):
            assert value == pytest.approx(known.mean())
        else:
            assert np.isnan(value)
