"""Small streams for tests of online learners: topics, specialists and a known optimum."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rlroute.bandits.config import EventConfig
from rlroute.bandits.contexts import prepare_stream
from rlroute.bandits.stream import Stream, StreamData, make_stream
from rlroute.data.table import OutcomeTable
from rlroute.envs.single_turn import CostWeightConfig
from rlroute.types import Candidate, Prices, Query

TOPICS = 4
# rows: topics; columns: alpha, beta, gamma, omega. Gamma is fair everywhere, omega never any good.
TOPIC_SCORES = [
    [1.0, 0.0, 0.5, 0.1],
    [1.0, 0.0, 0.5, 0.1],
    [0.0, 1.0, 0.5, 0.1],
    [0.0, 1.0, 0.5, 0.1],
]
IDS = ("alpha", "beta", "gamma", "omega")
COSTS = (0.004, 0.004, 0.002, 0.001)


def make_data(
    score_QK: npt.ArrayLike,
    cost_usd_K: Sequence[float] = COSTS,
    ids: Sequence[str] = IDS,
    present_QK: npt.ArrayLike | None = None,
    features_QE: npt.ArrayLike | None = None,
) -> StreamData:
    """Return a table as streams are drawn from; without features a query's topic is one-hot."""
    scores = np.array(score_QK, dtype=np.float32)
    queries, candidates = scores.shape
    present = np.ones(scores.shape, bool) if present_QK is None else np.array(present_QK)
    costs = np.broadcast_to(np.array(cost_usd_K, np.float32), scores.shape)
    features = np.eye(TOPICS)[np.arange(queries) % TOPICS] if features_QE is None else features_QE
    table = OutcomeTable(
        name="topics",
        queries=tuple(Query(f"q{q:03}", f"question {q}", f"topic{q % 4}") for q in range(queries)),
        candidates=tuple(Candidate(i, Prices(1.0, 4.0)) for i in ids),
        score_QK=np.where(present, scores, np.float32(np.nan)),
        cost_usd_QK=np.where(present, costs, np.float32(np.nan)),
        present_QK=present,
        prompt_tokens_QK=np.full(scores.shape, 10, np.float32),
        completion_tokens_QK=np.full(scores.shape, 10, np.float32),
        latency_seconds_QK=np.full(scores.shape, np.nan, np.float32),
        split_Q=np.array(["train"] * queries),
    )
    assert len(ids) == candidates
    return prepare_stream(table, np.array(features, np.float32), dimension=8, clusters=4, seed=0)


def make_topics(queries: int = 80) -> StreamData:
    """Return queries of four topics; who is right follows from the topic alone."""
    return make_data(np.array(TOPIC_SCORES)[np.arange(queries) % TOPICS])


def stream_topics(
    length: int = 1200,
    events: Sequence[EventConfig] = (),
    *,
    seed: int = 0,
    weight: float = 0.1,
    data: StreamData | None = None,
) -> Stream:
    """Return a stream over the topics at one cost weight."""
    return make_stream(
        data or make_topics(),
        length=length,
        seed=seed,
        events=events,
        weights=CostWeightConfig(min=weight, max=weight),
    )
