"""Reworded queries: pairs of a text and the same question in other words, from JSONL or CSV.

    {"query": "How many primes are below 100?", "reworded": "Count the primes under one hundred."}

A `.csv` or `.csv.gz` file has the columns query and reworded, any other file one JSON object per
line with these two keys. One rewording a query: several would count as one, and an interval over
them would be too narrow.

What it leaves out: what is done with them (`rlroute.robustness`).

How to use: `read_rewordings(Path("reworded.jsonl"))`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlroute.data.text_files import check_columns, iterate_csv, read_utf8
from rlroute.types import RLRouteError

KEYS = ("query", "reworded")


@dataclass(frozen=True)
class Rewording:
    """A query's text and the same in other words."""

    query: str
    reworded: str


def read_rewordings(path: Path) -> tuple[Rewording, ...]:
    """Read a file of rewordings in the order of its lines.

    Raises:
        RLRouteError: the first fault: an unreadable or empty file, a column or key that is missing
            or unknown, a text that is empty, a query twice, or a rewording that changes nothing.
    """
    is_csv = path.name.endswith((".csv", ".csv.gz"))
    rows = iterate_csv_rows(path) if is_csv else iterate_json_rows(path)
    found: list[Rewording] = []
    first_line: dict[str, int] = {}
    for line, row in rows:
        rewording = check_row(f"{path}, line {line}", row)
        if rewording.query in first_line:
            raise RLRouteError(
                f"{path}, line {line}: the same query stands in line "
                f"{first_line[rewording.query]}; give one rewording a query"
            )
        first_line[rewording.query] = line
        found.append(rewording)
    if not found:
        raise RLRouteError(f"{path}: holds no rewording")
    return tuple(found)


def iterate_csv_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the line on which each record starts, and its cells by column.

    Raises:
        RLRouteError: a fault of the header, or a record with too few or too many values.
    """
    records = iterate_csv(read_utf8(path))
    line, header = next(records)
    check_columns(f"{path}, line {line}", header, KEYS)
    for line, fields in records:
        if len(fields) != len(header):
            raise RLRouteError(
                f"{path}, line {line}: {len(fields)} values for {len(header)} columns"
            )
        yield line, dict(zip(header, fields, strict=True))


def iterate_json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number of each line that is not blank, and its object.

    Raises:
        RLRouteError: a line that is no JSON object.
    """
    text = read_utf8(path).decode("utf-8-sig")
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            row: Any = json.loads(content)
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise RLRouteError(
                f"{path}, line {line}: holds half of a surrogate pair, which is no text"
            ) from None
        except (json.JSONDecodeError, RecursionError):
            raise RLRouteError(f"{path}, line {line}: not valid JSON") from None
        if not isinstance(row, dict):
            raise RLRouteError(
                f"{path}, line {line}: must be a JSON object with {' and '.join(KEYS)}"
            )
        yield line, row


def check_row(where: str, row: dict[str, Any]) -> Rewording:
    """Return the rewording of a row.

    Raises:
        RLRouteError: see `read_rewordings`.
    """
    unknown = sorted(set(row) - set(KEYS))
    if unknown:
        raise RLRouteError(f"{where}: unknown key '{unknown[0]}' (valid here: {', '.join(KEYS)})")
    for key in KEYS:
        value = row.get(key)
        if not isinstance(value, str) or not value.strip():
            raise RLRouteError(f"{where}: '{key}' must be a text that is not empty")
    rewording = Rewording(row["query"], row["reworded"])
    if rewording.query == rewording.reworded:
        raise RLRouteError(f"{where}: the rewording is the query itself, which tells nothing")
    return rewording
