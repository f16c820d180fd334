"""Baselines without weights to fit: moving average, centroids, skills, pheromones.

What it is: what can be said of candidates by counting. `MovingAverage` knows no query at all;
`NearestCentroid` has one point per candidate; `SkillProfile` (after Symbolic-MoE, arXiv 2503.05641)
and `PheromoneTable` (after AMRO-S, arXiv 2603.12933) know clusters of queries, which stand for the
skills or intents that the papers have a language model name.

What it leaves out: the papers' language models, and recruiting several candidates for one query. A
hole is left out of every mean; a candidate never tried in a cluster has its mean over all queries.

How to use: `PredictThenOptimise(ScoreWithCost(NearestCentroid(train), ridge), train)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rlroute.data.routing_data import (
    ProfileConfig,
    assign_clusters,
    average_by_cluster,
    fit_clusters,
)
from rlroute.evaluation.metrics import average_candidates, make_one_hot, pick_best
from rlroute.policies.table_baselines import (
    Float64Array,
    check_candidates,
    draw_arrival,
    list_candidate_ids,
    list_outcomes,
    scale_rows,
)
from rlroute.types import BoolArray, FloatArray, IntArray

if TYPE_CHECKING:
    from rlroute.data.routing_data import RoutingData

CLUSTERS = 32
# Weight of the newest outcome: an average over about the last 200 queries.
DECAY = 0.005
# Temperature of the softmax over cosines that mixes the skills of a query.
SKILL_TEMPERATURE = 0.1
# Part of a pheromone trail that evaporates with every outcome: a memory of about 50 of them.
EVAPORATION = 0.02


class MovingAverage:
    """Exponential moving averages of score and cost per candidate; the query changes nothing.

    Of each candidate `average <- average + decay * (outcome - average)`, from its first outcome on,
    over the train queries in their order of arrival. It follows drift, and is the best single
    candidate at every cost weight where there is none.
    """

    name = "EMA"

    def __init__(self, train: RoutingData, decay: float = DECAY) -> None:
        arrival_Q, present_QK = draw_arrival(train), train.table.present_QK
        average_candidates(train.table.score_QK, present_QK)  # refuses a candidate never tried
        self.score_K, self.cost_K = (
            follow_average(value_QK[arrival_Q], present_QK[arrival_Q], decay)
            for value_QK in list_outcomes(train)
        )

    def predict(self, features_QF: FloatArray) -> tuple[Float64Array, Float64Array]:
        """Return the same averages for every query: score [Q, K] and normalised cost [Q, K]."""
        return (
            np.tile(self.score_K, (len(features_QF), 1)),
            np.tile(self.cost_K, (len(features_QF), 1)),
        )


def follow_average(value_QK: Float64Array, present_QK: BoolArray, decay: float) -> Float64Array:
    """Return the moving average of each candidate [K] after the last row; rows in order.

    A hole changes nothing. NaN where there is no outcome at all.
    """
    average_K = np.full(value_QK.shape[1], np.nan)
    for value_K, present_K in zip(value_QK, present_QK, strict=True):
        moved_K = np.where(np.isnan(average_K), value_K, average_K + decay * (value_K - average_K))
        average_K = np.where(present_K, moved_K, average_K)
    return average_K


class NearestCentroid:
    """One centroid per candidate: the mean of the train queries weighted by its scores.

    A query (centred, length 1) is close to a candidate as far as it lies in the direction from the
    mean of all queries that the candidate was tried on to this centroid. Closeness becomes a score
    by a straight line per candidate: least squares on train with a slope of at least 0. A candidate
    that solved nothing, or all alike, has no direction and keeps its mean score.
    """

    name = "centroids"

    def __init__(self, train: RoutingData) -> None:
        present_QK = train.table.present_QK
        score_QK = np.where(present_QK, list_outcomes(train)[0], 0.0)
        self.center_F = train.features_QF.mean(0, dtype=np.float64).astype(np.float32)
        unit_QF = scale_rows(train.features_QF, self.center_F).astype(np.float64)
        self.mean_K = average_candidates(train.table.score_QK, present_QK)
        solved_KF = score_QK.T @ unit_QF / np.maximum(score_QK.sum(0), 1e-12)[:, None]
        tried_KF = present_QK.T @ unit_QF / present_QK.sum(0)[:, None]
        held_K1 = score_QK.sum(0)[:, None] > 0
        self.direction_KF = np.where(held_K1, solved_KF - tried_KF, 0.0)
        closeness_QK = unit_QF @ self.direction_KF.T
        self.offset_K = average_candidates(closeness_QK, present_QK)
        deviation_QK = np.where(present_QK, closeness_QK - self.offset_K, 0.0)
        product_K = (deviation_QK * (score_QK - self.mean_K)).sum(0)
        self.slope_K = np.maximum(product_K, 0) / np.maximum((deviation_QK**2).sum(0), 1e-12)

    def predict_score(self, features_QF: FloatArray) -> Float64Array:
        """Return scores [Q, K] on the candidates' lines, within [0, 1]."""
        unit_QF = scale_rows(features_QF, self.center_F).astype(np.float64)
        closeness_QK = unit_QF @ self.direction_KF.T - self.offset_K
        score_QK: Float64Array = np.clip(self.mean_K + self.slope_K * closeness_QK, 0.0, 1.0)
        return score_QK


class Clusters:
    """Clusters of the train queries (k-means) and, per candidate, what it got in each.

    `score_CK` and `cost_CK` (normalised) are shrunk towards the candidate's mean as far as chance
    explains the difference.
    """

    def __init__(self, train: RoutingData, clusters: int = CLUSTERS) -> None:
        # k-means starts from rows drawn by their position: the order of a file must not decide
        features_QF = train.features_QF[draw_arrival(train)]
        self.centroid_CF = fit_clusters(features_QF, ProfileConfig(clusters=clusters), seed=0)
        cluster_Q = assign_clusters(train.features_QF, self.centroid_CF)
        present_QK = train.table.present_QK
        average_candidates(train.table.score_QK, present_QK)  # refuses a candidate never tried
        self.score_CK, self.cost_CK = (
            average_groups(value_QK, present_QK, cluster_Q, len(self.centroid_CF))
            for value_QK in list_outcomes(train)
        )

    def assign(self, features_QF: FloatArray) -> IntArray:
        """Return the nearest cluster of each query [Q]."""
        return assign_clusters(features_QF, self.centroid_CF)


def average_groups(
    value_QK: Float64Array, present_QK: BoolArray, cluster_Q: IntArray, clusters: int
) -> Float64Array:
    """Return the shrunk mean of each candidate in each cluster [C, K], holes left out."""
    columns = []
    for value_Q, present_Q in zip(value_QK.T, present_QK.T, strict=True):
        value_N = value_Q[present_Q].astype(np.float32)
        columns.append(average_by_cluster(value_N, cluster_Q[present_Q], clusters))
    return np.stack(columns, axis=1).astype(np.float64)


class SkillProfile:
    """Mean scores per skill, mixed by how much a query needs each skill (Symbolic-MoE).

    Skills are clusters; a query needs them by the softmax of its cosines to their centres. The
    paper adds up the scores of the skills that a language model names and recruits several
    candidates by a softmax over the sums; here the best sum takes the query.
    """

    name = "skill profile"

    def __init__(self, clusters: Clusters, temperature: float = SKILL_TEMPERATURE) -> None:
        self.clusters, self.temperature = clusters, temperature

    def compute_needs(self, features_QF: FloatArray) -> Float64Array:
        """Return how much each query needs each skill [Q, C]; rows sum to 1."""
        origin_F = np.zeros(features_QF.shape[1], np.float32)
        centre_CF = scale_rows(self.clusters.centroid_CF, origin_F)
        cosine_QC = (scale_rows(features_QF, origin_F) @ centre_CF.T).astype(np.float64)
        power_QC = np.exp((cosine_QC - cosine_QC.max(1, keepdims=True)) / self.temperature)
        need_QC: Float64Array = power_QC / power_QC.sum(1, keepdims=True)
        return need_QC

    def predict(self, features_QF: FloatArray) -> tuple[Float64Array, Float64Array]:
        """Return score [Q, K] and normalised cost [Q, K], mixed over the skills."""
        need_QC = self.compute_needs(features_QF)
        return need_QC @ self.clusters.score_CK, need_QC @ self.clusters.cost_CK


class PheromoneTable:
    """A trail per (cluster, candidate) that evaporates and grows with success (AMRO-S).

    With every train query of a cluster, in order of arrival, `trail <- (1 - evaporation) * trail +
    evaporation * score` for each candidate that has an outcome: quality alone lays the trail.
    Cost is the visibility `1 / (1 + cost_weight * cost)` of ant colonies, and the candidate of the
    largest trail times visibility takes the query (ants would sample by it while they learn).
    Trails begin at the candidate's mean score. The exponents of both factors are 1. As a product
    is compared, no price makes a candidate attractive that never succeeds.
    """

    name = "pheromones"

    def __init__(
        self, train: RoutingData, clusters: Clusters, evaporation: float = EVAPORATION
    ) -> None:
        self.clusters = clusters
        self.candidate_ids = list_candidate_ids(train)
        score_QK, _ = list_outcomes(train)
        present_QK = train.table.present_QK
        cluster_Q = clusters.assign(train.features_QF)
        mean_K = average_candidates(score_QK, present_QK)
        self.trail_CK = np.tile(mean_K, (len(clusters.centroid_CF), 1))
        for q in draw_arrival(train):
            row_K = self.trail_CK[cluster_Q[q]]
            laid_K = (1 - evaporation) * row_K + evaporation * score_QK[q]
            self.trail_CK[cluster_Q[q]] = np.where(present_QK[q], laid_K, row_K)

    def compute_probabilities(self, data: RoutingData, cost_weight: float) -> FloatArray:
        """Return [Q, K], 1 at the strongest attraction among the present candidates.

        Raises:
            RLRouteError: the candidates are not those it was fitted on.
        """
        check_candidates(self.name, self.candidate_ids, data)
        cluster_Q = self.clusters.assign(data.features_QF)
        attraction_CK = self.trail_CK / (1 + cost_weight * self.clusters.cost_CK)
        pick_Q = pick_best(
            attraction_CK[cluster_Q], self.clusters.cost_CK[cluster_Q], data.table.present_QK
        )
        return make_one_hot(pick_Q, len(self.candidate_ids)).astype(np.float32)
