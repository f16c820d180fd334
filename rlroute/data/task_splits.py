"""Whole tasks held out: does a router do harm on areas that it has never seen?

What it is: the `split` of a recipe. `table` keeps the splits that stand in the table;
`held_out_tasks` throws them away and builds new ones, the test split from all queries of the named
tasks, never from some of them, so that nothing of a test task is seen in training or in choosing.
The validation split is made of whole tasks too where `val` names some. Where it names none it is a
share of the queries of the other tasks, by a hash of their texts: it then says how the router does
on areas it knows, and nothing about new ones.

What it leaves out: splits of queries by hash (`rlroute.data.splits`).

How to use: `split_table(table, HeldOutTasksConfig(test=("law", "history")))`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from rlroute.config import StrictModel
from rlroute.data.splits import assign_splits, find_leak
from rlroute.data.table import OutcomeTable
from rlroute.types import RLRouteError


class TableSplitConfig(StrictModel):
    """The splits that stand in the table."""

    kind: Literal["table"] = "table"


class HeldOutTasksConfig(StrictModel):
    """All queries of the tasks `test` are the test split, and of `val` the validation split.

    Without `val`, `val_fraction` of the queries of all other tasks are the validation split.
    """

    kind: Literal["held_out_tasks"] = "held_out_tasks"
    test: tuple[str, ...] = Field(min_length=1)
    val: tuple[str, ...] = ()
    val_fraction: float = Field(default=0.125, gt=0, lt=1)

    @model_validator(mode="after")
    def check_tasks(self) -> HeldOutTasksConfig:
        """Refuse a task that is named twice."""
        names = [*self.test, *self.val]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"task '{name}' is named twice (test and val must differ)")
        return self


SplitConfig = Annotated[TableSplitConfig | HeldOutTasksConfig, Field(discriminator="kind")]


def split_table(table: OutcomeTable, config: TableSplitConfig | HeldOutTasksConfig) -> OutcomeTable:
    """Return the table with the splits that a recipe asks for.

    Raises:
        RLRouteError: a task is not in the table, no task is left to train on, or one text stands
            in tasks of two splits.
    """
    if isinstance(config, TableSplitConfig):
        return table
    task_Q = np.array([query.task for query in table.queries])
    check_known(table.name, config, set(task_Q.tolist()))
    texts = [query.text for query in table.queries]
    share = config.val_fraction if not config.val else 0.0
    split_Q = assign_splits(texts, (1 - share, share, 0.0))
    split_Q[np.isin(task_Q, config.val)] = "val"
    split_Q[np.isin(task_Q, config.test)] = "test"
    refuse_leak(table, texts, split_Q)
    return replace(table, split_Q=split_Q)


def check_known(table: str, config: HeldOutTasksConfig, known: Collection[str]) -> None:
    """Raise RLRouteError unless the tasks are in the table and leave one to train on."""
    has = ", ".join(sorted(known))
    for part in ("test", "val"):
        for name in getattr(config, part):
            if name not in known:
                raise RLRouteError(
                    f"table '{table}': split.{part}: no task '{name}' (it has: {has})"
                )
    if not set(known) - {*config.test, *config.val}:
        raise RLRouteError(f"table '{table}': split: no task is left to train on (it has: {has})")


def refuse_leak(table: OutcomeTable, texts: list[str], split_Q: npt.NDArray[np.str_]) -> None:
    """Raise RLRouteError where one text stands in two splits."""
    leak = find_leak(texts, split_Q.tolist())
    if leak is None:
        return
    first, second = (table.queries[q] for q in leak)
    raise RLRouteError(
        f"table '{table.name}': queries '{first.id}' of task '{first.task}' and '{second.id}' of "
        f"task '{second.task}' have one text: hold both tasks out or neither"
    )
