"""Records of a Parquet file, read block by block into dense arrays: millions in little memory.

What it is: `gather_records` reads some ten thousand records at a time, checks them, and puts their
numbers where they belong, [Q, K]. A query's text is kept once, the first time it comes. What is
held is the table itself and one block; the records as a whole, which say everything K times over,
never are. Texts end in Arrow columns (`rlroute.data.stored_queries`).

What it leaves out: CSV (`rlroute.data.records`), and tables with so many candidates that the dense
arrays are too large themselves.

How to use: `rlroute.data.table.read_table` calls it for a folder with `records.parquet`; small row
groups (write_table writes them) keep a block small.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rlroute.data.checks import (
    QUERY_COLUMNS,
    check_duplicates,
    check_models,
    check_numbers,
    check_queries,
    check_splits,
    check_texts,
    fail_conflict,
    fail_duplicate,
    find_first_rows,
)
from rlroute.data.records import (
    FILE_COLUMNS,
    LATENCY,
    NUMBER_COLUMNS,
    TEXT_COLUMNS,
    Records,
    TextColumn,
    encode_column,
    encode_text,
    parse_numbers,
)
from rlroute.data.stored_queries import COLUMNS, StoredQueries
from rlroute.data.text_files import check_columns
from rlroute.types import SPLITS, BoolArray, FloatArray, IntArray, RLRouteError

RECORDS_PER_BLOCK = 1 << 16
GROWTH = 1.5


@dataclass(frozen=True)
class GatheredRecords:
    """What a file says: Q queries sorted by (dataset, task, id), K models sorted by name.

    `numbers[name]` is [Q, K], NaN where there is no record.
    """

    queries: StoredQueries
    models: tuple[str, ...]
    split_Q: npt.NDArray[np.str_]
    present_QK: BoolArray
    numbers: dict[str, FloatArray]


def gather_records(
    path: Path,
    candidate_ids: Collection[str],
    prices_source: str,
    needed: Collection[str] = SPLITS,
) -> GatheredRecords:
    """Read, check and gather the records of a Parquet file; splits `needed` must hold a query.

    Raises:
        RLRouteError: not a Parquet file of records, or the first fault of the records; the message
            names the row.
    """
    gathering = Gathering(path)
    for block in iterate_blocks(path):
        check_texts(block)
        check_models(block, candidate_ids, prices_source)
        check_numbers(block)
        gathering.add(block)
    return gathering.finish(needed)


def iterate_blocks(path: Path) -> Iterator[Records]:
    """Yield the records of a Parquet file in blocks whose `locate` counts rows of the file.

    Raises:
        RLRouteError: the file is empty or torn, lacks a column, or a column holds something else.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        if path.stat().st_size == 0:
            raise RLRouteError(f"{path}: the file is empty")
        with parquet.ParquetFile(path) as file:
            header = file.schema_arrow.names
            check_columns(str(path), header, FILE_COLUMNS)
            wanted = [name for name in (*FILE_COLUMNS, LATENCY) if name in header]
            check_types(path, file.schema_arrow, wanted)
            start = 0
            for batch in file.iter_batches(RECORDS_PER_BLOCK, columns=wanted, use_threads=False):
                yield make_block(path, pa.Table.from_batches([batch]), start)
                start += len(batch)
    except (pa.ArrowInvalid, OSError):
        raise RLRouteError(f"{path}: not a Parquet file, or cut off") from None


def check_types(path: Path, schema: Any, wanted: Sequence[str]) -> None:
    """Raise RLRouteError for a column of lists or bytes."""
    import pyarrow as pa

    for name in wanted:
        kind = schema.field(name).type
        if pa.types.is_nested(kind) or pa.types.is_binary(kind):
            raise RLRouteError(f"{path}: column '{name}' holds {kind}, not text")


def locate_row(path: Path, record: int) -> str:
    """Say where a record stands, counted from 0."""
    return f"{path}, row {record + 1}"


def make_block(path: Path, block: Any, start: int) -> Records:
    """Return the records of a block (an Arrow table), whose first one is row `start` of the file.

    Raises:
        RLRouteError: a cell is no number, or a text is not UTF-8.
    """
    import pyarrow as pa

    def locate(record: int) -> str:
        return locate_row(path, start + record)

    numbers = {
        name: parse_numbers(block[name], name, locate)
        for name in (*NUMBER_COLUMNS, LATENCY)
        if name in block.column_names
    }
    numbers.setdefault(LATENCY, np.full(len(block), np.nan, dtype=np.float32))
    text = {}
    for name in TEXT_COLUMNS:
        column = block[name]
        if pa.types.is_dictionary(column.type):  # its dictionary may hold far more than the block
            column = column.cast(column.type.value_type)
        text[name] = encode_column(column, name, locate)
    return Records(str(path), text, numbers, locate)


@dataclass
class Gathering:
    """What was read so far: queries and models in the order in which they came.

    `columns` holds the text, data set, task and split of each query, `first_record_Q` the record
    that named it first. The arrays have room for more queries and models than there are.
    """

    path: Path
    records: int = 0
    code_by_id: dict[str, int] = field(default_factory=dict)
    code_by_model: dict[str, int] = field(default_factory=dict)
    columns: dict[str, list[str]] = field(default_factory=lambda: {n: [] for n in QUERY_COLUMNS})
    words: dict[str, str] = field(default_factory=dict)
    first_record_Q: list[int] = field(default_factory=list)
    present_QK: BoolArray = field(default_factory=lambda: np.zeros((0, 0), dtype=np.bool_))
    numbers: dict[str, FloatArray] = field(default_factory=dict)

    def add(self, block: Records) -> None:
        """Take in a block whose records passed the checks of single records.

        Raises:
            RLRouteError: a second record of a query and a model, or a query with two texts, tasks,
                data sets or splits.
        """
        check_duplicates(block)
        first_V = find_first_rows(block)
        check_queries(block, first_V)
        query_V = self.find_queries(block, first_V)
        model_N = find_codes(self.code_by_model, block.text["model"].values)
        model_N = model_N[block.text["model"].codes_N]
        local_V = np.empty(len(first_V), dtype=np.int64)
        local_V[block.text["query_id"].codes_N[first_V]] = query_V
        query_N = local_V[block.text["query_id"].codes_N]
        self.make_room(block)
        for row in np.flatnonzero(self.present_QK[query_N, model_N])[:1]:
            fail_duplicate(block, row, self.locate(find_record(self.path, block, row)))
        self.present_QK[query_N, model_N] = True
        for name, value_N in block.numbers.items():
            self.numbers[name][query_N, model_N] = value_N
        self.records += len(block)

    def find_queries(self, block: Records, first_V: IntArray) -> IntArray:
        """Return the numbers of a block's distinct queries [V], whose first rows are given.

        Raises:
            RLRouteError: one is known with another text, task, data set or split.
        """
        known = len(self.code_by_id)
        query_V = find_codes(self.code_by_id, [block.text["query_id"][row] for row in first_V])
        for name, values_Q in self.columns.items():
            values_V = [block.text[name][row] for row in first_V]
            for query, row, value in zip(query_V.tolist(), first_V, values_V, strict=True):
                if query >= known:  # labels are few: a word is kept once
                    kept = value if name == "query" else self.words.setdefault(value, value)
                    values_Q.append(kept)
                elif values_Q[query] != value:
                    fail_conflict(block, row, name, self.locate(self.first_record_Q[query]))
        self.first_record_Q += (self.records + first_V[query_V >= known]).tolist()
        return query_V

    def locate(self, record: int) -> str:
        """Say where a record stands."""
        return locate_row(self.path, record)

    def make_room(self, block: Records) -> None:
        """Make the arrays large enough for all queries and models that were seen."""
        queries, models = len(self.code_by_id), len(self.code_by_model)
        room_Q, room_K = self.present_QK.shape
        if queries > room_Q:
            room_Q = max(queries, int(GROWTH * room_Q))
        room = (room_Q, max(models, room_K))
        if room == self.present_QK.shape:
            return
        self.present_QK = enlarge(self.present_QK, room, False)
        for name in block.numbers:
            old_QK = self.numbers.get(name, np.zeros((0, 0), dtype=np.float32))
            self.numbers[name] = enlarge(old_QK, room, np.nan)

    def finish(self, needed: Collection[str]) -> GatheredRecords:
        """Check what concerns the file as a whole, and return it sorted.

        Raises:
            RLRouteError: no record, an unknown or empty split, or a text in two splits.
        """
        queries = len(self.code_by_id)
        if not queries:
            raise RLRouteError(f"{self.path}: holds no records")
        # the codes of the texts are not told apart: `check_splits` reads values only
        texts = TextColumn(np.arange(queries), tuple(self.columns["query"]))
        whole = Records(
            str(self.path),
            {"query": texts, "split": encode_text(self.columns["split"])},
            {},
            lambda query: self.locate(self.first_record_Q[query]),
        )
        check_splits(whole, np.arange(queries), needed)
        columns, order_Q = sort_queries(list(self.code_by_id), self.columns)
        models = sorted(self.code_by_model)
        model_K = np.array([self.code_by_model[model] for model in models])
        return GatheredRecords(
            queries=StoredQueries(columns, order_Q),
            models=tuple(models),
            split_Q=np.array(self.columns["split"])[order_Q],
            present_QK=self.present_QK[order_Q[:, None], model_K],
            numbers={
                name: self.numbers.pop(name)[order_Q[:, None], model_K]
                for name in list(self.numbers)
            },
        )


def find_codes(code_by_value: dict[str, int], values: Iterable[str]) -> IntArray:
    """Return the numbers of values; a new value gets the next one."""
    return np.array(
        [code_by_value.setdefault(value, len(code_by_value)) for value in values], dtype=np.int64
    )


def enlarge(array_QK: npt.NDArray[Any], room: tuple[int, int], blank: float) -> npt.NDArray[Any]:
    """Return a larger array with the old entries in its corner and `blank` elsewhere."""
    larger_QK = np.full(room, blank, dtype=array_QK.dtype)
    larger_QK[: array_QK.shape[0], : array_QK.shape[1]] = array_QK
    return larger_QK


def sort_queries(ids: list[str], by_query: dict[str, list[str]]) -> tuple[dict[str, Any], IntArray]:
    """Return id, text, task and data set as Arrow columns, and the order by (data set, task, id).

    Arrow compares the bytes of UTF-8, whose order is that of the characters.
    """
    import pyarrow as pa
    from pyarrow import compute

    lists = {"query_id": ids, **by_query}
    columns = {name: pa.array(lists[name], pa.large_string()) for name in COLUMNS}
    keys = [(name, "ascending") for name in ("dataset", "task", "query_id")]
    order = compute.sort_indices(pa.table(columns), sort_keys=keys)
    return columns, order.to_numpy().astype(np.int64)


def find_record(path: Path, block: Records, row: int) -> int:
    """Return the first record of the query and the model that a row of a block has."""
    pair = block.text["query_id"][row], block.text["model"][row]
    start = 0
    for earlier in iterate_blocks(path):
        match_N = np.ones(len(earlier), dtype=np.bool_)
        for name, value in zip(("query_id", "model"), pair, strict=True):
            column = earlier.text[name]
            code = column.values.index(value) if value in column.values else -1
            match_N &= column.codes_N == code
        for record in np.flatnonzero(match_N)[:1]:
            return start + int(record)
        start += len(earlier)
    raise AssertionError(f"{path}: no record of {pair}")
