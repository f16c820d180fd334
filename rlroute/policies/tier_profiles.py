"""Where a tier policy starts: what every assignment of tiers got on questions like the one at hand.

    p_B       = q_B . W                       (question's embedding, in the directions that matter)
    c_B       = nearest of C centroids of p
    start_BK  = max over what may follow of  score_CL[c_B] - cost weight * cost_CL[c_B]

A leaf L is a tier for every module. At a module the tiers before it are chosen, so tier k is worth
the best leaf that begins with them and k. Whoever takes the best tier at each module thus plays the
best assignment of its cluster at its cost weight.

W are the directions of ridge regression of all leaves' scores on the embedding in which the
predictions vary most: k-means on the embedding itself would group questions by the names in them.
Means per cluster are shrunk to the overall mean as far as chance explains the differences
(`rlroute.data.routing_data.average_by_cluster`), so where questions do not differ, all of this is
the best static assignment.

It needs a tree of all outcomes on train. A failed run counts for nothing; an assignment that failed
on all train questions counts as a wrong answer at the dearest assignment's cost.

What it leaves out: what is learnt on top (`rlroute.policies.tier_scorer`).

How to use: `measure_tier_profiles(query_QE, score_QL, cost_usd_QL, reference_usd, shape, seed)`,
then `TierStart(shape, dimension).set_profiles(profiles)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor, nn

from rlroute.config import StrictModel
from rlroute.data.routing_data import (
    ProfileConfig,
    assign_clusters,
    average_by_cluster,
    fit_clusters,
)
from rlroute.extras import require
from rlroute.types import BoolArray, FloatArray, IntArray

RIDGE_PENALTY = 3.0  # flat between 1 and 10


class TierProfileConfig(StrictModel):
    """How profiles are measured, and how much the first policy trusts them.

    `sharpness` times a tier's start value are its first logits.
    """

    clusters: int = Field(default=12, ge=1)
    directions: int = Field(default=3, ge=1)
    sharpness: float = Field(default=100.0, gt=0, allow_inf_nan=False)


class TierStartShape(TierProfileConfig):
    """The shape of a `TierStart`: `counts` are the numbers of tiers of the modules."""

    counts: tuple[int, ...] = Field(min_length=1)


@dataclass(frozen=True)
class TierProfiles:
    """Scores and costs (unit: the reference) of L leaves in C clusters of questions."""

    projection_EP: FloatArray
    centroids_CP: FloatArray
    score_CL: FloatArray
    cost_CL: FloatArray


# --- Measuring ------------------------------------------------------------------------------------


def measure_tier_profiles(
    query_QE: FloatArray,
    score_QL: npt.NDArray[np.floating],
    cost_usd_QL: npt.NDArray[np.floating],
    reference_usd: float,
    config: TierProfileConfig,
    seed: int,
) -> TierProfiles:
    """Measure profiles on the train questions; scores and costs are NaN where a run failed.

    Fewer questions give fewer clusters and directions; the arrays are filled up to the sizes of
    `config` with what no question falls into.

    Raises:
        RLRouteError: scikit-learn is not installed.
    """
    present_QL = np.isfinite(score_QL) & np.isfinite(cost_usd_QL)
    projection_EP = find_directions(query_QE, score_QL, present_QL, config.directions)
    place_QP = query_QE @ projection_EP
    found_CP = fit_clusters(place_QP, ProfileConfig(clusters=config.clusters), seed)
    spare = config.clusters - len(found_CP)
    centroids_CP = np.concatenate([found_CP, np.repeat(found_CP[:1], spare, axis=0)])
    cluster_Q = assign_clusters(place_QP, centroids_CP)
    cost_QL = cost_usd_QL / reference_usd
    score_CL = average_leaves_by_cluster(score_QL, present_QL, cluster_Q, config.clusters)
    cost_CL = average_leaves_by_cluster(cost_QL, present_QL, cluster_Q, config.clusters)
    never_L = ~present_QL.any(axis=0)
    score_CL[:, never_L] = 0.0
    cost_CL[:, never_L] = 1.0 if never_L.all() else cost_CL[:, ~never_L].max()
    return TierProfiles(projection_EP, centroids_CP, score_CL, cost_CL)


def find_directions(
    query_QE: FloatArray, score_QL: npt.NDArray[np.floating], present_QL: BoolArray, count: int
) -> FloatArray:
    """Return the directions [E, P] of the embedding in which predicted scores vary most.

    What failed has no share in it: it stands at its leaf's mean.
    """
    total_L = np.where(present_QL, score_QL, 0.0).sum(axis=0, dtype=np.float64)
    mean_L = total_L / np.maximum(present_QL.sum(axis=0), 1)
    deviation_QL = np.where(present_QL, score_QL - mean_L, 0.0)
    model = require("sklearn.linear_model", "train").Ridge(alpha=RIDGE_PENALTY)
    slope_LE = model.fit(query_QE.astype(np.float64), deviation_QL).coef_
    predicted_QL = (query_QE - query_QE.mean(axis=0)) @ slope_LE.T
    # the leaves' axes along which predictions vary, largest first; their signs are free
    _, axis_PL = np.linalg.eigh(predicted_QL.T @ predicted_QL)
    found_EP = slope_LE.T @ axis_PL[:, ::-1][:, :count]
    projection_EP = np.zeros((query_QE.shape[1], count), dtype=np.float32)
    projection_EP[:, : found_EP.shape[1]] = found_EP
    return projection_EP


def average_leaves_by_cluster(
    value_QL: npt.NDArray[np.floating], present_QL: BoolArray, cluster_Q: IntArray, clusters: int
) -> FloatArray:
    """Return each leaf's shrunk mean per cluster [C, L], over what did not fail; 0 if all did."""
    mean_CL = np.zeros((clusters, value_QL.shape[1]), dtype=np.float32)
    for leaf in np.flatnonzero(present_QL.any(axis=0)):
        of_Q = present_QL[:, leaf]
        value_N = np.asarray(value_QL[of_Q, leaf], dtype=np.float32)
        mean_CL[:, leaf] = average_by_cluster(value_N, cluster_Q[of_Q], clusters)
    return mean_CL


# --- Starting from them ---------------------------------------------------------------------------


class TierStart(nn.Module):
    """Gives the start values of tiers; its arrays are buffers, and nothing of it is learnt."""

    def __init__(self, shape: TierStartShape, dimension: int) -> None:
        super().__init__()
        self.shape = shape
        clusters, leaves = shape.clusters, math.prod(shape.counts)
        self.projection_EP: Tensor
        self.centroids_CP: Tensor
        self.score_CL: Tensor
        self.cost_CL: Tensor
        self.register_buffer("projection_EP", torch.zeros(dimension, shape.directions))
        self.register_buffer("centroids_CP", torch.zeros(clusters, shape.directions))
        self.register_buffer("score_CL", torch.zeros(clusters, leaves))
        self.register_buffer("cost_CL", torch.zeros(clusters, leaves))

    def set_profiles(self, profiles: TierProfiles) -> None:
        """Take over what was measured."""
        self.projection_EP.copy_(torch.as_tensor(profiles.projection_EP))
        self.centroids_CP.copy_(torch.as_tensor(profiles.centroids_CP))
        self.score_CL.copy_(torch.as_tensor(profiles.score_CL))
        self.cost_CL.copy_(torch.as_tensor(profiles.cost_CL))

    def find_clusters(self, query_NE: Tensor) -> Tensor:
        """Return the nearest centroid of each question [N]."""
        place_NP = query_NE @ self.projection_EP
        distance_NC = (self.centroids_CP**2).sum(dim=1) - 2 * place_NP @ self.centroids_CP.T
        return distance_NC.argmin(dim=1)

    def forward(
        self, query_NE: Tensor, cost_weight_N: Tensor, chosen_NMK: Tensor, module_N: Tensor
    ) -> Tensor:
        """Return the best utility that each tier of a module can still come to [N, K].

        `chosen_NMK` is 1 at the tiers of the modules before; 0 where a module lacks a tier.
        """
        counts, clusters = self.shape.counts, self.shape.clusters
        cluster_N = self.find_clusters(query_NE)
        start_NK = torch.zeros(len(query_NE), chosen_NMK.shape[2], device=query_NE.device)
        for module, tiers in enumerate(counts):
            row_R = (module_N == module).nonzero().squeeze(1)
            before_R = torch.zeros_like(row_R)  # which of the ways to choose all modules before
            for earlier in range(module):
                tier_R = chosen_NMK[row_R, earlier].argmax(dim=1)
                before_R = before_R * counts[earlier] + tier_R
            ways = (clusters, math.prod(counts[:module]), tiers, -1)
            place = (cluster_N[row_R], before_R)
            score_RKJ, cost_RKJ = self.score_CL.view(ways)[place], self.cost_CL.view(ways)[place]
            utility_RKJ = score_RKJ - cost_weight_N[row_R, None, None] * cost_RKJ
            start_NK[row_R, :tiers] = utility_RKJ.amax(dim=2)
        return start_NK
