"""The pictures of a report, as PNG bytes: frontier and learning curve.

What it is: matplotlib's object interface on the Agg canvas, so that no window system, no global
state and no style of the user's has a say. Legends stand outside the data, labels do not overlap.

What it leaves out: who is picked (`figures_selection`), numbers (`results`), the page (`report`).
Needs the extra `train`.

How to use: `Path("frontier.png").write_bytes(draw_frontier(result))`.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlroute.evaluation.comparison import (
    BOUNDS,
    ORACLE,
    QUERIES_PER_PRICE,
    order_policies,
    rank_singles,
)
from rlroute.evaluation.labels import place_labels
from rlroute.evaluation.results import (
    EvaluationResult,
    FrontierResult,
    PolicyResult,
)
from rlroute.extras import require

# Colour-blind safe (Okabe and Ito); the subject of the report has the first one.
POLICY_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY, INK = "#8A8A8A", "#333333"
COST_LABEL = "USD per 1,000 queries"
LOGARITHMIC_FROM = 8.0  # ratio of the dearest to the cheapest point on a logarithmic axis
NAMES_SHOWN = 16  # more names beside points cannot be read
CURVES = {
    "eval/aiq": "AIQ (validation)",
    "eval/quality": "quality at the smallest cost weight (validation)",
    "eval/regret_oracle": "regret against the oracle (validation)",
    "selection/entropy": "entropy of selection, nats (training)",
}


def make_figure(width: float, height: float) -> Any:
    """Return an empty figure in inches, bound to the Agg canvas."""
    figure = require("matplotlib.figure", "train").Figure(
        figsize=(width, height), facecolor="white", layout="constrained"
    )
    require("matplotlib.backends.backend_agg", "train").FigureCanvasAgg(figure)
    return figure


def save_png(figure: Any) -> bytes:
    """Return a figure as PNG bytes; equal data give equal bytes (no time, no version)."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def style_axes(axes: Any) -> None:
    """Thin grid below the data, no box."""
    axes.grid(True, color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9, colors=INK)


# --- Frontier -------------------------------------------------------------------------------------


def draw_frontier(result: EvaluationResult) -> bytes:
    """Draw quality against cost: everything on the left, the surroundings of the frontier right.

    The band on the right is the 95 % interval of the quality of each of the subject's settings.
    """
    figure = make_figure(12.5, 6.2)
    whole, close = figure.subplots(1, 2, width_ratios=(1, 1.15))
    low, high = find_close_range(result)
    dearest = scale_cost(result.cost_max_usd)
    draw_cost_axis(whole, scale_cost(result.cost_min_usd), dearest)
    draw_cost_axis(close, find_close_cost(result, low), dearest)
    for axes in (whole, close):
        draw_frontier_lines(axes, result)
    whole.set_title("Everything", loc="left", fontsize=11, color=INK)
    close.set_title("Around the frontier", loc="left", fontsize=11, color=INK)
    draw_band(close, result.subject)
    close.set_ylim(low, high)
    figure.legend(
        *whole.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=9.5,
    )
    for axes in (whole, close):
        label_singles(axes, result)
    return save_png(figure)


def label_singles(axes: Any, result: EvaluationResult) -> None:
    """Name the single candidates within the axes, best first, clear of all that is drawn.

    Of many, those that a reader looks for.
    """
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    named = [
        (scale_cost(single.cost_usd.value), single.quality.value, single.candidate_id)
        for single in sorted(
            rank_singles(result)[:NAMES_SHOWN], key=lambda single: -single.quality.value
        )
    ]
    shown = [one for one in named if left <= one[0] <= right and low <= one[1] <= high]
    obstacles = [point for line in axes.get_lines() for point in line.get_xydata().tolist()]
    place_labels(axes, shown, obstacles)


def scale_cost(cost_usd: float) -> float:
    """Return USD per query as USD per 1,000 queries."""
    return cost_usd * QUERIES_PER_PRICE


def draw_cost_axis(axes: Any, low: float, high: float) -> None:
    """Set up the axes: logarithmic cost where it spans much, plain numbers on the ticks."""
    ticker = require("matplotlib.ticker", "train")
    style_axes(axes)
    if low > 0 and high / low > LOGARITHMIC_FROM:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_locator(ticker.NullLocator())
        axes.set_xlim(low / 1.25, high * 1.25)
    else:
        margin = 0.06 * (high - low) or 0.1 * high
        axes.set_xlim(low - margin, high + margin)
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel(COST_LABEL, color=INK)
    axes.set_ylabel("quality (mean score)", color=INK)


def find_close_range(result: EvaluationResult) -> tuple[float, float]:
    """Return the range of quality that shows the routers near the best single candidate."""
    best = result.find_single(result.best_single).quality.value
    rivals = [policy for policy in result.policies if policy.name not in BOUNDS]
    top = max([best, *(policy.frontier.peak_quality for policy in rivals)])
    top = max(top, max(point.quality.high for point in result.subject.points))
    subject = [point.quality.value for point in result.subject.points]
    # As far down as the subject's own sweep goes, but not so far that the differences vanish.
    bottom = max(min(subject), best - 0.15)
    margin = max(0.01, 0.1 * (top - bottom))
    return min(bottom, best) - margin, top + margin


def find_close_cost(result: EvaluationResult, low: float) -> float:
    """Return the cost, USD per 1,000 queries, where what has at least quality `low` begins."""
    points = [(one.cost_usd.value, one.quality.value) for one in result.subject.points]
    points += [(one.cost_usd.value, one.quality.value) for one in result.singles]
    return min(scale_cost(cost) for cost, quality in points if quality >= low)


def draw_frontier_lines(axes: Any, result: EvaluationResult) -> None:
    """Draw the single candidates with their hull, the subject, its best rivals, and the oracle.

    There are as many rivals as colours, by AIQ; the table has them all.
    """
    draw_singles(axes, result)
    colours = iter(POLICY_COLOURS)
    for policy in order_policies(result):
        if policy.name == ORACLE:
            draw_policy(axes, policy, INK, dotted=True)
        elif policy.name in BOUNDS:
            continue
        elif len(policy.points) > 1 or policy is result.subject:
            if colour := next(colours, None):
                draw_policy(axes, policy, colour)
        elif max(policy.points[0].share_K) < 1:  # always one candidate is drawn with the singles
            point = policy.points[0]
            place = scale_cost(point.cost_usd.value), point.quality.value
            axes.plot(*place, "x", color=INK, markersize=8, label=policy.name)


def draw_singles(axes: Any, result: EvaluationResult) -> None:
    """Draw the single candidates, the best and the cheapest marked, and the hull of all."""
    axes.plot(
        *trace_hull(result.zero_router, axes.get_xlim()[1]),
        "--",
        color=GREY,
        linewidth=1.6,
        label="hull of the single candidates",
    )
    axes.plot(
        [scale_cost(single.cost_usd.value) for single in result.singles],
        [single.quality.value for single in result.singles],
        "o",
        color=GREY,
        markersize=6,
        label="single candidates",
    )
    for name, marker, label in (
        (result.best_single, "*", "best single (chosen on train)"),
        (result.cheapest, "s", "cheapest"),
    ):
        single = result.find_single(name)
        axes.plot(
            scale_cost(single.cost_usd.value),
            single.quality.value,
            marker,
            color=INK,
            markersize=13 if marker == "*" else 7,
            linestyle="none",
            label=label,
            zorder=4,
        )


def trace_hull(frontier: FrontierResult, edge: float) -> tuple[Any, Any]:
    """Return a hull as a dense line to the right edge, level after its last point.

    Dense because mixing is linear in cost, which is a curve on a logarithmic axis.
    """
    corner_H = np.array([*map(scale_cost, frontier.cost_usd), edge])
    steps = np.linspace(0, 1, 64)
    cost = np.concatenate(
        [a + (b - a) * steps**2 for a, b in itertools.pairwise(corner_H.tolist()) if b > a]
    )
    return cost, np.interp(cost, corner_H[:-1], frontier.quality)


def draw_policy(axes: Any, policy: PolicyResult, colour: str, *, dotted: bool = False) -> None:
    """Draw the settings of a policy as points and its hull as a line, level to the right."""
    axes.plot(
        *trace_hull(policy.frontier, axes.get_xlim()[1]),
        linestyle=":" if dotted else "-",
        color=colour,
        linewidth=1.6 if dotted else 2.0,
        marker="none",
        label=f"{policy.name} (an upper bound)" if dotted else policy.name,
        zorder=2 if dotted else 3,
    )
    axes.plot(
        [scale_cost(point.cost_usd.value) for point in policy.points],
        [point.quality.value for point in policy.points],
        ".",
        color=colour,
        markersize=4 if dotted else 7,
        zorder=3,
    )


def draw_band(axes: Any, policy: PolicyResult) -> None:
    """Shade the 95 % interval of the quality of each setting of the subject."""
    points = sorted(policy.points, key=lambda point: point.cost_usd.value)
    axes.fill_between(
        [scale_cost(point.cost_usd.value) for point in points],
        [point.quality.low for point in points],
        [point.quality.high for point in points],
        color=POLICY_COLOURS[0],
        alpha=0.12,
        linewidth=0,
    )


def format_percent() -> Any:
    """Return a formatter of shares in per cent."""
    return require("matplotlib.ticker", "train").PercentFormatter(1.0, decimals=0)


# --- Learning -------------------------------------------------------------------------------------


def draw_learning_curve(history: Sequence[Mapping[str, float]]) -> bytes | None:
    """Draw what is known of the training, one panel per metric; None where nothing is.

    A row of `history` maps metric names to values and holds `step`.
    """
    curves: list[tuple[str, Sequence[float], Sequence[float]]] = []
    for key, label in CURVES.items():
        rows = [row for row in history if key in row and "step" in row]
        if len(rows) > 1:
            curves.append((label, [row["step"] for row in rows], [row[key] for row in rows]))
    if not curves:
        return None
    figure = make_figure(12.5, 2.9 * ((len(curves) + 1) // 2))
    panels = figure.subplots((len(curves) + 1) // 2, min(2, len(curves)), squeeze=False).ravel()
    for axes in panels[len(curves) :]:
        axes.set_visible(False)
    for axes, (label, steps, values) in zip(panels, curves, strict=False):
        style_axes(axes)
        axes.plot(steps, values, "-", color=POLICY_COLOURS[1], linewidth=1.6)
        axes.set_title(label, loc="left", fontsize=10, color=INK)
        axes.set_xlabel("update", color=INK)
    return save_png(figure)
