"""Users: named weights of cost and latency, and a liking for candidates.

A user's utility of an outcome is

    score - cost weight * normalised cost - latency weight * normalised latency + bias(candidate)

PersonalizedRouter's `w * effect - (1 - w) * cost` is the same order of preference at the cost
weight (1 - w) / w; see `from_effect_weight`.

What it leaves out: how a policy learns to serve them (`rlroute.envs.preferences`), and users whose
weights nobody knows (`rlroute.evaluation.user_estimation`).

How to use: `users: users.yaml` in a recipe, or the same mapping inline:

    ada: {cost_weight: 0.2}
    ben: {cost_weight: 1.0, latency_weight: 0.5, candidate_bias: {small-model: 0.05}}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from rlroute.config import StrictModel, read_yaml_mapping
from rlroute.types import FloatArray, RLRouteError

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Bias = Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)]


class UserWeights(StrictModel):
    """What one user weighs: quality given up per unit of cost and of latency.

    `candidate_bias` is utility that the user adds to a candidate, by id; the others have 0.
    """

    cost_weight: Weight
    latency_weight: Weight = 0.0
    candidate_bias: dict[str, Bias] = Field(default_factory=dict)


Users = dict[str, UserWeights]


def from_effect_weight(weight: float) -> UserWeights:
    """Return the user who ranks outcomes as `weight * effect - (1 - weight) * cost` does.

    Raises:
        RLRouteError: the weight does not lie above 0 and up to 1.
    """
    if not 0 < weight <= 1:
        raise RLRouteError(f"the weight of the effect must lie above 0 and up to 1, not {weight}")
    return UserWeights(cost_weight=(1 - weight) / weight)


def read_users(path: Path) -> dict[str, Any]:
    """Read a YAML file of users: a mapping of names to weights, checked.

    Raises:
        RLRouteError: the file cannot be read, or an entry is no user; the line names it.
    """
    data = read_yaml_mapping(path)
    try:
        TypeAdapter(Users).validate_python(data)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise RLRouteError(f"{path}: {where}: {fault['msg']}") from None
    return data


def make_bias(user: UserWeights, candidate_ids: Sequence[str]) -> FloatArray:
    """Return a user's liking of each candidate [K]."""
    return np.array([user.candidate_bias.get(one, 0.0) for one in candidate_ids], np.float32)


def check_biases(users: Mapping[str, UserWeights], candidate_ids: Sequence[str]) -> None:
    """Check that users favour candidates that there are.

    Raises:
        RLRouteError: one names another.
    """
    for name, user in users.items():
        unknown = sorted(set(user.candidate_bias) - set(candidate_ids))
        if unknown:
            raise RLRouteError(
                f"users.{name}.candidate_bias: unknown candidate '{unknown[0]}' "
                f"(there are: {', '.join(candidate_ids)})"
            )


@dataclass(frozen=True)
class Preference:
    """Whom a policy decides for: a weight of latency, and a liking of each candidate, or none."""

    latency_weight: float = 0.0
    bias_K: FloatArray | None = None

    def repeat(self, rows: int, *, latency: bool) -> tuple[FloatArray | None, FloatArray | None]:
        """Return it once per row, as a policy reads it; `latency` says whether it weighs latency.

        Raises:
            ValueError: it does not, and there is a weight.
        """
        if self.latency_weight and not latency:
            raise ValueError("a latency weight for a policy that weighs no latency")
        weight_B = np.full(rows, self.latency_weight, np.float32) if latency else None
        bias_BK = None if self.bias_K is None else np.tile(self.bias_K, (rows, 1))
        return weight_B, bias_BK


ANYBODY = Preference()


def make_preference(user: UserWeights, candidate_ids: Sequence[str]) -> Preference:
    """Return whom a policy decides for when it decides for a user."""
    bias_K = make_bias(user, candidate_ids) if user.candidate_bias else None
    return Preference(user.latency_weight, bias_K)
