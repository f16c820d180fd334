"""Tables small enough to see what a baseline has to pick, shared by the tests of baselines."""

from __future__ import annotations

import numpy as np

from rlroute.data.routing_data import RoutingData
from rlroute.data.table import OutcomeTable
from rlroute.types import Candidate, Prices, Query


def build(score_QK, cost_QK, features_QF, tasks="") -> RoutingData:
    """Candidates a, b, c; NaN is a hole; costs in USD, whose reference is 10; a letter per task."""
    score_QK = np.asarray(score_QK, np.float32)
    present_QK = np.isfinite(score_QK)
    unknown_QK = np.full(score_QK.shape, np.nan, np.float32)
    table = OutcomeTable(
        name="example",
        queries=tuple(
            Query(f"q{q}", f"text {q}", task=tasks[q : q + 1]) for q in range(len(score_QK))
        ),
        candidates=tuple(Candidate(name, Prices(1, 1)) for name in "abc"[: score_QK.shape[1]]),
        score_QK=score_QK,
        cost_usd_QK=np.where(present_QK, np.asarray(cost_QK, np.float32), np.nan),
        present_QK=present_QK,
        prompt_tokens_QK=unknown_QK,
        completion_tokens_QK=unknown_QK,
        latency_seconds_QK=unknown_QK,
        split_Q=np.array(["train"] * len(score_QK)),
    )
    features_QF = np.asarray(features_QF, np.float32)
    return RoutingData(table, features_QF, np.zeros((score_QK.shape[1], 1), np.float32), 10.0)


def build_topics(queries: int, seed: int, holes: float = 0.0) -> RoutingData:
    """Candidate a (cost 1) solves the first topic, c (cost 10) the second, b nothing."""
    generator = np.random.default_rng(seed)
    topic_Q = np.arange(queries) % 2
    score_QK = np.stack([topic_Q == 0, np.zeros(queries), topic_Q == 1], axis=1).astype(float)
    score_QK[generator.random(score_QK.shape) < holes] = np.nan
    score_QK[~np.isfinite(score_QK).any(1), 1] = 0
    features_QF = np.eye(2)[topic_Q] + 0.05 * generator.standard_normal((queries, 2))
    return build(score_QK, np.tile([1.0, 4.0, 10.0], (queries, 1)), features_QF)


def list_picks(policy, data, cost_weight=0.0):
    return policy.compute_probabilities(data, cost_weight).argmax(1).tolist()
