"""From the money that an episode spent to a cost reward in [0, 1], where 1 is cheap.

Two normalisers, chosen by `kind` in a recipe:

- `fixed`:  1 - clip(t(charge) / t(reference), 0, 1), t linear or the square root. The same charge
  earns the same at every time; `reference_usd` is what earns 0, e.g. the dearest sensible episode.
- `window`: Router-R1's. t of the charge is pushed into a window of the last episodes, then
  1 - clip((t - low percentile) / (high percentile - low percentile), 0, 1), the new value counted.
  0.5 while the window holds one value or no spread.

A window makes what a charge earns depend on the order and on the run so far, so it has a state that
checkpoints keep, and `frozen=True`, which evaluation uses, neither pushes nor counts the new value.
Charges are in USD; the window works in millionths of a USD. An undefined charge (NaN: a call
failed) stays undefined and enters no window.

What it leaves out: adding up charges (the environment), and several processes: who owns a window
must normalise the episodes of all of them, in one order.

Source: Router-R1 (Zhang et al., 2025, arXiv 2506.09033) as its authors implemented it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from rlroute.config import StrictModel
from rlroute.types import FloatArray, RLRouteError, UsdArray

MICRO = 1e6  # millionths of a USD in a USD
MIN_SPREAD = 1e-8
LOG_SCALE = 0.01
UNDECIDED = 0.5

Float64Array = npt.NDArray[np.float64]
Transform = Literal["linear", "sqrt", "log"]


def _take_log(charge: Float64Array) -> Float64Array:
    """Return log(1 + 0.01 c), the original's variant, of charges in millionths of a USD."""
    return np.log1p(LOG_SCALE * charge)


TRANSFORMS: Mapping[Transform, Callable[[Float64Array], Float64Array]] = {
    "linear": np.positive,
    "sqrt": np.sqrt,
    "log": _take_log,
}


class FixedReferenceConfig(StrictModel):
    """A charge of `reference_usd` or more earns 0."""

    kind: Literal["fixed"] = "fixed"
    reference_usd: float = Field(gt=0, allow_inf_nan=False)
    transform: Literal["linear", "sqrt"] = "linear"


class PercentileWindowConfig(StrictModel):
    """The window of the last `size` episodes; percentiles in percent."""

    kind: Literal["window"] = "window"
    size: int = Field(default=1000, ge=2)
    low: float = Field(default=5.0, ge=0, le=100)
    high: float = Field(default=95.0, ge=0, le=100)
    transform: Transform = "sqrt"

    @model_validator(mode="after")
    def _check_order(self) -> PercentileWindowConfig:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        return self


NormaliserConfig = Annotated[
    FixedReferenceConfig | PercentileWindowConfig, Field(discriminator="kind")
]


class ChargeNormaliser(Protocol):
    """Charges to cost rewards, with whatever state that takes."""

    def normalise(self, charge_usd_N: FloatArray | UsdArray, frozen: bool = False) -> FloatArray:
        """Return the cost rewards [N] in [0, 1], higher is cheaper; NaN stays NaN."""

    def get_state(self) -> dict[str, Any]:
        """Return the state as plain JSON values."""

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore a state of `get_state`."""


class FixedReference:
    """Charges in units of one reference; it has no state, so frozen or not is the same.

    With `clip=False`, a charge above the reference earns less than 0 instead of 0.
    """

    def __init__(self, config: FixedReferenceConfig, *, clip: bool = True) -> None:
        self._transform = TRANSFORMS[config.transform]
        self._reference = self._transform(np.array(config.reference_usd))
        self._most = 1.0 if clip else np.inf

    def normalise(self, charge_usd_N: FloatArray | UsdArray, frozen: bool = False) -> FloatArray:
        """Return 1 - clip(t(charge) / t(reference), 0, 1) [N].

        Raises:
            RLRouteError: a charge is negative or infinite.
        """
        share_N = self._transform(_check_charges(charge_usd_N)) / self._reference
        return (1 - np.clip(share_N, 0, self._most)).astype(np.float32)

    def get_state(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Take the empty state.

        Raises:
            RLRouteError: it is the state of another normaliser.
        """
        if state:
            raise RLRouteError(f"a fixed reference has no state, got keys {sorted(state)}")


class PercentileWindow:
    """Charges by their place between two percentiles of the last episodes' charges."""

    def __init__(self, config: PercentileWindowConfig) -> None:
        self._config = config
        self._charges: deque[float] = deque(maxlen=config.size)  # millionths of a USD

    def __len__(self) -> int:
        return len(self._charges)

    def push(self, charge_usd_N: FloatArray | UsdArray) -> None:
        """Let charges join the window, in their order; undefined ones do not.

        Raises:
            RLRouteError: a charge is negative or infinite.
        """
        charge_N = _check_charges(charge_usd_N) * MICRO
        self._charges.extend(charge_N[~np.isnan(charge_N)].tolist())

    def normalise(self, charge_usd_N: FloatArray | UsdArray, frozen: bool = False) -> FloatArray:
        """Return the cost rewards [N]; unless frozen, each charge joins the window before its own.

        Raises:
            RLRouteError: a charge is negative or infinite.
        """
        charges = (_check_charges(charge_usd_N) * MICRO).tolist()
        if frozen:
            return self._place(np.array(charges))
        rewards = np.full(len(charges), np.nan, dtype=np.float32)
        for row, charge in enumerate(charges):
            if not np.isnan(charge):
                self._charges.append(charge)
                rewards[row] = self._place(np.array(charge))
        return rewards

    def _place(self, charge: Float64Array) -> FloatArray:
        """Return the cost reward of charges in millionths of a USD, by the window as it is."""
        bounds = self._find_bounds()
        if bounds is None:
            return np.where(np.isnan(charge), np.nan, UNDECIDED).astype(np.float32)
        low, high = bounds
        share = (TRANSFORMS[self._config.transform](charge) - low) / (high - low)
        return np.asarray(1 - np.clip(share, 0, 1), dtype=np.float32)

    def _find_bounds(self) -> tuple[float, float] | None:
        """Return the transformed charges that earn 1 and 0; None while nothing can be told."""
        if len(self._charges) < 2:
            return None
        low, high = self._find_percentiles()
        return None if high - low < MIN_SPREAD else (low, high)

    def _find_percentiles(self) -> tuple[float, float]:
        """Return the low and the high percentile of the transformed charges in the window."""
        window = TRANSFORMS[self._config.transform](np.array(self._charges))
        low, high = np.percentile(window, [self._config.low, self._config.high])
        return float(low), float(high)

    def get_state(self) -> dict[str, Any]:
        """Return the charges in the window, oldest first, in millionths of a USD."""
        return {"charges_micro_usd": list(self._charges)}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore a window of the same size or a smaller one.

        Raises:
            RLRouteError: not a window's state, or more charges than the window holds.
        """
        charges = state.get("charges_micro_usd")
        if not isinstance(charges, list) or len(state) != 1:
            raise RLRouteError(f"not the state of a charge window: it has keys {sorted(state)}")
        if len(charges) > self._config.size:
            raise RLRouteError(
                f"the saved charge window holds {len(charges)} charges, this one "
                f"{self._config.size}"
            )
        _check_charges(np.array(charges, dtype=np.float64))
        self._charges = deque(map(float, charges), maxlen=self._config.size)


def build_normaliser(config: NormaliserConfig) -> ChargeNormaliser:
    """Return the normaliser that a recipe asks for."""
    if isinstance(config, FixedReferenceConfig):
        return FixedReference(config)
    return PercentileWindow(config)


def _check_charges(charge_N: npt.NDArray[np.floating[Any]]) -> Float64Array:
    """Return charges in double precision, none of them negative or infinite."""
    checked_N: Float64Array = np.asarray(charge_N, dtype=np.float64)
    wrong = checked_N[(checked_N < 0) | np.isinf(checked_N)]
    if wrong.size:
        raise RLRouteError(f"a charge must be 0 USD or more (NaN if undefined), not {wrong[0]}")
    return checked_N
