"""What a router decided on single queries: examples, and whether its expectations hold.

What it is: at one cost weight, queries where the pick differs from the best single candidate
(chosen on train), gains and losses alike, and the calibration of the quality and cost that the
policy expected of its picks. Examples are drawn by a hash, not chosen for their looks.

The expectations of our policy are shaped by the policy gradient alone: only what moves a decision
is learnt, so a constant error in all of them would not be seen. The calibration says how far they
can be read as forecasts all the same.

What it leaves out: pictures (`figures_decisions`) and the page (`report`).

How to use: `inspect_decisions(policy, test, best=3, cost_weight=0.1, seed=0)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from rlroute.evaluation.frontier import Float64Array
from rlroute.seeding import draw_permutation
from rlroute.types import FloatArray, IntArray

if TYPE_CHECKING:
    from rlroute.data.routing_data import RoutingData

BINS = 10
EXAMPLES_PER_KIND = 4
TEXT_SHOWN = 220
NORMAL_95 = 1.959964
# What may come of a pick that differs, in the order in which it is told.
GAINED, CHEAPER, DEARER, LOST = "gained", "same score, cheaper", "same score, not cheaper", "lost"
KINDS = (GAINED, CHEAPER, DEARER, LOST)


class EstimatingPolicy(Protocol):
    """A policy that says what it expects of its picks."""

    @property
    def name(self) -> str:
        """The policy's name."""
        ...

    def estimate_picks(
        self, data: RoutingData, cost_weight: float
    ) -> tuple[IntArray, FloatArray, FloatArray]:
        """Return pick [Q], expected score [Q] and expected normalised cost [Q]."""
        ...


@dataclass(frozen=True)
class Example:
    """One query where the policy and the best single candidate part; costs in USD."""

    kind: str
    query_id: str
    task: str
    text: str
    candidate_id: str
    score: float
    cost_usd: float
    best_score: float
    best_cost_usd: float


@dataclass(frozen=True)
class Bin:
    """Queries of like expectations: their number, what was expected, what came (95 %)."""

    count: int
    expected: float
    realised: float
    low: float
    high: float


@dataclass(frozen=True)
class Calibration:
    """Bins of rising expectation, and the mean distance of expected and realised, by count."""

    bins: tuple[Bin, ...]
    error: float


@dataclass(frozen=True)
class DecisionReport:
    """What `inspect_decisions` found; `counts` has the queries of each kind among those that part.

    Costs of the calibration are in USD per query.
    """

    policy: str
    best_single: str
    cost_weight: float
    queries: int
    counts: Mapping[str, int]
    examples: tuple[Example, ...]
    quality: Calibration
    cost: Calibration


def inspect_decisions(
    policy: EstimatingPolicy, data: RoutingData, *, best: int, cost_weight: float, seed: int
) -> DecisionReport:
    """Look at the picks of a policy on a split; `best` is the column of the best single candidate.

    Queries on which that has no outcome can be no example.
    """
    table = data.table
    pick_Q, expected_Q, expected_cost_Q = policy.estimate_picks(data, cost_weight)
    rows = np.arange(len(pick_Q))
    score_Q = table.score_QK[rows, pick_Q].astype(np.float64)
    cost_Q = table.cost_usd_QK[rows, pick_Q].astype(np.float64)
    kind_Q = name_kinds(data, pick_Q, best)
    parted = [kind for kind in kind_Q if kind]
    return DecisionReport(
        policy=policy.name,
        best_single=table.candidates[best].id,
        cost_weight=float(cost_weight),
        queries=len(pick_Q),
        counts={kind: parted.count(kind) for kind in KINDS},
        examples=draw_examples(data, pick_Q, kind_Q, best, seed),
        quality=calibrate(expected_Q, score_Q),
        cost=calibrate(expected_cost_Q * np.float64(data.cost_reference_usd), cost_Q),
    )


def name_kinds(data: RoutingData, pick_Q: IntArray, best: int) -> list[str]:
    """Return for each query what became of leaving the best single candidate; "" where none was."""
    table, rows = data.table, np.arange(len(pick_Q))
    parted_Q = (pick_Q != best) & table.present_QK[:, best]
    score_Q, best_score_Q = table.score_QK[rows, pick_Q], table.score_QK[:, best]
    cheaper_Q = table.cost_usd_QK[rows, pick_Q] < table.cost_usd_QK[:, best]
    kinds = np.select(
        [~parted_Q, score_Q > best_score_Q, score_Q < best_score_Q, cheaper_Q],
        ["", GAINED, LOST, CHEAPER],
        DEARER,
    )
    return [str(kind) for kind in kinds]


def draw_examples(
    data: RoutingData, pick_Q: IntArray, kind_Q: list[str], best: int, seed: int
) -> tuple[Example, ...]:
    """Return a few queries of each kind, in an order drawn from the seed."""
    table = data.table
    order_Q = draw_permutation(len(pick_Q), seed, "examples").tolist()
    found = []
    for kind in KINDS:
        for q in [q for q in order_Q if kind_Q[q] == kind][:EXAMPLES_PER_KIND]:
            query, k = table.queries[q], int(pick_Q[q])
            found.append(
                Example(
                    kind=kind,
                    query_id=query.id,
                    task=query.task,
                    text=shorten(query.text),
                    candidate_id=table.candidates[k].id,
                    score=float(table.score_QK[q, k]),
                    cost_usd=float(table.cost_usd_QK[q, k]),
                    best_score=float(table.score_QK[q, best]),
                    best_cost_usd=float(table.cost_usd_QK[q, best]),
                )
            )
    return tuple(found)


def shorten(text: str) -> str:
    """Return a text on one line, cut at a length that fits a table."""
    line = " ".join(text.split())
    return (
        line
        if len(line) <= TEXT_SHOWN
        else line[: TEXT_SHOWN - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"
    )


def calibrate(expected_Q: npt.ArrayLike, realised_Q: npt.ArrayLike) -> Calibration:
    """Sort queries into bins of equal counts by what was expected, and compare with what came.

    Equal expectations share a bin. The error is the mean of |expected - realised| over bins,
    weighed by their counts (ECE). Intervals are normal, of the mean of the bin.
    """
    expected_Q = np.asarray(expected_Q, np.float64)
    realised_Q = np.asarray(realised_Q, np.float64)
    edges = np.unique(np.quantile(expected_Q, np.linspace(0, 1, BINS + 1)[1:-1]))
    bin_Q = np.searchsorted(edges, expected_Q, side="left")
    bins = [
        summarise_bin(expected_Q[bin_Q == number], realised_Q[bin_Q == number])
        for number in np.unique(bin_Q)
    ]
    error = sum(one.count * abs(one.expected - one.realised) for one in bins) / len(expected_Q)
    return Calibration(tuple(bins), error)


def summarise_bin(expected_N: Float64Array, realised_N: Float64Array) -> Bin:
    """Return a bin's means and the interval of what came."""
    mean = float(realised_N.mean())
    half = NORMAL_95 * float(realised_N.std()) / np.sqrt(len(realised_N))
    return Bin(len(expected_N), float(expected_N.mean()), mean, mean - half, mean + half)
