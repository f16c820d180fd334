"""Executors behind a pool: nobody waits for another, failed calls are played again or dropped."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from step_episodes import assert_equal_batches, make_config, make_plan, make_policy
from step_worlds import MeteredWorld, WaitingPool

from rlroute.algorithms.reference import compute_moments
from rlroute.config import parse_config
from rlroute.envs.step_budget import StepBudget
from rlroute.policies.step_baselines import StaticPolicy
from rlroute.rewards.boundary import BoundaryReward, BoundaryRewardConfig
from rlroute.rollout.stage import compute_rewards
from rlroute.rollout.step_plan import GroupShape, plan_static
from rlroute.rollout.steps import collect_worlds
from rlroute.trainers.step_recipe import StepGRPOConfig
from rlroute.trainers.step_targets import compute_step_advantages
from rlroute.types import Batch, RLRouteError


def open_pooled() -> StepBudget:
    return StepBudget(MeteredWorld(behind_pool=True), make_config("usd", [0.02, None]))


def play_pooled(pool: WaitingPool, plan, *, lanes: int = 64, retries: int = 1, moments=None):
    environment = open_pooled()
    tasks = environment.world.list_tasks("train")
    return collect_worlds(
        make_policy(environment),
        environment,
        tasks,
        plan,
        lanes=lanes,
        pool=pool,
        retries=retries,
        moments=moments,
    )


def find_calls(plan) -> list[list[str]]:
    """Return what each row of a plan asks of the pool, in order."""
    asked = []
    for row in range(len(plan.role_B)):
        pool = WaitingPool()
        play_pooled(pool, plan.select_rows(slice(row, row + 1)))
        asked.append(pool.asked)
    return asked


def test_episodes_that_wait_are_those_that_would_be_played_one_by_one():
    plan = make_plan(tasks=12)
    together = play_pooled(WaitingPool(), plan)
    assert_equal_batches(together, play_pooled(WaitingPool(), plan, lanes=1))
    assert_equal_batches(together, play_pooled(WaitingPool(), plan, lanes=10))
    assert together.dropped == 0
    assert together.ends.exhausted_B.any()


def test_a_world_that_plays_its_executors_makes_the_same_batch_with_a_pool_beside_it():
    environment = StepBudget(MeteredWorld(), make_config("usd", [0.02, None]))
    tasks, plan, policy = (
        environment.world.list_tasks("train"),
        make_plan(tasks=12),
        make_policy(environment),
    )
    lockstep = collect_worlds(policy, environment, tasks, plan)
    pool = WaitingPool()
    assert_equal_batches(lockstep, collect_worlds(policy, environment, tasks, plan, pool=pool))
    assert pool.asked == []


def test_nobody_waits_for_anothers_reply():
    plan = make_plan(groups=4, tasks=12)
    asked = find_calls(plan)
    first = next(row for row, texts in enumerate(asked) if texts)
    held = asked[first][0]
    others = sum(len(texts) for texts in asked if held not in texts)
    assert others > 20  # all of these are answered while one episode waits for its first reply
    batch = play_pooled(WaitingPool(held=held, others=others), plan)
    assert_equal_batches(batch, play_pooled(WaitingPool(), plan))


def test_an_episode_in_which_a_call_failed_is_played_again_as_if_nothing_had_happened():
    plan = make_plan(tasks=12)
    asked = find_calls(plan)
    failures = {texts[-1]: 1 for texts in asked[::2] if texts}
    pool = WaitingPool(failures)
    batch = play_pooled(pool, plan)
    assert batch.dropped == 0
    assert_equal_batches(batch, play_pooled(WaitingPool(), plan))
    assert len(pool.asked) > sum(len(texts) for texts in asked)


def drop_some(plan) -> tuple[Batch, np.ndarray]:
    """Play a plan in which a call of every fourth episode fails every time; return which, too."""
    asked = find_calls(plan)
    failures = {texts[-1]: 10**6 for texts in asked[::4] if texts}
    failed_B = np.array([any(text in failures for text in texts) for texts in asked])
    assert 5 < failed_B.sum() < len(failed_B) / 2
    return play_pooled(WaitingPool(failures), plan), failed_B


def test_an_episode_whose_calls_go_on_failing_is_dropped_and_counted():
    plan = make_plan(tasks=12, shape=GroupShape(6))
    batch, failed_B = drop_some(plan)
    assert batch.dropped == failed_B.sum()
    assert (batch.terminated_B == ~failed_B).all()
    assert np.isnan(batch.ends.score_B[failed_B]).all()
    assert np.isnan(batch.ends.cost_usd_B[failed_B]).all()
    for value_BT in batch.reward_terms_BT.values():
        assert np.isnan(value_BT[failed_B]).all()
        assert not np.isnan(value_BT[~failed_B]).any()
    rewards_B = compute_rewards(batch, BoundaryReward(BoundaryRewardConfig()))
    assert (np.isnan(rewards_B) == failed_B).all()
    clean = play_pooled(WaitingPool(), plan)
    np.testing.assert_array_equal(batch.ends.score_B[~failed_B], clean.ends.score_B[~failed_B])


@pytest.mark.parametrize("baseline", ["group", "anchored", "blend"])
def test_a_dropped_episode_is_in_no_groups_mean_and_is_never_learnt_from(baseline):
    plan = make_plan(tasks=12, shape=GroupShape(6))
    batch, failed_B = drop_some(plan)
    references_BR = np.tile(np.float32([0.2, 0.6]), (len(failed_B), 1))
    batch = replace(batch, ends=replace(batch.ends, reference_BR=references_BR))
    reward = BoundaryReward(BoundaryRewardConfig(unit="usd"))
    return_B = torch.as_tensor(compute_rewards(batch, reward))
    data = {"kind": "grpo", "group_size": 6, "episodes": 72, "baseline": baseline}
    algorithm = parse_config(StepGRPOConfig, data, "test")
    adv_B, valid_B = compute_step_advantages(algorithm, batch, return_B)
    assert (valid_B.numpy() == ~failed_B).all()
    assert (adv_B[failed_B] == 0).all()
    group = int(batch.group_B[failed_B.argmax()])
    rows = batch.group_B == group
    known = return_B[rows & ~failed_B].double()
    if baseline == "anchored":
        known = torch.cat([known, torch.tensor([0.2, 0.6], dtype=torch.float64)])
    mean = known.mean() if baseline != "blend" else 0.5 * known.mean() + 0.5 * 0.6
    expected = (return_B[rows & ~failed_B] - mean) / (known.std(correction=0) + 1e-6)
    if baseline == "blend":
        own = return_B[rows & ~failed_B].double()
        expected = (own - mean) / (own.std(correction=0) + 1e-6)
    torch.testing.assert_close(adv_B[rows & ~failed_B], expected.float(), atol=1e-4, rtol=1e-4)
    assert compute_moments(return_B.reshape(-1, 6))[2].sum() == (~failed_B).sum()


def test_a_failed_call_is_told_as_such():
    plan = make_plan(groups=2, tasks=12, shape=GroupShape(3))
    asked = find_calls(plan)
    row = next(row for row, texts in enumerate(asked) if len(texts) > 1)
    moments: dict = {}
    batch = play_pooled(WaitingPool({asked[row][-1]: 10**6}), plan, moments=moments)
    assert batch.dropped >= 1
    last = moments[row][-1]
    assert (last.note, last.cost_usd) == ("failed: timeout", 0.0)
    assert len(moments[row]) == batch.valid_BT[row].sum()


def test_executors_behind_a_pool_that_nobody_named_are_refused_in_one_line():
    environment = open_pooled()
    tasks = environment.world.list_tasks("train")
    plan = plan_static(np.arange(3), np.arange(3))
    with pytest.raises(RLRouteError, match=r"an executor lives behind a pool.*pool: FILE"):
        collect_worlds(StaticPolicy(2), environment, tasks, plan)
