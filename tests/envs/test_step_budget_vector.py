"""Thousands of lanes: no cap is ever passed, and each lane is the single environment's episode."""

from __future__ import annotations

from fractions import Fraction

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from step_worlds import THREE_EXECUTORS, THREE_KINDS, make_chain

import rlroute.envs  # noqa: F401 - registers the environments
from rlroute.config import parse_config
from rlroute.envs.checker import run_check
from rlroute.envs.step_budget import StepBudget, StepBudgetConfig
from rlroute.envs.step_budget_gym import StepBudgetGym
from rlroute.envs.step_budget_vector import StepBudgetVector
from rlroute.envs.vector_checker import check_vector
from rlroute.policies.step_baselines import find_nearest
from rlroute.rewards.boundary import Yardstick
from rlroute.seeding import draw_uniform
from rlroute.types import RLRouteError
from rlroute.worlds.chain import ChainConfig, ChainLanes, ChainWorld

CHAIN = ChainConfig(kinds=THREE_KINDS, executors=THREE_EXECUTORS, train=50, val=5, test=20)
STEP_COSTS = [  # in whole picodollars: a step of 3,000 prompt and 200 completion tokens
    int(1_000_000 * (3000 * Fraction(str(one.input)) + 200 * Fraction(str(one.output))))
    for one in THREE_EXECUTORS
]
CAPS = {"calls": [0, 1, 3, 10, None], "usd": [0, 0.001, 0.00152, 0.02, 0.0304, 0.05, 1.0, None]}


def make_config(unit: str, caps=(None,), **fields) -> StepBudgetConfig:
    data = {"budget": {"unit": unit, "caps": list(caps)}, "reward": {"unit": unit}}
    return parse_config(StepBudgetConfig, data | fields, "test")


def take_allowed(wanted_B: np.ndarray, mask_BK: np.ndarray) -> np.ndarray:
    return find_nearest(wanted_B, mask_BK.astype(np.bool_))


# --- Violations -----------------------------------------------------------------------------------

# (lanes, turn of each) -> the wanted executor of each, of 3
ADVERSARIES = {
    "dearest": lambda lanes, turn_B, draw: np.full(lanes, 2),
    "alternating": lambda lanes, turn_B, draw: 2 * (turn_B % 2),
    "at the last moment": lambda lanes, turn_B, draw: 2 * (turn_B >= 5),
    "random": lambda lanes, turn_B, draw: (3 * draw_uniform("a", draw, np.arange(lanes))).astype(
        int
    ),
}


@pytest.mark.parametrize("unit", ["calls", "usd"])
@pytest.mark.parametrize("name", list(ADVERSARIES))
def test_no_cap_is_passed_in_a_hundred_thousand_episodes(unit, name):
    lanes, episodes, exhausted = 4096, 0, 0
    vector = StepBudgetVector(ChainLanes(CHAIN), make_config(unit, CAPS[unit]), lanes)
    observation, _ = vector.reset(seed=1)
    price_K = np.array(STEP_COSTS if unit == "usd" else [0, 1, 1])
    spent_B, turn_B = np.zeros(lanes, dtype=np.int64), np.zeros(lanes, dtype=np.int64)
    least = 0  # of what was left of a cap at an end, over all episodes: the adversary gets close
    draw = 0
    while episodes < 100_000:
        cap_B = vector.ledger.cap_B.copy()
        wanted_B = ADVERSARIES[name](lanes, turn_B, draw)
        action_B = take_allowed(wanted_B, observation["mask"])
        played_B = price_K[0] <= cap_B - spent_B  # by hand: can it pay for anything
        observation, _, ended_B, _, info = vector.step(action_B)
        spent_B += np.where(played_B, price_K[action_B], 0)
        turn_B, draw = turn_B + 1, draw + 1
        assert (spent_B <= cap_B).all()
        if unit == "usd":
            assert (np.rint(info["cost_usd"] * 1e12) == spent_B).all()
        else:
            assert (info["calls"] == spent_B).all()
        least += int((ended_B & (spent_B == cap_B)).sum())
        exhausted += int((ended_B & info["exhausted"]).sum())
        episodes += int(ended_B.sum())
        spent_B[ended_B] = turn_B[ended_B] = 0
    assert vector.ledger.overruns == 0
    assert least > 5000
    assert (exhausted > 10_000) == (unit == "usd")


@settings(max_examples=60)
@given(
    st.sampled_from(["calls", "usd"]),
    st.lists(st.none() | st.floats(0, 0.1) | st.integers(0, 12), min_size=1, max_size=4),
    st.lists(st.integers(0, 2), min_size=20, max_size=20),
    st.integers(0, 2**31),
)
def test_no_sequence_of_wishes_passes_any_cap(unit, caps, wishes, seed):
    if unit == "calls":  # whole ones
        caps = [None if cap is None else int(cap) for cap in caps]
    vector = StepBudgetVector(ChainLanes(CHAIN), make_config(unit, caps), 16)
    observation, _ = vector.reset(seed=seed)
    for wish in wishes:
        action_B = take_allowed((wish + np.arange(16)) % 3, observation["mask"])
        assert (vector.ledger.spent_B <= vector.ledger.cap_B).all()
        observation, _, _, _, info = vector.step(action_B)
        spent_B = info["calls"] if unit == "calls" else info["cost_usd"]
        assert (spent_B <= max(np.inf if cap is None else cap for cap in caps) + 1e-12).all()


# --- Lane by lane ---------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["calls", "usd"])
@pytest.mark.parametrize("critical", [0, 3])
def test_each_lane_makes_the_episode_of_the_single_environment(unit, critical):
    lanes, horizon = 200, 7
    world = ChainConfig(
        kinds=THREE_KINDS, executors=THREE_EXECUTORS, horizon=horizon, train=50, val=1, test=1
    )
    config = make_config(unit, CAPS[unit], cost_weight={"min": 0.0, "max": 1.0})
    tasks = ChainWorld(world).list_tasks("train")
    yardsticks = {task.id: Yardstick(0.01, 0.04, n % 3 == 0) for n, task in enumerate(tasks[::2])}
    vector = StepBudgetVector(ChainLanes(world), config, lanes, yardsticks=yardsticks)
    single = StepBudget(ChainWorld(world), config, yardsticks)
    task_B, lane_B = np.arange(lanes) % 50, np.arange(lanes)
    seed_B, world_seed_B = lane_B * 7 + 3, lane_B * 11 + 5
    options = {"task_index": task_B, "episode_seed": seed_B, "world_seed": world_seed_B}
    observation, _ = vector.reset(options=options)
    frames = []
    while len(frames) < horizon:
        wanted_B = (3 * draw_uniform("wanted", lane_B, len(frames))).astype(np.int64)
        action_B = take_allowed(wanted_B, observation["mask"])
        before = observation
        observation, reward_B, ended_B, _, info = vector.step(action_B)
        frames.append((before, action_B, reward_B, ended_B, info))
    for lane in lane_B:
        seen = single.reset(
            tasks[task_B[lane]], int(seed_B[lane]), world_seed=int(world_seed_B[lane])
        )
        for before, action_B, reward_B, ended_B, info in frames:  # noqa: B007 - read below
            np.testing.assert_array_equal(seen.features_F, before["features"][lane])
            np.testing.assert_array_equal(seen.mask_K, before["mask"][lane])
            assert np.float32(seen.cost_weight) == before["cost_weight"][lane, 0]
            single.propose(int(action_B[lane]))
            step = single.observe(())
            seen = step.observation
            for name, value in step.reward_terms.items():
                assert np.float32(value) == info["reward_terms"][name][lane]
            assert step.terminated == ended_B[lane]
            if step.terminated:
                break
        final, record = info["final_obs"], single.read_record()
        np.testing.assert_array_equal(seen.features_F, final["features"][lane])
        np.testing.assert_array_equal(seen.mask_K, final["mask"][lane])
        assert record.score == info["score"][lane]
        assert record.cost_usd == info["cost_usd"][lane]
        assert record.calls == info["calls"][lane]
        assert record.exhausted == info["exhausted"][lane]
        terms = {name: np.array([value]) for name, value in step.reward_terms.items()}
        weight_1 = np.array([seen.cost_weight], dtype=np.float32)
        assert single.rewards.combine(terms, weight_1)[0] == pytest.approx(reward_B[lane], abs=1e-6)


@pytest.mark.parametrize("unit", ["calls", "usd"])
def test_the_lanes_pass_the_vector_checker(unit):
    config = make_config(unit, CAPS[unit], cost_weight={"min": 0.0, "max": 1.0})
    vector = StepBudgetVector(ChainLanes(CHAIN), config, 40)
    single = StepBudgetGym(ChainWorld(CHAIN), config, "train")
    options = {"task_index": np.arange(40), "episode_seed": np.arange(40) + 100}
    found = check_vector(vector, single, options)
    assert found == ["spaces", "match_single", "lanes", "autoreset"]


@pytest.mark.parametrize("unit", ["calls", "usd"])
def test_the_single_environment_passes_the_checker_under_its_gymnasium_id(unit):
    arguments = {
        "world": CHAIN.model_dump(),
        "budget": {"unit": unit, "caps": CAPS[unit]},
        "cost_weight": {"min": 0.0, "max": 1.0},
    }
    assert run_check("rlroute/StepBudget-v0", arguments) == [
        *("gymnasium", "determinism", "action_mask", "state_round_trip", "ends", "rewards")
    ]


def test_gymnasium_makes_the_vector_environment_with_the_arguments_of_a_recipe():
    vector = gymnasium.make_vec(
        "rlroute/StepBudget-v0",
        num_envs=3,
        vectorization_mode="vector_entry_point",
        world={"kind": "chain", "horizon": 4},
        budget={"caps": [1]},
        split="test",
    )
    observation, _ = vector.reset(seed=0)
    assert observation["mask"].tolist() == [[1, 1]] * 3
    assert vector.step(np.ones(3, dtype=np.int64))[0]["mask"].tolist() == [[1, 0]] * 3
    with pytest.raises(RLRouteError, match="has no array form"):
        gymnasium.make_vec(
            "rlroute/StepBudget-v0",
            num_envs=3,
            vectorization_mode="vector_entry_point",
            world={"kind": "tool_graph"},
        )


# --- The lanes themselves -------------------------------------------------------------------------


@pytest.mark.parametrize("action", [2, 3, -1])
def test_a_masked_or_unknown_action_is_refused_with_its_lane(action):
    vector = StepBudgetVector(ChainLanes(CHAIN), make_config("calls", [0]), 4)
    vector.reset(seed=0)
    with pytest.raises(ValueError, match=f"action {action} of lane 1 is not allowed"):
        vector.step(np.array([0, action, 0, 0]))
    vector.step(np.zeros(4, dtype=np.int64))  # the lanes still stand where they stood
    assert vector.turn_B.tolist() == [1, 1, 1, 1]


def test_lanes_that_can_pay_for_nothing_end_unpaid_and_the_others_go_on():
    chain = make_chain(0)
    vector = StepBudgetVector(ChainLanes(chain), make_config("usd", [0.001, None]), 64)
    observation, _ = vector.reset(seed=0)
    poor_B = vector.ledger.cap_B == 10**9
    assert 10 < poor_B.sum() < 54
    assert observation["mask"][poor_B].tolist() == [[1, 0]] * int(poor_B.sum())
    _, reward_B, ended_B, _, info = vector.step(np.zeros(64, dtype=np.int64))
    assert (ended_B == poor_B).all()
    assert (info["exhausted"] == poor_B).all()
    assert (info["cost_usd"][poor_B] == 0).all()
    assert (info["score"][poor_B] == 0).all()
    assert (reward_B == 0).all()


def test_the_seed_decides_all_episodes_and_a_reset_without_one_goes_on():
    def play(vector):
        seen = [vector.reset(seed=3)[0], vector.reset()[0]]
        seen += [vector.step(np.zeros(8, dtype=np.int64))[0] for _ in range(12)]
        return np.stack([observation["cost_weight"] for observation in seen])

    config = make_config("calls", cost_weight={"min": 0.0, "max": 1.0})
    first, second = (play(StepBudgetVector(ChainLanes(CHAIN), config, 8)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert (first[0] != first[1]).all()
    assert (first[2:11] == first[1]).all()
    assert (first[11] != first[1]).all()  # the next episodes


def test_yardsticks_may_be_changed_between_plays():
    chain = make_chain(0, train=1, val=1, test=1)
    vector = StepBudgetVector(ChainLanes(chain), make_config("calls"), 1)
    (task,) = vector.tasks
    found = []
    for yardsticks in ({}, {task.id: Yardstick(0.0, 4.0, hard=True)}, {}):
        vector.set_yardsticks(yardsticks)
        vector.reset(seed=0)
        for turn in range(10):
            info = vector.step(np.array([int(turn < 2)]))[4]
        found.append({name: float(value[0]) for name, value in info["reward_terms"].items()})
    assert found[0] == found[2]
    assert found[0] == {"outcome": 1.0, "hard_bonus": 0.0, "cost": pytest.approx(0.2)}
    assert found[1] == {"outcome": 1.0, "hard_bonus": 1.0, "cost": 0.5}
