"""PPO as an online learner: the candidate scorer, trained on a stream by its own picks alone.

    choose   the scorer's softmax over the candidates whose profile is known, at the pick's uniform
             number; the probability is kept
    learn    an outcome goes into the profiles' history and into the batch; at `episodes` picks the
             batch gives one update (`rlroute.trainers.update`), and profiles are measured again

A stream has measured nobody yet: a candidate that is new (all are, at the beginning) gets `probes`
forced picks first. They are paid and count like any other, but they are no decision of the policy
and stay out of the batch. A change of price scales a profile at once. Where features change without
an update (somebody becomes known, a price moves), the unfinished batch is dropped: its picks were
made on other features.

It leaves out several processes, and any exploration but the softmax's own.

How to use: `OnlinePPO(OnlinePPOConfig(kind="ppo"), data, seed=0)` is a bandit like the others
(`rlroute.bandits.base.Bandit`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rlroute.bandits.base import (
    Arrival,
    Float64Array,
    Pick,
    StateArrays,
    draw_pick,
    spread_over_allowed,
    spread_over_best,
)
from rlroute.bandits.config import OnlinePPOConfig
from rlroute.bandits.play import select_part
from rlroute.bandits.profiles import StreamProfiles
from rlroute.bandits.stream import StreamData
from rlroute.extras import require
from rlroute.policies.decision import SamplingPolicy
from rlroute.policies.mlp import CandidateScorer, ScorerConfig
from rlroute.rewards.base import RewardStack
from rlroute.rewards.cost import CostTerm
from rlroute.rewards.outcome import OutcomeTerm
from rlroute.seeding import derive_seed
from rlroute.trainers.checkpoint import flatten_optimiser, restore_optimiser
from rlroute.trainers.learner import Learner, score_candidates
from rlroute.trainers.recipe import OptimiserConfig, PPOConfig
from rlroute.trainers.update import update_policy
from rlroute.types import Batch, BoolArray

WEIGHTS, OPTIMISER, BATCH = "weights.", "optimiser.", "batch."


@dataclass(frozen=True)
class OnlineRecipe:
    """What an update reads of a recipe."""

    seed: int
    algorithm: PPOConfig
    optimiser: OptimiserConfig


@dataclass(frozen=True)
class Decided:
    """What the policy decided for an arrival: for whom, and what the network said of it."""

    mask_K: BoolArray
    logp: float
    value: float


class OnlinePPO:
    """The candidate scorer as a bandit; see the module's text."""

    def __init__(self, config: OnlinePPOConfig, data: StreamData, seed: int) -> None:
        self.config = config
        self.learner = make_online_learner(config, data, seed)
        self.scorer = self.learner.scorer.eval()  # unwrapping takes longer than a decision
        self.profiles = StreamProfiles(data, config.probes)
        self.updates = 0
        self.rows: list[dict[str, Any]] = []  # of the batch
        self.decided: Decided | None = None  # None: the last pick was forced
        self.price_factor_K: Float64Array = np.ones(len(data.table.candidates))
        self.features_KD = self.profiles.build_features(self.price_factor_K)

    def choose(self, arrival: Arrival) -> Pick:
        """Probe who is new, or sample from the policy."""
        mask_K = arrival.mask_K
        new_K = mask_K & ~self.profiles.ready_K
        if new_K.any():
            return self.force(
                spread_over_best(-self.profiles.count_K.astype(float), new_K), arrival
            )
        known_K = self.profiles.known_K
        if (self.profiles.ready_K & ~known_K).any():
            self.profiles.measure()
            known_K = self.profiles.known_K
            self.restart(arrival.price_factor_K)
        elif (arrival.price_factor_K != self.price_factor_K).any():
            self.restart(arrival.price_factor_K)
        known_K = known_K & mask_K
        if not known_K.any():
            return self.force(spread_over_allowed(mask_K), arrival)
        policy = SamplingPolicy(self.scorer, version=self.updates)
        found = policy.decide(
            arrival.features_E[None],
            self.features_KD,
            known_K[None],
            np.array([arrival.cost_weight], dtype=np.float32),
            np.array([arrival.uniform]),
        )
        self.decided = Decided(known_K, float(found.logp_B[0]), float(found.value_B[0]))
        return Pick(int(found.action_B[0]), math.exp(self.decided.logp))

    def force(self, probability_K: Float64Array, arrival: Arrival) -> Pick:
        """Pick without the policy."""
        self.decided = None
        return draw_pick(probability_K, arrival.uniform)

    def restart(self, price_factor_K: Float64Array) -> None:
        """Build the candidates' features anew and drop the unfinished batch."""
        self.price_factor_K = price_factor_K
        self.features_KD = self.profiles.build_features(price_factor_K)
        self.rows = []

    def learn(self, arrival: Arrival, pick: Pick, score: float, cost: float) -> None:
        """Keep the outcome; update once the batch is full."""
        self.profiles.record(arrival.features_E, pick.action, score, cost)
        if self.decided is None:
            return
        self.rows.append(
            {
                "features_NE": arrival.features_E,
                "mask_NK": self.decided.mask_K,
                "cost_weight_N": np.float32(arrival.cost_weight),
                "action_N": np.int64(pick.action),
                "logp_N": np.float32(self.decided.logp),
                "value_N": np.float32(self.decided.value),
                "score_N": np.float32(score),
                "cost_N": np.float32(cost * arrival.price_factor_K[pick.action]),
            }
        )
        if len(self.rows) == self.config.episodes:
            update_policy(self.learner, self.make_batch(), self.updates)
            self.updates += 1
            self.profiles.measure()
            self.restart(self.price_factor_K)

    def stack_rows(self) -> dict[str, Any]:
        """Return the batch's columns."""
        return {name: np.stack([row[name] for row in self.rows]) for name in self.rows[0]}

    def make_batch(self) -> Batch:
        """Return the rows as a batch of one-step episodes."""
        column, count = self.stack_rows(), len(self.rows)
        return Batch(
            features_BTF=column["features_NE"][:, None],
            candidate_features_KD=self.features_KD,
            mask_BTK=column["mask_NK"][:, None],
            cost_weight_B=column["cost_weight_N"],
            action_BT=column["action_N"][:, None],
            logp_BT=column["logp_N"][:, None],
            value_BT=column["value_N"][:, None],
            valid_BT=np.ones((count, 1), dtype=np.bool_),
            terminated_B=np.ones(count, dtype=np.bool_),
            reward_terms_BT={
                "outcome": column["score_N"][:, None],
                "cost": column["cost_N"][:, None],
            },
            query_index_B=np.arange(count),
            group_B=np.arange(count),
            policy_version=self.updates,
        )

    def get_state(self) -> StateArrays:
        """Return weights, moments, history and the unfinished batch."""
        weights = self.scorer.state_dict()
        moments = flatten_optimiser(self.learner.optimiser)
        state: StateArrays = {"updates": np.array([self.updates])}
        state["price_factor_K"] = self.price_factor_K.copy()
        state |= {WEIGHTS + name: value.numpy().copy() for name, value in weights.items()}
        state |= {OPTIMISER + name: value.numpy().copy() for name, value in moments.items()}
        if self.rows:
            state |= {BATCH + name: values for name, values in self.stack_rows().items()}
        return state | self.profiles.get_state()

    def set_state(self, state: StateArrays) -> None:
        """Go on from a state of `get_state`."""
        self.profiles.set_state(state)
        self.restart(np.array(state["price_factor_K"], dtype=np.float64))
        self.updates = int(state["updates"][0])
        weights = make_tensors(state, WEIGHTS)
        self.scorer.load_state_dict(weights)
        restore_optimiser(self.learner.optimiser, make_tensors(state, OPTIMISER))
        columns = select_part(state, BATCH)
        count = len(columns["action_N"]) if columns else 0
        self.rows = [{name: column[n] for name, column in columns.items()} for n in range(count)]


def make_tensors(state: StateArrays, prefix: str) -> dict[str, torch.Tensor]:
    """Return copies of the arrays under a prefix as tensors."""
    part = select_part(state, prefix)
    return {name: torch.as_tensor(np.array(value)) for name, value in part.items()}


def make_online_learner(config: OnlinePPOConfig, data: StreamData, seed: int) -> Learner:
    """Build the scorer, its optimiser and what an update reads; equal seeds give equal weights."""
    clusters, features = data.centroids_CE.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights"))
        scorer = CandidateScorer(
            ScorerConfig(
                features=features,
                clusters=clusters,
                hidden=config.hidden,
                dropout=config.dropout,
                sharpness=config.sharpness,
            )
        )
    scorer.centroids_CF.copy_(torch.as_tensor(data.centroids_CE))
    settings = OptimiserConfig(learning_rate=config.learning_rate)
    optimiser = torch.optim.AdamW(
        scorer.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    algorithm = PPOConfig(
        kind="ppo",
        episodes=config.episodes,
        epochs=config.epochs,
        minibatches=config.minibatches,
        clip_range=config.clip_range,
        target_kl=config.target_kl,
    )
    accelerator = require("accelerate", "train").Accelerator(cpu=True)
    model, optimiser = accelerator.prepare(scorer, optimiser)
    return Learner(
        accelerator,
        model,
        optimiser,
        score_candidates,
        RewardStack((OutcomeTerm(), CostTerm(reference_usd=data.cost_reference_usd))),
        OnlineRecipe(seed, algorithm, settings),
        entropy_weight=config.entropy_weight,
    )
