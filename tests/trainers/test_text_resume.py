"""A resumed run of a text policy equals one that was never interrupted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from text_world import REFERENCE_USD, WORLD, make_recipe

torch = pytest.importorskip("torch")
pytest.importorskip("trl", reason="the extra `text` is absent")

from safetensors.torch import load_file  # noqa: E402

from rlroute.tracking import EPISODES_FILE, read_metrics  # noqa: E402
from rlroute.trainers.text_recipe import TextRecipe  # noqa: E402
from rlroute.trainers.text_run import (  # noqa: E402
    BEST_FOLDER,
    STATE_FILE,
    TRAINER_FOLDER,
    TextRun,
    find_checkpoint,
    train_text,
)
from rlroute.types import RLRouteError  # noqa: E402

WINDOW = {"combination": "additive", "normaliser": {"kind": "window", "size": 40}}
FIXED = {"normaliser": {"kind": "fixed", "reference_usd": REFERENCE_USD}}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "grpo": ("grpo", {"kl_weight": 0.01, "micro_batch": 8}, {"reward": WINDOW}),
    "ppo": (
        "ppo",
        {"epochs": 2, "minibatches": 2, "micro_batch": 4},
        {"reward": FIXED, "optimiser": {"learning_rate": 3e-3, "decay": "linear"}},
    ),
}


class InterruptionError(Exception):
    """What ends a run in the middle of an update."""


def make_case(name: str, **parts: Any) -> TextRecipe:
    algorithm, changes, own = CASES[name]
    return make_recipe(
        algorithm,
        changes,
        updates=4,
        checkpoint_every=2,
        validation={"every": 2, "questions": 4},
        **own,
        **parts,
    )


def interrupt(recipe: TextRecipe, folder: Path, update: int, patch: pytest.MonkeyPatch) -> None:
    """Run until the episodes of an update are played, and stop there for good."""
    collect = TextRun.collect

    def stop(run: TextRun, plan: Any, number: int) -> Any:
        found = collect(run, plan, number)
        if number == update:
            raise InterruptionError
        return found

    with patch.context() as patched:
        patched.setattr(TextRun, "collect", stop)
        with pytest.raises(InterruptionError):
            train_text(recipe, folder)


def list_rows(folder: Path) -> list[dict[str, Any]]:
    """Return the metrics without those of the clock."""
    return [
        {name: value for name, value in row.items() if not name.startswith("time/")}
        for row in read_metrics(folder)
    ]


def find_last_checkpoint(folder: Path, update: int, recipe: TextRecipe) -> Path:
    step = update * recipe.algorithm.steps_per_update
    return folder / TRAINER_FOLDER / f"checkpoint-{step}"


def assert_equal_runs(one: Path, other: Path, recipe: TextRecipe) -> None:
    """Compare weights, optimiser, state and what was written down, bit for bit."""
    last = [find_last_checkpoint(folder, recipe.updates, recipe) for folder in (one, other)]
    for kind in (lambda i: last[i], lambda i: (one, other)[i] / BEST_FOLDER):
        weights = [load_file(kind(i) / "model.safetensors") for i in range(2)]
        assert set(weights[0]) == set(weights[1])
        assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    moments = [torch.load(path / "optimizer.pt", weights_only=True)["state"] for path in last]
    for parameter, state in moments[0].items():
        assert all(torch.equal(value, moments[1][parameter][k]) for k, value in state.items())
    states = [json.loads((path / STATE_FILE).read_text("utf-8")) for path in last]
    assert [state.pop("seconds") > 0 for state in states] == [True, True]
    assert states[0] == states[1]
    assert list_rows(one) == list_rows(other)
    assert (one / EPISODES_FILE).read_text("utf-8") == (other / EPISODES_FILE).read_text("utf-8")


@pytest.mark.parametrize("name", list(CASES))
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_case(name)
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    state = train_text(recipe, whole)
    interrupt(recipe, parted, 3, monkeypatch)  # the third update is lost, the second was saved
    assert [row["step"] for row in read_metrics(parted)] == [0, 1, 2, 3]
    resumed = train_text(recipe, parted, resume=True)
    assert resumed.update == state.update == 4
    assert resumed.cost_usd_total == state.cost_usd_total > 0
    assert_equal_runs(whole, parted, recipe)
    if name == "grpo":
        path = find_last_checkpoint(parted, 4, recipe) / STATE_FILE
        window = json.loads(path.read_text("utf-8"))["reward"]["normaliser"]
        assert len(window["charges_micro_usd"]) == 40  # of 64 episodes


def test_a_run_that_ended_before_its_first_checkpoint_starts_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(updates=2, checkpoint_every=2)
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    train_text(recipe, whole)
    interrupt(recipe, parted, 1, monkeypatch)
    assert [row["step"] for row in read_metrics(parted)] == [0, 1]
    train_text(recipe, parted, resume=True)
    assert_equal_runs(whole, parted, recipe)


@pytest.mark.slow
def test_equal_seeds_give_equal_runs_and_other_seeds_give_others(tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        train_text(make_recipe(updates=1, seed=seed), tmp_path / name)
    weights = [
        (tmp_path / name / TRAINER_FOLDER / "checkpoint-1" / "model.safetensors").read_bytes()
        for name in ("one", "two", "three")
    ]
    assert weights[0] == weights[1] != weights[2]


def test_a_checkpoint_without_its_last_file_is_not_gone_on_from(tmp_path: Path) -> None:
    recipe = make_recipe(updates=2, checkpoint_every=1)
    folder = tmp_path / "run"
    train_text(recipe, folder)
    whole = find_last_checkpoint(folder, 2, recipe)
    torn = whole.with_name("checkpoint-7")
    shutil.copytree(whole, torn)
    (torn / STATE_FILE).unlink()
    assert find_checkpoint(folder) == whole
    longer = make_recipe(updates=3, checkpoint_every=1)
    assert train_text(longer, folder, resume=True).update == 3
    last = find_checkpoint(folder)
    assert last is not None
    assert last.name == "checkpoint-3"
    assert (last / "model.safetensors").exists()
    (last / STATE_FILE).unlink()
    assert find_checkpoint(folder) is None


def test_at_no_time_of_saving_is_there_no_complete_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(updates=2, checkpoint_every=1)
    folder = tmp_path / "run"
    save_state, found = TextRun.save_state, []

    def watch(run: TextRun, checkpoint: Path) -> None:
        complete = list((folder / TRAINER_FOLDER).glob(f"checkpoint-*/{STATE_FILE}"))
        found.append((checkpoint.name, [path.parent.name for path in complete]))
        save_state(run, checkpoint)

    monkeypatch.setattr(TextRun, "save_state", watch)
    train_text(recipe, folder)
    assert found == [("checkpoint-1", []), ("checkpoint-2", ["checkpoint-1"])]
    kept = sorted(path.name for path in (folder / TRAINER_FOLDER).glob("checkpoint-*"))
    assert kept == ["checkpoint-2"]


@pytest.mark.slow
def test_a_run_that_is_gone_on_with_takes_its_warm_start_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(
        updates=2,
        checkpoint_every=1,
        policy={
            "base": {"kind": "new", "hidden": 16, "layers": 1, "heads": 2, "vocabulary": 400},
            "precision": "float32",
        },
        questions={"kind": "relations", "train": 32, "val": 8, "test": 8, "world": WORLD},
        warm_start={"planner": "knowing", "episodes": 32, "batch": 16},
    )
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    train_text(recipe, whole)
    interrupt(recipe, parted, 1, monkeypatch)
    monkeypatch.setattr("rlroute.trainers.text_run.write_episodes", refuse)
    monkeypatch.setattr("rlroute.trainers.text_run.run_warm_start", refuse)
    train_text(recipe, parted, resume=True)
    assert_equal_runs(whole, parted, recipe)


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("what has been made is not made again")


def test_a_folder_is_neither_overwritten_nor_resumed_from_without_a_word(tmp_path: Path) -> None:
    recipe = make_recipe(updates=1)
    folder = tmp_path / "run"
    train_text(recipe, folder)
    with pytest.raises(RLRouteError, match=r"--resume .* --overwrite"):
        train_text(recipe, folder)
    train_text(recipe, folder, overwrite=True)
    assert [row["step"] for row in read_metrics(folder)] == [0, 1]
