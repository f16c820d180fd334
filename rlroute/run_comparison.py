"""What `rlroute compare RUN RUN` does: two finished single-turn runs, measured side by side.

What it is: both runs are read, the tables that their recipes start from compared by digest, and the
policies that validation chose meet the same test queries, each with its own candidates. Console
table, compare.json, compare.png and compare.html. Two runs of online learners go on to
`rlroute.stream_runs`.

What it leaves out: runs of other kinds, and numbers (`rlroute.evaluation.run_difference`).

How to use: `compare_runs(Path("runs/a"), Path("runs/b"), Setting(), out=None)`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rlroute.config import load_config, read_yaml_mapping
from rlroute.trainers.bandit_recipe import BanditRecipe
from rlroute.trainers.recipe import Recipe
from rlroute.types import RLRouteError

if TYPE_CHECKING:
    from rlroute.evaluation.contenders import Contender, Setting
    from rlroute.trainers.run_folder import Run

BESIDE = ("step_budget", "memory_tiers")  # environments of `rlroute evaluate --beside`


def run_compare(
    first: Path,
    second: Path,
    *,
    at_weight: float | None,
    at_budget: float | None,
    out: Path | None,
) -> None:
    """Compare two runs as the command line says; `at_budget` is in USD per 1,000 queries.

    Raises:
        RLRouteError: see `compare_runs`, or both a weight and a budget, or one of them for runs of
            online learners.
    """
    from rlroute.evaluation.contenders import Setting
    from rlroute.runs import find_run_schema

    if find_run_schema(first) is BanditRecipe and find_run_schema(second) is BanditRecipe:
        if at_weight is not None or at_budget is not None:
            raise RLRouteError(
                "compare: --at-weight and --at-budget are for single_turn runs; a stream has its "
                "own cost weights"
            )
        compare_stream_runs(first, second, out=out)
        return

    if at_weight is not None and at_budget is not None:
        raise RLRouteError("compare: give either --at-weight or --at-budget, not both")
    if at_budget is not None and not 0 < at_budget < float("inf"):
        raise RLRouteError(f"compare: --at-budget must be finite and above 0, got {at_budget}")
    budget_usd = None if at_budget is None else at_budget / 1000
    compare_runs(first, second, Setting(at_weight, budget_usd), out=out)


def compare_stream_runs(first: Path, second: Path, *, out: Path | None) -> None:
    """Compare two runs of online learners, by default in runs/compare-A-B."""
    from rlroute.runs import require_training_libraries

    require_training_libraries()
    from rlroute.stream_runs import compare_streams

    names = name_runs(first, second)
    compare_streams(first, second, names=names, out=out or name_folder(names))


def name_folder(names: tuple[str, str]) -> Path:
    """Return where a comparison of two runs goes."""
    return Path("runs") / f"compare-{'-'.join(names).replace('/', '_')}"


def compare_runs(first: Path, second: Path, setting: Setting, *, out: Path | None) -> None:
    """Compare two runs and write the comparison to `out`, by default runs/compare-A-B.

    Raises:
        RLRouteError: one is no finished single-turn run, they are of different tables or splits,
            or the setting is out of their range.
    """
    from rich.console import Console

    from rlroute.evaluation.run_difference import compare_contenders
    from rlroute.evaluation.run_difference_report import (
        PAGE_FILE,
        describe_difference,
        render_difference,
        write_difference,
    )
    from rlroute.runs import require_training_libraries

    require_training_libraries()
    console = Console()
    with Console(stderr=True).status("reading runs and resampling"):
        runs = read_runs(first, second)
        names = name_runs(first, second)
        recipe = runs[0].recipe
        found = compare_contenders(
            make_contender(runs[0], names[0]),
            make_contender(runs[1], names[1]),
            setting,
            bootstrap=recipe.evaluation.bootstrap,
            seed=recipe.seed,
        )
        folder = out or name_folder(names)
        queries = runs[0].prepared.splits["test"].table.queries
        write_difference(folder, found, {query.id: query.text for query in queries})
    console.print(render_difference(found))
    for sentence in describe_difference(found):
        console.print(sentence, highlight=False)
    console.print(f"comparison: {folder / PAGE_FILE}", highlight=False, soft_wrap=True)


def read_runs(first: Path, second: Path) -> tuple[Run, Run]:
    """Read two single-turn runs on one table.

    Raises:
        RLRouteError: a run of another kind or none at all, or tables that differ.
    """
    from rlroute.runs import find_recipe, find_run_schema
    from rlroute.trainers.run_folder import RUN_FILE, read_json, read_run

    for folder in (first, second):
        if find_run_schema(folder) is not Recipe:
            kind = read_yaml_mapping(find_recipe(folder))["environment"]
            raise RLRouteError(
                f"{folder}: a run of environment {kind}; compare takes two single_turn or two "
                f"bandit_stream runs{describe_way_out(kind)}"
            )
    facts = [read_json(folder / RUN_FILE) for folder in (first, second)]
    if facts[0].get("table_digest") != facts[1].get("table_digest"):
        check_same_base(first, second)
    return read_run(first), read_run(second)


def describe_way_out(environment: str) -> str:
    """Say what shows two runs of an environment side by side that compare does not take."""
    if environment in BESIDE:
        return f" (rlroute evaluate RUN --beside RUN shows two {environment} runs side by side)"
    return " (rlroute evaluate RUN holds each against the same baselines)"


def check_same_base(first: Path, second: Path) -> None:
    """Check that two runs start from one table with the same splits and all its outcomes.

    What recipes make of it may differ: candidates held out or added, latency filled in.

    Raises:
        RLRouteError: they do not, or one learns from a log, which knows other outcomes.
    """
    from rlroute.data.prepare import compute_table_digest
    from rlroute.data.table import read_table
    from rlroute.data.task_splits import split_table
    from rlroute.trainers.run_folder import RECIPE_FILE

    recipes = [load_config(Recipe, folder / RECIPE_FILE) for folder in (first, second)]
    tables = [read_table(recipe.table) for recipe in recipes]
    digests = {compute_table_digest(table) for table in tables}
    if len(digests) > 1:
        raise RLRouteError(
            f"{first} and {second} were trained on different tables ({tables[0].name} and "
            f"{tables[1].name}; the same name may hold other outcomes): nothing to pair"
        )
    cut = [split_table(*pair) for pair in zip(tables, [one.split for one in recipes], strict=True)]
    if len({compute_table_digest(table) for table in cut}) > 1:
        raise RLRouteError(
            f"{first} and {second} cut table {tables[0].name} into other splits (split in their "
            "recipes): only runs on the same split can be compared"
        )
    if any(recipe.logs is not None for recipe in recipes):
        raise RLRouteError(
            f"{first} and {second} know other outcomes of table {tables[0].name} (logs in their "
            "recipes): nothing to pair"
        )


def name_runs(first: Path, second: Path) -> tuple[str, str]:
    """Return the names of two runs: their folders', with the parent's where these are the same."""
    names = first.resolve().parts, second.resolve().parts
    for depth in range(1, max(map(len, names)) + 1):
        one, other = ("/".join(parts[-depth:]).lstrip("/") for parts in names)
        if one != other:
            return one, other
    raise RLRouteError(f"compare: {first} and {second} are the same run")


def make_contender(run: Run, name: str) -> Contender:
    """Return a run's best policy with its splits and the cost weights of its evaluation.

    One that weighs latency is asked at its least weight of it, as `rlroute evaluate` asks it.
    """
    from rlroute.data.users import Preference
    from rlroute.evaluation.contenders import Contender
    from rlroute.policies.decision import GreedyPolicy
    from rlroute.trainers.decision import make_cost_weights
    from rlroute.trainers.run_folder import load_best

    scorer, _ = load_best(run)
    weights = make_cost_weights(run.recipe.cost_weight, run.recipe.evaluation.cost_weights)
    least = Preference(run.recipe.latency_weight.min)
    policy = GreedyPolicy(scorer, name=name, preference=least)
    return Contender(
        name, policy, run.prepared.splits, weights, notes=list_wishes(name, run.recipe)
    )


def list_wishes(name: str, recipe: Recipe) -> tuple[str, ...]:
    """Say of what a policy can be told beside the cost weight how it is told here."""
    notes = []
    if recipe.weighs_latency:
        weight = recipe.latency_weight
        notes.append(
            f"{name} weighs latency too (weights up to {weight.max:g}): it is asked at latency "
            f"weight {weight.min:g}, its least, and no number here holds latency."
        )
    if recipe.users:
        notes.append(f"{name} knows users: it is asked for none of them.")
    return tuple(notes)
