"""The live pool: calls that cost money, asked over HTTP behind `ask_many`.

How one call travels: cache (an answer that was paid is not paid again) -> circuit breaker -> rate
limiter -> ledger (the upper bound is reserved before the request) -> request -> ledger (settled) ->
again from the breaker if the fault is worth it -> cache. Rules:

- One call ends in one reply: an answer or a typed failure. Failures have no score, are never
  cached, and `cost_usd` of any reply is what all its attempts are known to have been billed.
- A call has (retries + 1) x timeout_seconds from when it is first allowed to go; waiting for its
  candidate's own rate limits and for reserved money does not count. Between attempts it waits with
  full jitter (Brooker, 2015): uniform in [0, min(`MAX_BACKOFF_SECONDS`, `BACKOFF_SECONDS` x
  2^attempt)], and no less than the server's Retry-After. A wait that does not fit ends the call
  with the failure at hand. What was billed is never asked again.
- An open breaker is waited for as long as the deadline allows; where its wait is longer the call
  fails as SERVER at once, with the attempts made so far. Timeouts and server faults open it.
- No room under a cap: the call waits while other calls hold reservations that stand in the way, and
  fails as BUDGET when the room is gone for good. Calls that are done keep their replies.
- `latency_seconds` is that of the last attempt: what the candidate took, not our own waiting.
- Cancelled (Ctrl-C): requests in flight are closed and settled as uncertain; what was answered is
  in the cache.

At most `concurrency` tasks per candidate and `max_in_flight` requests exist at a time, however long
the list of calls is. What it leaves out: cassettes, and limits shared between processes.

How to use (extra `http`):
    async with LivePool(endpoints, ledger=Ledger(run_cap_usd=5.0)) as pool:
        replies = await pool.ask_many(calls)
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any, Self

from rlroute.extras import require
from rlroute.pool.cache import LEASE_SECONDS, ReplyCache, make_key
from rlroute.pool.chat import bound_usage, estimate_usage, fits_context, load_tokenizer
from rlroute.pool.http import Attempt, Connection, Endpoint, read_api_key
from rlroute.pool.ledger import BudgetExceeded, Ledger, Reservation
from rlroute.pool.limits import CircuitBreaker, RateLimiter
from rlroute.seeding import draw_uniform
from rlroute.types import Call, FailureKind, Prices, Reply, RLRouteError, Usage

BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 30.0
POLL_SECONDS = (
    0.02  # how often reserved money, or an answer that another process asks, is looked at
)


@dataclass
class _Gate:
    """The limiter and the breaker of one candidate."""

    limiter: RateLimiter
    breaker: CircuitBreaker


@dataclass
class _Progress:
    """What a call has used so far."""

    deadline: float
    attempts: int = 0
    cost_usd: float = 0.0


class LivePool:
    """Candidates that answer over HTTP.

    It may be used from one event loop after another, by one at a time; the last one closes it
    (`async with`, or `close`).

    Args:
        endpoints: by candidate id.
        ledger: what the calls are charged to; pools may share it.
        cache: where answers are kept, None for nowhere.
        seed: of the waits between attempts.
        max_in_flight: requests at once, over all candidates.

    Raises:
        RLRouteError: httpx is not installed (extra `http`), or a tokenizer is missing.
    """

    def __init__(
        self,
        endpoints: Mapping[str, Endpoint],
        *,
        ledger: Ledger,
        cache: ReplyCache | None = None,
        seed: int = 0,
        max_in_flight: int = 64,
    ) -> None:
        self.endpoints = dict(endpoints)
        self.ledger, self.cache, self.seed = ledger, cache, seed
        self.max_in_flight = max_in_flight
        for item in self.endpoints.values():
            if item.tokenizer is not None:
                load_tokenizer(item.tokenizer)  # a missing one is found before anything is sent
        self._certificates = require("httpx", "http").create_ssl_context()
        self._gates = {
            name: _Gate(
                RateLimiter(item.concurrency, item.requests_per_minute, item.tokens_per_minute),
                CircuitBreaker(),
            )
            for name, item in self.endpoints.items()
        }
        self._loop: asyncio.AbstractEventLoop | None = None
        self._idle: list[Connection] = []

    async def ask_many(self, calls: Sequence[Call]) -> list[Reply]:
        """Return one reply per call, in the order of the calls.

        Raises:
            RLRouteError: a call names no candidate of this pool, or the environment variable of a
                key is missing; nothing has been sent then.
        """
        replies: list[Reply | None] = [None] * len(calls)
        numbers_by_candidate: defaultdict[str, list[int]] = defaultdict(list)
        for number, call in enumerate(calls):
            numbers_by_candidate[call.candidate_id].append(number)
        for name in numbers_by_candidate:
            if name not in self.endpoints:
                known = ", ".join(sorted(self.endpoints))
                raise RLRouteError(f"no candidate '{name}' in this pool; known: {known}")
            read_api_key(self.endpoints[name])
        self._enter_loop()

        async def answer_next(numbers: Iterator[int]) -> None:
            for number in numbers:
                replies[number] = await self._ask(calls[number])

        try:
            async with self._keep_leases(), asyncio.TaskGroup() as group:
                for name, numbers in numbers_by_candidate.items():
                    remaining = iter(numbers)  # shared: each worker takes the next that is left
                    for _ in range(min(len(numbers), self.endpoints[name].concurrency)):
                        group.create_task(answer_next(remaining))
        except ExceptionGroup as errors:
            if (known_errors := errors.subgroup(RLRouteError)) is None:
                raise
            raise known_errors.exceptions[0] from None
        return [reply for reply in replies if reply is not None]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; the pool opens new ones when it is asked again."""
        idle, self._idle = self._idle, []
        for connection in idle:
            await connection.close()

    def _enter_loop(self) -> None:
        """Make what is bound to an event loop anew where the loop is another one than last time."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._idle = loop, []  # connections of a loop that is gone are lost
            self._in_flight = asyncio.Semaphore(self.max_in_flight)
            for gate in self._gates.values():
                gate.limiter.rebind()

    @asynccontextmanager
    async def _keep_leases(self) -> AsyncIterator[None]:
        """Renew the cache's leases while the body runs."""
        if self.cache is None:
            yield
            return

        async def renew(cache: ReplyCache) -> None:
            while True:
                await asyncio.sleep(LEASE_SECONDS / 4)
                cache.renew_leases()

        task = asyncio.create_task(renew(self.cache))
        try:
            yield
        finally:
            task.cancel()

    async def _ask(self, call: Call) -> Reply:
        """Answer one call from the cache or from its server."""
        if self.cache is None:
            return await self._ask_server(call)
        key = make_key(self.endpoints[call.candidate_id], call)
        while (stored := self.cache.get(key)) is None and not self.cache.claim(key):
            await asyncio.sleep(POLL_SECONDS)
        if stored is not None:
            prices = self.endpoints[call.candidate_id].candidate.prices
            return _restore_reply(call, stored, prices)
        try:
            reply = await self._ask_server(call)
            if reply.failure is None and reply.usage is not None:
                self.cache.put(key, _store_reply(reply, reply.usage))
        finally:
            self.cache.release(key)
        return reply

    async def _ask_server(self, call: Call) -> Reply:
        """Send a call until it is answered, its fault is final, or its time or money is gone."""
        endpoint, gate = self.endpoints[call.candidate_id], self._gates[call.candidate_id]
        loop = asyncio.get_running_loop()
        most_seconds = (endpoint.retries + 1) * endpoint.timeout_seconds
        progress = _Progress(loop.time() + most_seconds)
        if not fits_context(endpoint, call):
            return _make_failure(call, FailureKind.BAD_REQUEST, progress, None)
        tokens = estimate_usage(endpoint, call, "").prompt_tokens
        tokens += bound_usage(endpoint, call).completion_tokens
        failure = FailureKind.SERVER  # what an open breaker means, before any attempt
        while True:
            if not await _pass_breaker(gate.breaker, progress.deadline):
                return _make_failure(call, failure, progress, None)
            probe = gate.breaker.is_open
            try:
                queued = loop.time()
                async with gate.limiter.slot(tokens):
                    progress.deadline += loop.time() - queued
                    attempt = await self._send(endpoint, call, progress)
                _report(gate.breaker, attempt, probe)
            except BudgetExceeded:
                return _make_failure(call, FailureKind.BUDGET, progress, None)
            finally:
                if probe:
                    gate.breaker.release_probe()
            if attempt.failure is None:
                return Reply(
                    call,
                    attempt.text,
                    attempt.usage,
                    progress.cost_usd,
                    attempt.seconds,
                    attempts=progress.attempts,
                )
            failure = attempt.failure
            wait = self._compute_backoff(call, progress.attempts, attempt)
            late = loop.time() + wait >= progress.deadline
            if not attempt.retryable or progress.attempts > endpoint.retries or late:
                return _make_failure(call, failure, progress, attempt)
            await asyncio.sleep(wait)

    async def _send(self, endpoint: Endpoint, call: Call, progress: _Progress) -> Attempt:
        """Make one attempt: reserve its upper bound, send it, settle what it cost.

        Raises:
            BudgetExceeded: a cap has no room for the upper bound, now and later.
        """
        loop = asyncio.get_running_loop()
        bound_usd = bound_cost(endpoint, call)
        queued = loop.time()
        async with self._borrow_connection() as connection:
            reservation = await self._reserve(bound_usd, call.episode)
            cost_usd, uncertain_usd = 0.0, bound_usd  # unless the attempt says otherwise
            try:
                progress.deadline += loop.time() - queued
                progress.attempts += 1
                left = max(0.0, progress.deadline - loop.time())
                attempt = await connection.send(endpoint, call, min(endpoint.timeout_seconds, left))
                if attempt.bill != "unknown":
                    uncertain_usd = 0.0
                if attempt.usage is not None:
                    usage = attempt.usage
                    cost_usd = endpoint.candidate.prices.compute_cost(
                        usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens
                    )
            finally:
                self.ledger.settle(reservation, cost_usd, uncertain_usd)
        progress.cost_usd += cost_usd
        return attempt

    @asynccontextmanager
    async def _borrow_connection(self) -> AsyncIterator[Connection]:
        """Wait for one of the `max_in_flight` places; yield a connection that nobody else uses."""
        async with self._in_flight:
            connection = self._idle.pop() if self._idle else Connection(self._certificates)
            try:
                yield connection
            finally:
                self._idle.append(connection)

    async def _reserve(self, bound_usd: float, episode: str) -> Reservation:
        """Reserve money; wait while only the reservations of other calls stand in the way."""
        while True:
            try:
                return self.ledger.reserve(bound_usd, episode)
            except BudgetExceeded as error:
                if error.final:
                    raise
            await asyncio.sleep(POLL_SECONDS)

    def _compute_backoff(self, call: Call, attempts: int, attempt: Attempt) -> float:
        """Return the seconds until the next attempt."""
        ceiling = min(MAX_BACKOFF_SECONDS, BACKOFF_SECONDS * 2.0 ** (attempts - 1))
        place = (self.seed, "backoff", call.candidate_id, call.query.id, call.sample, attempts)
        return max(attempt.retry_after_seconds or 0.0, ceiling * float(draw_uniform(*place)))


def bound_cost(endpoint: Endpoint, call: Call) -> float:
    """Return the most that one request can cost in USD, which is what is reserved for it."""
    most, prices = bound_usage(endpoint, call), endpoint.candidate.prices
    # Should cached tokens cost more than others, then they are the bound.
    return max(
        prices.compute_cost(most.prompt_tokens, most.completion_tokens, cached)
        for cached in (0, most.prompt_tokens)
    )


async def _pass_breaker(breaker: CircuitBreaker, deadline: float) -> bool:
    """Wait until the breaker lets a request through; False where that is after the deadline."""
    loop = asyncio.get_running_loop()
    while (wait := breaker.admit()) > 0:
        if loop.time() + wait >= deadline:
            return False
        await asyncio.sleep(wait)
    return True


def _report(breaker: CircuitBreaker, attempt: Attempt, probe: bool) -> None:
    """Tell the breaker what an attempt showed of its server; being told to slow down is neither."""
    if attempt.failure in (FailureKind.TIMEOUT, FailureKind.SERVER):
        breaker.record_failure(probe=probe)
    elif attempt.failure is not FailureKind.RATE_LIMITED:
        breaker.record_success()


def _make_failure(
    call: Call, failure: FailureKind, progress: _Progress, attempt: Attempt | None
) -> Reply:
    """Return a failed reply; `attempt` is the last one, None where the failure is our own."""
    return Reply(
        call,
        usage=None if attempt is None else attempt.usage,
        cost_usd=progress.cost_usd,
        latency_seconds=None if attempt is None else attempt.seconds,
        failure=failure,
        attempts=progress.attempts,
    )


def _store_reply(reply: Reply, usage: Usage) -> dict[str, Any]:
    """Return what is kept of an answer; the call is not."""
    return {
        "text": reply.text,
        "usage": asdict(usage),
        "latency_seconds": reply.latency_seconds,
    }


def _restore_reply(call: Call, stored: Mapping[str, Any], prices: Prices) -> Reply:
    """Return a stored answer as the reply to a call.

    Its cost is what the answer costs: nothing is billed now, but whoever learns from replies must
    not find an answer cheap because it was asked before.
    """
    usage = Usage(**stored["usage"])
    return Reply(
        call,
        stored["text"],
        usage,
        prices.compute_cost(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens),
        latency_seconds=stored["latency_seconds"],
        attempts=0,
        cached=True,
    )
