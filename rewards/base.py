"""Reward terms and their stack: terms stay apart until the advantage, undefined is not zero.

A term maps what calls returned (score, cost, failed or not) to numbers; NaN says undefined. The
stack computes all terms and, as the last act before an advantage is taken, combines them:

    reward = sum over terms of weight(term, cost weight) * term

(the term `latency` has the latency weight in place of the cost weight).

A combined reward is undefined as soon as one of its terms is, and an undefined reward is never
trained on. The same functions serve one episode (arrays of one) and thousands of lanes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rlroute.types import BoolArray, FloatArray, Reply

LATENCY = "latency"  # the term that follows the latency weight


@dataclass(frozen=True)
class Outcomes:
    """What N calls returned: score in [0, 1], cost in USD, and whether the call failed.

    Where a term reads them also how long it took (NaN: not measured), and how much the episode's
    user favours the candidate that was asked.
    """

    score_N: FloatArray
    cost_usd_N: FloatArray
    failed_N: BoolArray
    latency_seconds_N: FloatArray | None = None
    bias_N: FloatArray | None = None


class RewardTerm(Protocol):
    """One named number per outcome, undefined (NaN) where it cannot be told."""

    @property
    def name(self) -> str:
        """The term's name in metrics and batches."""

    def compute(self, outcomes: Outcomes) -> FloatArray:
        """Return the term of each outcome [N]; NaN where undefined."""

    def weigh(self, cost_weight_N: FloatArray) -> FloatArray:
        """Return the term's weight in the reward at each cost weight [N]."""


@dataclass(frozen=True)
class RewardStack:
    """The reward terms of a problem, in order."""

    terms: Sequence[RewardTerm]

    def score(self, outcomes: Outcomes) -> dict[str, FloatArray]:
        """Return every term apart: name -> [N]."""
        return {term.name: term.compute(outcomes) for term in self.terms}

    def combine(
        self,
        values: Mapping[str, FloatArray],
        cost_weight_N: FloatArray,
        latency_weight_N: FloatArray | None = None,
    ) -> FloatArray:
        """Return the combined reward, shaped as the terms; NaN where any term is undefined.

        The weights must broadcast against the terms; that of latency is read by the term `latency`.

        Raises:
            ValueError: there is such a term and no weight for it, or the other way round.
        """
        weights = {LATENCY: latency_weight_N}
        if any(term.name == LATENCY for term in self.terms) != (latency_weight_N is not None):
            raise ValueError("a latency weight goes with a term 'latency', and neither alone")
        weighed = [
            term.weigh(cost_weight_N if (own := weights.get(term.name)) is None else own)
            * values[term.name]
            for term in self.terms
        ]
        return np.asarray(np.sum(weighed, axis=0), dtype=np.float32)


def collect_outcomes(replies: Sequence[Reply]) -> Outcomes:
    """Turn replies into arrays; a reply without a score is undefined, not zero."""
    return Outcomes(
        score_N=np.array(
            [np.nan if reply.score is None else reply.score for reply in replies], dtype=np.float32
        ),
        cost_usd_N=np.array([reply.cost_usd for reply in replies], dtype=np.float32),
        failed_N=np.array([reply.failure is not None for reply in replies], dtype=np.bool_),
        latency_seconds_N=np.array(
            [
                np.nan if reply.latency_seconds is None else reply.latency_seconds
                for reply in replies
            ],
            dtype=np.float32,
        ),
    )
