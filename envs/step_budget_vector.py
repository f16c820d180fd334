"""`rlroute/StepBudget-v0` hand-batched over an array world: thousands of lanes in NumPy.

Lanes restart in the same step (`AutoresetMode.SAME_STEP`), so no step is a dummy. Each lane's
episodes are numbered; task and seed follow from (seed, lane, episode number), or are handed over in
the options of `reset` as `task_index` [B] and `episode_seed` [B] (and `world_seed` [B], see
`StepBudget.reset`), which is how the rollout driver decides them. Lane b makes the very episode
that `StepBudget` makes of the same task and seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from rlroute.envs.budget import BUDGET_FEATURES, BudgetLedger
from rlroute.envs.gym import GymObservation
from rlroute.envs.step_budget import TERMS, StepBudgetConfig, make_nominal_yardstick
from rlroute.rewards.boundary import BoundaryOutcomes, BoundaryReward, Yardstick
from rlroute.seeding import mix
from rlroute.types import BoolArray, FloatArray, IntArray, SplitName
from rlroute.worlds.base import ArrayWorld, EarningWorld

StepResult = tuple[GymObservation, FloatArray, BoolArray, BoolArray, dict[str, Any]]


class StepBudgetVector(VectorEnv[GymObservation, IntArray, np.ndarray[Any, Any]]):
    """Many episodes of an array world side by side; see the module's text.

    Raises:
        ValueError: `step` gets an action that is masked or out of range; the message names lane
            and action.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 - the type is Gymnasium's

    def __init__(
        self,
        world: ArrayWorld,
        config: StepBudgetConfig,
        num_envs: int,
        *,
        split: SplitName = "train",
        yardsticks: Mapping[str, Yardstick] | None = None,
    ) -> None:
        super().__init__()
        self.world, self.config, self.num_envs = world, config, num_envs
        self.tasks = world.list_tasks(split)
        self.rewards = BoundaryReward(config.reward)
        self.feature_names = (*world.feature_names, *BUDGET_FEATURES)
        self.lane_B = np.arange(num_envs)
        self.seed: int | None = None
        self.episode_B = np.zeros(num_envs, dtype=np.int64)
        world.open_lanes(split, num_envs)
        self.ledger = BudgetLedger(config.budget, world.executors, num_envs)
        self.task_index_B = np.zeros(num_envs, dtype=np.int64)
        self.turn_B = np.zeros(num_envs, dtype=np.int64)
        self.cost_weight_B = np.zeros(num_envs, dtype=np.float32)
        self.earning = isinstance(world, EarningWorld)
        self.paid_score_B = np.zeros(num_envs, dtype=np.float32)
        self.set_yardsticks(yardsticks or {})
        self.single_observation_space = build_step_space(
            len(self.feature_names), world.executor_features_KD, config
        )
        self.single_action_space = spaces.Discrete(len(world.executors))
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def set_yardsticks(self, yardsticks: Mapping[str, Yardstick]) -> None:
        """Measure the tasks' rewards by these, and nominally where one is missing."""
        nominal = make_nominal_yardstick(
            self.config.reward.unit, self.world.horizon, self.world.bound_costs_usd()[0]
        )
        found = [yardsticks.get(task.id, nominal) for task in self.tasks]
        self.cost_low_Q = np.array([one.cost_low for one in found], dtype=np.float32)
        self.cost_high_Q = np.array([one.cost_high for one in found], dtype=np.float32)
        self.hard_Q = np.array([one.hard for one in found])

    def reset(
        self,
        *,
        seed: int | list[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[GymObservation, dict[str, Any]]:
        """Restart all lanes; see the module's text for `seed` and `options`."""
        if isinstance(seed, list):
            raise ValueError("give one seed: the lanes derive theirs from it")
        if seed is not None or self.seed is None:
            self.seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
            self.episode_B[:] = 0
        else:
            self.episode_B += 1
        if options and "task_index" in options:
            seed_B = options["episode_seed"]
            world_seed_B = options.get("world_seed", seed_B)
            self.start_lanes(self.lane_B, options["task_index"], seed_B, world_seed_B)
        else:
            self.draw_episodes(self.lane_B)
        self.measure()
        return self.build_observation(), {}

    def draw_episodes(self, lane_N: IntArray) -> None:
        """Draw task and seed of the lanes' next episodes from their coordinates."""
        assert self.seed is not None  # `reset` set it
        word_N = mix(self.seed, "task", lane_N, self.episode_B[lane_N])
        seed_N = mix(self.seed, "episode", lane_N, self.episode_B[lane_N]) >> np.uint64(2)
        task_index_N = (word_N % np.uint64(len(self.tasks))).astype(np.int64)
        episode_seed_N = seed_N.astype(np.int64)
        self.start_lanes(lane_N, task_index_N, episode_seed_N, episode_seed_N)

    def start_lanes(
        self, lane_N: IntArray, task_index_N: IntArray, seed_N: IntArray, world_seed_N: IntArray
    ) -> None:
        """Put lanes at the start of an episode."""
        self.world.start_lanes(lane_N, task_index_N, world_seed_N)
        self.ledger.open_lanes(lane_N, self.config.budget.draw_caps(seed_N))
        self.task_index_B[lane_N], self.turn_B[lane_N] = task_index_N, 0
        self.paid_score_B[lane_N] = 0
        self.cost_weight_B[lane_N] = self.config.cost_weight.draw(seed_N)

    def measure(self) -> None:
        """Work out what each executor can cost now and which may act; see `StepBudget`."""
        self.bound_BK, legal_BK = self.world.bound_costs_usd(), self.world.find_legal()
        self.mask_BK = legal_BK & self.ledger.find_affordable(self.bound_BK)
        self.affordable_B: BoolArray = np.asarray(self.mask_BK.any(axis=1))
        if not self.affordable_B.all():  # in name only
            lane_N = np.flatnonzero(~self.affordable_B)
            self.mask_BK[lane_N, legal_BK[lane_N].argmax(axis=1)] = True

    def step(self, actions: IntArray) -> StepResult:
        """Take a step in all lanes; ended lanes return their next episode's first observation.

        `info` holds `reward_terms` (name -> [B]) and the ends' `score`, `cost_usd`, `calls` and
        `exhausted` [B] (which mean something where a lane ended), and `final_obs` where one did.
        """
        self.check_actions(actions)
        seen_BF, seen_mask_BK = self.features_BF, self.mask_BK.astype(np.int8)
        played_B = self.affordable_B  # who can pay for nothing takes a step in name only
        cost_B, done_B, score_B = self.world.step_lanes(actions)
        bound_B = self.bound_BK[self.lane_B, actions]
        self.ledger.settle(actions, bound_B, cost_B, played_B)
        self.turn_B += played_B
        done_B = done_B | (self.turn_B >= self.world.horizon)
        self.measure()
        exhausted_B = ~played_B | (~done_B & ~self.affordable_B)
        ended_B = done_B | exhausted_B
        lost_B = ~played_B if self.earning else exhausted_B
        score_B = np.where(lost_B, np.float32(0), score_B)
        terms = self.score_ends(score_B, ended_B)
        if self.earning:
            terms |= self.pay_gains(score_B)
        info: dict[str, Any] = {
            "reward_terms": terms,
            "score": score_B,
            "cost_usd": self.ledger.cost_usd_B.copy(),
            "calls": self.ledger.calls_B.copy(),
            "exhausted": exhausted_B,
        }
        reward_B = self.rewards.combine(terms, self.cost_weight_B)
        lane_N = np.flatnonzero(ended_B)
        if len(lane_N):
            info["final_obs"] = self.build_observation()
            info["final_obs"]["features"][~played_B] = seen_BF[~played_B]
            info["final_obs"]["mask"][~played_B] = seen_mask_BK[~played_B]
            self.episode_B[lane_N] += 1
            self.draw_episodes(lane_N)
            self.measure()
        return self.build_observation(), reward_B, ended_B, np.zeros_like(ended_B), info

    def score_ends(self, score_B: FloatArray, ended_B: BoolArray) -> dict[str, FloatArray]:
        """Return the reward terms of each lane [B]; 0 where the episode goes on."""
        if not ended_B.any():
            return {name: np.zeros(self.num_envs, dtype=np.float32) for name in TERMS}
        calls = self.config.reward.unit == "calls"
        cost_B = self.ledger.calls_B if calls else self.ledger.cost_usd_B
        ends = BoundaryOutcomes(
            score_N=score_B,
            cost_N=cost_B.astype(np.float32),
            cost_low_N=self.cost_low_Q[self.task_index_B],
            cost_high_N=self.cost_high_Q[self.task_index_B],
            hard_N=self.hard_Q[self.task_index_B],
            failed_N=np.zeros(self.num_envs, dtype=np.bool_),
        )
        return {
            name: np.where(ended_B, value_B, np.float32(0))
            for name, value_B in self.rewards.score(ends).items()
        }

    def pay_gains(self, score_B: FloatArray) -> dict[str, FloatArray]:
        """Return the terms of what the last step added to the scores [B]."""
        gain_B = score_B - self.paid_score_B
        self.paid_score_B = score_B.copy()
        hard_B = self.hard_Q[self.task_index_B]
        return {"outcome": gain_B, "hard_bonus": np.where(hard_B, gain_B, np.float32(0))}

    def check_actions(self, actions: IntArray) -> None:
        """Refuse actions that are masked or out of range; see the class."""
        inside_B = (actions >= 0) & (actions < self.mask_BK.shape[1])
        allowed_B = inside_B & self.mask_BK[self.lane_B, np.where(inside_B, actions, 0)]
        for lane in np.flatnonzero(~allowed_B)[:1]:
            raise ValueError(f"action {int(actions[lane])} of lane {lane} is not allowed")

    def build_observation(self) -> GymObservation:
        """Return the batched observation of all lanes."""
        budget_BF = self.ledger.read_features(self.turn_B, self.world.horizon, self.bound_BK)
        self.features_BF = np.concatenate([self.world.read_features(), budget_BF], axis=1)
        candidates_KD = self.world.executor_features_KD
        return {
            "features": self.features_BF,
            "candidates": np.broadcast_to(candidates_KD, (self.num_envs, *candidates_KD.shape)),
            "mask": self.mask_BK.astype(np.int8),
            "cost_weight": self.cost_weight_B[:, None].copy(),
        }


def build_step_space(
    features: int, executor_features_KD: FloatArray, config: StepBudgetConfig
) -> spaces.Dict:
    """Return the space of one observation (names and shapes as in the environment's table)."""
    weights = config.cost_weight
    low, high = np.float32(weights.min), np.float32(weights.max)
    return spaces.Dict(
        {
            "features": spaces.Box(-np.inf, np.inf, (features,), np.float32),
            "candidates": spaces.Box(-np.inf, np.inf, executor_features_KD.shape, np.float32),
            "mask": spaces.MultiBinary(len(executor_features_KD)),
            "cost_weight": spaces.Box(low, high, (1,), np.float32),
        }
    )
