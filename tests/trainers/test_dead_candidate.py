"""A candidate whose every call fails costs nothing, teaches nothing, and is never preferred."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from accelerate import Accelerator

from rlroute.data.prepare import prepare_table
from rlroute.data.table import read_table
from rlroute.envs.single_turn import SingleTurn
from rlroute.policies.decision import SamplingPolicy, score
from rlroute.pool.recorded import RecordedPool
from rlroute.rollout.engine import run_plan
from rlroute.rollout.plan import plan_episodes
from rlroute.trainers.decision import make_learner
from rlroute.trainers.metrics import summarise_batch
from rlroute.trainers.recipe import Recipe
from rlroute.trainers.update import update_policy
from rlroute.types import Call, FailureKind, Reply

DEAD = "poet"
COST_WEIGHT = 2.0  # an answer of the generalist is worth less than nothing at this price


class PoolWithDeadCandidate:
    """Answers from a recording, but every call of one candidate fails and costs 0."""

    def __init__(self, recorded: RecordedPool) -> None:
        self.recorded = recorded

    async def ask_many(self, calls: Sequence[Call]) -> list[Reply]:
        return [
            Reply(call, failure=FailureKind.SERVER)
            if call.candidate_id == DEAD
            else self.recorded.replay(call)
            for call in calls
        ]


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "rloo"])
def test_a_dead_candidate_is_never_preferred(
    algorithm: str, make_recipe: Callable[..., Recipe], world_folder: Path
) -> None:
    recipe = make_recipe(algorithm, cost_weight={"min": COST_WEIGHT, "max": COST_WEIGHT})
    table = read_table(world_folder).select_candidates(["generalist", "poet"])
    prepared = prepare_table(table, recipe.encoder, recipe.profile, recipe.seed)
    data = prepared.splits["train"]
    learner = make_learner(recipe, prepared, Accelerator())
    pool = PoolWithDeadCandidate(RecordedPool(data.table))
    dead = [candidate.id for candidate in data.table.candidates].index(DEAD)

    def measure_share() -> float:
        weight_Q = np.full(len(data.features_QF), COST_WEIGHT, dtype=np.float32)
        scores = score(
            learner.scorer.eval(),
            data.features_QF,
            data.candidate_features_KD,
            data.table.present_QK,
            weight_Q,
            served=False,
        )
        return float(scores.logp_BK.exp()[:, dead].mean())

    data.candidate_features_KD[:] = data.candidate_features_KD.mean(axis=0)  # both start equal
    data.candidate_features_KD[:, 0] += (0.1, -0.1)  # but are told apart
    before = measure_share()
    assert before == pytest.approx(0.5, abs=1e-3)
    dropped = 0.0
    for update in range(15):
        groups = 64 // recipe.algorithm.group_size
        plan = plan_episodes(
            recipe.seed,
            update,
            queries=len(data.features_QF),
            groups=groups,
            group_size=recipe.algorithm.group_size,
        )
        batch = asyncio.run(
            run_plan(
                lambda: SingleTurn(data, recipe.cost_weight),
                SamplingPolicy(learner.scorer.eval(), version=update),
                pool,
                data.table.queries,
                plan,
            )
        )
        update_policy(learner, batch, update)
        found = summarise_batch(learner, batch, data)
        dropped += found["group/dropped"]
        assert found["reward/cost/mean"] > 0.5  # failed calls do not make routing look cheap
    assert dropped > 0
    # every answer of the other candidate is worth less than 0: taken for free, failing would win
    assert measure_share() < before + 0.1
