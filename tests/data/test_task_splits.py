"""Whole tasks are held out, never rows of them, and whatever would leak is refused in one line."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlroute.config import StrictModel, parse_config
from rlroute.data.table import OutcomeTable
from rlroute.data.task_splits import (
    HeldOutTasksConfig,
    SplitConfig,
    TableSplitConfig,
    split_table,
)
from rlroute.types import Candidate, Prices, Query, RLRouteError

TASKS = ("art", "law", "math", "music")


class Holder(StrictModel):
    split: SplitConfig = TableSplitConfig()


def make_table(queries: int = 80) -> OutcomeTable:
    one_QK = np.ones((queries, 1), dtype=np.float32)
    return OutcomeTable(
        name="exams",
        queries=tuple(Query(f"q{q}", f"question {q}", task=TASKS[q % 4]) for q in range(queries)),
        candidates=(Candidate("solo", Prices(1.0, 1.0)),),
        score_QK=one_QK,
        cost_usd_QK=one_QK,
        present_QK=one_QK > 0,
        prompt_tokens_QK=one_QK,
        completion_tokens_QK=one_QK,
        latency_seconds_QK=one_QK,
        split_Q=np.array(["train"] * queries),
    )


def list_tasks(table: OutcomeTable, split: str) -> set[str]:
    where_Q = table.split_Q == split
    return {query.task for query, there in zip(table.queries, where_Q, strict=True) if there}


@given(test=st.sets(st.sampled_from(TASKS), min_size=1, max_size=3))
def test_no_task_of_the_test_split_is_in_another_split(test):
    table = split_table(make_table(), HeldOutTasksConfig(test=tuple(test)))
    assert list_tasks(table, "test") == test
    assert list_tasks(table, "train") == set(TASKS) - test
    assert not list_tasks(table, "val") & test


def test_validation_tasks_are_whole_too():
    table = split_table(make_table(), HeldOutTasksConfig(test=("law",), val=("art",)))
    assert list_tasks(table, "val") == {"art"}
    assert list_tasks(table, "train") == {"math", "music"}
    assert np.count_nonzero(table.split_Q == "val") == 20


def test_without_validation_tasks_a_share_of_the_other_tasks_validates():
    config = HeldOutTasksConfig(test=("law",), val_fraction=0.25)
    table = split_table(make_table(4000), config)
    assert np.count_nonzero(table.split_Q == "val") == pytest.approx(0.25 * 3000, abs=100)
    again = split_table(replace(table, split_Q=table.split_Q[::-1]), config)
    assert (again.split_Q == table.split_Q).all()  # what stood there before changes nothing


def test_the_splits_of_the_table_stay_as_they_are_by_default():
    table = make_table()
    assert split_table(table, Holder().split) is table


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"test": ["lore"]}, "split.test: no task 'lore' .it has: art, law, math, music"),
        ({"test": ["law"], "val": ["lore"]}, "split.val: no task 'lore'"),
        ({"test": list(TASKS)}, "no task is left to train on"),
        ({"test": ["law", "law"]}, "task 'law' is named twice"),
        ({"test": ["law"], "val": ["law"]}, "task 'law' is named twice"),
        ({"test": []}, "split.test"),
        ({"test": ["law"], "val_fraction": 0}, "split.val_fraction"),
    ],
)
def test_a_split_that_cannot_be_made_is_refused_in_one_line(data, said):
    def make_split() -> None:
        config = parse_config(Holder, {"split": {"kind": "held_out_tasks", **data}}, "recipe")
        split_table(make_table(), config.split)

    with pytest.raises(RLRouteError, match=said) as caught:
        make_split()
    assert "\n" not in str(caught.value)


def test_one_text_in_tasks_of_two_splits_is_refused():
    table = make_table()
    queries = list(table.queries)
    queries[1] = replace(queries[1], text="Question  0")  # law, and the art query's text
    with pytest.raises(RLRouteError, match=r"'q0' of task 'art' and 'q1' of task 'law'"):
        split_table(replace(table, queries=tuple(queries)), HeldOutTasksConfig(test=("law",)))
