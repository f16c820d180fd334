"""Baselines of cascades over a table: one look and stop, look and go on by the check, hindsight.

| baseline       | what                                                                           |
| -------------- | ------------------------------------------------------------------------------ |
| TaskPicks      | one candidate for each task, chosen at each cost weight, then `stop`: any      |
|                | one-shot router, or the oracle of hindsight                                    |
| CheckedCascade | a fixed order, cheap to dear, until an answer passes the check                 |
| LookAhead      | the best estimate one step ahead (`policies.step_scorer`), nothing learnt      |

`plan_cascade` chooses the order of a `CheckedCascade` on train, as `PaidProbes` does it, with the
check in the place of the true score.

What it leaves out: the world (`rlroute.worlds.cascade`), so `rest` and columns are handed over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from rlroute.evaluation.metrics import TIE_TOLERANCE
from rlroute.policies.decision import Decisions
from rlroute.policies.step_baselines import take_for_sure
from rlroute.policies.step_scorer import EstimateColumns
from rlroute.policies.stepwise import StepInputs
from rlroute.types import BoolArray, FloatArray, IntArray


@dataclass
class TaskPicks:
    """One executor for each task of a split; `choose` returns them [Q] at a cost weight.

    After its look `rest` stands in for it (`StepInputs.rest`), so the episode ends.
    """

    choose: Callable[[float], IntArray]
    version: int = 0
    kept: dict[float, IntArray] = field(default_factory=dict)

    def start(self, lanes: int) -> None:
        """Do nothing: tasks are known by their index."""

    def decide(self, inputs: StepInputs) -> Decisions:
        """Choose the task's executor."""
        arm_B = np.zeros(len(inputs.lane_B), dtype=np.int64)
        for weight in np.unique(inputs.cost_weight_B):
            if float(weight) not in self.kept:
                self.kept[float(weight)] = self.choose(float(weight))
            row_N = np.flatnonzero(inputs.cost_weight_B == weight)
            arm_B[row_N] = self.kept[float(weight)][inputs.task_index_B[row_N]]
        return take_for_sure(arm_B, inputs)


@dataclass
class CheckedCascade:
    """Asks in the order that `plan` returns at a cost weight, until an answer passes the check.

    `confidence_column` is 1 where the answer in hand passed. Whoever may not act is passed over.
    """

    plan: Callable[[float], Sequence[int]]
    confidence_column: int
    version: int = 0
    turn_B: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def start(self, lanes: int) -> None:
        """Nothing was asked yet in any lane."""
        self.turn_B = np.zeros(lanes, dtype=np.int64)

    def decide(self, inputs: StepInputs) -> Decisions:
        """Ask the next of the plan, or stop."""
        assert inputs.rest is not None
        asked_B = self.turn_B[inputs.lane_B] > 0
        self.turn_B[inputs.lane_B] += 1
        passed_B = asked_B & (inputs.features_BF[:, self.confidence_column] > 0)
        arm_B = np.full(len(inputs.lane_B), inputs.rest)
        for weight in np.unique(inputs.cost_weight_B):
            own_B = ~passed_B & (inputs.cost_weight_B == weight)
            for arm in reversed(self.plan(float(weight))):
                arm_B = np.where(own_B & inputs.mask_BK[:, arm], arm, arm_B)
        return take_for_sure(arm_B, inputs)


@dataclass(frozen=True)
class LookAhead:
    """The largest expected score - cost weight * charge among the world's own estimates."""

    columns: EstimateColumns
    version: int = 0

    def start(self, lanes: int) -> None:
        """Do nothing: the estimates stand in the features."""

    def decide(self, inputs: StepInputs) -> Decisions:
        """Choose by the estimates; ties go to the first."""
        executors, where = inputs.mask_BK.shape[1], self.columns
        expected_BK = inputs.features_BF[:, where.expected : where.expected + executors]
        charge_BK = inputs.features_BF[:, where.charge : where.charge + executors]
        utility_BK = expected_BK - inputs.cost_weight_B[:, None] * charge_BK
        return take_for_sure(np.where(inputs.mask_BK, utility_BK, -np.inf).argmax(axis=1), inputs)


# --- The order of a cascade -----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class CheckedAnswers:
    """Outcomes of Q queries and K candidates, from cheap to dear, and what the check said of them.

    `cost_QK` is in the reward's unit of cost; NaN, as the score, where `present_QK` is False.
    """

    score_QK: FloatArray
    cost_QK: npt.NDArray[np.float64]
    present_QK: BoolArray
    passed_QK: BoolArray


def plan_cascade(answers: CheckedAnswers, cost_weight: float, looks: int) -> tuple[int, ...]:
    """Return whom to ask, cheap to dear, until an answer passes: at most `looks` candidates.

    It is built up by adding the one that raises mean utility most, as long as one does.
    """
    plan: tuple[int, ...] = ()
    best = -np.inf
    while len(plan) < looks:
        longer = [
            tuple(sorted((*plan, k))) for k in range(answers.score_QK.shape[1]) if k not in plan
        ]
        found = [measure_plan(answers, one, cost_weight) for one in longer]
        if not found or max(found) <= best + TIE_TOLERANCE:
            break
        best = max(found)
        plan = longer[found.index(best)]
    return plan


def measure_plan(answers: CheckedAnswers, plan: Sequence[int], cost_weight: float) -> float:
    """Return the mean utility of asking in this order until an answer passes.

    Queries without an outcome of anybody in the plan count nothing.
    """
    queries = len(answers.score_QK)
    score_Q, cost_Q = np.full(queries, np.nan), np.zeros(queries)
    open_Q = np.ones(queries, dtype=np.bool_)
    for k in plan:
        asked_Q = open_Q & answers.present_QK[:, k]
        score_Q[asked_Q] = answers.score_QK[asked_Q, k]
        cost_Q[asked_Q] += answers.cost_QK[asked_Q, k]
        open_Q &= ~(asked_Q & answers.passed_QK[:, k])
    known_Q = ~np.isnan(score_Q)
    if not known_Q.any():
        return -np.inf
    return float((score_Q - cost_weight * cost_Q)[known_Q].mean())
