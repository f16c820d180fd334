"""An evaluated cascade: which baselines it meets, and that hindsight and the optimum bound them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cascade_tables import EXACT, make_config, solve

from rlroute.config import parse_config
from rlroute.evaluation.step_results import StepEvaluation
from rlroute.step_runs import evaluate_step_run
from rlroute.trainers.step_recipe import StepRecipe
from rlroute.trainers.step_run import train_steps
from rlroute.types import RLRouteError
from rlroute.worlds.cascade import CascadeWorld


def make_recipe(folder: Path, **world) -> StepRecipe:
    stated = {
        "environment": "step_budget",
        "world": make_config(folder / "table", **world).model_dump(mode="json"),
        "updates": 2,
        "reward": {"unit": "usd", "scale": "train", "hard_bonus": 0.0, "gate": False},
        "cost_weight": {"min": 0.1, "max": 0.5},
        "boundary": {"rollouts": 1, "evaluation_rollouts": 1, "sweep": 0},
        "policy": {"kind": "mlp", "hidden": 8, "start": 10.0},
        "warm_start": None,
        "algorithm": {"kind": "ppo", "episodes": 64},
        "validation": {"every": 1},
        "evaluation": {"cost_weights": 3, "bootstrap": 50, "transcripts": 3},
        "tracking": {"wandb": False},
    }
    return parse_config(StepRecipe, stated, "recipe")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where table and run lie."""
    return tmp_path_factory.mktemp("contenders")


@pytest.fixture(scope="module")
def result(folder: Path) -> StepEvaluation:
    """A run of seconds, evaluated."""
    train_steps(make_recipe(folder, checker=EXACT), folder / "run")
    return evaluate_step_run(folder / "run")


def read_rewards(result: StepEvaluation) -> dict[str, list[float]]:
    return {one.name: [point.reward.value for point in one.points] for one in result.policies}


def test_a_cascade_meets_one_shot_routers_fixed_cascades_and_hindsight(result, folder):
    names = [one.name for one in result.policies]
    for name in (
        *("always stop", "always small", "always large", "random", "one-shot ridge"),
        *("one-shot kNN-40", "look-ahead", "cascade by check", "cheapest, then dearest"),
        "oracle, one look",
    ):
        assert name in names
    assert not [one for one in names if "first-large" in one or "LinUCB" in one]
    assert len(result.left_out) == 3
    assert (folder / "run" / "report.html").exists()
    assert json.loads((folder / "run" / "evaluation.json").read_text(encoding="utf-8"))


def test_no_baseline_passes_the_optimum_and_hindsight_passes_every_one_shot_router(result, folder):
    table = CascadeWorld(make_config(folder / "table", checker=EXACT)).table
    rewards = read_rewards(result)
    oracle = rewards.pop("oracle, one look")
    for place, weight in enumerate((0.1, 0.3, 0.5)):
        best = solve(table.splits["test"], table.view.reference_usd, weight, "best_checked")
        for name, found in rewards.items():
            assert found[place] <= best + 1e-6, name
        for name in ("one-shot ridge", "one-shot kNN-40", "always small", "always large"):
            assert rewards[name][place] <= oracle[place] + 1e-6


def test_a_one_shot_router_asks_whom_it_picked(result):
    # at weight 0.1 large for meadow and glacier (0.95 - 0.1), small for harbour (0.5 - 0.01)
    found = read_rewards(result)["one-shot ridge"][0]
    assert found == pytest.approx((0.85 + 0.85 + 0.49) / 3, abs=1e-4)


def test_costs_and_qualities_of_the_fixed_policies_are_those_of_the_table(result):
    points = {one.name: one.points[0] for one in result.policies}
    # small is right 12 + 1 + 10 times of 60 for .1, .2 and .1; large 19 + 19 + 10 times for 1
    assert points["always small"].success.value == pytest.approx(23 / 60, abs=1e-6)
    assert points["always small"].cost_usd.value == pytest.approx(0.01 * 0.4 / 3, rel=1e-5)
    assert points["always large"].success.value == pytest.approx(48 / 60, abs=1e-6)
    assert points["always large"].cost_usd.value == pytest.approx(0.01, rel=1e-5)
    assert points["always large"].steps == pytest.approx(2)  # the look, and stop
    # to large after the 8 + 19 + 10 failures of small
    both = points["cheapest, then dearest"]
    assert both.success.value == pytest.approx((20 + 19 + 10) / 60, abs=1e-6)
    assert both.cost_usd.value == pytest.approx(0.01 * (0.4 / 3 + 37 / 60), rel=1e-5)


def test_a_start_at_estimates_needs_a_world_that_shows_them(tmp_path):
    recipe = make_recipe(tmp_path)
    chain = recipe.model_dump(mode="json") | {"world": {"kind": "chain", "train": 4, "val": 4}}
    chain |= {"cost_weight": {"min": 0.3, "max": 0.3}}
    with pytest.raises(RLRouteError, match=r"policy.start: world 'chain' shows no estimates"):
        train_steps(parse_config(StepRecipe, chain, "recipe"), tmp_path / "run")
