"""Losses as pure functions on tensors; each returns its sum over the valid rows, and its metrics.

Sums, not means: a minibatch may lie on several processes, and only the trainer knows how many rows
it has in all. Rows with `valid` False contribute exactly zero, in value and in gradient.

Sources: PPO's clipped surrogate (Schulman et al., 2017); the k3 estimator of the KL divergence
(Schulman, 2020). The expected policy gradient is the gradient of the exact expectation over
actions, possible where every candidate's reward is known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PolicyLoss:
    """A policy loss summed over valid rows, with sums for metrics (divide by the valid rows)."""

    total: Tensor
    kl: Tensor
    clipped: Tensor


def compute_clipped_loss(
    logp_N: Tensor, old_logp_N: Tensor, adv_N: Tensor, valid_N: Tensor, clip_range: float
) -> PolicyLoss:
    """Return PPO's clipped surrogate over N decisions.

        ratio = exp(logp - old_logp)
        loss  = -min(ratio * A, clip(ratio, 1 - clip_range, 1 + clip_range) * A)

    `kl` is the k3 estimate of KL(old || new), ratio - 1 - log ratio.
    """
    log_ratio_N = torch.where(valid_N, logp_N - old_logp_N, 0.0)
    ratio_N = log_ratio_N.exp()
    clipped_N = ratio_N.clamp(1 - clip_range, 1 + clip_range)
    surrogate_N = torch.min(ratio_N * adv_N, clipped_N * adv_N)
    with torch.no_grad():
        kl = torch.where(valid_N, ratio_N - 1 - log_ratio_N, 0.0).sum()
        clipped = ((ratio_N != clipped_N) & valid_N).sum().to(logp_N.dtype)
    return PolicyLoss(-torch.where(valid_N, surrogate_N, 0.0).sum(), kl, clipped)


def compute_policy_gradient_loss(logp_N: Tensor, adv_N: Tensor, valid_N: Tensor) -> Tensor:
    """Return REINFORCE's loss -A * logp, summed over valid decisions: no ratio, no clip.

    Its gradient is the policy gradient for decisions of the present policy, so a batch serves one
    step (Williams, 1992).
    """
    return -(adv_N * torch.where(valid_N, logp_N, 0.0)).sum()


def compute_joint_clipped_loss(
    logp_BT: Tensor,
    old_logp_BT: Tensor,
    adv_B: Tensor,
    valid_BT: Tensor,
    clip_range: float,
    max_log_ratio: float = 10.0,
) -> PolicyLoss:
    """Return PPO's clipped surrogate with one ratio for all decisions of an episode.

        ratio = exp(clamp(sum over valid t of logp - old_logp, -max_log_ratio, max_log_ratio))

    The rest is as in `compute_clipped_loss`, a row being an episode: divide the sums by the
    episodes that have a valid decision; others contribute zero. All decisions share the episode's
    advantage, and one clipped ratio stops the gradient of them all. Source: BudgetMem (arXiv
    2602.06025), as implemented.
    """
    log_ratio_B = torch.where(valid_BT, logp_BT - old_logp_BT, 0.0).sum(dim=1)
    log_ratio_B = log_ratio_B.clamp(-max_log_ratio, max_log_ratio)
    old_B = torch.zeros_like(log_ratio_B)
    return compute_clipped_loss(log_ratio_B, old_B, adv_B, valid_BT.any(dim=1), clip_range)


def compute_expected_loss(logp_NK: Tensor, reward_NK: Tensor) -> Tensor:
    """Return minus the exact expected reward under the policy, summed over N queries.

        loss = -sum over k of pi(k) * r_k

    The expectation is over the candidates whose reward is defined (not NaN): an undefined reward is
    not zero, so the policy is renormalised without them. A query with none contributes zero.
    """
    defined_NK = ~reward_NK.isnan()
    known_N = defined_NK.any(dim=-1)
    reward_NK, defined_NK = reward_NK[known_N], defined_NK[known_N]
    probability_NK = logp_NK[known_N].masked_fill(~defined_NK, -math.inf).softmax(dim=-1)
    return -(probability_NK * reward_NK.nan_to_num(0.0)).sum()


def compute_clipped_value_loss(
    value: Tensor, returns: Tensor, old_value: Tensor, valid: Tensor, clip: float | None
) -> Tensor:
    """Return the critic's loss with its step from the old value clipped, summed where valid.

    loss = 0.5 * max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2);  None does not clip
    """
    plain = torch.where(valid, value - returns, 0.0)  # inside: NaN squared has a gradient
    if clip is None:
        return 0.5 * (plain**2).sum()
    near = old_value + (value - old_value).clamp(-clip, clip)
    clipped = torch.where(valid, near - returns, 0.0)
    return 0.5 * torch.max(plain**2, clipped**2).sum()


def compute_entropy(logp_NK: Tensor) -> Tensor:
    """Return the entropy of each row [N] in nats; masked candidates (minus infinity) count 0."""
    finite_NK = logp_NK.masked_fill(logp_NK.isneginf(), 0.0)
    return -(logp_NK.exp() * finite_NK).sum(dim=-1)


def compute_reference_loss(
    logp_N: Tensor, adv_N: Tensor, valid_N: Tensor, smoothing: float = 0.1
) -> Tensor:
    """Return the loss of decisions that a static policy made, summed over valid rows.

        ratio = pi(a | s) / 1,    loss = -A * ratio / (ratio + smoothing)

    The behaviour policy took the action for sure, so the ratio is the policy's own probability; the
    shaping gives improbable actions a gradient that a plain ratio would hold at almost nothing.
    """
    ratio_N = torch.where(valid_N, logp_N, 0.0).exp()
    return -torch.where(valid_N, adv_N * ratio_N / (ratio_N + smoothing), 0.0).sum()


def compute_imitation_loss(logp_N: Tensor, weight_N: Tensor) -> Tensor:
    """Return the weighted cross-entropy of demonstrated actions, summed over N decisions."""
    return -(weight_N * torch.where(weight_N > 0, logp_N, 0.0)).sum()


def compute_k3(logp_N: Tensor, reference_logp_N: Tensor, valid_N: Tensor) -> Tensor:
    """Return the k3 estimate of KL(policy || reference) over the taken actions, summed.

    k3 = r - 1 - log r with r = reference / policy;  never negative, and unbiased on the policy's
    own actions (Schulman, 2020).
    """
    log_ratio_N = torch.where(valid_N, reference_logp_N - logp_N, 0.0)
    return (log_ratio_N.exp() - 1 - log_ratio_N).sum()
