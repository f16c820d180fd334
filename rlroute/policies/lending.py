"""Who lends descriptions to unseen candidates: those that the policy picks on validation.

A policy's quality and cost heads read a candidate's description (prices, and how its scores and
costs vary over the query clusters). Training lifts the estimates of those that are picked, as the
gradient sees differences only; a candidate that was never trained with has no such lift, and its
own description leads to where nothing was learnt. So it borrows the descriptions of trained
candidates, by how often the policy picks them on the validation split over its cost weights, and by
how like they are (`rlroute.data.lenders`). What was measured of it, mean score and cost and those
per cluster, stays its own: it is picked where its own profile beats those that lend.

What it leaves out: the profile itself (`rlroute.data.newcomer_profiles`).

How to use: `scale = lend_descriptions([policy], val, weights, candidates, scale)`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from rlroute.data.lenders import Lenders
from rlroute.data.routing_data import (
    FeatureScale,
    RoutingData,
    get_profile,
    standardise_candidate,
)
from rlroute.policies.decision import GreedyPolicy
from rlroute.types import Candidate


def lend_descriptions(
    policies: Sequence[GreedyPolicy],
    val: RoutingData,
    cost_weights: Sequence[float],
    candidates: Sequence[Candidate],
    scale: FeatureScale,
) -> FeatureScale:
    """Return the scale with those candidates of `val` as lenders that are picked and asked alone.

    `policies` are the policy as it decides for some latency weights, one where latency does not
    count. Every candidate may be picked for every query: with a log the pairs that were not tried
    too.
    Where the policy picks subsets and nobody alone, nobody lends.
    """
    everybody_QK = np.ones(val.table.present_QK.shape, dtype=np.bool_)
    data = dataclasses.replace(val, table=dataclasses.replace(val.table, present_QK=everybody_QK))
    share_K = np.zeros(len(candidates))
    for policy in policies:
        for weight in cost_weights:
            share_K += policy.compute_probabilities(data, weight).mean(axis=0, dtype=np.float64)
    share_K /= len(cost_weights) * len(policies)
    picked = [
        (one, share)
        for one, share in zip(candidates, share_K.tolist(), strict=True)
        if share > 0 and one.members is None
    ]
    if not picked:
        return scale
    lenders = Lenders(
        share_L=np.array([share for _, share in picked], dtype=np.float32),
        described_LD=np.stack([standardise_candidate(one, scale) for one, _ in picked]),
        score_LC=np.stack([get_profile(one).score_C for one, _ in picked]),
    )
    return dataclasses.replace(scale, lenders=lenders)
