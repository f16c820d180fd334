"""Where a policy starts: kernel ridge regression of train scores on the queries' embeddings.

    k(x, a)    = exp(-decay * |x - a|^2)                     to `anchors` of the train queries, a
    quality    = mean score of candidate k  +  k(x, anchors) . A_Mk
    A_Mk       = least squares with a penalty on what k scored above or below its mean

Without it a policy starts from the mean score of k on the query's cluster, with it from the middle
of the two: they err in different ways, so their mean errs less. The regression is finer where train
queries lie near, and falls back to the candidate's mean where none does.

The coefficients are written as a map of the candidates' described features, A_Mk = W_MD . d_k, that
reads what was measured of their scores and nothing else: a candidate can be added by its profile,
and a price changes no quality. Holes of the table are left out of the sums. Like the profiles it
reads every outcome of the train split, also where the algorithm that goes on from it sees the
picked outcome only.

What it leaves out: costs (they start from the clusters' means), the network
(`rlroute.policies.mlp`), and how far a quality may be believed on tasks that were never seen
(`rlroute.policies.margin`).

How to use: `fit_kernel_start(train, KernelConfig(), seed=0)`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import Field

from rlroute.config import StrictModel
from rlroute.data.routing_data import LEADING_COLUMNS, PRICE_COLUMNS, RoutingData
from rlroute.seeding import draw_permutation
from rlroute.types import FloatArray, IntArray

CHUNK = 4096  # rows of the kernel matrix in memory at a time
# Keeps anchors that lie on top of each other from making the sums singular.
JITTER = 1e-6
# Penalty on W, relative to the mean square of a candidate's described scores.
MAP_PENALTY = 1e-3

Float64Array = npt.NDArray[np.float64]


class KernelConfig(StrictModel):
    """The regression: number of anchors, how fast the kernel falls, and the penalty."""

    anchors: int = Field(default=1024, ge=1)
    decay: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    penalty: float = Field(default=32.0, gt=0, allow_inf_nan=False)


@dataclass(frozen=True)
class KernelStart:
    """Anchors [M, F] and the map W [M, D] from described candidates to coefficients."""

    anchors_MF: FloatArray
    weight_MD: FloatArray


def fit_kernel_start(train: RoutingData, config: KernelConfig, seed: int) -> KernelStart:
    """Fit the start on the train split; the seed draws which queries are anchors."""
    anchors_MF = train.features_QF[draw_anchors(len(train.features_QF), config, seed)]
    mean_K = train.candidate_features_KD[:, 0].astype(np.float64)
    coefficient_MK = fit_coefficients(train, anchors_MF, mean_K, config)
    features_KD = drop_latencies(train)
    return KernelStart(anchors_MF, map_coefficients(coefficient_MK, features_KD))


def drop_latencies(data: RoutingData) -> FloatArray:
    """Return the candidates' features [K, D] without the columns that there are for latency."""
    features_KD = data.candidate_features_KD
    if data.latency_reference_seconds is None:
        return features_KD
    clusters = (features_KD.shape[1] - LEADING_COLUMNS - PRICE_COLUMNS) // 5
    return np.delete(features_KD, np.s_[-3 * clusters : -2 * clusters], axis=1)


def draw_anchors(queries: int, config: KernelConfig, seed: int) -> IntArray:
    """Return the rows of the train queries that are anchors [M]: all, or a draw without repeats."""
    rows_M: IntArray = np.sort(draw_permutation(queries, seed, "anchors")[: config.anchors])
    return rows_M


def compute_kernel(features_QF: FloatArray, anchors_MF: FloatArray, decay: float) -> FloatArray:
    """Return exp(-decay * squared distance) of queries to anchors [Q, M], 1 where they are one."""
    square_QM = (features_QF**2).sum(axis=1)[:, None] + (anchors_MF**2).sum(axis=1)
    square_QM -= 2 * features_QF @ anchors_MF.T
    kernel_QM: FloatArray = np.exp(-decay * np.maximum(square_QM, 0))
    return kernel_QM


def fit_coefficients(
    data: RoutingData, anchors_MF: FloatArray, mean_K: Float64Array, config: KernelConfig
) -> Float64Array:
    """Return the coefficients [M, K] for what was scored above or below `mean_K`.

    Candidates share one matrix of sums where no outcome is missing.
    """
    table = data.table
    whole = bool(table.present_QK.all())
    candidates, anchors = table.score_QK.shape[1], len(anchors_MF)
    gram_GMM = np.zeros((1 if whole else candidates, anchors, anchors))
    target_MK = np.zeros((anchors, candidates))
    for start in range(0, len(table.score_QK), CHUNK):
        rows = slice(start, start + CHUNK)
        kernel_NM = compute_kernel(data.features_QF[rows], anchors_MF, config.decay)
        present_NK = table.present_QK[rows]
        above_NK = np.where(present_NK, table.score_QK[rows] - mean_K, 0.0)
        target_MK += kernel_NM.T @ above_NK.astype(np.float32)
        for group, gram_MM in enumerate(gram_GMM):
            held_NM = kernel_NM if whole else kernel_NM[present_NK[:, group]]
            gram_MM += held_NM.T @ held_NM
    kernel_MM = compute_kernel(anchors_MF, anchors_MF, config.decay)
    gram_GMM += config.penalty * kernel_MM + JITTER * np.eye(anchors)
    if whole:
        return np.asarray(np.linalg.solve(gram_GMM[0], target_MK), dtype=np.float64)
    coefficient_KM1 = np.linalg.solve(gram_GMM, target_MK.T[:, :, None])
    return np.asarray(coefficient_KM1[:, :, 0].T, dtype=np.float64)


def map_coefficients(coefficient_MK: Float64Array, candidate_features_KD: FloatArray) -> FloatArray:
    """Return W [M, D] with W . d_k close to the coefficients of k; 0 at costs and prices.

    It is exact but for a small penalty where the candidates' measured scores tell them apart.
    """
    columns = find_score_columns(candidate_features_KD.shape[1])
    score_KS = candidate_features_KD[:, columns].astype(np.float64)
    gram_KK = score_KS @ score_KS.T
    gram_KK += MAP_PENALTY * np.trace(gram_KK) / len(gram_KK) * np.eye(len(gram_KK))
    clusters = count_clusters(candidate_features_KD.shape[1])
    weight_MD = np.zeros((len(coefficient_MK), candidate_features_KD.shape[1] - 2 * clusters))
    weight_MD[:, columns] = coefficient_MK @ np.linalg.solve(gram_KK, score_KS)
    return weight_MD.astype(np.float32)


def count_clusters(columns: int) -> int:
    """Return the number of clusters that a candidate's feature row of some columns describes."""
    return (columns - LEADING_COLUMNS - PRICE_COLUMNS) // 4


def find_score_columns(columns: int) -> IntArray:
    """Return where a feature row says the mean score, and the deviation from it per cluster."""
    first = LEADING_COLUMNS + PRICE_COLUMNS
    return np.array([0, *range(first, first + count_clusters(columns))])
