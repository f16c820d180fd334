"""Baselines with fitted weights: soft-label classifier, boosted trees, loss with flags.

What it is: `SoftLabels` classifies queries by candidate, `BoostedTrees` predicts score and cost
with trees, `LossWithFlags` (after Tryage, arXiv 2308.11601) adds weighted flags of a candidate
(cost, latency, size) to its predicted loss. All on the features that the router gets.

What it leaves out: fine-tuned language models, which the papers have in these places.

How to use: `PredictThenOptimise(BoostedTrees(train), train)`,
`LossWithFlags(ridge, train, {"latency": Flag(seconds_K, weight=0.2)})`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rlroute.evaluation.metrics import average_candidates, make_one_hot, pick_best
from rlroute.policies.table_baselines import (
    Float64Array,
    KeptPrediction,
    OutcomePredictor,
    list_outcomes,
)
from rlroute.types import BoolArray, FloatArray, RLRouteError

if TYPE_CHECKING:
    from rlroute.data.routing_data import RoutingData

# Squared penalties of the classifier tried on the validation split, per train query.
SOFT_LABEL_PENALTIES = (1e-4, 1e-3, 1e-2)
STEPS = 60
ABSENT_LOGIT = -1e9
# Trees see this many principal components: they are slow in hundreds of dense columns.
COMPONENTS = 24
TREES = 40
TREE_SETTINGS = {
    "max_iter": TREES,
    "learning_rate": 0.1,
    "max_leaf_nodes": 8,
    "min_samples_leaf": 20,
    "l2_regularization": 1.0,
    "early_stopping": False,
    "random_state": 0,
}


# --- Soft labels ----------------------------------------------------------------------------------


class SoftLabels:
    """Linear classifier of queries by candidate, trained on the softmax of the score rows.

    With temperature 1 the targets are `softmax(score)` over the candidates that were tried, so all
    that solve a query share the label and the order of candidates decides nothing. A logit is then
    a score but for a constant per query, which no pick depends on: logits are traded against costs
    as scores are. One penalty, the one with the least cross-entropy on the validation split.
    """

    name = "soft labels"

    def __init__(self, train: RoutingData, val: RoutingData) -> None:
        self.center_F = train.features_QF.mean(0, dtype=np.float64)
        features_QF = train.features_QF - self.center_F
        val_QF = val.features_QF - self.center_F
        target_QK, val_target_QK = make_soft_labels(train), make_soft_labels(val)
        # columns alike in size, so that one penalty fits encoders of any scale
        self.scale = float(np.sqrt((features_QF**2).mean())) or 1.0
        best = np.inf
        weight_EK = np.zeros((features_QF.shape[1] + 1, target_QK.shape[1]))
        for penalty in SOFT_LABEL_PENALTIES[::-1]:  # the simplest first, each from the last
            weight_EK = fit_classifier(
                features_QF / self.scale, target_QK, train.table.present_QK, penalty, weight_EK
            )
            loss, _ = compute_cross_entropy(
                weight_EK, val_QF / self.scale, val_target_QK, val.table.present_QK
            )
            if loss < best:
                best, self.penalty, self.weight_EK = loss, penalty, weight_EK

    def predict_score(self, features_QF: FloatArray) -> Float64Array:
        """Return logits [Q, K]: scores but for a constant per query."""
        return compute_logits(self.weight_EK, (features_QF - self.center_F) / self.scale)


def make_soft_labels(data: RoutingData) -> Float64Array:
    """Return the softmax of every score row over its outcomes [Q, K]; 0 in a hole."""
    score_QK = np.where(data.table.present_QK, list_outcomes(data)[0], -np.inf)
    power_QK = np.exp(score_QK - score_QK.max(1, keepdims=True))
    label_QK: Float64Array = power_QK / power_QK.sum(1, keepdims=True)
    return label_QK


def compute_logits(weight_EK: Float64Array, features_QF: Float64Array) -> Float64Array:
    """Return the logits [Q, K]; the last row of the weights is the intercept (E = F + 1)."""
    logit_QK: Float64Array = features_QF @ weight_EK[:-1] + weight_EK[-1]
    return logit_QK


def compute_cross_entropy(
    weight_EK: Float64Array,
    features_QF: Float64Array,
    target_QK: Float64Array,
    present_QK: BoolArray,
) -> tuple[float, Float64Array]:
    """Return the mean cross-entropy and its gradient [E, K]; absent candidates have no share."""
    logit_QK = np.where(present_QK, compute_logits(weight_EK, features_QF), ABSENT_LOGIT)
    logit_QK -= logit_QK.max(1, keepdims=True)
    logp_QK = logit_QK - np.log(np.exp(logit_QK).sum(1, keepdims=True))
    error_QK = (np.exp(logp_QK) - target_QK) / len(target_QK)
    gradient_EK = np.vstack((features_QF.T @ error_QK, error_QK.sum(0)))
    return -float((target_QK * logp_QK).sum() / len(target_QK)), gradient_EK


def fit_classifier(
    features_QF: Float64Array,
    target_QK: Float64Array,
    present_QK: BoolArray,
    penalty: float,
    start_EK: Float64Array,
) -> Float64Array:
    """Return the weights [E, K] of the least penalised cross-entropy (L-BFGS).

    The intercepts carry no penalty.
    """

    def measure(weight: Float64Array) -> tuple[float, Float64Array]:
        weight_EK = weight.reshape(start_EK.shape)
        loss, gradient_EK = compute_cross_entropy(weight_EK, features_QF, target_QK, present_QK)
        gradient_EK[:-1] += penalty * weight_EK[:-1]
        return loss + penalty / 2 * float((weight_EK[:-1] ** 2).sum()), gradient_EK.ravel()

    return minimise(measure, start_EK.ravel()).reshape(start_EK.shape)


def minimise(measure: Any, start_N: Float64Array) -> Float64Array:
    """Return where a function that gives value and gradient is least, by L-BFGS."""
    from scipy.optimize import minimize

    found = minimize(measure, start_N, jac=True, method="L-BFGS-B", options={"maxiter": STEPS})
    return np.asarray(found.x, np.float64)


# --- Boosted trees --------------------------------------------------------------------------------


class BoostedTrees:
    """Gradient-boosted trees per candidate, one forest for its scores and one for its costs.

    The trees see the leading principal components of the features. A candidate's trees are fitted
    on the queries that it was tried on.
    """

    name = "boosted trees"

    def __init__(self, train: RoutingData) -> None:
        from sklearn.decomposition import PCA

        components = min(COMPONENTS, *train.features_QF.shape)
        self.projection = PCA(components, svd_solver="covariance_eigh")
        features_QP = self.projection.fit_transform(train.features_QF.astype(np.float64))
        present_QK = train.table.present_QK
        average_candidates(train.table.score_QK, present_QK)  # refuses a candidate never tried
        self.trees_2K = [
            [
                fit_trees(features_QP[present_QK[:, k]], value_QK[present_QK[:, k], k])
                for k in range(present_QK.shape[1])
            ]
            for value_QK in list_outcomes(train)
        ]

    def predict(self, features_QF: FloatArray) -> tuple[Float64Array, Float64Array]:
        """Return predicted score [Q, K] and normalised cost [Q, K], each at least 0."""
        features_QP = self.projection.transform(features_QF.astype(np.float64))
        score_QK, cost_QK = (
            np.stack([trees.predict(features_QP) for trees in trees_K], axis=1)
            for trees_K in self.trees_2K
        )
        return np.maximum(score_QK, 0.0), np.maximum(cost_QK, 0.0)


def fit_trees(features_QP: Float64Array, value_Q: Float64Array) -> Any:
    """Return trees fitted to the values of some queries."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    return HistGradientBoostingRegressor(**TREE_SETTINGS).fit(features_QP, value_Q)


# --- Predicted loss with flags --------------------------------------------------------------------


@dataclass(frozen=True)
class Flag:
    """A property of candidates that the user may want small, such as seconds or parameters.

    `value_K` is in any unit, at least 0; it counts relative to the largest. `weight` is the loss
    that the user accepts in order to go from the largest value to none.
    """

    value_K: npt.ArrayLike
    weight: float


class LossWithFlags:
    """Picks the least `predicted loss + sum over flags of weight * flag` (Tryage).

    The loss is 1 - predicted score. The flag "cost" is always there: the candidate's mean train
    cost in units of the reference, weighted by the cost weight that is asked for. Flags belong to
    candidates, not to queries: what a query will cost is not predicted.
    """

    name = "loss with flags"

    def __init__(
        self,
        predictor: OutcomePredictor,
        train: RoutingData,
        flags: Mapping[str, Flag] | None = None,
    ) -> None:
        """Bind a predictor and the flags.

        Raises:
            RLRouteError: a flag has a wrong number of values, or one that is unknown or negative.
        """
        self.kept = KeptPrediction(predictor, train)
        present_QK = train.table.present_QK
        self.cost_K = average_candidates(train.normalised_cost_QK, present_QK)
        self.penalty_K = np.zeros(len(self.cost_K))
        for name, flag in (flags or {}).items():
            self.penalty_K += weigh_flag(name, flag, len(self.cost_K))

    def compute_probabilities(self, data: RoutingData, cost_weight: float) -> FloatArray:
        """Return [Q, K], 1 at the least loss with flags; ties to the cheapest.

        Raises:
            RLRouteError: the candidates are not those it was fitted on.
        """
        loss_QK = 1 - self.kept.predict(data)[0]
        total_QK = loss_QK + self.penalty_K + cost_weight * self.cost_K
        cost_QK = np.broadcast_to(self.cost_K, total_QK.shape)
        pick_Q = pick_best(-total_QK, cost_QK, data.table.present_QK)
        return make_one_hot(pick_Q, len(self.cost_K)).astype(np.float32)


def weigh_flag(name: str, flag: Flag, candidates: int) -> Float64Array:
    """Return a flag's part of the loss [K].

    Raises:
        RLRouteError: a wrong number of values, or one that is unknown or negative.
    """
    value_K = np.asarray(flag.value_K, np.float64)
    if value_K.shape != (candidates,):
        raise RLRouteError(
            f"flag '{name}': needs one value for each of {candidates} candidates, "
            f"got shape {value_K.shape}"
        )
    if not (np.isfinite(value_K) & (value_K >= 0)).all():
        column = int(np.argmin(np.isfinite(value_K) & (value_K >= 0)))
        raise RLRouteError(
            f"flag '{name}': the value of candidate {column} is {value_K[column]}; "
            "every value must be known and at least 0"
        )
    return flag.weight * value_K / (value_K.max() or 1.0)
