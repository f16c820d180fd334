"""What a world of relations is made of, as pydantic models; the world is `rlroute.pool.relations`.

What it leaves out: behaviour. How to use: `RelationsConfig(entities=12, seed=3)`.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, TypeAlias

from pydantic import Field, model_validator

from rlroute.config import StrictModel
from rlroute.pool.pool_file import Positive, PricesEntry
from rlroute.types import FailureKind

Rate: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Accuracy: TypeAlias = Annotated[float, Field(gt=0, le=1)]

# Short names, each one word; a world takes the first E of them.
NAMES: tuple[str, ...] = (
    *("Ada", "Bo", "Cy", "Dee", "Eli", "Fay", "Gus", "Hal", "Ida", "Jo", "Kit", "Lea"),
    *("Max", "Ned", "Ora", "Pam", "Quin", "Ray", "Sue", "Tom", "Una", "Vic", "Wes", "Zoe"),
    *("Amy", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gia", "Hugo", "Ivy", "Jack", "Kai", "Liv"),
    *("Mia", "Noah", "Olga", "Pete", "Rose", "Sam", "Tess", "Uma", "Vera", "Walt", "Xena", "Yan"),
)


class MemberSpec(StrictModel):
    """What all candidates of the world have.

    `accuracy` is the share of right answers among relations that are known; `failures` are rates by
    kind of failure (a dead candidate: `{server: 1.0}`); `measured` says whether the candidate has a
    profile, which one that has just appeared has not.
    """

    prices: PricesEntry
    accuracy: Accuracy = 1.0
    failures: dict[FailureKind, Rate] = Field(default_factory=dict)
    measured: bool = True

    @model_validator(mode="after")
    def check_rates(self) -> MemberSpec:
        """Refuse rates that exceed 1 together."""
        if sum(self.failures.values()) > 1:
            raise ValueError("failures: the rates must sum to at most 1")
        return self


class SpecialistSpec(MemberSpec):
    """A candidate that knows only some relations."""

    relations: tuple[str, ...] = Field(min_length=1)


class GeneralistSpec(MemberSpec):
    """A candidate that knows all relations, and errs."""

    accuracy: Annotated[float, Field(gt=0, lt=1)]


class LatencySpec(StrictModel):
    """How long replies take: log-normal in seconds, and a share of stragglers of a fixed time.

    Episodes really wait for `sleep_scale` times the latency; at 0 it is only reported.
    """

    median_seconds: Positive = 0.8
    sigma: float = Field(0.5, ge=0, allow_inf_nan=False)
    straggler_rate: Rate = 0.1
    straggler_seconds: Positive = 5.0
    sleep_scale: float = Field(0.0, ge=0, allow_inf_nan=False)

    @property
    def mean_seconds(self) -> float:
        """The mean latency."""
        usual = self.median_seconds * math.exp(self.sigma**2 / 2)
        return (1 - self.straggler_rate) * usual + self.straggler_rate * self.straggler_seconds


def make_prices(tokens: float, per_call: float) -> PricesEntry:
    """Return prices of USD per million words (in, and three times that out) and USD per call."""
    return PricesEntry(input=tokens, output=3 * tokens, per_call=per_call)


def make_specialists() -> dict[str, SpecialistSpec]:
    """Return the default specialists: accurate, at a middle price, two relations each."""
    prices = make_prices(1.0, 3e-4)
    return {
        "alpha": SpecialistSpec(relations=("boss", "friend"), prices=prices),
        "beta": SpecialistSpec(relations=("coach", "owner"), prices=prices),
    }


def make_generalists() -> dict[str, GeneralistSpec]:
    """Return the default generalists: a dear one that seldom errs, and a very cheap one."""
    return {
        "large": GeneralistSpec(accuracy=0.9, prices=make_prices(5.0, 1e-3)),
        "small": GeneralistSpec(accuracy=0.6, prices=make_prices(0.1, 2e-5)),
    }


class RelationsConfig(StrictModel):
    """The world: its size, its questions, and who can be asked.

    `entities` is their number E; `seed` decides facts, questions and replies. Questions have
    `min_hops` to `max_hops` hops, each number equally often. Fixed cost normalisers take
    `reference_usd`; where it is not stated, it is the charge of the dearest plan that is best when
    money does not count. `latency` is not simulated where it is None.
    """

    entities: int = Field(default=24, ge=2, le=len(NAMES))
    relations: tuple[str, ...] = ("boss", "friend", "coach", "owner", "heir", "guide")
    seed: int = 0
    min_hops: int = Field(default=1, ge=1)
    max_hops: int = Field(default=3, ge=1)
    specialists: dict[str, SpecialistSpec] = Field(default_factory=make_specialists)
    generalists: dict[str, GeneralistSpec] = Field(default_factory=make_generalists)
    reference_usd: Positive | None = None
    latency: LatencySpec | None = None

    @model_validator(mode="after")
    def check_world(self) -> RelationsConfig:
        """Refuse relations that are no distinct words, unknown ones, and impossible hops."""
        words = [relation.casefold() for relation in self.relations]
        if len(set(words)) < len(words) or not all(re.fullmatch("[a-z]+", word) for word in words):
            raise ValueError("relations: must be distinct words of the letters a to z")
        if not self.min_hops <= self.max_hops <= len(self.relations):
            raise ValueError("max_hops: must lie between min_hops and the number of relations")
        both = sorted(set(self.specialists) & set(self.generalists))
        if both:
            raise ValueError(f"generalists: '{both[0]}' is a specialist already")
        if not self.specialists and not self.generalists:
            raise ValueError("specialists: the world has no candidate")
        for name, spec in self.specialists.items():
            unknown = sorted(set(spec.relations) - set(self.relations))
            if unknown:
                known = ", ".join(self.relations)
                raise ValueError(f"specialists.{name}: unknown relation '{unknown[0]}' ({known})")
        return self
