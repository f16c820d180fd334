"""Ten thousand calls through 30 % mixed faults: nothing lost, nothing counted twice, every cent."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from pathlib import Path

import pytest
from fault_server import run_fault_server
from word_tokenizer import write_word_tokenizer

from rlroute.pool import http, live
from rlroute.pool.http import Endpoint
from rlroute.pool.ledger import Ledger, to_picodollars
from rlroute.pool.live import LivePool
from rlroute.types import Call, Candidate, FailureKind, Limits, Prices, Query, Reply

pytestmark = pytest.mark.slow

CALLS = 10_000
PRICES = {"input": 3.0, "output": 15.0, "cached_input": 0.3}
FAULTS = {
    **dict.fromkeys(["delay", "drip", "no_usage", "half_body", "invalid_json", "reset"], 0.025),
    **dict.fromkeys(["rate_limited", "rate_limited_bare", "server_500", "gateway_502"], 0.025),
    **dict.fromkeys(["wrong_model", "empty_choices", "filtered"], 0.01),
    **dict.fromkeys(["hang", "rate_limited_date", "huge", "bad_request"], 0.005),
}
MAX_GROWTH_BYTES = 150 * 2**20


def read_memory_bytes() -> int:
    """Return what this process holds in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def ask_and_watch(pool: LivePool, calls: list[Call]) -> tuple[list[Reply], int, int]:
    """Return the replies, how much memory grew at most, and how many tasks there were at most."""
    before = read_memory_bytes()
    most = [0, 0]

    async def watch() -> None:
        while True:
            most[0] = max(most[0], read_memory_bytes() - before)
            most[1] = max(most[1], len(asyncio.all_tasks()))
            await asyncio.sleep(0.05)

    watcher = asyncio.create_task(watch())
    async with pool:
        replies = await pool.ask_many(calls)
    watcher.cancel()
    return replies, most[0], most[1]


def test_ten_thousand_calls_through_mixed_faults(monkeypatch, record_property, tmp_path):
    assert sum(FAULTS.values()) == pytest.approx(0.3, abs=0.03)
    monkeypatch.setattr(live, "BACKOFF_SECONDS", 0.02)
    monkeypatch.setattr(http, "MAX_BODY_BYTES", 2**20)
    ledger = Ledger()
    calls = [Call("small", Query(f"{n}", f"question {n}"), f"question {n}") for n in range(CALLS)]
    with run_fault_server(seed=5, prices=PRICES, faults=FAULTS, delay_seconds=0.02) as server:
        candidate = Candidate(
            "small", Prices(3.0, 15.0, cached_input=0.3), limits=Limits(None, 256)
        )
        endpoint = Endpoint(
            candidate,
            server.url,
            "served",
            concurrency=64,
            timeout_seconds=3.0,
            retries=3,
            tokenizer=write_word_tokenizer(tmp_path),
        )
        pool = LivePool({"small": endpoint}, ledger=ledger, max_in_flight=64)
        began = time.perf_counter()
        replies, growth, tasks = asyncio.run(ask_and_watch(pool, calls))
        seconds = time.perf_counter() - began
        report = server.read_report()

    # each call exactly one reply or one typed failure, in order, none lost or duplicated
    assert [reply.call for reply in replies] == calls
    outcomes = Counter(str(reply.failure or "answer") for reply in replies)
    for reply in replies:
        assert reply.failure is not None or reply.text.startswith(f"answer to {reply.call.text}:")
        assert reply.score is None
        assert 1 <= reply.attempts <= 4
    requests = sum(report["requests"].values())
    # An attempt can time out before the server has read it: only where the machine stands still.
    unseen = sum(reply.attempts for reply in replies) - requests
    assert 0 <= unseen < 100
    assert report["texts"] == CALLS
    assert report["most_open"] <= 64

    # the ledger is the sum of the replies, and the server's own count to the picodollar: also
    # where it reported no usage, since both count with the same tokenizer
    assert sum(to_picodollars(reply.cost_usd) for reply in replies) == ledger.spent_picodollars
    estimated = sum(
        to_picodollars(reply.cost_usd) for reply in replies if reply.usage and reply.usage.estimated
    )
    billed = report["billed_picodollars"]
    unreported = billed.pop("no_usage")
    assert unreported > 0
    assert report["undelivered_picodollars"] == 0
    assert ledger.spent_picodollars - estimated == sum(billed.values())
    assert estimated == unreported
    assert ledger.reserved_usd == 0

    assert growth < MAX_GROWTH_BYTES
    assert tasks < 3 * 64  # a worker each, and what connecting needs
    assert outcomes["answer"] > 0.94 * CALLS
    assert set(outcomes) - {"answer"} <= set(map(str, FailureKind))
    lines = [
        f"{CALLS} calls, {requests} requests, {seconds:.1f} s, {tasks} tasks at most, "
        f"memory grew {growth / 2**20:.0f} MiB, {unseen} attempts never read by the server",
        *(
            f"  {name:<20} {count:>6} requests"
            for name, count in sorted(report["requests"].items())
        ),
        *(f"  {name:<20} {count:>6} calls" for name, count in sorted(outcomes.items())),
        f"  attempts per call    {sorted(Counter(reply.attempts for reply in replies).items())}",
        f"  server, reported     {sum(billed.values()) / 1e12:.12f} USD",
        f"  ledger, reported     {(ledger.spent_picodollars - estimated) / 1e12:.12f} USD",
        f"  server, unreported   {unreported / 1e12:.12f} USD",
        f"  ledger, estimated    {estimated / 1e12:.12f} USD",
        f"  ledger, uncertain    {ledger.uncertain_usd:.12f} USD (bounds of unknown bills)",
    ]
    record_property("counts", "\n".join(lines))
    print("\n" + "\n".join(lines))  # noqa: T201 - the table is the point; run with -s to see it
