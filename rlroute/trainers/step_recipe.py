"""The recipe of step-by-step routing under a budget: everything that decides a run, strictly read.

Read with `rlroute.config.load_config(StepRecipe, path, overrides)`; the run folder keeps it
resolved. What it leaves out: the worlds' own settings, which stand beside the worlds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlroute.config import StrictModel
from rlroute.envs.budget import BudgetConfig
from rlroute.envs.single_turn import CostWeightConfig
from rlroute.envs.step_budget import StepBudgetConfig
from rlroute.policies.choice import ChoiceConfig
from rlroute.policies.kernel_start import KernelConfig
from rlroute.rewards.boundary import BoundaryRewardConfig, TaxonomyConfig
from rlroute.trainers.recipe import (
    GroupAlgorithm,
    NonNegative,
    OptimiserConfig,
    Positive,
    PositiveInt,
    PPOConfig,
    RLOOConfig,
    TrackingConfig,
)
from rlroute.worlds.open import WorldConfig

BLEND_WEIGHT = 0.5  # of the best reference, where the recipe does not say


class StepMLPConfig(StrictModel):
    """The small network of `rlroute.policies.step_scorer`.

    `hidden` 0 is a logistic policy. `price_bias` makes the first policy lean to the dear (above 0)
    or to the cheap executors: -1.4 chooses the dearer of two once in five steps. `start` is the
    sharpness with which it starts from the world's estimates of score and cost, where it shows
    such; 0 starts without.
    """

    kind: Literal["mlp"] = "mlp"
    hidden: int = Field(default=64, ge=0)
    price_bias: float = Field(default=0.0, allow_inf_nan=False)
    start: NonNegative = 0.0


class StepPricedConfig(StrictModel):
    """A single-turn router that knows what money is worth (`rlroute.policies.priced_scorer`).

    `money`: looks ahead by a `value_to_go` of the queries and the money that are left, or has one
    `price` of money. The policy starts from the candidates' profiles (with `kernel`, from the
    middle of these and a kernel regression), or from the router of the single-turn run in `start`
    (same table, encoder, seed and kernel; its margin, if any, is left out, and with a value to go
    costs are those measured), and serves worlds of query sessions; the other fields are those of a
    single-turn recipe's policy.
    """

    kind: Literal["priced"]
    money: Literal["value_to_go", "price"] = "value_to_go"
    start: Path | None = None
    kernel: KernelConfig | None = None
    hidden: PositiveInt = 256
    dropout: float = Field(default=0.5, ge=0, lt=1)
    sharpness: Positive = 10.0


class HorizonCriticConfig(StrictModel):
    """A critic with a head for each of the `discounts`, and the one whose advantage the actor uses.

    The other heads are auxiliary targets (`rlroute.algorithms.horizons`).
    """

    discounts: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.5, 0.9, 0.99, 0.999)
    actor: float = 0.999

    @model_validator(mode="after")
    def check_heads(self) -> HorizonCriticConfig:
        """Refuse an actor without a head, and heads that are alike."""
        if self.actor not in self.discounts or len(set(self.discounts)) < len(self.discounts):
            raise ValueError(
                f"discounts {list(self.discounts)} must differ, and actor ({self.actor:g}) must be "
                "one of them"
            )
        return self

    @property
    def heads(self) -> tuple[float, ...]:
        """The discounts in the order of the heads, the actor's first."""
        return (self.actor, *(one for one in self.discounts if one != self.actor))


class StepPPOConfig(PPOConfig):
    """PPO with a critic over the steps of an episode; `kl_weight` holds on to the warm start.

    `critic` gives the critic several horizons; the actor's discount then stands there.
    """

    episodes: PositiveInt = 256
    epochs: PositiveInt = 2
    kl_weight: NonNegative = 0.0
    critic: HorizonCriticConfig | None = None

    @model_validator(mode="after")
    def check_discount(self) -> StepPPOConfig:
        """Refuse a discount that nothing would read."""
        if self.critic is not None and self.discount != 1.0:
            raise ValueError("discount: with critic given, the actor's discount is critic.actor")
        return self


class StepGRPOConfig(GroupAlgorithm):
    """GRPO over whole episodes, with what the static policies earn.

    `group_size` episodes of a task are the policy's own; with `forced_arms` one more for each
    executor is played by it throughout and joins their mean. `baseline`: the group's own mean
    (`group`), with the reference rewards of the static policies in mean and spread (`anchored`), or
    a blend of mean and best reference (`blend`, `blend_weight` of the latter). `hold_failures`: no
    failure on a solvable task has an advantage above 0. `reference_rollout` adds the dearest
    executor's stored rollout of hard tasks to what is learnt from. `kl_weight` holds on to the
    warm start.
    """

    kind: Literal["grpo"]
    episodes: PositiveInt = 64
    epochs: PositiveInt = 1
    minibatches: PositiveInt = 1
    scale_by_std: bool = True
    baseline: Literal["group", "anchored", "blend"] = "anchored"
    blend_weight: float = Field(default=BLEND_WEIGHT, ge=0, le=1)
    hold_failures: bool = True
    reference_rollout: bool = False
    forced_arms: bool = False
    kl_weight: NonNegative = 0.0

    @model_validator(mode="after")
    def check_blend(self) -> StepGRPOConfig:
        """Refuse a weight that nothing would read."""
        if self.baseline != "blend" and self.blend_weight != BLEND_WEIGHT:
            raise ValueError(f"blend_weight: read by baseline 'blend' only, not '{self.baseline}'")
        return self


class StepRLOOConfig(RLOOConfig):
    """REINFORCE with a leave-one-out baseline over whole episodes."""

    episodes: PositiveInt = 64
    kl_weight: NonNegative = 0.0


class BoundaryConfig(StrictModel):
    """The rollouts of the static policies, and the sweep that finds experts on hard tasks.

    `rollouts` of each static policy per task of train, `evaluation_rollouts` per task of val and
    test (there they measure only). `sweep` rollouts of hard tasks take the dear executor with
    probability k/N; with `prune` dear steps that an expert's success does not need become cheap.
    `folder` keeps them for other runs of the same world; null: the run folder does.
    """

    rollouts: PositiveInt = 5
    evaluation_rollouts: PositiveInt = 3
    sweep: int = Field(default=10, ge=0)
    prune: bool = False
    taxonomy: TaxonomyConfig = TaxonomyConfig()
    folder: Path | None = None


class ImitationConfig(StrictModel):
    """The supervised warm start: the policy learns the experts' choices of executors.

    Easy and intractable tasks teach the cheapest executor at every step, hard tasks the cheapest
    success of the sweep. Choices of dearer executors carry at least `dear_share` of the loss.
    """

    epochs: PositiveInt = 20
    batch: PositiveInt = 64
    learning_rate: Positive = 3e-3
    dear_share: float = Field(default=0.25, ge=0, lt=1)


class StepValidationConfig(StrictModel):
    """How the best weights are chosen: every `every` updates, by `metric` on val.

    Reward is success minus the cost weight times normalised cost, averaged over the caps and
    `cost_weights` weights of the recipe's range. `tasks` of val are played, null all of them. With
    `start` what the policy starts from counts too, and is kept where no update is better.
    """

    metric: Literal["reward", "success"] = "reward"
    every: PositiveInt = 10
    start: bool = False
    cost_weights: PositiveInt = 1
    tasks: PositiveInt | None = None


class StepEvaluationConfig(StrictModel):
    """The final comparison on the test tasks, each played `rollouts` times."""

    rollouts: PositiveInt = 1
    cost_weights: PositiveInt = 1
    caps: tuple[float | None, ...] | None = None
    bootstrap: PositiveInt = 1000
    transcripts: int = Field(default=100, ge=0)


StepPolicyConfig = Annotated[
    StepMLPConfig | StepPricedConfig | ChoiceConfig, Field(discriminator="kind")
]
StepAlgorithmConfig = Annotated[
    StepPPOConfig | StepGRPOConfig | StepRLOOConfig, Field(discriminator="kind")
]


class StepRecipe(StrictModel):
    """A run of the decision trainer on step-by-step routing.

    `lanes` episodes are played at once; `pool` is the pool file of executors that live in one.
    """

    environment: Literal["step_budget"]
    world: WorldConfig
    seed: Annotated[int, Field(ge=0)] = 0
    updates: PositiveInt = 100
    lanes: PositiveInt = 64
    pool: Path | None = None
    budget: BudgetConfig = BudgetConfig()
    reward: BoundaryRewardConfig = BoundaryRewardConfig()
    cost_weight: CostWeightConfig = CostWeightConfig(min=0.3, max=0.3)
    boundary: BoundaryConfig = BoundaryConfig()
    policy: StepPolicyConfig = StepMLPConfig()
    warm_start: ImitationConfig | None = ImitationConfig()
    algorithm: StepAlgorithmConfig
    optimiser: OptimiserConfig = OptimiserConfig(learning_rate=3e-3)
    validation: StepValidationConfig = StepValidationConfig()
    checkpoint_every: PositiveInt = 20
    evaluation: StepEvaluationConfig = StepEvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()

    @property
    def boundary_seed(self) -> int:
        """What the boundary rollouts are drawn from: shared ones serve runs of every seed."""
        return self.seed if self.boundary.folder is None else 0

    @property
    def episode(self) -> StepBudgetConfig:
        """What the environment is made from."""
        weights = self.cost_weight
        return StepBudgetConfig(
            budget=self.budget,
            reward=self.reward,
            cost_weight=weights,
            state_cost_weight=weights.min != weights.max,
        )

    @model_validator(mode="after")
    def check_critic(self) -> StepRecipe:
        """Refuse several horizons for a policy whose critic has one head."""
        one_head = not isinstance(self.policy, StepMLPConfig)
        if one_head and isinstance(self.algorithm, StepPPOConfig) and self.algorithm.critic:
            raise ValueError(
                "algorithm.critic: several horizons are for policy.kind 'mlp', not "
                f"'{self.policy.kind}'"
            )
        return self

    @model_validator(mode="after")
    def check_anchor(self) -> StepRecipe:
        """Refuse a KL term that has no warm start to hold on to."""
        if self.algorithm.kl_weight and self.warm_start is None:
            raise ValueError("algorithm.kl_weight holds on to the warm start, and there is none")
        return self
