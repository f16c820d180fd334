"""The merged report of a sweep: every setting over its seeds, as mean, smallest and largest.

What it is: reads the evaluation.json of each run, puts the runs of a setting together, and writes
sweep.json, sweep.md and sweep.png. The spread over seeds is that of training; the intervals in the
runs' own reports are that of the test queries. With three seeds smallest and largest are all that
can be said, so no interval is made of them.

What it leaves out: starting runs (`rlroute.sweep`) and paired tests (`run_difference`).

How to use: `write_sweep(folder, [read_seed_result(path, "hidden=64", 0), ...], failures={})`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlroute.evaluation.comparison import BOUNDS, format_number, format_price, format_share
from rlroute.evaluation.figures import (
    GREY,
    POLICY_COLOURS,
    draw_cost_axis,
    make_figure,
    save_png,
    scale_cost,
)
from rlroute.evaluation.frontier import Float64Array
from rlroute.evaluation.results import make_plain
from rlroute.files import write_atomic
from rlroute.types import RLRouteError

if TYPE_CHECKING:
    from rich.table import Table

FORMAT_VERSION = 1
SETTING = "setting"
HULL = "hull of the singles"
CURVE_POINTS = 200
# measure -> heading of its column
MEASURES = {
    "aiq": "AIQ",
    "aiq_gain": "AIQ over the singles' hull",
    "quality": "quality at the least cost weight",
    "cost_usd": "USD per 1,000 queries there",
    "quality_at_best_single_cost": "quality at the best single's cost",
    "cost_saved": "cost saved at the best single's quality",
}


@dataclass(frozen=True)
class Line:
    """A router's hull: mean cost in USD per query and quality, both rising."""

    cost_usd: tuple[float, ...]
    quality: tuple[float, ...]


@dataclass(frozen=True)
class SeedResult:
    """What one run found on the test split: measures by router, and what the picture needs.

    `measures` maps the run's own policy ("setting"), each baseline and the hull of the singles to
    the measures of `MEASURES`; one that is out of reach is infinite.
    """

    setting: str
    seed: int
    table: str
    queries: int
    cost_range_usd: tuple[float, float]
    measures: Mapping[str, Mapping[str, float]]
    line: Line
    singles_line: Line


@dataclass(frozen=True)
class Spread:
    """A number over seeds; infinite where one seed never gets there."""

    mean: float
    smallest: float
    largest: float


@dataclass(frozen=True)
class SettingSummary:
    """A setting, or a baseline, on one table over seeds."""

    name: str
    table: str
    seeds: tuple[int, ...]
    is_setting: bool
    spreads: Mapping[str, Spread]


@dataclass(frozen=True)
class SweepSummary:
    """A sweep: settings and baselines, best mean AIQ first in each table, and what failed."""

    rows: tuple[SettingSummary, ...]
    results: tuple[SeedResult, ...]
    failures: Mapping[str, str]
    format_version: int = field(default=FORMAT_VERSION)


def read_seed_result(path: Path, setting: str, seed: int) -> SeedResult:
    """Read what `rlroute evaluate` wrote about a run.

    Raises:
        RLRouteError: the file is missing or torn, or lacks something.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        policies = content["policies"]
        measures = {SETTING: read_measures(policies[0])}
        for policy in policies[1:]:
            if policy["name"] not in BOUNDS:
                measures[policy["name"]] = read_measures(policy)
        hull = content["zero_router"]
        measures[HULL] = read_frontier(hull) | {
            "quality": hull["quality"][-1],
            "cost_usd": hull["cost_usd"][-1],
        }
        return SeedResult(
            setting=setting,
            seed=seed,
            table=content["table"],
            queries=content["queries"],
            cost_range_usd=(content["cost_min_usd"], content["cost_max_usd"]),
            measures=measures,
            line=read_line(policies[0]["frontier"]),
            singles_line=read_line(hull),
        )
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RLRouteError(f"{path}: cannot be read as an evaluation ({error!r})") from None


def read_measures(policy: Mapping[str, Any]) -> dict[str, float]:
    """Return the measures of a policy in evaluation.json."""
    first = policy["points"][0]
    return read_frontier(policy["frontier"]) | {
        "quality": first["quality"]["value"],
        "cost_usd": first["cost_usd"]["value"],
    }


def read_frontier(frontier: Mapping[str, Any]) -> dict[str, float]:
    """Return the measures of a frontier; what JSON holds as null is out of reach."""
    names = ("aiq", "aiq_gain", "quality_at_best_single_cost", "cost_saved")
    values = {name: frontier[name]["value"] for name in names}
    return {name: -math.inf if value is None else value for name, value in values.items()}


def read_line(frontier: Mapping[str, Any]) -> Line:
    """Return the corners of a hull in evaluation.json."""
    return Line(tuple(frontier["cost_usd"]), tuple(frontier["quality"]))


def summarise_sweep(results: Sequence[SeedResult], failures: Mapping[str, str]) -> SweepSummary:
    """Put the seeds of every setting together, and those of every baseline over all runs."""
    rows = []
    for table in dict.fromkeys(result.table for result in results):
        held = [result for result in results if result.table == table]
        groups = [
            (setting, SETTING, [one for one in held if one.setting == setting])
            for setting in dict.fromkeys(one.setting for one in held)
        ]
        baselines = dict.fromkeys(name for one in held for name in one.measures)
        groups += [
            (name, name, [one for one in held if name in one.measures])
            for name in baselines
            if name != SETTING
        ]
        found = [summarise_group(*group, table) for group in groups]
        rows += sorted(found, key=lambda row: -row.spreads["aiq"].mean)
    return SweepSummary(tuple(rows), tuple(results), failures)


def summarise_group(
    name: str, key: str, results: Sequence[SeedResult], table: str
) -> SettingSummary:
    """Return one row; its runs are counted by their seeds."""
    return SettingSummary(
        name=name,
        table=table,
        seeds=tuple(sorted({one.seed for one in results})),
        is_setting=key == SETTING,
        spreads={
            measure: make_spread([one.measures[key][measure] for one in results])
            for measure in MEASURES
        },
    )


def make_spread(values: Sequence[float]) -> Spread:
    """Return mean, smallest and largest; the mean with something out of reach is out of reach."""
    return Spread(float(np.mean(values)), min(values), max(values))


# --- Words ----------------------------------------------------------------------------------------


def format_measure(measure: str, value: float) -> str:
    """Return a number as its measure is read."""
    if not math.isfinite(value):
        return "never"
    if measure == "cost_usd":
        return format_price(value)
    if measure == "cost_saved":
        return format_share(value)
    return format_number(value, sign=measure == "aiq_gain")


def format_spread(measure: str, spread: Spread) -> str:
    """Return "mean (smallest to largest)", or the one number there is."""
    mean, smallest, largest = (
        format_measure(measure, value) for value in (spread.mean, spread.smallest, spread.largest)
    )
    return mean if smallest == largest else f"{mean} ({smallest} to {largest})"


def render_sweep(summary: SweepSummary) -> Table:
    """Return settings and baselines as a rich table of 80 columns."""
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        caption="test split; mean (smallest to largest) over seeds; quality and USD per 1,000 "
        "queries at the least cost weight; grey: without training",
        caption_justify="left",
    )
    table.add_column("setting", overflow="fold")
    for header in ("seeds", "AIQ", "quality", "USD/1k"):
        table.add_column(header, justify="right", no_wrap=True)
    for row in summary.rows:
        table.add_row(
            row.name,
            str(len(row.seeds)),
            format_spread("aiq", row.spreads["aiq"]),
            format_measure("quality", row.spreads["quality"].mean),
            format_measure("cost_usd", row.spreads["cost_usd"].mean),
            style="bold" if row.is_setting else "dim",
        )
    return table


def write_markdown(summary: SweepSummary) -> str:
    """Return sweep.md: a table per outcome table, and what failed."""
    tables = dict.fromkeys(row.table for row in summary.rows)
    lines = ["# Sweep", ""]
    for table in tables:
        queries = next(one.queries for one in summary.results if one.table == table)
        lines += [
            f"## {table}: {queries:,} test queries",
            "",
            "Mean (smallest to largest) over seeds. Settings in bold; the others are not trained "
            "by reinforcement and differ between runs only where the features do.",
            "",
            f"| router | seeds | {' | '.join(MEASURES.values())} |",
            f"| --- | --- |{' --- |' * len(MEASURES)}",
        ]
        for row in summary.rows:
            if row.table == table:
                cells = [format_spread(name, row.spreads[name]) for name in MEASURES]
                name = escape_cell(row.name)
                seeds = ", ".join(map(str, row.seeds)) if row.is_setting else "-"
                shown = f"**{name}**" if row.is_setting else name
                lines.append(f"| {shown} | {seeds} | {' | '.join(cells)} |")
        lines.append("")
    lines += ["![Frontier of every setting](sweep.png)", ""]
    if summary.failures:
        lines += ["## Failed runs", ""]
        lines += [f"- {name}: {reason}" for name, reason in summary.failures.items()]
        lines.append("")
    return "\n".join(lines)


def escape_cell(text: str) -> str:
    """Return text that ends no cell and starts no emphasis in Markdown."""
    return text.replace("|", "\\|").replace("*", "\\*")


# --- Picture and files ----------------------------------------------------------------------------


def trace_mean(
    lines: Sequence[Line], cost_N: Float64Array
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Return mean, smallest and largest height [N] of hulls; NaN left of the first point of one."""
    height_SN = np.array(
        [np.interp(cost_N, one.cost_usd, one.quality, left=np.nan) for one in lines]
    )
    return height_SN.mean(0), height_SN.min(0), height_SN.max(0)


def draw_sweep(results: Sequence[SeedResult]) -> bytes:
    """Draw the mean frontier of every setting with a band over seeds, a panel per table."""
    tables = list(dict.fromkeys(result.table for result in results))
    figure = make_figure(9.5, 5.2 * len(tables))
    panels = figure.subplots(len(tables), 1, squeeze=False)[:, 0]
    for axes, table in zip(panels, tables, strict=True):
        held = [result for result in results if result.table == table]
        low, high = held[0].cost_range_usd
        draw_cost_axis(axes, scale_cost(low), scale_cost(high))
        cost_N = np.geomspace(low, high, CURVE_POINTS) if low > 0 else np.linspace(low, high, 200)
        shown_N = [scale_cost(cost) for cost in cost_N.tolist()]
        for number, setting in enumerate(dict.fromkeys(one.setting for one in held)):
            lines = [one.line for one in held if one.setting == setting]
            mean_N, smallest_N, largest_N = trace_mean(lines, cost_N)
            colour = POLICY_COLOURS[number % len(POLICY_COLOURS)]
            dash = ("-", "--", ":", "-.")[number // len(POLICY_COLOURS) % 4]
            axes.plot(shown_N, mean_N, dash, color=colour, label=f"{setting} ({len(lines)})")
            axes.fill_between(shown_N, smallest_N, largest_N, color=colour, alpha=0.15, linewidth=0)
        singles_N, _, _ = trace_mean([held[0].singles_line], cost_N)
        axes.plot(shown_N, singles_N, "--", color=GREY, label="hull of the single candidates")
        axes.set_title(f"{table}: mean over seeds, band from smallest to largest", fontsize=10)
        axes.legend(frameon=False, fontsize=9)
    return save_png(figure)


def write_sweep(
    folder: Path, results: Sequence[SeedResult], failures: Mapping[str, str]
) -> SweepSummary:
    """Write sweep.json, sweep.md and sweep.png, each atomically; return what they say.

    Raises:
        RLRouteError: matplotlib is not installed.
    """
    summary = summarise_sweep(results, failures)
    plain = json.dumps(make_plain(asdict(summary)), indent=1, allow_nan=False)
    write_atomic(folder / "sweep.json", plain + "\n")
    write_atomic(folder / "sweep.md", write_markdown(summary))
    write_atomic(folder / "sweep.png", draw_sweep(results))
    return summary
