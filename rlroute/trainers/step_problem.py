"""What the training loop needs of step-by-step routing: episodes, yardsticks, validation, metrics.

It stands between the loop (`rlroute.trainers.loop`) and the stage on which episodes are played
(`rlroute.rollout.stage`). It leaves out set-up and the warm start (`rlroute.trainers.step_run`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rlroute.envs.budget import BudgetConfig
from rlroute.envs.single_turn import CostWeightConfig
from rlroute.envs.step_budget import StepBudgetConfig
from rlroute.evaluation.metrics import compute_selection_entropy
from rlroute.rewards.boundary import (
    Boundary,
    BoundaryReward,
    TaskClass,
    Yardstick,
    classify,
    make_yardstick,
)
from rlroute.rollout.boundary import RolloutFile, read_boundary
from rlroute.rollout.plan import FREE
from rlroute.rollout.stage import Stage, compute_rewards
from rlroute.rollout.step_plan import GroupShape, StepPlan, plan_static, plan_steps
from rlroute.seeding import mix
from rlroute.tracking import Tracker
from rlroute.trainers.learner import Learner
from rlroute.trainers.metrics import reduce_sums
from rlroute.trainers.run_folder import BEST_FOLDER
from rlroute.trainers.step_policy import StepModel, make_policy, save_policy
from rlroute.trainers.step_recipe import StepGRPOConfig, StepRecipe
from rlroute.types import MEMBER, Batch, IntArray, RLRouteError, SplitName

COLLAPSED_SHARE = 0.01  # of dear calls on hard tasks; below it for so many validations: an alarm
COLLAPSED_VALIDATIONS = 3


@dataclass(frozen=True)
class SplitFacts:
    """What the boundary rollouts say of the Q tasks of a split.

    `train_cost` is the dearest policy's mean cost on train where the reward's scale is that.
    """

    boundaries: tuple[Boundary, ...]
    classes: tuple[TaskClass, ...]
    yardsticks: Mapping[str, Yardstick]
    reference_seed_Q: IntArray
    train_cost: float | None = None

    @property
    def hard_Q(self) -> Any:
        """Whether each task is hard [Q]."""
        return np.array([label is TaskClass.HARD for label in self.classes])


def read_split_facts(
    recipe: StepRecipe, stage: Stage, file: RolloutFile, split: SplitName, rollouts: int
) -> SplitFacts:
    """Return what the first `rollouts` of each static policy say of a split's tasks.

    `reference_seed_Q` is the seed of the dearest executor's first success, or of its first rollout.
    """
    tasks, unit = stage.tasks[split], recipe.reward.unit
    boundaries = [read_boundary(file, split, task.id, rollouts, unit) for task in tasks]
    taxonomy = recipe.boundary.taxonomy
    seeds = []
    for task in tasks:
        large = file.list_of(split, task.id, "large")[:rollouts]
        best = max(large, key=lambda one: one.score)  # the first of the best
        seeds.append(best.seed)
    train_cost = None
    if recipe.reward.scale == "train":
        train_cost = measure_train_cost(recipe, stage, file)
    return SplitFacts(
        boundaries=tuple(boundaries),
        classes=tuple(classify(one, taxonomy) for one in boundaries),
        yardsticks={
            task.id: make_yardstick(one, taxonomy, train_cost)
            for task, one in zip(tasks, boundaries, strict=True)
        },
        reference_seed_Q=np.array(seeds),
        train_cost=train_cost,
    )


def measure_train_cost(recipe: StepRecipe, stage: Stage, file: RolloutFile) -> float:
    """Return the dearest policy's mean cost on the train tasks, in the reward's unit.

    Raises:
        RLRouteError: it is 0, so there is nothing to trade quality against.
    """
    rollouts, unit = recipe.boundary.rollouts, recipe.reward.unit
    found = [
        read_boundary(file, "train", task.id, rollouts, unit).cost_large
        for task in stage.tasks["train"]
    ]
    cost = float(np.mean(found))
    if cost <= 0:
        raise RLRouteError("reward.scale 'train': the dearest executor costs nothing on train")
    return cost


def make_shape(recipe: StepRecipe, executors: int) -> GroupShape:
    """Return what a group of the recipe's algorithm consists of."""
    algorithm = recipe.algorithm
    if not isinstance(algorithm, StepGRPOConfig):
        return GroupShape(algorithm.group_size)
    return GroupShape(
        free=algorithm.group_size,
        forced_arms=tuple(range(executors)) if algorithm.forced_arms else (),
        reference_arm=executors - 1 if algorithm.reference_rollout else None,
    )


def list_cost_weights(weights: CostWeightConfig, count: int) -> list[float]:
    """Return `count` cost weights that cover the range evenly; one is its middle."""
    if weights.min == weights.max or count == 1:
        return [(weights.min + weights.max) / 2]
    grid: list[float] = np.linspace(weights.min, weights.max, count).tolist()
    return grid


def fix_setting(config: StepBudgetConfig, cap: float | None, weight: float) -> StepBudgetConfig:
    """Return the episode's settings with one cap and one cost weight."""
    budget = BudgetConfig(unit=config.budget.unit, counted=config.budget.counted, caps=(cap,))
    weights = CostWeightConfig(min=weight, max=weight)
    return config.model_copy(update={"budget": budget, "cost_weight": weights})


def plan_evaluation(seed: int, split: SplitName, tasks: int, rollouts: int) -> StepPlan:
    """Plan `rollouts` episodes of each of the first `tasks` tasks, by seeds of their own."""
    task_index_B = np.tile(np.arange(tasks), rollouts)
    number_B = np.repeat(np.arange(rollouts), tasks)
    seed_B = mix(seed, "evaluation", split, task_index_B, number_B) >> np.uint64(2)
    return plan_static(task_index_B, seed_B.astype(np.int64), FREE)


class StepProblem:
    """Step-by-step routing for the loop (`rlroute.trainers.loop.Problem`)."""

    def __init__(
        self,
        recipe: StepRecipe,
        stage: Stage,
        model: StepModel,
        facts: Mapping[SplitName, SplitFacts],
    ) -> None:
        self.recipe, self.stage, self.model, self.facts = recipe, stage, model, facts
        self.reward = BoundaryReward(recipe.reward)
        self.shape = make_shape(recipe, len(stage.world.executors))
        self.low_validations = 0  # in a row, with hardly a dear call on hard tasks
        self.shown: list[dict[str, Any]] = []

    def collect(self, learner: Learner, update: int) -> Batch:
        """Play this process's groups of an update."""
        algorithm, accelerator = self.recipe.algorithm, learner.accelerator
        train = self.facts["train"]
        plan = plan_steps(
            self.recipe.seed,
            update,
            tasks=len(self.stage.tasks["train"]),
            groups=algorithm.episodes // algorithm.group_size,
            shape=self.shape,
            reference_seed_Q=train.reference_seed_Q,
        ).select_part(accelerator.process_index, accelerator.num_processes)
        policy = make_policy(self.model, learner.scorer, version=update, greedy=False)
        batch = self.stage.play(policy, plan, "train", self.recipe.episode, train.yardsticks)
        learner.scorer.train()
        return self.attach_references(batch)

    def attach_references(self, batch: Batch) -> Batch:
        """Add what the static policies earn on each episode's task."""
        train, ends = self.facts["train"], batch.ends
        assert ends is not None
        task_B = batch.query_index_B
        boundaries = [train.boundaries[task] for task in task_B]
        references = self.reward.compute_references(
            boundaries, train.hard_Q[task_B], batch.cost_weight_B, train.train_cost
        )
        solvable_B = np.array([max(b.rate_small, b.rate_large) > 0 for b in boundaries])
        found = replace(
            ends, reference_BR=references, solvable_B=solvable_B, hard_B=train.hard_Q[task_B]
        )
        return replace(batch, ends=found)

    def summarise(self, learner: Learner, batch: Batch) -> dict[str, float]:
        """Return the batch's metrics over all processes; those of the policy's own episodes."""
        ends = batch.ends
        assert ends is not None
        member_B = ends.role_B == MEMBER
        known_B = member_B & ~np.isnan(ends.score_B)
        inside_BT = batch.valid_BT & known_B[:, None]
        sums: dict[str, float] = {
            "episodes": member_B.sum(),
            "known": known_B.sum(),
            "steps": inside_BT.sum(),
            "dropped": batch.dropped,
            "cost": ends.cost_usd_B[known_B].sum(),
            "paid": float(np.nansum(ends.cost_usd_B)),  # by forced and static episodes too
            "calls": ends.calls_B[known_B].sum(),
            "exhausted": ends.exhausted_B[known_B].sum(),
        }
        for name, value_BT in batch.reward_terms_BT.items():
            value_B = np.where(inside_BT, value_BT, 0.0).sum(axis=1)[known_B]
            sums |= {f"{name}/sum": value_B.sum(), f"{name}/squares": (value_B**2).sum()}
        capped_B = known_B & np.isfinite(ends.cap_B) & (ends.cap_B > 0)
        spent_B = ends.calls_B if self.recipe.budget.unit == "calls" else ends.cost_usd_B
        sums |= {
            "capped": capped_B.sum(),
            "used": (spent_B[capped_B] / ends.cap_B[capped_B]).sum(),
        }
        class_B = np.array([str(self.facts["train"].classes[q]) for q in batch.query_index_B])
        for name in TaskClass:
            of_B = known_B & (class_B == name)
            steps_BT = batch.valid_BT & of_B[:, None]
            sums |= {
                f"{name}/episodes": of_B.sum(),
                f"{name}/score": ends.score_B[of_B].sum(),
                f"{name}/steps": steps_BT.sum(),
                f"{name}/dear": (batch.action_BT[steps_BT] > 0).sum(),
            }
        executors = len(self.stage.world.executors)
        picks_K = np.bincount(batch.action_BT[inside_BT], minlength=executors)
        sums |= {f"pick/{k}": count for k, count in enumerate(picks_K)}
        reward_NG = compute_rewards(batch, self.reward).reshape(-1, self.shape.size)
        reward_NM = reward_NG[:, : self.shape.members]
        spread_N = np.nanstd(reward_NM[~np.isnan(reward_NM).all(axis=1)], axis=1)
        sums |= {"groups": len(spread_N), "flat": (spread_N < 1e-8).sum()}
        self.shown = self.describe_episodes(batch, count=20)
        return self.name_metrics(reduce_sums(learner, sums), list(batch.reward_terms_BT))

    def name_metrics(self, total: dict[str, float], terms: Sequence[str]) -> dict[str, float]:
        """Turn sums over all processes into metrics."""
        known = max(total["known"], 1.0)
        metrics = {
            "cost/usd_per_query": total["cost"] / known,
            "cost/usd_update": total["paid"],
            "cost/dear_calls": total["calls"] / known,
            "cost/exhausted": total["exhausted"] / known,
            "group/dropped": total["dropped"],
        }
        for name in terms:
            mean = total[f"{name}/sum"] / known
            variance = max(total[f"{name}/squares"] / known - mean**2, 0.0)
            metrics |= {
                f"reward/{name}/mean": mean,
                f"reward/{name}/std": variance**0.5,
                f"reward/{name}/frac_undefined": 1 - total["known"] / max(total["episodes"], 1.0),
            }
        if total["capped"]:
            metrics["cost/budget_used"] = total["used"] / total["capped"]
        if self.shape.size > 1:
            metrics["group/frac_zero_std"] = total["flat"] / max(total["groups"], 1.0)
        for name in TaskClass:
            if total[f"{name}/episodes"]:
                metrics[f"class/{name}/success"] = (
                    total[f"{name}/score"] / total[f"{name}/episodes"]
                )
                metrics[f"class/{name}/dear_share"] = total[f"{name}/dear"] / total[f"{name}/steps"]
        executors = self.stage.world.executors
        share_K = np.array([total[f"pick/{k}"] for k in range(len(executors))])
        share_K = share_K / max(total["steps"], 1.0)
        metrics |= {
            f"selection/share/{one.id}": float(share)
            for one, share in zip(executors, share_K, strict=True)
        }
        metrics["selection/entropy"] = compute_selection_entropy(share_K)
        return metrics

    def validate(self, learner: Learner) -> dict[str, float]:
        """Play val greedily at each cap and cost weight; see `StepValidationConfig`."""
        settings, val = self.recipe.validation, self.facts["val"]
        tasks = min(settings.tasks or len(val.classes), len(val.classes))
        plan = plan_evaluation(self.recipe.seed, "val", tasks, rollouts=1)
        policy = make_policy(self.model, learner.scorer, version=0, greedy=True)
        weights = list_cost_weights(self.recipe.cost_weight, settings.cost_weights)
        found = []
        for cap in dict.fromkeys(self.recipe.budget.caps):
            for weight in weights:
                config = fix_setting(self.recipe.episode, cap, weight)
                batch = self.stage.play(policy, plan, "val", config, val.yardsticks)
                found.append(self.measure_validation(batch, weight))
        learner.scorer.train()
        metrics = {
            f"eval/{name}": float(np.mean([one[name] for one in found])) for name in found[0]
        }
        low = metrics["eval/dear_share_hard"] < COLLAPSED_SHARE
        self.low_validations = self.low_validations + 1 if low else 0
        metrics["collapse/alarm"] = float(self.low_validations >= COLLAPSED_VALIDATIONS)
        return metrics

    def measure_validation(self, batch: Batch, weight: float) -> dict[str, float]:
        """Return the means of one setting; the reward is without the bonus on hard tasks."""
        ends = batch.ends
        assert ends is not None
        cost_B = np.where(batch.valid_BT, batch.reward_terms_BT["cost"], 0.0).sum(axis=1)
        outcome_B = np.where(batch.valid_BT, batch.reward_terms_BT["outcome"], 0.0).sum(axis=1)
        reward_B = self.recipe.reward.success * outcome_B - weight * cost_B
        hard_BT = batch.valid_BT & self.facts["val"].hard_Q[batch.query_index_B][:, None]
        dear = (batch.action_BT[hard_BT] > 0).mean() if hard_BT.any() else np.nan
        return {
            "reward": float(np.nanmean(reward_B)),
            "success": float(np.nanmean(ends.score_B)),
            "cost": float(np.nanmean(ends.cost_usd_B)),
            "dear_calls": float(ends.calls_B.mean()),
            "dear_share_hard": float(dear),
        }

    def describe_episodes(self, batch: Batch, count: int) -> list[dict[str, Any]]:
        """Return the first episodes of a batch as plain rows."""
        ends, ids = batch.ends, [one.id for one in self.stage.world.executors]
        assert ends is not None
        rows = []
        for b in range(min(count, len(batch.group_B))):
            index = int(batch.query_index_B[b])
            taken_T = batch.action_BT[b, batch.valid_BT[b]]
            logp_T = batch.logp_BT[b, batch.valid_BT[b]]
            row = {
                "task": self.stage.tasks["train"][index].id,
                "class": str(self.facts["train"].classes[index]),
                "role": ("member", "forced", "reference")[int(ends.role_B[b])],
                "cap": float(ends.cap_B[b]) if np.isfinite(ends.cap_B[b]) else None,
                "cost_weight": float(batch.cost_weight_B[b]),
                "executors": " ".join(ids[k] for k in taken_T),
                "probabilities": " ".join(f"{p:.2f}" for p in np.exp(logp_T)),
                "score": None if np.isnan(ends.score_B[b]) else float(ends.score_B[b]),
                "cost_usd": None if np.isnan(ends.cost_usd_B[b]) else float(ends.cost_usd_B[b]),
            }
            for name, value_BT in batch.reward_terms_BT.items():
                value = float(np.where(batch.valid_BT[b], value_BT[b], 0.0).sum())
                row[f"reward/{name}"] = None if np.isnan(value) else value
            rows.append(row)
        return rows

    def save_best(self, folder: Path, learner: Learner, facts: dict[str, Any]) -> None:
        """Replace the weights that validation chose."""
        save_policy(folder / BEST_FOLDER, self.model, learner.scorer, facts)

    def get_state(self) -> dict[str, Any]:
        """Return how many validations in a row were low."""
        return {"low_validations": self.low_validations}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        self.low_validations = state["low_validations"]

    def finish(self, tracker: Tracker, learner: Learner) -> None:
        """Show the last update's episodes in W&B."""
        tracker.mirror_table("episodes", self.shown)
