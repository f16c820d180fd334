"""What a run's report tells of latency and users: its data, and its tables for the terminal.

What it leaves out: measuring (`preferences`, `user_estimation`), pictures (`figures_preferences`).

How to use: `for table in render_preference_tables(report): console.print(table)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rlroute.evaluation.comparison import (
    format_interval,
    format_number,
    format_price,
    judge,
)
from rlroute.evaluation.preferences import SettingResult, UserResult
from rlroute.evaluation.results import make_plain
from rlroute.evaluation.user_estimation import RatingResult

if TYPE_CHECKING:
    from rich.table import Table

ROWS_PER_LATENCY_WEIGHT = 4  # of the terminal's table; the report's has all


@dataclass(frozen=True)
class PreferenceReport:
    """The sweep over cost weights at each latency weight, the users, and ratings of new ones.

    `latency_derived` says that some latencies are derived from tokens as the recipe declared.
    """

    latency: tuple[SettingResult, ...] = ()
    latency_derived: bool = False
    users: tuple[UserResult, ...] = ()
    ratings: tuple[RatingResult, ...] = ()

    @property
    def latency_source(self) -> str:
        """Where latencies come from, in words."""
        if self.latency_derived:
            return "latency derived from tokens, as declared, where it was not measured"
        return "measured latency"

    def group_by_latency(self) -> dict[float, list[SettingResult]]:
        """Return the sweep by latency weight."""
        groups: dict[float, list[SettingResult]] = {}
        for one in self.latency:
            groups.setdefault(one.latency_weight, []).append(one)
        return groups

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that JSON can hold."""
        plain: dict[str, Any] = make_plain(asdict(self))
        return plain


def render_preference_tables(report: PreferenceReport) -> list[Table]:
    """Return the tables for the terminal: those that the report has something for."""
    found = []
    if report.latency:
        found.append(render_latency(report))
    if report.users:
        found.append(render_users(report))
    if report.ratings:
        found.append(render_ratings(report))
    return found


def render_latency(report: PreferenceReport) -> Table:
    """Return some settings of the sweep."""
    table = make_table(
        f"cost and latency weights, test, {report.latency_source}",
        ("latency", "cost weight", "quality", "USD/1k", "seconds", "over single", ""),
    )
    for results in report.group_by_latency().values():
        place = np.linspace(0, len(results) - 1, ROWS_PER_LATENCY_WEIGHT).round().astype(int)
        for one in [results[k] for k in dict.fromkeys(place.tolist())]:
            seconds = one.latency_seconds
            table.add_row(
                f"{one.latency_weight:.3g}",
                f"{one.cost_weight:.3g}",
                format_number(one.quality.value),
                format_price(one.cost_usd.value),
                "" if seconds is None else f"{seconds.value:.3g}",
                format_number(one.lead.value, sign=True),
                judge(one.lead),
            )
    return table


def render_users(report: PreferenceReport) -> Table:
    """Return what every user gets."""
    table = make_table(
        "users, test, 95% intervals",
        ("user", "weights", "utility", "regret", "over single", "95%"),
    )
    for one in report.users:
        result = one.result
        table.add_row(
            f"{one.name} (new)" if one.held_out else one.name,
            f"{result.cost_weight:.3g}, {result.latency_weight:.3g}",
            format_number(result.utility.value),
            format_number(result.regret.value),
            format_number(result.lead.value, sign=True),
            format_interval(result.lead, sign=True),
        )
    return table


def render_ratings(report: PreferenceReport) -> Table:
    """Return what ratings of new users are worth."""
    table = make_table(
        "new users, weights estimated from choices between two answers",
        ("user", "choices", "utility lost", "range of 95%", "mean estimate"),
    )
    for one in report.ratings:
        table.add_row(
            one.user,
            str(one.ratings),
            format_number(one.lost.value, 4),
            format_interval(one.lost, 4),
            f"{one.cost_weight:.3g}, {one.latency_weight:.3g}",
        )
    return table


def make_table(title: str, columns: Sequence[str]) -> Table:
    """Return an empty table whose first column is text."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, title=title)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left")
    return table
