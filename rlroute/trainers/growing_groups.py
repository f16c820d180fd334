"""Groups that grow while rollouts and prior disagree, and the prior that measured profiles give.

    round 0   every group plays its first members; the prior says what they should earn
    round i   groups whose fused baseline would gain more than the rollouts cost play a few more

The prior is the policy's expected reward if every candidate k earned what its profile says of the
query's cluster. Its variance is what the rewards of a group may be expected to vary by:

    sum over k of p_k * (u_k - mean)^2 + p_k * (1 - p_k) * s_k * (1 - s_k)

with p the policy's probabilities, u the expected rewards, s the expected scores; s * (1 - s) is the
most that a score in [0, 1] can vary, and a candidate asked twice about one query answers alike, so
a policy that is sure of its pick expects no variance. A table gives all this for nothing, no value
model is trained. Only rewards that are
defined are compared with it, so a candidate counts in it by the share of its calls that answered:
what a dead candidate would earn must not make the living ones look bad.

Each process grows its own groups; members are drawn from their coordinates (query, group, place in
the group), so neither rounds nor processes change what is drawn.

It leaves out the formulas (`rlroute.algorithms.prior`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from rlroute.algorithms.groups import locate_in_groups, spread_groups
from rlroute.algorithms.prior import bound_variance, find_growing, fuse_baseline
from rlroute.data.routing_data import RoutingData, assign_clusters, get_profile
from rlroute.policies.decision import score
from rlroute.rollout.plan import EpisodePlan
from rlroute.rollout.rows import join_by_group, select_rows
from rlroute.trainers.learner import Learner, Rewards
from rlroute.trainers.recipe import PriorGRPOConfig
from rlroute.types import Batch, BoolArray, FloatArray, IntArray

SCORE_HALF_RANGE = 0.5  # of right and wrong, 1 and 0; the source's +1 and -1 have 1
Play = Callable[[EpisodePlan], Batch]


@dataclass(frozen=True)
class ProfilePrior:
    """What profiles measured on train expect: reward terms [C, K] by name, each query's cluster."""

    terms_CK: Mapping[str, FloatArray]
    cluster_Q: IntArray

    def expect(
        self,
        query_index_B: IntArray,
        probability_BK: FloatArray,
        cost_weight_B: FloatArray,
        rewards: Rewards,
    ) -> tuple[FloatArray, FloatArray]:
        """Return mean and variance [B] of the rewards of picks with these probabilities."""
        cluster_B = self.cluster_Q[query_index_B]
        terms = {name: value_CK[cluster_B] for name, value_CK in self.terms_CK.items()}
        utility_BK = rewards.combine(terms, cost_weight_B[:, None])
        mean_B = (probability_BK * utility_BK).sum(axis=1)
        chance_BK = np.clip(terms["outcome"], 0, 1)
        spread_BK = (utility_BK - mean_B[:, None]) ** 2
        chance_spread_BK = (1 - probability_BK) * chance_BK * (1 - chance_BK)
        variance_B = (probability_BK * (spread_BK + chance_spread_BK)).sum(axis=1)
        return mean_B.astype(np.float32), variance_B.astype(np.float32)


def build_prior(data: RoutingData, centroids_CF: FloatArray) -> ProfilePrior:
    """Return the prior of a split's queries; see the module."""
    profiles = [get_profile(candidate) for candidate in data.table.candidates]
    cost_usd_CK = np.stack([profile.cost_usd_C for profile in profiles], axis=1)
    return ProfilePrior(
        terms_CK={
            "outcome": np.stack([profile.score_C for profile in profiles], axis=1),
            "cost": cost_usd_CK / np.float32(data.cost_reference_usd),
        },
        cluster_Q=assign_clusters(data.features_QF, centroids_CF),
    )


def collect_growing(
    play: Play,
    plan: EpisodePlan,
    prior: ProfilePrior,
    learner: Learner,
    algorithm: PriorGRPOConfig,
) -> Batch:
    """Play the first members of each group of `plan`, and more where they are worth their price.

    `plan` holds groups of the greatest size. The batch's groups are of unequal size.
    """
    rewards, size = learner.rewards, algorithm.group_size
    number_B = number_groups(plan.group_B)
    place_B = np.arange(len(plan.group_B)) % algorithm.max_group_size
    batch = play(plan.select_rows(np.flatnonzero(place_B < size)))
    mean_N, variance_N = expect_groups(batch, size, prior, learner)
    growing_N = np.ones(len(mean_N), dtype=np.bool_)
    while size < algorithm.max_group_size:
        growing_N &= find_worthwhile(batch, mean_N, variance_N, rewards, algorithm)
        if not growing_N.any():
            break
        more_B = (place_B >= size) & (place_B < size + algorithm.grow_by) & growing_N[number_B]
        batch = join_by_group([batch, play(plan.select_rows(np.flatnonzero(more_B)))])
        size += algorithm.grow_by
    own_B = number_groups(batch.group_B)
    return replace(batch, prior_mean_B=mean_N[own_B], prior_variance_B=variance_N[own_B])


def number_groups(group_B: IntArray) -> IntArray:
    """Return the number of each row's group in this process, from 0 [B]."""
    number_B: IntArray = locate_in_groups(torch.as_tensor(group_B))[0].numpy()
    return number_B


def expect_groups(
    batch: Batch, size: int, prior: ProfilePrior, learner: Learner
) -> tuple[FloatArray, FloatArray]:
    """Return the prior's mean and variance [N] for groups of which `size` members were played."""
    first = select_rows(batch, np.arange(0, len(batch.group_B), size))
    scores = score(
        learner.scorer,
        first.features_BTF[:, 0],
        first.candidate_features_KD,
        first.mask_BTK[:, 0],
        first.cost_weight_B,
        served=False,
    )
    probability_NK = scores.logp_BK.exp().cpu().numpy() * measure_answered(batch, learner)
    total_N1 = probability_NK.sum(axis=1, keepdims=True)
    probability_NK /= np.maximum(total_N1, np.finfo(np.float32).tiny)
    return prior.expect(first.query_index_B, probability_NK, first.cost_weight_B, learner.rewards)


def measure_answered(batch: Batch, learner: Learner) -> FloatArray:
    """Return the share of each candidate's calls in a batch, of all processes, that answered [K].

    It is 1 for candidates that nobody asked.
    """
    candidates = batch.mask_BTK.shape[2]
    reward_B1 = learner.rewards.combine(batch.reward_terms_BT, batch.cost_weight_B[:, None])
    failed_B = np.isnan(reward_B1[:, 0])
    counts_2K = [
        np.bincount(batch.action_BT[rows_B, 0], minlength=candidates)
        for rows_B in (np.ones_like(failed_B), failed_B)
    ]
    local_2K = torch.as_tensor(np.stack(counts_2K), device=learner.accelerator.device)
    asked_K, failed_K = learner.accelerator.reduce(local_2K, reduction="sum").cpu().numpy()
    answered_K: FloatArray = (1 - failed_K / np.maximum(asked_K, 1)).astype(np.float32)
    return answered_K


def find_worthwhile(
    batch: Batch,
    mean_N: FloatArray,
    variance_N: FloatArray,
    rewards: Rewards,
    algorithm: PriorGRPOConfig,
) -> BoolArray:
    """Say of which groups the next rollouts are worth their price [N]."""
    reward_B1 = rewards.combine(batch.reward_terms_BT, batch.cost_weight_B[:, None])
    reward_NG = spread_groups(torch.as_tensor(reward_B1[:, 0]), torch.as_tensor(batch.group_B))
    bound_N = bound_variance(reward_NG, torch.as_tensor(variance_N))
    found = fuse_baseline(reward_NG, torch.as_tensor(mean_N), bound_N)
    price = algorithm.rollout_price * SCORE_HALF_RANGE**2
    growing_N: BoolArray = find_growing(found, algorithm.grow_by, price).numpy()
    return growing_N
