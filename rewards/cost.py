"""The cost term: what a call cost in units of a fixed reference; undefined for a failed call.

The reference is the mean train cost of the dearest candidate, so a cost weight of 0.1 reads: ten
points of quality are given up for saving one average call of the dearest candidate. It is fixed
before training; a running normaliser would move the goal while the policy learns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlroute.rewards.base import Outcomes
from rlroute.types import FloatArray


@dataclass(frozen=True)
class CostTerm:
    """Normalised cost; its weight in the reward is minus the cost weight."""

    reference_usd: float
    name: str = "cost"

    def __post_init__(self) -> None:
        if not self.reference_usd > 0:
            raise ValueError(f"reference_usd must be above 0, not {self.reference_usd}")

    def compute(self, outcomes: Outcomes) -> FloatArray:
        """Return cost / reference [N]; NaN where the call failed: a failure is never cheap."""
        normalised_N = outcomes.cost_usd_N / np.float32(self.reference_usd)
        return np.where(outcomes.failed_N, np.float32(np.nan), normalised_N)

    def weigh(self, cost_weight_N: FloatArray) -> FloatArray:
        """Return the negated cost weight [N]."""
        return -cost_weight_N
