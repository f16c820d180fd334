"""Asking: sends the calls of a collection that are not finished, and journals every reply.

What it is: the calls of each candidate stand in a queue; as many workers as the candidate may be
asked at once take from it. A reply is written to the journal before anything else happens to it.
Candidates that run in this process are asked in blocks whose bounds never move (a model's batch
decides how its sums are rounded and what it samples); an unfinished block is asked whole.

A stop lets the calls in flight finish and starts no others. It comes from a signal (Ctrl-C,
SIGTERM; a second one gives up the calls in flight), from a cap in USD, from a candidate that
refuses its key, or from a full disk.

What it leaves out: which calls there are (`rlroute.collection.query_run`).
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlroute.collection.forecast import bound_usd
from rlroute.collection.journal import Journal
from rlroute.pool.cassette import hash_call, restore_reply
from rlroute.pool.open import OpenPool
from rlroute.pool.pool_file import HttpSpec, LocalSpec, PoolFile, SimulatedSpec, VllmSpec
from rlroute.types import Call, FailureKind, Reply, RLRouteError

BLOCK = 256  # calls of a candidate that runs in this process
STOPPING = {
    FailureKind.BUDGET: "the cap in USD is reached; raise it (--max-usd, max_usd)",
    FailureKind.AUTH: "a server refuses the key; set the variable that api_key_env names",
}
NO_CAUSE = (
    *("prices", "aliases", "description", "kind", "concurrency", "requests_per_minute"),
    *("tokens_per_minute", "timeout_seconds", "retries", "api_key_env", "context_tokens"),
)

Advance = Callable[[int], None]


@dataclass
class Stop:
    """Whether calls are still started, and why not."""

    reason: str = ""
    error: RLRouteError | None = None
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.reason)

    def take_signal(self, name: str) -> None:
        """Stop; the second time, give up the calls in flight."""
        if self.reason:
            for task in self.tasks:
                task.cancel()
        self.reason = self.reason or f"{name} received"

    def fail(self, error: RLRouteError) -> None:
        """Stop because of a fault that is raised in the end."""
        self.reason = self.reason or str(error)
        self.error = self.error or error


def make_key(pool_file: PoolFile, call: Call) -> str:
    """Return the journal's key of a call: a hash of all that decides its answer."""
    spec = pool_file.candidates[call.candidate_id]
    causes: list[Any] = [call.query.id, call.query.task]
    causes += [spec.model_dump(mode="json", exclude=set(NO_CAUSE))]
    if isinstance(spec, LocalSpec):
        source = pool_file.models[spec.model].model_dump(mode="json", exclude={"licence"})
        causes += [source, str(pool_file.examples), pool_file.seed]
    if isinstance(spec, SimulatedSpec):
        causes += [pool_file.simulation.model_dump(), pool_file.seed]
    return hash_call(call, *causes)


@dataclass(frozen=True)
class Asking:
    """What the workers share; `advance` is told how many more calls are done."""

    pool_file: PoolFile
    pool: OpenPool
    journal: Journal
    stop: Stop
    advance: Advance

    async def ask_all(self, calls: Sequence[Call]) -> list[Reply | None]:
        """Return the replies of the journal, having asked what it did not hold.

        None stands for a call that is not finished: it was not started, was given up, or was
        refused unsent (a candidate that is down is not asked any more).

        Raises:
            RLRouteError: a fault other than a failed call; what was finished is in the journal.
        """
        keys = [make_key(self.pool_file, call) for call in calls]
        distinct = dict(zip(keys, calls, strict=True))  # of calls that are alike, one is asked
        queues = self._make_queues(distinct)
        held = sum(key in self.journal.replies for key in distinct)
        self.advance(held + len(calls) - len(distinct))
        workers = [
            asyncio.create_task(self._work(queue))
            for name, queue in queues.items()
            for _ in range(min(len(queue), self._count_workers(name)))
        ]
        self.stop.tasks = workers
        done = await asyncio.gather(*workers, return_exceptions=True)
        for fault in done:
            if isinstance(fault, BaseException) and not isinstance(fault, asyncio.CancelledError):
                raise fault
        if self.stop.error is not None:
            raise self.stop.error
        replies = self.journal.replies
        return [
            restore_reply(call, replies[key]) if key in replies else None
            for key, call in zip(keys, calls, strict=True)
        ]

    def _count_workers(self, name: str) -> int:
        """Return how many blocks of a candidate are asked at once."""
        spec = self.pool_file.candidates[name]
        return spec.concurrency if isinstance(spec, HttpSpec) else 1

    def _make_queues(self, calls: Mapping[str, Call]) -> dict[str, deque[dict[str, Call]]]:
        """Return candidate -> blocks (key -> call) of which something is unfinished."""
        by_candidate: dict[str, list[str]] = {}
        for key, call in calls.items():
            by_candidate.setdefault(call.candidate_id, []).append(key)
        queues: dict[str, deque[dict[str, Call]]] = {}
        for name, keys in by_candidate.items():
            spec = self.pool_file.candidates[name]
            size = 1 if isinstance(spec, HttpSpec) else BLOCK
            whole = isinstance(spec, LocalSpec | VllmSpec)
            blocks = (keys[start : start + size] for start in range(0, len(keys), size))
            queues[name] = deque(
                {k: calls[k] for k in block if whole or k not in self.journal.replies}
                for block in blocks
                if any(key not in self.journal.replies for key in block)
            )
        return queues

    async def _work(self, queue: deque[dict[str, Call]]) -> None:
        """Ask block after block until none is left or the collection stops."""
        while queue and not self.stop:
            block = queue.popleft()
            try:
                await self._ask_block(block)
            except RLRouteError as error:
                self.stop.fail(error)

    async def _ask_block(self, block: Mapping[str, Call]) -> None:
        """Ask the calls of a block and journal what they replied."""
        calls = list(block.values())
        name = calls[0].candidate_id
        spec, candidate = self.pool_file.candidates[name], self.pool.candidates[name]
        is_paid = isinstance(spec, HttpSpec)
        if isinstance(spec, HttpSpec):
            bounds = {key: bound_usd(candidate, spec, call) for key, call in block.items()}
            self.journal.begin(bounds)
        replies = dict(zip(block, await self.pool.ask_many(calls), strict=True))
        new = [key for key in block if key not in self.journal.replies]
        paid = {
            key: reply.cost_usd if is_paid and not reply.cached else 0.0
            for key, reply in replies.items()
        }
        finished = {key: reply for key, reply in replies.items() if is_finished(reply)}
        given_up = {key: paid[key] for key in replies if key not in finished}
        if given_up:
            self.journal.void(given_up, self.pool.ledger.uncertain_usd)
        await self.journal.end(finished, paid, self.pool.ledger.uncertain_usd)
        self.advance(sum(key in finished for key in new))
        for reply in replies.values():
            if reply.failure in STOPPING:
                reason = f"candidate '{reply.call.candidate_id}': {STOPPING[reply.failure]}"
                self.stop.reason = self.stop.reason or reason


def is_finished(reply: Reply) -> bool:
    """Say whether another start need not ask again: an answer, or a failure of the call itself."""
    if reply.failure is None:
        return True
    given_up = reply.failure in STOPPING or reply.failure == FailureKind.CANCELLED
    return not given_up and reply.attempts > 0


@contextlib.contextmanager
def catch_signals(stop: Stop) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM stop a collection cleanly while the block runs."""
    loop = asyncio.get_running_loop()
    names = (signal.SIGINT, signal.SIGTERM)
    for number in names:
        loop.add_signal_handler(number, stop.take_signal, number.name)
    try:
        yield
    finally:
        for number in names:
            loop.remove_signal_handler(number)
