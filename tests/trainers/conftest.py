"""A table whose best router is known in closed form, and a short recipe for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlroute.config import parse_config
from rlroute.data.table import OutcomeTable, write_table
from rlroute.trainers.recipe import Recipe
from rlroute.types import Candidate, Prices, Query

# Score of each candidate on each kind of query, and its cost in USD: the specialists are right on
# their own kind only, the generalist on both for ten times the money, the cheap one half the time.
KINDS = ("sum", "poem")
SCORES = {"adder": (1.0, 0.0), "cheap": (0.5, 0.5), "generalist": (1.0, 1.0), "poet": (0.0, 1.0)}
COSTS = {"adder": 0.002, "cheap": 0.0002, "generalist": 0.01, "poet": 0.002}
WORDS = {
    "sum": ["add", "number", "plus", "total", "minus", "digit", "carry", "count"],
    "poem": ["verse", "rhyme", "moon", "river", "stanza", "lyric", "song", "dream"],
}


def make_world(queries: int = 240) -> OutcomeTable:
    """Return the table; the kind of a query is readable from its words."""
    rng = np.random.default_rng(0)
    kinds = [KINDS[q % 2] for q in range(queries)]
    texts = [" ".join([*rng.choice(WORDS[kind], 5), f"item{q}"]) for q, kind in enumerate(kinds)]
    names = sorted(SCORES)
    score_QK = np.array(
        [[SCORES[name][KINDS.index(kind)] for name in names] for kind in kinds], dtype=np.float32
    )
    cost_QK = np.array([[COSTS[name] for name in names]] * queries, dtype=np.float32)
    unknown_QK = np.full_like(score_QK, np.nan)
    ids = [f"q{q:04d}" for q in range(queries)]
    order = sorted(range(queries), key=lambda q: (kinds[q], ids[q]))
    return OutcomeTable(
        name="world",
        queries=tuple(Query(ids[q], texts[q], task=kinds[q], dataset="world") for q in order),
        candidates=tuple(Candidate(name, Prices(1.0, 2.0)) for name in names),
        score_QK=score_QK[order],
        cost_usd_QK=cost_QK[order],
        present_QK=np.ones_like(score_QK, dtype=np.bool_),
        prompt_tokens_QK=unknown_QK,
        completion_tokens_QK=unknown_QK,
        latency_seconds_QK=unknown_QK,
        split_Q=np.array([("train", "train", "val", "test")[q // 2 % 4] for q in order]),
    )


@pytest.fixture(scope="session")
def world_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world as a table on disk."""
    folder = tmp_path_factory.mktemp("tables") / "world"
    write_table(make_world(), folder)
    return folder


@pytest.fixture(scope="session")
def large_world_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same world with more queries, and prices that tell the candidates apart by themselves."""
    folder = tmp_path_factory.mktemp("tables") / "large"
    world = make_world(2400)
    priced = [
        dataclasses.replace(candidate, prices=Prices(1.0 + k, 2.0))
        for k, candidate in enumerate(world.candidates)
    ]
    write_table(dataclasses.replace(world, candidates=tuple(priced)), folder)
    return folder


ALGORITHMS: dict[str, dict[str, Any]] = {
    "ppo": {"kind": "ppo", "episodes": 256, "minibatches": 2, "epochs": 2},
    "grpo": {"kind": "grpo", "episodes": 256, "group_size": 8, "epochs": 2},
    "rloo": {"kind": "rloo", "episodes": 256, "group_size": 8, "epochs": 2},
    "expected_gradient": {"kind": "expected_gradient", "queries": 64},
    "reinforce": {"kind": "reinforce", "episodes": 256},
    "reinforce_none": {"kind": "reinforce", "episodes": 256, "baseline": "none"},
    "reinforce_critic": {"kind": "reinforce", "episodes": 256, "baseline": "critic"},
    "prior_grpo": {"kind": "prior_grpo", "episodes": 128, "epochs": 2},
    "forced_arms": {
        **{"kind": "grpo", "episodes": 128, "group_size": 4, "epochs": 2, "forced_arms": 1},
    },
}


@pytest.fixture(scope="session")
def make_recipe(world_folder: Path) -> Callable[..., Recipe]:
    """Return a function that makes a short recipe for an algorithm."""

    def make(algorithm: str, **changes: Any) -> Recipe:
        data: dict[str, Any] = {
            "table": str(world_folder),
            "updates": 30,
            "encoder": {"kind": "tfidf", "dimension": 16},
            "profile": {"clusters": 4},
            "cost_weight": {"max": 2.0},
            "policy": {"hidden": 32, "dropout": 0.2},
            "algorithm": ALGORITHMS[algorithm],
            "optimiser": {"learning_rate": 0.01},
            "validation": {"every": 5, "cost_weights": 9},
            "checkpoint_every": 10,
            "tracking": {"wandb": False},
        }
        return parse_config(Recipe, data | changes, "recipe")

    return make
