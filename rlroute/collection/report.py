"""What is written beside a collected table: README.md for people, provenance.json for programs.

What it is: how the table was made (command, versions, seeds, settings, price rule), what was
measured (scores per generator and level, costs, seconds), what failed, and whose licences apply.

What it leaves out: the collection itself (`rlroute.collection.collect`).
"""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from rlroute.collection.recipe import CollectRecipe
from rlroute.data.table import OutcomeTable
from rlroute.evaluation.table_summary import TableSummary, summarise_table
from rlroute.files import write_atomic

Failures = Mapping[str, Sequence[str]]  # candidate -> what its failed calls failed of

PACKAGES = ("rlroute", "torch", "transformers", "tokenizers", "gguf", "reasoning-gym", "numpy")

COLUMNS = """\
| column | meaning |
| --- | --- |
| query_id | generator, level, number |
| dataset | always `reasoning_gym` |
| task | the generator |
| query | the question as the generator states it |
| model | the candidate, a key into `models.csv` |
| score | the generator's own scorer on the answer, in [0, 1] (some give partial credit) |
| prompt_tokens, completion_tokens | tokens of the candidate's own tokenizer, worked examples and \
all samples included; 0 for tools |
| cost_usd | tokens times the prices in `models.csv`, plus its price per call |
| split | train / val / test, 70 / 10 / 20 by a hash of the query's text |
| latency_seconds | wall time of the batch divided by its queries |
"""


def write_provenance(
    recipe: CollectRecipe,
    command: str,
    table: OutcomeTable,
    levels: Mapping[str, str],
    failures: Failures,
    path: Path,
) -> None:
    """Write how the table was made, and its figures, as JSON."""
    provenance = {
        "name": recipe.name,
        "command": command,
        "seed": recipe.seed,
        "versions": list_versions(recipe),
        "machine": describe_machine(),
        "recipe": recipe.model_dump(mode="json", exclude={"only", "cache"}),
        "queries": len(table.queries),
        "failed_calls": {name: dict(Counter(held)) for name, held in failures.items() if held},
        "summary": asdict(summarise_table(table)),
        "scores": tabulate_scores(table, levels),
    }
    write_atomic(path, json.dumps(provenance, indent=1, sort_keys=True) + "\n")


def list_versions(recipe: CollectRecipe) -> dict[str, str]:
    """Return the versions of Python and of the packages that decide the answers."""
    packages = [p for source in recipe.models.values() for p in source.packages]
    versions = {"python": platform.python_version()}
    for name in (*PACKAGES, *(package.replace("_", "-") for package in packages)):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def describe_machine() -> str:
    """Return the kind of machine that the seconds were measured on."""
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    return f"{platform.system()} {platform.machine()}, CPU only, OMP_NUM_THREADS={threads}"


def tabulate_scores(
    table: OutcomeTable, levels: Mapping[str, str]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return generator -> level -> mean score per candidate and the number of tasks."""
    groups: dict[tuple[str, str], list[int]] = {}
    for row, query in enumerate(table.queries):
        groups.setdefault((query.task, levels[query.id]), []).append(row)
    scores: dict[str, dict[str, dict[str, Any]]] = {}
    for (task, level), rows in sorted(groups.items()):
        cells: dict[str, Any] = {"tasks": len(rows)}
        for k, candidate in enumerate(table.candidates):
            known = table.score_QK[rows, k][table.present_QK[rows, k]]
            cells[candidate.id] = round(float(known.mean()), 3) if len(known) else None
        scores.setdefault(task, {})[level] = cells
    return scores


def write_readme(
    recipe: CollectRecipe,
    command: str,
    table: OutcomeTable,
    levels: Mapping[str, str],
    failures: Failures,
    path: Path,
) -> None:
    """Write the table's README in Markdown."""
    summary = summarise_table(table)
    splits = ", ".join(f"{count} {split}" for split, count in summary.split_counts.items())
    text = f"""# {recipe.name}

{len(table.queries)} procedural tasks of {len(summary.task_counts)} reasoning-gym generators, each
in several difficulties, asked of {len(table.candidates)} candidates: small local language models
in several modes, and program tools. Every number was measured, none is simulated.

**How made.** `{command}`
(settings, seeds and versions: `provenance.json`). Machine: {describe_machine()}. Seconds vary with
the machine; all else is seeded, though another processor may round otherwise and change single
answers. {recipe.note}

**Splits.** {splits}. No text stands in two splits, none is among the worked examples.

## Files and columns
`records.csv.gz`: one row per (query, candidate); a failed call has no row.
{describe_failures(failures)}

{COLUMNS}
`models.csv`: prices in USD per million tokens and per call.

## Candidates
{render_candidates(table, summary)}

{describe_prices(recipe)}

The oracle chooses the best candidate per query with hindsight, the cheapest of equals, also where
all fail: it reaches {summary.oracle_quality:.3f} at {summary.oracle_cost_usd * 1e6:.2f} USD per
million queries. The best single candidate (chosen on train) is {summary.best_single}, with
{summary.best_single_quality:.3f} at {summary.best_single_cost_usd * 1e6:.2f}.
On {summary.share_unsolved:.1%} of the queries every candidate scores 0.

## Mean score by generator and level
{render_scores(table, levels)}

## Settings of the levels
{render_settings(recipe)}

## Licences
- Tasks and scorers: reasoning-gym, Apache-2.0.
{describe_models(recipe)}
- The table itself: Apache-2.0, as rlroute. It carries grades of answers, not the answers.

## Limits
Tiny models on puzzles made by rule: good for learning how routing works and for tests, not for
judging large models. A tool that does not understand a question says so, which scores 0 and is
charged. An answer is the first line without a closing full stop; it is cut after the tokens stated
in `models.csv`.
"""
    write_atomic(path, text)


def describe_models(recipe: CollectRecipe) -> str:
    """Say which local models were asked, how large they are, how they ran and their licences."""
    return "\n".join(
        f"- {name}: {', '.join(source.packages) or source.folder}, "
        f"{source.parameters / 1e6:.1f} million parameters, run as {source.dtype} on a CPU. "
        f"{source.licence}"
        for name, source in recipe.models.items()
    )


def describe_failures(failures: Failures) -> str:
    """Say how many calls failed, and of what."""
    counts = [
        f"{name}: {count} {kind}"
        for name, held in failures.items()
        for kind, count in sorted(Counter(held).items())
    ]
    return f"Failed calls: {'; '.join(counts) or 'none'}."


def describe_prices(recipe: CollectRecipe) -> str:
    """State the price rule."""
    rule = recipe.prices
    return (
        "**Price rule.** A model costs "
        f"{rule.input_usd_per_mtok_per_billion:g} USD per million prompt tokens and billion "
        f"parameters, and {rule.output_to_input:g} times that per completion token; worked "
        "examples are charged in every prompt, and self-consistency pays prompt and answer once "
        "per sample. A tool charges by the call, whether it can answer or not."
    )


def render_candidates(table: OutcomeTable, summary: TableSummary) -> str:
    """Return the candidates with prices, mean score, cost and seconds as a Markdown table."""
    known = {candidate.id: candidate for candidate in table.candidates}
    seconds_K = np.nanmean(table.latency_seconds_QK, axis=0)
    seconds = dict(zip(known, seconds_K.tolist(), strict=True))
    lines = [
        "| candidate | what | USD in / out per million tokens | USD per call | mean score "
        "| USD per million queries | seconds | on the hull | share of the oracle |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in summary.candidates:
        candidate = known[row.id]
        prices = candidate.prices
        lines.append(
            f"| {row.id} | {candidate.description} | {prices.input:g} / {prices.output:g} "
            f"| {prices.per_call:g} | {row.mean_score:.3f} | {row.mean_cost_usd * 1e6:.2f} "
            f"| {seconds[row.id]:.3g} | {'yes' if row.on_hull else ''} | {row.oracle_share:.1%} |"
        )
    return "\n".join(lines)


def render_scores(table: OutcomeTable, levels: Mapping[str, str]) -> str:
    """Return the mean scores per generator and level as a Markdown table."""
    names = [candidate.id for candidate in table.candidates]
    lines = [
        f"| generator | level | tasks | {' | '.join(names)} |",
        f"| {' | '.join(['---'] * (len(names) + 3))} |",
    ]
    for task, by_level in tabulate_scores(table, levels).items():
        for level, cells in by_level.items():
            scores = ("" if cells[name] is None else f"{cells[name]:.2f}" for name in names)
            lines.append(f"| {task} | {level} | {cells['tasks']} | {' | '.join(scores)} |")
    return "\n".join(lines)


def render_settings(recipe: CollectRecipe) -> str:
    """Return the settings of every level as a Markdown list."""
    return "\n".join(
        f"- {name}: " + "; ".join(f"{i}: `{json.dumps(s)}`" for i, s in enumerate(levels, start=1))
        for name, levels in recipe.generators.items()
    )
