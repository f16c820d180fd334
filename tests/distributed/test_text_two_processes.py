"""The tiny multi-round recipe on two real processes: data-parallel and sharded by ZeRO-3."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from launching import launch

pytest.importorskip("trl", reason="the extra `text` is absent")
pytestmark = pytest.mark.slow

RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "multi_round"
WARM = [
    "policy.base.hidden=32",
    "warm_start.episodes=128",
    "warm_start.epochs=1",
    "warm_start.batch=8",
]
SMALL = [
    "updates=2",
    "questions.train=64",
    "algorithm.episodes=16",
    "algorithm.micro_batch=4",
    "validation.every=2",
    "validation.questions=10",
    "checkpoint_every=1",
    "tracking.wandb=false",
]


def train(config: str, recipe: str, folder: Path, *overrides: str, processes: int) -> list[Any]:
    """Train with a launch file; return the rows of metrics."""
    arguments = ["-m", "rlroute", "train", str(RECIPES / recipe), *SMALL, *overrides]
    launch(config, [*arguments, "--run-folder", str(folder)], processes=processes)
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def read_facts(folder: Path) -> tuple[int, str]:
    """Return how many processes a run had, and how they were connected."""
    facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return facts["processes"], facts["distributed_type"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[list[str], Path, list[Any]]:
    """Warm up one model, train it in one process; return how others start from the same."""
    folder = tmp_path_factory.mktemp("alone")
    train("one_process", "tiny_grpo.yaml", folder / "warm", *WARM, "updates=1", processes=1)
    base = f"policy.base={{kind: pretrained, model: {folder / 'warm' / 'warm_start'}}}"
    start = [base, "warm_start=null"]
    rows = train("one_process", "tiny_grpo.yaml", folder / "run", *start, processes=1)
    return start, folder / "run", rows


@pytest.mark.parametrize("config", ["ddp", "zero3"])
def test_two_processes_learn_what_one_learns(config, alone, tmp_path):
    if config == "zero3":
        pytest.importorskip("deepspeed", reason="deepspeed is absent")
    start, folder, expected = alone
    rows = train(config, "tiny_grpo.yaml", tmp_path / "run", *start, processes=2)
    kinds = {"ddp": "MULTI_CPU", "zero3": "DEEPSPEED"}
    assert read_facts(folder) == (1, "NO")
    assert read_facts(tmp_path / "run") == (2, kinds[config])
    for name in ("reward/mean", "cost/usd_per_query", "episode/calls", "policy/grad_norm"):
        found = [row[name] for row in rows[1:]]
        assert found == pytest.approx([row[name] for row in expected[1:]], rel=1e-3), name
    assert (tmp_path / "run" / "best" / "model.safetensors").exists()


def test_ppo_with_its_value_head_runs_sharded(alone, tmp_path):
    pytest.importorskip("deepspeed", reason="deepspeed is absent")
    start, _, _ = alone
    rows = train("zero3", "tiny_ppo.yaml", tmp_path / "run", *start, processes=2)
    assert read_facts(tmp_path / "run") == (2, "DEEPSPEED")
    assert rows[-1]["policy/value_loss"] > 0
