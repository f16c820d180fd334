"""Tests of whether two routers differ on the same queries, and whether they are as good as equal.

What it is: McNemar's test for 0/1 scores (exact and mid-p), the sign-flip permutation test for any
scores, equivalence within a margin by two one-sided tests (Schuirmann, 1987), and how many queries
a difference needs to be seen. All are paired: one number per query, Q queries. A p-value says how
often chance alone makes a difference as large; a large one does not show that two are equal, which
is what the equivalence test is for.

What it leaves out: intervals by the bootstrap (`intervals`) and the spread over training seeds.

How to use: `compute_mcnemar(right_first_Q, right_second_Q).mid_p`,
`compute_equivalence(score_first_Q - score_second_Q, margin=0.005).equivalent`.
Sources: McNemar (1947); mid-p as recommended by Fagerland, Lydersen and Laake (2013).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rlroute.evaluation.frontier import Float64Array
from rlroute.types import RLRouteError

EQUIVALENCE_MARGIN = 0.005  # half a point of quality
SIGNIFICANCE = 0.05
PERMUTATIONS = 9999
PERMUTATIONS_AT_ONCE = 500


@dataclass(frozen=True)
class McNemar:
    """Queries on which exactly one side is right, and the two-sided p-values.

    `exact_p` is the binomial test on those queries, which is conservative; `mid_p` counts the
    observed split half and keeps close to the stated level.
    """

    only_first: int
    only_second: int
    exact_p: float
    mid_p: float


@dataclass(frozen=True)
class Equivalence:
    """Mean difference with its 90 % interval, and the p-value of the two one-sided tests.

    The two are `equivalent` at the 5 % level where the 90 % interval lies within the margin.
    """

    margin: float
    difference: float
    low: float
    high: float
    p_value: float

    @property
    def equivalent(self) -> bool:
        """Whether the difference is shown to be smaller than the margin, either way."""
        return self.p_value < SIGNIFICANCE


def compute_mcnemar(right_first_Q: npt.ArrayLike, right_second_Q: npt.ArrayLike) -> McNemar:
    """Return McNemar's test of two 0/1 scores on the same queries.

    Where the two are never right alone there is nothing to tell them apart: both p-values are 1.

    Raises:
        RLRouteError: lengths that differ, or a score other than 0 and 1.
    """
    from scipy.stats import binom

    first_Q, second_Q = np.asarray(right_first_Q), np.asarray(right_second_Q)
    if first_Q.shape != second_Q.shape or first_Q.ndim != 1:
        raise RLRouteError(
            f"McNemar: needs one score per query and side, got shapes {first_Q.shape} and "
            f"{second_Q.shape}"
        )
    if not (is_binary(first_Q) and is_binary(second_Q)):
        raise RLRouteError("McNemar: every score must be 0 or 1; graded scores need another test")
    only_first = int(((first_Q == 1) & (second_Q == 0)).sum())
    only_second = int(((first_Q == 0) & (second_Q == 1)).sum())
    split = binom(only_first + only_second, 0.5)
    tail = 2 * float(split.cdf(min(only_first, only_second)))
    observed = float(split.pmf(min(only_first, only_second)))
    return McNemar(only_first, only_second, min(1.0, tail), min(1.0, tail - observed))


def is_binary(score_Q: npt.ArrayLike) -> bool:
    """Say whether all scores are 0 or 1."""
    return bool(np.isin(score_Q, (0, 1)).all())


def compute_permutation_p(
    difference_Q: npt.ArrayLike, *, permutations: int = PERMUTATIONS, seed: int = 0
) -> float:
    """Return the two-sided p-value of a mean paired difference by flipping signs at random.

    If the two sides are exchangeable on every query, each difference is as likely with the other
    sign. Exact where the flips are fewer than `permutations`; queries without a difference change
    nothing and are left out.

    Raises:
        RLRouteError: a difference that is not finite.
    """
    from scipy.stats import permutation_test

    difference_Q = check_differences(difference_Q, least=1)
    differing_N = difference_Q[difference_Q != 0]
    if differing_N.size < 2:  # none differs, or one, whose both signs are as far from 0
        return 1.0
    found = permutation_test(
        (differing_N,),
        lambda value_N, axis: np.mean(value_N, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=permutations,
        batch=PERMUTATIONS_AT_ONCE,
        rng=np.random.default_rng(seed),
    )
    return min(1.0, float(found.pvalue))


def compute_equivalence(
    difference_Q: npt.ArrayLike, margin: float = EQUIVALENCE_MARGIN
) -> Equivalence:
    """Return two one-sided t-tests of a mean paired difference against -margin and +margin.

    Raises:
        RLRouteError: fewer than two queries, a difference that is not finite, or no margin.
    """
    from scipy.stats import t as student

    if not margin > 0:
        raise RLRouteError(f"equivalence: the margin must be above 0, got {margin}")
    difference_Q = check_differences(difference_Q, least=2)
    mean = float(difference_Q.mean())
    error = float(difference_Q.std(ddof=1)) / math.sqrt(len(difference_Q))
    if error == 0:  # the same difference on every query
        return Equivalence(margin, mean, mean, mean, 0.0 if abs(mean) < margin else 1.0)
    spread = student(len(difference_Q) - 1, scale=error)
    reach = float(spread.ppf(1 - SIGNIFICANCE))
    p_value = float(spread.sf(margin - abs(mean)))  # of the side that is nearer to its margin
    return Equivalence(margin, mean, mean - reach, mean + reach, p_value)


def check_differences(difference_Q: npt.ArrayLike, *, least: int) -> Float64Array:
    """Return differences as float64 of one axis.

    Raises:
        RLRouteError: fewer than `least`, or one is not finite.
    """
    difference_Q = np.asarray(difference_Q, np.float64)
    if difference_Q.ndim != 1 or len(difference_Q) < least:
        raise RLRouteError(
            f"paired test: needs one difference per query and at least {least}, "
            f"got shape {difference_Q.shape}"
        )
    if not np.isfinite(difference_Q).all():
        raise RLRouteError("paired test: a difference is not finite (NaN or infinite)")
    return difference_Q


def count_queries_needed(
    disagreement: float, difference: float, standard_errors: float = 2.0
) -> int:
    """Return how many queries make a difference so many standard errors large (0/1 scores).

    `disagreement` is the share of queries on which exactly one side is right. From the standard
    error of `intervals.compute_paired_standard_error`.

    Raises:
        RLRouteError: no difference, or one larger than the disagreement, which cannot be.
    """
    if not 0 < abs(difference) <= disagreement <= 1:
        raise RLRouteError(
            f"a difference of {difference} cannot come from a disagreement of {disagreement} "
            "(needed: 0 < difference <= disagreement <= 1)"
        )
    variance = disagreement - difference**2
    return math.ceil(variance * (standard_errors / difference) ** 2)
