"""What an evaluation of memory-tier routing says, in words and as a table for the terminal.

What it is: sentences that say as plainly that the policy does not beat a baseline as that it does,
and `render_memory_comparison` for `rlroute evaluate`. Differences are called only where the paired
interval (95 %) excludes zero.

What it leaves out: HTML and pictures (`memory_report`, `memory_figures`).

How to use: `for sentence in describe_memory_result(result): print(sentence)`.
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
from rlroute.evaluation.memory_results import (
    BASELINES,
    MemoryContender,
    MemoryEvaluation,
    MemoryPoint,
)
from rlroute.evaluation.step_comparison import STYLES, UNKNOWN, VERDICTS, format_percent

if TYPE_CHECKING:
    from rich.table import Table

SHOWN_WEIGHTS = 3
CONSTANT_SHARE = 0.995  # of questions that get the same tier of every module


def choose_places(result: MemoryEvaluation) -> list[int]:
    """Return the places of the cost weights that tables show: the first, a middle, the last."""
    last = len(result.cost_weights) - 1
    return sorted({0, last // 2, last}) if last + 1 > SHOWN_WEIGHTS else list(range(last + 1))


def order_contenders(result: MemoryEvaluation, place: int) -> list[MemoryContender]:
    """Return the subject, runs, baselines (best utility first, then cheapest), who knows more."""
    order = ("run", "baseline", "kind_static", "oracle")

    def rank(one: MemoryContender) -> tuple[int, float, float]:
        point = one.points[place]
        kind = "baseline" if one.kind in BASELINES else one.kind
        kind = "run" if kind == "policy" else kind
        if point.utility is None or point.cost_usd is None:
            return order.index(kind), float("inf"), 0.0
        return order.index(kind), -round(point.utility.value, 9), point.cost_usd.value

    return [result.subject, *sorted(result.contenders[1:], key=rank)]


# --- Sentences ------------------------------------------------------------------------------------


def describe_memory_result(result: MemoryEvaluation) -> list[str]:
    """Return what was found: each shown weight, the frontier, levels of cost, warnings."""
    return [
        *(describe_weight(result, place) for place in choose_places(result)),
        *describe_frontier(result),
        *describe_levels(result),
        *describe_awareness(result),
        *describe_warnings(result),
    ]


def describe_weight(result: MemoryEvaluation, place: int) -> str:
    """Say how the subject does at one cost weight."""
    point = result.subject.points[place]
    start = f"At cost weight {point.cost_weight:g}, {result.subject.name}"
    if point.quality is None or point.cost_usd is None:
        return f"{start} has no value: every question failed."
    text = (
        f"{start} has quality {format_number(point.quality.value)} for "
        f"{format_price(point.cost_usd.value)} USD of memory per {QUERIES_PER_PRICE:,} questions"
    )
    if point.oracle_share is not None:
        text += f", which is {format_percent(point.oracle_share)} of the oracle's utility"
    rivals = [one for one in order_contenders(result, place)[1:] if one.kind in BASELINES]
    if not rivals or rivals[0].points[place].lead is None:
        return text + "."
    lead = rivals[0].points[place].lead
    assert lead is not None
    return (
        f"{text}. In utility it {VERDICTS[judge(lead)]} the best baseline, picked with hindsight "
        f"on these questions, {rivals[0].name}, by {format_estimate(lead, sign=True)}."
    )


def describe_frontier(result: MemoryEvaluation) -> list[str]:
    """Say whose frontier is higher on average."""
    groups: dict[str, list[str]] = {name: [] for name in VERDICTS}
    for one in result.contenders[1:]:
        if one.aiq_lead is not None and one.kind != "oracle":
            lead = f"{one.name} ({format_number(one.aiq_lead.value, sign=True)})"
            groups[judge(one.aiq_lead)].append(lead)
    own = result.subject.aiq
    if own is None:
        return []
    parts = [f"It {VERDICTS[key]} {', '.join(names)}." for key, names in groups.items() if names]
    return [
        f"Between {format_price(result.cost_min_usd)} and {format_price(result.cost_max_usd)} USD "
        f"per {QUERIES_PER_PRICE:,} questions, the frontier of {result.subject.name} has a mean "
        f"height of {format_estimate(own)}. {' '.join(parts)}".rstrip()
    ]


def describe_levels(result: MemoryEvaluation) -> list[str]:
    """Say at which levels of cost the subject beats static assignments."""
    open_levels = [one for one in result.levels if one.headroom is None or one.headroom > 0.005]
    if not open_levels:
        return []
    won = [one for one in open_levels if judge(one.gain) == "better"]
    lost = [one for one in open_levels if judge(one.gain) == "worse"]
    text = (
        f"For the same money it beats the frontier of static assignments (chosen on train) at "
        f"{len(won)} of {len(open_levels)} levels of cost where there is something to win"
    )
    if won:
        best = max(won, key=lambda one: one.gain.value)
        text += (
            f", by up to {format_estimate(best.gain, sign=True)} at "
            f"{format_price(best.cost_usd)} USD"
        )
    if lost:
        text += f"; it falls short of it at {len(lost)}"
    return [text + "."]


def describe_awareness(result: MemoryEvaluation) -> list[str]:
    """Say how much the kind of a question tells about the tiers it gets."""
    parts = []
    for place in choose_places(result):
        point = result.subject.points[place]
        bits = max(point.information, default=0.0)
        name = result.modules[point.information.index(bits)].name
        parts.append(
            f"{bits:.2f} bits at cost weight {point.cost_weight:g}"
            + (f" ({name})" if bits >= 0.005 else "")
        )
    if len(result.kinds) < 2:
        return []
    return [f"A question's kind tells about the tier of a module at most {', '.join(parts)}."]


def describe_warnings(result: MemoryEvaluation) -> list[str]:
    """Say what a reader must not overlook."""
    found = []
    constant = [
        f"{point.cost_weight:g}"
        for point in result.subject.points
        if all(max(share_K) >= CONSTANT_SHARE for share_K in point.shares)
    ]
    if constant:
        found.append(
            f"CONSTANT: at cost weight {', '.join(constant)} it gives all questions the same "
            "tiers, and is a static assignment in disguise."
        )
    found += [
        f"Its cost rises up to cost weight {point.cost_weight:g}, by "
        f"{format_price(point.cost_change_usd.value)} USD per {QUERIES_PER_PRICE:,} questions; it "
        "should fall."
        for point in result.subject.points
        if point.cost_change_usd is not None and judge(point.cost_change_usd) == "better"
    ]
    failed = [
        f"{point.failed:.3g} of {point.questions} at cost weight {point.cost_weight:g}"
        for point in result.subject.points
        if point.failed
    ]
    if failed:
        found.append(
            f"Some questions had a failed call and count for nothing: {', '.join(failed)}."
        )
    if result.resampled == "questions":
        found.append(
            f"Histories are too few to resample ({result.histories}): intervals resample questions "
            "as if they were independent, and are narrower than they should be."
        )
    return found


# --- Table ----------------------------------------------------------------------------------------


def render_memory_comparison(result: MemoryEvaluation) -> Table:
    """Return the comparison as a rich table of 80 columns, one section per shown cost weight."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=0,
        title=f"{escape(result.data)}, test: {result.questions:,} questions of {result.histories} "
        f"histories, {escape(result.subject.name)} of update {result.update}",
        caption=f"USD per {QUERIES_PER_PRICE:,} questions, memory and answers apart; oracle: share "
        "of its utility; AIQ: mean height of the frontier over all weights; lead: the first row's "
        "utility minus this row's, 95% interval; best static per kind is told the true kind, the "
        "oracle the outcomes",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("contender", overflow="fold")
    for header in ("quality", "USD", "answer", "utility", "oracle", "AIQ", "lead"):
        table.add_column(header, justify="right", no_wrap=True)
    for place in choose_places(result):
        table.add_row(f"cost weight {result.cost_weights[place]:g}", style="italic")
        for one in order_contenders(result, place):
            style = "dim" if one.kind in ("oracle", "kind_static") else STYLES.get(one.kind)
            cells = list_cells(one, one.points[place])
            table.add_row(Text(one.name), *cells, style=style)  # a name may look like markup
        table.add_section()
    return table


def list_cells(contender: MemoryContender, point: MemoryPoint) -> Sequence[str]:
    """Return the cells of a row of the table, after the name."""
    share = point.oracle_share
    return [
        UNKNOWN if point.quality is None else format_number(point.quality.value),
        UNKNOWN if point.cost_usd is None else format_price(point.cost_usd.value),
        UNKNOWN if point.answer_cost_usd is None else format_price(point.answer_cost_usd),
        UNKNOWN if point.utility is None else format_number(point.utility.value),
        UNKNOWN if share is None else f"{format_number(100 * share.value, 1)}%",
        UNKNOWN if contender.aiq is None else format_number(contender.aiq.value),
        "" if point.lead is None else format_estimate(point.lead, 2, sign=True),
    ]
