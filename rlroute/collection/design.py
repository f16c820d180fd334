"""Which candidate is asked which query: all of them, or a sample with known propensities.

What it is: the sampled design asks `per_query` candidates of each query, drawn without replacement
and uniformly, from the query's id and the seed alone: every pair has the propensity
per_query / candidates, whatever else stands in the file.

What it leaves out: designs that prefer some candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlroute.seeding import draw_permutation
from rlroute.types import BoolArray, Query, RLRouteError


@dataclass(frozen=True)
class Design:
    """`asked_QK` says which pairs are asked, `propensity` is the probability of each pair."""

    asked_QK: BoolArray
    propensity: float


def draw_design(
    queries: Sequence[Query], candidates: Sequence[str], per_query: int | None, seed: int
) -> Design:
    """Return all pairs, or `per_query` candidates for each query.

    Raises:
        RLRouteError: `per_query` is not between 1 and the number of candidates.
    """
    count = len(candidates)
    if per_query is None:
        return Design(np.ones((len(queries), count), dtype=np.bool_), 1.0)
    if not 1 <= per_query <= count:
        raise RLRouteError(f"--per-query {per_query}: must be between 1 and {count} (candidates)")
    asked_QK = np.zeros((len(queries), count), dtype=np.bool_)
    for row, query in enumerate(queries):
        asked_QK[row, draw_permutation(count, seed, "design", query.id)[:per_query]] = True
    return Design(asked_QK, per_query / count)
