"""Whole runs of memory-tier routing on a small generated world: files, resume, seeds, refusals."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from memory_run_example import (
    GRPO,
    JOINT,
    PPO,
    PROFILES,
    RLOO,
    RULES,
    SMALL,
    WINDOW,
    MakeRecipe,
    describe_pipeline,
    make_memory_recipe,
)

from rlroute.memory_runs import evaluate_memory_run
from rlroute.tracking import read_metrics
from rlroute.trainers.checkpoint import WEIGHTS_FILE
from rlroute.trainers.memory_run import train_memory
from rlroute.trainers.memory_stage import open_memory_stage
from rlroute.trainers.run_folder import BEST_FOLDER, CHECKPOINTS_FOLDER
from rlroute.types import RLRouteError


@pytest.fixture(scope="module")
def make_recipe(tmp_path_factory: pytest.TempPathFactory) -> MakeRecipe:
    """Return a function that makes a short recipe; the trees are shared."""
    return partial(make_memory_recipe, tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def finished(make_recipe: MakeRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two updates; do not write to it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    train_memory(make_recipe(updates=2), folder)
    return folder


def read_timeless(folder: Path) -> list[dict[str, Any]]:
    return [
        {name: repr(value) for name, value in row.items() if not name.startswith("time/")}
        for row in read_metrics(folder)
    ]


def read_weights(folder: Path, update: int) -> bytes:
    return (folder / CHECKPOINTS_FOLDER / f"step-{update}" / WEIGHTS_FILE).read_bytes()


def read_state(folder: Path, update: int) -> dict[str, Any]:
    path = folder / CHECKPOINTS_FOLDER / f"step-{update}" / "state.json"
    return json.loads(path.read_text("utf-8"))


# --- Files, seeds, resume -------------------------------------------------------------------------


def test_a_run_leaves_its_files_and_metrics_under_their_fixed_names(make_recipe, tmp_path):
    folder = tmp_path / "run"
    recipe = make_recipe(outcomes={"kind": "tabulated"})
    state = train_memory(recipe, folder, command="rlroute train recipe.yaml")
    assert {path.name for path in folder.iterdir()} == {
        "recipe.resolved.yaml", "run.json", "encoder", "audit.json", "tree", "metrics.jsonl",
        "trajectories.jsonl", "events.log", "checkpoints", "best",
    }  # fmt: skip
    assert {path.name for path in (folder / "tree").iterdir()} == {"train", "val"}
    facts = json.loads((folder / "run.json").read_text("utf-8"))
    assert facts["command"] == "rlroute train recipe.yaml"
    assert facts["questions"]["train"] > facts["questions"]["test"] > 0
    audit = json.loads((folder / "audit.json").read_text("utf-8"))
    assert [row["tier"] for row in audit["rows"][2:5]] == ["Low", "Mid", "High"]
    assert audit["reference_usd"] > 0
    rows = read_metrics(folder)
    assert [row["step"] for row in rows] == list(range(5))
    assert {
        "reward/outcome/mean", "reward/outcome/std", "reward/cost/mean", "reward/scale",
        "reward/cost/frac_undefined", "group/dropped", "selection/share/entity/High",
        "selection/share/filter/rules", "selection/entropy", "cost/usd_per_query",
        "cost/usd_total", "policy/entropy", "policy/kl", "policy/clip_frac", "policy/value_loss",
        "policy/explained_variance", "policy/grad_norm", "time/rollout", "time/update",
        "eval/utility", "eval/aiq", "eval/quality", "eval/cost", "eval/failed",
    } <= set(rows[-1])  # fmt: skip
    shares = [rows[-1][f"selection/share/entity/{tier}"] for tier in ("Low", "Mid", "High")]
    assert sum(shares) == pytest.approx(1)
    total = sum(row["cost/usd_per_query"] * 32 for row in rows[1:])
    assert state.cost_usd_total == pytest.approx(total)
    episodes = [json.loads(line) for line in (folder / "trajectories.jsonl").open()]
    assert {"question", "kind", "cost_weight", "score", "cost_usd", "entity"} <= set(episodes[0])
    for path in (path for path in folder.rglob("*") if path.is_file()):  # nothing is pickled
        assert path.suffix in {".safetensors", ".json", ".jsonl", ".yaml", ".log", ".npy"}, path


@pytest.mark.parametrize(
    ("algorithm", "changes"),
    [(PPO, {}), (JOINT, {}), (RLOO, {}), (GRPO, {}), (PPO, {"policy": PROFILES})],
    ids=["ppo", "joint", "rloo", "grpo", "profiles"],
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    algorithm, changes, make_recipe, tmp_path
):
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    recipe = make_recipe(algorithm, **changes)
    train_memory(recipe, whole)
    train_memory(make_recipe(algorithm, updates=2, **changes), parted)
    rows = (whole / "metrics.jsonl").read_text("utf-8").splitlines()
    behind = "\n".join(rows[:4]) + "\n" + rows[4][:40]  # behind the checkpoint, and torn
    (parted / "metrics.jsonl").write_text(behind, "utf-8")
    shutil.copyfile(whole / "recipe.resolved.yaml", parted / "recipe.resolved.yaml")
    assert train_memory(recipe, parted, resume=True).update == 4
    assert read_weights(whole, 4) == read_weights(parted, 4)
    for name in (f"{BEST_FOLDER}/{WEIGHTS_FILE}", "trajectories.jsonl"):
        assert (whole / name).read_bytes() == (parted / name).read_bytes()
    assert read_timeless(whole) == read_timeless(parted)
    assert read_state(whole, 4)["problem"] == read_state(parted, 4)["problem"]


def test_a_checkpoint_holds_window_and_alignment_and_they_matter(make_recipe, tmp_path):
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    train_memory(make_recipe(), whole)
    train_memory(make_recipe(updates=2), parted)
    path = parted / CHECKPOINTS_FOLDER / "step-2" / "state.json"
    state = json.loads(path.read_text("utf-8"))
    reward = state["problem"]["reward"]
    assert len(reward["alignment"]["costs"]) == 64  # two updates of 32 episodes
    reward["alignment"] = {"outcomes": [0.0, 1.0] * 10, "costs": [0.4, 0.6] * 10}
    path.write_text(json.dumps(state), "utf-8")
    train_memory(make_recipe(), parted, resume=True)
    assert read_weights(whole, 4) != read_weights(parted, 4)


def test_equal_seeds_give_equal_runs_and_other_seeds_give_others(make_recipe, tmp_path):
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        torch.manual_seed(len(name))  # generator state decides nothing
        train_memory(make_recipe(updates=2, seed=seed), tmp_path / name)
    weights = [read_weights(tmp_path / name, 2) for name in ("one", "two", "three")]
    assert weights[0] == weights[1] != weights[2]
    assert read_timeless(tmp_path / "one") == read_timeless(tmp_path / "two")


def test_a_folder_in_use_is_not_overwritten_unasked(make_recipe, tmp_path):
    recipe = make_recipe(updates=1)
    train_memory(recipe, tmp_path / "run")
    with pytest.raises(RLRouteError, match=r"--resume .* --overwrite"):
        train_memory(recipe, tmp_path / "run")
    train_memory(recipe, tmp_path / "run", overwrite=True)
    shutil.rmtree(tmp_path / "run" / CHECKPOINTS_FOLDER)
    with pytest.raises(RLRouteError, match="no checkpoint to resume from"):
        train_memory(recipe, tmp_path / "run", resume=True)


# --- Live and tabulated ---------------------------------------------------------------------------


def test_a_live_run_equals_a_tabulated_one_bit_for_bit(make_recipe, tmp_path):
    # the reference of a live run comes from the audit's questions: here from all of them
    for kind in ("tabulated", "live"):
        recipe = make_recipe(updates=3, outcomes={"kind": kind})
        train_memory(recipe, tmp_path / kind)
    assert read_weights(tmp_path / "tabulated", 3) == read_weights(tmp_path / "live", 3)
    assert read_timeless(tmp_path / "tabulated") == read_timeless(tmp_path / "live")
    assert (tmp_path / "live" / "module_runs.jsonl").stat().st_size > 1000


def test_what_a_live_run_paid_for_outlives_it(make_recipe, tmp_path):
    recipe, run = make_recipe(updates=1, outcomes={"kind": "live"}), tmp_path / "run"
    train_memory(recipe, run)
    paid, weights = (run / "module_runs.jsonl").read_bytes(), read_weights(run, 1)
    train_memory(recipe, run, overwrite=True)
    assert (run / "module_runs.jsonl").read_bytes() == paid  # nothing ran again
    assert read_weights(run, 1) == weights
    shutil.rmtree(run)
    run.mkdir()
    (run / "module_runs.jsonl").write_bytes(paid)
    train_memory(recipe, run)  # alone it is no run that stands in the way
    assert (run / "module_runs.jsonl").read_bytes() == paid


def test_what_ran_once_is_never_run_again(make_recipe, tmp_path, monkeypatch):
    from rlroute.memory.simulated_models import SimulatedModels

    asked = []
    ask_many = SimulatedModels.ask_many

    async def count(self, calls):
        asked.extend(calls)
        return await ask_many(self, calls)

    monkeypatch.setattr(SimulatedModels, "ask_many", count)
    store = tmp_path / "runs.jsonl"
    recipe = make_recipe(updates=2, outcomes={"kind": "live", "store": str(store)})
    train_memory(recipe, tmp_path / "one")
    first = len(asked)
    train_memory(recipe, tmp_path / "two")
    assert first > 50
    assert len(asked) == first
    with open_memory_stage(recipe, tmp_path / "two") as stage:
        store, question_B = stage.pipeline.store, np.zeros(4, dtype=np.int64)
        tier_BM = np.array([[0, 2, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1], [1, 2, 0, 1]])
        misses = []
        for _ in range(2):  # the second time is a second epoch, whose outcomes remember nothing
            train = stage.open_outcomes("train")
            for step in range(4):
                train.run(question_B, step, tier_BM)
            train.answer(question_B, tier_BM)
            misses.append(store.misses)
        assert misses[0] == misses[1]
        assert store.hits > 10


# --- Evaluation -----------------------------------------------------------------------------------


def check_evaluation(folder: Path) -> set[str]:
    """Return the names of the contenders in an evaluation's files."""
    for name in ("evaluation.json", "report.html", "questions.jsonl", "frontier.png"):
        assert (folder / name).stat().st_size > 100, name
    assert "simulated" in (folder / "report.html").read_text("utf-8")
    names = ("ppo", "run other", "random", "oracle", "best static", "classifier")
    text = (folder / "evaluation.json").read_text("utf-8")
    return {name for name in names if f'"{name}"' in text}


def test_an_evaluation_writes_its_files_with_another_run_beside(finished, make_recipe, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    shutil.copytree(finished, one)
    train_memory(make_recipe(JOINT, updates=1), other)
    result = evaluate_memory_run(one, beside=[other])
    assert check_evaluation(one) == {
        *("ppo", "run other", "random", "oracle", "best static", "classifier")
    }
    assert not (other / "evaluation.json").exists()
    assert result.subject.name == "ppo"


def test_a_live_run_is_compared_with_what_can_be_played(make_recipe, tmp_path):
    train_memory(make_recipe(updates=1, outcomes={"kind": "live"}), tmp_path / "one")
    evaluate_memory_run(tmp_path / "one")
    assert check_evaluation(tmp_path / "one") == {"ppo", "random"}


def test_runs_of_another_pipeline_or_encoder_are_not_shown_beside(finished, make_recipe, tmp_path):
    others = {
        "pipeline": {"pipeline": describe_pipeline(entity=[RULES, SMALL])},
        "encoder": {"encoder": {"kind": "tfidf", "dimension": 6}},
    }
    for name, changes in others.items():
        recipe = make_recipe(updates=1, outcomes={"kind": "live"}, **changes)
        train_memory(recipe, tmp_path / name)
        with pytest.raises(RLRouteError, match=f"differ in their {name}") as caught:
            evaluate_memory_run(finished, beside=[tmp_path / name])
        assert "\n" not in str(caught.value)


def test_what_is_no_finished_run_is_refused_in_one_line(finished, tmp_path):
    with pytest.raises(RLRouteError, match="no run lies here"):
        evaluate_memory_run(tmp_path)
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    best = run / BEST_FOLDER / WEIGHTS_FILE
    best.write_bytes(best.read_bytes()[:100])
    with pytest.raises(RLRouteError, match="cannot be read") as caught:
        evaluate_memory_run(run)
    assert "\n" not in str(caught.value)
    shutil.rmtree(run / BEST_FOLDER)
    with pytest.raises(RLRouteError, match="has not kept a policy yet"):
        evaluate_memory_run(run)


# --- Refusals -------------------------------------------------------------------------------------


def test_a_policy_must_see_a_cost_weight_that_varies(make_recipe):
    blind = {"hidden": 8, "read_extras": "none"}
    with pytest.raises(RLRouteError, match="hides the cost weight") as caught:
        make_recipe(policy=blind)
    assert "\n" not in str(caught.value)
    assert make_recipe(policy=blind, cost_weight={"min": 0.3, "max": 0.3}).policy.hidden == 8


def test_the_sources_configuration_trains_at_one_cost_weight(make_recipe, tmp_path):
    source = {"head": "outputs", "read_extras": "none", "unit_variance": False, "hidden": 16}
    recipe = make_recipe(
        JOINT | {"epochs": 4, "minibatches": 1, "value_weight": 1.0, "target_kl": None},
        policy=source,
        updates=2,
        cost_weight={"min": 0.3, "max": 0.3},
        reward={"form": "code"} | WINDOW,
    )
    train_memory(recipe, tmp_path / "run")
    rows = read_metrics(tmp_path / "run")
    assert rows[-1]["policy/epochs"] == 4
    assert evaluate_memory_run(tmp_path / "run") is not None
