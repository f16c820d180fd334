"""The picture of an evaluation of sessions, as PNG bytes: return against cost.

What it leaves out: numbers and words (`session_results`). Needs the extra `train`.

How to use: `Path("frontier.png").write_bytes(draw_session_frontier(result))`.
"""

from __future__ import annotations

from typing import Any

from rlroute.evaluation.figures import (
    GREY,
    INK,
    POLICY_COLOURS,
    draw_cost_axis,
    make_figure,
    save_png,
)
from rlroute.evaluation.labels import place_labels
from rlroute.evaluation.session_results import SessionEvaluation, SessionPolicyResult
from rlroute.evaluation.text_figures import trace_lines

# kind -> colour, marker, line
LOOKS = {
    "policy": (POLICY_COLOURS[0], "o", "-"),
    "cloning": (POLICY_COLOURS[1], "s", "-"),
    "heuristic": (POLICY_COLOURS[2], "^", "none"),
    "single": (GREY, "D", "none"),
    "optimal": (INK, ".", ":"),
}


def draw_session_frontier(result: SessionEvaluation) -> bytes:
    """Draw the return of every policy against its cost, swept policies joined along their weights.

    The bars are 95 % intervals of the subject's return. Far below the rest lies what goes bankrupt.
    """
    figure = make_figure(9.5, 6.0)
    axes = figure.subplots()
    points = [point for policy in result.policies for point in policy.points]
    draw_cost_axis(
        axes, min(one.cost.value for one in points), max(one.cost.value for one in points)
    )
    for policy in result.policies:
        draw_policy(axes, policy)
    for point in result.subject.points:
        cost, value = point.cost.value, point.mean_return
        bar = {"color": POLICY_COLOURS[0], "alpha": 0.45, "linewidth": 1.6}
        axes.plot([cost, cost], [value.low, value.high], **bar)
    axes.set_xlabel(f"cost of a session ({result.cost_unit})", color=INK)
    axes.set_ylabel("return (mean over sessions and budgets)", color=INK)
    axes.set_title("Return against cost on the test sessions", loc="left", fontsize=11, color=INK)
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=9.5,
    )
    place_labels(axes, list_labels(result), trace_lines(axes))
    return save_png(figure)


def draw_policy(axes: Any, policy: SessionPolicyResult) -> None:
    """Draw the points of a policy."""
    colour, marker, line = LOOKS[policy.kind]
    swept = ", by cost weight" if len(policy.points) > 1 else ""
    axes.plot(
        [point.cost.value for point in policy.points],
        [point.mean_return.value for point in policy.points],
        marker=marker,
        linestyle=line,
        color=colour,
        markersize=6.5,
        linewidth=1.5,
        label="_" if policy.kind == "single" else policy.name + swept,
        zorder=4 if policy.kind == "policy" else 3,
    )


def list_labels(result: SessionEvaluation) -> list[tuple[float, float, str]]:
    """Return what is written beside points: the subject's cost weights, and the singles' names."""
    weights = [
        (point.cost.value, point.mean_return.value, f"weight {point.cost_weight:g}")
        for point in result.subject.points
    ]
    singles = [
        (policy.points[0].cost.value, policy.points[0].mean_return.value, policy.name)
        for policy in result.policies
        if policy.kind == "single"
    ]
    return [*singles, *weights]
