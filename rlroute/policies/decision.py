"""How a candidate scorer acts: sampled in rollouts, greedy in evaluation and service.

Sampling inverts the cumulative distribution at a uniform number handed in by the caller, so a
decision is a pure function of weights, observation and coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from rlroute.data.routing_data import RoutingData, cut_rows
from rlroute.data.users import ANYBODY, Preference
from rlroute.policies.mlp import CandidateScorer, QueryBasis, Scores
from rlroute.types import BoolArray, FloatArray, IntArray


@dataclass(frozen=True)
class Decisions:
    """B decisions: action, its log-probability under the masked distribution, and the value."""

    action_B: IntArray
    logp_B: FloatArray
    value_B: FloatArray


class ActingPolicy(Protocol):
    """What a rollout driver needs of a policy."""

    @property
    def version(self) -> int:
        """The number of updates behind the policy's weights."""

    def decide(
        self,
        features_BF: FloatArray,
        candidate_features_KD: FloatArray,
        mask_BK: BoolArray,
        cost_weight_B: FloatArray,
        uniform_B: npt.NDArray[np.float64],
        latency_weight_B: FloatArray | None = None,
        candidate_bias_BK: FloatArray | None = None,
    ) -> Decisions:
        """Decide for B observations; `uniform_B` in [0, 1) is all the chance there is."""


def score(
    model: CandidateScorer,
    queries: FloatArray | QueryBasis,
    candidate_features_KD: FloatArray,
    mask_BK: BoolArray,
    cost_weight_B: FloatArray,
    latency_weight_B: FloatArray | None = None,
    candidate_bias_BK: FloatArray | None = None,
    *,
    served: bool,
) -> Scores:
    """Run the network on features [B, F] or what was made of them, without dropout or gradient.

    `served` decides as the policy does in service, with its margin; otherwise as it learns.
    """
    device = next(model.parameters()).device
    known = queries if isinstance(queries, QueryBasis) else None
    latency_B, bias_BK = (
        None if one is None else torch.as_tensor(one, device=device)
        for one in (latency_weight_B, candidate_bias_BK)
    )
    with torch.no_grad():
        scores: Scores = model(
            known or torch.as_tensor(queries, device=device),
            torch.as_tensor(candidate_features_KD, device=device),
            torch.as_tensor(mask_BK, device=device),
            torch.as_tensor(cost_weight_B, device=device),
            latency_weight_B=latency_B,
            candidate_bias_BK=bias_BK,
            served=served,
        )
    return scores


@dataclass
class SamplingPolicy:
    """Samples from the scorer's softmax; `version` is the number of updates behind its weights.

    `basis` is what was made of the queries decided on last, for who learns from them.
    """

    model: CandidateScorer
    version: int = 0
    basis: QueryBasis | None = None

    def decide(
        self,
        features_BF: FloatArray,
        candidate_features_KD: FloatArray,
        mask_BK: BoolArray,
        cost_weight_B: FloatArray,
        uniform_B: npt.NDArray[np.float64],
        latency_weight_B: FloatArray | None = None,
        candidate_bias_BK: FloatArray | None = None,
    ) -> Decisions:
        """Sample B actions; a masked candidate has probability 0 and is never drawn."""
        device = next(self.model.parameters()).device
        self.basis = self.model.prepare_queries(
            torch.as_tensor(features_BF, device=device),
            torch.as_tensor(candidate_features_KD, device=device),
        )
        scores = score(
            self.model,
            self.basis,
            candidate_features_KD,
            mask_BK,
            cost_weight_B,
            latency_weight_B,
            candidate_bias_BK,
            served=False,
        )
        logp_BK = scores.logp_BK.cpu().numpy()
        action_B = sample_actions(logp_BK, uniform_B)
        return Decisions(
            action_B=action_B,
            logp_B=np.take_along_axis(logp_BK, action_B[:, None], axis=1)[:, 0],
            value_B=scores.value_B.cpu().numpy(),
        )


def sample_actions(logp_BK: FloatArray, uniform_B: npt.NDArray[np.float64]) -> IntArray:
    """Return the action of each row at which the cumulative distribution passes `uniform_B`."""
    cumulative_BK = np.exp(logp_BK.astype(np.float64)).cumsum(axis=1)
    threshold_B = uniform_B * cumulative_BK[:, -1]
    return np.asarray((cumulative_BK <= threshold_B[:, None]).sum(axis=1), dtype=np.int64)


@dataclass(frozen=True)
class GreedyPolicy:
    """Picks the best-scored candidate; what is evaluated and what serves.

    `preference` is whom it decides for, beside the cost weight.
    """

    model: CandidateScorer
    name: str = "policy"
    preference: Preference = ANYBODY

    def compute_probabilities(self, data: RoutingData, cost_weight: float) -> FloatArray:
        """Return one-hot rows [Q, K] at one cost weight."""
        pick_Q, _, _ = self.estimate_picks(data, cost_weight)
        probability_QK = np.zeros(data.table.present_QK.shape, dtype=np.float32)
        probability_QK[np.arange(len(pick_Q)), pick_Q] = 1.0
        return probability_QK

    def estimate_picks(
        self, data: RoutingData, cost_weight: float
    ) -> tuple[IntArray, FloatArray, FloatArray]:
        """Return the picks [Q] with the quality and the normalised cost expected of them [Q]."""
        parts = []
        for rows in cut_rows(len(data.features_QF)):
            features_BF = data.features_QF[rows]
            weights_B, bias_BK = self.preference.repeat(
                len(features_BF), latency=self.model.config.latency
            )
            scores = score(
                self.model,
                features_BF,
                data.candidate_features_KD,
                data.table.present_QK[rows],
                np.full(len(features_BF), cost_weight, dtype=np.float32),
                weights_B,
                bias_BK,
                served=True,
            )
            pick_B1 = scores.logits_BK.argmax(dim=1, keepdim=True)
            taken = (
                pick_B1,
                scores.quality_BK.gather(1, pick_B1),
                scores.cost_BK.gather(1, pick_B1),
            )
            parts.append([one_B1.squeeze(1).cpu().numpy() for one_B1 in taken])
        pick_Q, quality_Q, cost_Q = (np.concatenate(column) for column in zip(*parts, strict=True))
        return pick_Q, quality_Q, cost_Q
