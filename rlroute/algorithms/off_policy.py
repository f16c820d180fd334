"""Learning from logs with propensities: pseudo-rewards whose exact expectation is the right one.

What it is: pure functions on [Q, K] arrays. For a query with picks A of propensities p and rewards
r, the inverse propensity estimate of a policy's value is a sum over candidates,

    IPS:            sum over k of pi(k) * g(k),   g(k) = [k in A] * r(k) / p(k)
    doubly robust:  sum over k of pi(k) * g(k),   g(k) = m(k) + [k in A] * (r(k) - m(k)) / p(k)

with m a prediction of the reward. So both are the exact expected reward under pseudo-rewards g,
and the expected policy gradient (`rlroute.algorithms.losses.compute_expected_loss`) learns from a
log as it learns from a full table. Over the picks that could have been, g is right on average: for
IPS always, for doubly robust where either p or m is right. The self-normalised form (SNIPS) divides
by the weights' sum, which bounds it:

    SNIPS:          sum over q of sum over k of pi(k) [k in A] r(k) / p(k)
                    / sum over q of sum over k of pi(k) [k in A] / p(k)

`weight_limit` clips 1/p: less variance, some bias.

What it leaves out: predictions, files, estimates with intervals (`rlroute.evaluation.off_policy`).
Sources: Horvitz and Thompson (1952); Dudik et al. (2011); Swaminathan and Joachims (2015).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rlroute.types import FloatArray


def compute_weights(propensity_QK: FloatArray, weight_limit: float | None) -> FloatArray:
    """Return 1/p of the logged pairs [Q, K], at most `weight_limit`; 0 where nothing was logged."""
    logged_QK = np.isfinite(propensity_QK)
    weight_QK = np.where(logged_QK, 1 / np.where(logged_QK, propensity_QK, 1.0), 0.0)
    if weight_limit is not None:
        weight_QK = np.minimum(weight_QK, weight_limit)
    return weight_QK.astype(np.float32)


def compute_pseudo_rewards(
    reward_QK: FloatArray, weight_QK: FloatArray, predicted_QK: FloatArray | None = None
) -> FloatArray:
    """Return g [Q, K]: the doubly robust form with predictions, the IPS form without.

    `reward_QK` is NaN where nothing was logged, and `weight_QK` 0 there.
    """
    if predicted_QK is None:
        predicted_QK = np.zeros_like(weight_QK)
    error_QK = np.where(weight_QK > 0, reward_QK - predicted_QK, 0.0)
    pseudo_QK = predicted_QK + weight_QK * error_QK
    return pseudo_QK.astype(np.float32)


def compute_self_normalised_loss(logp_NK: Tensor, reward_NK: Tensor, weight_NK: Tensor) -> Tensor:
    """Return minus the SNIPS value of a batch times its rows, so that it is a sum like others.

    The gradient goes through numerator and denominator, which makes it blind to a constant added to
    all rewards: a policy cannot gain by avoiding what was logged. Zero where no row has weight.
    """
    share_NK = logp_NK.exp() * weight_NK
    total = share_NK.sum()
    earned = (share_NK * torch.where(weight_NK > 0, reward_NK, 0.0)).sum()
    if float(total.detach()) == 0:
        return total
    return -len(logp_NK) * earned / total


def compute_pairwise_conservative_loss(
    utility_NK: Tensor, reward_NK: Tensor, logged_NK: Tensor, alpha: float
) -> Tensor:
    """Return the one-step loss of conservative Q-learning, summed over the logged pairs.

        (Q(k) - r(k))^2 + alpha * (logsumexp over k' of Q(k') - Q(k))

    Masked candidates have a utility of minus infinity and take no part in the logsumexp.
    """
    chosen_NK = torch.where(logged_NK, utility_NK, 0.0)
    wanted_NK = torch.where(logged_NK, reward_NK, 0.0)
    squared = ((chosen_NK - wanted_NK) ** 2).sum()
    spread_NK = torch.where(logged_NK, utility_NK.logsumexp(dim=1, keepdim=True) - chosen_NK, 0.0)
    return squared + alpha * spread_NK.sum()
