"""Logs of a router that ran: which pairs were asked, with which probability, and nothing else.

What it is: the `logs` of a recipe. With `table` the table itself is the log: its folder holds
`propensities.csv.gz` (query_id, model, asked, propensity), as `rlroute collect --per-query` leaves
it, or as your gateway can write it. With `simulated` a behaviour policy picks one candidate per
query of a complete table, by a hash of the query's id, and everything else of the train and
validation splits is thrown away, so that a learner can be measured against what it never saw.

A pair that was not asked becomes a hole of the table. Propensities are those of pairs that were
asked: the probability that this query's log holds this pair. Where several are asked per query they
add up to the number of them.

What it leaves out: what is learnt from it (`rlroute.algorithms.off_policy`).

How to use: `apply_logs(table, Path("my-table"), SimulatedLogsConfig(epsilon=0.3), seed=0)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from rlroute.config import StrictModel
from rlroute.data.table import OutcomeTable, list_arrays
from rlroute.data.text_files import iterate_csv, read_header, read_utf8
from rlroute.seeding import draw_uniform
from rlroute.types import BoolArray, FloatArray, RLRouteError

PROPENSITIES_FILE = "propensities.csv.gz"
COLUMNS = ("query_id", "model", "asked", "propensity")


class TableLogsConfig(StrictModel):
    """The table is a log, with its propensities in its folder."""

    kind: Literal["table"] = "table"


class SimulatedLogsConfig(StrictModel):
    """One pick per query of a complete table, by a behaviour policy.

    With probability `epsilon` it is any candidate, otherwise `candidate`; null is a uniform draw
    whatever `epsilon` is.
    """

    kind: Literal["simulated"] = "simulated"
    candidate: str | None = None
    epsilon: float = Field(default=1.0, gt=0, le=1)


LogsConfig = Annotated[TableLogsConfig | SimulatedLogsConfig, Field(discriminator="kind")]


@dataclass(frozen=True, eq=False)
class LoggedTable:
    """A table of logged pairs. `propensity_QK` is in (0, 1] where one was logged, else NaN.

    It is None where the table is no log.
    """

    table: OutcomeTable
    propensity_QK: FloatArray | None


def apply_logs(
    table: OutcomeTable, folder: Path, config: TableLogsConfig | SimulatedLogsConfig, seed: int
) -> LoggedTable:
    """Return what a log of the table holds; a simulated one leaves the test split whole.

    Raises:
        RLRouteError: no propensities, a bad one, or a candidate that the table does not have.
    """
    if isinstance(config, TableLogsConfig):
        propensity_QK = read_propensities(folder / PROPENSITIES_FILE, table)
        return LoggedTable(table, propensity_QK)
    propensity_QK = compute_behaviour(table, config)
    asked_QK = draw_picks(table, propensity_QK, seed)
    asked_QK[table.split_Q == "test"] = table.present_QK[table.split_Q == "test"]
    known_QK = np.where(asked_QK, propensity_QK, np.nan).astype(np.float32)
    known_QK[table.split_Q == "test"] = np.nan
    return LoggedTable(keep_pairs(table, asked_QK), known_QK)


def compute_behaviour(table: OutcomeTable, config: SimulatedLogsConfig) -> FloatArray:
    """Return the behaviour policy's probabilities [Q, K]; a query's holes share nothing.

    Raises:
        RLRouteError: the table has no such candidate.
    """
    present_QK = table.present_QK.astype(np.float64)
    uniform_QK = present_QK / present_QK.sum(1, keepdims=True)
    if config.candidate is None:
        return np.asarray(uniform_QK, dtype=np.float32)
    ids = [candidate.id for candidate in table.candidates]
    if config.candidate not in ids:
        raise RLRouteError(
            f"logs.candidate: table '{table.name}' has no candidate '{config.candidate}' "
            f"(it has: {', '.join(ids)})"
        )
    favourite_QK = np.zeros_like(uniform_QK)
    favourite_QK[:, ids.index(config.candidate)] = 1.0
    missing_Q = ~table.present_QK[:, ids.index(config.candidate)]
    favourite_QK[missing_Q] = uniform_QK[missing_Q]  # where it has no outcome anyone is asked
    mixed_QK = config.epsilon * uniform_QK + (1 - config.epsilon) * favourite_QK
    return np.asarray(mixed_QK, dtype=np.float32)


def draw_picks(table: OutcomeTable, probability_QK: FloatArray, seed: int) -> BoolArray:
    """Return one pick per query [Q, K], drawn by its id alone, so rows may stand in any order."""
    uniform_Q = np.array([float(draw_uniform(seed, "log", q.id)) for q in table.queries])
    cumulative_QK = probability_QK.astype(np.float64).cumsum(axis=1)
    pick_Q = (cumulative_QK <= uniform_Q[:, None] * cumulative_QK[:, -1:]).sum(axis=1)
    picked_QK = np.zeros(probability_QK.shape, dtype=np.bool_)
    picked_QK[np.arange(len(pick_Q)), pick_Q] = True
    return picked_QK


def keep_pairs(table: OutcomeTable, kept_QK: BoolArray) -> OutcomeTable:
    """Return the table with all other pairs made holes."""
    present_QK = table.present_QK & kept_QK
    arrays: dict[str, Any] = {
        name: np.where(present_QK, getattr(table, name), np.nan)
        for name in list_arrays()
        if name != "present_QK"
    }
    return replace(table, present_QK=present_QK, **arrays)


def read_propensities(path: Path, table: OutcomeTable) -> FloatArray:
    """Read the propensities of all pairs that have an outcome [Q, K]; NaN elsewhere.

    Pairs that were asked and failed have no outcome, and their rows are passed over.

    Raises:
        RLRouteError: no such file, a propensity outside (0, 1], or an outcome without one.
    """
    if not path.exists():
        raise RLRouteError(
            f"{path}: not found; a log needs the probability of each pick (columns: "
            f"{', '.join(COLUMNS)})"
        )
    data = read_utf8(path)
    header = read_header(path, data, COLUMNS)
    row_of = {query.id: row for row, query in enumerate(table.queries)}
    column_of = {candidate.id: k for k, candidate in enumerate(table.candidates)}
    propensity_QK = np.full(table.present_QK.shape, np.nan, dtype=np.float32)
    rows = iterate_csv(data)
    next(rows)
    for line, fields in rows:
        values = dict(zip(header, fields, strict=False))
        q, k = row_of.get(values["query_id"]), column_of.get(values["model"])
        if q is None or k is None or not table.present_QK[q, k]:
            continue
        propensity_QK[q, k] = parse_propensity(values, f"{path}, line {line}")
    missing = np.argwhere(table.present_QK & np.isnan(propensity_QK))
    if len(missing):
        q, k = missing[0]
        raise RLRouteError(
            f"{path}: no propensity of query '{table.queries[q].id}' and candidate "
            f"'{table.candidates[k].id}', which has an outcome"
        )
    return propensity_QK


def parse_propensity(values: dict[str, str], where: str) -> float:
    """Return the propensity of a row whose pair was asked."""
    if values.get("asked") not in ("True", "1", "true"):
        raise RLRouteError(
            f"{where}: asked '{values.get('asked')}', but query '{values['query_id']}' has an "
            f"outcome of '{values['model']}'"
        )
    try:
        value = float(values.get("propensity", ""))
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise RLRouteError(f"{where}: propensity '{values.get('propensity')}' must lie in (0, 1]")
    return value
