"""How a candidate is described before it is profiled: the four switches of RouteProfile.

    representation  prices     prices, kind and family alone (always part of the others)
                    embedding  what was measured of it per cluster of queries
                    text       its description and queries that it solved, embedded
                    random     a vector drawn from its id: the control
    form, hops      flat       the vector as it is
                    graph      X <- A_norm X, `hops` times, on candidates and clusters of queries
    learning        none       clusters without calls keep what is expected of them
                    trained    they are filled in by factors that reconstruct masked profiles

A_norm = D^-1/2 A D^-1/2 of the bipartite graph whose edges are the scores, min-max scaled. Source:
RouteProfile (arXiv 2605.00180). Pure functions of arrays.

What it leaves out: text propagated by a language model, trained graph attention, and what the
descriptions are for (`rlroute.data.candidate_profiles`).

How to use: `ProfileSwitches(representation="embedding", form="graph", hops=2)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from rlroute.config import StrictModel
from rlroute.seeding import draw_uniform
from rlroute.types import IntArray

Float64Array = npt.NDArray[np.float64]
RANDOM_COLUMNS = 16
GREATEST_RANK = 8
NO_RESIDUAL = 1e-4  # of a score: nothing is left to reconstruct


class ProfileSwitches(StrictModel):
    """The four switches; those that would do nothing are refused."""

    representation: Literal["prices", "embedding", "text", "random"] = "prices"
    form: Literal["flat", "graph"] = "flat"
    hops: int = Field(default=0, ge=0, le=8)
    learning: Literal["none", "trained"] = "none"

    @model_validator(mode="after")
    def check_graph(self) -> ProfileSwitches:
        """Refuse a graph without hops, hops without a graph, and a graph of nothing."""
        if (self.form == "graph") != (self.hops > 0):
            raise ValueError(
                f"form '{self.form}' with hops {self.hops}: a graph takes at least 1, flat takes 0"
            )
        if self.form == "graph" and self.representation not in ("embedding", "text"):
            raise ValueError(
                f"form 'graph' propagates 'embedding' or 'text', not '{self.representation}'"
            )
        return self


# --- Representation -------------------------------------------------------------------------------


def draw_random_vectors(ids: list[str], seed: int) -> Float64Array:
    """Return a vector per id [K, 16], uniform in [-1, 1): says nothing but who it is."""
    columns = np.arange(RANDOM_COLUMNS)
    return np.array([2 * draw_uniform(seed, "random profile", one, columns) - 1 for one in ids])


# --- Form and aggregation -------------------------------------------------------------------------


def scale_min_max(value_KC: npt.ArrayLike) -> Float64Array:
    """Return values scaled to least 0 and greatest 1; all 1 where they are equal."""
    value_KC = np.asarray(value_KC, np.float64)
    low, high = value_KC.min(), value_KC.max()
    return (value_KC - low) / (high - low) if high > low else np.ones_like(value_KC)


def propagate(
    candidate_KE: npt.ArrayLike, cluster_CE: npt.ArrayLike, edge_KC: npt.ArrayLike, hops: int
) -> Float64Array:
    """Return the candidates' rows [K, E] of X after `hops` times X <- D^-1/2 A D^-1/2 X.

    `edge_KC` weighs the links of candidates and clusters, not below 0; who has no link gets zeros.
    """
    edge_KC = np.asarray(edge_KC, np.float64)
    degree_K, degree_C = edge_KC.sum(axis=1), edge_KC.sum(axis=0)
    root_KC = np.sqrt(np.outer(degree_K, degree_C))
    normal_KC = np.divide(edge_KC, root_KC, out=np.zeros_like(edge_KC), where=root_KC > 0)
    x_KE, x_CE = np.asarray(candidate_KE, np.float64), np.asarray(cluster_CE, np.float64)
    for _ in range(hops):
        x_KE, x_CE = normal_KC @ x_CE, normal_KC.T @ x_KE
    return x_KE


# --- Learning -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Factors:
    """A linear autoencoder of profiles: residuals per cluster are R factors plus a rest.

    `pattern_RC` has orthonormal rows, `variance_R` is how much candidates differ along each,
    `rest_variance` what the factors leave of a cluster's residual.
    """

    pattern_RC: Float64Array
    variance_R: Float64Array
    rest_variance: float

    def fill(
        self, residual_N: npt.ArrayLike, cluster_N: IntArray, call_variance: float
    ) -> Float64Array:
        """Return the residual per cluster [C] that N calls point to, clusters without any too.

        The most likely factors under calls of variance `call_variance`, shrunk by their own.
        """
        count_C = np.bincount(cluster_N, minlength=self.pattern_RC.shape[1])
        total_C = np.bincount(cluster_N, weights=np.asarray(residual_N), minlength=len(count_C))
        held_C = np.where(count_C > 0, count_C, 1)
        # of an average of n_c calls, the rest of its cluster included
        precision_C = np.where(count_C > 0, 1 / (call_variance / held_C + self.rest_variance), 0.0)
        return fill_row(self.pattern_RC, self.variance_R, total_C / held_C, precision_C)


def fill_row(
    pattern_RC: Float64Array,
    variance_R: Float64Array,
    value_C: Float64Array,
    precision_C: Float64Array,
) -> Float64Array:
    """Return the row [C] reconstructed from the entries whose precision is above 0."""
    weighted_RC = pattern_RC * precision_C
    gram_RR = weighted_RC @ pattern_RC.T + np.diag(1 / variance_R)
    return np.asarray(np.linalg.solve(gram_RR, weighted_RC @ value_C) @ pattern_RC)


def make_factors(residual_KC: npt.ArrayLike, rank: int) -> Factors:
    """Return the factors of the greatest variance of the known candidates' residuals."""
    residual_KC = np.asarray(residual_KC, np.float64)
    _, size_R, pattern_RC = np.linalg.svd(residual_KC, full_matrices=False)
    tiny = np.finfo(np.float32).tiny
    variance_R = np.maximum(size_R[:rank] ** 2 / len(residual_KC), tiny)
    left_KC = residual_KC - residual_KC @ pattern_RC[:rank].T @ pattern_RC[:rank]
    return Factors(pattern_RC[:rank], variance_R, max(float((left_KC**2).mean()), 1e-6))


def train_factors(residual_KC: npt.ArrayLike, seed: int, masks: int = 8) -> Factors | None:
    """Choose the rank that reconstructs masked profiles best; None where no rank beats zeros.

    Each known candidate in turn is left out of the fit, half of its clusters are masked (`masks`
    draws), and the masked half is predicted from the rest.
    """
    residual_KC = np.asarray(residual_KC, np.float64)
    candidates, clusters = residual_KC.shape
    greatest = min(GREATEST_RANK, candidates - 1, clusters)
    error_R = np.zeros(greatest + 1)
    for k in range(candidates):
        others_KC = np.delete(residual_KC, k, axis=0)
        fitted = [make_factors(others_KC, rank) for rank in range(1, greatest + 1)]
        for mask in range(masks):
            shown_C = draw_uniform(seed, "masked profile", k, mask, np.arange(clusters)) < 0.5
            hidden_C = residual_KC[k][~shown_C]
            error_R[0] += (hidden_C**2).sum()
            for rank, one in enumerate(fitted, start=1):
                precision_C = shown_C / one.rest_variance
                found_C = fill_row(one.pattern_RC, one.variance_R, residual_KC[k], precision_C)
                error_R[rank] += ((found_C[~shown_C] - hidden_C) ** 2).sum()
    if error_R[0] < residual_KC.size * masks * NO_RESIDUAL**2:
        return None
    best = int(error_R.argmin())
    return make_factors(residual_KC, best) if best else None
