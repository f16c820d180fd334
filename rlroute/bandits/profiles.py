"""Profiles of candidates measured on a stream, from calls that were paid for.

What it is: the history of a learner's own outcomes, and from it, whenever `measure` is called, mean
score and cost of each candidate, over all its queries and per cluster of them (shrunk as in
`rlroute.data.routing_data`), as the rows of features that a candidate scorer reads. A candidate is
known from `probes` outcomes on. The standardisation is fitted at the first measurement.

Outcomes come from picks, so a cluster's mean is one over the queries that the learner found fit for
the candidate; what that misses is the network's to learn.

What it leaves out: who is probed and when (`rlroute.trainers.online_ppo`).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rlroute.bandits.base import Float64Array, StateArrays
from rlroute.bandits.stream import StreamData
from rlroute.data.routing_data import (
    FeatureScale,
    assign_clusters,
    average_by_cluster,
    build_candidate_features,
    count_candidate_features,
    describe_candidate,
)
from rlroute.types import BoolArray, Candidate, FloatArray, IntArray, Prices, Profile


class StreamProfiles:
    """A learner's history of outcomes and the profiles measured from it."""

    def __init__(self, data: StreamData, probes: int) -> None:
        self.data, self.probes = data, probes
        candidates = len(data.table.candidates)
        self.history: list[tuple[int, int, float, float]] = []  # cluster, candidate, score, cost
        self.count_K: IntArray = np.zeros(candidates, dtype=np.int64)
        self.measured = 0  # rows of the history behind the profiles
        self.first = 0  # rows behind the standardisation
        self.profile_by_column: dict[int, Profile] = {}
        self.scale: FeatureScale | None = None
        self.known_K: BoolArray = np.zeros(candidates, dtype=np.bool_)  # whose profile is measured

    @property
    def ready_K(self) -> BoolArray:
        """Who has outcomes enough for a profile, measured or not."""
        return np.asarray(self.count_K >= self.probes)

    @property
    def fitted_scale(self) -> FeatureScale:
        """The standardisation, once somebody is known."""
        assert self.scale is not None  # fitted with the first profile
        return self.scale

    def record(self, features_E: FloatArray, candidate: int, score: float, cost: float) -> None:
        """Add an outcome: its query's embedding, its score, its normalised cost at first prices."""
        cluster = int(assign_clusters(features_E[None], self.data.centroids_CE)[0])
        self.history.append((cluster, candidate, score, cost))
        self.count_K[candidate] += 1

    def measure(self) -> None:
        """Measure everybody who is ready from the whole history."""
        self.measured = len(self.history)
        self.set_profiles(self.measure_prefix(self.measured))
        if self.scale is None and self.profile_by_column:
            self.first = self.measured
            self.scale = self.fit_scale(self.profile_by_column)

    def set_profiles(self, profile_by_column: dict[int, Profile]) -> None:
        """Take profiles as those that are known."""
        self.profile_by_column = profile_by_column
        self.known_K[:] = False
        self.known_K[list(profile_by_column)] = True

    def measure_prefix(self, rows: int) -> dict[int, Profile]:
        """Return the profiles by column that the first rows of the history give."""
        history_N4 = np.array(self.history[:rows], dtype=np.float64).reshape(rows, 4)
        clusters, found = len(self.data.centroids_CE), {}
        for k in range(len(self.count_K)):
            own_N4 = history_N4[history_N4[:, 1] == k]
            if len(own_N4) < self.probes:
                continue
            cluster_N = own_N4[:, 0].astype(np.int64)
            cost_usd_N = own_N4[:, 3] * self.data.cost_reference_usd
            found[k] = Profile(
                mean_score=float(own_N4[:, 2].mean()),
                mean_cost_usd=float(cost_usd_N.mean()),
                score_C=average_by_cluster(own_N4[:, 2], cluster_N, clusters),
                cost_usd_C=average_by_cluster(cost_usd_N, cluster_N, clusters),
            )
        return found

    def fit_scale(self, profiles: dict[int, Profile]) -> FeatureScale:
        """Return the standardisation over some profiles; the unit of cost is the stream's."""
        ones_K = np.ones(len(self.count_K))
        described = [self.describe(k, profile, ones_K) for k, profile in profiles.items()]
        raw_KD = np.stack([describe_candidate(candidate) for candidate in described])
        spread_D = raw_KD.std(axis=0)
        return FeatureScale(
            cost_reference_usd=self.data.cost_reference_usd,
            offset_D=raw_KD.mean(axis=0),
            scale_D=np.where(spread_D > 1e-6, spread_D, 1.0).astype(np.float32),
        )

    def describe(self, column: int, profile: Profile, price_factor_K: Float64Array) -> Candidate:
        """Return a candidate with its profile, both at the prices of the moment."""
        candidate, factor = self.data.table.candidates[column], float(price_factor_K[column])
        prices = candidate.prices
        return replace(
            candidate,
            prices=Prices(prices.input * factor, prices.output * factor, prices.per_call * factor),
            profile=replace(
                profile,
                mean_cost_usd=profile.mean_cost_usd * factor,
                cost_usd_C=profile.cost_usd_C * np.float32(factor),
            ),
        )

    def build_features(self, price_factor_K: Float64Array) -> FloatArray:
        """Return the candidates' features [K, D]; 0 for those that are not known."""
        columns = count_candidate_features(len(self.data.centroids_CE))
        features_KD = np.zeros((len(self.count_K), columns), dtype=np.float32)
        for k, profile in self.profile_by_column.items():
            described = self.describe(k, profile, price_factor_K)
            features_KD[k] = build_candidate_features([described], self.fitted_scale)[0]
        return features_KD

    def get_state(self) -> StateArrays:
        """Return the history and how much of it is measured."""
        return {
            "history_N4": np.array(self.history, dtype=np.float64).reshape(-1, 4),
            "measured": np.array([self.measured, self.first]),
        }

    def set_state(self, state: StateArrays) -> None:
        """Go on from a state of `get_state`; profiles are measured again from the history."""
        history_N4 = np.asarray(state["history_N4"], dtype=np.float64)
        self.history = [(int(c), int(k), float(s), float(u)) for c, k, s, u in history_N4]
        columns_N = history_N4[:, 1].astype(np.int64)
        self.count_K = np.bincount(columns_N, minlength=len(self.count_K))
        self.measured, self.first = (int(value) for value in state["measured"])
        self.set_profiles(self.measure_prefix(self.measured))
        if self.first:
            self.scale = self.fit_scale(self.measure_prefix(self.first))
