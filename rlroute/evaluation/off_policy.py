"""What a policy would have earned, from a log of another policy's picks.

What it is: inverse propensity scoring (IPS), its self-normalised form (SNIPS), the doubly robust
estimate (DR) and the effective sample size (ESS), with bootstrap intervals. N log rows, K
candidates. A weight is the target's probability of the logged pick over the logging policy's.

What it leaves out: learning from logs, and where the outcome predictions come from.

How to use: `estimate_off_policy(reward_N, propensity_N, target_N)`; look at `effective_rows` first:
a handful of rows with weight say nothing, whatever the estimate.
Sources: Horvitz and Thompson (1952), Swaminathan and Joachims (2015), Dudik et al. (2011).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rlroute.evaluation.frontier import Float64Array
from rlroute.evaluation.intervals import Estimate, draw_resamples, make_estimate
from rlroute.types import RLRouteError


@dataclass(frozen=True)
class OutcomePredictions:
    """What the doubly robust estimate needs besides the log.

    `logged_N` is the predicted reward of the logged pick, `target_N` the target policy's expected
    predicted reward: the sum over candidates of its probability times the prediction.
    """

    logged_N: npt.ArrayLike
    target_N: npt.ArrayLike


@dataclass(frozen=True)
class OffPolicyEstimate:
    """Estimates of the target's mean reward with 95 % intervals, and what they rest on.

    `snips` is None where the target never makes a logged pick, `doubly_robust` without predictions.
    `effective_rows` is (sum of weights)^2 / sum of squared weights, 0 where all weights are 0.
    """

    ips: Estimate
    snips: Estimate | None
    doubly_robust: Estimate | None
    effective_rows: float


def estimate_off_policy(
    reward_N: npt.ArrayLike,
    propensity_N: npt.ArrayLike,
    target_N: npt.ArrayLike,
    predictions: OutcomePredictions | None = None,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
) -> OffPolicyEstimate:
    """Estimate a policy's mean reward from a log of N picks.

    `propensity_N` is the probability with which the logged pick was made, `target_N` that with
    which the target policy would make it. Resamples in which no pick has weight say nothing of
    SNIPS and are left out of its interval.

    Raises:
        RLRouteError: lengths that differ, a value that is not finite, a probability outside
            [0, 1], or a propensity of 0, which no logged pick can have.
    """
    reward_N, propensity_N, target_N = check_log(reward_N, propensity_N, target_N)
    weight_N = target_N / propensity_N
    earned_N = weight_N * reward_N
    resample_RN = draw_resamples(len(reward_N), bootstrap, seed)
    doubly_robust = None
    if predictions is not None:
        logged_N, expected_N = check_predictions(predictions, len(reward_N))
        corrected_N = expected_N + weight_N * (reward_N - logged_N)
        doubly_robust = make_estimate(float(corrected_N.mean()), resample_RN @ corrected_N)
    square = float((weight_N**2).sum())
    return OffPolicyEstimate(
        ips=make_estimate(float(earned_N.mean()), resample_RN @ earned_N),
        snips=normalise(earned_N, weight_N, resample_RN),
        doubly_robust=doubly_robust,
        effective_rows=float(weight_N.sum()) ** 2 / square if square else 0.0,
    )


def normalise(
    earned_N: Float64Array, weight_N: Float64Array, resample_RN: Float64Array
) -> Estimate | None:
    """Return SNIPS, or None where no row has weight."""
    total = float(weight_N.sum())
    if total == 0:
        return None
    total_R = resample_RN @ weight_N
    held_R = total_R > 0
    ratio_R = (resample_RN @ earned_N)[held_R] / total_R[held_R]
    value = float(earned_N.sum()) / total
    return make_estimate(value, ratio_R if ratio_R.size else [value])


def check_log(
    reward_N: npt.ArrayLike, propensity_N: npt.ArrayLike, target_N: npt.ArrayLike
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Return the three as float64.

    Raises:
        RLRouteError: see `estimate_off_policy`.
    """
    arrays = [np.asarray(value, np.float64) for value in (reward_N, propensity_N, target_N)]
    check_rows("log", arrays, len(arrays[0]) if arrays[0].ndim else 0)
    reward_N, propensity_N, target_N = arrays
    for name, value_N in (("propensity", propensity_N), ("target probability", target_N)):
        wrong = np.flatnonzero((value_N < 0) | (value_N > 1))
        if wrong.size:
            raise RLRouteError(
                f"log row {wrong[0]}: a {name} must lie in [0, 1], got {value_N[wrong[0]]}"
            )
    never = np.flatnonzero(propensity_N == 0)
    if never.size:
        raise RLRouteError(f"log row {never[0]}: a pick that was made has a propensity above 0")
    return reward_N, propensity_N, target_N


def check_predictions(
    predictions: OutcomePredictions, rows: int
) -> tuple[Float64Array, Float64Array]:
    """Return predicted rewards as float64.

    Raises:
        RLRouteError: lengths that differ from the log's, or a value that is not finite.
    """
    arrays = [np.asarray(one, np.float64) for one in (predictions.logged_N, predictions.target_N)]
    check_rows("predictions", arrays, rows)
    return arrays[0], arrays[1]


def check_rows(name: str, arrays: list[Float64Array], rows: int) -> None:
    """Refuse arrays that are not one finite number for each of `rows` rows."""
    shapes = [array.shape for array in arrays]
    if not rows or any(shape != (rows,) for shape in shapes):
        raise RLRouteError(f"{name}: needs the same number of rows in each column, got {shapes}")
    for array_N in arrays:
        wrong = np.flatnonzero(~np.isfinite(array_N))
        if wrong.size:
            raise RLRouteError(f"{name}: row {wrong[0]} is not finite (NaN or infinite)")
