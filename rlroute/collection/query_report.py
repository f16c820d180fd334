"""What is written beside a table of `rlroute collect --queries`: README.md, provenance.json, calls.

What it is: how the table was made, what each call gave (`calls.csv.gz`, without texts: an answer
stands there as a fingerprint, so that equal ones can be told, see `rlroute.data.probes`), the
propensities of a sampled design, and for people a README. No key is in any of them: a pool file
holds only the names of the variables that keys stand in.

What it leaves out: the collection (`rlroute.collection.query_run`).
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlroute.collection.grading import fingerprint_answer
from rlroute.collection.journal import Journal
from rlroute.config import redact
from rlroute.data.table import OutcomeTable
from rlroute.evaluation.table_summary import summarise_table
from rlroute.files import compute_sha256, write_atomic

if TYPE_CHECKING:
    from rlroute.collection.query_run import Graded, Plan

CALL_COLUMNS = (
    *("query_id", "model", "sample", "score", "failure", "prompt_tokens", "completion_tokens"),
    *("cached_tokens", "estimated", "attempts", "latency_seconds", "cost_usd", "answer"),
)


def write_side_files(plan: Plan, graded: Sequence[Graded | None], folder: Path) -> None:
    """Write `calls.csv.gz`, and `propensities.csv.gz` for a sampled design."""
    from rlroute.collection.query_run import price_reply

    rows: list[tuple[Any, ...]] = []
    for item in graded:
        if item is None:
            continue
        reply, usage = item.reply, item.reply.usage
        used: tuple[Any, ...] = ("", "", "", "")
        if usage is not None:
            used = usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens
            used = (*used, int(usage.estimated))
        call = reply.call
        seconds = "" if reply.latency_seconds is None else f"{reply.latency_seconds:.3g}"
        score = "" if item.score is None else item.score
        start = (call.query.id, call.candidate_id, call.sample, score, reply.failure or "")
        cost = price_reply(plan.candidates[call.candidate_id].prices, reply)
        if reply.failure is not None:
            cost = reply.cost_usd
        answer = "" if item.score is None else fingerprint_answer(plan.grader.name, reply.text)
        rows.append((*start, *used, reply.attempts, seconds, repr(cost), answer))
    write_csv(folder / "calls.csv.gz", CALL_COLUMNS, sorted(rows, key=itemgetter(0, 1, 2)))
    if plan.stated.per_query is not None:
        pairs = (
            (query.id, name, int(plan.design.asked_QK[row, k]), plan.design.propensity)
            for row, query in enumerate(plan.query_set.queries)
            for k, name in enumerate(plan.candidates)
        )
        columns = ("query_id", "model", "asked", "propensity")
        write_csv(folder / "propensities.csv.gz", columns, sorted(pairs))


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a compressed CSV file; the same rows give the same bytes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_atomic(path, gzip.compress(text.getvalue().encode(), mtime=0))


def write_report(
    plan: Plan,
    journal: Journal,
    table: OutcomeTable,
    graded: Sequence[Graded | None],
    folder: Path,
) -> None:
    """Write `provenance.json` and `README.md`."""
    from rlroute.collection.query_run import count_holes, describe_holes

    stated, summary = plan.stated, summarise_table(table)
    provenance = {
        "name": table.name,
        "collected": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), "rlroute": version("rlroute")},
        "queries_file": {"name": stated.queries.name, "sha256": compute_sha256(stated.queries)},
        "grade": stated.grade,
        "judge": stated.judge,
        "samples": stated.samples,
        "temperature": plan.calls[0].temperature,
        "seed": stated.seed,
        "design": {"per_query": stated.per_query, "propensity": plan.design.propensity},
        "pool": redact(plan.pool_file.model_dump(mode="json")),
        "calls": len(plan.calls),
        "refused_unsent": sum(item is None for item in graded),
        "holes": {f"{name}: {why}": n for (name, why), n in sorted(count_holes(graded).items())},
        "paid_usd": journal.paid_usd,
        "unknown_usd": journal.unknown_usd,
        "lost_in_flight": journal.in_flight,
        "summary": asdict(summary),
    }
    text = json.dumps(provenance, indent=1, sort_keys=True, default=str)
    write_atomic(folder / "provenance.json", text + "\n")
    candidates = "\n".join(
        f"| {row.id} | {row.mean_score:.3f} | {row.mean_cost_usd:.3g} "
        f"| {'yes' if row.on_hull else ''} | {row.oracle_share:.1%} |"
        for row in summary.candidates
    )
    sampled = (
        "Every candidate was asked every query."
        if stated.per_query is None
        else f"{stated.per_query} candidates were drawn for each query "
        f"(`propensities.csv.gz`; each with probability {plan.design.propensity:.3g})."
    )
    readme = f"""# {table.name}

{len(table.queries)} queries of `{stated.queries.name}` asked of {len(table.candidates)} candidates,
graded by `{stated.grade}`. {sampled} Settings: `provenance.json`.

Calls: {len(plan.calls)}; holes: {describe_holes(graded)}. Paid: {journal.paid_usd:.6f} USD.

| candidate | mean score | mean USD per query | on the hull | share of the oracle |
| --- | --- | --- | --- | --- |
{candidates}

`records.csv.gz`: one row per (query, candidate) that was answered and graded, the mean of its
samples; `models.csv`: prices in USD per million tokens; `calls.csv.gz`: one row per call, failed
ones included. The cost of a row is its tokens at these prices, whatever a cache saved.
"""
    write_atomic(folder / "README.md", readme)
