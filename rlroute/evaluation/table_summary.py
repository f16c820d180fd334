"""What a table has to offer a router: completeness, headroom, ties, hull, shares.

What it is: the figures to read before training. Without headroom (the oracle above the best single
candidate) or with one candidate on the hull, no router can be of use. Points of reference and the
hull are RouterBench's; the oracle breaks ties to the cheapest, also where every candidate fails.

What it leaves out: whether the headroom can be learnt, which takes baselines on held-out queries.

How to run: `rlroute validate TABLE`, or `summarise_table(read_table("pocket"))`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rlroute.data.table import OutcomeTable, read_table
from rlroute.evaluation.frontier import compute_hull
from rlroute.types import SPLITS, IntArray, RLRouteError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

TASKS_SHOWN = 12
QUERIES_PER_COST = 1000

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class CandidateSummary:
    """One candidate over the queries that it has an outcome for; cost in USD per query."""

    id: str
    coverage: float
    mean_score: float
    mean_cost_usd: float
    on_hull: bool
    is_cheapest: bool
    is_best_single: bool
    oracle_share: float


@dataclass(frozen=True)
class TableSummary:
    """The figures of a table over all its queries; qualities in [0, 1], costs in USD per query.

    `best_single` is the candidate with the best mean score on train (on all queries where the table
    has no train split), ties to the cheapest. `headroom` is the oracle's quality minus that of the
    best single candidate, over the queries that this candidate has an outcome for.
    `share_alike` is the share of queries on which all candidates score alike, `share_tied` the
    share with several best candidates, `share_unsolved` the share where the best score is 0.
    """

    name: str
    completeness: float
    split_counts: dict[str, int]
    task_counts: dict[str, int]
    candidates: tuple[CandidateSummary, ...]
    best_single: str
    best_single_quality: float
    best_single_cost_usd: float
    random_quality: float
    random_cost_usd: float
    oracle_quality: float
    oracle_cost_usd: float
    headroom: float
    share_alike: float
    share_tied: float
    share_unsolved: float


def pick_oracle(table: OutcomeTable) -> IntArray:
    """Return per query the candidate [Q] with the best score, ties to the cheapest, then the first.

    Where every candidate fails this is the cheapest. Holes are never picked.
    """
    score_QK = np.where(table.present_QK, table.score_QK, -np.inf)
    best_QK = score_QK == score_QK.max(axis=1, keepdims=True)
    pick_Q: IntArray = np.where(best_QK, table.cost_usd_QK, np.inf).argmin(axis=1)
    return pick_Q


def pick_best_single(table: OutcomeTable) -> int:
    """Return the candidate with the best mean score on train, ties to the cheapest.

    A candidate without an outcome on train is not picked. Without a train split, all queries count.

    Raises:
        RLRouteError: no candidate has an outcome there.
    """
    train_Q = table.split_Q == "train"
    rows = table.select_queries(train_Q) if train_Q.any() else table
    if not rows.present_QK.any():
        raise RLRouteError(f"table '{table.name}': its train split holds no outcome")
    score_K, cost_K = average_present(rows, rows.score_QK), average_present(rows, rows.cost_usd_QK)
    order_K = np.lexsort((cost_K, -score_K))  # NaN sorts last
    return int(order_K[0])


def average_present(table: OutcomeTable, value_QK: npt.NDArray[np.floating]) -> Float64Array:
    """Return the mean [K] of the values of each candidate where present, NaN where it has none."""
    count_K = table.present_QK.sum(axis=0)
    total_K = np.where(table.present_QK, value_QK, 0).sum(axis=0, dtype=np.float64)
    mean_K = np.full(len(count_K), np.nan)
    np.divide(total_K, count_K, out=mean_K, where=count_K > 0)
    return mean_K


def average_random(table: OutcomeTable, value_QK: npt.NDArray[np.floating]) -> float:
    """Return the mean over queries of the mean over the candidates that are present."""
    total_Q = np.where(table.present_QK, value_QK, 0).sum(axis=1, dtype=np.float64)
    return float((total_Q / table.present_QK.sum(axis=1)).mean())


def summarise_table(table: OutcomeTable) -> TableSummary:
    """Return the figures of a table over all its queries (see `TableSummary`)."""
    row_Q = np.arange(len(table.queries))
    pick_Q = pick_oracle(table)
    oracle_score_Q = table.score_QK[row_Q, pick_Q].astype(np.float64)
    best = pick_best_single(table)
    score_K = average_present(table, table.score_QK)
    cost_K = average_present(table, table.cost_usd_QK)
    held_Q = table.present_QK[:, best]
    worst_Q = np.where(table.present_QK, table.score_QK, np.inf).min(axis=1)
    tied_Q = (table.score_QK == oracle_score_Q[:, None]).sum(axis=1) > 1
    split_counts = Counter(table.split_Q.tolist())
    return TableSummary(
        name=table.name,
        completeness=float(table.present_QK.mean()),
        split_counts={split: split_counts[split] for split in SPLITS},
        task_counts=dict(Counter(query.task for query in table.queries).most_common()),
        candidates=summarise_candidates(table, score_K, cost_K, best, pick_Q),
        best_single=table.candidates[best].id,
        best_single_quality=float(score_K[best]),
        best_single_cost_usd=float(cost_K[best]),
        random_quality=average_random(table, table.score_QK),
        random_cost_usd=average_random(table, table.cost_usd_QK),
        oracle_quality=float(oracle_score_Q.mean()),
        oracle_cost_usd=float(table.cost_usd_QK[row_Q, pick_Q].mean(dtype=np.float64)),
        headroom=float(oracle_score_Q[held_Q].mean() - score_K[best]),
        share_alike=float((worst_Q == oracle_score_Q).mean()),
        share_tied=float(tied_Q.mean()),
        share_unsolved=float((oracle_score_Q == 0).mean()),
    )


def summarise_candidates(
    table: OutcomeTable, score_K: Float64Array, cost_K: Float64Array, best: int, pick_Q: IntArray
) -> tuple[CandidateSummary, ...]:
    """Return the figures of each candidate, the cheapest first; one without outcome is left out."""
    known_K = np.flatnonzero(table.present_QK.any(axis=0))
    hull_cost_H, hull_score_H = compute_hull(cost_K[known_K], score_K[known_K])
    hull = set(zip(hull_cost_H.tolist(), hull_score_H.tolist(), strict=True))
    order_K = known_K[np.lexsort((-score_K[known_K], cost_K[known_K]))]
    coverage_K = table.present_QK.mean(axis=0)
    share_K = np.bincount(pick_Q, minlength=len(score_K)) / len(pick_Q)
    return tuple(
        CandidateSummary(
            id=table.candidates[k].id,
            coverage=float(coverage_K[k]),
            mean_score=float(score_K[k]),
            mean_cost_usd=float(cost_K[k]),
            on_hull=(float(cost_K[k]), float(score_K[k])) in hull,
            is_cheapest=bool(k == order_K[0]),
            is_best_single=bool(k == best),
            oracle_share=float(share_K[k]),
        )
        for k in order_K
    )


def run_validate(source: str) -> None:
    """Read and check a table, and print its summary.

    Raises:
        RLRouteError: the first fault of the table, with file and row.
    """
    from rich.console import Console

    Console().print(render_summary(summarise_table(read_table(source))))


def render_summary(summary: TableSummary) -> RenderableType:
    """Return a summary for the terminal; costs are in USD per 1,000 queries."""
    from rich.console import Group

    return Group(
        render_facts(summary),
        render_points(summary),
        render_candidates(summary),
        render_tasks(summary),
    )


def format_cost(cost_usd: float) -> str:
    """Return USD per query as USD per 1,000 queries."""
    return f"{cost_usd * QUERIES_PER_COST:.4g}"


def make_grid(title: str, *, show_header: bool = True) -> Table:
    """Return an empty table in the style of this report."""
    from rich import box
    from rich.table import Table

    return Table(
        title=title, title_justify="left", box=box.SIMPLE, show_header=show_header, pad_edge=False
    )


def render_facts(summary: TableSummary) -> Table:
    """Return size, completeness, ties and headroom as a two-column table."""
    on_hull = sum(candidate.on_hull for candidate in summary.candidates)
    splits = ", ".join(f"{split} {count:,}" for split, count in summary.split_counts.items())
    facts = make_grid(f"table {summary.name}", show_header=False)
    for name, value in (
        ("queries", f"{sum(summary.split_counts.values()):,} ({splits})"),
        ("candidates", f"{len(summary.candidates)}, {on_hull} on the hull"),
        ("outcomes present", f"{summary.completeness:.1%}"),
        ("headroom (oracle - best single)", f"{summary.headroom:.4f}"),
        ("queries where all score alike", f"{summary.share_alike:.1%}"),
        ("queries with several best", f"{summary.share_tied:.1%}"),
        ("queries that none solves", f"{summary.share_unsolved:.1%}"),
    ):
        facts.add_row(name, value)
    return facts


def render_points(summary: TableSummary) -> Table:
    """Return the points of reference as a table."""
    points = make_grid("points of reference (cost in USD per 1,000 queries)")
    points.add_column("policy")
    points.add_column("quality", justify="right")
    points.add_column("USD / 1k", justify="right")
    best = f"best single on train ({summary.best_single})"
    for name, quality, cost_usd in (
        ("oracle (ties to the cheapest)", summary.oracle_quality, summary.oracle_cost_usd),
        (best, summary.best_single_quality, summary.best_single_cost_usd),
        ("random", summary.random_quality, summary.random_cost_usd),
    ):
        points.add_row(name, f"{quality:.4f}", format_cost(cost_usd))
    return points


def render_candidates(summary: TableSummary) -> Table:
    """Return the candidates as a table, the cheapest first; `oracle` is the share it picks."""
    table = make_grid("candidates")
    table.add_column("candidate", overflow="fold")
    has_holes = summary.completeness < 1
    for column in ("score", "USD / 1k", "oracle", *(["present"] if has_holes else [])):
        table.add_column(column, justify="right")
    table.add_column("")
    for candidate in summary.candidates:
        marks = {
            "hull": candidate.on_hull,
            "cheapest": candidate.is_cheapest,
            "best": candidate.is_best_single,
        }
        table.add_row(
            candidate.id,
            f"{candidate.mean_score:.4f}",
            format_cost(candidate.mean_cost_usd),
            f"{candidate.oracle_share:.1%}",
            *([f"{candidate.coverage:.1%}"] if has_holes else []),
            ", ".join(name for name, holds in marks.items() if holds),
        )
    return table


def render_tasks(summary: TableSummary) -> Table:
    """Return the largest tasks with their number of queries as a table."""
    table = make_grid(f"tasks: {len(summary.task_counts)}")
    table.add_column("task", overflow="fold")
    table.add_column("queries", justify="right")
    tasks = list(summary.task_counts.items())
    for name, count in tasks[:TASKS_SHOWN]:
        table.add_row(name or "(none)", f"{count:,}")
    if len(tasks) > TASKS_SHOWN:
        rest = sum(count for _, count in tasks[TASKS_SHOWN:])
        table.add_row(f"{len(tasks) - TASKS_SHOWN} more", f"{rest:,}")
    return table
