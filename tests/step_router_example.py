"""Step-by-step runs of seconds on a small chain, made once per test process, and random routers."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_llama import save_tiny_llama

from rlroute.config import parse_config
from rlroute.envs.budget import BUDGET_FEATURES, BudgetConfig
from rlroute.envs.step_budget import StepBudgetConfig
from rlroute.export.step_bundle import StepBundle
from rlroute.policies.step_scorer import StepScorer, StepScorerConfig
from rlroute.trainers.step_recipe import StepRecipe
from rlroute.trainers.step_run import train_steps
from rlroute.worlds.chain import ChainConfig, ChainWorld

WORLD: dict[str, Any] = {"kind": "chain", "horizon": 6, "train": 60, "val": 20, "test": 40}
WORLD["kinds"] = [
    {"name": "easy", "share": 0.5, "critical_steps": 2, "success": [0.95, 0.97], "hint": 0.2},
    {"name": "hard", "share": 0.5, "critical_steps": 3, "success": [0.2, 0.9], "hint": 0.9},
]
CAPS: dict[str, list[float | None]] = {"calls": [0, 2, 4, None], "usd": [0.003, 0.012, 0.03, None]}
COST_WEIGHT = {"min": 0.1, "max": 0.5}
SIMPLE = {"critical": 0.0, "hint": 0.0, "critical_hint": 0.0}  # what a simple step shows
BOUNDS = {"small": 0.00152, "large": 0.0076}  # what any step costs in USD
TEXTS = (
    "Choose who takes each next step. Solve the task and spend little.",
    "USD per million tokens read / written:\nSMALL = small: 0.4 / 1.6\nLARGE = large: 2 / 8",
    "A chain of steps, some critical. It looks hard. This step is critical. Cost weight: 0.20.",
    "This step is simple. Budget left: 3 dear calls.",
)


def make_recipe(unit: str = "calls", **parts: Any) -> StepRecipe:
    """Return the recipe of a run, with other parts in the place of its own."""
    stated: dict[str, Any] = {
        "environment": "step_budget",
        "world": WORLD,
        "updates": 4,
        "budget": {"unit": unit, "caps": CAPS[unit]},
        "reward": {"unit": unit},
        "cost_weight": COST_WEIGHT,
        "boundary": {"rollouts": 3, "sweep": 4},
        "policy": {"kind": "mlp", "hidden": 16},
        "warm_start": {"epochs": 4, "batch": 16},
        "algorithm": {"kind": "rloo", "episodes": 64, "group_size": 8},
        "validation": {"every": 2},
        "tracking": {"wandb": False},
    }
    return parse_config(StepRecipe, stated | parts, "recipe")


def make_scratch(name: str) -> Path:
    """Return a folder that goes when the process ends."""
    scratch = Path(tempfile.mkdtemp(prefix=f"rlroute-{name}-"))
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    return scratch


@functools.cache
def find_step_run(unit: str = "calls") -> tuple[StepRecipe, Path]:
    """Return recipe and folder of a finished run of a small network; it is not to be written to."""
    recipe, folder = make_recipe(unit), make_scratch("step-run") / "run"
    train_steps(recipe, folder)
    return recipe, folder


@functools.cache
def find_choice_run() -> tuple[StepRecipe, Path]:
    """Return recipe and folder of a finished run of a tiny language model; not to be written to."""
    pytest.importorskip("peft", reason="the extra `text` is absent")
    scratch = make_scratch("choice-run")
    save_tiny_llama(
        scratch / "model",
        texts=TEXTS,
        vocab_size=420,
        max_position_embeddings=512,
        initializer_range=0.2,
    )
    policy = {"kind": "choice", "model": str(scratch / "model"), "precision": "float32"}
    recipe = make_recipe(
        updates=2,
        policy=policy | {"context_tokens": 300},
        algorithm={"kind": "rloo", "episodes": 16, "group_size": 4},
        optimiser={"learning_rate": 1e-3},
        validation={"every": 1, "tasks": 8},
    )
    train_steps(recipe, scratch / "run")
    return recipe, scratch / "run"


def make_bundle(
    unit: str = "calls", counted: tuple[str, ...] = ("large",), hidden: int = 8
) -> StepBundle:
    """Return a router of random weights whose decisions differ from state to state."""
    world = ChainWorld(parse_config(ChainConfig, WORLD, "world"))
    features = len(world.feature_names) + len(BUDGET_FEATURES)
    scorer = StepScorer(StepScorerConfig(features=features, described=3, hidden=hidden))
    generator = torch.Generator().manual_seed(3)
    for parameter in scorer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    budget = BudgetConfig(unit=unit, caps=tuple(CAPS[unit]), counted=counted)  # type: ignore[arg-type]
    summary = {
        "world": "chain",
        "tasks": 60,
        "policy": "mlp",
        "base_model": None,
        "algorithm": "ppo",
        "seed": 3,
        "updates": 40,
        "best": {"update": 25, "metric": "reward", "reward": 0.71234, "success": 0.75},
    }
    return StepBundle(
        executors=world.executors,
        executor_features_KD=world.executor_features_KD,
        feature_names=world.feature_names,
        horizon=world.horizon,
        environment=parse_config(
            StepBudgetConfig,
            {"budget": budget, "reward": {"unit": unit}, "cost_weight": COST_WEIGHT},
            "environment",
        ),
        network=scorer.eval().requires_grad_(False),
        summary=summary,
        recipe_yaml="environment: step_budget\nseed: 3\n",
    )
