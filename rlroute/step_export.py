"""What `rlroute export` does with a run of step-by-step routing.

What it is: the policy that validation chose (best/), with all that it needs to decide outside of
its world: executors, names of features, horizon, budget, reward and cost weights.

What it leaves out: the exported folder (`rlroute.export.step_bundle`) and what loads it
(`rlroute.step_router`).

How to use: `export_step_run(Path("runs/mine"), Path("my-step-router"))`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rich.console import Console

from rlroute.config import dump_config, load_config
from rlroute.envs.budget import BUDGET_FEATURES, BudgetConfig
from rlroute.envs.step_budget import StepBudgetConfig
from rlroute.export.cascade_parts import CascadeParts
from rlroute.export.session_parts import SessionParts
from rlroute.export.step_bundle import ChoiceNetwork, StepBundle, write_step_bundle
from rlroute.export.step_model_card import summarise_step_test
from rlroute.policies.choice import ChoiceConfig, ChoiceModel
from rlroute.policies.priced_scorer import PricedScorer
from rlroute.policies.step_scorer import StepScorer
from rlroute.trainers.run_folder import BEST_FILE, BEST_FOLDER, RECIPE_FILE, read_json
from rlroute.trainers.step_policy import StepModel, load_policy
from rlroute.trainers.step_recipe import StepRecipe
from rlroute.types import RLRouteError
from rlroute.worlds.base import World
from rlroute.worlds.cascade import CascadeWorld
from rlroute.worlds.open import open_world
from rlroute.worlds.query_session import QuerySessionWorld

EVALUATION_FILE = "evaluation.json"


def export_step_run(folder: Path, to: Path) -> None:
    """Write the run's policy as a folder that `StepRouter.load` reads.

    Raises:
        RLRouteError: no finished run lies there, its world cannot be opened, or `to` holds
            something else than such a router.
    """
    recipe = load_config(StepRecipe, folder / RECIPE_FILE)
    if not (folder / BEST_FOLDER / BEST_FILE).exists():
        raise RLRouteError(
            f"{folder}: the run has not kept a policy yet ({BEST_FOLDER}/ is missing)"
        )
    world = open_world(recipe.world)
    features = len(world.feature_names) + len(BUDGET_FEATURES)
    model, best = load_policy(folder / BEST_FOLDER, recipe.policy, world, features)
    bundle = StepBundle(
        executors=world.executors,
        executor_features_KD=world.executor_features_KD,
        feature_names=world.feature_names,
        horizon=world.horizon,
        environment=state_counted(recipe.episode, world),
        network=make_network(model),
        summary=summarise_step_run(folder, recipe, world, best),
        recipe_yaml=dump_config(recipe),
        cascade=make_cascade(model, world),
        sessions=make_sessions(model, world),
    )
    write_step_bundle(bundle, to)
    Console(stderr=True).print(f"router written to {to}", highlight=False)


def state_counted(environment: StepBudgetConfig, world: World) -> StepBudgetConfig:
    """Return the episode's settings with the executors named whose calls a budget counts."""
    budget = environment.budget
    counted_K = budget.find_counted(world.executors)
    counted = tuple(
        one.id for one, is_counted in zip(world.executors, counted_K, strict=True) if is_counted
    )
    stated = BudgetConfig(unit=budget.unit, caps=budget.caps, counted=counted)
    return environment.model_copy(update={"budget": stated})


def make_network(model: StepModel) -> StepScorer | PricedScorer | ChoiceNetwork:
    """Return what decides, as a bundle holds it."""
    network = model.network
    if isinstance(network, StepScorer | PricedScorer):
        return network
    assert isinstance(network, ChoiceModel)
    assert isinstance(model.config, ChoiceConfig)
    assert model.encoder is not None
    return ChoiceNetwork(network, model.encoder, model.config.context_tokens)


def make_cascade(model: StepModel, world: World) -> CascadeParts | None:
    """Return how queries and answers become features, where the world is a cascade over a table.

    A language model reads texts and needs none of it.
    """
    if not isinstance(world, CascadeWorld) or model.encoder is not None:
        return None
    table = world.table
    return CascadeParts(
        view=world.view,
        encoder=table.prepared.encoder,
        allow_skip=world.lanes.config.allow_skip,
        bound_usd_K=table.bound_usd_K,
    )


def make_sessions(model: StepModel, world: World) -> SessionParts | None:
    """Return how a query becomes features, where the world is sessions of queries.

    A language model reads texts and needs none of it.
    """
    if not isinstance(world, QuerySessionWorld) or model.encoder is not None:
        return None
    return SessionParts(world.data.prepared.encoder, world.data.cost_reference_usd)


def summarise_step_run(
    folder: Path, recipe: StepRecipe, world: World, best: dict[str, Any]
) -> dict[str, Any]:
    """Return what the export says of its training; test numbers only of these very weights."""
    policy = recipe.policy
    summary: dict[str, Any] = {
        "world": world.name,
        "tasks": len(world.list_tasks("train")),
        "policy": policy.kind,
        "base_model": policy.model if isinstance(policy, ChoiceConfig) else None,
        "algorithm": recipe.algorithm.kind,
        "seed": recipe.seed,
        "updates": recipe.updates,
        "best": {
            "update": best["update"],
            "metric": best["metric"],
            "reward": drop_undefined(best["reward"]),
            "success": drop_undefined(best["success"]),
        },
    }
    path = folder / EVALUATION_FILE
    if path.exists():
        evaluation = read_json(path)
        if evaluation["update"] == best["update"]:
            summary["test"] = summarise_step_test(evaluation)
    return summary


def drop_undefined(value: float) -> float | None:
    """Return a number, or None where it is not finite."""
    return value if math.isfinite(value) else None
