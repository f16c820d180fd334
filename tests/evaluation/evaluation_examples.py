"""Small tables for the tests of evaluation and report: the worked example, and two topics."""

from __future__ import annotations

import numpy as np

from rlroute.data.routing_data import RoutingData
from rlroute.data.table import OutcomeTable
from rlroute.types import Candidate, Prices, Query


def build_data(score_QK, cost_QK, tasks=None, features_QF=None, split="test") -> RoutingData:
    """Wrap arrays as routing data; NaN scores are holes. The reference cost is 10 USD."""
    score_QK = np.asarray(score_QK, np.float32)
    queries, candidates = score_QK.shape
    present_QK = np.isfinite(score_QK)
    unknown_QK = np.full(score_QK.shape, np.nan, np.float32)
    tasks = tasks or ["all"] * queries
    table = OutcomeTable(
        name="example",
        queries=tuple(Query(f"q{q}", f"text {q}", task=tasks[q]) for q in range(queries)),
        candidates=tuple(Candidate(f"model-{k}", Prices(1.0, 2.0)) for k in range(candidates)),
        score_QK=score_QK,
        cost_usd_QK=np.where(present_QK, np.asarray(cost_QK, np.float32), np.nan),
        present_QK=present_QK,
        prompt_tokens_QK=unknown_QK,
        completion_tokens_QK=unknown_QK,
        latency_seconds_QK=unknown_QK,
        split_Q=np.array([split] * queries),
    )
    if features_QF is None:
        features_QF = np.eye(queries)
    return RoutingData(
        table=table,
        features_QF=np.asarray(features_QF, np.float32),
        candidate_features_KD=np.zeros((candidates, 1), np.float32),
        cost_reference_usd=10.0,
    )


def build_worked_example() -> RoutingData:
    """Return four queries and the models S (cost 1), M (4), L (10) of the literature."""
    score_QK = [[1, 1, 1], [0, 1, 1], [0, 0, 1], [1, 0, 0]]
    return build_data(score_QK, np.tile([1, 4, 10], (4, 1)))


def build_topics(queries: int, seed: int, split: str = "test", holes: float = 0.0) -> RoutingData:
    """Return queries of two topics: model 0 is cheap and good at the first, model 2 dear, good at
    the second and fair at the first, model 1 mediocre. Features tell the topic.
    """
    generator = np.random.default_rng(seed)
    topic_Q = generator.integers(2, size=queries)
    chance_QK = np.array([[0.9, 0.5, 0.7], [0.1, 0.5, 0.9]])[topic_Q]
    score_QK = (generator.random((queries, 3)) < chance_QK).astype(np.float32)
    score_QK[generator.random((queries, 3)) < holes] = np.nan
    score_QK[:, 0] = np.nan_to_num(score_QK[:, 0])
    cost_QK = np.array([1.0, 4.0, 10.0]) * generator.uniform(0.8, 1.2, (queries, 3))
    features_QF = np.eye(2)[topic_Q] + 0.1 * generator.standard_normal((queries, 2))
    tasks = [f"topic {topic}" for topic in topic_Q]
    return build_data(score_QK, cost_QK, tasks, features_QF, split)
