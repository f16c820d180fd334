"""The difference between two runs of online learners on the same streams, by blocks of queries.

What it is: learners of the same name are paired, and the one of least regret of each run. On one
stream both meet the same arrivals, so the difference of their utilities is that of their regrets,
whatever the comparator. A difference is always the first run's regret minus the second's: below 0
the first is better. Queries that follow each other are not independent, since what was learnt on
one is used on the next; so resamples are of blocks of consecutive queries, over all seeds together
(interval of 95 %), and the permutation test flips the signs of whole blocks. Axes: S seeds, T
arrivals, N blocks.

What it leaves out: another chance of the learners on the same stream (that is what several seeds
are for: the smallest and largest difference stand beside the interval), and reading runs
(`rlroute.stream_runs`).

How to use: `compare_learners(first, second, names=("a", "b"), window=500)`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlroute.bandits.base import Float64Array
from rlroute.evaluation.bandit_figures import draw_curve, make_panels
from rlroute.evaluation.bandit_results import (
    Curve,
    LearnerRun,
    PhaseFact,
    describe_phases,
    trace,
)
from rlroute.evaluation.figures import GREY, INK, save_png, style_axes
from rlroute.evaluation.intervals import Estimate, draw_resamples, make_estimate
from rlroute.evaluation.results import make_plain
from rlroute.evaluation.tests_of_difference import compute_permutation_p
from rlroute.files import write_atomic
from rlroute.types import RLRouteError

if TYPE_CHECKING:
    from rich.table import Table

FORMAT_VERSION = 1
FEWEST_BLOCKS = 20  # of a stream: a shorter one is cut into shorter blocks
COMPARISON_FILE, PICTURE_FILE = "compare.json", "compare.png"


@dataclass(frozen=True)
class LearnerDifference:
    """Two learners over the whole stream; regrets are against the best available candidate.

    `difference` is the first's minus the second's, the mean over seeds; `by_seed` the single ones,
    `by_phase` the parts of it. `curve` is its running sum.
    """

    first: str
    second: str
    first_regret: float
    second_regret: float
    difference: Estimate
    permutation_p: float
    by_seed: tuple[float, ...]
    by_phase: tuple[float, ...]
    curve: Curve


@dataclass(frozen=True)
class StreamDifference:
    """All that tells two runs apart; `block` is the number of queries of a block."""

    table: str
    queries: int
    seeds: tuple[int, ...]
    first: str
    second: str
    block: int
    phases: tuple[PhaseFact, ...]
    learners: tuple[LearnerDifference, ...]
    bootstrap: int
    format_version: int = field(default=FORMAT_VERSION)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        plain: dict[str, Any] = make_plain(asdict(self))
        return plain


def compare_learners(
    first: Sequence[LearnerRun],
    second: Sequence[LearnerRun],
    *,
    names: tuple[str, str],
    window: int,
    bootstrap: int = 2000,
    seed: int = 0,
) -> StreamDifference:
    """Compare two runs of learners, which must have met the same streams, seed by seed.

    Raises:
        RLRouteError: the streams differ.
    """
    check_streams(first, second)
    ways = [gather(runs) for runs in (first, second)]
    best = [min(way, key=lambda name: measure_regret(way[name])) for way in ways]
    pairs = [(name, name) for name in ways[0] if name in ways[1]]
    if (best[0], best[1]) not in pairs:
        pairs.insert(0, (best[0], best[1]))
    stream = first[0].stream
    block = max(1, min(window, stream.length // FEWEST_BLOCKS))
    return StreamDifference(
        table=stream.data.table.name,
        queries=stream.length,
        seeds=tuple(run.stream.seed for run in ways[0][best[0]]),
        first=names[0],
        second=names[1],
        block=block,
        phases=describe_phases(stream),
        learners=tuple(
            compare_pair(ways[0][one], ways[1][other], block, bootstrap, seed)
            for one, other in pairs
        ),
        bootstrap=bootstrap,
    )


def check_streams(first: Sequence[LearnerRun], second: Sequence[LearnerRun]) -> None:
    """Refuse runs that have not met the same arrivals at the same prices."""
    streams = [{run.stream.seed: run.stream for run in runs} for runs in (first, second)]
    if streams[0].keys() != streams[1].keys():
        raise RLRouteError("compare: the runs have other seeds")
    for seed, one in streams[0].items():
        other = streams[1][seed]
        same = (
            np.array_equal(one.query_T, other.query_T)
            and np.array_equal(one.cost_weight_T, other.cost_weight_T)
            and one.events == other.events
            and one.candidate_ids == other.candidate_ids
        )
        if not same:
            raise RLRouteError(f"compare: the streams of seed {seed} differ: nothing to pair")


def gather(runs: Sequence[LearnerRun]) -> dict[str, list[LearnerRun]]:
    """Return the runs by learner, each in the order of its seeds."""
    found: dict[str, list[LearnerRun]] = {}
    for run in sorted(runs, key=lambda one: one.stream.seed):
        found.setdefault(run.name, []).append(run)
    return found


def measure_regret(runs: Sequence[LearnerRun]) -> float:
    """Return the mean regret against the best available candidate."""
    return float(np.mean([(run.stream.best_T - measure_utility(run)).sum() for run in runs]))


def measure_utility(run: LearnerRun) -> Float64Array:
    """Return the utility of the picks [T]."""
    return run.stream.compute_utility(run.picks.action_T)


def compare_pair(
    first: Sequence[LearnerRun],
    second: Sequence[LearnerRun],
    block: int,
    bootstrap: int,
    seed: int,
) -> LearnerDifference:
    """Compare two learners, seed by seed on the same streams."""
    more_ST = np.stack(
        [measure_utility(b) - measure_utility(a) for a, b in zip(first, second, strict=True)]
    )
    starts = np.arange(0, more_ST.shape[1], block)
    sum_SN = np.add.reduceat(more_ST, starts, axis=1)
    sum_N = sum_SN.ravel()  # the blocks of all seeds
    weight_RN = draw_resamples(len(sum_N), bootstrap, seed)
    stream = first[0].stream
    phases = range(len(stream.phases))
    return LearnerDifference(
        first=first[0].name,
        second=second[0].name,
        first_regret=measure_regret(first),
        second_regret=measure_regret(second),
        difference=make_estimate(
            float(sum_SN.sum(axis=1).mean()), (weight_RN @ sum_N) * len(starts)
        ),
        permutation_p=compute_permutation_p(sum_N, seed=seed),
        by_seed=tuple(sum_SN.sum(axis=1).tolist()),
        by_phase=tuple(
            float(more_ST[:, stream.phase_T == number].sum(axis=1).mean()) for number in phases
        ),
        curve=trace(list(more_ST.cumsum(axis=1))),
    )


# --- Words, picture, files ------------------------------------------------------------------------


def render_stream_difference(found: StreamDifference) -> Table:
    """Return the pairs as a rich table of 80 columns."""
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        caption=f"{found.table}: {found.queries:,} queries, seeds in common: {len(found.seeds)}; "
        "regret against the best available candidate; difference: first minus second, 95% interval "
        f"over blocks of {found.block:,} queries; seeds: the smallest and largest one",
        caption_justify="left",
    )
    table.add_column("learner", overflow="fold")
    for header in (found.first, found.second, "difference", "seeds", "p"):
        table.add_column(header, justify="right", overflow="fold")
    for one in found.learners:
        lead = one.difference
        table.add_row(
            one.first if one.first == one.second else f"{one.first} / {one.second}",
            f"{one.first_regret:,.0f}",
            f"{one.second_regret:,.0f}",
            f"{lead.value:+,.0f} [{lead.low:+,.0f}, {lead.high:+,.0f}]",
            f"{min(one.by_seed):+,.0f}, {max(one.by_seed):+,.0f}",
            f"{one.permutation_p:.3f}",
        )
    return table


def describe_stream_difference(found: StreamDifference) -> list[str]:
    """Say in a sentence per pair what came out."""
    sentences = []
    for one in found.learners:
        lead = one.difference
        better, worse = (
            (found.first, found.second) if lead.value < 0 else (found.second, found.first)
        )
        names = one.first if one.first == one.second else f"{one.first} against {one.second}"
        verdict = (
            f"{better} has clearly less regret than {worse}"
            if lead.excludes_zero
            else "no clear difference"
        )
        sentences.append(
            f"{names}: {verdict} ({lead.value:+,.0f} [{lead.low:+,.0f}, {lead.high:+,.0f}] over "
            f"{found.queries:,} queries)."
        )
    return sentences


def draw_stream_difference(found: StreamDifference) -> bytes:
    """Draw the running difference of every pair, with a band over seeds and the events."""
    figure, (axes,) = make_panels(1, 1, height=4.6)
    for number, one in enumerate(found.learners):
        name = one.first if one.first == one.second else f"{one.first} / {one.second}"
        draw_curve(axes, one.curve, number, name)
    style_axes(axes)
    axes.axhline(0, color=GREY, linewidth=1.0)
    for phase in found.phases[1:]:
        axes.axvline(phase.start, color=GREY, linestyle="--", linewidth=1.0)
    axes.set_xlim(0, found.queries)
    axes.set_xlabel("queries", color=INK)
    axes.set_ylabel(f"regret of {found.first} minus that of {found.second}", color=INK)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(frameon=False, fontsize=9)
    return save_png(figure)


def write_stream_difference(folder: Path, found: StreamDifference) -> None:
    """Write compare.json and compare.png, each atomically."""
    plain: Mapping[str, Any] = found.to_dict()
    write_atomic(folder / COMPARISON_FILE, json.dumps(plain, indent=1, allow_nan=False) + "\n")
    write_atomic(folder / PICTURE_FILE, draw_stream_difference(found))
