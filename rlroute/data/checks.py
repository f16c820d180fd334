"""The checks that records must pass before they become a table: one fault, one line.

Each check raises `RLRouteError` with file and row (the line on which a CSV record starts, or the
number of a Parquet row) and with what is allowed.

What it leaves out: faults of files (`rlroute.data.text_files`, `rlroute.data.records`) and of
prices (`rlroute.data.prices`), which are raised while reading.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NoReturn

import numpy as np

from rlroute.data.records import LATENCY, Records
from rlroute.data.splits import find_leak
from rlroute.types import SPLITS, BoolArray, FloatArray, IntArray, RLRouteError

FILLED_COLUMNS = ("query_id", "query", "model")
QUERY_COLUMNS = ("query", "dataset", "task", "split")


def check_records(
    records: Records,
    candidate_ids: Collection[str],
    prices_source: str,
    needed: Collection[str] = SPLITS,
) -> None:
    """Raise RLRouteError on the first fault of the records.

    `candidate_ids` are the models that have a price, `prices_source` says where those stand,
    `needed` names the splits that must hold a query.
    """
    if len(records) == 0:
        raise RLRouteError(f"{records.source}: holds no records")
    check_texts(records)
    check_models(records, candidate_ids, prices_source)
    check_numbers(records)
    check_duplicates(records)
    first_Q = find_first_rows(records)
    check_queries(records, first_Q)
    check_splits(records, first_Q, needed)


def fail(records: Records, row: int, message: str) -> NoReturn:
    """Raise RLRouteError for a row."""
    raise RLRouteError(f"{records.locate(row)}: {message}")


def find_first_rows(records: Records) -> IntArray:
    """Return the first row [Q] of each distinct query id, in the order of the rows."""
    return np.sort(np.unique(records.text["query_id"].codes_N, return_index=True)[1])


def check_texts(records: Records) -> None:
    """Refuse a blank query id, text or model name."""
    for name in FILLED_COLUMNS:
        column = records.text[name]
        blank = [code for code, value in enumerate(column.values) if not value.strip()]
        for row in np.flatnonzero(np.isin(column.codes_N, blank))[:1]:
            fail(records, row, f"column '{name}' is empty")


def check_models(records: Records, candidate_ids: Collection[str], prices_source: str) -> None:
    """Refuse a model without prices."""
    column = records.text["model"]
    unknown = [code for code, value in enumerate(column.values) if value not in candidate_ids]
    for row in np.flatnonzero(np.isin(column.codes_N, unknown))[:1]:
        fail(records, row, f"unknown model '{column[row]}': it is not in {prices_source}")


def check_numbers(records: Records) -> None:
    """Refuse scores outside [0, 1], costs that are negative or not finite, and negative counts."""
    numbers = records.numbers
    score_N, cost_N = numbers["score"], numbers["cost_usd"]
    for row in np.flatnonzero(~((score_N >= 0) & (score_N <= 1)))[:1]:
        fail(records, row, f"score is {show(score_N[row])}, must be between 0 and 1")
    for row in np.flatnonzero(~is_amount(cost_N))[:1]:
        fail(
            records, row, f"cost_usd is {show(cost_N[row])}, must be a finite number of at least 0"
        )
    for name in ("prompt_tokens", "completion_tokens", LATENCY):
        value_N = numbers[name]
        for row in np.flatnonzero(~is_amount(value_N) & ~np.isnan(value_N))[:1]:
            fail(records, row, f"{name} is {show(value_N[row])}, must be at least 0 or blank")


def is_amount(value_N: FloatArray) -> BoolArray:
    """Say which numbers are finite and not negative."""
    return (value_N >= 0) & (value_N < np.inf)


def show(value: float) -> str:
    """Return a number as text; a blank cell reads as 'blank or NaN'."""
    return "blank or NaN" if np.isnan(value) else str(value)


def check_duplicates(records: Records) -> None:
    """Refuse a second record of one query and model."""
    query, model = records.text["query_id"], records.text["model"]
    key_N = query.codes_N * len(model.values) + model.codes_N
    _, first, inverse_N = np.unique(key_N, return_index=True, return_inverse=True)
    for row in np.flatnonzero(first[inverse_N] != np.arange(len(key_N)))[:1]:
        fail_duplicate(records, row, records.locate(first[inverse_N[row]]))


def fail_duplicate(records: Records, row: int, earlier: str) -> NoReturn:
    """Raise RLRouteError for a row whose query and model stand at `earlier` already."""
    pair = f"query '{records.text['query_id'][row]}' and model '{records.text['model'][row]}'"
    fail(records, row, f"duplicate of {pair}, which stand at {earlier} already")


def check_queries(records: Records, first_Q: IntArray) -> None:
    """Refuse a query id with two texts, tasks, data sets or splits."""
    query = records.text["query_id"]
    first_of_code = np.zeros(len(query.values), dtype=np.int64)
    first_of_code[query.codes_N[first_Q]] = first_Q
    first_N = first_of_code[query.codes_N]
    for name in QUERY_COLUMNS:
        codes_N = records.text[name].codes_N
        for row in np.flatnonzero(codes_N != codes_N[first_N])[:1]:
            fail_conflict(records, row, name, records.locate(first_N[row]))


def fail_conflict(records: Records, row: int, name: str, earlier: str) -> NoReturn:
    """Raise RLRouteError for a row whose query has another text, task, ... at `earlier`."""
    query = records.text["query_id"][row]
    fail(records, row, f"query '{query}' has another {name} here than at {earlier}")


def check_splits(records: Records, first_Q: IntArray, needed: Collection[str] = SPLITS) -> None:
    """Refuse unknown splits, empty ones that are needed, and a text that stands in two of them."""
    column = records.text["split"]
    unknown = [code for code, value in enumerate(column.values) if value not in SPLITS]
    for row in np.flatnonzero(np.isin(column.codes_N, unknown))[:1]:
        fail(records, row, f"unknown split '{column[row]}' (allowed: {', '.join(SPLITS)})")
    splits = [column[row] for row in first_Q]
    for split in SPLITS:
        if split in needed and split not in splits:
            rest = "train, val and test each need a query" if len(needed) > 1 else "it needs one"
            raise RLRouteError(f"{records.source}: split '{split}' is empty; {rest}")
    leak = find_leak([records.text["query"][row] for row in first_Q], splits)
    if leak is not None:
        earlier, later = leak
        fail(
            records,
            first_Q[later],
            f"the text of this {splits[later]} query stands in {splits[earlier]} too, "
            f"at {records.locate(first_Q[earlier])}; a text belongs to one split",
        )
