"""Two real processes over gloo make the same run as one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from rlroute.data.table import OutcomeTable, write_table

CONFIG = Path(__file__).resolve().parents[2] / "launch" / "accelerate" / "ddp.yaml"
RECIPE = """
table: {table}
updates: 6
encoder: {{kind: tfidf, dimension: 8, min_documents: 1}}
profile: {{clusters: 2}}
cost_weight: {{max: 2.0}}
policy: {policy}
algorithm: {algorithm}
optimiser: {{learning_rate: 0.01}}
validation: {{every: 2, cost_weights: 5}}
tracking: {{wandb: false}}
"""
ALGORITHMS = {
    "ppo": "{kind: ppo, episodes: 64, epochs: 3, minibatches: 2, target_kl: 0.02}",
    "grpo": "{kind: grpo, episodes: 64, group_size: 4, epochs: 2, minibatches: 3}",
    "expected_gradient": "{kind: expected_gradient, queries: 12}",
    "reinforce": "{kind: reinforce, episodes: 64}",
    "reinforce_critic": "{kind: reinforce, episodes: 64, baseline: critic}",
    # groups of unequal size, so processes hold unequal numbers of rows
    "prior_grpo": "{kind: prior_grpo, episodes: 64, epochs: 2, minibatches: 3}",
    "forced_arms": "{kind: grpo, episodes: 32, group_size: 4, epochs: 2, minibatches: 3, "
    "forced_arms: 1}",
}
POLICIES = {
    "clusters": "{hidden: 16, dropout: 0.3}",
    "kernel": "{hidden: 16, dropout: 0.3, kernel: {anchors: 4}, margin: 0.05}",
}


def find_free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def train(recipe: Path, folder: Path, processes: int) -> None:
    """Run the command line on one process, or on two as its user would."""
    launcher = [sys.executable, "-m", "rlroute"]
    if processes > 1:
        launch = ["-m", "accelerate.commands.launch", "--config_file", str(CONFIG)]
        options = ["--num_processes", str(processes), "--main_process_port", str(find_free_port())]
        launcher = [sys.executable, *launch, *options, "-m", "rlroute"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, "train", str(recipe), "--run-folder", str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "policy"), [*((name, "clusters") for name in ALGORITHMS), ("ppo", "kernel")]
)
def test_two_processes_equal_one(
    algorithm: str, policy: str, tiny_table: OutcomeTable, tmp_path: Path
) -> None:
    table = tmp_path / "tiny"
    write_table(tiny_table, table)
    recipe = tmp_path / "recipe.yaml"
    text = RECIPE.format(table=table, algorithm=ALGORITHMS[algorithm], policy=POLICIES[policy])
    recipe.write_text(text, encoding="utf-8")
    rows, weights = [], []
    for processes in (1, 2):
        folder = tmp_path / f"run{processes}"
        train(recipe, folder, processes)
        facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        assert facts["processes"] == processes
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        rows.append([json.loads(line) for line in lines])
        weights.append(load_file(folder / "checkpoints" / "step-6" / "policy.safetensors"))
    assert len(rows[0]) == len(rows[1]) == 7
    for one, two in zip(*rows, strict=True):
        assert set(one) == set(two)
        for name in one:
            if not name.startswith("time/"):
                assert one[name] == pytest.approx(two[name], abs=1e-6, rel=1e-6), name
    for name, value in weights[0].items():
        assert abs(value - weights[1][name]).max() < 1e-6, name
