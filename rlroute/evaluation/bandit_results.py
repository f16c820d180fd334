"""What online learners made of their streams: regret, reward, spending, shares, reactions.

What it is: pure measures of picks, per learner over its seeds as mean, smallest and largest.

| measure  | meaning                                                                          |
| -------- | -------------------------------------------------------------------------------- |
| regret   | sum of a comparator's utility minus the learner's (`rlroute.bandits.comparators`)|
| reward   | mean utility of the picks; a failed call is a wrong answer at its full price     |
| spend    | USD billed, failed calls as their event bills them                               |
| share    | part of the picks of a phase that a candidate got                                |
| failures | picks of a dead candidate after its death                                        |
| delay    | queries after a candidate joins until it has, over the next `window` queries, at |
|          | least half of the share that the reference policy gives it from then on          |

The reference policy of delays is the optimum where it is known, else the linear one with hindsight.

What it leaves out: words (`bandit_comparison`), pictures (`bandit_figures`), the page.

How to use: `result = measure_bandits(streams, runs, window=500)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from rlroute.bandits.base import Float64Array
from rlroute.bandits.comparators import (
    BEST_AVAILABLE,
    LINEAR,
    OPTIMUM,
    Comparator,
    build_comparators,
)
from rlroute.bandits.config import DiesConfig, JoinsConfig
from rlroute.bandits.play import Picks
from rlroute.bandits.stream import Stream
from rlroute.evaluation.metrics import compute_cumulative_regret
from rlroute.evaluation.results import make_plain
from rlroute.evaluation.sweep_report import Spread, make_spread
from rlroute.types import IntArray

FORMAT_VERSION = 1
CURVE_POINTS = 200
NEEDED_PART = 0.5  # of the reference's share, for a candidate to have arrived
SMALLEST_SHARE = 0.02  # below it in the reference, whether a candidate arrives says nothing


@dataclass(frozen=True)
class LearnerRun:
    """A learner's way through one stream, and the seconds that it took."""

    name: str
    stream: Stream
    picks: Picks
    seconds: float


@dataclass(frozen=True)
class Curve:
    """A running sum over the stream: mean, smallest and largest over seeds at some points."""

    step: tuple[int, ...]
    mean: tuple[float, ...]
    smallest: tuple[float, ...]
    largest: tuple[float, ...]


@dataclass(frozen=True)
class LearnerResult:
    """A learner, or a comparator, over its seeds; see the module's table.

    `shares` holds per phase the mean share of every candidate. `failures` and `delays` are per
    candidate that dies or joins. `seconds_per_query` is None for comparators.
    """

    name: str
    regret: Mapping[str, Spread]
    reward: Spread
    score: Spread
    cost_usd: Spread
    shares: tuple[Mapping[str, float], ...]
    failures: Mapping[str, Spread]
    delays: Mapping[str, Spread | None]
    curves: Mapping[str, Curve]
    running_shares: Mapping[str, Curve]
    seconds_per_query: float | None


@dataclass(frozen=True)
class PhaseFact:
    """A phase in words: its first query, and what happened at its start."""

    start: int
    happened: str


@dataclass(frozen=True)
class BanditResult:
    """A comparison of learners, least regret first, and the comparators."""

    table: str
    queries: int
    distinct: int
    seeds: tuple[int, ...]
    candidate_ids: tuple[str, ...]
    cost_weight: tuple[float, float]
    window: int
    phases: tuple[PhaseFact, ...]
    comparator_names: tuple[str, ...]
    learners: tuple[LearnerResult, ...]
    comparators: tuple[LearnerResult, ...]
    format_version: int = field(default=FORMAT_VERSION)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; what is out of reach is None."""
        plain: dict[str, Any] = make_plain(asdict(self))
        return plain


@dataclass(frozen=True)
class Way:
    """What is measured of a learner or a comparator on one stream, each [T]."""

    stream: Stream
    action_T: IntArray
    utility_T: Float64Array
    cost_usd_T: Float64Array
    seconds: float | None


def measure_bandits(
    streams: Sequence[Stream], runs: Sequence[LearnerRun], window: int
) -> BanditResult:
    """Measure learners that have all met the same streams."""
    found = {stream.seed: build_comparators(stream) for stream in streams}
    ways: dict[str, list[Way]] = {}
    for run in runs:
        utility_T = run.stream.compute_utility(run.picks.action_T)
        way = Way(run.stream, run.picks.action_T, utility_T, run.picks.cost_usd_T, run.seconds)
        ways.setdefault(run.name, []).append(way)
    learners = [measure_ways(name, held, found, window) for name, held in ways.items()]
    first = streams[0]
    known = tuple(comparator.name for comparator in found[first.seed])
    return BanditResult(
        table=first.data.table.name,
        queries=first.length,
        distinct=len(first.data.table.queries),
        seeds=tuple(stream.seed for stream in streams),
        candidate_ids=first.candidate_ids,
        cost_weight=(float(first.cost_weight_T.min()), float(first.cost_weight_T.max())),
        window=window,
        phases=describe_phases(first),
        comparator_names=known,
        learners=tuple(sorted(learners, key=lambda one: one.regret[BEST_AVAILABLE].mean)),
        comparators=tuple(
            measure_ways(name, [follow(one, found, name) for one in streams], found, window)
            for name in known
        ),
    )


def follow(stream: Stream, found: Mapping[int, Sequence[Comparator]], name: str) -> Way:
    """Return a comparator's way; where its candidate has a hole its mean cost stands in."""
    comparator = find_comparator(found[stream.seed], name)
    table, rows_T = stream.data.table, np.arange(stream.length)
    factor_PK = np.stack([phase.price_factor_K for phase in stream.phases])
    cost_TK = table.cost_usd_QK[stream.query_T] * factor_PK[stream.phase_T]
    cost_T = cost_TK[rows_T, comparator.action_T].astype(np.float64)
    cost_T = np.where(np.isnan(cost_T), np.nanmean(cost_T), cost_T)
    return Way(stream, comparator.action_T, comparator.utility_T, cost_T, None)


def find_comparator(found: Sequence[Comparator], name: str) -> Comparator:
    """Return a comparator by its name."""
    return next(one for one in found if one.name == name)


def measure_ways(
    name: str, ways: Sequence[Way], found: Mapping[int, Sequence[Comparator]], window: int
) -> LearnerResult:
    """Measure one learner, or one comparator, over its seeds."""
    first = ways[0].stream
    regret = {
        one.name: [
            compute_cumulative_regret(
                find_comparator(found[way.stream.seed], one.name).utility_T - way.utility_T
            )
            for way in ways
        ]
        for one in found[first.seed]
    }
    watched = list(dict.fromkeys(event.candidate for event in first.events))
    timed = [way.seconds for way in ways if way.seconds is not None]
    return LearnerResult(
        name=name,
        regret={key: make_spread([float(sums_T[-1]) for sums_T in regret[key]]) for key in regret},
        reward=make_spread([float(way.utility_T.mean()) for way in ways]),
        score=make_spread([measure_score(way) for way in ways]),
        cost_usd=make_spread([float(way.cost_usd_T.sum()) for way in ways]),
        shares=tuple(
            dict(zip(first.candidate_ids, share_K.tolist(), strict=True))
            for share_K in np.mean([measure_shares(way) for way in ways], axis=0)
        ),
        failures={
            event.candidate: make_spread([count_failures(way, event.candidate) for way in ways])
            for event in first.events
            if isinstance(event, DiesConfig)
        },
        delays={
            event.candidate: summarise_delays(
                [measure_delay(w, event, found, window) for w in ways]
            )
            for event in first.events
            if isinstance(event, JoinsConfig)
        },
        curves={key: trace(sums_ST) for key, sums_ST in regret.items()},
        running_shares={
            i: trace([measure_running_share(way, i, window) for way in ways]) for i in watched
        },
        seconds_per_query=sum(timed) / (len(timed) * first.length) if timed else None,
    )


def measure_score(way: Way) -> float:
    """Return the mean score of the picks; a failed call scores 0."""
    score_T = way.stream.data.table.score_QK[way.stream.query_T, way.action_T]
    failed_T = way.stream.find_failures(way.action_T)
    return float(np.nanmean(np.where(failed_T, 0.0, score_T)))


def measure_shares(way: Way) -> Float64Array:
    """Return the share of picks that each candidate got in each phase [P, K]."""
    stream = way.stream
    picked_TK = way.action_T[:, None] == np.arange(len(stream.candidate_ids))
    phases = range(len(stream.phases))
    return np.stack([picked_TK[stream.phase_T == number].mean(axis=0) for number in phases])


def count_failures(way: Way, candidate: str) -> float:
    """Return how often a candidate was picked after its death."""
    column = way.stream.candidate_ids.index(candidate)
    failed_T = way.stream.find_failures(way.action_T)
    return float((failed_T & (way.action_T == column)).sum())


def measure_delay(
    way: Way, event: JoinsConfig, found: Mapping[int, Sequence[Comparator]], window: int
) -> float | None:
    """Return the delay of a candidate that joins, infinite: never; None where it says nothing."""
    stream = way.stream
    comparators = found[stream.seed]
    known = any(one.name == OPTIMUM for one in comparators)
    reference = find_comparator(comparators, OPTIMUM if known else LINEAR)
    column = stream.candidate_ids.index(event.candidate)
    alive_PK = np.stack([phase.alive_K for phase in stream.phases])
    here_T = alive_PK[stream.phase_T, column] & (np.arange(stream.length) >= event.at)
    share = float((reference.action_T[here_T] == column).mean())
    if share < SMALLEST_SHARE:
        return None
    sums_N = np.concatenate([[0], (way.action_T[here_T] == column).cumsum()])
    width = min(window, len(sums_N) - 1)
    reached_N = (sums_N[width:] - sums_N[:-width]) / width >= NEEDED_PART * share
    return float(reached_N.argmax()) if reached_N.any() else float("inf")


def summarise_delays(delays: Sequence[float | None]) -> Spread | None:
    """Return the spread of delays; None where one says nothing."""
    known = [delay for delay in delays if delay is not None]
    return make_spread(known) if len(known) == len(delays) else None


def measure_running_share(way: Way, candidate: str, window: int) -> Float64Array:
    """Return a candidate's share of the last `window` picks at every query [T]."""
    picked_T = way.action_T == way.stream.candidate_ids.index(candidate)
    sums_T = np.concatenate([[0.0], picked_T.cumsum()])
    start_T = np.maximum(np.arange(1, len(sums_T)) - window, 0)
    return np.asarray((sums_T[1:] - sums_T[start_T]) / (np.arange(1, len(sums_T)) - start_T))


def trace(rows: Sequence[Float64Array]) -> Curve:
    """Return mean, smallest and largest of rows [T] at some points, the last among them."""
    value_ST = np.stack(rows)
    length = value_ST.shape[1]
    place_N = np.unique(np.linspace(0, length - 1, min(CURVE_POINTS, length)).round().astype(int))
    chosen_SN = value_ST[:, place_N]
    return Curve(
        step=tuple((place_N + 1).tolist()),
        mean=tuple(chosen_SN.mean(axis=0).tolist()),
        smallest=tuple(chosen_SN.min(axis=0).tolist()),
        largest=tuple(chosen_SN.max(axis=0).tolist()),
    )


def describe_phases(stream: Stream) -> tuple[PhaseFact, ...]:
    """Say when each phase starts and what happens then."""
    found = []
    for phase in stream.phases:
        words = []
        for event in stream.events:
            if event.at == phase.start:
                change = f" to {event.factor:g} of its price" if event.kind == "reprices" else ""
                words.append(f"{event.candidate} {event.kind}{change}")
        found.append(PhaseFact(phase.start, "; ".join(words) or "start"))
    return tuple(found)


def list_metrics(run: LearnerRun, window: int) -> list[dict[str, Any]]:
    """Return rows for metrics.jsonl: what a learner did in every `window` queries."""
    stream, action_T = run.stream, run.picks.action_T
    utility_T = stream.compute_utility(action_T)
    failed_T = stream.find_failures(action_T)
    regret_T = compute_cumulative_regret(stream.best_T - utility_T)
    rows = []
    for start in range(0, stream.length, window):
        part = slice(start, min(start + window, stream.length))
        share_K = np.bincount(action_T[part], minlength=len(stream.candidate_ids))
        share_K = share_K / share_K.sum()
        row = {"step": part.stop, "seed": stream.seed, "learner": run.name}
        row |= {
            "reward/utility/mean": float(utility_T[part].mean()),
            "regret/best_available": float(regret_T[part.stop - 1]),
            "cost/usd_total": float(run.picks.cost_usd_T[: part.stop].sum()),
            "errors/failed": int(failed_T[part].sum()),
            "policy/propensity": float(run.picks.propensity_T[part].mean()),
        }
        shares = zip(stream.candidate_ids, share_K.tolist(), strict=True)
        rows.append(row | {f"selection/share/{i}": share for i, share in shares})
    return rows
