"""A stream of queries whose candidates join, die and change their prices on the way.

What it is: T arrivals over the rows of a table (a new random order each pass, no repetition within
a pass), each with a cost weight and a uniform number, all hashes of the seed. Events cut it into
phases; within a phase it does not change who is offered, who answers and what is charged.

| word      | meaning                                                                          |
| --------- | -------------------------------------------------------------------------------- |
| offered   | has joined; a learner may pick it, whether it answers or not                     |
| available | offered, alive, and has an outcome for this query: what regret is measured on    |
| utility   | score - cost weight * cost / reference; reference: mean cost of the dearest one  |

A failed call earns nothing and is billed as its event says. In utility it counts as a wrong answer
at the full price of the call, whatever was billed, and never as more than the best available one
would have got: a failure is never cheap, and regret is never negative.

What it leaves out: learners, and what a live candidate would do (outcomes are the table's).

How to use: `stream = make_stream(data, length=20_000, seed=0, events=events, weights=config)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from rlroute.bandits.base import Arrival, Float64Array
from rlroute.bandits.config import DiesConfig, EventConfig, JoinsConfig, RepricesConfig
from rlroute.data.table import OutcomeTable
from rlroute.envs.single_turn import CostWeightConfig
from rlroute.seeding import draw_permutation, draw_uniform, mix
from rlroute.types import BoolArray, FloatArray, IntArray, RLRouteError


@dataclass(frozen=True)
class StreamData:
    """What streams are drawn from; candidates stand in the order of their ids.

    `context_QF` ends in a constant 1 (see `rlroute.bandits.contexts`), `features_QE` are the
    encoder's embeddings, `centroids_CE` centres of clusters of them. `success_QK` holds the chances
    of a score of 1 where they are known (made tables), else None.
    """

    table: OutcomeTable
    context_QF: Float64Array
    features_QE: FloatArray
    centroids_CE: FloatArray
    cost_reference_usd: float
    success_QK: Float64Array | None = None

    @cached_property
    def normalised_cost_QK(self) -> Float64Array:
        """Cost at first prices in units of the reference; NaN for pairs without outcome."""
        return self.table.cost_usd_QK.astype(np.float64) / self.cost_reference_usd

    def select_rows(self, row_N: IntArray) -> StreamData:
        """Return some of the queries; the unit of cost stays."""
        success_QK = self.success_QK
        return replace(
            self,
            table=self.table.select_queries(row_N),
            context_QF=self.context_QF[row_N],
            features_QE=self.features_QE[row_N],
            success_QK=None if success_QK is None else success_QK[row_N],
        )


@dataclass(frozen=True)
class Phase:
    """A part of a stream: where it starts, who is offered, who answers, what is charged."""

    start: int
    offered_K: BoolArray
    alive_K: BoolArray
    price_factor_K: Float64Array


@dataclass(frozen=True)
class Outcome:
    """What came of a pick: score and normalised cost at first prices, unless it failed.

    `cost_usd` is what is billed, also for a failure.
    """

    score: float
    cost: float
    cost_usd: float
    failed: bool


@dataclass(frozen=True)
class Stream:
    """T arrivals; see the module's text."""

    data: StreamData
    seed: int
    events: tuple[EventConfig, ...]
    phases: tuple[Phase, ...]
    query_T: IntArray
    cost_weight_T: FloatArray
    uniform_T: Float64Array

    @property
    def length(self) -> int:
        """T, the number of arrivals."""
        return len(self.query_T)

    @cached_property
    def candidate_ids(self) -> tuple[str, ...]:
        """The candidates in the order of all arrays [K]."""
        return tuple(candidate.id for candidate in self.data.table.candidates)

    @cached_property
    def phase_T(self) -> IntArray:
        """The number of each arrival's phase."""
        starts = np.array([phase.start for phase in self.phases])
        return np.asarray(np.searchsorted(starts, np.arange(self.length), side="right") - 1)

    @cached_property
    def billed_K(self) -> Float64Array:
        """The part of its price that a dead candidate charges."""
        found = {event.candidate: event for event in self.events if isinstance(event, DiesConfig)}
        return np.array([found[i].billed if i in found else 0.0 for i in self.candidate_ids])

    @cached_property
    def full_utility_TK(self) -> Float64Array:
        """Utility at the prices of the moment, whoever is there; NaN for pairs without outcome."""
        table = self.data.table
        cost_TK = self.data.normalised_cost_QK[self.query_T]
        factor_TK = np.stack([phase.price_factor_K for phase in self.phases])[self.phase_T]
        price_T1 = self.cost_weight_T[:, None].astype(np.float64)
        return np.asarray(table.score_QK[self.query_T] - price_T1 * factor_TK * cost_TK)

    @cached_property
    def available_TK(self) -> BoolArray:
        """Who could have been picked with an outcome."""
        here_PK = np.stack([phase.offered_K & phase.alive_K for phase in self.phases])
        return here_PK[self.phase_T] & self.data.table.present_QK[self.query_T]

    @cached_property
    def utility_TK(self) -> Float64Array:
        """Utility of the available candidates; NaN for the others."""
        return np.where(self.available_TK, self.full_utility_TK, np.nan)

    @cached_property
    def best_T(self) -> Float64Array:
        """Utility of the best available candidate of each arrival."""
        return np.asarray(np.nanmax(self.utility_TK, axis=1))

    def list_offered(self, step: int) -> BoolArray:
        """Return who may be picked for arrival `step` [K], whether he would answer or not."""
        here_K = self.phases[self.phase_T[step]].offered_K
        return np.asarray(here_K & self.data.table.present_QK[self.query_T[step]])

    def make_arrival(self, step: int, blocked_K: BoolArray) -> Arrival:
        """Return arrival `step` as a learner sees it that leaves the blocked candidates alone."""
        query, phase = self.query_T[step], self.phases[self.phase_T[step]]
        return Arrival(
            context_F=self.data.context_QF[query],
            features_E=self.data.features_QE[query],
            mask_K=self.list_offered(step) & ~blocked_K,
            price_factor_K=phase.price_factor_K,
            cost_weight=float(self.cost_weight_T[step]),
            uniform=float(self.uniform_T[step]),
        )

    def answer(self, step: int, action: int) -> Outcome:
        """Return what comes of picking candidate `action` for an arrival.

        Raises:
            ValueError: it was not offered, or has no outcome for this query.
        """
        query, phase = self.query_T[step], self.phases[self.phase_T[step]]
        table = self.data.table
        if not self.list_offered(step)[action]:
            raise ValueError(f"candidate {action} may not be picked at query {step}")
        cost_usd = float(table.cost_usd_QK[query, action])
        paid = cost_usd * float(phase.price_factor_K[action])
        if not phase.alive_K[action]:
            return Outcome(np.nan, np.nan, paid * float(self.billed_K[action]), failed=True)
        cost = cost_usd / self.data.cost_reference_usd
        return Outcome(float(table.score_QK[query, action]), cost, paid, failed=False)

    def compute_utility(self, action_T: IntArray) -> Float64Array:
        """Return the utility of a sequence of picks [T]; see the module's text on failures."""
        rows_T = np.arange(self.length)
        utility_T = self.utility_TK[rows_T, action_T]
        score_T = self.data.table.score_QK[self.query_T, action_T]
        wrong_T = np.minimum(self.full_utility_TK[rows_T, action_T] - score_T, self.best_T)
        return np.where(self.find_failures(action_T), wrong_T, utility_T)

    def find_failures(self, action_T: IntArray) -> BoolArray:
        """Return which picks [T] failed."""
        alive_PK = np.stack([phase.alive_K for phase in self.phases])
        return ~alive_PK[self.phase_T, action_T]


def make_stream(
    data: StreamData,
    *,
    length: int,
    seed: int,
    events: Sequence[EventConfig],
    weights: CostWeightConfig,
) -> Stream:
    """Make a stream; equal arguments make equal streams.

    Raises:
        RLRouteError: an event names no candidate, comes too late or contradicts another, or a
            query arrives that nobody available has an outcome for.
    """
    ordered = tuple(sorted(events, key=lambda event: event.at))
    step_T = np.arange(length)
    queries = len(data.table.queries)
    passes = -(-length // queries)
    order = [draw_permutation(queries, seed, "stream", number) for number in range(passes)]
    stream = Stream(
        data=data,
        seed=seed,
        events=ordered,
        phases=cut_phases(data.table, ordered, length),
        query_T=np.concatenate(order)[:length],
        cost_weight_T=weights.draw((mix(seed, "arrival", step_T) >> np.uint64(2)).astype(np.int64)),
        uniform_T=draw_uniform(seed, "pick", step_T),
    )
    for step in np.flatnonzero(~stream.available_TK.any(axis=1))[:1]:
        query = data.table.queries[stream.query_T[step]].id
        raise RLRouteError(
            f"stream: nobody who is available at {step} has an outcome for query '{query}'"
        )
    return stream


def cut_phases(
    table: OutcomeTable, events: Sequence[EventConfig], length: int
) -> tuple[Phase, ...]:
    """Return the phases between the events, which are in order of time."""
    ids = [candidate.id for candidate in table.candidates]
    check_events(events, ids, length)
    joins_late = {event.candidate for event in events if isinstance(event, JoinsConfig)}
    offered_K = np.array([i not in joins_late for i in ids])
    alive_K = np.ones(len(ids), dtype=np.bool_)
    factor_K = np.ones(len(ids))
    phases = [Phase(0, offered_K, alive_K, factor_K)]
    for event in events:
        last, at = phases[-1], np.array([i == event.candidate for i in ids])
        offered_K, alive_K, factor_K = last.offered_K, last.alive_K, last.price_factor_K
        if isinstance(event, JoinsConfig):
            offered_K = offered_K | at
        elif isinstance(event, DiesConfig):
            alive_K = alive_K & ~at
        else:
            factor_K = np.where(at, event.factor, factor_K)
        if last.start == event.at:
            phases.pop()  # several events at once
        phases.append(Phase(event.at, offered_K, alive_K, factor_K))
    return tuple(phases)


def check_events(events: Sequence[EventConfig], ids: Sequence[str], length: int) -> None:
    """Refuse events that cannot happen; see `make_stream`."""
    for number, event in enumerate(events):
        where = f"events: {event.kind} '{event.candidate}' at {event.at}"
        if event.candidate not in ids:
            raise RLRouteError(f"{where}: no such candidate (the table has: {', '.join(ids)})")
        if event.at >= length:
            raise RLRouteError(f"{where}: the stream has {length} queries, numbered from 0")
        for other in events[:number]:
            if other.candidate != event.candidate:
                continue
            if other.kind == event.kind and not isinstance(event, RepricesConfig):
                raise RLRouteError(f"{where}: it {event.kind} at {other.at} already")
            if isinstance(other, DiesConfig) and isinstance(event, JoinsConfig):
                raise RLRouteError(f"{where}: it dies at {other.at}, before it joins")
