"""The reward of a multi-round episode: its format, its outcome, what it spent, and their sum.

    reward = MultiRoundReward(MultiRoundRewardConfig())
    scores = reward.score({"format": f_N, "outcome": o_N, "charge_usd": c_N}, w_N, frozen=False)
    scores["reward"]            # and "format", "outcome", "cost", each [N]

What an environment reports is raw: its final `reward_terms`. Here the charge becomes a cost reward
in [0, 1] and the terms are combined. To normalise the terms apart instead of the sum, take
`cancel(scores)` and `weigh(cost_weight_N)`: their product, added up, is the reward.

The state (a window of charges, where one is used) belongs into the checkpoint. Evaluation scores
with `frozen=True` and leaves it untouched. Failed calls make an episode's terms NaN: it has no
reward and enters no window.

What it leaves out: grading (`rlroute.rewards.grading`), format faults (`rlroute.rewards.format`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import model_validator

from rlroute.config import StrictModel
from rlroute.rewards.charge import NormaliserConfig, PercentileWindowConfig, build_normaliser
from rlroute.rewards.combination import (
    Combination,
    MultiplicativeConfig,
    cancel_terms,
    combine_terms,
    weigh_terms,
)
from rlroute.rewards.format import FormatRule
from rlroute.types import FloatArray

TERMS = ("format", "outcome", "cost")


class MultiRoundRewardConfig(StrictModel):
    """How format, outcome and charge become one reward.

    `format` is read by the environment, which sees the text. `multiplicative` holds the constants
    of that combination and may be set for no other.
    """

    combination: Combination = "gated"
    normaliser: NormaliserConfig = PercentileWindowConfig()
    multiplicative: MultiplicativeConfig | None = None
    format: FormatRule = FormatRule()

    @model_validator(mode="after")
    def _check_constants(self) -> MultiRoundRewardConfig:
        if self.multiplicative is not None and self.combination != "multiplicative":
            raise ValueError(
                f"multiplicative: has no meaning with combination '{self.combination}'; remove it "
                "or set combination: multiplicative"
            )
        return self


class MultiRoundReward:
    """Scores episodes; holds the charge normaliser's state."""

    def __init__(self, config: MultiRoundRewardConfig) -> None:
        self._combination = config.combination
        self._constants = config.multiplicative or MultiplicativeConfig()
        self._normaliser = build_normaliser(config.normaliser)

    def score(
        self, terms: Mapping[str, FloatArray], cost_weight_N: FloatArray, *, frozen: bool
    ) -> dict[str, FloatArray]:
        """Return "format", "outcome", "cost" and "reward" [N] of N episodes, in their order.

        `terms` holds "format", "outcome" and "charge_usd" [N]. An episode of which one is NaN has
        no reward, and its charge enters no window. `frozen` leaves the state untouched.

        Raises:
            RLRouteError: a cost weight outside [0, 1], or a charge that is negative or infinite.
        """
        format_N, outcome_N, charge_usd_N = (
            np.asarray(terms[name], dtype=np.float32)
            for name in ("format", "outcome", "charge_usd")
        )
        weigh_terms(cost_weight_N, self._combination, self._constants)  # before a window moves
        undefined_N = np.isnan(format_N) | np.isnan(outcome_N)
        charge_usd_N = np.where(undefined_N, np.float32(np.nan), charge_usd_N)
        scores = {
            "format": format_N,
            "outcome": outcome_N,
            "cost": self._normaliser.normalise(charge_usd_N, frozen),
        }
        reward_N = combine_terms(scores, cost_weight_N, self._combination, self._constants)
        return {**scores, "reward": reward_N}

    def cancel(self, scores: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """Return the terms [N] with 0 where they earn nothing: what `weigh` gives weights for."""
        kept = cancel_terms(scores, self._combination)
        return {name: kept[name].astype(np.float32) for name in TERMS}

    def weigh(self, cost_weight_N: FloatArray) -> dict[str, FloatArray]:
        """Return the weight [N] of each term of `cancel` in the reward.

        Raises:
            RLRouteError: a cost weight outside [0, 1].
        """
        weights = weigh_terms(cost_weight_N, self._combination, self._constants)
        return {name: weights[name].astype(np.float32) for name in TERMS}

    def get_state(self) -> dict[str, Any]:
        """Return the state as plain JSON values."""
        return {"normaliser": self._normaliser.get_state()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore a state of `get_state`.

        Raises:
            RLRouteError: it is not a state of this normaliser.
        """
        self._normaliser.set_state(state["normaliser"])
