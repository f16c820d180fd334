"""A policy for sessions under one budget: a single-turn router, and what money is worth later on.

The router is the single-turn one (`rlroute.policies.mlp.CandidateScorer`), to the last layer, so
one network serves all budgets, and where nothing is capped it is the single-turn policy at the
recipe's cost weight. It says quality_BK and cost_BK of the query at hand; money counts in units of
the cost reference. With a value to go (`queries` above 0; `rlroute.policies.value_to_go`)

    rest_BK   = V_{n-1}(money left - cost_BK) - V_{n-1}(money left)       n queries are left
    logits_BK = sharpness * (quality_BK - cost weight * cost_BK + exp(g) * rest_BK)
    value_B   = V_n(money left) / queries + share of queries left * v

and without one, at a price of money per query left (`rlroute.policies.money_price`)

    price_B   = cost weight + exp(curve(log money per query) + g)
    logits_BK = the router's at that price / (1 + price * money per query)
    value_B   = share of queries left * v

V and the curve are fitted on the train split before learning, by what the router as it is then
expects. g (of money per query and queries left) and v (of these, the price or exp(g), and the
expected quality) start at zero, and the router at the candidates' profiles or at a single-turn run.
So learning starts from predict-then-optimise, and the policy gradient moves all of it but V and the
curve.

The division by the price keeps the policy trying: where money is short its price is high, worths
differ by far more than scores do, and a softmax over them would be sure of everything from the
start.

Features are those of a world that shows an embedding and then the log of the dearest bound
(`rlroute.worlds.query_session`), followed by the budget's.

What it leaves out: sampling (`rlroute.policies.step_scorer.ScorerPolicy`) and training.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from rlroute.policies.mlp import VALUE_WIDTH, CandidateScorer, ScorerConfig, Scores
from rlroute.policies.money_price import KNOTS, PriceCurve
from rlroute.policies.step_scorer import StepScores
from rlroute.policies.value_to_go import GRID, ValueToGo

COMMON_COLUMNS = 3  # of the executors' features, before those of a single-turn router
# Where things stand in the features, from their end.
DEAREST_COLUMN, STEPS_LEFT_COLUMN, CAPPED_COLUMN, SHARE_COLUMN, PER_STEP_COLUMN = -6, -5, -3, -2, -1
PRICE_WIDTH = 32
SMALLEST_SHARE = 1e-6  # of the dearest bound: less than that pays for nobody
LARGEST_CORRECTION = 3.0  # of the log of a price


class PricedScorerConfig(ScorerConfig):
    """The single-turn network's shape, and that of what says what money is worth.

    `queries` is the number of queries of a session that a value to go is known for, on a grid of
    `grid` amounts of money; 0 takes a price curve of so many `knots` instead.
    """

    knots: int = Field(default=KNOTS, ge=2)
    queries: int = Field(default=0, ge=0)
    grid: int = Field(default=GRID, ge=2)


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
        self.log_money_G: Tensor
        self.value_TG: Tensor
        if config.queries:
            self.register_buffer("log_money_G", torch.linspace(-1, 1, config.grid))
            self.register_buffer("value_TG", torch.zeros(config.queries + 1, config.grid))
        else:
            self.register_buffer("log_money_N", torch.linspace(-1, 1, config.knots))
            self.register_buffer("log_price_N", torch.zeros(config.knots))
        for layer in (self.price_net[2], self.value_head[2]):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def set_curve(self, curve: PriceCurve) -> None:
        """Take over the price curve that was fitted on the train split."""
        self.log_money_N.copy_(torch.as_tensor(curve.log_money_N))
        self.log_price_N.copy_(torch.as_tensor(curve.log_price_N))

    def set_values(self, values: ValueToGo) -> None:
        """Take over the value to go that was fitted on the train split."""
        self.log_money_G.copy_(torch.as_tensor(values.log_money_G))
        self.value_TG.copy_(torch.as_tensor(values.value_TG))

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
        left_B, capped_B = features_BF[:, STEPS_LEFT_COLUMN], features_BF[:, CAPPED_COLUMN]
        shadow_B = torch.zeros_like(left_B)
        if not self.config.queries:
            shadow_B = capped_B * self.price(log_money_B, left_B)
        scores = self.router(
            features_BF[:, : self.config.features],
            candidate_features_KD[:, COMMON_COLUMNS:],
            mask_BK,
            cost_weight_B + shadow_B,
            dropout_mask_BH,
        )
        if self.config.queries:
            scarce_B = capped_B * (share_B < 1)  # it would pay for the dearest every time
            return self.look_ahead(scores, log_money_B, left_B, scarce_B, features_BF)
        calm_B1 = (1 + shadow_B * log_money_B.exp())[:, None]
        logits_BK = scores.logits_BK.masked_fill(~mask_BK, 0.0) / calm_B1  # no gradient of infinity
        logits_BK = logits_BK.masked_fill(~mask_BK, -math.inf)
        price_B = cost_weight_B + shadow_B
        value_B = self.correct_value(scores, logits_BK, log_money_B, price_B, features_BF)
        return StepScores(logits_BK, value_B)

    def look_ahead(
        self,
        scores: Scores,
        log_money_B: Tensor,
        left_B: Tensor,
        scarce_B: Tensor,
        features_BF: Tensor,
    ) -> StepScores:
        """Return the scores with what each candidate's cost takes from the queries to come."""
        queries_B = (left_B * self.config.queries).round().long().clamp(1, self.config.queries)
        money_B1 = (log_money_B.exp() * queries_B)[:, None]
        before_B1 = (queries_B - 1)[:, None]
        rest_BK = self.read_values(before_B1, money_B1 - scores.cost_BK)
        rest_BK = rest_BK - self.read_values(before_B1, money_B1)
        worth_B = scarce_B * self.correct(log_money_B, left_B).exp()
        sharpness = self.router.log_sharpness.exp()
        logits_BK = scores.logits_BK + sharpness * worth_B[:, None] * rest_BK
        value_B = self.read_values(queries_B[:, None], money_B1).squeeze(1) / self.config.queries
        correction_B = self.correct_value(scores, logits_BK, log_money_B, worth_B, features_BF)
        return StepScores(logits_BK, value_B + correction_B)

    def correct_value(
        self,
        scores: Scores,
        logits_BK: Tensor,
        log_money_B: Tensor,
        price_B: Tensor,
        features_BF: Tensor,
    ) -> Tensor:
        """Return the learnt part of the value [B]; it sends no gradient into the policy."""
        left_B = features_BF[:, STEPS_LEFT_COLUMN]
        quality_B = (logits_BK.softmax(dim=-1) * scores.quality_BK).sum(dim=-1)
        seen = [log_money_B, left_B, features_BF[:, SHARE_COLUMN], price_B.log1p(), quality_B]
        value_B: Tensor = self.value_head(torch.stack(seen, dim=1).detach()).squeeze(1)
        return left_B * value_B

    def price(self, log_money_B: Tensor, left_B: Tensor) -> Tensor:
        """Return the price of money [B] at its log per query and the share of queries left."""
        price_B: Tensor = (self.read_curve(log_money_B) + self.correct(log_money_B, left_B)).exp()
        return price_B

    def correct(self, log_money_B: Tensor, left_B: Tensor) -> Tensor:
        """Return g [B], the learnt part of the log of what money is worth."""
        inputs = torch.stack([log_money_B, left_B], dim=1)
        correction_B: Tensor = self.price_net(inputs).squeeze(1)
        return correction_B.clamp(-LARGEST_CORRECTION, LARGEST_CORRECTION)

    def read_values(self, left_BK: Tensor, money_BK: Tensor) -> Tensor:
        """Return V of `left_BK` queries and money, as `ValueToGo.read` does."""
        grid_G = self.log_money_G
        step = (grid_G[-1] - grid_G[0]) / (len(grid_G) - 1)
        tiny = torch.finfo(money_BK.dtype).tiny
        place_BK = (money_BK.clamp(min=tiny).log() - grid_G[0]) / step
        place_BK = place_BK.clamp(0.0, len(grid_G) - 1.0)
        low_BK = place_BK.detach().long().clamp(max=len(grid_G) - 2)
        left_BK = left_BK.expand_as(low_BK)
        value_BK, after_BK = self.value_TG[left_BK, low_BK], self.value_TG[left_BK, low_BK + 1]
        return value_BK + (place_BK - low_BK) * (after_BK - value_BK)

    def read_curve(self, log_money_B: Tensor) -> Tensor:
        """Return the curve's log of the price [B], linear between knots, level beyond them."""
        knot_N, value_N = self.log_money_N, self.log_price_N
        place_B = torch.searchsorted(knot_N, log_money_B.contiguous()).clamp(1, len(knot_N) - 1)
        low_B, high_B = knot_N[place_B - 1], knot_N[place_B]
        way_B = (log_money_B - low_B) / (high_B - low_B).clamp(min=1e-9)
        way_B = way_B.clamp(0.0, 1.0)
        return value_N[place_B - 1] + way_B * (value_N[place_B] - value_N[place_B - 1])
