"""The recipe of a stream on which online learners are compared, as one strict model.

What it leaves out: behaviour (`rlroute.trainers.bandit_run`). How to use:
`load_config(BanditRecipe, Path("recipes/bandits/pocket.yaml"), overrides)`.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlroute.bandits.config import (
    AnyLearnerConfig,
    AvailabilityConfig,
    EpsilonGreedyConfig,
    EventConfig,
    LeaderConfig,
    LinearEpsilonGreedyConfig,
    LinearThompsonConfig,
    LinUCBConfig,
    OnlinePPOConfig,
    RandomConfig,
)
from rlroute.config import StrictModel
from rlroute.data.encoders import EncoderConfig, TfidfConfig
from rlroute.data.irt_table import IrtTableConfig
from rlroute.data.routing_data import ProfileConfig
from rlroute.envs.single_turn import CostWeightConfig
from rlroute.trainers.recipe import PositiveInt, TrackingConfig

ALL_LEARNERS: tuple[AnyLearnerConfig, ...] = (
    LinUCBConfig(kind="linucb"),
    LinearThompsonConfig(kind="linear_thompson"),
    LinearEpsilonGreedyConfig(kind="linear_epsilon_greedy"),
    OnlinePPOConfig(kind="ppo"),
    EpsilonGreedyConfig(kind="epsilon_greedy"),
    LeaderConfig(kind="leader"),
    RandomConfig(kind="random"),
)


class StreamConfig(StrictModel):
    """The stream: `queries` arrivals, drawn from one split of the table or from all of it."""

    queries: PositiveInt = 20_000
    split: Literal["all", "train", "val", "test"] = "all"


class BanditRecipe(StrictModel):
    """Learners that meet the same streams, one for each seed.

    Outcomes come from `table`, or from a made table with a known optimum (`irt`). A made one
    brings its own features; `encoder` is for others. `context` is the number of principal
    components that linear learners see, `window` the number of queries behind a running share. The
    state of a learner is written every `checkpoint_every` queries.
    """

    environment: Literal["bandit_stream"]
    table: str | None = None
    irt: IrtTableConfig | None = None
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(0,), min_length=1)
    stream: StreamConfig = StreamConfig()
    events: tuple[EventConfig, ...] = ()
    encoder: EncoderConfig = TfidfConfig()
    context: PositiveInt = 64
    profile: ProfileConfig = ProfileConfig()
    cost_weight: CostWeightConfig = CostWeightConfig(min=0.1, max=0.1)
    availability: AvailabilityConfig = AvailabilityConfig()
    learners: tuple[AnyLearnerConfig, ...] = Field(default=ALL_LEARNERS, min_length=1)
    window: PositiveInt = 500
    checkpoint_every: PositiveInt = 5000
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def check_source(self) -> BanditRecipe:
        """Refuse two sources of outcomes, or none."""
        if (self.table is None) == (self.irt is None):
            raise ValueError("give either table (a folder or a shipped name) or irt (a made one)")
        if self.irt is not None and self.encoder != TfidfConfig():
            raise ValueError("encoder: a made table (irt) brings its features; leave encoder out")
        return self

    @model_validator(mode="after")
    def check_names(self) -> BanditRecipe:
        """Refuse learners of one name, and a seed that is given twice."""
        counts = Counter(name_learner(learner) for learner in self.learners)
        twice = [name for name, count in counts.items() if count > 1]
        if twice:
            raise ValueError(f"learners: two are called '{twice[0]}'; give each its own name")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: one is given twice")
        return self


def name_learner(config: AnyLearnerConfig) -> str:
    """Return what a learner is called in files and reports."""
    return config.name or config.kind
