"""A short run on memory tiers: recipe, pipeline and simulated models for the tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlroute.config import parse_config
from rlroute.trainers.memory_recipe import MemoryRecipe

PPO = {"kind": "ppo", "episodes": 32, "minibatches": 2, "epochs": 2, "entropy_decay": "none"}
JOINT = PPO | {"credit": "joint", "value_clip": 0.2}
RLOO = {"kind": "rloo", "episodes": 32, "group_size": 4, "minibatches": 2, "epochs": 2}
GRPO = RLOO | {"kind": "grpo"}
RULES = {"kind": "rules"}
SMALL, LARGE = ({"kind": "llm", "candidate": name} for name in ("small", "large"))
PROFILES = {"hidden": 16, "action_hidden": 8, "profiles": {"clusters": 3, "directions": 2}}
WINDOW = {"cost": {"kind": "window", "size": 50}, "alignment": {"size": 80, "warm_up": 20}}


def describe_model(price: float, recall: float, **fields: Any) -> dict[str, Any]:
    skill = {"recall": recall, "paraphrase_recall": recall, "invented": 1 - recall}
    skill |= {"date_errors": 1 - recall, "filter_noise": 3, "summary_recall": recall}
    return {"prices": {"input": price, "output": price}, "skill": skill} | fields


MODELS = {"small": describe_model(0.1, 0.6), "large": describe_model(1.0, 0.97)}
MODULES = {
    "filter": ("filter", [RULES, SMALL]),
    "entity": ("extract", [RULES, SMALL, LARGE]),
    "temporal": ("extract", [RULES, SMALL]),
    "summary": ("summary", [RULES, SMALL]),
}

MakeRecipe = Callable[..., MemoryRecipe]


def describe_pipeline(**tiers: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the pipeline, with other tiers for some modules."""
    return {
        "retriever": {"kind": "bm25", "top": 6},
        "keep": 3,
        "modules": [
            {"name": name, "role": role, "tiers": tiers.get(name, known)}
            for name, (role, known) in MODULES.items()
        ],
        "answerer": {"kind": "reader"},
    }


def make_memory_recipe(
    trees: Path, algorithm: dict[str, Any] = PPO, **changes: Any
) -> MemoryRecipe:
    """Return a short recipe on a small generated world; its trees lie in `trees`."""
    data: dict[str, Any] = {
        "environment": "memory_tiers",
        "data": {
            "kind": "generated",
            "histories": {"train": 2, "val": 1, "test": 1},
            "people": 2,
            "sessions": 6,
            "turns_per_session": 8,
            "questions_per_kind": 1,
        },
        "models": {"kind": "simulated", "candidates": MODELS},
        "pipeline": describe_pipeline(),
        "outcomes": {"kind": "tabulated", "folder": str(trees)},
        "encoder": {"kind": "tfidf", "dimension": 8},
        "updates": 4,
        "cost_weight": {"min": 0, "max": 1},
        "reward": WINDOW,
        "policy": {"hidden": 16, "action_hidden": 8},
        "algorithm": algorithm,
        "optimiser": {"learning_rate": 0.01},
        "validation": {"every": 1, "cost_weights": 3},
        "checkpoint_every": 2,
        "evaluation": {"cost_weights": 3, "bootstrap": 20, "examples": 2},
        "tracking": {"wandb": False},
    }
    return parse_config(MemoryRecipe, data | changes, "recipe")
