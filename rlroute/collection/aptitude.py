"""`rlroute profile`: an aptitude test of a new candidate, live or looked up in a table.

What it is: up to `tasks` tasks with up to `shots` train queries each (Model-SAT: 50 x 20) are asked
of one candidate. What it answered becomes an outcome table of that candidate alone, which `rlroute
export --add` and `Router.add_candidate` turn into a profile. Live calls go through `rlroute
collect`'s machinery: a hard cap in USD, a journal that pays for no finished call twice, failed
calls that become holes and are never scored. From a table the outcomes are looked up for nothing.

What it leaves out: the profile (`rlroute.data.newcomer_profiles`).

How to use: `run_profile("new", out, table="pocket")`, or with a `Collection` of whom to ask what.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from rlroute.collection.build import check_output
from rlroute.collection.design import draw_design
from rlroute.collection.query_run import Collection, Plan, make_plan, run_plan
from rlroute.data.profile_calls import (
    APTITUDE_SHOTS,
    APTITUDE_TASKS,
    AptitudeTest,
    measure_aptitude,
    order_aptitude,
    take_aptitude_test,
)
from rlroute.data.table import RESULT_SPLITS, read_results, read_table, write_table
from rlroute.types import RLRouteError


@dataclass(frozen=True)
class Sitting:
    """Who takes the test, and how large it is."""

    candidate_id: str
    tasks: int = APTITUDE_TASKS
    shots: int = APTITUDE_SHOTS
    seed: int = 0


def run_profile(sitting: Sitting, stated: Collection, table: str | None = None) -> None:
    """Give a candidate the test, print its success per task, and write its outcomes.

    With `table` they are looked up there; otherwise `stated` says whom to ask what.

    Raises:
        RLRouteError: neither or both forms, no cap for live calls, a size below 1, an unknown
            candidate, or as `rlroute collect`.
    """
    for name, value in (("--tasks", sitting.tasks), ("--shots", sitting.shots)):
        if value < 1:
            raise RLRouteError(f"{name} {value}: must be at least 1")
    if table is not None:
        if stated != Collection(Path(), Path(), "", stated.out, seed=stated.seed):
            raise RLRouteError(
                "profile: --table looks outcomes up; --queries, --pool, --grade, --judge, "
                "--max-usd, --split and --dry-run go with live calls"
            )
        look_up(sitting, table, stated.out)
    else:
        if Path() in (stated.queries, stated.pool) or not stated.grade or stated.max_usd is None:
            raise RLRouteError(
                "profile: name --table, or --queries, --pool, --grade and --max-usd (a hard cap)"
            )
        run_plan(plan_sitting(sitting, make_plan(stated)))
        if stated.dry_run:
            return
    print_aptitude(sitting, stated.out)


def look_up(sitting: Sitting, table: str, out: Path) -> None:
    """Write the outcomes that a table holds of the test's queries, train split only.

    Raises:
        RLRouteError: no train split, or no outcome of the candidate there.
    """
    check_output(out)
    train = read_table(table).select_split("train")
    found = take_aptitude_test(
        train, sitting.candidate_id, sitting.seed, sitting.tasks, sitting.shots
    )
    write_table(found, out, needed=RESULT_SPLITS)


def plan_sitting(sitting: Sitting, plan: Plan) -> Plan:
    """Return the plan cut down to one candidate and the test's train queries.

    Raises:
        RLRouteError: the pool has no such candidate.
    """
    name = sitting.candidate_id
    if name not in plan.candidates:
        known = ", ".join(plan.candidates)
        raise RLRouteError(f"{plan.stated.pool}: no candidate '{name}' to ask (it has: {known})")
    whole = plan.query_set
    train_N = np.flatnonzero(np.array(whole.splits) == "train")
    task_N = [whole.queries[row].task for row in train_N.tolist()]
    order_N = order_aptitude(task_N, sitting.seed, sitting.tasks, sitting.shots)
    rows = np.sort(train_N[order_N]).tolist()
    asked = replace(
        whole,
        queries=tuple(whole.queries[row] for row in rows),
        splits=tuple(whole.splits[row] for row in rows),
        lines=tuple(whole.lines[row] for row in rows),
    )
    ids = {query.id for query in asked.queries}
    return replace(
        plan,
        candidates={name: plan.candidates[name]},
        query_set=asked,
        design=draw_design(asked.queries, [name], None, sitting.seed),
        calls=[c for c in plan.calls if c.candidate_id == name and c.query.id in ids],
    )


def print_aptitude(sitting: Sitting, out: Path) -> None:
    """Print the success per task, what the calls cost, and where the outcomes lie."""
    test: AptitudeTest = measure_aptitude(read_results(out), sitting.candidate_id)
    shown = Table(title=f"aptitude of {sitting.candidate_id}")
    for column in ("task", "success", "shots"):
        shown.add_column(column, justify="left" if column == "task" else "right")
    for task, success, shots in zip(test.tasks, test.success_T, test.shots_T, strict=True):
        shown.add_row(task or "-", f"{success:.3f}", str(shots))
    console = Console()
    console.print(shown)
    console.print(
        f"{test.shots_T.sum()} outcomes, {test.cost_usd:.6f} USD by their prices: {out} "
        f"(rlroute export RUN --to ROUTER --add {out})",
        highlight=False,
        soft_wrap=True,
    )
