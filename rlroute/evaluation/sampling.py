"""Sweeps of the cost weight, and what follows from them in every bootstrap sample.

What it is: `sweep_policy` measures a policy at L cost weights; `Yardstick` holds what all policies
are measured with; `sample_frontier` computes AIQ and hull heights per sample. Axis S is samples:
row 0 is the evaluated split itself, the other rows are its resamples, so that a value and its
interval come from the same code. Axis N is the settings of a policy: L, or 1 without a knob.

What it leaves out: which policies, and the nouns of the report (`evaluate`, `results`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from rlroute.evaluation import metrics
from rlroute.evaluation.frontier import (
    Float64Array,
    average_hull,
    compute_hull,
    compute_quality_at,
)
from rlroute.evaluation.intervals import Estimate, draw_resamples, make_estimate
from rlroute.types import FloatArray, RLRouteError

if TYPE_CHECKING:
    from rlroute.data.routing_data import RoutingData

ValueArray = npt.NDArray[Any]


class RoutingPolicy(Protocol):
    """Anything that is compared: it has a name and, at a cost weight, probabilities per query."""

    @property
    def name(self) -> str:
        """The policy's name in tables and figures."""
        ...

    def compute_probabilities(self, data: RoutingData, cost_weight: float) -> FloatArray:
        """Return [Q, K]: rows sum to 1, 0 where the candidate is absent."""
        ...


@runtime_checkable
class ProbingPolicy(Protocol):
    """A policy that also pays for answers that it looks at and does not give."""

    def compute_probe_cost(self, data: RoutingData, cost_weight: float) -> Float64Array:
        """Return what is paid beside the pick's own cost, in USD [Q]."""
        ...


@dataclass(frozen=True)
class Sweep:
    """Expected quality and cost per query of a policy's N settings, and its shares per candidate.

    `regret_LQ` always has one row per cost weight: a policy that ignores the weight is still worse
    off by another amount at each.
    """

    weights: tuple[float | None, ...]
    quality_NQ: Float64Array
    cost_usd_NQ: Float64Array
    share_NK: Float64Array
    regret_LQ: Float64Array


@dataclass(frozen=True)
class Yardstick:
    """The samples, the single candidates in each, and which of them are best and cheapest."""

    weight_SQ: Float64Array
    quality_SK: Float64Array
    cost_usd_SK: Float64Array
    best: int
    cheapest: int

    @property
    def best_quality(self) -> Float64Array:
        """Quality of the best single candidate."""
        return self.quality_SK[:, self.best]

    @property
    def best_cost(self) -> Float64Array:
        """Cost of the best single candidate in USD."""
        return self.cost_usd_SK[:, self.best]


@dataclass(frozen=True)
class FrontierSample:
    """What follows from a hull, per sample.

    AIQ, the height at the best single candidate's cost, and what it costs to reach the best single
    candidate's quality: QNC and cost saved (`metrics`; infinite where it is never reached).
    """

    aiq_S: Float64Array
    quality_at_best_cost_S: Float64Array
    quality_neutral_cost_S: Float64Array
    cost_saved_S: Float64Array


def check_cost_weights(cost_weights: Sequence[float]) -> Float64Array:
    """Return the cost weights sorted and without repeats.

    Raises:
        RLRouteError: there is none, or one is negative or not finite.
    """
    weight_L = np.unique(np.asarray(cost_weights, np.float64))
    if not weight_L.size or not np.isfinite(weight_L).all() or weight_L[0] < 0:
        raise RLRouteError(f"cost weights must be finite and at least 0, got {list(cost_weights)}")
    return weight_L


def list_arrays(data: RoutingData) -> tuple[ValueArray, ValueArray, ValueArray]:
    """Return score, cost in USD and presence, each [Q, K]."""
    return data.table.score_QK, data.table.cost_usd_QK, data.table.present_QK


def measure_cost(
    policy: RoutingPolicy, data: RoutingData, cost_weight: float, probability_QK: FloatArray
) -> tuple[Float64Array, Float64Array]:
    """Return the expected cost per query in USD [Q], probes included, and that of probes alone."""
    probe_Q = np.zeros(len(probability_QK))
    if isinstance(policy, ProbingPolicy):
        probe_Q = policy.compute_probe_cost(data, cost_weight)
    return metrics.average_picks(data.table.cost_usd_QK, probability_QK) + probe_Q, probe_Q


def sweep_policy(policy: RoutingPolicy, data: RoutingData, weight_L: Float64Array) -> Sweep:
    """Measure a policy at every cost weight; one that never changes is kept as one setting."""
    score_QK, _, present_QK = list_arrays(data)
    quality, cost, share, regret = [], [], [], []
    for weight in weight_L.tolist():
        probability_QK = policy.compute_probabilities(data, weight)
        quality.append(metrics.average_picks(score_QK, probability_QK))
        cost_Q, probe_Q = measure_cost(policy, data, weight, probability_QK)
        cost.append(cost_Q)
        share.append(metrics.compute_selection_shares(probability_QK))
        pick_regret_Q = metrics.compute_regret(
            score_QK, data.normalised_cost_QK, present_QK, probability_QK, weight
        )
        regret.append(pick_regret_Q + weight * probe_Q / data.cost_reference_usd)
    quality_LQ, cost_LQ, share_LK = np.array(quality), np.array(cost), np.array(share)
    changes = any((array != array[0]).any() for array in (quality_LQ, cost_LQ, share_LK))
    settings = slice(None) if changes else slice(1)
    return Sweep(
        weights=tuple(weight_L.tolist()) if changes else (None,),
        quality_NQ=quality_LQ[settings],
        cost_usd_NQ=cost_LQ[settings],
        share_NK=share_LK[settings],
        regret_LQ=np.array(regret),
    )


def list_singles(data: RoutingData) -> tuple[Float64Array, Float64Array]:
    """Return quality [Q, K] and cost in USD [Q, K] of always asking candidate k."""
    score_QK, cost_QK, present_QK = list_arrays(data)
    quality_KQ, cost_KQ = [], []
    for k in range(present_QK.shape[1]):  # one at a time: each is as large as the table
        always_QK = metrics.make_always(k, present_QK)
        quality_KQ.append(metrics.average_picks(score_QK, always_QK))
        cost_KQ.append(metrics.average_picks(cost_QK, always_QK))
    return np.array(quality_KQ).T, np.array(cost_KQ).T


def make_yardstick(train: RoutingData, test: RoutingData, bootstrap: int, seed: int) -> Yardstick:
    """Draw the resamples of `test`, measure its single candidates; `train` says which is best."""
    queries = len(test.table.queries)
    whole_1Q = np.full((1, queries), 1 / queries)
    weight_SQ = np.concatenate((whole_1Q, draw_resamples(queries, bootstrap, seed)))
    quality_QK, cost_QK = list_singles(test)
    return Yardstick(
        weight_SQ,
        weight_SQ @ quality_QK,
        weight_SQ @ cost_QK,
        best=metrics.find_best_single(*list_arrays(train)),
        cheapest=metrics.find_cheapest_single(train.table.cost_usd_QK, train.table.present_QK),
    )


def estimate(sample_S: npt.ArrayLike) -> Estimate:
    """Return the value of the split (row 0) with the interval of the resamples (the other rows)."""
    value_S = np.asarray(sample_S, np.float64)
    return make_estimate(float(value_S[0]), value_S[1:])


def sample_sweep(sweep: Sweep, yardstick: Yardstick) -> FrontierSample:
    """Return the frontier of a sweep mixed with the cheapest single candidate, per sample."""
    cheapest = [yardstick.cheapest]
    cost_SN = yardstick.weight_SQ @ sweep.cost_usd_NQ.T
    quality_SN = yardstick.weight_SQ @ sweep.quality_NQ.T
    return sample_frontier(
        np.hstack((yardstick.cost_usd_SK[:, cheapest], cost_SN)),
        np.hstack((yardstick.quality_SK[:, cheapest], quality_SN)),
        yardstick,
    )


def sample_frontier(
    cost_SN: Float64Array, quality_SN: Float64Array, yardstick: Yardstick
) -> FrontierSample:
    """Return what follows from the hull of N points, per sample."""
    rows = []
    for s, single_cost_K in enumerate(yardstick.cost_usd_SK):
        hull = compute_hull(cost_SN[s], quality_SN[s])
        height = compute_quality_at(hull, yardstick.best_cost[s])
        best_quality = yardstick.best_quality[s]
        rows.append(
            (
                average_hull(hull, float(single_cost_K.min()), float(single_cost_K.max())),
                -np.inf if height is None else height,
                metrics.compute_quality_neutral_cost(hull, best_quality, single_cost_K.max()),
                metrics.compute_cost_saved(hull, best_quality, yardstick.best_cost[s]),
            )
        )
    return FrontierSample(*np.array(rows).T)
