"""A real language model on this machine as the High tier: from two questions to the bill."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import yaml
from tiny_llama import save_tiny_llama

from rlroute.config import parse_config
from rlroute.memory.config import PipelineConfig
from rlroute.memory.open import PoolModelsConfig, open_models, open_pipeline
from rlroute.memory.store import RunStore
from rlroute.memory.world import generate_memory
from rlroute.memory.world_config import GeneratedMemoryConfig

PRICES = {"input": 2.0, "output": 8.0}
ROLES = {"filter": "filter", "entity": "extract", "temporal": "extract", "summary": "summary"}
TOKENS = 12  # of a reply at most
RULES = {"kind": "rules"}
LLAMA = {"kind": "llm", "candidate": "llama", "max_output_tokens": TOKENS}

pytest.importorskip("json_repair", reason="the extra `memory` is absent")


@pytest.fixture(scope="module")
def pool_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool file with one local model, random weights and a context for real prompts."""
    folder = tmp_path_factory.mktemp("llama")
    save_tiny_llama(folder / "model", max_position_embeddings=16_384)
    source = {"folder": str(folder / "model"), "parameters": 37_344, "licence": "none"}
    source |= {"dtype": "float32", "batch_size": 4, "max_new_tokens": TOKENS}
    llama = {"type": "local", "model": "llama", "mode": "chat", "prices": PRICES}
    path = folder / "pool.yaml"
    path.write_text(
        yaml.safe_dump({"models": {"llama": source}, "candidates": {"llama": llama}}),
        encoding="utf-8",
    )
    return path


def test_a_local_model_works_as_high_tier_and_every_token_of_it_is_billed(
    pool_file: Path, tmp_path: Path
) -> None:
    world = {"kind": "generated", "histories": {"train": 1, "val": 1, "test": 1}}
    world |= {"people": 2, "sessions": 6, "turns_per_session": 8, "questions_per_kind": 1}
    data = generate_memory(parse_config(GeneratedMemoryConfig, world, "test")).data
    modules = [
        {"name": name, "role": role, "tiers": [RULES, LLAMA]} for name, role in ROLES.items()
    ]
    config = parse_config(
        PipelineConfig,
        {
            "chunk_tokens": 64,
            "retriever": {"kind": "bm25", "top": 4},
            "keep": 2,
            "modules": modules,
            "answerer": {"kind": "llm", "candidate": "llama", "max_output_tokens": TOKENS},
        },
        "test",
    )
    questions = data.questions["test"][:2]
    models = open_models(PoolModelsConfig(kind="pool", path=pool_file))
    store = RunStore(tmp_path / "runs.jsonl")
    try:
        pipeline = open_pipeline(
            config, data, models.pool, models.candidates, store, models.identities
        )
        traces = asyncio.run(pipeline.run(questions, [(1, 1, 1, 1)] * 2))
        misses = store.misses
        again = asyncio.run(pipeline.run(questions, [(1, 1, 1, 1)] * 2))
    finally:
        store.close()
        asyncio.run(models.close())
    assert len({trace.question.query.id for trace in traces}) == 2
    for trace in traces:
        assert trace.failure is None
        asked = [*trace.runs, trace.answer]
        for one in asked:
            assert one.usage is not None
            assert one.usage.prompt_tokens > 100  # the real prompt, byte by byte or nearly
            assert 1 <= one.usage.completion_tokens <= TOKENS
            bill = one.usage.prompt_tokens * 2.0 + one.usage.completion_tokens * 8.0
            assert one.cost_usd == pytest.approx(bill / 1e6, rel=1e-12)
        assert trace.cost_usd == pytest.approx(sum(run.cost_usd for run in trace.runs))
    assert any(run.malformed for trace in traces for run in trace.runs)  # it knows no JSON
    assert store.misses == misses  # a second time nothing is asked
    assert [trace.cost_usd for trace in again] == [trace.cost_usd for trace in traces]
