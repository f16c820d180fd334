"""A small network that chooses who takes the next step: it scores (state, executor) pairs.

    x_B      = [features_BF, log(1 + cost weight)]
    h_BH     = two tanh layers of x, or x itself where hidden is 0 (a logistic policy)
    logit_BK = h_B . (W d_k) / sqrt(H)  +  price_bias * rank_k          (masked: minus infinity)

d_k describes executor k (`rlroute.worlds.base.describe_executors` and the world's own columns), so
executors can be added and repriced without another network. W starts at zero: the first policy is
uniform, or leans to the dear (price_bias > 0) or the cheap (< 0) executors. Where the world shows
estimates of what each executor's step earns and costs, the policy may start from them (`start`):

    logit_BK += sharpness * (expected_BK - cost weight * charge_BK)

It leaves out sampling and every training library.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from rlroute.config import StrictModel
from rlroute.policies.decision import Decisions, sample_actions
from rlroute.policies.mlp import VALUE_WIDTH
from rlroute.policies.stepwise import StepInputs

RANK_COLUMN = 2  # of the executors' features, see `describe_executors`


class EstimateColumns(StrictModel):
    """Where among the features the K estimates of score and of cost begin, and their sharpness."""

    expected: int = Field(ge=0)
    charge: int = Field(ge=0)
    sharpness: float = Field(gt=0, allow_inf_nan=False)


class StepScorerConfig(StrictModel):
    """Shape of the network: F features, D features of an executor, H hidden units (0: logistic).

    The critic has `value_heads` heads over one hidden layer; the first is the actor's.
    """

    features: int = Field(ge=1)
    described: int = Field(ge=RANK_COLUMN + 1)
    hidden: int = Field(default=64, ge=0)
    price_bias: float = Field(default=0.0, allow_inf_nan=False)
    start: EstimateColumns | None = None
    value_heads: int = Field(default=1, ge=1)


@dataclass(frozen=True)
class StepScores:
    """Logits [N, K] (minus infinity where masked) and values [N] of N decisions.

    `value_BV` holds those of all heads of a critic that has several, the first being `value_B`.
    """

    logits_BK: Tensor
    value_B: Tensor
    value_BV: Tensor | None = None

    @property
    def logp_BK(self) -> Tensor:
        """Log-probabilities [N, K] over the allowed executors."""
        return self.logits_BK.log_softmax(dim=-1)


class StepScorer(nn.Module):
    """Scores executors for states; see the module's text."""

    def __init__(self, config: StepScorerConfig) -> None:
        super().__init__()
        self.config = config
        width, hidden = config.features + 1, config.hidden
        self.body: nn.Module = nn.Identity()
        if hidden:
            self.body = nn.Sequential(
                nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh()
            )
        inner = hidden or width + 1  # a logistic policy has a bias beside its features
        self.executor_tower = nn.Linear(config.described, inner, bias=False)
        self.value_head = nn.Sequential(
            nn.Linear(width, VALUE_WIDTH), nn.Tanh(), nn.Linear(VALUE_WIDTH, config.value_heads)
        )
        for layer in (self.executor_tower, self.value_head[2]):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def forward(
        self,
        features_BF: Tensor,
        candidate_features_KD: Tensor,
        mask_BK: Tensor,
        cost_weight_B: Tensor,
    ) -> StepScores:
        """Score K executors for B states."""
        x_BF = torch.cat([features_BF, torch.log1p(cost_weight_B)[:, None]], dim=1)
        hidden_BH = self.body(x_BF)
        if not self.config.hidden:
            hidden_BH = torch.cat([x_BF, torch.ones_like(x_BF[:, :1])], dim=1)
        scale = 1 / math.sqrt(self.config.hidden or 1)
        logits_BK = hidden_BH @ self.executor_tower(candidate_features_KD).T * scale
        logits_BK = logits_BK + self.config.price_bias * candidate_features_KD[:, RANK_COLUMN]
        if (start := self.config.start) is not None:
            executors = len(candidate_features_KD)
            expected_BK = features_BF[:, start.expected : start.expected + executors]
            charge_BK = features_BF[:, start.charge : start.charge + executors]
            utility_BK = expected_BK - cost_weight_B[:, None] * charge_BK
            logits_BK = logits_BK + start.sharpness * utility_BK
        value_BV: Tensor = self.value_head(x_BF)
        return StepScores(logits_BK.masked_fill(~mask_BK, -math.inf), value_BV[:, 0], value_BV)


@dataclass(frozen=True)
class ScorerPolicy:
    """Acts by a step scorer: sampled in rollouts, greedy in evaluation and service."""

    model: StepScorer
    version: int = 0
    greedy: bool = False

    def start(self, lanes: int) -> None:
        """Do nothing: all that a decision needs is in its features."""

    def decide(self, inputs: StepInputs) -> Decisions:
        """Decide for B lanes."""
        device = next(self.model.parameters()).device
        with torch.no_grad():
            scores: StepScores = self.model(
                torch.as_tensor(inputs.features_BF, device=device),
                torch.as_tensor(inputs.candidate_features_KD, device=device),
                torch.as_tensor(inputs.mask_BK, device=device),
                torch.as_tensor(inputs.cost_weight_B, device=device),
            )
        logp_BK = scores.logp_BK.cpu().numpy()
        if self.greedy:
            action_B = logp_BK.argmax(axis=1)
        else:
            action_B = sample_actions(logp_BK, inputs.uniform_B)
        return Decisions(
            action_B=action_B,
            logp_B=np.take_along_axis(logp_BK, action_B[:, None], axis=1)[:, 0],
            value_B=scores.value_B.cpu().numpy(),
        )
