"""Settings of online learners, of what happens on a stream, and of who is taken to answer.

What it leaves out: the recipe around them (`rlroute.trainers.bandit_recipe`) and all behaviour.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from rlroute.config import StrictModel
from rlroute.types import RLRouteError

Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(ge=1)]
LearnerName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=60)]


class AvailabilityConfig(StrictModel):
    """How long a candidate rests after a failure (in queries), and how fast that grows."""

    rest: PositiveInt = 20
    growth: float = Field(default=2.0, ge=1, le=10)


# --- Events ---------------------------------------------------------------------------------------


class Event(StrictModel):
    """Something that happens to a candidate just before query `at` of the stream (from 0)."""

    candidate: str
    at: PositiveInt


class DiesConfig(Event):
    """From `at` on every call of the candidate fails; `billed` is the part of its price charged."""

    kind: Literal["dies"]
    billed: Share = 0.0


class JoinsConfig(Event):
    """The candidate may be picked from `at` on, and not before."""

    kind: Literal["joins"]


class RepricesConfig(Event):
    """From `at` on the candidate costs `factor` times what it did at first; prices are public."""

    kind: Literal["reprices"]
    factor: Positive


EventConfig = Annotated[DiesConfig | JoinsConfig | RepricesConfig, Field(discriminator="kind")]


# --- Learners -------------------------------------------------------------------------------------


class LearnerConfig(StrictModel):
    """What all learners state; `name` tells two of a kind apart (default: the kind)."""

    name: LearnerName | None = None


class RandomConfig(LearnerConfig):
    """Any allowed candidate."""

    kind: Literal["random"]


class AlwaysConfig(LearnerConfig):
    """One candidate throughout, the next best where it may not be picked.

    The order is that of the mean utility over the whole stream, after `candidate` if one is named:
    a control that knows the future.
    """

    kind: Literal["always"]
    candidate: str | None = None


class LeaderConfig(LearnerConfig):
    """Follow the leader."""

    kind: Literal["leader"]


class EpsilonGreedyConfig(LearnerConfig):
    """Epsilon-greedy without contexts; GreenServ's constants."""

    kind: Literal["epsilon_greedy"]
    start: Share = 1.0
    floor: Share = 0.01
    decay: Decay = 0.98


class LinUCBConfig(LearnerConfig):
    """LinUCB; GreenServ's constants."""

    kind: Literal["linucb"]
    alpha: NonNegative = 0.1
    ridge: Positive = 0.05


class LinearEpsilonGreedyConfig(LearnerConfig):
    """Linear epsilon-greedy; GreenServ's constants."""

    kind: Literal["linear_epsilon_greedy"]
    ridge: Positive = 0.25
    start: Share = 1.0
    floor: Share = 0.01
    decay: Decay = 0.985


class LinearThompsonConfig(LearnerConfig):
    """Linear Thompson sampling; GreenServ's constants, both variances."""

    kind: Literal["linear_thompson"]
    noise: Positive = 0.25
    prior_variance: Positive = 2.0


class OnlinePPOConfig(LearnerConfig):
    """The candidate-scoring network, trained by PPO on its own picks.

    A new candidate gets `probes` forced picks, from which its profile is measured. Every `episodes`
    picks there is one update of `epochs` passes in `minibatches` parts. The other settings are
    those of the single-turn trainer; what differs was chosen on a made table.
    """

    kind: Literal["ppo"]
    probes: PositiveInt = 20
    episodes: PositiveInt = 128
    epochs: PositiveInt = 4
    minibatches: PositiveInt = 2
    clip_range: Positive = 0.2
    target_kl: Positive | None = 0.05
    entropy_weight: NonNegative = 0.02
    learning_rate: Positive = 2e-4
    hidden: PositiveInt = 256
    dropout: float = Field(default=0.5, ge=0, lt=1)
    sharpness: Positive = 20.0


AnyLearnerConfig = Annotated[
    RandomConfig
    | AlwaysConfig
    | LeaderConfig
    | EpsilonGreedyConfig
    | LinUCBConfig
    | LinearEpsilonGreedyConfig
    | LinearThompsonConfig
    | OnlinePPOConfig,
    Field(discriminator="kind"),
]


def check_learners(learners: Sequence[AnyLearnerConfig], candidate_ids: Sequence[str]) -> None:
    """Check that who is always asked is there.

    Raises:
        RLRouteError: a learner names an unknown candidate.
    """
    for learner in learners:
        if not isinstance(learner, AlwaysConfig) or learner.candidate is None:
            continue
        if learner.candidate not in candidate_ids:
            raise RLRouteError(
                f"learners: no candidate '{learner.candidate}' "
                f"(the table has: {', '.join(candidate_ids)})"
            )
