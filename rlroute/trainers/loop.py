"""The loop of decision policies: collect, update, validate, track, whatever the shape of a problem.

    for each update:
        collect  episodes of this process, and what they ended as        problem.collect
        update   advantages, minibatches, losses, optimiser steps        trainers/update.py
        validate measure the greedy policy on val, keep the best weights problem.validate
        track    metrics, checkpoints                                    tracking.py, checkpoint.py

Nothing is drawn from generator state, so a resumed run equals an uninterrupted one bit for bit.

It leaves out what differs between shapes: set-up, episodes, validation and the run folder's files
(`rlroute.trainers.decision` for tables, `rlroute.trainers.step_run` for many steps).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from rlroute.config import redact
from rlroute.tracking import Tracker
from rlroute.trainers.checkpoint import (
    TrainingState,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from rlroute.trainers.learner import Learner
from rlroute.trainers.run_folder import CHECKPOINTS_FOLDER
from rlroute.trainers.update import update_policy
from rlroute.types import Batch, RLRouteError


class Problem(Protocol):
    """What the loop asks of a shape of problem."""

    def collect(self, learner: Learner, update: int) -> Batch:
        """Return this process's episodes of an update."""

    def summarise(self, learner: Learner, batch: Batch) -> dict[str, float]:
        """Return the batch's metrics over all processes, `cost/usd_per_query` among them.

        Where episodes beside the policy's own were paid for, `cost/usd_update` is what all cost.
        """

    def validate(self, learner: Learner) -> dict[str, float]:
        """Measure the greedy policy on val; names begin with `eval/`."""

    def describe_episodes(self, batch: Batch, count: int) -> list[dict[str, Any]]:
        """Return the first episodes of a batch as plain rows."""

    def save_best(self, folder: Path, learner: Learner, facts: dict[str, Any]) -> None:
        """Replace the weights that validation chose."""

    def finish(self, tracker: Tracker, learner: Learner) -> None:
        """Leave the last pictures and tables, on the main process."""

    def get_state(self) -> dict[str, Any]:
        """Return what a resumed run goes on from besides weights, as plain JSON values."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from a state of `get_state`."""


def run_loop(
    problem: Problem, learner: Learner, folder: Path, *, resume: bool = False
) -> TrainingState:
    """Train until the recipe's last update and return where the run stands.

    Raises:
        RLRouteError: there is no checkpoint to resume from, or it cannot be read.
    """
    recipe = learner.recipe
    state = TrainingState()
    if resume:
        state = resume_from(folder, learner)
        problem.set_state(state.problem)
    with open_tracker(recipe, folder, learner, state) as tracker:
        if state.update == 0:  # where the curve starts
            found = problem.validate(learner)
            if recipe.validation.start:  # else what was never trained is never the best
                state = keep_best(problem, folder, learner, state, found)
            report(tracker, state, found)
        for update in range(state.update, recipe.updates):
            started = time.perf_counter()
            set_schedules(learner, recipe, update)
            batch = problem.collect(learner, update)
            collected = time.perf_counter()
            metrics = update_policy(learner, batch, update)
            metrics |= problem.summarise(learner, batch)
            metrics |= {
                "time/rollout": collected - started,
                "time/update": time.perf_counter() - collected,
            }
            own_usd = metrics["cost/usd_per_query"] * recipe.algorithm.episodes
            cost_usd = metrics.get("cost/usd_update", own_usd)  # said where there are others too
            state = dataclasses.replace(
                state, update=update + 1, cost_usd_total=state.cost_usd_total + cost_usd
            )
            metrics["cost/usd_total"] = state.cost_usd_total
            last = state.update == recipe.updates
            if last or state.update % recipe.validation.every == 0:
                found = problem.validate(learner)
                state = keep_best(problem, folder, learner, state, found)
                metrics |= found
                if tracker is not None:
                    tracker.log_episodes(state.update, problem.describe_episodes(batch, count=4))
            state = dataclasses.replace(
                state, seconds=state.seconds + time.perf_counter() - started
            )
            report(tracker, state, metrics)
            if last or state.update % recipe.checkpoint_every == 0:
                state = dataclasses.replace(state, problem=problem.get_state())
                keep_checkpoint(folder, learner, state, tracker)
        if tracker is not None:
            problem.finish(tracker, learner)
    learner.accelerator.wait_for_everyone()
    return state


def check_processes(algorithm: Any, processes: int) -> None:
    """Refuse episodes that cannot be shared out equally with their groups whole."""
    groups = algorithm.episodes // algorithm.group_size
    if groups % processes:
        raise RLRouteError(
            f"algorithm: {groups} groups of {algorithm.group_size} cannot be shared out "
            f"equally to {processes} processes"
        )


def check_distribution(accelerator: Any) -> None:
    """Refuse ways of sharing a model that this loop does not follow: it is data-parallel.

    An update takes several backward passes for one step, which DeepSpeed's engine does not, and
    checkpoints hold whole weights.
    """
    kind = str(accelerator.distributed_type).rpartition(".")[2]
    if kind in ("DEEPSPEED", "FSDP", "MEGATRON_LM"):
        raise RLRouteError(
            f"accelerate runs {kind}, and decision policies are trained data-parallel only: launch "
            "with launch/accelerate/ddp.yaml"
        )


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
    recipe: Any, folder: Path, learner: Learner, state: TrainingState
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


def set_schedules(learner: Learner, recipe: Any, update: int) -> None:
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


def keep_best(
    problem: Problem,
    folder: Path,
    learner: Learner,
    state: TrainingState,
    found: dict[str, float],
) -> TrainingState:
    """Keep the weights where validation finds them the best so far."""
    name = learner.recipe.validation.metric
    metric = found[f"eval/{name}"]
    if state.best_metric is not None and metric <= state.best_metric:
        return state
    facts = {key.removeprefix("eval/"): value for key, value in found.items()}
    if learner.accelerator.is_main_process:
        problem.save_best(folder, learner, {"update": state.update, "metric": name, **facts})
    return dataclasses.replace(state, best_metric=metric, best_update=state.update)


def report(tracker: Tracker | None, state: TrainingState, metrics: dict[str, float]) -> None:
    """Write a row of metrics and refresh the progress line."""
    if tracker is not None:
        note = "" if state.best_metric is None else f"best on val {state.best_metric:.4f}"
        tracker.log(state.update, metrics, note)


def keep_checkpoint(
    folder: Path, learner: Learner, state: TrainingState, tracker: Tracker | None
) -> None:
    """Write a checkpoint on the main process."""
    if tracker is not None:
        weights = learner.scorer.state_dict()
        save_checkpoint(folder / CHECKPOINTS_FOLDER, weights, learner.optimiser, state)
        tracker.log_event(f"checkpoint at update {state.update}")
