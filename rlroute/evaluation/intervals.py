"""Paired bootstrap over queries: percentile intervals of whatever is a function of query means.

What it is: resamples of the queries as one matrix of weights [R, Q], so that the means of a whole
sweep in every resample are one matrix product; AIQ, hull heights and differences are then computed
per resample. It is paired because every router meets the same resampled queries: the interval of a
difference is the interval of what differs.

What it leaves out: the spread over training seeds, which is another thing.

How to use: `weight_RQ = draw_resamples(Q, 1000, seed)`, `mean_RN = weight_RQ @ value_NQ.T`,
`make_estimate(value, sample_R)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rlroute.evaluation.frontier import ROUNDING, Float64Array
from rlroute.types import RLRouteError

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its interval (95 %); infinite where a resample has no finite value."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero, by more than rounding."""
        return self.low > ROUNDING or self.high < -ROUNDING

    def scale(self, factor: float) -> Estimate:
        """Return the estimate in another unit (`factor` above 0)."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor)


def draw_resamples(queries: int, resamples: int, seed: int) -> Float64Array:
    """Return the weights [R, Q] of R resamples of Q queries with replacement; rows sum to 1.

    Raises:
        RLRouteError: no queries, or fewer than one resample.
    """
    if queries < 1 or resamples < 1:
        raise RLRouteError(
            f"bootstrap: needs at least one query and one resample, got {queries} and {resamples}"
        )
    generator = np.random.default_rng(seed)
    weight_RQ = np.empty((resamples, queries))
    for row in weight_RQ:
        row[:] = np.bincount(generator.integers(queries, size=queries), minlength=queries)
    return weight_RQ / queries


def make_estimate(value: float, sample_R: npt.ArrayLike) -> Estimate:
    """Return `value` with the percentile interval of its resamples.

    Resamples may be infinite (a quality that is never reached); percentiles are then taken without
    interpolation, so that an interval may reach to infinity and is never NaN.
    """
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.asarray(sample_R), [tail, 1 - tail], method="inverted_cdf")
    return Estimate(float(value), float(low), float(high))


def compute_paired_standard_error(only_first: float, only_second: float, queries: int) -> float:
    """Return the standard error of the difference of two mean 0/1 scores on the same queries.

    `only_first` and `only_second` are the shares of queries on which exactly that side is right.
    """
    difference = only_second - only_first
    return math.sqrt((only_first + only_second - difference**2) / queries)
