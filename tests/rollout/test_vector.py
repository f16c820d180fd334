from __future__ import annotations

import asyncio

import numpy as np
import pytest
import torch

from rlroute.envs.single_turn import CostWeightConfig, SingleTurn
from rlroute.envs.single_turn_vector import SingleTurnVector
from rlroute.policies.decision import SamplingPolicy
from rlroute.policies.mlp import CandidateScorer, ScorerConfig
from rlroute.pool.recorded import RecordedPool
from rlroute.rollout.engine import run_plan
from rlroute.rollout.plan import plan_episodes
from rlroute.rollout.vector import collect_batch

WEIGHTS = CostWeightConfig()
EXACT = ("mask_BTK", "action_BT", "valid_BT", "terminated_B", "query_index_B", "group_B")
CLOSE = ("features_BTF", "candidate_features_KD", "cost_weight_B", "logp_BT", "value_BT")


@pytest.fixture
def policy(tiny_data) -> SamplingPolicy:
    torch.manual_seed(3)
    model = CandidateScorer(ScorerConfig(features=4, clusters=2, hidden=16))
    torch.nn.init.normal_(model.quality_tower.weight)
    return SamplingPolicy(model, version=9)


@pytest.mark.parametrize("update", [0, 1, 7])
def test_both_drivers_make_the_same_trajectories_from_the_same_plan(tiny_data, policy, update):
    plan = plan_episodes(5, update, queries=6, groups=10, group_size=4)
    arrays = collect_batch(policy, SingleTurnVector(tiny_data, 40, WEIGHTS), plan)
    waited = asyncio.run(
        run_plan(
            lambda: SingleTurn(tiny_data, WEIGHTS),
            policy,
            RecordedPool(tiny_data.table),
            tiny_data.table.queries,
            plan,
        )
    )
    for name in EXACT:
        np.testing.assert_array_equal(getattr(arrays, name), getattr(waited, name), err_msg=name)
    for name in CLOSE:
        left, right = getattr(arrays, name), getattr(waited, name)
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-5, err_msg=name)
        assert left.dtype == right.dtype, name
    for name, value_BT in arrays.reward_terms_BT.items():
        np.testing.assert_allclose(value_BT, waited.reward_terms_BT[name], rtol=1e-6)
    assert arrays.reward_terms_BT.keys() == waited.reward_terms_BT.keys()
    assert (arrays.policy_version, waited.policy_version) == (9, 9)
    assert len(np.unique(arrays.action_BT)) > 1


def test_two_slices_of_a_plan_make_the_batch_of_the_whole(tiny_data, policy):
    plan = plan_episodes(5, 0, queries=6, groups=6, group_size=2)
    whole = collect_batch(policy, SingleTurnVector(tiny_data, 12, WEIGHTS), plan)
    halves = [
        collect_batch(policy, SingleTurnVector(tiny_data, 6, WEIGHTS), plan.select_part(part, 2))
        for part in range(2)
    ]
    for name in ("action_BT", "cost_weight_B", "group_B"):
        joined = np.concatenate([getattr(half, name) for half in halves])
        np.testing.assert_array_equal(joined, getattr(whole, name))


def test_groups_share_query_and_cost_weight(tiny_data, policy):
    plan = plan_episodes(5, 3, queries=6, groups=4, group_size=8)
    batch = collect_batch(policy, SingleTurnVector(tiny_data, 32, WEIGHTS), plan)
    weight_NG = batch.cost_weight_B.reshape(4, 8)
    assert (weight_NG == weight_NG[:, :1]).all()
    assert len(np.unique(weight_NG)) == 4


def test_full_feedback_travels_in_the_batch_and_bandit_feedback_does_not(tiny_data, policy):
    plan = plan_episodes(5, 0, queries=6, groups=6, group_size=1)
    full = collect_batch(policy, SingleTurnVector(tiny_data, 6, WEIGHTS, "full"), plan)
    bandit = collect_batch(policy, SingleTurnVector(tiny_data, 6, WEIGHTS), plan)
    assert bandit.outcome_terms_BK is None
    expected_QK = tiny_data.table.score_QK[plan.query_index_B]
    np.testing.assert_array_equal(full.outcome_terms_BK["outcome"], expected_QK)


def test_another_number_of_lanes_than_episodes_is_refused(tiny_data, policy):
    plan = plan_episodes(5, 0, queries=6, groups=6, group_size=1)
    with pytest.raises(ValueError, match="5 lanes for 6 episodes"):
        collect_batch(policy, SingleTurnVector(tiny_data, 5, WEIGHTS), plan)
