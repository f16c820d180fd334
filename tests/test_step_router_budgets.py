"""Budgets of step routers: hard caps, open and settled steps, the end of an episode."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from step_router_example import BOUNDS, SIMPLE, make_bundle

from rlroute import StepRouter
from rlroute.step_router import BudgetExhausted
from rlroute.types import RLRouteError


def test_a_step_takes_its_bound_and_gives_back_what_was_not_needed() -> None:
    episode = StepRouter(make_bundle("usd")).start(cap=0.01)
    step = episode.choose(features=SIMPLE, allowed=["large"], bounds_usd=BOUNDS)
    assert step.budget_left == 0.01
    assert episode.budget_left == pytest.approx(0.0024, abs=1e-12)
    episode.settle(0.005)
    assert episode.budget_left == pytest.approx(0.005, abs=1e-12)
    with pytest.raises(BudgetExhausted):  # the bound counts, not what the step before cost
        episode.choose(features=SIMPLE, allowed=["large"], bounds_usd=BOUNDS)
    step = episode.choose(features=SIMPLE, bounds_usd=BOUNDS)
    assert step.probabilities == {"small": 1.0}
    episode.settle(0.0)
    assert (episode.steps, episode.cost_usd, episode.overruns) == (2, 0.005, 0)


def test_calls_are_charged_by_who_was_chosen_settled_or_not() -> None:
    episode = StepRouter(make_bundle()).start(cap=2)
    left = [
        episode.choose(features=SIMPLE, allowed=[name]).budget_left
        for name in ("large", "small", "large", "small")
    ]
    assert left == [2, 1, 1, 0]
    assert episode.budget_left == 0
    assert np.isnan(episode.cost_usd)  # nobody said what these steps cost
    with pytest.raises(BudgetExhausted, match=r"0 of 2 calls left, less than a step of large may"):
        episode.choose(features=SIMPLE, allowed=["large"])


def test_an_exhausted_episode_stands_as_before_and_can_be_asked_again() -> None:
    episode = StepRouter(make_bundle(counted=("small", "large"))).start(cap=1)
    episode.choose(features=SIMPLE)
    episode.settle(0.001)
    for _ in range(2):
        with pytest.raises(BudgetExhausted) as caught:
            episode.choose(features=SIMPLE)
        assert caught.value.budget_left == 0
        assert isinstance(caught.value, RLRouteError)
    assert (episode.steps, episode.cost_usd) == (1, 0.001)
    dollars = StepRouter(make_bundle("usd")).start(cap=0.001)
    with pytest.raises(BudgetExhausted, match=r"0\.001 of 0\.001 usd left"):
        dollars.choose(features=SIMPLE, bounds_usd=BOUNDS)
    assert dollars.choose(features=SIMPLE, bounds_usd=BOUNDS | {"small": 0.001}).executor == "small"


def test_half_a_call_pays_for_none() -> None:
    episode = StepRouter(make_bundle()).start(cap=0.5)
    assert episode.choose(features=SIMPLE).probabilities == {"small": 1.0}


@given(data=st.data(), unit=st.sampled_from(["calls", "usd"]))
@settings(max_examples=150)
def test_no_cap_is_ever_passed(data: st.DataObject, unit: str) -> None:
    router = StepRouter(make_bundle(unit))
    cap = data.draw(st.floats(0, 8) if unit == "calls" else st.floats(0, 0.03), label="cap")
    episode, spent, calls = router.start(cap=cap), 0.0, 0
    for _ in range(router.horizon):
        bounds = {name: data.draw(st.floats(0, 0.02), label=name) for name in BOUNDS}
        allowed = data.draw(st.sampled_from([None, ["large"], ["small"]]), label="allowed")
        features = data.draw(st.lists(st.floats(-3, 3, width=32), min_size=3, max_size=3))
        try:
            step = episode.choose(features=features, allowed=allowed, bounds_usd=bounds)
        except BudgetExhausted:
            continue
        cost = bounds[step.executor] * data.draw(st.floats(0, 1), label="part")
        episode.settle(cost)
        spent, calls = spent + cost, calls + (step.executor == "large")
    assert (calls if unit == "calls" else spent) <= cap + 1e-11
    assert episode.overruns == 0
    assert episode.cost_usd == pytest.approx(spent)


def test_a_step_above_its_bound_is_charged_in_full_and_counted() -> None:
    episode = StepRouter(make_bundle("usd")).start(cap=0.01)
    episode.choose(features=SIMPLE, allowed=["small"], bounds_usd=BOUNDS)
    episode.settle(0.02)
    assert (episode.overruns, episode.budget_left, episode.cost_usd) == (1, 0, 0.02)
    with pytest.raises(BudgetExhausted):
        episode.choose(features=SIMPLE, bounds_usd=BOUNDS)


def test_steps_are_settled_once_and_before_the_next() -> None:
    for unit in ("calls", "usd"):
        episode = StepRouter(make_bundle(unit)).start(cap=None)
        with pytest.raises(RLRouteError, match="no step is open; choose comes first"):
            episode.settle(0.001)
        episode.choose(features=SIMPLE, bounds_usd=BOUNDS)
        if unit == "usd":
            with pytest.raises(RLRouteError, match=r"settle the step of '(small|large)' first"):
                episode.choose(features=SIMPLE, bounds_usd=BOUNDS)
        for wrong in (-0.1, float("nan"), float("inf"), 1e5, "0.1", None):
            with pytest.raises(RLRouteError, match=r"cost_usd is .*: give USD"):
                episode.settle(wrong)  # type: ignore[arg-type]
        episode.settle(0.001)
        with pytest.raises(RLRouteError, match="no step is open"):
            episode.settle(0.001)
        assert episode.steps == 1


def test_an_episode_ends_at_the_horizon() -> None:
    router = StepRouter(make_bundle())
    episode = router.start(cap=None)
    for _ in range(router.horizon):
        episode.choose(features=SIMPLE)
    with pytest.raises(RLRouteError, match="has had 6 steps, the horizon"):
        episode.choose(features=SIMPLE)
