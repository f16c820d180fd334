"""A hard budget inside an episode: a ledger in whole units, and the mask that follows from it.

Units are counted calls, or picodollars (1e-12 USD), both whole numbers, so nothing is lost in sums:
a token costs whole picodollars wherever its price per million has six decimals or fewer. Before a
step an executor is allowed only if an upper bound of its cost fits into what is left; the bound is
taken, and what was not needed is given back after the step. So a cap cannot be passed, as long as
no step costs more than its bound.

It works on B lanes at once; a single episode is one lane. It leaves out what happens when nothing
is affordable: the environment ends the episode.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator, model_validator

from rlroute.config import StrictModel
from rlroute.seeding import draw_uniform
from rlroute.types import BoolArray, Candidate, FloatArray, IntArray, RLRouteError, UsdArray

PICODOLLARS_PER_USD = 1e12
NO_CAP = np.iinfo(np.int64).max
LARGEST_CAP = 2.0**62  # in units; a cap above it, which no episode reaches, counts as this
BUDGET_FEATURES = ("steps_left", "spent", "capped", "budget_left", "budget_per_step")


class BudgetConfig(StrictModel):
    """The budget of an episode.

    `caps` are drawn from, one for each episode, all alike; null is no cap. `unit` says what they
    count: USD, or calls of the executors in `counted` (without it, of all but the cheapest).
    """

    unit: Literal["calls", "usd"] = "calls"
    caps: tuple[float | None, ...] = Field(default=(None,), min_length=1)
    counted: tuple[str, ...] | None = None

    @field_validator("caps")
    @classmethod
    def check_caps(cls, caps: tuple[float | None, ...]) -> tuple[float | None, ...]:
        """Refuse caps below 0, and such as are no number."""
        for cap in caps:
            if cap is not None and not 0 <= cap < np.inf:
                raise ValueError(f"a cap must be a number from 0 or null, not {cap}")
        return caps

    @model_validator(mode="after")
    def check_calls(self) -> BudgetConfig:
        """Refuse a part of a call: caps in USD under the wrong unit would pay for nobody."""
        for cap in self.caps if self.unit == "calls" else ():
            if cap is not None and cap != int(cap):
                raise ValueError(
                    f"caps: {cap:g} is no whole number of calls (unit: calls); write unit: usd "
                    "for caps in USD"
                )
        return self

    def draw_caps(self, seed_B: IntArray) -> npt.NDArray[np.float64]:
        """Return the cap of each episode seed [B] in the unit's own terms; infinite for none."""
        caps = np.array([np.inf if cap is None else cap for cap in self.caps])
        return caps[(draw_uniform("cap", seed_B) * len(caps)).astype(np.int64)]

    def find_counted(self, executors: tuple[Candidate, ...]) -> BoolArray:
        """Return which executors' calls are counted [K].

        Raises:
            RLRouteError: `counted` names an unknown executor.
        """
        ids = [one.id for one in executors]
        if self.counted is None:
            return np.arange(len(ids)) > 0
        unknown = [name for name in self.counted if name not in ids]
        if unknown:
            raise RLRouteError(
                f"budget.counted: '{unknown[0]}' is no executor (allowed: {', '.join(ids)})"
            )
        return np.array([name in self.counted for name in ids])


def count_picodollars(cost_usd: UsdArray) -> IntArray:
    """Return costs in whole picodollars, the nearest: a cost within its bound stays within it."""
    return np.rint(cost_usd * PICODOLLARS_PER_USD).astype(np.int64)


class BudgetLedger:
    """What B lanes may spend and have spent, in whole units.

    `overruns` counts steps that cost more than their bound; such a step is charged in full.
    """

    def __init__(self, config: BudgetConfig, executors: tuple[Candidate, ...], lanes: int) -> None:
        self.config = config
        self.counted_K = config.find_counted(executors)
        self.cap_B = np.full(lanes, NO_CAP, dtype=np.int64)
        self.spent_B = np.zeros(lanes, dtype=np.int64)
        self.calls_B = np.zeros(lanes, dtype=np.int64)
        self.cost_usd_B = np.zeros(lanes, dtype=np.float64)
        self.overruns = 0

    def open_lanes(self, lane_N: IntArray, cap_N: npt.NDArray[np.float64]) -> None:
        """Start lanes with caps in the unit's own terms (infinite: none)."""
        scale = 1.0 if self.config.unit == "calls" else PICODOLLARS_PER_USD
        capped_N = np.isfinite(cap_N)
        exact_N = np.minimum(np.where(capped_N, cap_N, 0.0), LARGEST_CAP / scale) * scale
        # half a call pays for none; money is rounded, so that float noise costs nobody a step
        whole_N = np.floor(exact_N) if self.config.unit == "calls" else np.rint(exact_N)
        self.cap_B[lane_N] = np.where(capped_N, whole_N.astype(np.int64), NO_CAP)
        for column_B in (self.spent_B, self.calls_B, self.cost_usd_B):
            column_B[lane_N] = 0

    def count_units(self, cost_usd_BK: UsdArray) -> IntArray:
        """Return what steps of each executor take from the budget, in units [B, K]."""
        if self.config.unit == "calls":
            return np.broadcast_to(self.counted_K, cost_usd_BK.shape).astype(np.int64)
        return count_picodollars(cost_usd_BK)

    def find_affordable(self, bound_usd_BK: UsdArray) -> BoolArray:
        """Return which executors each lane can pay for now [B, K]."""
        left_B1 = (self.cap_B - self.spent_B)[:, None]
        return np.asarray(self.count_units(bound_usd_BK) <= left_B1)

    def settle(
        self,
        executor_B: IntArray,
        bound_usd_B: UsdArray,
        cost_usd_B: UsdArray,
        played_B: BoolArray,
    ) -> None:
        """Charge a step of the lanes in `played_B`: the bound is taken, what is over given back."""
        counted_B = self.counted_K[executor_B] & played_B
        charge_B = counted_B.astype(np.int64)
        if self.config.unit == "usd":
            charge_B = np.where(played_B, count_picodollars(cost_usd_B), 0)
            self.overruns += int((charge_B > count_picodollars(bound_usd_B)).sum())
        self.spent_B += charge_B
        self.calls_B += counted_B
        self.cost_usd_B += np.where(played_B, cost_usd_B, 0.0)

    def read_features(self, turn_B: IntArray, horizon: int, bound_usd_BK: UsdArray) -> FloatArray:
        """Return what a policy sees of time and money [B, 5], each from 0 to 1.

        steps_left of the horizon; spent, over the dearest executor at every step; capped; the share
        of the budget that is left; and how much of the dearest executor it would pay for at each
        remaining step. Without a cap the last two are 1.
        """
        unit_B = np.maximum(self.count_units(bound_usd_BK).max(axis=1), 1)
        left_B = np.maximum(horizon - turn_B, 1)
        capped_B = self.cap_B != NO_CAP
        remaining_B = np.where(capped_B, np.maximum(self.cap_B - self.spent_B, 0), 0)
        share_B = remaining_B / np.maximum(np.where(capped_B, self.cap_B, 1), 1)
        per_step_B = np.minimum(remaining_B / (unit_B * left_B), 1.0)
        feature_B5 = np.stack(
            [
                (horizon - turn_B) / horizon,
                np.minimum(self.spent_B / (unit_B * horizon), 1.0),
                capped_B,
                np.where(capped_B, share_B, 1.0),
                np.where(capped_B, per_step_B, 1.0),
            ],
            axis=1,
        )
        return feature_B5.astype(np.float32)

    def describe(self, lane: int) -> str:
        """Return what is left of a lane's budget in words; empty without a cap."""
        if self.cap_B[lane] == NO_CAP:
            return ""
        left = max(int(self.cap_B[lane] - self.spent_B[lane]), 0)
        if self.config.unit == "calls":
            return f"Budget left: {left} dear calls."
        return f"Budget left: {left / PICODOLLARS_PER_USD:.5f} USD."
