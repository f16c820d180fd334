"""Plans of many-step updates: groups, roles, seeds, and parts for processes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlroute.rollout.plan import FREE
from rlroute.rollout.step_plan import GroupShape, StepPlan, plan_static, plan_steps
from rlroute.types import FORCED, MEMBER, REFERENCE

REFERENCE_SEEDS = np.arange(30) * 1000 + 7


def plan(update: int = 0, *, seed: int = 0, groups: int = 4, shape=None) -> StepPlan:
    shape = GroupShape(3, forced_arms=(0, 1), reference_arm=1) if shape is None else shape
    return plan_steps(
        seed, update, tasks=30, groups=groups, shape=shape, reference_seed_Q=REFERENCE_SEEDS
    )


def list_fields(one: StepPlan) -> list[list[int]]:
    episodes = one.episodes
    return [
        array.tolist()
        for array in (
            *(episodes.query_index_B, episodes.episode_seed_B, episodes.action_seed_B),
            *(episodes.group_B, one.role_B, one.forced_arm_B, one.world_seed_B),
        )
    ]


def test_a_group_is_free_episodes_then_forced_arms_then_the_reference():
    found = plan()
    assert GroupShape(3, (0, 1), 1).members == 5
    assert GroupShape(3, (0, 1), 1).size == 6
    assert found.role_B.tolist() == ([MEMBER] * 3 + [FORCED] * 2 + [REFERENCE]) * 4
    assert found.forced_arm_B.tolist() == [FREE, FREE, FREE, 0, 1, 1] * 4
    assert found.episodes.group_B.tolist() == np.repeat(np.arange(4), 6).tolist()
    assert (GroupShape(4).members, GroupShape(4).size) == (4, 4)


def test_a_group_shares_task_cap_and_cost_weight_and_all_else_is_drawn_apart():
    found = plan()
    for group in range(4):
        rows = slice(6 * group, 6 * group + 6)
        assert len(set(found.episodes.query_index_B[rows])) == 1
        assert len(set(found.episodes.episode_seed_B[rows])) == 1
        assert len(set(found.episodes.action_seed_B[rows])) == 6
        assert len(set(found.world_seed_B[rows])) == 6
    assert len(set(found.episodes.episode_seed_B)) == 4


def test_a_reference_is_played_by_the_seed_of_its_stored_rollout():
    found = plan()
    last = found.role_B == REFERENCE
    assert (found.world_seed_B[last] == REFERENCE_SEEDS[found.episodes.query_index_B[last]]).all()
    assert not set(found.world_seed_B[~last]) & set(found.episodes.action_seed_B)


def test_every_pass_over_the_tasks_has_each_of_them_once():
    seen = [
        plan(update, groups=6, shape=GroupShape(1)).episodes.query_index_B for update in range(10)
    ]
    passes = np.concatenate(seen).reshape(2, 30)
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(30))
    assert passes[0].tolist() != passes[1].tolist()


@given(st.integers(1, 5), st.integers(1, 4), st.booleans(), st.booleans(), st.integers(1, 3))
def test_the_parts_of_a_plan_are_the_plan(parts, free, forced, reference, groups):
    shape = GroupShape(free, (0, 1) if forced else (), 1 if reference else None)
    whole = plan(3, groups=groups * parts, shape=shape)
    pieces = [whole.select_part(part, parts) for part in range(parts)]
    joined = [
        [value for piece in field for value in piece]
        for field in zip(*(list_fields(piece) for piece in pieces), strict=True)
    ]
    assert joined == list_fields(whole)
    assert all(len(piece.role_B) == groups * shape.size for piece in pieces)


def test_coordinates_decide_a_plan_and_nothing_else_does():
    assert list_fields(plan(5)) == list_fields(plan(5))
    assert list_fields(plan(5)) != list_fields(plan(6))
    assert list_fields(plan(5)) != list_fields(plan(5, seed=1))


@pytest.mark.parametrize(("arm", "role"), [(FREE, MEMBER), (0, FORCED), (2, FORCED)])
def test_a_static_plan_plays_each_task_by_its_own_seed(arm, role):
    found = plan_static(np.array([4, 4, 9]), np.array([10, 11, 12]), arm)
    assert found.role_B.tolist() == [role] * 3
    assert found.forced_arm_B.tolist() == [arm] * 3
    assert found.episodes.group_B.tolist() == [0, 1, 2]
    assert found.world_seed_B.tolist() == found.episodes.episode_seed_B.tolist() == [10, 11, 12]
