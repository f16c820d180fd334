"""How a policy does with candidates that it was never trained with: the nouns and their table.

What it leaves out: measuring (`rlroute.unseen_candidates`) and the picture (`figures_unseen`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from rlroute.evaluation.comparison import format_estimate
from rlroute.evaluation.intervals import Estimate


@dataclass(frozen=True)
class UnseenResult:
    """How a policy does on test with the new candidates; costs in USD.

    `calls` is how many calls each new candidate's profile is from, None where the policy was
    trained with it. `share` is how often one of them is picked, over all cost weights.
    `regret_gap` is the regret minus that of the result which the others are compared with, paired
    over the test queries; None for that one.
    """

    name: str
    calls: int | None
    calls_cost_usd: float
    aiq: float
    regret: float
    quality: float
    share: float
    regret_gap: Estimate | None


@dataclass(frozen=True)
class UnseenUserResult:
    """What a policy is worth to a user on test, after so many calls to the new candidates (`name`).

    `regret` is utility lost against the user's own oracle, who has the new ones; `gain` utility won
    over doing without them, paired over the test queries (None for doing without). `share` is how
    often one of them is picked.
    """

    user: str
    name: str
    utility: float
    regret: float
    quality: float
    share: float
    gain: Estimate | None


@dataclass(frozen=True)
class UnseenReport:
    """All results of some held-out candidates; `users` of a run with users, by calls."""

    held: tuple[str, ...]
    results: tuple[UnseenResult, ...]
    users: tuple[UnseenUserResult, ...] = ()

    @property
    def compared_with(self) -> UnseenResult:
        """The result that the others are compared with."""
        return next(one for one in self.results if one.regret_gap is None)

    @property
    def curve(self) -> list[UnseenResult]:
        """The results with the candidates added, by the number of calls."""
        return [one for one in self.results[1:] if one.calls is not None]

    @property
    def by_user(self) -> list[UnseenUserResult]:
        """The results for users, user by user."""
        names = list(dict.fromkeys(one.user for one in self.users))
        return sorted(self.users, key=lambda one: names.index(one.user))


def render_unseen(report: UnseenReport) -> Table:
    """Return the results as a table for the console; quality at the least weight, USD of calls."""
    table = Table(
        title=f"never trained on: {', '.join(report.held)}",
        caption=f"difference: regret minus that of {report.compared_with.name}",
    )
    table.add_column("policy")
    for column in ("AIQ", "regret", "difference", "quality", "picked", "USD"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in report.results:
        gap = one.regret_gap
        table.add_row(
            one.name,
            f"{one.aiq:.4f}",
            f"{one.regret:.4f}",
            "-" if gap is None else format_estimate(gap, 4, sign=True).replace(" ", "\n", 1),
            f"{one.quality:.4f}",
            f"{one.share:.1%}",
            f"{one.calls_cost_usd:.4f}" if one.calls else "-",
        )
    return table


def render_unseen_users(report: UnseenReport) -> Table:
    """Return what every user has of the new candidates as a table for the console."""
    table = Table(
        title=f"users, and candidates never trained on: {', '.join(report.held)}",
        caption="gain: utility won over doing without them",
    )
    table.add_column("user", no_wrap=True)
    table.add_column("policy")
    for column in ("utility", "regret", "gain", "picked"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in report.by_user:
        gain = one.gain
        table.add_row(
            one.user,
            one.name,
            f"{one.utility:.4f}",
            f"{one.regret:.4f}",
            "-" if gain is None else format_estimate(gain, 4, sign=True).replace(" ", "\n", 1),
            f"{one.share:.1%}",
        )
    return table


def dump_unseen(results: Sequence[UnseenResult | UnseenUserResult]) -> list[dict[str, Any]]:
    """Return the results as plain values for JSON."""
    return [asdict(one) for one in results]
