"""A critic with several horizons beside an actor that uses one of them (target decoupling).

A critic that predicts returns at several discounts learns from several targets at once. The actor
must not choose among them: let it mix the heads' advantages by weights of its own, and it raises
its surrogate by looking at the largest one, without acting better (surrogate hacking); weigh them
by how certain they look, and the shortest horizon always wins. So head 0 is the actor's, and the
others are auxiliary targets of the critic.

Source: Representation over Routing (arXiv 2604.13517).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlroute.algorithms.advantages import compute_gae


def compute_horizon_gae(
    reward_BT: Tensor,
    value_BTV: Tensor,
    valid_BT: Tensor,
    terminated_B: Tensor,
    discounts: Sequence[float],
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """Return advantages and returns [B, T, V] of each head by its own discount.

    Nothing is worth anything behind the last step, whether the episode terminated or was cut.
    """
    bootstrap_B = torch.zeros_like(reward_BT[:, 0])
    found = [
        compute_gae(
            reward_BT,
            value_BTV[:, :, head],
            valid_BT,
            terminated_B,
            bootstrap_B,
            discount,
            gae_lambda,
        )
        for head, discount in enumerate(discounts)
    ]
    return torch.stack([adv for adv, _ in found], -1), torch.stack([back for _, back in found], -1)


def compute_horizon_value_loss(value_NV: Tensor, return_NV: Tensor, valid_N: Tensor) -> Tensor:
    """Return the critic's loss, the mean over heads of 0.5 * (V - R)^2, summed where valid."""
    error_NV = torch.where(valid_N[:, None], value_NV - return_NV, 0.0)
    return 0.5 * (error_NV**2).mean(dim=1).sum()


def count_hacked(adv_NV: Tensor, weight_NV: Tensor, valid_N: Tensor) -> Tensor:
    """Return at how many valid steps the head of most weight has the largest advantage.

    Divided by the valid steps this is the hack rate: 1 for an actor that follows the largest
    advantage; where the head in use is fixed, how often it happens to be the largest.
    """
    return ((adv_NV.argmax(dim=1) == weight_NV.argmax(dim=1)) & valid_N).sum()
