from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from word_tokenizer import write_word_tokenizer

from rlroute.pool.chat import (
    BYTES_PER_TOKEN,
    DEFAULT_OUTPUT_TOKENS,
    OVERHEAD_TOKENS,
    UnreadableBodyError,
    bound_usage,
    build_body,
    estimate_usage,
    fits_context,
    parse_body,
)
from rlroute.pool.http import Endpoint
from rlroute.pool.ledger import Ledger
from rlroute.pool.live import LivePool
from rlroute.types import (
    Call,
    Candidate,
    FailureKind,
    Limits,
    Prices,
    Query,
    Reply,
    RLRouteError,
    Usage,
)

CALL = Call("small", Query("q", "Why?"), "Why?", system="Be brief.", max_output_tokens=50)


def make_endpoint(output_tokens: int | None = None) -> Endpoint:
    candidate = Candidate("small", Prices(1.0, 1.0), limits=Limits(None, output_tokens))
    return Endpoint(candidate, "http://127.0.0.1:1", "served")


def make_reply(**changes: object) -> bytes:
    choice = {"message": {"role": "assistant", "content": "Because."}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 9, "completion_tokens": 3}
    return json.dumps({"model": "served", "choices": [choice], "usage": usage} | changes).encode()


def make_choice(content: object, finish: str = "stop", **message: object) -> list[object]:
    return [{"message": {"content": content} | message, "finish_reason": finish}]


def test_a_call_becomes_a_body_with_its_output_limit():
    assert build_body(make_endpoint(), CALL) == {
        "model": "served",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Why?"},
        ],
        "temperature": 0.0,
        "max_tokens": 50,
    }
    assert build_body(make_endpoint(20), CALL)["max_tokens"] == 20
    plain = Call("small", Query("q", "Why?"), "Why?")
    assert build_body(make_endpoint(), plain)["max_tokens"] == DEFAULT_OUTPUT_TOKENS


def test_a_prompt_is_bounded_by_its_bytes_and_estimated_at_a_third_of_them():
    call = Call("small", Query("q", ""), "日本語" * 10, max_output_tokens=50)
    assert bound_usage(make_endpoint(), call) == Usage(90 + OVERHEAD_TOKENS, 50)
    estimate = estimate_usage(make_endpoint(), call, "x" * 31)
    assert estimate == Usage(90 // BYTES_PER_TOKEN, 11, estimated=True)
    assert estimate_usage(make_endpoint(), call, "x" * 9999).completion_tokens == 50


def test_an_answer_is_read_with_its_cached_tokens():
    details = {"prompt_tokens_details": {"cached_tokens": 4}}
    usage = {"prompt_tokens": 9, "completion_tokens": 3} | details
    answer = parse_body(make_endpoint(), CALL, make_reply(usage=usage))
    assert (answer.text, answer.failure) == ("Because.", None)
    assert answer.usage == Usage(9, 3, cached_tokens=4)


@pytest.mark.parametrize(
    "usage",
    [
        *[None, {}, [], "9", {"prompt_tokens": 9}, {"prompt_tokens": "9", "completion_tokens": 3}],
        *[
            {"prompt_tokens": prompt, "completion_tokens": 3}
            for prompt in (0, -9, True, 1.5, None, 10**30)
        ],
    ],
    ids=str,
)
def test_usage_that_is_no_count_is_estimated(usage):
    answer = parse_body(make_endpoint(), CALL, make_reply(usage=usage))
    assert answer.failure is None
    assert answer.usage == estimate_usage(make_endpoint(), CALL, "Because.")


@pytest.mark.parametrize(
    ("changes", "failure"),
    [
        ({"choices": []}, FailureKind.MALFORMED),
        ({"choices": None}, FailureKind.MALFORMED),
        ({"choices": [7]}, FailureKind.MALFORMED),
        ({"choices": [{"message": None}]}, FailureKind.MALFORMED),
        ({"choices": make_choice(["part"])}, FailureKind.MALFORMED),
        ({"model": "another"}, FailureKind.MALFORMED),
        ({"choices": make_choice("half a", "content_filter")}, FailureKind.REFUSED),
        ({"choices": make_choice(None, refusal="I cannot.")}, FailureKind.REFUSED),
        ({"choices": make_choice(None, "length")}, FailureKind.TRUNCATED),
        ({"choices": make_choice(" \n", "length")}, FailureKind.TRUNCATED),
        ({"choices": make_choice("Because", "length")}, None),
        ({"choices": make_choice("")}, None),  # an empty answer is an answer (a wrong one)
        ({"choices": make_choice(None)}, None),
    ],
    ids=str,
)
def test_what_a_readable_body_means_and_that_it_is_charged_either_way(changes, failure):
    answer = parse_body(make_endpoint(), CALL, make_reply(**changes))
    assert answer.failure == failure
    assert failure is None or answer.text == ""
    assert answer.usage == Usage(9, 3)


@pytest.mark.parametrize(
    "data", [b"", b"<html>", b"[1]", b"null", b'{"a": 1', b"\xff\xfe", b"[" * 10**5]
)
def test_a_body_that_is_no_object_is_unreadable(data):
    with pytest.raises(UnreadableBodyError):
        parse_body(make_endpoint(), CALL, data)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                ["message", "content", "finish_reason", "prompt_tokens", "cached_tokens"]
            )
            | st.text(max_size=3),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.fixed_dictionaries({}, optional={"model": VALUES, "choices": VALUES, "usage": VALUES}))
def test_no_object_at_all_breaks_the_reader(body):
    answer = parse_body(make_endpoint(), CALL, json.dumps(body).encode())
    assert answer.usage.prompt_tokens > 0
    assert answer.usage.completion_tokens >= 0
    assert answer.failure is None or answer.text == ""


def test_without_usage_the_endpoints_tokenizer_counts(tmp_path):
    endpoint = replace(make_endpoint(), tokenizer=write_word_tokenizer(tmp_path))
    # "Be brief." and "Why?" are two words and one, and four tokens surround each message
    assert estimate_usage(endpoint, CALL, "one two three") == Usage(3 + 2 * 4, 3, estimated=True)
    assert estimate_usage(endpoint, CALL, "word " * 99).completion_tokens == 50
    folder = replace(endpoint, tokenizer=tmp_path)
    assert estimate_usage(folder, CALL, "one") == estimate_usage(endpoint, CALL, "one")


def test_the_context_bounds_what_a_prompt_can_cost():
    candidate = Candidate("small", Prices(1.0, 1.0), limits=Limits(64, 50))
    endpoint = Endpoint(candidate, "http://127.0.0.1:1", "served")
    assert bound_usage(endpoint, CALL) == Usage(64, 50)
    assert bound_usage(make_endpoint(), CALL).prompt_tokens > 64


def test_a_prompt_that_fills_the_context_is_a_bad_request_and_is_not_sent(tmp_path):
    tokenizer = write_word_tokenizer(tmp_path)  # the call has 3 words in 2 messages: 11 tokens

    def make_narrow(context_tokens: int) -> Endpoint:
        candidate = Candidate("small", Prices(1.0, 1.0), limits=Limits(context_tokens))
        return Endpoint(candidate, "http://127.0.0.1:1", "served", tokenizer=tokenizer)

    assert fits_context(make_narrow(12), CALL)
    assert not fits_context(make_narrow(11), CALL)
    assert fits_context(replace(make_narrow(11), tokenizer=None), CALL)  # nobody can tell

    async def ask() -> list[Reply]:
        async with LivePool({"small": make_narrow(11)}, ledger=Ledger()) as pool:
            return await pool.ask_many([CALL])

    reply = asyncio.run(ask())[0]
    assert (reply.failure, reply.attempts) == (FailureKind.BAD_REQUEST, 0)
    assert (reply.cost_usd, reply.score) == (0.0, None)


def test_a_missing_or_torn_tokenizer_is_refused_before_anything_is_sent(tmp_path):
    torn = tmp_path / "torn.json"
    torn.write_text("{")
    for path, fault in ((tmp_path / "absent.json", "no such file"), (torn, "cannot be read")):
        endpoint = replace(make_endpoint(), tokenizer=path)
        with pytest.raises(RLRouteError, match=fault):
            LivePool({"small": endpoint}, ledger=Ledger())
