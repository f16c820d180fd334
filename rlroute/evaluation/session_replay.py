"""Playing sessions under total budgets when the outcome of every executor is known, or estimated.

What it is: one loop over turns for all sessions and budgets at once. A policy is any function of a
`Standing`: which sessions decide, at which turn, with what balance. What a turn costs and is worth
is looked up in `SessionOutcomes`: those of a made world are the truth; those of a log are what was
logged for the executor that took the turn and an estimate for the others (`fit_outcome_model`).

Both rest on the user's turns not depending on who answered: in a log that is an assumption.

What it leaves out: means and intervals over sessions (`rlroute.evaluation.session_results`).

How to use: `played = play_sessions(outcomes, budgets, choose, penalty=5.0, discount=0.99)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from rlroute.data.sessions import SessionArrays
from rlroute.evaluation.frontier import Float64Array
from rlroute.types import BoolArray, FloatArray, IntArray, RLRouteError

RIDGE = 1.0  # of the outcome model, for features of about unit variance


@dataclass(frozen=True)
class SessionOutcomes:
    """What each of K executors costs and is worth on each turn of S sessions of at most T turns."""

    valid_ST: BoolArray
    cost_STK: Float64Array
    quality_STK: Float64Array


@dataclass(frozen=True)
class Standing:
    """N sessions that decide now: their positions, the turn (from 0), balance and total budget."""

    session_N: IntArray
    turn: int
    balance_N: Float64Array
    budget_N: Float64Array


Chooser: TypeAlias = Callable[[Standing], IntArray]


@dataclass(frozen=True)
class PlayedSessions:
    """What a policy got from S sessions under M budgets each.

    `return_SM` is the discounted sum of quality less penalty, `cost_SM` what was paid (with the
    turn that led to bankruptcy), `calls_SMK` how often each executor was asked.
    """

    return_SM: Float64Array
    cost_SM: Float64Array
    bankrupt_SM: BoolArray
    calls_SMK: IntArray


def play_sessions(
    outcomes: SessionOutcomes,
    budgets: Sequence[float],
    choose: Chooser,
    *,
    penalty: float,
    discount: float,
) -> PlayedSessions:
    """Play every session under every total budget.

    A session ends with its last turn, or with the turn that takes its balance below zero
    (bankruptcy), which is paid, keeps its quality and costs `penalty`.
    """
    sessions, turns, executors = outcomes.cost_STK.shape
    lane_session_N = np.repeat(np.arange(sessions), len(budgets))
    budget_N = np.tile(np.asarray(budgets, dtype=np.float64), sessions)
    balance_N = budget_N.copy()
    return_N, bankrupt_N = np.zeros(len(budget_N)), np.zeros(len(budget_N), np.bool_)
    calls_NK = np.zeros((len(budget_N), executors), np.int64)
    for turn in range(turns):
        deciding = np.flatnonzero(outcomes.valid_ST[lane_session_N, turn] & ~bankrupt_N)
        if len(deciding) == 0:
            break
        session_N = lane_session_N[deciding]
        action_N = choose(Standing(session_N, turn, balance_N[deciding], budget_N[deciding]))
        calls_NK[deciding, action_N] += 1
        balance_N[deciding] -= outcomes.cost_STK[session_N, turn, action_N]
        bankrupt_N[deciding] = balance_N[deciding] < 0
        reward_N = outcomes.quality_STK[session_N, turn, action_N] - penalty * bankrupt_N[deciding]
        return_N[deciding] += discount**turn * reward_N
    shape = (sessions, len(budgets))
    return PlayedSessions(
        return_SM=return_N.reshape(shape),
        cost_SM=(budget_N - balance_N).reshape(shape),
        bankrupt_SM=bankrupt_N.reshape(shape),
        calls_SMK=calls_NK.reshape(*shape, executors),
    )


def always(executor: int) -> Chooser:
    """Return the policy that asks one executor for everything."""
    return lambda standing: np.full(len(standing.session_N), executor)


# --- Logs -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OutcomeModel:
    """Cost and quality of each executor as linear functions of a turn's features, by ridge.

    `weights_KF2` holds a row per feature and one for the constant; columns are cost and quality.
    Estimates stay within the range that was logged for the executor, `range_K22` (least, greatest).
    """

    weights_KF2: Float64Array
    range_K22: Float64Array

    def estimate(self, features_STF: FloatArray) -> tuple[Float64Array, Float64Array]:
        """Return estimated cost and quality [S, T, K] of turns with these features."""
        estimate_STK2 = np.einsum("stf,kfo->stko", add_constant(features_STF), self.weights_KF2)
        bounded_STK2 = estimate_STK2.clip(self.range_K22[:, 0], self.range_K22[:, 1])
        return bounded_STK2[..., 0], bounded_STK2[..., 1]


def add_constant(features: FloatArray) -> Float64Array:
    """Return features in float64 with a last column of ones."""
    return np.concatenate([features, np.ones((*features.shape[:-1], 1))], axis=-1, dtype=np.float64)


def fit_outcome_model(
    features_STF: FloatArray, logged: SessionArrays, executor_ids: Sequence[str]
) -> OutcomeModel:
    """Fit on the turns that each executor took.

    Raises:
        RLRouteError: an executor took no turn, so nothing is known of it.
    """
    weights, ranges = [], []
    for k, name in enumerate(executor_ids):
        taken_ST = logged.valid_ST & (logged.action_ST == k)
        if not taken_ST.any():
            raise RLRouteError(
                f"executor '{name}' took no turn of the training sessions: nothing can be learnt "
                "of it; remove it or log turns of it"
            )
        rows_NF = add_constant(features_STF[taken_ST])
        outcome_N2 = np.stack([logged.cost_ST[taken_ST], logged.quality_ST[taken_ST]], axis=1)
        shrink_FF = RIDGE * np.eye(rows_NF.shape[1])
        shrink_FF[-1, -1] = 1e-9  # the constant is free: without features it is the mean
        weights.append(np.linalg.solve(rows_NF.T @ rows_NF + shrink_FF, rows_NF.T @ outcome_N2))
        ranges.append([outcome_N2.min(axis=0), outcome_N2.max(axis=0)])
    return OutcomeModel(np.array(weights), np.array(ranges))


def impute_outcomes(
    model: OutcomeModel, features_STF: FloatArray, logged: SessionArrays
) -> SessionOutcomes:
    """Return logged outcomes where the log has them and estimates for the other executors."""
    cost_STK, quality_STK = model.estimate(features_STF)
    chosen_STK = np.arange(cost_STK.shape[2]) == logged.action_ST[..., None]
    return SessionOutcomes(
        valid_ST=logged.valid_ST,
        cost_STK=np.where(chosen_STK, logged.cost_ST[..., None], cost_STK),
        quality_STK=np.where(chosen_STK, logged.quality_ST[..., None], quality_STK),
    )


def choose_cheapest_sufficient(
    quality_STK: Float64Array, cost_K: npt.NDArray[np.float64], threshold: float
) -> Chooser:
    """Return the heuristic: the cheapest executor that is good enough and that the balance pays.

    Good enough is an estimated quality of at least `threshold`; where none is, the best by estimate
    counts. The balance must cover the executor's mean cost `cost_K`; where it covers none that is
    good enough, the cheapest of all is asked. Executors stand cheapest first.
    """
    sufficient_STK = quality_STK >= threshold
    best_STK = quality_STK == quality_STK.max(axis=2, keepdims=True)
    wanted_STK = np.where(sufficient_STK.any(axis=2, keepdims=True), sufficient_STK, best_STK)

    def choose(standing: Standing) -> IntArray:
        wanted_NK = wanted_STK[standing.session_N, standing.turn]
        paid_NK = cost_K <= standing.balance_N[:, None]
        first_N: IntArray = (wanted_NK & paid_NK).argmax(axis=1)  # where none holds, the cheapest
        return first_N

    return choose
