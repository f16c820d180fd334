"""Disjoint linear bandits: LinUCB, linear epsilon-greedy, linear Thompson sampling.

Every candidate k has a ridge regression of its own from the context x to two outputs, score and
normalised cost, with one matrix for both:

    A_k = ridge * I + sum of x x'      theta_k = A_k^-1 * sum of x * output      (of its own picks)
    utility_k = theta_score.x - cost weight * price factor * theta_cost.x
    width_k = sqrt(x' A_k^-1 x)

| learner             | picks the greatest                                                     |
| ------------------- | ---------------------------------------------------------------------- |
| LinUCB              | utility + alpha * width                                                |
| LinearEpsilonGreedy | utility; a falling share of the picks explores                         |
| LinearThompson      | draw from a normal of mean utility and deviation sqrt(noise) * width    |

Two outputs let one learner serve a cost weight and prices that change per query. The bonus covers
the doubt about the score alone: costs are regular, and doubt about them times a large weight would
drown everything else. A candidate that joins starts from the prior (theta 0 and the full width).

The inverse is kept by Sherman-Morrison: A^-1 <- A^-1 - (A^-1 x)(A^-1 x)' / (1 + x' A^-1 x).

Sources: Li et al. (2010), "A contextual-bandit approach"; Agrawal and Goyal (2013); constants of
GreenServ: LinUCB alpha .1, ridge .05; epsilon-greedy decay .985, ridge .25; Thompson noise .25,
prior variance 2 (both read as variances).

What it leaves out: contexts that change with the candidate, and forgetting.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

from rlroute.bandits.base import (
    Arrival,
    Exploration,
    Exploring,
    Float64Array,
    Pick,
    StateArrays,
    draw_pick,
    spread_over_best,
)
from rlroute.bandits.config import LinearEpsilonGreedyConfig, LinearThompsonConfig, LinUCBConfig
from rlroute.seeding import draw_uniform

MAXIMUM_DEVIATION = 6.0  # a normal lies further out once in a thousand million
NODES = 401


class RidgeArms:
    """K ridge regressions on F features with two outputs each, updated one row at a time."""

    def __init__(self, features: int, candidates: int, ridge: float) -> None:
        self.inverse_KFF: Float64Array = np.tile(np.eye(features) / ridge, (candidates, 1, 1))
        self.moment_KOF: Float64Array = np.zeros((candidates, 2, features))

    def predict(self, context_F: Float64Array) -> tuple[Float64Array, Float64Array, Float64Array]:
        """Return predicted score, predicted cost and width of every candidate, each [K]."""
        projected_KF = self.inverse_KFF @ context_F
        output_KO = np.einsum("kof,kf->ko", self.moment_KOF, projected_KF)
        return output_KO[:, 0], output_KO[:, 1], np.sqrt(np.maximum(projected_KF @ context_F, 0))

    def update(self, candidate: int, context_F: Float64Array, score: float, cost: float) -> None:
        """Add one row to a candidate's regression."""
        inverse_FF = self.inverse_KFF[candidate]
        projected_F = inverse_FF @ context_F
        inverse_FF -= np.outer(projected_F, projected_F / (1 + projected_F @ context_F))
        self.moment_KOF[candidate, 0] += score * context_F
        self.moment_KOF[candidate, 1] += cost * context_F


class LinearBandit:
    """What the three share: regressions and state; greedy by itself."""

    def __init__(self, features: int, candidates: int, ridge: float) -> None:
        self.arms = RidgeArms(features, candidates, ridge)

    def estimate(self, arrival: Arrival) -> tuple[Float64Array, Float64Array]:
        """Return predicted utility and width [K] at the arrival's weight and prices."""
        score_K, cost_K, width_K = self.arms.predict(arrival.context_F)
        return score_K - arrival.cost_weight * arrival.price_factor_K * cost_K, width_K

    def spread_over_leaders(self, arrival: Arrival) -> Float64Array:
        """Return the distribution [K] over the greatest predicted utility."""
        return spread_over_best(self.estimate(arrival)[0], arrival.mask_K)

    def learn(self, arrival: Arrival, pick: Pick, score: float, cost: float) -> None:
        """Add the outcome to the candidate's regression."""
        self.arms.update(pick.action, arrival.context_F, score, cost)

    def get_state(self) -> StateArrays:
        """Return inverses and moments."""
        return {
            "inverse_KFF": self.arms.inverse_KFF.copy(),
            "moment_KOF": self.arms.moment_KOF.copy(),
        }

    def set_state(self, state: StateArrays) -> None:
        """Go on from a state of `get_state`."""
        self.arms.inverse_KFF = np.array(state["inverse_KFF"], dtype=np.float64)
        self.arms.moment_KOF = np.array(state["moment_KOF"], dtype=np.float64)


class LinUCB(LinearBandit):
    """Optimism: the greatest upper confidence bound."""

    def __init__(self, config: LinUCBConfig, features: int, candidates: int) -> None:
        super().__init__(features, candidates, config.ridge)
        self.alpha = config.alpha

    def choose(self, arrival: Arrival) -> Pick:
        """Take the greatest bound."""
        utility_K, width_K = self.estimate(arrival)
        bound_K = utility_K + self.alpha * width_K
        return draw_pick(spread_over_best(bound_K, arrival.mask_K), arrival.uniform)


class LinearEpsilonGreedy(Exploring):
    """The greatest predicted utility, or with a falling probability any allowed candidate."""

    def __init__(self, config: LinearEpsilonGreedyConfig, features: int, candidates: int) -> None:
        exploration = Exploration(candidates, config.start, config.floor, config.decay)
        greedy = LinearBandit(features, candidates, config.ridge)
        super().__init__(greedy, exploration)
        self.arms = greedy.arms


class LinearThompson(LinearBandit):
    """Probability matching: the greatest draw from the posteriors.

    With noise variance s and prior variance p the posterior of theta has covariance s * A^-1 at
    ridge s / p. Candidates are disjoint, so drawing x.theta is drawing one normal per candidate.
    """

    def __init__(self, config: LinearThompsonConfig, features: int, candidates: int) -> None:
        super().__init__(features, candidates, config.noise / config.prior_variance)
        self.deviation = config.noise**0.5

    def choose(self, arrival: Arrival) -> Pick:
        """Take the greatest draw; the propensity is its chance of being that."""
        mean_K, width_K = self.estimate(arrival)
        spread_K = self.deviation * width_K
        word = int(arrival.uniform * 2.0**53)
        quantile_K = draw_uniform("thompson", word, np.arange(len(mean_K)))
        drawn_K = mean_K + spread_K * ndtri(np.clip(quantile_K, 1e-12, 1 - 1e-12))
        action = int(np.where(arrival.mask_K, drawn_K, -np.inf).argmax())
        return Pick(action, compute_win_chance(mean_K, spread_K, arrival.mask_K, action))


def compute_win_chance(
    mean_K: Float64Array, spread_K: Float64Array, mask_K: npt.NDArray[np.bool_], action: int
) -> float:
    """Return the chance that the draw of `action` is the greatest of the allowed normals.

    The integral over its own draw of the chance that all others lie below, by the trapezoid rule:
    right to about 0.005, and far better where no other candidate is known much more exactly.
    """
    others_K = mask_K.copy()
    others_K[action] = False
    z_N = np.linspace(-MAXIMUM_DEVIATION, MAXIMUM_DEVIATION, NODES)
    weight_N = np.exp(-0.5 * z_N**2)
    value_N = mean_K[action] + spread_K[action] * z_N
    below_NO = ndtr((value_N[:, None] - mean_K[others_K]) / np.maximum(spread_K[others_K], 1e-12))
    return float((weight_N * below_NO.prod(axis=1)).sum() / weight_N.sum())
