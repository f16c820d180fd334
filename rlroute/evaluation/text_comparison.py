"""What an evaluation of a text policy says, in words and as an aligned table for the terminal.

What it is: sentences that say as plainly that the policy does not beat a baseline as that it does,
and `render_text_comparison` for `rlroute evaluate`. Differences are called only where the paired
interval (95 %) excludes zero.

What it leaves out: HTML and pictures (`text_report`, `text_figures`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlroute.evaluation.comparison import (
    QUERIES_PER_PRICE,
    format_estimate,
    format_number,
    format_price,
    format_share,
    judge,
)
from rlroute.evaluation.text_results import (
    TextEvaluation,
    TextOptimum,
    TextPoint,
    TextPolicyResult,
)

if TYPE_CHECKING:
    from rich.table import Table

OPTIMUM = "optimum (exact)"
UNKNOWN = "-"
STYLES = {"policy": "bold", "optimal": "dim"}


def describe_text_result(result: TextEvaluation) -> list[str]:
    """Return one paragraph per cost weight: level, best baseline, warm start, optimum."""
    return [describe_weight(result, place) for place in range(len(result.cost_weights))]


def describe_weight(result: TextEvaluation, place: int) -> str:
    """Say how the subject does at one cost weight."""
    subject, point = result.subject, result.subject.points[place]
    assert point.reward is not None  # else there is no evaluation
    assert point.success is not None
    assert point.cost_usd is not None
    best = result.find(result.best_baselines[place])
    sentences = [
        f"At cost weight {point.cost_weight:g}, {subject.name} earns a mean reward of "
        f"{format_number(point.reward.value)} (success "
        f"{format_number(point.success.value)}, {format_number(point.calls or 0.0, 2)} calls, "
        f"{format_price(point.cost_usd.value)} USD per 1,000 questions)",
        describe_lead(best.points[place], f"the best baseline, {best.name}"),
    ]
    sentences += [
        describe_lead(policy.points[place], f"its {policy.name}")
        for policy in result.policies
        if policy.kind == "start"
    ]
    text = "; ".join(sentences) + "."
    if result.optima:
        text += describe_optimum(point.reward.value, result.optima[place])
    if point.failed:
        text += f" {point.failed} questions had a failed call and count for nothing."
    return text


def describe_lead(point: TextPoint, name: str) -> str:
    """Say whether the subject beats another policy."""
    if point.reward is None or point.lead is None:
        return f"{name} has no reward: every episode had a failed call"
    verdict = {
        "better": "better than",
        "worse": "worse than",
        "unclear": "not clearly different from",
    }[judge(point.lead)]
    return (
        f"{verdict} {name} ({format_number(point.reward.value)}), "
        f"by {format_estimate(point.lead, sign=True)}"
    )


def describe_optimum(reward: float, optimum: TextOptimum) -> str:
    """Say how near the optimum's expectation a mean reward lies."""
    expected = format_number(optimum.reward)
    if min(reward, optimum.reward) <= 0:
        return f" No policy can expect more than {expected}."
    share = format_share(reward / optimum.reward)
    return f" That is {share} of {expected}, the most that any policy can expect."


def render_text_comparison(result: TextEvaluation) -> Table:
    """Return the comparison as a rich table, one section per cost weight."""
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=0,
        title=f"{result.questions}, test: {result.test_questions:,} questions, "
        f"{result.subject.name} of update {result.update}",
        caption=f"USD per {QUERIES_PER_PRICE:,} questions; valid: share in valid format; fail: "
        "questions without a reward, since a call failed; lead: mean reward of the first row minus "
        "this row's, 95% interval; *: best baseline on val; optimum: the most to be expected",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("policy", overflow="fold")
    for header in ("reward", "success", "USD", "calls", "valid", "fail", "lead"):
        table.add_column(header, justify="right", no_wrap=True)
    for place, weight in enumerate(result.cost_weights):
        table.add_row(f"weight {weight:g}", style="italic")
        for policy in order_policies(result, place):
            cells = list_cells(policy.points[place])
            star = "*" if policy.name == result.best_baselines[place] else ""
            table.add_row(policy.name + star, *cells, style=STYLES.get(policy.kind))
        if result.optima:
            table.add_row(OPTIMUM, *list_optimum_cells(result.optima[place]), style="dim")
        table.add_section()
    return table


def order_policies(result: TextEvaluation, place: int) -> list[TextPolicyResult]:
    """Return the subject, its start, the baselines from the best reward down, the optimal plan."""

    def rank(policy: TextPolicyResult) -> tuple[int, float]:
        reward = policy.points[place].reward
        order = ("policy", "start", "baseline", "optimal")
        kind = policy.kind if policy.kind in order else "baseline"
        return order.index(kind), float("inf") if reward is None else -reward.value

    return sorted(result.policies, key=rank)


def list_cells(point: TextPoint) -> list[str]:
    """Return the cells of a row of the table, after the name."""
    return [
        UNKNOWN if point.reward is None else format_number(point.reward.value),
        UNKNOWN if point.success is None else format_number(point.success.value),
        UNKNOWN if point.cost_usd is None else format_price(point.cost_usd.value),
        UNKNOWN if point.calls is None else format_number(point.calls, 2),
        UNKNOWN if point.valid_format is None else format_share(point.valid_format),
        str(point.failed),
        "" if point.lead is None else format_estimate(point.lead, sign=True),
    ]


def list_optimum_cells(optimum: TextOptimum) -> list[str]:
    """Return the cells of an optimum's row, after the name."""
    return [
        format_number(optimum.reward),
        format_number(optimum.success),
        format_price(optimum.cost_usd),
        format_number(optimum.calls, 2),
    ]
