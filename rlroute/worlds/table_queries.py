"""Worlds whose tasks are the queries of an outcome table: which table, and how it is prepared.

A recipe names the table once, in its world; a training opens the world several times, so what was
prepared last is kept.

What it leaves out: what is decided about the queries (`rlroute.worlds.cascade` and its neighbours).

How to use: `class MyConfig(TableQueries): ...`, then `prepare_queries(config).splits["train"]`.
"""

from __future__ import annotations

import functools
from pathlib import Path

from pydantic import Field

from rlroute.config import StrictModel
from rlroute.data.encoder_config import EncoderConfig, TfidfConfig
from rlroute.data.prepare import PreparedTable, prepare_table
from rlroute.data.routing_data import ProfileConfig
from rlroute.data.table import read_table
from rlroute.data.task_splits import SplitConfig, TableSplitConfig, split_table


class TableQueries(StrictModel):
    """A table by its folder (or the name of one that ships), and how its queries are shown.

    `seed` decides what is fitted on the train split: the encoder and the clusters of the profiles.
    """

    table: str = Field(min_length=1)
    split: SplitConfig = TableSplitConfig()
    encoder: EncoderConfig = TfidfConfig()
    profile: ProfileConfig = ProfileConfig()
    seed: int = Field(default=0, ge=0)


def prepare_queries(config: TableQueries) -> PreparedTable:
    """Return the table's splits, encoded, with profiles measured on train.

    Raises:
        RLRouteError: the table has a fault, a split is empty, or an extra is missing.
    """
    names = TableQueries.model_fields
    plain = TableQueries(**{name: getattr(config, name) for name in names})
    return prepare_once(plain, Path.cwd())


@functools.lru_cache(maxsize=2)
def prepare_once(config: TableQueries, where: Path) -> PreparedTable:
    """Prepare a table; `where` is the folder that a relative path starts from."""
    table = split_table(read_table(config.table), config.split)
    return prepare_table(table, config.encoder, config.profile, config.seed)
