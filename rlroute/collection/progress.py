"""What a collection shows: calls done, money spent and left, time left; and its forecast.

What it leaves out: files; everything here goes to the terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rlroute.collection.forecast import Forecast
from rlroute.pool.ledger import Ledger


@contextmanager
def show_progress(
    total: int, cap_usd: float | None, ledger: Ledger
) -> Iterator[Callable[[int], None]]:
    """Show a bar while the block runs; it is handed what tells how many more calls are done."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.completed}/{task.total} calls"),
        BarColumn(),
        TextColumn("{task.fields[money]}, left"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, speed_estimate_period=600) as progress:
        bar = progress.add_task("", total=total, money=describe_money(cap_usd, ledger))

        def advance(calls: int) -> None:
            progress.update(bar, advance=calls, money=describe_money(cap_usd, ledger))

        yield advance


def describe_money(cap_usd: float | None, ledger: Ledger) -> str:
    """Say what was spent, and what is left where there is a cap."""
    spent = f"{ledger.spent_usd:.4f} USD spent"
    if cap_usd is None:
        return spent
    left = cap_usd - ledger.spent_usd - ledger.uncertain_usd
    return f"{spent}, {max(0.0, left):.4f} of {cap_usd:g} USD remaining"


def print_forecasts(forecasts: Sequence[Forecast], journal: Path) -> None:
    """Print what every candidate's calls will use and cost, low and high, and the sums."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Forecast (low to high)")
    for heading in ("candidate", "calls", "prompt tokens", "completion tokens", "USD"):
        table.add_column(heading, justify="left" if heading == "candidate" else "right")
    for row in forecasts:
        most = row.completion_tokens[1]
        table.add_row(
            row.candidate,
            f"{row.calls:,}",
            f"{row.prompt_tokens[0]:,} to {row.prompt_tokens[1]:,}",
            f"{row.completion_tokens[0]:,} to {'no limit' if most is None else f'{most:,}'}",
            f"{row.usd[0]:.6f} to {row.usd[1]:.6f}",
        )
    low, high = (sum(row.usd[end] for row in forecasts) for end in (0, 1))
    table.add_row(
        "all", f"{sum(row.calls for row in forecasts):,}", "", "", f"{low:.6f} to {high:.6f}"
    )
    console = Console(width=110)
    console.print(table)
    if journal.exists():
        console.print(f"{journal} holds finished calls, which cost nothing again.", soft_wrap=True)
