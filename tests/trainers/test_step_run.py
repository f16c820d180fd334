"""Whole runs of step-by-step routing: resume, seeds, files, metrics, the collapse alarm, faults."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from rlroute.config import parse_config
from rlroute.rewards.boundary import TaskClass
from rlroute.rollout.boundary import BoundaryRollout
from rlroute.rollout.stage import Stage, compute_rewards
from rlroute.tracking import read_metrics
from rlroute.trainers.checkpoint import WEIGHTS_FILE, list_checkpoints
from rlroute.trainers.run_folder import BEST_FOLDER, CHECKPOINTS_FOLDER
from rlroute.trainers.step_policy import load_policy, make_policy
from rlroute.trainers.step_problem import SplitFacts, StepProblem, fix_setting, plan_evaluation
from rlroute.trainers.step_recipe import StepRecipe
from rlroute.trainers.step_run import (
    BOUNDARY_FILE,
    LABELS_FILE,
    WARM_START_FOLDER,
    find_experts,
    make_learner,
    open_rollout_file,
    prepare_boundaries,
    read_all_facts,
    train_steps,
)
from rlroute.types import MEMBER, RLRouteError

GRPO = {"kind": "grpo", "group_size": 4, "episodes": 16}
PPO = {"kind": "ppo", "episodes": 32}
RLOO = {"kind": "rloo", "group_size": 4, "episodes": 16}
ANCHORED = GRPO | {
    "kl_weight": 0.02, "reference_rollout": True, "forced_arms": True, "epochs": 2, "minibatches": 2
}  # fmt: skip
COLD = {"warm_start": None, "policy": {"kind": "mlp", "hidden": 0, "price_bias": -9.0}}

MakeRecipe = Callable[..., StepRecipe]


@pytest.fixture(scope="module")
def make_recipe(tmp_path_factory: pytest.TempPathFactory) -> MakeRecipe:
    """Return a function that makes a short recipe; boundary rollouts are shared."""
    shared = tmp_path_factory.mktemp("boundaries")

    def make(algorithm: dict[str, Any] = GRPO, **changes: Any) -> StepRecipe:
        data: dict[str, Any] = {
            "environment": "step_budget",
            "world": {"kind": "chain", "train": 60, "val": 30, "test": 20},
            "updates": 6,
            "budget": {"unit": "calls", "caps": [2, None]},
            "reward": {"unit": "calls"},
            "boundary": {"rollouts": 3, "sweep": 5, "folder": str(shared)},
            "policy": {"kind": "mlp", "hidden": 8},
            "warm_start": {"epochs": 2},
            "algorithm": algorithm,
            "validation": {"every": 1},
            "checkpoint_every": 3,
            "tracking": {"wandb": False},
        }
        return parse_config(StepRecipe, data | changes, "recipe")

    return make


def read_timeless(folder: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in row.items() if not name.startswith("time/")}
        for row in read_metrics(folder)
    ]


def interrupt(whole: Path, parted: Path, after: int) -> None:
    """Leave what a kill leaves after so many updates: rows behind the checkpoint, a torn one."""
    rows = (whole / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    kept = "\n".join(rows[: after + 1]) + "\n" + rows[after + 1][:40]
    (parted / "metrics.jsonl").write_text(kept, encoding="utf-8")
    shutil.copyfile(whole / "recipe.resolved.yaml", parted / "recipe.resolved.yaml")


# --- Resume and seeds -----------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [PPO, ANCHORED, RLOO], ids=["ppo", "anchored", "rloo"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(algorithm, make_recipe, tmp_path):
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    recipe = make_recipe(algorithm)
    train_steps(recipe, whole)
    train_steps(make_recipe(algorithm, updates=3), parted)
    interrupt(whole, parted, after=4)
    state = train_steps(recipe, parted, resume=True)
    assert state.update == 6
    step = f"{CHECKPOINTS_FOLDER}/step-6"
    for name in (f"{BEST_FOLDER}/{WEIGHTS_FILE}", f"{step}/{WEIGHTS_FILE}"):
        assert (whole / name).read_bytes() == (parted / name).read_bytes()
    moments = f"{step}/optimiser.safetensors"
    assert (whole / moments).read_bytes() == (parted / moments).read_bytes()
    assert read_timeless(whole) == read_timeless(parted)
    episodes = [(folder / "trajectories.jsonl").read_text("utf-8") for folder in (whole, parted)]
    assert episodes[0] == episodes[1]


def test_equal_seeds_give_equal_runs_and_other_seeds_give_others(make_recipe, tmp_path):
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        train_steps(make_recipe(ANCHORED, updates=2, seed=seed), tmp_path / name)
    weights = [
        (tmp_path / name / CHECKPOINTS_FOLDER / "step-2" / WEIGHTS_FILE).read_bytes()
        for name in ("one", "two", "three")
    ]
    assert weights[0] == weights[1] != weights[2]
    assert read_timeless(tmp_path / "one") == read_timeless(tmp_path / "two")


def test_lanes_played_at_once_change_no_run(make_recipe, tmp_path):
    for lanes in (3, 64):
        train_steps(make_recipe(PPO, updates=2, lanes=lanes), tmp_path / str(lanes))
    one, two = (tmp_path / name / BEST_FOLDER / WEIGHTS_FILE for name in ("3", "64"))
    assert one.read_bytes() == two.read_bytes()


def test_a_shared_folder_of_boundaries_is_that_of_a_run_of_its_own(make_recipe, tmp_path):
    shared = make_recipe(updates=1)
    own = shared.boundary.model_copy(update={"folder": None})
    train_steps(shared, tmp_path / "shared")
    train_steps(shared.model_copy(update={"boundary": own}), tmp_path / "own")
    kept = (tmp_path / "own" / BOUNDARY_FILE).read_text("utf-8")
    assert kept == (shared.boundary.folder / BOUNDARY_FILE).read_text("utf-8")
    assert not (tmp_path / "shared" / BOUNDARY_FILE).exists()
    assert read_timeless(tmp_path / "own") == read_timeless(tmp_path / "shared")


# --- What a run leaves ----------------------------------------------------------------------------


def test_a_run_leaves_its_files_and_metrics_under_their_fixed_names(make_recipe, tmp_path):
    folder = tmp_path / "run"
    state = train_steps(make_recipe(ANCHORED), folder, command="rlroute train recipe.yaml")
    assert {path.name for path in folder.iterdir()} == {
        "recipe.resolved.yaml", "run.json", LABELS_FILE, WARM_START_FOLDER, "metrics.jsonl",
        "trajectories.jsonl", "events.log", "checkpoints", "best",
    }  # fmt: skip
    rows = read_metrics(folder)
    assert [row["step"] for row in rows] == list(range(7))
    expected = {
        "reward/outcome/mean", "reward/outcome/std", "reward/hard_bonus/mean", "reward/cost/mean",
        "reward/cost/frac_undefined", "group/dropped", "group/frac_zero_std",
        "selection/share/small", "selection/share/large", "selection/entropy",
        "cost/usd_per_query", "cost/usd_total", "cost/dear_calls", "cost/budget_used",
        "cost/exhausted", "class/easy/success", "class/hard/dear_share", "policy/entropy",
        "policy/kl", "policy/kl_ref", "policy/clip_frac", "policy/grad_norm", "time/rollout",
        "eval/reward", "eval/success", "eval/cost", "eval/dear_calls", "eval/dear_share_hard",
        "collapse/alarm",
    }  # fmt: skip
    assert expected <= set(rows[-1])
    assert 0 < rows[-1]["cost/budget_used"] <= 1
    total = sum(row["cost/usd_update"] for row in rows[1:])
    assert state.cost_usd_total == pytest.approx(total)
    own = sum(row["cost/usd_per_query"] * 16 for row in rows[1:])
    assert total > 1.2 * own  # forced arms and stored rollouts are paid for too
    assert [path.name for path in list_checkpoints(folder / CHECKPOINTS_FOLDER)] == ["step-6"]
    facts = json.loads((folder / "run.json").read_text("utf-8"))
    assert (facts["world"], facts["command"]) == ("chain", "rlroute train recipe.yaml")
    labels = json.loads((folder / LABELS_FILE).read_text("utf-8"))
    assert set(labels) == {"counts", "dear_share", "dear_weight"}
    assert labels["counts"]["hard"]["large"] > 0
    assert labels["counts"]["easy"]["large"] == labels["counts"]["intractable"]["large"] == 0
    episodes = [json.loads(line) for line in (folder / "trajectories.jsonl").open()]
    assert {"task", "class", "role", "executors", "score", "cost_usd"} <= set(episodes[0])


def test_weights_of_a_run_are_safetensors_and_nothing_is_pickled(make_recipe, tmp_path):
    train_steps(make_recipe(PPO, updates=1), tmp_path / "run")
    for path in (path for path in (tmp_path / "run").rglob("*") if path.is_file()):
        assert path.suffix in {".safetensors", ".json", ".jsonl", ".yaml", ".log"}, path


def test_the_metrics_are_those_of_the_policys_own_episodes(make_recipe, tmp_path):
    # the first policy is sure of the cheapest; forced arms and references are no part of it
    recipe = make_recipe(GRPO | {"forced_arms": True, "reference_rollout": True}, updates=1, **COLD)
    train_steps(recipe, tmp_path / "run")
    row = read_metrics(tmp_path / "run")[-1]
    assert row["selection/share/small"] == pytest.approx(1, abs=0.01)
    assert row["cost/usd_per_query"] == pytest.approx(10 * 0.00152, rel=0.02)


def test_dropped_episodes_are_counted_and_leave_every_mean(make_recipe):
    recipe = make_recipe(ANCHORED)
    stage = Stage(recipe.world, lanes=8)
    file = open_rollout_file(recipe, Path())
    prepare_boundaries(recipe, stage, Path())
    file.read()
    model, learner = make_learner(recipe, stage, Accelerator(cpu=True))
    problem = StepProblem(recipe, stage, model, read_all_facts(recipe, stage, file))
    batch = problem.collect(learner, 0)
    whole = problem.summarise(learner, batch)
    assert whole["group/dropped"] == whole["reward/cost/frac_undefined"] == 0
    size = problem.shape.size
    gone_B = np.arange(len(batch.group_B)) < size  # a whole group
    gone_B[size] = True  # and one of the next
    undefined = {
        name: np.where(gone_B[:, None], np.float32(np.nan), value_BT)
        for name, value_BT in batch.reward_terms_BT.items()
    }
    score_B = np.where(gone_B, np.float32(np.nan), batch.ends.score_B)
    holed = replace(
        batch,
        reward_terms_BT=undefined,
        ends=replace(batch.ends, score_B=score_B),
        dropped=int(gone_B.sum()),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = problem.summarise(learner, holed)
    assert found["group/dropped"] == size + 1
    assert found["reward/outcome/frac_undefined"] == pytest.approx(5 / 16)
    kept_B = (batch.ends.role_B == MEMBER) & ~gone_B
    assert found["reward/outcome/mean"] == pytest.approx(batch.ends.score_B[kept_B].mean())
    assert found["cost/dear_calls"] == pytest.approx(batch.ends.calls_B[kept_B].mean())
    reward_NM = compute_rewards(batch, problem.reward).reshape(-1, size)[:, :6]
    flat_N = np.array([np.std(reward_NM[1, 1:]), *np.std(reward_NM[2:], axis=1)]) < 1e-8
    assert found["group/frac_zero_std"] == pytest.approx(flat_N.mean())


def test_the_best_weights_are_those_of_the_best_validation(make_recipe, tmp_path):
    folder = tmp_path / "run"
    state = train_steps(make_recipe(PPO), folder)
    validated = {row["step"]: row["eval/reward"] for row in read_metrics(folder) if row["step"]}
    assert state.best_update == max(validated, key=lambda step: (validated[step], -step))
    best = json.loads((folder / BEST_FOLDER / "best.json").read_text("utf-8"))
    assert best["update"] == state.best_update
    assert best["reward"] == pytest.approx(validated[state.best_update])


def test_a_kept_policy_plays_the_validation_that_it_was_kept_for(make_recipe, tmp_path):
    folder, recipe = tmp_path / "run", make_recipe(PPO)
    train_steps(recipe, folder)
    stage = Stage(recipe.world, lanes=8)
    model, facts = load_policy(
        folder / BEST_FOLDER, recipe.policy, stage.world, len(stage.feature_names)
    )
    policy = make_policy(model, model.network, version=0, greedy=True)
    plan = plan_evaluation(recipe.seed, "val", 30, rollouts=1)
    success = [
        stage.play(
            policy, plan, "val", fix_setting(recipe.episode, cap, 0.3), {}
        ).ends.score_B.mean()
        for cap in (2, None)
    ]
    assert facts["success"] == pytest.approx(np.mean(success))


# --- Collapse and KL ------------------------------------------------------------------------------


def test_the_alarm_sounds_after_three_validations_without_dear_calls(make_recipe, tmp_path):
    folder = tmp_path / "run"
    train_steps(make_recipe(GRPO, **COLD), folder)
    rows = read_metrics(folder)
    assert {row["eval/dear_share_hard"] for row in rows} == {0.0}
    assert [row["collapse/alarm"] for row in rows] == [0, 0, 1, 1, 1, 1, 1]


def test_a_resumed_run_goes_on_counting_towards_the_alarm(make_recipe, tmp_path):
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    fields = {**COLD, "checkpoint_every": 1, "validation": {"every": 2}}
    train_steps(make_recipe(GRPO, **fields), whole)
    train_steps(make_recipe(GRPO, **fields, updates=2), parted)
    interrupt(whole, parted, after=3)
    train_steps(make_recipe(GRPO, **fields), parted, resume=True)
    alarms = [row["collapse/alarm"] for row in read_metrics(parted) if "collapse/alarm" in row]
    assert alarms == [0, 0, 1, 1]
    assert read_timeless(parted) == read_timeless(whole)


def test_no_alarm_sounds_where_dear_calls_are_made(make_recipe, tmp_path):
    warm_start = {"epochs": 20, "batch": 4, "learning_rate": 0.03}
    train_steps(make_recipe(GRPO, updates=4, warm_start=warm_start), tmp_path / "run")
    rows = read_metrics(tmp_path / "run")
    assert max(row["eval/dear_share_hard"] for row in rows) > 0.05
    assert rows[-1]["collapse/alarm"] == 0


def test_the_kl_to_the_warm_start_is_zero_at_first_and_grows(make_recipe, tmp_path):
    fast = {"learning_rate": 0.03}
    train_steps(make_recipe(GRPO | {"kl_weight": 0.001}, optimiser=fast), tmp_path / "run")
    kl = [row["policy/kl_ref"] for row in read_metrics(tmp_path / "run")[1:]]
    assert kl[0] == pytest.approx(0, abs=1e-6)
    assert kl[-1] > 1e-4
    train_steps(make_recipe(GRPO), tmp_path / "without")
    assert "policy/kl_ref" not in read_metrics(tmp_path / "without")[-1]


def test_a_heavy_kl_weight_holds_on_to_the_warm_start(make_recipe, tmp_path):
    moved = {}
    for weight in (0.001, 100.0):
        folder = tmp_path / str(weight)
        recipe = make_recipe(GRPO | {"kl_weight": weight}, optimiser={"learning_rate": 0.03})
        train_steps(recipe, folder)
        moved[weight] = read_metrics(folder)[-1]["policy/kl_ref"]
    assert moved[100.0] < moved[0.001]


# --- Faults ---------------------------------------------------------------------------------------


def test_a_counted_executor_that_does_not_exist_is_refused(make_recipe, tmp_path):
    boundary = {"folder": str(tmp_path / "shared")}
    recipe = make_recipe(budget={"unit": "calls", "counted": ["huge"]}, boundary=boundary)
    with pytest.raises(RLRouteError, match=r"budget.counted: 'huge' is no executor"):
        train_steps(recipe, tmp_path / "run")


def test_a_run_is_not_overwritten_unasked_and_none_is_resumed_that_never_began(
    make_recipe, tmp_path
):
    recipe = make_recipe(updates=1)
    train_steps(recipe, tmp_path / "run")
    with pytest.raises(RLRouteError, match=r"--resume .* --overwrite"):
        train_steps(recipe, tmp_path / "run")
    train_steps(recipe, tmp_path / "run", overwrite=True)
    shutil.rmtree(tmp_path / "run" / CHECKPOINTS_FOLDER)
    with pytest.raises(RLRouteError, match="no checkpoint to resume from"):
        train_steps(recipe, tmp_path / "run", resume=True)


def test_shared_boundaries_of_another_world_are_refused(make_recipe, tmp_path):
    train_steps(make_recipe(updates=1), tmp_path / "one")
    other = make_recipe(updates=1, world={"kind": "chain", "train": 61, "val": 30, "test": 20})
    with pytest.raises(RLRouteError, match="of another world or other settings"):
        train_steps(other, tmp_path / "two")


def test_a_warm_start_that_nobody_can_teach_is_refused_in_one_line(make_recipe):
    recipe = make_recipe(boundary={"rollouts": 1, "sweep": 0, "folder": None})
    stage = Stage(recipe.world, lanes=4)
    facts = SplitFacts((), (TaskClass.HARD,) * 60, {}, np.zeros(60, dtype=np.int64))

    class UnsolvedFile:
        """Rollouts of tasks that are hard by their mean score and that none solved whole."""

        def list_of(self, split, task, arm):
            return [BoundaryRollout(split, task, arm, 0, 0.5, 0, 0.5, 0.1, 1, (0,) * 10)]

    with pytest.raises(RLRouteError, match=r"warm_start: no task has an expert") as caught:
        find_experts(recipe, stage, facts, UnsolvedFile())
    assert "\n" not in str(caught.value)


def test_pruned_experts_are_kept_on_file_and_teach_fewer_dear_calls(make_recipe, tmp_path):
    labels, files = {}, []
    for name, prune in (("plain", False), ("pruned", True), ("again", True)):
        shared = tmp_path / ("shared" if prune else "other")
        boundary = {"rollouts": 3, "sweep": 5, "folder": str(shared), "prune": prune}
        recipe = make_recipe(updates=1, boundary=boundary)
        train_steps(recipe, tmp_path / name)
        labels[name] = json.loads((tmp_path / name / LABELS_FILE).read_text("utf-8"))
        files.append((shared / BOUNDARY_FILE).read_text("utf-8"))
    assert labels["pruned"]["counts"]["hard"]["large"] < labels["plain"]["counts"]["hard"]["large"]
    assert labels["again"] == labels["pruned"]
    assert files[1] == files[2]  # nothing was played again
    pruned = [row for row in map(json.loads, files[1].splitlines()) if row.get("arm") == "pruned"]
    assert len(pruned) > 5
    assert all(row["score"] == 1 for row in pruned)


# --- Learning -------------------------------------------------------------------------------------


def test_ppo_learns_the_chain_without_a_warm_start(make_recipe, tmp_path):
    kind = {"name": "k", "share": 1, "critical_steps": 2, "success": [0.1, 0.9], "hint": 0}
    recipe = make_recipe(
        {"kind": "ppo", "episodes": 256, "entropy_weight": 0.01},
        policy={"kind": "mlp", "hidden": 64},
        world={"kind": "chain", "train": 200, "val": 100, "test": 10, "kinds": [kind]},
        boundary={"rollouts": 2, "sweep": 0},
        budget={"caps": [None]},
        warm_start=None,
        updates=60,
        cost_weight={"min": 0.8, "max": 0.8},
        validation={"every": 20},
    )
    torch.manual_seed(123)  # generator state decides nothing
    train_steps(recipe, tmp_path / "run")
    row = read_metrics(tmp_path / "run")[-1]
    # always-small 0.01, always-large 0.81 at 10 calls, the ideal router 0.81 at 2
    assert row["eval/success"] > 0.65
    assert row["eval/dear_calls"] < 3.5
