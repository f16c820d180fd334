"""The words of a comparison of online learners: sentences, and a table for the terminal.

What it leaves out: measures (`bandit_results`). How to use: `render_bandits(result)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rlroute.bandits.comparators import BEST_AVAILABLE, BEST_FIXED
from rlroute.evaluation.bandit_results import BanditResult
from rlroute.evaluation.comparison import format_number, format_price, format_share
from rlroute.evaluation.sweep_report import Spread

if TYPE_CHECKING:
    from rich.table import Table


def format_spread(spread: Spread, digits: int = 3) -> str:
    """Return "mean (smallest to largest)", or the one number there is."""
    mean, smallest, largest = (
        format_number(value, digits) for value in (spread.mean, spread.smallest, spread.largest)
    )
    return mean if smallest == largest else f"{mean} ({smallest} to {largest})"


def describe_bandits(result: BanditResult) -> list[str]:
    """Say in a few sentences what came out."""
    best = result.learners[0]
    reference = result.comparator_names[-1]
    per_query = best.regret[BEST_AVAILABLE].mean / result.queries
    fixed = best.regret[BEST_FIXED].mean
    sentences = [
        f"{best.name} has the least regret: {format_spread(best.regret[BEST_AVAILABLE], 0)} over "
        f"{result.queries:,} queries against the best available candidate of each query, "
        f"{per_query:.3f} a query; mean reward {best.reward.mean:.4f}.",
        f"Against the best fixed candidate of every phase, known in hindsight, it "
        f"{'gains' if fixed < 0 else 'loses'} {abs(fixed):,.0f}; against '{reference}' it "
        f"{'gains' if best.regret[reference].mean < 0 else 'loses'} "
        f"{abs(best.regret[reference].mean):,.0f}.",
    ]
    if len(result.learners) > 1:
        second = result.learners[1]
        apart = second.regret[BEST_AVAILABLE].smallest > best.regret[BEST_AVAILABLE].largest
        sentences.append(
            f"Second is {second.name} with {format_spread(second.regret[BEST_AVAILABLE], 0)}: "
            + ("worse on every seed." if apart else "their seeds overlap.")
        )
    for candidate in best.failures:
        most = max(one.failures[candidate].largest for one in result.learners)
        sentences.append(f"No learner picked {candidate} more than {most:.0f} times after it died.")
    return sentences


def render_bandits(result: BanditResult) -> Table:
    """Return learners and comparators as a rich table of 80 columns."""
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        caption=f"{result.table}: {result.queries:,} queries, {len(result.seeds)} seeds, means; "
        "regret against the best available candidate of each query, and against the best fixed one "
        "of each phase; dead: picks after death; delay: queries until the newcomer has its share; "
        "grey: comparators, which know what no learner can",
        caption_justify="left",
    )
    table.add_column("learner", overflow="fold")
    for header in ("regret", "v. fixed", "reward", "score", "USD/1k", "dead", "delay"):
        table.add_column(header, justify="right", no_wrap=True)
    for row in (*result.learners, *result.comparators):
        dead = [f"{spread.mean:.0f}" for spread in row.failures.values()]
        delay = [format_delay(spread) for spread in row.delays.values()]
        table.add_row(
            row.name,
            f"{row.regret[BEST_AVAILABLE].mean:,.0f}",
            f"{row.regret[BEST_FIXED].mean:,.0f}",
            format_number(row.reward.mean, 4),
            format_share(row.score.mean),
            format_price(row.cost_usd.mean / result.queries),
            ", ".join(dead) or "-",
            ", ".join(delay) or "-",
            style="dim" if row in result.comparators else "",
        )
    return table


def format_delay(spread: Spread | None) -> str:
    """Return a delay in queries."""
    if spread is None:
        return "-"
    return f"{spread.mean:,.0f}" if np.isfinite(spread.mean) else "never"
