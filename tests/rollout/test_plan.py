from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlroute.rollout.plan import FREE, force_arms, narrow_to_forced, plan_episodes
from rlroute.types import FORCED, MEMBER

FIELDS = ("query_index_B", "episode_seed_B", "action_seed_B", "group_B")


@given(queries=st.integers(1, 40), groups=st.integers(1, 25), seed=st.integers(0, 2**31))
def test_no_query_repeats_within_a_pass_over_the_split(queries, groups, seed):
    updates = -(-3 * queries // groups)
    drawn = np.concatenate(
        [
            plan_episodes(seed, update, queries=queries, groups=groups, group_size=1).query_index_B
            for update in range(updates)
        ]
    )
    for number in range(3):
        a_pass = drawn[number * queries : (number + 1) * queries]
        assert sorted(a_pass) == list(range(queries))


def test_each_pass_has_an_order_of_its_own():
    plan = plan_episodes(0, 0, queries=50, groups=100, group_size=1)
    assert plan.query_index_B[:50].tolist() != plan.query_index_B[50:].tolist()


@given(group_size=st.integers(2, 6), update=st.integers(0, 1000))
def test_members_of_a_group_share_query_and_episode_seed_and_differ_in_action_seed(
    group_size, update
):
    plan = plan_episodes(7, update, queries=30, groups=8, group_size=group_size)
    assert plan.group_B.tolist() == np.repeat(np.arange(8), group_size).tolist()
    for group in range(8):
        member_B = plan.group_B == group
        assert len(set(plan.query_index_B[member_B])) == 1
        assert len(set(plan.episode_seed_B[member_B])) == 1
    assert len(set(plan.action_seed_B)) == 8 * group_size
    assert len(set(plan.episode_seed_B)) == 8


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_the_slices_of_all_processes_are_the_whole_plan(parts):
    plan = plan_episodes(1, 2, queries=20, groups=8, group_size=3)
    slices = [plan.select_part(part, parts) for part in range(parts)]
    for name in FIELDS:
        joined = np.concatenate([getattr(item, name) for item in slices])
        np.testing.assert_array_equal(joined, getattr(plan, name))
    uniforms = np.concatenate([item.draw_action_uniforms(turn=1) for item in slices])
    np.testing.assert_array_equal(uniforms, plan.draw_action_uniforms(turn=1))


def test_groups_that_cannot_be_shared_out_equally_are_refused():
    plan = plan_episodes(1, 2, queries=20, groups=5, group_size=2)
    with pytest.raises(ValueError, match="5 groups cannot be shared out to 2 processes"):
        plan.select_part(0, 2)


def test_a_plan_follows_from_its_seed_and_its_update_alone():
    def plan(seed, update):
        return plan_episodes(seed, update, queries=9, groups=4, group_size=2)

    for name in FIELDS:
        np.testing.assert_array_equal(getattr(plan(3, 5), name), getattr(plan(3, 5), name))
    for other in (plan(4, 5), plan(3, 6)):
        assert (plan(3, 5).action_seed_B != other.action_seed_B).all()
        assert (plan(3, 5).episode_seed_B != other.episode_seed_B).all()


def test_seeds_fit_signed_integers_and_turns_draw_different_numbers():
    plan = plan_episodes(0, 0, queries=5, groups=50, group_size=4)
    assert (plan.action_seed_B >= 0).all()
    assert (plan.episode_seed_B >= 0).all()
    first_B, second_B = plan.draw_action_uniforms(0), plan.draw_action_uniforms(1)
    assert ((first_B >= 0) & (first_B < 1)).all()
    assert len(np.unique(np.concatenate([first_B, second_B]))) == 400


def test_every_allowed_candidate_is_forced_in_every_group_and_holes_are_left_out():
    allowed_QK = np.array([[True, True, True], [True, False, True]])
    plan = plan_episodes(0, 0, queries=2, groups=2, group_size=2 + 2 * 3)
    found = force_arms(plan, 3, 2, allowed_QK)
    for group in range(2):
        rows_B = found.group_B == group
        query = found.query_index_B[rows_B][0]
        expected = [0, 1, 2, 0, 1, 2] if query == 0 else [0, 2, 0, 2]
        assert found.forced_arm_B[rows_B].tolist() == [FREE, FREE, *expected]
        assert found.role_B[rows_B].tolist() == [MEMBER] * 2 + [FORCED] * len(expected)
    free_B = found.forced_arm_B == FREE
    own = plan_episodes(0, 0, queries=2, groups=2, group_size=2)
    np.testing.assert_array_equal(found.action_seed_B[free_B], own.action_seed_B)
    assert own.role_B is None


def test_a_forced_lane_is_left_its_candidate_and_a_free_one_its_mask():
    mask_BK = np.array([[True, True, False], [True, True, True]])
    narrow_BK = narrow_to_forced(mask_BK, np.array([FREE, 2]))
    assert narrow_BK.tolist() == [[True, True, False], [False, False, True]]
    assert narrow_to_forced(mask_BK, None) is mask_BK
