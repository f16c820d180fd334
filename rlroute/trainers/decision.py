"""The trainer of candidate scorers on outcome tables: from a recipe to a run folder.

The loop itself stands in `rlroute.trainers.loop`; here is what tables bring to it:

    plan     which queries, from coordinates                       rollout/plan.py
    collect  decisions and reward terms                            rollout/vector.py
    validate sweep the cost weight on val                          evaluation/evaluate.py

Several processes (`accelerate launch -m rlroute train ...`) share the episodes of an update; the
result equals that of one process up to the rounding of sums.

It leaves out text policies and shapes of many steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlroute.config import redact
from rlroute.data.prepare import PreparedTable, prepare_table
from rlroute.data.table import read_table
from rlroute.data.task_splits import split_table
from rlroute.envs.single_turn import CostWeightConfig, build_reward_stack
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
from rlroute.trainers.checkpoint import TrainingState
from rlroute.trainers.learner import Learner, score_candidates
from rlroute.trainers.loop import check_distribution, check_processes, run_loop
from rlroute.trainers.metrics import describe_decisions, describe_episodes, summarise_batch
from rlroute.trainers.recipe import ExpectedGradientConfig, OptimiserConfig, Recipe
from rlroute.trainers.run_folder import (
    clear_folder,
    make_scorer_config,
    read_run,
    save_best,
    start_run_folder,
)
from rlroute.types import Batch


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
    check_distribution(accelerator)
    check_processes(recipe.algorithm, accelerator.num_processes)
    if not resume and accelerator.is_main_process:
        clear_folder(folder, overwrite=overwrite)
        write_run(recipe, folder, accelerator, command)
    accelerator.wait_for_everyone()
    prepared = read_run(folder).prepared  # what was written is what is used, by every process
    learner = make_learner(recipe, prepared, accelerator)
    return run_loop(TableProblem(recipe, prepared, learner), learner, folder, resume=resume)


class TableProblem:
    """What the loop needs of an outcome table (`rlroute.trainers.loop.Problem`)."""

    def __init__(self, recipe: Recipe, prepared: PreparedTable, learner: Learner) -> None:
        self.recipe, self.prepared = recipe, prepared
        self.train_data, self.val_data = prepared.splits["train"], prepared.splits["val"]
        self.sweep = make_cost_weights(recipe.cost_weight, recipe.validation.cost_weights)
        algorithm = recipe.algorithm
        self.environment = SingleTurnVector(
            self.train_data,
            num_envs=algorithm.episodes // learner.accelerator.num_processes,
            cost_weights=recipe.cost_weight,
            feedback="full" if isinstance(algorithm, ExpectedGradientConfig) else "bandit",
        )

    def collect(self, learner: Learner, update: int) -> Batch:
        """Decide for this process's queries of the update."""
        queries = len(self.train_data.features_QF)
        plan = plan_update(self.recipe, update, queries, learner.accelerator)
        policy = SamplingPolicy(learner.scorer.eval(), version=update)
        return collect_batch(policy, self.environment, plan)

    def summarise(self, learner: Learner, batch: Batch) -> dict[str, float]:
        """Return the batch's metrics."""
        return summarise_batch(learner, batch, self.train_data)

    def validate(self, learner: Learner) -> dict[str, float]:
        """Measure the greedy policy on val."""
        policy = GreedyPolicy(learner.scorer.eval())
        found = compute_validation_metrics(policy, self.val_data, self.sweep)
        return {f"eval/{name}": value for name, value in found.items()}

    def describe_episodes(self, batch: Batch, count: int) -> list[dict[str, Any]]:
        """Return the first episodes of a batch as plain rows."""
        return describe_episodes(batch, self.train_data, count)

    def save_best(self, folder: Path, learner: Learner, facts: dict[str, Any]) -> None:
        """Replace the weights that validation chose."""
        save_best(folder, learner.scorer, facts)

    def get_state(self) -> dict[str, Any]:
        """Return nothing: every draw follows from its coordinates."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Take the empty state."""

    def finish(self, tracker: Tracker, learner: Learner) -> None:
        """Draw the final frontier on val into the run folder; show it and its decisions in W&B."""
        policy = GreedyPolicy(learner.scorer.eval(), name=self.recipe.algorithm.kind)
        result = evaluate_policies(
            [policy], self.train_data, self.val_data, self.sweep, bootstrap=100
        )
        path = tracker.folder / "frontier_validation.png"
        write_atomic(path, draw_frontier(result))
        tracker.mirror_picture("frontier", path)
        weights = [self.sweep[0], self.sweep[len(self.sweep) // 2]]
        tracker.mirror_table("decisions", describe_decisions(policy, self.val_data, weights))


def write_run(recipe: Recipe, folder: Path, accelerator: Any, command: str) -> None:
    """Fit what is fitted before training and write the run folder."""
    table = split_table(read_table(recipe.table), recipe.split)
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
    return Learner(accelerator, model, optimiser, score_candidates, rewards, recipe)


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


def make_cost_weights(weights: CostWeightConfig, count: int) -> list[float]:
    """Return the cost weights of a sweep: the least, then a geometric grid to the greatest."""
    low, high = weights.min, weights.max
    if low == high:
        return [low]
    grid = np.geomspace(max(low, high / 2000), high, count - (low == 0))
    return [low, *grid.tolist()] if low == 0 else grid.tolist()
