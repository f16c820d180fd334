"""Advantages with reference rewards: what the static policies earn joins a group's statistics.

A group of failures must not be ranked by its costs alone: where all rollouts of a group fail, the
division by their tiny standard deviation makes a hero of the cheapest failure, and the policy
drifts to the cheapest executor. With the rewards of the boundary policies in the mean and in the
standard deviation every failure on a task that can be solved is worse than the mean.

    anchored:  mu, sigma of {R_1..R_G, references};   A_i = (R_i - mu) / (sigma + eps)
    blend:     A_i = R_i - [(1 - w) * mean(R) + w * max(references)],  optionally / (std(R) + eps)

Standard deviations are those of a population (divisor n). An undefined number (NaN), reward or
reference, leaves every statistic.

Source: Zhang et al., 2026 (BoPO): the idea; the formulas, which are not published, are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GroupBaseline:
    """What the rewards of N groups are measured by, each [N, 1].

    `count_N1` numbers were compared; with fewer than two there is nothing to learn.
    """

    baseline_N1: Tensor
    std_N1: Tensor
    count_N1: Tensor

    def measure(
        self, reward_NX: Tensor, *, scale_by_std: bool, epsilon: float = 1e-6
    ) -> tuple[Tensor, Tensor]:
        """Return the advantages of rewards [N, X] and where they are defined [N, X]."""
        valid_NX = ~reward_NX.isnan() & (self.count_N1 >= 2)
        adv_NX = torch.where(valid_NX, reward_NX - self.baseline_N1, 0.0)
        return (adv_NX / (self.std_N1 + epsilon) if scale_by_std else adv_NX), valid_NX


def compute_anchored_baseline(reward_NG: Tensor, reference_NR: Tensor) -> GroupBaseline:
    """Return mean and standard deviation over the group and its references.

    With no references (R = 0, or all NaN) this is the plain group-relative baseline.
    """
    return GroupBaseline(*compute_moments(torch.cat([reward_NG, reference_NR], dim=1)))


def compute_blend_baseline(
    reward_NG: Tensor, reference_NR: Tensor, *, weight: float
) -> GroupBaseline:
    """Return a blend of the group's mean and its best reference, with the group's own spread.

    A group without a defined reference is measured by its own mean.
    """
    mean_N1, std_N1, count_N1 = compute_moments(reward_NG)
    best_N1 = reference_NR.nan_to_num(-torch.inf).max(dim=1, keepdim=True).values
    blended_N1 = (1 - weight) * mean_N1 + weight * torch.where(best_N1.isinf(), mean_N1, best_N1)
    return GroupBaseline(blended_N1, std_N1, count_N1)


def compute_moments(value_NM: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, population standard deviation and count of the defined entries, each [N, 1]."""
    defined_NM = ~value_NM.isnan()
    count_N1 = defined_NM.sum(dim=1, keepdim=True)
    divisor_N1 = count_N1.clamp(min=1)
    mean_N1 = value_NM.nan_to_num(0.0).sum(dim=1, keepdim=True) / divisor_N1
    difference_NM = torch.where(defined_NM, value_NM - mean_N1, 0.0)
    return mean_N1, ((difference_NM**2).sum(dim=1, keepdim=True) / divisor_N1).sqrt(), count_N1


def forbid_rewarded_failures(adv_NG: Tensor, failed_NG: Tensor, solvable_N: Tensor) -> Tensor:
    """Return advantages [N, G] in which no failure on a solvable task is above 0."""
    held_NG = failed_NG & solvable_N[:, None]
    return torch.where(held_NG, adv_NG.clamp(max=0.0), adv_NG)
