"""The command line: `rlroute train`, evaluate, export, validate, import, collect, check-env.

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
    recipe: Annotated[Path | None, typer.Argument(help="The recipe, a YAML file.")] = None,
    overrides: Overrides = None,
    run_folder: Annotated[
        Path | None,
        typer.Option(help="Its folder; default runs/<table>-<algorithm>-s<seed>."),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a run that lies there.")] = False,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Print recipe and plan; train nothing.")] = False,
) -> None:
    """Train a router on an outcome table."""
    from rlroute.runs import run_training

    run_training(
        recipe,
        overrides or [],
        run_folder=run_folder,
        overwrite=overwrite,
        resume=resume,
        dry_run=dry_run,
    )


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
) -> None:
    """Compare a run's policy with the baselines on the test split; write report.html."""
    from rlroute.runs import evaluate_run

    evaluate_run(run)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    to: Annotated[Path, typer.Option(help="The folder that the router goes to.")],
) -> None:
    """Write a run's router as a folder that Router.load reads."""
    from rlroute.runs import export_run

    export_run(run, to)


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
    config: Annotated[Path, typer.Argument(help="What to ask whom, a YAML file.")],
    out: Annotated[Path, typer.Option(help="The folder that the table goes to.")],
    overrides: Overrides = None,
) -> None:
    """Ask local models and tools, grade their answers, and write an outcome table."""
    from rlroute.collection.collect import run_collect

    run_collect(config, overrides or [], out)


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
