"""Small tables and actions, as tests of actions use them."""

from __future__ import annotations

from typing import Any

import numpy as np

from rlroute.config import parse_config
from rlroute.data.actions import Actions
from rlroute.data.table import OutcomeTable
from rlroute.trainers.recipe import Recipe
from rlroute.types import Candidate, Limits, Prices, Query

NAN = float("nan")


def parse_actions(*actions: dict[str, Any]) -> Actions:
    """Read actions as a recipe does."""
    data = {"table": "t", "algorithm": {"kind": "ppo"}, "actions": list(actions)}
    return parse_config(Recipe, data, "recipe").actions


def build_table(
    score_QK: Any, ids: tuple[str, ...] = ("a", "b", "c"), costs: Any = None, splits: Any = None
) -> OutcomeTable:
    """Return a table; NaN in the scores is a hole. Candidates cost 1, 2, 4, ... USD by default."""
    score_QK = np.array(score_QK, dtype=np.float32)
    queries, width = score_QK.shape
    present_QK = ~np.isnan(score_QK)
    cost_K = 2.0 ** np.arange(width) if costs is None else np.array(costs)
    known_QK = np.where(present_QK, cost_K, np.nan).astype(np.float32)
    return OutcomeTable(
        name="small",
        queries=tuple(Query(f"q{q}", f"text {q}", "t") for q in range(queries)),
        candidates=tuple(
            Candidate(name, Prices(1.0, 2.0, 0.5), limits=Limits(100 * (k + 1)))
            for k, name in enumerate(ids[:width])
        ),
        score_QK=score_QK,
        cost_usd_QK=known_QK,
        present_QK=present_QK,
        prompt_tokens_QK=10 * known_QK,
        completion_tokens_QK=known_QK.copy(),
        latency_seconds_QK=3 * known_QK,
        split_Q=np.array(["train"] * queries if splits is None else splits),
    )


def read_column(table: OutcomeTable, name: str, array: str = "score") -> list[float]:
    """Return the column of one action."""
    ids = [candidate.id for candidate in table.candidates]
    return list(getattr(table, f"{array}_QK")[:, ids.index(name)].tolist())
