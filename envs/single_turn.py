"""`rlroute/SingleTurn-v0`: one query, one choice of a candidate, one outcome.

| part        | what                                                                               |
| ----------- | ---------------------------------------------------------------------------------- |
| observation | query embedding `features` [F], features of `candidates` [K, D], `mask` [K],       |
|             | `cost_weight` [1]; where latency counts `latency_weight` [1], where users favour   |
|             | candidates `candidate_bias` [K]; the pure environment's `Observation` has the text |
| action      | index of a candidate, 0 to K - 1; a masked one is refused                          |
| calls       | one: the query's text to the chosen candidate                                      |
| reward      | outcome - cost weight x normalised cost (- latency weight x normalised latency     |
|             | + bias); terms `outcome`, `cost`, `latency`, `bias` are kept apart                 |
| ends        | terminated after the one decision; never truncated                                 |
| arguments   | data (a split), cost weights (fixed, or drawn per episode from the episode's       |
|             | seed), preferences (latency weights, users; `rlroute.envs.preferences`)            |
| feedback    | bandit: the chosen outcome only; full: info carries every candidate's terms        |

The cost weight is drawn as `minimum + (maximum - minimum) * u**power` with u uniform in [0, 1):
small weights, where most of a frontier lies, come more often when the power is above 1.

It leaves out: sessions of several queries under one budget. This is the contextual-bandit shape of
the table papers (RouterBench, RouteLLM and those after them).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from rlroute.config import StrictModel
from rlroute.data.routing_data import RoutingData
from rlroute.envs.base import Step
from rlroute.envs.preferences import COST_ALONE, Preferences, Weights
from rlroute.rewards.base import Outcomes, RewardStack, RewardTerm, collect_outcomes
from rlroute.rewards.cost import CostTerm
from rlroute.rewards.outcome import OutcomeTerm
from rlroute.rewards.preferences import BiasTerm, LatencyTerm
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


def build_reward_stack(data: RoutingData, *, biased: bool = False) -> RewardStack:
    """Return the shape's reward: outcome and cost; latency where it counts, bias if `biased`."""
    terms: list[RewardTerm] = [OutcomeTerm(), CostTerm(reference_usd=data.cost_reference_usd)]
    if data.latency_reference_seconds is not None:
        terms.append(LatencyTerm(reference_seconds=data.latency_reference_seconds))
    if biased:
        terms.append(BiasTerm())
    return RewardStack(tuple(terms))


def compute_outcome_terms(
    data: RoutingData, query_index_B: IntArray, candidate_bias_BK: FloatArray | None = None
) -> dict[str, FloatArray]:
    """Return the reward terms of every candidate: name -> [B, K], NaN where absent."""
    table = data.table
    return build_reward_stack(data, biased=candidate_bias_BK is not None).score(
        Outcomes(
            score_N=table.score_QK[query_index_B],
            cost_usd_N=table.cost_usd_QK[query_index_B],
            failed_N=~table.present_QK[query_index_B],
            latency_seconds_N=table.latency_seconds_QK[query_index_B],
            bias_N=candidate_bias_BK,
        )
    )


class SingleTurn:
    """The pure state machine; see the module's table."""

    def __init__(
        self,
        data: RoutingData,
        cost_weights: CostWeightConfig,
        preferences: Preferences = COST_ALONE,
    ) -> None:
        preferences.check(data)
        self.data = data
        self.cost_weights = cost_weights
        self.preferences = preferences
        self.rewards = build_reward_stack(data, biased=preferences.biased)
        self.row_by_query = {query.id: row for row, query in enumerate(data.table.queries)}
        self.row = -1
        self.weights = Weights(np.zeros(1, np.float32))
        self.action = -1
        self.ended = True

    def reset(self, query: Query, seed: int) -> Observation:
        """Start the episode of `query`; the seed draws its cost weight.

        Raises:
            KeyError: the query is not in the data.
        """
        self.row = self.row_by_query[query.id]
        seed_1 = np.array([seed])
        drawn_1 = self.cost_weights.draw(seed_1)
        self.weights = self.preferences.draw(drawn_1, seed_1, self.data)
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
        self.action = action
        return (Call(self.data.table.candidates[action].id, query, query.text),)

    def observe(self, replies: Sequence[Reply]) -> Step[Observation]:
        """End the episode with the reply's reward terms; a failed reply leaves them undefined."""
        outcomes = collect_outcomes(replies)
        bias_1K = self.weights.candidate_bias_BK
        if bias_1K is not None:
            outcomes = replace(outcomes, bias_N=bias_1K[:, self.action])
        terms = self.rewards.score(outcomes)
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
        state: dict[str, Any] = {"query_id": query_id, "cost_weight": self.cost_weight}
        if self.latency_weight is not None:
            state["latency_weight"] = self.latency_weight
        if self.weights.candidate_bias_BK is not None:
            state["candidate_bias"] = self.weights.candidate_bias_BK[0].tolist()
        return state | {"ended": self.ended}

    def set_state(self, state: Mapping[str, Any]) -> Observation:
        """Restore a state of `get_state` taken after a reset."""
        self.row = self.row_by_query[state["query_id"]]
        latency, bias = state.get("latency_weight"), state.get("candidate_bias")
        self.weights = Weights(
            np.array([state["cost_weight"]], np.float32),
            None if latency is None else np.array([latency], np.float32),
            None if bias is None else np.array([bias], np.float32),
        )
        self.ended = bool(state["ended"])
        return self.build_observation()

    def build_observation(self) -> Observation:
        """Return what the policy sees now."""
        bias_1K = self.weights.candidate_bias_BK
        return Observation(
            text=self.data.table.queries[self.row].text,
            features_F=self.data.features_QF[self.row],
            candidate_features_KD=self.data.candidate_features_KD,
            mask_K=self.data.table.present_QK[self.row],
            cost_weight=self.cost_weight,
            latency_weight=self.latency_weight,
            candidate_bias_K=None if bias_1K is None else bias_1K[0],
        )

    @property
    def cost_weight(self) -> float:
        """The episode's cost weight."""
        return float(self.weights.cost_weight_B[0])

    @property
    def latency_weight(self) -> float | None:
        """The episode's latency weight; None where latency does not count."""
        weight_1 = self.weights.latency_weight_B
        return None if weight_1 is None else float(weight_1[0])
