"""Rewards of budget-aware agentic routing, measured by what the two static policies earn.

Every task is first run by the cheapest and by the dearest executor alone, K times each. From these
boundary rollouts follow its class (`classify`), the range that costs are normalised by, and two
reference rewards that anchor the advantage of a group (`compute_references`):

    C_norm = clip((C - C_min) / (C_max - C_min), 0, 1)           0 where C_max - C_min < 1e-8
    R      = rho_s * s + rho_h * s * 1[hard] - lambda * kappa * C_norm
    R_S    = (rho_s + rho_h * 1[hard]) * p_S - lambda * C_norm(C_S),    R_L likewise

kappa is 0 where the gate is on, the class is hard and the score 0 (failing cheaply then earns
nothing over failing dearly), and 1 elsewhere; with `charge: success` it is 1 on successes only.
lambda is the episode's cost weight. All terms fall due at the end of an episode. With `scale:
train` C_min is 0, C_max the dearest policy's mean cost on all train tasks, and nothing is clipped:
where a task is one query, its own two costs are no scale, and a step too many has to be paid for.

It leaves out the rollouts themselves (`rlroute.rollout.boundary`) and the advantages
(`rlroute.algorithms.reference`).

Source: Zhang et al., 2026, "Budget-Aware Agentic Routing via Boundary-Guided Training"; its
constants are not published, so the defaults here are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from rlroute.config import StrictModel
from rlroute.types import BoolArray, FloatArray

SMALLEST_RANGE = 1e-8  # of costs; below it both boundary policies cost the same
SMALLEST_SCORE = 0.05  # graded scores below it count as nothing solved


class TaskClass(StrEnum):
    """How hard a task is for the boundary policies."""

    EASY = "easy"
    HARD = "hard"
    INTRACTABLE = "intractable"


class TaxonomyConfig(StrictModel):
    """Where the classes begin.

    `easy_rate`: the cheap policy's mean score from which a task is easy. `graded` tasks (scores
    between 0 and 1) are hard only if the dear policy is better by `graded_gap`.
    """

    easy_rate: float = Field(default=0.6, gt=0, le=1)
    graded: bool = False
    graded_gap: float = Field(default=0.05, ge=0, le=1)


@dataclass(frozen=True)
class Boundary:
    """What the cheapest (S) and the dearest (L) policy got on a task: scores [K], mean costs.

    Costs are in the reward's unit (USD, or counted calls).
    """

    scores_small: tuple[float, ...]
    scores_large: tuple[float, ...]
    cost_small: float
    cost_large: float

    @property
    def rate_small(self) -> float:
        """The cheapest policy's mean score."""
        return float(np.mean(self.scores_small))

    @property
    def rate_large(self) -> float:
        """The dearest policy's mean score."""
        return float(np.mean(self.scores_large))

    @property
    def cost_low(self) -> float:
        """The smaller of the two costs: a cheap model that wanders can cost more."""
        return min(self.cost_small, self.cost_large)

    @property
    def cost_high(self) -> float:
        """The larger of the two costs."""
        return max(self.cost_small, self.cost_large)


def classify(boundary: Boundary, config: TaxonomyConfig) -> TaskClass:
    """Return the class of a task; every task has one."""
    small, large = boundary.rate_small, boundary.rate_large
    if config.graded:
        if max(small, large) < SMALLEST_SCORE:
            return TaskClass.INTRACTABLE
        easy = small >= config.easy_rate or large - small < config.graded_gap
        return TaskClass.EASY if easy else TaskClass.HARD
    if small + large == 0:
        return TaskClass.INTRACTABLE
    return TaskClass.EASY if small >= config.easy_rate or large <= small else TaskClass.HARD


class BoundaryRewardConfig(StrictModel):
    """Constants of the reward.

    `success` is rho_s, `hard_bonus` rho_h, `gate` forgives the cost of failing on hard tasks,
    `charge` says whether failures pay for their cost at all, `unit` what costs are counted in,
    `scale` what they are measured by: each task's own boundary policies, or all train tasks'.
    """

    success: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    hard_bonus: float = Field(default=0.5, ge=0, allow_inf_nan=False)
    gate: bool = True
    charge: Literal["always", "success"] = "always"
    unit: Literal["usd", "calls"] = "usd"
    scale: Literal["task", "train"] = "task"

    @model_validator(mode="after")
    def check_gate(self) -> BoundaryRewardConfig:
        """Refuse a gate that would not hold."""
        if self.charge == "success" and not self.gate:
            raise ValueError("gate: charge 'success' frees every failure; leave the gate out")
        return self


@dataclass(frozen=True)
class BoundaryOutcomes:
    """How N episodes ended: score in [0, 1], cost in the reward's unit, and their task's yardstick.

    `failed_N` marks episodes in which a call failed: all their terms are undefined.
    """

    score_N: FloatArray
    cost_N: FloatArray
    cost_low_N: FloatArray
    cost_high_N: FloatArray
    hard_N: BoolArray
    failed_N: BoolArray


def normalise_cost(
    cost_N: FloatArray, low_N: FloatArray, high_N: FloatArray, *, clip: bool = True
) -> FloatArray:
    """Return costs on the scale from `low_N` to `high_N` [N], clipped to [0, 1] or not."""
    range_N = high_N - low_N
    wide_N = range_N >= SMALLEST_RANGE
    scaled_N = (cost_N - low_N) / np.where(wide_N, range_N, 1.0)
    if clip:
        scaled_N = np.clip(scaled_N, 0.0, 1.0)
    return np.where(wide_N, scaled_N, 0.0).astype(np.float32)


@dataclass(frozen=True)
class BoundaryReward:
    """The reward's terms, kept apart: `outcome`, `hard_bonus` and `cost` (kappa * C_norm)."""

    config: BoundaryRewardConfig

    def score(self, ends: BoundaryOutcomes) -> dict[str, FloatArray]:
        """Return every term of N episodes: name -> [N], NaN where a call failed."""
        clip = self.config.scale == "task"
        cost_N = normalise_cost(ends.cost_N, ends.cost_low_N, ends.cost_high_N, clip=clip)
        if self.config.charge == "success":
            cost_N = np.where(ends.score_N > 0, cost_N, 0.0)
        elif self.config.gate:
            cost_N = np.where(ends.hard_N & (ends.score_N == 0), 0.0, cost_N)
        terms = {
            "outcome": ends.score_N,
            "hard_bonus": np.where(ends.hard_N, ends.score_N, 0.0),
            "cost": cost_N,
        }
        return {
            name: np.where(ends.failed_N, np.nan, value_N).astype(np.float32)
            for name, value_N in terms.items()
        }

    def combine(self, values: Mapping[str, FloatArray], cost_weight_N: FloatArray) -> FloatArray:
        """Return the reward, shaped as the terms; NaN where a term is undefined."""
        reward_N = (
            self.config.success * values["outcome"]
            + self.config.hard_bonus * values["hard_bonus"]
            - cost_weight_N * values["cost"]
        )
        return np.asarray(reward_N, dtype=np.float32)

    def compute_references(
        self,
        boundaries: Sequence[Boundary],
        hard_N: BoolArray,
        cost_weight_N: FloatArray,
        train_cost: float | None = None,
    ) -> FloatArray:
        """Return the reference rewards (R_S, R_L) of N tasks [N, 2] at their cost weights.

        The mean cost of each boundary policy is normalised as that of an episode is, so the dearer
        of the two pays lambda and the other nothing; where failures are not charged, each pays in
        proportion to its success. With scale "train", costs are shares of `train_cost`.
        """
        rate_N2 = np.array([[b.rate_small, b.rate_large] for b in boundaries], dtype=np.float32)
        cost_N2 = np.array([[b.cost_small, b.cost_large] for b in boundaries], dtype=np.float32)
        low_N1 = np.array([[b.cost_low] for b in boundaries], dtype=np.float32)
        high_N1 = np.array([[b.cost_high] for b in boundaries], dtype=np.float32)
        if train_cost is not None:
            low_N1, high_N1 = np.zeros_like(low_N1), np.full_like(high_N1, train_cost)
        worth_N1 = self.config.success + self.config.hard_bonus * hard_N[:, None]
        charge_N2 = normalise_cost(cost_N2, low_N1, high_N1, clip=train_cost is None)
        if self.config.charge == "success":
            charge_N2 = charge_N2 * rate_N2
        return np.asarray(worth_N1 * rate_N2 - cost_weight_N[:, None] * charge_N2, dtype=np.float32)


@dataclass(frozen=True)
class Yardstick:
    """What the reward of a task is measured by: the range of its costs, and whether it is hard."""

    cost_low: float
    cost_high: float
    hard: bool


def make_yardstick(
    boundary: Boundary, taxonomy: TaxonomyConfig, train_cost: float | None = None
) -> Yardstick:
    """Return the yardstick that follows from a task's boundary rollouts.

    With `train_cost`, the dearest policy's mean cost on train, costs are shares of that.
    """
    hard = classify(boundary, taxonomy) is TaskClass.HARD
    if train_cost is not None:
        return Yardstick(0.0, train_cost, hard)
    return Yardstick(boundary.cost_low, boundary.cost_high, hard)
