"""What a policy sees of a cascade: the query, who was asked, and what their answers looked like.

A `CascadeView` is fitted on the train split and turns the state of B lanes into features. The world
(`rlroute.worlds.cascade`) and the exported router (`rlroute.cascade_router`) read the same one, so
they see the same. For K candidates and W features:

| feature              | what                                                                     |
| -------------------- | ------------------------------------------------------------------------ |
| query_0 ...          | with `show_query`: the query's embedding, brought to unit variance       |
| asked:ID             | 1 if the candidate was asked                                             |
| hand:ID              | 1 if its answer is the one in hand                                       |
| length:ID            | with `tokens`: ln(its completion tokens / its train mean), 0 before      |
| passed:ID            | with a checker: 1 if its answer passed                                   |
| confidence           | with a checker: 0 if the answer in hand failed, else 1                   |
| expected:stop, :ID   | the score to expect if the episode ended after this action, see below    |
| charge:stop, :ID     | what the action costs on average on queries like this (unit: reference)  |
| looks, paid          | candidates asked, of those allowed; what was paid (unit: reference)      |

`expected` looks one step ahead, by Bayes' rule on the train scores of the query's cluster, with the
checker's two rates where there is one. It takes candidates as independent of each other, which they
are not: it is a start to learn from, not a forecast.

What it leaves out: scores. Nothing here is computed from the score of an answer of this query.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from rlroute.config import StrictModel
from rlroute.data.routing_data import assign_clusters, get_profile
from rlroute.types import BoolArray, Candidate, FloatArray, IntArray

STOP = "stop"
NOBODY = -1  # no answer is in hand
CONFIDENCE = "confidence"
EXPECTED, CHARGE = "expected", "charge"
Keep = Literal["last", "best_checked"]


class CheckerConfig(StrictModel):
    """A check of answers: how often it passes right and wrong ones, and what a check costs in USD.

    Rates 1 and 0 are an exact check, as unit tests may be. An answer of score s between 0 and 1
    passes with s * true_positive + (1 - s) * false_positive.
    """

    true_positive: float = Field(ge=0, le=1)
    false_positive: float = Field(ge=0, le=1)
    price_usd: float = Field(ge=0, allow_inf_nan=False)


@dataclass(frozen=True)
class CascadeSeen:
    """What B lanes have seen so far; candidates in the order of the view.

    `hand_B` is whose answer is in hand, NOBODY before the first. `length_BK` is ln(tokens / train
    mean) of those who were asked, 0 for others; `paid_usd_B` includes the checks.
    """

    asked_BK: BoolArray
    passed_BK: BoolArray
    length_BK: FloatArray
    hand_B: IntArray
    paid_usd_B: npt.NDArray[np.float64]

    @classmethod
    def open(cls, lanes: int, candidates: int) -> CascadeSeen:
        """Return lanes that have asked nobody."""
        shape = (lanes, candidates)
        return cls(
            asked_BK=np.zeros(shape, dtype=np.bool_),
            passed_BK=np.zeros(shape, dtype=np.bool_),
            length_BK=np.zeros(shape, dtype=np.float32),
            hand_B=np.full(lanes, NOBODY),
            paid_usd_B=np.zeros(lanes, dtype=np.float64),
        )

    def clear(self, lane_N: IntArray) -> None:
        """Begin these lanes anew."""
        for array in (self.asked_BK, self.passed_BK, self.length_BK, self.paid_usd_B):
            array[lane_N] = 0
        self.hand_B[lane_N] = NOBODY

    def note(
        self,
        lane_N: IntArray,
        candidate_N: IntArray,
        passed_N: BoolArray,
        length_N: FloatArray,
        cost_usd_N: npt.NDArray[np.float64],
        keep: Keep,
    ) -> None:
        """Write down an answer in each of N lanes, and keep it or the one in hand.

        With `keep` "best_checked" an answer that failed does not replace one that passed.
        """
        hand_N = self.hand_B[lane_N]
        good_N = (hand_N != NOBODY) & self.passed_BK[lane_N, np.maximum(hand_N, 0)]
        stays_N = good_N & ~passed_N if keep == "best_checked" else np.zeros_like(good_N)
        self.asked_BK[lane_N, candidate_N] = True
        self.passed_BK[lane_N, candidate_N] = passed_N
        self.length_BK[lane_N, candidate_N] = length_N
        self.paid_usd_B[lane_N] += cost_usd_N
        self.hand_B[lane_N] = np.where(stays_N, hand_N, candidate_N)


@dataclass(frozen=True, eq=False)
class CascadeView:
    """What is known from train; candidates in the order of their mean train costs, C clusters.

    `score_CK` and `charge_CK` are the profiles (cost in units of `reference_usd`, checks
    included), `tokens_K` the mean completion tokens, None where they are no signal.
    """

    candidate_ids: tuple[str, ...]
    dimension: int
    show_query: bool
    centroids_CF: FloatArray
    score_CK: FloatArray
    charge_CK: FloatArray
    tokens_K: FloatArray | None
    reference_usd: float
    checker: CheckerConfig | None
    keep: Keep
    max_looks: int
    skip_score: float

    @property
    def feature_names(self) -> tuple[str, ...]:
        """A name for each feature, in order."""
        ids = self.candidate_ids
        signals = ["asked", "hand"]
        signals += ["length"] if self.tokens_K is not None else []
        signals += ["passed"] if self.checker else []
        return (
            *(f"query_{i}" for i in range(self.dimension if self.show_query else 0)),
            *(f"{signal}:{one}" for signal in signals for one in ids),
            *([CONFIDENCE] if self.checker else []),
            *(f"{EXPECTED}:{one}" for one in (STOP, *ids)),
            *(f"{CHARGE}:{one}" for one in (STOP, *ids)),
            *("looks", "paid"),
        )

    def read_length(self, tokens_NK: FloatArray) -> FloatArray:
        """Return ln(completion tokens / train mean) [N, K]; 0 where unknown, or no signal."""
        if self.tokens_K is None:
            return np.zeros_like(tokens_NK)
        ratio_NK = np.log(np.maximum(tokens_NK, 1.0) / np.maximum(self.tokens_K, 1.0))
        return np.nan_to_num(ratio_NK).astype(np.float32)

    def read(self, features_BF: FloatArray, cluster_B: IntArray, seen: CascadeSeen) -> FloatArray:
        """Return features [B, W] of B lanes from their queries' embeddings and clusters."""
        candidate_K = np.arange(len(self.candidate_ids))
        columns = [seen.asked_BK, seen.hand_B[:, None] == candidate_K]
        if self.show_query:
            columns.insert(0, features_BF * math.sqrt(self.dimension))
        if self.tokens_K is not None:
            columns.append(seen.length_BK)
        if self.checker:
            doubtful_B = (seen.hand_B != NOBODY) & ~self.read_passed(seen)
            columns += [seen.passed_BK, ~doubtful_B[:, None]]
        charge_BK = self.charge_CK[cluster_B]
        columns += [
            self.expect_scores(self.score_CK[cluster_B], seen),
            np.zeros_like(charge_BK[:, :1]),
            charge_BK,
            seen.asked_BK.sum(axis=1, keepdims=True) / self.max_looks,
            seen.paid_usd_B[:, None] / self.reference_usd,
        ]
        return np.concatenate([column.astype(np.float32) for column in columns], axis=1)

    def read_passed(self, seen: CascadeSeen) -> BoolArray:
        """Return whether the answer in hand passed [B]; False where there is none."""
        row_B = np.arange(len(seen.hand_B))
        passed_B = seen.passed_BK[row_B, np.maximum(seen.hand_B, 0)]
        return np.asarray(passed_B & (seen.hand_B != NOBODY))

    def expect_scores(self, score_BK: FloatArray, seen: CascadeSeen) -> FloatArray:
        """Return what to expect if the episode ended after each action [B, 1 + K], `stop` first.

        `score_BK` are the profiles. After an answer that passed, another look keeps it unless the
        other one passes too, where the answers that passed are kept.
        """
        row_B, hand_B = np.arange(len(score_BK)), np.maximum(seen.hand_B, 0)
        good_B = self.read_passed(seen)
        own_B = score_BK[row_B, hand_B]
        look_BK = score_BK
        if self.checker:
            right, wrong = self.checker.true_positive, self.checker.false_positive
            pass_BK = score_BK * right + (1 - score_BK) * wrong
            posterior_BK = weigh_evidence(score_BK, right, wrong)
            failed_B = weigh_evidence(own_B, 1 - right, 1 - wrong)
            own_B = np.where(good_B, posterior_BK[row_B, hand_B], failed_B)
            if self.keep == "best_checked":
                kept_BK = pass_BK * posterior_BK + (1 - pass_BK) * own_B[:, None]
                look_BK = np.where(good_B[:, None], kept_BK, score_BK)
        stop_B = np.where(seen.hand_B == NOBODY, self.skip_score, own_B)
        return np.concatenate([stop_B[:, None], look_BK], axis=1).astype(np.float32)


def weigh_evidence(prior_N: FloatArray, if_right: float, if_wrong: float) -> FloatArray:
    """Return P(right | evidence) of evidence with these likelihoods; the prior where both are 0."""
    joint_N = prior_N * if_right
    total_N = joint_N + (1 - prior_N) * if_wrong
    return np.asarray(np.where(total_N > 0, joint_N / np.where(total_N > 0, total_N, 1), prior_N))


def find_clusters(features_QF: FloatArray, centroids_CF: FloatArray) -> IntArray:
    """Return the cluster of each query [Q]."""
    return assign_clusters(features_QF, centroids_CF)


def read_profiles(candidates: tuple[Candidate, ...]) -> tuple[FloatArray, FloatArray]:
    """Return train score [C, K] and cost in USD [C, K] per cluster."""
    profiles = [get_profile(one) for one in candidates]
    score_CK = np.stack([np.asarray(one.score_C) for one in profiles], axis=1)
    cost_CK = np.stack([np.asarray(one.cost_usd_C) for one in profiles], axis=1)
    return score_CK, cost_CK
