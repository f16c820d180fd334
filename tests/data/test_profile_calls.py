"""Which queries a new candidate is asked, and its aptitude test."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from rlroute.data.profile_calls import (
    choose_queries,
    gather_calls,
    measure_aptitude,
    order_aptitude,
    take_aptitude_test,
)
from rlroute.types import RLRouteError

GROUP_Q = np.repeat([0, 1, 2], [60, 30, 10])


def test_every_cluster_is_asked_by_its_share():
    rows = choose_queries("stratified", 20, GROUP_Q, seed=0)
    assert Counter(GROUP_Q[rows].tolist()) == {0: 12, 1: 6, 2: 2}
    assert rows.tolist() != choose_queries("stratified", 20, GROUP_Q, seed=1).tolist()


@pytest.mark.parametrize("design", ["random", "stratified", "aptitude"])
def test_a_smaller_number_of_calls_is_a_part_of_a_larger_one(design):
    small, large = (choose_queries(design, n, GROUP_Q, seed=0) for n in (10, 40))
    assert set(small) <= set(large)
    assert len(set(large.tolist())) == 40
    assert len(choose_queries(design, 0, GROUP_Q, seed=0)) == 0


def test_the_most_informative_queries_are_asked():
    information_Q = np.arange(100) % 37
    rows = choose_queries("information", 4, GROUP_Q, 0, information_Q)
    assert rows.tolist() == [35, 36, 72, 73]


def test_an_aptitude_test_has_20_shots_of_50_tasks_at_most():
    task_Q = np.repeat([f"task {t:02}" for t in range(60)], 25)
    rows = order_aptitude(task_Q, seed=0)
    counts = Counter(task_Q[rows].tolist())
    assert len(rows) == 1000
    assert len(counts) == 50
    assert set(counts.values()) == {20}
    assert len(set(task_Q[rows[:50]].tolist())) == 50  # the first shot of every task comes first


def test_an_aptitude_test_gives_success_per_task_and_its_cost(tiny_table):
    found = measure_aptitude(take_aptitude_test(tiny_table, "tool", seed=0), "tool")
    assert found.tasks == ("sums", "words")
    assert found.success_T.tolist() == [1.0, 0.0]
    assert found.shots_T.tolist() == [6, 5]  # the hole was never asked
    large = measure_aptitude(take_aptitude_test(tiny_table, "large", seed=0), "large")
    assert large.cost_usd == pytest.approx(0.048)


def test_a_pair_that_was_never_tried_is_no_call(tiny_table):
    cluster_Q = np.arange(12)
    calls = gather_calls(tiny_table, cluster_Q, "tool", [0, 1, 3])
    assert calls.cluster_N.tolist() == [0, 3]
    assert np.isfinite(calls.score_N).all()
    assert gather_calls(tiny_table, cluster_Q, "large", [1, 3]).cost_usd == pytest.approx(0.007)


def test_results_of_nobody_are_refused(tiny_table):
    with pytest.raises(RLRouteError, match=r"no candidate 'gpt' \(it has: large, small"):
        gather_calls(tiny_table, np.arange(12), "gpt", [0])
    empty = replace(tiny_table, present_QK=np.zeros((12, 3), np.bool_))
    with pytest.raises(RLRouteError, match="no outcome of candidate 'large'"):
        take_aptitude_test(empty, "large", 0)
