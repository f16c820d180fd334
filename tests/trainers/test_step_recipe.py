"""Recipes of step-by-step routing: what they refuse, each in one line."""

from __future__ import annotations

import pytest
import yaml

from rlroute.config import dump_config, parse_config
from rlroute.trainers.step_recipe import StepRecipe
from rlroute.types import RLRouteError

GRPO = {"kind": "grpo", "group_size": 4, "episodes": 16}
PPO = {"kind": "ppo", "episodes": 32}
RECIPE = {"environment": "step_budget", "world": {"kind": "chain"}, "algorithm": GRPO}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"update": 3}, r"unknown key 'update'; did you mean 'updates'"),
        (
            {"algorithm": GRPO | {"forced_arm": True}},
            r"'algorithm.forced_arm'; did you mean 'forced_arms'",
        ),
        (
            {"algorithm": PPO | {"reference_rollout": True}},
            r"unknown key 'algorithm.reference_rollout'",
        ),
        (
            {"algorithm": GRPO | {"blend_weight": 0.3}},
            "blend_weight: read by baseline 'blend' only",
        ),
        ({"algorithm": GRPO | {"episodes": 18}}, r"episodes \(18\) must be a multiple"),
        ({"algorithm": GRPO | {"kl_weight": 0.1}, "warm_start": None}, "there is none"),
        ({"algorithm": {"kind": "sarsa"}}, "algorithm.*ppo.*grpo.*rloo"),
        ({"reward": {"charge": "success", "gate": False}}, "gate: charge 'success' frees"),
        ({"budget": {"caps": [-1]}}, "a cap must be a number from 0"),
        ({"world": {"kind": "chain", "horizon": 1}}, "more critical steps than the horizon"),
        ({"world": {"kind": "moon"}}, "world.*chain"),
        ({"policy": {"kind": "mlp", "hidden": -1}}, "policy.*hidden"),
        ({"boundary": {"rollouts": 0}}, "boundary.rollouts"),
    ],
)
def test_unknown_keys_and_impossible_settings_are_refused_in_one_line(changes, message):
    with pytest.raises(RLRouteError, match=message) as caught:
        parse_config(StepRecipe, RECIPE | changes, "recipe")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"algorithm": PPO, "warm_start": None},
        {"algorithm": GRPO | {"baseline": "blend", "blend_weight": 0.3}},
        {"reward": {"charge": "success"}},
        {"budget": {"unit": "usd", "caps": [0.01, None]}, "cost_weight": {"min": 0, "max": 1}},
    ],
)
def test_a_recipe_survives_being_written_down(changes):
    recipe = parse_config(StepRecipe, RECIPE | changes, "recipe")
    written = yaml.safe_load(dump_config(recipe))
    assert parse_config(StepRecipe, written, "recipe") == recipe


def test_text_policies_are_told_the_cost_weight_where_it_varies():
    fixed = parse_config(StepRecipe, RECIPE, "recipe")
    varied = parse_config(StepRecipe, RECIPE | {"cost_weight": {"min": 0, "max": 1}}, "recipe")
    assert (fixed.episode.state_cost_weight, varied.episode.state_cost_weight) == (False, True)
