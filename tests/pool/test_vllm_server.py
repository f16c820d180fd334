"""A collection through a real server: vLLM on a CPU serves SmolLM2 (`make test-vllm`).

200 sums are asked of one served model under two names, with other prices and output limits. The
server counts for itself what it was asked: its counters, read before and after, are what tables,
usage and costs are held against.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import json
import logging
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlroute.data.table import OutcomeTable, read_table
from rlroute.pool.sealed_lines import read_lines
from rlroute.types import Prices

URL = os.environ.get("RLROUTE_VLLM_URL", "")
KEY = os.environ.get("RLROUTE_VLLM_KEY", "")

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not URL, reason="RLROUTE_VLLM_URL is not set: `make test-vllm` sets it"),
]

QUERIES = 200
CACHE_BLOCK = 128  # vLLM on a CPU caches prompts in blocks of so many tokens
PRICES = {
    "brief": Prices(input=0.5, output=1.5),
    "full": Prices(input=1.0, output=4.0, per_call=1e-6, cached_input=0.25),
}
OUTPUT_TOKENS = {"brief": 7, "full": 24}
INSTRUCTION = """\
You are given two numbers. Add them and reply with their sum, one number only. Do not explain how \
you found it, do not repeat the question, do not write a sentence, and do not write anything after \
the number. Write numbers with digits, not with words. If you are not sure, reply with the number \
that you think is most likely; a reply without a number is of no use to anybody. There is no time \
limit, there are no tricks, and nobody will be angry. Here is the question."""
COUNTERS = {
    "calls": "request_success",
    "prompt_tokens": "prompt_tokens",
    "completion_tokens": "generation_tokens",
    "cached_tokens": "prefix_cache_hits",
}

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Collection:
    """What one run of `rlroute collect` left, and what the server counted meanwhile."""

    folder: Path
    served: Mapping[str, float]
    table: OutcomeTable
    replies: list[dict[str, Any]]  # of the cassette: candidate, prompt, reply


def get(url: str) -> str:
    request = urllib.request.Request(url, headers={"authorization": f"Bearer {KEY}"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=30) as response:
        content: bytes = response.read()
    return content.decode("utf-8")


def read_counters() -> dict[str, float]:
    """Return the server's own counts, once they rest: it adds them up beside its answers."""
    before: dict[str, float] = {}
    while True:
        text = get(URL.removesuffix("/v1") + "/metrics")
        counts = {
            name: sum(
                float(value)
                for value in re.findall(rf"^vllm:{metric}_total{{[^}}]*}} (\S+)$", text, re.M)
            )
            for name, metric in COUNTERS.items()
        }
        if counts == before:
            return counts
        before = counts
        time.sleep(1.0)


def subtract(after: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    return {name: after[name] - before[name] for name in after}


def write_inputs(folder: Path, served_model: str) -> None:
    """Write the queries, which share a beginning longer than a cache block, and the pool."""
    with (folder / "queries.jsonl").open("w", encoding="utf-8") as file:
        for number in range(QUERIES):
            left, right = number % 20 + 1, number // 20 + 1
            row = {
                "id": f"sum-{number:03}",
                "text": f"{INSTRUCTION} What is {left} + {right}?",
                "references": [str(left + right)],
                "task": "sums",
            }
            file.write(json.dumps(row) + "\n")
    candidates = {
        name: {
            "model": served_model,
            "prices": {k: v for k, v in dataclasses.asdict(prices).items() if v not in (None, "")},
            "max_output_tokens": OUTPUT_TOKENS[name],
        }
        for name, prices in PRICES.items()
    }
    defaults: dict[str, Any] = {"endpoint": URL, "concurrency": 8, "timeout_seconds": 120}
    pool = {
        "defaults": defaults | ({"api_key_env": "RLROUTE_VLLM_KEY"} if KEY else {}),
        "candidates": candidates,
        "max_usd": 1.0,
        # beside the table, every reply with its text and its usage
        "cassette": {"path": str(folder / "replies.jsonl"), "mode": "record", "keep_prompts": True},
    }
    (folder / "pool.yaml").write_text(json.dumps(pool), encoding="utf-8")  # JSON is YAML


def run_rlroute(folder: Path, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rlroute", *words]
    environment = os.environ | settings
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def run_collect(folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    words = ["--queries", "queries.jsonl", "--pool", "pool.yaml", "--grade", "numeric"]
    return run_rlroute(folder, "collect", *words, "--out", "table", **settings)


def compute_cost(prices: Prices, prompt: float, completion: float, cached: float) -> float:
    """Return USD, by a formula of this test's own."""
    cached_price = prices.input if prices.cached_input is None else prices.cached_input
    per_million = (prompt - cached) * prices.input + cached * cached_price
    return prices.per_call + (per_million + completion * prices.output) / 1e6


@pytest.fixture(scope="module")
def model_card() -> dict[str, Any]:
    """The served model: its name `id`, and the folder `root` that it was loaded from."""
    card: dict[str, Any] = json.loads(get(f"{URL}/models"))["data"][0]
    return card


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory, model_card: dict[str, Any]) -> Collection:
    folder = tmp_path_factory.mktemp("vllm")
    write_inputs(folder, model_card["id"])
    before, began = read_counters(), time.monotonic()
    done = run_collect(folder)
    seconds = time.monotonic() - began
    assert done.returncode == 0, done.stdout + done.stderr
    served = subtract(read_counters(), before)
    rates = {name: round(count / seconds, 1) for name, count in served.items()}
    logger.info("%.1f s with the start of the command; per second: %s", seconds, rates)
    (folder / "output.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
    records, _ = read_lines(folder / "replies.jsonl")
    return Collection(folder, served, read_table(folder / "table"), records)


def test_every_call_is_answered_once_and_stands_in_the_table(collection: Collection) -> None:
    table = collection.table
    assert [candidate.id for candidate in table.candidates] == sorted(PRICES)
    assert table.present_QK.shape == (QUERIES, len(PRICES))
    assert table.present_QK.all()
    assert collection.served["calls"] == QUERIES * len(PRICES)
    assert len(collection.replies) == QUERIES * len(PRICES)
    assert all(record["reply"]["failure"] is None for record in collection.replies)
    assert all(record["reply"]["attempts"] == 1 for record in collection.replies)
    assert {0.0, 1.0} == set(np.unique(table.score_QK))


def test_the_tokens_of_the_table_are_those_the_server_counted(collection: Collection) -> None:
    table, served = collection.table, collection.served
    assert table.prompt_tokens_QK.sum(dtype=np.float64) == served["prompt_tokens"]
    assert table.completion_tokens_QK.sum(dtype=np.float64) == served["completion_tokens"]
    cached = sum(record["reply"]["usage"][2] for record in collection.replies)
    assert cached == served["cached_tokens"] > 0


def test_usage_is_what_the_tokenizer_counts(
    collection: Collection, model_card: dict[str, Any]
) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_card["root"])
    other_spelling = 0
    for record in collection.replies:
        prompt_tokens, completion_tokens, _, is_estimated = record["reply"]["usage"]
        message = {"role": "user", "content": record["prompt"]}
        prompt = tokenizer.apply_chat_template(
            [message], add_generation_prompt=True, return_dict=False
        )
        assert prompt_tokens == len(prompt)
        assert not is_estimated
        answer = len(tokenizer(record["reply"]["text"], add_special_tokens=False)["input_ids"])
        is_cut = completion_tokens == OUTPUT_TOKENS[record["candidate"]]
        # an answer that was not cut ends with a token that is no text
        expected = {answer, answer + 1} if is_cut else {answer + 1}
        other_spelling += completion_tokens not in expected
    # a model may spell a text with other tokens than the tokenizer would
    assert other_spelling <= len(collection.replies) // 100


def test_the_cost_is_tokens_times_price(collection: Collection) -> None:
    table, total = collection.table, 0.0
    for record in collection.replies:
        prompt_tokens, completion_tokens, cached_tokens, _ = record["reply"]["usage"]
        prices = PRICES[record["candidate"]]
        cost = compute_cost(prices, prompt_tokens, completion_tokens, cached_tokens)
        assert record["reply"]["cost_usd"] == pytest.approx(cost, rel=1e-9)
        total += cost
    provenance = json.loads((collection.folder / "table" / "provenance.json").read_text())
    assert provenance["paid_usd"] == pytest.approx(total, rel=1e-9)
    assert provenance["unknown_usd"] == 0
    for k, candidate in enumerate(table.candidates):
        prices = PRICES[candidate.id]
        plain = [
            compute_cost(prices, prompt, completion, 0)
            for prompt, completion in zip(
                table.prompt_tokens_QK[:, k], table.completion_tokens_QK[:, k], strict=True
            )
        ]
        if prices.cached_input is None:
            np.testing.assert_allclose(table.cost_usd_QK[:, k], plain, rtol=1e-6)
            continue
        discount = (prices.input - prices.cached_input) / 1e6
        blocks = (plain - table.cost_usd_QK[:, k]) / discount / CACHE_BLOCK
        np.testing.assert_allclose(blocks, np.round(blocks), atol=0.01)
        assert blocks.max() > 0.5


def test_a_second_start_pays_for_no_call_and_yields_the_same_table(collection: Collection) -> None:
    def read_records() -> list[list[str]]:
        path = collection.folder / "table" / "records.csv.gz"
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            return list(csv.reader(file))

    before, records = read_counters(), read_records()
    done = run_collect(collection.folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert subtract(read_counters(), before) == dict.fromkeys(COUNTERS, 0.0)
    assert read_records() == records


def test_the_pool_check_finds_usage_and_log_probabilities(
    tmp_path: Path, model_card: dict[str, Any]
) -> None:
    write_inputs(tmp_path, model_card["id"])
    before = read_counters()
    done = run_rlroute(tmp_path, "pool", "check", "pool.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(name in done.stdout for name in PRICES)
    assert done.stdout.count("yes") == 4, done.stdout  # usage and log-probabilities of each
    assert subtract(read_counters(), before)["calls"] >= len(PRICES)


@pytest.mark.skipif(not KEY, reason="the server asks for no key: RLROUTE_VLLM_KEY is not set")
def test_the_key_stands_in_no_file_that_is_left(collection: Collection) -> None:
    paths = [path for path in collection.folder.rglob("*") if path.is_file()]
    assert len(paths) > 5  # inputs, table, journal, cassette, output
    for path in paths:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        assert KEY.encode() not in content, path


@pytest.mark.skipif(not KEY, reason="the server asks for no key: RLROUTE_VLLM_KEY is not set")
def test_a_wrong_key_ends_the_collection_unpaid(tmp_path: Path, model_card: dict[str, Any]) -> None:
    write_inputs(tmp_path, model_card["id"])
    before = read_counters()
    done = run_collect(tmp_path, RLROUTE_VLLM_KEY="not-the-key")
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "key" in done.stdout + done.stderr
    assert subtract(read_counters(), before) == dict.fromkeys(COUNTERS, 0.0)


INSIDE = """
import asyncio, json, sys
from rlroute.pool.vllm import VllmCandidate
from rlroute.types import Call, Candidate, Limits, Prices, Query
candidate = Candidate("inside", Prices(1.0, 4.0), limits=Limits(output_tokens=12))
engine = dict(dtype="float32", max_model_len=512, enforce_eager=True, max_num_seqs=8)
pool = VllmCandidate(candidate, sys.argv[1], engine | dict(kv_cache_memory_bytes=256 << 20))
calls = [Call("inside", Query(f"{n}", ""), f"What is {n} + 2?") for n in range(3)]
replies = asyncio.run(pool.ask_many(calls))
found = [[r.call.query.id, r.text, r.usage.prompt_tokens, r.usage.completion_tokens, r.cost_usd]
         for r in replies]
print("REPLIES" + json.dumps(found))
"""


@pytest.mark.skipif("VLLM_PYTHON" not in os.environ, reason="VLLM_PYTHON is not set")
def test_a_model_of_vllm_answers_inside_a_process(model_card: dict[str, Any]) -> None:
    environment = os.environ | {"VLLM_HOST_IP": "127.0.0.1", "HF_HUB_OFFLINE": "1"}
    environment |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    command = [os.environ["VLLM_PYTHON"], "-c", INSIDE, model_card["root"]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    line = next(row for row in done.stdout.splitlines() if row.startswith("REPLIES"))
    replies = json.loads(line.removeprefix("REPLIES"))
    assert [row[0] for row in replies] == ["0", "1", "2"]
    for _, text, prompt_tokens, completion_tokens, cost_usd in replies:
        assert text
        assert 0 < completion_tokens <= 12
        assert cost_usd == pytest.approx((prompt_tokens + 4 * completion_tokens) / 1e6)
