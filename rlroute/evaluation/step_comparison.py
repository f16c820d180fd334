"""What an evaluation of step-by-step routing says, in words and as a table for the terminal.

What it is: sentences that say as plainly that the policy does not beat a baseline as that it does,
and `render_step_comparison` for `rlroute evaluate`. Differences are called only where the paired
interval (95 %) excludes zero.

What it leaves out: HTML and pictures (`step_report`, `step_figures`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlroute.evaluation.comparison import (
    QUERIES_PER_PRICE,
    format_estimate,
    format_number,
    format_price,
    judge,
)
from rlroute.evaluation.intervals import Estimate
from rlroute.evaluation.step_results import (
    StepEvaluation,
    StepPoint,
    StepPolicyResult,
    StepSetting,
)

if TYPE_CHECKING:
    from rich.table import Table

UNKNOWN = "-"
HARD = "hard"
COLLAPSED_SHARE = 0.01  # of dear steps on hard tasks
STYLES = {"policy": "bold", "optimal": "dim"}
VERDICTS = {
    "better": "beats",
    "worse": "falls short of",
    "unclear": "does not clearly differ from",
}


def format_percent(estimate: Estimate) -> str:
    """Return a share with its interval in per cent, such as "98.1% [97.0%, 99.2%]"."""
    value, low, high = (
        f"{format_number(100 * one, 1)}%" for one in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value} [{low}, {high}]"


def format_cap(cap: float | None, unit: str) -> str:
    """Return a cap in words; counted calls, or USD."""
    if cap is None:
        return "no cap"
    if unit == "usd":
        return f"cap of {cap:g} USD"
    return "cap of 1 call" if cap == 1 else f"cap of {cap:g} calls"


def format_setting(result: StepEvaluation, setting: StepSetting) -> str:
    """Return a setting in words; the cost weight only where there are several."""
    text = format_cap(setting.cap, result.budget_unit)
    if len({one.cost_weight for one in result.settings}) > 1:
        text += f", cost weight {setting.cost_weight:g}"
    return text


# --- Sentences ------------------------------------------------------------------------------------


def describe_step_result(result: StepEvaluation) -> list[str]:
    """Return what was found: each setting, other policies, the frontier, warnings."""
    return [
        *(describe_setting(result, place) for place in range(len(result.settings))),
        *describe_others(result),
        *describe_frontier(result),
        *describe_warnings(result),
    ]


def describe_setting(result: StepEvaluation, place: int) -> str:
    """Say how the subject does under one setting."""
    subject, setting = result.subject, result.settings[place]
    point = subject.points[place]
    assert point is not None
    assert point.success is not None
    assert point.cost_usd is not None
    large = f"always {result.executor_ids[-1]}"
    start = format_setting(result, setting)
    text = (
        f"{start[0].upper()}{start[1:]}: {subject.name} has success "
        f"{format_number(point.success.value)} for {format_price(point.cost_usd.value)} USD per "
        f"{QUERIES_PER_PRICE:,} tasks"
    )
    if point.success_kept is not None and point.cost_ratio is not None:
        text += (
            f". It keeps {format_percent(point.success_kept)} of the success of {large} without a "
            f"cap, at {format_percent(point.cost_ratio)} of its cost"
        )
    best = result.find(result.best_baselines[place])
    return f"{text}. {describe_best(point, best, best.points[place])}"


def describe_best(point: StepPoint, best: StepPolicyResult, rival: StepPoint | None) -> str:
    """Compare the subject with the best baseline."""
    assert rival is not None  # chosen under this very setting
    assert point.reward is not None
    if rival.reward is None or rival.reward_lead is None or rival.lead is None:
        return f"The best baseline on val, {best.name}, has no reward: its calls failed."
    return (
        f"In reward ({format_number(point.reward.value)}) it {VERDICTS[judge(rival.reward_lead)]} "
        f"the best baseline on val, {best.name} ({format_number(rival.reward.value)}), by "
        f"{format_estimate(rival.reward_lead, sign=True)}; in success it "
        f"{VERDICTS[judge(rival.lead)]} it, by {format_estimate(rival.lead, sign=True)}."
    )


def describe_others(result: StepEvaluation) -> list[str]:
    """Compare the subject with its relatives, other runs, and mixtures of baselines."""
    found = []
    name = result.subject.name
    for policy in result.policies:
        if policy.kind in ("sampled", "start", "run"):
            leads = [None if point is None else point.lead for point in policy.points]
            found.append(f"In success, {name} {join_verdicts(result, leads, policy.name)}.")
    above = [None if point is None else point.above_baselines for point in result.subject.points]
    if any(one is not None for one in above):
        mixture = "the best mixture of baselines for the same money, picked with hindsight"
        found.append(f"In success, {name} {join_verdicts(result, above, mixture)}.")
    return found


def join_verdicts(result: StepEvaluation, leads: Sequence[Estimate | None], name: str) -> str:
    """Return verdicts on another policy, and under which settings each of them holds."""
    groups: dict[str, list[str]] = {verdict: [] for verdict in VERDICTS}
    for setting, lead in zip(result.settings, leads, strict=True):
        if lead is not None:
            where = f"{format_setting(result, setting)}: " if len(result.settings) > 1 else ""
            groups[judge(lead)].append(where + format_estimate(lead, sign=True))
    parts = [
        f"{verdict} {{}} ({'; '.join(groups[key])})"
        for key, verdict in VERDICTS.items()
        if groups[key]
    ]
    if not parts:
        return f"cannot be compared with {name}: its calls failed"
    names = [name, *["it"] * (len(parts) - 1)]
    return "; it ".join(part.format(one) for part, one in zip(parts, names, strict=True))


def describe_frontier(result: StepEvaluation) -> list[str]:
    """Say whose frontier is higher on average; nothing where there is none."""
    if not result.curves or result.curves[0].family != result.subject.name:
        return []
    groups: dict[str, list[str]] = {name: [] for name in VERDICTS}
    for curve in result.curves[1:]:
        if curve.lead is not None and curve.kind not in ("optimal", "sampled"):
            groups[judge(curve.lead)].append(
                f"{curve.family} ({format_number(curve.lead.value, sign=True)})"
            )
    parts = [f"It {VERDICTS[key]} {', '.join(names)}." for key, names in groups.items() if names]
    own = result.curves[0]
    ids = result.executor_ids
    return [
        f"Between the costs of always {ids[0]} and always {ids[-1]}, the frontier of {own.family} "
        f"has a mean success of {format_estimate(own.area)}. " + " ".join(parts)
    ]


def describe_warnings(result: StepEvaluation) -> list[str]:
    """Say what a reader must not overlook: collapse, exhausted budgets, failed calls."""
    found = []
    for setting, point in zip(result.settings, result.subject.points, strict=True):
        assert point is not None
        where = format_setting(result, setting)
        hard = point.by_class.get(HARD)
        forced = setting.cap == 0 and result.budget_unit == "calls"
        if hard is not None and hard.dear_share < COLLAPSED_SHARE and not forced:
            found.append(
                f"COLLAPSED ({where}): {format_number(100 * hard.dear_share, 1)}% of its steps on "
                f"hard tasks go to anybody but {result.executor_ids[0]}."
            )
        if point.exhausted:
            found.append(
                f"{where}: in {format_number(100 * point.exhausted, 1)}% of the episodes nothing "
                "was affordable any more, and they ended there."
            )
        if point.failed:
            found.append(
                f"{where}: {point.failed} of {point.episodes} episodes had a failed call and "
                "count for nothing."
            )
    return found


# --- Table ----------------------------------------------------------------------------------------


def list_rows(result: StepEvaluation, place: int) -> list[tuple[StepPolicyResult, StepPoint]]:
    """Return who gets a row under a setting: policies, baselines by reward, the upper bound."""
    order = ("policy", "sampled", "start", "run", "baseline", "optimal")

    def rank(row: tuple[StepPolicyResult, StepPoint]) -> tuple[int, float]:
        policy, point = row
        kind = policy.kind if policy.kind in order else "baseline"
        worth = point.reward.value if kind == "baseline" and point.reward else float("-inf")
        return order.index(kind), -worth

    rows = []
    for name in result.shown[place]:
        policy = result.find(name)
        point = policy.points[place]
        if point is not None:
            rows.append((policy, point))
    return sorted(rows, key=rank)


def render_step_comparison(result: StepEvaluation) -> Table:
    """Return the comparison as a rich table of 80 columns, one section per setting."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    counted = "calls: counted ones per task"
    if result.budget_unit == "usd":
        counted = "broke: episodes that ended since nothing was affordable any more"
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=0,
        title=f"{result.world}, test: {result.test_tasks:,} tasks, {result.subject.name} of update "
        f"{result.update}",
        caption=f"USD per {QUERIES_PER_PRICE:,} tasks; {counted}; used: share of the cap; hard: "
        "success on hard tasks; lead: success of the first row minus this row's, 95% interval; "
        "*: best baseline on val, by reward; always "
        f"{result.executor_ids[-1]} under a cap is first-large: the mask ends it; sigma's bill "
        "holds its probes",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("policy", overflow="fold")
    for header in ("success", "USD", counted.partition(":")[0], "used", "hard", "reward", "lead"):
        table.add_column(header, justify="right", no_wrap=True)
    for place, setting in enumerate(result.settings):
        table.add_row(format_setting(result, setting), style="italic")
        for policy, point in list_rows(result, place):
            star = "*" if policy.name == result.best_baselines[place] else ""
            name = Text(policy.name + star)  # folders may be named like markup
            cells = list_cells(point, result.budget_unit)
            table.add_row(name, *cells, style=STYLES.get(policy.kind))
        table.add_section()
    return table


def list_cells(point: StepPoint, budget_unit: str) -> list[str]:
    """Return the cells of a row of the table, after the name.

    What a budget in calls counts are calls; one in USD is gone or not.
    """
    hard = point.by_class.get(HARD)
    counted = UNKNOWN if point.calls is None else format_number(point.calls, 2)
    if budget_unit == "usd":
        broke = point.exhausted
        counted = UNKNOWN if broke is None else f"{format_number(100 * broke, 1)}%"
    return [
        UNKNOWN if point.success is None else format_number(point.success.value),
        UNKNOWN if point.cost_usd is None else format_price(point.cost_usd.value),
        counted,
        "" if point.utilisation is None else f"{format_number(100 * point.utilisation, 0)}%",
        UNKNOWN if hard is None else format_number(hard.success),
        UNKNOWN if point.reward is None else format_number(point.reward.value),
        "" if point.lead is None else format_estimate(point.lead, sign=True),
    ]
