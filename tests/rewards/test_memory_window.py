"""The cost window of memory tiers: BudgetMem's, number by number (N), and what holds of any."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from rlroute.rewards.memory import CostWindow, CostWindowConfig
from rlroute.types import RLRouteError

NAN = float("nan")
COSTS = st.lists(st.integers(0, 100_000).map(lambda tenths: tenths * 1e-7), min_size=1, max_size=40)


def window(**options: object) -> CostWindow:
    return CostWindow(CostWindowConfig.model_validate(options))


def feed(filled: CostWindow, batches: list[list[float]]) -> list[list[float]]:
    return [filled.normalise(np.array(batch)).tolist() for batch in batches]


@pytest.mark.parametrize(
    ("batches", "rewards"),
    [
        ([[0.0]], [[1.0]]),
        ([[0.004]], [[0.0]]),
        ([[0.004, 0.004]], [[0.0, 0.0]]),
        ([[0.0, 0.0, 0.0]], [[1.0, 1.0, 1.0]]),
        ([[0.0, 0.004]], [[1.0, 0.0]]),
        ([[0.0001, 0.0004, 0.0009, 0.0016, 0.0025]], [[1.0, 0.7778, 0.5, 0.2222, 0.0]]),
        ([[0.0001, 0.0025], [0.0009]], [[1.0, 0.0], [0.5]]),
        ([[0.0001], [0.0025]], [[0.0], [0.0]]),
        ([[0.0001, 0.0025]], [[1.0, 0.0]]),
        ([[0.0025], [0.0001]], [[0.0], [1.0]]),
        ([[*[0.0] * 20, 0.01]], [[*[1.0] * 20, 0.9]]),
        ([[0.0, 0.01]], [[1.0, 0.0]]),  # the original has -1.0 for 0.0: see the test of N12
        ([[0.001, 0.002, 0.003, 0.004]], [[1.0, 0.6078, 0.2537, 0.0]]),
        ([[0.0, 0.0, 0.0009, 0.0009]], [[1.0, 1.0, 0.0, 0.0]]),
        ([[0.0003, 0.0003], [0.0003, 0.0012], [0.0048]], [[0.0, 0.0], [1.0, 0.0], [0.0]]),
    ],
    ids=[f"N{number}" for number in range(1, 16)],
)
def test_the_window_gives_what_the_original_gives(
    batches: list[list[float]], rewards: list[list[float]]
) -> None:
    for found, expected in zip(feed(window(), batches), rewards, strict=True):
        np.testing.assert_allclose(found, expected, atol=5e-5)


def test_costs_may_be_placed_without_the_square_root() -> None:
    by_hand = 1 - np.array([0.5, 1.0, 2.5]) / 3.0  # low 0, high 3 thousandths of a USD
    plain = window(transform="linear", low=0, high=100)
    plain.push(np.array([0.0, 0.003]))
    found = plain.normalise(np.array([0.0005, 0.001, 0.0025]), frozen=True)
    np.testing.assert_allclose(found, by_hand, atol=1e-6)
    assert feed(window(transform="linear"), [[*[0.0] * 20, 0.01]])[0][-1] == pytest.approx(0.99)


def test_a_whole_batch_joins_before_any_of_it_is_placed() -> None:
    cost_B = np.array([0.0001, 0.0025, 0.0009])
    together, filled = window(), window()
    found = together.normalise(cost_B)
    filled.push(cost_B)
    np.testing.assert_array_equal(found, filled.normalise(cost_B, frozen=True))
    one_by_one = window()
    singly = [one_by_one.normalise(cost_B[row : row + 1])[0] for row in range(3)]
    assert singly[0] == 0.0
    assert found[0] == 1.0


def test_the_window_holds_the_last_two_thousand_costs_unless_told_otherwise() -> None:
    full = window()
    full.push(np.full(500, 9.0))
    full.push(np.linspace(0.001, 0.002, 2000))
    assert len(full) == 2000
    assert full.normalise(np.array([0.002]), frozen=True)[0] == 0.0
    assert full.normalise(np.array([0.0015]), frozen=True)[0] == pytest.approx(0.48, abs=0.02)
    small = window(size=3)
    small.push(np.array([1.0, 2.0, 3.0, 4.0]))
    assert small.get_state() == {"charges_micro_usd": [2e6, 3e6, 4e6]}


def test_an_undefined_cost_stays_undefined_and_enters_nothing() -> None:
    holed, whole = window(), window()
    found = holed.normalise(np.array([0.0, NAN, 0.004]))
    np.testing.assert_array_equal(found, [1.0, NAN, 0.0])
    whole.push(np.array([0.0, 0.004]))
    assert holed.get_state() == whole.get_state()
    assert len(window()) == 0
    np.testing.assert_array_equal(window().normalise(np.array([NAN, NAN])), [NAN, NAN])


def test_an_empty_window_knows_nothing() -> None:
    found = window().normalise(np.array([0.0, NAN, 9.0]), frozen=True)
    np.testing.assert_array_equal(found, [0.5, NAN, 0.5])


def test_the_sheets_negative_cost_n12_is_refused_and_not_the_best_of_all() -> None:
    """The original scores -1 USD with 1.0, the best reward; a cost below 0 is a fault upstream."""
    with pytest.raises(RLRouteError, match="must be 0 USD or more"):
        feed(window(), [[-1.0, 0.01]])


@pytest.mark.parametrize("wrong", [-1.0, np.inf])
@pytest.mark.parametrize("frozen", [True, False])
def test_an_impossible_cost_is_refused_and_leaves_the_window_as_it_was(
    wrong: float, frozen: bool
) -> None:
    filled = window()
    filled.push(np.array([0.001, 0.002]))
    before = filled.get_state()
    with pytest.raises(RLRouteError, match="must be 0 USD or more"):
        filled.normalise(np.array([0.003, wrong]), frozen)
    assert filled.get_state() == before


@given(batches=st.lists(COSTS, min_size=1, max_size=4), size=st.integers(2, 30))
def test_rewards_lie_in_the_unit_interval_and_the_window_in_its_length(
    batches: list[list[float]], size: int
) -> None:
    filled = window(size=size)
    for found in feed(filled, batches):
        assert all(0 <= reward <= 1 for reward in found)
    assert len(filled) == min(size, sum(map(len, batches)))


@given(costs=COSTS, evaluated=COSTS, transform=st.sampled_from(["sqrt", "linear"]))
def test_a_frozen_window_is_left_untouched_and_never_rises_with_the_cost(
    costs: list[float], evaluated: list[float], transform: str
) -> None:
    filled = window(transform=transform)
    filled.push(np.array(costs))
    before = filled.get_state()
    reward_N = filled.normalise(np.sort(evaluated), frozen=True)
    assert (np.diff(reward_N) <= 0).all()
    assert filled.get_state() == before


@given(costs=COSTS, factor=st.sampled_from([0.01, 0.5, 3.0, 150.0]))
def test_rewards_have_no_currency_unless_nearly_everything_is_free(
    costs: list[float], factor: float
) -> None:
    assume(np.percentile(costs, 95) > 0)
    plain = window().normalise(np.array(costs))
    scaled = window().normalise(np.array(costs) * factor)
    np.testing.assert_allclose(scaled, plain, atol=1e-3)


@given(costs=COSTS, later=COSTS, size=st.integers(2, 12))
def test_a_saved_window_goes_on_as_if_nothing_had_happened(
    costs: list[float], later: list[float], size: int
) -> None:
    whole, restored = window(size=size), window(size=size)
    whole.push(np.array(costs))
    restored.set_state(json.loads(json.dumps(whole.get_state())))
    assert feed(restored, [later]) == feed(whole, [later])
    assert restored.get_state() == whole.get_state()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": 95, "high": 5}, "must be below high"),
        ({"transform": "log"}, "'sqrt' or 'linear'"),
        ({"size": 1}, "greater than or equal to 2"),
    ],
)
def test_settings_without_a_sense_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        window(**options)
