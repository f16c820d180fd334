"""Gymnasium's `reset` and `step` around a pure environment whose replies are recorded.

It leaves out live pools: whatever waits belongs to `rlroute.rollout.engine`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium import spaces

from rlroute.data.routing_data import RoutingData
from rlroute.envs.preferences import COST_ALONE, LatencyWeightConfig, Preferences
from rlroute.envs.single_turn import CostWeightConfig, SingleTurn, compute_outcome_terms
from rlroute.pool.recorded import RecordedPool
from rlroute.types import Observation, Query

GymObservation = dict[str, np.ndarray[Any, Any]]
Feedback = Literal["bandit", "full"]


def build_observation_space(
    data: RoutingData, cost_weights: CostWeightConfig, preferences: Preferences = COST_ALONE
) -> spaces.Dict:
    """Return the space of one observation (names and shapes as in the environment's table)."""
    candidates, width = data.candidate_features_KD.shape
    users, share = preferences.users, preferences.user_share
    cost_range = make_range(cost_weights, [user.cost_weight for user in users], share)
    parts: dict[str, spaces.Space[Any]] = {
        "features": spaces.Box(-np.inf, np.inf, (data.features_QF.shape[1],), np.float32),
        "candidates": spaces.Box(-np.inf, np.inf, (candidates, width), np.float32),
        "mask": spaces.MultiBinary(candidates),
        "cost_weight": spaces.Box(*cost_range, (1,), np.float32),
    }
    if data.latency_reference_seconds is not None:
        weights = preferences.latency_weights
        latency_range = make_range(weights, [user.latency_weight for user in users], share)
        parts["latency_weight"] = spaces.Box(*latency_range, (1,), np.float32)
    if preferences.biased:
        parts["candidate_bias"] = spaces.Box(-1, 1, (candidates,), np.float32)
    return spaces.Dict(parts)


def make_range(
    weights: CostWeightConfig | LatencyWeightConfig, users: Sequence[float], user_share: float
) -> tuple[np.float32, np.float32]:
    """Return the least and the greatest weight of an episode: as drawn, and as users have them."""
    drawn = [] if users and user_share == 1 else [weights.min, weights.max]
    found = [*users, *drawn]
    return np.float32(min(found)), np.float32(max(found))


def to_gym_observation(observation: Observation) -> GymObservation:
    """Return an observation as the arrays of its Gymnasium space.

    They are copies: users keep observations, and a shared one would change under their hands.
    """
    arrays: GymObservation = {
        "features": observation.features_F.copy(),
        "candidates": observation.candidate_features_KD.copy(),
        "mask": observation.mask_K.astype(np.int8),
        "cost_weight": np.array([observation.cost_weight], dtype=np.float32),
    }
    if observation.latency_weight is not None:
        arrays["latency_weight"] = np.array([observation.latency_weight], dtype=np.float32)
    if observation.candidate_bias_K is not None:
        arrays["candidate_bias"] = observation.candidate_bias_K.copy()
    return arrays


class SingleTurnGym(gymnasium.Env[GymObservation, np.int64]):
    """`rlroute/SingleTurn-v0` for anything that speaks Gymnasium.

    `reset(seed=..., options={...})` takes the query as `query_id` or `query_index`, and what draws
    the cost weight as `episode_seed`; each is drawn where it is not given. `step` returns the
    combined reward; `info["reward_terms"]` keeps the terms apart and, under full
    feedback, `info["outcome_terms"]` holds them for every candidate (NaN where masked).

    Raises:
        ValueError: `step` is called with a masked action or after the end.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - the type is Gymnasium's

    def __init__(
        self,
        data: RoutingData,
        cost_weights: CostWeightConfig | None = None,
        feedback: Feedback = "bandit",
        preferences: Preferences = COST_ALONE,
    ) -> None:
        weights = cost_weights or CostWeightConfig()
        self.environment = SingleTurn(data, weights, preferences)
        self.rewards = self.environment.rewards
        self.pool = RecordedPool(data.table)
        self.feedback = feedback
        self.observation_space: spaces.Space[Any] = build_observation_space(
            data, weights, preferences
        )
        self.action_space = spaces.Discrete(len(data.table.candidates))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[GymObservation, dict[str, Any]]:
        """Start an episode with a drawn or named query."""
        super().reset(seed=seed)
        options = options or {}
        drawn_seed = int(self.np_random.integers(2**62))
        query = self.pick_query(options)
        observation = self.environment.reset(query, int(options.get("episode_seed", drawn_seed)))
        return to_gym_observation(observation), {"query_id": query.id, "text": observation.text}

    def pick_query(self, options: Mapping[str, Any]) -> Query:
        """Return the query that the options name, or a drawn one."""
        queries = self.environment.data.table.queries
        row = int(self.np_random.integers(len(queries)))
        if "query_id" in options:
            row = self.environment.row_by_query[options["query_id"]]
        return queries[int(options.get("query_index", row))]

    def step(self, action: np.int64) -> tuple[GymObservation, float, bool, bool, dict[str, Any]]:
        """Take one action; the reward is NaN where it is undefined."""
        calls = self.environment.propose(int(action))
        step = self.environment.observe([self.pool.replay(call) for call in calls])
        terms = {
            name: np.float32(np.nan if value is None else value)
            for name, value in step.reward_terms.items()
        }
        weights = self.environment.weights
        reward = self.environment.rewards.combine(
            {name: np.array([value]) for name, value in terms.items()},
            weights.cost_weight_B,
            weights.latency_weight_B,
        )
        info: dict[str, Any] = {"reward_terms": terms}
        if self.feedback == "full":
            row_1 = np.array([self.environment.row])
            terms_1K = compute_outcome_terms(
                self.environment.data, row_1, weights.candidate_bias_BK
            )
            info["outcome_terms"] = {name: value_1K[0] for name, value_1K in terms_1K.items()}
        observation = to_gym_observation(step.observation)
        return observation, float(reward[0]), step.terminated, step.truncated, info

    def get_state(self) -> dict[str, Any]:
        """Return the episode's state as plain JSON values."""
        return self.environment.get_state()

    def set_state(self, state: Mapping[str, Any]) -> GymObservation:
        """Restore a state of `get_state` and return its observation."""
        return to_gym_observation(self.environment.set_state(state))
