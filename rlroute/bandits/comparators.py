"""What a learner is compared with on a stream: policies that know what no learner can.

| comparator           | what it is                                                               |
| -------------------- | ------------------------------------------------------------------------ |
| best available       | the best available candidate of each query: an oracle, sees the outcomes |
| best fixed           | in each phase the available candidate with the best mean utility there   |
| linear with          | ridge regressions on all outcomes of the stream, greedy: a linear policy |
| hindsight            | with full feedback (not proven to be the best of its class)              |
| optimum              | the best policy there is, where chances of success are known             |

Cumulative regret is the running sum of a comparator's utility minus the learner's (metrics sheet,
section 2). Against "best available" every step is at least 0; against the others a learner may do
better.

What it leaves out: measures and words (`rlroute.evaluation.bandit_results`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlroute.bandits.base import Float64Array
from rlroute.bandits.stream import Stream
from rlroute.types import IntArray

BEST_AVAILABLE, BEST_FIXED = "best available", "best fixed"
LINEAR, OPTIMUM = "linear with hindsight", "optimum"
RIDGE = 1.0


@dataclass(frozen=True)
class Comparator:
    """What a comparator picks and gets, each [T]."""

    name: str
    action_T: IntArray
    utility_T: Float64Array


def build_comparators(stream: Stream) -> tuple[Comparator, ...]:
    """Return the comparators of a stream, `optimum` where it can be computed."""
    best_T = np.nanargmax(stream.utility_TK, axis=1)
    found = [
        Comparator(BEST_AVAILABLE, best_T, stream.best_T),
        find_best_fixed(stream),
        follow(stream, LINEAR, predict_linear(stream)),
    ]
    if stream.data.success_QK is not None:
        found.append(follow(stream, OPTIMUM, predict_optimum(stream)))
    return tuple(found)


def follow(stream: Stream, name: str, value_TK: Float64Array) -> Comparator:
    """Return the policy that takes the available candidate of greatest predicted utility."""
    action_T = np.where(stream.available_TK, value_TK, -np.inf).argmax(axis=1)
    return Comparator(name, action_T, stream.utility_TK[np.arange(stream.length), action_T])


def find_best_fixed(stream: Stream) -> Comparator:
    """Return the best single candidate of every phase; where it has a hole, its mean stands in."""
    action_T = np.zeros(stream.length, dtype=np.int64)
    utility_T = np.zeros(stream.length)
    for number in range(len(stream.phases)):
        rows = stream.phase_T == number
        mean_K = average_columns(stream.utility_TK[rows])
        best = int(mean_K.argmax())
        action_T[rows] = best
        taken_N = stream.utility_TK[rows, best]
        utility_T[rows] = np.where(np.isnan(taken_N), mean_K[best], taken_N)
    return Comparator(BEST_FIXED, action_T, utility_T)


def rank_candidates(stream: Stream) -> IntArray:
    """Return the candidates by mean utility over the stream, best first, whoever was there."""
    return np.argsort(-average_columns(stream.full_utility_TK), kind="stable")


def average_columns(value_NK: Float64Array) -> Float64Array:
    """Return the mean of each column over what is known [K]; minus infinity where nothing is."""
    known_NK = ~np.isnan(value_NK)
    count_K = known_NK.sum(axis=0)
    total_K = np.where(known_NK, value_NK, 0.0).sum(axis=0)
    return np.where(count_K > 0, total_K / np.maximum(count_K, 1), -np.inf)


def predict_linear(stream: Stream) -> Float64Array:
    """Return the utility [T, K] that regressions on every outcome of the stream predict."""
    data = stream.data
    visits_Q = np.bincount(stream.query_T, minlength=len(data.table.queries)).astype(np.float64)
    cost_QK = data.normalised_cost_QK
    score_QK = np.zeros(cost_QK.shape)
    predicted_QK = np.zeros(cost_QK.shape)
    for k in range(cost_QK.shape[1]):
        rows = data.table.present_QK[:, k]
        context_NF = data.context_QF[rows]
        weighed_FN = context_NF.T * visits_Q[rows]
        matrix_FF = weighed_FN @ context_NF + RIDGE * np.eye(context_NF.shape[1])
        output_N2 = np.stack([data.table.score_QK[rows, k], cost_QK[rows, k]], axis=1)
        theta_F2 = np.linalg.solve(matrix_FF, weighed_FN @ output_N2.astype(np.float64))
        score_QK[:, k], predicted_QK[:, k] = (data.context_QF @ theta_F2).T
    return combine(stream, score_QK, predicted_QK)


def predict_optimum(stream: Stream) -> Float64Array:
    """Return the expected utility [T, K] by the known chances; costs of made tables are certain."""
    data = stream.data
    assert data.success_QK is not None  # `build_comparators` asks for it
    return combine(stream, data.success_QK, data.normalised_cost_QK)


def combine(stream: Stream, score_QK: Float64Array, cost_QK: Float64Array) -> Float64Array:
    """Return utility [T, K] from scores and normalised costs, at the weights and prices of T."""
    factor_PK = np.stack([phase.price_factor_K for phase in stream.phases])
    charge_TK = factor_PK[stream.phase_T] * cost_QK[stream.query_T]
    weight_T1 = stream.cost_weight_T[:, None].astype(np.float64)
    return np.asarray(score_QK[stream.query_T] - weight_T1 * charge_TK)
