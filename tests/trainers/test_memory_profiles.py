"""Training that starts from measured profiles: a good first policy, and learning keeps it so."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from planted_tiers import FACTS, PRICES, RECIPE, compute_leaf_utility, make_tree, start, train
from tier_router_example import find_tier_run

from rlroute.config import parse_config
from rlroute.trainers.memory_recipe import MemoryRecipe
from rlroute.trainers.memory_run import PROFILES_FILE, load_best_scorer, read_profiles
from rlroute.trainers.memory_stage import open_memory_stage
from rlroute.types import RLRouteError

LEAF_LM = FACTS.list_leaves()
# What each module adds at High, for questions of three kinds.
GAIN_CM = np.array(
    [
        [0.05, 0.40, 0.05, 0.05, 0.10],
        [0.05, 0.05, 0.40, 0.05, 0.10],
        [0.02, 0.02, 0.02, 0.02, 0.02],
    ]
)
SCORE_CL = 0.3 + (GAIN_CM[:, None, :] * np.array([0.0, 0.5, 1.0])[LEAF_LM]).sum(axis=2)
PROFILES = {"clusters": 3, "directions": 2, "sharpness": 50}
WEIGHTS = (0.0, 0.3, 1.0, 3.0)
POLICY = {"hidden": 64, "action_hidden": 32, "profiles": PROFILES}


def compute_ratios(run: Any, tree: Any) -> list[float]:
    """Return the policy's share of the oracle's utility, by cost weight."""
    found = []
    for weight in WEIGHTS:
        utility_QL = compute_leaf_utility(tree, weight, run.problem.reference_usd)
        found.append(run.compute_utility(weight, tree) / utility_QL.max(axis=1).mean())
    return found


def test_before_anything_is_learnt_each_kind_gets_its_best_assignment_at_every_weight():
    tree, other = make_tree(SCORE_CL, questions=240), make_tree(SCORE_CL, questions=90, seed=1)
    run = start(tree, policy=POLICY)
    assert min(compute_ratios(run, other)) > 0.99
    plain = start(tree, policy=POLICY | {"profiles": None})
    assert min(compute_ratios(plain, other)) < 0.9


def test_learning_does_not_lose_what_was_measured():
    tree, other = make_tree(SCORE_CL, questions=240), make_tree(SCORE_CL, questions=90, seed=1)
    run = train(tree, policy=POLICY, updates=20)
    assert min(compute_ratios(run, other)) > 0.98


def test_a_tier_that_always_fails_is_not_where_a_policy_starts():
    prices_MK = PRICES.copy()
    prices_MK[1, 2] = np.nan  # entity, which kind 0 would need
    tree = make_tree(SCORE_CL, prices_MK, questions=120)
    run = start(tree, policy=POLICY)
    for weight in WEIGHTS:
        assert not np.isnan(run.play(weight).score_Q).any()


def test_a_run_keeps_its_profiles_and_the_best_policy_holds_them():
    recipe, folder = find_tier_run()
    profiles = read_profiles(folder)
    with open_memory_stage(recipe, folder) as stage:
        scorer, _ = load_best_scorer(folder, recipe, stage)
        tree = stage.open_tree("train")
    np.testing.assert_array_equal(scorer.start.score_CL, profiles.score_CL)
    np.testing.assert_array_equal(scorer.start.centroids_CP, profiles.centroids_CP)
    assert profiles.score_CL.shape == (4, 2 * 3 * 2 * 2 * 2)
    assert profiles.score_CL.min() >= 0
    assert profiles.score_CL.max() <= 1
    reference = json.loads((folder / "audit.json").read_text("utf-8"))["reference_usd"]
    cheapest, dearest = tree.leaf_cost_QL[:, [0, -1]].mean(axis=0) / reference
    assert profiles.cost_CL[:, 0].mean() == pytest.approx(cheapest, rel=0.2, abs=1e-6)
    assert profiles.cost_CL[:, -1].mean() == pytest.approx(dearest, rel=0.2)


def test_torn_profiles_are_refused_in_one_line(tmp_path):
    path = tmp_path / PROFILES_FILE
    for content in (None, b"\x01\x02"):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(RLRouteError, match=r"profiles\.safetensors: cannot be read") as caught:
            read_profiles(tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"outcomes": {"kind": "live"}}, "measured on a tree of all outcomes"),
        (
            {"policy": POLICY | {"read_extras": "none"}, "cost_weight": {"min": 1, "max": 1}},
            "need the cost weight",
        ),
        ({"policy": {"profiles": {"clusters": 0}}}, "clusters"),
        ({"policy": {"profiles": {"cluster": 3}}}, "cluster"),
    ],
)
def test_profiles_that_cannot_be_measured_or_read_are_refused(changes, message):
    with pytest.raises(RLRouteError, match=message) as caught:
        parse_config(MemoryRecipe, RECIPE | {"policy": POLICY} | changes, "recipe")
    assert "\n" not in str(caught.value)
