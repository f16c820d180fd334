"""Do no harm: on tasks never seen a router with a measured margin stays with the best candidate.

In the made table `solid` solves 60% of everything, and `gambler` solves all queries of two tasks
in five, none of the others. Tasks share their words, so a new task looks like some known ones, and
that says nothing of who is good at it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlroute.config import parse_config
from rlroute.data.table import OutcomeTable, write_table
from rlroute.evaluation.evaluate import compute_validation_metrics
from rlroute.evaluation.sampling import list_singles
from rlroute.policies.decision import GreedyPolicy
from rlroute.trainers.decision import train
from rlroute.trainers.recipe import Recipe
from rlroute.trainers.run_folder import load_best, read_run
from rlroute.types import Candidate, Prices, Query

TASKS = [f"task{number:02d}" for number in range(40)]
HELD_OUT = TASKS[30:]
COSTS = {"gambler": 0.002, "solid": 0.003}
KERNEL = {"decay": 3.0, "penalty": 0.5}


def make_table(per_task: int = 30) -> OutcomeTable:
    """Return a table whose queries name three of their task's four words, out of sixteen in all."""
    rng = np.random.default_rng(0)
    queries, scores = [], []
    for number, task in enumerate(TASKS):
        words = rng.choice([*"abcdefghijklmnop"], 4, replace=False)
        for count in range(per_task):
            name = f"{task}-{count:03d}"
            text = " ".join(f"word{word}" for word in rng.choice(words, 3, replace=False))
            queries.append(Query(name, f"{text} item{name}", task=task))
            scores.append([float(number % 5 < 2), float(rng.random() < 0.6)])
    score_QK = np.array(scores, dtype=np.float32)
    unknown_QK = np.full_like(score_QK, np.nan)
    splits = rng.choice(["train", "val", "test"], len(queries), p=[0.8, 0.1, 0.1])
    return OutcomeTable(
        name="luck",
        queries=tuple(queries),
        candidates=tuple(Candidate(name, Prices(1.0, 2.0)) for name in sorted(COSTS)),
        score_QK=score_QK,
        cost_usd_QK=np.tile(np.array([*COSTS.values()], np.float32), (len(queries), 1)),
        present_QK=np.ones_like(score_QK, dtype=np.bool_),
        prompt_tokens_QK=unknown_QK,
        completion_tokens_QK=unknown_QK,
        latency_seconds_QK=unknown_QK,
        split_Q=splits,
    )


def measure(folder: Path, split: str) -> float:
    """Return the quality at weight 0, relative to the best single candidate."""
    run = read_run(folder)
    scorer, _ = load_best(run)
    data = run.prepared.splits[split]
    found = compute_validation_metrics(GreedyPolicy(scorer), data, [0.0, 1.0])
    return found["quality"] - float(list_singles(data)[0].mean(0)[1])  # solid


@pytest.fixture(scope="module")
def gains(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[float, float]]:
    """Return the gain on val (known tasks) and on test (unseen ones), without and with a margin."""
    folder = tmp_path_factory.mktemp("luck")
    write_table(make_table(), folder / "table")
    found = {}
    for name, margin in (("none", 0.0), ("measured", "unseen_tasks")):
        data: dict[str, Any] = {
            "table": str(folder / "table"),
            "split": {"kind": "held_out_tasks", "test": HELD_OUT, "val_fraction": 0.3},
            "updates": 15,
            "encoder": {"kind": "tfidf", "dimension": 16},
            "profile": {"clusters": 32},
            "cost_weight": {"max": 2.0},
            "policy": {"sharpness": 100, "kernel": KERNEL, "margin": margin},
            "algorithm": {"kind": "expected_gradient", "queries": 128},
            "optimiser": {"learning_rate": 0.0001},
            "validation": {"every": 5, "cost_weights": 9},
            "tracking": {"wandb": False},
        }
        train(parse_config(Recipe, data, "recipe"), folder / name)
        found[name] = measure(folder / name, "val"), measure(folder / name, "test")
    return found


def test_without_a_margin_unseen_tasks_come_to_harm(gains: dict[str, tuple[float, float]]) -> None:
    assert gains["none"][1] < -0.02


def test_with_a_measured_margin_they_do_not(gains: dict[str, tuple[float, float]]) -> None:
    assert gains["measured"][1] > -0.005


def test_known_tasks_keep_most_of_what_was_won(gains: dict[str, tuple[float, float]]) -> None:
    assert gains["none"][0] > 0.08
    assert gains["measured"][0] > 0.03
