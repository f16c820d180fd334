"""Tables for sessions of queries: two topics, three candidates, costs that run away, holes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rlroute.data.table import OutcomeTable, write_table
from rlroute.types import Candidate, Prices, Query
from rlroute.worlds.query_session_tasks import QuerySessionConfig

IDS = ("cheap", "middle", "dear")  # in the order of their costs; ids sort otherwise
PRICES = (Prices(1.0, 1.0), Prices(2.0, 4.0), Prices(10.0, 10.0))
SPLITS = ("train", "train", "train", "val", "test")
WORDS = {"plain": "add the two short numbers", "knotty": "prove this theorem about long knots"}


def make_session_table(
    queries: int = 200, *, wild: bool = False, holes: float = 0.0, seed: int = 0
) -> OutcomeTable:
    """Everybody solves plain queries, the dear candidate alone knotty ones; a call has 100 tokens.

    With `wild`, answers are short on train and a hundred times as long now and then elsewhere, and
    scores are arbitrary.
    """
    generator = np.random.default_rng(seed)
    split_Q = np.array([SPLITS[q % len(SPLITS)] for q in range(queries)])
    topic_Q = np.array([list(WORDS)[(q // len(SPLITS)) % 2] for q in range(queries)])
    score_QK = np.stack(
        [topic_Q == "plain", topic_Q == "plain", np.ones(queries, dtype=bool)], axis=1
    ).astype(np.float32)
    completion_QK = np.full((queries, 3), 20.0)
    if wild:
        score_QK = generator.random((queries, 3)).astype(np.float32)
        completion_QK = generator.integers(1, 40, (queries, 3)).astype(float)
        long_QK = (split_Q != "train")[:, None] & (generator.random((queries, 3)) < 0.2)
        completion_QK = np.where(long_QK, completion_QK * 100, completion_QK)
    prompt_QK = np.full((queries, 3), 80.0)
    price_23 = np.array([[one.input, one.output] for one in PRICES]).T
    cost_QK = (prompt_QK * price_23[0] + completion_QK * price_23[1]) / 1e6
    present_QK = generator.random((queries, 3)) >= holes
    present_QK[:, 0] |= ~present_QK.any(axis=1)
    present_QK[:5] = True
    order_K = np.argsort(IDS)

    def arrange(value_QK: np.ndarray) -> np.ndarray:
        return np.where(present_QK, value_QK, np.nan).astype(np.float32)[:, order_K]

    return OutcomeTable(
        name="sessions",
        queries=tuple(
            Query(f"q{q:04d}", f"{WORDS[topic]}, number {q}", task=str(topic), dataset="made")
            for q, topic in enumerate(topic_Q)
        ),
        candidates=tuple(Candidate(IDS[k], PRICES[k]) for k in order_K),
        score_QK=arrange(score_QK),
        cost_usd_QK=arrange(cost_QK),
        present_QK=present_QK[:, order_K],
        prompt_tokens_QK=arrange(prompt_QK),
        completion_tokens_QK=arrange(completion_QK),
        latency_seconds_QK=np.full((queries, 3), np.nan, dtype=np.float32),
        split_Q=split_Q,
    )


def make_session_config(folder: Path, table: OutcomeTable, **fields) -> QuerySessionConfig:
    """Write a table into a new folder and return sessions of four of its queries."""
    path = folder / f"sessions{len(list(folder.iterdir()))}"
    write_table(table, path)
    data = {
        "kind": "query_session",
        "table": str(path),
        "queries": 4,
        "train": 40,
        "encoder": {"kind": "tfidf", "dimension": 6},
        "profile": {"clusters": 2},
    }
    return QuerySessionConfig.model_validate(data | fields)
