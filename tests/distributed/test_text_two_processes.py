"""The tiny multi-round recipe on two real processes: data-parallel, and sharded by ZeRO-2 and 3."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from launching import launch
from safetensors.numpy import load_file

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
    "algorithm.minibatches=1",
    "algorithm.entropy_weight=0",  # TRL averages it within micro-batches, which are others here
    "optimiser.decay=none",  # a run of one update would end at 0, and is gone on with
    "validation.every=2",
    "validation.questions=10",
    "checkpoint_every=1",
    "tracking.wandb=false",
]


def train(config: str, recipe: str, folder: Path, *overrides: str, processes: int) -> list[Any]:
    """Train with a launch file; return the rows of metrics."""
    arguments = ["-m", "rlroute", "train", str(RECIPES / recipe), *SMALL, *overrides]
    launch(config, [*arguments, "--run-folder", str(folder)], processes=processes)
    return read_rows(folder)


def read_rows(folder: Path) -> list[Any]:
    """Return the rows of metrics of a run."""
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


@pytest.fixture(scope="module")
def train_together(alone, tmp_path_factory) -> Callable[[str], Path]:
    """Return a function that trains in two processes, once per launch file."""
    start, _, _ = alone
    folders: dict[str, Path] = {}

    def run(config: str) -> Path:
        if config != "ddp":
            pytest.importorskip("deepspeed", reason="deepspeed is absent")
        if config not in folders:
            folder = tmp_path_factory.mktemp(config) / "run"
            train(config, "tiny_grpo.yaml", folder, *start, processes=2)
            folders[config] = folder
        return folders[config]

    return run


@pytest.mark.parametrize("config", ["ddp", "zero2", "zero3"])
def test_two_processes_learn_what_one_learns(config, alone, train_together):
    _, folder, expected = alone
    together = train_together(config)
    rows = read_rows(together)
    assert read_facts(folder) == (1, "NO")
    assert read_facts(together) == (2, "MULTI_CPU" if config == "ddp" else "DEEPSPEED")
    for name in ("reward/mean", "cost/usd_per_query", "episode/calls", "policy/grad_norm"):
        found = [row[name] for row in rows[1:]]
        assert found == pytest.approx([row[name] for row in expected[1:]], rel=1e-3), name
    assert (together / "best" / "model.safetensors").exists()


def test_a_sharded_run_that_is_gone_on_with_equals_one_that_was_never_interrupted(
    alone, train_together, tmp_path
):
    whole, parted = train_together("zero2"), tmp_path / "run"
    start, _, _ = alone
    train("zero2", "tiny_grpo.yaml", parted, *start, "updates=1", processes=2)
    recipe = parted / "recipe.resolved.yaml"  # as if two updates had been meant from the start
    stated = recipe.read_text(encoding="utf-8")
    assert "\nupdates: 1\n" in stated
    recipe.write_text(stated.replace("\nupdates: 1\n", "\nupdates: 2\n"), encoding="utf-8")
    launch("zero2", ["-m", "rlroute", "train", "--resume", str(parted)])
    last = [
        load_file(folder / "trainer" / "checkpoint-2" / "model.safetensors")
        for folder in (whole, parted)
    ]
    assert last[0].keys() == last[1].keys()
    assert all((weight == last[1][name]).all() for name, weight in last[0].items())
    rows = [read_rows(folder)[2] for folder in (whole, parted)]
    timeless = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]
    assert timeless[0] == timeless[1]


def test_ppo_with_its_value_head_runs_sharded(alone, tmp_path):
    pytest.importorskip("deepspeed", reason="deepspeed is absent")
    start, _, _ = alone
    rows = train("zero3", "tiny_ppo.yaml", tmp_path / "run", *start, processes=2)
    assert read_facts(tmp_path / "run") == (2, "DEEPSPEED")
    assert rows[-1]["policy/value_loss"] > 0
