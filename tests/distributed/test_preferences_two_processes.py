"""Two real processes over gloo make the same run for users and latency weights as one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launching import launch

from rlroute.config import load_config
from rlroute.trainers.decision import train
from rlroute.trainers.recipe import Recipe

RECIPE = """
table: pocket
updates: 3
encoder: {kind: tfidf, dimension: 8}
profile: {clusters: 2}
cost_weight: {max: 2.0}
latency_weight: {max: 1.0}
users:
  ada: {cost_weight: 1.0}
  ben: {cost_weight: 0.1, latency_weight: 0.5, candidate_bias: {calculator: 0.2}}
policy: {hidden: 16, dropout: 0.3}
algorithm: {kind: ppo, episodes: 64, epochs: 2, minibatches: 2}
optimiser: {learning_rate: 0.01}
validation: {metric: utility, every: 3, cost_weights: 5}
tracking: {wandb: false}
"""


@pytest.mark.slow
def test_two_processes_serve_users_as_one_does(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    train(load_config(Recipe, recipe), tmp_path / "one")
    launch("ddp", ["-m", "rlroute", "train", str(recipe), "--run-folder", str(tmp_path / "two")])
    assert json.loads((tmp_path / "two" / "run.json").read_text("utf-8"))["processes"] == 2
    one, two = (
        load_file(tmp_path / name / "checkpoints" / "step-3" / "policy.safetensors")
        for name in ("one", "two")
    )
    assert set(one) == set(two)
    assert "latency_tower.weight" in one
    for name, value in one.items():
        assert abs(value - two[name]).max() < 1e-6, name
