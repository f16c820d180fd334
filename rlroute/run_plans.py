"""What `rlroute train --dry-run` says: the resolved recipe, and what a run would do.

Nothing is trained or written. A table is read, for its counts and to refuse what the run would
refuse of recipe and table: candidates, actions, users, latencies and logs of single-turn recipes,
events and learners of streams, the length of query sessions. What takes more than reading the table
stays for the run: encoders and what is fitted, other worlds, pools and models, whether the run
folder is free, and whether somebody can answer each arrival of a stream.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

from rich.console import Console

from rlroute.config import dump_config
from rlroute.trainers.bandit_recipe import BanditRecipe, name_learner
from rlroute.trainers.memory_recipe import MemoryRecipe
from rlroute.trainers.recipe import AlgorithmConfig, PriorGRPOConfig, Recipe, TableGRPOConfig
from rlroute.trainers.session_recipe import SessionRecipe
from rlroute.trainers.step_recipe import StepRecipe
from rlroute.trainers.text_recipe import TextRecipe

TrainedRecipe = Recipe | TextRecipe | StepRecipe | SessionRecipe | MemoryRecipe
AnyRecipe = TrainedRecipe | BanditRecipe


def describe_plan(recipe: AnyRecipe, folder: Path) -> None:
    """Print the resolved recipe on the output, and what a run would do on the error stream."""
    if isinstance(recipe, Recipe):
        lines = describe_table_plan(recipe)
    elif isinstance(recipe, TextRecipe):
        lines = describe_text(recipe)
    elif isinstance(recipe, StepRecipe):
        lines = describe_steps(recipe)
    elif isinstance(recipe, MemoryRecipe):
        lines = describe_memory(recipe)
    elif isinstance(recipe, BanditRecipe):
        lines = describe_stream(recipe)
    else:
        lines = describe_sessions(recipe)
    sys.stdout.write(dump_config(recipe))  # plain, where a pipe can take it
    lines += [f"run folder  {folder}", "nothing was trained or written"]
    Console(stderr=True).print("\n".join(lines), highlight=False, soft_wrap=True)


def describe_steps(recipe: StepRecipe) -> list[str]:
    """Say what a run of a step recipe would do, without opening its world.

    Raises:
        RLRouteError: a table of query sessions has a fault, or too few queries for one.
    """
    if recipe.world.kind == "query_session":
        from rlroute.worlds.query_session_tasks import check_sessions

        check_sessions(recipe.world)
    algorithm, start, boundary = recipe.algorithm, recipe.warm_start, recipe.boundary
    caps = ", ".join("none" if cap is None else f"{cap:g}" for cap in recipe.budget.caps)
    return [
        f"world       {recipe.world.kind}",
        f"budget      caps {caps} ({recipe.budget.unit})",
        f"boundaries  {boundary.rollouts} rollouts of each static policy per task, "
        f"sweep of {boundary.sweep} on hard tasks",
        f"warm start  {f'{start.epochs} epochs on the experts' if start else 'none'}",
        f"training    {recipe.updates} updates x {algorithm.episodes:,} episodes "
        f"({algorithm.kind}, groups of {algorithm.group_size})",
        f"validation  {recipe.validation.metric}, every {recipe.validation.every} updates",
    ]


def describe_memory(recipe: MemoryRecipe) -> list[str]:
    """Say what a run on memory tiers would do, without opening data or models."""
    algorithm, modules = recipe.algorithm, recipe.pipeline.modules
    tiers = " ".join(f"{module.name}:{len(module.tiers)}" for module in modules)
    leaves = math.prod(len(module.tiers) for module in modules)
    return [
        f"questions   {recipe.data.kind}, models {recipe.models.kind}",
        f"pipeline    {tiers} ({leaves:,} choices), answered by {recipe.pipeline.answerer.kind}",
        f"outcomes    {recipe.outcomes.kind}",
        f"training    {recipe.updates} updates x {algorithm.episodes:,} episodes "
        f"({algorithm.kind}, groups of {algorithm.group_size})",
        f"validation  {recipe.validation.metric} at {recipe.validation.cost_weights} cost weights, "
        f"every {recipe.validation.every} updates",
    ]


def describe_stream(recipe: BanditRecipe) -> list[str]:
    """Say what online learners would meet.

    Raises:
        RLRouteError: the table has a fault, or an event or learner does not fit it.
    """
    from rlroute.bandits.config import check_learners
    from rlroute.bandits.stream import check_events
    from rlroute.data.irt_table import make_irt_table
    from rlroute.data.table import read_table

    if recipe.irt is not None:
        table = make_irt_table(recipe.irt, recipe.seeds[0]).table
    else:
        assert recipe.table is not None  # the recipe has one of the two
        table = read_table(recipe.table)
    ids = [candidate.id for candidate in table.candidates]
    events = sorted(recipe.events, key=lambda event: event.at)
    check_events(events, ids, recipe.stream.queries)
    check_learners(recipe.learners, ids)
    source = "a made table (irt)" if recipe.table is None else f"table {recipe.table}"
    happens = [f"{one.candidate} {one.kind} at {one.at:,}" for one in recipe.events]
    return [
        f"stream      {recipe.stream.queries:,} queries from {source} (split {recipe.stream.split})"
        f" for each of {len(recipe.seeds)} seeds",
        f"events      {'; '.join(happens) or 'none'}",
        f"learners    {', '.join(name_learner(one) for one in recipe.learners)}",
    ]


def describe_sessions(recipe: SessionRecipe) -> list[str]:
    """Say what a run on logged sessions would do, without reading the log."""
    budgets = ", ".join(f"{budget:g}" for budget in recipe.budgets)
    return [
        f"sessions    {recipe.sessions.kind}, relabelled with budgets {budgets}",
        f"training    {recipe.updates} updates x {recipe.steps} steps of {recipe.batch} turns "
        f"({recipe.algorithm.kind})",
        f"validation  return on val, every {recipe.validation.every} updates",
    ]


def describe_text(recipe: TextRecipe) -> list[str]:
    """Say what a run of a text recipe would do, without loading a model or a question."""
    algorithm, start = recipe.algorithm, recipe.warm_start
    weights = recipe.validation.cost_weights or recipe.episode.cost_weights
    return [
        f"questions   {recipe.questions.kind}",
        f"warm start  {f'{start.episodes:,} {start.planner} episodes' if start else 'none'}",
        f"training    {recipe.updates} updates x {algorithm.episodes:,} episodes "
        f"({algorithm.kind}, groups of {algorithm.group_size})",
        f"validation  {recipe.validation.questions} questions at {len(weights)} cost weights, "
        f"every {recipe.validation.every} updates",
    ]


def describe_extra(algorithm: AlgorithmConfig) -> str:
    """Say what an update asks beside the episodes that its recipe counts."""
    if isinstance(algorithm, PriorGRPOConfig):
        return f" that may grow to {algorithm.max_group_size}"
    if isinstance(algorithm, TableGRPOConfig) and algorithm.forced_arms:
        return f", and every candidate forced {algorithm.forced_arms}x in each"
    return ""


def describe_table_plan(recipe: Recipe) -> list[str]:
    """Say what a run on a table would do.

    Raises:
        RLRouteError: as `rlroute.trainers.run_folder.open_table`.
    """
    from rlroute.data.table import read_table
    from rlroute.data.task_splits import split_table
    from rlroute.trainers.run_folder import build_table
    from rlroute.types import SPLITS

    table = split_table(read_table(recipe.table), recipe.split)
    actions = build_table(recipe, table).table
    algorithm = recipe.algorithm
    counts = ", ".join(f"{name} {int((table.split_Q == name).sum()):,}" for name in SPLITS)
    return [
        f"table       {table.name}: {len(table.queries):,} queries ({counts}), "
        f"{len(table.candidates)} candidates",
        *([f"actions     {len(actions.candidates):,}"] if recipe.actions else []),
        f"training    {recipe.updates} updates x {algorithm.episodes:,} episodes "
        f"({algorithm.kind}, groups of {algorithm.group_size}{describe_extra(algorithm)})",
        f"validation  {recipe.validation.metric} at {recipe.validation.cost_weights} cost weights, "
        f"every {recipe.validation.every} updates",
    ]
