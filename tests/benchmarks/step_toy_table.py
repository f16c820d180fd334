"""The toy table of boundary-guided training: what collapses to the cheapest executor, and what not.

Run: python tests/benchmarks/step_toy_table.py [--seeds 4] [--updates 400] [--rows NAME ...]

A mixture of easy, hard and intractable tasks of the critical-step chain, a logistic policy, 400
updates of 8 groups of 8. Each row is a static policy, or a recipe trained from the same boundary
rollouts with several seeds, and is measured on the test tasks by its sampled policy: success, large
calls of 10 steps, success on hard tasks, and the share of large calls on hard tasks. Prints a
Markdown table of means over seeds (and the spread of success, largest minus smallest) and the time
of each row.

`tests/learning/test_critical_chain.py` asserts what of it must hold.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlroute.config import parse_config
from rlroute.policies.step_baselines import BernoulliPolicy, StaticPolicy
from rlroute.policies.stepwise import StepPolicy
from rlroute.rollout.stage import Stage
from rlroute.trainers.run_folder import BEST_FOLDER
from rlroute.trainers.step_policy import load_policy, make_policy
from rlroute.trainers.step_problem import plan_evaluation
from rlroute.trainers.step_recipe import StepRecipe
from rlroute.trainers.step_run import train_steps

UPDATES = 400
ROLLOUTS = 4  # of each test task
STATIC: dict[str, StepPolicy] = {
    "always small": StaticPolicy(0),
    "always large": StaticPolicy(1),
    "Bernoulli(0.5)": BernoulliPolicy(0.5),
}
PLAIN = {"baseline": "group", "hold_failures": False}
BARE = {"unit": "calls", "hard_bonus": 0.0, "gate": False}
COLD = {"warm_start": None, "policy": {"kind": "mlp", "hidden": 0, "price_bias": -1.4}}
# What each row changes: of the recipe, of its algorithm, of its reward.
TRAINED: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "BoSFT only": ({"updates": 1, "optimiser": {"learning_rate": 1e-12}}, {}, {}),
    "plain": ({}, PLAIN, BARE),
    "plain, hard bonus": ({}, PLAIN, BARE | {"hard_bonus": 0.5}),
    "plain, gate": ({}, PLAIN, BARE | {"gate": True}),
    "plain, no std": ({}, PLAIN | {"scale_by_std": False}, BARE),
    "charge on success": ({}, PLAIN, {"unit": "calls", "hard_bonus": 0.0, "charge": "success"}),
    "anchored": ({}, {"hold_failures": False}, {"unit": "calls", "gate": False}),
    "default": ({}, {}, {"unit": "calls"}),
    "cold": (COLD, {}, {"unit": "calls"}),
    "cold + reference": (COLD, {"reference_rollout": True}, {"unit": "calls"}),
}


@dataclass(frozen=True)
class Row:
    """What a policy gets on the test tasks; shares and successes from 0 to 1, calls an episode."""

    success: float
    large_calls: float
    success_hard: float
    large_share_hard: float


def make_toy_recipe(name: str, seed: int, boundaries: Path, updates: int = UPDATES) -> StepRecipe:
    """Return the recipe of a row; all rows share their boundary rollouts."""
    changes, algorithm, reward = TRAINED[name]
    data: dict[str, Any] = {
        "environment": "step_budget",
        "world": {"kind": "chain"},
        "seed": seed,
        "updates": updates,
        "reward": {"unit": "calls"} | reward,
        "boundary": {"rollouts": 5, "sweep": 10, "folder": str(boundaries)},
        "policy": {"kind": "mlp", "hidden": 0},
        "algorithm": {"kind": "grpo", "group_size": 8, "episodes": 64} | algorithm,
        "optimiser": {"learning_rate": 0.01},
        "validation": {"every": updates},
        "checkpoint_every": updates,
        "tracking": {"wandb": False},
    }
    return parse_config(StepRecipe, data | changes, name)


def measure(policy: StepPolicy, stage: Stage, recipe: StepRecipe, seed: int = 0) -> Row:
    """Play the test tasks and return what came of it."""
    tasks = stage.tasks["test"]
    plan = plan_evaluation(seed, "test", len(tasks), ROLLOUTS)
    batch = stage.play(policy, plan, "test", recipe.episode, {})
    assert batch.ends is not None
    hard_B = np.array([task.task == "hard" for task in tasks])[batch.query_index_B]
    return Row(
        success=float(batch.ends.score_B.mean()),
        large_calls=float(batch.ends.calls_B.mean()),
        success_hard=float(batch.ends.score_B[hard_B].mean()),
        large_share_hard=float((batch.action_BT[hard_B] > 0).mean()),
    )


def train_row(name: str, seed: int, folder: Path, updates: int = UPDATES) -> Row:
    """Train a row's recipe and measure its sampled policy, as it stands after the last update."""
    recipe = make_toy_recipe(name, seed, folder / "boundaries", updates)
    run = folder / f"{name}-{seed}"
    train_steps(recipe, run, overwrite=True)
    stage = Stage(recipe.world, lanes=1)
    model, _ = load_policy(run / BEST_FOLDER, recipe.policy, stage.world, len(stage.feature_names))
    policy = make_policy(model, model.network, version=0, greedy=False)
    return measure(policy, stage, recipe, seed)


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--updates", type=int, default=UPDATES)
    parser.add_argument("--rows", nargs="*", choices=[*STATIC, *TRAINED], default=None)
    arguments = parser.parse_args()
    names = arguments.rows or [*STATIC, *TRAINED]
    started = time.perf_counter()
    print(
        "| policy | success (spread) | large calls | success, hard | large share, hard | seconds |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory(prefix="rlroute-toy-") as folder:
        for name in names:
            begun = time.perf_counter()
            if name in STATIC:
                recipe = make_toy_recipe("default", 0, Path(folder))
                stage = Stage(recipe.world, lanes=1)
                rows = [
                    measure(STATIC[name], stage, recipe, seed) for seed in range(arguments.seeds)
                ]
            else:
                rows = [
                    train_row(name, seed, Path(folder), arguments.updates)
                    for seed in range(arguments.seeds)
                ]
            values_N4 = np.array([astuple(row) for row in rows])
            mean_4 = values_N4.mean(axis=0)
            spread = float(np.ptp(values_N4[:, 0]))
            cells = [f"{mean_4[0]:.3f} ({spread:.3f})", f"{mean_4[1]:.2f}"]
            cells += [f"{mean_4[2]:.3f}", f"{mean_4[3]:.3f}", f"{time.perf_counter() - begun:.0f}"]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print(f"\n{time.perf_counter() - started:.0f} seconds in all, {arguments.seeds} seeds")


if __name__ == "__main__":
    main()
