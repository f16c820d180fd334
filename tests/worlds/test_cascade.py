"""Cascades over a table: paid looks, what they show, who may act, and lanes that are episodes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cascade_tables import EXACT, UNIT, make_config, make_table
from hypothesis import given
from hypothesis import strategies as st

from rlroute.config import parse_config
from rlroute.data.table import write_table
from rlroute.envs.checker import run_check
from rlroute.envs.step_budget import StepBudget, StepBudgetConfig
from rlroute.envs.step_budget_gym import StepBudgetGym
from rlroute.envs.step_budget_vector import StepBudgetVector
from rlroute.envs.vector_checker import check_vector
from rlroute.policies.step_baselines import RandomPolicy, StaticPolicy
from rlroute.rollout.step_plan import plan_static
from rlroute.rollout.steps import collect_lanes, collect_worlds
from rlroute.types import Candidate, Prices, RLRouteError
from rlroute.worlds.cascade import CascadeLanes, CascadeWorld
from rlroute.worlds.cascade_table import CascadeConfig, draw_checks
from rlroute.worlds.cascade_view import CascadeSeen, CascadeView, CheckerConfig, weigh_evidence

STOP, SMALL, LARGE = 0, 1, 2
FALLIBLE = {"true_positive": 0.9, "false_positive": 0.2, "price_usd": 0.0005}
CAPS = {"calls": [0, 1, None], "usd": [0.0, 0.001, 0.0101, 0.0132, None]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the table of three topics lies."""
    return tmp_path_factory.mktemp("topics") / "table"


@pytest.fixture(scope="module")
def holed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with holes: every third query lacks small, every fifth of the others large."""
    path = tmp_path_factory.mktemp("holed") / "table"
    holes = [(q, 1) for q in range(0, 180, 3)] + [(q, 0) for q in range(1, 180, 5) if q % 3]
    write_table(make_table(tuple(holes)), path)
    return path


def make_settings(unit: str = "usd", caps=(None,), **fields) -> StepBudgetConfig:
    data = {"budget": {"unit": unit, "caps": list(caps)}, "reward": {"unit": unit}}
    return parse_config(StepBudgetConfig, data | fields, "test")


def play(policy, config: CascadeConfig, settings: StepBudgetConfig | None = None):
    """Play every train query once; return the world's split and the batch."""
    lanes = CascadeLanes(config)
    vector = StepBudgetVector(lanes, settings or make_settings(), len(lanes.list_tasks("train")))
    index_B = np.arange(vector.num_envs)
    batch = collect_lanes(policy, vector, plan_static(index_B, index_B + 5))
    return lanes.table.splits["train"], batch


def take_steps(world: CascadeWorld, number: int, *executors: int):
    """Start a train query and take steps; return the last."""
    world.reset(world.list_tasks("train")[number], 0)
    return [world.step(executor, None) for executor in executors][-1]


# --- Looks ----------------------------------------------------------------------------------------


def test_every_look_is_paid_in_full_with_its_check_and_stopping_is_free(folder):
    world = CascadeWorld(make_config(folder, checker=FALLIBLE))
    world.reset(world.list_tasks("train")[0], 0)  # a query of "glacier": small costs 0.2
    looks = [world.step(k, None).cost_usd for k in (SMALL,)]
    stop = world.step(STOP, None)
    assert looks == pytest.approx([0.2 * UNIT + 0.0005])
    assert (stop.cost_usd, stop.done) == (0.0, True)
    assert take_steps(world, 0, SMALL, LARGE).cost_usd == pytest.approx(UNIT + 0.0005)


def test_the_score_is_that_of_the_answer_in_hand(folder):
    world = CascadeWorld(make_config(folder, keep="last"))
    split = world.table.splits["train"]
    for number in (0, 25, 45):
        small, large = split.score_QK[number]
        assert take_steps(world, number, SMALL, STOP).score == small
        assert take_steps(world, number, LARGE, STOP).score == large
        both = take_steps(world, number, SMALL, LARGE)
        assert (both.score, both.done) == (large, True)  # nobody is left


def test_an_answer_that_failed_does_not_replace_one_that_passed():
    seen = CascadeSeen.open(4, 2)
    lane_N, nothing_N = np.arange(4), np.zeros(4, dtype=np.float32)
    first_N = np.array([True, True, False, False])
    second_N = np.array([True, False, True, False])
    for candidate, passed_N in ((0, first_N), (1, second_N)):
        seen.note(lane_N, np.full(4, candidate), passed_N, nothing_N, np.ones(4), "best_checked")
    assert seen.hand_B.tolist() == [1, 0, 1, 1]
    assert seen.paid_usd_B.tolist() == [2.0] * 4
    last = CascadeSeen.open(4, 2)
    for candidate, passed_N in ((0, first_N), (1, second_N)):
        last.note(lane_N, np.full(4, candidate), passed_N, nothing_N, np.ones(4), "last")
    assert last.hand_B.tolist() == [1, 1, 1, 1]


def test_scores_are_seen_through_the_check_alone(folder):
    config = make_config(folder, checker=FALLIBLE, tokens=True)
    table = CascadeWorld(config).table
    split = table.splits["train"]
    turned = replace(split, score_QK=1 - split.score_QK)  # the checks stay as they were drawn
    other = replace(table, splits={**table.splits, "train": turned})
    for number in range(0, 60, 7):
        for executors in ((SMALL,), (LARGE,), (LARGE, SMALL)):
            states = [
                take_steps(CascadeWorld(config, one), number, *executors) for one in (table, other)
            ]
            np.testing.assert_array_equal(states[0].state.features_W, states[1].state.features_W)
            assert states[0].state.text == states[1].state.text
            assert states[0].score == 1 - states[1].score


def test_lengths_are_shown_relative_to_the_candidates_train_mean_after_the_look_only(folder):
    world = CascadeWorld(make_config(folder, tokens=True))
    column = world.feature_names.index("length:large")
    state = world.reset(world.list_tasks("train")[3], 0)
    assert state.features_W[column] == 0
    shown = take_steps(world, 3, LARGE).state
    mean = 200 + 7 * 9.5
    assert shown.features_W[column] == pytest.approx(np.log((200 + 7 * 3) / mean), rel=1e-5)
    assert "221 tokens" in shown.text
    assert not [n for n in CascadeWorld(make_config(folder)).feature_names if "length" in n]


def test_a_check_is_a_property_of_the_answer_and_has_the_declared_rates(folder):
    world = CascadeWorld(make_config(folder, checker=FALLIBLE))
    table = make_table()
    queries = [replace(table.queries[0], id=f"q{n}") for n in range(4000)]
    checker, view = CheckerConfig(**FALLIBLE), world.view
    rates = {1.0: 0.9, 0.0: 0.2, 0.5: 0.55}
    for score, rate in rates.items():
        score_QK = np.full((4000, 2), score, dtype=np.float32)
        passed_QK = draw_checks(checker, 0, queries, view, score_QK)
        error = np.sqrt(rate * (1 - rate) / 4000)
        assert (np.abs(passed_QK.mean(axis=0) - rate) < 4 * error).all()
        again_QK = draw_checks(checker, 0, queries[::-1], view, score_QK)
        np.testing.assert_array_equal(again_QK[::-1], passed_QK)
    assert not draw_checks(checker, 0, queries, view, np.full((4000, 2), np.nan)).any()
    exact = CascadeWorld(make_config(folder)).table.splits["test"]
    np.testing.assert_array_equal(exact.passed_QK, exact.score_QK == 1)


# --- Who may act ----------------------------------------------------------------------------------


def test_stop_needs_an_answer_unless_skipping_is_allowed(folder):
    world = CascadeWorld(make_config(folder))
    task = world.list_tasks("train")[0]
    assert world.reset(task, 0).legal_K.tolist() == [False, True, True]
    assert world.step(SMALL, None).state.legal_K.tolist() == [True, False, True]
    world.reset(task, 0)
    with pytest.raises(ValueError, match="executor 0 cannot act"):
        world.step(STOP, None)
    skipping = CascadeWorld(make_config(folder, allow_skip=True, skip_score=0.25))
    assert skipping.reset(task, 0).legal_K.tolist() == [True, True, True]
    skipped = skipping.step(STOP, None)
    assert (skipped.score, skipped.cost_usd, skipped.done) == (0.25, 0.0, True)


def test_a_hole_is_never_chosen_and_nobody_is_asked_twice(holed):
    for policy in (RandomPolicy(), StaticPolicy(SMALL), StaticPolicy(LARGE)):
        split, batch = play(policy, make_config(holed))
        rows = 0
        for b in range(60):
            taken = batch.action_BT[b, batch.valid_BT[b]]
            looks = taken[taken != STOP]
            assert len(looks) >= 1
            assert len(set(looks.tolist())) == len(looks)
            assert split.present_QK[b, looks - 1].all()
            rows += len(looks)
        assert rows > 60 or not isinstance(policy, RandomPolicy)
        assert np.isfinite(batch.ends.score_B).all()
        assert np.isfinite(batch.ends.cost_usd_B).all()


def test_an_executor_alone_asks_once_and_stops_and_a_hole_is_taken_by_its_neighbour(holed):
    split, batch = play(StaticPolicy(LARGE), make_config(holed))
    for b in range(60):
        taken = batch.action_BT[b, batch.valid_BT[b]].tolist()
        first = LARGE if split.present_QK[b, 1] else SMALL
        left = split.present_QK[b].sum() - 1
        assert taken == ([first, STOP] if left else [first])


def test_the_episode_ends_after_as_many_looks_as_are_allowed(folder):
    one = CascadeWorld(make_config(folder, max_looks=1))
    assert one.horizon == 1
    assert take_steps(one, 0, SMALL).done
    assert CascadeWorld(make_config(folder, max_looks=9)).horizon == 2


@pytest.mark.parametrize("unit", ["calls", "usd"])
def test_no_cap_is_passed_and_the_bounds_tell_nothing_of_a_query(holed, unit):
    config = make_config(holed, checker=FALLIBLE)
    lanes = CascadeLanes(config)
    lanes.open_lanes("test", 60)
    lanes.start_lanes(np.arange(60), np.arange(60), np.zeros(60, dtype=np.int64))
    bound_BK = lanes.bound_costs_usd()
    assert (bound_BK == bound_BK[0]).all()
    for split in lanes.table.splits.values():
        assert (np.nan_to_num(split.cost_usd_QK) <= bound_BK[0, 1:]).all()
    _, batch = play(RandomPolicy(), config, make_settings(unit, CAPS[unit]))
    spent_B = batch.ends.calls_B if unit == "calls" else batch.ends.cost_usd_B
    assert (spent_B <= batch.ends.cap_B + 1e-9).all()
    assert batch.ends.exhausted_B.any()


# --- Expectations ---------------------------------------------------------------------------------


def make_view(keep: str = "best_checked", checker: CheckerConfig | None = None) -> CascadeView:
    return CascadeView(
        candidate_ids=("small", "large"),
        dimension=1,
        show_query=True,
        centroids_CF=np.zeros((1, 1), dtype=np.float32),
        score_CK=np.array([[0.6, 0.8]], dtype=np.float32),
        charge_CK=np.array([[0.1, 1.0]], dtype=np.float32),
        tokens_K=None,
        reference_usd=1.0,
        checker=checker,
        keep=keep,  # type: ignore[arg-type]
        max_looks=2,
        skip_score=0.0,
    )


def expect(view: CascadeView, passed: bool | None) -> list[float]:
    """Return the expectations before any look (None), or after small's answer."""
    seen = CascadeSeen.open(1, 2)
    if passed is not None:
        zero = np.zeros(1)
        seen.note(np.array([0]), np.array([0]), np.array([passed]), zero, zero, view.keep)
    return view.expect_scores(view.score_CK, seen)[0].tolist()


def test_expectations_by_bayes_rule():
    view = make_view(checker=CheckerConfig(**FALLIBLE))
    assert expect(view, None) == pytest.approx([0.0, 0.6, 0.8])
    # 0.6 * 0.9 / (0.54 + 0.4 * 0.2) and 0.6 * 0.1 / (0.06 + 0.4 * 0.8)
    assert expect(view, passed=True)[0] == pytest.approx(0.87097, abs=1e-5)
    assert expect(view, passed=False)[0] == pytest.approx(0.15789, abs=1e-5)
    # large passes with 0.76 and is then right with 0.72 / 0.76; else small's answer is kept
    assert expect(view, passed=True)[2] == pytest.approx(0.72 + 0.24 * 0.87097, abs=1e-5)
    assert expect(view, passed=False)[2] == pytest.approx(0.8)
    last = make_view("last", CheckerConfig(**FALLIBLE))
    assert expect(last, passed=True)[2] == pytest.approx(0.8)
    assert expect(make_view("last"), passed=False) == pytest.approx([0.6, 0.6, 0.8])


@given(st.floats(0, 1), st.sampled_from([(1.0, 0.0), (0.0, 1.0), (0.9, 0.2), (0.0, 0.0)]))
def test_evidence_leaves_a_probability(prior, likelihoods):
    found = weigh_evidence(np.array([prior]), *likelihoods)
    assert 0 <= found[0] <= 1
    if likelihoods == (0.0, 0.0):
        assert found[0] == prior


# --- Lanes and episodes ---------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["calls", "usd"])
@pytest.mark.parametrize("keep", ["last", "best_checked"])
@pytest.mark.parametrize("skip", [False, True])
def test_lanes_make_the_episodes_of_single_worlds(holed, unit, keep, skip):
    config = make_config(holed, keep=keep, checker=FALLIBLE, tokens=True, allow_skip=skip)
    settings = make_settings(unit, CAPS[unit], cost_weight={"min": 0.0, "max": 1.0})
    world = CascadeWorld(config)
    tasks = world.list_tasks("train")
    vector = StepBudgetVector(CascadeLanes(config), settings, 60)
    plan = plan_static(np.arange(60), np.arange(60) + 11)
    one = collect_lanes(RandomPolicy(), vector, plan)
    two = collect_worlds(RandomPolicy(), StepBudget(world, settings), tasks, plan, lanes=7)
    for name in ("features_BTF", "mask_BTK", "action_BT", "valid_BT", "logp_BT", "cost_weight_B"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)
    for name in ("score_B", "cost_usd_B", "calls_B", "exhausted_B", "free_BT", "cap_B"):
        np.testing.assert_array_equal(
            getattr(one.ends, name), getattr(two.ends, name), err_msg=name
        )
    for name, value_BT in one.reward_terms_BT.items():
        np.testing.assert_array_equal(value_BT, two.reward_terms_BT[name])
    forced_BT = one.valid_BT & (one.mask_BTK.sum(axis=2) == 1)
    assert not (one.ends.free_BT & forced_BT).any()


def test_the_lanes_pass_the_checkers(folder):
    config = make_config(folder, checker=FALLIBLE)
    settings = make_settings(cost_weight={"min": 0.0, "max": 1.0})
    vector = StepBudgetVector(CascadeLanes(config), settings, 40)
    options = {"task_index": np.arange(40), "episode_seed": np.arange(40) + 100}
    single = StepBudgetGym(CascadeWorld(config), settings, "train")
    found = check_vector(vector, single, options)
    assert found == ["spaces", "match_single", "lanes", "autoreset"]
    arguments = {"world": config.model_dump(mode="json"), "cost_weight": {"min": 0.0, "max": 1.0}}
    assert run_check("rlroute/StepBudget-v0", arguments) == [
        *("gymnasium", "determinism", "action_mask", "state_round_trip", "ends", "rewards")
    ]


# --- Faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"keep": "best_checked", "checker": None}, "needs a checker"),
        ({"skip_score": 0.1}, "allow_skip"),
        ({"checker": {"true_positive": 0.9, "false_positive": 0.2}}, "price_usd"),
        ({"checker": {**EXACT, "true_positive": 1.1}}, "true_positive"),
        ({"max_looks": 0}, "max_looks"),
        ({"looks": 2}, "unknown key 'looks'"),
    ],
)
def test_faulty_settings_are_one_line(folder, fields, words):
    with pytest.raises(RLRouteError) as caught:
        make_config(folder, **fields)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_table_that_does_not_fit_is_refused(tmp_path):
    table = make_table()
    named = replace(table, candidates=(table.candidates[0], Candidate("stop", Prices(1, 1))))
    write_table(named, tmp_path / "stop")
    with pytest.raises(RLRouteError, match="a candidate is called 'stop'"):
        CascadeWorld(make_config(tmp_path / "stop"))
    unknown_QK = np.full(table.score_QK.shape, np.nan, dtype=np.float32)
    write_table(replace(table, completion_tokens_QK=unknown_QK), tmp_path / "short")
    with pytest.raises(RLRouteError, match=r"no completion tokens of 'small'.*tokens: false"):
        CascadeWorld(make_config(tmp_path / "short", tokens=True))
