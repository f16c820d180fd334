"""The reward of a memory-tier episode: what the answer is worth, and how cheap its memory was.

    reward = MemoryReward(config)
    reward.push(outcome_B, cost_usd_B)              # a whole batch joins window and history first
    terms = reward.score(outcome_B, cost_usd_B)     # "outcome" and "cost" [B]
    total_B = reward.combine(terms, cost_weight_B)

`outcome` is the answer's score in [0, 1], `cost` a cost reward where 1 is cheap: by the last
episodes (`CostWindow`) or by a fixed reference. With k = std(cost) / std(outcome) over the last
episodes and beta = 1 / k (`ScaleAlignment`), two forms of the sum are offered, equal up to the
factor k:

    paper   outcome + cost weight * beta * cost       a right answer is worth 1 at every time
    code    k * outcome + cost weight * cost          its worth, and what a critic learns, drifts

A failed episode (outcome or cost NaN) joins nothing, and all its terms are NaN. `push` alone moves
the state; it belongs into the checkpoint, and `freeze` gives what evaluation uses. In several
processes, whoever owns the state must push the episodes of all of them, in one order.

What it leaves out: adding up costs, which holds the modules' only, not the answer's (the
environment), and grading.

Source: BudgetMem (arXiv 2602.06025) as published and as its authors implemented it; floor, cap and
warm-up are ours.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from rlroute.config import StrictModel
from rlroute.rewards.charge import (
    MICRO,
    TRANSFORMS,
    ChargeNormaliser,
    FixedReference,
    FixedReferenceConfig,
    Float64Array,
    PercentileWindow,
    PercentileWindowConfig,
)
from rlroute.types import FloatArray, RLRouteError, UsdArray

SAME_COST_LOW = 0.9  # where all costs are equal, the low end lies at this share of them


class CostWindowConfig(PercentileWindowConfig):
    """The window of the last `size` episodes; percentiles in percent."""

    size: int = Field(default=2000, ge=2)
    transform: Literal["sqrt", "linear"] = "sqrt"


class CostReferenceConfig(StrictModel):
    """A cost of `reference_usd` earns 0; None is the mean train cost of the dearest static choice.

    `clip: false` lets a dearer episode earn less than 0, so that saving always pays.
    """

    kind: Literal["fixed"] = "fixed"
    reference_usd: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    transform: Literal["linear", "sqrt"] = "linear"
    clip: bool = True


CostConfig = Annotated[CostWindowConfig | CostReferenceConfig, Field(discriminator="kind")]


class AlignmentConfig(StrictModel):
    """How k is measured: the last `size` episodes, 1 below `warm_up` of them.

    Standard deviations count as `floor` at least; k lies in [1 / `cap`, `cap`], None for no limit.
    """

    size: int = Field(default=20_000, ge=2)
    floor: float = Field(default=0.05, gt=0, allow_inf_nan=False)
    cap: float | None = Field(default=10.0, ge=1, allow_inf_nan=False)
    warm_up: int = Field(default=64, ge=2)

    @model_validator(mode="after")
    def _check_warm_up(self) -> AlignmentConfig:
        if self.warm_up > self.size:
            raise ValueError(f"warm_up ({self.warm_up}) must not exceed size ({self.size})")
        return self


class MemoryRewardConfig(StrictModel):
    """Form of the sum, how costs are normalised, and the alignment (None: k is 1)."""

    form: Literal["paper", "code"] = "paper"
    cost: CostConfig = CostWindowConfig()
    alignment: AlignmentConfig | None = AlignmentConfig()

    def resolve(self, reference_usd: float) -> MemoryRewardConfig:
        """Return this configuration with `reference_usd` where a fixed reference was left open.

        Raises:
            RLRouteError: it was left open, and `reference_usd` is not above 0 or not finite.
        """
        if isinstance(self.cost, CostWindowConfig) or self.cost.reference_usd is not None:
            return self
        if not 0 < reference_usd < np.inf:
            raise RLRouteError(
                f"the cost reference must be a finite number above 0 USD, not {reference_usd}: "
                "do all calls of the dearest tiers have prices?"
            )
        cost = self.cost.model_copy(update={"reference_usd": float(reference_usd)})
        return self.model_copy(update={"cost": cost})


class CostWindow(PercentileWindow):
    """Costs by their place between two percentiles of the last episodes' costs.

    A whole batch joins before any of it is placed. Where the percentiles are equal, a window whose
    high percentile is 0 is measured by 1 USD (only there does the currency matter), any other by
    the last tenth below it: all costs equal and positive earn 0. An empty window gives 0.5.
    """

    def __init__(self, config: CostWindowConfig) -> None:
        super().__init__(config)

    def normalise(self, charge_usd_N: FloatArray | UsdArray, frozen: bool = False) -> FloatArray:
        """Return the cost rewards [N]; unless frozen, all costs join the window before.

        Raises:
            RLRouteError: a cost is negative or infinite.
        """
        if not frozen:
            self.push(charge_usd_N)
        return super().normalise(charge_usd_N, frozen=True)

    def _find_bounds(self) -> tuple[float, float] | None:
        """Return the transformed costs that earn 1 and 0; None for an empty window."""
        if not self._charges:
            return None
        low, high = self._find_percentiles()
        if high > low:
            return low, high
        one_usd = float(TRANSFORMS[self._config.transform](np.array(MICRO)))
        return (0.0, one_usd) if high == 0 else (SAME_COST_LOW * high, high)


class ScaleAlignment:
    """k = std(cost) / std(outcome) of the last episodes' terms, by population std."""

    def __init__(self, config: AlignmentConfig) -> None:
        self._config = config
        self._outcomes: deque[float] = deque(maxlen=config.size)
        self._costs: deque[float] = deque(maxlen=config.size)
        self._scale = 1.0

    def __len__(self) -> int:
        return len(self._costs)

    @property
    def scale(self) -> float:
        """The factor k of outcomes; that of costs, beta, is 1 / k."""
        return self._scale

    def push(self, outcome_B: FloatArray | Float64Array, cost_B: FloatArray | Float64Array) -> None:
        """Let the terms of episodes join the history; pairs with a NaN do not."""
        defined_B = ~(np.isnan(outcome_B) | np.isnan(cost_B))
        self._outcomes.extend(outcome_B[defined_B].tolist())
        self._costs.extend(cost_B[defined_B].tolist())
        self._scale = self._measure()

    def _measure(self) -> float:
        """Return k of the history."""
        config = self._config
        if len(self) < config.warm_up:
            return 1.0
        cost_std, outcome_std = (
            max(float(np.std(np.array(values))), config.floor)
            for values in (self._costs, self._outcomes)
        )
        limit = np.inf if config.cap is None else config.cap
        return float(np.clip(cost_std / outcome_std, 1 / limit, limit))

    def get_state(self) -> dict[str, Any]:
        """Return the history, oldest first, as plain JSON values."""
        return {"outcomes": list(self._outcomes), "costs": list(self._costs)}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore a history of the same size or a smaller one.

        Raises:
            RLRouteError: not a history, its sides differ in length, or it is longer than this one.
        """
        outcomes, costs = state.get("outcomes"), state.get("costs")
        if not (isinstance(outcomes, list) and isinstance(costs, list) and len(state) == 2):
            raise RLRouteError(f"not the state of a scale alignment: it has keys {sorted(state)}")
        if len(outcomes) != len(costs) or len(costs) > self._config.size:
            raise RLRouteError(
                f"the saved scale history holds {len(outcomes)} outcomes and {len(costs)} costs; "
                f"it must hold as many of both, {self._config.size} at most"
            )
        self._outcomes.clear()
        self._costs.clear()
        self.push(np.array(outcomes, dtype=np.float64), np.array(costs, dtype=np.float64))


class MemoryReward:
    """Scores episodes; holds the state of window and alignment."""

    def __init__(self, config: MemoryRewardConfig) -> None:
        """Start with an empty window and history.

        Raises:
            RLRouteError: the fixed reference is open (`MemoryRewardConfig.resolve`).
        """
        self.config = config
        self._normaliser = _build_normaliser(config.cost)
        self._alignment = None if config.alignment is None else ScaleAlignment(config.alignment)
        self._frozen = False

    @property
    def scale(self) -> float:
        """The factor k between the two forms, as it is now; 1 without alignment."""
        return 1.0 if self._alignment is None else self._alignment.scale

    def push(self, outcome_B: FloatArray, cost_usd_B: FloatArray | UsdArray) -> None:
        """Let a batch of episodes join the window, then its terms the history of the alignment.

        Raises:
            RLRouteError: this reward is frozen, a score lies outside [0, 1], or a cost is negative
                or infinite.
        """
        if self._frozen:
            raise RLRouteError("a frozen memory reward takes no episodes: push to the original")
        score_B, usd_B = _drop_failed(outcome_B, cost_usd_B)
        cost_B = self._normaliser.normalise(usd_B)
        if self._alignment is not None:
            self._alignment.push(score_B, cost_B)

    def score(
        self, outcome_B: FloatArray, cost_usd_B: FloatArray | UsdArray
    ) -> dict[str, FloatArray]:
        """Return "outcome" and "cost" [B] by the state as it is; both NaN where one is undefined.

        Raises:
            RLRouteError: a score lies outside [0, 1], or a cost is negative or infinite.
        """
        score_B, usd_B = _drop_failed(outcome_B, cost_usd_B)
        cost_B = self._normaliser.normalise(usd_B, frozen=True)
        return {"outcome": score_B.astype(np.float32), "cost": cost_B}

    def combine(self, values: Mapping[str, FloatArray], cost_weight_N: FloatArray) -> FloatArray:
        """Return the reward, shaped as the terms; NaN where a term is undefined.

        `cost_weight_N` must broadcast against the terms.
        """
        outcome_N = np.asarray(values["outcome"], dtype=np.float64)
        cost_N = np.asarray(cost_weight_N, dtype=np.float64) * values["cost"]
        if self.config.form == "paper":
            return (outcome_N + cost_N / self.scale).astype(np.float32)
        return (self.scale * outcome_N + cost_N).astype(np.float32)

    def freeze(self) -> MemoryReward:
        """Return a copy that keeps the state of now for good: it scores, and takes no episodes."""
        frozen = MemoryReward(self.config)
        frozen.set_state(self.get_state())
        frozen._frozen = True
        return frozen

    def get_state(self) -> dict[str, Any]:
        """Return the state as plain JSON values."""
        alignment = {} if self._alignment is None else self._alignment.get_state()
        return {"cost": self._normaliser.get_state(), "alignment": alignment}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore a state of `get_state`.

        Raises:
            RLRouteError: it is not a state of this configuration.
        """
        if set(state) != {"cost", "alignment"}:
            raise RLRouteError(f"not the state of a memory reward: it has keys {sorted(state)}")
        self._normaliser.set_state(state["cost"])
        if self._alignment is not None:
            self._alignment.set_state(state["alignment"])
        elif state["alignment"]:
            raise RLRouteError(
                "the saved memory reward has a scale history, this one has alignment: null"
            )


def _build_normaliser(config: CostWindowConfig | CostReferenceConfig) -> ChargeNormaliser:
    """Return the window or the fixed reference that a recipe asks for."""
    if isinstance(config, CostWindowConfig):
        return CostWindow(config)
    if config.reference_usd is None:
        raise RLRouteError(
            "cost: the fixed reference is open; give reference_usd in USD, or resolve it first"
        )
    fixed = FixedReferenceConfig(reference_usd=config.reference_usd, transform=config.transform)
    return FixedReference(fixed, clip=config.clip)


def _drop_failed(
    outcome_B: FloatArray, cost_usd_B: FloatArray | UsdArray
) -> tuple[Float64Array, Float64Array]:
    """Return scores and costs in double precision, both NaN where one of them is."""
    score_B = np.asarray(outcome_B, dtype=np.float64)
    usd_B = np.asarray(cost_usd_B, dtype=np.float64)
    wrong = score_B[(score_B < 0) | (score_B > 1)]
    if wrong.size:
        raise RLRouteError(f"a score must lie in [0, 1] (NaN if undefined), not {wrong[0]}")
    failed_B = np.isnan(score_B) | np.isnan(usd_B)
    return np.where(failed_B, np.nan, score_B), np.where(failed_B, np.nan, usd_B)
