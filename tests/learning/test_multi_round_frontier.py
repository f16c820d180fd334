"""One conditioned policy for five cost weights: success and spending fall as the weight rises."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="the extra `text` is absent")

from rlroute.config import load_config
from rlroute.runs import prepare_text_libraries
from rlroute.trainers.text_recipe import TextRecipe

RECIPE = Path(__file__).resolve().parents[2] / "recipes/multi_round/tiny_frontier_grpo.yaml"
UPDATES = 40
WEIGHTS = (0.0, 0.1, 0.3, 0.7, 0.9)
NOISE = 0.06  # of a success rate over the 120 questions of val, less than two standard errors

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def last_row(tmp_path_factory):
    """The metrics of the last validation."""
    prepare_text_libraries()
    from rlroute.trainers.text_run import train_text

    folder = tmp_path_factory.mktemp("frontier") / "run"
    settings = [f"updates={UPDATES}", f"validation.every={UPDATES}", "tracking.wandb=false"]
    train_text(load_config(TextRecipe, RECIPE, settings), folder)
    return json.loads((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])


def read(row: dict, name: str) -> list[float]:
    """Return a validation metric at each cost weight."""
    return [row[f"eval/{name}/at_{weight:g}"] for weight in WEIGHTS]


def test_spending_falls_with_the_cost_weight(last_row):
    charges = read(last_row, "charge_usd")
    assert all(later <= before * 1.05 for before, later in pairwise(charges))
    assert charges[-1] < 0.8 * charges[0]


def test_success_falls_with_the_cost_weight_and_no_faster_than_it_must(last_row):
    successes = read(last_row, "success")
    assert all(later <= before + NOISE for before, later in pairwise(successes))
    assert successes[0] > successes[-1] + 0.05
    assert successes[0] > 0.9
