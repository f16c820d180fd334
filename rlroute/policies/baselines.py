"""Baselines: what a trained router has to beat, on the same features and in the same evaluation.

What it is: the one door to all of them, `fit_baselines`, and the plain ones: always one candidate
(among them the cheapest and the best single candidate), random, k nearest neighbours on full score
rows, ridge predict-then-optimise, and the oracles. The others stand in modules of their own:

| name | what | module |
| --- | --- | --- |
| EMA | moving averages, blind to the query | `table_baselines_groups` |
| centroids, skill profile, pheromones | by counting per candidate or cluster | the same |
| soft labels | linear classifier on the softmax of score rows | `table_baselines_fitted` |
| boosted trees | scores and costs by gradient-boosted trees | the same |
| loss with flags | ridge's loss + weighted flags of the candidate | the same |
| IRT; IRT, Chebyshev | difficulty against ability, two rules | `table_baselines_item_response` |
| sufficient | cheapest of a predicted quality above a threshold | `table_baselines_cascade` |
| paid probes | asks, checks, pays all that it asked | the same |
| 1-pass LinUCB, epsilon, Thompson | trial: one pass over train | `table_baselines_bandits` |
| sigma rule | asks a cheap one repeatedly, its disagreement decides | `table_baselines_sigma` |

All but the oracles are fitted on the train split; the validation split chooses penalties and
thresholds. Many published routers do not beat the best single candidate or nearest neighbours. All
but the three of one pass see the whole train table, which is more than a router that is trained by
trial sees.

What it leaves out: learning on and on (environment bandit_stream). The sigma rule (ACAR) is there
where a collection stored several answers per pair (`rlroute.data.probes`).

How to use: `for policy in fit_baselines(train, val): policy.compute_probabilities(test, 0.1)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rlroute.evaluation.metrics import (
    average_candidates,
    compute_utility,
    find_best_single,
    find_cheapest_single,
    make_always,
    make_one_hot,
    make_uniform,
    pick_oracle,
    pick_task_oracle,
)
from rlroute.policies.table_baselines import (
    Float64Array,
    OutcomePredictor,
    PredictThenOptimise,
    ScoreWithCost,
    list_outcomes,
    scale_rows,
)
from rlroute.policies.table_baselines_bandits import fit_bandits
from rlroute.policies.table_baselines_cascade import CheapestSufficient, PaidProbes
from rlroute.policies.table_baselines_fitted import BoostedTrees, LossWithFlags, SoftLabels
from rlroute.policies.table_baselines_groups import (
    Clusters,
    MovingAverage,
    NearestCentroid,
    PheromoneTable,
    SkillProfile,
)
from rlroute.policies.table_baselines_item_response import ChebyshevPick, ItemResponse
from rlroute.policies.table_baselines_sigma import SigmaRule
from rlroute.types import FloatArray, RLRouteError

if TYPE_CHECKING:
    from rlroute.data.probes import StoredProbes
    from rlroute.data.routing_data import RoutingData
    from rlroute.evaluation.sampling import RoutingPolicy

NEIGHBOURS = 40
# Ridge penalties tried on the validation split, relative to the number of train queries.
RIDGE_PENALTIES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
# Keeps the similarities of one chunk of queries to 20,000 train queries below 100 MB.
CHUNK = 512


class AlwaysCandidate:
    """Sends every query to one candidate; where that has no outcome, to a random other one."""

    def __init__(self, candidate_id: str, name: str | None = None) -> None:
        self.candidate_id = candidate_id
        self.name = name or f"always {candidate_id}"

    def compute_probabilities(self, data: RoutingData, cost_weight: float) -> FloatArray:
        """Return [Q, K]; the cost weight changes nothing.

        Raises:
            RLRouteError: the table has no such candidate.
        """
        ids = [candidate.id for candidate in data.table.candidates]
        if self.candidate_id not in ids:
            raise RLRouteError(
                f"{self.name}: table '{data.table.name}' has no candidate "
                f"'{self.candidate_id}' (it has: {', '.join(ids)})"
            )
        column = ids.index(self.candidate_id)
        return make_always(column, data.table.present_QK).astype(np.float32)


class RandomCandidate:
    """Picks every present candidate with the same probability, at any cost weight."""

    name = "random"

    def compute_probabilities(self, data: RoutingData, cost_weight: float) -> FloatArray:
        """Return [Q, K], uniform over the present candidates."""
        return make_uniform(data.table.present_QK).astype(np.float32)


class Oracle:
    """Picks per query the best utility at the cost weight, ties to the cheapest.

    It looks at the outcomes of the very queries it routes: an upper bound, not a router. With noisy
    answers and many candidates some candidate is right by luck, so it overstates what can be won.
    """

    name = "oracle"

    def compute_probabilities(self, data: RoutingData, cost_weight: float) -> FloatArray:
        """Return [Q, K], 1 at the oracle's pick."""
        table = data.table
        pick_Q = pick_oracle(table.score_QK, data.normalised_cost_QK, table.present_QK, cost_weight)
        return make_one_hot(pick_Q, len(table.candidates)).astype(np.float32)


class TaskOracle:
    """Picks per task the candidate of the best mean utility, ties to the cheapest.

    What a perfect topic classifier could reach: it knows the task of each query and the mean
    outcomes of the very queries it routes. A router that only reaches it has learnt the topic.
    """

    name = "task oracle"

    def compute_probabilities(self, data: RoutingData, cost_weight: float) -> FloatArray:
        """Return [Q, K], 1 at the best candidate of the query's task."""
        score_QK, cost_QK = list_outcomes(data)
        utility_QK = compute_utility(score_QK, cost_QK, cost_weight)
        task_Q = [query.task for query in data.table.queries]
        pick_Q = pick_task_oracle(utility_QK, cost_QK, data.table.present_QK, task_Q)
        return make_one_hot(pick_Q, len(data.table.candidates)).astype(np.float32)


class NearestNeighbours:
    """Means of the score rows and cost rows of the nearest train queries by cosine similarity.

    A hole among the neighbours is left out of the mean; where all neighbours of a candidate are
    holes, the candidate's train mean stands in.
    """

    def __init__(self, train: RoutingData, neighbours: int = NEIGHBOURS) -> None:
        self.neighbours = min(neighbours, len(train.features_QF))
        self.name = f"kNN-{self.neighbours}"
        present_QK = train.table.present_QK
        self.center_F = train.features_QF.mean(0, dtype=np.float64).astype(np.float32)
        self.train_QF = scale_rows(train.features_QF, self.center_F)
        self.present_QK = present_QK.astype(np.float64)
        self.outcome_2QK = np.stack(list_outcomes(train))
        self.mean_2K = np.stack(
            [average_candidates(value, present_QK) for value in self.outcome_2QK]
        )
        self.outcome_2QK = np.where(present_QK, self.outcome_2QK, 0.0)

    def predict(self, features_QF: FloatArray) -> tuple[Float64Array, Float64Array]:
        """Return the neighbours' mean score [Q, K] and mean normalised cost [Q, K]."""
        query_QF = scale_rows(features_QF, self.center_F)
        parts = [
            self.average_neighbours(query_QF[start : start + CHUNK])
            for start in range(0, len(query_QF), CHUNK)
        ]
        score_QK, cost_QK = np.concatenate(parts, axis=1)
        return score_QK, cost_QK

    def average_neighbours(self, query_QF: FloatArray) -> Float64Array:
        """Return the means over the neighbours, [2, Q, K] (score and cost)."""
        similarity_QN = query_QF @ self.train_QF.T
        nearest_QN = np.argpartition(-similarity_QN, self.neighbours - 1, axis=1)
        nearest_QN = nearest_QN[:, : self.neighbours]
        count_QK = self.present_QK[nearest_QN].sum(1)
        total_2QK = self.outcome_2QK[:, nearest_QN].sum(2)
        return np.where(count_QK > 0, total_2QK / np.maximum(count_QK, 1), self.mean_2K[:, None, :])


class RidgeRegression:
    """Linear predictions of score and cost with a squared penalty, then the best predicted utility.

    One penalty for scores and one for costs, each with the least squared error on the validation
    split. Features are centred and the intercept is not penalised, so that a large penalty predicts
    each candidate's train mean. Holes are left out of the fit.
    """

    name = "ridge"

    def __init__(self, train: RoutingData, val: RoutingData) -> None:
        self.center_F = train.features_QF.mean(0, dtype=np.float64)
        fitted = [
            fit_ridge(train, val, self.center_F, target, val_target)
            for target, val_target in zip(list_outcomes(train), list_outcomes(val), strict=True)
        ]
        (self.score_FK, self.score_K, self.score_penalty) = fitted[0]
        (self.cost_FK, self.cost_K, self.cost_penalty) = fitted[1]

    def predict(self, features_QF: FloatArray) -> tuple[Float64Array, Float64Array]:
        """Return linear predictions of score [Q, K] and normalised cost [Q, K]."""
        centred_QF = features_QF - self.center_F
        return centred_QF @ self.score_FK + self.score_K, centred_QF @ self.cost_FK + self.cost_K


def fit_ridge(
    train: RoutingData,
    val: RoutingData,
    center_F: Float64Array,
    target_QK: Float64Array,
    val_target_QK: Float64Array,
) -> tuple[Float64Array, Float64Array, float]:
    """Return weights [F, K], intercepts [K] and the penalty with the least validation error.

    One eigendecomposition per candidate serves all penalties.
    """
    penalties = np.array(RIDGE_PENALTIES)
    features_QF = train.features_QF - center_F
    val_QF = val.features_QF - center_F
    weight_PFK = np.empty((len(penalties), features_QF.shape[1], target_QK.shape[1]))
    intercept_PK = np.empty((len(penalties), target_QK.shape[1]))
    for k in range(target_QK.shape[1]):
        rows = train.table.present_QK[:, k]
        mean_F, mean = features_QF[rows].mean(0), target_QK[rows, k].mean()
        centred_QF = features_QF[rows] - mean_F
        value_F, vector_FF = np.linalg.eigh(centred_QF.T @ centred_QF)
        projected_F = vector_FF.T @ (centred_QF.T @ (target_QK[rows, k] - mean))
        shrunk_PF = projected_F / (np.maximum(value_F, 0) + penalties[:, None] * rows.sum())
        weight_PFK[:, :, k] = shrunk_PF @ vector_FF.T
        intercept_PK[:, k] = mean - weight_PFK[:, :, k] @ mean_F
    error_PQK = val_QF @ weight_PFK + intercept_PK[:, None, :] - val_target_QK
    error_P = np.where(val.table.present_QK, error_PQK**2, 0.0).sum((1, 2))
    best = int(np.argmin(error_P))
    return weight_PFK[best], intercept_PK[best], float(penalties[best])


def fit_baselines(
    train: RoutingData,
    val: RoutingData,
    probes: StoredProbes | None = None,
    cost_weights: tuple[float, float] = (0.0, 1.0),
) -> list[RoutingPolicy]:
    """Return all baselines, fitted on `train`; `val` chooses penalties and thresholds.

    With `probes` the sigma rule is among them. What learns by trial does so at cost weights drawn
    from the range `cost_weights`.

    Cheapest and best single candidate are chosen by their train means. What predicts scores alone
    borrows the costs of ridge, so that these baselines differ in quality only.

    Raises:
        RLRouteError: a candidate has no outcome on the train split.
    """
    table = train.table
    best = find_best_single(table.score_QK, table.cost_usd_QK, table.present_QK)
    cheapest = find_cheapest_single(table.cost_usd_QK, table.present_QK)
    neighbours, ridge, clusters = (
        NearestNeighbours(train),
        RidgeRegression(train, val),
        Clusters(train),
    )
    responses = ScoreWithCost(ItemResponse(train, val), ridge)
    predictors: list[OutcomePredictor] = [
        neighbours,
        ridge,
        MovingAverage(train),
        ScoreWithCost(NearestCentroid(train), ridge),
        SkillProfile(clusters),
        ScoreWithCost(SoftLabels(train, val), ridge),
        BoostedTrees(train),
        responses,
    ]
    return [
        AlwaysCandidate(table.candidates[best].id, name="best single"),
        AlwaysCandidate(table.candidates[cheapest].id, name="cheapest"),
        RandomCandidate(),
        *(PredictThenOptimise(predictor, train) for predictor in predictors),
        ChebyshevPick(responses, train),
        PheromoneTable(train, clusters),
        LossWithFlags(ridge, train),
        CheapestSufficient(neighbours, train, val),
        PaidProbes(train, val),
        *(PredictThenOptimise(bandit, train) for bandit in fit_bandits(train, cost_weights)),
        *([SigmaRule(train, probes)] if probes else []),
        TaskOracle(),
        Oracle(),
    ]
