"""Runs that start at a kernel regression and serve with a margin: optimum, resume, export."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from rlroute import Router
from rlroute.policies.decision import GreedyPolicy
from rlroute.runs import export_run
from rlroute.tracking import read_metrics
from rlroute.trainers.checkpoint import WEIGHTS_FILE
from rlroute.trainers.decision import train
from rlroute.trainers.recipe import Recipe
from rlroute.trainers.run_folder import BEST_FOLDER, CHECKPOINTS_FOLDER, load_best, read_run
from rlroute.types import RLRouteError

MakeRecipe = Callable[..., Recipe]
MARGIN = 0.05
POLICY = {
    "hidden": 32,
    "dropout": 0.2,
    "sharpness": 30,
    "kernel": {"anchors": 40, "penalty": 1.0},
    "margin": MARGIN,
}


@pytest.mark.parametrize("algorithm", ["ppo", "expected_gradient"])
def test_the_known_optimum_is_reached_from_a_kernel_start(
    algorithm: str, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    train(make_recipe(algorithm, policy=POLICY), folder)
    run = read_run(folder)
    policy = GreedyPolicy(load_best(run)[0])
    data = run.prepared.splits["test"]
    names = [candidate.id for candidate in data.table.candidates]
    # normalised costs: generalist 1, specialists 0.2, cheap 0.02; the specialist of a query's kind
    # is best by more than the margin at all these weights
    for cost_weight in (0.3, 1.0, 2.0):
        pick_Q = policy.compute_probabilities(data, cost_weight).argmax(axis=1)
        right = [
            (query.task, names[k]) in {("sum", "adder"), ("poem", "poet")}
            for query, k in zip(data.table.queries, pick_Q, strict=True)
        ]
        assert np.mean(right) > 0.9, cost_weight


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe = make_recipe("grpo", updates=20, policy=POLICY)
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    train(recipe, whole)
    train(make_recipe("grpo", updates=10, policy=POLICY), parted)
    shutil.copyfile(whole / "recipe.resolved.yaml", parted / "recipe.resolved.yaml")
    train(recipe, parted, resume=True)
    for name in (BEST_FOLDER, f"{CHECKPOINTS_FOLDER}/step-20"):
        files = [folder / name / WEIGHTS_FILE for folder in (whole, parted)]
        assert files[0].read_bytes() == files[1].read_bytes()
    rows = [read_metrics(folder)[-1]["eval/aiq"] for folder in (whole, parted)]
    assert rows[0] == rows[1]


def test_the_exported_router_decides_as_the_trainer_with_start_and_margin(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    train(make_recipe("expected_gradient", updates=10, policy=POLICY), folder)
    saved = load_file(folder / BEST_FOLDER / WEIGHTS_FILE)
    assert float(saved["margin"]) == pytest.approx(MARGIN)
    assert saved["anchors_MF"].shape[0] == 40
    export_run(folder, tmp_path / "router")
    router = Router.load(tmp_path / "router")
    assert router.summary["validation"]["margin"] == pytest.approx(MARGIN)
    run = read_run(folder)
    data, policy = run.prepared.splits["test"], GreedyPolicy(load_best(run)[0])
    names = [candidate.id for candidate in data.table.candidates]
    for weight in (0.0, 0.2, 1.0):
        pick_Q = policy.compute_probabilities(data, weight).argmax(axis=1)
        routes = router.route_many([query.text for query in data.table.queries], cost_weight=weight)
        assert [route.candidate_id for route in routes] == [names[k] for k in pick_Q]


def test_a_margin_cannot_be_measured_on_two_tasks(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe("expected_gradient", policy=POLICY | {"margin": "unseen_tasks"})
    with pytest.raises(RLRouteError, match=r"policy\.margin: .*3 train tasks.* 'world' has 2"):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("margin", ["seen_tasks", -0.1, float("inf")])
def test_a_margin_that_means_nothing_is_refused(margin: object, make_recipe: MakeRecipe) -> None:
    with pytest.raises(RLRouteError, match=r"policy\.margin"):
        make_recipe("ppo", policy={"margin": margin})
