"""The terms of users who do not only weigh quality against cost: latency, and a liking.

Latency is the time to a reply in units of a fixed reference, the mean train latency of the slowest
candidate: at a latency weight of 0.1 ten points of quality are given up to save one such wait. A
liking (`bias`) is utility that a user adds to or takes from a candidate, whatever it answers.

Source: PersonalizedRouter's users weigh effect against cost; other-routers sheet, section 13.

What it leaves out: who weighs how (`rlroute.envs.preferences`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlroute.rewards.base import LATENCY, Outcomes
from rlroute.types import FloatArray


@dataclass(frozen=True)
class LatencyTerm:
    """Normalised latency; its weight in the reward is minus the latency weight."""

    reference_seconds: float
    name: str = LATENCY

    def __post_init__(self) -> None:
        if not self.reference_seconds > 0:
            raise ValueError(f"reference_seconds must be above 0, not {self.reference_seconds}")

    def compute(self, outcomes: Outcomes) -> FloatArray:
        """Return latency / reference [N]; NaN where the call failed or nobody took the time.

        Raises:
            ValueError: the outcomes hold no latencies.
        """
        if outcomes.latency_seconds_N is None:
            raise ValueError("the latency term needs latencies")
        normalised_N = outcomes.latency_seconds_N / np.float32(self.reference_seconds)
        return np.where(outcomes.failed_N, np.float32(np.nan), normalised_N)

    def weigh(self, cost_weight_N: FloatArray) -> FloatArray:
        """Return the negated weight [N]: that of latency, which the stack hands to this term."""
        return -cost_weight_N


@dataclass(frozen=True)
class BiasTerm:
    """How much the episode's user favours the candidate; its weight is 1."""

    name: str = "bias"

    def compute(self, outcomes: Outcomes) -> FloatArray:
        """Return the liking [N]; NaN where the call failed.

        Raises:
            ValueError: the outcomes hold none.
        """
        if outcomes.bias_N is None:
            raise ValueError("the bias term needs the user's biases")
        return np.where(outcomes.failed_N, np.float32(np.nan), outcomes.bias_N)

    def weigh(self, cost_weight_N: FloatArray) -> FloatArray:
        """Return ones [N]."""
        return np.ones_like(cost_weight_N)
