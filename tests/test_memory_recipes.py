"""The recipes of memory-tier routing: they parse, and every model that they name exists."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlroute.config import load_config, parse_config, read_yaml_mapping
from rlroute.memory.config import LlmAnswererSpec, LlmTierSpec
from rlroute.memory.open import PoolModelsConfig
from rlroute.pool.pool_file import load_pool
from rlroute.runs import find_schema
from rlroute.trainers.memory_recipe import MemoryRecipe
from rlroute.types import RLRouteError

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "recipes" / "memory_tiers"
RECIPES = [path for path in sorted(FOLDER.glob("*.yaml")) if not path.stem.startswith("pool_")]
IMPLEMENTATION = FOLDER / "implementation_ppo.yaml"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_parses_says_what_it_is_and_names_models_that_exist(recipe):
    assert find_schema(recipe) is MemoryRecipe
    parsed = load_config(MemoryRecipe, recipe)
    comments = "\n".join(
        line for line in recipe.read_text(encoding="utf-8").splitlines() if line.startswith("#")
    )
    for word in ("What:", "Command:", "Hardware:", "Time:"):
        assert word in comments, f"{recipe.name}: the header lacks {word}"
    assert recipe.name in comments
    if isinstance(parsed.models, PoolModelsConfig):
        known = set(load_pool(ROOT / parsed.models.path).candidates)
    else:
        known = set(parsed.models.candidates)
    specs = [tier for module in parsed.pipeline.modules for tier in module.tiers]
    named = {spec.candidate for spec in specs if isinstance(spec, LlmTierSpec)}
    if isinstance(parsed.pipeline.answerer, LlmAnswererSpec):
        named.add(parsed.pipeline.answerer.candidate)
    assert named <= known


def test_the_recipes_cover_three_strategies_tabulated_and_live():
    names = {path.stem for path in RECIPES}
    strategies = ("implementation", "reasoning", "capacity")
    assert {f"{one}_{form}" for one in strategies for form in ("ppo", "live")} <= names


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("algorithm.credits=joint", ["algorithm.credits", "credit"]),
        ("pipeline.keeps=3", ["pipeline.keeps", "keep"]),
        ("reward.form=sum", ["reward.form", "paper", "code"]),
        ("models.kind=real", ["models", "simulated", "pool"]),
        ("data.kind=dialogues", ["data", "generated", "locomo", "longmemeval", "hotpotqa"]),
        ("policy.read_extras=none", ["read_extras", "cost_weight"]),
    ],
)
def test_a_faulty_setting_is_one_line_that_names_it(override, words):
    with pytest.raises(RLRouteError) as caught:
        load_config(MemoryRecipe, IMPLEMENTATION, [override])
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_the_missing_price_of_an_encoder_tier_is_named_by_its_place_in_the_recipe():
    recipe = read_yaml_mapping(IMPLEMENTATION)
    recipe["pipeline"]["modules"][1]["tiers"] = [{"kind": "rules"}, {"kind": "encoder"}]
    message = r"^recipe: pipeline\.modules\.1\.tiers\.1\.price: Field required$"
    with pytest.raises(RLRouteError, match=message):
        parse_config(MemoryRecipe, recipe, "recipe")
