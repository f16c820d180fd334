"""Latencies: measured, derived as declared, or unknown, which is a hole and never 0."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlroute.config import parse_config
from rlroute.data.irt_table import IrtTableConfig, make_irt_table
from rlroute.data.latencies import LatencyConfig, fill_latencies, require_latencies
from rlroute.data.prepare import compute_table_digest
from rlroute.data.table import OutcomeTable
from rlroute.types import Candidate, Prices, RLRouteError

NAN = np.nan


def make_table(seconds_QK: list[list[float]], tokens_QK: list[list[float]]) -> OutcomeTable:
    made = make_irt_table(IrtTableConfig(queries=40, candidates=2, topics=1), seed=0).table
    table = made.select_queries(np.arange(len(seconds_QK)))
    return replace(
        table,
        latency_seconds_QK=np.array(seconds_QK, np.float32),
        completion_tokens_QK=np.array(tokens_QK, np.float32),
    )


def test_a_declared_speed_fills_what_was_not_measured_and_nothing_else() -> None:
    table = make_table([[NAN, 7.0], [2.5, NAN]], [[100, 100], [100, 50]])
    config = LatencyConfig(
        seconds_per_output_token={"candidate-a": 0.02}, seconds_to_first_token={"candidate-a": 0.5}
    )
    filled = fill_latencies(table, config)
    # 0.5 s to the first token and 100 tokens of 0.02 s; what was measured (2.5 s) stays
    assert np.allclose(filled.latency_seconds_QK, [[2.5, 7.0], [2.5, NAN]], equal_nan=True)
    assert fill_latencies(table, None) is table


def test_a_pair_without_latency_is_a_hole_where_latency_counts() -> None:
    table = require_latencies(make_table([[1.0, NAN], [2.0, 3.0]], [[1, 1], [1, 1]]))
    assert table.present_QK.tolist() == [[True, False], [True, True]]
    assert np.isnan(table.score_QK[0, 1])
    assert np.isnan(table.cost_usd_QK[0, 1])


def test_a_query_that_nobody_answered_in_known_time_is_left_out() -> None:
    table = require_latencies(make_table([[1.0, 2.0], [NAN, NAN]], [[1, 1], [1, 1]]))
    assert len(table.queries) == 1


def test_tokens_that_were_not_counted_give_no_latency() -> None:
    table = make_table([[NAN, 1.0], [NAN, 1.0]], [[NAN, 1], [10, 1]])
    config = LatencyConfig(
        seconds_per_output_token={"candidate-a": 0.1}, seconds_to_first_token={"candidate-a": 0}
    )
    held = require_latencies(fill_latencies(table, config))
    assert held.present_QK.tolist() == [[False, True], [True, True]]


def test_a_latency_that_changed_changes_the_digest_where_latency_counts() -> None:
    one, other = make_table([[1.0, 2.0]], [[1, 1]]), make_table([[1.0, 3.0]], [[1, 1]])
    assert compute_table_digest(one) == compute_table_digest(other)
    assert compute_table_digest(one, latency=True) != compute_table_digest(other, latency=True)


def test_skip_takes_no_time() -> None:
    table = make_table([[1.0, NAN], [2.0, NAN]], [[1, 1], [1, 1]])
    skip = Candidate("skip", Prices(0, 0, 0), "skip", members=())
    held = require_latencies(replace(table, candidates=(table.candidates[0], skip)))
    assert held.latency_seconds_QK[:, 1].tolist() == [0, 0]


def test_faults_are_named_in_one_line() -> None:
    table = make_table([[1.0, NAN], [2.0, NAN]], [[1, 1], [1, 1]])
    with pytest.raises(RLRouteError, match="no latency_seconds of candidate 'candidate-b'"):
        require_latencies(table)
    unknown = LatencyConfig(seconds_per_output_token={"x": 1}, seconds_to_first_token={"x": 1})
    with pytest.raises(RLRouteError, match="no candidate 'x'"):
        fill_latencies(table, unknown)
    one_sided = {"seconds_per_output_token": {"a": 1.0}, "seconds_to_first_token": {}}
    with pytest.raises(RLRouteError, match=r"'a' stands in one of .* only; declare both"):
        parse_config(LatencyConfig, one_sided, "latency")


@given(st.integers(0, 5), st.floats(0.01, 1.0))
def test_the_made_table_knows_the_best_value_at_any_latency_weight(
    seed: int, weight: float
) -> None:
    config = IrtTableConfig(queries=60, candidates=4, topics=2, seconds_per_token=(0.001, 0.1))
    made = make_irt_table(config, seed)
    seconds_K = made.table.latency_seconds_QK.mean(axis=0)
    assert seconds_K.max() / seconds_K.min() == pytest.approx(100, rel=1e-3)
    utility_QK = made.success_QK - 0.3 * made.normalise_cost()
    utility_QK -= weight * made.table.latency_seconds_QK / made.latency_reference_seconds
    assert made.compute_best_value(0.3, weight) == pytest.approx(utility_QK.max(1).mean())
    assert made.compute_best_value(0.3, weight) <= made.compute_best_value(0.3)
