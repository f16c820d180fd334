"""The ledger in whole units: what is affordable, what is given back, what a policy sees of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlroute.config import parse_config
from rlroute.envs.budget import NO_CAP, BudgetConfig, BudgetLedger
from rlroute.types import Candidate, Prices, RLRouteError

EXECUTORS = tuple(Candidate(name, Prices(1.0, 1.0)) for name in ("small", "middle", "large"))
LARGE = Prices(2.0, 8.0).compute_cost(3000, 200)
SMALL = Prices(0.4, 1.6).compute_cost(3000, 200)


def open_ledger(unit: str, *caps: float | None, **fields) -> BudgetLedger:
    """Return a ledger with a lane for each cap."""
    ledger = BudgetLedger(BudgetConfig(unit=unit, **fields), EXECUTORS, len(caps))
    cap_B = np.array([np.inf if cap is None else cap for cap in caps])
    ledger.open_lanes(np.arange(len(caps)), cap_B)
    return ledger


def spend(ledger: BudgetLedger, executor: int, bound: float, cost: float | None = None) -> None:
    """Let every lane take a step of one executor."""
    lanes = len(ledger.cap_B)
    ledger.settle(
        np.full(lanes, executor),
        np.full(lanes, bound),
        np.full(lanes, bound if cost is None else cost),
        np.ones(lanes, dtype=np.bool_),
    )


def test_calls_of_all_but_the_cheapest_are_counted():
    ledger = open_ledger("calls", 2, 0, None)
    bound_BK = np.ones((3, 3))
    assert ledger.find_affordable(bound_BK).tolist() == [
        [True, True, True],
        [True, False, False],
        [True, True, True],
    ]
    spend(ledger, 0, 1.0)
    assert ledger.spent_B.tolist() == [0, 0, 0]
    spend(ledger, 1, 1.0)
    assert ledger.spent_B.tolist() == ledger.calls_B.tolist() == [1, 1, 1]
    assert ledger.cost_usd_B.tolist() == [2.0, 2.0, 2.0]


def test_the_counted_executors_may_be_named():
    ledger = open_ledger("calls", 0, counted=("large",))
    assert ledger.find_affordable(np.ones((1, 3))).tolist() == [[True, True, False]]
    with pytest.raises(
        RLRouteError, match=r"'huge' is no executor \(allowed: small, middle, large"
    ):
        BudgetConfig(counted=("huge",)).find_counted(EXECUTORS)


def test_half_a_call_pays_for_none():
    assert not open_ledger("calls", 0.9).find_affordable(np.ones((1, 3)))[0, 2]


def test_a_cap_of_exactly_twelve_large_steps_pays_for_all_twelve_and_no_more():
    ledger = open_ledger("usd", 12 * LARGE)
    for _ in range(12):
        assert ledger.find_affordable(np.array([[LARGE]]))[0, 0]
        spend(ledger, 2, LARGE)
    assert ledger.spent_B[0] == ledger.cap_B[0] == 91_200_000_000  # picodollars
    assert not ledger.find_affordable(np.array([[SMALL]]))[0, 0]


@given(
    st.integers(1, 400), st.integers(0, 3_000_000), st.integers(0, 3_000_000), st.integers(1, 50)
)
def test_a_cap_of_whole_steps_loses_nothing_to_floats(price, prompt, completion, steps):
    cost = Prices(price / 100, price / 25).compute_cost(prompt, completion)
    ledger = open_ledger("usd", steps * cost)
    for _ in range(steps):
        assert ledger.find_affordable(np.array([[cost]]))[0, 0]
        spend(ledger, 1, cost)
    # picodollars round every step by itself, and steps * cost in the last bits of a float
    assert abs(ledger.cap_B[0] - ledger.spent_B[0]) <= ledger.cap_B[0] * 2**-50


def test_what_was_not_needed_is_given_back():
    ledger = open_ledger("usd", 0.010)
    assert ledger.find_affordable(np.array([[0.008]]))[0, 0]
    spend(ledger, 2, 0.008, cost=0.003)
    assert ledger.spent_B[0] == 3_000_000_000
    assert not ledger.find_affordable(np.array([[0.008]]))[0, 0]  # 0.007 is left
    assert ledger.find_affordable(np.array([[0.007]]))[0, 0]
    assert ledger.overruns == 0


def test_a_step_beyond_its_bound_is_charged_in_full_and_counted():
    ledger = open_ledger("usd", 0.010)
    spend(ledger, 2, 0.008, cost=0.012)
    assert ledger.overruns == 1
    assert ledger.spent_B[0] == 12_000_000_000
    assert not ledger.find_affordable(np.array([[0.0]]))[0, 0]
    assert ledger.describe(0) == "Budget left: 0.00000 USD."
    features_F = ledger.read_features(np.array([1]), 4, np.array([[0.008]]))[0]
    assert features_F[3:].tolist() == [0.0, 0.0]


def test_lanes_that_do_not_play_pay_nothing():
    ledger = open_ledger("usd", 1.0, 1.0)
    one_B = np.ones(2)
    ledger.settle(np.array([2, 2]), one_B, one_B, np.array([True, False]))
    assert ledger.spent_B.tolist() == [10**12, 0]
    assert ledger.calls_B.tolist() == [1, 0]
    assert ledger.cost_usd_B.tolist() == [1.0, 0.0]
    ledger.open_lanes(np.array([0]), np.array([np.inf]))
    assert (ledger.spent_B[0], ledger.calls_B[0], ledger.cost_usd_B[0]) == (0, 0, 0.0)
    assert ledger.cap_B[0] == NO_CAP


@given(
    st.sampled_from(["calls", "usd"]),
    st.floats(0, 0.05),
    st.lists(st.tuples(st.integers(0, 2), st.floats(0, 0.02), st.floats(0, 1)), max_size=40),
)
def test_no_sequence_of_affordable_steps_passes_the_cap(unit, cap, steps):
    cap = round(cap * 100) if unit == "calls" else cap
    ledger = open_ledger(unit, cap)
    counted, paid = 0, 0
    for executor, bound, share in steps:
        bound_1K = bound * np.array([[0.1, 0.5, 1.0]])
        if not ledger.find_affordable(bound_1K)[0, executor]:
            continue
        cost = bound_1K[0, executor] * share
        spend(ledger, executor, bound_1K[0, executor], cost)
        counted, paid = counted + (executor > 0), paid + round(cost * 1e12)
        assert ledger.spent_B[0] == (counted if unit == "calls" else paid)
        assert (
            ledger.spent_B[0] <= ledger.cap_B[0] == (cap if unit == "calls" else round(cap * 1e12))
        )
    assert ledger.overruns == 0


@pytest.mark.parametrize("unit", ["calls", "usd"])
def test_a_cap_that_no_episode_reaches_is_no_obstacle(unit):
    ledger = open_ledger(unit, 1e300)
    assert ledger.find_affordable(np.full((1, 3), 1e5)).all()
    spend(ledger, 2, 1e5)
    assert ledger.find_affordable(np.full((1, 3), 1e5)).all()


def test_features_of_time_and_money_on_a_worked_case():
    ledger = open_ledger("calls", None, 2, 0)
    bound_BK = np.ones((3, 3))
    found_BF = ledger.read_features(np.zeros(3, dtype=np.int64), 5, bound_BK)
    #                     steps_left, spent, capped, budget_left, budget_per_step
    expected = [[1, 0, 0, 1, 1], [1, 0, 1, 1, 2 / 5], [1, 0, 1, 0, 0]]
    np.testing.assert_allclose(found_BF, expected, rtol=1e-6)
    ledger.settle(np.array([2, 2, 0]), np.ones(3), np.ones(3), np.ones(3, dtype=np.bool_))
    found_BF = ledger.read_features(np.ones(3, dtype=np.int64), 5, bound_BK)
    expected = [[0.8, 0.2, 0, 1, 1], [0.8, 0.2, 1, 0.5, 1 / 4], [0.8, 0, 1, 0, 0]]
    np.testing.assert_allclose(found_BF, expected, rtol=1e-6)


@given(
    st.sampled_from(["calls", "usd"]),
    st.none() | st.floats(0, 1e6),
    st.lists(st.tuples(st.integers(0, 2), st.floats(0, 10), st.floats(0, 3)), max_size=10),
)
def test_features_stay_between_zero_and_one_whatever_is_spent(unit, cap, steps):
    ledger = open_ledger(unit, cap)
    for turn, (executor, bound, share) in enumerate(steps):
        bound_1K = bound * np.array([[0.1, 0.5, 1.0]])
        spend(ledger, executor, bound_1K[0, executor], bound_1K[0, executor] * share)
        features_F = ledger.read_features(np.array([turn + 1]), 10, bound_1K)[0]
        assert features_F.dtype == np.float32
        assert np.all((features_F >= 0) & (features_F <= 1))


def test_the_budget_is_described_in_few_words():
    assert open_ledger("calls", 3).describe(0) == "Budget left: 3 dear calls."
    assert open_ledger("usd", 0.02).describe(0) == "Budget left: 0.02000 USD."
    assert open_ledger("usd", None).describe(0) == ""


def test_caps_are_drawn_all_alike_from_the_episode_seed():
    config = BudgetConfig(caps=(None, 5, 10, 15))
    cap_B = config.draw_caps(np.arange(40_000))
    for cap in (np.inf, 5, 10, 15):
        assert np.mean(cap_B == cap) == pytest.approx(0.25, abs=4 * np.sqrt(0.1875 / 40_000))
    assert config.draw_caps(np.array([77]))[0] == cap_B[77]


@pytest.mark.parametrize("caps", [[-1], [float("nan")], [float("inf")], []])
def test_impossible_caps_are_refused_in_one_line(caps):
    with pytest.raises(RLRouteError, match=r"budget: caps: .*") as caught:
        parse_config(BudgetConfig, {"caps": caps}, "budget")
    assert "\n" not in str(caught.value)


def test_a_part_of_a_call_is_no_cap():
    with pytest.raises(RLRouteError, match=r"caps: 2\.96e-06 is no whole number of calls .*usd"):
        parse_config(BudgetConfig, {"unit": "calls", "caps": [2.96e-6, 1]}, "test")
    assert parse_config(BudgetConfig, {"caps": [0, 2.0, None]}, "test").caps == (0, 2, None)
    assert BudgetConfig(unit="usd", caps=(2.96e-6,)).caps == (2.96e-6,)
