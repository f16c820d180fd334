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
class UnseenReport:
    """All results of some held-out candidates."""

    held: tuple[str, ...]
    results: tuple[UnseenResult, ...]

    @property
    def compared_with(self) -> UnseenResult:
        """The result that the others are compared with."""
        return next(one for one in self.results if one.regret_gap is None)

    @property
    def curve(self) -> list[UnseenResult]:
        """The results with the candidates added, by the number of calls."""
        return [one for one in self.results[1:] if one.calls is not None]


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


def dump_unseen(results: Sequence[UnseenResult]) -> list[dict[str, Any]]:
    """Return the results as plain values for JSON."""
    return [asdict(one) for one in results]
