"""`rlroute/SingleTurn-v0`: one query, one choice of a candidate, one outcome.

| part        | what                                                                               |
| ----------- | ---------------------------------------------------------------------------------- |
| observation | query embedding `features` [F], features of `candidates` [K, D], `mask` [K],       |
|             | `cost_weight` [1]; the pure environment's `Observation` also holds the text        |
| action      | index of a candidate, 0 to K - 1; a masked one is refused                          |
| calls       | one: the query's text to the chosen candidate                                      |
| reward      | outcome - cost weight x normalised cost; terms `outcome` and `cost` are kept apart |
| ends        | terminated after the one decision; never truncated                                 |
| arguments   | data (a split), cost weights (fixed, or drawn per episode from the episode's seed) |
| feedback    | bandit: the chosen outcome only; full: info carries every candidate's terms        |

The cost weight is drawn as `minimum + (maximum - minimum) * u**power` with u uniform in [0, 1):
small weights, where most of a frontier lies, come more often when the power is above 1.

It leaves out: sessions of several queries under one budget. This is the contextual-bandit shape of
the table papers (RouterBench, RouteLLM and those after them).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from rlroute.config import StrictModel
from rlroute.data.routing_data import RoutingData
from rlroute.envs.base import Step
from rlroute.rewards.base import Outcomes, RewardStack, collect_outcomes
from rlroute.rewards.cost import CostTerm
from rlroute.rewards.outcome import OutcomeTerm
from rlroute.seeding import draw_uniform
from rlroute.types import Call, FloatArray, IntArray, Observation, Query, Reply


class CostWeightConfig(StrictModel):
    """The range of cost weights a policy is trained for; `min` equal to `max` fixes it.

    A cost weight is the quality (0 to 1) given up per normalised cost, whose unit is one average
    call of the dearest candidate. `power` bends the draw towards `min`.
    """

    min: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    max: float = Field(default=10.0, ge=0, allow_inf_nan=False)
    power: float = Field(default=3.0, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def check_order(self) -> CostWeightConfig:
        """Refuse an empty range."""
        if self.min > self.max:
            raise ValueError(f"min ({self.min:g}) must not be above max ({self.max:g})")
        return self

    def draw(self, seed_B: IntArray) -> FloatArray:
        """Return the cost weight of each episode seed [B]."""
        uniform_B = draw_uniform("cost_weight", seed_B)
        return (self.min + (self.max - self.min) * uniform_B**self.power).astype(np.float32)


def build_reward_stack(data: RoutingData) -> RewardStack:
    """Return the shape's reward: outcome and cost."""
    return RewardStack((OutcomeTerm(), CostTerm(reference_usd=data.cost_reference_usd)))


def compute_outcome_terms(data: RoutingData, query_index_B: IntArray) -> dict[str, FloatArray]:
    """Return the reward terms of every candidate: name -> [B, K], NaN where absent."""
    table = data.table
    return build_reward_stack(data).score(
        Outcomes(
            score_N=table.score_QK[query_index_B],
            cost_usd_N=table.cost_usd_QK[query_index_B],
            failed_N=~table.present_QK[query_index_B],
        )
    )


class SingleTurn:
    """The pure state machine; see the module's table."""

    def __init__(self, data: RoutingData, cost_weights: CostWeightConfig) -> None:
        self.data = data
        self.cost_weights = cost_weights
        self.rewards = build_reward_stack(data)
        self.row_by_query = {query.id: row for row, query in enumerate(data.table.queries)}
        self.row = -1
        self.cost_weight = 0.0
        self.ended = True

    def reset(self, query: Query, seed: int) -> Observation:
        """Start the episode of `query`; the seed draws its cost weight.

        Raises:
            KeyError: the query is not in the data.
        """
        self.row = self.row_by_query[query.id]
        self.cost_weight = float(self.cost_weights.draw(np.array([seed]))[0])
        self.ended = False
        return self.build_observation()

    def propose(self, action: int) -> tuple[Call, ...]:
        """Return the one call of the chosen candidate.

        Raises:
            ValueError: the episode is over, or the action is masked or out of range.
        """
        if self.ended:
            raise ValueError("the episode is over: reset before the next action")
        mask_K = self.data.table.present_QK[self.row]
        if not 0 <= action < len(mask_K) or not mask_K[action]:
            allowed = ", ".join(str(k) for k in np.flatnonzero(mask_K))
            raise ValueError(f"action {action} is not allowed here (allowed: {allowed})")
        query = self.data.table.queries[self.row]
        return (Call(self.data.table.candidates[action].id, query, query.text),)

    def observe(self, replies: Sequence[Reply]) -> Step[Observation]:
        """End the episode with the reply's reward terms; a failed reply leaves them undefined."""
        terms = self.rewards.score(collect_outcomes(replies))
        self.ended = True
        return Step(
            observation=self.build_observation(),
            reward_terms={
                name: None if np.isnan(value_N[0]) else float(value_N[0])
                for name, value_N in terms.items()
            },
            terminated=True,
        )

    def get_state(self) -> dict[str, Any]:
        """Return the state as plain JSON values."""
        query_id = self.data.table.queries[self.row].id if self.row >= 0 else None
        return {"query_id": query_id, "cost_weight": self.cost_weight, "ended": self.ended}

    def set_state(self, state: Mapping[str, Any]) -> Observation:
        """Restore a state of `get_state` taken after a reset."""
        self.row = self.row_by_query[state["query_id"]]
        self.cost_weight = float(state["cost_weight"])
        self.ended = bool(state["ended"])
        return self.build_observation()

    def build_observation(self) -> Observation:
        """Return what the policy sees now."""
        return Observation(
            text=self.data.table.queries[self.row].text,
            features_F=self.data.features_QF[self.row],
            candidate_features_KD=self.data.candidate_features_KD,
            mask_K=self.data.table.present_QK[self.row],
            cost_weight=self.cost_weight,
        )
