"""What collapses to the cheapest executor on the critical-step chain, and what does not.

The toy table of boundary-guided training as a regression test: fixed seeds and wide margins, so it
is about "collapsed or not", never about the third digit. `tests/benchmarks/step_toy_table.py`
prints the whole table.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.step_toy_table import STATIC, Row, make_toy_recipe, measure, train_row

from rlroute.rollout.stage import Stage

pytestmark = pytest.mark.slow
SEEDS = (0, 1, 2)
COLLAPSED = 0.02  # share of large calls on hard tasks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where runs and the boundary rollouts that they share lie."""
    return tmp_path_factory.mktemp("toy")


def train_rows(name: str, folder: Path) -> list[Row]:
    return [train_row(name, seed, folder) for seed in SEEDS]


def test_the_ends_of_the_table_are_the_static_policies(folder):
    recipe = make_toy_recipe("default", 0, folder / "boundaries")
    stage = Stage(recipe.world, lanes=1)
    small, large = (
        measure(STATIC[name], stage, recipe) for name in ("always small", "always large")
    )
    assert (small.large_calls, large.large_calls) == (0, 10)
    assert small.success == pytest.approx(0.378, abs=0.04)
    assert large.success == pytest.approx(0.668, abs=0.04)


def test_the_warm_start_alone_stands_between_them(folder):
    row = train_row("BoSFT only", 0, folder)
    assert 0.40 < row.success < 0.52
    assert 2.0 < row.large_calls < 4.0
    assert row.large_share_hard > 0.2


def test_plain_advantages_collapse_though_the_warm_start_did_not(folder):
    for row in train_rows("plain", folder):
        assert row.large_share_hard < COLLAPSED
        assert row.success < 0.42


@pytest.mark.parametrize("name", ["plain, hard bonus", "plain, gate"])
def test_neither_bonus_nor_gate_alone_cures_the_collapse(name, folder):
    assert train_row(name, 0, folder).large_share_hard < COLLAPSED


def test_anchored_advantages_solve_hard_tasks_at_a_fraction_of_the_calls(folder):
    for row in train_rows("default", folder):
        assert row.success >= 0.57
        assert row.large_calls <= 2.6
        assert row.large_share_hard > 0.15
        assert row.success_hard > 0.5


@pytest.mark.parametrize("name", ["plain, no std", "charge on success"])
def test_advantages_that_blow_up_no_cost_do_not_collapse(name, folder):
    for row in train_rows(name, folder):
        assert row.large_share_hard > 0.15
        assert row.success >= 0.53


def test_a_cold_start_collapses_for_want_of_a_success(folder):
    for row in train_rows("cold", folder):
        assert row.large_share_hard < COLLAPSED


def test_a_cold_start_with_the_reference_rollout_does_not_collapse(folder):
    for row in train_rows("cold + reference", folder):
        assert row.large_share_hard > 0.15
        assert row.success >= 0.54
        assert row.large_calls < 5
