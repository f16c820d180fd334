"""The live pool against the fault server: one test per fault, over real sockets."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fault_server import RunningServer, run_fault_server

from rlroute.pool import live
from rlroute.pool.cache import ReplyCache
from rlroute.pool.chat import estimate_usage, names_model
from rlroute.pool.http import Endpoint, parse_retry_after
from rlroute.pool.ledger import Ledger
from rlroute.pool.live import LivePool
from rlroute.types import Call, Candidate, FailureKind, Limits, Prices, Query, Reply, RLRouteError

PRICES = Prices(input=2.0, output=8.0, cached_input=0.5)
CANARY = "sk-canary-7f3a9c2e51d04b68"
SCRIPTS = {
    "later fine": ["server_500", "reset", "gateway_502", "ok"],
    "slow down": ["rate_limited", "ok"],
    "slow down by date": ["rate_limited_date", "ok"],
    "slow down somehow": ["rate_limited_bare", "ok"],
    "slow server": ["request_timeout", "ok"],
    "hangs once": ["hang", "ok"],
    "broken once": ["half_body", "invalid_json", "ok"],
    "always hangs": ["hang"],
    "always half": ["half_body"],
    "always 503": ["unavailable_503"],
    "always 429": ["rate_limited_bare"],
    **{
        name: [name]
        for name in (
            *("bad_request", "unauthorized", "not_found", "wrong_model", "empty_choices"),
            *("filtered", "cut", "cut_empty", "huge", "drip", "delay", "no_usage", "echo_key"),
        )
    },
}


@pytest.fixture(scope="module")
def server():
    prices = {"input": 2.0, "output": 8.0, "cached_input": 0.5}
    with run_fault_server(prices=prices, faults_by_text=SCRIPTS) as running:
        yield running


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch):
    monkeypatch.setattr(live, "BACKOFF_SECONDS", 0.01)


def make_endpoint(address: str, **changes: object) -> Endpoint:
    candidate = Candidate("small", PRICES, limits=Limits(4096, 256))
    return replace(
        Endpoint(candidate, address, "served", timeout_seconds=1.0, retries=3),
        **changes,  # type: ignore[arg-type]
    )


def make_call(text: str, **changes: object) -> Call:
    return replace(Call("small", Query(text, text), text), **changes)  # type: ignore[arg-type]


def ask(
    server: RunningServer, *calls: Call, ledger: Ledger | None = None, **changes: object
) -> list[Reply]:
    ledger = ledger or Ledger()

    async def ask_and_close() -> list[Reply]:
        endpoint = make_endpoint(server.url, **changes)
        async with LivePool({"small": endpoint}, ledger=ledger) as pool:
            return await pool.ask_many(calls)

    return asyncio.run(ask_and_close())


def count_billed(server: RunningServer) -> int:
    return sum(server.read_report()["billed_picodollars"].values())


def test_an_answer_has_text_usage_cost_and_latency(server):
    ledger = Ledger()
    before = count_billed(server)
    (reply,) = ask(server, make_call("plain"), ledger=ledger)
    assert reply.failure is None
    assert reply.text.startswith("answer to plain")
    assert reply.usage is not None
    assert not reply.usage.estimated
    assert (reply.attempts, reply.cached, reply.score) == (1, False, None)
    assert reply.latency_seconds is not None
    assert ledger.spent_picodollars == count_billed(server) - before > 0
    assert round(reply.cost_usd * 10**12) == ledger.spent_picodollars
    assert (ledger.reserved_usd, ledger.uncertain_usd) == (0, 0)


@pytest.mark.parametrize(
    ("text", "attempts"),
    [
        *[("later fine", 4), ("slow down", 2), ("slow down by date", 2)],
        *[("slow down somehow", 2), ("slow server", 2), ("hangs once", 2), ("broken once", 3)],
        *[("drip", 1), ("delay", 1)],
    ],
)
def test_a_fault_that_passes_is_tried_again_until_the_answer(server, text, attempts):
    changes = {"timeout_seconds": 0.5} if text == "hangs once" else {}
    (reply,) = ask(server, make_call(text), **changes)
    assert (reply.failure, reply.attempts) == (None, attempts)
    assert reply.text.startswith(f"answer to {text}")


@pytest.mark.parametrize(
    ("text", "failure", "attempts", "bill"),
    [
        ("bad_request", FailureKind.BAD_REQUEST, 1, "none"),
        ("not_found", FailureKind.BAD_REQUEST, 1, "none"),
        ("unauthorized", FailureKind.AUTH, 1, "none"),
        ("always 429", FailureKind.RATE_LIMITED, 3, "none"),
        ("always 503", FailureKind.SERVER, 3, "none"),
        ("always hangs", FailureKind.TIMEOUT, 3, "unknown"),
        ("always half", FailureKind.MALFORMED, 3, "unknown"),
        ("huge", FailureKind.MALFORMED, 1, "unknown"),
        ("wrong_model", FailureKind.MALFORMED, 1, "usage"),
        ("empty_choices", FailureKind.MALFORMED, 1, "usage"),
        ("filtered", FailureKind.REFUSED, 1, "usage"),
        ("cut_empty", FailureKind.TRUNCATED, 1, "usage"),
    ],
)
def test_a_fault_that_stays_is_a_typed_failure_with_its_bill(server, text, failure, attempts, bill):
    ledger = Ledger()
    before = count_billed(server)
    timeout = 0.2 if text == "always hangs" else 5.0
    (reply,) = ask(server, make_call(text), ledger=ledger, retries=2, timeout_seconds=timeout)
    assert (reply.failure, reply.attempts, reply.score) == (failure, attempts, None)
    assert reply.text == ""
    assert ledger.spent_picodollars == count_billed(server) - before
    assert (ledger.spent_usd > 0) == (bill == "usage")
    assert (ledger.uncertain_usd > 0) == (bill == "unknown")
    assert round(reply.cost_usd * 10**12) == ledger.spent_picodollars
    assert ledger.reserved_usd == 0


def test_a_server_that_is_not_there_costs_nothing(server):
    ledger = Ledger()
    gone = RunningServer(9)  # the discard port: nobody listens
    (reply,) = ask(gone, make_call("plain"), ledger=ledger, retries=1)
    assert (reply.failure, reply.attempts) == (FailureKind.SERVER, 2)
    assert (ledger.spent_usd, ledger.uncertain_usd) == (0, 0)


def test_missing_usage_is_estimated_and_flagged(server):
    call = make_call("no_usage")
    (reply,) = ask(server, call)
    assert reply.usage is not None
    assert reply.usage == estimate_usage(make_endpoint(server.url), call, reply.text)
    assert reply.usage.estimated
    assert reply.cost_usd > 0


def test_an_answer_that_was_cut_is_an_answer(server):
    (reply,) = ask(server, make_call("cut"))
    assert reply.failure is None
    assert reply.text


def test_a_wait_that_the_server_asks_for_ends_the_call_where_it_does_not_fit():
    with run_fault_server(faults={"rate_limited": 1.0}, retry_after=60) as patient:
        (reply,) = ask(patient, make_call("plain"))
    assert (reply.failure, reply.attempts) == (FailureKind.RATE_LIMITED, 1)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        *[("3", 3.0), ("0.5", 0.5), ("0", 0.0), (None, None), ("soon", None), ("-1", None)],
        *[("nan", None), ("inf", None), ("Fri, 31 Dec 1999 23:59:59 GMT", 0.0)],
        ("Sat, 01 Jan 2000 00:02:00 GMT", 120.0),
    ],
)
def test_retry_after_is_seconds_or_a_date(value, seconds):
    assert parse_retry_after(value, datetime(2000, 1, 1, tzinfo=UTC)) == seconds


@pytest.mark.parametrize(
    ("replied", "asked", "same"),
    [
        *[("m", "m", True), (None, "m", True), ("other", "m", False), (7, "m", False)],
        *[("m-2025-01-31", "m", True), ("m-mini", "m", False), ("m-mini-2025-01-31", "m", False)],
        *[("phi:latest", "phi", True), ("m-0613", "vendor/m", True), ("vendor/m", "m", False)],
    ],
)
def test_which_names_may_be_the_model_that_was_asked(replied, asked, same):
    assert names_model(replied, asked) is same


def test_replies_come_in_the_order_of_the_calls(server):
    texts = ["delay", *(f"order {number}" for number in range(40)), "drip", "bad_request"]
    calls = [make_call(text) for text in texts]
    replies = ask(server, *calls)
    assert [reply.call for reply in replies] == calls
    assert all(reply.text.startswith(f"answer to {reply.call.text}:") for reply in replies[:-1])


def test_a_list_of_calls_without_calls_has_no_replies(server):
    assert ask(server) == []


def test_limits_on_requests_at_once_hold():
    with run_fault_server(latency={"median": 0.01, "sigma": 0.1}) as slow:
        ask(slow, *(make_call(f"{number}") for number in range(60)), concurrency=5)
        assert slow.read_report()["most_open"] <= 5


def test_a_cap_ends_the_rest_in_order_and_keeps_what_is_done():
    with run_fault_server(prices={"input": 2.0, "output": 8.0, "cached_input": 0.5}) as fresh:
        ledger = Ledger(0.02)
        replies = ask(fresh, *(make_call(f"{n}") for n in range(200)), ledger=ledger)
        report = fresh.read_report()
    failed = [reply for reply in replies if reply.failure is not None]
    assert 0 < len(failed) < 200
    assert {(reply.failure, reply.attempts, reply.cost_usd) for reply in failed} == {
        (FailureKind.BUDGET, 0, 0.0)
    }
    assert ledger.spent_picodollars == sum(report["billed_picodollars"].values())
    assert ledger.spent_usd <= 0.02
    bound = 8.0 * 256 / 1e6 + 2.0 * (256 + 3) / 1e6
    assert ledger.spent_usd + bound > 0.02  # it did not stop while a call still had room


def test_an_episode_has_a_budget_of_its_own(server):
    ledger = Ledger(None, 0.003)
    calls = [make_call(f"of {n % 2}: {n}", episode=f"{n % 2}") for n in range(20)]
    replies = ask(server, *calls, make_call("of no episode"), ledger=ledger)
    assert {reply.failure for reply in replies} == {None, FailureKind.BUDGET}
    assert replies[-1].failure is None
    assert all(0 < ledger.episode_spent(name) <= 0.003 for name in "01")


def test_a_dead_server_is_left_alone_and_every_call_still_ends():
    ledger = Ledger()
    with run_fault_server(faults={"server_500": 1.0}) as dead:
        calls = [make_call(f"{number}") for number in range(300)]
        replies = ask(dead, *calls, ledger=ledger, retries=0, timeout_seconds=0.5, concurrency=4)
        asked = sum(dead.read_report()["requests"].values())
    assert {reply.failure for reply in replies} == {FailureKind.SERVER}
    assert sum(reply.attempts for reply in replies) == asked < 30


def test_a_server_that_recovers_is_asked_again_within_the_deadline():
    with run_fault_server(down_for_requests=15) as recovering:
        calls = [make_call(f"{number}") for number in range(40)]
        replies = ask(recovering, *calls, timeout_seconds=10.0)
        report = recovering.read_report()
    assert {reply.failure for reply in replies} == {None}
    assert report["requests"] == {"server_500": 15, "ok": 40}


def test_what_was_answered_is_paid_once_and_failures_are_asked_again(server, tmp_path):
    calls = [make_call(f"kept {number}") for number in range(5)] * 2 + [make_call("bad_request")]
    ledger = Ledger()

    async def ask_twice() -> tuple[list[Reply], list[Reply]]:
        endpoints = {"small": make_endpoint(server.url)}
        cache = ReplyCache(tmp_path / "cache.sqlite")
        async with LivePool(endpoints, ledger=ledger, cache=cache) as pool:
            return await pool.ask_many(calls), await pool.ask_many(calls)

    before = server.read_report()["requests"]
    first, second = asyncio.run(ask_twice())
    after = server.read_report()["requests"]
    assert after["ok"] - before.get("ok", 0) == 5
    assert after["bad_request"] - before.get("bad_request", 0) == 2
    assert sorted(reply.cached for reply in first) == [False] * 6 + [True] * 5
    assert [reply.cached for reply in second] == [True] * 10 + [False]
    for old, new in zip(first[:5], second[:5], strict=True):
        assert (new.text, new.usage) == (old.text, old.usage)
        assert (new.cost_usd, new.attempts) == (old.cost_usd, 0)  # an answer keeps its price
        assert new.cost_usd > 0
    assert ledger.spent_usd == pytest.approx(sum(reply.cost_usd for reply in first[:5]))


ASK_SHARED = """
import asyncio, json, sys
from pathlib import Path
from rlroute.pool.cache import ReplyCache
from rlroute.pool.http import Endpoint
from rlroute.pool.ledger import Ledger
from rlroute.pool.live import LivePool
from rlroute.types import Call, Candidate, Prices, Query
url, path = sys.argv[1:]
endpoint = Endpoint(Candidate("small", Prices(1.0, 1.0)), url, "served")
calls = [Call("small", Query(f"{n}", f"shared {n}"), f"shared {n}") for n in range(200)]
pool = LivePool({"small": endpoint}, ledger=Ledger(), cache=ReplyCache(Path(path)))
replies = asyncio.run(pool.ask_many(calls))
print(json.dumps([sum(r.cached for r in replies), sum(r.failure is None for r in replies)]))
"""


def test_two_processes_with_one_cache_send_no_call_twice(tmp_path):
    with run_fault_server(latency={"median": 0.02, "sigma": 0.3}) as server:
        command = [sys.executable, "-c", ASK_SHARED, server.url, str(tmp_path / "c.sqlite")]
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
        outputs = [process.communicate(timeout=120)[0] for process in processes]
        report = server.read_report()
    assert report["requests"] == {"ok": 200}
    assert report["most_requests_of_a_text"] == 1
    cached, answered = zip(*map(json.loads, outputs), strict=True)
    assert answered == (200, 200)
    assert sum(cached) == 200


def test_cancelling_settles_what_is_in_flight(server):
    ledger = Ledger()

    async def start_and_cancel() -> None:
        async with LivePool({"small": make_endpoint(server.url)}, ledger=ledger) as pool:
            task = asyncio.create_task(pool.ask_many([make_call("always hangs")] * 5))
            while ledger.reserved_usd == 0:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            (reply,) = await pool.ask_many([make_call("after")])
            assert reply.failure is None

    asyncio.run(start_and_cancel())
    assert ledger.reserved_usd == 0
    assert ledger.uncertain_usd > 0


INTERRUPT = """
import asyncio, sys
from rlroute.pool.http import Endpoint
from rlroute.pool.ledger import Ledger
from rlroute.pool.live import LivePool
from rlroute.types import Call, Candidate, Prices, Query
endpoint = Endpoint(Candidate("small", Prices(1.0, 1.0)), sys.argv[1], "served")
ledger = Ledger()
pool = LivePool({"small": endpoint}, ledger=ledger)
calls = [Call("small", Query(f"{n}", f"{n}"), "always hangs") for n in range(9)]
try:
    asyncio.run(pool.ask_many(calls))
except KeyboardInterrupt:
    print(ledger.spent_usd, ledger.reserved_usd, ledger.uncertain_usd > 0)
"""


def test_an_interrupt_leaves_nothing_reserved():
    with run_fault_server(faults={"hang": 1.0}) as hanging:
        command = [sys.executable, "-c", INTERRUPT, hanging.url]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, **pipes) as process:
            while not hanging.read_report()["requests"]:
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=60)
    assert (output, errors) == ("0.0 0.0 True\n", "")


def test_a_pool_serves_one_event_loop_after_another(server):
    pool = LivePool({"small": make_endpoint(server.url, concurrency=2)}, ledger=Ledger())

    async def ask_and_close(text: str) -> Reply:
        async with pool:
            return (await pool.ask_many([make_call(f"{text} {n}") for n in range(9)]))[-1]

    for text in ("first loop", "second loop"):
        assert asyncio.run(ask_and_close(text)).text.startswith(f"answer to {text} 8")


def test_an_unknown_candidate_and_a_missing_key_are_refused_before_anything_is_sent(server):
    before = server.read_report()["requests"]
    with pytest.raises(RLRouteError, match="no candidate 'huge' in this pool; known: small"):
        ask(server, make_call("x"), make_call("y", candidate_id="huge"))
    with pytest.raises(RLRouteError, match="small: the environment variable NO_SUCH_KEY"):
        ask(server, make_call("x"), api_key_env="NO_SUCH_KEY")
    assert server.read_report()["requests"] == before


@pytest.mark.parametrize("value", ["sk-canary\nx", "sk-cänary"])
def test_a_key_that_fits_no_header_is_refused_without_being_shown(server, monkeypatch, value):
    monkeypatch.setenv("POOL_KEY", value)
    with pytest.raises(RLRouteError) as caught:
        ask(server, make_call("x"), api_key_env="POOL_KEY")
    assert "canary" not in str(caught.value)
    assert "POOL_KEY" in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [{"url": "ftp://x"}, {"concurrency": 0}, {"timeout_seconds": 0}, {"retries": -1}],
    ids=str,
)
def test_an_endpoint_that_cannot_work_is_refused(changes):
    with pytest.raises(RLRouteError, match="small"):
        make_endpoint("http://127.0.0.1:1", **changes)


def test_the_key_is_sent_and_appears_nowhere_else(server, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("POOL_KEY", CANARY)
    texts = ["echo_key", "unauthorized", "bad_request", "always 503", "always half", "plain"]
    endpoint = make_endpoint(server.url, api_key_env="POOL_KEY", retries=1)
    cache = ReplyCache(tmp_path / "cache.sqlite")
    pool = LivePool({"small": endpoint}, ledger=Ledger(), cache=cache)

    async def ask_and_close() -> list[Reply]:
        async with pool:
            return await pool.ask_many([make_call(text) for text in texts])

    with caplog.at_level(logging.DEBUG):
        replies = asyncio.run(ask_and_close())
    assert replies[0].text == "your key is Bearer [redacted]"  # so it was sent, and came back
    seen = [repr(replies), repr(endpoint), repr(pool), repr(vars(pool)), caplog.text]
    assert not [text for text in seen if CANARY in text]
    with sqlite3.connect(tmp_path / "cache.sqlite") as database:
        assert CANARY not in "\n".join(database.iterdump())
    cache.close()
    files = [path for path in Path(tmp_path).rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if CANARY.encode() in path.read_bytes()]
