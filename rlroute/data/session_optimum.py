"""The best policy of a made world of sessions under a total budget, by dynamic programming.

What it is: the greatest expected return of any policy that sees what the text tells (difficulty
and length of the turn), the turn's number and the balance, and not the future. Costs are whole
multiples of a unit, so the balance takes finitely many values and the values are exact.

    V_t(z, b) = max over k of  E[ quality - cost weight * cost - penalty * (b < cost)
                                  + discount * goes on * (b >= cost) * V_{t+1}(z', b - cost) ]

What it leaves out: playing (`rlroute.evaluation.session_replay`).

How to use: `optimum = solve_sessions(world, penalty=5.0, discount=0.99)`,
`optimum.compute_value(1500)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rlroute.data.session_world import DIFFICULTIES, LENGTHS, Float64Array, SessionWorld
from rlroute.types import IntArray


@dataclass(frozen=True)
class SessionOptimum:
    """Values and best executors [T, Z, U]: Z kinds of turns, U balances counted in `unit`.

    A kind is difficulty * number of lengths + length. The last balance stands for all greater ones,
    which never run out.
    """

    unit: int
    value_TZU: Float64Array
    action_TZU: IntArray

    def compute_value(self, budget: float) -> float:
        """Return the expected return of a session under a total budget (at least 0)."""
        return float(self.value_TZU[0, :, self.count_units(np.array(budget))].mean())

    def choose(
        self, turn: int, difficulty_N: IntArray, length_N: IntArray, balance_N: Float64Array
    ) -> IntArray:
        """Return the best executor [N] at a turn (from 0), at balances of at least 0."""
        kind_N = difficulty_N * len(LENGTHS) + length_N
        chosen_N: IntArray = self.action_TZU[turn, kind_N, self.count_units(balance_N)]
        return chosen_N

    def count_units(self, balance_N: Float64Array) -> IntArray:
        """Return balances in whole units, those that never run out as the last one."""
        most = self.value_TZU.shape[2] - 1
        units_N: IntArray = np.minimum(balance_N // self.unit, most).astype(np.int64)
        return units_N


def solve_sessions(
    world: SessionWorld, *, penalty: float, discount: float, cost_weight: float = 0.0
) -> SessionOptimum:
    """Return the optimum of a world; with a cost weight, of return less weighted cost.

    The first turn's kind is uniform, as the world draws it.
    """
    config = world.config
    costs = [[price * tokens for tokens in world.tokens] for price in world.price_K]
    unit = math.gcd(*(int(cost) for row in costs for cost_N in row for cost in cost_N))
    dearest = max(int(cost_N.max()) for row in costs for cost_N in row)
    balances = config.max_turns * dearest // unit + 1
    shape = (config.max_turns, len(DIFFICULTIES) * len(LENGTHS), balances)
    value_TZU, action_TZU = np.zeros(shape), np.zeros(shape, np.int64)
    transition_ZZ = np.kron(world.transition_DD, np.full((len(LENGTHS),) * 2, 1 / len(LENGTHS)))
    for t in reversed(range(config.max_turns)):
        next_ZU = np.zeros(shape[1:])
        if t + 1 < config.max_turns:
            next_ZU = discount * config.continue_probability * transition_ZZ @ value_TZU[t + 1]
        for difficulty in range(len(DIFFICULTIES)):
            for length in range(len(LENGTHS)):
                kind = difficulty * len(LENGTHS) + length
                worth_KU = np.stack(
                    [
                        world.quality_KD[k, difficulty]
                        + expect_rest(row[length], next_ZU[kind], unit, penalty, cost_weight)
                        for k, row in enumerate(costs)
                    ]
                )
                action_TZU[t, kind] = worth_KU.argmax(axis=0)
                value_TZU[t, kind] = worth_KU.max(axis=0)
    return SessionOptimum(unit, value_TZU, action_TZU)


def expect_rest(
    cost_N: IntArray, next_U: Float64Array, unit: int, penalty: float, cost_weight: float
) -> Float64Array:
    """Return for each balance [U] the mean over equally likely costs of all but the quality.

    What is paid from the last balance leaves enough for all turns that can still come.
    """
    balance_U = np.arange(len(next_U))
    total_U = np.zeros(len(next_U))
    for cost in cost_N.tolist():
        after_U = balance_U - cost // unit
        rest_U = np.where(after_U < 0, -penalty, next_U[np.maximum(after_U, 0)])
        total_U += rest_U - cost_weight * cost
    return total_U / len(cost_N)
