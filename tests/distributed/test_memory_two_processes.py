"""Two real processes over gloo make the same run of memory-tier routing as one.

The reward's window is the delicate part: it must see the episodes of both, in one order.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launching import launch

from rlroute.config import load_config
from rlroute.trainers.memory_recipe import MemoryRecipe
from rlroute.trainers.memory_run import train_memory

RECIPE = """
environment: memory_tiers
data:
  kind: generated
  histories: {{train: 2, val: 1, test: 1}}
  people: 2
  sessions: 6
  turns_per_session: 8
  questions_per_kind: 1
models:
  kind: simulated
  candidates:
    large: {{prices: {{input: 1, output: 1}}, failures: {{timeout: 0.02}}}}
pipeline:
  retriever: {{kind: bm25, top: 6}}
  keep: 3
  modules:
    - name: filter
      role: filter
      tiers: &tiers [{{kind: rules}}, {{kind: llm, candidate: large}}]
    - {{name: entity, role: extract, tiers: *tiers}}
    - {{name: summary, role: summary, tiers: *tiers}}
  answerer: {{kind: reader}}
encoder: {{kind: tfidf, dimension: 8}}
updates: 4
cost_weight: {{min: 0, max: 1}}
reward:
  cost: {{kind: window, size: 40}}
  alignment: {{size: 50, warm_up: 10}}
policy: {policy}
algorithm: {algorithm}
optimiser: {{learning_rate: 0.01}}
validation: {{every: 2, cost_weights: 3}}
tracking: {{wandb: false}}
"""
ALGORITHMS = {
    "decision": "{kind: ppo, episodes: 32, minibatches: 2, entropy_weight: 0.01}",
    "profiles": "{kind: ppo, episodes: 32, minibatches: 2, entropy_weight: 0.01}",
    "joint": "{kind: ppo, credit: joint, value_clip: 0.2, episodes: 32, minibatches: 3}",
}
PLAIN = "{hidden: 8, action_hidden: 4}"
POLICIES = {"profiles": "{hidden: 8, action_hidden: 4, profiles: {clusters: 3, sharpness: 1}}"}
TRAIN = """
import sys
from pathlib import Path
from rlroute.config import load_config
from rlroute.trainers.memory_recipe import MemoryRecipe
from rlroute.trainers.memory_run import train_memory

train_memory(load_config(MemoryRecipe, Path(sys.argv[1]), []), Path(sys.argv[2]))
"""


def make_text(name: str) -> str:
    """Return the recipe of an algorithm as YAML."""
    return RECIPE.format(algorithm=ALGORITHMS[name], policy=POLICIES.get(name, PLAIN))


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_two_processes_equal_one(algorithm: str, tmp_path: Path) -> None:
    recipe, script = tmp_path / "recipe.yaml", tmp_path / "train.py"
    recipe.write_text(make_text(algorithm), encoding="utf-8")
    script.write_text(TRAIN, encoding="utf-8")
    train_memory(load_config(MemoryRecipe, recipe, []), tmp_path / "run1")
    launch("ddp", [str(script), str(recipe), str(tmp_path / "run2")])
    rows, weights, states = [], [], []
    for processes in (1, 2):
        folder = tmp_path / f"run{processes}"
        facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        assert facts["processes"] == processes
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        rows.append([json.loads(line) for line in lines])
        checkpoint = folder / "checkpoints" / "step-4"
        weights.append(load_file(checkpoint / "policy.safetensors"))
        state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        states.append(state["problem"])
    assert states[0] == states[1]  # window and alignment, in order
    assert len(states[0]["reward"]["alignment"]["costs"]) == 50
    assert any(row["group/dropped"] > 0 for row in rows[0][1:])
    assert len(rows[0]) == len(rows[1]) == 5
    for one, two in zip(*rows, strict=True):
        assert set(one) == set(two)
        for name in one:
            if not name.startswith("time/"):
                assert one[name] == pytest.approx(two[name], abs=1e-6, rel=1e-5), name
    for name, value in weights[0].items():
        difference = abs(value - weights[1][name])
        if name == "output.weight":
            # the first column is the same for all tiers: no choice depends on it, and its gradient
            # is float noise
            difference = difference[:, 1:]
        assert difference.max() < 1e-6, name
