"""The critical-step chain against its closed forms, by simulation; tasks, replay, faults."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from step_worlds import make_chain

from rlroute.config import dump_config, parse_config
from rlroute.envs.step_budget import StepBudget, StepBudgetConfig
from rlroute.envs.step_budget_vector import StepBudgetVector
from rlroute.evaluation.metrics import compute_gap_recovered
from rlroute.policies.step_baselines import (
    AdvisedPolicy,
    BernoulliPolicy,
    FirstDearPolicy,
    StaticPolicy,
)
from rlroute.rollout.step_plan import plan_static
from rlroute.rollout.steps import collect_lanes, collect_worlds
from rlroute.types import Query, RLRouteError
from rlroute.worlds.chain import ChainConfig, ChainKind, ChainLanes, ChainWorld, TaskTable

EPISODES = 20_000
SPLITS = ("train", "val", "test")


def make_settings(cap: float | None) -> StepBudgetConfig:
    data = {"budget": {"unit": "calls", "caps": [cap]}, "reward": {"unit": "calls"}}
    return parse_config(StepBudgetConfig, data, "test")


def play(policy, lanes: ChainLanes, cap: float | None = None, episodes: int = EPISODES):
    """Play a policy on random tasks; return scores [B] and large calls [B]."""
    vector = StepBudgetVector(lanes, make_settings(cap), episodes)
    task_index_B = np.arange(episodes) % len(vector.tasks)
    batch = collect_lanes(policy, vector, plan_static(task_index_B, np.arange(episodes) + 17))
    return batch.ends.score_B, batch.ends.calls_B


def within(found_B: np.ndarray, rate: float) -> bool:
    """Return whether a mean of yes and no lies within four standard errors of its expectation."""
    error = np.sqrt(rate * (1 - rate) / len(found_B))
    return abs(float(found_B.mean()) - rate) <= 4 * error


class IdealPolicy(StaticPolicy):
    """The large executor on critical steps, as far as the mask allows it, else the small one."""

    def decide(self, inputs):
        critical_B = inputs.features_BF[:, 0] > 0
        decisions = super().decide(inputs)
        wanted_B = np.where(critical_B & inputs.mask_BK[:, 1], 1, 0)
        return type(decisions)(wanted_B, decisions.logp_B, decisions.value_B)


# --- Closed forms ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("critical", "small", "large", "half"),
    [(1, 0.3, 0.9, 0.6), (2, 0.09, 0.81, 0.36), (3, 0.027, 0.729, 0.216)],
)
def test_the_closed_forms_of_the_sheet(critical, small, large, half):
    lanes = ChainLanes(make_chain(critical))
    for policy, rate, cost in (
        (StaticPolicy(0), small, 0),
        (StaticPolicy(1), large, 10),
        (IdealPolicy(0), large, critical),
    ):
        score_B, calls_B = play(policy, lanes)
        assert within(score_B, rate)
        assert (calls_B == cost).all()
    score_B, calls_B = play(BernoulliPolicy(0.5), lanes)
    assert within(score_B, half)
    assert abs(calls_B.mean() - 5) < 4 * np.sqrt(10 * 0.25 / EPISODES)


@pytest.mark.parametrize(("k", "rate"), [(2, 0.1764), (5, 0.36), (8, 0.6084), (10, 0.81)])
def test_the_sweep_of_the_sheet_for_two_critical_steps(k, rate):
    score_B, calls_B = play(BernoulliPolicy(k / 10), ChainLanes(make_chain(2)))
    assert within(score_B, rate)
    assert abs(calls_B.mean() - k) < 4 * np.sqrt(10 * 0.25 / EPISODES)


def place_critical_steps(*steps: int) -> ChainLanes:
    """Return a chain of one task whose critical steps (from 1) are these."""
    lanes = ChainLanes(make_chain(len(steps), train=1, val=1, test=1))
    kind_Q, hint_Q, _ = lanes.tables["train"]
    critical_QT = np.isin(np.arange(1, 11), steps)[None]
    tables: dict[str, TaskTable] = {"train": (kind_Q, hint_Q, critical_QT)}
    return ChainLanes(lanes.config, {**lanes.tables, **tables})


def test_caps_of_the_sheet():
    score_B, calls_B = play(IdealPolicy(0), ChainLanes(make_chain(2)), cap=1)
    assert within(score_B, 0.27)
    assert (calls_B == 1).all()
    late = place_critical_steps(4, 8)
    for first_large in (StaticPolicy(1), FirstDearPolicy(3)):
        score_B, calls_B = play(first_large, late, cap=3)
        assert within(score_B, 0.09)
        assert (calls_B == 3).all()
    score_B, calls_B = play(IdealPolicy(0), late, cap=3)
    assert within(score_B, 0.81)
    assert (calls_B == 2).all()


def test_the_gap_recovered_of_the_sheet():
    found_1 = compute_gap_recovered([0.66], weak=0.40, strong=0.667)
    assert found_1 == pytest.approx([0.9738], abs=5e-5)
    lanes = ChainLanes(make_chain(2))
    small, large, ideal = (
        play(policy, lanes)[0].mean()
        for policy in (StaticPolicy(0), StaticPolicy(1), IdealPolicy(0))
    )
    assert compute_gap_recovered([ideal], small, large) == pytest.approx([1.0], abs=0.02)


@pytest.mark.parametrize(("arm", "success"), [(0, 0.37771), (1, 0.66804)])
def test_the_static_policies_of_the_mixture(arm, success):
    # 0.4 * 0.97**2 + 0.4 * 0.15**3 and 0.4 * 0.97**2 + 0.4 * 0.9**3 + 0.2 * 0.02**2
    lanes = ChainLanes(ChainConfig(train=5000))
    score_B, calls_B = play(StaticPolicy(arm), lanes)
    kind_B = lanes.tables["train"][0][np.arange(EPISODES) % 5000]
    solved = [(0.97**2, 0.97**2), (0.15**3, 0.9**3), (0.0, 0.02**2)]
    for kind, rates in enumerate(solved):
        assert within(score_B[kind_B == kind], rates[arm])
    mixed = zip((0.4, 0.4, 0.2), solved, strict=True)
    assert sum(share * rates[arm] for share, rates in mixed) == pytest.approx(success, abs=5e-6)
    assert (calls_B == 10 * arm).all()


def test_the_advised_policy_solves_what_the_ideal_router_solves_at_its_cost():
    world = ChainWorld(ChainConfig(train=600))
    plan = plan_static(np.arange(600), np.arange(600))
    tasks = world.list_tasks("train")
    batch = collect_worlds(AdvisedPolicy(), StepBudget(world, make_settings(None)), tasks, plan)
    kind_B = np.array([task.task for task in tasks])
    hard_B = kind_B == "hard"
    assert set(batch.ends.calls_B[hard_B]) == {3}
    assert set(batch.ends.calls_B[~hard_B]) == {0}  # large does no better there, or nobody does
    assert within(batch.ends.score_B[hard_B], 0.9**3)
    assert within(batch.ends.score_B[kind_B == "easy"], 0.97**2)


# --- Tasks ----------------------------------------------------------------------------------------


def test_kinds_hints_and_critical_steps_have_their_shares():
    count = 40_000
    kind_Q, hint_Q, critical_QT = ChainLanes(ChainConfig(train=count)).tables["train"]
    for kind, (share, hint, steps) in enumerate([(0.4, 0.25, 2), (0.4, 0.85, 3), (0.2, 0.25, 2)]):
        assert within(kind_Q == kind, share)
        assert within(hint_Q[kind_Q == kind], hint)
        assert (critical_QT[kind_Q == kind].sum(axis=1) == steps).all()
        for turn in range(10):
            assert within(critical_QT[kind_Q == kind, turn], steps / 10)


def test_splits_are_disjoint_always_alike_and_of_the_asked_sizes():
    config = ChainConfig(train=50, val=20, test=30)
    one, two = ChainWorld(config), ChainWorld(config)
    ids = [task.id for split in SPLITS for task in one.list_tasks(split)]
    assert len(set(ids)) == len(ids) == 100
    for split in SPLITS:
        assert one.list_tasks(split) == two.list_tasks(split) == one.fork().list_tasks(split)
    places = [ChainLanes(config).tables[split][2][:20].tolist() for split in SPLITS]
    assert places[0] != places[1] != places[2]
    other = ChainLanes(ChainConfig(train=50, val=20, test=30, seed=1))
    assert other.tables["train"][2][:20].tolist() != places[0]
    assert not set(ids) & {task.id for task in other.list_tasks("train")}


def test_the_kind_of_a_task_is_not_shown_and_its_hint_is():
    world = ChainWorld(ChainConfig(train=100))
    texts: dict[str, set[str]] = {}
    for task in world.list_tasks("train"):
        state = world.reset(task, 0)
        hint = world.lanes.hint_Q[int(task.metadata["number"])]
        assert ("It looks hard." in state.text) == bool(hint)
        assert state.features_W.tolist() == [
            float("is critical" in state.text), hint, hint * float("is critical" in state.text)
        ]  # fmt: skip
        assert len(state.text.split()) <= 60
        texts.setdefault(state.text, set()).add(task.task)
    assert len(texts) == 4
    assert all(len(kinds) > 1 for kinds in texts.values())


def test_after_the_last_step_no_flag_is_up():
    world = ChainWorld(make_chain(10))
    state = world.reset(world.list_tasks("train")[0], 0)
    for _ in range(10):
        assert state.features_W[0] == 1
        assert len(state.text.split()) <= 25
        step = world.step(1, None)
        state = step.state
    assert step.done
    assert state.features_W.tolist() == [0, 0, 0]


# --- Single and lanes, replay ---------------------------------------------------------------------


@given(
    st.integers(0, 9),
    st.integers(0, 2**62 - 1),
    st.lists(st.integers(0, 1), min_size=10, max_size=10),
)
def test_a_world_and_a_lane_of_many_play_the_same_episode(number, seed, executors):
    config = ChainConfig(train=10, val=1, test=1)
    world, lanes = ChainWorld(config), ChainLanes(config)
    lanes.open_lanes("train", 3)
    lanes.start_lanes(np.arange(3), np.array([0, number, 5]), np.array([1, seed, 2]))
    state = world.reset(world.list_tasks("train")[number], seed)
    for executor in executors:
        np.testing.assert_array_equal(state.features_W, lanes.read_features()[1])
        assert world.bound_cost_usd(executor) == lanes.bound_costs_usd()[1, executor]
        step = world.step(executor, None)
        cost_B, done_B, score_B = lanes.step_lanes(np.array([0, executor, 1]))
        assert (step.cost_usd, step.done, step.score) == (cost_B[1], done_B[1], score_B[1])
        state = step.state


REPLAY = """
import json, sys
from rlroute.config import parse_config
from rlroute.worlds.chain import ChainConfig, ChainWorld

world = ChainWorld(parse_config(ChainConfig, {"train": 30, "seed": 3}, "test"))
told = []
for number, task in enumerate(world.list_tasks("train")):
    told.append(world.reset(task, number * 97).text)
    for turn in range(10):
        step = world.step((turn + number) % 2, None)
        told.append([step.state.text, step.cost_usd, step.score, step.note, world.done])
json.dump(told, sys.stdout)
"""


def test_another_process_plays_the_same_episodes():
    runs = [
        subprocess.run([sys.executable, "-c", REPLAY], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    told = [json.loads(run.stdout) for run in runs]
    assert told[0] == told[1]
    assert {row[3] for row in told[0] if isinstance(row, list)} == {"done", "failed"}


def test_a_better_executor_never_fails_where_a_worse_one_succeeds():
    lanes = ChainLanes(make_chain(3))
    small_B, _ = play(StaticPolicy(0), lanes, episodes=2000)
    large_B, _ = play(StaticPolicy(1), lanes, episodes=2000)
    assert (large_B >= small_B).all()


def test_an_episode_goes_on_to_the_horizon_after_a_failed_step():
    kind = ChainKind(name="no", share=1.0, critical_steps=10, success=(0.0, 0.0), hint=0.0)
    world = ChainWorld(ChainConfig(kinds=(kind,)))
    world.reset(world.list_tasks("test")[0], 0)
    steps = [world.step(1, None) for _ in range(10)]
    assert [step.done for step in steps] == [False] * 9 + [True]
    assert [step.note for step in steps] == ["failed"] + ["done"] * 9  # told once
    assert steps[-1].score == 0


def test_costs_are_those_of_the_nominal_step():
    world = ChainWorld(ChainConfig())
    assert world.bound_cost_usd(1) == pytest.approx(0.0076, abs=1e-12)
    assert world.bound_cost_usd(0) == pytest.approx(0.00152, abs=1e-12)
    world.reset(world.list_tasks("train")[0], 0)
    step = world.step(1, None)
    assert step.cost_usd == world.bound_cost_usd(1)
    assert world.executors[1].prices.compute_cost(
        step.usage.prompt_tokens, step.usage.completion_tokens
    ) == pytest.approx(step.cost_usd)


@pytest.mark.parametrize("executor", [-1, 2])
def test_a_step_that_cannot_be_taken_is_refused(executor):
    world = ChainWorld(make_chain(1, horizon=1))
    with pytest.raises(ValueError, match="cannot act"):
        world.step(0, None)
    world.reset(world.list_tasks("train")[0], 0)
    with pytest.raises(ValueError, match="cannot act"):
        world.step(executor, None)
    world.step(0, None)
    with pytest.raises(ValueError, match="cannot act"):
        world.step(0, None)


# --- Settings -------------------------------------------------------------------------------------

KIND = {"name": "k", "share": 1.0, "critical_steps": 2, "success": [0.1, 0.9], "hint": 0.5}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kinds": [KIND | {"success": [0.5]}]}, "1 success probabilities for 2 executors"),
        ({"kinds": [KIND | {"success": [0.5, 1.5]}]}, "success must be from 0 to 1"),
        ({"kinds": [KIND | {"success": [0.5, float("nan")]}]}, "success must be from 0 to 1"),
        ({"kinds": [KIND | {"critical_steps": 11}]}, "more critical steps than the horizon"),
        ({"kinds": [KIND | {"share": 0}]}, "share"),
        ({"kinds": []}, "kinds"),
        ({"kinds": [KIND, KIND]}, "two are called 'k'"),
        ({"executors": [{"id": "one", "input": 1, "output": 1}]}, "executors"),
        (
            {
                "executors": [
                    {"id": "dear", "input": 2, "output": 2},
                    {"id": "cheap", "input": 1, "output": 1},
                ]
            },
            "'cheap' is cheaper than 'dear' before it",
        ),
        (
            {
                "executors": [
                    {"id": "same", "input": 1, "output": 1},
                    {"id": "same", "input": 2, "output": 2},
                ]
            },
            "executors: two are called 'same'",
        ),
        ({"horizons": 10}, "horizons"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(fields, message):
    with pytest.raises(RLRouteError, match=message) as caught:
        parse_config(ChainConfig, fields, "world")
    assert "\n" not in str(caught.value)


def test_settings_survive_being_written_down():
    config = make_chain(2)
    assert parse_config(ChainConfig, yaml.safe_load(dump_config(config)), "world") == config


def test_tasks_are_queries_that_say_where_they_stand():
    task = ChainWorld(ChainConfig()).list_tasks("val")[3]
    assert isinstance(task, Query)
    assert (task.id, task.dataset) == ("chain-0-val-3", "chain")
    assert task.metadata == {"split": "val", "number": "3"}
