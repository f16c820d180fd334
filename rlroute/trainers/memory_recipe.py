"""The recipe of memory-tier routing: everything that decides a run, as one strict model.

Read with `rlroute.config.load_config(MemoryRecipe, path, overrides)`; the run folder keeps it
resolved. What it leaves out: behaviour (`rlroute.trainers.memory_run`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlroute.config import StrictModel
from rlroute.data.encoders import EncoderConfig, TfidfConfig
from rlroute.envs.single_turn import CostWeightConfig
from rlroute.memory.config import PipelineConfig
from rlroute.memory.datasets import MemoryDataConfig
from rlroute.memory.open import MemoryModelsConfig
from rlroute.policies.tier_profiles import TierProfileConfig
from rlroute.policies.tier_scorer import Extras, Head
from rlroute.rewards.memory import MemoryRewardConfig
from rlroute.trainers.recipe import (
    Decay,
    GRPOConfig,
    NonNegative,
    OptimiserConfig,
    Positive,
    PositiveInt,
    PPOConfig,
    RLOOConfig,
    TrackingConfig,
)


class TierPolicyConfig(StrictModel):
    """The network of `rlroute.policies.tier_scorer`.

    The source's: `head: outputs, read_extras: none, unit_variance: false`. With `profiles` the
    policy starts from what all assignments of tiers got on similar train questions.
    """

    kind: Literal["mlp"] = "mlp"
    hidden: PositiveInt = 256
    action_hidden: PositiveInt = 128
    head: Head = "described"
    read_extras: Extras = "all"
    unit_variance: bool = True
    profiles: TierProfileConfig | None = None


class MemoryPPOConfig(PPOConfig):
    """PPO over the decisions of an episode.

    `credit: decision` gives every decision its own ratio and its own value (GAE over the modules).
    `credit: joint` is the source's: one ratio over all decisions of an episode, and the first
    state's value as the only baseline. `value_clip` holds values near the old ones; null does not.
    """

    credit: Literal["decision", "joint"] = "decision"
    episodes: PositiveInt = 512
    minibatches: PositiveInt = 4
    entropy_weight: NonNegative = 0.01
    entropy_decay: Decay = "linear"
    value_clip: Positive | None = None


class MemoryGRPOConfig(GRPOConfig):
    """GRPO over whole episodes of a question."""

    episodes: PositiveInt = 512


class MemoryRLOOConfig(RLOOConfig):
    """REINFORCE with a leave-one-out baseline over whole episodes of a question."""

    episodes: PositiveInt = 512


MemoryAlgorithmConfig = Annotated[
    MemoryPPOConfig | MemoryGRPOConfig | MemoryRLOOConfig, Field(discriminator="kind")
]


class TabulatedConfig(StrictModel):
    """Every choice of tiers is run once per question and kept as arrays, in `folder` or the run.

    `store` keeps the module runs themselves, for trees that are made in several sittings.
    """

    kind: Literal["tabulated"] = "tabulated"
    folder: Path | None = None
    store: Path | None = None


class LiveConfig(StrictModel):
    """The pipeline runs during training; what ran once is kept in `store` or the run folder."""

    kind: Literal["live"]
    store: Path | None = None


OutcomesConfig = Annotated[TabulatedConfig | LiveConfig, Field(discriminator="kind")]


class SliceConfig(StrictModel):
    """How many questions of each split are used, the first of an even spread; null is all."""

    train: PositiveInt | None = None
    val: PositiveInt | None = None
    test: PositiveInt | None = None


class MemoryValidationConfig(StrictModel):
    """How the best weights are chosen: every `every` updates, on val.

    `utility` is the mean over `cost_weights` weights of score less weighted cost (in units of the
    dearest static choice), `aiq` the mean quality over the costs that the frontier spans. With
    `start` what the policy starts from counts too, and is kept where no update is better.
    """

    metric: Literal["utility", "aiq"] = "utility"
    every: PositiveInt = 10
    start: bool = False
    cost_weights: int = Field(default=9, ge=2)


class MemoryEvaluationConfig(StrictModel):
    """The final comparison on the test questions."""

    cost_weights: int = Field(default=17, ge=2)
    bootstrap: PositiveInt = 1000
    examples: int = Field(default=10, ge=0)


class MemoryRecipe(StrictModel):
    """A run of the decision trainer on memory tiers.

    `encoder` turns questions, chunks and notes into what the policy reads; it is fitted on the
    training histories. Before anything is learnt the tiers are audited on `audit_questions`
    training questions: tiers that do not differ are refused.
    """

    environment: Literal["memory_tiers"]
    data: MemoryDataConfig
    questions: SliceConfig = SliceConfig()
    models: MemoryModelsConfig
    pipeline: PipelineConfig
    outcomes: OutcomesConfig = TabulatedConfig()
    encoder: EncoderConfig = TfidfConfig(dimension=128)
    audit_questions: PositiveInt = 40
    seed: Annotated[int, Field(ge=0)] = 0
    updates: PositiveInt = 200
    cost_weight: CostWeightConfig = CostWeightConfig()
    reward: MemoryRewardConfig = MemoryRewardConfig()
    policy: TierPolicyConfig = TierPolicyConfig()
    algorithm: MemoryAlgorithmConfig
    optimiser: OptimiserConfig = OptimiserConfig(learning_rate=3e-4)
    validation: MemoryValidationConfig = MemoryValidationConfig()
    checkpoint_every: PositiveInt = 50
    evaluation: MemoryEvaluationConfig = MemoryEvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def check_inputs(self) -> MemoryRecipe:
        """Refuse a policy that cannot see a cost weight that varies."""
        weights = self.cost_weight
        if self.policy.read_extras == "none" and weights.min != weights.max:
            raise ValueError(
                "policy.read_extras: none hides the cost weight; give cost_weight.min = max"
            )
        return self

    @model_validator(mode="after")
    def check_profiles(self) -> MemoryRecipe:
        """Refuse to start from profiles that cannot be measured or read."""
        if self.policy.profiles is None:
            return self
        if isinstance(self.outcomes, LiveConfig):
            raise ValueError(
                "policy.profiles: are measured on a tree of all outcomes, and outcomes are live; "
                "give outcomes.kind: tabulated, or leave the profiles out"
            )
        if self.policy.read_extras == "none":
            raise ValueError("policy.profiles: need the cost weight; give read_extras: all")
        return self
