"""The outcome term: the score of the answer, in [0, 1]; undefined for a failed call."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlroute.rewards.base import Outcomes
from rlroute.types import FloatArray


@dataclass(frozen=True)
class OutcomeTerm:
    """Quality of the answer; its weight is 1 at every cost weight."""

    name: str = "outcome"

    def compute(self, outcomes: Outcomes) -> FloatArray:
        """Return the score [N]; NaN where the call failed or nothing was graded."""
        return np.where(outcomes.failed_N, np.float32(np.nan), outcomes.score_N)

    def weigh(self, cost_weight_N: FloatArray) -> FloatArray:
        """Return ones [N]."""
        return np.ones_like(cost_weight_N)
