"""What routers would have earned on a log, where no complete table says so.

What it is: for each policy and cost weight the doubly robust, self-normalised and plain estimates
of its mean utility, with 95 % intervals and the rows that they rest on. Quality and cost beside
them are self-normalised. Where one query's log holds several picks, each counts as a row whose
propensity is divided by their number.

What it leaves out: learning (`rlroute.trainers.log_problem`), the estimators themselves
(`rlroute.evaluation.off_policy`).

How to use: `estimate_policies([policy], test, propensity_QK, [0.0, 0.1], predict)`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rlroute.evaluation.frontier import Float64Array
from rlroute.evaluation.intervals import Estimate
from rlroute.evaluation.off_policy import (
    OffPolicyEstimate,
    OutcomePredictions,
    estimate_off_policy,
)
from rlroute.evaluation.sampling import RoutingPolicy
from rlroute.types import FloatArray

if TYPE_CHECKING:
    from rich.table import Table

    from rlroute.data.routing_data import RoutingData

FEW_ROWS = 30  # below it an estimate says next to nothing, whatever its interval
Predict = Callable[[FloatArray], tuple[Float64Array, Float64Array]]


@dataclass(frozen=True)
class LogEstimate:
    """A policy at a cost weight: utility by three estimators, and quality and USD by SNIPS."""

    policy: str
    cost_weight: float
    utility: OffPolicyEstimate
    quality: Estimate | None
    cost_usd: Estimate | None


def estimate_policies(
    policies: Sequence[RoutingPolicy],
    data: RoutingData,
    propensity_QK: FloatArray,
    cost_weights: Sequence[float],
    predict: Predict,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
) -> list[LogEstimate]:
    """Estimate every policy at every cost weight from a split of a log.

    `predict` gives score [Q, K] and normalised cost [Q, K] from features, for the doubly robust
    form; it must not have seen this split.
    """
    query_N, candidate_N = np.nonzero(np.isfinite(propensity_QK))
    picks_Q = np.isfinite(propensity_QK).sum(1)
    # of m picks per query each stands for the query once in m rows
    propensity_N = (propensity_QK[query_N, candidate_N] / picks_Q[query_N]).astype(np.float64)
    score_N = data.table.score_QK[query_N, candidate_N].astype(np.float64)
    cost_N = data.normalised_cost_QK[query_N, candidate_N].astype(np.float64)
    score_QK, cost_QK = predict(data.features_QF)
    whole = dataclasses.replace(
        data, table=dataclasses.replace(data.table, present_QK=np.ones_like(data.table.present_QK))
    )
    found = []
    for policy in policies:
        for weight in cost_weights:
            share_QK = policy.compute_probabilities(whole, weight).astype(np.float64)
            target_N = share_QK[query_N, candidate_N]
            predicted_QK = score_QK - weight * cost_QK
            predictions = OutcomePredictions(
                predicted_QK[query_N, candidate_N], (share_QK * predicted_QK).sum(1)[query_N]
            )
            arguments: dict[str, Any] = {"bootstrap": bootstrap, "seed": seed}
            utility = estimate_off_policy(
                score_N - weight * cost_N, propensity_N, target_N, predictions, **arguments
            )
            quality = estimate_off_policy(score_N, propensity_N, target_N, **arguments).snips
            cost = estimate_off_policy(
                cost_N * data.cost_reference_usd, propensity_N, target_N, **arguments
            ).snips
            found.append(LogEstimate(policy.name, float(weight), utility, quality, cost))
    return found


def render_estimates(estimates: Sequence[LogEstimate]) -> Table:
    """Return the estimates as a table for the terminal; costs in USD per 1,000 queries."""
    from rich.table import Table

    table = Table(title="estimated from the log's test split (95% intervals)")
    table.add_column("policy", no_wrap=True)
    for name in ("cost weight", "utility, doubly robust", "SNIPS", "IPS", "quality", "USD/1k"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("effective rows", justify="right", no_wrap=True)
    for one in estimates:
        table.add_row(
            one.policy,
            f"{one.cost_weight:.3g}",
            show(one.utility.doubly_robust),
            show(one.utility.snips),
            show(one.utility.ips),
            show(one.quality),
            show(one.cost_usd, 1000.0),
            f"{one.utility.effective_rows:.0f}",
        )
    return table


def show(value: Estimate | None, scale: float = 1.0) -> str:
    """Return an estimate with its interval, or a dash where there is none."""
    if value is None:
        return "-"
    low, high = value.low * scale, value.high * scale
    return f"{value.value * scale:.3g} [{low:.3g}, {high:.3g}]"


def warn_of_few_rows(estimates: Sequence[LogEstimate]) -> str | None:
    """Return a sentence where estimates rest on hardly any rows, None otherwise."""
    few = [one for one in estimates if one.utility.effective_rows < FEW_ROWS]
    if not few:
        return None
    worst = min(few, key=lambda one: one.utility.effective_rows)
    return (
        f"{len(few)} of {len(estimates)} estimates rest on fewer than {FEW_ROWS} effective rows "
        f"({worst.policy} at cost weight {worst.cost_weight:.3g}: "
        f"{worst.utility.effective_rows:.0f}): the log hardly ever did what they do"
    )
