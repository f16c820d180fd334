"""Where episodes of many steps are played: one call for array worlds and for single ones.

    stage = Stage(world_config, lanes=64)
    batch = stage.play(policy, plan, "train", config, yardsticks)

It leaves out who plays, and what is learnt.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rlroute.envs.budget import BUDGET_FEATURES
from rlroute.envs.step_budget import StepBudget, StepBudgetConfig
from rlroute.envs.step_budget_vector import StepBudgetVector
from rlroute.policies.step_baselines import AdvisedPolicy
from rlroute.policies.stepwise import StepPolicy
from rlroute.pool.base import Pool
from rlroute.rewards.boundary import BoundaryReward, Yardstick
from rlroute.rollout.step_plan import StepPlan
from rlroute.rollout.steps import Moment, collect_lanes, collect_worlds
from rlroute.types import Batch, FloatArray, Query, SplitName
from rlroute.worlds.base import World
from rlroute.worlds.open import WorldConfig, open_lanes, open_world


class Stage:
    """A world, opened once; `reading` says that texts are needed (language models read them)."""

    def __init__(
        self,
        config: WorldConfig,
        *,
        lanes: int,
        pool: Pool | None = None,
        reading: bool = False,
    ) -> None:
        self.config, self.lanes, self.pool = config, lanes, pool
        self.world: World = open_world(config)
        self.arrays = not reading and open_lanes(config) is not None
        self.tasks: dict[SplitName, tuple[Query, ...]] = {
            split: self.world.list_tasks(split) for split in ("train", "val", "test")
        }
        self.feature_names = (*self.world.feature_names, *BUDGET_FEATURES)
        self.environments: dict[tuple[SplitName, int, str], StepBudgetVector] = {}

    def play(
        self,
        policy: StepPolicy,
        plan: StepPlan,
        split: SplitName,
        config: StepBudgetConfig,
        yardsticks: Mapping[str, Yardstick],
        *,
        moments: dict[int, list[Moment]] | None = None,
    ) -> Batch:
        """Play a plan over the tasks of a split and return its batch."""
        single = moments is not None or isinstance(policy, AdvisedPolicy)
        if self.arrays and not single:
            return collect_lanes(policy, self.open_vector(plan, split, config, yardsticks), plan)
        return collect_worlds(
            policy,
            StepBudget(self.world, config, yardsticks),
            self.tasks[split],
            plan,
            lanes=self.lanes,
            pool=self.pool,
            moments=moments,
        )

    def open_vector(
        self,
        plan: StepPlan,
        split: SplitName,
        config: StepBudgetConfig,
        yardsticks: Mapping[str, Yardstick],
    ) -> StepBudgetVector:
        """Return a hand-batched environment for the plan; one of each size is kept."""
        key = (split, len(plan.role_B), config.model_dump_json())
        if key not in self.environments:
            world = open_lanes(self.config)
            assert world is not None
            self.environments[key] = StepBudgetVector(world, config, len(plan.role_B), split=split)
        self.environments[key].set_yardsticks(yardsticks)
        return self.environments[key]


def compute_rewards(batch: Batch, reward: BoundaryReward) -> FloatArray:
    """Return the reward of each episode [B]; NaN where a call failed."""
    reward_BT = reward.combine(batch.reward_terms_BT, batch.cost_weight_B[:, None])
    reward_B = np.where(batch.valid_BT, reward_BT, np.float32(0)).sum(axis=1)
    return np.asarray(reward_B, dtype=np.float32)
