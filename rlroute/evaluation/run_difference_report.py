"""What a comparison of two runs says: sentences, a table for the terminal, a picture, a page.

What it is: `describe_difference` and `render_difference` for the terminal; `write_difference` for
compare.json, compare.png and compare.html. A difference is called only where its paired interval
(95 %) excludes zero, and two routers are called alike only where the test of equivalence says so.

What it leaves out: the numbers (`run_difference`). Pictures and page need the extra `train`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlroute.evaluation.comparison import (
    format_estimate,
    format_number,
    format_price,
    judge,
)
from rlroute.evaluation.figures import (
    INK,
    POLICY_COLOURS,
    draw_cost_axis,
    make_figure,
    save_png,
    scale_cost,
    style_axes,
)
from rlroute.evaluation.frontier import compute_hull
from rlroute.evaluation.report import embed_png, make_page_environment
from rlroute.evaluation.run_difference_results import (
    Frontier,
    RunDifference,
    SettingDifference,
    WeightDifference,
)
from rlroute.files import write_atomic

if TYPE_CHECKING:
    from rich.table import Table

WEIGHTS_SHOWN = 9
QUERIES_SHOWN = 30
TEMPLATE = "run_difference.html"
JSON_FILE, PICTURE_FILE, PAGE_FILE = "compare.json", "compare.png", "compare.html"
VERDICTS = {
    "better": "is better than",
    "worse": "is worse than",
    "unclear": "does not clearly differ from",
}


def describe_difference(found: RunDifference) -> list[str]:
    """Return what there is to say, most important first."""
    aiq, setting = found.aiq, found.setting
    lead = setting.quality.lead
    return [
        f"Over the whole range of cost, {found.first} {VERDICTS[judge(aiq.lead)]} {found.second}: "
        f"AIQ {format_number(aiq.first.value)} against {format_number(aiq.second.value)}, by "
        f"{format_estimate(aiq.lead, sign=True)}.",
        f"At {describe_setting(setting)}, {found.first} {VERDICTS[judge(lead)]} {found.second} in "
        f"quality: {format_number(setting.quality.first.value)} for "
        f"{format_price(setting.cost_usd.first.value)} USD per 1,000 queries against "
        f"{format_number(setting.quality.second.value)} for "
        f"{format_price(setting.cost_usd.second.value)}, by {format_estimate(lead, sign=True)}.",
        describe_tests(setting),
        *describe_queries_needed(setting, found.test_queries),
        f"They pick differently on {len(setting.queries):,} of {found.test_queries:,} queries.",
        *found.notes,
    ]


def describe_setting(setting: SettingDifference) -> str:
    """Name the setting in words."""
    if setting.budget_usd is None:
        return f"cost weight {setting.first_weight:.3g}"
    return (
        f"a budget of {format_price(setting.budget_usd)} USD per 1,000 queries, chosen on "
        f"validation (cost weights {setting.first_weight:.3g} and {setting.second_weight:.3g})"
    )


def describe_tests(setting: SettingDifference) -> str:
    """Say what the tests of the difference in quality find."""
    equivalence = setting.equivalence
    points = format_number(100 * equivalence.margin, 1)
    words = "equivalent" if equivalence.equivalent else "NOT shown to be equivalent"
    text = (
        f"Their qualities are {words} within {points} points (p = "
        f"{format_number(equivalence.p_value)}); p of no difference: sign flips "
        f"{format_number(setting.permutation_p)}"
    )
    if setting.mcnemar is None:
        return text + " (McNemar's test needs scores of 0 and 1)."
    test = setting.mcnemar
    return (
        f"{text}, McNemar mid-p {format_number(test.mid_p)}, exact {format_number(test.exact_p)} "
        f"(only the first right on {test.only_first:,} queries, only the second on "
        f"{test.only_second:,})."
    )


def describe_queries_needed(setting: SettingDifference, queries: int) -> list[str]:
    """Say how many queries the difference in quality needs to be seen, where that is known."""
    if setting.queries_needed is None:
        return []
    enough = "are enough" if queries >= setting.queries_needed else "are too few"
    return [
        f"To see a difference of {format_number(setting.quality.lead.value, sign=True)} (two "
        f"standard errors), {setting.queries_needed:,} queries like these are needed: "
        f"the {queries:,} here {enough}."
    ]


def choose_shown(rows: Sequence[WeightDifference]) -> list[WeightDifference]:
    """Return at most nine rows, the first and the last among them."""
    places = np.linspace(0, len(rows) - 1, min(WEIGHTS_SHOWN, len(rows)))
    return [rows[place] for place in np.unique(places.round().astype(int))]


def render_difference(found: RunDifference) -> Table:
    """Return the difference at some of the cost weights as a rich table of 80 columns."""
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title=f"{found.first} (1) against {found.second} (2) on {found.table}, test: "
        f"{found.test_queries:,} queries",
        caption="USD per 1,000 queries; leads of (1) with paired 95% intervals",
        title_justify="left",
        caption_justify="left",
    )
    for header in ("weight", "quality 1, 2", "USD 1, 2", "utility lead", ""):
        table.add_column(header, justify="right", no_wrap=True)
    for row in choose_shown(found.weights):
        quality, cost, utility = row.quality, row.cost_usd, row.utility
        table.add_row(
            f"{row.cost_weight:.3g}",
            f"{format_number(quality.first.value)} {format_number(quality.second.value)}",
            f"{format_price(cost.first.value)} {format_price(cost.second.value)}",
            format_estimate(utility.lead, sign=True),
            judge(utility.lead),
        )
    return table


# --- Files ----------------------------------------------------------------------------------------


def write_difference(folder: Path, found: RunDifference, texts: Mapping[str, str]) -> None:
    """Write compare.json, compare.png and compare.html, each atomically.

    `texts` maps the ids of queries to their texts; the page shows those that differ most.

    Raises:
        RLRouteError: matplotlib or jinja2 is not installed.
    """
    picture = draw_difference(found)
    page = make_page_environment().get_template(TEMPLATE)
    rendered: str = page.render(
        found=found,
        setting=found.setting,
        sentences=describe_difference(found),
        setting_words=describe_setting(found.setting),
        shown=found.setting.queries[:QUERIES_SHOWN],
        texts=texts,
        picture=embed_png(picture),
    )
    plain = json.dumps(found.to_dict(), indent=1, allow_nan=False)
    write_atomic(folder / JSON_FILE, plain + "\n")
    write_atomic(folder / PICTURE_FILE, picture)
    write_atomic(folder / PAGE_FILE, rendered)


def draw_difference(found: RunDifference) -> bytes:
    """Draw both frontiers on the left, the leads over the cost weight on the right, as PNG."""
    figure = make_figure(12.5, 4.8)
    left, right = figure.subplots(1, 2)
    names = (found.first, found.second)
    frontiers = (found.first_frontier, found.second_frontier)
    dearest = max(found.cost_max_usd, *(max(one.cost_usd) for one in frontiers))  # sets of them
    draw_cost_axis(left, scale_cost(found.cost_min_usd), scale_cost(dearest))
    for name, frontier, colour in zip(names, frontiers, POLICY_COLOURS, strict=False):
        draw_one_frontier(left, name, frontier, colour)
    left.legend(frameon=False, fontsize=9.5)
    draw_leads(right, found)
    return save_png(figure)


def draw_one_frontier(axes: Any, name: str, frontier: Frontier, colour: str) -> None:
    """Draw a router's settings as points and its hull, level to the right, as a line."""
    shown = [scale_cost(cost) for cost in frontier.cost_usd]
    cost_H, quality_H = compute_hull(shown, frontier.quality)
    cost_N = (
        np.linspace(cost_H[0] ** 0.25, axes.get_xlim()[1] ** 0.25, 400) ** 4
    )  # dense on the left
    quality_N = np.interp(cost_N, cost_H, quality_H)
    axes.plot(cost_N, quality_N, "-", color=colour, linewidth=2.0, label=name)
    axes.plot(shown, frontier.quality, ".", color=colour)


def draw_leads(axes: Any, found: RunDifference) -> None:
    """Draw the lead in quality and in utility over the cost weight with 95 % bands."""
    style_axes(axes)
    places = range(len(found.weights))
    for name, colour in (("quality", POLICY_COLOURS[2]), ("utility", POLICY_COLOURS[3])):
        leads = [getattr(row, name).lead for row in found.weights]
        axes.plot(places, [lead.value for lead in leads], "-", color=colour, label=name)
        axes.fill_between(
            places,
            [lead.low for lead in leads],
            [lead.high for lead in leads],
            color=colour,
            alpha=0.15,
            linewidth=0,
        )
    axes.axhline(0, color=INK, linewidth=0.8)
    shown = list(places)[:: -(-len(found.weights) // 10)]
    axes.set_xticks(shown, [f"{found.weights[n].cost_weight:.2g}" for n in shown], fontsize=8)
    axes.set_xlabel("cost weight", color=INK)
    axes.set_ylabel(f"lead of {found.first}", color=INK)
    axes.legend(frameon=False, fontsize=9.5)
