"""Pictures of wishes: what waiting costs at each latency weight, what ratings of new users buy.

What it leaves out: numbers (`preferences`, `user_estimation`). Needs the extra `train`.

How to use: `draw_latency(report)`, `draw_ratings(report)`.
"""

from __future__ import annotations

import numpy as np

from rlroute.evaluation.comparison import QUERIES_PER_PRICE
from rlroute.evaluation.figures import (
    COST_LABEL,
    GREY,
    INK,
    POLICY_COLOURS,
    make_figure,
    save_png,
    style_axes,
)
from rlroute.evaluation.preference_report import PreferenceReport


def draw_latency(report: PreferenceReport) -> bytes:
    """Draw quality against cost and against latency, one line per latency weight."""
    figure = make_figure(10.5, 4.6)
    left, right = figure.subplots(1, 2, sharey=True)
    for number, (weight, results) in enumerate(report.group_by_latency().items()):
        colour = POLICY_COLOURS[number % len(POLICY_COLOURS)]
        quality = [one.quality.value for one in results]
        cost = [one.cost_usd.value * QUERIES_PER_PRICE for one in results]
        seconds = [one.latency_seconds.value for one in results if one.latency_seconds is not None]
        label = f"latency weight {weight:.3g}"
        for axes, value in ((left, cost), (right, seconds)):
            axes.plot(value, quality, "o-", markersize=4, color=colour, label=label)
    for axes, label in ((left, COST_LABEL), (right, "mean latency, seconds")):
        style_axes(axes)
        axes.set_xlabel(label, color=INK)
    left.set_ylabel("quality", color=INK)
    figure.legend(
        *left.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=9,
    )
    return save_png(figure)


def draw_ratings(report: PreferenceReport) -> bytes:
    """Draw the utility that new users lose against the number of their ratings."""
    figure = make_figure(7.0, 4.2)
    axes = figure.subplots()
    style_axes(axes)
    axes.axhline(0, linestyle="--", color=GREY, linewidth=1.2)
    for number, name in enumerate(dict.fromkeys(one.user for one in report.ratings)):
        results = [one for one in report.ratings if one.user == name]
        count = np.array([one.ratings for one in results], dtype=np.float64)
        lost = np.array([one.lost.value for one in results])
        low = lost - np.array([one.lost.low for one in results])
        high = np.array([one.lost.high for one in results]) - lost
        axes.errorbar(
            count * 1.03**number,  # side by side, so that ranges do not hide each other
            lost,
            yerr=np.maximum(np.stack([low, high]), 0),
            fmt="o-",
            markersize=5,
            capsize=2.5,
            color=POLICY_COLOURS[number % len(POLICY_COLOURS)],
            label=name,
        )
    axes.set_xscale("symlog", linthresh=5)
    ticks = sorted({one.ratings for one in report.ratings})
    axes.set_xticks(ticks, [str(one) for one in ticks])
    axes.minorticks_off()
    axes.set_xlabel("choices of the new user", color=INK)
    axes.set_ylabel("utility lost by not knowing the weights", color=INK)
    axes.legend(frameon=False, fontsize=9)
    return save_png(figure)
