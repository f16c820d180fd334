"""The command line: `rlroute train`, evaluate, export, validate, import, collect, check-env, ...

Every command imports what it needs when it runs, so `rlroute --help` is quick. A fault that the
user can mend is one line on the error stream and exit code 2, without a traceback.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from rlroute.types import RLRouteError

app = typer.Typer(
    name="rlroute",
    help="Train, prove and export routing policies by reinforcement learning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change, e.g. cost_weight.max=2"),
]


@app.command()
def train(
    recipe: Annotated[str | None, typer.Argument(help="The recipe, a YAML file.")] = None,
    overrides: Overrides = None,
    run_folder: Annotated[
        Path | None,
        typer.Option(help="Its folder; default runs/<table>-<algorithm>-s<seed>."),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a run that lies there.")] = False,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Print recipe and plan; train nothing.")] = False,
) -> None:
    """Train a router on an outcome table, or a language model that routes as it writes."""
    from rlroute.runs import run_training

    settings = list(overrides or [])
    if resume is not None and recipe is not None:  # then the first argument is a setting too
        settings, recipe = [recipe, *settings], None
    run_training(
        Path(recipe) if recipe else None,
        settings,
        run_folder=run_folder,
        overwrite=overwrite,
        resume=resume,
        dry_run=dry_run,
    )


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    beside: Annotated[
        list[Path] | None,
        typer.Option(help="Another run shown beside: same world, or trained with all candidates."),
    ] = None,
) -> None:
    """Compare a run's policy with the baselines on the test split; write report.html."""
    from rlroute.runs import evaluate_run

    evaluate_run(run, beside or [])


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="RUN", help="A run: single-turn or stream.")],
    second: Annotated[Path, typer.Argument(metavar="RUN", help="Another on the same table.")],
    at_weight: Annotated[
        float | None, typer.Option(help="Cost weight to compare query by query at.")
    ] = None,
    at_budget: Annotated[
        float | None,
        typer.Option(help="USD per 1,000 queries; each run's weight is chosen on validation."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the comparison; default runs/compare-A-B.")
    ] = None,
) -> None:
    """Compare two runs on the same queries with paired tests; write compare.html."""
    from rlroute.run_comparison import run_compare

    run_compare(first, second, at_weight=at_weight, at_budget=at_budget, out=out)


@app.command()
def sweep(
    recipe: Annotated[Path, typer.Argument(help="A recipe, YAML: single-turn or stream.")],
    overrides: Overrides = None,
    seeds: Annotated[str, typer.Option(help="Seeds of every setting, e.g. 0,1,2.")] = "0,1,2",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=V1,V2", help="Values to try; several make a grid."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time, one core each; default all cores.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of runs and report; default runs/sweep-RECIPE.")
    ] = None,
) -> None:
    """Train a recipe over seeds and settings in parallel processes; write one merged report.

    Give the same command again to go on after an interruption: finished runs are kept.
    """
    from rlroute.sweep import run_sweep

    if not run_sweep(recipe, overrides or [], seeds, set_ or [], jobs=jobs, out=out):
        raise typer.Exit(1)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    to: Annotated[Path, typer.Option(help="The folder that the router goes to.")],
    add: Annotated[
        list[Path] | None,
        typer.Option(help="A table with results of new models, added by profile (single_turn)."),
    ] = None,
) -> None:
    """Write a run's router as a folder that Router.load (or TextRouter.load) reads."""
    from rlroute.runs import export_run

    export_run(run, to, add or [])


@app.command()
def profile(
    candidate: Annotated[str, typer.Argument(help="The id of the new model.")],
    out: Annotated[Path, typer.Option(help="The folder that its outcomes go to.")],
    table: Annotated[
        str | None, typer.Option(help="A table that holds its outcomes, in place of live calls.")
    ] = None,
    queries: Annotated[
        Path | None, typer.Option(help="A JSONL file of id, text, references, task, ...")
    ] = None,
    pool: Annotated[Path | None, typer.Option(help="pool.yaml with the new model.")] = None,
    grade: Annotated[str | None, typer.Option(help="As of rlroute collect.")] = None,
    judge: Annotated[str | None, typer.Option(help="The candidate that grades.")] = None,
    max_usd: Annotated[float | None, typer.Option(help="Hard cap; needed for live calls.")] = None,
    tasks: Annotated[int, typer.Option(help="At most so many tasks.")] = 50,
    shots: Annotated[int, typer.Option(help="At most so many train queries of each.")] = 20,
    split: Annotated[
        str, typer.Option(help="Fractions of train, val, test where queries state none.")
    ] = "0.7,0.1,0.2",
    seed: Annotated[int, typer.Option(help="Of the draw, and of splits.")] = 0,
    dry_run: Annotated[bool, typer.Option(help="Print a forecast; ask nobody.")] = False,
) -> None:
    """Give a new model an aptitude test; write what export --add takes."""
    from rlroute.collection.aptitude import Sitting, run_profile
    from rlroute.collection.query_run import Collection

    stated = Collection(
        queries or Path(),
        pool or Path(),
        grade or "",
        out,
        judge=judge,
        max_usd=max_usd,
        split=split,
        seed=seed,
        dry_run=dry_run,
    )
    run_profile(Sitting(candidate, tasks, shots, seed), stated, table)


@app.command()
def robustness(
    router: Annotated[Path, typer.Argument(help="A router's folder, as exported.")],
    reworded: Annotated[
        Path, typer.Option(help="JSONL or CSV with query and reworded, one rewording a query.")
    ],
    cost_weight: Annotated[float, typer.Option(help="The cost weight to route at.")] = 0.0,
    endpoint: Annotated[
        str | None, typer.Option(help="Url of the router's embeddings endpoint, if it has one.")
    ] = None,
    model_folder: Annotated[
        Path | None, typer.Option(help="Where the model of a `path` encoder lies, if it moved.")
    ] = None,
) -> None:
    """Measure how often a router picks the same after a small rewording of the query."""
    from rlroute.robustness import run_robustness

    run_robustness(
        router, reworded, cost_weight=cost_weight, endpoint=endpoint, model_folder=model_folder
    )


@app.command()
def validate(
    table: Annotated[str, typer.Argument(help="A table's folder, or a shipped name.")],
) -> None:
    """Check an outcome table and print what a router could win on it."""
    from rlroute.evaluation.table_summary import run_validate

    run_validate(table)


@app.command(name="import")
def import_table(
    kind: Annotated[str, typer.Argument(help="routerbench or llmrouter.")],
    source: Annotated[Path, typer.Argument(help="The wide CSV, or the JSONL file or folder.")],
    prices: Annotated[Path, typer.Option(help="models.csv (or LLMRouter's JSON) with prices.")],
    out: Annotated[Path, typer.Option(help="The folder that the table goes to.")],
) -> None:
    """Turn another project's results into an outcome table."""
    from rlroute.data.importers import run_import

    run_import(kind, source, prices, out)


@app.command()
def collect(
    out: Annotated[Path, typer.Option(help="The folder that the table goes to.")],
    config: Annotated[
        str | None, typer.Argument(help="A recipe of reasoning-gym tasks, in place of --queries.")
    ] = None,
    overrides: Overrides = None,
    queries: Annotated[
        Path | None, typer.Option(help="A JSONL file of id, text, references, ...")
    ] = None,
    pool: Annotated[Path | None, typer.Option(help="pool.yaml: whom to ask.")] = None,
    grade: Annotated[
        str | None,
        typer.Option(
            help="exact, f1, numeric, choice, reasoning_gym, python:module:function or judge."
        ),
    ] = None,
    judge: Annotated[str | None, typer.Option(help="The candidate that grades.")] = None,
    samples: Annotated[int, typer.Option(help="Answers per query and candidate.")] = 1,
    temperature: Annotated[
        float | None, typer.Option(help="Default 0, or 1 for several samples.")
    ] = None,
    max_usd: Annotated[float | None, typer.Option(help="Hard cap over all starts.")] = None,
    per_query: Annotated[
        int | None, typer.Option(help="Ask so many candidates, drawn for each query.")
    ] = None,
    split: Annotated[
        str, typer.Option(help="Fractions of train, val, test where queries state none.")
    ] = "0.7,0.1,0.2",
    seed: Annotated[int, typer.Option(help="Of splits and of the sampled design.")] = 0,
    retry_failed: Annotated[bool, typer.Option(help="Ask failed calls again.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Print a forecast; ask nobody.")] = False,
) -> None:
    """Ask candidates, grade their answers, and write an outcome table.

    With --queries, --pool and --grade: live models and all else that a pool file declares. With
    CONFIG: a recipe of reasoning-gym tasks for local models and tools.
    """
    from rlroute.collection.command import run_collect_command
    from rlroute.collection.query_run import Collection

    stated = Collection(
        queries or Path(),
        pool or Path(),
        grade or "",
        out,
        judge=judge,
        samples=samples,
        temperature=temperature,
        max_usd=max_usd,
        per_query=per_query,
        split=split,
        seed=seed,
        retry_failed=retry_failed,
        dry_run=dry_run,
    )
    run_collect_command(config, overrides or [], stated)


@app.command(name="score-twin-router")
def score_twin_router(
    bank: Annotated[Path, typer.Argument(help="question_bank.jsonl of TwinRouterBench.")],
    predictions: Annotated[Path, typer.Argument(help="JSONL of id and tier (or error).")],
    tokens: Annotated[
        str, typer.Option(help="approximate, words, or a folder with a tokenizer per tier.")
    ] = "approximate",
) -> None:
    """Score predicted tiers on the static track of TwinRouterBench."""
    from rlroute.evaluation.twin_router_report import run_score

    run_score(bank, predictions, tokens)


pool_app = typer.Typer(no_args_is_help=True, help="Pools of candidates.", rich_markup_mode=None)
app.add_typer(pool_app, name="pool")


@pool_app.command(name="check")
def check_pool(
    pool: Annotated[Path, typer.Argument(help="pool.yaml.")],
    overrides: Overrides = None,
) -> None:
    """Ask every candidate one tiny question; exit code 1 where one does not answer."""
    from rlroute.pool.check import run_pool_check

    if not run_pool_check(pool, overrides or []):
        raise typer.Exit(1)


@app.command(name="check-env")
def check_env(
    environment_id: Annotated[
        str, typer.Argument(metavar="ID", help="e.g. rlroute/SingleTurn-v0 or my_package:My/Env-v0")
    ],
) -> None:
    """Check an environment: Gymnasium's rules and ours."""
    from rlroute.extras import require

    require("gymnasium", "train")
    sys.path.insert(0, "")  # modules of the current folder, as under `python -m`
    from rlroute.envs.checker import run_check

    for name in run_check(environment_id):
        typer.echo(f"passed  {name}")


def main() -> None:
    """Run the command line; the entry point of `rlroute` and `python -m rlroute`."""
    try:
        app()
    except RLRouteError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # said once, not by every process
            typer.echo(f"rlroute: {' '.join(str(error).split())}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
