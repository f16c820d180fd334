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

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlroute.config import redact
from rlroute.data.prepare import PreparedTable, prepare_table
from rlroute.data.routing_data import RoutingData
from rlroute.data.users import Preference, make_preference
from rlroute.envs.preferences import LatencyWeightConfig
from rlroute.envs.single_turn import CostWeightConfig, build_reward_stack
from rlroute.envs.single_turn_vector import SingleTurnVector
from rlroute.evaluation.evaluate import compute_validation_metrics, evaluate_policies
from rlroute.evaluation.figures import draw_frontier
from rlroute.evaluation.preferences import Setting, measure_settings
from rlroute.extras import require
from rlroute.files import write_atomic
from rlroute.policies.decision import GreedyPolicy, SamplingPolicy
from rlroute.policies.kernel_start import fit_kernel_start
from rlroute.policies.margin import assign_folds, measure_margin
from rlroute.policies.mlp import CandidateScorer
from rlroute.rollout.plan import EpisodePlan, force_arms, plan_episodes
from rlroute.rollout.vector import collect_batch
from rlroute.seeding import derive_seed
from rlroute.tracking import Tracker
from rlroute.trainers.checkpoint import TrainingState
from rlroute.trainers.growing_groups import build_prior, collect_growing
from rlroute.trainers.learner import Learner, score_candidates
from rlroute.trainers.log_problem import LogProblem
from rlroute.trainers.loop import Problem, check_distribution, check_processes, run_loop
from rlroute.trainers.metrics import describe_decisions, describe_episodes, summarise_batch
from rlroute.trainers.recipe import (
    ExpectedGradientConfig,
    OptimiserConfig,
    PriorGRPOConfig,
    Recipe,
    TableGRPOConfig,
    has_critic,
)
from rlroute.trainers.run_folder import (
    Run,
    clear_folder,
    make_scorer_config,
    open_table,
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
    run = read_run(folder)  # what was written is what is used, by every process
    learner = make_learner(recipe, run.prepared, accelerator)
    return run_loop(make_problem(recipe, run, learner), learner, folder, resume=resume)


def make_problem(recipe: Recipe, run: Run, learner: Learner) -> Problem:
    """Return the problem of a recipe: a table that is tried out, or a log."""
    if run.propensities is None:
        return TableProblem(recipe, run.prepared, learner)
    sweep = make_cost_weights(recipe.cost_weight, recipe.validation.cost_weights)
    return LogProblem(recipe, run.prepared, run.propensities, sweep, plan_update)


class TableProblem:
    """What the loop needs of an outcome table (`rlroute.trainers.loop.Problem`)."""

    def __init__(self, recipe: Recipe, prepared: PreparedTable, learner: Learner) -> None:
        self.recipe, self.prepared = recipe, prepared
        self.train_data, self.val_data = prepared.splits["train"], prepared.splits["val"]
        self.sweep = make_cost_weights(recipe.cost_weight, recipe.validation.cost_weights)
        self.settings = list_settings(recipe, self.train_data, self.sweep)
        self.environment: SingleTurnVector | None = None
        self.prior = None
        if isinstance(recipe.algorithm, PriorGRPOConfig):
            self.prior = build_prior(self.train_data, prepared.centroids_CF)

    def collect(self, learner: Learner, update: int) -> Batch:
        """Decide for this process's queries of the update."""
        algorithm, data = self.recipe.algorithm, self.train_data
        arms = len(data.table.candidates)
        forced = algorithm.forced_arms if isinstance(algorithm, TableGRPOConfig) else 0
        size = algorithm.group_size + arms * forced
        if isinstance(algorithm, PriorGRPOConfig):
            size = algorithm.max_group_size
        queries = len(data.features_QF)
        plan = plan_update(self.recipe, update, queries, learner.accelerator, size)
        if forced:
            plan = force_arms(plan, arms, forced, data.table.present_QK)
        policy = SamplingPolicy(learner.scorer.eval(), version=update)

        def play(part: EpisodePlan) -> Batch:
            return collect_batch(policy, self.make_environment(len(part.group_B)), part)

        if not isinstance(algorithm, PriorGRPOConfig):
            batch = play(plan)
            assert policy.basis is not None
            learner.basis = (batch, policy.basis)
            return batch
        assert self.prior is not None
        return collect_growing(play, plan, self.prior, learner, algorithm)

    def make_environment(self, lanes: int) -> SingleTurnVector:
        """Return an environment with so many lanes; the last one is kept."""
        if self.environment is None or self.environment.num_envs != lanes:
            full = isinstance(self.recipe.algorithm, ExpectedGradientConfig)
            self.environment = SingleTurnVector(
                self.train_data,
                num_envs=lanes,
                cost_weights=self.recipe.cost_weight,
                feedback="full" if full else "bandit",
                preferences=self.recipe.preferences,
            )
        return self.environment

    def summarise(self, learner: Learner, batch: Batch) -> dict[str, float]:
        """Return the batch's metrics."""
        return summarise_batch(learner, batch, self.train_data)

    def validate(self, learner: Learner) -> dict[str, float]:
        """Measure the greedy policy on val."""
        scorer: CandidateScorer = learner.scorer.eval()
        least = Preference(self.recipe.latency_weight.min)
        policy = GreedyPolicy(scorer, preference=least)
        found = compute_validation_metrics(policy, self.val_data, self.sweep)
        if self.settings:
            found |= measure_settings(
                lambda one: GreedyPolicy(scorer, preference=one), self.val_data, self.settings
            )
        if scorer.config.margin:
            found["margin"] = float(scorer.margin)
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
        policy = GreedyPolicy(
            learner.scorer.eval(),
            name=self.recipe.algorithm.kind,
            preference=Preference(self.recipe.latency_weight.min),
        )
        result = evaluate_policies(
            [policy], self.train_data, self.val_data, self.sweep, bootstrap=100
        )
        path = tracker.folder / "frontier_validation.png"
        write_atomic(path, draw_frontier(result))
        tracker.mirror_picture("frontier", path)
        weights = [self.sweep[0], self.sweep[len(self.sweep) // 2]]
        tracker.mirror_table("decisions", describe_decisions(policy, self.val_data, weights))


def list_settings(
    recipe: Recipe, data: RoutingData, cost_weights: Sequence[float]
) -> list[Setting]:
    """Return what episodes are drawn from: the users taught, and a grid of both weights.

    The grid is left out where all episodes are users'. Empty where there is neither a user nor a
    weight of latency: then the cost weights alone are swept.
    """
    users = recipe.preferences.users
    ids = [candidate.id for candidate in data.table.candidates]
    taught = [Setting(user.cost_weight, make_preference(user, ids)) for user in users]
    if users and recipe.user_share == 1:
        return taught
    if not (users or recipe.weighs_latency):
        return []
    return taught + [
        Setting(cost_weight, Preference(latency_weight))
        for latency_weight in list_latency_weights(recipe.latency_weight)
        for cost_weight in cost_weights
    ]


def list_latency_weights(weights: LatencyWeightConfig) -> list[float]:
    """Return the least latency weight, the median of the draws, and the greatest."""
    middle = weights.min + (weights.max - weights.min) * 0.5**weights.power
    return list(dict.fromkeys((weights.min, middle, weights.max)))


def find_margin(recipe: Recipe, prepared: PreparedTable) -> float:
    """Return the margin that the policy serves with: as given, or measured on the train split."""
    margin = recipe.policy.margin
    if margin != "unseen_tasks":
        return margin
    train_data, centroids_CF = prepared.splits["train"], prepared.centroids_CF
    return measure_margin(train_data, centroids_CF, recipe.policy.kernel, seed=recipe.seed)


def write_run(recipe: Recipe, folder: Path, accelerator: Any, command: str) -> None:
    """Fit what is fitted before training and write the run folder."""
    table = open_table(recipe).table
    prepared = prepare_table(
        table, recipe.encoder, recipe.profile, recipe.seed, latency=recipe.weighs_latency
    )
    if recipe.policy.margin == "unseen_tasks":
        assign_folds(prepared.splits["train"])  # refuses too few tasks before anything is written
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
    if recipe.policy.kernel is not None:
        start = fit_kernel_start(prepared.splits["train"], recipe.policy.kernel, recipe.seed)
        scorer.anchors_MF.copy_(torch.as_tensor(start.anchors_MF))
        scorer.start_MD.copy_(torch.as_tensor(start.weight_MD))
    if config.margin:
        scorer.margin.fill_(find_margin(recipe, prepared))
    scorer.value_head.requires_grad_(has_critic(recipe.algorithm))
    settings: OptimiserConfig = recipe.optimiser
    optimiser = torch.optim.AdamW(
        [parameter for parameter in scorer.parameters() if parameter.requires_grad],
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
    )
    model, optimiser = accelerator.prepare(scorer, optimiser)
    rewards = build_reward_stack(prepared.splits["train"], biased=recipe.preferences.biased)
    return Learner(accelerator, model, optimiser, score_candidates, rewards, recipe)


def plan_update(
    recipe: Recipe, update: int, queries: int, accelerator: Any, group_size: int | None = None
) -> EpisodePlan:
    """Return this process's slice of the update's episodes.

    `group_size` is how many a group may come to hold, where that is not the algorithm's own.
    """
    algorithm = recipe.algorithm
    plan = plan_episodes(
        recipe.seed,
        update,
        queries=queries,
        groups=algorithm.episodes // algorithm.group_size,
        group_size=group_size or algorithm.group_size,
    )
    return plan.select_part(accelerator.process_index, accelerator.num_processes)


def make_cost_weights(weights: CostWeightConfig, count: int) -> list[float]:
    """Return the cost weights of a sweep: the least, then a geometric grid to the greatest."""
    low, high = weights.min, weights.max
    if low == high:
        return [low]
    grid = np.geomspace(max(low, high / 2000), high, count - (low == 0))
    return [low, *grid.tolist()] if low == 0 else grid.tolist()
