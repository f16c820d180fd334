"""One decision travels from a plan to a loss; every number on the way is worked out by hand.

Cost weight 0.5, cost reference 0.004 USD (the mean train cost of "large"):

    episode  query  action  score  cost USD  outcome  cost  reward = outcome - 0.5 * cost
    0        q00    large   1      0.004     1        1     0.5
    1        q00    tool    1      0         1        0     1
    2        q03    small   1      0.001     1        0.25  0.875
    3        q03    large   0      0.004     0        1     -0.5
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from rlroute.envs.single_turn import CostWeightConfig, SingleTurn, build_reward_stack
from rlroute.envs.single_turn_vector import SingleTurnVector
from rlroute.policies.decision import Decisions
from rlroute.policies.mlp import CandidateScorer, ScorerConfig, Scores
from rlroute.pool.recorded import RecordedPool
from rlroute.rollout.engine import run_plan
from rlroute.rollout.plan import EpisodePlan
from rlroute.rollout.vector import collect_batch
from rlroute.trainers.learner import Learner, score_candidates
from rlroute.trainers.recipe import Recipe
from rlroute.trainers.targets import compute_targets
from rlroute.trainers.update import compute_loss

WEIGHTS = CostWeightConfig(min=0.5, max=0.5)
PLAN = EpisodePlan(
    query_index_B=np.array([0, 0, 3, 3]),
    episode_seed_B=np.array([5, 5, 6, 6]),
    action_seed_B=np.array([1, 2, 3, 4]),
    group_B=np.array([0, 0, 1, 1]),
)
ACTIONS = [0, 2, 1, 0]
VALUES = [0.25, 0.5, 0.5, 0.0]
OLD_PROBABILITY = 0.25
# what the updated policy says of the three candidates: ratios 1, 1.5, 1, 0.5 for the actions taken
NEW_PROBABILITIES = [[0.25, 0.5, 0.25], [0.5, 0.125, 0.375], [0.5, 0.25, 0.25], [0.125, 0.5, 0.375]]
REWARDS = [0.5, 1.0, 0.875, -0.5]


@dataclass
class Scripted:
    """Decides as written, and keeps what it was shown."""

    actions: list[int] = field(default_factory=lambda: list(ACTIONS))
    values: list[float] = field(default_factory=lambda: list(VALUES))
    seen: list[tuple] = field(default_factory=list)
    version: int = 2

    def decide(self, features_BF, candidate_features_KD, mask_BK, cost_weight_B, uniform_B):
        self.seen += zip(features_BF, mask_BK, cost_weight_B, uniform_B, strict=True)
        lanes = range(len(features_BF))
        return Decisions(
            action_B=np.array([self.actions.pop(0) for _ in lanes]),
            logp_B=np.float32([math.log(OLD_PROBABILITY) for _ in lanes]),
            value_B=np.float32([self.values.pop(0) for _ in lanes]),
        )


def collect_with_engine(policy, data):
    environment = lambda: SingleTurn(data, WEIGHTS)  # noqa: E731
    pool = RecordedPool(data.table)
    return asyncio.run(run_plan(environment, policy, pool, data.table.queries, PLAN))


def collect_with_lanes(policy, data):
    return collect_batch(policy, SingleTurnVector(data, 4, WEIGHTS), PLAN)


def make_learner(data, **algorithm) -> Learner:
    config = ScorerConfig(features=4, clusters=2, hidden=8)
    model = CandidateScorer(config)
    return Learner(
        accelerator=Accelerator(cpu=True),
        model=model,
        optimiser=torch.optim.AdamW(model.parameters()),
        score_rows=score_candidates,
        rewards=build_reward_stack(data),
        recipe=Recipe.model_validate({"table": "tiny", "algorithm": algorithm}),
    )


@pytest.fixture(params=[collect_with_engine, collect_with_lanes])
def travelled(request, tiny_data):
    policy = Scripted()
    return policy, request.param(policy, tiny_data)


def test_the_policy_sees_the_query_the_mask_the_cost_weight_and_its_own_chance(
    travelled, tiny_data
):
    policy, _ = travelled
    features, masks, weights, uniforms = zip(*policy.seen, strict=True)
    np.testing.assert_array_equal(features, tiny_data.features_QF[[0, 0, 3, 3]])
    assert np.all(masks)
    assert weights == (0.5, 0.5, 0.5, 0.5)
    assert uniforms == pytest.approx(PLAN.draw_action_uniforms(turn=0).tolist(), abs=0)


def test_the_batch_holds_decisions_terms_and_groups(travelled):
    _, batch = travelled
    assert batch.action_BT.tolist() == [[0], [2], [1], [0]]
    np.testing.assert_allclose(batch.logp_BT, math.log(OLD_PROBABILITY))
    assert batch.value_BT[:, 0].tolist() == VALUES
    assert batch.reward_terms_BT["outcome"][:, 0].tolist() == [1, 1, 1, 0]
    np.testing.assert_allclose(batch.reward_terms_BT["cost"][:, 0], [1, 0, 0.25, 1], rtol=1e-6)
    assert batch.group_B.tolist() == [0, 0, 1, 1]
    assert batch.query_index_B.tolist() == [0, 0, 3, 3]
    assert batch.valid_BT.all()
    assert batch.terminated_B.all()
    assert (batch.policy_version, batch.dropped) == (2, 0)


STD_0, STD_1 = 0.25 * math.sqrt(2), 0.6875 * math.sqrt(2)  # of two values, divisor 1


@pytest.mark.parametrize(
    ("algorithm", "adv", "returns"),
    [
        ({"kind": "grpo", "group_size": 2}, [-0.25, 0.25, 0.6875, -0.6875], [0, 0, 0, 0]),
        (
            {"kind": "grpo", "group_size": 2, "scale_by_std": True},
            [
                -0.25 / (STD_0 + 1e-4),
                0.25 / (STD_0 + 1e-4),
                0.6875 / (STD_1 + 1e-4),
                -0.6875 / (STD_1 + 1e-4),
            ],
            [0, 0, 0, 0],
        ),
        ({"kind": "rloo", "group_size": 2}, [-0.5, 0.5, 1.375, -1.375], [0, 0, 0, 0]),
        ({"kind": "ppo", "normalise_advantages": False}, [0.25, 0.5, 0.375, -0.5], REWARDS),
    ],
)
def test_rewards_become_advantages(travelled, tiny_data, algorithm, adv, returns):
    _, batch = travelled
    targets = compute_targets(make_learner(tiny_data, **algorithm), batch)
    assert targets.adv_BT[:, 0].tolist() == pytest.approx(adv, rel=1e-5)
    assert targets.return_BT[:, 0].tolist() == pytest.approx(returns, abs=1e-6)
    assert targets.valid_BT.all()


def test_ppo_normalises_advantages_over_the_batch(travelled, tiny_data):
    _, batch = travelled
    targets = compute_targets(make_learner(tiny_data, kind="ppo"), batch)
    # 0.25, 0.5, 0.375, -0.5: mean 0.15625, variance 0.17578125 - 0.15625**2 = 0.1513671875
    expected = (np.array([0.25, 0.5, 0.375, -0.5]) - 0.15625) / math.sqrt(0.1513671875)
    np.testing.assert_allclose(targets.adv_BT[:, 0], expected, rtol=1e-5)


def make_scores() -> Scores:
    logits_BK = torch.tensor(NEW_PROBABILITIES).log().requires_grad_()
    value_B = torch.tensor([0.5, 0.5, 0.5, 0.5], requires_grad=True)
    return Scores(logits_BK, torch.zeros(4, 3), torch.zeros(4, 3), value_B)


def test_advantages_become_a_clipped_loss(travelled, tiny_data):
    _, batch = travelled
    learner = make_learner(tiny_data, kind="grpo", group_size=2)
    scores = make_scores()
    loss, sums = compute_loss(
        learner, batch, compute_targets(learner, batch), scores, torch.arange(4)
    )
    # 1 * -0.25;  min(1.5 * 0.25, 1.2 * 0.25);  1 * 0.6875;  min(0.5 * -0.6875, 0.8 * -0.6875)
    assert loss.item() == pytest.approx(-(-0.25 + 0.3 + 0.6875 - 0.55), rel=1e-5)
    assert sums["kl"].item() == pytest.approx(0.5 - math.log(1.5) - 0.5 - math.log(0.5), rel=1e-4)
    assert sums["clipped"].item() == 2
    assert sums["valid"].item() == 4
    slope_BK = torch.autograd.grad(loss, scores.logits_BK)[0]
    # -A * (one hot - probabilities) where the ratio is inside the range, nothing where it is not
    expected = torch.tensor(
        [
            [0.25 * 0.75, 0.25 * -0.5, 0.25 * -0.25],
            [0.0, 0.0, 0.0],
            [-0.6875 * -0.5, -0.6875 * 0.75, -0.6875 * -0.25],
            [0.0, 0.0, 0.0],
        ]
    )
    torch.testing.assert_close(slope_BK, expected)


def test_returns_become_a_value_loss_beside_ppos_clipped_loss(travelled, tiny_data):
    _, batch = travelled
    learner = make_learner(tiny_data, kind="ppo", normalise_advantages=False, value_weight=2.0)
    loss, sums = compute_loss(
        learner, batch, compute_targets(learner, batch), make_scores(), torch.arange(4)
    )
    policy_loss = -(0.25 + 1.2 * 0.5 + 0.375 + 0.8 * -0.5)
    value_loss = 0.5 * (0.0 + 0.25 + 0.140625 + 1.0)
    assert sums["policy_loss"].item() == pytest.approx(policy_loss, rel=1e-5)
    assert sums["value_loss"].item() == pytest.approx(value_loss, rel=1e-5)
    assert loss.item() == pytest.approx(policy_loss + 2 * value_loss, rel=1e-5)


def test_full_feedback_becomes_the_exact_expectation(tiny_data):
    batch = collect_batch(Scripted(), SingleTurnVector(tiny_data, 4, WEIGHTS, "full"), PLAN)
    learner = make_learner(tiny_data, kind="expected_gradient")
    targets = compute_targets(learner, batch)
    rewards = [[0.5, -0.125, 1.0], [0.5, -0.125, 1.0], [-0.5, 0.875, 0.0], [-0.5, 0.875, 0.0]]
    torch.testing.assert_close(targets.reward_BK, torch.tensor(rewards))
    loss, _ = compute_loss(learner, batch, targets, make_scores(), torch.arange(4))
    expected = sum(
        probability * reward
        for row, rewards_of_row in zip(NEW_PROBABILITIES, rewards, strict=True)
        for probability, reward in zip(row, rewards_of_row, strict=True)
    )
    assert loss.item() == pytest.approx(-expected, rel=1e-5)
