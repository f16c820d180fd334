"""`rlroute compare`: two runs of one table, and one line for what cannot be compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from rlroute.cli import app
from rlroute.config import dump_config, parse_config
from rlroute.data.table import OutcomeTable, write_table
from rlroute.evaluation.contenders import Setting
from rlroute.run_comparison import compare_runs, name_runs, run_compare
from rlroute.trainers.decision import train
from rlroute.trainers.recipe import Recipe
from rlroute.types import RLRouteError

PAIRS = {"kind": "subsets", "sizes": [1, 2], "combine": "best_of"}
SECONDS = {"large": 0.1, "small": 0.01, "tool": 0.001}
HURRIED = {
    "latency": {"seconds_per_output_token": SECONDS, "seconds_to_first_token": SECONDS},
    "latency_weight": {"max": 1.0},
    "validation": {"metric": "utility"},
}

LOGGED = {
    "logs": {"kind": "table"},
    "algorithm": {"kind": "cql"},
    "validation": {"metric": "utility"},
}
HELD_OUT = {"kind": "held_out_tasks", "test": ["sums"]}


@pytest.fixture(scope="module")
def runs(tiny_table: OutcomeTable, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs on one table, and one on a table of the same texts with fewer candidates."""
    root = tmp_path_factory.mktemp("compare")
    write_table(tiny_table, root / "tables" / "tiny")
    write_table(tiny_table.select_candidates(["large", "small"]), root / "tables" / "fewer")
    folders = {}
    for name, table, seed, changes in (
        ("one", "tiny", 0, {}),
        ("two", "tiny", 1, {}),
        ("other", "fewer", 0, {}),
        ("pairs", "tiny", 0, {"actions": [PAIRS]}),
        ("held", "tiny", 0, {"hold_out_candidates": ["large"]}),
        ("hurried", "tiny", 0, HURRIED),
    ):
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
            **changes,
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


@pytest.mark.parametrize(
    ("other", "counts"),
    [("pairs", "3 candidates, pairs among 6"), ("held", "3 candidates, held among 2")],
)
def test_runs_with_other_actions_on_one_table_are_paired_by_query(
    runs: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    other: str,
    counts: str,
) -> None:
    compare_runs(runs["one"], runs[other], Setting(), out=tmp_path)
    printed = " ".join(capsys.readouterr().out.split())
    assert f"one picks among {counts}" in printed
    page = (tmp_path / "compare.html").read_text(encoding="utf-8")
    assert f"one picks among {counts}" in page
    own = tmp_path / "own"
    compare_runs(runs[other], runs["two"], Setting(), out=own)
    turned, found = (
        json.loads((folder / "compare.json").read_text(encoding="utf-8"))
        for folder in (own, tmp_path)
    )
    # weight 0 is the same in any unit: what a run is worth does not depend on its rival
    for key in ("quality", "cost_usd"):
        assert turned["setting"][key]["first"] == found["setting"][key]["second"]
    assert found["cost_max_usd"] == turned["cost_max_usd"]


def test_a_run_that_weighs_latency_is_said_to_be_asked_at_its_least(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare_runs(runs["one"], runs["hurried"], Setting(), out=tmp_path)
    note = "hurried weighs latency too (weights up to 1): it is asked at latency weight 0"
    assert note in " ".join(capsys.readouterr().out.split())
    assert note in (tmp_path / "compare.html").read_text(encoding="utf-8")
    (found,) = json.loads((tmp_path / "compare.json").read_text(encoding="utf-8"))["notes"]
    assert found.startswith(note)


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


def write_facts(run: Path, folder: Path, changes: dict[str, object]) -> Path:
    """Write what is read first of a run: the recipe of another one, changed, on another table."""
    folder.mkdir()
    recipe = yaml.safe_load((run / "recipe.resolved.yaml").read_text(encoding="utf-8"))
    dumped = dump_config(parse_config(Recipe, recipe | changes, "recipe"))
    (folder / "recipe.resolved.yaml").write_text(dumped, encoding="utf-8")
    (folder / "run.json").write_text('{"table_digest": "another"}', encoding="utf-8")
    return folder


def test_what_cannot_be_compared_is_refused_in_one_line(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    steps = tmp_path / "steps"
    steps.mkdir()
    (steps / "recipe.resolved.yaml").write_text("environment: step_budget\n", encoding="utf-8")
    logged = write_facts(runs["one"], tmp_path / "logged", LOGGED)
    cut = write_facts(runs["one"], tmp_path / "cut", {"split": HELD_OUT})
    cases = {
        "into other splits": (runs["one"], cut, None, None),
        "know other outcomes of table tiny": (runs["one"], logged, None, None),
        r"--beside RUN shows two step_budget runs": (steps, steps, None, None),
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
