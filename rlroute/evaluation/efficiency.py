"""What a router's answers cost in money, tokens and time: per solved query, by percentile.

What it is: cost of a solved query (cost-of-pass), token efficiency (TEP of EllieSQL), percentiles
of latency under a policy's picks, with the router's own time counted where it was measured, the
effective number of candidates; and `measure_efficiency`,
which puts them together for one setting of a policy. A latency or a token count that the table does
not know stays unknown: it is left out of a percentile, with the known share beside it, and makes a
mean of tokens None. It is never 0.

What it leaves out: measuring the router's own time (`rlroute.table_runs`).

How to use: `measure_efficiency(test, probability_QK, cost_Q, yardstick)`.
Sources: cost-of-pass, A2FM (arXiv 2510.12838); TEP, EllieSQL (arXiv 2503.22402).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rlroute.evaluation import metrics
from rlroute.evaluation.frontier import Float64Array
from rlroute.evaluation.results import Efficiency, Latency
from rlroute.evaluation.router_arena import compute_arena_score, compute_optimality
from rlroute.evaluation.sampling import Yardstick, estimate, list_arrays

if TYPE_CHECKING:
    from rlroute.data.routing_data import RoutingData

LATENCY_PERCENTILES = (0.50, 0.95, 0.99)


def compute_cost_per_solved(cost_S: npt.ArrayLike, quality_S: npt.ArrayLike) -> Float64Array:
    """Return mean cost over mean quality in each sample; infinite where nothing is solved.

    The cost of failed answers counts: that is the point of it. A graded score counts as that part
    of a solved query.
    """
    cost_S, quality_S = np.asarray(cost_S, np.float64), np.asarray(quality_S, np.float64)
    nothing_S = np.full_like(cost_S, np.inf)
    ratio_S: Float64Array = np.divide(cost_S, quality_S, out=nothing_S, where=quality_S > 0)
    return ratio_S


def compute_token_efficiency(
    quality: float, tokens: float, base_quality: float, base_tokens: float
) -> float | None:
    """Return TEP: the relative gain in quality over the relative growth in tokens.

    The base is the simplest candidate or pipeline. None where the tokens are the base's or the
    base has no quality or no tokens: the ratio is not defined there.
    """
    if base_quality <= 0 or base_tokens <= 0 or tokens == base_tokens:
        return None
    gain = (quality - base_quality) / base_quality
    return gain / ((tokens - base_tokens) / base_tokens)


def compute_latency(
    seconds_QK: npt.ArrayLike,
    probability_QK: npt.ArrayLike,
    router_seconds: float | None = None,
) -> Latency:
    """Return percentiles of what a query waits in seconds, over what is known.

    That is the picked candidate's latency plus `router_seconds`, the time to encode and decide one
    query, if it was measured. A cell counts with its probability. Percentiles are observed values,
    without interpolation; they are None where no picked cell has a known latency.
    """
    seconds_QK = np.asarray(seconds_QK, np.float64)
    probability_QK = np.asarray(probability_QK, np.float64)
    known_QK = np.isfinite(seconds_QK) & (probability_QK > 0)
    share = float(probability_QK[known_QK].sum() / probability_QK.sum())
    if not known_QK.any():
        return Latency(0.0, None, None, None, router_seconds)
    found = np.quantile(
        seconds_QK[known_QK],
        LATENCY_PERCENTILES,
        weights=probability_QK[known_QK],
        method="inverted_cdf",
    )
    # the router's time is the same for every query, so it moves every percentile by itself
    waited = found + (router_seconds or 0.0)
    p50, p95, p99 = map(float, waited)
    return Latency(share, p50, p95, p99, router_seconds)


def average_tokens(data: RoutingData, probability_QK: npt.ArrayLike) -> float | None:
    """Return the mean tokens per query of a policy's picks, prompt and completion.

    None where a picked cell's count is unknown.
    """
    table = data.table
    token_QK = table.prompt_tokens_QK.astype(np.float64) + table.completion_tokens_QK
    mean = float(metrics.average_picks(token_QK, probability_QK).mean())
    return mean if np.isfinite(mean) else None


def compute_effective_candidates(share_K: npt.ArrayLike) -> float:
    """Return 1 / sum of squared shares: 1 is one candidate for all, K is all alike."""
    return float(1 / (np.asarray(share_K, np.float64) ** 2).sum())


def measure_efficiency(
    data: RoutingData,
    probability_QK: npt.ArrayLike,
    cost_Q: npt.ArrayLike,
    yardstick: Yardstick,
    router_seconds: float | None = None,
) -> Efficiency:
    """Return what one setting of a policy costs in money, tokens and time on a split.

    `cost_Q` is what each query costs in USD, paid probes included; tokens and optimality are those
    of the picks alone; latency is theirs plus `router_seconds`, if that was measured.
    `yardstick` holds the samples of the intervals and names the cheapest single candidate, which
    is the base of the token efficiency.
    """
    score_QK, cost_QK, present_QK = list_arrays(data)
    quality_S = yardstick.weight_SQ @ metrics.average_picks(score_QK, probability_QK)
    cost_S = yardstick.weight_SQ @ np.asarray(cost_Q, np.float64)
    cheapest_QK = metrics.make_always(yardstick.cheapest, present_QK)
    tokens, base_tokens = average_tokens(data, probability_QK), average_tokens(data, cheapest_QK)
    base_quality = float(yardstick.quality_SK[0, yardstick.cheapest])
    quality, cost_usd = float(quality_S[0]), float(cost_S[0])
    token_efficiency = None
    if tokens is not None and base_tokens is not None:
        token_efficiency = compute_token_efficiency(quality, tokens, base_quality, base_tokens)
    optimality = compute_optimality(score_QK, cost_QK, present_QK, probability_QK)
    return Efficiency(
        cost_per_solved_usd=estimate(compute_cost_per_solved(cost_S, quality_S)),
        # as a ratio of products, which stays finite where one side solves nothing
        cost_per_solved_ratio=estimate(
            metrics.compute_cost_ratio(
                cost_S * yardstick.best_quality, quality_S * yardstick.best_cost
            )
        ),
        tokens=tokens,
        token_efficiency=token_efficiency,
        latency=compute_latency(data.table.latency_seconds_QK, probability_QK, router_seconds),
        effective_candidates=compute_effective_candidates(
            metrics.compute_selection_shares(probability_QK)
        ),
        arena_score=compute_arena_score(min(1.0, max(0.0, quality)), 1000 * cost_usd),
        optimal_selection=optimality.selection,
        optimal_accuracy=optimality.accuracy,
        optimal_cost=optimality.cost,
    )
