"""What an environment is: a pure state machine, without input, output, clocks or waiting.

    observation = environment.reset(query, seed)
    calls = environment.propose(action)        # what the action asks of the pool
    step = environment.observe(replies)        # what follows from the answers

The rollout drivers own everything that waits. `GymEnvironment` in `rlroute.envs.gym` gives the same
state machine the standard `reset` and `step`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from rlroute.types import Call, ObservationT, Query, Reply

ActionT_contra = TypeVar("ActionT_contra", contravariant=True)


@dataclass(frozen=True)
class Step(Generic[ObservationT]):
    """What follows from a decision: the next observation, the reward terms, and whether it ended.

    A reward term of None is undefined. `terminated`: the task itself ended. `truncated`: a limit of
    the harness cut it. Never both.
    """

    observation: ObservationT
    reward_terms: Mapping[str, float | None]
    terminated: bool
    truncated: bool = False


class Environment(Protocol[ObservationT, ActionT_contra]):
    """One episode at a time; `get_state` and `set_state` round-trip through JSON.

    Actions are candidates by index, or text.
    """

    def reset(self, query: Query, seed: int) -> ObservationT:
        """Start an episode; equal arguments give equal episodes."""

    def propose(self, action: ActionT_contra) -> tuple[Call, ...]:
        """Return the calls that the action asks for.

        Raises:
            ValueError: the action is masked, or the episode is over.
        """

    def observe(self, replies: Sequence[Reply]) -> Step[ObservationT]:
        """Take the replies of the proposed calls, in their order."""

    def get_state(self) -> dict[str, Any]:
        """Return the state as plain JSON values."""

    def set_state(self, state: Mapping[str, Any]) -> ObservationT:
        """Restore a state of `get_state` and return its observation."""
