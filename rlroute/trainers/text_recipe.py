"""The recipe of a text policy: everything that decides a multi-round run, as one strict model.

A text policy is a language model that writes its actions. Read with
`rlroute.config.load_config(TextRecipe, path, overrides)`; the run folder keeps it resolved.

What it leaves out: the recipe of decision policies (`rlroute.trainers.recipe`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlroute.config import StrictModel
from rlroute.data.questions import QuestionSetConfig
from rlroute.envs.multi_round import MultiRoundConfig
from rlroute.policies.language_model import LoraConfig, Precision
from rlroute.pool.relations_config import RelationsConfig
from rlroute.rewards.charge import FixedReferenceConfig
from rlroute.rewards.multi_round import MultiRoundRewardConfig
from rlroute.trainers.recipe import (
    NonNegative,
    OptimiserConfig,
    Positive,
    PositiveInt,
    TrackingConfig,
)

# --- Questions ------------------------------------------------------------------------------------


class RelationsQuestions(StrictModel):
    """Questions of the generated world (`rlroute.pool.relations`), which brings its own pool."""

    kind: Literal["relations"]
    train: PositiveInt = 4096
    val: PositiveInt = 120
    test: PositiveInt = 480
    world: RelationsConfig = RelationsConfig()


class QuestionSets(StrictModel):
    """Question answering sets of the hub or of a folder (`rlroute.data.questions`)."""

    kind: Literal["sets"]
    sets: QuestionSetConfig


# --- The policy -----------------------------------------------------------------------------------


class NewModelConfig(StrictModel):
    """A Llama made here with random weights, its tokenizer trained on demonstrations.

    It is for tests and laptops, and knows nothing before the warm start.
    """

    kind: Literal["new"]
    hidden: PositiveInt = 64
    layers: PositiveInt = 2
    heads: PositiveInt = 4
    vocabulary: int = Field(default=400, ge=300)


class PretrainedConfig(StrictModel):
    """A checkpoint folder, or a name on the hub."""

    kind: Literal["pretrained"]
    model: str = Field(min_length=1)


class TextPolicyConfig(StrictModel):
    """The language model; `precision` is that of its passes, trained weights stay float32."""

    base: Annotated[NewModelConfig | PretrainedConfig, Field(discriminator="kind")]
    precision: Precision = "bfloat16"
    lora: LoraConfig | None = None
    gradient_checkpointing: bool = False


class WarmStartConfig(StrictModel):
    """Supervised training on scripted episodes before reinforcement learning.

    `planner` writes them: `random` asks random candidates, `knowing` random ones among those that
    know the relation, `thrifty` of these the cheaper ones the more often the greater the cost
    weight is (all for the relations world), `delegating` hands the whole question to a random
    candidate and answers with its reply (for any questions).
    """

    planner: Literal["random", "knowing", "thrifty", "delegating"]
    episodes: PositiveInt = 4096
    epochs: PositiveInt = 1
    batch: PositiveInt = 32
    learning_rate: Positive = 1e-3


# --- Rollouts -------------------------------------------------------------------------------------


class TransformersSamplerConfig(StrictModel):
    """Generate with the trainer's own weights; no server, no weight transfer."""

    kind: Literal["transformers"] = "transformers"
    max_batch: PositiveInt = 128


class VllmSamplerConfig(StrictModel):
    """Generate on a vLLM server that gets the weights after every update.

    `sync`: nccl (GPUs; `nccl_address` and `nccl_port` are where the server's workers reach the
    trainer) or folder (a file system that trainer and server share; `folder` names it).
    After each update a probe prompt's log-probs may differ by `probe_tolerance` at most.
    """

    kind: Literal["vllm"]
    url: str
    served_model: str
    api_key_env: str | None = None
    sync: Literal["nccl", "folder"] = "nccl"
    folder: Path | None = None
    nccl_address: str = "127.0.0.1"
    nccl_port: int = Field(default=51216, ge=1, le=65535)
    probe_tolerance: Positive = 0.2
    concurrency: PositiveInt = 256
    timeout_seconds: Positive = 120.0

    @model_validator(mode="after")
    def check_folder(self) -> VllmSamplerConfig:
        """Refuse a folder where none is used, and none where one is needed."""
        if (self.sync == "folder") != (self.folder is not None):
            raise ValueError("sync: folder needs `folder`, and nothing else takes it")
        return self


class CorrectionConfig(StrictModel):
    """Importance weights between the trainer's and the sampler's log-probs.

    Weights above `cap` are cut to it (truncate) or zeroed (mask), per token or per episode.
    """

    level: Literal["token", "sequence"] = "token"
    mode: Literal["truncate", "mask"] = "truncate"
    cap: Positive = 2.0


class RolloutConfig(StrictModel):
    """How episodes are generated.

    A failed call ends its episode: `retry` starts it again `retries` times and then drops it from
    its group, `drop` drops it at once, `fail` stops the run. `correction: null` trains on the
    samples as they are. `max_new_tokens` bounds one piece of text, `context_tokens` the episode.
    """

    sampler: Annotated[TransformersSamplerConfig | VllmSamplerConfig, Field(discriminator="kind")]
    temperature: Positive = 1.0
    max_new_tokens: PositiveInt = 1024
    context_tokens: PositiveInt = 4096
    on_failure: Literal["retry", "drop", "fail"] = "retry"
    retries: int = Field(default=2, ge=0)
    concurrency: PositiveInt | None = None
    correction: CorrectionConfig | None = None


# --- Algorithms -----------------------------------------------------------------------------------


class TextAlgorithm(StrictModel):
    """What the algorithms share.

    `episodes` are collected per update over all processes. Each of `epochs` goes over them in
    `minibatches` optimiser steps; a process takes `micro_batch` episodes at a time. The loss is a
    mean over `token`s of the whole update, over the tokens of each `sequence` and then over
    episodes, or a sum divided by a `constant` (the greatest length). `kl_weight` weighs the k3
    estimate of KL(policy || reference), the reference being the policy before the first update.
    """

    episodes: PositiveInt = 64
    micro_batch: PositiveInt = 8
    epochs: PositiveInt = 1
    minibatches: PositiveInt = 1
    clip_range: Positive = 0.2
    clip_range_high: Positive | None = None
    entropy_weight: NonNegative = 0.0
    kl_weight: NonNegative = 0.0
    loss: Literal["token", "sequence", "constant"] = "token"

    @property
    def steps_per_update(self) -> int:
        """Optimiser steps per update."""
        return self.epochs * self.minibatches


class TextGroupAlgorithm(TextAlgorithm):
    """What the group-relative algorithms share."""

    group_size: int = Field(default=8, ge=2)

    @model_validator(mode="after")
    def check_groups(self) -> TextGroupAlgorithm:
        """Refuse a number of episodes that leaves a group incomplete."""
        if self.episodes % self.group_size:
            raise ValueError(
                f"episodes ({self.episodes}) must be a multiple of group_size ({self.group_size})"
            )
        return self


class TextGRPOConfig(TextGroupAlgorithm):
    """Group-relative policy optimisation.

    `scale_by_std` divides by the group's standard deviation. `normalise_terms` standardises each
    reward term in its group before they are summed by their weights (GDPO; Liu et al., 2026).
    """

    kind: Literal["grpo"]
    scale_by_std: bool = True
    normalise_terms: bool = False


class TextRLOOConfig(TextGroupAlgorithm):
    """REINFORCE with a leave-one-out baseline, under the same clipped surrogate."""

    kind: Literal["rloo"]


class TextPPOConfig(TextAlgorithm):
    """Proximal policy optimisation with a value head on the policy's backbone.

    Advantages run over the policy's tokens only: text of the environment is one transition. With
    `kl_in_reward` the KL to the reference is charged per token in the reward instead of the loss.
    `share_backbone` lets the value loss move the backbone too, not the value head alone.
    """

    kind: Literal["ppo"]
    discount: float = Field(default=1.0, ge=0, le=1)
    gae_lambda: float = Field(default=1.0, ge=0, le=1)
    value_weight: NonNegative = 0.5
    value_clip: Positive | None = None
    value_learning_rate: Positive = 1e-3
    share_backbone: bool = False
    kl_in_reward: bool = False
    normalise_advantages: bool = True

    @model_validator(mode="after")
    def check_kl(self) -> TextPPOConfig:
        """Refuse a KL in the reward that weighs nothing: there would be no reference for it."""
        if self.kl_in_reward and self.kl_weight == 0:
            raise ValueError("kl_in_reward: kl_weight must be above 0")
        return self

    @property
    def group_size(self) -> int:
        """Episodes that are compared with each other: none, the critic is the baseline."""
        return 1


TextAlgorithmConfig = Annotated[
    TextGRPOConfig | TextRLOOConfig | TextPPOConfig, Field(discriminator="kind")
]


class TextValidationConfig(StrictModel):
    """Greedy episodes on val every `every` updates; the best mean reward keeps its weights.

    `cost_weights` are those measured; null takes the environment's own.
    """

    every: PositiveInt = 10
    questions: PositiveInt = 120
    cost_weights: tuple[Annotated[float, Field(ge=0, le=1)], ...] | None = None


class TextRecipe(StrictModel):
    """A run of the text trainer on the multi-round environment."""

    environment: Literal["multi_round"]
    seed: Annotated[int, Field(ge=0)] = 0
    updates: PositiveInt = 100
    questions: Annotated[RelationsQuestions | QuestionSets, Field(discriminator="kind")]
    pool: Path | None = None
    episode: MultiRoundConfig = MultiRoundConfig()
    reward: MultiRoundRewardConfig
    policy: TextPolicyConfig
    warm_start: WarmStartConfig | None = None
    rollout: RolloutConfig
    algorithm: TextAlgorithmConfig
    optimiser: OptimiserConfig = OptimiserConfig(learning_rate=1e-6)
    warmup_updates: int = Field(default=0, ge=0)
    validation: TextValidationConfig = TextValidationConfig()
    checkpoint_every: PositiveInt = 15
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def check_parts(self) -> TextRecipe:
        """Refuse parts that do not go together."""
        relations = isinstance(self.questions, RelationsQuestions)
        if relations == (self.pool is not None):
            raise ValueError("pool: question sets need a pool file, the relations world takes none")
        if self.warm_start and self.warm_start.planner != "delegating" and not relations:
            raise ValueError(
                f"warm_start.planner: '{self.warm_start.planner}' knows the relations world only; "
                "use delegating"
            )
        if isinstance(self.questions, RelationsQuestions):
            stated, normaliser = self.questions.world.reference_usd, self.reward.normaliser
            if isinstance(normaliser, FixedReferenceConfig) and stated != normaliser.reference_usd:
                raise ValueError(
                    f"questions.world.reference_usd ({stated}) must be the normaliser's "
                    f"({normaliser.reference_usd}): the optimum is reckoned with it"
                )
        if isinstance(self.policy.base, NewModelConfig) and self.warm_start is None:
            raise ValueError("warm_start: a new model knows nothing before one")
        if self.algorithm.episodes % 2:
            raise ValueError(f"algorithm.episodes must be even, not {self.algorithm.episodes}")
        if self.rollout.context_tokens <= self.rollout.max_new_tokens:
            raise ValueError("rollout.context_tokens must be above rollout.max_new_tokens")
        return self
