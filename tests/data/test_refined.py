"""Refined outcomes: read from a file, holes where nothing was measured, faults with their line."""

from __future__ import annotations

import numpy as np
import pytest
from action_tables import NAN, build_table, parse_actions, read_column

from rlroute.data.actions import build_actions
from rlroute.data.table import OutcomeTable
from rlroute.types import RLRouteError

HEADER = "query_id,members,score,extra_cost_usd,extra_latency_seconds\n"


def refine(tmp_path, rows: str, header: str = HEADER, sizes: tuple[int, ...] = (1, 2)):
    """Return the table of three candidates with the refined subsets of a file."""
    path = tmp_path / "refined.csv"
    path.write_text(header + rows, encoding="utf-8")
    table = build_table([[1, 0, 1], [0, NAN, 1], [0.5, 1, 0]])
    config = {"kind": "subsets", "sizes": sizes, "combine": "refined", "outcomes": str(path)}
    return build_actions(table, parse_actions(config))


def test_refined_subsets_have_the_measured_score_and_the_refiners_cost(tmp_path):
    rows = "q0,b+a,0.25,0.5,2\nq1,a+b,1,0.5,2\nq2,a+b,1,0.125,\nq2,a+b+c,1,0,1\nq0,c+b,0,0,0\n"
    wider: OutcomeTable = refine(tmp_path, rows)
    # a+c was never measured; a+b+c is of a size that the recipe leaves out
    assert [candidate.id for candidate in wider.candidates] == ["a", "b", "c", "a+b", "b+c"]
    # q1 has no outcome of b, so what b would have cost is unknown: a hole, measured or not
    np.testing.assert_array_equal(read_column(wider, "a+b"), [0.25, NAN, 1])
    np.testing.assert_array_equal(read_column(wider, "a+b", "cost_usd"), [3.5, NAN, 3.125])
    np.testing.assert_array_equal(read_column(wider, "a+b", "latency_seconds"), [8, NAN, NAN])
    np.testing.assert_array_equal(read_column(wider, "a+b", "prompt_tokens"), [NAN] * 3)
    assert read_column(wider, "a+b", "present") == [True, False, True]
    assert read_column(wider, "b+c", "present") == [True, False, False]
    assert read_column(wider, "a", "cost_usd") == [1, 1, 1]


def test_the_time_of_the_refiner_may_be_left_out(tmp_path):
    header = "query_id,members,score,extra_cost_usd\n"
    wider = refine(tmp_path, "q0,a+b,1,0\n", header)
    np.testing.assert_array_equal(read_column(wider, "a+b", "latency_seconds"), [NAN] * 3)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("q9,a+b,1,0,0\n", "line 2: table 'small' has no query 'q9'"),
        ("q0,a+b,1,0,0\nq0,a+z,1,0,0\n", "line 3: members: unknown candidate 'z'"),
        ("q0,a,1,0,0\n", "line 2: members 'a': name two or more"),
        ("q0,a+a,1,0,0\n", "line 2: members 'a+a': name two or more"),
        ("q0,a+b,1,0,0\nq0,b+a,1,0,0\n", "line 3: query 'q0' with members 'b+a' stands twice"),
        ("q0,a+b,,0,0\n", "line 2: score '' is not a number"),
        ("q0,a+b,1.5,0,0\n", "line 2: score 1.5 is out of range (allowed: 0 to 1)"),
        ("q0,a+b,1,,0\n", "line 2: extra_cost_usd '' is not a number"),
        ("q0,a+b,1,-1,0\n", "line 2: extra_cost_usd -1 is out of range"),
        ("q0,a+b,1,nan,0\n", "line 2: extra_cost_usd nan is out of range"),
        ("q0,a+b,1,0,inf\n", "line 2: extra_latency_seconds inf is out of range"),
        ("q0,a+b,1,0\n", "line 2: 4 values, but 5 columns"),
    ],
)
def test_a_fault_of_the_file_is_named_with_its_line(tmp_path, rows, message):
    with pytest.raises(RLRouteError) as caught:
        refine(tmp_path, rows)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_without_prices_or_without_any_subset_of_the_sizes_is_refused(tmp_path):
    with pytest.raises(RLRouteError, match="missing column 'extra_cost_usd'"):
        refine(tmp_path, "q0,a+b,1\n", "query_id,members,score\n")
    with pytest.raises(RLRouteError, match="no subset of sizes 2 has an outcome on the train"):
        refine(tmp_path, "q0,a+b+c,1,0,0\n", sizes=(2,))
