"""From the episodes of an update to rewards per token and advantages per episode.

It leaves out the formulas themselves (`rlroute.algorithms.advantages`), and the trainer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlroute.algorithms.advantages import (
    compute_group_advantages,
    compute_normalised_sum_advantages,
    compute_rloo_advantages,
)
from rlroute.rewards.multi_round import MultiRoundReward
from rlroute.trainers.text_recipe import (
    TextGRPOConfig,
    TextPPOConfig,
    TextRLOOConfig,
)
from rlroute.types import FloatArray, TextTrajectory


@dataclass
class CollectedUpdate:
    """The episodes of an update: this process's own, and the rewards of all processes' [N]."""

    trajectories: list[TextTrajectory]
    rewards: dict[str, FloatArray] = field(default_factory=dict)
    cost_weight_N: FloatArray = field(default_factory=lambda: np.zeros(0, np.float32))


def compute_group_relative(
    algorithm: TextGRPOConfig | TextRLOOConfig,
    reward: MultiRoundReward,
    collected: CollectedUpdate,
) -> Tensor:
    """Return the advantage of each episode of all processes over its group [N]."""
    size = algorithm.group_size
    reward_NG = torch.as_tensor(collected.rewards["reward"]).reshape(-1, size)
    if not isinstance(algorithm, TextGRPOConfig):
        adv_NG, _ = compute_rloo_advantages(reward_NG)
    elif algorithm.normalise_terms:
        kept = reward.cancel(collected.rewards)  # what the reward is the sum of
        weights = reward.weigh(collected.cost_weight_N)
        adv_NG, _ = compute_normalised_sum_advantages(
            torch.stack([torch.as_tensor(kept[name]).reshape(-1, size) for name in weights]),
            torch.stack([torch.as_tensor(w).reshape(-1, size) for w in weights.values()]),
        )
    else:
        adv_NG, _ = compute_group_advantages(reward_NG, scale_by_std=algorithm.scale_by_std)
    return adv_NG.reshape(-1)


def place_rewards(
    reward_B: Tensor, output: Mapping[str, Any], mask_BT: Tensor, algorithm: TextPPOConfig
) -> Tensor:
    """Return the reward of each token [B, T]: the episode's on the last of the policy's tokens.

    With `kl_in_reward` each of them is charged kl_weight * (logp - reference logp) besides. An
    undefined reward is none; such an episode has no token in the mask.
    """
    reward_BT = torch.zeros_like(output["old_value"])
    if algorithm.kl_in_reward:
        log_ratio_BT = output["old_per_token_logps"] - output["ref_per_token_logps"]
        reward_BT = -algorithm.kl_weight * log_ratio_BT * mask_BT
    position_T = torch.arange(mask_BT.size(1), device=mask_BT.device)
    last_B = torch.where(mask_BT, position_T, -1).amax(dim=1)
    rows = torch.arange(len(last_B), device=mask_BT.device)
    reward_BT[rows, last_B.clamp(min=0)] += reward_B.to(reward_BT).nan_to_num(0.0)
    return reward_BT


def compute_kl(output: Mapping[str, Any]) -> Tensor:
    """Return the k3 estimate of KL(policy || reference) at each token [B, T], as TRL has it."""
    log_ratio_BT: Tensor = output["ref_per_token_logps"] - output["old_per_token_logps"]
    return log_ratio_BT.exp() - 1 - log_ratio_BT
