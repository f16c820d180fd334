"""The policy of memory pipelines: one network that chooses a tier for every module.

    text_BH    = W_text [query_BE, state_BE, extras_BX]      (the last: what was spent, cost weight)
    module_BH  = W_module v_m                                (v: a learnt vector for each module)
    hidden_BH  = two relu layers over [text_BH, module_BH]
    action_BA  = relu layer over hidden_BH
    logit_BK   = action_BA . (W_tier d_mk) / sqrt(A)         or  W_out action_BA  (head: outputs)
    value_B    = another relu layer and a linear one over hidden_BH

With a start (`rlroute.policies.tier_profiles`) sharpness * start_BK is added to the logits: the
first policy then plays what was best on similar train questions, and the network is a correction
of it, which weight decay pulls to none.

All is shared by the modules; v starts at the embedding of the module's description. d_mk describes
tier k of module m: its place among the tiers and what it costs, so that tiers can be added and
repriced without another network; W_tier starts at zero, so the first policy is uniform.

BudgetMem's network is `head: outputs, extras: none, unit_variance: false`: 857,604 parameters for
embeddings of 768 (the text and module layers have no non-linearity, all weights start orthogonal
with gain sqrt(2), the last one of the value with 0.01).

It leaves out sampling for training (`rlroute.rollout.tiers`) and every training library.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from rlroute.config import StrictModel
from rlroute.policies.decision import Decisions, sample_actions
from rlroute.policies.step_scorer import StepScores
from rlroute.policies.tier_profiles import TierProfiles, TierStart, TierStartShape
from rlroute.policies.tierwise import TierInputs
from rlroute.types import FloatArray, UsdArray

TIER_WIDTH = 4
# Where the extras of `rlroute.envs.memory_tiers` hold what a start from profiles reads.
LOG_WEIGHT_PLACE, CHOSEN_PLACE = 1, 3
Head = Literal["described", "outputs"]
Extras = Literal["all", "none"]


class TierScorerConfig(StrictModel):
    """Shape of the network: embeddings of E, X extras, M modules of up to K tiers."""

    dimension: int = Field(ge=1)
    extras: int = Field(ge=0)
    modules: int = Field(ge=1)
    tiers: int = Field(ge=2)
    hidden: int = Field(default=256, ge=1)
    action_hidden: int = Field(default=128, ge=1)
    head: Head = "described"
    read_extras: Extras = "all"
    unit_variance: bool = True
    start: TierStartShape | None = None

    @model_validator(mode="after")
    def check_start(self) -> TierScorerConfig:
        """Refuse a start that is not of these modules, or could not see what it reads."""
        if self.start is None:
            return self
        if len(self.start.counts) != self.modules or max(self.start.counts) != self.tiers:
            raise ValueError("start.counts: must name the tiers of each module")
        if self.read_extras == "none":
            raise ValueError("start: reads the cost weight, so it needs read_extras: all")
        return self

    @property
    def read_width(self) -> int:
        """How many of the features are read."""
        return 2 * self.dimension + (self.extras if self.read_extras == "all" else 0)


class TierScorer(nn.Module):
    """Scores the tiers of modules; see the module's text."""

    def __init__(self, config: TierScorerConfig) -> None:
        super().__init__()
        self.config = config
        hidden, inner, width = config.hidden, config.action_hidden, config.dimension
        self.text_layer = nn.Linear(config.read_width, hidden)
        self.module_layer = nn.Linear(width, hidden)
        self.module_vectors_ME = nn.Parameter(torch.zeros(config.modules, width))
        self.body = nn.Sequential(
            nn.Linear(2 * hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        )
        self.action_layer = nn.Sequential(nn.Linear(hidden, inner), nn.ReLU())
        self.value_layer = nn.Sequential(nn.Linear(hidden, inner), nn.ReLU())
        self.value_output = nn.Linear(inner, 1)
        self.output: nn.Linear
        if config.head == "outputs":
            self.output = nn.Linear(inner, config.tiers)
        else:
            self.output = nn.Linear(TIER_WIDTH, inner, bias=False)
        self.tier_features_MKD: Tensor
        shape = (config.modules, config.tiers, TIER_WIDTH)
        self.register_buffer("tier_features_MKD", torch.zeros(shape))
        self.start: TierStart | None = None
        if config.start is not None:
            self.start = TierStart(config.start, width)
        self.initialise()

    def initialise(self) -> None:
        """Draw the weights as the source does; a head over descriptions starts at zero."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.orthogonal_(layer.weight, gain=math.sqrt(2))
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        nn.init.orthogonal_(self.value_output.weight, gain=0.01)
        if self.config.head == "described":
            nn.init.zeros_(self.output.weight)

    def describe(self, description_ME: FloatArray, tier_features_MKD: FloatArray) -> None:
        """Set where the module vectors start, and what describes the tiers."""
        with torch.no_grad():
            self.module_vectors_ME.copy_(torch.as_tensor(description_ME))
            self.tier_features_MKD.copy_(torch.as_tensor(tier_features_MKD))

    def begin_from(self, profiles: TierProfiles) -> None:
        """Set the profiles that a policy with a start begins from."""
        assert self.start is not None
        self.start.set_profiles(profiles)

    def forward(self, features_NF: Tensor, module_N: Tensor, mask_NK: Tensor) -> StepScores:
        """Score K tiers for N decisions, each of a module."""
        config = self.config
        scale = math.sqrt(config.dimension) if config.unit_variance else 1.0
        read_NR = features_NF[:, : 2 * config.dimension] * scale
        if config.read_extras == "all":
            read_NR = torch.cat([read_NR, features_NF[:, 2 * config.dimension :]], dim=1)
        module_NH = self.module_layer(self.module_vectors_ME * scale)[module_N]
        hidden_NH = self.body(torch.cat([self.text_layer(read_NR), module_NH], dim=1))
        action_NA = self.action_layer(hidden_NH)
        if config.head == "outputs":
            logits_NK = self.output(action_NA)
        else:
            tier_MKA = self.output(self.tier_features_MKD)
            logits_NK = torch.einsum("na,nka->nk", action_NA, tier_MKA[module_N])
            logits_NK = logits_NK / math.sqrt(config.action_hidden)
        value_N: Tensor = self.value_output(self.value_layer(hidden_NH)).squeeze(1)
        if self.start is not None:
            logits_NK = logits_NK + self.start.shape.sharpness * self.find_start(
                features_NF, module_N, self.start
            )
        return StepScores(logits_NK.masked_fill(~mask_NK, -math.inf), value_N)

    def find_start(self, features_NF: Tensor, module_N: Tensor, start: TierStart) -> Tensor:
        """Return what the tiers are worth by the profiles [N, K]."""
        config = self.config
        extras_NX = features_NF[:, 2 * config.dimension :]
        tiers = config.modules * config.tiers
        chosen_NJ = extras_NX[:, CHOSEN_PLACE : CHOSEN_PLACE + tiers]
        found_NK: Tensor = start(
            features_NF[:, : config.dimension],
            torch.expm1(extras_NX[:, LOG_WEIGHT_PLACE]),
            chosen_NJ.reshape(-1, config.modules, config.tiers),
            module_N,
        )
        return found_NK


@dataclass(frozen=True)
class TierScorerPolicy:
    """Acts by a tier scorer: sampled in rollouts, greedy in evaluation and service."""

    model: TierScorer
    version: int = 0
    greedy: bool = False

    def decide(self, inputs: TierInputs, uniform_B: UsdArray) -> Decisions:
        """Decide for B lanes at one module; `uniform_B` in [0, 1) is all the chance there is."""
        device = self.model.tier_features_MKD.device
        lanes = len(inputs.features_BF)
        with torch.no_grad():
            scores: StepScores = self.model(
                torch.as_tensor(inputs.features_BF, device=device),
                torch.full((lanes,), inputs.module, dtype=torch.int64, device=device),
                torch.as_tensor(inputs.mask_BK, device=device),
            )
        logp_BK = scores.logp_BK.cpu().numpy()
        action_B = logp_BK.argmax(axis=1) if self.greedy else sample_actions(logp_BK, uniform_B)
        return Decisions(
            action_B=action_B,
            logp_B=np.take_along_axis(logp_BK, action_B[:, None], axis=1)[:, 0],
            value_B=scores.value_B.cpu().numpy(),
        )


def describe_tiers(
    cost_usd_by_module: Sequence[Sequence[float]], reference_usd: float
) -> FloatArray:
    """Return what describes tiers [M, K, D]: 1, place p in [0, 1], p squared, share of the cost.

    `cost_usd_by_module` holds the mean costs of each module's tiers, in their order, in USD, and
    the share is that of `reference_usd`. Tiers that a module has not are zero.
    """
    most = max(len(costs) for costs in cost_usd_by_module)
    features_MKD = np.zeros((len(cost_usd_by_module), most, TIER_WIDTH), dtype=np.float32)
    for m, costs in enumerate(cost_usd_by_module):
        place_K = np.arange(len(costs)) / (len(costs) - 1)
        share_K = np.asarray(costs) / reference_usd if reference_usd else np.zeros(len(costs))
        features_MKD[m, : len(costs)] = np.stack(
            [np.ones(len(costs)), place_K, place_K**2, share_K], axis=1
        )
    return features_MKD
