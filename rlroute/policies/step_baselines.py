"""Baselines of step-by-step routing: they play under the same ledger and mask as any policy.

| baseline        | what                                                                          |
| --------------- | ----------------------------------------------------------------------------- |
| StaticPolicy    | one executor throughout: always-small, always-large; under a cap the dear one |
|                 | is first-large, since the mask ends it                                        |
| RandomPolicy    | uniform over what is allowed                                                  |
| BernoulliPolicy | the dearest with a fixed probability, else the cheapest                       |
| FirstDearPolicy | the dearest for the first n steps, then the cheapest                          |
| CascadePolicy   | the dearest where the last executor's confidence is below a threshold         |
| SigmaPolicy     | ACAR's rule: how far stored probes of the task disagree decides who plays it  |
| LinUCBPolicy    | a linear bandit that credits every decision with its episode's end            |
| ScriptedPolicy  | given executors, step by step: what replays an episode                        |
| AdvisedPolicy   | the world's own best policy, where it is known: the upper bound               |

A baseline whose executor may not act takes the allowed one nearest in price, or in worlds that have
one the executor that ends the episode. What is not random has log-prob 0.

Sources: ACAR (2026), sigma from N probes of a cheap model; LinUCB (Li et al., 2010).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from rlroute.policies.decision import Decisions
from rlroute.policies.stepwise import StepInputs
from rlroute.types import Batch, BoolArray, FloatArray, IntArray


def find_nearest(arm_B: IntArray, mask_BK: BoolArray, rest: int | None = None) -> IntArray:
    """Return the allowed executor nearest to each arm in the order of prices [B], cheaper first.

    Where an arm may not act and `rest` may, it is `rest`.
    """
    arm_B1 = arm_B[:, None]
    if rest is not None:
        may_B1 = np.take_along_axis(mask_BK, arm_B1, axis=1)
        arm_B1 = np.where(~may_B1 & mask_BK[:, [rest]], rest, arm_B1)
    distance_BK = np.abs(np.arange(mask_BK.shape[1]) - arm_B1)
    return np.asarray(np.where(mask_BK, distance_BK, mask_BK.shape[1]).argmin(axis=1))


def take_for_sure(arm_B: IntArray, inputs: StepInputs) -> Decisions:
    """Return decisions for the arms, or who stands in for them."""
    zero_B = np.zeros(len(arm_B), dtype=np.float32)
    action_B = find_nearest(arm_B, inputs.mask_BK, inputs.rest)
    return Decisions(action_B, logp_B=zero_B, value_B=zero_B)


@dataclass(frozen=True)
class StaticPolicy:
    """One executor throughout."""

    arm: int
    version: int = 0

    def start(self, lanes: int) -> None:
        """Do nothing: every step is the same."""

    def decide(self, inputs: StepInputs) -> Decisions:
        """Choose the arm."""
        return take_for_sure(np.full(len(inputs.lane_B), self.arm), inputs)


@dataclass(frozen=True)
class RandomPolicy:
    """Uniform over the allowed executors."""

    version: int = 0

    def start(self, lanes: int) -> None:
        """Do nothing: every step is the same."""

    def decide(self, inputs: StepInputs) -> Decisions:
        """Draw an executor."""
        count_B = inputs.mask_BK.sum(axis=1)
        rank_B = np.floor(inputs.uniform_B * count_B).astype(np.int64)
        place_BK = inputs.mask_BK.cumsum(axis=1) - 1
        action_B = (inputs.mask_BK & (place_BK == rank_B[:, None])).argmax(axis=1)
        logp_B = -np.log(count_B).astype(np.float32)
        return Decisions(action_B, logp_B, np.zeros_like(logp_B))


@dataclass(frozen=True)
class BernoulliPolicy:
    """The dearest executor with probability `dear` (each episode's or all's), else the cheapest."""

    dear: float | npt.NDArray[np.float64]
    version: int = 0

    def start(self, lanes: int) -> None:
        """Do nothing: every step is the same."""

    def decide(self, inputs: StepInputs) -> Decisions:
        """Draw between the cheapest and the dearest."""
        rate_B = self.dear if isinstance(self.dear, float) else self.dear[inputs.row_B]
        dearest = inputs.mask_BK.shape[1] - 1
        return take_for_sure(np.where(inputs.uniform_B < rate_B, dearest, 0), inputs)


@dataclass
class FirstDearPolicy:
    """The dearest executor for the first `steps` steps, then the cheapest."""

    steps: int
    version: int = 0
    turn_B: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def start(self, lanes: int) -> None:
        """Count from 0 in every lane."""
        self.turn_B = np.zeros(lanes, dtype=np.int64)

    def decide(self, inputs: StepInputs) -> Decisions:
        """Choose by the number of the step."""
        early_B = self.turn_B[inputs.lane_B] < self.steps
        self.turn_B[inputs.lane_B] += 1
        dearest = inputs.mask_BK.shape[1] - 1
        return take_for_sure(np.where(early_B, dearest, 0), inputs)


@dataclass(frozen=True)
class CascadePolicy:
    """The dearest executor where the last one's confidence (a feature) is below the threshold."""

    confidence_column: int
    threshold: float
    version: int = 0

    def start(self, lanes: int) -> None:
        """Do nothing: confidence stands in the features."""

    def decide(self, inputs: StepInputs) -> Decisions:
        """Choose by confidence."""
        doubt_B = inputs.features_BF[:, self.confidence_column] < self.threshold
        dearest = inputs.mask_BK.shape[1] - 1
        return take_for_sure(np.where(doubt_B, dearest, 0), inputs)


def compute_sigma(answers: tuple[str, ...]) -> float:
    """Return how far probe answers disagree: 0 all equal, 1 all different, between by their number.

    sigma = (different answers - 1) / (answers - 1); three probes give 0, 0.5 or 1.
    """
    if len(answers) < 2:
        raise ValueError("sigma needs at least two probes")
    return (len(set(answers)) - 1) / (len(answers) - 1)


@dataclass(frozen=True)
class SigmaPolicy:
    """ACAR's rule on stored probes: `sigma_Q` of each task decides which executor plays it.

    sigma 0: the cheapest; 1: the dearest; between: the executor at that place in the order of
    prices, and of two the dearer. Tasks without probes go to the dearest. The probes' own cost is
    added to the bill by whoever evaluates.
    """

    sigma_Q: Mapping[int, float]
    version: int = 0

    def start(self, lanes: int) -> None:
        """Do nothing: tasks are known by their index."""

    def decide(self, inputs: StepInputs) -> Decisions:
        """Choose by the task's sigma."""
        dearest = inputs.mask_BK.shape[1] - 1
        sigma_B = np.array([self.sigma_Q.get(int(task), 1.0) for task in inputs.task_index_B])
        return take_for_sure(np.ceil(sigma_B * dearest).astype(np.int64), inputs)


@dataclass
class LinUCBPolicy:
    """A linear bandit over the features: mean + alpha * uncertainty, one model for each executor.

        A_k = ridge * I + sum x x',   b_k = sum reward * x,   score_k = x.A_k^-1 b_k + alpha * bonus

    The reward of a decision is known at its episode's end only, and every free decision of the
    episode is credited with it (`learn`). With `alpha` 0 it only exploits.
    """

    features: int
    executors: int
    ridge: float = 1.0
    alpha: float = 0.5
    version: int = 0

    def __post_init__(self) -> None:
        width = self.features + 1
        self.moment_KFF = np.tile(self.ridge * np.eye(width), (self.executors, 1, 1))
        self.reward_KF = np.zeros((self.executors, width))

    def start(self, lanes: int) -> None:
        """Do nothing: every decision stands alone."""

    def extend(self, features_BF: FloatArray) -> npt.NDArray[np.float64]:
        """Return features with a bias [B, F + 1]."""
        bias_B1 = np.ones((len(features_BF), 1))
        return np.concatenate([features_BF.astype(np.float64), bias_B1], axis=1)

    def decide(self, inputs: StepInputs) -> Decisions:
        """Choose the highest upper confidence bound."""
        x_BF = self.extend(inputs.features_BF)
        inverse_KFF = np.linalg.inv(self.moment_KFF)
        theta_KF = np.einsum("kfg,kg->kf", inverse_KFF, self.reward_KF)
        variance_BK = np.einsum("bf,kfg,bg->bk", x_BF, inverse_KFF, x_BF)
        score_BK = x_BF @ theta_KF.T + self.alpha * np.sqrt(np.maximum(variance_BK, 0.0))
        action_B = np.where(inputs.mask_BK, score_BK, -np.inf).argmax(axis=1)
        return take_for_sure(action_B, inputs)

    def learn(self, batch: Batch, reward_B: FloatArray) -> None:
        """Credit the free decisions of a batch with their episodes' rewards (NaN: left out)."""
        assert batch.ends is not None
        row_N, turn_N = np.nonzero(batch.ends.free_BT & ~np.isnan(reward_B)[:, None])
        x_NF = self.extend(batch.features_BTF[row_N, turn_N])
        action_N = batch.action_BT[row_N, turn_N]
        for k in range(self.executors):
            x_MF = x_NF[action_N == k]
            self.moment_KFF[k] += x_MF.T @ x_MF
            self.reward_KF[k] += reward_B[row_N[action_N == k]] @ x_MF


@dataclass
class ScriptedPolicy:
    """Given executors [B, T] for each episode of a plan, step by step."""

    action_BT: IntArray
    version: int = 0
    turn_B: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def start(self, lanes: int) -> None:
        """Begin every script anew."""
        self.turn_B = np.zeros(lanes, dtype=np.int64)

    def decide(self, inputs: StepInputs) -> Decisions:
        """Choose as written; after the end of a script its last executor goes on."""
        turn_B = np.minimum(self.turn_B[inputs.lane_B], self.action_BT.shape[1] - 1)
        self.turn_B[inputs.lane_B] += 1
        return take_for_sure(self.action_BT[inputs.row_B, turn_B], inputs)


@dataclass(frozen=True)
class AdvisedPolicy:
    """What the world's own best policy would choose, under the same mask."""

    version: int = 0

    def start(self, lanes: int) -> None:
        """Do nothing: the world knows where it stands."""

    def decide(self, inputs: StepInputs) -> Decisions:
        """Choose as advised."""
        assert inputs.advised_B is not None  # the driver asks the worlds for this policy
        return take_for_sure(inputs.advised_B, inputs)
