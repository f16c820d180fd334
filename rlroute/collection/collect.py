"""`rlroute collect`: asks every candidate every task and writes the answers' grades as a table.

What it is: the run of a recipe (`rlroute.collection.recipe`). Work is cut into parts, one per
candidate and generator. A part is written when it is done, under a name that holds a hash of
everything that decides its content: an interrupted collection goes on where it stopped, and a
changed recipe re-asks only what it changes. Prices are applied last, so they may change without
asking anything again. Failed calls become holes of the table; to ask them again, delete their part.

What it leaves out: live candidates and other tasks (`rlroute.collection.query_run`); what is
written about the table stands in `rlroute.collection.report`.

How to use (extra `local`):
    run_collect(Path("recipes/collect/pocket.yaml"), ["tasks_per_level=2"], Path("tables/small"))
Two processes may share the work: give each its own `only=[CANDIDATE, ...]` and the same output;
the one that finds all parts there writes the table.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlroute.collection.build import Cell, build_table, check_output
from rlroute.collection.recipe import CollectRecipe
from rlroute.collection.report import write_provenance, write_readme
from rlroute.config import load_config
from rlroute.data.reasoning_tasks import grade_answer, make_examples, make_queries
from rlroute.data.splits import assign_splits
from rlroute.data.table import OutcomeTable, check_table, write_table_files
from rlroute.files import atomic_folder, write_atomic
from rlroute.pool.base import Pool
from rlroute.pool.local_candidate import LocalCandidate
from rlroute.pool.open import open_model
from rlroute.pool.tools import ToolCandidate
from rlroute.types import SPLITS, Call, Candidate, Limits, Prices, Query, Reply, RLRouteError

logger = logging.getLogger(__name__)

PART_VERSION = 1  # raise it when the code changes what an answer or its grade is


@dataclass(frozen=True)
class Outcome:
    """What a part keeps of a call: everything but its price. A failed call has a failure only."""

    query_id: str
    score: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float | None = None
    failure: str | None = None


def run_collect(config_path: Path, overrides: Sequence[str], out: Path) -> None:
    """Read a recipe with its overrides and collect the table to `out`.

    Raises:
        RLRouteError: a fault of the recipe, a missing extra or package, or an `out` that holds
            something else.
    """
    kept = [o for o in overrides if o.partition("=")[0] not in ("only", "cache")]
    command = " ".join(["rlroute collect", config_path.as_posix(), "--out DIR", *kept])
    collect(load_config(CollectRecipe, config_path, overrides), out, command)


def collect(recipe: CollectRecipe, out: Path, command: str) -> None:
    """Ask all candidates all tasks and write the table; parts are kept in the folder `out`.parts.

    `command` is what made the table, for its README and its provenance.

    Raises:
        RLRouteError: as `run_collect`.
    """
    check_output(out)
    examples = {
        name: make_examples(name, levels, count=recipe.examples, seed=recipe.seed)
        for name, levels in recipe.generators.items()
    }
    queries = {name: make_generator_queries(recipe, name, examples[name]) for name in examples}
    check_splits(recipe, [query.text for held in queries.values() for query in held])
    parts = out.parent / f"{out.name}.parts"
    ask_missing_parts(recipe, queries, examples, parts)
    missing = [
        part_path(parts, recipe, candidate, generator)
        for candidate in recipe.candidates
        for generator in queries
        if not part_path(parts, recipe, candidate, generator).exists()
    ]
    if missing:
        logger.warning("%d parts are still missing (%s): no table yet", len(missing), missing[0])
        return
    outcomes = {
        candidate: [
            outcome
            for generator in queries
            for outcome in read_part(part_path(parts, recipe, candidate, generator))
        ]
        for candidate in recipe.candidates
    }
    levels = {query.id: query.metadata["level"] for qs in queries.values() for query in qs}
    failures = {
        name: [o.failure for o in held if o.failure is not None] for name, held in outcomes.items()
    }
    table = build_outcome_table(recipe, queries, outcomes)
    check_table(table)
    with atomic_folder(out) as temporary:
        write_table_files(table, temporary)
        write_readme(recipe, command, table, levels, failures, temporary / "README.md")
        write_provenance(recipe, command, table, levels, failures, temporary / "provenance.json")


def make_generator_queries(
    recipe: CollectRecipe, generator: str, examples: Sequence[tuple[str, str]]
) -> list[Query]:
    """Make the tasks of all levels of a generator, none of them twice or among the examples."""
    queries: list[Query] = []
    for level, settings in enumerate(recipe.generators[generator], start=1):
        taken = [query.text for query in queries] + [question for question, _ in examples]
        count = recipe.tasks_per_level
        queries += make_queries(
            generator, level, settings, count=count, seed=recipe.seed, exclude=taken
        )
    return queries


def check_splits(recipe: CollectRecipe, texts: Sequence[str]) -> None:
    """Raise RLRouteError if the tasks are too few to fill every split, before anybody is asked."""
    empty = [split for split in SPLITS if split not in assign_splits(texts, seed=recipe.seed)]
    if empty:
        raise RLRouteError(
            f"{recipe.name}: {len(texts)} tasks leave the split '{empty[0]}' empty; "
            "raise tasks_per_level"
        )


def make_candidate(recipe: CollectRecipe, name: str) -> Candidate:
    """Return a candidate with its prices by the recipe's rule."""
    stated = recipe.candidates[name]
    if stated.usd_per_call is not None:  # a tool: it uses no tokens
        prices = Prices(0.0, 0.0, per_call=stated.usd_per_call)
        return Candidate(name, prices, "tool", stated.description)
    source = recipe.models[str(stated.model)]
    price = recipe.prices.input_usd_per_mtok_per_billion * source.parameters / 1e9
    prices = Prices(float(f"{price:.4g}"), float(f"{price * recipe.prices.output_to_input:.4g}"))
    limits = Limits(output_tokens=source.max_new_tokens)
    return Candidate(name, prices, "model", stated.description, limits)


# --- asking -------------------------------------------------------------------------------------


def ask_missing_parts(
    recipe: CollectRecipe,
    queries: Mapping[str, Sequence[Query]],
    examples: Mapping[str, Sequence[tuple[str, str]]],
    parts: Path,
) -> None:
    """Ask what is not there yet, candidate by candidate, with rate and remaining time shown."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    names = recipe.only or tuple(recipe.candidates)
    work = {
        name: [g for g in queries if not part_path(parts, recipe, name, g).exists()]
        for name in names
    }
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description} {task.completed}/{task.total} calls"),
    )
    rate = TextColumn("{task.fields[rate]:.1f} calls/s, left")
    with Progress(*columns, rate, TimeRemainingColumn(), speed_estimate_period=600) as progress:
        for name in names:
            total = sum(len(queries[generator]) for generator in work[name])
            if total == 0:
                continue
            bar = progress.add_task(name, total=total, rate=0.0)
            pool = open_candidate(recipe, name, examples)
            for generator in work[name]:
                outcomes = ask_queries(pool, name, queries[generator])
                content = json.dumps([vars(outcome) for outcome in outcomes])
                write_atomic(part_path(parts, recipe, name, generator), content)
                progress.update(bar, advance=len(outcomes))
                progress.update(bar, rate=progress.tasks[bar].speed or 0.0)


def open_candidate(
    recipe: CollectRecipe, name: str, examples: Mapping[str, Sequence[tuple[str, str]]]
) -> Pool:
    """Return what answers for a candidate, its model loaded."""
    stated = recipe.candidates[name]
    candidate = make_candidate(recipe, name)
    if stated.tool is not None:
        return ToolCandidate(candidate, stated.tool)
    if stated.model is None or stated.mode is None:
        raise RLRouteError(f"candidate '{name}': needs model and mode, or tool")
    model = open_model(recipe.models[stated.model], stated.model, recipe.cache)
    return LocalCandidate(
        candidate, model, stated.mode, examples, stated.samples, stated.temperature, recipe.seed
    )


def ask_queries(pool: Pool, name: str, queries: Sequence[Query]) -> list[Outcome]:
    """Ask a candidate the queries of one generator and grade the answers."""
    replies = asyncio.run(pool.ask_many([Call(name, query, query.text) for query in queries]))
    return [make_outcome(reply) for reply in replies]


def make_outcome(reply: Reply) -> Outcome:
    """Grade a reply unless its candidate did; a failed one has no score."""
    query = reply.call.query
    if reply.failure is not None or reply.usage is None:
        return Outcome(query.id, failure=str(reply.failure or "no usage"))
    return Outcome(
        query.id,
        grade_answer(query, reply.text) if reply.score is None else reply.score,
        reply.usage.prompt_tokens,
        reply.usage.completion_tokens,
        reply.latency_seconds,
    )


# --- parts and the table ------------------------------------------------------------------------


def part_path(parts: Path, recipe: CollectRecipe, candidate: str, generator: str) -> Path:
    """Return the file of a candidate's outcomes on a generator; its name hashes their causes."""
    stated = recipe.candidates[candidate]
    causes: list[Any] = [PART_VERSION, recipe.seed, recipe.tasks_per_level, recipe.examples]
    causes += [generator, recipe.generators[generator]]
    causes += [stated.model_dump(mode="json", exclude={"description", "usd_per_call"})]
    if stated.model is not None:
        source = recipe.models[stated.model]
        causes += [source.model_dump(mode="json", exclude={"licence"})]
    digest = hashlib.sha256(json.dumps(causes, sort_keys=True).encode()).hexdigest()[:12]
    return parts / candidate / f"{generator}-{digest}.json"


def read_part(path: Path) -> list[Outcome]:
    """Read the outcomes of a part."""
    return [Outcome(**row) for row in json.loads(path.read_text(encoding="utf-8"))]


def build_outcome_table(
    recipe: CollectRecipe,
    queries: Mapping[str, Sequence[Query]],
    outcomes: Mapping[str, Sequence[Outcome]],
) -> OutcomeTable:
    """Price the outcomes and put them into a table; failed calls are holes."""
    candidates = {name: make_candidate(recipe, name) for name in outcomes}
    rows = [query for held in queries.values() for query in held]
    cells = {
        (outcome.query_id, name): Cell(
            outcome.score,
            candidates[name].prices.compute_cost(outcome.prompt_tokens, outcome.completion_tokens),
            outcome.prompt_tokens,
            outcome.completion_tokens,
            float("nan") if outcome.seconds is None else outcome.seconds,
        )
        for name, held in outcomes.items()
        for outcome in held
        if outcome.score is not None
    }
    splits = assign_splits([query.text for query in rows], seed=recipe.seed)
    return build_table(recipe.name, rows, splits.tolist(), list(candidates.values()), cells)
