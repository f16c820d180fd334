from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlroute.pool.ledger import BudgetExceeded, Ledger
from rlroute.types import RLRouteError

# A schedule is a list of steps: reserve (bound, share of it that will be the cost, share of the
# rest that stays uncertain, episode), or settle the open reservation of this number.
SHARES = st.floats(0, 1, allow_nan=False)
RESERVE = st.tuples(
    st.floats(0, 3, allow_nan=False), SHARES, SHARES, st.sampled_from(["", "a", "b"])
)
STEPS = st.lists(st.one_of(RESERVE, st.integers(0, 100)), max_size=60)
CAPS = st.one_of(st.none(), st.floats(0, 5, allow_nan=False))


def check_caps(ledger: Ledger, run_cap: float | None, episode_cap: float | None) -> None:
    held = ledger.spent_usd + ledger.uncertain_usd + ledger.reserved_usd
    assert run_cap is None or held <= run_cap + 1e-11
    for episode in ("a", "b"):
        assert episode_cap is None or ledger.episode_spent(episode) <= episode_cap + 1e-11


@settings(max_examples=1000, deadline=None)
@given(CAPS, CAPS, STEPS)
def test_no_schedule_of_reserving_and_settling_passes_a_cap(run_cap, episode_cap, steps):
    ledger = Ledger(run_cap, episode_cap)
    waiting = []
    for step in steps:
        if isinstance(step, int):
            if waiting:
                reservation, cost, uncertain = waiting.pop(step % len(waiting))
                ledger.settle(reservation, cost, uncertain)
        else:
            bound, share, rest, episode = step
            try:
                reservation = ledger.reserve(bound, episode)
            except BudgetExceeded as error:
                gone_for_good, in_flight = error.final, bool(waiting)
                assert gone_for_good or in_flight
            else:
                cost = min(bound, bound * share)
                waiting.append((reservation, cost, (bound - cost) * rest))
        check_caps(ledger, run_cap, episode_cap)
    for reservation, cost, uncertain in waiting:
        ledger.settle(reservation, cost, uncertain)
    check_caps(ledger, run_cap, episode_cap)
    assert ledger.reserved_usd == 0


@settings(max_examples=20, deadline=None)
@given(st.floats(0.1, 2), st.lists(SHARES, min_size=80, max_size=80))
def test_threads_that_reserve_and_settle_at_once_pass_no_cap(cap, shares):
    ledger = Ledger(cap)
    most_seen = []

    def work(part: list[float]) -> None:
        for share in part:
            try:
                reservation = ledger.reserve(0.1)
            except BudgetExceeded:
                continue
            held = ledger.spent_usd + ledger.reserved_usd
            ledger.settle(reservation, 0.1 * share)
            most_seen.append(held)

    threads = [threading.Thread(target=work, args=(shares[start::4],)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.spent_usd <= cap
    assert ledger.reserved_usd == 0
    # spent and reserved are read one after the other: a settlement in between counts twice
    assert all(held <= cap + 4 * 0.1 for held in most_seen)


def test_sums_are_exact_where_floats_are_not():
    ledger = Ledger()
    for _ in range(100_000):
        ledger.settle(ledger.reserve(0.1), 0.1)
    assert ledger.spent_picodollars == 10_000 * 10**12
    assert ledger.spent_usd == 10_000.0
    assert sum([0.1] * 100_000) != 10_000.0


def test_an_uncertain_bill_counts_against_the_cap():
    ledger = Ledger(1.0)
    ledger.settle(ledger.reserve(0.6), 0.0, 0.6)
    assert (ledger.spent_usd, ledger.uncertain_usd) == (0.0, 0.6)
    with pytest.raises(BudgetExceeded) as caught:
        ledger.reserve(0.6)
    assert caught.value.final


def test_room_that_others_hold_may_come_back():
    ledger = Ledger(1.0)
    held = ledger.reserve(0.6)
    with pytest.raises(BudgetExceeded) as caught:
        ledger.reserve(0.6)
    assert not caught.value.final
    ledger.settle(held, 0.1)
    ledger.reserve(0.6)


def test_an_episode_has_a_cap_of_its_own_and_what_came_before_counts():
    ledger = Ledger(2.0, 0.5, already_spent_usd=1.0)
    ledger.settle(ledger.reserve(0.5, "one"), 0.4)
    with pytest.raises(BudgetExceeded, match="episode 'one'"):
        ledger.reserve(0.2, "one")
    ledger.settle(ledger.reserve(0.5, "two"), 0.5)
    with pytest.raises(BudgetExceeded, match="the run"):
        ledger.reserve(0.2, "three")
    assert ledger.episode_spent("one") == 0.4
    assert ledger.spent_usd == 1.9


def test_a_cost_beyond_its_bound_is_charged_and_logged(caplog):
    ledger = Ledger(1.0)
    ledger.settle(ledger.reserve(0.5), 0.7)
    assert ledger.spent_usd == 0.7
    assert "more than its upper bound" in caplog.text


def test_a_reservation_is_settled_once():
    ledger = Ledger(1.0)
    reservation = ledger.reserve(0.5)
    ledger.settle(reservation, 0.1)
    with pytest.raises(ValueError, match="once"):
        ledger.settle(reservation, 0.1)


@pytest.mark.parametrize("amount", [-0.1, float("nan"), float("inf")])
def test_amounts_that_are_none_are_refused(amount):
    with pytest.raises(RLRouteError, match="finite and not negative"):
        Ledger(amount)
    with pytest.raises(RLRouteError):
        Ledger().reserve(amount)
