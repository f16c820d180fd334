"""`rlroute/StepBudget-v0` for anything that speaks Gymnasium: `reset` and `step`.

    import gymnasium, rlroute.envs
    env = gymnasium.make("rlroute/StepBudget-v0", world={"kind": "chain"},
                         budget={"caps": [3], "unit": "calls"})

Arguments of `make` and `make_vec`: `world` (a mapping as in a recipe, its default is the chain),
`split` ("train", "val", "test"), `budget`, `reward` and `cost_weight` (mappings as in a recipe),
and for `make` a `pool` whose executors are asked and waited for. `make_vec` takes array worlds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from rlroute.config import parse_config
from rlroute.envs.gym import GymObservation, to_gym_observation
from rlroute.envs.registration import STEP_BUDGET
from rlroute.envs.step_budget import StepBudget, StepBudgetConfig
from rlroute.envs.step_budget_vector import StepBudgetVector, build_step_space
from rlroute.pool.base import Pool
from rlroute.types import Query, RLRouteError, SplitName
from rlroute.worlds.base import World
from rlroute.worlds.chain import ChainConfig
from rlroute.worlds.open import WorldConfig, open_lanes, open_world


class StepBudgetArguments(StepBudgetConfig):
    """What `gymnasium.make` takes beside a pool."""

    world: WorldConfig = ChainConfig()
    split: SplitName = "train"

    @property
    def episode(self) -> StepBudgetConfig:
        """The settings of an episode alone."""
        names = StepBudgetConfig.model_fields
        return StepBudgetConfig(**{name: getattr(self, name) for name in names})


class StepBudgetGym(gymnasium.Env[GymObservation, np.int64]):
    """One episode at a time, see the module's text.

    `reset(seed=..., options={...})` takes the task as `task_id` or `task_index`, and what draws
    cap, cost weight and the world's chance as `episode_seed`; each is drawn where it is not given.
    `info` holds `text`, what a language model reads, and after a step `reward_terms`; at the end
    also `record`: score, cost_usd, calls, steps, exhausted, cap.

    Raises:
        ValueError: `step` is called with a masked action or after the end.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - the type is Gymnasium's

    def __init__(
        self, world: World, config: StepBudgetConfig, split: SplitName, pool: Pool | None = None
    ) -> None:
        self.environment = StepBudget(world, config)
        self.rewards = self.environment.rewards
        self.tasks = world.list_tasks(split)
        self.index_by_id = {task.id: index for index, task in enumerate(self.tasks)}
        self.pool = pool
        self.observation_space: spaces.Space[Any] = build_step_space(
            len(self.environment.feature_names), world.executor_features_KD, config
        )
        self.action_space = spaces.Discrete(len(world.executors))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[GymObservation, dict[str, Any]]:
        """Start an episode of a drawn or named task."""
        super().reset(seed=seed)
        options = options or {}
        drawn_seed = int(self.np_random.integers(2**62))
        task = self.pick_task(options)
        observation = self.environment.reset(task, int(options.get("episode_seed", drawn_seed)))
        return to_gym_observation(observation), {"task_id": task.id, "text": observation.text}

    def pick_task(self, options: Mapping[str, Any]) -> Query:
        """Return the task that the options name, or a drawn one."""
        index = int(self.np_random.integers(len(self.tasks)))
        if "task_id" in options:
            index = self.index_by_id[options["task_id"]]
        return self.tasks[int(options.get("task_index", index))]

    def step(self, action: np.int64) -> tuple[GymObservation, float, bool, bool, dict[str, Any]]:
        """Take one step; the reward is NaN where a call failed."""
        calls = self.environment.propose(int(action))
        if calls and self.pool is None:
            raise RLRouteError(
                f"{STEP_BUDGET}: an executor lives behind a pool: give one (pool=...)"
            )
        replies = asyncio.run(self.pool.ask_many(calls)) if calls and self.pool else ()
        step = self.environment.observe(replies)
        terms = {
            name: np.float32(np.nan if value is None else value)
            for name, value in step.reward_terms.items()
        }
        reward = self.rewards.combine(
            {name: np.array([value]) for name, value in terms.items()},
            np.array([step.observation.cost_weight], dtype=np.float32),
        )
        info: dict[str, Any] = {"reward_terms": terms, "text": step.observation.text}
        if step.terminated:
            info["record"] = self.environment.read_record()
        observation = to_gym_observation(step.observation)
        return observation, float(reward[0]), step.terminated, step.truncated, info

    def get_state(self) -> dict[str, Any]:
        """Return the episode's state as plain JSON values."""
        return self.environment.get_state()

    def set_state(self, state: Mapping[str, Any]) -> GymObservation:
        """Restore a state of `get_state` and return its observation."""
        return to_gym_observation(self.environment.set_state(state))


def make_step_budget(*, pool: Pool | None = None, **arguments: Any) -> StepBudgetGym:
    """Build the environment from the arguments of `gymnasium.make`.

    Raises:
        RLRouteError: an unknown or unfit argument, or a world that cannot be opened.
    """
    parsed = parse_config(StepBudgetArguments, arguments, STEP_BUDGET)
    return StepBudgetGym(open_world(parsed.world), parsed.episode, parsed.split, pool)


def make_step_budget_vector(num_envs: int = 1, **arguments: Any) -> StepBudgetVector:
    """Build the vector environment from the arguments of `gymnasium.make_vec`.

    Raises:
        RLRouteError: an unknown or unfit argument, or the world is no array world.
    """
    parsed = parse_config(StepBudgetArguments, arguments, STEP_BUDGET)
    world = open_lanes(parsed.world)
    if world is None:
        raise RLRouteError(
            f"{STEP_BUDGET}: world '{parsed.world.kind}' has no array form; use gymnasium.make, or "
            "vectorization_mode='sync'"
        )
    return StepBudgetVector(world, parsed.episode, num_envs, split=parsed.split)
