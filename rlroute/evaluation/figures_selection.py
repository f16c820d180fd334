"""Who is picked, as pictures of a report (PNG bytes): shares by task and by cost weight.

What it leaves out: frontier and learning curve (`figures`), numbers (`results`), the page
(`report`). Needs the extra `train`.

How to use: `Path("tasks.png").write_bytes(draw_selection_by_task(result))`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlroute.evaluation.figures import INK, format_percent, make_figure, save_png, style_axes
from rlroute.evaluation.results import EvaluationResult, OperatingPoint

CANDIDATE_COLOURS = (
    "#4E79A7", "#F28E2B", "#59A14F", "#E15759", "#76B7B2", "#EDC948",
    "#B07AA1", "#FF9DA7", "#9C755F", "#BAB0AC", "#1F4E79", "#2F6B2F",
)  # fmt: skip
TASKS_SHOWN = 24
TICKS_SHOWN = 21
SMALL_SHARE = 0.005  # candidates that never get more are drawn together


@dataclass(frozen=True)
class Band:
    """A strip of a stacked picture: one candidate, or all the rarely picked ones together."""

    label: str
    colour: str
    columns: tuple[int, ...]

    def take(self, share_K: Sequence[float]) -> float:
        """Return the band's share of a row of shares."""
        return sum(share_K[k] for k in self.columns)


def list_bands(result: EvaluationResult) -> list[Band]:
    """Return the bands of the subject's pictures, cheapest candidate first, the same in all."""
    subject = result.subject
    rows = [point.share_K for point in subject.points]
    rows += [row for point in subject.operating_points for row in point.share_by_task.values()]
    peak_K = np.max(rows, axis=0)
    frequent = np.argsort(-peak_K, kind="stable")[: len(CANDIDATE_COLOURS)]
    by_cost = np.argsort([single.cost_usd.value for single in result.singles], kind="stable")
    own = [int(k) for k in by_cost if k in frequent and peak_K[k] > SMALL_SHARE]
    rest = tuple(int(k) for k in by_cost if k not in own and peak_K[k] > 0)
    bands = [
        Band(result.candidate_ids[k], colour, (k,))
        for k, colour in zip(own, CANDIDATE_COLOURS, strict=False)
    ]
    return [*bands, Band("all others", "#D9D9D9", rest)] if rest else bands


def draw_selection_by_task(result: EvaluationResult) -> bytes:
    """Draw who gets the queries of each task as stacked bars, one panel per operating point.

    Candidates stand in the order of cost, the cheapest first. Operating points that share a cost
    weight share a panel. Beyond 24 tasks those with the most queries are shown.
    """
    by_size = sorted(result.task_queries, key=lambda task: -result.task_queries[task])
    tasks = sorted(by_size[:TASKS_SHOWN])
    panels: dict[float, list[OperatingPoint]] = {}
    for point in result.subject.operating_points:
        panels.setdefault(point.cost_weight, []).append(point)
    figure = make_figure(12.5, 2.2 + 0.3 * len(tasks))
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, points in zip(grid, panels.values(), strict=True):
        draw_task_bars(axes, result, tasks, points[0].share_by_task)
        label = "\n".join(point.label for point in points)
        weight = f"cost weight {points[0].cost_weight:.3g}"
        axes.set_title(f"{label}\n({weight})", fontsize=10, color=INK)
    grid[0].invert_yaxis()
    add_band_legend(figure, grid[0])
    return save_png(figure)


def draw_task_bars(
    axes: Any,
    result: EvaluationResult,
    tasks: Sequence[str],
    share_by_task: Mapping[str, Sequence[float]],
) -> None:
    """Draw one stacked bar per task."""
    style_axes(axes)
    axes.grid(False, axis="y")
    left = np.zeros(len(tasks))
    for band in list_bands(result):
        share = np.array([band.take(share_by_task[task]) for task in tasks])
        axes.barh(tasks, share, left=left, color=band.colour, label=band.label, height=0.74)
        left += share
    axes.set_xlim(0, 1)
    axes.margins(y=0.02)
    axes.xaxis.set_major_formatter(format_percent())
    axes.set_xlabel("share of the task's queries", color=INK)


def draw_selection_by_weight(result: EvaluationResult) -> bytes:
    """Draw who gets the subject's queries as the cost weight rises, as stacked areas."""
    points = result.subject.points
    if len(points) == 1:  # no knob: the same picture at any weight
        points = points * 2
    bands = list_bands(result)
    figure = make_figure(9.5, 4.6)
    axes = figure.subplots()
    style_axes(axes)
    axes.stackplot(
        range(len(points)),
        [[band.take(point.share_K) for point in points] for band in bands],
        labels=[band.label for band in bands],
        colors=[band.colour for band in bands],
    )
    axes.set_xlim(0, len(points) - 1)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(format_percent())
    shown = range(0, len(points), -(-len(points) // TICKS_SHOWN))
    weights = [points[n].cost_weight for n in shown]
    axes.set_xticks(list(shown), ["any" if w is None else f"{w:.2g}" for w in weights], fontsize=8)
    axes.set_xlabel("cost weight (quality given up per unit of normalised cost)", color=INK)
    axes.set_ylabel("share of queries", color=INK)
    add_band_legend(figure, axes)
    return save_png(figure)


def add_band_legend(figure: Any, axes: Any) -> None:
    """Put the legend of stacked shares below the figure."""
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=9,
    )
