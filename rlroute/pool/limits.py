"""How fast one candidate is asked, and when it is left alone: rate limiter and circuit breaker.

The rate limiter keeps the three limits that a server states: requests in flight at once, requests
per minute and tokens per minute. The last two hold for every window of 60 seconds (a log of the
window is kept), not only on average, and who comes first is served first.

The circuit breaker stops asking a server that has failed many times in a row: it opens, lets one
probe through after a while (half-open), and closes when a request succeeds. Every probe that fails
doubles the wait, up to a bound. What a failure is, is said by the caller; a late success of a
request that was sent before it opened closes it too, for it proves the same.

What they leave out: limits shared between processes. Two processes at one server each need a part
of its limits.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

SECONDS_PER_MINUTE = 60.0
PROBE_POLL_SECONDS = 0.05


class RateLimiter:
    """Limits of one candidate. After a change of event loop, call `rebind`.

    Args:
        concurrency: requests in flight at once.
        requests_per_minute: requests that may start in any 60 seconds; None for no limit. A
            fraction below 1 means one request per 60 / fraction seconds.
        tokens_per_minute: tokens of the requests that start in any 60 seconds; None for no limit.
            A request that alone needs more waits for an empty window.
        clock: seconds that only grow.
        sleep: waits that long by the same clock.
    """

    def __init__(
        self,
        concurrency: int,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.concurrency = concurrency
        self.max_requests = (
            None if requests_per_minute is None else max(1, int(requests_per_minute))
        )
        self.max_tokens = tokens_per_minute
        self.window_seconds = SECONDS_PER_MINUTE
        if requests_per_minute is not None and requests_per_minute < 1:
            self.window_seconds /= requests_per_minute
            if tokens_per_minute is not None:
                self.max_tokens = tokens_per_minute / requests_per_minute
        self._clock, self._sleep = clock, sleep
        self._started: deque[tuple[float, int]] = deque()  # (time, tokens) of the window
        self._tokens = 0
        self.rebind()

    def rebind(self) -> None:
        """Forget who waits (of an event loop that is gone); the log of the window stays."""
        self._places = asyncio.Semaphore(self.concurrency)
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def slot(self, tokens: int) -> AsyncIterator[None]:
        """Wait for a place and for the rates; hold the place while the body runs."""
        async with self._places:
            if self.max_requests is not None or self.max_tokens is not None:
                async with self._turn:  # the lock queues in the order of arrival
                    while (seconds := self._compute_wait(tokens)) > 0:
                        await self._sleep(seconds)
                    self._started.append((self._clock(), tokens))
                    self._tokens += tokens
            yield

    def _compute_wait(self, tokens: int) -> float:
        """Return the seconds until the window may have room for a request of so many tokens."""
        now = self._clock()
        while self._started and self._started[0][0] + self.window_seconds <= now:
            self._tokens -= self._started.popleft()[1]
        full = self.max_requests is not None and len(self._started) >= self.max_requests
        dear = self.max_tokens is not None and self._tokens + tokens > self.max_tokens
        if self._started and (full or dear):
            return self._started[0][0] + self.window_seconds - now
        return 0.0


class CircuitBreaker:
    """Leaves a failing server alone for a while.

    Args:
        failures_to_open: failures in a row that open it.
        seconds_open: how long it stays open the first time; doubled by every failed probe.
        max_seconds_open: the bound of the doubling.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        failures_to_open: int = 10,
        seconds_open: float = 1.0,
        max_seconds_open: float = 60.0,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.failures_to_open = failures_to_open
        self.first_seconds_open, self.max_seconds_open = seconds_open, max_seconds_open
        self._clock = clock
        self._failures = 0
        self._probing = False
        self._seconds_open = seconds_open
        self._opened_until: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether requests are held back now, the half-open state included."""
        return self._opened_until is not None

    def admit(self) -> float:
        """Return 0 where a request may be sent now, else the seconds after which to ask again.

        Where `is_open` still holds after a 0, the caller is the probe: it says so to
        `record_failure`, and calls `release_probe` when it is done, whatever happened.
        """
        if self._opened_until is None:
            return 0.0
        if self._probing:
            return PROBE_POLL_SECONDS
        seconds = self._opened_until - self._clock()
        if seconds > 0:
            return seconds
        self._probing = True
        return 0.0

    def record_success(self) -> None:
        """Say that the server answered: the breaker closes."""
        self._failures = 0
        self._seconds_open = self.first_seconds_open
        self._opened_until = None

    def record_failure(self, *, probe: bool = False) -> None:
        """Say that the server failed: a probe's failure opens again, for twice as long."""
        self._failures += 1
        if probe:
            self._seconds_open = min(2 * self._seconds_open, self.max_seconds_open)
        if probe or (self._opened_until is None and self._failures >= self.failures_to_open):
            self._opened_until = self._clock() + self._seconds_open

    def release_probe(self) -> None:
        """Let another probe through; where the last one showed nothing (cancelled), at once."""
        self._probing = False
