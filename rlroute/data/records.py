"""The long form of an outcome table: one record per (query, model), as it stands in a file.

Columns: query_id, dataset, task, query, model, score, prompt_tokens, completion_tokens, cost_usd,
split, and optionally latency_seconds. Text is dictionary-encoded (a query's text stands once in
memory, however many models answered it), numbers are float32, NaN where a cell is blank.

What it leaves out: whether the values make sense (`rlroute.data.checks`), the dense arrays that
everything else works on (`rlroute.data.table`), and Parquet files, which are read in blocks of
records (`rlroute.data.parquet_blocks`).
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlroute.data.text_files import (
    iterate_csv,
    locate_csv_record,
    read_header,
    read_utf8,
)
from rlroute.types import FloatArray, IntArray, RLRouteError

TEXT_COLUMNS = ("query_id", "dataset", "task", "query", "model", "split")
NUMBER_COLUMNS = ("score", "prompt_tokens", "completion_tokens", "cost_usd")
FILE_COLUMNS = (*TEXT_COLUMNS[:5], *NUMBER_COLUMNS, "split")
LATENCY = "latency_seconds"
BLOCK_BYTES = 1 << 24  # a record has to fit in one block of the CSV reader

Locate = Callable[[int], str]


@dataclass(frozen=True, eq=False)
class TextColumn:
    """N texts as codes into their distinct values."""

    codes_N: IntArray
    values: tuple[str, ...]

    def __getitem__(self, row: int) -> str:
        return self.values[int(self.codes_N[row])]


@dataclass(frozen=True, eq=False)
class Records:
    """N records as columns. `source` names where they are from, `locate(row)` one of them."""

    source: str
    text: Mapping[str, TextColumn]
    numbers: Mapping[str, FloatArray]
    locate: Locate

    def __len__(self) -> int:
        return len(self.numbers["score"])


def encode_text(values: Iterable[str]) -> TextColumn:
    """Return texts as a dictionary-encoded column."""
    codes: dict[str, int] = {}
    codes_N = np.array([codes.setdefault(value, len(codes)) for value in values], dtype=np.int64)
    return TextColumn(codes_N, tuple(codes))


def read_records(path: Path) -> Records:
    """Read a `.csv` or `.csv.gz` file of records.

    Raises:
        RLRouteError: unreadable, empty or damaged file, not UTF-8, missing column, a record with
            too few or too many values, or a number that cannot be read.
    """
    data = read_utf8(path)
    header = read_header(path, data, FILE_COLUMNS)
    wanted = [name for name in (*FILE_COLUMNS, LATENCY) if name in header]
    columns, locate = read_csv_columns(path, data, wanted)
    numbers = {
        name: parse_numbers(columns[name], name, locate)
        for name in (*NUMBER_COLUMNS, LATENCY)
        if name in columns.column_names
    }
    numbers.setdefault(LATENCY, np.full(len(columns), np.nan, dtype=np.float32))
    text = {name: encode_column(columns[name], name, locate) for name in TEXT_COLUMNS}
    return Records(str(path), text, numbers, locate)


def read_csv_columns(path: Path, data: bytes, names: Sequence[str]) -> tuple[Any, Locate]:
    """Return the named columns of a CSV file as an Arrow table of text, and its locator.

    Raises:
        RLRouteError: a record with too few or too many values; the message names its line.
    """
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    text = pa.dictionary(pa.int32(), pa.string())
    try:
        table = arrow_csv.read_csv(
            io.BytesIO(data),
            read_options=arrow_csv.ReadOptions(block_size=BLOCK_BYTES),
            parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(
                include_columns=list(names), column_types=dict.fromkeys(names, text)
            ),
        )
    except pa.ArrowInvalid as error:
        raise RLRouteError(describe_malformed_csv(path, data, str(error))) from None
    return table, lambda record: locate_csv_record(path, record)


def describe_malformed_csv(path: Path, data: bytes, reason: str) -> str:
    """Name the first record whose length differs from the header's, else give Arrow's reason."""
    records = iterate_csv(data)
    width = len(next(records)[1])
    for line, fields in records:
        if len(fields) != width:
            return (
                f"{path}, line {line}: {len(fields)} values, but {width} columns "
                "(is a quote or a comma missing?)"
            )
    return f"{path}: not valid CSV ({reason.splitlines()[0]})"


def encode_column(column: Any, name: str, locate: Locate) -> TextColumn:
    """Return an Arrow column as text; a null is the empty text.

    Raises:
        RLRouteError: a text of a Parquet file is not UTF-8 (a CSV file is checked as a whole).
    """
    import pyarrow as pa

    if pa.types.is_dictionary(column.type) and column.null_count == 0:
        encoded = column.unify_dictionaries()
    else:
        encoded = column.cast(pa.string()).fill_null("").dictionary_encode()
    array = encoded.combine_chunks()
    codes_N = array.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    values = []
    for code, value in enumerate(array.dictionary):
        try:
            values.append(value.as_py())
        except UnicodeDecodeError:
            row = int(np.argmax(codes_N == code))
            raise RLRouteError(f"{locate(row)}: column '{name}' is not UTF-8") from None
    return TextColumn(codes_N, tuple(values))


def parse_numbers(column: Any, name: str, locate: Locate) -> FloatArray:
    """Return an Arrow column as float32, NaN where it is blank.

    Raises:
        RLRouteError: a cell is no number; the message names its row.
    """
    import pyarrow as pa
    from pyarrow import compute

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = compute.utf8_trim_whitespace(column)
        column = compute.if_else(compute.equal(column, ""), None, column)
    try:
        # Straight from text to float32: the shortest text of a float32 then reads back exactly.
        return np.array(column.cast(pa.float32(), safe=False).to_numpy(), dtype=np.float32)
    except pa.ArrowInvalid:
        for row, cell in enumerate(column.to_pylist()):
            if not is_number(cell):
                raise RLRouteError(f"{locate(row)}: {name} '{cell}' is no number") from None
        raise
    except pa.ArrowNotImplementedError:
        raise RLRouteError(
            f"{locate(0)}: column '{name}' holds {column.type}, not numbers"
        ) from None


def is_number(cell: str | None) -> bool:
    """Say whether Arrow reads a cell as a number; a blank counts as one."""
    import pyarrow as pa

    try:
        pa.scalar(cell, pa.string()).cast(pa.float32())
    except pa.ArrowInvalid:
        return False
    return True


def format_csv(records: Records) -> str:
    """Return the records as CSV text, numbers as the shortest text that reads back exactly."""
    names = select_columns(records)
    columns = [
        format_numbers(records.numbers[name])
        if name in records.numbers
        else [records.text[name][row] for row in range(len(records))]
        for name in names
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(zip(*columns, strict=True))
    return text.getvalue()


def format_numbers(numbers_N: FloatArray) -> list[str]:
    """Return float32 numbers as their shortest exact text, "" for NaN."""
    return ["" if text == "nan" else text.removesuffix(".0") for text in numbers_N.astype(str)]


def select_columns(records: Records) -> tuple[str, ...]:
    """Return the columns to write; latency only where some is known."""
    known = bool(np.isfinite(records.numbers[LATENCY]).any())
    return (*FILE_COLUMNS, LATENCY) if known else FILE_COLUMNS


def write_records(records: Records, path: Path) -> None:
    """Write records to `.csv.gz` (the same bytes for the same records) or `.parquet`."""
    if path.suffix == ".parquet":
        write_parquet(records, path)
    else:
        content = io.BytesIO()
        with gzip.GzipFile("", "wb", compresslevel=9, fileobj=content, mtime=0) as file:
            file.write(format_csv(records).encode("utf-8"))
        path.write_bytes(content.getvalue())


def write_parquet(records: Records, path: Path) -> None:
    """Write records as Parquet: text dictionary-encoded, numbers as float32 with NaN as null."""
    import pyarrow as pa
    from pyarrow import parquet

    columns: dict[str, Any] = {}
    for name in select_columns(records):
        if name in records.numbers:
            columns[name] = pa.array(records.numbers[name], from_pandas=True)
        else:
            column = records.text[name]
            columns[name] = pa.DictionaryArray.from_arrays(
                pa.array(column.codes_N, pa.int32()), pa.array(column.values, pa.string())
            )
    parquet.write_table(pa.table(columns), path, compression="zstd")
