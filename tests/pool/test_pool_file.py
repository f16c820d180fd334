"""pool.yaml: what is refused before anything starts, and what each type of candidate becomes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_llama import save_tiny_llama

from rlroute.pool.open import list_candidates, open_pool
from rlroute.pool.pool_file import HttpSpec, load_pool
from rlroute.types import Call, Prices, Query, RLRouteError

RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "collect"
HTTP = {
    "endpoint": "http://127.0.0.1:9/v1",
    "model": "served/name",
    "prices": {"input": 0.5, "output": 1.5},
}
TOOL = {"type": "tool", "program": "calculator", "prices": {"per_call": 1e-6}}


def write_pool(folder: Path, candidates: dict[str, Any], **shared: Any) -> Path:
    path = folder / "pool.yaml"
    path.write_text(yaml.safe_dump({"candidates": candidates, **shared}))
    return path


def test_one_declaration_gives_candidate_prices_and_limits(tmp_path: Path) -> None:
    prices = {"input": 1, "output": 2, "cached_input": 0.1, "per_call": 0.01, "date": "2025-06-01"}
    stated = HTTP | {"prices": prices, "aliases": ["s"], "description": "small", "kind": "tier"}
    stated |= {"context_tokens": 4096, "max_output_tokens": 100}
    candidate = list_candidates(load_pool(write_pool(tmp_path, {"small": stated})))["small"]
    assert candidate.prices == Prices(1.0, 2.0, 0.01, 0.1, "2025-06-01")
    assert (candidate.kind, candidate.description, candidate.aliases) == ("tier", "small", ("s",))
    assert (candidate.limits.context_tokens, candidate.limits.output_tokens) == (4096, 100)


def test_defaults_fill_in_http_candidates_only(tmp_path: Path) -> None:
    path = write_pool(
        tmp_path,
        {"a": HTTP, "b": HTTP | {"retries": 7}, "t": TOOL},
        defaults={"retries": 1, "concurrency": 2},
    )
    specs = load_pool(path).candidates
    first, second = specs["a"], specs["b"]
    assert isinstance(first, HttpSpec)
    assert isinstance(second, HttpSpec)
    assert (first.retries, first.concurrency, second.retries) == (1, 2, 7)


def without(entry: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name != key}


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ({}, "candidates"),
        ({"a": without(HTTP, "prices")}, r"candidates\.a\.prices: Field required"),
        ({"a": HTTP | {"prices": {"input": 1}}}, r"candidates\.a\.prices\.output: Field required"),
        ({"a": HTTP | {"prices": {"input": -1, "output": 1}}}, "greater than or equal to 0"),
        ({"a": HTTP | {"prices": {"input": float("nan"), "output": 1}}}, "prices.input"),
        ({"a": HTTP | {"concurency": 3}}, "unknown key 'candidates.a.concurency'; did you mean"),
        ({"a": HTTP | {"type": "htp"}}, "candidates.a.*'htp'.*'http', 'recorded'"),
        ({"a": HTTP | {"endpoint": "127.0.0.1"}}, "must be a URL"),
        ({"a": HTTP, "b": HTTP | {"aliases": ["a"]}}, "'a' names more than one"),
        ({"a": HTTP | {"aliases": ["x", "x"]}}, "'x' names more than one"),
        ({"a": HTTP | {"concurrency": 0}}, "concurrency"),
        ({"a": without(TOOL, "prices")}, r"candidates\.a\.prices: Field required"),
        ({"a": {"type": "recorded", "prices": HTTP["prices"]}}, "either table or cassette"),
        ({"a": {"type": "recorded", "cassette": "x"}}, "a cassette needs prices"),
        ({"a": {"type": "local", "model": "m", "prices": HTTP["prices"]}}, "unknown model 'm'"),
    ],
)
def test_a_fault_is_refused_in_one_line(
    tmp_path: Path, candidates: dict[str, Any], message: str
) -> None:
    with pytest.raises(RLRouteError, match=message) as caught:
        load_pool(write_pool(tmp_path, candidates))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "entry",
    [{"api_key_env": "sk-CANARY123456789"}, {"endpoint": "https://me:CANARY123@host/v1"}],
)
def test_a_secret_in_the_file_is_refused_and_not_repeated(
    tmp_path: Path, entry: dict[str, str]
) -> None:
    with pytest.raises(RLRouteError) as caught:
        load_pool(write_pool(tmp_path, {"a": HTTP | entry}))
    assert "CANARY" not in str(caught.value)


def test_a_missing_key_is_refused_when_the_pool_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RLROUTE_TEST_KEY", raising=False)
    pool_file = load_pool(write_pool(tmp_path, {"a": HTTP | {"api_key_env": "RLROUTE_TEST_KEY"}}))
    with pytest.raises(RLRouteError, match="RLROUTE_TEST_KEY is not set"):
        open_pool(pool_file)


def test_an_unknown_default_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RLRouteError, match="defaults: unknown key 'retry'"):
        load_pool(write_pool(tmp_path, {"a": HTTP}, defaults={"retry": 1}))


def test_replies_come_in_input_order_from_several_kinds_of_candidates(tmp_path: Path) -> None:
    path = write_pool(
        tmp_path,
        {
            "calc": TOOL | {"aliases": ["c"]},
            "words": {"type": "tool", "program": "word_tool", "prices": {"per_call": 2e-6}},
            "weak": {"type": "simulated", "skill": 0.0, "prices": HTTP["prices"]},
        },
    )
    pool = open_pool(load_pool(path))
    query = Query("q", "State the final answer: 2 + 3 =", references=("5",))
    calls = [Call(name, query, query.text) for name in ("weak", "c", "words", "calc")]
    replies = asyncio.run(pool.ask_many(calls))
    assert [reply.call for reply in replies] == calls  # an alias stays as the caller wrote it
    assert [reply.text for reply in replies][1] == "5"
    assert replies[3].text == "5"
    assert replies[2].cost_usd == 2e-6
    with pytest.raises(RLRouteError, match="unknown candidate 'nobody'"):
        asyncio.run(pool.ask_many([Call("nobody", query, query.text)]))


def test_a_recorded_candidate_replays_a_table_under_its_own_name(tmp_path: Path) -> None:
    entry = {"type": "recorded", "table": "pocket", "candidate": "calculator"}
    pool = open_pool(load_pool(write_pool(tmp_path, {"sums": entry})))
    assert pool.candidates["sums"].prices.per_call == 2e-6
    query = Query("chain_sum-1-000", "")
    reply = asyncio.run(pool.ask_many([Call("sums", query, "")]))[0]
    assert (reply.score, reply.call.candidate_id) == (1.0, "sums")
    with pytest.raises(RLRouteError, match="holds only"):
        list_candidates(load_pool(write_pool(tmp_path, {"x": without(entry, "candidate")})))


def test_a_local_candidate_answers_behind_the_same_door(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path / "tiny")
    examples = tmp_path / "examples.jsonl"
    examples.write_text('{"task": "sums", "question": "1 + 1 =", "answer": "2"}\n')
    source = {"folder": str(tmp_path / "tiny"), "parameters": 37_344, "licence": "test"}
    source |= {"dtype": "float32", "max_new_tokens": 3}
    entry = {"type": "local", "model": "tiny", "mode": "few_shot", "prices": HTTP["prices"]}
    path = write_pool(tmp_path, {"a": entry}, models={"tiny": source}, examples=str(examples))
    pool = open_pool(load_pool(path))
    query = Query("q", "2 + 2 =", task="sums")
    reply = asyncio.run(pool.ask_many([Call("a", query, query.text)]))[0]
    assert reply.failure is None
    assert reply.usage is not None
    assert reply.usage.prompt_tokens > 20
    examples.write_text('{"task": "sums"}\n')
    with pytest.raises(RLRouteError, match=r"examples\.jsonl, line 1"):
        open_pool(load_pool(path))


def test_a_vllm_candidate_says_what_is_missing(tmp_path: Path) -> None:
    try:
        import vllm  # noqa: F401
    except ModuleNotFoundError:
        path = write_pool(tmp_path, {"a": {"type": "vllm", "model": "m", "prices": HTTP["prices"]}})
        with pytest.raises(RLRouteError, match="vllm is not installed"):
            open_pool(load_pool(path))
    else:
        pytest.skip("vllm is installed")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*_pool.yaml")), ids=lambda path: path.stem)
def test_every_shipped_pool_file_is_one(path: Path) -> None:
    assert list_candidates(load_pool(path))


def test_a_candidate_that_stands_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "pool.yaml"
    entry = "{type: tool, program: calculator, prices: {per_call: 1}}"
    path.write_text(f"candidates:\n  a: {entry}\n  a: {entry}\n")
    with pytest.raises(RLRouteError, match=r"pool\.yaml, line 3: 'a' stands twice"):
        load_pool(path)
