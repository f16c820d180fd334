"""Metrics of routers, as pure functions of arrays: every number a report prints comes from here.

What it is: points of reference (best single candidate, random, oracles), utility and regret,
RouteLLM's two-model metrics, deferral-curve metrics (UniRoute, CSCR), selection shares. Axes: Q
queries, K candidates, N points of a curve. `present_QK` is False where the table has no outcome;
such a cell is never picked and its score and cost are never read. A metric that is not defined for
its input is None, which is not zero.

What it leaves out: hulls and AIQ (`frontier`), intervals (`intervals`), policies, files.

How to use: `pick_K = pick_oracle(score_QK, cost_QK, present_QK)`. Costs may have any unit, and a
cost weight is quality given up per that unit.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rlroute.evaluation.frontier import Float64Array, Hull, compute_area, compute_cost_at
from rlroute.types import IntArray, RLRouteError

# Utilities that differ by less than this are a tie, which the cheaper candidate wins. Scores are
# float32 and means of a few dozen of them differ by rounding alone.
TIE_TOLERANCE = 1e-9


# --- 1. Points of reference -----------------------------------------------------------------------


def average_candidates(value_QK: npt.ArrayLike, present_QK: npt.ArrayLike) -> Float64Array:
    """Return the mean over queries of each candidate [K], over the queries where it is present.

    Raises:
        RLRouteError: a candidate is present for no query.
    """
    present_QK = np.asarray(present_QK, bool)
    count_K = present_QK.sum(0)
    if not count_K.all():
        column = int(np.argmin(count_K))
        raise RLRouteError(f"candidate in column {column} has no outcome for any query")
    total_K = np.where(present_QK, value_QK, 0.0).sum(0, dtype=np.float64)
    mean_K: Float64Array = total_K / count_K
    return mean_K


def average_picks(value_QK: npt.ArrayLike, probability_QK: npt.ArrayLike) -> Float64Array:
    """Return the expected value of each query [Q] under a policy's probabilities.

    Cells of probability 0 are not read, so a hole (NaN) there does no harm.
    """
    probability_QK = np.asarray(probability_QK, np.float64)
    weighted_QK = np.asarray(value_QK) * probability_QK
    expected_Q: Float64Array = np.where(probability_QK > 0, weighted_QK, 0.0).sum(1)
    return expected_Q


def find_best_single(
    score_QK: npt.ArrayLike, cost_QK: npt.ArrayLike, present_QK: npt.ArrayLike
) -> int:
    """Return the candidate with the best mean score, ties to the one with the lower mean cost."""
    score_K = average_candidates(score_QK, present_QK)
    cost_K = average_candidates(cost_QK, present_QK)
    return int(pick_best(score_K[None], cost_K[None], np.ones((1, len(score_K)), bool))[0])


def find_cheapest_single(cost_QK: npt.ArrayLike, present_QK: npt.ArrayLike) -> int:
    """Return the candidate with the lowest mean cost."""
    return int(np.argmin(average_candidates(cost_QK, present_QK)))


def pick_best(
    utility_QK: npt.ArrayLike, cost_QK: npt.ArrayLike, present_QK: npt.ArrayLike
) -> IntArray:
    """Return per query the present candidate of the largest utility, ties to the cheapest [Q]."""
    present_QK = np.asarray(present_QK, bool)
    utility_QK = np.where(present_QK, np.asarray(utility_QK, np.float64), -np.inf)
    tied_QK = present_QK & (utility_QK >= utility_QK.max(1, keepdims=True) - TIE_TOLERANCE)
    pick_Q: IntArray = np.argmin(np.where(tied_QK, cost_QK, np.inf), axis=1)
    return pick_Q


def pick_oracle(
    score_QK: npt.ArrayLike,
    cost_QK: npt.ArrayLike,
    present_QK: npt.ArrayLike,
    cost_weight: float = 0.0,
) -> IntArray:
    """Return the oracle's pick per query [Q]: the best score - cost_weight * cost.

    Ties go to the cheapest, which is therefore picked where all fail. At cost weight 0 this is
    the quality oracle.
    """
    utility_QK = compute_utility(score_QK, cost_QK, cost_weight)
    return pick_best(utility_QK, cost_QK, present_QK)


def pick_task_oracle(
    score_QK: npt.ArrayLike,
    cost_QK: npt.ArrayLike,
    present_QK: npt.ArrayLike,
    task_Q: npt.ArrayLike,
) -> IntArray:
    """Return per query the best single candidate of the query's task [Q], ties to the cheapest.

    What a perfect topic classifier would reach. Where a task's best candidate is absent for a
    query, the next best of the task that is present takes it.

    Raises:
        RLRouteError: a query has no candidate.
    """
    score_QK, cost_QK = np.asarray(score_QK), np.asarray(cost_QK)
    present_QK, task_Q = np.asarray(present_QK, bool), np.asarray(task_Q)
    if not present_QK.any(1).all():
        raise RLRouteError(f"query in row {int(np.argmin(present_QK.any(1)))} has no candidate")
    pick_Q = np.zeros(len(task_Q), np.int64)
    for task in np.unique(task_Q):
        rows = task_Q == task
        held_K = np.flatnonzero(present_QK[rows].any(0))
        cells = np.ix_(rows, held_K)
        score_K = average_candidates(score_QK[cells], present_QK[cells])
        cost_K = average_candidates(cost_QK[cells], present_QK[cells])
        best_first_K = np.lexsort((cost_K, -score_K))
        first_Q = np.argmax(present_QK[cells][:, best_first_K], axis=1)
        pick_Q[rows] = held_K[best_first_K[first_Q]]
    return pick_Q


def make_one_hot(pick_Q: npt.ArrayLike, candidates: int) -> Float64Array:
    """Return picks as probabilities [Q, K]: 1 at the pick, 0 elsewhere."""
    one_hot_QK: Float64Array = np.eye(candidates)[np.asarray(pick_Q)]
    return one_hot_QK


def make_uniform(present_QK: npt.ArrayLike) -> Float64Array:
    """Return the random policy's probabilities [Q, K]: equal over the present candidates.

    Raises:
        RLRouteError: a query has no candidate.
    """
    present_QK = np.asarray(present_QK, bool)
    count_Q1 = present_QK.sum(1, keepdims=True)
    if not count_Q1.all():
        raise RLRouteError(f"query in row {int(np.argmin(count_Q1))} has no candidate")
    uniform_QK: Float64Array = present_QK / count_Q1
    return uniform_QK


def make_always(column: int, present_QK: npt.ArrayLike) -> Float64Array:
    """Return the probabilities [Q, K] of always one candidate, given by its column.

    Where that candidate is absent the pick is random among the present ones.

    Raises:
        RLRouteError: a query has no candidate.
    """
    present_QK = np.asarray(present_QK, bool)
    only_QK = present_QK & (np.arange(present_QK.shape[1]) == column)
    return make_uniform(np.where(only_QK.any(1, keepdims=True), only_QK, present_QK))


def compute_gap_closed(quality: float, best_single: float, oracle: float) -> float | None:
    """Return which part of the way from best single candidate to oracle a router goes.

    Negative means worse than no router; None where the oracle is no better than the best single.
    """
    if oracle <= best_single:
        return None
    return (quality - best_single) / (oracle - best_single)


def compute_gap_to_oracle(quality: float, oracle: float) -> float:
    """Return Gap@O: the oracle's mean quality minus the router's.

    For comparison with publications that state it; reports print `compute_gap_closed`.
    """
    return oracle - quality


def compute_relative_gain(quality: float, reference: float) -> float | None:
    """Return the relative gain over a reference (Gain@B: best single, Gain@R: random).

    None where the reference has quality 0. For comparison with publications that state it; reports
    print differences with their intervals.
    """
    return (quality - reference) / reference if reference else None


# --- 2. Utility and regret ------------------------------------------------------------------------


def compute_utility(
    score_QK: npt.ArrayLike, cost_QK: npt.ArrayLike, cost_weight: float
) -> Float64Array:
    """Return score - cost_weight * cost (RouterBench's W * score - cost with weight 1/W)."""
    return np.asarray(score_QK, np.float64) - cost_weight * np.asarray(cost_QK, np.float64)


def compute_regret(
    score_QK: npt.ArrayLike,
    cost_QK: npt.ArrayLike,
    present_QK: npt.ArrayLike,
    probability_QK: npt.ArrayLike,
    cost_weight: float,
) -> Float64Array:
    """Return per query [Q] the oracle's utility minus the policy's expected one; never negative."""
    utility_QK = compute_utility(score_QK, cost_QK, cost_weight)
    best_Q = np.where(np.asarray(present_QK, bool), utility_QK, -np.inf).max(1)
    # Rounding can put a policy that picks like the oracle an ulp above it.
    regret_Q: Float64Array = np.maximum(best_Q - average_picks(utility_QK, probability_QK), 0.0)
    return regret_Q


def compute_cumulative_regret(regret_Q: npt.ArrayLike) -> Float64Array:
    """Return the regret of an online learner summed up to and including each query, in order."""
    sum_Q: Float64Array = np.cumsum(np.asarray(regret_Q, np.float64))
    return sum_Q


# --- 5. Two-model metrics (RouteLLM) --------------------------------------------------------------


def compute_gap_recovered(
    quality_N: npt.ArrayLike, weak: float, strong: float
) -> Float64Array | None:
    """Return PGR [N]: (quality - weak) / (strong - weak); may pass 1; None if strong <= weak."""
    if strong <= weak:
        return None
    return (np.asarray(quality_N, np.float64) - weak) / (strong - weak)


def compute_call_threshold(
    strong_share_N: npt.ArrayLike, recovered_N: npt.ArrayLike, target: float
) -> float | None:
    """Return CPT(target): the least share of strong calls at which PGR reaches `target`.

    Linear between the points, at the first crossing where the curve is not monotone; None where
    it never gets there.
    """
    share_N, recovered_N = sort_curve(strong_share_N, recovered_N)
    reached_N = np.flatnonzero(recovered_N >= target)
    if not reached_N.size:
        return None
    last = int(reached_N[0])
    if last == 0:
        return float(share_N[0])
    rise = recovered_N[last] - recovered_N[last - 1]
    part = (target - recovered_N[last - 1]) / rise
    return float(share_N[last - 1] + part * (share_N[last] - share_N[last - 1]))


def compute_average_gap_recovered(
    strong_share_N: npt.ArrayLike, recovered_N: npt.ArrayLike
) -> float:
    """Return APGR: the area below PGR over shares of strong calls from 0 to 1, by trapezoids.

    Raises:
        RLRouteError: the curve does not span 0 to 1.
    """
    share_N, recovered_N = sort_curve(strong_share_N, recovered_N)
    if share_N[0] > 0 or share_N[-1] < 1:
        raise RLRouteError("APGR: the curve must go from 0 to 1 strong calls (add always-X points)")
    return float(np.trapezoid(recovered_N, share_N))


# --- 6. Deferral-curve metrics --------------------------------------------------------------------


def compute_audc(
    cost_N: npt.ArrayLike, quality_N: npt.ArrayLike, cost_min: float, cost_max: float
) -> float:
    """Return the area under the raw deferral curve from `cost_min` to `cost_max`, over its length.

    The curve joins the points in order of cost as they are; with the hull instead it would be AIQ.
    For comparison with publications that state it; reports print AIQ.
    """
    return compute_area(*sort_curve(cost_N, quality_N), cost_min, cost_max) / (cost_max - cost_min)


def compute_cost_ratio(cost_S: npt.ArrayLike, reference_S: npt.ArrayLike) -> Float64Array:
    """Return cost over a reference: 1 where both are 0, infinite where only the reference is."""
    cost_S, reference_S = np.asarray(cost_S, np.float64), np.asarray(reference_S, np.float64)
    free_S = np.where(cost_S > 0, np.inf, 1.0)
    ratio_S: Float64Array = np.divide(cost_S, reference_S, out=free_S, where=reference_S > 0)
    return ratio_S


def compute_quality_neutral_cost(
    hull: Hull, best_single_quality: float, cost_reference: float
) -> float:
    """Return QNC: the least cost on the hull with quality >= the best single's, over the reference.

    The reference is the dearest candidate's mean cost. Infinite where the quality is never reached:
    no spending is enough.
    """
    cost = compute_cost_at(hull, best_single_quality)
    return np.inf if cost is None else float(compute_cost_ratio(cost, cost_reference))


def compute_cost_saved(hull: Hull, best_single_quality: float, best_single_cost: float) -> float:
    """Return the share of the best single's cost saved at equal (>=) quality.

    Minus infinity where the router never reaches that quality: no spending is enough.
    """
    return 1 - compute_quality_neutral_cost(hull, best_single_quality, best_single_cost)


def compute_peak(quality_N: npt.ArrayLike) -> float:
    """Return the largest quality on a curve."""
    return float(np.max(quality_N))


# --- Selection ------------------------------------------------------------------------------------


def compute_selection_shares(probability_QK: npt.ArrayLike) -> Float64Array:
    """Return the share of queries that each candidate gets [K]; sums to 1."""
    share_K: Float64Array = np.asarray(probability_QK, np.float64).mean(0)
    return share_K


def compute_selection_entropy(share_K: npt.ArrayLike) -> float:
    """Return the entropy of selection shares in nats: 0 is one candidate for all, log K is even.

    A router of high quality and an entropy near 0 is a single candidate in disguise.
    """
    share_K = np.asarray(share_K, np.float64)
    positive = share_K[share_K > 0]
    return max(0.0, float(-(positive * np.log(positive)).sum()))


def sort_curve(x_N: npt.ArrayLike, y_N: npt.ArrayLike) -> tuple[Float64Array, Float64Array]:
    """Return the points of a curve as float64, sorted by x and at equal x by y."""
    x_N, y_N = np.asarray(x_N, np.float64), np.asarray(y_N, np.float64)
    order_N = np.lexsort((y_N, x_N))
    return x_N[order_N], y_N[order_N]
