"""Tool graphs: the optimum against brute force, answered failures, masks, replay, texts."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rlroute.config import dump_config, parse_config
from rlroute.seeding import draw_uniform
from rlroute.types import Query, RLRouteError
from rlroute.worlds.tool_graph import PLAN_CEILING, ToolFailure, ToolGraphWorld
from rlroute.worlds.tool_graph_tasks import (
    SHAPES,
    Shape,
    ToolGraph,
    ToolGraphConfig,
    ToolSpec,
    draw_graph,
    find_cheapest,
    find_frontiers,
)

ROOT = Path(__file__).resolve().parents[2]

TINY = {
    "min_length": 2,
    "max_length": 3,
    "max_tools": 2,
    "branches": 2,
    "horizon": 4,
    "train": 12,
    "val": 3,
    "test": 3,
}
FRAIL_TOOLS = {
    name: {"price_usd": 0.001 * (1 + number), "failure_rate": 0.7, "failure": failure, "span": 1}
    for number, (name, failure) in enumerate(
        [("a", "outage"), ("b", "transient"), ("c", "transient"), ("d", "outage")]
    )
}
FRAIL = {"tools": FRAIL_TOOLS, "min_tools": 2, "max_tools": 4, "train": 30, "val": 1, "test": 1}

WORLD = ToolGraphWorld(ToolGraphConfig())


def make_world(**fields: object) -> ToolGraphWorld:
    return ToolGraphWorld(parse_config(ToolGraphConfig, fields, "test"))


def list_ways(graph: ToolGraph, node: int, closed_NU: np.ndarray) -> Iterator[tuple[int, ...]]:
    """All sequences of tools from a node to the goal over open edges, by depth-first search."""
    if node == graph.goal:
        yield ()
    for tool, target in graph.targets[node].items():
        if not closed_NU[node, tool]:
            for way in list_ways(graph, target, closed_NU):
                yield (tool, *way)


def play(world: ToolGraphWorld, choose: Callable[[ToolGraphWorld], int]) -> tuple[float, float]:
    """Play a started episode to its end; return score and cost in USD."""
    cost, score = 0.0, 0.0
    while not world.done:
        step = world.step(choose(world), None)
        cost, score = cost + step.cost_usd, step.score
    return score, cost


def choose_first(world: ToolGraphWorld) -> int:
    return int(np.flatnonzero(world.find_legal())[0])


def choose_dearest_tool(world: ToolGraphWorld) -> int:
    allowed = np.flatnonzero(world.find_legal())
    return int(allowed[-2] if len(allowed) > 1 else allowed[-1])


def test_frontiers_of_a_small_graph_by_hand():
    # 0 -a(1)-> 1 -a(1)-> 2 -a(1)-> 3 costs 3 in three calls, 0 -c(5)-> 3 costs 5 in one,
    # 0 -b(3)-> 2 -a(1)-> 3 costs 4 in two
    graph = ToolGraph("dag", ({0: 1, 1: 2, 2: 3}, {0: 2}, {0: 3}, {}))
    open_NU = np.zeros((4, 3), dtype=np.bool_)
    frontiers = find_frontiers(graph, np.array([1.0, 3.0, 5.0]), open_NU)
    assert frontiers == [[(3, 3.0), (2, 4.0), (1, 5.0)], [(2, 2.0)], [(1, 1.0)], [(0, 0.0)]]
    assert [find_cheapest(frontiers[0], calls) for calls in range(4)] == [math.inf, 5.0, 4.0, 3.0]
    closed_NU = open_NU.copy()
    closed_NU[2, 0] = True
    assert find_frontiers(graph, np.array([1.0, 3.0, 5.0]), closed_NU)[:2] == [[(1, 5.0)], []]


@settings(max_examples=150)
@given(
    shape=st.sampled_from(SHAPES),
    length=st.integers(2, 4),
    number=st.integers(0, 10_000),
    rate=st.sampled_from([0.0, 0.2, 0.5]),
)
def test_frontiers_agree_with_all_ways_of_random_graphs(shape, length, number, rate):
    config = WORLD.config
    graph = draw_graph(config, shape, length, ("test", number))
    nodes, tools = len(graph.targets), len(config.tools)
    closed_NU = draw_uniform("closed", number, np.arange(nodes * tools)) < rate
    closed_NU = closed_NU.reshape(nodes, tools)
    frontiers = find_frontiers(graph, WORLD.price_U, closed_NU)
    for node in range(nodes):
        ways = list(list_ways(graph, node, closed_NU))
        for calls in range(length + 2):
            costs = [sum(WORLD.price_U[list(way)]) for way in ways if len(way) <= calls]
            cheapest = find_cheapest(frontiers[node], calls)
            assert cheapest == pytest.approx(min(costs, default=math.inf))


FRAIL_WORLD = make_world(**FRAIL)


def find_optimum_by_playing(world: ToolGraphWorld, task: Query, seed: int) -> float:
    """The least cost of any episode that reaches the goal, all sequences of executors tried."""
    best, stack = math.inf, [()]
    while stack:
        executors = stack.pop()
        lane = world.fork()
        state, cost, score, done = lane.reset(task, seed), 0.0, 0.0, False
        for executor in executors:
            step = lane.step(executor, None)
            state, cost, score, done = step.state, cost + step.cost_usd, step.score, step.done
        if done and score == 1:
            best = min(best, cost)
        if not done:
            stack += [(*executors, int(k)) for k in np.flatnonzero(state.legal_K)]
    return best


def test_the_optimum_is_the_cheapest_of_all_episodes():
    tools = {name: {**tool, "failure_rate": 0.35} for name, tool in FRAIL_TOOLS.items()}
    world = make_world(**TINY, tools=tools, escalate_usd=0.009)
    optima = []
    for task in world.list_tasks("train"):
        for seed in range(2):
            optimum = world.find_optimum(task, seed)
            assert optimum == pytest.approx(find_optimum_by_playing(world, task, seed))
            optima.append(optimum)
    assert min(optima) < 0.009 == max(optima)  # both kinds occur: a way, and escalation


def test_advice_that_knows_all_reaches_the_goal_at_the_optimum_without_a_failure():
    world = WORLD.fork()
    for task in world.list_tasks("val"):
        for seed in range(3):
            world.reset(task, seed)
            score, cost = play(world, ToolGraphWorld.advise)
            assert score == 1
            assert world.failures == 0
            assert cost == pytest.approx(world.find_optimum(task, seed))
            assert world.advise() is None


def test_without_failures_both_advices_are_the_shortest_path():
    tools = {
        name: {**spec.model_dump(), "failure_rate": 0.0}
        for name, spec in WORLD.config.tools.items()
    }
    world = make_world(tools=tools, train=60, val=1, test=1)
    for task in world.list_tasks("train"):
        costs = []
        for advise in (ToolGraphWorld.advise, ToolGraphWorld.advise_observed):
            world.reset(task, seed=4)
            costs.append(play(world, advise))
        graph = world.graphs[task.id]
        ways = list_ways(graph, 0, np.zeros((len(graph.targets), len(tools)), dtype=np.bool_))
        cheapest = min([sum(world.price_U[list(way)]) for way in ways if len(way) <= world.horizon])
        for score, cost in costs:
            assert score == 1
            assert cost == pytest.approx(cheapest)


def test_observed_advice_never_knows_a_failure_before_it_is_seen():
    world = WORLD.fork()
    differing = 0
    for task in world.list_tasks("val")[:20]:
        advised: dict[str, set[int | None]] = {"seen": set(), "known": set()}
        for seed in range(8):
            world.reset(task, seed)
            advised["seen"].add(world.advise_observed())
            advised["known"].add(world.advise())
        assert len(advised["seen"]) == 1
        differing += len(advised["known"]) > 1
    assert differing > 5


@settings(max_examples=200)
@given(
    number=st.integers(0, 29),
    seed=st.integers(0, 2**40),
    draws=st.lists(st.floats(0, 1, exclude_max=True), min_size=9, max_size=9),
    reluctance=st.integers(1, 6),
)
def test_every_failure_is_rerouted_or_escalated_or_left_open_by_the_end(
    number, seed, draws, reluctance
):
    world = FRAIL_WORLD.fork()
    world.reset(world.list_tasks("train")[number], seed)
    failed = 0
    for draw in draws:
        allowed = np.flatnonzero(world.find_legal()).tolist()
        options = allowed[:-1] * reluctance + allowed[-1:]  # escalate is the last one
        step = world.step(options[int(draw * len(options))], None)
        failed += "failed" in step.note
        assert world.failures == failed == len(world.failure_log)
        assert world.failures == world.reroutes + world.escalations + world.open_failures
        if step.done:
            break
    finished = world.node == world.graph.goal
    assert world.done
    assert step.score == float(finished)
    assert world.open_failures <= (0 if finished else 1)
    assert finished or world.steps == world.horizon
    assert world.escalations <= world.escalated


def test_the_random_episodes_of_that_test_end_in_all_three_ways():
    world, seen = FRAIL_WORLD.fork(), set()
    for task in world.list_tasks("train"):
        for seed in range(10):
            world.reset(task, seed)
            score, _ = play(world, choose_first)
            seen.add((score, world.escalations, world.open_failures))
    assert {(1.0, 0, 0), (1.0, 1, 0), (0.0, 0, 1)} <= seen


def test_the_failure_log_names_step_node_tool_and_remedy():
    tools = {
        "cheap": {"price_usd": 0.001, "failure_rate": 0.999, "failure": "transient"},
        "fair": {"price_usd": 0.002, "failure_rate": 0.999, "failure": "transient"},
        "good": {"price_usd": 0.003},
    }
    world = make_world(tools=tools, shapes=["chain"], min_tools=3, branches=3, train=1)
    world.reset(world.list_tasks("train")[0], seed=0)
    for executor in (0, 1, 2, 0, 3):  # all three at node 0, then one more failure and escalate
        world.step(executor, None)
    assert world.failure_log == [
        ToolFailure(0, 0, "cheap", "reroute"),
        ToolFailure(1, 0, "fair", "reroute"),
        ToolFailure(3, 1, "cheap", "escalation"),
    ]
    assert (world.failures, world.reroutes, world.escalations) == (3, 2, 1)


def test_a_failed_call_is_charged_and_changes_no_place_and_closes_its_edge():
    world = FRAIL_WORLD.fork()
    for seed in range(20):
        world.reset(world.list_tasks("train")[0], seed)
        tool = choose_first(world)
        step = world.step(tool, None)
        assert step.cost_usd == world.price_U[tool] > 0
        if world.failures:
            assert world.node == 0
            assert not step.state.legal_K[tool]
            return
    pytest.fail("no seed with a failure")


def test_an_outage_closes_a_tool_everywhere_and_a_transient_failure_only_there():
    world = FRAIL_WORLD.fork()
    closed = {True: 0, False: 0}
    for task in world.list_tasks("train")[:10]:
        for seed in range(10):
            world.reset(task, seed)
            down_U = world.fails_NU[:, world.outage_U]
            assert (down_U == down_U[:1]).all()
            tool = choose_first(world)
            world.step(tool, None)
            if world.failures:
                outage = bool(world.outage_U[tool])
                assert world.closed_NU[:, tool].sum() == (len(world.graph.targets) if outage else 1)
                closed[outage] += 1
    assert min(closed.values()) > 5


def test_tools_fail_as_often_as_they_declare():
    world = WORLD.fork()
    rows = []
    for task in world.list_tasks("train")[:60]:
        for seed in range(20):
            world.reset(task, seed)
            rows.append(world.fails_NU[0])
    share_U = np.mean(rows, axis=0)
    error_U = np.sqrt(world.rate_U * (1 - world.rate_U) / len(rows))
    assert (np.abs(share_U - world.rate_U) < 5 * error_U).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_what_they_are_called(shape: Shape):
    config = WORLD.config
    spans = [spec.span for spec in sorted(config.tools.values(), key=lambda spec: spec.price_usd)]
    for number in range(50):
        graph = draw_graph(config, shape, 5, ("shapes", number))
        incoming = [0] * len(graph.targets)
        for node, targets in enumerate(graph.targets):
            assert all(node < target <= graph.goal for target in targets.values())
            for target in targets.values():
                incoming[target] += 1
            if node == graph.goal:
                assert not targets
            elif shape == "chain":
                assert set(targets.values()) == {node + 1}
            elif shape == "fan_out":
                reached = {1, 2, 3} if node == 0 else {min(node + 3, graph.goal)}
                assert set(targets.values()) == reached
            else:
                position = (node + 1) // 2
                for tool, target in targets.items():
                    assert (target + 1) // 2 == min(position + spans[tool], 5)
            if node != graph.goal and not (shape == "fan_out" and node == 0):
                assert config.min_tools <= len(targets) <= config.max_tools
        assert len(graph.targets) == {"chain": 6, "dag": 10, "fan_out": 14}[shape]


def test_splits_are_disjoint_and_hundreds_of_tasks_differ():
    ids = [task.id for split in ("train", "val", "test") for task in WORLD.list_tasks(split)]
    assert len(set(ids)) == len(ids) == 600
    assert len({repr(WORLD.graphs[name]) for name in ids}) > 590
    assert [task.task for task in WORLD.list_tasks("train")[:4]] == [*SHAPES, "chain"]


def record_episodes() -> list[list[object]]:
    """Episodes of a fixed policy, as plain values."""
    world, rows = ToolGraphWorld(ToolGraphConfig(train=6, val=1, test=1)), []
    for number, task in enumerate(world.list_tasks("train")):
        state = world.reset(task, seed=7 * number)
        rows.append([state.text, state.features_W.tolist()])
        while not world.done:
            allowed = np.flatnonzero(state.legal_K)
            step = world.step(int(allowed[(world.steps + number) % max(len(allowed) - 1, 1)]), None)
            state = step.state
            rows.append([state.text, state.features_W.tolist(), step.cost_usd, step.score])
    return rows


def test_another_process_plays_the_same_episodes():
    code = (
        "import sys, json; sys.path.insert(0, 'tests/worlds'); import test_tool_graph; "
        "print(json.dumps(test_tool_graph.record_episodes()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert json.loads(done.stdout) == record_episodes()


def test_forks_play_side_by_side_without_touching_each_other():
    first, second = WORLD.fork(), WORLD.fork()
    tasks = first.list_tasks("train")
    alone = []
    for task in tasks[:2]:
        first.reset(task, 3)
        alone.append(play(first, choose_first))
    first.reset(tasks[0], 3)
    second.reset(tasks[1], 3)
    costs = [0.0, 0.0]
    while not (first.done and second.done):
        for number, lane in enumerate((first, second)):
            if not lane.done:
                costs[number] += lane.step(choose_first(lane), None).cost_usd
    assert costs == [cost for _, cost in alone]


def test_masked_executors_are_refused_and_change_nothing():
    world = WORLD.fork()
    for task in world.list_tasks("val")[:20]:
        state = world.reset(task, 1)
        while not world.done:
            before = (world.node, world.steps, tuple(world.failure_log), world._show("").text)
            for executor in [*np.flatnonzero(~state.legal_K).tolist(), -1, len(world.executors)]:
                with pytest.raises(ValueError, match="cannot act here"):
                    world.step(executor, None)
            after = (world.node, world.steps, tuple(world.failure_log), world._show("").text)
            assert before == after
            state = world.step(choose_first(world), None).state
        with pytest.raises(ValueError, match="cannot act here"):
            world.step(world.escalate, None)


def test_states_have_named_finite_features_and_short_texts():
    longest_first = longest_later = 0
    world = ToolGraphWorld(ToolGraphConfig(max_tools=5, branches=5))
    for task in world.list_tasks("train"):
        state = world.reset(task, 2)
        longest_first = max(longest_first, len(state.text.split()))
        while True:
            assert state.features_W.dtype == np.float32
            assert state.features_W.shape == (len(world.feature_names),)
            assert np.isfinite(state.features_W).all()
            assert state.features_W.min() >= -1
            assert state.features_W.max() <= PLAN_CEILING
            assert state.legal_K[world.escalate]
            if world.done:
                break
            state = world.step(choose_first(world), None).state
            longest_later = max(longest_later, len(state.text.split()))
    assert longest_first <= 60
    assert longest_later <= 25


def test_the_features_and_the_text_of_a_state_say_the_same():
    world = WORLD.fork()
    state = world.reset(world.list_tasks("train")[0], 3)
    seen = dict(zip(world.feature_names, state.features_W.tolist(), strict=True))
    assert state.text.endswith("Calls left 7: search 2 (9.5), fetch 3 (10.5), solve 8 (15.5).")
    assert seen["plan_search"] == pytest.approx(9.5 / 50)
    assert seen["plan_solve"] == pytest.approx(15.5 / 50)
    assert seen["plan_cache"] == PLAN_CEILING
    assert (seen["steps_left"], seen["shape_chain"], seen["shape_dag"]) == (1, 1, 0)
    assert seen["steps_spare"] == pytest.approx(2 / 7)  # five links


def test_executors_stand_by_price_and_their_features_name_rate_and_kind_of_failure():
    prices = [one.prices.per_call for one in WORLD.executors]
    assert prices == sorted(prices)
    assert [one.id for one in WORLD.executors][-1] == "escalate"
    features_KD = WORLD.executor_features_KD
    assert features_KD.dtype == np.float32
    assert features_KD.shape == (9, 3 + 2 + 9)
    np.testing.assert_allclose(features_KD[:-1, 3], WORLD.rate_U, rtol=1e-6)
    assert features_KD[:, 4].tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0]
    for k in range(9):
        assert WORLD.bound_cost_usd(k) == prices[k]
        assert WORLD.request(k) is None


def test_the_numbers_of_the_docstring_are_measured_ones():
    policies = {
        choose_first: (0.715, 0.0186),
        choose_dearest_tool: (0.923, 0.0346),
        ToolGraphWorld.advise_observed: (0.933, 0.0268),
        ToolGraphWorld.advise: (1.0, 0.0160),
    }
    world = WORLD.fork()
    for choose, expected in policies.items():
        outcomes = []
        for task in world.list_tasks("test"):
            for seed in range(5):
                world.reset(task, seed)
                outcomes.append(play(world, choose))
        score, cost = np.mean(outcomes, axis=0)
        assert score == pytest.approx(expected[0], abs=6e-4)
        assert cost == pytest.approx(expected[1], abs=6e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"min_length": 6, "max_length": 5}, "min_length: must be at most max_length"),
        ({"max_length": 9}, "max_length: must be at most the horizon"),
        ({"min_tools": 4}, "min_tools: must be at most max_tools"),
        ({"tools": {"a": {"price_usd": 0.01}, "b": {"price_usd": 0.01}}}, "only 2 tools"),
        ({"escalate_usd": 0.01}, "escalate_usd: must be above the price of every tool"),
        ({"tools": {"escalate": {"price_usd": 0.01}}, "max_tools": 1}, "at least 2 items"),
        ({"tools": {"a": {}, "b": {"price_usd": 0.01}}}, "price_usd"),
        ({"horizont": 3}, "did you mean 'horizon'"),
    ],
)
def test_faults_of_the_config_are_named_in_one_line(fields, message):
    with pytest.raises(RLRouteError, match=message) as fault:
        parse_config(ToolGraphConfig, fields, "recipe.yaml")
    assert "\n" not in str(fault.value)


def test_a_tool_may_not_be_called_escalate():
    tools = {name: ToolSpec(price_usd=0.01) for name in ("escalate", "b", "c")}
    with pytest.raises(ValueError, match="'escalate' is the name"):
        ToolGraphConfig(tools=tools)


def test_a_task_of_another_world_is_refused():
    with pytest.raises(RLRouteError, match="task 'other': not a task of this world"):
        WORLD.fork().reset(Query("other", "text"), 0)


def test_the_config_survives_a_recipe_file():
    config = ToolGraphConfig(seed=3)
    assert parse_config(ToolGraphConfig, yaml.safe_load(dump_config(config)), "file") == config
