"""Baselines that learn from their own picks: LinUCB, epsilon-greedy and Thompson, one pass.

What it is: the linear learners of `rlroute.bandits`, who meet every train query once, in a hashed
order, at a drawn cost weight, see the outcome of their own pick and nothing else, and then stand
still. On other queries they take the greatest predicted utility. They say what one pass of trial
is worth beside the other baselines, which see the whole train table.

A hole cannot be picked, so it is never learnt from; a candidate that was never picked is nobody's
first choice, for nothing is known of its price.

What it leaves out: streams, on which such learners go on learning (environment bandit_stream), and
search for their constants, which are GreenServ's.

Their names are short, "1-pass LinUCB", "1-pass epsilon" (greedy), "1-pass Thompson", because tables
in a terminal are narrow.

How to use: `[PredictThenOptimise(one, train) for one in fit_bandits(train)]`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rlroute.bandits.base import Arrival
from rlroute.bandits.config import LinearEpsilonGreedyConfig, LinearThompsonConfig, LinUCBConfig
from rlroute.bandits.contexts import ContextReducer
from rlroute.policies.table_baselines import Float64Array, draw_arrival, list_outcomes
from rlroute.seeding import draw_uniform, mix
from rlroute.types import FloatArray

if TYPE_CHECKING:
    from rlroute.bandits.linear import LinearEpsilonGreedy, LinearThompson, LinUCB, RidgeArms
    from rlroute.data.routing_data import RoutingData

# The default of streams (`context` in a recipe of environment bandit_stream).
DIMENSION = 64


class OnePassBandit:
    """A linear learner after one pass over train: predicts scores and normalised costs.

    `cost_weights` is the range from which each train query's cost weight is drawn evenly.
    `pick_Q` says whom it tried for each train query.
    """

    def __init__(
        self,
        name: str,
        learner: LinUCB | LinearEpsilonGreedy | LinearThompson,
        arms: RidgeArms,
        contexts: ContextReducer,
        train: RoutingData,
        cost_weights: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        self.name, self.arms, self.contexts = name, arms, contexts
        score_QK, cost_QK = list_outcomes(train)
        context_QF = contexts.reduce(train.features_QF)
        word_Q = np.array([int(mix("pass", query.id)) for query in train.table.queries], np.uint64)
        low, high = cost_weights
        weight_Q = low + (high - low) * draw_uniform("pass weight", word_Q)
        uniform_Q = draw_uniform("pass pick", word_Q)
        price_factor_K = np.ones(score_QK.shape[1])
        self.pick_Q = np.zeros(len(score_QK), dtype=np.int64)
        for q in draw_arrival(train):
            arrival = Arrival(
                context_F=context_QF[q],
                features_E=train.features_QF[q],
                mask_K=train.table.present_QK[q],
                price_factor_K=price_factor_K,
                cost_weight=float(weight_Q[q]),
                uniform=float(uniform_Q[q]),
            )
            pick = learner.choose(arrival)
            learner.learn(arrival, pick, score_QK[q, pick.action], cost_QK[q, pick.action])
            self.pick_Q[q] = pick.action
        self.tried_K = np.bincount(self.pick_Q, minlength=score_QK.shape[1]) > 0

    def predict(self, features_QF: FloatArray) -> tuple[Float64Array, Float64Array]:
        """Return score [Q, K] (minus infinity of who was never tried), normalised cost [Q, K]."""
        context_QF = self.contexts.reduce(features_QF)
        theta_KOF = np.einsum("kof,kfg->kog", self.arms.moment_KOF, self.arms.inverse_KFF)
        output_OQK = np.einsum("qf,kof->oqk", context_QF, theta_KOF)
        return np.where(self.tried_K, output_OQK[0], -np.inf), output_OQK[1]


def fit_bandits(
    train: RoutingData, cost_weights: tuple[float, float] = (0.0, 1.0)
) -> list[OnePassBandit]:
    """Return the three learners, each after its pass over `train`."""
    from rlroute.bandits.linear import LinearEpsilonGreedy, LinearThompson, LinUCB

    contexts = ContextReducer(train.features_QF, DIMENSION, seed=0)
    features, candidates = contexts.features, train.table.present_QK.shape[1]
    optimist = LinUCB(LinUCBConfig(kind="linucb"), features, candidates)
    explorer = LinearEpsilonGreedy(
        LinearEpsilonGreedyConfig(kind="linear_epsilon_greedy"), features, candidates
    )
    sampler = LinearThompson(LinearThompsonConfig(kind="linear_thompson"), features, candidates)
    return [
        OnePassBandit("1-pass LinUCB", optimist, optimist.arms, contexts, train, cost_weights),
        OnePassBandit(*("1-pass epsilon", explorer, explorer.arms, contexts, train, cost_weights)),
        OnePassBandit("1-pass Thompson", sampler, sampler.arms, contexts, train, cost_weights),
    ]
