"""What the calls of a pipeline cost by BudgetMem's prices, number by number (U)."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from memory_example import WritingPool, make_question

from rlroute.config import parse_config
from rlroute.memory.base import History, MemoryData, Session, Turn
from rlroute.memory.config import PipelineConfig
from rlroute.memory.open import open_pipeline
from rlroute.pool.pool_file import load_pool
from rlroute.types import Candidate, Prices, RLRouteError

# USD per million tokens, in and out
PRICES = {
    "llama-3.2-3b": Prices(0.06, 0.06),
    "llama-3.1-8b": Prices(0.18, 0.18),
    "llama-3.3-70b": Prices(0.88, 0.88),
    "gpt-oss-120b": Prices(0.15, 0.60),
    "qwen3-next-80b-a3b": Prices(0.15, 1.50),
}
TABLE_U = [
    ("llama-3.2-3b", 2500, 300, 0.0001680),
    ("llama-3.2-3b", 1200, 512, 0.0001027),
    ("llama-3.1-8b", 2500, 300, 0.0005040),
    ("llama-3.1-8b", 1200, 512, 0.0003082),
    ("llama-3.3-70b", 2500, 300, 0.0024640),
    ("llama-3.3-70b", 1200, 512, 0.0015066),
    ("gpt-oss-120b", 2500, 300, 0.0005550),
    ("gpt-oss-120b", 1200, 512, 0.0004872),
    ("qwen3-next-80b-a3b", 2500, 300, 0.0008250),
    ("qwen3-next-80b-a3b", 1200, 512, 0.0009480),
]
ROUNDING = 5.1e-8  # the sheet has seven decimals


@pytest.mark.parametrize(
    ("model", "prompt", "completion", "usd"), TABLE_U, ids=[f"U{n}" for n in range(1, 11)]
)
def test_a_call_costs_what_the_original_charges(
    model: str, prompt: int, completion: int, usd: float
) -> None:
    assert PRICES[model].compute_cost(prompt, completion) == pytest.approx(usd, abs=ROUNDING)


def test_an_unlisted_model_is_an_error_and_not_free_u11_u12(tmp_path: Path) -> None:
    """The original charges 0 for it; here neither a tier nor a pool file may leave a price out."""
    tiers = [{"kind": "rules"}, {"kind": "llm", "candidate": "qwen2.5-7b"}]
    config = parse_config(
        PipelineConfig,
        {
            "retriever": {"kind": "bm25"},
            "modules": [
                {"name": name, "role": role, "tiers": tiers}
                for name, role in (("filter", "filter"), ("entity", "extract"), ("s", "summary"))
            ],
            "answerer": {"kind": "reader"},
        },
        "test",
    )
    history = History("h", (Session("2023-05-08", (Turn("t", "Anna", "I live in Lisbon"),)),))
    asked = {"train": (make_question(),), "val": (), "test": ()}
    data = MemoryData("small", {"h": history}, asked, lambda question, answer: 1.0)
    listed = {name: Candidate(name, prices) for name, prices in PRICES.items()}
    with pytest.raises(RLRouteError, match=r"unknown candidate 'qwen2\.5-7b' \(known: gpt-oss"):
        open_pipeline(config, data, WritingPool(lambda call: ""), listed)
    path = tmp_path / "pool.yaml"
    entry = {"endpoint": "http://127.0.0.1:9/v1", "model": "m"}
    path.write_text(yaml.safe_dump({"candidates": {"qwen2.5-7b": entry}}))
    with pytest.raises(RLRouteError, match=r"candidates\.qwen2\.5-7b.*prices: Field required"):
        load_pool(path)


def test_an_episode_costs_the_sum_of_its_modules_u13() -> None:
    calls = [("llama-3.3-70b", 2600, 120)]
    calls += [("llama-3.2-3b", 1500, 200)] * 3
    calls += [("llama-3.1-8b", 900, 250)]
    costs = [PRICES[model].compute_cost(prompt, reply) for model, prompt, reply in calls]
    assert sum(costs) == pytest.approx(0.0029066, abs=ROUNDING)
