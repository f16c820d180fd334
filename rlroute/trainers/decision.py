"""The trainer of decision policies: one loop on Accelerate, from a recipe to a run folder.

    for each update:
        plan     which queries, from coordinates                       rollout/plan.py
        collect  decisions and reward terms                            rollout/vector.py
        update   advantages, minibatches, losses, optimiser steps      trainers/update.py
        validate sweep the cost weight on val, keep the best weights   evaluation/evaluate.py
        track    metrics, checkpoints                                  tracking.py, checkpoint.py

Several processes (`accelerate launch -m rlroute train ...`) share the episodes of an update; the
result equals that of one process up to the rounding of sums. Nothing is drawn from generator state,
so a resumed run equals an uninterrupted one bit for bit.

It leaves out text policies and shapes whose replies wait.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlroute.config import redact
from rlroute.data.prepare import PreparedTable, prepare_table
from rlroute.data.routing_data import RoutingData
from rlroute.data.table import read_table
from rlroute.envs.single_turn import build_reward_stack
from rlroute.envs.single_turn_vector import SingleTurnVector
from rlroute.evaluation.evaluate import compute_validation_metrics, evaluate_policies
from rlroute.evaluation.figures import draw_frontier
from rlroute.extras import require
from rlroute.files import write_atomic
from rlroute.policies.decision import GreedyPolicy, SamplingPolicy
from rlroute.policies.mlp import CandidateScorer
from rlroute.rollout.plan import EpisodePlan, plan_episodes
from rlroute.rollout.vector import collect_batch
from rlroute.seeding import derive_seed
from rlroute.tracking import Tracker
from rlroute.trainers.checkpoint import (
    TrainingState,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from rlroute.trainers.metrics import describe_decisions, describe_episodes, summarise_batch
from rlroute.trainers.recipe import ExpectedGradientConfig, OptimiserConfig, Recipe
from rlroute.trainers.run_folder import (
    CHECKPOINTS_FOLDER,
    clear_folder,
    make_scorer_config,
    read_run,
    save_best,
    start_run_folder,
)
from rlroute.trainers.update import Learner, update_policy
from rlroute.types import Batch, RLRouteError


def train(
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    command: str = "",
) -> TrainingState:
    """Train a policy as the recipe says and leave everything in `folder`.

    With `resume` the folder's last checkpoint is gone on from; with `overwrite` a run that lies
    there is replaced.

    Raises:
        RLRouteError: the table, an extra or the folder does not allow it; nothing was trained.
    """
    accelerator = require("accelerate", "train").Accelerator()
    check_processes(recipe, accelerator.num_processes)
    if not resume and accelerator.is_main_process:
        clear_folder(folder, overwrite=overwrite)
        write_run(recipe, folder, accelerator, command)
    accelerator.wait_for_everyone()
    prepared = read_run(folder).prepared  # what was written is what is used, by every process
    learner = make_learner(recipe, prepared, accelerator)
    state = TrainingState()
    if resume:
        state = resume_from(folder, learner)
    train_data, val_data = prepared.splits["train"], prepared.splits["val"]
    algorithm = recipe.algorithm
    environment = SingleTurnVector(
        train_data,
        num_envs=algorithm.episodes // accelerator.num_processes,
        cost_weights=recipe.cost_weight,
        feedback="full" if isinstance(algorithm, ExpectedGradientConfig) else "bandit",
    )
    sweep = make_cost_weights(recipe, recipe.validation.cost_weights)
    with open_tracker(recipe, folder, learner, state) as tracker:
        if state.update == 0:  # where the curve starts; what was never trained is never the best
            report(tracker, state, validate(learner, val_data, sweep))
        for update in range(state.update, recipe.updates):
            started = time.perf_counter()
            set_schedules(learner, recipe, update)
            plan = plan_update(recipe, update, len(train_data.features_QF), accelerator)
            policy = SamplingPolicy(learner.scorer.eval(), version=update)
            batch = collect_batch(policy, environment, plan)
            collected = time.perf_counter()
            metrics = update_policy(learner, batch, update)
            metrics |= summarise_batch(learner, batch, train_data)
            metrics |= {
                "time/rollout": collected - started,
                "time/update": time.perf_counter() - collected,
            }
            cost_usd = metrics["cost/usd_per_query"] * algorithm.episodes
            state = dataclasses.replace(
                state, update=update + 1, cost_usd_total=state.cost_usd_total + cost_usd
            )
            metrics["cost/usd_total"] = state.cost_usd_total
            last = state.update == recipe.updates
            if last or state.update % recipe.validation.every == 0:
                found = validate(learner, val_data, sweep)
                state = keep_best(folder, learner, state, found)
                metrics |= found
                sample_episodes(tracker, state, batch, train_data)
            state = dataclasses.replace(
                state, seconds=state.seconds + time.perf_counter() - started
            )
            report(tracker, state, metrics)
            if last or state.update % recipe.checkpoint_every == 0:
                keep_checkpoint(folder, learner, state, tracker)
        if tracker is not None:
            mirror_validation(tracker, learner, prepared, sweep)
    accelerator.wait_for_everyone()
    return state


# --- Set-up ---------------------------------------------------------------------------------------


def check_processes(recipe: Recipe, processes: int) -> None:
    """Refuse episodes that cannot be shared out equally with their groups whole."""
    groups = recipe.algorithm.episodes // recipe.algorithm.group_size
    if groups % processes:
        raise RLRouteError(
            f"algorithm: {groups} groups of {recipe.algorithm.group_size} cannot be shared out "
            f"equally to {processes} processes"
        )


def write_run(recipe: Recipe, folder: Path, accelerator: Any, command: str) -> None:
    """Fit what is fitted before training and write the run folder."""
    table = read_table(recipe.table)
    prepared = prepare_table(table, recipe.encoder, recipe.profile, recipe.seed)
    facts = {
        "command": redact(command),
        "processes": accelerator.num_processes,
        "device": str(accelerator.device),
    }
    start_run_folder(folder, recipe, table, prepared, facts)


def make_learner(recipe: Recipe, prepared: PreparedTable, accelerator: Any) -> Learner:
    """Build model and optimiser; equal seeds give equal weights on every process."""
    config = make_scorer_config(recipe, prepared)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(recipe.seed, "weights"))
        scorer = CandidateScorer(config)
    scorer.centroids_CF.copy_(torch.as_tensor(prepared.centroids_CF))
    scorer.value_head.requires_grad_(recipe.algorithm.kind == "ppo")  # the others have no critic
    settings: OptimiserConfig = recipe.optimiser
    optimiser = torch.optim.AdamW(
        [parameter for parameter in scorer.parameters() if parameter.requires_grad],
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
    )
    model, optimiser = accelerator.prepare(scorer, optimiser)
    rewards = build_reward_stack(prepared.splits["train"])
    return Learner(accelerator, model, optimiser, config, rewards, recipe)


def resume_from(folder: Path, learner: Learner) -> TrainingState:
    """Load the last checkpoint of a run.

    Raises:
        RLRouteError: there is none.
    """
    checkpoints = list_checkpoints(folder / CHECKPOINTS_FOLDER)
    if not checkpoints:
        raise RLRouteError(f"{folder}: no checkpoint to resume from")
    return load_checkpoint(checkpoints[-1], learner.scorer, learner.optimiser)


@contextmanager
def open_tracker(
    recipe: Recipe, folder: Path, learner: Learner, state: TrainingState
) -> Iterator[Tracker | None]:
    """Yield the tracker on the main process and None on the others."""
    if not learner.accelerator.is_main_process:
        yield None
        return
    with Tracker(
        folder,
        updates=recipe.updates,
        start=state.update,
        wandb_project=recipe.tracking.project if recipe.tracking.wandb else None,
        config=redact(recipe.model_dump(mode="json")),
    ) as tracker:
        tracker.log_event(f"{'resumed' if state.update else 'started'} at update {state.update}")
        yield tracker
        tracker.log_event(f"finished at update {recipe.updates}")


# --- Steps of the loop ----------------------------------------------------------------------------


def plan_update(recipe: Recipe, update: int, queries: int, accelerator: Any) -> EpisodePlan:
    """Return this process's slice of the update's episodes."""
    size = recipe.algorithm.group_size
    plan = plan_episodes(
        recipe.seed,
        update,
        queries=queries,
        groups=recipe.algorithm.episodes // size,
        group_size=size,
    )
    return plan.select_part(accelerator.process_index, accelerator.num_processes)


def set_schedules(learner: Learner, recipe: Recipe, update: int) -> None:
    """Set learning rate and entropy weight of an update: constant, or falling linearly to 0."""
    left = 1 - update / recipe.updates
    for group in learner.optimiser.param_groups:
        group["lr"] = recipe.optimiser.learning_rate
        if recipe.optimiser.decay == "linear":
            group["lr"] *= left
    algorithm = recipe.algorithm
    learner.entropy_weight = algorithm.entropy_weight
    if algorithm.entropy_decay == "linear":
        learner.entropy_weight *= left


def make_cost_weights(recipe: Recipe, count: int) -> list[float]:
    """Return the cost weights of a sweep: the least, then a geometric grid to the greatest."""
    low, high = recipe.cost_weight.min, recipe.cost_weight.max
    if low == high:
        return [low]
    grid = np.geomspace(max(low, high / 2000), high, count - (low == 0))
    return [low, *grid.tolist()] if low == 0 else grid.tolist()


def validate(learner: Learner, val_data: RoutingData, sweep: list[float]) -> dict[str, float]:
    """Measure the greedy policy on val."""
    found = compute_validation_metrics(GreedyPolicy(learner.scorer.eval()), val_data, sweep)
    return {f"eval/{name}": value for name, value in found.items()}


def keep_best(
    folder: Path, learner: Learner, state: TrainingState, found: dict[str, float]
) -> TrainingState:
    """Keep the weights where validation finds them the best so far."""
    name = learner.recipe.validation.metric
    metric = found[f"eval/{name}"]
    if state.best_metric is not None and metric <= state.best_metric:
        return state
    if learner.accelerator.is_main_process:
        facts = {key.removeprefix("eval/"): value for key, value in found.items()}
        save_best(folder, learner.scorer, {"update": state.update, "metric": name, **facts})
    return dataclasses.replace(state, best_metric=metric, best_update=state.update)


def mirror_validation(
    tracker: Tracker, learner: Learner, prepared: PreparedTable, sweep: list[float]
) -> None:
    """Draw the final frontier on val into the run folder; show it and its decisions in W&B."""
    policy = GreedyPolicy(learner.scorer.eval(), name=learner.recipe.algorithm.kind)
    train_data, val_data = prepared.splits["train"], prepared.splits["val"]
    result = evaluate_policies([policy], train_data, val_data, sweep, bootstrap=100)
    path = tracker.folder / "frontier_validation.png"
    write_atomic(path, draw_frontier(result))
    tracker.mirror_picture("frontier", path)
    middle = sweep[len(sweep) // 2]
    tracker.mirror_table("decisions", describe_decisions(policy, val_data, [sweep[0], middle]))


def report(tracker: Tracker | None, state: TrainingState, metrics: dict[str, float]) -> None:
    """Write a row of metrics and refresh the progress line."""
    if tracker is not None:
        note = "" if state.best_metric is None else f"best on val {state.best_metric:.4f}"
        tracker.log(state.update, metrics, note)


def sample_episodes(
    tracker: Tracker | None, state: TrainingState, batch: Batch, data: RoutingData
) -> None:
    """Write a few of the batch's episodes to trajectories.jsonl."""
    if tracker is not None:
        tracker.log_episodes(state.update, describe_episodes(batch, data, count=4))


def keep_checkpoint(
    folder: Path, learner: Learner, state: TrainingState, tracker: Tracker | None
) -> None:
    """Write a checkpoint on the main process."""
    if tracker is not None:
        weights = learner.scorer.state_dict()
        save_checkpoint(folder / CHECKPOINTS_FOLDER, weights, learner.optimiser, state)
        tracker.log_event(f"checkpoint at update {state.update}")
