"""The pictures of a step-by-step run, as PNG bytes: success against money, and how it was trained.

What it leaves out: numbers (`step_results`) and the page (`step_report`). Needs the extra `train`.

How to use: `Path("frontier.png").write_bytes(draw_step_frontier(result))`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlroute.evaluation.comparison import QUERIES_PER_PRICE
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
from rlroute.evaluation.labels import place_labels
from rlroute.evaluation.step_results import (
    StepCurve,
    StepEvaluation,
    StepPoint,
    StepPolicyResult,
)
from rlroute.evaluation.text_figures import Curve, History, draw_curves, trace_lines
from rlroute.extras import require

COST_LABEL = f"USD per {QUERIES_PER_PRICE:,} tasks"
SUCCESS_LABEL = "success (mean score on test, 0 to 1)"
WINDOWS = 25  # of updates that a curve of training is averaged in
LABELLED_POINTS = 12  # settings of the policy beyond that many would write over each other
CLASS_COLOURS = {"easy": "#009E73", "hard": "#D55E00", "intractable": "#8A8A8A"}
VAL, TRAIN, PALE = POLICY_COLOURS[0], POLICY_COLOURS[5], "#F3B58A"


@dataclass(frozen=True)
class Look:
    """How a kind of policy is drawn; without a line only its points are."""

    colour: str
    marker: str
    line: str = ""
    size: float = 6.5
    hollow: bool = False


# Baselines with a knob, in the order in which they come.
SWEEPS = (
    Look(POLICY_COLOURS[2], "v", "-", 4.5),
    Look(POLICY_COLOURS[3], "^", "-", 4.5),
    Look(POLICY_COLOURS[4], "<", "-", 4.5),
)
RUNS = (
    Look(POLICY_COLOURS[5], "p", "-"),
    Look("#6A51A3", "h", "-"),
    Look("#8C6D31", "d", "-"),
)
LOOKS = {
    "policy": Look(POLICY_COLOURS[0], "o", "-", 7.5),
    "sampled": Look(PALE, "o"),
    "start": Look(POLICY_COLOURS[1], "s", size=11.0, hollow=True),
    "prompted": Look(INK, "P"),
    "random": Look(INK, "x"),
    "rule": Look(INK, "2", size=9.0),
    "bandit": Look(INK, "+", size=8.5),
    "probe": Look(INK, "1", size=9.0),
    "static": Look(GREY, "D"),
    "optimal": Look(INK, "*", ":", 10.0),
}


def choose_looks(result: StepEvaluation) -> dict[str, Look]:
    """Return how each family is drawn."""
    sweeps, runs = iter(SWEEPS), iter(RUNS)
    looks: dict[str, Look] = {}
    for policy in result.policies:
        if policy.family in looks:
            continue
        if policy.kind == "sweep":
            looks[policy.family] = next(sweeps, Look(GREY, "."))
        elif policy.kind == "run":
            looks[policy.family] = next(runs, Look(GREY, "p"))
        else:
            looks[policy.family] = LOOKS[policy.kind]
    return looks


# --- Frontier -------------------------------------------------------------------------------------


def draw_step_frontier(result: StepEvaluation) -> bytes:
    """Draw success against cost, and where there are several caps, success against the cap.

    Bars are 95 % intervals of the subject's success and cost under each setting.
    """
    caps = [cap for cap in result.caps if cap is not None]
    wide = len(caps) > 1
    figure = make_figure(13.0 if wide else 9.5, 6.4)
    panels = figure.subplots(1, 2, width_ratios=(1.5, 1)) if wide else [figure.subplots()]
    looks = choose_looks(result)
    axes = panels[0]
    set_up_frontier(axes, result)
    for curve in result.curves:
        draw_hull(axes, curve, looks[curve.family])
    for policy in result.policies:
        draw_points(axes, policy, looks[policy.family])
    draw_bars(axes, result.subject)
    if wide:
        draw_caps(panels[1], result, looks)
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=5 if wide else 4,
        frameon=False,
        fontsize=9.5,
    )
    place_labels(axes, list_labels(result), trace_lines(axes))
    return save_png(figure)


def locate(point: StepPoint | None) -> tuple[float, float] | None:
    """Return cost, USD per 1,000 tasks, and success of a point that has both."""
    if point is None or point.cost_usd is None or point.success is None:
        return None
    return scale_cost(point.cost_usd.value), point.success.value


def list_places(policy: StepPolicyResult) -> list[tuple[float, float]]:
    """Return cost, USD per 1,000 tasks, and success of a policy's points."""
    return [place for point in policy.points if (place := locate(point)) is not None]


def set_up_frontier(axes: Any, result: StepEvaluation) -> None:
    """Set the axes to what is drawn, with room for labels."""
    places = [place for policy in result.policies for place in list_places(policy)]
    places += [place for one in (result.small, result.large) if (place := locate(one)) is not None]
    points = [point for point in result.subject.points if point is not None]
    bounds = [one for point in points if point.success for one in (point.success,)]
    cost_N = [cost for cost, _ in places]
    success_N = [success for _, success in places]
    success_N += [one.low for one in bounds] + [one.high for one in bounds]
    draw_cost_axis(axes, min(cost_N), max(cost_N) or 1.0)
    margin = max(0.03, 0.08 * (max(success_N) - min(success_N)))
    axes.set_ylim(max(-0.04, min(success_N) - margin), min(1.04, max(success_N) + margin))
    axes.set_xlabel(COST_LABEL, color=INK)
    axes.set_ylabel(SUCCESS_LABEL, color=INK)
    axes.set_title("Success against money", loc="left", fontsize=11, color=INK)


def draw_hull(axes: Any, curve: StepCurve, look: Look) -> None:
    """Draw a family's frontier up to its last point, where its kind has a line.

    Dense, because mixing is linear in cost, which is a curve on a logarithmic axis.
    """
    if not look.line or len(curve.cost_usd) < 2:
        return
    cost_H = np.array([scale_cost(cost) for cost in curve.cost_usd])
    cost_N = np.unique(np.concatenate([cost_H, np.linspace(cost_H[0], cost_H[-1], 200)]))
    bold = curve.kind == "policy"
    axes.plot(
        cost_N,
        np.interp(cost_N, cost_H, curve.success),
        look.line,
        color=look.colour,
        linewidth=2.2 if bold else 1.3,
        zorder=3 if bold else 2,
    )


def draw_points(axes: Any, policy: StepPolicyResult, look: Look) -> None:
    """Draw a policy's points; a family has one entry in the legend."""
    places = list_places(policy)
    if not places:
        return
    known = {line.get_label() for line in axes.get_lines()}
    label = "one executor alone" if policy.kind == "static" else policy.family
    axes.plot(
        *zip(*places, strict=True),
        linestyle="none",
        marker=look.marker,
        color=look.colour,
        markersize=look.size,
        markerfacecolor="none" if look.hollow else look.colour,
        markeredgewidth=1.6 if look.hollow else 1.0,
        label="_" if label in known else label,
        zorder=5 if policy.kind == "policy" else 4,
    )


def draw_bars(axes: Any, policy: StepPolicyResult) -> None:
    """Draw the 95 % intervals of success and cost of each setting."""
    for point in policy.points:
        place = locate(point)
        if place is None:
            continue
        assert point is not None
        assert point.success is not None
        assert point.cost_usd is not None
        bar = {"color": POLICY_COLOURS[0], "alpha": 0.45, "linewidth": 1.6, "zorder": 3}
        axes.plot([place[0]] * 2, [point.success.low, point.success.high], **bar)
        ends = [scale_cost(point.cost_usd.low), scale_cost(point.cost_usd.high)]
        axes.plot(ends, [place[1]] * 2, **bar)


def list_labels(result: StepEvaluation) -> list[tuple[float, float, str]]:
    """Return the labels of points: the subject's settings where there are several, executors."""
    labelled: dict[tuple[float, float], list[str]] = {}
    if 1 < len(result.settings) <= LABELLED_POINTS:
        for setting, point in zip(result.settings, result.subject.points, strict=True):
            parts = []
            if len(result.caps) > 1:
                parts.append("no cap" if setting.cap is None else f"cap {setting.cap:g}")
            if len({one.cost_weight for one in result.settings}) > 1:
                parts.append(f"weight {setting.cost_weight:g}")
            if (place := locate(point)) is not None:
                labelled.setdefault(place, []).append(", ".join(parts))
    named = [(*place, "; ".join(texts)) for place, texts in labelled.items()]
    for policy in result.policies:
        if policy.kind == "static":
            places = [one for one in list_places(policy) if one not in labelled]
            named += [(*place, policy.name) for place in places[:1]]
    return named


def draw_caps(axes: Any, result: StepEvaluation, looks: Mapping[str, Look]) -> None:
    """Draw success against the cap, at the first cost weight: policies, first-large, random."""
    style_axes(axes)
    large = f"always {result.executor_ids[-1]}"
    weight = result.settings[0].cost_weight
    kinds = ("policy", "start", "run", "random", "optimal")
    for policy in result.policies:
        if policy.kind not in kinds and policy.name != large:
            continue
        rows = [
            (point.cap, point.success)
            for point in policy.points
            if point is not None
            and point.cap is not None
            and point.cost_weight == weight
            and point.success is not None
        ]
        rows.sort(key=lambda row: row[0])
        look = looks[policy.family]
        cap_N = [cap for cap, _ in rows]
        axes.plot(
            cap_N,
            [success.value for _, success in rows],
            marker=look.marker,
            color=look.colour,
            linestyle=":" if policy.kind == "optimal" else "-",
            linewidth=2.2 if policy.kind == "policy" else 1.2,
            markersize=look.size,
            markerfacecolor="none" if look.hollow else look.colour,
            zorder=4 if policy.kind == "policy" else 3,
        )
        if policy.kind == "policy":
            low_N, high_N = [one.low for _, one in rows], [one.high for _, one in rows]
            axes.fill_between(cap_N, low_N, high_N, color=look.colour, alpha=0.13, linewidth=0)
    unit = "counted calls" if result.budget_unit == "calls" else "USD"
    axes.set_xlabel(f"cap of the budget ({unit} per task)", color=INK)
    axes.set_ylabel(SUCCESS_LABEL, color=INK)
    if result.budget_unit == "calls":
        ticker = require("matplotlib.ticker", "train")
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    title = f"Success under a cap (grey: {large}, first-large)"
    axes.set_title(title, loc="left", fontsize=11, color=INK)


# --- Curves ---------------------------------------------------------------------------------------


def draw_step_curves(history: History, executor_ids: Sequence[str]) -> bytes:
    """Draw how the training went, over updates; rows of `history` are those of metrics.jsonl.

    What is measured at every update is averaged over some updates, as a batch has few tasks.
    """
    window = max(1, len(history) // WINDOWS)
    smooth = smooth_history(history, window)
    mean = f", mean of {window} updates" if window > 1 else ""
    figure = make_figure(12.5, 11.2)
    panels = figure.subplots(3, 2).ravel()
    for axes, (title, unit, curves) in zip(panels, list_panels(executor_ids, mean), strict=True):
        draw_curves(axes, smooth, curves, title, unit)
        low, high = axes.get_ylim()  # from 0, so that nothing looks like a fall that is none
        high = max(high, 1e-3)
        axes.set_ylim(min(low, -0.02 * high), high)
        add_legend(axes)
    return save_png(figure)


def list_panels(executor_ids: Sequence[str], mean: str) -> list[tuple[str, str, list[Curve]]]:
    """Return title, unit and curves of each panel; `mean` says how train metrics are averaged."""
    sampled = f"train (sampled{mean})"
    return [
        (
            "reward and success",
            "mean per episode",
            [
                ("eval/reward", "reward, val (greedy)", VAL, True),
                ("eval/success", "success, val (greedy)", POLICY_COLOURS[1], True),
                ("reward/outcome/mean", f"success, {sampled}", TRAIN, False),
            ],
        ),
        (f"success by class, {sampled}", "mean score", list_class_curves("success")),
        (
            f"steps not taken by {executor_ids[0]}, {sampled}",
            "share of steps",
            [
                *list_class_curves("dear_share"),
                ("eval/dear_share_hard", "hard, val (greedy)", INK, True),
            ],
        ),
        (
            "counted calls",
            "calls per episode",
            [
                ("eval/dear_calls", "val (greedy)", VAL, True),
                ("cost/dear_calls", sampled, PALE, False),
            ],
        ),
        (
            f"entropy of the policy's choices{mean}",
            "nats per step",
            [("policy/entropy", "entropy", POLICY_COLOURS[2], False)],
        ),
        (
            f"KL divergence{mean}",
            "nats per step",
            [
                ("policy/kl_ref", "to the warm start", POLICY_COLOURS[1], False),
                ("policy/kl", "to the policy that played", POLICY_COLOURS[3], False),
            ],
        ),
    ]


def smooth_history(history: History, window: int) -> list[dict[str, Any]]:
    """Return rows in which each metric of training is the mean of its last `window` values."""
    recent: dict[str, list[float]] = {}
    rows = []
    for row in history:
        smooth = dict(row)
        for name, value in row.items():
            if value is not None and name != "step" and not name.startswith("eval/"):
                values = recent.setdefault(name, [])
                values.append(value)
                del values[:-window]
                smooth[name] = float(np.mean(values))
        rows.append(smooth)
    return rows


def list_class_curves(name: str) -> list[Curve]:
    """Return the curves of a metric by class."""
    return [(f"class/{one}/{name}", one, colour, False) for one, colour in CLASS_COLOURS.items()]


def add_legend(axes: Any) -> None:
    """Put the legend of a panel below it, for the curves that have values."""
    drawn = [line for line in axes.get_lines() if len(line.get_xdata())]
    for line in axes.get_lines():
        if line not in drawn:
            line.remove()
    if drawn:
        axes.legend(
            drawn,
            [line.get_label() for line in drawn],
            loc="upper center",
            bbox_to_anchor=(0.5, -0.16),
            ncols=4,
            frameon=False,
            fontsize=8.5,
        )
