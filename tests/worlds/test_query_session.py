"""Sessions of queries under one budget: what is seen, paid and earned; bounds that hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from session_tables import make_session_config, make_session_table

import rlroute.envs  # noqa: F401 - registers the environments
from rlroute.config import parse_config
from rlroute.envs.checker import run_check
from rlroute.envs.step_budget import StepBudget, StepBudgetConfig
from rlroute.envs.step_budget_gym import StepBudgetGym
from rlroute.envs.step_budget_vector import StepBudgetVector
from rlroute.envs.vector_checker import check_vector
from rlroute.policies.step_baselines import ScriptedPolicy, find_nearest
from rlroute.rewards.boundary import Yardstick
from rlroute.rollout.step_plan import plan_static
from rlroute.rollout.steps import collect_lanes, collect_worlds
from rlroute.seeding import draw_uniform
from rlroute.types import RLRouteError
from rlroute.worlds.base import EarningWorld
from rlroute.worlds.chain import ChainConfig, ChainLanes, ChainWorld
from rlroute.worlds.query_session import QuerySessionLanes, QuerySessionWorld
from rlroute.worlds.query_session_tasks import list_budget_levels, load_sessions


@pytest.fixture(scope="module")
def tame(tmp_path_factory):
    return make_session_config(tmp_path_factory.mktemp("tame"), make_session_table())


@pytest.fixture(scope="module")
def wild(tmp_path_factory):
    table = make_session_table(wild=True, holes=0.15)
    return make_session_config(tmp_path_factory.mktemp("wild"), table)


def make_settings(caps=(None,), **fields) -> StepBudgetConfig:
    data = {"budget": {"unit": "usd", "caps": list(caps)}, "reward": {"hard_bonus": 0}}
    return parse_config(StepBudgetConfig, data | fields, "test")


# --- Sessions -------------------------------------------------------------------------------------


def test_executors_stand_in_the_order_of_what_they_cost_on_train(tame):
    world = QuerySessionWorld(tame)
    assert [one.id for one in world.executors] == ["cheap", "middle", "dear"]
    assert world.executor_features_KD[:, 2].tolist() == [0, 0.5, 1]  # ranks
    cost_K = world.data.splits["test"].cost_usd_QK[0]
    # 80 prompt and 20 completion tokens at 1 / 1, 2 / 4 and 10 / 10 USD per million
    assert cost_K == pytest.approx([100e-6, 240e-6, 1000e-6])


def test_sessions_hold_each_query_once_and_are_drawn_by_the_seed(tame):
    splits = load_sessions(tame).splits
    for name, sessions in (("train", 40), ("val", 10), ("test", 10)):
        rows_ST = splits[name].session_ST
        assert rows_ST.shape == (sessions, 4)
        assert all(len(set(row)) == 4 for row in rows_ST.tolist())
    assert len(set(splits["test"].session_ST.ravel().tolist())) == 40  # no query twice
    assert set(np.bincount(splits["train"].session_ST.ravel())) == {1, 2}  # 160 places, 120 queries
    other = load_sessions(tame.model_copy(update={"seed": 1})).splits["test"]
    assert (other.session_ST != splits["test"].session_ST).any()


def test_without_mixing_a_session_has_one_area(tame):
    world = QuerySessionWorld(tame.model_copy(update={"mix": False}))
    for split in ("train", "val", "test"):
        facts = world.data.splits[split]
        tasks = [query.task for query in facts.table.queries]
        for rows_T, area in zip(facts.session_ST, facts.area_S, strict=True):
            assert {tasks[row] for row in rows_T} == {area}
    assert {task.task for task in world.list_tasks("train")} == {"plain", "knotty"}
    assert {task.task for task in QuerySessionWorld(tame).list_tasks("train")} == {"mixed"}


def test_too_few_queries_for_a_session_are_refused_in_one_line(tame):
    with pytest.raises(RLRouteError, match="split 'val' has too few queries for a session of 41"):
        load_sessions(tame.model_copy(update={"queries": 41}))
    with pytest.raises(RLRouteError, match="session of 21 of one area"):
        load_sessions(tame.model_copy(update={"queries": 21, "mix": False}))


def test_budget_levels_go_from_the_cheapest_session_to_the_dearest(tame):
    levels = list_budget_levels(tame, 3)
    # 4 queries: 1.1 * 4e-4 and 4e-3, their geometric mean between
    assert levels == pytest.approx([4.4e-4, 1.33e-3, 4e-3], rel=1e-3)


# --- What is seen ---------------------------------------------------------------------------------


def test_a_state_shows_the_query_at_hand_and_no_outcome(tame):
    world = QuerySessionWorld(tame)
    task = world.list_tasks("test")[3]
    facts = world.data.splits["test"]
    first = world.reset(task, 0)
    rows_T = facts.session_ST[3]
    assert first.text.endswith(f"Query 1 of 4: {facts.table.queries[rows_T[0]].text}")
    np.testing.assert_array_equal(first.features_W[:-1], facts.features_QF[rows_T[0]])
    dearest = facts.bound_usd_QK[rows_T[0]].max() / world.data.cost_reference_usd
    assert first.features_W[-1] == pytest.approx(np.log(dearest), abs=1e-6)
    seen = []
    for executor in (0, 2):  # fails or solves: what follows looks alike
        world.reset(task, 0)
        seen.append(world.step(executor, None).state)
    np.testing.assert_array_equal(seen[0].features_W, seen[1].features_W)
    assert seen[0].text == seen[1].text


def test_the_score_is_the_mean_over_all_queries_of_the_session(tame):
    world = QuerySessionWorld(tame)
    facts = world.data.splits["test"]
    for number, task in enumerate(world.list_tasks("test")):
        world.reset(task, 0)
        steps = [world.step(0, None) for _ in range(4)]
        plain = [facts.table.queries[row].task == "plain" for row in facts.session_ST[number]]
        assert [step.score for step in steps] == pytest.approx(np.cumsum(plain) / 4)
        assert [step.done for step in steps] == [False, False, False, True]
        assert steps[0].usage.completion_tokens == 20
    with pytest.raises(ValueError, match="cannot act"):
        world.step(0, None)


def test_a_hole_may_not_be_asked_and_is_never_worth_0(wild):
    world = QuerySessionWorld(wild)
    facts = world.data.splits["test"]
    assert (~facts.table.present_QK).any()
    for number, task in enumerate(world.list_tasks("test")):
        state = world.reset(task, 0)
        row = facts.session_ST[number, 0]
        np.testing.assert_array_equal(state.legal_K, facts.legal_QK[row])
        for k in np.flatnonzero(~state.legal_K):
            with pytest.raises(ValueError, match="cannot act"):
                world.step(int(k), None)
    assert not np.isnan(facts.score_QK[facts.legal_QK]).any()


# --- Bounds ---------------------------------------------------------------------------------------


def test_bounds_follow_from_prompt_limit_and_prices(tame):
    facts = QuerySessionWorld(tame).data.splits["test"]
    assert facts.bound_usd_QK[0] == pytest.approx([100e-6, 240e-6, 1000e-6], rel=1e-5)
    assert facts.legal_QK.all()  # a cost that equals its bound is within it


def test_what_cost_more_than_its_bound_is_a_hole(wild):
    data = load_sessions(wild)
    for name in ("val", "test"):
        facts = data.splits[name]
        paid_QK = np.nan_to_num(facts.cost_usd_QK, nan=np.inf)
        np.testing.assert_array_equal(facts.legal_QK, paid_QK <= facts.bound_usd_QK)
        assert (np.isfinite(paid_QK) & ~facts.legal_QK).mean() > 0.1  # answers that ran away
        assert facts.legal_QK[facts.session_ST].any(axis=2).all()


def test_without_tokens_the_train_costs_are_the_bound(tmp_path):
    table = make_session_table(wild=True)
    table.prompt_tokens_QK[:] = np.nan
    facts = load_sessions(make_session_config(tmp_path, table, limit_quantile=1.0)).splits
    most_K = facts["train"].cost_usd_QK.max(axis=0)
    assert facts["test"].bound_usd_QK == pytest.approx(np.tile(most_K, (40, 1)), rel=1e-5)
    assert facts["train"].legal_QK.all()
    assert not facts["test"].legal_QK.all()


# --- Nobody passes a cap --------------------------------------------------------------------------


def choose_adversary(name: str, mask_BK: np.ndarray, bound_BK: np.ndarray, draw: int) -> np.ndarray:
    """Return picks [B] of what is allowed: the dearest by bound, by chance, or by turns."""
    lanes = len(mask_BK)
    if name == "dearest":
        return np.where(mask_BK, bound_BK, -1.0).argmax(axis=1)
    if name == "random":
        wanted_B = (3 * draw_uniform("adversary", draw, np.arange(lanes))).astype(np.int64)
        return find_nearest(wanted_B, mask_BK)
    return find_nearest(np.full(lanes, 2 * (draw % 2)), mask_BK)


def list_adversarial_caps(config) -> list[float | None]:
    """Return caps just below, at and just above what sessions can cost, and some between."""
    facts = load_sessions(config).splits["test"]
    bound_N = np.unique(facts.bound_usd_QK)
    caps = [0.0, 1e-12, None]
    for amount in (bound_N[0], bound_N[-1], bound_N[:4].sum(), 4 * bound_N[-1]):
        caps += [amount - 1e-12, amount, amount + 1e-12]
    return caps + [float(cap) for cap in np.geomspace(bound_N[0], 4 * bound_N[-1], 12)]


@pytest.mark.parametrize("name", ["dearest", "random", "alternating"])
def test_no_session_passes_its_cap_in_a_hundred_thousand(name, wild):
    lanes, episodes, exhausted = 8192, 0, 0
    world = QuerySessionLanes(wild)
    config = make_settings(list_adversarial_caps(wild))
    vector = StepBudgetVector(world, config, lanes, split="test")
    observation, _ = vector.reset(seed=3)
    facts, lane_B, spent_B = world.split, np.arange(lanes), np.zeros(lanes, dtype=np.int64)
    close = draw = 0
    while episodes < 100_000:
        cap_B, query_B = vector.ledger.cap_B.copy(), world.find_queries()
        played_B = vector.affordable_B.copy()
        mask_BK = observation["mask"].astype(np.bool_)
        action_B = choose_adversary(name, mask_BK, facts.bound_usd_QK[query_B], draw)
        assert facts.legal_QK[query_B, action_B].all()
        paid_B = np.rint(facts.cost_usd_QK[query_B, action_B] * 1e12).astype(np.int64)
        observation, _, ended_B, _, info = vector.step(action_B)
        spent_B += np.where(played_B, paid_B, 0)  # by hand, from the table
        assert (spent_B <= cap_B).all()
        # a call is charged in whole picodollars: half of one is all that rounding can hide
        np.testing.assert_allclose(info["cost_usd"] * 1e12, spent_B, atol=0.5 * 4 + 1e-3, rtol=0)
        close += int((ended_B & (spent_B > 0.8 * cap_B)).sum())
        exhausted += int((ended_B & info["exhausted"]).sum())
        episodes += int(ended_B.sum())
        spent_B[lane_B[ended_B]] = 0
        draw += 1
    assert vector.ledger.overruns == 0
    assert exhausted > episodes / 20
    assert close > episodes / 50  # the adversary does get close


@given(
    st.integers(0, 8),
    st.floats(0, 8e-4),
    st.lists(st.integers(0, 2), min_size=4, max_size=4),
)
@settings(max_examples=200)
def test_a_session_alone_and_a_lane_of_many_are_the_same_episode(wild, number, cap, wanted):
    config, plan = make_settings([cap]), plan_static(np.array([number, 0]), np.array([5, 6]))
    tasks = QuerySessionWorld(wild).list_tasks("test")
    script = ScriptedPolicy(np.array([wanted, wanted]))
    many = collect_lanes(
        script, StepBudgetVector(QuerySessionLanes(wild), config, 2, split="test"), plan
    )
    single = collect_worlds(script, StepBudget(QuerySessionWorld(wild), config), tasks, plan)
    for name in ("features_BTF", "mask_BTK", "action_BT", "valid_BT"):
        np.testing.assert_array_equal(getattr(many, name), getattr(single, name), err_msg=name)
    for name in ("score_B", "cost_usd_B", "exhausted_B", "cap_B"):
        np.testing.assert_array_equal(getattr(many.ends, name), getattr(single.ends, name), name)
    for name, value_BT in many.reward_terms_BT.items():
        np.testing.assert_allclose(value_BT, single.reward_terms_BT[name], atol=1e-7)
    # what is paid out step by step adds up to the score, bankrupt or not
    outcome_B = many.reward_terms_BT["outcome"].sum(axis=1)
    np.testing.assert_allclose(outcome_B, many.ends.score_B, atol=1e-6)
    assert (many.ends.cost_usd_B <= cap * (1 + 1e-6) + 1e-12).all()


def test_it_passes_the_checkers_of_environments(wild):
    caps = list_adversarial_caps(wild)
    arguments = {
        "world": wild.model_dump(mode="json"),
        "budget": {"unit": "usd", "caps": caps},
        "split": "test",
    }
    assert run_check("rlroute/StepBudget-v0", arguments) == [
        *("gymnasium", "determinism", "action_mask", "state_round_trip", "ends", "rewards")
    ]
    config = make_settings(caps)
    vector = StepBudgetVector(QuerySessionLanes(wild), config, 18, split="test")
    single = StepBudgetGym(QuerySessionWorld(wild), config, "test")
    options = {"task_index": np.arange(18) % 9, "episode_seed": np.arange(18) + 100}
    found = check_vector(vector, single, options)
    assert found == ["spaces", "match_single", "lanes", "autoreset"]


# --- What a budget that ran out leaves ------------------------------------------------------------


def test_what_was_earned_stays_earned_when_the_budget_runs_out(tame):
    # 1.05e-3 USD pay for one dear answer (1e-3), and then for nobody
    world = QuerySessionWorld(tame)
    environment = StepBudget(world, make_settings([1.05e-3]))
    environment.reset(world.list_tasks("test")[0], 0)
    environment.propose(2)
    step = environment.observe(())
    record = environment.read_record()
    assert step.terminated
    assert (record.exhausted, record.score, record.steps) == (True, 0.25, 1)
    assert step.reward_terms["outcome"] == 0.25


def test_a_bonus_on_hard_sessions_is_paid_as_it_is_earned(tame):
    world = QuerySessionWorld(tame)
    tasks = world.list_tasks("test")
    hard = {tasks[0].id: Yardstick(0.0, 1.0, hard=True)}
    environment = StepBudget(world, make_settings(reward={"hard_bonus": 1}), hard)
    environment.reset(tasks[0], 0)
    for turn in range(4):
        environment.propose(2)
        terms = environment.observe(()).reward_terms
        assert (terms["outcome"], terms["hard_bonus"]) == (0.25, 0.25), turn


def test_other_worlds_are_paid_at_the_end_and_lose_all_with_their_budget():
    assert not isinstance(ChainLanes(ChainConfig()), EarningWorld)
    assert not isinstance(ChainWorld(ChainConfig()), EarningWorld)
