"""What a policy of memory tiers is handed at each module, and what it hands back.

Episodes run side by side as lanes and in lock-step: all lanes decide for the same module at once,
so `module` is one number. What the features mean stands in `rlroute.envs.memory_tiers`.

What it leaves out: the network (`rlroute.policies.tier_scorer`) and static choices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from rlroute.policies.decision import Decisions
from rlroute.types import BoolArray, FloatArray


@dataclass(frozen=True)
class TierInputs:
    """B lanes that choose the tier of one module now.

    `module` is its place in the pipeline. `mask_BK` is True where a tier may be chosen; K is the
    number of tiers of the module with the most.
    """

    features_BF: FloatArray
    module: int
    mask_BK: BoolArray
    cost_weight_B: FloatArray


class TierPolicy(Protocol):
    """Chooses the tier of each module."""

    @property
    def version(self) -> int:
        """The number of updates behind the policy's weights."""

    def decide(self, inputs: TierInputs, uniform_B: npt.NDArray[np.float64]) -> Decisions:
        """Decide for B lanes; a masked tier is never chosen.

        `uniform_B` in [0, 1) is all the chance that the decisions may use.
        """
