"""Text files with faults that name their line: UTF-8, gzip and CSV.

What it is: reading of whole files into memory, and the line at which a CSV record starts (a quoted
value may span lines, so the number of a record is not the number of a line).

What it leaves out: what the columns mean (`rlroute.data.records`, `rlroute.data.prices`).
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from rlroute.types import RLRouteError


def read_utf8(path: Path) -> bytes:
    """Return the bytes of a UTF-8 text file, decompressed if its name ends in `.gz`.

    Raises:
        RLRouteError: the file cannot be read, is empty, is a damaged gzip, or is not UTF-8.
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".gz" and data:
            data = gzip.decompress(data)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise RLRouteError(f"{path}: the gzip file is damaged or cut off") from None
    except OSError as error:
        raise RLRouteError(f"{path}: cannot be read ({error.strerror})") from None
    if not data or data.isspace():
        raise RLRouteError(f"{path}: the file is empty")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RLRouteError(
            f"{path}, line {line}: not UTF-8 (byte {data[error.start]:#04x}); save it as UTF-8"
        ) from None
    return data


def iterate_csv(data: bytes) -> Iterator[tuple[int, list[str]]]:
    """Yield (line on which it starts, fields) of every CSV record, the header included.

    Blank lines are skipped and a byte-order mark is dropped.
    """
    text = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline="")
    limit = csv.field_size_limit(len(data) + 1)  # the default refuses texts beyond 128 kB
    try:
        reader = csv.reader(text)
        start = 1
        for fields in reader:
            if fields:
                yield start, fields
            start = reader.line_num + 1
    finally:
        csv.field_size_limit(limit)


def read_header(path: Path, data: bytes, required: Sequence[str]) -> list[str]:
    """Return the column names of a CSV file.

    Raises:
        RLRouteError: a required column is missing or a column occurs twice.
    """
    line, header = next(iterate_csv(data))
    check_columns(f"{path}, line {line}", header, required)
    return header


def check_columns(where: str, header: Sequence[str], required: Sequence[str]) -> None:
    """Raise RLRouteError unless the required columns are there and none occurs twice."""
    missing = [name for name in required if name not in header]
    if missing:
        raise RLRouteError(
            f"{where}: missing column '{missing[0]}' (required: {', '.join(required)})"
        )
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise RLRouteError(f"{where}: column '{repeated[0]}' occurs more than once")


def locate_csv_record(path: Path, record: int) -> str:
    """Return "FILE, line N" for a record of a CSV file, counted from 0 after the header."""
    for number, (line, _) in enumerate(iterate_csv(read_utf8(path)), start=-1):
        if number == record:
            return f"{path}, line {line}"
    raise IndexError(f"{path} has no record {record}")
