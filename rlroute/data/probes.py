"""Stored probes: several answers of one cheap candidate to a query, and how much they disagree.

What it is: the reader of the `calls.csv.gz` that `rlroute collect --samples N` leaves beside a
table. Answers stand there as fingerprints of their normalised text, never as texts, so equal ones
can be counted and nothing else can be read. The disagreement of N answers with D different ones is
sigma = (D - 1) / (N - 1): 0 where all agree, 1 where no two do (ACAR, arXiv 2602.21231).

What it leaves out: what is done about it (`rlroute.policies.table_baselines_sigma`).

How to use: `read_probes(Path("my-table"), train)`; None where nothing was asked twice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlroute.data.table import OutcomeTable
from rlroute.data.text_files import iterate_csv, read_header, read_utf8
from rlroute.types import RLRouteError

CALLS_FILE = "calls.csv.gz"
COLUMNS = ("query_id", "model", "sample", "failure", "cost_usd", "answer")
MINIMUM_SHARE = 0.5  # of the train queries that a candidate has to have answered twice or more


@dataclass(frozen=True)
class Probe:
    """The answers of one candidate to one query: disagreement in [0, 1], USD paid for all."""

    sigma: float
    cost_usd: float


@dataclass(frozen=True)
class StoredProbes:
    """Who was probed, and by query id what came of it; a query without probes is missing."""

    candidate_id: str
    by_query: Mapping[str, Probe]


def compute_sigma(answers: Sequence[str]) -> float:
    """Return the disagreement of answers (their fingerprints) in [0, 1]; ACAR's worked examples.

    Raises:
        ValueError: fewer than two answers cannot disagree.
    """
    if len(answers) < 2:
        raise ValueError(f"sigma needs two answers or more, got {len(answers)}")
    return (len(set(answers)) - 1) / (len(answers) - 1)


def read_probes(folder: Path, train: OutcomeTable) -> StoredProbes | None:
    """Read the probes stored in a table's folder: those of the cheapest candidate asked repeatedly.

    A failed sample is no answer, but what it was billed is part of the probe's cost. None where no
    calls are stored, or no candidate answered half of the train queries twice or more.

    Raises:
        RLRouteError: the file cannot be read, or an answered call has no cost.
    """
    path = folder / CALLS_FILE
    if not path.exists():
        return None
    data = read_utf8(path)
    if "answer" not in read_header(path, data, ()):
        return None  # collected before answers had fingerprints
    header = read_header(path, data, COLUMNS)
    answers: dict[tuple[str, str], list[str]] = {}
    paid: dict[tuple[str, str], float] = {}
    rows = iterate_csv(data)
    next(rows)
    for line, fields in rows:
        row = dict(zip(header, fields, strict=False))
        pair = (row["model"], row["query_id"])
        paid[pair] = paid.get(pair, 0.0) + read_cost(row, f"{path}, line {line}")
        if row["answer"]:
            answers.setdefault(pair, []).append(row["answer"])
    return choose_prober(train, answers, paid)


def read_cost(row: Mapping[str, str], where: str) -> float:
    """Return what a call cost in USD; a failed call may have been billed nothing."""
    text = row.get("cost_usd", "")
    if not text and row.get("failure"):
        return 0.0
    try:
        cost_usd = float(text)
    except ValueError:
        cost_usd = math.nan
    if not (math.isfinite(cost_usd) and cost_usd >= 0):
        raise RLRouteError(f"{where}: cost_usd '{text}' must be a number of USD, 0 or more")
    return cost_usd


def choose_prober(
    train: OutcomeTable,
    answers: Mapping[tuple[str, str], Sequence[str]],
    paid: Mapping[tuple[str, str], float],
) -> StoredProbes | None:
    """Return all probes of the cheapest candidate that was asked repeatedly often enough."""
    ids = [query.id for query in train.queries]
    found: list[tuple[float, StoredProbes]] = []
    for candidate in train.candidates:
        probes = {
            query: Probe(compute_sigma(texts), paid[model, query])
            for (model, query), texts in answers.items()
            if model == candidate.id and len(texts) > 1
        }
        known = [probes[query].cost_usd for query in ids if query in probes]
        if len(known) >= MINIMUM_SHARE * len(ids):
            found.append((sum(known) / len(known), StoredProbes(candidate.id, probes)))
    return min(found, key=lambda item: item[0])[1] if found else None
