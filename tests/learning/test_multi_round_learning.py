"""A tiny language model learns whom to ask: the relations world has a known optimum.

Each seed warms up one model on scripted episodes that ask anybody who knows the relation, and then
goes on from there by GRPO and by PPO. The optimum asks the specialists where they know, and the
dear generalist elsewhere.
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
UPDATES = 40
COST_WEIGHT = 0.4

pytestmark = pytest.mark.slow


def train(recipe: str, folder: Path, *overrides: str) -> list[dict]:
    """Train as a shipped recipe says, with overrides; return the rows of metrics."""
    prepare_text_libraries()
    from rlroute.trainers.text_run import train_text

    settings = [f"updates={UPDATES}", "validation.every=10", "tracking.wandb=false", *overrides]
    train_text(load_config(TextRecipe, RECIPES / recipe, settings), folder)
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


# all tests of a seed go to one worker: each worker would train anew
GROUPS = [pytest.param(seed, marks=pytest.mark.xdist_group(f"learning-{seed}")) for seed in SEEDS]


@pytest.fixture(scope="module", params=GROUPS)
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
def test_a_tiny_model_learns_whom_to_ask(rows_by_algorithm, optimum, algorithm):
    rows = rows_by_algorithm[algorithm]
    best = max((row for row in rows if "eval/reward" in row), key=lambda row: row["eval/reward"])
    assert best["eval/reward"] >= 0.9 * optimum.utility
    assert best["eval/calls"] == pytest.approx(optimum.calls, abs=0.2)
    first, last = rows[1:4], rows[-10:]
    assert average(last, "reward/mean") > average(first, "reward/mean") + 0.05
    assert not any(row["collapse/alarm"] for row in rows[1:])


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_each_relation_is_asked_of_who_is_best_for_it(rows_by_algorithm, algorithm):
    rows = rows_by_algorithm[algorithm]
    small = "selection/share/small"
    assert average(rows[-10:], small) < 0.85 * average(rows[1:4], small)


def test_the_value_head_explains_returns(rows_by_algorithm):
    assert average(rows_by_algorithm["ppo"][-10:], "policy/explained_variance") > 0.2
