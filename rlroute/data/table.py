"""Outcome tables: query x candidate -> score, cost, tokens, latency, as dense arrays with a mask.

What it is: everything that a policy could have got. On disk a folder with `records.csv.gz` (or
`records.csv`, `records.parquet`) and `models.csv`; in memory float32 arrays [Q, K]. A pair without
a record is a hole: absent from the mask and NaN, never 0. Queries and candidates are sorted, so the
order of rows in a file changes nothing.

What it leaves out: features of queries and candidates, and everything that is learnt.

How to use: `table = read_table("pocket")`, then `table.select_split("train")`.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rlroute.data.checks import check_records, find_first_rows
from rlroute.data.prices import format_candidates, read_candidates
from rlroute.data.records import (
    LATENCY,
    Records,
    TextColumn,
    encode_text,
    read_records,
    write_records,
)
from rlroute.data.stored_queries import QueryTexts, take_queries
from rlroute.files import atomic_folder, write_atomic
from rlroute.types import (
    SPLITS,
    BoolArray,
    Candidate,
    FloatArray,
    IntArray,
    Query,
    RLRouteError,
    SplitName,
)

RECORD_FILES = ("records.csv.gz", "records.csv", "records.parquet")
MODELS_FILE = "models.csv"
RESULT_SPLITS: tuple[SplitName, ...] = ("train",)  # what a profile is measured on
TableFormat = Literal["csv", "parquet"]


@dataclass(frozen=True, eq=False)
class OutcomeTable:
    """Q queries sorted by (dataset, task, id) and K candidates sorted by id.

    `score_QK` lies in [0, 1], `cost_usd_QK` is in USD per call; both are NaN exactly where
    `present_QK` is False. Tokens and latency (seconds) are NaN where unknown. `split_Q` holds
    "train", "val" or "test". Every query has an outcome of at least one candidate.
    """

    name: str
    queries: Sequence[Query]
    candidates: tuple[Candidate, ...]
    score_QK: FloatArray
    cost_usd_QK: FloatArray
    present_QK: BoolArray
    prompt_tokens_QK: FloatArray
    completion_tokens_QK: FloatArray
    latency_seconds_QK: FloatArray
    split_Q: npt.NDArray[np.str_]

    @property
    def texts(self) -> QueryTexts:
        """The texts of the queries, read one by one."""
        return QueryTexts(self.queries)

    def group_splits(self) -> OutcomeTable:
        """Return the table with the queries of each split side by side: train, val, test.

        The order within a split stays, and `select_split` copies nothing then.
        """
        order_Q = np.concatenate([np.flatnonzero(self.split_Q == split) for split in SPLITS])
        return self.select_queries(order_Q)

    def select_split(self, split: SplitName) -> OutcomeTable:
        """Return the queries of one split; where they stand side by side the arrays are shared.

        Raises:
            RLRouteError: the split has no query.
        """
        index_Q = np.flatnonzero(self.split_Q == split)
        if len(index_Q) == 0:
            held = ", ".join(sorted(set(self.split_Q.tolist())))
            raise RLRouteError(f"table '{self.name}': split '{split}' is empty (it holds: {held})")
        return self.select_queries(index_Q)

    def select_queries(self, index_Q: npt.ArrayLike) -> OutcomeTable:
        """Return the queries at positions `index_Q` (or where a mask is True), in that order.

        Arrays of queries that stand side by side are views of this table's.
        """
        row_Q = np.arange(len(self.queries))[np.asarray(index_Q)]
        together = len(row_Q) > 0 and bool((np.diff(row_Q) == 1).all())
        rows = slice(int(row_Q[0]), int(row_Q[-1]) + 1) if together else row_Q
        return replace(
            self,
            queries=take_queries(self.queries, row_Q),
            split_Q=self.split_Q[rows],
            **{name: getattr(self, name)[rows] for name in list_arrays()},
        )

    def select_candidates(self, ids: Collection[str]) -> OutcomeTable:
        """Return the candidates named, and the queries that one of them has an outcome for.

        Raises:
            RLRouteError: an id is unknown, or nothing is left.
        """
        known = [candidate.id for candidate in self.candidates]
        unknown = sorted(set(ids) - set(known))
        if unknown or not ids:
            fault = f"unknown candidate '{unknown[0]}'" if unknown else "no candidate selected"
            raise RLRouteError(f"table '{self.name}': {fault} (it has: {', '.join(known)})")
        columns = np.array([k for k, name in enumerate(known) if name in ids])
        selected = replace(
            self,
            candidates=tuple(self.candidates[k] for k in columns),
            **{name: getattr(self, name)[:, columns] for name in list_arrays()},
        )
        held_Q = selected.present_QK.any(axis=1)
        if not held_Q.any():
            raise RLRouteError(f"table '{self.name}': no outcome of {', '.join(sorted(ids))}")
        return selected if held_Q.all() else selected.select_queries(held_Q)


def list_arrays() -> list[str]:
    """Return the names of the [Q, K] arrays of a table."""
    return [field.name for field in fields(OutcomeTable) if field.name.endswith("_QK")]


def read_table(source: str | Path) -> OutcomeTable:
    """Read a table from its folder, or one that ships with rlroute by its name.

    A bare name that ships wins over a folder of that name ("./pocket" is the folder). Models that
    have a price but no record are no candidates.

    Raises:
        RLRouteError: no such table, or its first fault, with file and row.
    """
    return read_folder(find_folder(source), SPLITS)


def read_results(source: str | Path) -> OutcomeTable:
    """Read a table of a new candidate's results, of which only the train split must hold a query.

    Raises:
        RLRouteError: as `read_table`.
    """
    return read_folder(find_folder(source), RESULT_SPLITS)


def read_folder(folder: Path, needed: Collection[str]) -> OutcomeTable:
    """Read the table in a folder; the splits `needed` must hold a query.

    Raises:
        RLRouteError: as `read_table`.
    """
    found = [folder / name for name in RECORD_FILES if (folder / name).exists()]
    if len(found) != 1:
        fault = "holds none of" if not found else "holds more than one of"
        raise RLRouteError(f"{folder}: {fault} {', '.join(RECORD_FILES)}; exactly one is needed")
    candidates, name = read_candidates(folder / MODELS_FILE), folder.resolve().name
    if found[0].suffix == ".parquet":
        return gather_table(name, found[0], candidates, str(folder / MODELS_FILE), needed)
    return build_table(name, read_records(found[0]), candidates, str(folder / MODELS_FILE), needed)


def gather_table(
    name: str,
    path: Path,
    candidates: Sequence[Candidate],
    prices_source: str,
    needed: Collection[str],
) -> OutcomeTable:
    """Read a Parquet file block by block into a table, never holding its records at once.

    Raises:
        RLRouteError: the first fault of the records; `prices_source` names where prices stand.
    """
    from rlroute.data.parquet_blocks import gather_records

    found = gather_records(path, {candidate.id for candidate in candidates}, prices_source, needed)
    by_id = {candidate.id: candidate for candidate in candidates}
    return OutcomeTable(
        name=name,
        queries=found.queries,
        candidates=tuple(by_id[model] for model in found.models),
        present_QK=found.present_QK,
        split_Q=found.split_Q,
        **{f"{key}_QK": array_QK for key, array_QK in found.numbers.items()},
    )


def find_folder(source: str | Path) -> Path:
    """Return the folder of a table: of one that ships, or the path itself."""
    shipped_root = Path(str(importlib.resources.files("rlroute.data"))) / "tables"
    shipped = sorted(path.name for path in shipped_root.glob("*") if (path / MODELS_FILE).exists())
    if str(source) in shipped:
        return shipped_root / str(source)
    if not Path(source).is_dir():
        raise RLRouteError(
            f"table '{source}': no such folder, and no table of that name ships with rlroute "
            f"(shipped: {', '.join(shipped) or 'none'})"
        )
    return Path(source)


def build_table(
    name: str,
    records: Records,
    candidates: Sequence[Candidate],
    prices_source: str,
    needed: Collection[str] = SPLITS,
) -> OutcomeTable:
    """Check records and return them as a table; the splits `needed` must hold a query.

    Raises:
        RLRouteError: the first fault of the records; `prices_source` names where prices stand.
    """
    check_records(records, {candidate.id for candidate in candidates}, prices_source, needed)
    query, model = records.text["query_id"], records.text["model"]
    rows = sorted(
        find_first_rows(records),
        key=lambda row: tuple(records.text[key][row] for key in ("dataset", "task", "query_id")),
    )
    held = sorted((c for c in candidates if c.id in set(model.values)), key=lambda c: c.id)
    column_of = {candidate.id: k for k, candidate in enumerate(held)}
    query_position = np.empty(len(query.values), dtype=np.int64)
    query_position[query.codes_N[rows]] = np.arange(len(rows))
    cell_N = (
        query_position[query.codes_N],
        np.array([column_of[value] for value in model.values])[model.codes_N],
    )
    shape = (len(rows), len(held))
    arrays: dict[str, Any] = {
        f"{key}_QK": scatter(values_N, cell_N, shape) for key, values_N in records.numbers.items()
    }
    present_QK = np.zeros(shape, dtype=np.bool_)
    present_QK[cell_N] = True
    return OutcomeTable(
        name=name,
        queries=tuple(make_query(records, row) for row in rows),
        candidates=tuple(held),
        present_QK=present_QK,
        split_Q=np.array([records.text["split"][row] for row in rows]),
        **arrays,
    )


def scatter(
    values_N: FloatArray, cell_N: tuple[IntArray, IntArray], shape: tuple[int, int]
) -> FloatArray:
    """Return an array [Q, K] with the values at their cells and NaN elsewhere."""
    array_QK = np.full(shape, np.nan, dtype=np.float32)
    array_QK[cell_N] = values_N
    return array_QK


def make_query(records: Records, row: int) -> Query:
    """Return the query of a record."""
    text = {key: records.text[key][row] for key in ("query_id", "query", "task", "dataset")}
    return Query(text["query_id"], text["query"], text["task"], text["dataset"])


def make_records(table: OutcomeTable) -> Records:
    """Return a table in long form, one record per outcome, in the order of its rows.

    Raises:
        RLRouteError: a query has no outcome, so it would be lost.
    """
    for q in np.flatnonzero(~table.present_QK.any(axis=1))[:1]:
        query_id = table.queries[q].id
        raise RLRouteError(f"table '{table.name}': query '{query_id}' has no outcome")
    query_N, candidate_N = np.nonzero(table.present_QK)
    by_query = {
        "query_id": encode_text(query.id for query in table.queries),
        "dataset": encode_text(query.dataset for query in table.queries),
        "task": encode_text(query.task for query in table.queries),
        "query": encode_text(table.texts),
        "split": encode_text(table.split_Q.tolist()),
    }
    text = {
        name: TextColumn(column.codes_N[query_N], column.values)
        for name, column in by_query.items()
    }
    text["model"] = encode_text(table.candidates[k].id for k in candidate_N)
    numbers = {
        name: getattr(table, f"{name}_QK")[query_N, candidate_N]
        for name in ("score", "prompt_tokens", "completion_tokens", "cost_usd", LATENCY)
    }
    return Records(
        f"table '{table.name}'",
        text,
        numbers,
        lambda row: (
            f"table '{table.name}', query '{text['query_id'][row]}', model '{text['model'][row]}'"
        ),
    )


def write_table(
    table: OutcomeTable,
    folder: str | Path,
    *,
    format: TableFormat = "csv",
    needed: Collection[str] = SPLITS,
) -> None:
    """Write a table to a folder, at once or not at all; the same table gives the same bytes.

    A folder that holds a table already is replaced. The splits `needed` must hold a query.

    Raises:
        RLRouteError: the table does not pass the checks of `read_table`, or the folder holds
            other files, which would be lost.
    """
    folder = Path(folder)
    check_replaceable(folder)
    check_table(table, needed)
    with atomic_folder(folder) as temporary:
        write_table_files(table, temporary, format=format)


def check_replaceable(folder: Path) -> None:
    """Raise RLRouteError unless `folder` is new, or holds nothing but a table."""
    if folder.exists() and not folder.is_dir():
        raise RLRouteError(f"{folder}: is a file; name a new folder")
    names = {path.name for path in folder.glob("*")} if folder.exists() else set()
    other = sorted(names - {*RECORD_FILES, MODELS_FILE})
    if other:
        raise RLRouteError(f"{folder}: holds other files ({other[0]}); name a new folder")


def check_table(table: OutcomeTable, needed: Collection[str] = SPLITS) -> None:
    """Raise RLRouteError unless the table, once written, can be read."""
    known = {candidate.id for candidate in table.candidates}
    check_records(make_records(table), known, f"table '{table.name}'", needed)


def write_table_files(table: OutcomeTable, folder: Path, *, format: TableFormat = "csv") -> None:
    """Write `records.*` and `models.csv` into a folder that exists, beside what it holds."""
    name = "records.parquet" if format == "parquet" else "records.csv.gz"
    write_records(make_records(table), folder / name)
    write_atomic(folder / MODELS_FILE, format_candidates(table.candidates))
