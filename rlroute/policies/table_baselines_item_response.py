"""Item response baseline (after RADAR, arXiv 2509.25426): difficulty against ability.

What it is: `P(score) = sigmoid(a(q) * (ability_k - b(q)))`, where the discrimination a > 0 and the
difficulty b are linear in the query features and every candidate has one ability. Two rules pick:
the best utility, and Chebyshev's, which keeps the worse of both objectives small.

What it leaves out: abilities per topic: here the ablest candidate is the ablest for every query,
so at cost weight 0 it takes all. Adding a candidate by a few queries (`compute_information` says
which tell most, `estimate_ability` what they say) is the caller's.

How to use: `PredictThenOptimise(ScoreWithCost(ItemResponse(train, val), ridge), train)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rlroute.evaluation.metrics import average_candidates, make_one_hot, pick_best
from rlroute.policies.table_baselines import (
    Float64Array,
    KeptPrediction,
    OutcomePredictor,
    list_outcomes,
)
from rlroute.policies.table_baselines_fitted import minimise
from rlroute.types import BoolArray, FloatArray

if TYPE_CHECKING:
    from rlroute.data.routing_data import RoutingData

# Squared penalties of the weights tried on the validation split, per train outcome.
PENALTIES = (1e-4, 1e-3, 1e-2)
ABILITY_PENALTY = 1e-6  # says where 0 lies: abilities and difficulties can move together


class ItemResponse:
    """Discrimination and difficulty by features, ability per candidate; fitted by L-BFGS.

    A score in [0, 1] counts as so much of a success. One penalty, the one with the least logistic
    loss on the validation split. Holes are left out.
    """

    name = "IRT"

    def __init__(self, train: RoutingData, val: RoutingData) -> None:
        average_candidates(train.table.score_QK, train.table.present_QK)  # none is untried
        self.center_F = train.features_QF.mean(0, dtype=np.float64)
        # columns alike in size, so that one penalty fits encoders of any scale
        self.scale = float(np.sqrt(((train.features_QF - self.center_F) ** 2).mean())) or 1.0
        features_QE, val_QE = self.extend(train.features_QF), self.extend(val.features_QF)
        score_QK, val_score_QK = list_outcomes(train)[0], list_outcomes(val)[0]
        present_QK, val_present_QK = train.table.present_QK, val.table.present_QK
        columns, candidates = features_QE.shape[1], present_QK.shape[1]
        weights = start_weights(score_QK, present_QK, columns)
        best = np.inf
        for penalty in PENALTIES[::-1]:  # the simplest first, each from the last
            weights = fit_responses(weights, features_QE, score_QK, present_QK, penalty)
            loss, _ = compute_response_loss(weights, val_QE, val_score_QK, val_present_QK)
            if loss < best:
                best, self.penalty = loss, penalty
                self.weights = split_weights(weights, columns, candidates)

    def extend(self, features_QF: FloatArray) -> Float64Array:
        """Return the features centred and scaled, with a column of ones at the end [Q, F + 1]."""
        scaled_QF = (features_QF - self.center_F) / self.scale
        return np.hstack((scaled_QF, np.ones((len(features_QF), 1))))

    def describe(self, features_QF: FloatArray) -> tuple[Float64Array, Float64Array, Float64Array]:
        """Return discrimination [Q] and difficulty [Q] of queries, and the abilities [K]."""
        discrimination_E, difficulty_E, ability_K = self.weights
        features_QE = self.extend(features_QF)
        return soften(features_QE @ discrimination_E), features_QE @ difficulty_E, ability_K

    def predict_score(self, features_QF: FloatArray) -> Float64Array:
        """Return the chance of success [Q, K]."""
        return compute_success(*self.describe(features_QF))


def compute_success(
    discrimination_Q: npt.ArrayLike, difficulty_Q: npt.ArrayLike, ability_K: npt.ArrayLike
) -> Float64Array:
    """Return the chance of success [Q, K] of the two-parameter model."""
    slope_Q1 = np.asarray(discrimination_Q, np.float64)[:, None]
    return squash(slope_Q1 * (np.asarray(ability_K) - np.asarray(difficulty_Q)[:, None]))


def compute_information(
    discrimination_Q: npt.ArrayLike, difficulty_Q: npt.ArrayLike, ability_K: npt.ArrayLike
) -> Float64Array:
    """Return the Fisher information on each ability [Q, K]: a^2 * p * (1 - p).

    The queries of the largest are those to try a new candidate on.
    """
    success_QK = compute_success(discrimination_Q, difficulty_Q, ability_K)
    slope_Q1 = np.asarray(discrimination_Q, np.float64)[:, None]
    return slope_Q1**2 * success_QK * (1 - success_QK)


def estimate_ability(
    discrimination_N: npt.ArrayLike,
    difficulty_N: npt.ArrayLike,
    score_N: npt.ArrayLike,
    mean: float,
    spread: float,
) -> float:
    """Return the likeliest ability of a candidate that scored so on N queries.

    Abilities are taken to lie around `mean` with a standard deviation of `spread`, so that a few
    calls, all right or all wrong, give a finite one. Newton's method on a concave function.
    """
    slope_N = np.asarray(discrimination_N, np.float64)
    difficulty_N, score_N = np.asarray(difficulty_N, np.float64), np.asarray(score_N, np.float64)
    precision, ability = 1 / max(spread, 1e-6) ** 2, mean
    for _ in range(100):
        success_N = squash(slope_N * (ability - difficulty_N))
        pull = float((slope_N * (score_N - success_N)).sum() - precision * (ability - mean))
        information = float((slope_N**2 * success_N * (1 - success_N)).sum()) + precision
        step = float(np.clip(pull / information, -1.0, 1.0))
        ability += step
        if abs(step) < 1e-9:
            break
    return ability


def squash(value: npt.ArrayLike) -> Float64Array:
    """Return the logistic function, without overflow."""
    from scipy.special import expit

    return np.asarray(expit(value), np.float64)


def soften(value: npt.ArrayLike) -> Float64Array:
    """Return log(1 + exp(value)): above 0 for every value."""
    return np.asarray(np.logaddexp(0.0, value), np.float64)


def start_weights(score_QK: Float64Array, present_QK: BoolArray, columns: int) -> Float64Array:
    """Return weights to start from: discrimination 1, difficulty 0, abilities by mean scores."""
    mean_K = np.clip(average_candidates(score_QK, present_QK), 0.02, 0.98)
    start = np.zeros(2 * columns + len(mean_K))
    start[columns - 1] = np.log(np.e - 1)
    start[2 * columns :] = np.log(mean_K / (1 - mean_K))
    return start


def split_weights(
    weights: Float64Array, columns: int, candidates: int
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Return the weights of discrimination [E] and difficulty [E], and the abilities [K]."""
    assert len(weights) == 2 * columns + candidates
    return weights[:columns], weights[columns : 2 * columns], weights[2 * columns :]


def compute_response_loss(
    weights: Float64Array, features_QE: Float64Array, score_QK: Float64Array, present_QK: BoolArray
) -> tuple[float, Float64Array]:
    """Return the mean logistic loss over the outcomes and its gradient, shaped as the weights."""
    columns = features_QE.shape[1]
    discrimination_E, difficulty_E, ability_K = split_weights(weights, columns, present_QK.shape[1])
    raw_Q = features_QE @ discrimination_E
    slope_Q1 = soften(raw_Q)[:, None]
    lead_QK = ability_K - (features_QE @ difficulty_E)[:, None]
    logit_QK = slope_Q1 * lead_QK
    known_QK = np.where(present_QK, score_QK, 0.0)
    outcomes = present_QK.sum()
    loss_QK = np.logaddexp(0.0, logit_QK) - known_QK * logit_QK
    error_QK = np.where(present_QK, squash(logit_QK) - known_QK, 0.0) / outcomes
    pull_QK = error_QK * slope_Q1
    gradient = np.concatenate(
        (
            features_QE.T @ ((error_QK * lead_QK).sum(1) * squash(raw_Q)),
            -(features_QE.T @ pull_QK.sum(1)),
            pull_QK.sum(0),
        )
    )
    return float(np.where(present_QK, loss_QK, 0.0).sum() / outcomes), gradient


def fit_responses(
    start: Float64Array,
    features_QE: Float64Array,
    score_QK: Float64Array,
    present_QK: BoolArray,
    penalty: float,
) -> Float64Array:
    """Return the weights of the least penalised loss; intercepts carry no penalty."""
    columns = features_QE.shape[1]
    penalty_N = np.full(len(start), penalty)
    penalty_N[[columns - 1, 2 * columns - 1]] = 0.0
    penalty_N[2 * columns :] = ABILITY_PENALTY

    def measure(weights: Float64Array) -> tuple[float, Float64Array]:
        loss, gradient = compute_response_loss(weights, features_QE, score_QK, present_QK)
        return loss + float(penalty_N @ weights**2) / 2, gradient + penalty_N * weights

    return minimise(measure, start)


class ChebyshevPick:
    """Picks the least `max(weight * |1 - score|, (1 - weight) * cost)` (RADAR's second rule).

    The weight of quality is `1 / (1 + cost_weight)`, so that the straight sum of the same two
    terms would be the utility of every other policy. The rule cares for the worse of both only.
    """

    def __init__(self, predictor: OutcomePredictor, train: RoutingData) -> None:
        self.name = f"{predictor.name}, Chebyshev"
        self.kept = KeptPrediction(predictor, train)

    def compute_probabilities(self, data: RoutingData, cost_weight: float) -> FloatArray:
        """Return [Q, K], 1 at the pick among the present candidates, ties to the cheapest.

        Raises:
            RLRouteError: the candidates are not those it was fitted on.
        """
        score_QK, cost_QK = self.kept.predict(data)
        worse_QK = compute_worse_objective(score_QK, cost_QK, 1 / (1 + cost_weight))
        pick_Q = pick_best(-worse_QK, cost_QK, data.table.present_QK)
        return make_one_hot(pick_Q, score_QK.shape[1]).astype(np.float32)


def compute_worse_objective(
    score_QK: npt.ArrayLike, cost_QK: npt.ArrayLike, weight: float
) -> Float64Array:
    """Return max(weight * |1 - score|, (1 - weight) * cost) [Q, K]."""
    shortfall_QK = weight * np.abs(1 - np.asarray(score_QK, np.float64))
    return np.maximum(shortfall_QK, (1 - weight) * np.asarray(cost_QK, np.float64))
