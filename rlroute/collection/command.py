"""`rlroute collect`: which of its two forms was asked for.

With a recipe and nothing else, tasks of reasoning-gym are asked of local models and tools
(`rlroute.collection.collect`); with --queries, --pool and --grade, whatever stands in the files
(`rlroute.collection.query_run`). An option of the second form is never ignored by the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rlroute.collection.query_run import Collection, run_query_collection
from rlroute.types import RLRouteError

NOWHERE = Path()


def run_collect_command(config: str | None, overrides: Sequence[str], stated: Collection) -> None:
    """Run the form that was asked for; paths that were not named are `Path()`.

    In the second form the first word on the line is an override like the others.

    Raises:
        RLRouteError: neither form is complete, or as the form raises.
    """
    if config is not None and stated == Collection(NOWHERE, NOWHERE, "", stated.out):
        from rlroute.collection.collect import run_collect

        run_collect(Path(config), overrides, stated.out)
        return
    if NOWHERE in (stated.queries, stated.pool) or not stated.grade:
        raise RLRouteError(
            "collect: name --queries, --pool and --grade, or a recipe without other options"
        )
    changes = (*([] if config is None else [config]), *overrides)
    run_query_collection(replace(stated, overrides=changes))
