"""What an evaluation says, in words and as an aligned table for the terminal.

What it is: the headline of a report, which says as plainly that a router does not beat a baseline
as that it does, and `render_comparison` for the end of a training run. Differences are called only
where the paired interval (95 %) excludes zero.

What it leaves out: HTML and pictures (`report`, `figures`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rlroute.evaluation.frontier import ROUNDING
from rlroute.evaluation.intervals import Estimate
from rlroute.evaluation.results import EvaluationResult, OperatingPoint, PolicyResult, SingleResult

if TYPE_CHECKING:
    from rich.table import Table

# Money is read per this many queries: a single query costs fractions of a cent.
QUERIES_PER_PRICE = 1000
# From this share on, one candidate gets so much that the router is that candidate in disguise.
COLLAPSE_SHARE = 0.95
ORACLE = "oracle"
BOUNDS = ("task oracle", "paid probes", ORACLE)  # they know outcomes: what there is to win


def format_number(value: float, digits: int = 3, *, sign: bool = False) -> str:
    """Return a number with fixed digits and a true minus sign; no "-0.000"; infinity is "never"."""
    if not math.isfinite(value):
        return "never"
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    if not float(text):
        text = f"{0:.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def format_interval(estimate: Estimate, digits: int = 3, *, sign: bool = False) -> str:
    """Return the interval in brackets."""
    low, high = (format_number(x, digits, sign=sign) for x in (estimate.low, estimate.high))
    return f"[{low}, {high}]"


def format_estimate(estimate: Estimate, digits: int = 3, *, sign: bool = False) -> str:
    """Return value and interval, such as "0.745 [0.731, 0.760]"."""
    value = format_number(estimate.value, digits, sign=sign)
    return f"{value} {format_interval(estimate, digits, sign=sign)}"


def format_price(cost_usd: float) -> str:
    """Return a mean cost per query in USD as USD per 1,000 queries, three significant digits.

    An infinite one, of what is never had, is "never".
    """
    cost = cost_usd * QUERIES_PER_PRICE
    if not math.isfinite(cost):
        return format_number(cost)
    digits = 3 if cost <= 0 else min(6, max(2, 2 - math.floor(math.log10(cost))))
    return format_number(cost, digits)


def format_share(share: float) -> str:
    """Return a share in whole per cent; a small one is "<1%", a share of nothing infinite."""
    if not math.isfinite(share):
        return "\N{INFINITY}"
    if ROUNDING < share < 0.005:
        return "<1%"
    return format_number(100 * share, 0) + "%"


def judge(gain: Estimate) -> str:
    """Say in a word whether a paired difference is one."""
    if not gain.excludes_zero:
        return "unclear"
    return "better" if gain.low > 0 else "worse"


def describe_result(result: EvaluationResult) -> list[str]:
    """Return the headline: sentences for a reader who was not there, most important first."""
    sentences = [describe_operating_point(result, one) for one in result.subject.operating_points]
    # Where the cap binds nowhere, the same setting is chosen twice: say it once.
    sentences = list(dict.fromkeys(sentences))
    return [*sentences, describe_frontier(result), *describe_collapse(result)]


def describe_operating_point(result: EvaluationResult, point: OperatingPoint) -> str:
    """Compare one setting of the subject with the best single candidate."""
    best = result.find_single(result.best_single)
    verdict = {
        "better": "better than",
        "worse": "worse than",
        "unclear": "not clearly different from",
    }[judge(point.quality_gain)]
    return (
        f"At cost weight {point.cost_weight:.3g}, {result.subject.name} has quality "
        f"{format_number(point.quality.value)} for {format_price(point.cost_usd.value)} USD per "
        f"1,000 queries: {verdict} the best single candidate, {best.candidate_id} "
        f"({format_number(best.quality.value)} for {format_price(best.cost_usd.value)}), by "
        f"{format_estimate(point.quality_gain, sign=True)}, at "
        f"{format_share(point.cost_ratio.value)} of its cost."
    )


def describe_frontier(result: EvaluationResult) -> str:
    """Say whether the subject's AIQ beats the hull of the single candidates and each baseline."""
    subject, frontier = result.subject, result.subject.frontier
    leads = {"the hull of the single candidates": frontier.aiq_gain}
    for policy in result.policies[1:]:
        if policy.subject_lead is not None and policy.name not in BOUNDS:
            leads[policy.name] = policy.subject_lead
    groups: dict[str, list[str]] = {"better": [], "worse": [], "unclear": []}
    for name, lead in leads.items():
        groups[judge(lead)].append(f"{name} ({format_number(lead.value, sign=True)})")
    words = {
        "better": "It beats",
        "unclear": "It does not clearly differ from",
        "worse": "It does NOT beat",
    }
    parts = [f"{words[key]} {', '.join(names)}." for key, names in groups.items() if names]
    return (
        f"Over the whole range of cost, {subject.name} has AIQ {format_estimate(frontier.aiq)}. "
        + " ".join(parts)
    )


def describe_collapse(result: EvaluationResult) -> list[str]:
    """Warn where the subject sends nearly everything to one candidate."""
    return [
        f"At cost weight {point.cost_weight:.3g} it sends {format_share(max(point.share_K))} of "
        f"the queries to {name_most_picked(result, point.share_K)}: that candidate in disguise."
        for point in result.subject.operating_points[:1]
        if max(point.share_K) >= COLLAPSE_SHARE
    ]


def name_most_picked(result: EvaluationResult, share_K: tuple[float, ...]) -> str:
    """Return the candidate with the largest share."""
    return result.candidate_ids[share_K.index(max(share_K))]


def rank_singles(result: EvaluationResult) -> list[SingleResult]:
    """Return the candidates, those that a reader looks for first.

    The best single, the cheapest, what is on the hull, then by the largest share that one of the
    subject's settings gives them. Of many (subsets), only the first are named in pictures.
    """
    rows = [point.share_K for point in result.subject.points]
    peak_K = [max(shares) for shares in zip(*rows, strict=True)]
    peak_by_id = dict(zip(result.candidate_ids, peak_K, strict=True))
    return sorted(
        result.singles,
        key=lambda one: (
            one.candidate_id not in (result.best_single, result.cheapest),
            not one.on_hull,
            -peak_by_id[one.candidate_id],
        ),
    )


def find_dearest(result: EvaluationResult) -> int:
    """Return the position of the candidate with the highest mean cost on the evaluated split."""
    cost_K = [single.cost_usd.value for single in result.singles]
    return cost_K.index(max(cost_K))


def order_policies(result: EvaluationResult) -> list[PolicyResult]:
    """Return the subject, the others from the best AIQ to the worst, those who know more last."""
    others = sorted(
        result.policies[1:],
        key=lambda one: (one.name in BOUNDS, one.name == ORACLE, -one.frontier.aiq.value),
    )
    return [result.subject, *others]


def render_comparison(result: EvaluationResult) -> Table:
    """Return the final comparison as a rich table of 80 columns, in the order of `order_policies`.

    Quality and cost are those of the smallest cost weight, and so is "dearest", the share of
    queries sent to the dearest candidate. "over singles" is the AIQ above the zero router's.
    """
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title=f"{result.table}, test: {result.queries:,} queries, 95% intervals",
        caption=f"best single: {result.best_single}; quality and USD per 1,000 queries at cost "
        f"weight {result.cost_weights[0]:g}; over singles: AIQ above the hull of the candidates",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("policy", no_wrap=True)
    for header in ("quality", "USD/1k", "AIQ", "95%", "over singles", "dearest"):
        table.add_column(header, justify="right", no_wrap=True)
    dearest = find_dearest(result)
    for policy in order_policies(result):
        first, frontier = policy.points[0], policy.frontier
        table.add_row(
            policy.name,
            format_number(first.quality.value),
            format_price(first.cost_usd.value),
            format_number(frontier.aiq.value),
            f"{format_number(frontier.aiq.low)}-{format_number(frontier.aiq.high)}",
            f"{format_number(frontier.aiq_gain.value, sign=True)} {judge(frontier.aiq_gain)}",
            format_share(first.share_K[dearest]),
            style="bold" if policy is result.subject else None,
            end_section=policy is result.subject,
        )
    zero = result.zero_router
    table.add_section()
    table.add_row(
        "hull of singles",
        format_number(zero.peak_quality),
        format_price(zero.cost_usd[-1]),
        format_number(zero.aiq.value),
        f"{format_number(zero.aiq.low)}-{format_number(zero.aiq.high)}",
        style="dim",
    )
    return table
