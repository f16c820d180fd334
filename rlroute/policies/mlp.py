"""The decision policy: a small network that scores (query, candidate) pairs.

    quality_BK  = train score of k on b's cluster + h_B . u_k / sqrt(H)
    cost_BK     = train cost of k on b's cluster * exp(h_B . v_k / sqrt(H))    (unit: the reference)
    logits_BK   = sharpness * (quality_BK - cost weight * cost_BK)    (masked: minus infinity)

h is one hidden layer over the query, u and v are linear in the candidate's features. Both start at
zero, so learning starts from the candidates' measured profiles: "who does best on queries like this
one, at this cost weight". From the overall means alone, a dear specialist of few queries would
never be tried often enough to be found out. The cost weight
enters as a price, not as one more feature, so one policy serves the whole frontier and few queries
suffice; a free softmax over candidates over-fits on tables of a few thousand queries. The reward
never names the two heads: they are shaped by the policy gradient alone, and their difference is
what is learnt, so `quality` and `cost` are estimates up to what the gradient can see.

With a kernel start (`rlroute.policies.kernel_start`) the quality is instead

    quality_BK  = mean_k + (train score of k on b's cluster - mean_k + k(x_B, anchors) . W d_k) / 2
                  + h_B . u_k / sqrt(H)

with mean_k the mean train score of k. With a margin (`rlroute.policies.margin`) the best single
candidate of those allowed (best mean_k) is left only where another one is better by more:

    logits_BK   = sharpness * (quality_BK - cost weight * cost_BK + margin * [k is the best single])

It is added where the policy is validated, evaluated and served (`served`), not while it learns: the
gradient would learn it away.

Where latency counts it is a second price, beside cost and in the same way; and a user's liking of
candidates is added as it is:

    latency_BK  = train latency of k on b's cluster * exp(h_B . w_k / sqrt(H))     (unit: reference)
    logits_BK   = sharpness * (quality_BK - cost weight * cost_BK
                               - latency weight * latency_BK + bias_BK + margin ...)

A candidate is its feature row: adding, removing or repricing one needs no new network.

It leaves out sampling of actions (`rlroute.rollout`) and every training library.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from rlroute.config import StrictModel
from rlroute.data.routing_data import count_candidate_features

MAXIMUM_LOG_COST_RATIO = 4.0
VALUE_WIDTH = 64


class ScorerConfig(StrictModel):
    """Shape of the network: F query features, C clusters of the profiles, H hidden units.

    `anchors` is the number M of a kernel start's anchors, 0 where the policy starts from clusters
    alone; `decay` is that of its kernel. `margin` says whether the policy has one, `latency`
    whether it weighs latency.
    """

    features: int = Field(ge=1)
    clusters: int = Field(ge=1)
    hidden: int = Field(default=256, ge=1)
    dropout: float = Field(default=0.5, ge=0, lt=1)
    sharpness: float = Field(default=10.0, gt=0)
    anchors: int = Field(default=0, ge=0)
    decay: float = Field(default=1.0, gt=0)
    margin: bool = False
    latency: bool = False


@dataclass(frozen=True)
class Scores:
    """What the network says of B queries and K candidates.

    `logits_BK` is minus infinity where masked; `value_B` estimates the expected reward.
    `latency_BK` is there where the policy weighs latency.
    """

    logits_BK: Tensor
    quality_BK: Tensor
    cost_BK: Tensor
    value_B: Tensor
    latency_BK: Tensor | None = None

    @property
    def logp_BK(self) -> Tensor:
        """Log-probabilities [B, K] over the allowed candidates."""
        return self.logits_BK.log_softmax(dim=-1)


class QueryBasis(NamedTuple):
    """What of B queries and K candidates stays as it is while the policy learns.

    `inputs_BF` are the features as the query layer reads them; `start_BK` and `cost_BK` (and
    `latency_BK` where the policy weighs it) are quality and cost before anything is learnt.
    """

    inputs_BF: Tensor
    start_BK: Tensor
    cost_BK: Tensor
    latency_BK: Tensor | None = None

    def select_rows(self, rows_N: Tensor) -> QueryBasis:
        """Return some of the queries, in order."""
        parts = [value.index_select(0, rows_N) for value in self if value is not None]
        return QueryBasis(*parts)


class CandidateScorer(nn.Module):
    """Scores candidates for queries at cost weights; see the module's text."""

    def __init__(self, config: ScorerConfig) -> None:
        super().__init__()
        self.config = config
        self.query_layer = nn.Linear(config.features, config.hidden)
        described = count_candidate_features(config.clusters) - 2 * config.clusters
        self.quality_tower = nn.Linear(described, config.hidden, bias=False)
        self.cost_tower = nn.Linear(described, config.hidden, bias=False)
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(config.sharpness)))
        self.centroids_CF: Tensor
        self.register_buffer("centroids_CF", torch.zeros(config.clusters, config.features))
        self.anchors_MF: Tensor
        self.start_MD: Tensor
        if config.anchors:
            self.register_buffer("anchors_MF", torch.zeros(config.anchors, config.features))
            self.register_buffer("start_MD", torch.zeros(config.anchors, described))
        self.margin: Tensor
        if config.margin:
            self.register_buffer("margin", torch.zeros(()))
        self.value_head = nn.Sequential(
            nn.Linear(config.hidden + 1 + config.latency, VALUE_WIDTH),
            nn.Tanh(),
            nn.Linear(VALUE_WIDTH, 1),
        )
        for layer in (self.quality_tower, self.cost_tower, self.value_head[2]):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)
        if config.latency:
            self.latency_tower = nn.Linear(described, config.hidden, bias=False)
            nn.init.zeros_(self.latency_tower.weight)

    def forward(
        self,
        queries: Tensor | QueryBasis,
        candidate_features_KD: Tensor,
        mask_BK: Tensor,
        cost_weight_B: Tensor,
        dropout_mask_BH: Tensor | None = None,
        latency_weight_B: Tensor | None = None,
        candidate_bias_BK: Tensor | None = None,
        *,
        served: bool = False,
    ) -> Scores:
        """Score K candidates for B queries; `served` adds the margin where the policy has one.

        `queries` are features [B, F], or what `prepare_queries` made of them and of the same
        candidates. `dropout_mask_BH` is drawn by the trainer (`draw_dropout_mask`); None applies no
        dropout. Without `latency_weight_B` a policy that weighs latency takes 0.

        Raises:
            ValueError: a latency weight for a policy that weighs none.
        """
        if latency_weight_B is not None and not self.config.latency:
            raise ValueError("this policy weighs no latency")
        if isinstance(queries, Tensor):
            queries = self.prepare_queries(queries, candidate_features_KD)
        hidden_BH = self.query_layer(queries.inputs_BF)
        if dropout_mask_BH is not None:  # before the relu, in place: the same, less memory
            hidden_BH = hidden_BH.mul_(dropout_mask_BH)
        hidden_BH = hidden_BH.relu_()
        scale = 1 / math.sqrt(self.config.hidden)
        described_KD, _, _ = self.split_features(candidate_features_KD)
        quality_shift_BK = hidden_BH @ self.quality_tower(described_KD).T * scale
        log_ratio_BK = hidden_BH @ self.cost_tower(described_KD).T * scale
        log_ratio_BK = log_ratio_BK.clamp(-MAXIMUM_LOG_COST_RATIO, MAXIMUM_LOG_COST_RATIO)
        quality_BK = queries.start_BK + quality_shift_BK
        cost_BK = queries.cost_BK * log_ratio_BK.exp()
        utility_BK = quality_BK - cost_weight_B[:, None] * cost_BK
        prices_PB, latency_BK = [cost_weight_B], None
        if queries.latency_BK is not None:
            if latency_weight_B is None:
                latency_weight_B = torch.zeros_like(cost_weight_B)
            log_ratio_BK = hidden_BH @ self.latency_tower(described_KD).T * scale
            log_ratio_BK = log_ratio_BK.clamp(-MAXIMUM_LOG_COST_RATIO, MAXIMUM_LOG_COST_RATIO)
            latency_BK = queries.latency_BK * log_ratio_BK.exp()
            utility_BK = utility_BK - latency_weight_B[:, None] * latency_BK
            prices_PB.append(latency_weight_B)
        if candidate_bias_BK is not None:
            utility_BK = utility_BK + candidate_bias_BK
        if served and self.config.margin:
            mean_K = candidate_features_KD[:, 0]
            best_B1 = mean_K.masked_fill(~mask_BK, -math.inf).argmax(dim=1, keepdim=True)
            utility_BK = utility_BK.scatter_add(1, best_B1, self.margin.expand_as(utility_BK))
        logits_BK = (self.log_sharpness.exp() * utility_BK).masked_fill(~mask_BK, -math.inf)
        value_B = self.estimate_value(hidden_BH, utility_BK, logits_BK, prices_PB)
        return Scores(logits_BK, quality_BK, cost_BK, value_B, latency_BK)

    @torch.no_grad()
    def prepare_queries(self, features_BF: Tensor, candidate_features_KD: Tensor) -> QueryBasis:
        """Return what of B queries and K candidates no learnt weight changes.

        A trainer that goes over the same queries again keeps it.
        """
        described_KD, score_CK, cost_CK = self.split_features(candidate_features_KD)
        cluster_B = self.find_clusters(features_BF)
        start_BK = score_CK[cluster_B]
        if self.config.anchors:
            kernel_BK = self.compute_kernel(features_BF) @ (self.start_MD @ described_KD.T)
            start_BK = (start_BK + candidate_features_KD[:, 0] + kernel_BK) / 2
        # rows have length 1, so their entries are small: bring them to unit variance
        inputs_BF = features_BF * math.sqrt(self.config.features)
        latency_BK = None
        if self.config.latency:
            latency_BK = self.read_latencies(candidate_features_KD)[cluster_B]
        return QueryBasis(inputs_BF, start_BK, cost_CK[cluster_B], latency_BK)

    def split_features(self, candidate_features_KD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the towers read, and score [C, K] and cost [C, K] per cluster."""
        clusters = self.config.clusters
        measured = (3 if self.config.latency else 2) * clusters
        described_KD = candidate_features_KD[:, :-measured]
        score_KC = candidate_features_KD[:, -2 * clusters : -clusters]
        cost_KC = candidate_features_KD[:, -clusters:]
        return described_KD, score_KC.T, cost_KC.T

    def read_latencies(self, candidate_features_KD: Tensor) -> Tensor:
        """Return the latency of candidates per cluster [C, K], in units of the reference."""
        clusters = self.config.clusters
        return candidate_features_KD[:, -3 * clusters : -2 * clusters].T

    def find_clusters(self, features_BF: Tensor) -> Tensor:
        """Return the nearest centroid of each query [B]."""
        distance_BC = (self.centroids_CF**2).sum(dim=1) - 2 * features_BF @ self.centroids_CF.T
        return distance_BC.argmin(dim=1)

    def compute_kernel(self, features_BF: Tensor) -> Tensor:
        """Return the kernel of queries and anchors [B, M]; see `rlroute.policies.kernel_start`."""
        square_BM = (features_BF**2).sum(dim=1, keepdim=True) + (self.anchors_MF**2).sum(dim=1)
        square_BM = square_BM - 2 * features_BF @ self.anchors_MF.T
        return (-self.config.decay * square_BM.clamp(min=0)).exp()

    def estimate_value(
        self,
        hidden_BH: Tensor,
        utility_BK: Tensor,
        logits_BK: Tensor,
        prices_PB: Sequence[Tensor],
    ) -> Tensor:
        """Return the critic's value [B]: the policy's expected utility and a learnt correction.

        The critic reads the policy's layers and sends no gradient into them. `prices_PB` are the
        weights of cost, and of latency where it counts.
        """
        expected_B = (logits_BK.softmax(dim=-1) * utility_BK).sum(dim=-1).detach()
        prices_BP = [torch.log1p(weight_B)[:, None] for weight_B in prices_PB]
        inputs = torch.cat([hidden_BH.detach(), *prices_BP], dim=1)
        correction: Tensor = self.value_head(inputs).squeeze(1)
        return expected_B + correction


def draw_dropout_mask(rows: int, config: ScorerConfig, generator: torch.Generator) -> Tensor | None:
    """Return an inverted-dropout mask [rows, H], or None where dropout is off.

    It is drawn for all rows of a minibatch at once, whichever process holds them, so that the
    number of processes changes nothing.
    """
    if config.dropout == 0:
        return None
    keep = 1 - config.dropout
    drawn = torch.rand(rows, config.hidden, generator=generator)
    return drawn.lt_(keep).div_(keep)
