"""Learning from logs: near the optimum from poor picks, blind to what was not logged, estimated."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from rlroute import Router
from rlroute.config import parse_config
from rlroute.data.logs import PROPENSITIES_FILE, SimulatedLogsConfig, apply_logs
from rlroute.data.table import read_table, write_table
from rlroute.policies.decision import GreedyPolicy
from rlroute.runs import evaluate_run, export_run
from rlroute.table_runs import ESTIMATES_FILE
from rlroute.trainers.checkpoint import WEIGHTS_FILE
from rlroute.trainers.decision import train
from rlroute.trainers.recipe import Recipe
from rlroute.trainers.run_folder import BEST_FOLDER, load_best, read_run
from rlroute.types import RLRouteError

MakeRecipe = Callable[..., Recipe]
ALGORITHMS: dict[str, dict[str, Any]] = {
    "ips": {"kind": "off_policy", "estimator": "ips", "queries": 64},
    "snips": {"kind": "off_policy", "estimator": "snips", "queries": 64},
    "doubly_robust": {"kind": "off_policy", "queries": 64, "weight_limit": 50.0},
    "cql": {"kind": "cql", "queries": 64},
}
# three picks of four are the cheap one, which is right half of the time
BEHAVIOUR = {"kind": "simulated", "candidate": "cheap", "epsilon": 0.4}


@pytest.fixture
def make_log_recipe(make_recipe: MakeRecipe) -> MakeRecipe:
    def make(learner: str, **changes: Any) -> Recipe:
        base = make_recipe("expected_gradient").model_dump(mode="json")
        base |= {
            "algorithm": ALGORITHMS[learner],
            "logs": BEHAVIOUR,
            "validation": {"every": 5, "cost_weights": 9, "metric": "utility"},
        }
        return parse_config(Recipe, base | changes, "recipe")

    return make


def measure_utility(folder: Path, cost_weight: float) -> float:
    """The mean utility of the greedy policy on the test split, whose outcomes are all known."""
    run = read_run(folder)
    scorer, _ = load_best(run)
    data = run.prepared.splits["test"]
    share_QK = GreedyPolicy(scorer).compute_probabilities(data, cost_weight)
    utility_QK = data.table.score_QK - cost_weight * data.normalised_cost_QK
    return float((share_QK * utility_QK).sum(1).mean())


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_from_uniform_picks_the_policy_learns_what_the_start_does_not_know(
    algorithm: str, make_log_recipe: MakeRecipe, large_world_folder: Path, tmp_path: Path
) -> None:
    """With one cluster the start knows the candidates' means and nothing of the queries."""
    changes = {
        "table": str(large_world_folder),
        "logs": {"kind": "simulated"},
        "profile": {"clusters": 1},
        "algorithm": {**ALGORITHMS[algorithm], "queries": 256},
    }
    train(make_log_recipe(algorithm, updates=80, **changes), tmp_path / "run")
    # at 0.3 the right specialist earns 0.94, the best single candidate (the generalist) 0.7
    assert measure_utility(tmp_path / "run", 0.3) > 0.85


def test_what_was_not_logged_changes_nothing(
    make_log_recipe: MakeRecipe, world_folder: Path, tmp_path: Path
) -> None:
    """The same log of two worlds that differ in every outcome outside it: the same weights."""
    table = read_table(world_folder)
    logged = apply_logs(table, world_folder, SimulatedLogsConfig(candidate="cheap", epsilon=0.4), 0)
    hidden_QK = ~logged.table.present_QK & (table.split_Q != "test")[:, None]
    other = tmp_path / "other"
    table.score_QK[hidden_QK] = 1 - table.score_QK[hidden_QK]
    table.cost_usd_QK[hidden_QK] *= 7
    write_table(table, other)
    weights = []
    for number, folder in enumerate((world_folder, other)):
        run = tmp_path / f"run{number}"
        train(make_log_recipe("doubly_robust", updates=6, table=str(folder)), run)
        weights.append((run / BEST_FOLDER / WEIGHTS_FILE).read_bytes())
    assert weights[0] == weights[1]


@pytest.mark.parametrize("algorithm", ["snips", "doubly_robust", "cql"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    algorithm: str, make_log_recipe: MakeRecipe, tmp_path: Path
) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    train(make_log_recipe(algorithm, updates=15), whole)
    train(make_log_recipe(algorithm, updates=10), parted)
    shutil.copyfile(whole / "recipe.resolved.yaml", parted / "recipe.resolved.yaml")
    train(make_log_recipe(algorithm, updates=15), parted, resume=True)
    name = f"checkpoints/step-15/{WEIGHTS_FILE}"
    assert (whole / name).read_bytes() == (parted / name).read_bytes()


def write_log_table(world_folder: Path, folder: Path) -> None:
    """A table of one uniform pick per query, test split too, with its propensities beside it."""
    table = read_table(world_folder)
    everything = table.split_Q.copy()
    table.split_Q[:] = "train"  # so that the test split is logged like the others
    logged = apply_logs(table, world_folder, SimulatedLogsConfig(), seed=1)
    logged.table.split_Q[:] = everything
    write_table(logged.table, folder)
    assert logged.propensity_QK is not None
    with gzip.open(folder / PROPENSITIES_FILE, "wt", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["query_id", "model", "asked", "propensity"])
        for q, query in enumerate(logged.table.queries):
            for k, candidate in enumerate(logged.table.candidates):
                if np.isfinite(logged.propensity_QK[q, k]):
                    writer.writerow([query.id, candidate.id, True, logged.propensity_QK[q, k]])


def test_a_table_that_is_a_log_is_learnt_from_estimated_and_exported(
    make_log_recipe: MakeRecipe, world_folder: Path, tmp_path: Path, capsys
) -> None:
    write_log_table(world_folder, tmp_path / "log")
    run = tmp_path / "run"
    changes = {"logs": {"kind": "table"}, "table": str(tmp_path / "log"), "updates": 60}
    train(make_log_recipe("doubly_robust", **changes), run)
    evaluate_run(run)
    rows = json.loads((run / ESTIMATES_FILE).read_text())
    assert not (run / "evaluation.json").exists()  # nobody knows the other outcomes
    best = {
        row["policy"]: row["utility"]["doubly_robust"]["value"]
        for row in rows
        if row["cost_weight"] == rows[0]["cost_weight"]
    }
    assert best["off_policy"] > best["always cheap"] + 0.2
    assert "effective rows" in capsys.readouterr().out
    export_run(run, tmp_path / "router")
    route = Router.load(tmp_path / "router").route("add number plus total minus", cost_weight=0.3)
    assert route.candidate_id == "adder"


def test_a_log_and_other_algorithms_do_not_go_together(make_log_recipe: MakeRecipe) -> None:
    with pytest.raises((RLRouteError, ValidationError), match="do not go together"):
        make_log_recipe("ips", logs=None)
    with pytest.raises((RLRouteError, ValidationError), match="do not go together"):
        make_log_recipe("ips", algorithm={"kind": "ppo"})
    with pytest.raises((RLRouteError, ValidationError), match="must be 'utility'"):
        make_log_recipe("ips", validation={"metric": "aiq"})
