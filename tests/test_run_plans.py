"""A dry run refuses what the run would refuse, as far as reading the table shows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlroute.runs import run_training
from rlroute.types import RLRouteError

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
SINGLE = RECIPES / "single_turn" / "mlp_ppo.yaml"
PREFERENCES = RECIPES / "single_turn" / "mlp_preferences.yaml"
SESSIONS = RECIPES / "step_budget" / "query_session_ppo.yaml"
STREAM = RECIPES / "bandits" / "pocket_stream.yaml"


def run_dry(recipe: Path, *overrides: str) -> None:
    run_training(
        *(recipe, overrides),
        run_folder=Path("never"),
        overwrite=False,
        resume=None,
        dry_run=True,
    )


@pytest.mark.parametrize(
    ("recipe", "override", "line"),
    [
        (SINGLE, "hold_out_candidates=[nobody]", "hold_out_candidates: .* no candidate 'nobody'"),
        (
            *(PREFERENCES, "users.patient.candidate_bias={nobody: 0.1}"),
            r"users\.patient\.candidate_bias: unknown candidate 'nobody'",
        ),
        (SESSIONS, "world.queries=5000", "too few queries for a session of 5000"),
        (SESSIONS, "budget.unit=calls", "no whole number of calls"),
        (STREAM, "events=[{kind: dies, candidate: nobody, at: 5}]", "events: .*no such candidate"),
        (STREAM, "learners=[{kind: always, candidate: nobody}]", "learners: no candidate 'nobody'"),
    ],
)
def test_what_does_not_fit_the_table_is_refused(recipe, override, line):
    with pytest.raises(RLRouteError, match=line) as raised:
        run_dry(recipe, override)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("recipe", [SINGLE, SESSIONS, STREAM], ids=lambda path: path.stem)
def test_what_fits_is_planned(recipe, capsys):
    run_dry(recipe)
    assert "nothing was trained or written" in capsys.readouterr().err
    assert not Path("never").exists()


def test_a_log_without_propensities_is_refused():
    with pytest.raises(RLRouteError, match="propensities"):
        run_dry(
            *(SINGLE, "logs={kind: table}", "algorithm={kind: off_policy}"),
            "validation.metric=utility",
        )


def test_missing_latencies_are_refused(tmp_path):
    from rlroute.data.table import find_folder, read_table, write_table

    table = read_table(str(find_folder("pocket")))
    table.latency_seconds_QK[:, 0] = float("nan")
    write_table(table, tmp_path / "table")
    with pytest.raises(RLRouteError, match=r"latency_weight: .* no latency_seconds of candidate"):
        run_dry(
            SINGLE,
            f"table={tmp_path / 'table'}",
            "latency_weight={max: 1}",
            "validation.metric=utility",
        )
