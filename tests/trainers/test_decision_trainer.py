"""The trainer on a world with a known optimum: it learns, resumes bit for bit, refuses faults."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from rlroute.policies.decision import GreedyPolicy
from rlroute.tracking import read_metrics
from rlroute.trainers.checkpoint import WEIGHTS_FILE, list_checkpoints
from rlroute.trainers.decision import make_cost_weights, train
from rlroute.trainers.recipe import Recipe
from rlroute.trainers.run_folder import BEST_FOLDER, CHECKPOINTS_FOLDER, load_best, read_run
from rlroute.types import RLRouteError

MakeRecipe = Callable[..., Recipe]


def pick(folder: Path, cost_weight: float) -> tuple[list[str], list[str]]:
    """Return the task and the picked candidate of each test query."""
    run = read_run(folder)
    scorer, _ = load_best(run)
    data = run.prepared.splits["test"]
    choice_Q = GreedyPolicy(scorer).compute_probabilities(data, cost_weight).argmax(axis=1)
    names = [candidate.id for candidate in data.table.candidates]
    return [query.task for query in data.table.queries], [names[k] for k in choice_Q]


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "rloo", "expected_gradient"])
def test_the_known_optimum_is_reached_at_three_cost_weights(
    algorithm: str, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    validation = {"metric": "utility", "every": 10, "cost_weights": 9}
    train(make_recipe(algorithm, updates=80, validation=validation), folder)
    # normalised costs: generalist 1, specialists 0.2, cheap 0.02. Utilities at weight 0.3:
    # generalist 0.7, right specialist 0.94, cheap 0.494; at weight 2: -1, 0.6, 0.46
    for cost_weight in (0.3, 1.0, 2.0):
        tasks, picks = pick(folder, cost_weight)
        right = [
            (task, choice) in {("sum", "adder"), ("poem", "poet")}
            for task, choice in zip(tasks, picks, strict=True)
        ]
        assert np.mean(right) > 0.9, (cost_weight, sorted(set(picks)))
    tasks, picks = pick(folder, 0.0)
    assert all(
        choice == "generalist" or (task, choice) in {("sum", "adder"), ("poem", "poet")}
        for task, choice in zip(tasks, picks, strict=True)
    )


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "expected_gradient"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    algorithm: str, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe = make_recipe(algorithm)
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    train(recipe, whole)
    train(make_recipe(algorithm, updates=20), parted)
    # what an interruption at update 24 leaves: the checkpoint of update 20 and four rows more
    shutil.copyfile(whole / "recipe.resolved.yaml", parted / "recipe.resolved.yaml")
    rows = (whole / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    (parted / "metrics.jsonl").write_text("\n".join(rows[:25]) + "\n", encoding="utf-8")
    state = train(recipe, parted, resume=True)
    assert state.update == 30
    for name in (f"{BEST_FOLDER}/{WEIGHTS_FILE}", f"{CHECKPOINTS_FOLDER}/step-30/{WEIGHTS_FILE}"):
        assert (whole / name).read_bytes() == (parted / name).read_bytes()
    moments = f"{CHECKPOINTS_FOLDER}/step-30/optimiser.safetensors"
    assert (whole / moments).read_bytes() == (parted / moments).read_bytes()
    timeless = [
        [
            {k: v for k, v in row.items() if not k.startswith("time/")}
            for row in read_metrics(folder)
        ]
        for folder in (whole, parted)
    ]
    assert timeless[0] == timeless[1]
    episodes = [(folder / "trajectories.jsonl").read_text("utf-8") for folder in (whole, parted)]
    assert episodes[0] == episodes[1]


def test_equal_seeds_give_equal_runs_and_other_seeds_give_others(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        train(make_recipe("grpo", updates=5, seed=seed), tmp_path / name)
    weights = [
        (tmp_path / name / CHECKPOINTS_FOLDER / "step-5" / WEIGHTS_FILE).read_bytes()
        for name in ("one", "two", "three")
    ]
    assert weights[0] == weights[1] != weights[2]


def test_the_order_of_rows_in_the_file_changes_no_result(
    make_recipe: MakeRecipe, world_folder: Path, tmp_path: Path
) -> None:
    import gzip

    shuffled = tmp_path / "world"
    shutil.copytree(world_folder, shuffled)
    with gzip.open(world_folder / "records.csv.gz", "rt", encoding="utf-8") as file:
        header, *rows = file.read().splitlines()
    order = np.random.default_rng(3).permutation(len(rows))
    with gzip.open(shuffled / "records.csv.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join([header, *(rows[i] for i in order)]) + "\n")
    models = (world_folder / "models.csv").read_text(encoding="utf-8").splitlines()
    reordered = "\n".join([models[0], *reversed(models[1:])]) + "\n"
    (shuffled / "models.csv").write_text(reordered, encoding="utf-8")
    folders = [tmp_path / "straight", tmp_path / "mixed"]
    for table, folder in zip((world_folder, shuffled), folders, strict=True):
        train(make_recipe("ppo", updates=10, table=str(table)), folder)
    weights = [folder / BEST_FOLDER / WEIGHTS_FILE for folder in folders]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert pick(folders[0], 0.5) == pick(folders[1], 0.5)


def test_a_run_leaves_its_files_and_metrics_under_their_fixed_names(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    state = train(make_recipe("ppo", updates=5), folder, command="rlroute train recipe.yaml")
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "recipe.resolved.yaml", "run.json", "encoder", "candidates.json", "clusters.safetensors",
        "metrics.jsonl", "trajectories.jsonl", "events.log", "frontier_validation.png",
        "checkpoints", "best",
    }  # fmt: skip
    rows = read_metrics(folder)
    assert [row["step"] for row in rows] == list(range(6))
    expected = {
        "reward/outcome/mean", "reward/outcome/std", "reward/outcome/frac_undefined",
        "reward/cost/mean", "group/dropped", "selection/share/adder", "selection/entropy",
        "cost/usd_per_query", "cost/usd_total", "policy/entropy", "policy/kl", "policy/clip_frac",
        "policy/grad_norm", "policy/explained_variance", "time/rollout", "time/update", "eval/aiq",
        "eval/quality", "eval/regret_oracle",
    }  # fmt: skip
    assert expected <= set(rows[-1])
    total = sum(row["cost/usd_per_query"] * 256 for row in rows[1:])
    assert state.cost_usd_total == pytest.approx(total)
    assert [path.name for path in list_checkpoints(folder / CHECKPOINTS_FOLDER)] == ["step-5"]


def test_the_best_weights_are_those_of_the_best_validation(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    state = train(make_recipe("expected_gradient"), folder)
    rows = [row for row in read_metrics(folder) if "eval/aiq" in row and row["step"] > 0]
    validated = {row["step"]: row["eval/aiq"] for row in rows}
    assert state.best_update == max(validated, key=lambda step: (validated[step], -step))
    best = json.loads((folder / BEST_FOLDER / "best.json").read_text(encoding="utf-8"))
    assert best["update"] == state.best_update
    assert best["aiq"] == pytest.approx(validated[state.best_update])


def test_a_run_is_neither_overwritten_nor_mixed_with_other_files(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe = make_recipe("grpo", updates=1)
    folder = tmp_path / "run"
    train(recipe, folder)
    with pytest.raises(RLRouteError, match=r"--resume .* --overwrite"):
        train(recipe, folder)
    train(recipe, folder, overwrite=True)
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(RLRouteError, match="no run"):
        train(recipe, other, overwrite=True)
    assert (other / "chapter.txt").exists()


def test_a_changed_table_is_refused_when_the_run_is_read(
    make_recipe: MakeRecipe, world_folder: Path, tmp_path: Path
) -> None:
    table = tmp_path / "world"
    shutil.copytree(world_folder, table)
    folder = tmp_path / "run"
    train(make_recipe("grpo", updates=1, table=str(table)), folder)
    models = (table / "models.csv").read_text(encoding="utf-8")
    (table / "models.csv").write_text(models.replace("2.0", "3.0"), encoding="utf-8")
    with pytest.raises(RLRouteError, match="has changed since"):
        read_run(folder)


def test_a_torn_checkpoint_is_refused_in_one_line(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    recipe = make_recipe("grpo", updates=2)
    train(recipe, folder)
    weights = folder / CHECKPOINTS_FOLDER / "step-2" / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(RLRouteError, match="cannot be read"):
        train(recipe, folder, resume=True)


def test_the_sweep_covers_the_trained_range_and_starts_at_its_least_weight(
    make_recipe: MakeRecipe,
) -> None:
    weights = make_cost_weights(make_recipe("ppo").cost_weight, 9)
    assert weights[0] == 0
    assert weights[-1] == pytest.approx(2.0)
    assert len(weights) == 9
    assert weights == sorted(weights)
    fixed = make_recipe("ppo", cost_weight={"min": 0.5, "max": 0.5})
    assert make_cost_weights(fixed.cost_weight, 9) == [0.5]


def test_groups_that_processes_cannot_share_are_refused(make_recipe: MakeRecipe) -> None:
    from rlroute.trainers.loop import check_processes

    with pytest.raises(RLRouteError, match="3 processes"):
        check_processes(make_recipe("grpo").algorithm, 3)


@pytest.mark.parametrize("kind", ["DEEPSPEED", "FSDP"])
def test_a_sharded_model_is_refused_in_one_line(kind: str) -> None:
    from types import SimpleNamespace

    from accelerate import DistributedType

    from rlroute.trainers.loop import check_distribution

    check_distribution(SimpleNamespace(distributed_type=DistributedType.MULTI_GPU))
    sharded = SimpleNamespace(distributed_type=DistributedType[kind])
    with pytest.raises(RLRouteError, match=f"accelerate runs {kind}.*ddp.yaml"):
        check_distribution(sharded)


def test_weights_of_a_run_are_safetensors_and_nothing_is_pickled(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    train(make_recipe("ppo", updates=1), folder)
    for path in (path for path in folder.rglob("*") if path.is_file()):
        assert path.suffix in {".safetensors", ".json", ".jsonl", ".yaml", ".log", ".png"}, path
        if path.suffix == ".safetensors":
            assert load_file(path)
