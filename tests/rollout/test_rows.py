from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from rlroute.envs.single_turn import CostWeightConfig
from rlroute.envs.single_turn_vector import SingleTurnVector
from rlroute.policies.decision import SamplingPolicy
from rlroute.policies.mlp import CandidateScorer, ScorerConfig
from rlroute.rollout.plan import EpisodePlan, plan_episodes
from rlroute.rollout.rows import join_by_group, select_rows
from rlroute.rollout.vector import collect_batch
from rlroute.types import Batch


def play(data, plan: EpisodePlan) -> Batch:
    policy = SamplingPolicy(CandidateScorer(ScorerConfig(features=4, clusters=2)).eval())
    environment = SingleTurnVector(data, len(plan.group_B), CostWeightConfig(max=2.0))
    return collect_batch(policy, environment, plan)


def assert_equal(one: Batch, two: Batch) -> None:
    for field in fields(Batch):
        left, right = getattr(one, field.name), getattr(two, field.name)
        if isinstance(left, dict):
            assert set(left) == set(right)
            for name in left:
                np.testing.assert_array_equal(left[name], right[name])
        else:
            np.testing.assert_array_equal(left, right)


def test_members_played_in_two_rounds_are_the_batch_of_one_round(tiny_data):
    plan = plan_episodes(3, 1, queries=6, groups=5, group_size=4)
    whole = play(tiny_data, plan)
    place_B = np.arange(20) % 4
    rounds = [play(tiny_data, plan.select_rows(np.flatnonzero(place_B // 2 == i))) for i in (0, 1)]
    assert_equal(join_by_group(rounds), whole)
    assert_equal(select_rows(whole, np.arange(20)), whole)


def test_dropped_episodes_of_all_rounds_are_counted_and_shared_fields_stay(tiny_data):
    batch = play(tiny_data, plan_episodes(3, 1, queries=6, groups=2, group_size=2))
    joined = join_by_group([replace(batch, dropped=1), replace(batch, dropped=2)])
    assert joined.dropped == 3
    assert joined.group_B.tolist() == [0] * 4 + [1] * 4
    assert joined.candidate_features_KD is batch.candidate_features_KD


def test_rows_of_many_step_episodes_are_refused(tiny_data):
    batch = play(tiny_data, plan_episodes(3, 1, queries=6, groups=2, group_size=2))
    with pytest.raises(ValueError, match="many-step"):
        select_rows(replace(batch, ends=object()), np.arange(2))
