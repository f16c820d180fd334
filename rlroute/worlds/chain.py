"""The critical-step chain: a world of arithmetic whose best policy is known in closed form.

Each task has `horizon` steps, some of them critical, which the router sees when it comes to them. A
critical step succeeds with a probability that depends on the executor, every other step always
does, and the task is solved if all its steps succeed. An episode goes on to the horizon even where
a step has failed. With success probabilities p_k, m critical steps and a policy that takes
executor k with probability q_k whatever it sees, a task is solved with probability
(sum over k of q_k * p_k)^m; the ideal router spends the dear executor on critical steps alone.

Tasks are of kinds, in given shares: the default is the mixture of easy, hard and intractable tasks.
Kinds are not shown, but a hint is: 1 with a probability that depends on the kind.

| feature         | what                                    |
| --------------- | --------------------------------------- |
| critical        | 1 if this step is critical              |
| hint            | the task's hint, 0 or 1                 |
| critical_hint   | their product                           |

`ChainLanes` runs thousands of lanes in NumPy; `ChainWorld` is the same as a `World`. Costs are the
prices of a nominal step of 3,000 prompt and 200 completion tokens.

Source: ours, as a test bed for the method in `rlroute.rewards.boundary`.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from rlroute.config import StrictModel
from rlroute.seeding import draw_uniform
from rlroute.types import (
    BoolArray,
    Candidate,
    FloatArray,
    IntArray,
    Prices,
    Query,
    SplitName,
    Usage,
    UsdArray,
)
from rlroute.worlds.base import describe_executors
from rlroute.worlds.one_lane import OneLane

STEP_USAGE = Usage(prompt_tokens=3000, completion_tokens=200)
TaskTable = tuple[IntArray, FloatArray, BoolArray]
FEATURES = ("critical", "hint", "critical_hint")


class ChainExecutor(StrictModel):
    """An executor of the chain; prices in USD per million tokens."""

    id: str = Field(min_length=1)
    input: float = Field(ge=0, allow_inf_nan=False)
    output: float = Field(ge=0, allow_inf_nan=False)


class ChainKind(StrictModel):
    """A kind of task: its share, its critical steps, and how executors (in order) do on them.

    `hint` is the probability that the task's hint is 1.
    """

    name: str = Field(min_length=1)
    share: float = Field(gt=0, allow_inf_nan=False)
    critical_steps: int = Field(ge=0)
    success: tuple[float, ...]
    hint: float = Field(ge=0, le=1)


MIXTURE = (
    ChainKind(name="easy", share=0.4, critical_steps=2, success=(0.97, 0.97), hint=0.25),
    ChainKind(name="hard", share=0.4, critical_steps=3, success=(0.15, 0.9), hint=0.85),
    ChainKind(name="intractable", share=0.2, critical_steps=2, success=(0.0, 0.02), hint=0.25),
)
EXECUTORS = (
    ChainExecutor(id="small", input=0.4, output=1.6),
    ChainExecutor(id="large", input=2.0, output=8.0),
)


class ChainConfig(StrictModel):
    """A chain world; `tasks` in train, val and test. Executors stand in the order of their prices.

    `seed` decides the tasks: kinds, hints and where critical steps are.
    """

    kind: Literal["chain"] = "chain"
    horizon: int = Field(default=10, ge=1)
    executors: tuple[ChainExecutor, ...] = Field(default=EXECUTORS, min_length=2)
    kinds: tuple[ChainKind, ...] = Field(default=MIXTURE, min_length=1)
    train: int = Field(default=1000, ge=1)
    val: int = Field(default=200, ge=1)
    test: int = Field(default=1000, ge=1)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def check_order(self) -> ChainConfig:
        """Refuse executors that do not stand in the order of their prices."""
        usage = STEP_USAGE
        cost_K = [
            Prices(one.input, one.output).compute_cost(usage.prompt_tokens, usage.completion_tokens)
            for one in self.executors
        ]
        for k, (before, after) in enumerate(pairwise(cost_K)):
            if after < before:
                ids = self.executors[k].id, self.executors[k + 1].id
                raise ValueError(f"executors: '{ids[1]}' is cheaper than '{ids[0]}' before it")
        return self

    @model_validator(mode="after")
    def check_names(self) -> ChainConfig:
        """Refuse names that do not tell executors or kinds apart."""
        for field, names in (
            ("executors", [one.id for one in self.executors]),
            ("kinds", [kind.name for kind in self.kinds]),
        ):
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"{field}: two are called '{name}'")
        return self

    @model_validator(mode="after")
    def check_kinds(self) -> ChainConfig:
        """Refuse probabilities that do not fit the executors, and steps that do not fit in."""
        for kind in self.kinds:
            if len(kind.success) != len(self.executors):
                raise ValueError(
                    f"kinds: '{kind.name}' has {len(kind.success)} success probabilities for "
                    f"{len(self.executors)} executors"
                )
            if not all(0 <= success <= 1 for success in kind.success):
                raise ValueError(f"kinds: '{kind.name}': success must be from 0 to 1")
            if kind.critical_steps > self.horizon:
                raise ValueError(
                    f"kinds: '{kind.name}' has more critical steps than the horizon "
                    f"({self.horizon})"
                )
        return self


class ChainLanes:
    """The chain as an `ArrayWorld`; `tables` are the tasks where they were drawn before."""

    def __init__(self, config: ChainConfig, tables: Mapping[str, TaskTable] | None = None) -> None:
        self.config = config
        self.name = "chain"
        self.horizon = config.horizon
        self.feature_names = FEATURES
        self.executors = tuple(
            Candidate(one.id, Prices(one.input, one.output)) for one in config.executors
        )
        self.executor_features_KD = describe_executors(self.executors)
        self.step_cost_K = np.array(
            [
                one.prices.compute_cost(STEP_USAGE.prompt_tokens, STEP_USAGE.completion_tokens)
                for one in self.executors
            ]
        )
        self.success_kindK = np.array([kind.success for kind in config.kinds])
        self.tables = tables or {
            split: self.draw_tasks(split, count)
            for split, count in (
                ("train", config.train),
                ("val", config.val),
                ("test", config.test),
            )
        }

    def draw_tasks(self, split: str, count: int) -> TaskTable:
        """Return kind [Q], hint [Q] and critical steps [Q, T] of the tasks of a split."""
        config, task_Q = self.config, np.arange(count)
        share = np.array([kind.share for kind in config.kinds]).cumsum()
        uniform_Q = draw_uniform(config.seed, "chain", split, "kind", task_Q)
        kind_Q = np.searchsorted(share / share[-1], uniform_Q, side="right").astype(np.int64)
        hint_Q = draw_uniform(config.seed, "chain", split, "hint", task_Q)
        hints = np.array([kind.hint for kind in config.kinds])
        place_QT = draw_uniform(
            *(config.seed, "chain", split, "places", task_Q[:, None], np.arange(config.horizon))
        )
        rank_QT = place_QT.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
        steps = np.array([kind.critical_steps for kind in config.kinds])
        return (
            kind_Q,
            (hint_Q < hints[kind_Q]).astype(np.float32),
            rank_QT < steps[kind_Q][:, None],
        )

    def list_tasks(self, split: SplitName) -> tuple[Query, ...]:
        """Return the tasks of a split; `Query.task` is the kind."""
        return tuple(
            Query(
                id=f"chain-{self.config.seed}-{split}-{number}",
                text="A chain of steps, some critical.",
                task=self.config.kinds[kind].name,
                dataset=self.name,
                metadata={"split": split, "number": str(number)},
            )
            for number, kind in enumerate(self.tables[split][0])
        )

    def open_lanes(self, split: SplitName, lanes: int) -> None:
        """Make room for so many lanes."""
        self.kind_Q, self.hint_Q, self.critical_QT = self.tables[split]
        self.task_B = np.zeros(lanes, dtype=np.int64)
        self.seed_B = np.zeros(lanes, dtype=np.int64)
        self.turn_B = np.zeros(lanes, dtype=np.int64)
        self.solved_B = np.ones(lanes, dtype=np.bool_)

    def start_lanes(self, lane_N: IntArray, task_index_N: IntArray, seed_N: IntArray) -> None:
        """Start lane `lane_N[n]` on task `task_index_N[n]`."""
        self.task_B[lane_N], self.seed_B[lane_N] = task_index_N, seed_N
        self.turn_B[lane_N], self.solved_B[lane_N] = 0, True

    def find_critical(self) -> BoolArray:
        """Return whether the step of each lane is critical [B]; False where it is done."""
        here_B = np.minimum(self.turn_B, self.horizon - 1)
        return self.critical_QT[self.task_B, here_B] & (self.turn_B < self.horizon)

    def read_features(self) -> FloatArray:
        """Return what each lane shows now [B, 3]; after the last step the flags are 0."""
        feature_BW = np.empty((len(self.task_B), len(FEATURES)), dtype=np.float32)
        feature_BW[:, 0] = self.find_critical()
        feature_BW[:, 1] = self.hint_Q[self.task_B]
        feature_BW[:, 2] = feature_BW[:, 0] * feature_BW[:, 1]
        return feature_BW

    def find_legal(self) -> BoolArray:
        """Return that everybody may act [B, K]."""
        return np.ones((len(self.task_B), len(self.executors)), dtype=np.bool_)

    def bound_costs_usd(self) -> UsdArray:
        """Return the cost of the next step [B, K]: it is known before."""
        return np.broadcast_to(self.step_cost_K, (len(self.task_B), len(self.step_cost_K)))

    def step_lanes(self, executor_B: IntArray) -> tuple[UsdArray, BoolArray, FloatArray]:
        """Take a step in each lane; return cost in USD [B], done [B] and score [B].

        A lane is only solved when it is done: before that its score is 0.
        """
        success_B = self.success_kindK[self.kind_Q[self.task_B], executor_B]
        uniform_B = draw_uniform("chain", self.seed_B, self.turn_B)
        self.solved_B &= (uniform_B < success_B) | ~self.find_critical()
        self.turn_B += 1
        done_B = self.turn_B == self.horizon
        return self.step_cost_K[executor_B], done_B, (self.solved_B & done_B).astype(np.float32)


class ChainWorld(OneLane[ChainLanes]):
    """The chain as a `World`: one lane of `ChainLanes`."""

    def __init__(self, config: ChainConfig, tables: Mapping[str, TaskTable] | None = None) -> None:
        super().__init__(ChainLanes(config, tables))
        self.intact = True

    def fork(self) -> Self:
        """Return another lane over the same tasks."""
        return type(self)(self.lanes.config, self.lanes.tables)

    def bound_cost_usd(self, executor: int) -> float:
        """Return what the next step costs: it is known before the task is."""
        return float(self.lanes.step_cost_K[executor])

    def describe_start(self, task: Query) -> str:
        """Return the task, its hint and what the first step is."""
        self.intact = True
        hint = " It looks hard." if self.lanes.hint_Q[self.number] else ""
        return f"{task.text}{hint} {self.describe_place()}"

    def describe_place(self) -> str:
        """Say what the step at hand is."""
        return f"This step is {'critical' if self.lanes.find_critical()[0] else 'simple'}."

    def read_usage(self, executor: int) -> Usage:
        """Return the nominal step's tokens."""
        return STEP_USAGE

    def describe_step(self, executor: int) -> tuple[str, str]:
        """Return what the next step is, and whether this one broke the task."""
        broken = self.intact and not self.lanes.solved_B[0]
        self.intact = bool(self.lanes.solved_B[0])
        return self.describe_place(), "failed" if broken else "done"

    def advise(self) -> int | None:
        """Return the best executor on critical steps (the cheapest of them), else the cheapest.

        On kinds that nobody solves half the time it is the cheapest throughout.
        """
        lanes = self.lanes
        success_K = lanes.success_kindK[lanes.kind_Q[lanes.task_B[0]]]
        if not lanes.find_critical()[0] or success_K.max() < 0.5:
            return 0
        return int(success_K.argmax())
