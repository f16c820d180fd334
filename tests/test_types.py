from __future__ import annotations

import dataclasses
import inspect

import numpy as np
import pytest

from rlroute import types
from rlroute.types import (
    Call,
    Decision,
    FailureKind,
    Observation,
    Prices,
    Query,
    Reply,
    Trajectory,
    Transition,
)

CALL = Call("a", Query("q", "text"), "text")


def make_step(*replies: Reply) -> Transition:
    mask_K = np.array([True])
    observation = Observation(
        "", np.zeros(1, np.float32), np.zeros((1, 1), np.float32), mask_K, 0.0
    )
    return Transition(observation, Decision(0, 0.0, 0.0, mask_K), replies, {}, True, False)


def test_a_cost_is_tokens_at_their_prices_plus_the_price_of_the_call():
    prices = Prices(input=2.0, output=8.0, per_call=0.001)
    assert prices.compute_cost(1000, 500) == pytest.approx(0.001 + 0.002 + 0.004)
    assert Prices(0.0, 0.0).compute_cost(10, 10) == 0


def test_a_trajectory_tells_its_first_failure():
    good, bad = Reply(CALL), Reply(CALL, failure=FailureKind.TIMEOUT)
    worse = Reply(CALL, failure=FailureKind.AUTH)
    assert Trajectory(CALL.query, 0, (make_step(good),)).failure is None
    steps = (make_step(good), make_step(good, bad), make_step(worse))
    assert Trajectory(CALL.query, 0, steps).failure is FailureKind.TIMEOUT


def test_every_noun_is_frozen():
    nouns = [item for _, item in inspect.getmembers(types, dataclasses.is_dataclass)]
    assert len(nouns) >= 13
    assert all(noun.__dataclass_params__.frozen for noun in nouns)


def test_a_failure_kind_is_written_as_its_name():
    assert f"{FailureKind.RATE_LIMITED}" == "rate_limited"
