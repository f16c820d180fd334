"""`rlroute sweep`: the grid, its folders, what goes on and what is kept, and two real processes."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlroute import sweep
from rlroute.cli import app
from rlroute.config import dump_config
from rlroute.data.table import OutcomeTable, write_table
from rlroute.sweep import (
    PlannedRun,
    Processes,
    bring_through,
    check_folder,
    count_updates,
    is_evaluated,
    list_train_arguments,
    name_run,
    parse_seeds,
    parse_setting,
    plan_sweep,
    run_sweep,
)
from rlroute.types import RLRouteError

RECIPE = """
table: {table}
updates: 3
encoder: {{kind: tfidf, dimension: 8, min_documents: 1}}
profile: {{clusters: 2}}
cost_weight: {{max: 2}}
policy: {{hidden: 8}}
algorithm: {{kind: expected_gradient, queries: 16}}
validation: {{every: 1, cost_weights: 3}}
evaluation: {{cost_weights: 5, bootstrap: 20}}
checkpoint_every: 1
tracking: {{wandb: false}}
"""


@pytest.fixture
def recipe(tiny_table: OutcomeTable, tmp_path: Path) -> Path:
    write_table(tiny_table, tmp_path / "tables" / "tiny")
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE.format(table=tmp_path / "tables" / "tiny"), encoding="utf-8")
    return path


def plan_one(recipe: Path, folder: Path, *overrides: str) -> PlannedRun:
    return plan_sweep(recipe, overrides, [0], [], folder)[0]


def start_run(run: PlannedRun, step: int | None) -> None:
    """Leave what training leaves: the recipe, and the checkpoint of a step."""
    run.folder.mkdir(parents=True)
    (run.folder / "recipe.resolved.yaml").write_text(dump_config(run.recipe), encoding="utf-8")
    if step is not None:
        (run.folder / "checkpoints" / f"step-{step}").mkdir(parents=True)


def test_the_command_hands_on_what_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[object] = []

    def run(*arguments: object, **options: object) -> bool:
        given.extend([*arguments, options])
        return False

    monkeypatch.setattr("rlroute.sweep.run_sweep", run)
    words = ["sweep", "r.yaml", "updates=3", "--seeds", "4", "--set", "a=1,2", "--set", "b=[1,2]"]
    done = CliRunner().invoke(app, [*words, "--jobs", "2", "--out", str(tmp_path)])
    assert done.exit_code == 1  # not every run came through
    options = {"jobs": 2, "out": tmp_path}
    assert given == [Path("r.yaml"), ["updates=3"], "4", ["a=1,2", "b=[1,2]"], options]


def test_every_setting_meets_every_seed(recipe: Path, tmp_path: Path) -> None:
    plan = plan_sweep(
        recipe, ["updates=5"], [0, 7], ["policy.hidden=8,16", "cost_weight.max=1,2"], tmp_path
    )
    assert len(plan) == 8
    assert [run.seed for run in plan] == [0, 7] * 4
    assert plan[1].setting == "policy.hidden=8, cost_weight.max=1"
    assert (plan[1].recipe.policy.hidden, plan[1].recipe.cost_weight.max) == (8, 1)
    assert {run.recipe.updates for run in plan} == {5}
    assert plan[1].folder == tmp_path / "runs" / "policy.hidden=8,cost_weight.max=1-s7"
    assert len({run.folder for run in plan}) == 8


def test_values_are_read_as_yaml_and_brackets_hold_their_commas() -> None:
    assert parse_setting("a.b=1,2e-3,x") == ("a.b", ["a.b=1", "a.b=2e-3", "a.b=x"])
    assert parse_setting("a=[1, 2],null,true") == ("a", ["a=[1, 2]", "a=null", "a=true"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hidden", "key=value1,value2"),
        ("hidden=", "key=value1,value2"),
        ("=1", "key=value1,value2"),
        ("seed=1,2", "--seeds"),
        ("hidden=[1", "not valid YAML"),
        ("hidden=8,8", "twice"),
        ("hidden=2020-01-01", "numbers, words or lists"),
    ],
)
def test_a_faulty_setting_is_refused(text: str, message: str) -> None:
    with pytest.raises(RLRouteError, match=message):
        parse_setting(text)


def test_faulty_seeds_are_refused() -> None:
    assert parse_seeds("0, 12") == [0, 12]
    for text in ("", "a", "0,,1", "-1", "1,1"):
        with pytest.raises(RLRouteError, match="--seeds"):
            parse_seeds(text)


def test_a_plan_that_cannot_be_trained_is_refused_before_anything_starts(
    recipe: Path, tmp_path: Path
) -> None:
    with pytest.raises(RLRouteError, match="did you mean 'hidden'"):
        plan_sweep(recipe, [], [0], ["policy.hiden=1"], tmp_path / "out")
    with pytest.raises(RLRouteError, match="two --set"):
        plan_sweep(recipe, [], [0], ["policy.hidden=1", "policy.hidden=2"], tmp_path / "out")
    with pytest.raises(RLRouteError, match="--seeds"):
        plan_sweep(recipe, ["seed=1"], [0], [], tmp_path / "out")
    other = tmp_path / "steps.yaml"
    other.write_text("environment: step_budget\n", encoding="utf-8")
    with pytest.raises(RLRouteError, match="single_turn"):
        plan_sweep(other, [], [0], [], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_of_settings_that_look_alike_in_a_path_differ() -> None:
    assert name_run([], 3) == "base-s3"
    assert name_run(["table=a/b"], 0) != name_run(["table=a:b"], 0)
    assert "/" not in name_run(["table=a/b"], 0)
    assert name_run(["x=" + "1" * 300], 0) != name_run(["x=" + "1" * 301], 0)


def test_training_starts_goes_on_or_is_done(recipe: Path, tmp_path: Path) -> None:
    for step, expected in ((None, "--overwrite"), (2, "--resume"), (3, None)):
        run = plan_one(recipe, tmp_path / str(step))
        start = list_train_arguments(run, recipe)
        assert start == ["train", str(recipe), "seed=0", "--run-folder", str(run.folder)]
        start_run(run, step)
        found = list_train_arguments(run, recipe)
        assert found is None if expected is None else expected in found


def test_a_start_that_was_cut_short_is_cleared_and_other_files_stay(
    recipe: Path, tmp_path: Path
) -> None:
    run = plan_one(recipe, tmp_path)
    (run.folder / "encoder").mkdir(parents=True)
    (run.folder / ".candidates.json.x1").touch()
    list_train_arguments(run, recipe)
    assert not run.folder.exists()
    run.folder.mkdir()
    (run.folder / "thesis.txt").touch()
    list_train_arguments(run, recipe)
    assert (run.folder / "thesis.txt").exists()


def test_a_folder_of_other_settings_is_refused(recipe: Path, tmp_path: Path) -> None:
    run = plan_one(recipe, tmp_path)
    check_folder(run)
    start_run(run, 3)
    check_folder(run)
    with pytest.raises(RLRouteError, match="other settings"):
        check_folder(plan_one(recipe, tmp_path, "policy.hidden=9"))


def test_an_evaluation_older_than_the_weights_is_made_again(recipe: Path, tmp_path: Path) -> None:
    run = plan_one(recipe, tmp_path)
    start_run(run, 3)
    assert not is_evaluated(run)
    (run.folder / "best").mkdir()
    for name in ("best/best.json", "evaluation.json"):
        (run.folder / name).touch()
    os.utime(run.folder / "best" / "best.json", (1, 1))
    assert is_evaluated(run)
    os.utime(run.folder / "evaluation.json", (0, 0))
    assert not is_evaluated(run)


def test_updates_are_counted_from_the_rows_after_the_first(recipe: Path, tmp_path: Path) -> None:
    run = plan_one(recipe, tmp_path)
    assert count_updates(run.folder, 3) == 0
    start_run(run, None)
    (run.folder / "metrics.jsonl").write_text("{}\n{}\n{}", encoding="utf-8")
    assert count_updates(run.folder, 3) == 1


def test_once_stopped_no_process_starts(recipe: Path, tmp_path: Path) -> None:
    processes = Processes()
    processes.stop()
    run = plan_one(recipe, tmp_path)
    assert bring_through(run, recipe, processes) is not None
    assert not run.folder.exists()


def test_a_stop_ends_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "sleeper"
    script.write_text("#!/bin/sh\nexec sleep 60\n", encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setattr(sweep.sys, "executable", str(script))
    processes, codes = Processes(), []
    thread = threading.Thread(
        target=lambda: codes.append(processes.call(["train"], tmp_path / "log"))
    )
    thread.start()
    while not processes.running:
        thread.join(0.01)
    processes.stop()
    thread.join(30)
    assert codes
    assert codes[0] != 0


def test_a_run_that_fails_is_reported_and_stops_no_other(
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def call(self: Processes, arguments: list[str], log: Path) -> int:
        log.write_text("a warning\nrlroute: the table has burnt down\n", encoding="utf-8")
        return 2 if "seed=1" in arguments else 0

    monkeypatch.setattr(Processes, "call", call)
    monkeypatch.setattr("rlroute.evaluation.sweep_report.read_seed_result", lambda *_: None)
    reported: list[tuple[int, dict[str, str]]] = []

    def write(folder: Path, results: list[None], failures: dict[str, str]) -> str:
        reported.append((len(results), failures))
        return "summary"

    monkeypatch.setattr("rlroute.evaluation.sweep_report.write_sweep", write)
    monkeypatch.setattr("rlroute.evaluation.sweep_report.render_sweep", lambda summary: summary)
    assert not run_sweep(recipe, [], "0,1,2", [], jobs=2, out=tmp_path / "out")
    reason = "training: the table has burnt down"
    assert reported == [(2, {"base-s1": reason})]
    assert f"failed: base-s1: {reason}" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(RLRouteError, match="none of 1 runs came through"):
        run_sweep(recipe, [], "1", [], jobs=2, out=tmp_path / "none")


@pytest.mark.slow
def test_two_processes_train_two_seeds_and_a_second_start_keeps_them(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert run_sweep(recipe, [], "0,1", [], jobs=2, out=out)
    found = json.loads((out / "sweep.json").read_text(encoding="utf-8"))
    assert found["failures"] == {}
    own = next(row for row in found["rows"] if row["is_setting"])
    assert own["seeds"] == [0, 1]
    for seed in (0, 1):
        run = out / "runs" / f"base-s{seed}"
        assert (run / "checkpoints" / "step-3").is_dir()
        assert (run / "report.html").exists()
        assert f"seed: {seed}" in (run / "recipe.resolved.yaml").read_text(encoding="utf-8")
    singles = [json.loads((out / f"runs/base-s{s}/evaluation.json").read_text()) for s in (0, 1)]
    aiq = [one["policies"][0]["frontier"]["aiq"]["value"] for one in singles]
    assert own["spreads"]["aiq"]["smallest"] == min(aiq)
    assert own["spreads"]["aiq"]["mean"] == pytest.approx(sum(aiq) / 2)
    assert "| **recipe as it is** | 0, 1 |" in (out / "sweep.md").read_text(encoding="utf-8")

    def refuse(self: Processes, arguments: list[str], log: Path) -> int:
        raise AssertionError(f"started again: {arguments}")

    monkeypatch.setattr(Processes, "call", refuse)
    assert run_sweep(recipe, [], "0,1", [], jobs=2, out=out)
