"""What lets stable-baselines3 train on our environment: a batched VecEnv, and our network.

`FlatVecEnv` hands all lanes of the hand-batched environment to stable-baselines3 at once, as rows
[features, cost weight, mask]: candidate features are the same in every row and stay out, which is
kind to its buffers. `make_scorer_policy` puts our network into its actor-critic policy.

It needs stable-baselines3 2.9.2 on the path; nothing of rlroute needs it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from rlroute.data.routing_data import RoutingData
from rlroute.envs.single_turn import CostWeightConfig
from rlroute.envs.single_turn_vector import SingleTurnVector
from rlroute.policies.mlp import CandidateScorer, draw_dropout_mask


class FlatVecEnv(VecEnv):
    """`SingleTurnVector` as stable-baselines3 wants it; every episode has one step."""

    def __init__(self, data: RoutingData, lanes: int, cost_weights: CostWeightConfig) -> None:
        self.inner = SingleTurnVector(data, num_envs=lanes, cost_weights=cost_weights)
        candidates = data.table.present_QK.shape[1]
        width = data.features_QF.shape[1] + 1 + candidates
        space = spaces.Box(-np.inf, np.inf, (width,), np.float32)
        self.no_infos: list[dict[str, Any]] = [{} for _ in range(lanes)]
        super().__init__(lanes, space, spaces.Discrete(candidates))

    def flatten(self, observation: dict[str, Any]) -> np.ndarray[Any, Any]:
        """Return rows [lanes, F + 1 + K]."""
        parts = (observation[name] for name in ("features", "cost_weight", "mask"))
        return np.concatenate([np.asarray(part, np.float32) for part in parts], axis=1)

    def reset(self) -> np.ndarray[Any, Any]:
        """Start all lanes."""
        return self.flatten(self.inner.reset(seed=0)[0])

    def step_async(self, actions: np.ndarray[Any, Any]) -> None:
        """Keep the actions; forbidden ones do not occur on a table without holes."""
        self.actions = actions

    def step_wait(self) -> tuple[Any, Any, Any, Any]:
        """Take the step in all lanes."""
        observation, reward_B, ended_B, _, _ = self.inner.step(self.actions)
        return self.flatten(observation), reward_B, ended_B, self.no_infos

    def close(self) -> None:
        """Nothing is open."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return an attribute once per lane."""
        return [getattr(self.inner, attr_name, None)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refuse: nothing here is set from outside."""
        raise NotImplementedError(attr_name)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> Any:
        """Refuse: there are no single environments."""
        raise NotImplementedError(method_name)

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Say that no lane is wrapped."""
        return [False] * self.num_envs


def make_scorer_policy(
    scorer: CandidateScorer, data: RoutingData, *, torch_dropout: bool
) -> type[ActorCriticPolicy]:
    """Return a policy class of stable-baselines3 whose network is `scorer`.

    With `torch_dropout` the masks come from torch's dropout, as those of any module do; else from
    the quicker draws of our trainer.
    """
    candidates_KD = torch.as_tensor(data.candidate_features_KD)
    features, candidates = data.features_QF.shape[1], len(candidates_KD)
    generator = torch.Generator().manual_seed(0)

    class ScorerPolicy(ActorCriticPolicy):
        """Samples from the scorer's masked softmax."""

        def _build(self, lr_schedule: Any) -> None:
            self.scorer = scorer
            self.optimizer = torch.optim.AdamW(
                scorer.parameters(), lr=lr_schedule(1), weight_decay=0.0
            )

        def score(self, row_BW: Tensor) -> tuple[Tensor, Tensor]:
            mask_BH = None
            if self.training and torch_dropout:
                kept_BH = torch.ones(len(row_BW), scorer.config.hidden)
                mask_BH = torch.nn.functional.dropout(kept_BH, scorer.config.dropout)
            elif self.training:
                mask_BH = draw_dropout_mask(len(row_BW), scorer.config, generator)
            scores = scorer(
                row_BW[:, :features],
                candidates_KD,
                row_BW[:, -candidates:] > 0,
                row_BW[:, features],
                mask_BH,
            )
            return scores.logp_BK, scores.value_B

        def forward(self, obs: Tensor, deterministic: bool = False) -> tuple[Tensor, ...]:
            logp_BK, value_B = self.score(obs)
            action_B = torch.distributions.Categorical(logits=logp_BK).sample()
            return action_B, value_B, logp_BK.gather(1, action_B[:, None]).squeeze(1)

        def evaluate_actions(self, obs: Tensor, actions: Tensor) -> tuple[Tensor, ...]:
            logp_BK, value_B = self.score(obs)
            logp_B = logp_BK.gather(1, actions.long()[:, None]).squeeze(1)
            finite_BK = logp_BK.masked_fill(logp_BK.isneginf(), 0.0)
            return value_B, logp_B, -(logp_BK.exp() * finite_BK).sum(1)

        def predict_values(self, obs: Tensor) -> Tensor:
            return self.score(obs)[1]

    return ScorerPolicy
