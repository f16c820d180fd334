"""What a policy of many-step episodes is handed, and what it hands back.

Episodes run side by side as lanes. `start` begins anew with so many lanes; at each `decide` only
the lanes that are not done yet take part, and `lane_B` says which they are. A policy that keeps a
state per episode (a language model's cache of the conversation) keeps it by lane.

A small network reads `features_BF`; a language model reads `texts`, the first of an episode being
the task and every later one only what is new, so that nothing is read twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from rlroute.policies.decision import Decisions
from rlroute.types import BoolArray, Conversations, FloatArray, IntArray


@dataclass(frozen=True)
class StepInputs:
    """B lanes that decide now.

    `lane_B` numbers the lanes since `start`, `row_B` the episodes of the whole plan. `uniform_B` in
    [0, 1) is all the chance that the decisions may use. `texts` has an entry for each of the B
    lanes; it is empty for worlds that are arrays only. `task_index_B` says which task of the split
    a lane plays: for baselines that look something up, never for a policy that is to meet other
    tasks. `advised_B` is what the world's best policy would choose, where it was asked for. `rest`
    is who ends an episode, in worlds that have one (`rlroute.worlds.base.RestingWorld`).
    """

    lane_B: IntArray
    row_B: IntArray
    task_index_B: IntArray
    features_BF: FloatArray
    candidate_features_KD: FloatArray
    mask_BK: BoolArray
    cost_weight_B: FloatArray
    uniform_B: npt.NDArray[np.float64]
    texts: Sequence[str] = ()
    advised_B: IntArray | None = None
    rest: int | None = None


class StepPolicy(Protocol):
    """Chooses the executor of each step."""

    @property
    def version(self) -> int:
        """The number of updates behind the policy's weights."""

    def start(self, lanes: int) -> None:
        """Begin new episodes in all lanes; what was kept of others is forgotten."""

    def decide(self, inputs: StepInputs) -> Decisions:
        """Decide for B lanes; a masked executor is never chosen."""


@runtime_checkable
class ReadingPolicy(Protocol):
    """A policy that reads conversations, which its trainer reads again."""

    def read_episodes(self) -> Conversations:
        """Return the conversations of all lanes since `start`, in the order of the lanes."""
