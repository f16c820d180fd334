"""Whose descriptions an unseen candidate borrows, and in which mixture.

A lender counts by how often the policy picks it, and by how like the newcomer's its scores per
cluster are: weight = share * exp(-(root mean square difference / 0.1)^2).

What it leaves out: who lends (`rlroute.policies.lending`) and why.

How to use: `Lenders(share_L, described_LD, score_LC).describe(score_C)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rlroute.types import FloatArray

LIKENESS = 0.1  # a difference of scores, root mean square over clusters


@dataclass(frozen=True, eq=False)
class Lenders:
    """L candidates that a policy picks: share of its picks, description, scores per cluster.

    `described_LD` are standardised rows (`rlroute.data.routing_data.standardise_candidate`).
    """

    share_L: FloatArray
    described_LD: FloatArray
    score_LC: FloatArray

    def describe(self, score_C: FloatArray) -> FloatArray:
        """Return the row [D] that a candidate with these scores borrows."""
        distance_L = ((self.score_LC - score_C) ** 2).mean(axis=1, dtype=np.float64)
        # the nearest lender counts in full, so that no distance is too large
        like_L = np.exp(-(distance_L - distance_L.min()) / LIKENESS**2)
        weight_L = self.share_L * like_L
        return np.asarray(weight_L / weight_L.sum() @ self.described_LD, dtype=np.float32)

    def to_dict(self) -> list[dict[str, Any]]:
        """Return plain values for JSON."""
        return [
            {"share": float(share), "described": described_D.tolist(), "score": score_C.tolist()}
            for share, described_D, score_C in zip(
                self.share_L, self.described_LD, self.score_LC, strict=True
            )
        ]

    @classmethod
    def from_dict(cls, data: list[dict[str, Any]]) -> Lenders:
        """Rebuild from `to_dict`."""
        return cls(
            *(
                np.array([one[key] for one in data], dtype=np.float32)
                for key in ("share", "described", "score")
            )
        )
