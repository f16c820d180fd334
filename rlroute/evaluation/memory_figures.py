"""The pictures of a memory-tier run, as PNG bytes: quality against money, tiers, learning curves.

What it leaves out: the picture of the pipeline (`memory_pipeline_figure`), numbers
(`memory_results`) and the page (`memory_report`). Needs the extra `train`.

How to use: `Path("frontier.png").write_bytes(draw_memory_frontier(result))`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlroute.evaluation.comparison import QUERIES_PER_PRICE
from rlroute.evaluation.figures import (
    GREY,
    INK,
    POLICY_COLOURS,
    draw_cost_axis,
    format_percent,
    make_figure,
    save_png,
    scale_cost,
    style_axes,
)
from rlroute.evaluation.frontier import Float64Array
from rlroute.evaluation.labels import place_labels
from rlroute.evaluation.memory_comparison import choose_places
from rlroute.evaluation.memory_results import (
    MemoryContender,
    MemoryEvaluation,
    MemoryModule,
    MemoryPoint,
)
from rlroute.evaluation.step_figures import LOOKS, RUNS, Look, smooth_history
from rlroute.evaluation.text_figures import History, trace_lines
from rlroute.extras import require
from rlroute.types import RLRouteError

COST_LABEL = f"USD of memory per {QUERIES_PER_PRICE:,} questions"
QUALITY_LABEL = "quality (mean score on test, 0 to 1)"
LABELLED_POINTS = 8  # cost weights of the policy beyond that many would write over each other
MARKER_RADIUS = 6.0  # pixels
PALE = "#D4D4D4"
WINDOWS = 25  # of updates that a curve of training is averaged in
LOOK_BY_KIND = {
    "policy": LOOKS["policy"],
    "best_static": Look(POLICY_COLOURS[1], "v", "-", 5.0),
    "kind_static": Look(POLICY_COLOURS[2], "^", "-", 5.0),
    "classifier": Look(POLICY_COLOURS[3], "s", "-", 5.0),
    "random": LOOKS["random"],
    "static": LOOKS["static"],
    "oracle": LOOKS["optimal"],
}
# Metrics of metrics.jsonl that learning curves show, with titles and units; measured on val.
CURVE_PANELS = (
    ("eval/utility", "utility, val (greedy)", "mean over cost weights"),
    ("eval/quality", "quality, val (greedy)", "at the least cost weight, 0 to 1"),
    ("reward/mean", "reward, train (sampled, smoothed)", "mean per question"),
    ("policy/entropy", "entropy of the policy's choices, smoothed", "nats per decision"),
)


# --- Frontier -------------------------------------------------------------------------------------


def draw_memory_frontier(result: MemoryEvaluation) -> bytes:
    """Draw quality against cost: the policy by cost weight, every baseline, the oracle's hull.

    Bars are 95 % intervals of the subject's quality at each cost weight.
    """
    figure = make_figure(10.0, 6.6)
    axes = figure.subplots()
    set_up_frontier(axes, result)
    if result.static_points:
        cost_N, quality_N = zip(*result.static_points, strict=True)
        axes.plot(
            [scale_cost(cost) for cost in cost_N],
            quality_N,
            linestyle="none",
            marker=".",
            color=PALE,
            markersize=5,
            label=f"each of the {len(cost_N)} static assignments",
            zorder=1,
        )
    runs = iter(RUNS)
    for one in result.contenders:
        look = next(runs, RUNS[-1]) if one.kind == "run" else LOOK_BY_KIND[one.kind]
        draw_contender(axes, one, look)
    draw_intervals(axes, result.subject)
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=9.5,
    )
    lines = trace_lines(axes)  # the layout is final from here on
    places = [place for one in result.contenders for place in list_places(one)]
    place_labels(axes, list_labels(result), [*lines, *surround_markers(axes, places)])
    return save_png(figure)


def surround_markers(axes: Any, places: Sequence[tuple[float, float]]) -> list[list[float]]:
    """Return points around markers, so that no label covers a part of one; in data coordinates."""
    ring_8 = [(dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1) if dx or dy]
    pixel_N2 = axes.transData.transform(places)
    ring_N82 = pixel_N2[:, None] + MARKER_RADIUS * np.array(ring_8)
    around_M2 = axes.transData.inverted().transform(ring_N82.reshape(-1, 2))
    return list(around_M2.tolist())


def locate(point: MemoryPoint) -> tuple[float, float] | None:
    """Return cost, USD per 1,000 questions, and quality of a point that has both."""
    if point.cost_usd is None or point.quality is None:
        return None
    return scale_cost(point.cost_usd.value), point.quality.value


def list_places(contender: MemoryContender) -> list[tuple[float, float]]:
    """Return the places of a contender's points, each once."""
    found = [place for point in contender.points if (place := locate(point)) is not None]
    return list(dict.fromkeys(found))


def set_up_frontier(axes: Any, result: MemoryEvaluation) -> None:
    """Set the axes to what is drawn, with room for labels."""
    places = [place for one in result.contenders for place in list_places(one)]
    places += [(scale_cost(cost), quality) for cost, quality in result.static_points]
    cost_N = [cost for cost, _ in places]
    quality_N = [quality for _, quality in places]
    for point in result.subject.points:
        if point.quality is not None:
            quality_N += [point.quality.low, point.quality.high]
    low, high = min(cost_N), max(cost_N) or 1.0
    draw_cost_axis(axes, low, high)
    if axes.get_xscale() == "linear":  # room for the labels of what is nearly free
        axes.set_xlim(left=low - 0.11 * (high - low or high))
    margin = max(0.03, 0.08 * (max(quality_N) - min(quality_N)))
    axes.set_ylim(max(-0.04, min(quality_N) - margin), min(1.04, max(quality_N) + margin))
    axes.set_xlabel(COST_LABEL, color=INK)
    axes.set_ylabel(QUALITY_LABEL, color=INK)
    axes.set_title("Quality against money spent on memory", loc="left", fontsize=11, color=INK)


def draw_contender(axes: Any, one: MemoryContender, look: Look) -> None:
    """Draw a contender's points, and its frontier up to the last one where its kind has a line.

    Dense, because mixing is linear in cost, which is a curve on a logarithmic axis.
    """
    places = list_places(one)
    if not places:
        return
    bold = one.kind == "policy"
    if look.line and len(one.hull_cost_usd) > 1:
        cost_H = np.array([scale_cost(cost) for cost in one.hull_cost_usd])
        cost_N = np.unique(np.concatenate([cost_H, np.linspace(cost_H[0], cost_H[-1], 200)]))
        axes.plot(
            cost_N,
            np.interp(cost_N, cost_H, one.hull_quality),
            look.line,
            color=look.colour,
            linewidth=2.2 if bold else 1.3,
            zorder=3 if bold else 2,
        )
    bounds = {"oracle": " (knows outcomes)", "kind_static": " (told the kind)"}
    known = {line.get_label() for line in axes.get_lines()}
    label = "one tier for all modules" if one.kind == "static" else one.name
    label += bounds.get(one.kind, "")
    axes.plot(
        *zip(*places, strict=True),
        linestyle="none",
        marker=look.marker,
        color=look.colour,
        markersize=look.size,
        label="_" if label in known else label,
        zorder=5 if bold else 4,
    )


def draw_intervals(axes: Any, one: MemoryContender) -> None:
    """Draw the 95 % interval of quality at each cost weight."""
    for point in one.points:
        place = locate(point)
        if place is not None and point.quality is not None:
            axes.plot(
                [place[0]] * 2,
                [point.quality.low, point.quality.high],
                color=POLICY_COLOURS[0],
                alpha=0.45,
                linewidth=1.6,
                zorder=3,
            )


def list_labels(result: MemoryEvaluation) -> list[tuple[float, float, str]]:
    """Return the labels of points: the subject's cost weights, and the uniform assignments."""
    weights: dict[tuple[float, float], list[str]] = {}
    if 1 < len(result.cost_weights) <= LABELLED_POINTS:
        for point in result.subject.points:
            if (place := locate(point)) is not None:
                weights.setdefault(place, []).append(f"{point.cost_weight:g}")
    found = [(*place, "weight " + ", ".join(texts)) for place, texts in weights.items()]
    for one in result.contenders:
        if one.kind == "static":
            found += [(*place, one.name) for place in list_places(one)]
    return found


# --- Tiers ----------------------------------------------------------------------------------------


def choose_tier_colours(count: int) -> list[Any]:
    """Return colours of tiers, pale for the cheapest and dark for the dearest."""
    colour_map = require("matplotlib", "train").colormaps["YlGnBu"]
    return [colour_map(value) for value in np.linspace(0.18, 0.85, count)]


def make_tier_patches(count: int) -> list[Any]:
    """Return what a legend shows for the tiers."""
    patches = require("matplotlib.patches", "train")
    return [patches.Patch(color=colour) for colour in choose_tier_colours(count)]


def list_tier_names(modules: Sequence[MemoryModule]) -> list[str]:
    """Return what a legend calls the tiers: their names where all modules name them alike."""
    widest = max(len(module.tiers) for module in modules)
    found = []
    for place in range(widest):
        names = list(dict.fromkeys(m.tiers[place] for m in modules if len(m.tiers) > place))
        found.append(names[0] if len(names) == 1 else f"tier {place + 1}: {', '.join(names)}")
    return found


def draw_tier_shares(result: MemoryEvaluation, name: str | None = None) -> bytes:
    """Draw the shares of tiers by kind of question: a row for each of up to three cost weights.

    It is the subject's unless another contender is named.
    """
    contender = result.subject if name is None else result.find(name)
    places, modules = choose_places(result), result.modules
    kinds = [*result.kinds, "all"]
    names = list_tier_names(modules)
    colours = choose_tier_colours(len(names))
    figure = make_figure(2.2 + 2.1 * len(modules), 1.2 + (0.55 + 0.3 * len(kinds)) * len(places))
    grid = figure.subplots(len(places), len(modules), sharex=True, sharey=True, squeeze=False)
    for row, place in zip(grid, places, strict=True):
        point = contender.points[place]
        for m, axes in enumerate(row):
            share_CK = [point.by_kind[kind].shares[m] for kind in result.kinds]
            draw_kind_bars(axes, kinds, np.array([*share_CK, point.shares[m]]), colours)
            axes.set_title(
                f"{modules[m].name} ({point.information[m]:.2f} bits)", fontsize=9.5, color=INK
            )
        row[0].set_ylabel(f"cost weight {point.cost_weight:g}", color=INK)
    grid[0, 0].invert_yaxis()
    for axes in grid[-1]:
        axes.set_xlabel("share of questions", color=INK, fontsize=9)
    figure.legend(
        make_tier_patches(len(names)),
        names,
        loc="outside lower center",
        ncols=min(4, len(names)),
        frameon=False,
        fontsize=9.5,
    )
    return save_png(figure)


def draw_kind_bars(
    axes: Any, kinds: Sequence[str], share_CK: Float64Array, colours: Sequence[Any]
) -> None:
    """Draw one stacked bar for each kind of question."""
    style_axes(axes)
    axes.grid(False, axis="y")
    left_C = np.zeros(len(kinds))
    for share_C, colour in zip(share_CK.T, colours, strict=False):  # a module may have fewer tiers
        axes.barh(kinds, share_C, left=left_C, color=colour, height=0.76)
        left_C = left_C + share_C
    axes.axhline(len(kinds) - 1.5, color=GREY, linewidth=0.8)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.5, 1])
    axes.margins(y=0.02)
    axes.tick_params(axis="x", labelsize=8)
    axes.xaxis.set_major_formatter(format_percent())


# --- Learning -------------------------------------------------------------------------------------


def draw_learning_curves(histories: Mapping[str, History]) -> bytes:
    """Draw the training of several runs side by side, such as per-decision and joint credit.

    `histories` maps a run's name to its rows of metrics.jsonl. Metrics that no run has are left
    out; what is measured at every update is averaged over some.

    Raises:
        RLRouteError: no run has any of the metrics.
    """
    panels = [
        panel
        for panel in CURVE_PANELS
        if any(row.get(panel[0]) is not None for rows in histories.values() for row in rows)
    ]
    if not panels:
        names = ", ".join(name for name, _, _ in CURVE_PANELS)
        raise RLRouteError(f"learning curves: no run has any of the metrics {names}")
    height = (len(panels) + 1) // 2
    figure = make_figure(11.5, 0.5 + 3.2 * height)
    grid = figure.subplots(height, min(2, len(panels)), squeeze=False).ravel()
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    for axes, (name, title, unit) in zip(grid, panels, strict=False):
        draw_run_curves(axes, histories, name)
        axes.set_title(title, loc="left", fontsize=10.5, color=INK)
        axes.set_ylabel(unit, color=INK)
        axes.set_xlabel("update", color=INK)
    figure.legend(
        *grid[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=min(4, len(histories)),
        frameon=False,
        fontsize=9.5,
    )
    return save_png(figure)


def draw_run_curves(axes: Any, histories: Mapping[str, History], name: str) -> None:
    """Draw one metric of all runs over updates; what is of val has markers."""
    ticker = require("matplotlib.ticker", "train")
    style_axes(axes)
    for n, (run, rows) in enumerate(histories.items()):
        smooth = smooth_history(rows, max(1, len(rows) // WINDOWS))
        known = [row for row in smooth if row.get(name) is not None]
        axes.plot(
            [row["step"] for row in known],
            [row[name] for row in known],
            marker="o" if name.startswith("eval/") else None,
            markersize=4,
            color=POLICY_COLOURS[n % len(POLICY_COLOURS)],
            linestyle=("-", "--", ":")[n // len(POLICY_COLOURS) % 3],
            linewidth=1.6,
            label=run,
        )
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, min_n_ticks=1))
