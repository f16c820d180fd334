from __future__ import annotations

import asyncio
import dataclasses

import numpy as np
import pytest

from rlroute.pool.recorded import RecordedPool
from rlroute.types import Call, Query, RLRouteError, Usage


def make_call(table, row: int, candidate: str) -> Call:
    query = table.queries[row]
    return Call(candidate, query, query.text)


def test_replies_hold_what_was_recorded_in_the_order_of_the_calls(tiny_table):
    calls = [make_call(tiny_table, 5, "small"), make_call(tiny_table, 0, "large")]
    small, large = asyncio.run(RecordedPool(tiny_table).ask_many(calls))
    assert (small.call, large.call) == tuple(calls)
    assert (small.score, large.score) == (0.5, 1.0)
    assert (small.cost_usd, large.cost_usd) == pytest.approx((0.002, 0.004))
    assert small.usage == Usage(10, 10)
    assert small.latency_seconds is None
    assert small.failure is None


def test_unknown_tokens_are_no_usage_and_a_known_latency_is_kept(tiny_table):
    tokens_QK = np.full_like(tiny_table.prompt_tokens_QK, np.nan)
    latency_QK = np.full_like(tokens_QK, 1.5)
    table = dataclasses.replace(
        tiny_table, completion_tokens_QK=tokens_QK, latency_seconds_QK=latency_QK
    )
    reply = RecordedPool(table).replay(make_call(table, 0, "large"))
    assert reply.usage is None
    assert reply.latency_seconds == 1.5


def test_a_hole_is_an_error_and_no_reply(tiny_table):
    with pytest.raises(RLRouteError, match="tiny: no outcome of candidate 'tool' for query 'q01'"):
        RecordedPool(tiny_table).replay(make_call(tiny_table, 1, "tool"))


def test_an_unknown_query_or_candidate_is_an_error(tiny_table):
    pool = RecordedPool(tiny_table)
    with pytest.raises(RLRouteError, match="'huge' for query 'q00'"):
        pool.replay(make_call(tiny_table, 0, "huge"))
    with pytest.raises(RLRouteError, match="for query 'new'"):
        pool.replay(Call("large", Query("new", "?"), "?"))
