"""Whom an exported router decides for: ranges of weights, and users by name.

What it leaves out: the folder (`rlroute.export.bundle`) and the decision (`rlroute.router`).

How to use: `read_wishes(contents).find(0.1, None, None, ids)`.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from rlroute.config import StrictModel
from rlroute.data.users import Preference, Users, UserWeights, check_biases, make_bias
from rlroute.types import RLRouteError

if TYPE_CHECKING:
    from rlroute.export.bundle import BundleContents


class CostWeightRange(StrictModel):
    """The weights, of cost or of latency, that the policy was trained for."""

    min: float = Field(ge=0, allow_inf_nan=False)
    max: float = Field(ge=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def check_order(self) -> CostWeightRange:
        """Refuse an empty range."""
        if self.min > self.max:
            raise ValueError(f"min ({self.min:g}) is above max ({self.max:g})")
        return self


class PreferencesEntry(StrictModel):
    """Whom the policy was trained to decide for beside the cost weight.

    `latency_weight` is there where latency counts; `latency_derived` says that some latencies were
    derived from tokens, as the recipe declared. `users` are the named weights, those held out in
    training among them.
    """

    latency_weight: CostWeightRange | None = None
    latency_derived: bool = False
    users: Users = Field(default_factory=dict)


@dataclass(frozen=True)
class Wishes:
    """What a router was trained to decide for; without `timed` latency does not count."""

    cost_weights: tuple[float, float]
    latency_weights: tuple[float, float] = (0.0, 0.0)
    timed: bool = False
    users: Mapping[str, UserWeights] = field(default_factory=dict)

    def find(
        self,
        cost_weight: float,
        latency_weight: float | None,
        user: str | UserWeights | None,
        ids: Sequence[str],
    ) -> tuple[float, Preference]:
        """Return the cost weight and the rest of whom to decide for, among candidates `ids`.

        Raises:
            RLRouteError: an unknown user, what is no user, a user beside weights, or a weight
                outside its range.
        """
        bias_K = None
        if user is not None:
            if cost_weight != 0 or latency_weight is not None:
                raise RLRouteError("give a user or weights, not both: a user has weights")
            if not isinstance(user, str | UserWeights):
                raise RLRouteError(
                    f"user is a {type(user).__name__}: give the name of a user, or UserWeights"
                )
            weights = self.users.get(user) if isinstance(user, str) else user
            if weights is None:
                known = ", ".join(sorted(self.users)) or "nobody"
                raise RLRouteError(f"unknown user '{user}' (known: {known})")
            if not isinstance(user, str):  # who is named may favour a candidate that has left
                check_biases({"given": weights}, ids)
            cost_weight, latency_weight = weights.cost_weight, weights.latency_weight
            bias_K = make_bias(weights, ids) if weights.candidate_bias else None
        if latency_weight is None:
            latency_weight = self.latency_weights[0]
        if latency_weight != 0 and not self.timed:
            raise RLRouteError(
                f"latency_weight {latency_weight!r}: this router was trained without latencies "
                "(recipe: latency_weight.max)"
            )
        cost_weight = check_weight("cost_weight", cost_weight, self.cost_weights)
        latency_weight = check_weight("latency_weight", latency_weight, self.latency_weights)
        return cost_weight, Preference(latency_weight, bias_K)


def read_wishes(contents: BundleContents) -> Wishes:
    """Return what a bundle's policy was trained to decide for."""
    stated = contents.preferences or PreferencesEntry()
    latency = stated.latency_weight
    return Wishes(
        cost_weights=(contents.cost_weight_min, contents.cost_weight_max),
        latency_weights=(latency.min, latency.max) if latency else (0.0, 0.0),
        timed=contents.scale.latency_reference_seconds is not None,
        users=stated.users,
    )


def check_weight(name: str, weight: float, allowed: tuple[float, float]) -> float:
    """Return a weight that a router was trained for.

    Raises:
        RLRouteError: it lies outside, or is no number.
    """
    low, high = allowed
    if not isinstance(weight, numbers.Real) or not low <= weight <= high:
        raise RLRouteError(
            f"{name} {weight!r} lies outside what this router was trained for ({low:g} to {high:g})"
        )
    return float(weight)
