"""Plays a learner on a stream: choose, answer, note failures, learn.

A failed call reaches the breaker (`rlroute.bandits.availability`) and nobody else: no learner ever
takes a failure for an outcome, let alone for a cheap one. Everything there is at any query (the
learner, the breaker, the picks so far) are arrays, so a play that is interrupted and goes on equals
one that was not.

What it leaves out: regret (`rlroute.bandits.comparators`, `rlroute.evaluation.bandit_results`).

How to use: `game = Play(stream, learner, AvailabilityConfig())`, `game.advance(stream.length)`,
`game.picks`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlroute.bandits.availability import Breaker
from rlroute.bandits.base import Bandit, Float64Array, StateArrays
from rlroute.bandits.config import AvailabilityConfig
from rlroute.bandits.stream import Stream
from rlroute.types import IntArray

LEARNER, BREAKER, PICKS = "learner.", "breaker.", "picks."


@dataclass(frozen=True)
class Picks:
    """A learner's way through a stream: actions, their propensities, and USD billed, each [T]."""

    action_T: IntArray
    propensity_T: Float64Array
    cost_usd_T: Float64Array


class Play:
    """One learner on one stream; `done` queries are behind it."""

    def __init__(self, stream: Stream, learner: Bandit, availability: AvailabilityConfig) -> None:
        self.stream, self.learner = stream, learner
        self.breaker = Breaker(availability, len(stream.candidate_ids))
        self.done = 0
        self.picks = Picks(
            action_T=np.zeros(stream.length, dtype=np.int64),
            propensity_T=np.ones(stream.length),
            cost_usd_T=np.zeros(stream.length),
        )

    def advance(self, queries: int) -> int:
        """Play on for some queries, or to the end; return how many it were."""
        first = self.done
        for step in range(first, min(first + queries, self.stream.length)):
            self.take_step(step)
        return self.done - first

    def take_step(self, step: int) -> None:
        """Pick for one arrival and learn from what comes of it.

        The propensity is that of the pick among those that do not rest.
        """
        blocked_K = self.breaker.list_blocked(step, self.stream.list_offered(step))
        arrival = self.stream.make_arrival(step, blocked_K)
        pick = self.learner.choose(arrival)
        outcome = self.stream.answer(step, pick.action)
        self.breaker.record(step, pick.action, failed=outcome.failed)
        if not outcome.failed:
            self.learner.learn(arrival, pick, outcome.score, outcome.cost)
        self.picks.action_T[step] = pick.action
        self.picks.propensity_T[step] = pick.propensity
        self.picks.cost_usd_T[step] = outcome.cost_usd
        self.done = step + 1

    def get_state(self) -> StateArrays:
        """Return where the play stands."""
        state: StateArrays = {"done": np.array([self.done])}
        for prefix, part in ((LEARNER, self.learner), (BREAKER, self.breaker)):
            state |= {prefix + name: value for name, value in part.get_state().items()}
        return state | {PICKS + name: value.copy() for name, value in vars(self.picks).items()}

    def set_state(self, state: StateArrays) -> None:
        """Go on from a state of `get_state` on the same stream.

        Raises:
            KeyError: something is missing in it.
        """
        self.done = int(state["done"][0])
        self.learner.set_state(select_part(state, LEARNER))
        self.breaker.set_state(select_part(state, BREAKER))
        self.picks = read_picks(state)


def select_part(state: StateArrays, prefix: str) -> StateArrays:
    """Return the arrays whose name starts with `prefix`, without it."""
    names = [name for name in state if name.startswith(prefix)]
    return {name.removeprefix(prefix): state[name] for name in names}


def read_picks(state: StateArrays) -> Picks:
    """Return the picks of a state.

    Raises:
        KeyError: they are missing.
    """
    return Picks(
        action_T=np.array(state[PICKS + "action_T"], dtype=np.int64),
        propensity_T=np.array(state[PICKS + "propensity_T"], dtype=np.float64),
        cost_usd_T=np.array(state[PICKS + "cost_usd_T"], dtype=np.float64),
    )
