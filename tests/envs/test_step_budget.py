"""The single environment: ledger, mask, ends and rewards around worlds of every sort."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from step_worlds import THREE_EXECUTORS, THREE_KINDS, MeteredWorld, make_chain

from rlroute.config import parse_config
from rlroute.envs.step_budget import StepBudget, StepBudgetConfig
from rlroute.policies.step_baselines import find_nearest
from rlroute.rewards.boundary import Yardstick
from rlroute.seeding import draw_uniform
from rlroute.types import FailureKind, Query, Reply
from rlroute.worlds.chain import ChainConfig, ChainWorld

UNITS = ("calls", "usd")


def make_config(unit: str = "calls", caps=(None,), **fields) -> StepBudgetConfig:
    data = {"budget": {"unit": unit, "caps": list(caps)}, "reward": {"unit": unit}}
    return parse_config(StepBudgetConfig, data | fields, "test")


def open_chain(critical: int, *caps: float | None, unit: str = "calls", **fields) -> StepBudget:
    return StepBudget(ChainWorld(make_chain(critical, **fields)), make_config(unit, caps))


def start(environment: StepBudget, number: int = 0, seed: int = 0):
    return environment.reset(environment.world.list_tasks("train")[number], seed)


def take(environment: StepBudget, action: int):
    """Take a step whose executor acts by itself."""
    assert environment.propose(action) == ()
    return environment.observe(())


def take_nearest(environment: StepBudget, observation, wanted: int) -> tuple[int, object]:
    """Take a step of the allowed executor nearest to a wanted one."""
    action = int(find_nearest(np.array([wanted]), observation.mask_K[None])[0])
    return action, take(environment, action)


# --- The mask -------------------------------------------------------------------------------------


def test_the_mask_example_of_the_sheet():
    # cap 2, proposed L L L S L -> executed L L S S S; b_t 2 1 0 0 0; forced steps 3, 4 and 5
    environment = open_chain(1, 2, horizon=5)
    observation = start(environment)
    left, executed, forced = [], [], []
    for step, wanted in enumerate((1, 1, 1, 0, 1), start=1):
        left.append(int(environment.ledger.cap_B[0] - environment.ledger.spent_B[0]))
        assert f"Budget left: {left[-1]} dear calls." in observation.text
        if observation.mask_K.sum() == 1:
            forced.append(step)
        action, found = take_nearest(environment, observation, wanted)
        observation = found.observation
        executed.append("SL"[action])
    assert "".join(executed) == "LLSSS"
    assert left == [2, 1, 0, 0, 0]
    assert forced == [3, 4, 5]
    record = environment.read_record()
    assert record.calls / record.cap == 1.0  # utilisation
    assert (record.steps, record.exhausted) == (5, False)


@pytest.mark.parametrize("action", [1, 2, -1])
def test_a_masked_or_unknown_action_is_refused_and_changes_nothing(action):
    environment = open_chain(1, 0)
    start(environment)
    with pytest.raises(ValueError, match=rf"action {action} is not allowed here \(allowed: 0\)"):
        environment.propose(action)
    take(environment, 0)
    assert environment.turn == 1


def test_no_action_is_taken_after_the_end_or_before_the_start():
    environment = open_chain(1, None, horizon=1)
    with pytest.raises(ValueError, match="reset before"):
        environment.propose(0)
    start(environment)
    assert take(environment, 0).terminated
    with pytest.raises(ValueError, match="reset before"):
        environment.propose(0)


def test_an_executor_that_the_world_bars_is_masked_whatever_the_budget():
    environment = StepBudget(MeteredWorld(barred=True), make_config())
    observation = start(environment, number=3)
    assert observation.mask_K.tolist() == [True, True, True]
    assert take(environment, 2).observation.mask_K.tolist() == [True, True, False]


# --- Violations -----------------------------------------------------------------------------------

# At a turn: the wanted executor, of 3. Each is held to what is allowed and nearest.
ADVERSARIES = {
    "dearest": lambda seed, turn: 2,
    "alternating": lambda seed, turn: 2 * (turn % 2),
    "at the last moment": lambda seed, turn: 2 * (turn >= 4),
    "random": lambda seed, turn: int(3 * draw_uniform("action", seed, turn)),
}


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("name", list(ADVERSARIES))
def test_no_episode_passes_its_cap_and_refunds_are_exact(unit, name):
    caps = {"calls": [0, 1, 3, None], "usd": [0, 0.0005, 0.004, 0.03, 0.1, 0.5, None]}[unit]
    world = MeteredWorld(barred=True)
    environment = StepBudget(world, make_config(unit, caps))
    exhausted = full = 0
    for seed in range(250):
        observation = start(environment, seed % 12, seed)
        counted, paid = 0, 0
        while not environment.ended:
            played = environment.affordable
            turn = environment.turn
            wanted = ADVERSARIES[name](seed, turn)
            action, step = take_nearest(environment, observation, wanted)
            observation = step.observation
            if played:  # the bill by hand, in whole picodollars
                share = float(draw_uniform("cost", seed, turn, action))
                paid += round(0.001 * 4.0**action * (1 + turn) * share * 1e12)
                counted += action > 0
            spent = counted if unit == "calls" else paid
            assert environment.ledger.spent_B[0] == spent
            assert spent <= environment.cap * (1 if unit == "calls" else 1e12)
        record = environment.read_record()
        assert record.calls == counted
        assert record.cost_usd == pytest.approx(paid / 1e12, abs=1e-11)
        exhausted += record.exhausted
        full += spent == record.cap
    assert environment.ledger.overruns == 0
    if unit == "usd":
        assert exhausted > 10
    else:
        assert exhausted == 0  # the cheapest is not counted
        assert full > 10


def test_steps_beyond_their_bound_are_counted():
    environment = StepBudget(MeteredWorld(overrun=1.0), make_config("usd", [0.05]))
    overruns = 0
    for seed in range(50):
        observation = start(environment, seed % 12, seed)
        while not environment.ended:
            turn = environment.turn
            if environment.affordable:
                action = int(np.flatnonzero(observation.mask_K)[-1])
                overruns += float(draw_uniform("cost", seed, turn, action)) > 0.5
            observation = take_nearest(environment, observation, 2)[1].observation
    assert environment.ledger.overruns == overruns > 20


# --- Nothing is affordable ------------------------------------------------------------------------


def test_a_start_that_nothing_can_pay_ends_with_the_cheapest_in_name_only():
    environment = open_chain(0, 0.0001, unit="usd")
    observation = start(environment)
    assert observation.mask_K.tolist() == [True, False]
    step = take(environment, 0)
    record = environment.read_record()
    assert step.terminated
    assert (record.score, record.cost_usd, record.calls, record.steps) == (0.0, 0.0, 0, 0)
    assert record.exhausted
    assert step.reward_terms == {"outcome": 0.0, "hard_bonus": 0.0, "cost": 0.0}


def test_in_name_only_means_an_executor_that_the_world_does_not_bar():
    class LateWorld(MeteredWorld):
        def show(self, text):
            state = super().show(text)
            state.legal_K[0] = False
            return state

    environment = StepBudget(LateWorld(), make_config("usd", [0.0]))
    assert start(environment).mask_K.tolist() == [False, True, False]
    assert take(environment, 1).terminated


def test_an_episode_ends_without_a_score_where_nothing_is_affordable_any_more():
    small = 3000 * 0.4e-6 + 200 * 1.6e-6
    environment = open_chain(0, 3 * small, unit="usd")
    start(environment)
    assert [take(environment, 0).terminated for _ in range(3)] == [False, False, True]
    record = environment.read_record()
    assert record.exhausted
    assert (record.steps, record.score) == (3, 0.0)
    assert record.cost_usd == pytest.approx(3 * small)


def test_a_task_that_is_done_with_the_last_cent_is_not_exhausted():
    small = 3000 * 0.4e-6 + 200 * 1.6e-6
    environment = open_chain(0, 10 * small, unit="usd")
    observation = start(environment)
    while not environment.ended:
        assert observation.mask_K[0]
        step = take(environment, 0)
        observation = step.observation
    record = environment.read_record()
    assert (record.exhausted, record.score, record.steps) == (False, 1.0, 10)
    assert observation.mask_K.tolist() == [True, False]  # in name only: nothing is left


def test_a_world_that_is_not_done_ends_at_its_horizon():
    class EndlessWorld(MeteredWorld):
        def reset(self, task, seed):
            state = super().reset(task, seed)
            self.need = 100
            return state

    environment = StepBudget(EndlessWorld(), make_config())
    start(environment)
    ends = [take(environment, 0).terminated for _ in range(8)]
    assert ends == [False] * 7 + [True]
    assert environment.read_record().score == 0


# --- Rewards, texts, replies ----------------------------------------------------------------------


def test_the_reward_terms_fall_due_at_the_end_on_the_scale_of_the_yardstick():
    tasks = ChainWorld(make_chain(0)).list_tasks("train")
    yardsticks = {tasks[0].id: Yardstick(2.0, 10.0, hard=True)}
    environment = StepBudget(ChainWorld(make_chain(0)), make_config(), yardsticks)
    environment.reset(tasks[0], 0)
    for action in [1] * 6 + [0] * 3:
        assert take(environment, action).reward_terms == dict.fromkeys(
            ("outcome", "hard_bonus", "cost"), 0.0
        )
    assert take(environment, 0).reward_terms == {"outcome": 1.0, "hard_bonus": 1.0, "cost": 0.5}


def test_without_a_yardstick_cost_is_a_share_of_the_dearest_throughout():
    for unit in UNITS:
        environment = open_chain(0, None, unit=unit)
        start(environment)
        for action in [1] * 5 + [0] * 5:
            step = take(environment, action)
        share = 0.5 if unit == "calls" else (5 * 0.0076 + 5 * 0.00152) / (10 * 0.0076)
        assert step.reward_terms["cost"] == pytest.approx(share)


def test_the_text_holds_the_task_then_what_is_new_and_what_is_left():
    environment = StepBudget(
        MeteredWorld(),
        make_config("calls", [2], cost_weight={"min": 0.0, "max": 1.0}, state_cost_weight=True),
    )
    first = start(environment, number=1)
    assert first.text == f"Task 1. Budget left: 2 dear calls. Cost weight: {first.cost_weight:.2f}."
    assert take(environment, 2).observation.text == "Step 1. Budget left: 1 dear calls."
    silent = StepBudget(MeteredWorld(), make_config())
    assert start(silent, number=1).text == "Task 1."


def test_a_failed_reply_ends_the_episode_with_undefined_terms_and_no_step():
    environment = StepBudget(MeteredWorld(behind_pool=True), make_config("usd", [1.0]))
    start(environment)
    (call,) = environment.propose(1)
    assert call.candidate_id == "e1"
    step = environment.observe([Reply(call, failure=FailureKind.SERVER, cost_usd=0.4)])
    assert step.terminated
    assert step.reward_terms == {"outcome": None, "hard_bonus": None, "cost": None}
    record = environment.read_record()
    assert (record.cost_usd, record.steps) == (0.0, 0)  # what the failed call was billed is no cost
    assert environment.last_note == "failed: server"


def test_the_features_are_the_worlds_then_those_of_the_budget():
    environment = open_chain(1, 3)
    observation = start(environment)
    assert environment.feature_names == (
        *("critical", "hint", "critical_hint"),
        *("steps_left", "spent", "capped", "budget_left", "budget_per_step"),
    )
    assert observation.features_F.dtype == np.float32
    np.testing.assert_allclose(observation.features_F[3:], [1, 0, 1, 1, 0.3], rtol=1e-6)
    assert observation.cost_weight == pytest.approx(0.3)


# --- States and replays ---------------------------------------------------------------------------


def play_all(environment: StepBudget, observation, actions: list[int]) -> list:
    """Play wanted actions to the end; return what was seen and earned."""
    seen = []
    while not environment.ended:
        action, step = take_nearest(environment, observation, actions[environment.turn])
        observation = step.observation
        seen.append((action, observation.features_F.tolist(), observation.mask_K.tolist()))
        seen.append((observation.text, dict(step.reward_terms), environment.read_record()))
    return seen


@settings(max_examples=25)
@given(
    st.integers(0, 11),
    st.integers(0, 2**62 - 1),
    st.lists(st.integers(0, 2), min_size=10, max_size=10),
    st.integers(0, 8),
    st.sampled_from(UNITS),
)
def test_a_state_survives_json_and_the_episode_goes_on_alike(number, seed, actions, cut, unit):
    caps = {"calls": [0, 2, None], "usd": [0.02, 0.2, None]}[unit]
    world = ChainConfig(kinds=THREE_KINDS, executors=THREE_EXECUTORS, train=12, val=1, test=1)
    for one in (MeteredWorld(barred=True), ChainWorld(world)):
        first = StepBudget(one, make_config(unit, caps))
        observation = start(first, number, seed)
        for turn in range(cut):
            if not first.ended:
                observation = take_nearest(first, observation, actions[turn])[1].observation
        state = json.loads(json.dumps(first.get_state()))
        second = StepBudget(one.fork(), make_config(unit, caps))
        restored = second.set_state(state)
        np.testing.assert_array_equal(restored.features_F, observation.features_F)
        np.testing.assert_array_equal(restored.mask_K, observation.mask_K)
        assert restored.text == observation.text
        assert second.get_state() == state
        assert play_all(second, restored, actions) == play_all(first, observation, actions)


def test_a_state_with_replies_is_restored_without_asking_anybody():
    first = StepBudget(MeteredWorld(behind_pool=True), make_config())
    start(first, number=3, seed=5)
    for text in ("done", "not yet"):
        (call,) = first.propose(2)
        observation = first.observe([Reply(call, text=text, cost_usd=0.002)]).observation
    state = json.loads(json.dumps(first.get_state()))
    second = StepBudget(MeteredWorld(behind_pool=True), make_config())
    restored = second.set_state(state)
    np.testing.assert_array_equal(restored.features_F, observation.features_F)
    assert second.read_record() == first.read_record()
    assert second.read_record().cost_usd == pytest.approx(0.004)


def test_the_worlds_chance_may_come_from_another_seed_than_cap_and_cost_weight():
    config = make_config("calls", [1, 2, 3, None], cost_weight={"min": 0.0, "max": 1.0})
    environment = StepBudget(ChainWorld(make_chain(3)), config)
    task = environment.world.list_tasks("train")[0]

    def play(seed: int, world_seed: int) -> tuple[float, float, list[str]]:
        environment.reset(task, seed, world_seed=world_seed)
        notes = []
        while not environment.ended:
            take(environment, 0)
            notes.append(environment.last_note)
        return environment.cap, environment.cost_weight, notes

    runs = [[play(seed, world_seed) for world_seed in range(8)] for seed in range(8)]
    for seed in range(8):
        assert len({(cap, weight) for cap, weight, _ in runs[seed]}) == 1
        assert [notes for _, _, notes in runs[seed]] == [notes for _, _, notes in runs[0]]
    assert len({runs[seed][0][1] for seed in range(8)}) == 8
    state = environment.get_state()
    assert (state["seed"], state["world_seed"]) == (7, 7)


def test_a_task_keeps_all_its_parts_in_a_state():
    environment = StepBudget(MeteredWorld(), make_config())
    task = Query("t", "Text.", "kind", "set", ("a", "b"), {"n": "1"})
    environment.reset(task, 3)
    environment.set_state(json.loads(json.dumps(environment.get_state())))
    assert environment.task == task
