"""Two real processes over gloo make the same run of step-by-step routing as one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from rlroute.trainers.step_run import LABELS_FILE, WARM_START_FOLDER

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "launch" / "accelerate" / "ddp.yaml"
RECIPE = """
environment: step_budget
world: {{kind: chain, train: 60, val: 20, test: 10}}
updates: 4
budget: {{unit: calls, caps: [2, null]}}
reward: {{unit: calls}}
cost_weight: {{min: 0.1, max: 0.5}}
boundary: {{rollouts: 3, sweep: 5}}
policy: {{kind: mlp, hidden: 8}}
warm_start: {{epochs: 2, batch: 16}}
algorithm: {algorithm}
optimiser: {{learning_rate: 0.01}}
validation: {{every: 2}}
tracking: {{wandb: false}}
"""
ALGORITHMS = {
    "ppo": "{kind: ppo, episodes: 32, minibatches: 2, kl_weight: 0.01, entropy_weight: 0.01}",
    "horizons": "{kind: ppo, episodes: 32, minibatches: 2, critic: {actor: 0.999}}",
    "anchored": "{kind: grpo, episodes: 16, group_size: 4, epochs: 2, minibatches: 3, "
    "kl_weight: 0.01, reference_rollout: true, forced_arms: true}",
}


def find_free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


TRAIN = """
import sys
from pathlib import Path
from rlroute.config import load_config
from rlroute.trainers.step_recipe import StepRecipe
from rlroute.trainers.step_run import train_steps

train_steps(load_config(StepRecipe, Path(sys.argv[1]), []), Path(sys.argv[2]))
"""


def train(recipe: Path, folder: Path, processes: int) -> None:
    """Train on one process, or on two as they are launched."""
    script = folder.parent / "train.py"
    script.write_text(TRAIN, encoding="utf-8")
    launcher = [sys.executable]
    if processes > 1:
        launch = ["-m", "accelerate.commands.launch", "--config_file", str(CONFIG)]
        options = ["--num_processes", str(processes), "--main_process_port", str(find_free_port())]
        launcher = [sys.executable, *launch, *options]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    settings = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(
        [*launcher, str(script), str(recipe), str(folder)],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_two_processes_equal_one(algorithm: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(algorithm=ALGORITHMS[algorithm]), encoding="utf-8")
    rows, weights, kept = [], [], []
    for processes in (1, 2):
        folder = tmp_path / f"run{processes}"
        train(recipe, folder, processes)
        facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        assert facts["processes"] == processes
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        rows.append([json.loads(line) for line in lines])
        weights.append(load_file(folder / "checkpoints" / "step-4" / "policy.safetensors"))
        weights.append(load_file(folder / WARM_START_FOLDER / "policy.safetensors"))
        names = (LABELS_FILE, "boundaries.jsonl")
        kept.append([(folder / name).read_text(encoding="utf-8") for name in names])
    assert kept[0] == kept[1]
    assert len(rows[0]) == len(rows[1]) == 5
    for one, two in zip(*rows, strict=True):
        assert set(one) == set(two)
        for name in one:
            if not name.startswith("time/"):
                assert one[name] == pytest.approx(two[name], abs=1e-6, rel=1e-6), name
    for first, second in ((0, 2), (1, 3)):
        for name, value in weights[first].items():
            difference = abs(value - weights[second][name])
            if name == "executor_tower.weight":
                # the first column is the same for all executors: no choice depends on it, and its
                # gradient is float noise
                difference = difference[:, 1:]
            assert difference.max() < 1e-6, name
