"""Which episodes an update consists of: queries, seeds and groups, from coordinates alone.

Queries come in a new random order each pass over the split, without repetition within a pass. The
members of a group share query and episode seed (so the same cost weight) and differ in the seed of
their actions. A process takes a slice of the plan, and no draw depends on how it is sliced.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from rlroute.seeding import UIntArray, draw_permutation, draw_uniform, mix
from rlroute.types import FORCED, MEMBER, BoolArray, IntArray

FREE = -1  # no candidate is forced


@dataclass(frozen=True)
class EpisodePlan:
    """B episodes: which query, from which seeds, in which group (from 0, over all processes).

    `forced_arm_B` is the candidate that an episode is to ask, FREE where the policy decides; None
    where it decides everywhere.
    """

    query_index_B: IntArray
    episode_seed_B: IntArray
    action_seed_B: IntArray
    group_B: IntArray
    forced_arm_B: IntArray | None = None

    @property
    def role_B(self) -> IntArray | None:
        """MEMBER, or FORCED where the action is; None where all are members."""
        if self.forced_arm_B is None:
            return None
        return np.where(self.forced_arm_B == FREE, MEMBER, FORCED)

    def select_part(self, part: int, parts: int) -> EpisodePlan:
        """Return one of `parts` equal slices, in order; groups are of one size and stay whole.

        Raises:
            ValueError: the groups cannot be shared out equally.
        """
        if parts == 1:
            return self
        groups = len(np.unique(self.group_B))
        if groups % parts:
            raise ValueError(f"{groups} groups cannot be shared out to {parts} processes")
        size = len(self.group_B) // parts
        return self.select_rows(slice(part * size, (part + 1) * size))

    def select_rows(self, chosen: slice | IntArray) -> EpisodePlan:
        """Return some of the episodes, in order."""
        return EpisodePlan(
            self.query_index_B[chosen],
            self.episode_seed_B[chosen],
            self.action_seed_B[chosen],
            self.group_B[chosen],
            None if self.forced_arm_B is None else self.forced_arm_B[chosen],
        )

    def draw_action_uniforms(self, turn: int) -> npt.NDArray[np.float64]:
        """Return the uniform number behind each episode's action at a turn [B]."""
        return draw_action_uniform(self.action_seed_B, turn)


def plan_episodes(
    seed: int, update: int, *, queries: int, groups: int, group_size: int
) -> EpisodePlan:
    """Plan `groups` x `group_size` episodes over a split of `queries` queries."""
    position_N = update * groups + np.arange(groups)
    passes_N, place_N = np.divmod(position_N, queries)
    query_index_N = np.empty(groups, dtype=np.int64)
    for number in np.unique(passes_N):
        order_Q = draw_pass(queries, seed, int(number))
        chosen_N = passes_N == number
        query_index_N[chosen_N] = order_Q[place_N[chosen_N]]
    episode_seed_N = shorten(mix(seed, "episode", position_N))
    group_B = np.repeat(np.arange(groups), group_size)
    sample_B = np.tile(np.arange(group_size), groups)
    return EpisodePlan(
        query_index_B=query_index_N[group_B],
        episode_seed_B=episode_seed_N[group_B],
        action_seed_B=shorten(mix(seed, "action", position_N[group_B], sample_B)),
        group_B=group_B,
    )


@lru_cache(maxsize=4)
def draw_pass(queries: int, seed: int, number: int) -> IntArray:
    """Return the order of the queries in a pass; kept while updates walk through it.

    Drawing it anew for every update would cost more than the update where there are a million.
    """
    order_Q = draw_permutation(queries, seed, "queries", number)
    order_Q.flags.writeable = False
    return order_Q


def force_arms(plan: EpisodePlan, arms: int, times: int, allowed_QK: BoolArray) -> EpisodePlan:
    """Force the last `arms` * `times` episodes of each group: every arm, so many times.

    Groups are of one size. Episodes whose arm is not allowed on their query are left out, so groups
    may become unequal.
    """
    size = len(plan.group_B) // len(np.unique(plan.group_B))
    free = size - arms * times
    arm_G = np.concatenate([np.full(free, FREE), np.tile(np.arange(arms), times)])
    arm_B = np.tile(arm_G, len(plan.group_B) // size)
    kept_B = (arm_B == FREE) | allowed_QK[plan.query_index_B, arm_B]
    return replace(plan, forced_arm_B=arm_B).select_rows(np.flatnonzero(kept_B))


def narrow_to_forced(mask_BK: BoolArray, forced_arm_B: IntArray | None) -> BoolArray:
    """Return the mask under which a policy decides [B, K]: a forced lane has only its arm."""
    if forced_arm_B is None:
        return mask_BK
    only_BK = np.arange(mask_BK.shape[1]) == forced_arm_B[:, None]
    narrow_BK: BoolArray = mask_BK & (only_BK | (forced_arm_B == FREE)[:, None])
    return narrow_BK


def shorten(word: UIntArray) -> IntArray:
    """Return 64-bit words as seeds of 62 bits, which fit a signed integer."""
    return (word >> np.uint64(2)).astype(np.int64)


def draw_action_uniform(action_seed: IntArray | int, turn: int) -> npt.NDArray[np.float64]:
    """Return the uniform number in [0, 1) behind an action, from the seed and the turn."""
    return draw_uniform("turn", action_seed, turn)
