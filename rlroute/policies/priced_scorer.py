"""A policy for sessions under one budget: a single-turn router and a price of money.

    money_B  = what is left of the budget per query that is left, in units of the cost reference
    price_B  = cost weight + exp(curve(log money) + g(log money, queries left))
    logits   = those of `rlroute.policies.mlp.CandidateScorer` at that price / (1 + price * money)
    value_B  = queries left * v(log money, queries left, price, expected quality of this query)

The router is the single-turn one, to the last layer: its cost weight is the price of money, so one
network serves all budgets, and where nothing is capped it is the single-turn policy at the recipe's
cost weight (the second term is left out). `curve` is fitted on the train split before learning
(`rlroute.policies.money_price`): the price at which the router, as it is then, would spend just
`money` per query. g starts at zero, and the router at the candidates' profiles or at a single-turn
run, so learning starts from predict-then-optimise with a price that is found anew at every step,
and the policy gradient moves all of it.

The division keeps the policy trying: where money is short its price is high, worths differ by far
more than scores do, and a softmax over them would be sure of everything from the start.

Features are those of a world that shows an embedding and then the log of the dearest bound
(`rlroute.worlds.query_session`), followed by the budget's.

What it leaves out: sampling (`rlroute.policies.step_scorer.ScorerPolicy`) and training.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from rlroute.policies.mlp import VALUE_WIDTH, CandidateScorer, ScorerConfig
from rlroute.policies.money_price import KNOTS, PriceCurve
from rlroute.policies.step_scorer import StepScores

COMMON_COLUMNS = 3  # of the executors' features, before those of a single-turn router
# Where things stand in the features, from their end.
DEAREST_COLUMN, STEPS_LEFT_COLUMN, CAPPED_COLUMN, SHARE_COLUMN, PER_STEP_COLUMN = -6, -5, -3, -2, -1
PRICE_WIDTH = 32
SMALLEST_SHARE = 1e-6  # of the dearest bound: less than that pays for nobody
LARGEST_CORRECTION = 3.0  # of the log of a price


class PricedScorerConfig(ScorerConfig):
    """The single-turn network's shape, and the knots of the price curve."""

    knots: int = Field(default=KNOTS, ge=2)


class PricedScorer(nn.Module):
    """Scores candidates for queries under what is left of a budget; see the module's text."""

    def __init__(self, config: PricedScorerConfig) -> None:
        super().__init__()
        self.config = config
        self.router = CandidateScorer(config)
        self.router.value_head.requires_grad_(False)  # this policy has a critic of its own
        self.price_net = nn.Sequential(
            nn.Linear(2, PRICE_WIDTH), nn.Tanh(), nn.Linear(PRICE_WIDTH, 1)
        )
        self.value_head = nn.Sequential(
            nn.Linear(5, VALUE_WIDTH), nn.Tanh(), nn.Linear(VALUE_WIDTH, 1)
        )
        self.log_money_N: Tensor
        self.log_price_N: Tensor
        self.register_buffer("log_money_N", torch.linspace(-1, 1, config.knots))
        self.register_buffer("log_price_N", torch.zeros(config.knots))
        for layer in (self.price_net[2], self.value_head[2]):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def set_curve(self, curve: PriceCurve) -> None:
        """Take over the price curve that was fitted on the train split."""
        self.log_money_N.copy_(torch.as_tensor(curve.log_money_N))
        self.log_price_N.copy_(torch.as_tensor(curve.log_price_N))

    def forward(
        self,
        features_BF: Tensor,
        candidate_features_KD: Tensor,
        mask_BK: Tensor,
        cost_weight_B: Tensor,
        dropout_mask_BH: Tensor | None = None,
    ) -> StepScores:
        """Score K executors for B states."""
        share_B = features_BF[:, PER_STEP_COLUMN].clamp(min=SMALLEST_SHARE)
        log_money_B = share_B.log() + features_BF[:, DEAREST_COLUMN]
        left_B = features_BF[:, STEPS_LEFT_COLUMN]
        shadow_B = features_BF[:, CAPPED_COLUMN] * self.price(log_money_B, left_B)
        price_B = cost_weight_B + shadow_B
        scores = self.router(
            features_BF[:, : self.config.features],
            candidate_features_KD[:, COMMON_COLUMNS:],
            mask_BK,
            price_B,
            dropout_mask_BH,
        )
        calm_B1 = (1 + shadow_B * log_money_B.exp())[:, None]
        logits_BK = scores.logits_BK.masked_fill(~mask_BK, 0.0) / calm_B1  # no gradient of infinity
        logits_BK = logits_BK.masked_fill(~mask_BK, -math.inf)
        chance_BK = logits_BK.softmax(dim=-1)
        quality_B = (chance_BK * scores.quality_BK).sum(dim=-1)
        seen = [log_money_B, left_B, features_BF[:, SHARE_COLUMN], price_B.log1p(), quality_B]
        value_B = left_B * self.value_head(torch.stack(seen, dim=1).detach()).squeeze(1)
        return StepScores(logits_BK, value_B)

    def price(self, log_money_B: Tensor, left_B: Tensor) -> Tensor:
        """Return the price of money [B] at its log per query and the share of queries left."""
        inputs = torch.stack([log_money_B, left_B], dim=1)
        correction_B = self.price_net(inputs).squeeze(1)
        correction_B = correction_B.clamp(-LARGEST_CORRECTION, LARGEST_CORRECTION)
        price_B: Tensor = (self.read_curve(log_money_B) + correction_B).exp()
        return price_B

    def read_curve(self, log_money_B: Tensor) -> Tensor:
        """Return the curve's log of the price [B], linear between knots, level beyond them."""
        knot_N, value_N = self.log_money_N, self.log_price_N
        place_B = torch.searchsorted(knot_N, log_money_B.contiguous()).clamp(1, len(knot_N) - 1)
        low_B, high_B = knot_N[place_B - 1], knot_N[place_B]
        way_B = (log_money_B - low_B) / (high_B - low_B).clamp(min=1e-9)
        way_B = way_B.clamp(0.0, 1.0)
        return value_N[place_B - 1] + way_B * (value_N[place_B] - value_N[place_B - 1])
