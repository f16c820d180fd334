"""What the learner keeps of a batch, and how it takes steps."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from rlroute.envs.single_turn import build_reward_stack
from rlroute.envs.single_turn_vector import SingleTurnVector
from rlroute.policies.decision import SamplingPolicy
from rlroute.policies.mlp import CandidateScorer, ScorerConfig
from rlroute.rollout.plan import plan_episodes
from rlroute.rollout.vector import collect_batch
from rlroute.trainers.decision import TableProblem
from rlroute.trainers.learner import Learner, MinibatchPart, score_candidates
from rlroute.trainers.recipe import Recipe
from rlroute.trainers.update import update_policy


class CountingScorer(CandidateScorer):
    """Counts how often it works out what of queries does not change."""

    prepared = 0

    def prepare_queries(self, features_BF, candidate_features_KD):
        self.prepared += 1
        return super().prepare_queries(features_BF, candidate_features_KD)


@pytest.fixture
def learner(tiny_data) -> Learner:
    torch.manual_seed(0)
    model = CountingScorer(ScorerConfig(features=4, clusters=2, hidden=8))
    torch.nn.init.normal_(model.quality_tower.weight)
    model.centroids_CF.copy_(torch.as_tensor(tiny_data.features_QF[[0, 3]]))
    return Learner(
        accelerator=Accelerator(cpu=True),
        model=model,
        optimiser=torch.optim.AdamW(model.parameters()),
        score_rows=score_candidates,
        rewards=build_reward_stack(tiny_data),
        recipe=Recipe.model_validate({"table": "tiny", "algorithm": {"kind": "ppo", "epochs": 3}}),
    )


def collect(learner: Learner, data, update: int):
    plan = plan_episodes(0, update, queries=len(data.features_QF), groups=8, group_size=1)
    policy = SamplingPolicy(learner.scorer.eval(), version=update)
    return collect_batch(policy, SingleTurnVector(data, 8), plan)


def test_what_does_not_change_of_a_batch_is_worked_out_once_for_all_its_minibatches(
    learner, tiny_data
):
    for update in range(2):
        batch = collect(learner, tiny_data, update)
        before = learner.scorer.prepared
        metrics = update_policy(learner, batch, update)
        assert metrics["policy/epochs"] > 1
        assert learner.scorer.prepared == before + 1


def test_a_batch_is_scored_by_its_own_queries_and_never_by_those_of_the_last(learner, tiny_data):
    part = MinibatchPart(np.array([1, 0]), np.array([1, 0]), 2, (0, 0, 0))
    batch = collect(learner, tiny_data, 0)
    other = replace(batch, features_BTF=-batch.features_BTF)
    first, second = (learner.score_rows(learner, one, part) for one in (batch, other))
    again = learner.score_rows(replace(learner, basis=None), other, part)
    assert not torch.allclose(first.logp_BK, second.logp_BK)
    torch.testing.assert_close(second.logp_BK, again.logp_BK)


@pytest.mark.parametrize("scaled", [False, True])
def test_only_scaled_gradients_take_their_step_through_the_wrapper(learner, scaled):
    taken = []
    wrapped = SimpleNamespace(
        step=lambda: taken.append("wrapper"),
        optimizer=SimpleNamespace(step=lambda: taken.append("optimiser")),
    )
    accelerator = SimpleNamespace(scaler=object() if scaled else None, distributed_type="NO")
    replace(learner, accelerator=accelerator, optimiser=wrapped).take_step()
    assert taken == ["wrapper" if scaled else "optimiser"]


@pytest.mark.parametrize("kind", ["ppo", "expected_gradient"])
def test_what_was_made_of_the_queries_to_decide_on_them_is_learnt_from(learner, tiny_data, kind):
    recipe = Recipe.model_validate({"table": "tiny", "algorithm": {"kind": kind}})
    learner = replace(learner, recipe=recipe)
    splits = dict.fromkeys(("train", "val", "test"), tiny_data)
    prepared = SimpleNamespace(splits=splits, centroids_CF=None)
    problem = TableProblem(recipe, prepared, learner)
    batch = problem.collect(learner, 0)
    assert learner.scorer.prepared == 1
    update_policy(learner, batch, 0)
    assert learner.scorer.prepared == 1
    part = MinibatchPart(np.arange(5), np.arange(5), 5, (0, 0, 0))
    kept = learner.score_rows(learner, batch, part)
    again = learner.score_rows(replace(learner, basis=None), batch, part)
    torch.testing.assert_close(kept.logp_BK, again.logp_BK, rtol=0, atol=0)
