"""From graded outcomes to an outcome table: what every collection ends with.

What it leaves out: where outcomes come from, and what is written about a table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlroute.data.table import OutcomeTable
from rlroute.types import Candidate, Query, RLRouteError

TABLE_FILES = {"records.csv.gz", "models.csv", "README.md", "provenance.json"}
SIDE_FILES = {"calls.csv.gz", "propensities.csv.gz"}


@dataclass(frozen=True)
class Cell:
    """One outcome: score in [0, 1], cost in USD, tokens and seconds (NaN where unknown)."""

    score: float
    cost_usd: float
    prompt_tokens: float = float("nan")
    completion_tokens: float = float("nan")
    seconds: float = float("nan")


def build_table(
    name: str,
    queries: Sequence[Query],
    splits: Sequence[str],
    candidates: Sequence[Candidate],
    cells: Mapping[tuple[str, str], Cell],
) -> OutcomeTable:
    """Put cells, by (query id, candidate id), into a table; pairs without a cell are holes.

    A query that no candidate has a cell for is left out.
    """
    order = sorted(range(len(queries)), key=lambda i: _sort_key(queries[i]))
    columns = sorted(candidates, key=lambda candidate: candidate.id)
    array_NQK = np.full((5, len(queries), len(columns)), np.nan, dtype=np.float32)
    for row, i in enumerate(order):
        for k, candidate in enumerate(columns):
            cell = cells.get((queries[i].id, candidate.id))
            if cell is not None:
                tokens = cell.prompt_tokens, cell.completion_tokens
                seconds = float(f"{cell.seconds:.3g}")
                array_NQK[:, row, k] = cell.score, cell.cost_usd, *tokens, seconds
    score_QK, cost_QK, prompt_QK, completion_QK, seconds_QK = array_NQK
    present_QK = np.isfinite(score_QK)
    table = OutcomeTable(
        name=name,
        queries=tuple(queries[i] for i in order),
        candidates=tuple(columns),
        score_QK=score_QK,
        cost_usd_QK=cost_QK,
        present_QK=present_QK,
        prompt_tokens_QK=prompt_QK,
        completion_tokens_QK=completion_QK,
        latency_seconds_QK=seconds_QK,
        split_Q=np.array([splits[i] for i in order]),
    )
    return table.select_queries(present_QK.any(axis=1))


def _sort_key(query: Query) -> tuple[str, str, str]:
    """Return what the rows of a table are sorted by."""
    return query.dataset, query.task, query.id


def check_output(out: Path) -> None:
    """Raise RLRouteError unless `out` is new, empty, or an earlier collection."""
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not is_collection(out)):
        raise RLRouteError(f"{out}: holds something that was not collected; name a new folder")


def is_collection(folder: Path) -> bool:
    """Say whether a folder holds what a collection writes, and nothing else."""
    names = {path.name for path in folder.iterdir()}
    return names - SIDE_FILES == TABLE_FILES
