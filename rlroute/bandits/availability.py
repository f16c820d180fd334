"""Who answers at all: a candidate that fails rests, each time longer, until it answers again.

What it is: a circuit breaker per candidate. After its n-th failure in a row a candidate is left
alone for `rest * growth**(n - 1)` queries; the first answer forgets its failures. A candidate that
is dead for good costs about log(queries / rest) / log(growth) failed calls, one that comes back is
found out. The same breaker stands before every learner, so failures are never taken for outcomes:
a failed call teaches nothing about score or cost.

What it leaves out: retries and limits of live calls (`rlroute.pool`).

How to use: `blocked_K = breaker.list_blocked(step, mask_K)`, `breaker.record(...)` after a call.
"""

from __future__ import annotations

import numpy as np

from rlroute.bandits.base import StateArrays
from rlroute.bandits.config import AvailabilityConfig
from rlroute.types import BoolArray, IntArray


class Breaker:
    """Failures in a row of K candidates, and until when each rests."""

    def __init__(self, config: AvailabilityConfig, candidates: int) -> None:
        self.config = config
        self.failures_K: IntArray = np.zeros(candidates, dtype=np.int64)
        self.until_K: IntArray = np.zeros(candidates, dtype=np.int64)

    def list_blocked(self, step: int, mask_K: BoolArray) -> BoolArray:
        """Return who rests at a step [K]; nobody does where all that may be picked would."""
        resting_K: BoolArray = self.until_K > step
        return resting_K if (mask_K & ~resting_K).any() else np.zeros_like(resting_K)

    def record(self, step: int, candidate: int, *, failed: bool) -> None:
        """Note what came of a call."""
        if not failed:
            self.failures_K[candidate] = 0
            return
        self.failures_K[candidate] += 1
        power = float(self.failures_K[candidate] - 1)
        rest = min(self.config.rest * self.config.growth**power, 1e15)
        self.until_K[candidate] = step + 1 + int(rest)

    def get_state(self) -> StateArrays:
        """Return failures and ends of rests."""
        return {"failures_K": self.failures_K.copy(), "until_K": self.until_K.copy()}

    def set_state(self, state: StateArrays) -> None:
        """Go on from a state of `get_state`."""
        self.failures_K = np.array(state["failures_K"], dtype=np.int64)
        self.until_K = np.array(state["until_K"], dtype=np.int64)
