"""Rows of batches: some of them, and those of several batches as one.

A field belongs to the rows where its first axis is B, as the suffix of its name says; the others
are shared by the whole batch.

What it leaves out: episodes of many steps, whose rows also stand in `Batch.ends`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from rlroute.types import Batch, IntArray


def select_rows(batch: Batch, row_N: IntArray) -> Batch:
    """Return some rows of a batch, in the order of `row_N`."""
    return rebuild([batch], lambda arrays: arrays[0][row_N])


def join_by_group(batches: Sequence[Batch]) -> Batch:
    """Return the rows of batches of one policy as one batch, those of a group together.

    Within a group they keep the order of the batches.
    """
    joined = rebuild(batches, np.concatenate)
    joined = replace(joined, dropped=sum(batch.dropped for batch in batches))
    return select_rows(joined, np.argsort(joined.group_B, kind="stable"))


def rebuild(batches: Sequence[Batch], merge: Callable[[Sequence[Any]], Any]) -> Batch:
    """Return a batch whose rows are `merge` of the batches' rows, field by field.

    Raises:
        ValueError: the batches hold episodes of many steps.
    """
    first = batches[0]
    if first.ends is not None or first.conversations is not None:
        raise ValueError("rows of many-step episodes cannot be taken apart")
    found: dict[str, Any] = {}
    for field in fields(first):
        value = getattr(first, field.name)
        if value is None or not field.name.rpartition("_")[2].startswith("B"):
            continue
        values = [getattr(batch, field.name) for batch in batches]
        if isinstance(value, np.ndarray):
            found[field.name] = merge(values)
        else:  # reward terms by name
            found[field.name] = {name: merge([one[name] for one in values]) for name in value}
    return replace(first, **found)
