"""How far calls move what was expected: as far as their number outweighs chance (empirical Bayes).

What it leaves out: what is expected (`rlroute.data.candidate_profiles`).

How to use: `move_amounts(cost_usd_N, cluster_N, mean, expected_C, spread)`, of costs in USD or
latencies in seconds; `compute_trust` and `shrink_clusters` for scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rlroute.data.routing_data import average_by_cluster
from rlroute.types import FloatArray, IntArray

Float64Array = npt.NDArray[np.float64]
SINGLE_CALL_VARIANCE = 1.0  # of one call's ratio to what was expected, where no second call tells
# A newcomer may always be off by a tenth of the mean amount (standard deviation), however well the
# known candidates fit.
LEAST_RATIO_VARIANCE = 0.1**2


def compute_trust(calls: int, call_variance: float, variance: float) -> float:
    """Return the weight of an average of n calls against what was expected: t / (t + s / n)."""
    if variance <= 0:
        return 0.0 if call_variance > 0 else 1.0
    return variance / (variance + call_variance / calls)


def shrink_clusters(
    residual_N: Float64Array,
    cluster_N: IntArray,
    clusters: int,
    call_variance: float,
    variance: float,
) -> Float64Array:
    """Return the kept part of the average residual per cluster [C]: n_c / (n_c + s / b) of it."""
    count_C = np.bincount(cluster_N, minlength=clusters)
    total_C = np.bincount(cluster_N, weights=residual_N, minlength=clusters)
    average_C = total_C / np.maximum(count_C, 1)
    kept_C = [compute_trust(n, call_variance, variance) if n else 0.0 for n in count_C.tolist()]
    return np.asarray(kept_C * average_C)


def move_amounts(
    value_N: FloatArray,
    cluster_N: IntArray,
    mean: float,
    expected_C: Float64Array,
    spread: tuple[float, float],
) -> tuple[float, Float64Array]:
    """Return mean amount and amount per cluster [C] of a candidate that N calls took `value_N` of.

    Calls move the ratio to what was expected; `spread` are the variances of that ratio among
    candidates and of it by cluster (`measure_spread`). Where nothing is expected calls speak alone.
    """
    clusters = len(expected_C)
    if not (expected_C > 0).all():
        own_C = average_by_cluster(value_N, cluster_N, clusters)
        return float(value_N.mean(dtype=np.float64)), own_C.astype(np.float64)
    ratio_N = value_N / expected_C[cluster_N]
    variance = float(ratio_N.var(ddof=1)) if len(value_N) > 1 else SINGLE_CALL_VARIANCE
    trust = compute_trust(len(value_N), variance, max(spread[0], LEAST_RATIO_VARIANCE))
    ratio = 1 + trust * float(ratio_N.mean() - 1)
    between = spread[1] * ratio**2
    kept_C = shrink_clusters(ratio_N - ratio, cluster_N, clusters, variance, between)
    return mean * ratio, expected_C * np.maximum(ratio + kept_C, 0)


def measure_spread(
    rows: Sequence[tuple[float, npt.ArrayLike, float, npt.ArrayLike]],
) -> tuple[float, float]:
    """Return the variances, around 1, of mean over expected mean, and of it by cluster.

    A row is one known candidate: mean, amount per cluster, expected mean, expected per cluster.
    Who takes nothing, or is expected to, is left out; without anybody both are 1.
    """
    ratios, deviations = [], []
    for mean, value_C, expected, expected_C in rows:
        if expected <= 0 or mean <= 0 or not (np.asarray(expected_C) > 0).all():
            continue
        ratio = mean / expected
        ratios.append((ratio - 1) ** 2)
        ratio_C = np.asarray(value_C) / np.asarray(expected_C)
        deviations.append(((ratio_C / ratio - 1) ** 2).mean())
    if not ratios:
        return 1.0, 1.0
    return float(np.mean(ratios)), float(np.mean(deviations))
