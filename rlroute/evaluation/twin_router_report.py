"""The scores of TwinRouterBench's static track on the console: `rlroute score-twin-router`.

It leaves out the scoring itself (`rlroute.evaluation.twin_router_score`).
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from rlroute.data.twin_router_cost import ApproximateTokens, TokenizerFiles, WordTokens
from rlroute.evaluation.twin_router_score import TwinRouterScore, score_file
from rlroute.types import RLRouteError

COLUMNS = ("rows", "RowPass", "RowExact", "TrajPass", "CostSave", "Combined")


def run_score(bank: Path, predictions: Path, tokens: str) -> TwinRouterScore:
    """Score a file of predictions, print the table, and return the scores.

    `tokens` is "approximate", "words", or a folder that holds low.json, mid.json, mid_high.json and
    high.json, a tokenizer each.

    Raises:
        RLRouteError: a file is at fault, or there are no such tokens.
    """
    score = score_file(bank, predictions, find_tokens(tokens))
    console = Console()
    console.print(render_score(score))
    console.print(
        f"{score.errors} of {score.rows} rows without a prediction, {score.passed_trajectories} of "
        f"{score.trajectories} trajectories pass; accounting v1 {show(score.accounting.overall)}, "
        f"section 11 {show(score.section_11)}; tokens: {tokens}",
        highlight=False,
    )
    return score


def find_tokens(name: str) -> ApproximateTokens | WordTokens | TokenizerFiles:
    """Return how tokens are counted; see `run_score`."""
    if name == "approximate":
        return ApproximateTokens()
    if name == "words":
        return WordTokens()
    folder = Path(name)
    files = {tier: folder / f"{tier}.json" for tier in ("low", "mid", "mid_high", "high")}
    missing = [path for path in files.values() if not path.is_file()]
    if missing:
        raise RLRouteError(
            f"--tokens '{name}': allowed are approximate, words, or a folder of tokenizers "
            f"({missing[0].name} is missing there)"
        )
    return TokenizerFiles(kind="tokenizers", **files)


def render_score(score: TwinRouterScore) -> Table:
    """Return the scores in percent, workload by workload, and of the whole bank."""
    table = Table(title="TwinRouterBench, static track (percent)")
    table.add_column("workload")
    for name in COLUMNS:
        table.add_column(name, justify="right")
    for name, part in score.workloads.items():
        table.add_row(
            *(name, str(part.rows), show(part.row_pass), show(part.row_exact)),
            *(show(part.traj_pass), show(part.cost_save), ""),
        )
    table.add_section()
    table.add_row(
        *("all", str(score.rows), show(score.row_pass), show(score.row_exact)),
        *(show(score.traj_pass), show(score.cost_save), show(score.combined)),
    )
    return table


def show(value: float | None) -> str:
    """Return a percentage with two digits; a dash where it is undefined."""
    return "-" if value is None else f"{value:.2f}"
