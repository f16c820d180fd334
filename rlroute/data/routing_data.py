"""From an outcome table to what policies see: embeddings, measured profiles, candidate features.

Profiles are measured on the train split and on nothing else: mean score and cost of each candidate
over all train queries and per cluster of them (k-means on the embeddings). Candidate features are
rows of numbers, so a policy that scores (query, candidate) rows serves any list of candidates.

What it leaves out: reading tables (`rlroute.data.table`) and encoders (`rlroute.data.encoders`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from rlroute.config import StrictModel
from rlroute.data.table import OutcomeTable
from rlroute.seeding import derive_seed
from rlroute.types import (
    SPLITS,
    Candidate,
    FloatArray,
    IntArray,
    Profile,
    RLRouteError,
    SplitName,
)

MEAN_SCORE_COLUMN = 0
MEAN_COST_COLUMN = 1
LEADING_COLUMNS = 2
MINIMUM_PRICE = 1e-4  # USD per million tokens; keeps the logarithm of a free candidate finite
CLUSTER_PRIOR_QUERIES = 10.0


@dataclass(frozen=True)
class RoutingData:
    """One split of a table, ready for policies.

    `features_QF` embeds the queries. `candidate_features_KD` describes the candidates: column 0 is
    the mean train score, column 1 the mean train cost in units of the reference, the rest is
    standardised. `cost_reference_usd` is the mean train cost of the dearest candidate; utility at
    cost weight w is `score_QK - w * cost_usd_QK / cost_reference_usd`.
    """

    table: OutcomeTable
    features_QF: FloatArray
    candidate_features_KD: FloatArray
    cost_reference_usd: float

    @property
    def normalised_cost_QK(self) -> FloatArray:
        """Cost in units of the reference [Q, K]; NaN where absent."""
        return self.table.cost_usd_QK / np.float32(self.cost_reference_usd)


@dataclass(frozen=True)
class FeatureScale:
    """What turns profiles into candidate features; fitted on train, stored with the policy.

    `offset_D` and `scale_D` standardise the columns after the first two.
    """

    cost_reference_usd: float
    offset_D: FloatArray
    scale_D: FloatArray

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "cost_reference_usd": self.cost_reference_usd,
            "offset": [float(value) for value in self.offset_D],
            "scale": [float(value) for value in self.scale_D],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> FeatureScale:
        """Rebuild from `to_dict`."""
        return cls(
            cost_reference_usd=float(data["cost_reference_usd"]),
            offset_D=np.asarray(data["offset"], dtype=np.float32),
            scale_D=np.asarray(data["scale"], dtype=np.float32),
        )


class ProfileConfig(StrictModel):
    """How profiles are measured: the number of query clusters."""

    clusters: int = Field(default=16, ge=1)


def measure_profiles(
    train: OutcomeTable, features_QF: FloatArray, config: ProfileConfig, seed: int
) -> tuple[Candidate, ...]:
    """Return the table's candidates with profiles measured on `train` [features: Q_train, F].

    Raises:
        RLRouteError: a candidate has no train outcome, so nothing is known about it.
    """
    cluster_Q = assign_clusters(features_QF, config.clusters, seed)
    profiled = []
    for k, candidate in enumerate(train.candidates):
        present_Q = train.present_QK[:, k]
        if not present_Q.any():
            raise RLRouteError(
                f"{train.name}: candidate '{candidate.id}' has no outcome in the train split"
            )
        score_Q = train.score_QK[present_Q, k]
        cost_Q = train.cost_usd_QK[present_Q, k]
        profile = Profile(
            mean_score=float(score_Q.mean(dtype=np.float64)),
            mean_cost_usd=float(cost_Q.mean(dtype=np.float64)),
            score_C=average_by_cluster(score_Q, cluster_Q[present_Q], config.clusters),
            cost_usd_C=average_by_cluster(cost_Q, cluster_Q[present_Q], config.clusters),
        )
        profiled.append(dataclasses.replace(candidate, profile=profile))
    return tuple(profiled)


def assign_clusters(features_QF: FloatArray, clusters: int, seed: int) -> IntArray:
    """Return the k-means cluster of each row; fewer rows than clusters use fewer clusters."""
    from sklearn.cluster import KMeans

    model = KMeans(
        min(clusters, len(features_QF)), n_init=2, random_state=derive_seed(seed, "kmeans")
    )
    return np.asarray(model.fit_predict(features_QF), dtype=np.int64)


def average_by_cluster(value_N: FloatArray, cluster_N: IntArray, clusters: int) -> FloatArray:
    """Return the mean per cluster [C], shrunk towards the overall mean by ten virtual queries."""
    count_C = np.bincount(cluster_N, minlength=clusters)
    total_C = np.bincount(cluster_N, weights=value_N, minlength=clusters)
    prior = CLUSTER_PRIOR_QUERIES
    mean_C = (total_C + prior * value_N.mean(dtype=np.float64)) / (count_C + prior)
    return np.asarray(mean_C, dtype=np.float32)


def describe_candidate(candidate: Candidate) -> FloatArray:
    """Return the raw feature row [D - 2] of a profiled candidate, before standardisation.

    Logarithms of its three prices, its score per cluster as a deviation from its mean score, and
    the logarithm of its cost per cluster relative to its mean cost.

    Raises:
        RLRouteError: the candidate has no profile.
    """
    profile = get_profile(candidate)
    prices = candidate.prices
    price_3 = [prices.input, prices.output, prices.per_call * 1_000_000]
    log_price_3 = np.log10(np.maximum(price_3, MINIMUM_PRICE))
    mean_cost = max(profile.mean_cost_usd, np.finfo(np.float32).tiny)
    cost_C = np.maximum(profile.cost_usd_C, np.finfo(np.float32).tiny)
    parts = [log_price_3, profile.score_C - profile.mean_score, np.log(cost_C / mean_cost)]
    return np.concatenate(parts).astype(np.float32)


def get_profile(candidate: Candidate) -> Profile:
    """Return the candidate's profile, or say that it has none."""
    if candidate.profile is None:
        raise RLRouteError(f"candidate '{candidate.id}' has no measured profile")
    return candidate.profile


def fit_feature_scale(candidates: Sequence[Candidate]) -> FeatureScale:
    """Fit the cost reference and the standardisation on profiled candidates.

    Raises:
        RLRouteError: all candidates are free, so there is no cost to trade quality against.
    """
    reference = max(get_profile(candidate).mean_cost_usd for candidate in candidates)
    if reference <= 0:
        raise RLRouteError("all candidates cost 0 USD on the train split: nothing to route for")
    raw_KD = np.stack([describe_candidate(candidate) for candidate in candidates])
    spread_D = raw_KD.std(axis=0)
    return FeatureScale(
        cost_reference_usd=reference,
        offset_D=raw_KD.mean(axis=0),
        scale_D=np.where(spread_D > 1e-6, spread_D, 1.0).astype(np.float32),
    )


def build_candidate_features(candidates: Sequence[Candidate], scale: FeatureScale) -> FloatArray:
    """Return the feature rows [K, D] of profiled candidates, known to the scale or new."""
    rows = []
    for candidate in candidates:
        profile = get_profile(candidate)
        leading = [profile.mean_score, profile.mean_cost_usd / scale.cost_reference_usd]
        rest = (describe_candidate(candidate) - scale.offset_D) / scale.scale_D
        rows.append(np.concatenate([np.asarray(leading, dtype=np.float32), rest]))
    return np.stack(rows).astype(np.float32)


def prepare_splits(
    table: OutcomeTable,
    features_QF: FloatArray,
    candidates: Sequence[Candidate],
    scale: FeatureScale,
) -> dict[SplitName, RoutingData]:
    """Cut a table with its embeddings [Q, F] into splits that share their candidate features."""
    table = dataclasses.replace(table, candidates=tuple(candidates))
    candidate_features_KD = build_candidate_features(candidates, scale)
    return {
        split: RoutingData(
            table=table.select_split(split),
            features_QF=features_QF[table.split_Q == split],
            candidate_features_KD=candidate_features_KD,
            cost_reference_usd=scale.cost_reference_usd,
        )
        for split in SPLITS
    }
