"""Importance weights between the engine that samples and the trainer that learns.

A sampler (vLLM, another precision, another kernel) gives the same tokens slightly other
probabilities than the trainer does with the same weights, so what looks on-policy is not. Each
token's loss is multiplied by

    ratio = trainer probability / sampler probability

which is made harmless above `cap`, in one of two ways:

- truncate: min(ratio, cap);
- mask: ratio up to `cap`, 0 above it: the tokens leave the loss.

`level="token"` takes the ratio of each token (little variance, some bias), `"sequence"` the product
over a row's tokens, one weight for the whole row.

What it leaves out: the loss, and sums over processes. Metrics are sums with their count, so that
the trainer can add them up over batches and processes first.

Sources: truncated importance sampling (Yao et al., 2025, "Your Efficient RL Framework Secretly
Brings You Off-Policy RL Training"); masking and the sequence's ratio (Liu et al., 2025, "When Speed
Kills Stability"; Ling team, 2025, "IcePop"); k3 (Schulman, 2020).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlroute.types import RLRouteError

MAX_LOG_RATIO = 20.0  # what metrics count a larger disagreement as: exp of it must stay finite


@dataclass(frozen=True)
class ImportanceWeights:
    """Weights [B, T], 1 outside the mask and without a gradient, and metrics.

    `metrics` holds sums over the tokens whose sampler probability is known, `count` of them: `kl`
    (k3 estimate of KL(sampler || trainer), in nats), `abs_diff` (of the log-probabilities) and
    `kept` (tokens whose ratio is within the cap). `ratio_p95` is no sum: the 95th percentile of the
    ratios of this batch, of tokens or of rows as `level` says; 1 where there are none.
    """

    weight_BT: Tensor
    metrics: dict[str, Tensor]


@torch.no_grad()
def compute_importance_weights(
    trainer_logp_BT: Tensor,
    sampler_logp_BT: Tensor,
    mask_BT: Tensor,
    *,
    level: Literal["token", "sequence"],
    cap: float,
    mode: Literal["truncate", "mask"],
) -> ImportanceWeights:
    """Return the weights of the tokens that the policy wrote (`mask_BT`).

    A sampler log-probability of NaN is unknown: the token counts as a ratio of 1. At the level of
    sequences it then shares the weight of its row.

    Raises:
        RLRouteError: `cap` is below 1, which would cut tokens that agree.
    """
    if not cap >= 1:
        raise RLRouteError(f"the cap of importance weights must be at least 1, not {cap}")
    mask_BT = mask_BT.bool()
    known_BT = mask_BT & ~sampler_logp_BT.isnan()
    log_ratio_BT = trainer_logp_BT.float() - sampler_logp_BT.float()
    log_ratio_BT = torch.where(known_BT, log_ratio_BT, 0.0)
    level_ratio_BT = log_ratio_BT
    if level == "sequence":
        level_ratio_BT = log_ratio_BT.sum(dim=1, keepdim=True).expand_as(log_ratio_BT)
    within_BT = level_ratio_BT <= math.log(cap)
    weight_BT = level_ratio_BT.clamp(max=math.log(cap)).exp()  # before exp: it may overflow
    if mode == "mask":
        weight_BT = torch.where(within_BT, weight_BT, 0.0)
    counted_BT = log_ratio_BT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    metrics = {
        "count": known_BT.sum(),
        "kl": (counted_BT.exp() - 1 - counted_BT).sum(),
        "abs_diff": counted_BT.abs().sum(),
        "kept": (within_BT & known_BT).sum(),
        "ratio_p95": _compute_p95(level_ratio_BT, known_BT, level),
    }
    return ImportanceWeights(torch.where(mask_BT, weight_BT, 1.0), metrics)


def _compute_p95(
    log_ratio_BT: Tensor, known_BT: Tensor, level: Literal["token", "sequence"]
) -> Tensor:
    """Return the 95th percentile of the ratios of known tokens, or of rows that have any."""
    log_ratio_N = log_ratio_BT[known_BT]
    if level == "sequence":
        log_ratio_N = log_ratio_BT[known_BT.any(dim=1)][:, 0]
    if log_ratio_N.numel() == 0:
        return torch.ones((), device=log_ratio_BT.device)
    return log_ratio_N.clamp(max=MAX_LOG_RATIO).exp().quantile(0.95)
