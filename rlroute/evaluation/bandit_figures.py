"""The pictures of a comparison of online learners, as PNG bytes: regret, and shares over time.

What it leaves out: numbers (`bandit_results`) and the page (`bandit_report`). Needs the extra
`train`.

How to use: `Path("regret.png").write_bytes(draw_regret(result))`.
"""

from __future__ import annotations

from typing import Any

from rlroute.bandits.comparators import BEST_AVAILABLE
from rlroute.evaluation.bandit_results import BanditResult, Curve
from rlroute.evaluation.figures import (
    GREY,
    INK,
    POLICY_COLOURS,
    make_figure,
    save_png,
    style_axes,
)

DASHES = ("-", "--", ":", "-.")


def draw_regret(result: BanditResult) -> bytes:
    """Draw cumulative regret, a panel per comparator, with a band over seeds and the events."""
    names = [BEST_AVAILABLE, *(name for name in result.comparator_names if name != BEST_AVAILABLE)]
    figure, panels = make_panels(len(names), 3 if len(names) == 3 else 2, height=4.6)
    for axes, name in zip(panels, names, strict=True):
        for number, learner in enumerate(result.learners):
            draw_curve(axes, learner.curves[name], number, learner.name)
        finish_panel(axes, result, f"Regret against: {name}")
        axes.set_ylabel("cumulative regret (utility)", color=INK)
        axes.yaxis.set_major_formatter("{x:,.0f}")
    add_legend(figure, panels[0])
    return save_png(figure)


def draw_shares(result: BanditResult) -> bytes | None:
    """Draw the running share of every candidate that something happens to; None if none is."""
    watched = list(result.learners[0].running_shares)
    if not watched:
        return None
    figure, panels = make_panels(len(watched), 3 if len(watched) == 3 else 2, height=4.2)
    for axes, candidate in zip(panels, watched, strict=True):
        for number, learner in enumerate(result.learners):
            draw_curve(axes, learner.running_shares[candidate], number, learner.name)
        axes.set_ylim(-0.02, 1.02)
        finish_panel(axes, result, f"Share of {candidate}")
        axes.set_ylabel(f"share of the last {result.window:,} picks", color=INK)
    add_legend(figure, panels[0])
    return save_png(figure)


def make_panels(count: int, columns: int, height: float) -> tuple[Any, list[Any]]:
    """Return a figure and its panels, row by row."""
    rows = -(-count // columns)
    figure = make_figure(5.2 * columns, height * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axes in panels[count:]:
        axes.set_visible(False)
    return figure, panels[:count]


def draw_curve(axes: Any, curve: Curve, number: int, name: str) -> None:
    """Draw a mean and its band."""
    colour = POLICY_COLOURS[number % len(POLICY_COLOURS)]
    dash = DASHES[number // len(POLICY_COLOURS) % len(DASHES)]
    axes.plot(curve.step, curve.mean, dash, color=colour, linewidth=1.6, label=name)
    axes.fill_between(
        curve.step, curve.smallest, curve.largest, color=colour, alpha=0.15, linewidth=0
    )


def finish_panel(axes: Any, result: BanditResult, title: str) -> None:
    """Add title, axes and the events, whose words stand above the data."""
    style_axes(axes)
    axes.set_title(title, loc="left", fontsize=10.5, color=INK, pad=26)
    axes.set_xlabel("queries", color=INK)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlim(0, result.queries)
    later = result.phases[1:]
    for number, phase in enumerate(later):
        axes.axvline(phase.start, color=GREY, linestyle="--", linewidth=1.0)
        axes.annotate(
            phase.happened,
            (phase.start, 1.0),
            (3 if 2 * phase.start < result.queries else -3, 2 + 10 * (number % 2)),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="left" if 2 * phase.start < result.queries else "right",
            fontsize=8,
            color=GREY,
        )


def add_legend(figure: Any, axes: Any) -> None:
    """Put one legend for all panels below them."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9.5)
