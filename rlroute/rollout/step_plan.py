"""Which episodes an update of step-by-step routing consists of, and what each is for.

A group is about one task, cap and cost weight: `free` episodes that the policy plays; one for each
of the `forced_arms`, played by that executor throughout (they join the group's mean and are not
learnt from); and, where asked, a reference: the dearest executor's stored rollout of the task,
played again by its own seed (it is learnt from and leaves the group's mean alone).

The world's chance is drawn for each episode apart. Under a shared one the members of a group would
all succeed or all fail where executors are alike, so that their costs were all that told them
apart, and a division by their standard deviation would blow those up.

Sources: forced arms in every group, A2FM's adaptive policy optimisation (2025); the reference, the
mixed variant of `rlroute.algorithms.reference`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlroute.rollout.plan import FREE, EpisodePlan, plan_episodes, shorten
from rlroute.seeding import mix
from rlroute.types import FORCED, MEMBER, REFERENCE, IntArray


@dataclass(frozen=True)
class GroupShape:
    """What a group consists of, in this order."""

    free: int
    forced_arms: tuple[int, ...] = ()
    reference_arm: int | None = None

    @property
    def members(self) -> int:
        """How many episodes are compared with each other."""
        return self.free + len(self.forced_arms)

    @property
    def size(self) -> int:
        """How many episodes there are, the reference among them."""
        return self.members + (self.reference_arm is not None)


@dataclass(frozen=True)
class StepPlan:
    """B episodes: the plan of tasks and seeds, their roles, and the executor that is forced.

    `forced_arm_B` is FREE where the policy decides. `world_seed_B` is where the world's chance
    comes from.
    """

    episodes: EpisodePlan
    role_B: IntArray
    forced_arm_B: IntArray
    world_seed_B: IntArray

    def select_rows(self, chosen: slice) -> StepPlan:
        """Return some of the episodes, in order."""
        return StepPlan(
            self.episodes.select_rows(chosen),
            self.role_B[chosen],
            self.forced_arm_B[chosen],
            self.world_seed_B[chosen],
        )

    def select_part(self, part: int, parts: int) -> StepPlan:
        """Return one of `parts` equal slices; the groups have to be shared out equally."""
        size = len(self.role_B) // parts
        return self.select_rows(slice(part * size, (part + 1) * size))


def plan_steps(
    seed: int,
    update: int,
    *,
    tasks: int,
    groups: int,
    shape: GroupShape,
    reference_seed_Q: IntArray | None = None,
) -> StepPlan:
    """Plan `groups` groups over a split of tasks; `reference_seed_Q` are stored rollouts' seeds."""
    episodes = plan_episodes(seed, update, queries=tasks, groups=groups, group_size=shape.size)
    role_G = np.array([MEMBER] * shape.free + [FORCED] * len(shape.forced_arms))
    arm_G = np.array([FREE] * shape.free + list(shape.forced_arms))
    world_seed_B = shorten(mix("world", episodes.action_seed_B))
    if shape.reference_arm is not None:
        assert reference_seed_Q is not None
        role_G, arm_G = np.append(role_G, REFERENCE), np.append(arm_G, shape.reference_arm)
        last = slice(shape.size - 1, None, shape.size)
        world_seed_B[last] = reference_seed_Q[episodes.query_index_B[last]]
    return StepPlan(episodes, np.tile(role_G, groups), np.tile(arm_G, groups), world_seed_B)


def plan_static(task_index_B: IntArray, world_seed_B: IntArray, arm: int = FREE) -> StepPlan:
    """Plan one episode for each task and seed; by one executor throughout, or by the policy.

    The seeds of cap, cost weight and actions are those of the world.
    """
    episodes = EpisodePlan(
        query_index_B=task_index_B,
        episode_seed_B=world_seed_B,
        action_seed_B=world_seed_B,
        group_B=np.arange(len(task_index_B)),
    )
    role_B = np.full(len(task_index_B), MEMBER if arm == FREE else FORCED)
    return StepPlan(episodes, role_B, np.full(len(task_index_B), arm), world_seed_B)
