"""A group's baseline fused with a prior, and when more rollouts are worth their price (V0.5).

The mean of k rewards is a noisy baseline, a prior V (what the group is expected to earn, known
before it is played) may be wrong. Fused:

    D^2 = max(0, (mean_k - V)^2 - s2)          how wrong the prior is, without the mean's own noise
    w   = D^2 / (D^2 + s2)                     s2 = variance / k, the noise of the mean
    mu  = w * mean_k + (1 - w) * V
    MSE = w^2 * s2 + (1 - w)^2 * D^2           = D^2 * s2 / (D^2 + s2) at this w

However wrong V is, |mu - mean_k| <= sqrt(s2): the prior moves the baseline by no more than the
mean's own standard error. While MSE(k) + price * k falls from k to the next size the group grows:
prior and rollouts disagree, and more rollouts tell who is right.

`variance` bounds that of one reward: 1 for the source's rewards in {-1, +1}; measured for others,
see `bound_variance`. Where it is 0 the mean is exact: w = 1, and nothing grows. The price is in
squared units of reward; the source's .0039 is .0039 * h^2 where right and wrong are 2 * h apart.

Source: V0.5 (arXiv 2603.10848).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PriorBaseline:
    """What N groups are measured by, each [N]: the fused baseline and what it is made of.

    `weight_N` is the share of the mean, `bias_N` is D^2, `variance_N` that of one reward, `count_N`
    the number k of defined rewards; a group without one has its prior as baseline.
    """

    baseline_N: Tensor
    weight_N: Tensor
    bias_N: Tensor
    variance_N: Tensor
    count_N: Tensor


def fuse_baseline(reward_NG: Tensor, prior_N: Tensor, variance_N: Tensor) -> PriorBaseline:
    """Return the baseline of groups from their rewards [N, G] (NaN: undefined) and their priors."""
    defined_NG = ~reward_NG.isnan()
    count_N = defined_NG.sum(dim=1)
    mean_N = reward_NG.nan_to_num(0.0).sum(dim=1) / count_N.clamp(min=1)
    noise_N = variance_N / count_N.clamp(min=1)
    bias_N = ((mean_N - prior_N) ** 2 - noise_N).clamp(min=0)
    weight_N = torch.where(noise_N > 0, bias_N / (bias_N + noise_N), 1.0)
    weight_N = torch.where(count_N > 0, weight_N, 0.0)
    baseline_N = weight_N * mean_N + (1 - weight_N) * prior_N
    return PriorBaseline(baseline_N, weight_N, bias_N, variance_N, count_N)


def compute_prior_advantages(
    reward_NG: Tensor, prior_N: Tensor, variance_N: Tensor
) -> tuple[Tensor, Tensor]:
    """Return reward minus the fused baseline [N, G] and where it is defined [N, G].

    One reward is enough: there is a prior to compare it with.
    """
    baseline_N1 = fuse_baseline(reward_NG, prior_N, variance_N).baseline_N[:, None]
    valid_NG = ~reward_NG.isnan()
    return torch.where(valid_NG, reward_NG - baseline_N1, 0.0), valid_NG


def compute_objective(bias_N: Tensor, variance_N: Tensor, count_N: Tensor, price: float) -> Tensor:
    """Return MSE(k) + price * k [N] of groups of k rewards, at the best weight.

    MSE(k) = D^2 * variance / (k * D^2 + variance);  0 where the mean is exact or the prior is
    """
    error_N = bias_N * variance_N / (count_N * bias_N + variance_N)
    return torch.where(bias_N * variance_N > 0, error_N, 0.0) + price * count_N


def find_growing(found: PriorBaseline, grow_by: int, price: float) -> Tensor:
    """Say of which groups the next `grow_by` rollouts are worth their price [N].

    A group none of whose rewards is defined knows nothing of its prior and does not grow.
    """
    count_N = found.count_N
    now_N = compute_objective(found.bias_N, found.variance_N, count_N, price)
    then_N = compute_objective(found.bias_N, found.variance_N, count_N + grow_by, price)
    return (then_N < now_N) & (found.count_N > 0)


def bound_variance(reward_NG: Tensor, expected_N: Tensor) -> Tensor:
    """Return what the variance of one reward is taken to be [N]: measured, but never too sure.

    The larger of the group's sample variance (divisor k - 1) and the variance that the prior
    expects: a few equal rewards do not show that all would be equal.
    """
    defined_NG = ~reward_NG.isnan()
    count_N1 = defined_NG.sum(dim=1, keepdim=True)
    mean_N1 = reward_NG.nan_to_num(0.0).sum(dim=1, keepdim=True) / count_N1.clamp(min=1)
    square_NG = torch.where(defined_NG, reward_NG - mean_N1, 0.0) ** 2
    sample_N = square_NG.sum(dim=1) / (count_N1[:, 0] - 1).clamp(min=1)
    return torch.maximum(sample_N, expected_N)
