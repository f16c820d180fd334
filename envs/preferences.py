"""Whom an episode of `rlroute/SingleTurn-v0` is played for: its weights, drawn from its seed.

Without anything said here an episode has a cost weight alone. With a latency weight, waiting is a
second price. With users, a share of the episodes is theirs, drawn evenly, each with one user's
weights. The other episodes have drawn weights: a policy that met a few points only is free to
believe anything between them, and serves new users badly.

The latency weight is drawn as the cost weight is: `minimum + (maximum - minimum) * u**power`.

What it leaves out: the reward terms (`rlroute.rewards.preferences`).

How to use: `Preferences(LatencyWeightConfig(max=1)).draw(...)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from pydantic import Field, model_validator

from rlroute.config import StrictModel
from rlroute.data.routing_data import RoutingData
from rlroute.data.users import UserWeights, make_bias
from rlroute.seeding import draw_uniform
from rlroute.types import FloatArray, IntArray, RLRouteError


class LatencyWeightConfig(StrictModel):
    """The range of latency weights a policy is trained for; `max` 0 leaves latency out.

    A latency weight is the quality (0 to 1) given up per normalised latency, whose unit is one
    average wait for the slowest candidate.
    """

    min: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    max: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    power: float = Field(default=3.0, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def check_order(self) -> LatencyWeightConfig:
        """Refuse an empty range."""
        if self.min > self.max:
            raise ValueError(f"min ({self.min:g}) must not be above max ({self.max:g})")
        return self

    def draw(self, seed_B: IntArray) -> FloatArray:
        """Return the latency weight of each episode seed [B]."""
        uniform_B = draw_uniform("latency_weight", seed_B)
        return (self.min + (self.max - self.min) * uniform_B**self.power).astype(np.float32)


@dataclass(frozen=True)
class Weights:
    """The weights of B episodes; those of latency where it counts, biases where users have some."""

    cost_weight_B: FloatArray
    latency_weight_B: FloatArray | None = None
    candidate_bias_BK: FloatArray | None = None


@dataclass(frozen=True)
class Preferences:
    """What is drawn beside the cost weight; `user_share` of the episodes are users'."""

    latency_weights: LatencyWeightConfig = field(default_factory=LatencyWeightConfig)
    users: tuple[UserWeights, ...] = ()
    user_share: float = 0.5

    @property
    def biased(self) -> bool:
        """Whether some user favours a candidate."""
        return any(user.candidate_bias for user in self.users)

    def check(self, data: RoutingData) -> None:
        """Refuse weights of latency where the data know no latencies.

        Raises:
            RLRouteError: they do not.
        """
        weighed = self.latency_weights.max > 0 or any(one.latency_weight for one in self.users)
        if weighed and data.latency_reference_seconds is None:
            raise RLRouteError(
                f"latency_weight: the data of table '{data.table.name}' were prepared without "
                "latencies (prepare_table(..., latency=True))"
            )

    def draw(self, cost_weight_B: FloatArray, seed_B: IntArray, data: RoutingData) -> Weights:
        """Return the weights of episodes; `cost_weight_B` are those where there is no user."""
        timed = data.latency_reference_seconds is not None
        latency_weight_B = self.latency_weights.draw(seed_B) if timed else None
        if not self.users:
            return Weights(cost_weight_B, latency_weight_B)
        own_B = draw_uniform("user share", seed_B) < self.user_share
        user_B = (draw_uniform("user", seed_B) * len(self.users)).astype(np.int64)
        cost_U = np.array([user.cost_weight for user in self.users], np.float32)
        latency_U = np.array([user.latency_weight for user in self.users], np.float32)
        bias_BK = None
        if self.biased:
            ids = [candidate.id for candidate in data.table.candidates]
            bias_BK = np.where(own_B[:, None], stack_biases(self.users, ids)[user_B], 0)
            bias_BK = bias_BK.astype(np.float32)
        if latency_weight_B is not None:
            latency_weight_B = np.where(own_B, latency_U[user_B], latency_weight_B)
        return Weights(np.where(own_B, cost_U[user_B], cost_weight_B), latency_weight_B, bias_BK)


COST_ALONE = Preferences()


def stack_biases(users: Sequence[UserWeights], candidate_ids: Sequence[str]) -> FloatArray:
    """Return the users' likings [U, K]."""
    return np.stack([make_bias(user, candidate_ids) for user in users])
