from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from rlroute.algorithms.advantages import compute_group_advantages
from rlroute.envs.base import Step
from rlroute.envs.single_turn import CostWeightConfig, SingleTurn, build_reward_stack
from rlroute.policies.decision import Decisions
from rlroute.pool.recorded import RecordedPool
from rlroute.rollout.engine import FeatureAgent, run_episode, run_plan
from rlroute.rollout.plan import EpisodePlan, plan_episodes
from rlroute.types import Call, FailureKind, Observation, Query, Reply

WEIGHTS = CostWeightConfig(min=0.5, max=0.5)


@dataclass
class Scripted:
    """Takes the listed actions one after another, each with log-probability -1 and value 0.25."""

    actions: list[int]
    version: int = 4

    def decide(self, features_BF, candidate_features_KD, mask_BK, cost_weight_B, uniform_B):
        action_B = np.array([self.actions.pop(0) for _ in range(len(features_BF))])
        return Decisions(action_B, np.float32([-1] * len(action_B)), np.float32([0.25]))


@dataclass
class FailingPool:
    """A recording in which the first calls of some candidates fail, at a price."""

    recorded: RecordedPool
    failures: Counter[str]
    asked: list[str] = field(default_factory=list)

    async def ask_many(self, calls):
        return [self.reply(call) for call in calls]

    def reply(self, call: Call) -> Reply:
        self.asked.append(call.candidate_id)
        if self.failures[call.candidate_id] > 0:
            self.failures[call.candidate_id] -= 1
            return Reply(call, cost_usd=0.0001, failure=FailureKind.SERVER)
        return self.recorded.replay(call)


def make_plan(query_index: list[int], group: list[int]) -> EpisodePlan:
    return EpisodePlan(
        query_index_B=np.array(query_index),
        episode_seed_B=np.array(group) + 10,
        action_seed_B=np.arange(len(group)),
        group_B=np.array(group),
    )


def run(data, actions, failures, *, retries):
    pool = FailingPool(RecordedPool(data.table), Counter(failures))
    plan = make_plan([0] * len(actions), [0] * len(actions))
    batch = asyncio.run(
        run_plan(
            lambda: SingleTurn(data, WEIGHTS),
            Scripted(list(actions) + [actions[0]] * 5),
            pool,
            data.table.queries,
            plan,
            retries=retries,
        )
    )
    return batch, pool


def combine(data, batch) -> np.ndarray:
    stack = build_reward_stack(data)
    return stack.combine(batch.reward_terms_BT, batch.cost_weight_B[:, None])[:, 0]


def test_an_episode_is_recorded_from_observation_to_reward_terms(tiny_data):
    query = tiny_data.table.queries[0]
    trajectory = asyncio.run(
        run_episode(
            SingleTurn(tiny_data, WEIGHTS),
            FeatureAgent(Scripted([1]), action_seed=0),
            RecordedPool(tiny_data.table),
            query,
            episode_seed=10,
        )
    )
    (step,) = trajectory.transitions
    assert (trajectory.query, trajectory.seed, trajectory.failure) == (query, 10, None)
    assert (step.decision.action, step.decision.logp, step.decision.value) == (1, -1.0, 0.25)
    assert step.decision.policy_version == 4
    assert step.replies[0].score == 0.0
    assert step.reward_terms == pytest.approx({"outcome": 0.0, "cost": 0.25})
    assert step.terminated


def test_a_failed_call_is_retried_in_a_fresh_episode_and_the_answer_counts(tiny_data):
    batch, pool = run(tiny_data, [1], {"small": 1}, retries=1)
    assert pool.asked == ["small", "small"]
    assert batch.dropped == 0
    assert np.isfinite(combine(tiny_data, batch)).all()


def test_a_failure_that_stays_is_undefined_counted_and_never_cheap(tiny_data):
    batch, pool = run(tiny_data, [1], {"small": 99}, retries=3)
    assert pool.asked == ["small"] * 4
    assert batch.dropped == 1
    assert np.isnan(batch.reward_terms_BT["outcome"]).all()
    assert np.isnan(batch.reward_terms_BT["cost"]).all()
    assert np.isnan(combine(tiny_data, batch)).all()


def test_a_failed_member_leaves_the_mean_of_its_group(tiny_data):
    batch, _ = run(tiny_data, [0, 1, 2], {"small": 99}, retries=0)
    reward_B = combine(tiny_data, batch)
    np.testing.assert_allclose(reward_B, [0.5, np.nan, 1.0])
    adv_NG, valid_NG = compute_group_advantages(torch.as_tensor(reward_B)[None], scale_by_std=False)
    torch.testing.assert_close(adv_NG, torch.tensor([[-0.25, 0.0, 0.25]]))
    assert valid_NG.tolist() == [[True, False, True]]


def test_the_batch_keeps_the_order_of_the_plan_whoever_answers_first(tiny_data):
    @dataclass
    class SlowPool:
        recorded: RecordedPool

        async def ask_many(self, calls):
            await asyncio.sleep(0.02 if calls[0].candidate_id == "large" else 0)
            return [self.recorded.replay(call) for call in calls]

    batch = asyncio.run(
        run_plan(
            lambda: SingleTurn(tiny_data, WEIGHTS),
            Scripted([0, 1, 2]),
            SlowPool(RecordedPool(tiny_data.table)),
            tiny_data.table.queries,
            make_plan([2, 1, 3], [0, 1, 2]),
        )
    )
    assert batch.action_BT[:, 0].tolist() == [0, 1, 2]
    assert batch.query_index_B.tolist() == [2, 1, 3]
    np.testing.assert_array_equal(batch.features_BTF[:, 0], tiny_data.features_QF[[2, 1, 3]])
    np.testing.assert_array_equal(batch.mask_BTK[:, 0], tiny_data.table.present_QK[[2, 1, 3]])
    assert batch.policy_version == 4


class Walk:
    """Two decisions or three: the query's id says how many; the last one ends it as `end` says."""

    def __init__(self, end: str = "terminated"):
        self.end, self.left = end, 0

    def observe_now(self) -> Observation:
        mask_K = np.array([True, True, self.left > 1])
        features = np.float32([self.left])
        return Observation("", features, np.zeros((3, 2), dtype=np.float32), mask_K, 0.5)

    def reset(self, query: Query, seed: int) -> Observation:
        self.query, self.left = query, int(query.id)
        return self.observe_now()

    def propose(self, action: int) -> tuple[Call, ...]:
        return (Call("large" if action else "small", self.query, ""),)

    def observe(self, replies) -> Step:
        self.left -= 1
        score = replies[0].score
        return Step(
            self.observe_now(),
            {"outcome": score},
            terminated=self.left == 0 and self.end == "terminated",
            truncated=self.left == 0 and self.end == "truncated",
        )


@dataclass
class Scores:
    """Answers each call with 0.5, or fails at the listed places."""

    fail_at: tuple[int, ...] = ()
    asked: int = 0

    async def ask_many(self, calls):
        self.asked += 1
        if self.asked - 1 in self.fail_at:
            return [Reply(call, failure=FailureKind.TIMEOUT) for call in calls]
        return [Reply(call, score=0.5) for call in calls]


def walk(pool: Scores, lengths: list[int], end: str = "terminated"):
    queries = [Query(str(length), "") for length in lengths]
    return asyncio.run(
        run_plan(
            lambda: Walk(end),
            Scripted([1] * 20),
            pool,
            queries,
            make_plan(list(range(len(lengths))), list(range(len(lengths)))),
            retries=0,
        )
    )


def test_short_episodes_are_padded_and_masks_are_those_of_the_decisions():
    batch = walk(Scores(), [2, 3])
    assert batch.valid_BT.tolist() == [[True, True, False], [True, True, True]]
    assert batch.features_BTF[:, :, 0].tolist() == [[2, 1, 0], [3, 2, 1]]
    assert batch.mask_BTK[0, 1].tolist() == [True, True, False]
    assert batch.mask_BTK[0, 2].all()  # padding: a mask of nothing allowed would give NaN
    assert batch.reward_terms_BT["outcome"].tolist() == [[0.5, 0.5, 0.0], [0.5, 0.5, 0.5]]
    assert batch.terminated_B.tolist() == [True, True]


def test_a_truncated_episode_is_not_terminated_in_the_batch():
    assert walk(Scores(), [2, 3], "truncated").terminated_B.tolist() == [False, False]


def test_an_episode_stops_at_its_failed_call_and_all_its_rewards_are_undefined():
    pool = Scores(fail_at=(1,))
    batch = walk(pool, [3])
    assert pool.asked == 2
    assert batch.valid_BT.tolist() == [[True, True]]
    assert np.isnan(batch.reward_terms_BT["outcome"]).all()
    assert batch.dropped == 1


def test_a_plan_of_many_episodes_draws_no_number_from_the_process(tiny_data):
    plan = plan_episodes(0, 0, queries=6, groups=6, group_size=1)
    state = np.random.get_state()[1].tolist()
    asyncio.run(
        run_plan(
            lambda: SingleTurn(tiny_data, WEIGHTS),
            Scripted([0] * 6),
            RecordedPool(tiny_data.table),
            tiny_data.table.queries,
            plan,
        )
    )
    assert np.random.get_state()[1].tolist() == state
