"""Plays a plan of memory-tier episodes in lock-step and hands the trainer a batch.

A batch has M steps, one for each module. The reward terms are 0 before the last step; there they
are the episode's, NaN where a call failed: such an episode is counted as dropped and never learnt
from. It leaves out drawing cost weights and caps (the caller's, from the plan's seeds), and windows
that several processes share: there `push=False`, and `place_terms` after pushing what all have.
"""

from __future__ import annotations

import numpy as np

from rlroute.envs.memory_tiers import TierEnds, TierEpisodes
from rlroute.policies.tierwise import TierInputs, TierPolicy
from rlroute.rewards.memory import MemoryReward
from rlroute.rollout.plan import EpisodePlan
from rlroute.types import MEMBER, Batch, BoolArray, EpisodeEnds, FloatArray, UsdArray


def collect_tier_batch(
    policy: TierPolicy,
    episodes: TierEpisodes,
    plan: EpisodePlan,
    cost_weight_B: FloatArray,
    reward: MemoryReward,
    *,
    candidate_features_KD: FloatArray,
    cap_usd_B: UsdArray | None = None,
    push: bool = True,
) -> Batch:
    """Play the episodes of a plan, one lane each.

    `candidate_features_KD` goes into the batch as it is. With `push` the batch joins the reward's
    window before its own episodes are placed in it; a frozen reward needs `push=False`.

    Raises:
        ValueError: `cap_usd_B` is given, and the episodes have no bounds.
        RLRouteError: `push` with a frozen reward.
    """
    lanes, modules = len(plan.group_B), episodes.modules
    episodes.start(plan.query_index_B, cost_weight_B, cap_usd_B)
    features_BTF = np.empty((lanes, modules, episodes.features), dtype=np.float32)
    mask_BTK = np.empty((lanes, modules, episodes.tiers), dtype=np.bool_)
    logp_BT, value_BT = (np.empty((lanes, modules), dtype=np.float32) for _ in range(2))
    for step in range(modules):
        seen = episodes.observe()
        inputs = TierInputs(seen.features_BF, seen.module, seen.mask_BK, seen.cost_weight_B)
        taken = policy.decide(inputs, plan.draw_action_uniforms(step))
        features_BTF[:, step], mask_BTK[:, step] = seen.features_BF, seen.mask_BK
        logp_BT[:, step], value_BT[:, step] = taken.logp_B, taken.value_B
        episodes.act(taken.action_B)
    ends = episodes.end()
    failed_B = np.isnan(ends.score_B) | np.isnan(ends.cost_usd_B)
    if push:
        reward.push(ends.score_B, ends.cost_usd_B)
    return Batch(
        features_BTF=features_BTF,
        candidate_features_KD=candidate_features_KD,
        mask_BTK=mask_BTK,
        cost_weight_B=episodes.cost_weight_B,
        action_BT=ends.tier_BM,
        logp_BT=logp_BT,
        value_BT=value_BT,
        valid_BT=np.ones((lanes, modules), dtype=np.bool_),
        terminated_B=~failed_B,
        reward_terms_BT=place_terms(reward, ends.score_B, ends.cost_usd_B, modules),
        query_index_B=plan.query_index_B,
        group_B=plan.group_B,
        policy_version=policy.version,
        dropped=int(failed_B.sum()),
        ends=describe_ends(ends, episodes.cap_usd_B, mask_BTK, failed_B),
    )


def place_terms(
    reward: MemoryReward, score_B: FloatArray, cost_usd_B: UsdArray | FloatArray, steps: int
) -> dict[str, FloatArray]:
    """Return the reward terms [B, T] of episodes of T steps: all of it at the last one."""
    terms = {}
    for name, value_B in reward.score(score_B, cost_usd_B).items():
        terms[name] = np.zeros((len(score_B), steps), dtype=np.float32)
        terms[name][:, -1] = value_B
    return terms


def describe_ends(
    ends: TierEnds, cap_usd_B: UsdArray, mask_BTK: BoolArray, failed_B: BoolArray
) -> EpisodeEnds:
    """Return the ends as a batch holds them; a module with one allowed tier was no choice."""
    lanes = len(failed_B)
    nowhere_B = np.zeros(lanes, dtype=np.bool_)
    return EpisodeEnds(
        score_B=np.where(failed_B, np.nan, ends.score_B).astype(np.float32),
        cost_usd_B=np.where(failed_B, np.nan, ends.cost_usd_B).astype(np.float32),
        calls_B=np.zeros(lanes, dtype=np.int64),  # a budget of tiers counts no calls
        cap_B=cap_usd_B.astype(np.float32),
        exhausted_B=nowhere_B,
        free_BT=mask_BTK.sum(axis=2) > 1,
        role_B=np.full(lanes, MEMBER),
        reference_BR=np.full((lanes, 0), np.nan, dtype=np.float32),
        solvable_B=nowhere_B,
        hard_B=nowhere_B,
    )
