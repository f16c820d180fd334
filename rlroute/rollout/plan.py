"""Which episodes an update consists of: queries, seeds and groups, from coordinates alone.

Queries come in a new random order each pass over the split, without repetition within a pass. The
members of a group share query and episode seed (so the same cost weight) and differ in the seed of
their actions. A process takes a slice of the plan, and no draw depends on how it is sliced.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rlroute.seeding import UIntArray, draw_permutation, draw_uniform, mix
from rlroute.types import IntArray


@dataclass(frozen=True)
class EpisodePlan:
    """B episodes: which query, from which seeds, in which group (from 0, over all processes)."""

    query_index_B: IntArray
    episode_seed_B: IntArray
    action_seed_B: IntArray
    group_B: IntArray

    def select_part(self, part: int, parts: int) -> EpisodePlan:
        """Return one of `parts` equal slices, in order; groups stay whole.

        Raises:
            ValueError: the groups cannot be shared out equally.
        """
        groups = len(np.unique(self.group_B))
        if groups % parts:
            raise ValueError(f"{groups} groups cannot be shared out to {parts} processes")
        size = len(self.group_B) // parts
        return self.select_rows(slice(part * size, (part + 1) * size))

    def select_rows(self, chosen: slice) -> EpisodePlan:
        """Return some of the episodes, in order."""
        return EpisodePlan(
            self.query_index_B[chosen],
            self.episode_seed_B[chosen],
            self.action_seed_B[chosen],
            self.group_B[chosen],
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
        order_Q = draw_permutation(queries, seed, "queries", int(number))
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


def shorten(word: UIntArray) -> IntArray:
    """Return 64-bit words as seeds of 62 bits, which fit a signed integer."""
    return (word >> np.uint64(2)).astype(np.int64)


def draw_action_uniform(action_seed: IntArray | int, turn: int) -> npt.NDArray[np.float64]:
    """Return the uniform number in [0, 1) behind an action, from the seed and the turn."""
    return draw_uniform("turn", action_seed, turn)
