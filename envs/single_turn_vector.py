"""`rlroute/SingleTurn-v0` hand-batched: thousands of lanes in NumPy, no Python loop over them.

`gymnasium.make_vec("rlroute/SingleTurn-v0", num_envs=4096, ...)` picks this class. Lanes restart in
the same step (`AutoresetMode.SAME_STEP`), so no step is a dummy. Observations are batched; the
candidate features are repeated per lane as a read-only view, not copied.

Each lane's episodes are numbered; query and cost weight follow from (seed, lane, episode number),
or are handed over in the options of `reset`, which is how the rollout driver decides them.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from rlroute.data.routing_data import RoutingData
from rlroute.envs.gym import Feedback, GymObservation, build_observation_space
from rlroute.envs.preferences import COST_ALONE, Preferences
from rlroute.envs.single_turn import CostWeightConfig, build_reward_stack, compute_outcome_terms
from rlroute.rewards.base import Outcomes
from rlroute.seeding import mix
from rlroute.types import IntArray


class SingleTurnVector(VectorEnv[GymObservation, IntArray, np.ndarray[Any, Any]]):
    """Many single-turn episodes side by side; see the module's text.

    Raises:
        ValueError: `step` gets an action that is masked or out of range; the message names lane
            and action.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 - the type is Gymnasium's

    def __init__(
        self,
        data: RoutingData,
        num_envs: int,
        cost_weights: CostWeightConfig | None = None,
        feedback: Feedback = "bandit",
        preferences: Preferences = COST_ALONE,
    ) -> None:
        super().__init__()
        preferences.check(data)
        self.data = data
        self.num_envs = num_envs
        self.cost_weights = cost_weights or CostWeightConfig()
        self.preferences = preferences
        self.feedback = feedback
        self.rewards = build_reward_stack(data, biased=preferences.biased)
        self.single_observation_space = build_observation_space(
            data, self.cost_weights, preferences
        )
        self.single_action_space = spaces.Discrete(len(data.table.candidates))
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.lane_B = np.arange(num_envs)
        self.seed: int | None = None
        self.episode = 0

    def reset(
        self,
        *,
        seed: int | list[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[GymObservation, dict[str, Any]]:
        """Restart all lanes.

        `options` may hold `query_index` [B] and `episode_seed` [B] to decide the episodes;
        otherwise they follow from `seed`, one number. Without it the lanes go on to their next
        episodes (the first `reset` draws a seed from the operating system).
        """
        if isinstance(seed, list):
            raise ValueError("give one seed: the lanes derive theirs from it")
        if seed is not None or self.seed is None:
            self.seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
            self.episode = 0
        else:
            self.episode += 1
        if options and "query_index" in options:
            self.start_episodes(options["query_index"], options["episode_seed"])
        else:
            self.draw_episodes()
        return self.build_observation(), {}

    def step(
        self, actions: IntArray
    ) -> tuple[
        GymObservation,
        np.ndarray[Any, Any],
        np.ndarray[Any, Any],
        np.ndarray[Any, Any],
        dict[str, Any],
    ]:
        """Decide in all lanes; every episode ends, and the next one's observation is returned.

        `info` holds `reward_terms` (name -> [B]), `final_obs`, and under full feedback
        `outcome_terms` (name -> [B, K]).
        """
        info = self.end_episodes(actions)
        weights = self.weights
        reward_B = self.rewards.combine(
            info["reward_terms"], weights.cost_weight_B, weights.latency_weight_B
        )
        info["final_obs"] = self.build_observation()
        self.episode += 1
        self.draw_episodes()
        ended_B = np.ones(self.num_envs, dtype=np.bool_)
        return self.build_observation(), reward_B, ended_B, ~ended_B, info

    def end_episodes(self, actions: IntArray) -> dict[str, Any]:
        """Decide in all lanes and return `info`, without observations; no episode is begun.

        That is all a driver needs which hands over every episode by `reset`.

        Raises:
            ValueError: as `step`.
        """
        table = self.data.table
        self.check_actions(actions)
        bias_BK = self.weights.candidate_bias_BK
        terms = self.rewards.score(
            Outcomes(
                score_N=table.score_QK[self.query_index_B, actions],
                cost_usd_N=table.cost_usd_QK[self.query_index_B, actions],
                failed_N=np.zeros(self.num_envs, dtype=np.bool_),
                latency_seconds_N=table.latency_seconds_QK[self.query_index_B, actions],
                bias_N=None if bias_BK is None else bias_BK[self.lane_B, actions],
            )
        )
        info: dict[str, Any] = {"reward_terms": terms}
        if self.feedback == "full":
            info["outcome_terms"] = compute_outcome_terms(self.data, self.query_index_B, bias_BK)
        return info

    def check_actions(self, actions: IntArray) -> None:
        """Refuse actions that are masked or out of range; see the class."""
        inside_B = (actions >= 0) & (actions < len(self.data.table.candidates))
        mask_BK = self.data.table.present_QK[self.query_index_B]
        allowed_B = inside_B & mask_BK[self.lane_B, np.where(inside_B, actions, 0)]
        for lane in np.flatnonzero(~allowed_B)[:1]:
            raise ValueError(f"action {int(actions[lane])} of lane {lane} is not allowed")

    def draw_episodes(self) -> None:
        """Draw the query and the seed of each lane's next episode from its coordinates."""
        assert self.seed is not None  # `reset` set it
        word_B = mix(self.seed, "query", self.lane_B, self.episode)
        seed_B = mix(self.seed, "episode", self.lane_B, self.episode) >> np.uint64(2)
        queries = np.uint64(len(self.data.table.queries))
        self.start_episodes((word_B % queries).astype(np.int64), seed_B.astype(np.int64))

    def start_episodes(self, query_index_B: IntArray, episode_seed_B: IntArray) -> None:
        """Put lane b at the start of an episode of query `query_index_B[b]`."""
        self.query_index_B = query_index_B
        drawn_B = self.cost_weights.draw(episode_seed_B)
        self.weights = self.preferences.draw(drawn_B, episode_seed_B, self.data)

    def build_observation(self) -> GymObservation:
        """Return the batched observation of all lanes."""
        candidates_KD, weights = self.data.candidate_features_KD, self.weights
        observation: GymObservation = {
            "features": self.data.features_QF[self.query_index_B],
            "candidates": np.broadcast_to(candidates_KD, (self.num_envs, *candidates_KD.shape)),
            "mask": self.data.table.present_QK[self.query_index_B].astype(np.int8),
            "cost_weight": weights.cost_weight_B[:, None],
        }
        if weights.latency_weight_B is not None:
            observation["latency_weight"] = weights.latency_weight_B[:, None]
        if weights.candidate_bias_BK is not None:
            observation["candidate_bias"] = weights.candidate_bias_BK
        return observation


def make_single_turn_vector(num_envs: int = 1, **arguments: Any) -> gymnasium.vector.VectorEnv:
    """Build the vector environment from the arguments of `gymnasium.make_vec`."""
    from rlroute.envs.registration import resolve_arguments

    return SingleTurnVector(num_envs=num_envs, **resolve_arguments(arguments))
