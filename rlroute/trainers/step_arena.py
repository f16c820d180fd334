"""Where step-by-step policies and baselines are compared: same tasks, seeds, ledger and reward.

What it is: a `Contender` is whoever plays; `Arena.measure` plays it under each setting (a cap of
the budget and a cost weight) and returns the means of each task. What depends on the cost weight is
played at every weight, the rest is played once at each cap and scored at every weight.

What it leaves out: who plays (`rlroute.trainers.step_contenders`, `rlroute.step_runs`), and what
follows from it (`rlroute.trainers.step_evaluation`).

How to use: `Arena(recipe, stage, file, facts).measure(contender, "test")`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from rlroute.evaluation.step_measures import StepPlayed, average_rollouts
from rlroute.evaluation.step_results import StepKind, StepSetting
from rlroute.policies.stepwise import StepPolicy
from rlroute.rewards.boundary import BoundaryOutcomes, BoundaryReward
from rlroute.rollout.boundary import RolloutFile
from rlroute.rollout.stage import Stage
from rlroute.trainers.step_problem import (
    SplitFacts,
    fix_setting,
    list_cost_weights,
    plan_evaluation,
)
from rlroute.trainers.step_recipe import StepRecipe
from rlroute.types import Batch, FloatArray, RLRouteError, SplitName

ROUNDING = 1e-6  # of a float32 sum of costs


@dataclass(frozen=True)
class ProbeBill:
    """What the stored probes of each task cost: USD [Q], and counted calls [Q]."""

    cost_usd_Q: FloatArray
    calls_Q: FloatArray


@dataclass(frozen=True)
class Contender:
    """A policy or baseline; `load` returns what plays a split.

    `family` joins the settings of one knob. `reads_weight` says that what it does may depend on
    the cost weight, `uncapped` that under a cap it is another baseline again. `bills` are added to
    its costs.
    """

    name: str
    kind: StepKind
    load: Callable[[SplitName], StepPolicy]
    family: str = ""
    reads_weight: bool = False
    uncapped: bool = False
    bills: Mapping[SplitName, ProbeBill] | None = None


class Arena:
    """Where contenders meet the same tasks with the same seeds, ledger and reward."""

    def __init__(
        self,
        recipe: StepRecipe,
        stage: Stage,
        file: RolloutFile,
        facts: Mapping[SplitName, SplitFacts],
    ) -> None:
        self.recipe, self.stage, self.file, self.facts = recipe, stage, file, facts
        self.reward = BoundaryReward(recipe.reward)
        self.executor_ids = tuple(one.id for one in stage.world.executors)
        val = len(stage.tasks["val"])
        self.tasks: dict[SplitName, int] = {
            "val": min(recipe.validation.tasks or val, val),
            "test": len(stage.tasks["test"]),
        }
        self.plans = {
            split: plan_evaluation(recipe.seed, split, tasks, recipe.evaluation.rollouts)
            for split, tasks in self.tasks.items()
        }

    @property
    def settings(self) -> tuple[StepSetting, ...]:
        """What everything is played under, cap by cap."""
        caps = dict.fromkeys(self.recipe.evaluation.caps or self.recipe.budget.caps)
        weights = list_cost_weights(self.recipe.cost_weight, self.recipe.evaluation.cost_weights)
        return tuple(StepSetting(cap, weight) for cap in caps for weight in weights)

    def play(self, policy: StepPolicy, split: SplitName, setting: StepSetting) -> Batch:
        """Play every task of a split."""
        config = fix_setting(self.recipe.episode, setting.cap, setting.cost_weight)
        yardsticks = self.facts[split].yardsticks
        return self.stage.play(policy, self.plans[split], split, config, yardsticks)

    def measure(self, contender: Contender, split: SplitName) -> list[StepPlayed | None]:
        """Play a contender and score it under each setting; None where it is not played."""
        policy = contender.load(split)
        played: list[StepPlayed | None] = []
        batches: dict[float | None, Batch] = {}
        for setting in self.settings:
            if contender.uncapped and setting.cap is not None:
                played.append(None)
                continue
            if contender.reads_weight or setting.cap not in batches:
                batches[setting.cap] = self.play(policy, split, setting)
            played.append(self.score(contender, batches[setting.cap], split, setting))
        return played

    def score(
        self, contender: Contender, batch: Batch, split: SplitName, setting: StepSetting
    ) -> StepPlayed:
        """Return what a contender did in a batch.

        Raises:
            RLRouteError: an episode cost more than its cap.
        """
        ends, tasks = batch.ends, self.tasks[split]
        assert ends is not None
        failed_B = np.isnan(ends.score_B)
        calls = self.recipe.budget.unit == "calls"
        spent_B = np.where(failed_B, np.nan, ends.calls_B if calls else ends.cost_usd_B)
        violations = int((spent_B > ends.cap_B * (1 + ROUNDING)).sum())
        if violations:
            raise RLRouteError(
                f"{contender.name}: {violations} of {len(spent_B)} episodes passed the cap of "
                f"{setting.cap:g}; the bounds of cost of world '{self.stage.world.name}' do not "
                "hold, and nothing was written"
            )
        capped_B = np.isfinite(ends.cap_B) & (ends.cap_B > 0)
        used_B = np.where(capped_B, spent_B / np.where(capped_B, ends.cap_B, 1.0), np.nan)
        cost_usd_B, calls_B = add_bill(contender, batch, split)
        reward_B = self.compute_reward(batch, split, setting, cost_usd_B, calls_B)
        pick_BTK = batch.action_BT[..., None] == np.arange(len(self.executor_ids))
        picks_BK = (pick_BTK & batch.valid_BT[..., None]).sum(axis=1)
        lost_B = np.where(failed_B, np.nan, 0.0)  # NaN swallows what is added to it
        return StepPlayed(
            success_Q=average_rollouts(ends.score_B, tasks),
            cost_usd_Q=average_rollouts(cost_usd_B, tasks),
            calls_Q=average_rollouts(calls_B + lost_B, tasks),
            steps_Q=average_rollouts(batch.valid_BT.sum(axis=1) + lost_B, tasks),
            used_Q=average_rollouts(used_B, tasks),
            exhausted_Q=average_rollouts(ends.exhausted_B + lost_B, tasks),
            reward_Q=average_rollouts(reward_B, tasks),
            picks_QK=average_rollouts(picks_BK + lost_B[:, None], tasks),
            episodes=len(failed_B),
            failed=int(failed_B.sum()),
            violations=violations,
        )

    def compute_reward(
        self,
        batch: Batch,
        split: SplitName,
        setting: StepSetting,
        cost_usd_B: FloatArray,
        calls_B: FloatArray,
    ) -> FloatArray:
        """Return the reward of each episode [B], as on val: without the bonus on hard tasks."""
        ends, facts = batch.ends, self.facts[split]
        assert ends is not None
        task_B = batch.query_index_B
        tasks = self.stage.tasks[split]
        found = [facts.yardsticks[tasks[task].id] for task in task_B]
        terms = self.reward.score(
            BoundaryOutcomes(
                score_N=ends.score_B,
                cost_N=calls_B if self.recipe.reward.unit == "calls" else cost_usd_B,
                cost_low_N=np.array([one.cost_low for one in found], dtype=np.float32),
                cost_high_N=np.array([one.cost_high for one in found], dtype=np.float32),
                hard_N=facts.hard_Q[task_B],
                failed_N=np.isnan(ends.score_B),
            )
        )
        value_B = self.recipe.reward.success * terms["outcome"]
        return np.asarray(value_B - setting.cost_weight * terms["cost"])


def add_bill(contender: Contender, batch: Batch, split: SplitName) -> tuple[FloatArray, FloatArray]:
    """Return cost in USD and counted calls of each episode [B], probes included."""
    assert batch.ends is not None
    cost_usd_B = batch.ends.cost_usd_B
    calls_B = batch.ends.calls_B.astype(np.float32)
    if contender.bills is None:
        return cost_usd_B, calls_B
    bill, task_B = contender.bills[split], batch.query_index_B
    return cost_usd_B + bill.cost_usd_Q[task_B], calls_B + bill.calls_Q[task_B]
