"""The recipe of a decision policy: everything that decides a run, as one strict model.

Read with `rlroute.config.load_config(Recipe, path, overrides)`; the run folder keeps it resolved.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rlroute.config import StrictModel
from rlroute.data.actions import Actions
from rlroute.data.encoders import EncoderConfig, TfidfConfig
from rlroute.data.latencies import LatencyConfig
from rlroute.data.logs import LogsConfig
from rlroute.data.profile_calls import Design
from rlroute.data.route_profiles import ProfileSwitches
from rlroute.data.routing_data import ProfileConfig
from rlroute.data.task_splits import SplitConfig, TableSplitConfig
from rlroute.data.users import Users, read_users
from rlroute.envs.preferences import LatencyWeightConfig, Preferences
from rlroute.envs.single_turn import CostWeightConfig
from rlroute.policies.kernel_start import KernelConfig
from rlroute.policies.margin import MarginConfig
from rlroute.trainers.recipe_checks import (
    check_held_out,
    check_latency,
    check_logs,
    check_surroundings,
    check_users,
)

PositiveInt = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Decay = Literal["none", "linear"]
ValidationMetric = Literal["aiq", "quality", "utility"]


class PolicyConfig(StrictModel):
    """The candidate-scoring network; see `rlroute.policies.mlp`.

    It starts from the candidates' means per query cluster, with `kernel` from the middle of these
    and a kernel ridge regression (`rlroute.policies.kernel_start`). `margin` is how much better
    than the best single candidate another one must look in validation and service; `unseen_tasks`
    measures it so that tasks never seen come to no harm (`rlroute.policies.margin`).
    """

    kind: Literal["mlp"] = "mlp"
    hidden: PositiveInt = 256
    dropout: float = Field(default=0.5, ge=0, lt=1)
    sharpness: Positive = 10.0
    kernel: KernelConfig | None = None
    margin: MarginConfig = 0.0


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


class TableGRPOConfig(GRPOConfig):
    """GRPO on an outcome table.

    `group_size` episodes of a query are the policy's own. With `forced_arms` every candidate that
    is allowed on the query is also asked that many times; those episodes join the group's mean (and
    deviation) and are not learnt from. Source: A2FM's adaptive policy optimisation (2025).
    """

    forced_arms: int = Field(default=0, ge=0)


class PriorGRPOConfig(GroupAlgorithm):
    """GRPO whose baseline is shrunk to a prior, with more rollouts where the two disagree (V0.5).

    The prior is what the candidates' measured profiles expect the policy to earn on the query's
    cluster at the episode's cost weight. Groups start with `group_size` members (`episodes` counts
    those) and grow by `grow_by` up to `max_group_size` while the expected fall of the baseline's
    squared error, of rewards of -1 and +1, exceeds `rollout_price` per rollout.
    """

    kind: Literal["prior_grpo"]
    group_size: int = Field(default=4, ge=2)
    max_group_size: PositiveInt = 16
    grow_by: PositiveInt = 4
    rollout_price: NonNegative = 0.0039

    @model_validator(mode="after")
    def check_growth(self) -> PriorGRPOConfig:
        """Refuse a greatest size that steps from the least do not meet."""
        if (self.max_group_size - self.group_size) % self.grow_by or (
            self.max_group_size < self.group_size
        ):
            raise ValueError(
                f"max_group_size ({self.max_group_size}) must be group_size ({self.group_size}) "
                f"plus a multiple of grow_by ({self.grow_by})"
            )
        return self


class ReinforceConfig(StrictModel):
    """The plain policy gradient: one step per batch of `episodes`, no ratio, no clip.

    `baseline`: `none`; `batch`, the mean of all other episodes of the batch; `critic`, the value
    head's estimate, learnt beside the policy with `value_weight`.
    """

    kind: Literal["reinforce"]
    episodes: PositiveInt = 1024
    baseline: Literal["none", "batch", "critic"] = "batch"
    value_weight: NonNegative = 0.5
    entropy_weight: NonNegative = 0.0
    entropy_decay: Decay = "linear"

    @property
    def group_size(self) -> int:
        """Episodes that are compared with each other as a group: none."""
        return 1

    @model_validator(mode="after")
    def check_critic(self) -> ReinforceConfig:
        """Refuse a weight that nothing would read."""
        if self.baseline != "critic" and self.value_weight != 0.5:
            raise ValueError(f"value_weight: read by baseline 'critic' only, not '{self.baseline}'")
        return self


class RLOOConfig(GroupAlgorithm):
    """REINFORCE with a leave-one-out baseline, under the same clipped surrogate."""

    kind: Literal["rloo"]


class QueryBatchAlgorithm(StrictModel):
    """What the algorithms share that take one step per `queries` queries, each seen once."""

    queries: PositiveInt = 512
    entropy_weight: NonNegative = 0.0
    entropy_decay: Decay = "linear"

    @property
    def episodes(self) -> int:
        """Episodes per update: one for each query."""
        return self.queries

    @property
    def group_size(self) -> int:
        """Episodes that are compared with each other: none."""
        return 1


class ExpectedGradientConfig(QueryBatchAlgorithm):
    """The exact expected policy gradient; needs full feedback."""

    kind: Literal["expected_gradient"]


class LogAlgorithm(QueryBatchAlgorithm):
    """What the algorithms that learn from a log share."""


class OffPolicyConfig(LogAlgorithm):
    """The gradient of an estimate of the policy's value from a log (`algorithms/off_policy.py`).

    `weight_limit` clips the inverse propensities; null does not.
    """

    kind: Literal["off_policy"]
    estimator: Literal["ips", "snips", "doubly_robust"] = "doubly_robust"
    weight_limit: Positive | None = None


class ConservativeConfig(LogAlgorithm):
    """One-step conservative Q-learning on a log: `alpha` weighs the conservative term."""

    kind: Literal["cql"]
    alpha: NonNegative = 0.01


AlgorithmConfig = Annotated[
    PPOConfig
    | TableGRPOConfig
    | RLOOConfig
    | PriorGRPOConfig
    | ReinforceConfig
    | ExpectedGradientConfig
    | OffPolicyConfig
    | ConservativeConfig,
    Field(discriminator="kind"),
]


def has_critic(algorithm: Any) -> bool:
    """Say whether an algorithm learns a value head beside the policy."""
    if isinstance(algorithm, ReinforceConfig):
        return algorithm.baseline == "critic"
    return isinstance(algorithm, PPOConfig)


class OptimiserConfig(StrictModel):
    """AdamW; `decay: linear` takes the learning rate to 0 over the run."""

    learning_rate: Positive = 5e-4
    weight_decay: NonNegative = 0.0
    max_grad_norm: Positive = 1.0
    decay: Decay = "none"


class ValidationConfig(StrictModel):
    """How the best checkpoint is chosen: every `every` updates, by `metric` on the val split.

    `cost_weights` is the number of weights in the sweep, 0 and a geometric grid up to the maximum.
    With `start` what the policy starts from counts too, and is kept where no update is better.
    """

    metric: ValidationMetric = "aiq"
    every: PositiveInt = 5
    start: bool = False
    cost_weights: int = Field(default=25, ge=2)


class EvaluationConfig(StrictModel):
    """The final comparison on the test split."""

    cost_weights: int = Field(default=41, ge=2)
    bootstrap: PositiveInt = 1000
    latency_weights: tuple[NonNegative, ...] | None = None  # null: least, middle, greatest


class TrackingConfig(StrictModel):
    """Weights & Biases: online where a key is set, offline in the run folder otherwise."""

    wandb: bool = True
    project: str = "rlroute"


class UnseenConfig(ProfileSwitches):
    """How candidates are profiled that no policy was trained with.

    The switches say how they are described, in `rlroute evaluate` and `rlroute export --add`.
    `evaluate` asks each that was held out `calls` train queries (one result per number), chosen by
    `design` (`rlroute.data.profile_calls`).
    """

    calls: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(0, 200, 1000), min_length=1)
    design: Design = "stratified"


class TableProfileConfig(ProfileConfig):
    """How profiles are measured, and those of candidates that were held out."""

    unseen: UnseenConfig | None = None  # null: the defaults


class Recipe(StrictModel):
    """A run of the decision trainer on the single-turn environment."""

    environment: Literal["single_turn"] = "single_turn"
    table: str
    seed: Annotated[int, Field(ge=0)] = 0
    updates: PositiveInt = 100
    split: SplitConfig = TableSplitConfig()
    actions: Actions = ()  # empty: one of n
    hold_out_candidates: tuple[str, ...] = ()  # never trained on; evaluate adds them by profile
    logs: LogsConfig | None = None  # null: all outcomes of the table may be tried
    encoder: EncoderConfig = TfidfConfig()
    profile: TableProfileConfig = TableProfileConfig()
    cost_weight: CostWeightConfig = CostWeightConfig()
    latency_weight: LatencyWeightConfig = LatencyWeightConfig()  # max 0: latency does not count
    latency: LatencyConfig | None = None  # how fast candidates write, where nobody measured it
    users: Users = Field(default_factory=dict)  # or a YAML file of them
    user_share: Annotated[float, Field(gt=0, le=1)] = 0.5  # of the episodes; others draw weights
    hold_out_users: tuple[str, ...] = ()  # never trained on; evaluate takes them as new users
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

    @model_validator(mode="before")
    @classmethod
    def read_users_file(cls, data: Any) -> Any:
        """Read `users: FILE`, so that the resolved recipe says who they were."""
        if isinstance(data, dict) and isinstance(data.get("users"), str):
            return {**data, "users": read_users(Path(data["users"]))}
        return data

    @property
    def weighs_latency(self) -> bool:
        """Whether latency counts."""
        return self.latency_weight.max > 0

    @property
    def preferences(self) -> Preferences:
        """What episodes of training are drawn with beside the cost weight."""
        taught = [user for name, user in self.users.items() if name not in self.hold_out_users]
        return Preferences(self.latency_weight, tuple(taught), self.user_share)

    @model_validator(mode="after")
    def check_parts(self) -> Recipe:
        """Refuse parts that do not agree with each other."""
        check_latency(self)
        check_users(self)
        check_surroundings(self)
        check_logs(self)
        check_held_out(self)
        return self

    @model_validator(mode="after")
    def check_range(self) -> Recipe:
        """Refuse a cost weight that is always 0: there would be nothing to trade."""
        if self.cost_weight.max <= 0:
            raise ValueError("cost_weight.max must be above 0")
        return self
