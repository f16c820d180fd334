"""Tables for cascades whose best policy is known, and that policy by dynamic programming.

Three topics, told apart by their words; candidates small (cost 0.1 or 0.2 of the reference) and
large (1). With an exact check and cost weight 0.3 it is best on
  - "meadow" to look at small's answer (right 12 of 20) and go on to large where it failed;
  - "glacier" (small right 1 of 20, at twice the cost) to ask large at once: looking does not pay;
  - "harbour" (large is right where small is) to stop after small's answer even where it failed.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from rlroute.config import parse_config
from rlroute.data.table import OutcomeTable, write_table
from rlroute.types import Candidate, Prices, Query
from rlroute.worlds.cascade_table import CascadeConfig, CascadeSplit

UNIT = 0.01  # USD: what large costs
# topic -> cost of small, and how many of 20 queries have which scores (small, large)
TOPICS = {
    "meadow": (0.1, {(1, 1): 11, (1, 0): 1, (0, 1): 8}),
    "glacier": (0.2, {(1, 1): 1, (0, 1): 18, (0, 0): 1}),
    "harbour": (0.1, {(1, 1): 10, (0, 0): 10}),
}
EXACT = {"true_positive": 1.0, "false_positive": 0.0, "price_usd": 0.0}


def make_table(holes: tuple[tuple[int, int], ...] = ()) -> OutcomeTable:
    """Return the table: candidates large and small, 20 queries of each topic in each split."""
    rows = []
    for split, (topic, (small_cost, counts)) in itertools.product(
        ("train", "val", "test"), TOPICS.items()
    ):
        scores = [one for one, count in counts.items() for _ in range(count)]
        rows += [(split, topic, n, small_cost, *one) for n, one in enumerate(scores)]
    rows.sort(key=lambda row: (row[1], f"{row[0]}-{row[2]:02d}"))  # as a table is read
    score_QK = np.array([[row[5], row[4]] for row in rows], dtype=np.float32)
    cost_QK = np.array([[UNIT, UNIT * row[3]] for row in rows], dtype=np.float32)
    tokens_QK = np.array([[200 + 7 * row[2], 100] for row in rows], dtype=np.float32)
    present_QK = np.ones(score_QK.shape, dtype=np.bool_)
    for query, column in holes:
        present_QK[query, column] = False
    arrays = [np.where(present_QK, one, np.nan) for one in (score_QK, cost_QK, tokens_QK)]
    return OutcomeTable(
        name="topics",
        queries=tuple(
            Query(f"{topic}-{split}-{n:02d}", f"{topic} {topic} number {split}{n}", topic, "topics")
            for split, topic, n, *_ in rows
        ),
        candidates=(Candidate("large", Prices(20, 20)), Candidate("small", Prices(2, 2))),
        score_QK=arrays[0],
        cost_usd_QK=arrays[1],
        present_QK=present_QK,
        prompt_tokens_QK=arrays[2],
        completion_tokens_QK=arrays[2],
        latency_seconds_QK=np.full(score_QK.shape, np.nan, dtype=np.float32),
        split_Q=np.array([row[0] for row in rows]),
    )


def make_config(folder: Path, holes: tuple[tuple[int, int], ...] = (), **fields) -> CascadeConfig:
    """Write the table to a folder and return a world over it."""
    if not (folder / "models.csv").exists():
        write_table(make_table(holes), folder)
    stated = {
        "kind": "cascade",
        "table": str(folder),
        "encoder": {"kind": "tfidf", "dimension": 8},
        "profile": {"clusters": 3},
        "tokens": False,
        "checker": EXACT,
        "keep": "best_checked",
    }
    return parse_config(CascadeConfig, stated | fields, "test")


def solve(split: CascadeSplit, reference_usd: float, cost_weight: float, keep: str) -> float:
    """Return the best mean utility of a policy that sees topic and checks, by enumeration.

    What it knows of a query is its topic, whom it asked, and who passed; those that look alike get
    one action. Skipping is not allowed.
    """
    topic_Q = np.array([task.task for task in split.tasks])
    price_QK = cost_weight * split.cost_usd_QK / reference_usd

    def improve(query_N: np.ndarray, asked: tuple[int, ...], passed: tuple[bool, ...]) -> float:
        """Return the best total from here on of queries that look alike."""
        best = -np.inf
        if asked:
            good = [k for k, ok in zip(asked, passed, strict=True) if ok]
            hand = good[-1] if good and keep == "best_checked" else asked[-1]
            best = float(split.score_QK[query_N, hand].sum())
        for k in range(split.score_QK.shape[1]):
            if k in asked:
                continue
            value = -float(price_QK[query_N, k].sum())
            for ok in (False, True):
                rest_N = query_N[split.passed_QK[query_N, k] == ok]
                if len(rest_N):
                    value += improve(rest_N, (*asked, k), (*passed, ok))
            best = max(best, value)
        return best

    topics = [np.flatnonzero(topic_Q == one) for one in sorted(set(topic_Q))]
    return sum(improve(query_N, (), ()) for query_N in topics) / len(topic_Q)
