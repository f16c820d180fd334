"""What every online learner is: it chooses, is told what came of it, and its state is arrays.

    arrival --choose--> pick --the stream answers--> outcome --learn--> (the next arrival)

A learner sees the outcome of its own pick only, and never a failed one: failures are kept away from
it by the driver (`rlroute.bandits.play`) and speak through the mask alone.

Scores lie in [0, 1]. Costs are normalised (1: one average call of the dearest candidate) and at
first prices: `price_factor_K` of an arrival says how prices stand now, so a change of price moves
the next pick and nothing has to be learnt again. Utility is `score - cost weight * cost * factor`.

What it leaves out: learners (`simple`, `linear`; PPO in `rlroute.trainers.online_ppo`).

How to use: `pick = learner.choose(arrival)`, then `learner.learn(arrival, pick, score, cost)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from rlroute.types import BoolArray, FloatArray

Float64Array = npt.NDArray[np.float64]
StateArrays = dict[str, npt.NDArray[np.generic]]


@dataclass(frozen=True)
class Arrival:
    """One query of a stream, as a learner sees it.

    `context_F` is short and ends in a constant 1, for linear learners; `features_E` is the
    encoder's embedding. `mask_K` says who may be picked; `uniform` in [0, 1) is all the chance
    there is. Ties are broken by it, so no candidate gains from its place in the list.
    """

    context_F: Float64Array
    features_E: FloatArray
    mask_K: BoolArray
    price_factor_K: Float64Array
    cost_weight: float
    uniform: float


@dataclass(frozen=True, slots=True)
class Pick:
    """The candidate that was chosen and the probability with which it was."""

    action: int
    propensity: float


class Bandit(Protocol):
    """An online learner."""

    def choose(self, arrival: Arrival) -> Pick:
        """Pick one of the candidates that the mask allows."""

    def learn(self, arrival: Arrival, pick: Pick, score: float, cost: float) -> None:
        """Take in the outcome of a pick: score in [0, 1], normalised cost at first prices."""

    def get_state(self) -> StateArrays:
        """Return copies of everything that was learnt."""

    def set_state(self, state: StateArrays) -> None:
        """Go on from a state of `get_state`."""


def draw_pick(probability_K: Float64Array, uniform: float) -> Pick:
    """Draw from a distribution by inverting its cumulative sum at `uniform`."""
    cumulative_K = probability_K.cumsum()
    action = int((cumulative_K <= uniform * cumulative_K[-1]).sum())
    return Pick(action, float(probability_K[action] / cumulative_K[-1]))


def spread_over_best(value_K: Float64Array, mask_K: BoolArray) -> Float64Array:
    """Return the distribution [K] that is equal over the allowed candidates of greatest value."""
    allowed_K = np.where(mask_K, value_K, -np.inf)
    best_K = mask_K & (allowed_K == allowed_K.max())
    return np.asarray(best_K / best_K.sum())


def spread_over_allowed(mask_K: BoolArray) -> Float64Array:
    """Return the uniform distribution [K] over the allowed candidates."""
    return np.asarray(mask_K / mask_K.sum())


class Exploration:
    """A share of exploring picks that falls by `decay` per pick from `start` to `floor`.

    It starts anew whenever a candidate is offered for the first time, so that one that joins late
    is tried as much as those that were there at the beginning.

    Source: GreenServ's epsilon-greedy learners (1.0, falling by 2 % a pick to .01).
    """

    def __init__(self, candidates: int, start: float, floor: float, decay: float) -> None:
        self.start, self.floor, self.decay = start, floor, decay
        self.age = 0
        self.seen_K: BoolArray = np.zeros(candidates, dtype=np.bool_)

    def advance(self, mask_K: BoolArray) -> float:
        """Return the share of exploring picks now, and age by one pick."""
        if (mask_K & ~self.seen_K).any():
            self.seen_K = self.seen_K | mask_K
            self.age = 0
        share = max(self.floor, self.start * self.decay**self.age)
        self.age += 1
        return share

    def get_state(self) -> StateArrays:
        """Return age and who has been seen."""
        return {"age": np.array([self.age]), "seen_K": self.seen_K.copy()}

    def set_state(self, state: StateArrays) -> None:
        """Go on from a state of `get_state`."""
        self.age = int(state["age"][0])
        self.seen_K = np.array(state["seen_K"], dtype=np.bool_)


class GreedyLearner(Protocol):
    """A learner that knows whom it would take, were it not to explore."""

    def spread_over_leaders(self, arrival: Arrival) -> Float64Array:
        """Return the distribution [K] over the best at the arrival's weight and prices."""

    def learn(self, arrival: Arrival, pick: Pick, score: float, cost: float) -> None:
        """Take in the outcome of a pick."""

    def get_state(self) -> StateArrays:
        """Return copies of everything that was learnt."""

    def set_state(self, state: StateArrays) -> None:
        """Go on from a state of `get_state`."""


class Exploring:
    """Epsilon-greedy: a greedy learner, or with a falling probability any allowed candidate."""

    def __init__(self, learner: GreedyLearner, exploration: Exploration) -> None:
        self.learner, self.exploration = learner, exploration

    def choose(self, arrival: Arrival) -> Pick:
        """Explore or follow the leader; the propensity holds both ways of getting there."""
        share = self.exploration.advance(arrival.mask_K)
        leading_K = self.learner.spread_over_leaders(arrival)
        mixed_K = share * spread_over_allowed(arrival.mask_K) + (1 - share) * leading_K
        return draw_pick(mixed_K, arrival.uniform)

    def learn(self, arrival: Arrival, pick: Pick, score: float, cost: float) -> None:
        """Let the learner learn."""
        self.learner.learn(arrival, pick, score, cost)

    def get_state(self) -> StateArrays:
        """Return what was learnt and how much is explored."""
        return self.learner.get_state() | self.exploration.get_state()

    def set_state(self, state: StateArrays) -> None:
        """Go on from a state of `get_state`."""
        self.learner.set_state(state)
        self.exploration.set_state(state)
