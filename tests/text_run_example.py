"""One finished run of a tiny text policy, made once per test process; tests work on copies."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("DS_ACCELERATOR", "cpu")

pytest.importorskip("trl", reason="the extra `text` is absent")

from rlroute.config import dump_config, parse_config
from rlroute.trainers.run_folder import RECIPE_FILE
from rlroute.trainers.text_recipe import TextRecipe
from rlroute.trainers.text_run import train_text

PRICES = {"input": 1.0, "output": 3.0, "per_call": 6e-4}
REFERENCE_USD = 0.002
COST_WEIGHTS = [0.0, 0.5]
# One hop, so that seconds of training suffice; `dead` fails at every call.
WORLD: dict[str, Any] = {
    "entities": 4,
    "relations": ["boss", "coach"],
    "max_hops": 1,
    "reference_usd": REFERENCE_USD,
    "specialists": {
        "alpha": {"relations": ["boss"], "prices": PRICES},
        "beta": {"relations": ["coach"], "prices": PRICES},
        "dead": {"relations": ["boss"], "prices": PRICES, "failures": {"server": 1.0}},
    },
    "generalists": {
        "large": {"accuracy": 0.95, "prices": {"input": 5.0, "output": 15.0, "per_call": 1e-3}},
        "small": {"accuracy": 0.8, "prices": {"input": 0.1, "output": 0.3, "per_call": 4e-5}},
    },
}


def make_recipe(**parts: Any) -> TextRecipe:
    """Return the recipe of the run, with other parts in the place of its own."""
    stated: dict[str, Any] = {
        "environment": "multi_round",
        "updates": 2,
        "questions": {"kind": "relations", "train": 512, "val": 12, "test": 40, "world": WORLD},
        "episode": {
            "prompt": "short",
            "profile": "none",
            "prices": False,
            "latency": False,
            "ledger": False,
            "max_calls": 2,
            "max_turns": 4,
            "reply_tokens": 16,
            "cost_weights": COST_WEIGHTS,
        },
        "reward": {"normaliser": {"kind": "fixed", "reference_usd": REFERENCE_USD}},
        "policy": {
            "base": {"kind": "new", "hidden": 32, "layers": 2, "heads": 4, "vocabulary": 400},
            "precision": "float32",
        },
        "warm_start": {
            "planner": "knowing",
            "episodes": 1024,
            "epochs": 2,
            "batch": 16,
            "learning_rate": 1e-2,
        },
        "rollout": {
            "sampler": {"kind": "transformers"},
            "max_new_tokens": 24,
            "context_tokens": 192,
            "retries": 0,
        },
        "algorithm": {"kind": "grpo", "episodes": 16, "group_size": 4, "micro_batch": 16},
        "optimiser": {"learning_rate": 1e-4},
        "validation": {"every": 1},
        "tracking": {"wandb": False},
    }
    return parse_config(TextRecipe, stated | parts, "recipe")


@functools.cache
def find_text_run() -> Path:
    """Return the folder of the finished run; it is not to be written to."""
    scratch = Path(tempfile.mkdtemp(prefix="rlroute-text-run-"))
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    train_text(make_recipe(), scratch / "run", command="rlroute train recipe.yaml")
    return scratch / "run"


def copy_text_run(folder: Path, recipe: TextRecipe | None = None) -> Path:
    """Copy the run, as if it had been made by another recipe where one is given."""
    shutil.copytree(find_text_run(), folder)
    if recipe is not None:
        (folder / RECIPE_FILE).write_text(dump_config(recipe), encoding="utf-8")
    return folder
