"""Measured outcomes of subsets: what a refiner made of several answers, read from a file.

What it is: a CSV file (`.csv`, `.csv.gz`), one row per query and subset:

    query_id               as in the table
    members                ids of the candidates that were asked, joined by "+", in any order
    score                  of the refined answer, in [0, 1]
    extra_cost_usd         what the refiner cost, USD, beside the members' calls
    extra_latency_seconds  optional: how long it took after the slowest member; blank is unknown

Other columns are read past. A query and subset without a row was not measured: a hole. A refiner's
tokens are not known, so those of a refined subset are unknown.

What it leaves out: what the members cost, which stands in the table (`rlroute.data.actions`).

How to use: `read_refined("refined.csv", table).by_columns[(0, 2)].score_Q`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlroute.data.table import OutcomeTable
from rlroute.data.text_files import iterate_csv, read_header, read_utf8
from rlroute.types import BoolArray, RLRouteError, UsdArray

REQUIRED = ("query_id", "members", "score", "extra_cost_usd")
LATENCY = "extra_latency_seconds"
JOINT = "+"  # between the members in the id of a subset


@dataclass(frozen=True, eq=False)
class Refinement:
    """What was measured of one subset on Q queries; NaN where it was not, or is not known."""

    score_Q: UsdArray
    extra_cost_usd_Q: UsdArray
    extra_latency_seconds_Q: UsdArray

    @property
    def measured_Q(self) -> BoolArray:
        """Where there was a row [Q]."""
        return ~np.isnan(self.score_Q)


@dataclass(frozen=True)
class RefinedOutcomes:
    """Refinements by the columns of their members in the table, in rising order."""

    by_columns: Mapping[tuple[int, ...], Refinement]


def read_refined(source: str, table: OutcomeTable) -> RefinedOutcomes:
    """Read a file of refined outcomes of the table's candidates.

    Raises:
        RLRouteError: no such file, a column is missing, a query or candidate is unknown, a subset
            has one member or one twice, a query and subset stand twice, or a number is missing or
            out of its range; with file and line.
    """
    path = Path(source)
    data = read_utf8(path)
    header = read_header(path, data, REQUIRED)
    row_by_query = {query.id: q for q, query in enumerate(table.queries)}
    column_by_id = {candidate.id: k for k, candidate in enumerate(table.candidates)}
    found: dict[tuple[int, ...], Refinement] = {}
    for line, fields in list(iterate_csv(data))[1:]:
        where = f"{path}, line {line}"
        if len(fields) != len(header):
            raise RLRouteError(f"{where}: {len(fields)} values, but {len(header)} columns")
        row = dict(zip(header, fields, strict=True))
        if row["query_id"] not in row_by_query:
            raise RLRouteError(f"{where}: table '{table.name}' has no query '{row['query_id']}'")
        columns = parse_members(row["members"], column_by_id, where)
        if columns not in found:
            found[columns] = make_empty(len(table.queries))
        write_row(found[columns], row_by_query[row["query_id"]], row, where)
    return RefinedOutcomes(found)


def make_empty(queries: int) -> Refinement:
    """Return a refinement that was measured nowhere."""
    return Refinement(*(np.full(queries, np.nan) for _ in range(3)))


def parse_members(text: str, column_by_id: Mapping[str, int], where: str) -> tuple[int, ...]:
    """Return the columns of the members in rising order."""
    names = text.split(JOINT)
    for name in names:
        if name not in column_by_id:
            known = ", ".join(column_by_id)
            raise RLRouteError(f"{where}: members: unknown candidate '{name}' (known: {known})")
    if len(names) < 2 or len(set(names)) < len(names):
        raise RLRouteError(
            f"{where}: members '{text}': name two or more candidates, each once, joined by {JOINT}"
        )
    return tuple(sorted(column_by_id[name] for name in names))


def write_row(refinement: Refinement, q: int, row: Mapping[str, str], where: str) -> None:
    """Enter one row of the file."""
    if refinement.measured_Q[q]:
        raise RLRouteError(
            f"{where}: query '{row['query_id']}' with members '{row['members']}' stands twice"
        )
    refinement.score_Q[q] = parse_number(row, "score", where, high=1.0)
    refinement.extra_cost_usd_Q[q] = parse_number(row, "extra_cost_usd", where)
    if row.get(LATENCY, "").strip():
        refinement.extra_latency_seconds_Q[q] = parse_number(row, LATENCY, where)


def parse_number(row: Mapping[str, str], name: str, where: str, high: float = math.inf) -> float:
    """Return a number of a row, which must be there, finite, and from 0 to `high`."""
    try:
        value = float(row[name])
    except ValueError:
        raise RLRouteError(f"{where}: {name} '{row[name]}' is not a number") from None
    if not (0 <= value <= high and math.isfinite(value)):
        allowed = "a finite number of at least 0" if high == math.inf else f"0 to {high:g}"
        raise RLRouteError(f"{where}: {name} {row[name]} is out of range (allowed: {allowed})")
    return value
