"""Cassettes: recorded replies come back, a missing one is an error or is asked, torn ends go."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rlroute.pool.cassette import CassettePool, dump_reply, restore_reply
from rlroute.pool.open import open_pool
from rlroute.pool.pool_file import load_pool
from rlroute.pool.sealed_lines import LineWriter, read_lines
from rlroute.types import Call, FailureKind, Reply, RLRouteError, Usage


class CountingPool:
    """Answers with the text of the call and counts what it was asked."""

    def __init__(self, failure: FailureKind | None = None) -> None:
        self.asked = 0
        self.failure = failure

    async def ask_many(self, calls: Sequence[Call]) -> list[Reply]:
        self.asked += len(calls)
        usage = Usage(3, 4, 1, True)
        return [Reply(c, f"re {c.text}", usage, 0.25, 1.5, failure=self.failure) for c in calls]


def make_call(text: str, **changes: object) -> Call:
    from rlroute.types import Query

    return replace(Call("a", Query(text, text), text), **changes)  # type: ignore[arg-type]


def ask(pool: CassettePool, *calls: Call) -> list[Reply]:
    return asyncio.run(pool.ask_many(calls))


def test_a_recording_is_replayed_strictly(tmp_path: Path) -> None:
    path, live = tmp_path / "c.jsonl", CountingPool()
    recorder = CassettePool(path, live)
    recorded = ask(recorder, make_call("x"), make_call("y"), make_call("x"))
    recorder.close()
    assert live.asked == 2  # equal calls are asked once
    strict = CassettePool(path, None)
    replayed = ask(strict, make_call("y"), make_call("x"))
    assert [reply.text for reply in replayed] == ["re y", "re x"]
    assert replayed[1] == replace(recorded[0], cached=True, attempts=0)
    assert replayed[0].cost_usd == 0.25  # what it cost when it was asked
    for other in (make_call("z"), make_call("x", sample=1), make_call("x", temperature=1.0)):
        with pytest.raises(RLRouteError, match="holds no reply of candidate 'a'"):
            ask(strict, other)


def test_a_cassette_that_falls_through_asks_only_what_it_lacks(tmp_path: Path) -> None:
    path, live = tmp_path / "c.jsonl", CountingPool()
    for _ in range(2):
        pool = CassettePool(path, live)
        ask(pool, make_call("x"), make_call("y"))
        pool.close()
    assert live.asked == 2


def test_prompts_are_written_on_request_only_and_caps_are_no_replies(tmp_path: Path) -> None:
    for keep in (False, True):
        path = tmp_path / f"{keep}.jsonl"
        pool = CassettePool(path, CountingPool(), keep_prompts=keep)
        ask(pool, make_call("my secret plan"))
        pool.close()
        prompts = [record.get("prompt") for record in read_lines(path)[0]]
        assert prompts == (["my secret plan"] if keep else [None])
    pool = CassettePool(tmp_path / "b.jsonl", CountingPool(FailureKind.BUDGET))
    assert ask(pool, make_call("x"))[0].failure is FailureKind.BUDGET
    assert read_lines(tmp_path / "b.jsonl")[0] == []


def test_a_file_has_one_writer(tmp_path: Path) -> None:
    first = CassettePool(tmp_path / "c.jsonl", CountingPool())
    with pytest.raises(RLRouteError, match="another process is writing it"):
        CassettePool(tmp_path / "c.jsonl", CountingPool())
    first.close()
    CassettePool(tmp_path / "c.jsonl", CountingPool()).close()


@given(cut=st.integers(min_value=0, max_value=10_000))
def test_a_torn_end_is_dropped_wherever_it_tore(
    cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("torn") / "c.jsonl"
    writer = LineWriter(path)
    writer.write([{"n": n, "text": "ü" * n} for n in range(20)])
    writer.close()
    data = path.read_bytes()
    cut %= len(data) + 1
    path.write_bytes(data[:cut])
    whole = data[:cut].count(b"\n")
    writer = LineWriter(path)
    assert [record["n"] for record in writer.read_and_repair()] == list(range(whole))
    writer.write([{"n": 99}])
    writer.close()
    assert [record["n"] for record in read_lines(path)[0]] == [*range(whole), 99]


def test_damage_inside_a_file_is_an_error_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    writer = LineWriter(path)
    writer.write([{"n": n} for n in range(3)])
    writer.close()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1].replace(b"1", b"7") + lines[2])
    with pytest.raises(RLRouteError, match="line 2: damaged"):
        read_lines(path)


@given(
    text=st.text(),
    failure=st.none() | st.sampled_from(list(FailureKind)),
    usage=st.none() | st.builds(Usage, st.integers(0), st.integers(0)),
    latency=st.none() | st.floats(0, 1e6),
    cost=st.floats(0, 1e6),
)
def test_a_reply_reads_back_as_it_was(
    text: str,
    failure: FailureKind | None,
    usage: Usage | None,
    latency: float | None,
    cost: float,
) -> None:
    reply = Reply(make_call("x"), text, usage, cost, latency, None, failure, 3, True)
    assert restore_reply(reply.call, json.loads(json.dumps(dump_reply(reply)))) == reply


def test_a_whole_pool_is_recorded_and_replayed(tmp_path: Path) -> None:
    entry = {"type": "simulated", "skill": 1.0, "prices": {"input": 1, "output": 1}}
    path = tmp_path / "pool.yaml"
    path.write_text(yaml.safe_dump({"candidates": {"a": entry}}))
    cassette = tmp_path / "c.jsonl"
    where = f"cassette.path={cassette}"
    for number, mode in enumerate(("record", "fall_through", "strict")):
        pool = open_pool(load_pool(path, [where, f"cassette.mode={mode}"]))
        reply = asyncio.run(pool.ask_many([make_call("x")]))[0]
        asyncio.run(pool.close())
        assert (reply.cached, reply.cost_usd > 0) == (number > 0, True)
    assert len(read_lines(cassette)[0]) == 1
