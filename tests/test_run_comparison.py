"""`rlroute compare`: two runs of one table, and one line for what cannot be compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlroute.cli import app
from rlroute.config import parse_config
from rlroute.data.table import OutcomeTable, write_table
from rlroute.evaluation.run_difference import Setting
from rlroute.run_comparison import compare_runs, name_runs, run_compare
from rlroute.trainers.decision import train
from rlroute.trainers.recipe import Recipe
from rlroute.types import RLRouteError


@pytest.fixture(scope="module")
def runs(tiny_table: OutcomeTable, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two runs on one table, and one on a table whose texts are the same but not its prices."""
    root = tmp_path_factory.mktemp("compare")
    write_table(tiny_table, root / "tables" / "tiny")
    write_table(tiny_table.select_candidates(["large", "small"]), root / "tables" / "fewer")
    folders = {}
    for name, table, seed in (("one", "tiny", 0), ("two", "tiny", 1), ("other", "fewer", 0)):
        data = {
            "table": str(root / "tables" / table),
            "seed": seed,
            "updates": 2,
            "encoder": {"kind": "tfidf", "dimension": 8, "min_documents": 1},
            "profile": {"clusters": 2},
            "cost_weight": {"max": 2.0},
            "policy": {"hidden": 8},
            "algorithm": {"kind": "expected_gradient", "queries": 16},
            "validation": {"cost_weights": 3},
            "evaluation": {"cost_weights": 5, "bootstrap": 20},
            "tracking": {"wandb": False},
        }
        folders[name] = root / "runs" / name
        train(parse_config(Recipe, data, "recipe"), folders[name])
    return folders


def test_two_runs_leave_a_comparison_and_print_it(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare_runs(runs["one"], runs["two"], Setting(), out=tmp_path / "found")
    names = sorted(path.name for path in (tmp_path / "found").iterdir())
    assert names == ["compare.html", "compare.json", "compare.png"]
    found = json.loads((tmp_path / "found" / "compare.json").read_text(encoding="utf-8"))
    assert (found["first"], found["second"], found["test_queries"]) == ("one", "two", 3)
    assert len(found["weights"]) == 5
    printed = capsys.readouterr().out
    assert "one (1) against two (2)" in printed
    assert "compare.html" in printed


def test_a_budget_is_in_usd_per_1000_queries(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_compare(runs["one"], runs["two"], at_weight=None, at_budget=50.0, out=tmp_path)
    found = json.loads((tmp_path / "compare.json").read_text(encoding="utf-8"))
    assert found["setting"]["budget_usd"] == pytest.approx(0.05)
    assert "a budget of 50.00 USD per 1,000 queries" in " ".join(capsys.readouterr().out.split())


def test_without_a_folder_the_comparison_is_named_by_both(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    compare_runs(runs["one"], runs["two"], Setting(cost_weight=2.0), out=None)
    assert (tmp_path / "runs" / "compare-one-two" / "compare.json").exists()


def test_what_cannot_be_compared_is_refused_in_one_line(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    steps = tmp_path / "steps"
    steps.mkdir()
    (steps / "recipe.resolved.yaml").write_text("environment: step_budget\n", encoding="utf-8")
    cases = {
        "different tables": (runs["one"], runs["other"], None, None),
        "the same run": (runs["one"], runs["one"] / ".." / "one", None, None),
        "no run lies here": (runs["one"], tmp_path / "absent", None, None),
        "step_budget; compare takes two single_turn or two": (steps, runs["one"], None, None),
        "either --at-weight or --at-budget": (runs["one"], runs["two"], 1.0, 1.0),
        "must be finite and above 0": (runs["one"], runs["two"], None, -1.0),
        "out of the range": (runs["one"], runs["two"], 7.0, None),
    }
    for message, (first, second, weight, budget) in cases.items():
        out = tmp_path / "out"
        with pytest.raises(RLRouteError, match=message) as error:
            run_compare(first, second, at_weight=weight, at_budget=budget, out=out)
        assert "\n" not in str(error.value)
        assert not out.exists()


def test_the_command_hands_on_what_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[object] = []
    monkeypatch.setattr(
        "rlroute.run_comparison.run_compare",
        lambda *runs, **options: given.extend([*runs, options]),
    )
    words = ["compare", "a", "b", "--at-budget", "0.5", "--out", str(tmp_path)]
    assert CliRunner().invoke(app, words).exit_code == 0
    options = {"at_weight": None, "at_budget": 0.5, "out": tmp_path}
    assert given == [Path("a"), Path("b"), options]


def test_runs_of_the_same_name_are_told_apart_by_their_folders() -> None:
    assert name_runs(Path("a/run"), Path("b/run")) == ("a/run", "b/run")
    assert name_runs(Path("x"), Path("a/y")) == ("x", "y")
