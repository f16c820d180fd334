"""The recipe of a run that learns from logged sessions under total budgets, as one strict model.

What it leaves out: behaviour (`rlroute.trainers.session_run`). How to use:
`load_config(SessionRecipe, Path("recipes/step_budget/sessions_cql.yaml"), overrides)`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlroute.config import StrictModel
from rlroute.data.encoders import EncoderConfig
from rlroute.data.session_world import GeneratedSessionsConfig
from rlroute.policies.session_scorer import BalanceInputs
from rlroute.trainers.recipe import (
    NonNegative,
    OptimiserConfig,
    Positive,
    PositiveInt,
    TrackingConfig,
)


class LoggedSessionsConfig(StrictModel):
    """A log of sessions in a folder; see `rlroute.data.sessions` for its files."""

    kind: Literal["file"]
    path: str = Field(min_length=1)


SessionsConfig = Annotated[
    GeneratedSessionsConfig | LoggedSessionsConfig, Field(discriminator="kind")
]


class SessionPolicyConfig(StrictModel):
    """The network; see `rlroute.policies.session_scorer`. `balance: share` is SeqRoute's state."""

    hidden: tuple[PositiveInt, ...] = (512, 256, 256)
    balance: BalanceInputs = "share_and_calls"


class BlendedTargetConfig(StrictModel):
    """A target network that moves by `rate` of the way to the online one after every step."""

    kind: Literal["blend"] = "blend"
    rate: float = Field(default=0.01, gt=0, le=1)


class CopiedTargetConfig(StrictModel):
    """A target network that becomes a copy of the online one after every `every` steps."""

    kind: Literal["copy"]
    every: PositiveInt = 100


TargetConfig = Annotated[BlendedTargetConfig | CopiedTargetConfig, Field(discriminator="kind")]


class ConservativeConfig(StrictModel):
    """Conservative Q-learning; at `alpha` 0 it is plain Q-learning on the log."""

    kind: Literal["cql"]
    alpha: NonNegative = 0.1
    target: TargetConfig = BlendedTargetConfig()


class CloningConfig(StrictModel):
    """Behaviour cloning: the network learns which executor the log chose."""

    kind: Literal["bc"]


SessionAlgorithmConfig = Annotated[ConservativeConfig | CloningConfig, Field(discriminator="kind")]


class SessionValidationConfig(StrictModel):
    """The best weights are chosen every `every` updates: the greatest return on the val sessions.

    The return is that of the greedy policy at cost weight 0, as the mean over budgets, on logged
    outcomes and on estimates where the log has none (`rlroute.evaluation.session_replay`).
    """

    every: PositiveInt = 2


class SessionEvaluationConfig(StrictModel):
    """The final comparison on the test sessions; `bootstrap` resamples of them."""

    bootstrap: PositiveInt = 1000


class SessionRecipe(StrictModel):
    """A run of the offline trainer.

    Each session is learnt from under each of `budgets`, its total budget in the log's cost unit.
    `cost_weights`, in quality per unit of cost, are swept when the policy is evaluated. `penalty`
    is taken off for bankruptcy; `discount` is per turn. An update is `steps` minibatches of `batch`
    turns. `encoder` is for logs of texts (TF-IDF where none is stated) and must not be stated for
    logs of features.
    """

    environment: Literal["sessions"] = "sessions"
    sessions: SessionsConfig
    seed: Annotated[int, Field(ge=0)] = 0
    budgets: tuple[Positive, ...] = Field(min_length=1)
    cost_weights: tuple[NonNegative, ...] = Field(min_length=1)
    penalty: NonNegative = 5.0
    discount: float = Field(default=0.99, ge=0, le=1)
    encoder: EncoderConfig | None = None
    policy: SessionPolicyConfig = SessionPolicyConfig()
    algorithm: SessionAlgorithmConfig
    optimiser: OptimiserConfig = OptimiserConfig()
    updates: PositiveInt = 40
    steps: PositiveInt = 50
    batch: PositiveInt = 256
    validation: SessionValidationConfig = SessionValidationConfig()
    checkpoint_every: PositiveInt = 10
    evaluation: SessionEvaluationConfig = SessionEvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def check_order(self) -> SessionRecipe:
        """Refuse budgets and cost weights that do not rise."""
        for name in ("budgets", "cost_weights"):
            if any(low >= high for low, high in pairwise(getattr(self, name))):
                raise ValueError(f"{name}: must rise, none twice")
        return self
