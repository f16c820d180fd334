"""The merged report of a sweep over streams: every setting's learners over its seeds.

What it is: reads the regret.json of each run, puts the runs of a setting together by learner, and
writes sweep.json, sweep.md and sweep.png. Comparators stand below the learners of their setting.
With a few seeds smallest and largest are all that can be said, so no interval is made of them.

What it leaves out: starting runs (`rlroute.sweep`), paired tests (`bandit_difference`), and tables
of single-turn sweeps (`sweep_report`).

How to use: `write_stream_sweep(folder, [read_stream_result(path, "a=1", 0), ...], failures={})`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlroute.bandits.comparators import BEST_AVAILABLE, BEST_FIXED
from rlroute.evaluation.bandit_comparison import format_spread
from rlroute.evaluation.bandit_figures import draw_curve, make_panels
from rlroute.evaluation.bandit_results import Curve
from rlroute.evaluation.comparison import format_number, format_price
from rlroute.evaluation.figures import INK, save_png, style_axes
from rlroute.evaluation.results import make_plain
from rlroute.evaluation.sweep_report import Spread, escape_cell, make_spread
from rlroute.files import write_atomic
from rlroute.types import RLRouteError

if TYPE_CHECKING:
    from rich.table import Table

FORMAT_VERSION = 1
CURVES_SHOWN = 12  # more cannot be told apart
# measure -> heading of its column
MEASURES = {
    "regret": "regret",
    "regret_fixed": "regret v. best fixed",
    "reward": "reward",
    "score": "score",
    "cost_usd": "USD per 1,000 queries",
}
DIGITS = {"regret": 0, "regret_fixed": 0, "reward": 4, "score": 4}


@dataclass(frozen=True)
class StreamResult:
    """What one run found: measures by learner or comparator, and the learners' regret curves."""

    setting: str
    seed: int
    table: str
    queries: int
    measures: Mapping[str, Mapping[str, float]]
    learners: tuple[str, ...]
    curves: Mapping[str, Curve]


@dataclass(frozen=True)
class StreamRow:
    """A learner, or a comparator, of a setting over seeds."""

    setting: str
    learner: str
    seeds: tuple[int, ...]
    is_learner: bool
    spreads: Mapping[str, Spread]
    curve: Curve | None


@dataclass(frozen=True)
class StreamSweep:
    """A sweep: of each setting its learners, least mean regret first, then the comparators."""

    table: str
    queries: int
    rows: tuple[StreamRow, ...]
    failures: Mapping[str, str]
    format_version: int = field(default=FORMAT_VERSION)


def read_stream_result(path: Path, setting: str, seed: int) -> StreamResult:
    """Read what a run of one seed wrote.

    Raises:
        RLRouteError: the file is missing or torn, or lacks something.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        measures = {
            one["name"]: read_measures(one, content["queries"])
            for one in (*content["learners"], *content["comparators"])
        }
        return StreamResult(
            setting=setting,
            seed=seed,
            table=content["table"],
            queries=content["queries"],
            measures=measures,
            learners=tuple(one["name"] for one in content["learners"]),
            curves={
                one["name"]: Curve(
                    **{key: tuple(line) for key, line in one["curves"][BEST_AVAILABLE].items()}
                )
                for one in content["learners"]
            },
        )
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RLRouteError(f"{path}: cannot be read as a run's regret ({error!r})") from None


def read_measures(learner: Mapping[str, Any], queries: int) -> dict[str, float]:
    """Return the measures of a learner in regret.json, of a run with one seed."""
    return {
        "regret": learner["regret"][BEST_AVAILABLE]["mean"],
        "regret_fixed": learner["regret"][BEST_FIXED]["mean"],
        "reward": learner["reward"]["mean"],
        "score": learner["score"]["mean"],
        "cost_usd": learner["cost_usd"]["mean"] / queries,
    }


def summarise_streams(results: Sequence[StreamResult], failures: Mapping[str, str]) -> StreamSweep:
    """Put the seeds of every setting together, learner by learner."""
    rows: list[StreamRow] = []
    for setting in dict.fromkeys(one.setting for one in results):
        held = [one for one in results if one.setting == setting]
        found = [summarise_learner(name, held) for name in held[0].measures]
        rows += sorted(found, key=lambda row: (not row.is_learner, row.spreads["regret"].mean))
    return StreamSweep(results[0].table, results[0].queries, tuple(rows), failures)


def summarise_learner(name: str, held: Sequence[StreamResult]) -> StreamRow:
    """Return one row over the seeds of a setting."""
    is_learner = name in held[0].learners
    return StreamRow(
        setting=held[0].setting,
        learner=name,
        seeds=tuple(sorted(one.seed for one in held)),
        is_learner=is_learner,
        spreads={key: make_spread([one.measures[name][key] for one in held]) for key in MEASURES},
        curve=merge_curves([one.curves[name] for one in held]) if is_learner else None,
    )


def merge_curves(curves: Sequence[Curve]) -> Curve:
    """Return mean, smallest and largest of curves at the same points."""
    value_SN = np.array([one.mean for one in curves])
    return Curve(
        step=curves[0].step,
        mean=tuple(value_SN.mean(axis=0).tolist()),
        smallest=tuple(value_SN.min(axis=0).tolist()),
        largest=tuple(value_SN.max(axis=0).tolist()),
    )


# --- Words, picture, files ------------------------------------------------------------------------


def format_measure(measure: str, spread: Spread) -> str:
    """Return "mean (smallest to largest)" as its measure is read."""
    if measure == "cost_usd":
        return format_price(spread.mean)
    return format_spread(spread, DIGITS[measure])


def render_stream_sweep(summary: StreamSweep) -> Table:
    """Return learners and comparators as a rich table of 80 columns."""
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        caption=f"{summary.table}: {summary.queries:,} queries; mean (smallest to largest) over "
        "seeds; regret against the best available candidate; grey: comparators",
        caption_justify="left",
    )
    table.add_column("setting", overflow="fold")
    table.add_column("learner", overflow="fold")
    for header in ("seeds", "regret", "reward", "USD/1k"):
        table.add_column(header, justify="right", overflow="fold")
    for row in summary.rows:
        table.add_row(
            row.setting,
            row.learner,
            str(len(row.seeds)),
            format_measure("regret", row.spreads["regret"]),
            format_number(row.spreads["reward"].mean, DIGITS["reward"]),
            format_measure("cost_usd", row.spreads["cost_usd"]),
            style="bold" if row.is_learner else "dim",
        )
    return table


def write_markdown(summary: StreamSweep) -> str:
    """Return sweep.md: a table of all settings, and what failed."""
    lines = [
        f"# Sweep of streams: {summary.table}, {summary.queries:,} queries",
        "",
        "Mean (smallest to largest) over seeds. Learners in bold; the others are comparators, "
        "which know what no learner can.",
        "",
        f"| setting | learner | seeds | {' | '.join(MEASURES.values())} |",
        f"| --- | --- | --- |{' --- |' * len(MEASURES)}",
    ]
    for row in summary.rows:
        cells = [format_measure(name, row.spreads[name]) for name in MEASURES]
        name = escape_cell(row.learner)
        shown = f"**{name}**" if row.is_learner else name
        seeds = ", ".join(map(str, row.seeds))
        lines.append(f"| {escape_cell(row.setting)} | {shown} | {seeds} | {' | '.join(cells)} |")
    lines += ["", "![Regret of the learners](sweep.png)", ""]
    if summary.failures:
        lines += ["## Failed runs", ""]
        lines += [f"- {name}: {reason}" for name, reason in summary.failures.items()]
        lines.append("")
    return "\n".join(lines)


def draw_stream_sweep(summary: StreamSweep) -> bytes:
    """Draw the regret of the learners of least regret, with bands over seeds."""
    shown = sorted(
        (row for row in summary.rows if row.curve is not None),
        key=lambda row: row.spreads["regret"].mean,
    )[:CURVES_SHOWN]
    figure, (axes,) = make_panels(1, 1, height=5.2)
    several = len({row.setting for row in summary.rows}) > 1
    for number, row in enumerate(shown):
        assert row.curve is not None
        name = f"{row.learner}, {row.setting}" if several else row.learner
        draw_curve(axes, row.curve, number, name)
    style_axes(axes)
    axes.set_xlim(0, summary.queries)
    axes.set_xlabel("queries", color=INK)
    axes.set_ylabel("regret against the best available candidate", color=INK)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.legend(frameon=False, fontsize=9)
    return save_png(figure)


def write_stream_sweep(
    folder: Path, results: Sequence[StreamResult], failures: Mapping[str, str]
) -> StreamSweep:
    """Write sweep.json, sweep.md and sweep.png, each atomically; return what they say."""
    summary = summarise_streams(results, failures)
    plain = json.dumps(make_plain(asdict(summary)), indent=1, allow_nan=False)
    write_atomic(folder / "sweep.json", plain + "\n")
    write_atomic(folder / "sweep.md", write_markdown(summary))
    write_atomic(folder / "sweep.png", draw_stream_sweep(summary))
    return summary
