"""Query files: one JSON object per line, faults refused with file and line.

    {"id": "q1", "text": "2 + 2 =", "references": ["4"], "task": "sums", "dataset": "mine"}

`id` and `text` are needed. Optional are `references` (what answers are graded against), `task`,
`dataset`, `split` (train, val or test: in every line or in none; else splits are assigned by a hash
of the text) and `metadata` (an object of plain values).

What it leaves out: asking the queries (`rlroute.collection.query_run`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlroute.data.splits import assign_splits, find_leak
from rlroute.data.text_files import read_utf8
from rlroute.files import write_atomic
from rlroute.types import SPLITS, Query, RLRouteError

KEYS = ("id", "text", "references", "task", "dataset", "split", "metadata")


@dataclass(frozen=True)
class QuerySet:
    """Queries with their splits; `lines` says where each stands in `source`."""

    source: str
    queries: tuple[Query, ...]
    splits: tuple[str, ...]
    lines: tuple[int, ...]

    def locate(self, place: int) -> str:
        """Return "FILE, line N" of a query."""
        return f"{self.source}, line {self.lines[place]}"


def read_queries(path: Path, fractions: tuple[float, float, float], seed: int) -> QuerySet:
    """Read a query file; without stated splits, `fractions` are those of train, val and test.

    Raises:
        RLRouteError: the first fault: no JSON object, an unknown or missing key, a value of the
            wrong kind, an id twice, one text in two splits, an empty split.
    """
    queries: list[Query] = []
    stated: list[str | None] = []
    lines: list[int] = []
    first_line: dict[str, int] = {}
    for number, line in enumerate(read_utf8(path).decode("utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        query, split = parse_query(where, line)
        if query.id in first_line:
            fault = f"id '{query.id}' stands in line {first_line[query.id]} already"
            raise RLRouteError(f"{where}: {fault}")
        first_line[query.id] = number
        if stated and (split is None) != (stated[0] is None):
            raise RLRouteError(f"{where}: state 'split' in every line or in none")
        queries.append(query)
        stated.append(split)
        lines.append(number)
    texts = [query.text for query in queries]
    splits = [split for split in stated if split is not None]
    splits = splits or [str(split) for split in assign_splits(texts, fractions, seed)]
    query_set = QuerySet(str(path), tuple(queries), tuple(splits), tuple(lines))
    check_splits(query_set)
    return query_set


def parse_query(where: str, line: str) -> tuple[Query, str | None]:
    """Return the query of one line and the split that it states."""
    try:
        row: Any = json.loads(line)
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise RLRouteError(f"{where}: holds half of a surrogate pair, which is no text") from None
    except (json.JSONDecodeError, RecursionError):
        raise RLRouteError(f"{where}: not valid JSON") from None
    if not isinstance(row, dict):
        raise RLRouteError(f"{where}: must be a JSON object with id and text")
    unknown = sorted(set(row) - set(KEYS))
    if unknown:
        raise RLRouteError(f"{where}: unknown key '{unknown[0]}' (valid here: {', '.join(KEYS)})")
    for key in ("id", "text", "task", "dataset"):
        value = row.get(key, "")
        if not isinstance(value, str) or (key in ("id", "text") and not value.strip()):
            kind = "a text that is not empty" if key in ("id", "text") else "a text"
            raise RLRouteError(f"{where}: '{key}' must be {kind}")
    references, metadata = row.get("references", []), row.get("metadata", {})
    if not isinstance(references, list) or not all(isinstance(r, str) for r in references):
        raise RLRouteError(f"{where}: 'references' must be a list of texts")
    plain = (str, int, float, bool)
    if not isinstance(metadata, dict) or not all(isinstance(v, plain) for v in metadata.values()):
        raise RLRouteError(f"{where}: 'metadata' must be an object of plain values")
    split = row.get("split")
    if split is not None and split not in SPLITS:
        raise RLRouteError(f"{where}: 'split' must be one of {', '.join(SPLITS)}")
    query = Query(
        id=row["id"],
        text=row["text"],
        task=row.get("task", ""),
        dataset=row.get("dataset", ""),
        references=tuple(references),
        metadata={key: str(value) for key, value in metadata.items()},
    )
    return query, split


def check_splits(query_set: QuerySet) -> None:
    """Raise RLRouteError where a text stands in two splits, or a split is empty."""
    leak = find_leak([query.text for query in query_set.queries], query_set.splits)
    if leak is not None:
        earlier, later = leak
        raise RLRouteError(
            f"{query_set.locate(later)}: the text of this {query_set.splits[later]} query stands "
            f"in {query_set.splits[earlier]} too, in line {query_set.lines[earlier]}"
        )
    empty = [split for split in SPLITS if split not in query_set.splits]
    if empty:
        raise RLRouteError(
            f"{query_set.source}: {len(query_set.queries)} queries leave the split '{empty[0]}' "
            "empty; train, val and test each need one (state 'split', or use --split)"
        )


def parse_fractions(text: str) -> tuple[float, float, float]:
    """Read "0.7,0.1,0.2" as the fractions of train, val and test.

    Raises:
        RLRouteError: these are not three numbers; `assign_splits` checks that they sum to 1.
    """
    try:
        train, val, test = (float(part) for part in text.split(","))
    except ValueError:
        raise RLRouteError(f"--split '{text}': write three fractions, as in 0.7,0.1,0.2") from None
    return train, val, test


def write_queries(queries: Sequence[Query], path: Path) -> None:
    """Write queries to a file that `read_queries` reads."""
    rows = [
        {
            "id": query.id,
            "text": query.text,
            "references": list(query.references),
            "task": query.task,
            "dataset": query.dataset,
            "metadata": dict(query.metadata),
        }
        for query in queries
    ]
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
