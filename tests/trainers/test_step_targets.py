"""Advantages of groups of many-step episodes: who is compared with whom."""

from __future__ import annotations

import numpy as np
import pytest
from step_groups import (
    combine,
    compute,
    make_batch,
    make_grpo,
    make_recipe,
)

from rlroute.types import FORCED, MEMBER, REFERENCE


@pytest.mark.parametrize(
    ("scores", "costs", "hard", "references", "before", "after"),
    [
        # the rows of the sheet, before and after the rule that holds failures down
        ((0, 0, 0, 0), (0, 0.1, 0.3, 0.6), True, (0, 0.9), [-0.4472] * 4, [-0.4472] * 4),
        (
            (1, 1, 0, 0),
            (0.25, 0.9, 0, 0.5),
            True,
            (0, 0.9),
            [1.3603, 1.0417, -0.9682, -0.9682],
            [1.3603, 1.0417, -0.9682, -0.9682],
        ),
        (
            (1, 1, 1, 1),
            (0, 0.2, 0.6, 1),
            False,
            (1.0, 0.7),
            [1.0932, 0.6247, -0.3123, -1.2494],
            [1.0932, 0.6247, -0.3123, -1.2494],
        ),
        (
            (0, 0, 0, 0),
            (0, 0.2, 0.6, 1),
            False,
            (0, -0.3),
            [1.0932, 0.6247, -0.3123, -1.2494],
            [1.0932, 0.6247, -0.3123, -1.2494],  # nobody solves it: failing cheaply is the goal
        ),
        (
            (1, 1, 0, 1),
            (0.2, 0.4, 0, 0),
            False,
            (0.8, 0.7),
            [0.6547, 0.4761, -2.1425, 0.8332],
            [0.6547, 0.4761, -2.1425, 0.8332],
        ),
        # a failure above the mean of an easy task, where others cost more than they earn
        (
            (0, 0, 0, 0),
            (0, 1, 1, 1),
            False,
            (0.2, -0.3),
            [0.8452] + [-0.6761] * 3,
            [0] + [-0.6761] * 3,
        ),
    ],
)
def test_advantages_of_a_group_between_its_anchors(scores, costs, hard, references, before, after):
    batch = make_batch(scores, costs, group=4, hard=hard, references=references)
    fields = {"group_size": 4}
    adv_B, valid_B = compute(make_grpo(**fields, hold_failures=False), batch)
    assert adv_B == pytest.approx(before, abs=6e-5)
    assert valid_B.all()
    adv_B, _ = compute(make_grpo(**fields), batch)
    assert adv_B == pytest.approx(after, abs=6e-5)


def test_plain_group_advantages_praise_the_cheapest_failure():
    batch = make_batch((0,) * 4, (0, 0.2, 0.6, 1), group=4, hard=False, references=(0, 0.7))
    recipe = make_grpo(group_size=4, baseline="group", hold_failures=False)
    adv_B, _ = compute(recipe, batch)
    assert adv_B == pytest.approx([1.1717, 0.6509, -0.3906, -1.4321], abs=6e-5)
    adv_B, _ = compute(make_grpo(group_size=4, scale_by_std=False), batch)
    assert (adv_B < 0).all()  # large solves it now and then


def test_groups_are_measured_apart():
    two = make_batch((1, 0, 1, 1), (0.2, 0, 0.1, 0.9), group=2, references=(0, 0.9))
    adv_B, _ = compute(make_grpo(), two)
    for group, rows in enumerate((slice(0, 2), slice(2, 4))):
        one = make_batch(
            two.ends.score_B[rows], two.ends.cost_usd_B[rows], group=2, references=(0, 0.9)
        )
        np.testing.assert_allclose(compute(make_grpo(), one)[0], adv_B[rows], rtol=1e-6)
        assert (two.group_B[rows] == group).all()


def test_forced_arms_join_the_mean_of_their_group():
    roles = [MEMBER, MEMBER, FORCED, FORCED]
    batch = make_batch((1, 0, 0, 1), (0.2, 0, 0, 1), group=4, roles=roles)
    recipe = make_grpo(forced_arms=True, baseline="group", hold_failures=False)
    adv_B, _ = compute(recipe, batch)
    reward_B = np.array([1.5 - 0.06, 0, 0, 1.5 - 0.3])
    expected_B = (reward_B - reward_B.mean()) / (reward_B.std() + 1e-6)
    np.testing.assert_allclose(adv_B, expected_B, rtol=1e-5)


@pytest.mark.parametrize("score", [0, 1])
@pytest.mark.parametrize("hard", [False, True])
def test_a_reference_leaves_the_mean_and_counts_on_hard_tasks_where_it_is_above(score, hard):
    roles = [MEMBER, MEMBER, REFERENCE]
    whole = make_batch(
        (0, 0, score), (0.1, 0.3, 1.0), group=3, roles=roles, hard=hard, references=(0, 0.9)
    )
    members = make_batch((0, 0), (0.1, 0.3), group=2, hard=hard, references=(0, 0.9))
    recipe = make_grpo(reference_rollout=True)
    adv_B, valid_B = compute(recipe, whole)
    np.testing.assert_allclose(adv_B[:2], compute(make_grpo(), members)[0], rtol=1e-6)
    assert valid_B.tolist() == [True, True, bool(score and hard)]
    reward_B = combine(recipe, members).numpy()
    pooled = np.append(reward_B, [0, 0.9])
    earned = score * (1.5 if hard else 1.0) - (0 if hard and not score else 0.3)
    if score:
        assert adv_B[2] == pytest.approx((earned - pooled.mean()) / (pooled.std() + 1e-6), rel=1e-5)


def test_an_undefined_episode_leaves_its_group_and_a_lone_one_has_nothing_to_compare():
    batch = make_batch((1, np.nan, np.nan, 0), (0.2, 0, 0, 0), group=2)
    recipe = make_grpo(baseline="group")
    adv_B, valid_B = compute(recipe, batch)
    assert not valid_B.any()
    assert (adv_B == 0).all()
    anchored = make_batch((1, np.nan, np.nan, 0), (0.2, 0, 0, 0), group=2, references=(0, 0.9))
    adv_B, valid_B = compute(make_grpo(), anchored)
    assert valid_B.tolist() == [True, False, False, True]
    pooled = np.array([1.44, 0, 0.9])
    assert adv_B[0] == pytest.approx((1.44 - pooled.mean()) / pooled.std(), abs=1e-4)


def test_leave_one_out_advantages_are_those_of_whole_episodes():
    batch = make_batch((1, 0, 1, 1), (0.2, 0, 0.1, 0.9), group=4)
    recipe = make_recipe({"kind": "rloo", "group_size": 4, "episodes": 4})
    adv_B, valid_B = compute(recipe, batch)
    reward_B = combine(recipe, batch).numpy()
    for b in range(4):
        others = np.delete(reward_B, b)
        assert adv_B[b] == pytest.approx(reward_B[b] - others.mean(), abs=1e-6)
    assert valid_B.all()
