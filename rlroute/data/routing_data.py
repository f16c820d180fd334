"""From an outcome table to what policies see: embeddings, measured profiles, candidate features.

Profiles are measured on the train split and on nothing else: mean score and cost of each candidate
over all train queries and per cluster of them (k-means on the embeddings). Candidate features are
rows of numbers, so a policy that scores (query, candidate) rows serves any list of candidates.

What it leaves out: reading tables (`rlroute.data.table`) and encoders (`rlroute.data.encoders`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from rlroute.config import StrictModel
from rlroute.data.lenders import Lenders
from rlroute.data.table import OutcomeTable
from rlroute.seeding import derive_seed, draw_permutation
from rlroute.types import (
    SPLITS,
    Candidate,
    FloatArray,
    IntArray,
    Profile,
    RLRouteError,
    SplitName,
    TokenProfile,
)

LEADING_COLUMNS = 2
MINIMUM_PRICE = 1e-4  # USD per million tokens; keeps the logarithm of a free candidate finite
PRICE_COLUMNS = 3
ROWS_AT_ONCE = 1 << 15  # of arrays that are worked on in parts; smaller ones are not cut


@dataclass(frozen=True)
class RoutingData:
    """One split of a table, ready for policies.

    `features_QF` embeds the queries. `candidate_features_KD` describes the candidates (see
    `build_candidate_features`). `cost_reference_usd` is the mean train cost of the dearest
    candidate; utility at cost weight w is `score_QK - w * cost_usd_QK / cost_reference_usd`.
    `latency_reference_seconds` is that of the slowest, None where latency does not count.
    """

    table: OutcomeTable
    features_QF: FloatArray
    candidate_features_KD: FloatArray
    cost_reference_usd: float
    latency_reference_seconds: float | None = None

    @property
    def normalised_cost_QK(self) -> FloatArray:
        """Cost in units of the reference [Q, K]; NaN where absent."""
        return self.table.cost_usd_QK / np.float32(self.cost_reference_usd)

    @property
    def normalised_latency_QK(self) -> FloatArray:
        """Latency in units of the reference [Q, K]; NaN where absent.

        Raises:
            ValueError: latency does not count here.
        """
        if self.latency_reference_seconds is None:
            raise ValueError("these data were prepared without latencies")
        return self.table.latency_seconds_QK / np.float32(self.latency_reference_seconds)

    def select_queries(self, index_Q: npt.ArrayLike) -> RoutingData:
        """Return the queries at positions `index_Q`, or where a mask is True."""
        index_Q = np.asarray(index_Q)
        return dataclasses.replace(
            self,
            table=self.table.select_queries(index_Q),
            features_QF=self.features_QF[index_Q],
        )


@dataclass(frozen=True)
class FeatureScale:
    """What turns profiles into candidate features; fitted on train, stored with the policy.

    `offset_D` and `scale_D` standardise the rows of `describe_candidate`; from `lenders` unseen
    candidates get rows in place of their own (None: their own stays). With
    `latency_reference_seconds` candidates also have columns of latencies.
    """

    cost_reference_usd: float
    offset_D: FloatArray
    scale_D: FloatArray
    lenders: Lenders | None = None
    latency_reference_seconds: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        data: dict[str, Any] = {
            "cost_reference_usd": self.cost_reference_usd,
            "offset": [float(value) for value in self.offset_D],
            "scale": [float(value) for value in self.scale_D],
        }
        if self.lenders is not None:
            data["lenders"] = self.lenders.to_dict()
        if self.latency_reference_seconds is not None:
            data["latency_reference_seconds"] = self.latency_reference_seconds
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> FeatureScale:
        """Rebuild from `to_dict`."""
        return cls(
            cost_reference_usd=float(data["cost_reference_usd"]),
            offset_D=np.asarray(data["offset"], dtype=np.float32),
            scale_D=np.asarray(data["scale"], dtype=np.float32),
            lenders=Lenders.from_dict(data["lenders"]) if data.get("lenders") else None,
            latency_reference_seconds=data.get("latency_reference_seconds"),
        )


class ProfileConfig(StrictModel):
    """How profiles are measured: the number of query clusters.

    Clusters are found on at most `fit_queries` of the train queries; all of them are measured.
    """

    clusters: int = Field(default=32, ge=1)
    fit_queries: int = Field(default=100_000, ge=1)


def measure_profiles(
    train: OutcomeTable,
    features_QF: FloatArray,
    centroids_CF: FloatArray,
    *,
    latency: bool = False,
) -> tuple[Candidate, ...]:
    """Return the table's candidates with profiles measured on `train` [features: Q_train, F].

    With `latency` they say how long candidates take per cluster; all latencies must be known then.

    Raises:
        RLRouteError: a candidate has no train outcome, so nothing is known about it.
    """
    cluster_Q = assign_clusters(features_QF, centroids_CF)
    clusters = len(centroids_CF)
    profiled = []
    for k, candidate in enumerate(train.candidates):
        present_Q = train.present_QK[:, k]
        if not present_Q.any():
            raise RLRouteError(
                f"{train.name}: candidate '{candidate.id}' has no outcome in the train split"
            )
        score_Q = train.score_QK[present_Q, k]
        cost_Q = train.cost_usd_QK[present_Q, k]
        seconds_Q = train.latency_seconds_QK[present_Q, k]
        timed_Q = seconds_Q[np.isfinite(seconds_Q)]
        profile = Profile(
            mean_score=float(score_Q.mean(dtype=np.float64)),
            mean_cost_usd=float(cost_Q.mean(dtype=np.float64)),
            score_C=average_by_cluster(score_Q, cluster_Q[present_Q], clusters),
            cost_usd_C=average_by_cluster(cost_Q, cluster_Q[present_Q], clusters),
            latency_seconds=float(timed_Q.mean(dtype=np.float64)) if len(timed_Q) else None,
            tokens=measure_tokens(
                train.prompt_tokens_QK[present_Q, k],
                train.completion_tokens_QK[present_Q, k],
                cluster_Q[present_Q],
                clusters,
            ),
            latency_seconds_C=average_by_cluster(seconds_Q, cluster_Q[present_Q], clusters)
            if latency
            else None,
        )
        profiled.append(dataclasses.replace(candidate, profile=profile))
    return tuple(profiled)


def measure_tokens(
    prompt_N: FloatArray, completion_N: FloatArray, cluster_N: IntArray, clusters: int
) -> TokenProfile | None:
    """Return the mean tokens of N calls, or None where not all of them were counted."""
    if not (np.isfinite(prompt_N).all() and np.isfinite(completion_N).all()):
        return None
    return TokenProfile(
        mean_prompt=float(prompt_N.mean(dtype=np.float64)),
        mean_completion=float(completion_N.mean(dtype=np.float64)),
        prompt_C=average_by_cluster(prompt_N, cluster_N, clusters),
        completion_C=average_by_cluster(completion_N, cluster_N, clusters),
    )


def fit_clusters(features_QF: FloatArray, config: ProfileConfig, seed: int) -> FloatArray:
    """Return k-means centroids [C, F] of the train queries; fewer queries give fewer clusters."""
    from sklearn.cluster import KMeans

    if len(features_QF) > config.fit_queries:
        order_Q = draw_permutation(len(features_QF), seed, "kmeans sample")
        features_QF = features_QF[np.sort(order_Q[: config.fit_queries])]
    clusters = min(config.clusters, len(np.unique(features_QF, axis=0)))
    model = KMeans(clusters, n_init=2, random_state=derive_seed(seed, "kmeans"))
    return np.asarray(model.fit(features_QF).cluster_centers_, dtype=np.float32)


def assign_clusters(features_QF: FloatArray, centroids_CF: FloatArray) -> IntArray:
    """Return the nearest centroid of each row [Q]."""
    cluster_Q = np.empty(len(features_QF), dtype=np.int64)
    for rows in cut_rows(len(features_QF)):
        # |x - c|^2 = |x|^2 - 2 x.c + |c|^2, and |x|^2 is the same for all centroids
        distance_BC = (centroids_CF**2).sum(axis=1) - 2 * features_QF[rows] @ centroids_CF.T
        cluster_Q[rows] = distance_BC.argmin(axis=1)
    return cluster_Q


def cut_rows(rows: int) -> Iterator[slice]:
    """Yield slices that cover the rows of a large array, so that what is made of each is small."""
    for start in range(0, rows, ROWS_AT_ONCE):
        yield slice(start, min(start + ROWS_AT_ONCE, rows))


def average_by_cluster(value_N: FloatArray, cluster_N: IntArray, clusters: int) -> FloatArray:
    """Return the mean per cluster [C], shrunk to the overall mean as far as chance explains it.

    Empirical Bayes with the variances of a one-way analysis: a cluster of n queries keeps
    n / (n + within / between) of its deviation. Where clusters differ no more than chance makes
    them, all get the overall mean.
    """
    value_N = value_N.astype(np.float64)
    count_C = np.bincount(cluster_N, minlength=clusters)
    filled = int((count_C > 0).sum())
    total, mean = len(value_N), value_N.mean()
    raw_C = np.bincount(cluster_N, weights=value_N, minlength=clusters) / np.maximum(count_C, 1)
    if filled < 2 or total <= filled:
        return np.full(clusters, mean, dtype=np.float32)  # nothing tells clusters from chance
    within = ((value_N - raw_C[cluster_N]) ** 2).sum() / (total - filled)
    mean_square = (count_C * (raw_C - mean) ** 2).sum() / (filled - 1)
    typical_count = (total - (count_C**2).sum() / total) / (filled - 1)
    between = max(0.0, (mean_square - within) / typical_count)
    kept_C = count_C * between / np.maximum(count_C * between + within, np.finfo(np.float64).tiny)
    return np.asarray(mean + kept_C * (raw_C - mean), dtype=np.float32)


def describe_candidate(candidate: Candidate) -> FloatArray:
    """Return the row [3 + 2C] of a profiled candidate that will be standardised.

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


def fit_feature_scale(candidates: Sequence[Candidate], *, latency: bool = False) -> FeatureScale:
    """Fit the references of cost (and latency) and the standardisation on profiled candidates.

    Raises:
        RLRouteError: all candidates are free, so there is no cost to trade quality against; or all
            take no time.
    """
    reference = max(get_profile(candidate).mean_cost_usd for candidate in candidates)
    if reference <= 0:
        raise RLRouteError("all candidates cost 0 USD on the train split: nothing to route for")
    slowest = None
    if latency:
        slowest = max(get_profile(candidate).latency_seconds or 0.0 for candidate in candidates)
        if slowest <= 0:
            raise RLRouteError("all candidates take 0 seconds on train: nothing to weigh")
    raw_KD = np.stack([describe_candidate(candidate) for candidate in candidates])
    spread_D = raw_KD.std(axis=0)
    return FeatureScale(
        cost_reference_usd=reference,
        offset_D=raw_KD.mean(axis=0),
        scale_D=np.where(spread_D > 1e-6, spread_D, 1.0).astype(np.float32),
        latency_reference_seconds=slowest,
    )


def build_candidate_features(candidates: Sequence[Candidate], scale: FeatureScale) -> FloatArray:
    """Return the feature rows [K, D] of profiled candidates, known to the scale or new.

    | columns    | what                                                                     |
    | ---------- | ------------------------------------------------------------------------ |
    | 1          | mean train score                                                         |
    | 1          | mean train cost in units of the reference                                |
    | 3 + 2C     | prices and deviations per cluster, standardised (`describe_candidate`)   |
    | C          | where latency counts: train latency per cluster, likewise                |
    | C          | train score per cluster                                                  |
    | C          | train cost per cluster in units of the reference                         |

    An unseen candidate borrows the 3 + 2C columns where the scale lends them; all it was measured
    for itself is its own.

    Raises:
        RLRouteError: a candidate has no profile, or none of latencies where the scale asks for it.
    """
    rows = []
    for candidate in candidates:
        profile = get_profile(candidate)
        leading = [profile.mean_score, profile.mean_cost_usd / scale.cost_reference_usd]
        standardised = standardise_candidate(candidate, scale)
        if candidate.unseen and scale.lenders is not None:
            standardised = scale.lenders.describe(profile.score_C)
        cost_C = profile.cost_usd_C / scale.cost_reference_usd
        parts = [np.array(leading), standardised, profile.score_C, cost_C]
        if scale.latency_reference_seconds is not None:
            if profile.latency_seconds_C is None:
                raise RLRouteError(
                    f"the profile of candidate '{candidate.id}' has no latency per query cluster"
                )
            parts.insert(2, profile.latency_seconds_C / scale.latency_reference_seconds)
        rows.append(np.concatenate(parts))
    return np.stack(rows).astype(np.float32)


def standardise_candidate(candidate: Candidate, scale: FeatureScale) -> FloatArray:
    """Return the standardised row [3 + 2C] of a profiled candidate's own description."""
    return (describe_candidate(candidate) - scale.offset_D) / scale.scale_D


def count_candidate_features(clusters: int) -> int:
    """Return D, the width of a candidate's feature row."""
    return LEADING_COLUMNS + PRICE_COLUMNS + 4 * clusters


def prepare_splits(
    table: OutcomeTable,
    features_QF: FloatArray,
    candidates: Sequence[Candidate],
    scale: FeatureScale,
) -> dict[SplitName, RoutingData]:
    """Cut a table with its embeddings [Q, F] into splits that share their candidate features.

    The queries of a split stand side by side (`OutcomeTable.group_splits`): nothing is copied.
    """
    table = dataclasses.replace(table, candidates=tuple(candidates))
    candidate_features_KD = build_candidate_features(candidates, scale)
    return {
        split: RoutingData(
            table=table.select_split(split),
            features_QF=features_QF[find_split(table, split)],
            candidate_features_KD=candidate_features_KD,
            cost_reference_usd=scale.cost_reference_usd,
            latency_reference_seconds=scale.latency_reference_seconds,
        )
        for split in SPLITS
    }


def find_split(table: OutcomeTable, split: SplitName) -> slice:
    """Return where the queries of a split stand in a table whose splits stand side by side.

    Raises:
        ValueError: they do not.
    """
    index_Q = np.flatnonzero(table.split_Q == split)
    if len(index_Q) and index_Q[-1] - index_Q[0] + 1 != len(index_Q):
        raise ValueError(f"{table.name}: the queries of split '{split}' are not side by side")
    return slice(int(index_Q[0]), int(index_Q[-1]) + 1) if len(index_Q) else slice(0, 0)
