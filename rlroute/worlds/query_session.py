"""Sessions of several queries under one budget: which candidate answers the query at hand.

What it is: a world over an outcome table. A task is a session, T queries of one split; each step
shows the embedding of one query and asks one candidate, who is paid what the table says. The
session's score is the mean over its T queries and is never shown; a query that the budget could not
serve any more counts 0. What was earned stays earned (`rlroute.worlds.base.EarningWorld`).

| feature       | what                                                                            |
| ------------- | ------------------------------------------------------------------------------- |
| embedding_0.. | the query's embedding                                                           |
| dearest_bound | log of what the dearest candidate can cost here, over the cost reference        |

How many queries and how much money are left stand in the budget's features (`envs.budget`).
`executor_features_KD` holds the three columns of every world and those of a single-turn router
(`rlroute.data.routing_data.build_candidate_features`). A hole is illegal.

`QuerySessionLanes` runs thousands of sessions in NumPy; `QuerySessionWorld` is one lane of it.

What it leaves out: tables, bounds of cost, the draw of sessions (`query_session_tasks`).

How to use: `gymnasium.make_vec("rlroute/StepBudget-v0", 64, world={"kind": "query_session",
"table": "pocket"}, budget={"unit": "usd", "caps": [1e-5]})`.
"""

from __future__ import annotations

from typing import Self

import numpy as np

from rlroute.types import BoolArray, FloatArray, IntArray, Query, SplitName, Usage, UsdArray
from rlroute.worlds.one_lane import OneLane
from rlroute.worlds.query_session_tasks import (
    QuerySessionConfig,
    SessionData,
    load_sessions,
    measure_dearest,
)

DEAREST_BOUND = "dearest_bound"


class QuerySessionLanes:
    """Sessions as an `ArrayWorld`; `data` is what was loaded before."""

    earns_by_step = True

    def __init__(self, config: QuerySessionConfig, data: SessionData | None = None) -> None:
        self.config = config
        self.name = "query_session"
        self.horizon = config.queries
        self.data = load_sessions(config) if data is None else data
        self.executors = self.data.executors
        self.executor_features_KD = self.data.executor_features_KD
        width = self.data.splits["train"].features_QF.shape[1]
        self.feature_names = (*(f"embedding_{f}" for f in range(width)), DEAREST_BOUND)

    def list_tasks(self, split: SplitName) -> tuple[Query, ...]:
        """Return the sessions of a split; `Query.task` is the area."""
        return tuple(
            Query(
                id=f"{self.data.splits[split].table.name}-{split}-{number}",
                text=f"A session of {self.horizon} queries.",
                task=area,
                dataset=self.name,
                metadata={"split": split, "number": str(number)},
            )
            for number, area in enumerate(self.data.splits[split].area_S)
        )

    def open_lanes(self, split: SplitName, lanes: int) -> None:
        """Make room for so many lanes."""
        self.split = self.data.splits[split]
        bounds, reference = self.split.bound_usd_QK, self.data.cost_reference_usd
        self.log_dearest_Q = measure_dearest(bounds, reference)
        self.task_B = np.zeros(lanes, dtype=np.int64)
        self.turn_B = np.zeros(lanes, dtype=np.int64)
        self.earned_B = np.zeros(lanes, dtype=np.float64)

    def start_lanes(self, lane_N: IntArray, task_index_N: IntArray, seed_N: IntArray) -> None:
        """Start lane `lane_N[n]` on session `task_index_N[n]`; there is no chance to be seeded."""
        self.task_B[lane_N] = task_index_N
        self.turn_B[lane_N], self.earned_B[lane_N] = 0, 0.0

    def find_queries(self) -> IntArray:
        """Return the row of each lane's query [B]; of done lanes the last one's."""
        here_B = np.minimum(self.turn_B, self.horizon - 1)
        return np.asarray(self.split.session_ST[self.task_B, here_B])

    def read_features(self) -> FloatArray:
        """Return what each lane shows now [B, F + 1]."""
        query_B = self.find_queries()
        features_BF = self.split.features_QF[query_B]
        dearest_B1 = self.log_dearest_Q[query_B][:, None].astype(np.float32)
        return np.concatenate([features_BF, dearest_B1], axis=1)

    def find_legal(self) -> BoolArray:
        """Return who has an outcome within its bound [B, K]."""
        return np.asarray(self.split.legal_QK[self.find_queries()])

    def bound_costs_usd(self) -> UsdArray:
        """Return what the next call can cost at most [B, K]."""
        return np.asarray(self.split.bound_usd_QK[self.find_queries()])

    def step_lanes(self, executor_B: IntArray) -> tuple[UsdArray, BoolArray, FloatArray]:
        """Ask a candidate in each lane; return cost in USD [B], done [B] and score [B].

        Raises:
            ValueError: a candidate is asked who may not act.
        """
        query_B, split = self.find_queries(), self.split
        for lane in np.flatnonzero(~split.legal_QK[query_B, executor_B])[:1]:
            raise ValueError(f"executor {int(executor_B[lane])} of lane {lane} cannot act here")
        self.earned_B += split.score_QK[query_B, executor_B]
        self.turn_B += 1
        score_B = (self.earned_B / self.horizon).astype(np.float32)
        return split.cost_usd_QK[query_B, executor_B], self.turn_B >= self.horizon, score_B


class QuerySessionWorld(OneLane[QuerySessionLanes]):
    """Sessions as a `World`: one lane of `QuerySessionLanes`."""

    earns_by_step = True

    def __init__(self, config: QuerySessionConfig, data: SessionData | None = None) -> None:
        super().__init__(QuerySessionLanes(config, data))
        self.config, self.data = config, self.lanes.data

    def fork(self) -> Self:
        """Return another lane over the same sessions."""
        return type(self)(self.config, self.data)

    def describe_start(self, task: Query) -> str:
        """Return what the session is, and its first query."""
        return f"{task.text} {self.describe_place()}"

    def describe_place(self) -> str:
        """Return the query at hand."""
        lanes = self.lanes
        query = lanes.split.table.queries[lanes.find_queries()[0]]
        return f"Query {int(lanes.turn_B[0]) + 1} of {self.horizon}: {query.text}"

    def describe_step(self, executor: int) -> tuple[str, str]:
        """Return the next query, or that there is none."""
        return "The session is over." if self.done else self.describe_place(), "answered"

    def read_usage(self, executor: int) -> Usage:
        """Return the tokens of an answer here; `estimated` where the table lacks them."""
        table = self.lanes.split.table
        query, column = self.lanes.find_queries()[0], self.data.column_K[executor]
        prompt = table.prompt_tokens_QK[query, column]
        completion = table.completion_tokens_QK[query, column]
        if np.isnan(prompt) or np.isnan(completion):
            return Usage(0, 0, estimated=True)
        return Usage(int(prompt), int(completion))
