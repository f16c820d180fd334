"""Learners that look at no query: random, a fixed order, follow the leader, epsilon-greedy.

| learner        | picks                                                                       |
| -------------- | --------------------------------------------------------------------------- |
| Random         | any allowed candidate                                                       |
| FixedOrder     | the first allowed one of an order that is handed in (best first)            |
| FollowLeader   | the best mean utility so far; one that was never tried comes first          |
| EpsilonGreedy  | the same, but a falling share of the picks explores                         |

Mean score and mean cost are kept apart, so the cost weight may change from query to query.

What it leaves out: contexts (`rlroute.bandits.linear`).

How to use: `EpsilonGreedy(EpsilonGreedyConfig(kind="epsilon_greedy"), candidates=8)`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlroute.bandits.base import (
    Arrival,
    Exploration,
    Exploring,
    Float64Array,
    Pick,
    StateArrays,
    draw_pick,
    spread_over_allowed,
    spread_over_best,
)
from rlroute.bandits.config import EpsilonGreedyConfig


class Random:
    """Uniform over the allowed candidates."""

    def choose(self, arrival: Arrival) -> Pick:
        """Draw one."""
        return draw_pick(spread_over_allowed(arrival.mask_K), arrival.uniform)

    def learn(self, arrival: Arrival, pick: Pick, score: float, cost: float) -> None:
        """Learn nothing."""

    def get_state(self) -> StateArrays:
        """Return nothing."""
        return {}

    def set_state(self, state: StateArrays) -> None:
        """Take the empty state."""


class FixedOrder(Random):
    """The first allowed candidate of an order, which holds every candidate once."""

    def __init__(self, order: Sequence[int]) -> None:
        self.order = tuple(order)

    def choose(self, arrival: Arrival) -> Pick:
        """Take the first one."""
        return Pick(next(k for k in self.order if arrival.mask_K[k]), 1.0)


class FollowLeader:
    """The candidate with the best mean utility so far; untried ones come first."""

    def __init__(self, candidates: int) -> None:
        self.count_K: Float64Array = np.zeros(candidates)
        self.score_K: Float64Array = np.zeros(candidates)  # sums
        self.cost_K: Float64Array = np.zeros(candidates)

    def choose(self, arrival: Arrival) -> Pick:
        """Take the leader."""
        return draw_pick(self.spread_over_leaders(arrival), arrival.uniform)

    def spread_over_leaders(self, arrival: Arrival) -> Float64Array:
        """Return the distribution [K] over the leaders at the arrival's weight and prices."""
        cost_K = arrival.cost_weight * arrival.price_factor_K * self.cost_K
        mean_K = (self.score_K - cost_K) / np.maximum(self.count_K, 1)
        return spread_over_best(np.where(self.count_K == 0, np.inf, mean_K), arrival.mask_K)

    def learn(self, arrival: Arrival, pick: Pick, score: float, cost: float) -> None:
        """Add to the candidate's sums."""
        self.count_K[pick.action] += 1
        self.score_K[pick.action] += score
        self.cost_K[pick.action] += cost

    def get_state(self) -> StateArrays:
        """Return counts and sums."""
        names = ("count_K", "score_K", "cost_K")
        return {name: getattr(self, name).copy() for name in names}

    def set_state(self, state: StateArrays) -> None:
        """Go on from a state of `get_state`."""
        for name in ("count_K", "score_K", "cost_K"):
            setattr(self, name, np.array(state[name], dtype=np.float64))


class EpsilonGreedy(Exploring):
    """The leader, or with a falling probability any allowed candidate."""

    def __init__(self, config: EpsilonGreedyConfig, candidates: int) -> None:
        exploration = Exploration(candidates, config.start, config.floor, config.decay)
        super().__init__(FollowLeader(candidates), exploration)
