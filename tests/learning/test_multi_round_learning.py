"""A tiny language model learns whom to ask: the relations world has a known optimum.

Each seed warms up one model on scripted episodes of a planner that prefers cheap candidates among
those who know the relation, and then goes on from there by GRPO and by PPO. The optimum asks the
specialists where they know and the dear generalist elsewhere; the warm start earns about half of
what that earns.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("trl", reason="the extra `text` is absent")

from rlroute.config import load_config
from rlroute.pool.relations import RelationsWorld
from rlroute.runs import prepare_text_libraries
from rlroute.trainers.text_recipe import RelationsQuestions, TextRecipe

RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "multi_round"
SEEDS = (0, 1, 2)
COST_WEIGHT = 0.4

pytestmark = pytest.mark.slow


def train(recipe: str, folder: Path, *overrides: str) -> list[dict]:
    """Train as a shipped recipe says, with overrides; return the rows of metrics."""
    prepare_text_libraries()
    from rlroute.trainers.text_run import train_text

    settings = ["tracking.wandb=false", *overrides]
    train_text(load_config(TextRecipe, RECIPES / recipe, settings), folder)
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module", params=SEEDS)
def rows_by_algorithm(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("learning")
    seed = f"seed={request.param}"
    grpo = train("tiny_grpo.yaml", folder / "grpo", seed)
    start = f"policy.base={{kind: pretrained, model: {folder / 'grpo' / 'warm_start'}}}"
    ppo = train("tiny_ppo.yaml", folder / "ppo", seed, start, "warm_start=null")
    return {"grpo": grpo, "ppo": ppo}


@pytest.fixture(scope="module")
def optimum():
    recipe = load_config(TextRecipe, RECIPES / "tiny_grpo.yaml")
    assert isinstance(recipe.questions, RelationsQuestions)
    return RelationsWorld(recipe.questions.world).find_optimum(COST_WEIGHT)


def average(rows: list[dict], name: str) -> float:
    """Return the mean of a metric over rows."""
    return float(np.mean([row[name] for row in rows]))


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_from_the_warm_start_a_tiny_model_climbs_to_the_optimum(
    rows_by_algorithm, optimum, algorithm
):
    rows = rows_by_algorithm[algorithm]
    validated = [row for row in rows if "eval/reward" in row]
    start, end = validated[0], validated[-1]
    assert start["eval/reward"] < 0.7 * optimum.utility  # what the warm start alone earns
    assert end["eval/reward"] >= 0.9 * optimum.utility
    assert end["eval/success"] > start["eval/success"] + 0.2
    assert end["eval/calls"] == pytest.approx(optimum.calls, abs=0.2)
    assert not any(row["collapse/alarm"] for row in rows[1:])


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_what_is_sampled_rises_too(rows_by_algorithm, algorithm):
    rows = rows_by_algorithm[algorithm]
    assert average(rows[-10:], "reward/mean") > average(rows[1:4], "reward/mean") + 0.04


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_each_relation_is_asked_of_who_is_best_for_it(rows_by_algorithm, algorithm):
    rows = rows_by_algorithm[algorithm]
    small = "selection/share/small"
    assert average(rows[-10:], small) < 0.85 * average(rows[1:4], small)


def test_the_value_head_explains_returns(rows_by_algorithm):
    assert average(rows_by_algorithm["ppo"][-10:], "policy/explained_variance") > 0.15
