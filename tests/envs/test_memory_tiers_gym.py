"""`rlroute/MemoryTiers-v0`: all checks, single and vector alike, and faults in one line."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from tier_worlds import ArithmeticPipeline, HashEncoder, grade, make_questions, make_tree

import rlroute.envs  # noqa: F401 - registers the environments
from rlroute.envs.checker import run_check
from rlroute.envs.memory_tiers_gym import make_memory_tiers, make_memory_tiers_vector
from rlroute.envs.vector_checker import check_vector
from rlroute.memory.live import LiveOutcomes
from rlroute.memory.tree_files import save_tree
from rlroute.rewards.memory import MemoryReward, MemoryRewardConfig
from rlroute.types import RLRouteError

NAME = "rlroute/MemoryTiers-v0"
NAMES = ["gymnasium", "determinism", "action_mask", "state_round_trip", "ends", "rewards"]
RAGGED = (2, 3, 2, 4)
TREE = make_tree(8)
RAGGED_TREE = make_tree(8, RAGGED)
FAILING_TREE = make_tree(8, RAGGED, [(0, 0, f"q{n}") for n in range(0, 8, 2)])
CAPS = [None, 0.0, 0.05, 0.1]
LANES = 24


@pytest.mark.parametrize(
    "arguments",
    [
        {"outcomes": RAGGED_TREE},
        {"outcomes": RAGGED_TREE, "cost_weight": 0.3},
        {"outcomes": RAGGED_TREE, "caps_usd": CAPS},
        {"outcomes": FAILING_TREE, "cost_weight": {"min": 0.1, "max": 0.9}},
    ],
    ids=["free", "one weight", "budget", "failures"],
)
def test_the_environment_and_its_lanes_pass_all_checks(arguments):
    assert run_check(NAME, arguments) == NAMES
    index_B = np.arange(LANES) % 8
    options = {"question_index": index_B, "episode_seed": np.arange(LANES) + 5}
    vector = gymnasium.make_vec(NAME, LANES, **arguments)
    single = gymnasium.make(NAME, disable_env_checker=True, **arguments)
    passed = check_vector(vector, single, options)
    assert passed == ["spaces", "match_single", "lanes", "autoreset"]


def test_all_tiers_of_equal_modules_are_open():
    assert run_check(NAME, {"outcomes": TREE}) == [
        name + (" (no masked action was met)" if name == "action_mask" else "") for name in NAMES
    ]


def test_live_outcomes_pass_all_checks():
    live = LiveOutcomes(ArithmeticPipeline(RAGGED), make_questions(4), HashEncoder(), grade)
    assert run_check(NAME, {"outcomes": live, "reference_usd": 0.1}) == NAMES


def test_a_folder_gives_the_episodes_of_its_tree(tmp_path):
    save_tree(RAGGED_TREE, tmp_path / "tree")
    runs = []
    for arguments in ({"tree": tmp_path / "tree"}, {"outcomes": RAGGED_TREE}):
        environment = gymnasium.make(NAME, **arguments)
        _, info = environment.reset(seed=3)
        steps = [environment.step(0) for _ in RAGGED]
        runs.append((info, [(step[0]["features"], step[1]) for step in steps]))
    assert runs[0][0] == runs[1][0]
    for (features_F, reward), (other_F, other) in zip(runs[0][1], runs[1][1], strict=True):
        assert np.array_equal(features_F, other_F)
        assert reward == other


def test_the_default_reward_is_the_score_less_the_weighted_cost_by_hand():
    reference = TREE.find_reference_cost()
    environment = gymnasium.make(NAME, disable_env_checker=True, outcomes=TREE, cost_weight=0.4)
    environment.reset(options={"question_id": "q3", "episode_seed": 0})
    for tier in (1, 2, 0, 2, 1):
        _, reward, terminated, truncated, info = environment.step(tier)
        if not terminated:
            assert reward == 0
            assert info["reward_terms"] == {"outcome": 0, "cost": 0}
    leaf = int(TREE.facts.number_leaves(np.array([[1, 2, 0, 2, 1]]))[0])
    score, cost = TREE.leaf_score_QL[3, leaf], TREE.leaf_cost_QL[3, leaf]
    assert (info["score"], info["cost_usd"]) == (score, cost)
    assert info["answer_cost_usd"] == TREE.answer_cost_QL[3, leaf]
    assert info["tiers"].tolist() == [1, 2, 0, 2, 1]
    assert reward == pytest.approx(score + 0.4 * (1 - cost / reference), rel=1e-6)
    assert not truncated


def test_a_reward_of_ones_own_is_frozen_as_it_was():
    own = MemoryReward(MemoryRewardConfig())
    own.push(np.array([1.0, 0.0], dtype=np.float32), np.array([0.0, 0.5]))
    vector = gymnasium.make_vec(NAME, 8, outcomes=TREE, reward=own)
    own.push(np.zeros(50, dtype=np.float32), np.full(50, 9.0))
    vector.reset(seed=0)
    for _ in range(5):
        _, _, _, _, info = vector.step(np.ones(8, dtype=np.int64))
    low, high = np.percentile(np.sqrt([0.0, 0.5]), [5, 95])
    expected_B = 1 - np.clip((np.sqrt(info["cost_usd"]) - low) / (high - low), 0, 1)
    np.testing.assert_allclose(info["reward_terms"]["cost"], expected_B, rtol=1e-5)


def test_a_failed_episode_has_no_reward():
    environment = gymnasium.make(NAME, outcomes=FAILING_TREE)
    environment.reset(options={"question_index": 2})
    for _ in RAGGED:
        _, reward, terminated, _, info = environment.step(0)
    assert terminated
    assert np.isnan(reward)
    assert np.isnan(list(info["reward_terms"].values())).all()
    assert np.isnan(info["cost_usd"])


def test_caps_of_the_seed_are_kept_in_all_lanes():
    caps = [0.08, 0.12, None]
    vector = gymnasium.make_vec(NAME, 256, outcomes=RAGGED_TREE, caps_usd=caps)
    observation, _ = vector.reset(seed=1)
    cap_B = vector.unwrapped.episodes.cap_usd_B
    assert set(cap_B) == {0.08, 0.12, np.inf}
    for _ in RAGGED:  # the dearest that may act
        action_B = 3 - observation["mask"][:, ::-1].argmax(axis=1)
        observation, _, _, _, info = vector.step(action_B)
    assert (info["cost_usd"] <= cap_B).all()
    assert (info["cost_usd"] > 0.12).any()  # some without a cap


def test_bounds_may_be_given_where_the_outcomes_know_none():
    live = LiveOutcomes(ArithmeticPipeline(RAGGED), make_questions(4), HashEncoder(), grade)
    bounds = [[0.01, 0.02], [0.1, 0.2, 0.3], [0.1, 0.2], [0.1, 0.2, 0.3, 0.4]]
    environment = make_memory_tiers(
        outcomes=live, reference_usd=0.1, caps_usd=[0.33], bound_usd=bounds
    )
    observation, _ = environment.reset(seed=0)
    assert observation["mask"].tolist() == [1, 1, 0, 0]
    observation, *_ = environment.step(np.int64(0))
    assert observation["mask"].tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give either tree"),
        ({"outcomes": TREE, "tree": "somewhere"}, "give either tree"),
        ({"tree": "nowhere"}, "nowhere/tree.json: cannot be read"),
        ({"outcomes": TREE, "caps": [1.0]}, "'caps'|caps: "),
        ({"outcomes": TREE, "caps_usd": [-1.0]}, "a cap must be a number from 0 or null"),
        (
            {"outcomes": TREE, "caps_usd": [1.0], "bound_usd": [[1.0]]},
            "bound_usd must have one row",
        ),
        ({"outcomes": TREE, "reference_usd": 0}, "reference_usd"),
        ({"outcomes": TREE, "cost_weight": -1}, "cost_weight"),
    ],
)
def test_a_fault_of_the_arguments_is_told_in_one_line(arguments, message):
    for make in (make_memory_tiers, make_memory_tiers_vector):
        with pytest.raises(RLRouteError, match=message) as caught:
            make(**arguments)
        assert "\n" not in str(caught.value)


def test_outcomes_that_are_no_tree_need_a_reference_and_bounds():
    live = LiveOutcomes(ArithmeticPipeline(RAGGED), make_questions(4), HashEncoder(), grade)
    with pytest.raises(RLRouteError, match="need reference_usd"):
        make_memory_tiers(outcomes=live)
    with pytest.raises(RLRouteError, match="need bound_usd"):
        make_memory_tiers(outcomes=live, reference_usd=0.1, caps_usd=[1.0])
