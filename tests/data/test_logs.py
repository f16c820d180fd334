"""Logs: what a learner may see, propensities by hand, and faults in one line."""

from __future__ import annotations

import csv
import dataclasses
import gzip
from pathlib import Path

import numpy as np
import pytest

from rlroute.data.logs import (
    COLUMNS,
    PROPENSITIES_FILE,
    SimulatedLogsConfig,
    TableLogsConfig,
    apply_logs,
    compute_behaviour,
)
from rlroute.data.table import OutcomeTable, list_arrays, read_table
from rlroute.types import RLRouteError

POCKET = read_table("pocket")
HERE = Path(".")


def read_outside(table: OutcomeTable, column: str) -> np.ndarray:
    """What stands in the train and val rows of an array."""
    return getattr(table, column)[table.split_Q != "test"]


def test_a_simulated_log_holds_one_pair_per_query_and_the_test_split_whole() -> None:
    logged = apply_logs(POCKET, HERE, SimulatedLogsConfig(), seed=0)
    assert (read_outside(logged.table, "present_QK").sum(1) == 1).all()
    test_Q = POCKET.split_Q == "test"
    assert (logged.table.present_QK[test_Q] == POCKET.present_QK[test_Q]).all()
    assert logged.propensity_QK is not None
    known_QK = np.isfinite(logged.propensity_QK)
    assert (known_QK[~test_Q] == logged.table.present_QK[~test_Q]).all()
    assert not known_QK[test_Q].any()
    assert np.allclose(logged.propensity_QK[known_QK], 1 / len(POCKET.candidates))


def test_nothing_of_an_unlogged_pair_can_be_seen() -> None:
    config = SimulatedLogsConfig(epsilon=0.5, candidate=POCKET.candidates[0].id)
    logged = apply_logs(POCKET, HERE, config, seed=3)
    assert logged.propensity_QK is not None
    hidden_QK = ~logged.table.present_QK
    for name in list_arrays():
        if name != "present_QK":
            assert np.isnan(getattr(logged.table, name)[hidden_QK]).all(), name
    secret = dataclasses.replace(POCKET, score_QK=np.where(hidden_QK, 0.123, POCKET.score_QK))
    other = apply_logs(secret, HERE, config, seed=3)
    assert np.array_equal(other.table.score_QK, logged.table.score_QK, equal_nan=True)


def test_propensities_are_the_behaviours_and_add_up_to_one() -> None:
    favourite = POCKET.candidates[2].id
    share_QK = compute_behaviour(POCKET, SimulatedLogsConfig(candidate=favourite, epsilon=0.4))
    assert np.allclose(share_QK.sum(1), 1)
    assert np.allclose(share_QK[0], [0.05, 0.05, 0.65, 0.05, 0.05, 0.05, 0.05, 0.05])
    logged = apply_logs(POCKET, HERE, SimulatedLogsConfig(candidate=favourite, epsilon=0.4), seed=0)
    picked_K = read_outside(logged.table, "present_QK").mean(0)
    assert picked_K[2] == pytest.approx(0.65, abs=0.04)


def test_the_order_of_rows_changes_no_pick() -> None:
    order_Q = np.arange(len(POCKET.queries))[::-1].copy()
    one = apply_logs(POCKET, HERE, SimulatedLogsConfig(), seed=1).table
    other = apply_logs(POCKET.select_queries(order_Q), HERE, SimulatedLogsConfig(), seed=1).table
    assert (other.present_QK == one.present_QK[order_Q]).all()
    third = apply_logs(POCKET, HERE, SimulatedLogsConfig(), seed=2).table
    assert (third.present_QK != one.present_QK).any()


def test_an_unknown_favourite_is_refused() -> None:
    with pytest.raises(RLRouteError, match=r"logs.candidate: table 'pocket' has no candidate 'x'"):
        apply_logs(POCKET, HERE, SimulatedLogsConfig(candidate="x"), seed=0)


def write_log(folder: Path, change: dict[str, object] | None = None, drop: bool = False) -> None:
    rows = [
        {"query_id": query.id, "model": candidate.id, "asked": "True", "propensity": 0.25}
        for q, query in enumerate(SMALL.queries)
        for k, candidate in enumerate(SMALL.candidates)
        if SMALL.present_QK[q, k]
    ]
    rows[0] |= change or {}
    with gzip.open(folder / PROPENSITIES_FILE, "wt", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows[1:] if drop else rows)


SMALL = apply_logs(POCKET.select_queries(np.arange(40)), HERE, SimulatedLogsConfig(), 0).table


def test_a_table_is_a_log_with_the_propensities_beside_it(tmp_path: Path) -> None:
    write_log(tmp_path)
    logged = apply_logs(SMALL, tmp_path, TableLogsConfig(), seed=0)
    assert logged.table is SMALL
    assert logged.propensity_QK is not None
    assert (np.isfinite(logged.propensity_QK) == SMALL.present_QK).all()
    assert (logged.propensity_QK[SMALL.present_QK] == 0.25).all()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"propensity": "0"}, r"line 2: propensity '0' must lie in \(0, 1\]"),
        ({"propensity": "1.5"}, r"line 2: propensity '1.5' must lie in"),
        ({"propensity": "often"}, r"line 2: propensity 'often' must lie in"),
        ({"asked": "False"}, r"line 2: asked 'False', but query '.*' has an outcome of"),
    ],
)
def test_a_bad_propensity_is_refused_with_its_line(tmp_path: Path, change, fault: str) -> None:
    write_log(tmp_path, change)
    with pytest.raises(RLRouteError, match=fault):
        apply_logs(SMALL, tmp_path, TableLogsConfig(), seed=0)


def test_an_outcome_without_a_propensity_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RLRouteError, match=r"propensities.csv.gz: not found; a log needs"):
        apply_logs(SMALL, tmp_path, TableLogsConfig(), seed=0)
    write_log(tmp_path, drop=True)
    with pytest.raises(RLRouteError, match=r"no propensity of query .* and candidate"):
        apply_logs(SMALL, tmp_path, TableLogsConfig(), seed=0)
