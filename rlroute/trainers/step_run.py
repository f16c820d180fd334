"""The trainer of step-by-step routing: from a recipe to a run folder (BoPO and its relatives).

    boundaries  the static policies on every task; the sweep on hard ones   rollout/boundary.py
    warm start  the experts' choices, supervised                             trainers/imitation.py
    loop        groups of episodes, advantages with references, updates      trainers/loop.py

What a run leaves: recipe.resolved.yaml, run.json, boundaries.jsonl (or in `boundary.folder`),
labels.json (what the warm start taught), warm_start/, metrics.jsonl, trajectories.jsonl,
checkpoints/, best/.

It leaves out evaluation (`rlroute.step_runs`).
"""

from __future__ import annotations

import asyncio
import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from rlroute.config import dump_config, redact
from rlroute.extras import require
from rlroute.files import write_atomic
from rlroute.policies.choice import ChoiceConfig
from rlroute.pool.open import open_pool
from rlroute.pool.pool_file import load_pool
from rlroute.rewards.boundary import BoundaryReward, TaskClass
from rlroute.rollout.boundary import (
    BoundaryRollout,
    RolloutFile,
    make_script,
    prune,
    run_boundaries,
    run_sweep,
    select_expert,
)
from rlroute.rollout.stage import Stage
from rlroute.rollout.step_plan import plan_static
from rlroute.rollout.steps import Moment
from rlroute.tracking import make_progress
from rlroute.trainers.checkpoint import TrainingState
from rlroute.trainers.imitation import choose_experts, imitate, weigh_labels
from rlroute.trainers.learner import Learner
from rlroute.trainers.loop import check_distribution, check_processes, run_loop
from rlroute.trainers.run_folder import RECIPE_FILE, RUN_FILE, clear_folder
from rlroute.trainers.step_policy import (
    StepModel,
    add_conversations,
    build_model,
    choose_score_rows,
    load_policy,
    save_policy,
)
from rlroute.trainers.step_problem import (
    SplitFacts,
    StepProblem,
    read_split_facts,
)
from rlroute.trainers.step_recipe import StepRecipe
from rlroute.types import RLRouteError, SplitName

FORMAT_VERSION = 1
BOUNDARY_FILE = "boundaries.jsonl"
LABELS_FILE = "labels.json"
WARM_START_FOLDER = "warm_start"


def train_steps(
    recipe: StepRecipe,
    folder: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    command: str = "",
) -> TrainingState:
    """Train a policy as the recipe says and leave everything in `folder`.

    Raises:
        RLRouteError: the world, the pool, an extra or the folder does not allow it.
    """
    accelerator = require("accelerate", "train").Accelerator()
    check_distribution(accelerator)
    check_processes(recipe.algorithm, accelerator.num_processes)
    with open_stage(recipe) as stage:
        if not resume and accelerator.is_main_process:
            clear_folder(folder, overwrite=overwrite)
            start_folder(recipe, folder, accelerator, command)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            prepare_boundaries(recipe, stage, folder)
        accelerator.wait_for_everyone()
        file, shape = open_rollout_file(recipe, folder), (stage.world, len(stage.feature_names))
        facts = read_all_facts(recipe, stage, file)
        model, learner = make_learner(recipe, stage, accelerator)
        if recipe.warm_start is not None:
            if not resume:
                warm_up(recipe, stage, model, learner, facts["train"], file, folder)
            accelerator.wait_for_everyone()
            if recipe.algorithm.kl_weight:  # as it was written, so that a resumed run has the same
                kept, _ = load_policy(folder / WARM_START_FOLDER, recipe.policy, *shape)
                learner.reference = kept.network.to(accelerator.device)
        problem = StepProblem(recipe, stage, model, facts)
        return run_loop(problem, learner, folder, resume=resume)


@contextmanager
def open_stage(recipe: StepRecipe) -> Iterator[Stage]:
    """Open the world, and the pool where executors live in one."""
    reading = isinstance(recipe.policy, ChoiceConfig)
    if recipe.pool is None:
        yield Stage(recipe.world, lanes=recipe.lanes, reading=reading)
        return
    pool = open_pool(load_pool(recipe.pool))
    try:
        yield Stage(recipe.world, lanes=recipe.lanes, pool=pool, reading=reading)
    finally:
        asyncio.run(pool.close())


def start_folder(recipe: StepRecipe, folder: Path, accelerator: Any, command: str) -> None:
    """Write what is known before anything is played; with the recipe the folder is a run."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "format_version": FORMAT_VERSION,
        "world": recipe.world.kind,
        "rlroute": version("rlroute"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "command": redact(command),
        "processes": accelerator.num_processes,
        "device": str(accelerator.device),
    }
    write_atomic(folder / RUN_FILE, json.dumps(facts, indent=2))
    write_atomic(folder / RECIPE_FILE, dump_config(recipe))


def make_learner(recipe: StepRecipe, stage: Stage, accelerator: Any) -> tuple[StepModel, Learner]:
    """Build model and optimiser; equal seeds give equal weights on every process."""
    model = build_model(recipe, stage.world, len(stage.feature_names))
    settings = recipe.optimiser
    optimiser = torch.optim.AdamW(
        [parameter for parameter in model.network.parameters() if parameter.requires_grad],
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
    )
    prepared, optimiser = accelerator.prepare(model.network, optimiser)
    learner = Learner(
        accelerator,
        prepared,
        optimiser,
        choose_score_rows(recipe.policy),
        BoundaryReward(recipe.reward),
        recipe,
        micro_batch=recipe.policy.micro_batch if isinstance(recipe.policy, ChoiceConfig) else None,
    )
    return model, learner


# --- Boundary rollouts ----------------------------------------------------------------------------


def open_rollout_file(recipe: StepRecipe, folder: Path) -> RolloutFile:
    """Open the boundary rollouts of a run, or those that its recipe shares with others."""
    world = {
        "world": recipe.world.model_dump(mode="json"),
        "seed": recipe.boundary_seed,
        "sweep": recipe.boundary.sweep,
        "counted": recipe.budget.counted,
    }
    if recipe.pool is not None:  # other models, other rollouts
        world["pool"] = load_pool(recipe.pool).model_dump(mode="json", exclude={"max_usd", "cache"})
    path = (recipe.boundary.folder or folder) / BOUNDARY_FILE
    return RolloutFile(path, json.dumps(world, sort_keys=True))


def prepare_boundaries(recipe: StepRecipe, stage: Stage, folder: Path) -> None:
    """Play boundary rollouts, sweep and pruning, as far as they are missing on file."""
    file, settings = open_rollout_file(recipe, folder), recipe.boundary
    play_boundaries(recipe, stage, file, "train", settings.rollouts)
    play_boundaries(recipe, stage, file, "val", settings.evaluation_rollouts)
    if recipe.warm_start is None:
        return
    facts = read_split_facts(recipe, stage, file, "train", settings.rollouts)
    hard = [index for index, label in enumerate(facts.classes) if label is TaskClass.HARD]
    if settings.sweep:
        with make_progress(Console(stderr=True), "rollouts") as progress:
            task = progress.add_task("sweep", total=len(hard) * settings.sweep, note="")
            run_sweep(
                *(stage, file, recipe.episode, "train", hard, settings.sweep),
                seed=recipe.boundary_seed,
                tell=lambda count: progress.advance(task, count),
            )
    if settings.prune:
        prune_experts(recipe, stage, facts, file)


def play_boundaries(
    recipe: StepRecipe, stage: Stage, file: RolloutFile, split: SplitName, rollouts: int
) -> None:
    """Play the static policies on the tasks of a split, as far as they are missing."""
    with make_progress(Console(stderr=True), "rollouts") as progress:
        total = 2 * rollouts * len(stage.tasks[split])
        task = progress.add_task(f"boundaries, {split}", total=total, note="")
        run_boundaries(
            *(stage, file, recipe.episode, split, rollouts),
            seed=recipe.boundary_seed,
            tell=lambda count: progress.advance(task, count),
        )


def read_all_facts(
    recipe: StepRecipe, stage: Stage, file: RolloutFile
) -> dict[SplitName, SplitFacts]:
    """Return what the boundary rollouts say of train and val."""
    settings = recipe.boundary
    return {
        "train": read_split_facts(recipe, stage, file, "train", settings.rollouts),
        "val": read_split_facts(recipe, stage, file, "val", settings.evaluation_rollouts),
    }


# --- Warm start -----------------------------------------------------------------------------------


def find_experts(
    recipe: StepRecipe, stage: Stage, facts: SplitFacts, file: RolloutFile
) -> tuple[list[int], list[BoundaryRollout]]:
    """Return the tasks that teach something, and the rollout that each of them teaches.

    Raises:
        RLRouteError: there are none.
    """
    settings, unit = recipe.boundary, recipe.reward.unit
    success = settings.taxonomy.easy_rate if settings.taxonomy.graded else 1.0
    cheap: list[BoundaryRollout] = []
    hard: list[BoundaryRollout | None] = []
    for task, label in zip(stage.tasks["train"], facts.classes, strict=True):
        small = file.list_of("train", task.id, "small")[: settings.rollouts]
        cheap.append(small[0])
        if label is not TaskClass.HARD:
            hard.append(None)
            continue
        large = file.list_of("train", task.id, "large")[: settings.rollouts]
        sweep = file.list_of("train", task.id, "sweep")[: settings.sweep]
        hard.append(select_expert([*small, *sweep, *large], unit, success))
    indices, experts = choose_experts(facts.classes, cheap, hard)
    if not experts:
        raise RLRouteError(
            "warm_start: no task has an expert (all are hard, and no rollout solved one); raise "
            "boundary.rollouts or boundary.sweep, or leave the warm start out (warm_start: null)"
        )
    return indices, experts


def find_pruned(expert: BoundaryRollout, file: RolloutFile) -> BoundaryRollout | None:
    """Return the pruned form of an expert that is on file; None where it has to be made."""
    found = file.list_of(expert.split, expert.task, "pruned")
    return found[0] if found and found[0].seed == expert.seed else None


def prune_experts(recipe: StepRecipe, stage: Stage, facts: SplitFacts, file: RolloutFile) -> None:
    """Prune the experts that take dear steps, but for those on file."""
    _, experts = find_experts(recipe, stage, facts, file)
    missing = [one for one in experts if one.calls and find_pruned(one, file) is None]
    with Console(stderr=True).status("pruning the experts"):
        pruned = prune(stage, missing, recipe.episode, "train")
    file.append([replace(one, arm="pruned", number=0) for one in pruned])


def warm_up(
    recipe: StepRecipe,
    stage: Stage,
    model: StepModel,
    learner: Learner,
    facts: SplitFacts,
    file: RolloutFile,
    folder: Path,
) -> None:
    """Teach the policy the experts' choices, and keep it and the balance of labels."""
    settings = recipe.warm_start
    assert settings is not None
    indices, experts = find_experts(recipe, stage, facts, file)
    if recipe.boundary.prune:
        experts = [find_pruned(one, file) or one for one in experts]
    plan = plan_static(np.array(indices), np.array([one.seed for one in experts]))
    moments: dict[int, list[Moment]] | None = {} if model.encoder is not None else None
    script = make_script([one.actions for one in experts], stage.world.horizon)
    batch = stage.play(script, plan, "train", recipe.episode, facts.yardsticks, moments=moments)
    if moments is not None:
        batch = add_conversations(model, batch, moments)
    classes = [facts.classes[index] for index in indices]
    ids = [one.id for one in stage.world.executors]
    weight_BT, balance = weigh_labels(batch, classes, ids, settings.dear_share)
    loss = imitate(learner, batch, weight_BT, settings)
    if learner.accelerator.is_main_process:
        write_atomic(folder / LABELS_FILE, json.dumps(asdict(balance), indent=2))
        save_policy(folder / WARM_START_FOLDER, model, learner.scorer, {"loss": loss})
