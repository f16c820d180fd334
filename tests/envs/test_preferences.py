"""Where waiting counts and users favour candidates: Gym, vector and engine alike."""

from __future__ import annotations

import asyncio
import warnings

import gymnasium
import numpy as np
import pytest
import torch

import rlroute.envs  # noqa: F401 - registers the environments
from rlroute.data.encoders import TfidfConfig
from rlroute.data.latencies import require_latencies
from rlroute.data.prepare import PreparedTable, prepare_table
from rlroute.data.routing_data import ProfileConfig
from rlroute.data.table import read_table
from rlroute.data.users import UserWeights
from rlroute.envs.checker import run_check
from rlroute.envs.preferences import LatencyWeightConfig, Preferences
from rlroute.envs.single_turn import CostWeightConfig, SingleTurn
from rlroute.envs.single_turn_vector import SingleTurnVector
from rlroute.policies.decision import SamplingPolicy
from rlroute.policies.mlp import CandidateScorer, ScorerConfig
from rlroute.pool.recorded import RecordedPool
from rlroute.rollout.engine import run_plan
from rlroute.rollout.plan import plan_episodes
from rlroute.rollout.vector import collect_batch
from rlroute.types import RLRouteError

ID = "rlroute/SingleTurn-v0"
USERS = {
    "ada": {"cost_weight": 1.0, "latency_weight": 0.5},
    "ben": {"cost_weight": 0.2, "candidate_bias": {"calculator": 0.25}},
}
PREFERENCES = Preferences(
    LatencyWeightConfig(max=1.0), tuple(UserWeights(**one) for one in USERS.values()), 0.5
)


@pytest.fixture(scope="module")
def prepared() -> PreparedTable:
    """The table that ships, with its latencies."""
    table = require_latencies(read_table("pocket"))
    encoder = TfidfConfig(kind="tfidf", dimension=8)
    return prepare_table(table, encoder, ProfileConfig(clusters=2), 0, latency=True)


def make(prepared: PreparedTable, **arguments):
    data = prepared.splits["test"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*Box observation space.*")
        return gymnasium.make(ID, data=data, latency_weight={"max": 1}, users=USERS, **arguments)


def test_weights_are_seen_and_paid_as_the_user_has_them(prepared: PreparedTable) -> None:
    environment = make(prepared, feedback="full").unwrapped
    data = prepared.splits["test"]
    ids = [candidate.id for candidate in data.table.candidates]
    seen = set()
    for seed in range(30):
        observation, _ = environment.reset(seed=seed)
        assert environment.observation_space.contains(observation)
        row, action = environment.environment.row, seed % len(ids)
        _, reward, _, _, info = environment.step(np.int64(action))
        (cost_weight,), (latency_weight,) = (
            observation["cost_weight"],
            observation["latency_weight"],
        )
        bias = observation["candidate_bias"][action]
        expected = (
            data.table.score_QK[row, action]
            - cost_weight * data.normalised_cost_QK[row, action]
            - latency_weight * data.normalised_latency_QK[row, action]
            + bias
        )
        assert reward == pytest.approx(expected, abs=1e-5)
        assert info["outcome_terms"]["latency"][action] == info["reward_terms"]["latency"]
        seen.add((round(float(cost_weight), 3), round(float(latency_weight), 3)))
        if (round(float(cost_weight), 3), float(latency_weight)) == (0.2, 0.0):
            assert observation["candidate_bias"][ids.index("calculator")] == 0.25
    assert {(1.0, 0.5), (0.2, 0.0)} < seen  # and drawn ones beside


def test_without_preferences_nobody_sees_new_keys(tiny_data) -> None:
    environment = gymnasium.make(ID, data=tiny_data).unwrapped
    observation, _ = environment.reset(seed=0)
    assert set(observation) == {"features", "candidates", "mask", "cost_weight"}
    assert set(environment.observation_space) == set(observation)
    vector, _ = SingleTurnVector(tiny_data, 3).reset(seed=0)
    assert set(vector) == set(observation)


def test_a_state_goes_round(prepared: PreparedTable) -> None:
    environment = make(prepared).unwrapped
    for seed in range(4):
        before, _ = environment.reset(seed=seed)
        after = environment.set_state(environment.get_state())
        for name, value in before.items():
            np.testing.assert_allclose(after[name], value, rtol=1e-6)


def test_the_checker_passes_with_users_and_latencies() -> None:
    passed = run_check(ID, {"latency_weight": 0.5, "users": USERS, "encoder": {"kind": "tfidf"}})
    assert len(passed) >= 5


def test_engine_and_vector_make_the_same_episodes(prepared: PreparedTable) -> None:
    data = prepared.splits["train"]
    config = ScorerConfig(features=data.features_QF.shape[1], clusters=2, hidden=8, latency=True)
    torch.manual_seed(0)
    policy = SamplingPolicy(CandidateScorer(config).eval())
    plan = plan_episodes(0, 0, queries=len(data.features_QF), groups=12, group_size=2)
    vector = SingleTurnVector(data, len(plan.group_B), preferences=PREFERENCES)
    lanes = collect_batch(policy, vector, plan)
    waited = asyncio.run(
        run_plan(
            lambda: SingleTurn(data, CostWeightConfig(), PREFERENCES),
            policy,
            RecordedPool(data.table),
            data.table.queries,
            plan,
        )
    )
    for name in ("cost_weight_B", "latency_weight_B", "candidate_bias_BK", "action_BT"):
        np.testing.assert_array_equal(getattr(lanes, name), getattr(waited, name))
    assert set(lanes.reward_terms_BT) == {"outcome", "cost", "latency", "bias"}
    for name, value_BT in lanes.reward_terms_BT.items():
        np.testing.assert_allclose(value_BT, waited.reward_terms_BT[name], rtol=1e-6)


def test_a_weight_of_latency_needs_latencies(tiny_data) -> None:
    with pytest.raises(RLRouteError, match="prepared without latencies"):
        gymnasium.make(ID, data=tiny_data, latency_weight=0.5)
    users = {"ada": {"cost_weight": 0, "candidate_bias": {"x": 0.1}}}
    with pytest.raises(RLRouteError, match="candidate_bias: unknown candidate 'x'"):
        gymnasium.make(ID, data=tiny_data, users=users)
