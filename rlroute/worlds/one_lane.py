"""An array world as a `World`: one lane of it, with words for what its arrays show.

What it is: `OneLane` starts, steps and checks; a world of its own says what a state reads like
(`describe_start`, `describe_step`), what a step used (`read_usage`), and who should act (`advise`).
Executors act by themselves there: nothing is asked behind a pool. Tasks are found by "split" and
"number" of their metadata, the latter being their place in the split.

What it leaves out: the arrays, which stand beside each world (`chain`, `cascade`, `query_session`).

How to use: `class ChainWorld(OneLane[ChainLanes])`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

import numpy as np

from rlroute.types import SPLITS, Call, Query, Reply, SplitName, Usage
from rlroute.worlds.base import ArrayWorld, WorldState, WorldStep

Lanes = TypeVar("Lanes", bound=ArrayWorld)


class OneLane(ABC, Generic[Lanes]):
    """One lane of an array world; equal tasks, seeds and executors give its episodes."""

    def __init__(self, lanes: Lanes) -> None:
        self.lanes = lanes
        self.name, self.horizon = lanes.name, lanes.horizon
        self.executors = lanes.executors
        self.executor_features_KD = lanes.executor_features_KD
        self.feature_names = lanes.feature_names
        self.number = 0  # of the task in its split
        self.done = True

    def list_tasks(self, split: SplitName) -> tuple[Query, ...]:
        """Return the tasks of a split."""
        return self.lanes.list_tasks(split)

    def reset(self, task: Query, seed: int) -> WorldState:
        """Start a task."""
        split = next(name for name in SPLITS if name == task.metadata["split"])
        self.number = int(task.metadata["number"])
        self.lanes.open_lanes(split, 1)
        self.lanes.start_lanes(np.array([0]), np.array([self.number]), np.array([seed]))
        self.done = False
        return self.show(self.describe_start(task))

    def show(self, text: str) -> WorldState:
        """Return what is seen now, with a text."""
        return WorldState(text, self.lanes.read_features()[0], self.lanes.find_legal()[0])

    def bound_cost_usd(self, executor: int) -> float:
        """Return what the executor's next step can cost at most, in USD."""
        return float(self.lanes.bound_costs_usd()[0, executor])

    def request(self, executor: int) -> Call | None:
        """Return None: executors act by themselves."""
        return None

    def step(self, executor: int, reply: Reply | None) -> WorldStep:
        """Let an executor take the next step.

        Raises:
            ValueError: the episode is done, or the executor may not act here.
        """
        inside = 0 <= executor < len(self.executors)
        if self.done or not inside or not self.lanes.find_legal()[0, executor]:
            raise ValueError(f"executor {executor} cannot act here")
        usage = self.read_usage(executor)
        cost_B, done_B, score_B = self.lanes.step_lanes(np.array([executor]))
        self.done = bool(done_B[0])
        text, note = self.describe_step(executor)
        return WorldStep(
            state=self.show(text),
            usage=usage,
            cost_usd=float(cost_B[0]),
            done=self.done,
            score=float(score_B[0]),
            note=note,
        )

    @abstractmethod
    def describe_start(self, task: Query) -> str:
        """Return the text of the first state."""

    @abstractmethod
    def read_usage(self, executor: int) -> Usage:
        """Return the tokens of the step that the executor is about to take."""

    @abstractmethod
    def describe_step(self, executor: int) -> tuple[str, str]:
        """Return the text of the state after the executor's step, and the step's note."""

    def advise(self) -> int | None:
        """Return None: who acts best is not known, unless a world says so."""
        return None
