"""The pictures of a text run, as PNG bytes: success against money, and the curves of its training.

What it leaves out: numbers (`text_results`) and the page (`text_report`). Needs the extra `text`.

How to use: `Path("frontier.png").write_bytes(draw_text_frontier(result))`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlroute.evaluation.figures import (
    GREY,
    INK,
    POLICY_COLOURS,
    draw_cost_axis,
    make_figure,
    save_png,
    scale_cost,
    style_axes,
)
from rlroute.evaluation.frontier import compute_hull
from rlroute.evaluation.labels import place_labels
from rlroute.evaluation.text_comparison import OPTIMUM
from rlroute.evaluation.text_results import TextEvaluation, TextPolicyResult
from rlroute.extras import require

COST_LABEL = "USD per 1,000 questions"
LABELLED_POINTS = 12  # settings of the policy beyond that many would write over each other
PIXELS_APART = 12.0
WIDEST_LOGARITHM = 12.0  # decades
History = Sequence[Mapping[str, Any]]
# (metric, label, colour, is it measured on val now and then)
Curve = tuple[str, str, str, bool]
TRAIN, VAL, OTHER = POLICY_COLOURS[5], POLICY_COLOURS[0], POLICY_COLOURS[2]


# --- Frontier -------------------------------------------------------------------------------------


def draw_text_frontier(result: TextEvaluation) -> bytes:
    """Draw success against cost: the policy's settings, baselines, and the optimum where known.

    The bars are 95 % intervals of the success of each of the subject's settings.
    """
    figure = make_figure(9.5, 6.0)
    axes = figure.subplots()
    cost_N, success_N = list_coordinates(result)
    set_up_frontier(axes, cost_N, success_N)
    draw_settings(axes, result.subject, POLICY_COLOURS[0], "o")
    draw_bars(axes, result.subject)
    if result.optimum_line:
        draw_optimum(axes, result)
    for policy in result.policies:
        if policy.kind == "start":
            draw_settings(axes, policy, POLICY_COLOURS[1], "s")
        elif policy.kind == "random":
            draw_random(axes, policy)
    labelled = [draw_single(axes, policy) for policy in result.policies if policy.kind == "single"]
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=9.5,
    )
    named = label_settings(result.subject) + [one for one in labelled if one is not None]
    place_labels(axes, named, trace_lines(axes))
    return save_png(figure)


def trace_lines(axes: Any) -> list[list[float]]:
    """Return points along all lines, close enough that no label fits between two of them."""
    axes.figure.draw_without_rendering()
    found: list[list[float]] = []
    for line in axes.get_lines():
        pixel_N2 = axes.transData.transform(line.get_xydata())
        for start, end in itertools.pairwise(pixel_N2):
            steps = np.linspace(0, 1, 2 + int(np.hypot(*(end - start)) / PIXELS_APART))
            along_M2 = start + steps[:, None] * (end - start)
            found += axes.transData.inverted().transform(along_M2).tolist()
    return found


def list_coordinates(result: TextEvaluation) -> tuple[list[float], list[float]]:
    """Return the costs, USD per 1,000 questions, and successes of all that is drawn."""
    points = [(scale_cost(one.cost_usd), one.success) for one in result.optimum_line]
    for policy in result.policies:
        points += list_points(policy)
    highs = [point.success.high for point in result.subject.points if point.success]
    lows = [point.success.low for point in result.subject.points if point.success]
    return [cost for cost, _ in points], [success for _, success in points] + highs + lows


def list_points(policy: TextPolicyResult) -> list[tuple[float, float]]:
    """Return cost, USD per 1,000 questions, and success of the settings that have a reward."""
    return [
        (scale_cost(point.cost_usd.value), point.success.value)
        for point in policy.points
        if point.cost_usd is not None and point.success is not None
    ]


def set_up_frontier(axes: Any, cost_N: Sequence[float], success_N: Sequence[float]) -> None:
    """Set the axes to what is drawn, with room for labels."""
    draw_cost_axis(axes, min(cost_N), max(cost_N) or 1.0)
    margin = max(0.03, 0.1 * (max(success_N) - min(success_N)))
    axes.set_ylim(max(-0.04, min(success_N) - margin), min(1.04, max(success_N) + margin))
    axes.set_xlabel(COST_LABEL, color=INK)
    axes.set_ylabel("success (mean outcome on test, 0 to 1)", color=INK)
    axes.set_title("Success against money spent on calls", loc="left", fontsize=11, color=INK)


def draw_optimum(axes: Any, result: TextEvaluation) -> None:
    """Draw the frontier of the best plans, level to the right edge, and the weights' own points."""
    cost_H, success_H = compute_hull(
        [scale_cost(one.cost_usd) for one in result.optimum_line],
        [one.success for one in result.optimum_line],
    )
    edge = axes.get_xlim()[1]
    cost_N = np.unique(np.concatenate([cost_H, np.linspace(cost_H[0], edge, 200)]))
    axes.plot(
        cost_N,
        np.interp(cost_N, cost_H, success_H),
        ":",
        color=INK,
        linewidth=1.6,
        label=f"{OPTIMUM}, mixed",
        zorder=2,
    )


def draw_single(axes: Any, policy: TextPolicyResult) -> tuple[float, float, str] | None:
    """Draw a candidate that is always asked, and return where its label belongs."""
    points = list_points(policy)
    if not points:
        return None
    known = {text.get_label() for text in axes.get_lines()}
    label = "one candidate for everything"
    axes.plot(
        *points[0],
        "D",
        color=GREY,
        markersize=6.5,
        linestyle="none",
        label="_" if label in known else label,
    )
    return (*points[0], policy.name)


def draw_random(axes: Any, policy: TextPolicyResult) -> None:
    """Draw the random baseline."""
    for point in list_points(policy)[:1]:
        axes.plot(*point, "x", color=INK, markersize=8, linestyle="none", label=policy.name)


def draw_settings(axes: Any, policy: TextPolicyResult, colour: str, marker: str) -> None:
    """Draw the settings of a policy, joined in the order of their cost weights."""
    points = list_points(policy)
    if points:
        axes.plot(
            *zip(*points, strict=True),
            marker=marker,
            color=colour,
            markersize=6.5,
            linewidth=1.4,
            label=policy.name + (", by cost weight" if len(points) > 1 else ""),
            zorder=4 if policy.kind == "policy" else 3,
        )


def draw_bars(axes: Any, policy: TextPolicyResult) -> None:
    """Draw the 95 % interval of the success of each setting."""
    for point in policy.points:
        if point.success is not None and point.cost_usd is not None:
            cost = scale_cost(point.cost_usd.value)
            low, high = point.success.low, point.success.high
            bar = {"color": POLICY_COLOURS[0], "alpha": 0.45, "linewidth": 1.6}
            axes.plot([cost, cost], [low, high], **bar)


def label_settings(policy: TextPolicyResult) -> list[tuple[float, float, str]]:
    """Return the labels of the settings: their cost weights, where there are several."""
    if not 1 < len(policy.points) <= LABELLED_POINTS:
        return []
    places: dict[tuple[float, float], list[str]] = {}
    for point, place in zip(policy.points, list_points(policy), strict=False):
        places.setdefault(place, []).append(f"{point.cost_weight:g}")
    return [(*place, "weight " + ", ".join(weights)) for place, weights in places.items()]


# --- Curves ---------------------------------------------------------------------------------------


def draw_text_curves(history: History, optimum_reward: float | None) -> bytes:
    """Draw how the training went: reward and success, cost, entropy, mismatch, over updates.

    Rows of `history` are those of metrics.jsonl. `optimum_reward` is the mean of the optimum's
    reward over the cost weights of the validation, None where it is not known.
    """
    figure = make_figure(12.0, 7.6)
    panels = figure.subplots(2, 2).ravel()
    reward_curves: list[Curve] = [
        ("eval/reward", "reward, val (greedy)", VAL, True),
        ("reward/mean", "reward, train (sampled)", "#F3B58A", False),
        ("eval/success", "success, val (greedy)", POLICY_COLOURS[1], True),
        ("reward/outcome/mean", "success, train (sampled)", TRAIN, False),
    ]
    draw_curves(panels[0], history, reward_curves, "reward and success", "mean per question")
    if optimum_reward is not None:
        panels[0].axhline(
            optimum_reward, linestyle=":", color=INK, linewidth=1.4, label="reward, optimum"
        )
    cost_curves: list[Curve] = [
        ("eval/charge_usd", "val (greedy)", VAL, True),
        ("cost/usd_per_query", "train (sampled)", "#F3B58A", False),
    ]
    draw_curves(panels[1], history, cost_curves, "money spent on calls", COST_LABEL, 1000.0)
    entropy: list[Curve] = [("policy/entropy", "entropy", OTHER, False)]
    draw_curves(panels[2], history, entropy, "entropy of the policy's tokens", "nats per token")
    mismatch: list[Curve] = [
        ("mismatch/abs_diff", "mean absolute difference of log-probs", POLICY_COLOURS[1], False),
        ("mismatch/kl", "KL estimate", POLICY_COLOURS[3], False),
    ]
    draw_curves(panels[3], history, mismatch, "mismatch of sampler and trainer", "nats per token")
    set_up_mismatch(panels[3])
    for axes in panels[1:3]:  # from 0, so that nothing looks like a fall that is none
        axes.set_ylim(0, max(axes.get_ylim()[1], 1e-3))
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        if len(labels) > 1:
            axes.legend(
                handles,
                labels,
                loc="upper center",
                bbox_to_anchor=(0.5, -0.16),
                ncols=2,
                frameon=False,
                fontsize=8.5,
            )
    return save_png(figure)


def draw_curves(
    axes: Any, history: History, curves: Sequence[Curve], title: str, unit: str, factor: float = 1.0
) -> None:
    """Draw metrics over updates; those of val have markers, as they are measured seldom."""
    ticker = require("matplotlib.ticker", "text")
    style_axes(axes)
    for name, label, colour, is_val in curves:
        rows = [row for row in history if row.get(name) is not None]
        axes.plot(
            [row["step"] for row in rows],
            [factor * row[name] for row in rows],
            marker="o" if is_val or len(rows) == 1 else None,
            markersize=4.5,
            color=colour,
            linewidth=1.8 if is_val else 1.3,
            label=label,
            zorder=3 if is_val else 2,
        )
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_title(title, loc="left", fontsize=10.5, color=INK)
    axes.set_xlabel("update", color=INK)
    axes.set_ylabel(unit, color=INK)


def set_up_mismatch(axes: Any) -> None:
    """Take a logarithmic axis where there is anything above 0 to draw on it."""
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.get_lines()])
    positive = values[values > 0]
    if positive.size:
        axes.set_yscale("log", nonpositive="mask")
        low, high = np.log10(positive.min()), np.log10(positive.max())
        low = max(low, high - WIDEST_LOGARITHM)
        axes.set_ylim(10 ** (np.floor(low)), 10 ** (np.floor(high) + 1))
