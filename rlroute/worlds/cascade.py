"""A cascade over an outcome table: ask somebody, look at the answer, then stop or go on.

A task is a query of the table. Every step asks one of the table's candidates, and the look is paid
in full, or takes the answer in hand (`stop`, free). Nobody is asked twice, a pair without an
outcome (a hole) cannot be chosen, and after `max_looks`, or when nobody is left, the episode ends
by itself. The answer in hand is the last one, or with `keep: best_checked` the last one that passed
the check. What a look shows is in `rlroute.worlds.cascade_view`: the answer's length, and the
outcome of a check of declared accuracy and price; never the score. Without an answer in hand `stop`
is to skip: `skip_score` is earned with nothing paid, where `allow_skip` says so.

The check is a property of the answer: it is drawn by hash of (seed, query, candidate), so every
lane and every policy sees the same. All is known from the table, so an episode has no chance of its
own, and the world's seed changes nothing. The bound of a look is the candidate's largest cost in
the table: the cost of this very query is not known before.

Executors are `stop` and the candidates (`rlroute.worlds.cascade_table`, where the settings stand).

`CascadeLanes` runs thousands of lanes in NumPy; `CascadeWorld` is the same as a `World`.
"""

from __future__ import annotations

from typing import Self

import numpy as np

from rlroute.types import BoolArray, FloatArray, IntArray, Query, SplitName, Usage, UsdArray
from rlroute.worlds.cascade_table import CascadeConfig, CascadeTable, prepare_cascade
from rlroute.worlds.cascade_view import NOBODY, CascadeSeen
from rlroute.worlds.one_lane import OneLane

REST = 0  # the place of `stop` among the executors


class CascadeLanes:
    """The cascade as an `ArrayWorld`; `table` is the table where it was made ready before."""

    def __init__(self, config: CascadeConfig, table: CascadeTable | None = None) -> None:
        self.config, self.name, self.rest = config, "cascade", REST
        self.table = table or prepare_cascade(config)
        self.view = self.table.view
        self.horizon = self.view.max_looks
        self.feature_names = self.view.feature_names
        self.executors = self.table.executors
        self.executor_features_KD = self.table.executor_features_KD

    def list_tasks(self, split: SplitName) -> tuple[Query, ...]:
        """Return the queries of a split."""
        return self.table.splits[split].tasks

    def open_lanes(self, split: SplitName, lanes: int) -> None:
        """Make room for so many lanes."""
        self.split = self.table.splits[split]
        self.task_B = np.zeros(lanes, dtype=np.int64)
        self.seen = CascadeSeen.open(lanes, len(self.view.candidate_ids))

    def start_lanes(self, lane_N: IntArray, task_index_N: IntArray, seed_N: IntArray) -> None:
        """Start lanes on queries; the seeds change nothing."""
        self.task_B[lane_N] = task_index_N
        self.seen.clear(lane_N)

    def read_features(self) -> FloatArray:
        """Return what each lane shows now [B, W]."""
        split, task_B = self.split, self.task_B
        return self.view.read(split.features_QF[task_B], split.cluster_Q[task_B], self.seen)

    def find_legal(self) -> BoolArray:
        """Return who may act [B, 1 + K]: with an answer in hand `stop`, who has an outcome once."""
        stop_B = (self.seen.hand_B != NOBODY) | self.config.allow_skip
        open_BK = self.split.present_QK[self.task_B] & ~self.seen.asked_BK
        return np.concatenate([stop_B[:, None], open_BK], axis=1)

    def bound_costs_usd(self) -> UsdArray:
        """Return the largest cost of each candidate in the table [B, 1 + K]."""
        return np.broadcast_to(self.table.bound_usd_K, (len(self.task_B), len(self.executors)))

    def step_lanes(self, executor_B: IntArray) -> tuple[UsdArray, BoolArray, FloatArray]:
        """Look or stop in each lane; return cost in USD [B], done [B] and score [B].

        A look at a hole, which nothing may choose, would cost and score NaN.
        """
        split, seen = self.split, self.seen
        stopped_B = executor_B == REST
        lane_N = np.flatnonzero(~stopped_B)
        query_N, candidate_N = self.task_B[lane_N], executor_B[lane_N] - 1
        cost_B = np.zeros(len(executor_B), dtype=np.float64)
        cost_B[lane_N] = split.cost_usd_QK[query_N, candidate_N]
        seen.note(
            *(lane_N, candidate_N, split.passed_QK[query_N, candidate_N]),
            *(split.length_QK[query_N, candidate_N], cost_B[lane_N], self.config.keep),
        )
        open_BK = split.present_QK[self.task_B] & ~seen.asked_BK
        looked_B = seen.asked_BK.sum(axis=1) >= self.horizon
        done_B = stopped_B | looked_B | ~open_BK.any(axis=1)
        score_B = split.score_QK[self.task_B, np.maximum(seen.hand_B, 0)]
        score_B = np.where(seen.hand_B == NOBODY, self.config.skip_score, score_B)
        return cost_B, done_B, score_B.astype(np.float32)


class CascadeWorld(OneLane[CascadeLanes]):
    """The cascade as a `World`: one lane of `CascadeLanes`."""

    rest = REST

    def __init__(self, config: CascadeConfig, table: CascadeTable | None = None) -> None:
        super().__init__(CascadeLanes(config, table))
        self.table, self.view = self.lanes.table, self.lanes.view

    def fork(self) -> Self:
        """Return another lane over the same queries."""
        return type(self)(self.lanes.config, self.table)

    def bound_cost_usd(self, executor: int) -> float:
        """Return the executor's largest cost in the table, whatever the query."""
        return float(self.table.bound_usd_K[executor])

    def describe_start(self, task: Query) -> str:
        """Return the query."""
        return task.text

    def describe_step(self, executor: int) -> tuple[str, str]:
        """Return what the step showed, twice."""
        note = self.describe_look(executor) if executor != REST else "stopped"
        return note, note

    def describe_look(self, executor: int) -> str:
        """Say in words what a look showed."""
        split, where = self.lanes.split, (self.number, executor - 1)
        parts = [f"{self.executors[executor].id} answered"]
        if self.view.tokens_K is not None and np.isfinite(split.tokens_QK[where]):
            parts.append(f"with {split.tokens_QK[where]:.0f} tokens")
        if self.view.checker:
            parts.append("and passed the check" if split.passed_QK[where] else "and failed it")
        return " ".join(parts) + "."

    def read_usage(self, executor: int) -> Usage:
        """Return the tokens of an answer, 0 where the table does not know them."""
        if executor == REST:
            return Usage(0, 0)
        split, where = self.lanes.split, (self.number, executor - 1)
        counts = np.nan_to_num([split.prompt_tokens_QK[where], split.tokens_QK[where]])
        return Usage(int(counts[0]), int(counts[1]))
