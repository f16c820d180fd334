"""From format, outcome and cost to one reward: gated, additive, multiplicative.

With a = cost weight in [0, 1], format <= 0, outcome in [0, 1], cost in [0, 1] where 1 is cheap; a
broken format (below 0) is the whole reward, in every form. Otherwise:

    gated           outcome 0: 0;  else (1 - a) * outcome + a * cost
    additive        (1 - a) * outcome + a * cost
    multiplicative  outcome * (ceiling - a * cap * (1 - cost))

Gated is what Router-R1's program does, additive what its paper states: there a wrong and cheap
answer earns a * cost. Multiplicative is xRouter's score * (K - min(lambda * usd, cap)) with K the
ceiling, a = 1, and the cost by a fixed linear reference of cap / lambda USD; xRouter has no format
term.

All three are a weighted sum, once each term is cancelled where it earns nothing (`cancel_terms`),
so that terms can also be normalised apart before they are added. An undefined term (NaN) makes the
reward undefined.

Sources: Router-R1 (Zhang et al., 2025, arXiv 2506.09033), xRouter (arXiv 2510.08439).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from rlroute.config import StrictModel
from rlroute.types import FloatArray, RLRouteError

Combination = Literal["gated", "additive", "multiplicative"]
Float64Array = npt.NDArray[np.float64]


class MultiplicativeConfig(StrictModel):
    """What a right answer earns if it is free (`ceiling`), and the most that cost takes (`cap`)."""

    ceiling: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    cap: float = Field(default=0.8, ge=0)

    @model_validator(mode="after")
    def _check_cap(self) -> MultiplicativeConfig:
        if self.cap > self.ceiling:
            raise ValueError(f"cap ({self.cap}) must not exceed ceiling ({self.ceiling})")
        return self


def cancel_terms(
    terms: Mapping[str, FloatArray], combination: Combination
) -> dict[str, Float64Array]:
    """Return "format", "outcome" and "cost" [N] with 0 where a term earns nothing.

    The reward is their sum by the weights of `weigh_terms`.
    """
    format_N, outcome_N, cost_N = (
        np.asarray(terms[name], dtype=np.float64) for name in ("format", "outcome", "cost")
    )
    intact_N = (format_N >= 0).astype(np.float64)  # products: 0 * NaN stays undefined
    if combination == "gated":
        earned_N = (outcome_N > 0).astype(np.float64)
    else:
        earned_N = outcome_N if combination == "multiplicative" else np.ones_like(outcome_N)
    return {
        "format": format_N,
        "outcome": outcome_N * intact_N,
        "cost": cost_N * earned_N * intact_N,
    }


def weigh_terms(
    cost_weight_N: FloatArray, combination: Combination, constants: MultiplicativeConfig
) -> dict[str, Float64Array]:
    """Return the weights of the cancelled terms [N]; `constants` belong to multiplicative.

    Raises:
        RLRouteError: a cost weight outside [0, 1].
    """
    weight_N = np.asarray(cost_weight_N, dtype=np.float64)
    wrong = weight_N[~((weight_N >= 0) & (weight_N <= 1))]
    if wrong.size:
        raise RLRouteError(f"a cost weight must lie in [0, 1], not {wrong.flat[0]}")
    weights = {"format": np.ones_like(weight_N), "outcome": 1 - weight_N, "cost": weight_N}
    if combination == "multiplicative":
        weights["cost"] = weight_N * constants.cap
        weights["outcome"] = constants.ceiling - weights["cost"]
    return weights


def combine_terms(
    terms: Mapping[str, FloatArray],
    cost_weight_N: FloatArray,
    combination: Combination,
    constants: MultiplicativeConfig,
) -> FloatArray:
    """Return the reward [N] of "format", "outcome" and "cost"; NaN where one of them is.

    Raises:
        RLRouteError: a cost weight outside [0, 1].
    """
    weights = weigh_terms(cost_weight_N, combination, constants)
    kept = cancel_terms(terms, combination)
    return np.asarray(sum(weights[name] * kept[name] for name in kept), dtype=np.float32)
