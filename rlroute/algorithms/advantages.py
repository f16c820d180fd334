"""Advantages as pure functions: rewards in, advantages out, undefined rewards never used.

An undefined reward is NaN. It leaves every mean and standard deviation, and its own advantage is 0
with `valid` False beside it, so that no loss sees it.

Sources: GAE (Schulman et al., 2016); GRPO (Shao et al., 2024) and its form without the standard
deviation (Liu et al., 2025, "Dr. GRPO"); RLOO (Kool et al., 2019; Ahmadian et al., 2024); terms
normalised apart (Liu et al., 2026, "GDPO").
"""

from __future__ import annotations

import torch
from torch import Tensor


def compute_gae(
    reward_BT: Tensor,
    value_BT: Tensor,
    valid_BT: Tensor,
    terminated_B: Tensor,
    bootstrap_value_B: Tensor,
    discount: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """Return generalised advantage estimates [B, T] and the returns [B, T] the critic should meet.

        delta_t = r_t + discount * V_{t+1} - V_t
        A_t     = delta_t + discount * gae_lambda * A_{t+1},    return_t = A_t + V_t

    `valid_BT` is False on padding, and on what stands between the policy's own steps (a text
    policy reads replies between the tokens it writes): a valid step's successor is the next valid
    one, and rewards at other positions are not read. A terminated episode has no value behind its
    last step, a truncated one has `bootstrap_value_B`.
    """
    adv_BT = torch.zeros_like(reward_BT)
    next_adv_B = torch.zeros_like(bootstrap_value_B)
    next_value_B = torch.where(terminated_B, 0.0, bootstrap_value_B)
    for t in reversed(range(reward_BT.shape[1])):
        valid_B = valid_BT[:, t]
        delta_B = reward_BT[:, t] + discount * next_value_B - value_BT[:, t]
        adv_B = delta_B + discount * gae_lambda * next_adv_B
        adv_BT[:, t] = torch.where(valid_B, adv_B, 0.0)
        next_adv_B = torch.where(valid_B, adv_B, next_adv_B)
        next_value_B = torch.where(valid_B, value_BT[:, t], next_value_B)
    return adv_BT, adv_BT + torch.where(valid_BT, value_BT, 0.0)


def compute_group_advantages(
    reward_NG: Tensor, *, scale_by_std: bool, epsilon: float = 1e-4
) -> tuple[Tensor, Tensor]:
    """Return GRPO's advantages [N, G] and where they are defined [N, G].

        A_i = r_i - mean(r)          or, scaled:  (r_i - mean(r)) / (std(r) + epsilon)

    The standard deviation is that of a sample (divisor G - 1). Undefined rewards (NaN) leave mean
    and std; a group with fewer than two defined rewards has nothing to compare and is undefined.
    """
    defined_NG = ~reward_NG.isnan()
    count_N1 = defined_NG.sum(dim=1, keepdim=True)
    reward_NG = reward_NG.nan_to_num(0.0)
    mean_N1 = reward_NG.sum(dim=1, keepdim=True) / count_N1.clamp(min=1)
    adv_NG = (reward_NG - mean_N1) * defined_NG
    if scale_by_std:
        variance_N1 = (adv_NG**2).sum(dim=1, keepdim=True) / (count_N1 - 1).clamp(min=1)
        adv_NG = adv_NG / (variance_N1.sqrt() + epsilon)
    valid_NG = defined_NG & (count_N1 >= 2)
    return adv_NG * valid_NG, valid_NG


def compute_rloo_advantages(reward_NG: Tensor) -> tuple[Tensor, Tensor]:
    """Return leave-one-out advantages [N, G] and where they are defined [N, G].

    A_i = r_i - mean of the other rewards of the group
    """
    adv_NG, valid_NG = compute_group_advantages(reward_NG, scale_by_std=False)
    count_N1 = (~reward_NG.isnan()).sum(dim=1, keepdim=True)
    return adv_NG * (count_N1 / (count_N1 - 1).clamp(min=1)), valid_NG


def compute_leave_one_out_advantages(reward_B: Tensor, total: Tensor, count: Tensor) -> Tensor:
    """Return each reward minus the mean of all others of the batch [B]; 0 where undefined (NaN).

    `total` and `count` are of the defined rewards of the whole batch, over all processes. A reward
    takes no part in its own baseline, so the gradient stays unbiased. A lone reward is compared
    with nothing: its advantage is 0.
    """
    adv_B = (count * reward_B - total) / (count - 1).clamp(min=1)
    return torch.where(reward_B.isnan() | (count < 2), 0.0, adv_B)


def compute_normalised_sum_advantages(
    terms_TNG: Tensor, weight_TNG: Tensor, *, epsilon: float = 1e-4
) -> tuple[Tensor, Tensor]:
    """Return the weighted sum of advantages of T reward terms [N, G], and where it is defined.

        A_i = sum over terms of weight_i * (term_i - mean(term)) / (std(term) + epsilon)

    Each term is compared within the group by itself, so a term of large spread does not drown one
    of small spread, and a term that is equal in the whole group moves nothing. A member with an
    undefined term (NaN) leaves the mean and std of all terms. `weight_TNG` must broadcast. The
    spread of the sum depends on the weights; `normalise_advantages` can even it out over a batch.
    """
    defined_NG = ~terms_TNG.isnan().any(dim=0)
    terms_TNG = terms_TNG.masked_fill(~defined_NG, torch.nan)
    adv_RG, valid_RG = compute_group_advantages(
        terms_TNG.flatten(0, 1), scale_by_std=True, epsilon=epsilon
    )
    adv_TNG = adv_RG.reshape(terms_TNG.shape)
    weighed_TNG = torch.where(defined_NG, weight_TNG * adv_TNG, 0.0)  # weights of holes are unread
    return weighed_TNG.sum(dim=0), valid_RG.reshape(terms_TNG.shape)[0]


def compute_joint_advantages(return_B: Tensor, first_value_B: Tensor, defined_B: Tensor) -> Tensor:
    """Return one advantage per episode [B], return - V(first state); 0 where undefined.

    For `compute_joint_clipped_loss`. Source: BudgetMem (arXiv 2602.06025), as implemented.
    """
    return torch.where(defined_B, return_B - first_value_B, 0.0)


def normalise_advantages(adv: Tensor, mean: Tensor, std: Tensor, epsilon: float = 1e-8) -> Tensor:
    """Return (adv - mean) / (std + epsilon), with statistics of the batch over all processes."""
    return (adv - mean) / (std + epsilon)
