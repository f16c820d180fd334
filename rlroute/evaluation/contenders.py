"""Two routers that are about to be compared: whether they can be, and in what common terms.

What it is: `Contender` and `Setting`, what a comparison is given. The same test queries with the
same outcomes are a must. The candidates may differ (some held out, or sets of them as actions):
results are paired by query, so each router picks among its own. Then AIQ spans the costs of the
candidates that both have, and cost weights are in the first one's unit of cost, so that both pay
the same USD for a point of quality.

What it leaves out: the comparison (`run_difference`) and reading runs (`rlroute.run_comparison`).

How to use: `first, second = align_contenders(first, second)`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rlroute.evaluation import metrics
from rlroute.evaluation.frontier import Float64Array
from rlroute.evaluation.sampling import (
    RoutingPolicy,
    Yardstick,
    check_cost_weights,
    make_yardstick,
)
from rlroute.types import RLRouteError, SplitName

if TYPE_CHECKING:
    from rlroute.data.routing_data import RoutingData


@dataclass(frozen=True)
class Contender:
    """A policy with the splits as it sees them, and the cost weights it was made for.

    `cost_weights` are in its own unit of cost; a common cost weight times `weight_factor` is its
    own. `notes` are sentences on how it is asked.
    """

    name: str
    policy: RoutingPolicy
    splits: Mapping[SplitName, RoutingData]
    cost_weights: Sequence[float]
    notes: tuple[str, ...] = ()
    weight_factor: float = 1.0

    @property
    def candidate_ids(self) -> tuple[str, ...]:
        """The candidates that it picks among."""
        return tuple(candidate.id for candidate in self.splits["test"].table.candidates)


@dataclass(frozen=True)
class Setting:
    """Where two policies are compared query by query.

    At one cost weight; or with `budget_usd` (mean USD per query) each at the weight of its best
    quality on its own validation split within the budget. Neither: the least common cost weight.
    """

    cost_weight: float | None = None
    budget_usd: float | None = None


def align_contenders(first: Contender, second: Contender) -> tuple[Contender, Contender]:
    """Return both, the second with its cost weights in the first one's unit of cost.

    Raises:
        RLRouteError: other queries in train or test, no candidate in common, other outcomes of a
            common one, or another unit of cost although the candidates are the same.
    """
    for split in ("test", "train"):
        ids = [[q.id for q in one.splits[split].table.queries] for one in (first, second)]
        if ids[0] != ids[1]:
            raise RLRouteError(
                f"{first.name} and {second.name} have other {split} queries "
                f"({len(ids[0])} and {len(ids[1])}): only runs on the same split can be compared"
            )
    check_common_outcomes(first, second)
    references = [one.splits["test"].cost_reference_usd for one in (first, second)]
    if math.isclose(references[0], references[1], rel_tol=1e-6):
        return first, second
    if first.candidate_ids == second.candidate_ids:
        raise RLRouteError(
            f"{first.name} and {second.name} measure cost in other units (their train splits "
            "differ): only runs on the same split can be compared"
        )
    return first, dataclasses.replace(second, weight_factor=references[1] / references[0])


def find_common_ids(first: Contender, second: Contender) -> list[str]:
    """Return the candidates that both have, in the first one's order."""
    return [one for one in first.candidate_ids if one in second.candidate_ids]


def check_common_outcomes(first: Contender, second: Contender) -> None:
    """Check that candidates of both have the same outcomes on the test queries.

    Raises:
        RLRouteError: they have not, or there is none.
    """
    common = find_common_ids(first, second)
    if not common:
        raise RLRouteError(
            f"{first.name} and {second.name} have no candidate in common: there is no common range "
            "of costs to compare them over"
        )
    columns = [[one.candidate_ids.index(name) for name in common] for one in (first, second)]
    tables = [one.splits["test"].table for one in (first, second)]
    for name in ("score_QK", "cost_usd_QK"):
        arrays = [
            getattr(table, name)[:, column] for table, column in zip(tables, columns, strict=True)
        ]
        if not np.array_equal(arrays[0], arrays[1], equal_nan=True):
            raise RLRouteError(
                f"{first.name} and {second.name} know other outcomes of the same candidates: "
                "nothing to pair"
            )


def find_common_weights(first: Contender, second: Contender) -> Float64Array:
    """Return the cost weights of both that lie in the range of both, in the common unit.

    Raises:
        RLRouteError: the ranges do not meet.
    """
    weights = [check_cost_weights(one.cost_weights) / one.weight_factor for one in (first, second)]
    low, high = max(one[0] for one in weights), min(one[-1] for one in weights)
    if low > high:
        raise RLRouteError(
            f"{first.name} knows cost weights {weights[0][0]:g} to {weights[0][-1]:g}, "
            f"{second.name} {weights[1][0]:g} to {weights[1][-1]:g}: none in common"
        )
    both = np.union1d(*weights)
    return np.asarray(both[(both >= low) & (both <= high)], np.float64)


def make_common_yardstick(
    first: Contender, second: Contender, bootstrap: int, seed: int
) -> Yardstick:
    """Return what both are measured with: the resamples, and the candidates that both have."""
    train = first.splits["train"].table
    whole = make_yardstick(first.splits["train"], first.splits["test"], bootstrap, seed)
    common = find_common_ids(first, second)
    if len(common) == len(first.candidate_ids):
        return whole
    columns = [first.candidate_ids.index(name) for name in common]
    arrays = [
        array_QK[:, columns] for array_QK in (train.score_QK, train.cost_usd_QK, train.present_QK)
    ]
    return Yardstick(
        whole.weight_SQ,
        whole.quality_SK[:, columns],
        whole.cost_usd_SK[:, columns],
        best=metrics.find_best_single(*arrays),
        cheapest=metrics.find_cheapest_single(arrays[1], arrays[2]),
    )


def list_notes(first: Contender, second: Contender) -> tuple[str, ...]:
    """Say how both are asked, and in what terms they are compared where their actions differ."""
    notes = [*first.notes, *second.notes]
    if set(first.candidate_ids) != set(second.candidate_ids):
        counts = [len(one.candidate_ids) for one in (first, second)]
        notes.append(
            f"{first.name} picks among {counts[0]:,} candidates, {second.name} among "
            f"{counts[1]:,}: quality and cost are paired by query, and AIQ spans the costs of the "
            f"{len(find_common_ids(first, second)):,} that both have."
        )
    if second.weight_factor != 1:
        notes.append(
            f"Cost weights are those of {first.name}; {second.name} is asked at "
            f"{second.weight_factor:.3g} times each, so that both pay the same USD for a point of "
            "quality."
        )
    return tuple(notes)
