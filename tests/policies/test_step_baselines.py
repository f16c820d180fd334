"""Baselines of many-step episodes, each under the mask it is given."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from step_worlds import THREE_EXECUTORS, THREE_KINDS, MeteredWorld, make_chain

from rlroute.config import parse_config
from rlroute.envs.step_budget import StepBudget, StepBudgetConfig
from rlroute.envs.step_budget_vector import StepBudgetVector
from rlroute.policies.step_baselines import (
    AdvisedPolicy,
    BernoulliPolicy,
    CascadePolicy,
    FirstDearPolicy,
    LinUCBPolicy,
    RandomPolicy,
    ScriptedPolicy,
    SigmaPolicy,
    StaticPolicy,
    compute_sigma,
    find_nearest,
)
from rlroute.policies.stepwise import StepInputs
from rlroute.rollout.step_plan import GroupShape, plan_static, plan_steps
from rlroute.rollout.steps import collect_lanes, collect_worlds
from rlroute.types import RLRouteError
from rlroute.worlds.chain import ChainConfig, ChainLanes


def make_inputs(mask_BK, features_BF=None, **fields) -> StepInputs:
    mask_BK = np.asarray(mask_BK, dtype=np.bool_)
    lanes = len(mask_BK)
    inputs = StepInputs(
        lane_B=np.arange(lanes),
        row_B=np.arange(lanes),
        task_index_B=np.arange(lanes),
        features_BF=np.zeros((lanes, 2), np.float32) if features_BF is None else features_BF,
        candidate_features_KD=np.ones((mask_BK.shape[1], 3), dtype=np.float32),
        mask_BK=mask_BK,
        cost_weight_B=np.zeros(lanes, dtype=np.float32),
        uniform_B=np.linspace(0, 1, lanes, endpoint=False),
        advised_B=np.full(lanes, mask_BK.shape[1] - 1),
    )
    return replace(inputs, **fields)


POLICIES = {
    "static": lambda: StaticPolicy(2),
    "random": lambda: RandomPolicy(),
    "bernoulli": lambda: BernoulliPolicy(0.5),
    "first dear": lambda: FirstDearPolicy(1),
    "cascade": lambda: CascadePolicy(0, 0.5),
    "sigma": lambda: SigmaPolicy({0: 0.0, 1: 0.5, 2: 1.0}),
    "linucb": lambda: LinUCBPolicy(features=2, executors=3),
    "scripted": lambda: ScriptedPolicy(np.full((40, 5), 2)),
    "advised": lambda: AdvisedPolicy(),
}


@pytest.mark.parametrize("name", list(POLICIES))
@given(st.integers(0, 2**32 - 1))
def test_no_baseline_takes_what_is_masked(name, seed):
    rng = np.random.default_rng(seed)
    policy = POLICIES[name]()
    policy.start(40)
    for _ in range(3):
        mask_BK = rng.random((40, 3)) < 0.5
        mask_BK[~mask_BK.any(axis=1), 0] = True
        features_BF = rng.normal(size=(40, 2)).astype(np.float32)
        taken = policy.decide(make_inputs(mask_BK, features_BF, uniform_B=rng.random(40)))
        assert mask_BK[np.arange(40), taken.action_B].all()
        assert np.isfinite(taken.logp_B).all()
        assert (taken.logp_B <= 0).all()


def test_the_nearest_allowed_executor_is_the_cheaper_of_two_as_near():
    mask_BK = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 0], [1, 1, 1]], dtype=np.bool_)
    assert find_nearest(np.array([1, 0, 2, 1]), mask_BK).tolist() == [0, 2, 0, 1]


def test_who_rests_stands_in_for_whoever_may_not_act_where_it_may():
    mask_BK = np.array([[1, 1, 0], [0, 1, 0], [1, 1, 1]], dtype=np.bool_)
    arm_B = np.array([2, 2, 2])
    assert find_nearest(arm_B, mask_BK, rest=0).tolist() == [0, 1, 2]
    assert find_nearest(arm_B, mask_BK).tolist() == [1, 1, 2]
    taken = StaticPolicy(2).decide(make_inputs(mask_BK, rest=0))
    assert taken.action_B.tolist() == [0, 1, 2]


def test_a_static_policy_is_one_executor_for_sure():
    taken = StaticPolicy(1).decide(make_inputs(np.ones((3, 3))))
    assert taken.action_B.tolist() == [1, 1, 1]
    assert taken.logp_B.tolist() == [0, 0, 0]


def test_random_is_uniform_over_what_is_allowed():
    inputs = make_inputs(np.tile([[1, 0, 1]], (10, 1)))
    taken = RandomPolicy().decide(inputs)
    assert taken.action_B.tolist() == [0] * 5 + [2] * 5
    np.testing.assert_allclose(np.exp(taken.logp_B), 0.5)
    assert RandomPolicy().decide(make_inputs([[0, 1, 0]])).logp_B.tolist() == [0]


def test_bernoulli_takes_the_dearest_at_its_rate_or_at_each_episodes_own():
    assert BernoulliPolicy(0.3).decide(make_inputs(np.ones((10, 2)))).action_B.sum() == 3
    own = BernoulliPolicy(np.array([0.0, 1.0, 0.5, 0.5]))
    uniform_B = np.array([0.0, 0.999, 0.49, 0.51])
    assert own.decide(make_inputs(np.ones((4, 2)), uniform_B=uniform_B)).action_B.tolist() == [
        0,
        1,
        1,
        0,
    ]


def test_first_dear_counts_the_steps_of_each_lane():
    policy = FirstDearPolicy(2)
    policy.start(2)
    whole = make_inputs(np.ones((2, 2)))
    second = make_inputs(np.ones((1, 2)), lane_B=np.array([1]))
    assert policy.decide(whole).action_B.tolist() == [1, 1]
    assert policy.decide(second).action_B.tolist() == [1]  # lane 0 waits
    assert policy.decide(whole).action_B.tolist() == [1, 0]
    policy.start(2)
    assert policy.decide(whole).action_B.tolist() == [1, 1]


def test_a_cascade_asks_the_dearest_where_confidence_is_low():
    features_BF = np.array([[0, 0.2], [0, 0.5], [0, 0.9]], dtype=np.float32)
    taken = CascadePolicy(1, 0.5).decide(make_inputs(np.ones((3, 2)), features_BF))
    assert taken.action_B.tolist() == [1, 0, 0]


def test_a_cascade_escalates_on_the_confidence_that_a_world_shows():
    world = MeteredWorld(2)
    environment = StepBudget(world, StepBudgetConfig())
    column = environment.feature_names.index("confidence")
    plan = plan_static(np.arange(12), np.arange(12))
    batch = collect_worlds(CascadePolicy(column, 0.5), environment, world.list_tasks("train"), plan)
    confidence_N = batch.features_BTF[..., column][batch.valid_BT]
    assert ((confidence_N < 0.5) == (batch.action_BT[batch.valid_BT] == 1)).all()
    assert batch.action_BT[batch.valid_BT].any()
    assert not batch.action_BT[:, 0].any()  # before the first step there is no doubt


@pytest.mark.parametrize(
    ("answers", "sigma"),
    [("aaa", 0.0), ("aab", 0.5), ("abc", 1.0), ("aaaa", 0.0), ("aabb", 1 / 3), ("ab", 1.0)],
)
def test_sigma_says_how_far_probes_disagree(answers, sigma):
    assert compute_sigma(tuple(answers)) == pytest.approx(sigma)


def test_sigma_needs_two_probes():
    with pytest.raises(ValueError, match="two probes"):
        compute_sigma(("a",))


def test_the_sigma_rule_climbs_with_disagreement_and_trusts_nobody_unknown():
    policy = SigmaPolicy({0: 0.0, 1: 0.5, 2: 1.0})
    inputs = make_inputs(np.ones((4, 3)))
    assert policy.decide(inputs).action_B.tolist() == [0, 1, 2, 2]
    assert policy.decide(make_inputs(np.ones((4, 2)))).action_B.tolist() == [0, 1, 1, 1]


def test_scripts_are_played_by_the_rows_of_the_plan_and_end_with_their_last_step():
    policy = ScriptedPolicy(np.array([[0, 1], [1, 0], [1, 1]]))
    policy.start(2)
    inputs = make_inputs(np.ones((2, 2)), row_B=np.array([2, 1]))
    taken = [policy.decide(inputs).action_B.tolist() for _ in range(3)]
    assert taken == [[1, 1], [1, 0], [1, 0]]


def test_first_large_under_a_cap_is_the_static_policy_that_the_mask_ends():
    config = parse_config(StepBudgetConfig, {"budget": {"caps": [3]}}, "test")
    vector = StepBudgetVector(ChainLanes(make_chain(2)), config, 20)
    batch = collect_lanes(StaticPolicy(1), vector, plan_static(np.arange(20), np.arange(20)))
    assert (batch.action_BT == [1] * 3 + [0] * 7).all()


def test_advice_is_refused_where_the_world_has_none():
    class SilentWorld(MeteredWorld):
        def fork(self):
            return SilentWorld()

        def advise(self):
            return None

    environment = StepBudget(SilentWorld(), StepBudgetConfig())
    tasks = environment.world.list_tasks("train")
    with pytest.raises(RLRouteError, match="world 'metered': its best policy is not known"):
        collect_worlds(AdvisedPolicy(), environment, tasks, plan_static(np.arange(3), np.arange(3)))


def test_linucb_is_ridge_regression_with_a_bonus_for_what_is_rare():
    policy = LinUCBPolicy(features=1, executors=2, ridge=1.0, alpha=0.5)
    inputs = make_inputs(np.ones((1, 2)), np.array([[1.0]], dtype=np.float32))
    assert policy.decide(inputs).action_B.tolist() == [0]  # all alike: the cheaper one
    # executor 0 earned 1 at x = (1, 1) twice: A = I + 2 x x', theta = A^-1 b
    x_2 = np.array([1.0, 1.0])
    policy.moment_KFF[0] += 2 * np.outer(x_2, x_2)
    policy.reward_KF[0] += 2 * x_2
    theta = np.linalg.inv(np.eye(2) + 2 * np.outer(x_2, x_2)) @ (2 * x_2)
    score_K = [
        x_2 @ theta + 0.5 * np.sqrt(x_2 @ np.linalg.inv(policy.moment_KFF[0]) @ x_2),
        0.5 * np.sqrt(2.0),
    ]
    assert score_K == pytest.approx([0.8 + 0.5 * np.sqrt(0.4), 0.5 * np.sqrt(2)])
    assert policy.decide(inputs).action_B.tolist() == [int(np.argmax(score_K))]


def test_linucb_credits_free_decisions_with_the_end_of_their_episode():
    config = parse_config(
        StepBudgetConfig, {"budget": {"caps": [1]}, "reward": {"unit": "calls"}}, "test"
    )
    vector = StepBudgetVector(ChainLanes(make_chain(2)), config, 6)
    plan = plan_static(np.arange(6), np.arange(6))
    batch = collect_lanes(StaticPolicy(1), vector, plan)
    policy = LinUCBPolicy(features=len(vector.feature_names), executors=2)
    reward_B = np.array([1.0, 0.0, 0.5, np.nan, 0.25, 0.0], dtype=np.float32)
    policy.learn(batch, reward_B)
    # under cap 1 only the first step is free; the failed episode teaches nothing
    assert policy.moment_KFF[1][-1, -1] == 1 + 5
    assert policy.moment_KFF[0][-1, -1] == 1
    assert policy.reward_KF[1][-1] == pytest.approx(1.75)
    assert (policy.reward_KF[0] == 0).all()


def test_linucb_learns_that_critical_steps_are_worth_the_dear_one():
    lanes = ChainLanes(make_chain(1, train=200))
    config = parse_config(StepBudgetConfig, {"reward": {"unit": "calls"}}, "test")
    vector = StepBudgetVector(lanes, config, 64)
    policy = LinUCBPolicy(features=len(vector.feature_names), executors=2, alpha=1.0)
    for update in range(120):
        plan = plan_steps(0, update, tasks=200, groups=64, shape=GroupShape(1))
        batch = collect_lanes(policy, vector, plan)
        cost_B = batch.ends.calls_B / 10
        policy.learn(batch, (batch.ends.score_B - 0.3 * cost_B).astype(np.float32))
    policy.alpha = 0.0
    batch = collect_lanes(
        policy, vector, plan_steps(1, 0, tasks=200, groups=64, shape=GroupShape(1))
    )
    critical_BT = batch.features_BTF[..., 0] > 0
    assert batch.action_BT[critical_BT].mean() > 0.9
    # every decision is credited with the whole episode, so it is slow to see what it could save
    assert batch.action_BT[~critical_BT].mean() < 0.8


def test_an_executor_between_stands_in_for_a_dearest_that_may_not_act():
    chain = ChainConfig(kinds=THREE_KINDS, executors=THREE_EXECUTORS, train=8, val=1, test=1)
    data = {"budget": {"unit": "calls", "caps": [2], "counted": ["large"]}}
    vector = StepBudgetVector(ChainLanes(chain), parse_config(StepBudgetConfig, data, "test"), 8)
    batch = collect_lanes(StaticPolicy(2), vector, plan_static(np.arange(8), np.arange(8)))
    assert (batch.action_BT == [2] * 2 + [1] * 8).all()
