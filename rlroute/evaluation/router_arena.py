"""RouterArena's metrics: its score of accuracy and cost, optimality of picks, robustness.

What it is: pure functions of arrays and numbers. Q queries, K candidates; `probability_QK` holds a
policy's picks (or probabilities, then results are expectations).

What it leaves out: RouterArena's data, which are for evaluation only, and the latency of a routing
decision (tests/benchmarks/router_latency.py measures it).

How to use: `compute_arena_score(accuracy=0.70, usd_per_1000=0.50)`.
Source: RouterArena; the conditioning of the optimality metrics as corrected in 2026: over queries
that at least one candidate gets right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rlroute.evaluation import metrics
from rlroute.types import RLRouteError

USD_PER_1000_MIN, USD_PER_1000_MAX = 0.0044, 200.0
ACCURACY_PREFERENCE = 0.1  # RouterArena's beta: the smaller, the more accuracy counts


@dataclass(frozen=True)
class Optimality:
    """How near a router comes to the cheapest right candidate; None where not defined.

    `selection` is the share of queries where it is right with the cheapest right candidate,
    `accuracy` its right answers over the oracle's, `cost` the oracle's cost over its own on the
    queries where it is right.
    """

    selection: float | None
    accuracy: float | None
    cost: float | None


def compute_cost_rating(usd_per_1000: float) -> float:
    """Return RouterArena's rating of a cost in USD per 1,000 queries: 1 cheap, 0 dear, in log2.

    The cost is clamped to [0.0044, 200], so a free router is rated 1.

    Raises:
        RLRouteError: the cost is missing or negative; it is never taken for 0.
    """
    if not usd_per_1000 >= 0 or math.isinf(usd_per_1000):
        raise RLRouteError(f"RouterArena: the cost must be finite and >= 0, got {usd_per_1000}")
    clamped = min(max(usd_per_1000, USD_PER_1000_MIN), USD_PER_1000_MAX)
    span = math.log2(USD_PER_1000_MAX) - math.log2(USD_PER_1000_MIN)
    return (math.log2(USD_PER_1000_MAX) - math.log2(clamped)) / span


def compute_arena_score(
    accuracy: float, usd_per_1000: float, beta: float = ACCURACY_PREFERENCE
) -> float:
    """Return the arena score: a weighted harmonic mean of accuracy and cost rating.

    It tends to the accuracy as `beta` tends to 0; it is 0 where either is 0.

    Raises:
        RLRouteError: an accuracy outside [0, 1], a beta that is not above 0, or a bad cost.
    """
    if not 0 <= accuracy <= 1:
        raise RLRouteError(f"RouterArena: the accuracy must lie in [0, 1], got {accuracy}")
    if not beta > 0:
        raise RLRouteError(f"RouterArena: beta must be above 0, got {beta}")
    rating = compute_cost_rating(usd_per_1000)
    if accuracy == 0 or rating == 0:
        return 0.0
    return (1 + beta) * accuracy * rating / (beta * accuracy + rating)


def compute_optimality(
    score_QK: npt.ArrayLike,
    cost_QK: npt.ArrayLike,
    present_QK: npt.ArrayLike,
    probability_QK: npt.ArrayLike,
    right_from: float = 1.0,
) -> Optimality:
    """Return the optimality of picks; an answer is right from score `right_from` on.

    All are None where no query has a right candidate; `cost` is None too where the router is
    never right, or where its right answers were free.
    """
    present_QK = np.asarray(present_QK, bool)
    probability_QK = np.asarray(probability_QK, np.float64)
    right_QK = present_QK & (np.nan_to_num(np.asarray(score_QK, np.float64), nan=-1) >= right_from)
    solvable_Q = right_QK.any(1)
    if not solvable_Q.any():
        return Optimality(None, None, None)
    cost_QK = np.asarray(cost_QK, np.float64)
    cheapest_Q = np.where(right_QK, cost_QK, np.inf).min(1)
    right_Q = np.where(right_QK, probability_QK, 0.0).sum(1)
    best_QK = right_QK & (cost_QK == cheapest_Q[:, None])
    best_Q = np.where(best_QK, probability_QK, 0.0).sum(1)
    paid_Q = metrics.average_picks(cost_QK, np.where(right_QK, probability_QK, 0.0))
    paid = float(paid_Q[solvable_Q].sum())
    least = float((right_Q[solvable_Q] * cheapest_Q[solvable_Q]).sum())
    return Optimality(
        selection=float(best_Q[solvable_Q].mean()),
        accuracy=float(right_Q[solvable_Q].mean()),
        cost=least / paid if paid > 0 else None,
    )


def compute_robustness(pick_Q: npt.ArrayLike, reworded_pick_Q: npt.ArrayLike) -> float:
    """Return the share of queries whose pick stays the same after a small rewording.

    A constant router has 1, so read it with the other metrics.

    Raises:
        RLRouteError: no queries, or lengths that differ.
    """
    pick_Q, reworded_pick_Q = np.asarray(pick_Q), np.asarray(reworded_pick_Q)
    if pick_Q.shape != reworded_pick_Q.shape or not pick_Q.size:
        raise RLRouteError(
            f"robustness: needs one pick per query before and after rewording, got shapes "
            f"{pick_Q.shape} and {reworded_pick_Q.shape}"
        )
    return float((pick_Q == reworded_pick_Q).mean())
