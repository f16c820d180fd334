"""The recipe of a decision policy: everything that decides a run, as one strict model.

Read with `rlroute.config.load_config(Recipe, path, overrides)`; the run folder keeps it resolved.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rlroute.config import StrictModel
from rlroute.data.encoders import EncoderConfig, TfidfConfig
from rlroute.data.routing_data import ProfileConfig
from rlroute.data.task_splits import SplitConfig, TableSplitConfig
from rlroute.envs.single_turn import CostWeightConfig

PositiveInt = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Decay = Literal["none", "linear"]
ValidationMetric = Literal["aiq", "quality", "utility"]


class PolicyConfig(StrictModel):
    """The candidate-scoring network; see `rlroute.policies.mlp`."""

    kind: Literal["mlp"] = "mlp"
    hidden: PositiveInt = 256
    dropout: float = Field(default=0.5, ge=0, lt=1)
    sharpness: Positive = 10.0


class ClippedAlgorithm(StrictModel):
    """What the algorithms with a clipped surrogate share.

    `episodes` are collected per update over all processes; each epoch goes over them in
    `minibatches` parts. Above `target_kl` (k3 estimate, nats) the update stops early; null never.
    """

    episodes: PositiveInt = 4096
    epochs: PositiveInt = 4
    minibatches: PositiveInt = 2
    clip_range: Positive = 0.2
    entropy_weight: NonNegative = 0.0
    entropy_decay: Decay = "linear"
    target_kl: Positive | None = 0.05


class PPOConfig(ClippedAlgorithm):
    """Proximal policy optimisation with a critic and generalised advantage estimates."""

    kind: Literal["ppo"]
    discount: float = Field(default=1.0, ge=0, le=1)
    gae_lambda: float = Field(default=1.0, ge=0, le=1)
    value_weight: NonNegative = 0.5
    normalise_advantages: bool = True

    @property
    def group_size(self) -> int:
        """Episodes that are compared with each other: none, the critic is the baseline."""
        return 1


class GroupAlgorithm(ClippedAlgorithm):
    """What the group-relative algorithms share."""

    group_size: int = Field(default=8, ge=2)

    @model_validator(mode="after")
    def check_groups(self) -> GroupAlgorithm:
        """Refuse a number of episodes that leaves a group incomplete."""
        if self.episodes % self.group_size:
            raise ValueError(
                f"episodes ({self.episodes}) must be a multiple of group_size ({self.group_size})"
            )
        return self


class GRPOConfig(GroupAlgorithm):
    """Group-relative policy optimisation.

    `scale_by_std` divides by the group's standard deviation. It is off by default: where all
    members of a group score alike, cost is all that differs, and the division blows it up to full
    size.
    """

    kind: Literal["grpo"]
    scale_by_std: bool = False


class RLOOConfig(GroupAlgorithm):
    """REINFORCE with a leave-one-out baseline, under the same clipped surrogate."""

    kind: Literal["rloo"]


class ExpectedGradientConfig(StrictModel):
    """The exact expected policy gradient; needs full feedback, one step per `queries` queries."""

    kind: Literal["expected_gradient"]
    queries: PositiveInt = 512
    entropy_weight: NonNegative = 0.0
    entropy_decay: Decay = "linear"

    @property
    def episodes(self) -> int:
        """Episodes per update: one for each query."""
        return self.queries

    @property
    def group_size(self) -> int:
        """Episodes that are compared with each other: none, all outcomes are known."""
        return 1


AlgorithmConfig = Annotated[
    PPOConfig | GRPOConfig | RLOOConfig | ExpectedGradientConfig, Field(discriminator="kind")
]


class OptimiserConfig(StrictModel):
    """AdamW; `decay: linear` takes the learning rate to 0 over the run."""

    learning_rate: Positive = 5e-4
    weight_decay: NonNegative = 0.0
    max_grad_norm: Positive = 1.0
    decay: Decay = "none"


class ValidationConfig(StrictModel):
    """How the best checkpoint is chosen: every `every` updates, by `metric` on the val split.

    `cost_weights` is the number of weights in the sweep, 0 and a geometric grid up to the maximum.
    """

    metric: ValidationMetric = "aiq"
    every: PositiveInt = 5
    cost_weights: int = Field(default=25, ge=2)


class EvaluationConfig(StrictModel):
    """The final comparison on the test split."""

    cost_weights: int = Field(default=41, ge=2)
    bootstrap: PositiveInt = 1000


class TrackingConfig(StrictModel):
    """Weights & Biases: online where a key is set, offline in the run folder otherwise."""

    wandb: bool = True
    project: str = "rlroute"


class Recipe(StrictModel):
    """A run of the decision trainer on the single-turn environment."""

    environment: Literal["single_turn"] = "single_turn"
    table: str
    seed: Annotated[int, Field(ge=0)] = 0
    updates: PositiveInt = 100
    split: SplitConfig = TableSplitConfig()
    encoder: EncoderConfig = TfidfConfig()
    profile: ProfileConfig = ProfileConfig()
    cost_weight: CostWeightConfig = CostWeightConfig()
    policy: PolicyConfig = PolicyConfig()
    algorithm: AlgorithmConfig
    optimiser: OptimiserConfig = OptimiserConfig()
    validation: ValidationConfig = ValidationConfig()
    checkpoint_every: PositiveInt = 20
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="before")
    @classmethod
    def name_default_encoder(cls, data: Any) -> Any:
        """Read `encoder` settings without a kind as those of the default encoder."""
        encoder = data.get("encoder") if isinstance(data, dict) else None
        if isinstance(encoder, dict) and "kind" not in encoder:
            return {**data, "encoder": {"kind": "tfidf", **encoder}}
        return data

    @model_validator(mode="after")
    def check_range(self) -> Recipe:
        """Refuse a cost weight that is always 0: there would be nothing to trade."""
        if self.cost_weight.max <= 0:
            raise ValueError("cost_weight.max must be above 0")
        return self
