"""Helpers of the tests that collect from servers: query files, pool files, comparisons."""

from __future__ import annotations

import csv
import gzip
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rlroute.data.table import OutcomeTable, list_arrays

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pool"))

from fault_server import RunningServer, run_fault_server

__all__ = ["RunningServer", "run_fault_server"]

PRICES = {"input": 2.0, "output": 3.0, "per_call": 0.0}


def write_queries(folder: Path, count: int, **changes: Any) -> Path:
    path = folder / "q.jsonl"
    rows = [
        {"id": f"q{i:04d}", "text": f"question {i}", "references": [f"answer to question {i} x"]}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row | changes) + "\n" for row in rows))
    return path


def make_http(url: str, **changes: Any) -> dict[str, Any]:
    entry = {"endpoint": url, "model": "m", "prices": PRICES, "max_output_tokens": 5}
    return entry | {"timeout_seconds": 2.0, "retries": 6} | changes


def write_pool(folder: Path, candidates: dict[str, Any], **shared: Any) -> Path:
    path = folder / "pool.yaml"
    path.write_text(yaml.safe_dump({"candidates": candidates, **shared}))
    return path


def assert_same_table(first: OutcomeTable, second: OutcomeTable) -> None:
    """Compare everything but the seconds, which are measured."""
    assert first.queries == second.queries
    assert first.candidates == second.candidates
    assert first.split_Q.tolist() == second.split_Q.tolist()
    for name in list_arrays():
        if not name.startswith("latency"):
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def read_rows(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return list(csv.DictReader(file))
