from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlroute.pool.limits import PROBE_POLL_SECONDS, CircuitBreaker, RateLimiter


class Clock:
    """Time that moves only when somebody sleeps or a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


def record_starts(limiter: RateLimiter, clock: Clock, tokens: list[int]) -> list[float]:
    """Return when each request starts, if all are asked for at time 0."""
    starts = []

    async def use(count: int) -> None:
        async with limiter.slot(count):
            starts.append(clock.now)

    async def use_all() -> None:
        await asyncio.gather(*(use(count) for count in tokens))

    asyncio.run(use_all())
    return starts


def test_requests_per_minute_hold_in_every_window():
    clock = Clock()
    limiter = RateLimiter(8, requests_per_minute=3, clock=clock, sleep=clock.sleep)
    assert record_starts(limiter, clock, [1] * 7) == [0, 0, 0, 60, 60, 60, 120]


def test_less_than_one_request_a_minute_is_a_rate_too():
    clock = Clock()
    limiter = RateLimiter(8, requests_per_minute=0.5, clock=clock, sleep=clock.sleep)
    assert record_starts(limiter, clock, [1] * 3) == [0, 120, 240]


def test_tokens_per_minute_hold_and_a_request_beyond_them_gets_an_empty_window():
    clock = Clock()
    limiter = RateLimiter(8, tokens_per_minute=100, clock=clock, sleep=clock.sleep)
    assert record_starts(limiter, clock, [60, 40, 1, 500, 10]) == [0, 0, 60, 120, 180]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5), st.lists(st.integers(1, 40), min_size=1, max_size=25))
def test_no_window_of_a_minute_holds_more_than_the_limits(requests, tokens):
    clock = Clock()
    limiter = RateLimiter(4, requests, 100, clock=clock, sleep=clock.sleep)
    starts = record_starts(limiter, clock, tokens)
    for first in starts:
        window = [i for i, start in enumerate(starts) if first <= start < first + 60 - 1e-6]
        assert len(window) <= requests
        assert sum(tokens[i] for i in window) <= 100


def test_no_more_requests_than_places_are_in_flight_and_a_new_loop_can_use_the_limiter():
    limiter = RateLimiter(3)
    most = [0, 0]  # now, ever

    async def use() -> None:
        async with limiter.slot(1):
            most[0] += 1
            most[1] = max(most)
            await asyncio.sleep(0.001)
            most[0] -= 1

    async def use_all() -> None:
        limiter.rebind()
        await asyncio.gather(*(use() for _ in range(20)))

    asyncio.run(use_all())
    asyncio.run(use_all())
    assert most == [0, 3]


def make_open_breaker(clock: Clock) -> CircuitBreaker:
    breaker = CircuitBreaker(3, 2.0, 10.0, clock=clock)
    for _ in range(3):
        assert breaker.admit() == 0
        breaker.record_failure()
    assert breaker.is_open
    return breaker


def test_the_breaker_opens_after_failures_in_a_row_only():
    breaker = CircuitBreaker(3, 2.0, clock=Clock())
    for _ in range(5):
        breaker.record_failure()
        breaker.record_failure()
        breaker.record_success()
    assert not breaker.is_open
    assert breaker.admit() == 0


def test_an_open_breaker_lets_one_probe_through_and_its_success_closes():
    clock = Clock()
    breaker = make_open_breaker(clock)
    assert breaker.admit() == 2.0
    clock.now = 2.0
    assert breaker.admit() == 0.0
    assert breaker.is_open  # so the caller knows that it is the probe
    assert breaker.admit() == PROBE_POLL_SECONDS  # everyone else waits for it
    breaker.record_success()
    breaker.release_probe()
    assert not breaker.is_open
    assert breaker.admit() == 0.0


def test_every_failed_probe_doubles_the_wait_up_to_its_bound():
    clock = Clock()
    breaker = make_open_breaker(clock)
    for expected in (4.0, 8.0, 10.0, 10.0):
        clock.now += breaker.admit()
        assert breaker.admit() == 0.0
        breaker.record_failure(probe=True)
        breaker.release_probe()
        assert breaker.admit() == expected
    clock.now += 10.0
    breaker.admit()
    breaker.record_success()
    breaker.release_probe()
    for _ in range(3):
        breaker.record_failure()
    assert breaker.admit() == 2.0  # a success forgets the doubling


def test_late_failures_of_requests_from_before_do_not_prolong_and_a_lost_probe_is_freed():
    clock = Clock()
    breaker = make_open_breaker(clock)
    clock.now = 1.0
    breaker.record_failure()
    assert breaker.admit() == 1.0
    clock.now = 2.0
    assert breaker.admit() == 0.0
    breaker.release_probe()  # cancelled: it showed nothing
    assert breaker.admit() == 0.0


@pytest.mark.parametrize("seconds", [0.5, 1.0])
def test_a_success_from_before_the_breaker_opened_closes_it(seconds):
    clock = Clock()
    breaker = make_open_breaker(clock)
    clock.now = seconds
    breaker.record_success()
    assert breaker.admit() == 0.0
