"""What a task world is: tasks of many steps, and executors of different skill and price.

    state = world.reset(task, seed)
    call  = world.request(executor)        # what an executor behind a pool is to be sent, or None
    step  = world.step(executor, reply)    # what its step changed and cost, and whether it ended

`rlroute.envs.step_budget` puts budget, mask and reward around a world; a world knows nothing of
them. It is deterministic: equal tasks, seeds, executors and replies give equal steps, so an episode
can be replayed from the list of its executors. All chance comes from `rlroute.seeding`.

One world object is one lane; `fork` gives another lane over the same tasks. `ArrayWorld` is the
same for thousands of lanes at once, for worlds that need nothing but arithmetic.

What it leaves out: waiting. Executors that live behind a pool are asked by the rollout driver.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, Self, runtime_checkable

import numpy as np

from rlroute.types import (
    BoolArray,
    Call,
    Candidate,
    FloatArray,
    IntArray,
    Query,
    Reply,
    SplitName,
    Usage,
    UsdArray,
)

NOMINAL_USAGE = Usage(prompt_tokens=1000, completion_tokens=100)  # what prices are compared at
DESCRIPTION_WIDTH = 3


@dataclass(frozen=True)
class WorldState:
    """What is seen before a step.

    `text` is what is new since the state before (at the start: the task), in few words: a language
    model reads the states of an episode one after the other. `features_W` is all that a small
    network sees of the world. `legal_K` is False for executors that may not act here.
    """

    text: str
    features_W: FloatArray
    legal_K: BoolArray


@dataclass(frozen=True)
class WorldStep:
    """What an executor's step led to.

    `score` in [0, 1] is what the task has earned if it ends now. `usage` and `cost_usd` are those
    of the executor's own work on this step. `note` says in a few words what it did.
    """

    state: WorldState
    usage: Usage
    cost_usd: float
    done: bool
    score: float
    note: str = ""


class WorldFacts(Protocol):
    """What both forms of a world say of themselves.

    `executors` stand in the order of their prices, the cheapest first; `executor_features_KD`
    describes them for a policy (`describe_executors`, and columns of the world's own).
    `feature_names` has a name for each feature; "confidence", where it is among them, is the last
    executor's confidence in its own step (1 at the start). An episode that is not done after
    `horizon` steps ends there.
    """

    @property
    def name(self) -> str:
        """The world's name."""

    @property
    def executors(self) -> tuple[Candidate, ...]:
        """Who can take a step."""

    @property
    def executor_features_KD(self) -> FloatArray:
        """What describes them [K, D]."""

    @property
    def feature_names(self) -> tuple[str, ...]:
        """A name for each of the world's features."""

    @property
    def horizon(self) -> int:
        """How many steps an episode has at most."""

    def list_tasks(self, split: SplitName) -> tuple[Query, ...]:
        """Return the tasks of a split, always in the same order; `Query.task` is a task's kind."""


@runtime_checkable
class RestingWorld(Protocol):
    """A world where somebody takes what there is and ends the episode, for those who have acted.

    A baseline that would ask an executor who may not act asks `rest` instead, where that one may:
    "always large" is then large and the end, not everybody from the dearest down.
    """

    @property
    def rest(self) -> int:
        """The index of that executor."""


@runtime_checkable
class EarningWorld(Protocol):
    """A world whose score is earned step by step and stays earned when the budget runs out.

    There the environment pays each step what it adds to the score. In all other worlds the outcome
    falls due at the end, and a budget that ran out is a failure.
    """

    @property
    def earns_by_step(self) -> Literal[True]:
        """That it does."""


class World(WorldFacts, Protocol):
    """One lane of a world; see the module's text."""

    def fork(self) -> Self:
        """Return another lane over the same tasks."""

    def reset(self, task: Query, seed: int) -> WorldState:
        """Start a task; the seed decides all chance of the episode."""

    def bound_cost_usd(self, executor: int) -> float:
        """Return an upper bound of what the executor's next step can cost, in USD."""

    def request(self, executor: int) -> Call | None:
        """Return what an executor behind a pool is to be sent; None where it acts by itself."""

    def step(self, executor: int, reply: Reply | None) -> WorldStep:
        """Let the executor take the next step; `reply` answers `request`, and never failed.

        Raises:
            ValueError: the executor may not act here, or the episode is done.
        """

    def advise(self) -> int | None:
        """Return the executor that the best policy would choose here; None where unknown."""


class ArrayWorld(WorldFacts, Protocol):
    """B lanes at once; every array has the lanes on its first axis.

    Lane b of an array world makes the same episode as a `World` from the same task, seed and
    executors.
    """

    def open_lanes(self, split: SplitName, lanes: int) -> None:
        """Make room for so many lanes; every one has to be started before it is used."""

    def start_lanes(self, lane_N: IntArray, task_index_N: IntArray, seed_N: IntArray) -> None:
        """Start lane `lane_N[n]` on task `task_index_N[n]` of the split."""

    def read_features(self) -> FloatArray:
        """Return what each lane shows now [B, W]."""

    def find_legal(self) -> BoolArray:
        """Return who may act in each lane [B, K], as `WorldState.legal_K` says it of one."""

    def bound_costs_usd(self) -> UsdArray:
        """Return upper bounds of the next step's cost [B, K]; of done lanes, those of the last."""

    def step_lanes(self, executor_B: IntArray) -> tuple[UsdArray, BoolArray, FloatArray]:
        """Take a step in each lane; return cost in USD [B], done [B] and score [B].

        The score is what the task has earned if it ends now.
        """


def describe_executors(executors: tuple[Candidate, ...]) -> FloatArray:
    """Return features [K, 3]: 1, log10 of the price over the cheapest one's, rank in [0, 1].

    Prices are compared at 1,000 prompt and 100 completion tokens; a free executor counts as a
    thousandth of the cheapest priced one.
    """
    usage = NOMINAL_USAGE
    cost_K = np.array(
        [one.prices.compute_cost(usage.prompt_tokens, usage.completion_tokens) for one in executors]
    )
    priced_K = cost_K[cost_K > 0]
    least = float(priced_K.min()) if len(priced_K) else 1.0
    ratio_K = np.log10(np.maximum(cost_K, least / 1000) / least)
    rank_K = np.arange(len(executors)) / max(len(executors) - 1, 1)
    return np.stack([np.ones(len(executors)), ratio_K, rank_K], axis=1).astype(np.float32)
