"""Dispatch: the automaton's masks, blocking, the optimum against brute force, replay, texts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rlroute.config import dump_config, parse_config
from rlroute.types import Query, RLRouteError
from rlroute.worlds.dispatch import DispatchWorld, hash_words
from rlroute.worlds.dispatch_rules import (
    compute_blocking_precision,
    compute_blocking_recall,
    compute_joint_accuracy,
    draw_messages,
)
from rlroute.worlds.dispatch_workflows import DispatchConfig, make_hiring, make_workflows

ROOT = Path(__file__).resolve().parents[2]

WORLD = DispatchWorld(DispatchConfig())
IDS = [one.id for one in WORLD.executors]

TWO_STAGES = {
    "stages": ["open", "done"],
    "intents": {
        "work": {"templates": ["do it"], "stages": ["open"], "leads_to": "done"},
        "ask": {"templates": ["how?"]},
        "chat": {"templates": ["hello"], "idle": True},
    },
    "distractors": ["never mind"],
}
TWO_EXECUTORS = {
    "low": {
        "prices": {"input": 0, "output": 0, "per_call": 0.001},
        "kind": "tool",
        "distracted": 0.5,
        "skills": {"work": {"success": 0.6}, "ask": {"success": 0.7}},
    },
    "high": {
        "prices": {"input": 0, "output": 0, "per_call": 0.004},
        "kind": "tool",
        "skills": {name: {"success": 0.95} for name in ("work", "ask", "chat")},
    },
}
SMALL = {
    "workflows": {"short": TWO_STAGES},
    "executors": TWO_EXECUTORS,
    "min_messages": 2,
    "max_messages": 4,
    "train": 30,
    "val": 1,
    "test": 1,
}


def make_world(**fields: object) -> DispatchWorld:
    return DispatchWorld(parse_config(DispatchConfig, fields, "test"))


def play(world: DispatchWorld, choose: Callable[[DispatchWorld], int]) -> tuple[float, float]:
    """Play a started episode to its end; return score and cost in USD."""
    cost, score = 0.0, 0.0
    while not world.done:
        step = world.step(choose(world), None)
        cost, score = cost + step.cost_usd, step.score
    return score, cost


def choose_cheapest_worker(world: DispatchWorld) -> int:
    allowed = np.flatnonzero(world.find_legal())
    return int(allowed[1] if len(allowed) > 1 else allowed[0])


def choose_dearest(world: DispatchWorld) -> int:
    return int(np.flatnonzero(world.find_legal())[-1])


def go_to(world: DispatchWorld, intent: str, stage: str) -> None:
    """Bring a world to a message of this intent in this stage; only the two are set."""
    flow = next(name for name, one in world.config.workflows.items() if stage in one.stages)
    for task in world.list_tasks("train"):
        world.reset(task, 0)
        for number, message in enumerate(world.content.messages):
            if task.task == flow and message.intent == intent:
                world.number, world.stage = number, stage
                return
    raise AssertionError(f"no message of intent {intent}")


def test_the_hiring_example_of_the_sheet_allows_and_blocks():
    hiring = make_hiring()
    assert hiring.stages == ("new", "screened", "interviewed", "offered")
    assert hiring.intents["evaluate"].stages == ("screened", "interviewed")
    assert hiring.intents["offer"].stages == ("interviewed",)
    assert not hiring.allows("evaluate", "new")
    assert not hiring.allows("offer", "screened")
    assert hiring.allows("evaluate", "screened")


def test_the_masks_of_the_hiring_example_follow_intent_stage_and_skills():
    world = WORLD.fork()
    cases = [
        ("evaluate", "new", {"skip"}),
        ("evaluate", "screened", {"skip", "small", "large"}),  # the recruiter has no notes yet
        ("evaluate", "interviewed", {"skip", "small", "recruiter", "large"}),
        ("offer", "screened", {"skip"}),
        ("offer", "interviewed", {"skip", "forms", "small", "large"}),
        ("question", "new", {"skip", "small", "large"}),
        ("chat", "offered", {"skip", "small", "large"}),
        ("screen", "screened", {"skip"}),
    ]
    for intent, stage, allowed in cases:
        go_to(world, intent, stage)
        assert {IDS[k] for k in np.flatnonzero(world.find_legal())} == allowed


def test_the_worked_joint_accuracy_is_one_half():
    assert compute_joint_accuracy(np.array([1, 1, 0, 1]), np.array([1, 0, 1, 1])) == 0.5
    assert np.isnan(compute_joint_accuracy(np.array([]), np.array([])))


def test_blocking_precision_and_recall():
    illegal_N = np.array([True] * 25 + [False] * 75)
    blocked_N = np.array([True] * 22 + [False] * 78)
    assert compute_blocking_precision(illegal_N, blocked_N) == 1
    assert compute_blocking_recall(illegal_N, blocked_N) == 0.88
    blocked_N[30:33] = True
    assert compute_blocking_precision(illegal_N, blocked_N) == 0.88
    nothing_N = np.zeros(100, dtype=np.bool_)
    assert np.isnan(compute_blocking_precision(illegal_N, nothing_N))
    assert np.isnan(compute_blocking_recall(nothing_N, blocked_N))


def test_all_injected_illegal_attempts_are_blocked_and_counted_and_change_nothing():
    world = WORLD.fork()
    illegal, blocked, intent_ok, stage_ok = [], [], [], []
    for task in world.list_tasks("val")[:30]:
        state, seen = world.reset(task, 5), 0
        while not world.done:
            before = (world.number, world.stage, world.handled, world._show("").text)
            for executor in range(len(IDS)):
                fits, legal = world.judge(executor)
                allowed = world.attempt(executor)
                seen += not allowed
                assert allowed == state.legal_K[executor]
                assert world.blocked == seen
                assert before == (world.number, world.stage, world.handled, world._show("").text)
                if not allowed:
                    with pytest.raises(ValueError, match="cannot act here"):
                        world.step(executor, None)
                illegal.append(not allowed)
                blocked.append(not allowed)
                intent_ok.append(fits)
                stage_ok.append(legal)
            state = world.step(choose_dearest(world), None).state
        assert not world.attempt(world.skip)
    assert sum(illegal) > 22
    assert compute_blocking_precision(np.array(illegal), np.array(blocked)) == 1
    assert compute_blocking_recall(np.array(illegal), np.array(blocked)) == 1
    # what is masked is never right in both; of what is allowed, skip and idle messages can be wrong
    both_N = np.array(intent_ok) & np.array(stage_ok)
    assert not both_N[np.array(illegal)].any()
    assert 0 < compute_joint_accuracy(np.array(intent_ok), np.array(stage_ok)) < 1


def test_skip_is_right_only_where_nothing_is_to_be_done():
    world = WORLD.fork()
    seen = set()
    for task in world.list_tasks("train")[:100]:
        world.reset(task, 1)
        while not world.done:
            message, flow, stage = world.message, world.workflow, world.stage
            idle = flow.intents[message.intent].idle
            now, due = (flow.allows(message.intent, one) for one in (stage, message.ideal_stage))
            expected = idle or (not now and not due)
            assert world.judge(world.skip) == (expected, True)
            seen.add((idle, now, due))
            if world.number % 2:
                world.step(choose_cheapest_worker(world), None)
                continue
            handled = world.handled
            world.step(world.skip, None)
            assert world.handled - handled == expected
            assert world.stage == stage
    # idle, too early or late, normal, out of reach after a mistake, a second chance after one
    legal = {(False, False, False), (False, True, True), (False, False, True), (False, True, False)}
    assert seen == {(True, True, True)} | legal


def expect_utility(
    world: DispatchWorld, weight: float, history: tuple[tuple[int, bool], ...]
) -> float:
    """The mean utility of the best policy after a history of executors and outcomes.

    It knows nothing of stages as states of a dynamic programme: it walks the tree of all histories.
    """
    content, rule = world.content, world.config.score
    flow, stage, cost = content.workflow, content.workflow.stages[0], 0.0
    specs = [world.config.executors.get(one.id) for one in world.executors]
    handled = sum(good for _, good in history)
    for (executor, good), message in zip(history, content.messages, strict=False):
        cost += world.executors[executor].prices.per_call
        if good and specs[executor] is not None and message.intent == "work":
            stage = "done"
    if len(history) == len(content.messages):
        whole = handled == len(history) and stage == "done"
        score = handled / len(history) if rule == "share" else float(whole)
        return score - weight * cost / content.reference_usd
    message = content.messages[len(history)]
    legal = message.intent != "work" or stage == "open"
    best = -np.inf
    for executor, spec in enumerate(specs):
        if spec is None:
            due = message.intent != "work" or message.ideal_stage == "open"
            chance = float(flow.intents[message.intent].idle or not (legal or due))
        elif not legal or message.intent not in spec.skills:
            continue
        else:
            chance = spec.skills[message.intent].success
            chance *= spec.distracted if message.distracted else 1.0
        mean = 0.0
        for good, share in ((True, chance), (False, 1 - chance)):
            if share > 0:
                mean += share * expect_utility(world, weight, (*history, (executor, good)))
        best = max(best, mean)
    return best


@pytest.mark.parametrize("rule", ["share", "all"])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_optimum_agrees_with_the_tree_of_all_histories(rule, weight):
    world = make_world(**SMALL, score=rule)
    for task in world.list_tasks("train")[:15]:
        world.reset(task, 0)
        optimum = world.find_optimum(task, weight)
        assert optimum.utility == pytest.approx(expect_utility(world, weight, ()))
        paid = weight * optimum.cost_usd / world.content.reference_usd
        assert optimum.utility == pytest.approx(optimum.score - paid)


@pytest.mark.parametrize("rule", ["share", "all"])
def test_following_the_advice_earns_the_optimum_on_average(rule):
    world = DispatchWorld(DispatchConfig(score=rule, train=24, val=1, test=1))
    gaps = []
    for task in world.list_tasks("train"):
        optimum = world.find_optimum(task, 0.3)
        for seed in range(60):
            world.reset(task, seed)
            score, cost = play(world, lambda lane: lane.advise() or 0)
            assert world.advise() is None
            gaps.append(score - 0.3 * cost / world.content.reference_usd - optimum.utility)
    assert abs(np.mean(gaps)) < 4 * np.std(gaps) / np.sqrt(len(gaps))


def test_a_higher_cost_weight_never_buys_more():
    for task in WORLD.list_tasks("val")[:20]:
        optima = [WORLD.find_optimum(task, weight) for weight in (0, 0.1, 0.3, 1, 3)]
        for before, after in pairwise(optima):
            assert after.score <= before.score + 1e-12
            assert after.cost_usd <= before.cost_usd + 1e-12
            assert after.utility <= before.utility + 1e-12


def test_the_more_skilled_succeeds_wherever_the_less_skilled_does():
    first, second = WORLD.fork(), WORLD.fork()
    small, large = IDS.index("small"), IDS.index("large")
    better = 0
    for task in first.list_tasks("val"):
        for seed in range(5):
            first.reset(task, seed)
            second.reset(task, seed)
            if not (first.find_legal()[small] and first.message.intent != "chat"):
                continue
            scores = (first.step(small, None).score, second.step(large, None).score)
            assert scores[0] <= scores[1]
            better += scores[0] < scores[1]
    assert better > 20


def test_perfect_executors_carry_every_task_to_its_last_stage():
    executors = DispatchConfig().model_dump()["executors"]
    for executor in executors.values():
        executor["distracted"] = 1.0
        for skill in executor["skills"].values():
            skill["success"] = 1.0
    for rule in ("share", "all"):
        world = make_world(executors=executors, score=rule)
        for task in world.list_tasks("train"):
            world.reset(task, 0)
            score, cost = play(world, choose_dearest)
            assert score == 1
            assert world.stage == world.workflow.stages[-1]
            assert cost == pytest.approx(world.content.reference_usd)


def test_score_all_is_earned_only_at_the_end_and_by_all():
    world = DispatchWorld(DispatchConfig(score="all"))
    scores = []
    for task in world.list_tasks("val"):
        world.reset(task, 2)
        while not world.done:
            step = world.step(choose_dearest(world), None)
            assert step.score == 0 or step.done
        assert step.score == float(world.handled == len(world.content.messages))
        scores.append(step.score)
    assert set(scores) == {0.0, 1.0}


def test_a_skill_states_its_own_stages_and_its_own_stage_after_success():
    flow = make_workflows()["support"].model_dump()
    executors = DispatchConfig().model_dump()["executors"]
    repairing = {"success": 1.0, "leads_to": "resolved"}  # it repairs on the way
    executors["large"]["skills"] = {**executors["large"]["skills"], "triage": repairing}
    executors = {
        name: {**one, "skills": {k: v for k, v in one["skills"].items() if k in flow["intents"]}}
        for name, one in executors.items()
        if name != "recruiter"
    }
    world = make_world(workflows={"support": flow}, executors=executors)
    large = [one.id for one in world.executors].index("large")
    go_to(world, "triage", "opened")
    world.draw_T[:] = 0.0
    world.step(large, None)
    assert world.stage == "resolved"


def test_costs_are_prices_times_tokens_and_known_before():
    world = WORLD.fork()
    go_to(world, "screen", "new")
    words = len(world.message.text.split())
    small = IDS.index("small")
    assert world.bound_cost_usd(small) == pytest.approx(((1500 + words) * 0.4 + 150 * 1.6) / 1e6)
    assert world.bound_cost_usd(IDS.index("forms")) == 2e-4
    bound = world.bound_cost_usd(small)
    step = world.step(small, None)
    assert step.cost_usd == bound
    assert (step.usage.prompt_tokens, step.usage.completion_tokens) == (1500 + words, 150)
    assert world.request(small) is None


@given(number=st.integers(0, 2**40))
def test_messages_carry_the_workflow_through_all_its_stages(number):
    for flow in make_workflows().values():
        messages = draw_messages(WORLD.config, flow, ("test", number))
        assert 5 <= len(messages) <= 9
        stage = flow.stages[0]
        for message in messages:
            assert message.ideal_stage == stage
            intent = flow.intents[message.intent]
            if flow.allows(message.intent, stage):
                stage = intent.leads_to or stage
        assert stage == flow.stages[-1]


def test_rates_decide_how_many_messages_are_idle_illegal_and_distracted():
    flows = make_workflows()
    fields = {"idle_rate": 0.5, "illegal_rate": 0.25, "distraction_rate": 0.4}
    config = DispatchConfig(**fields, min_messages=9)
    counts = {"extra": 0, "idle": 0, "illegal": 0, "distracted": 0, "all": 0}
    for number in range(300):
        for flow in flows.values():
            messages = draw_messages(config, flow, ("rates", number))
            idle = [flow.intents[one.intent].idle for one in messages]
            illegal = [not flow.allows(one.intent, one.ideal_stage) for one in messages]
            counts["all"] += len(messages)
            counts["extra"] += len(messages) - len(flow.stages) + 1
            counts["idle"] += sum(idle)
            counts["illegal"] += sum(illegal)
            counts["distracted"] += sum(one.distracted for one in messages)
    assert counts["idle"] / counts["extra"] == pytest.approx(0.5, abs=0.03)
    assert counts["illegal"] / counts["extra"] == pytest.approx(0.25, abs=0.03)
    assert counts["distracted"] / counts["all"] == pytest.approx(0.4, abs=0.03)


def record_episodes() -> list[list[object]]:
    """Episodes of a fixed policy, as plain values."""
    world, rows = DispatchWorld(DispatchConfig(train=6, val=1, test=1)), []
    for number, task in enumerate(world.list_tasks("train")):
        state = world.reset(task, seed=7 * number)
        rows.append([state.text, state.features_W.tolist()])
        while not world.done:
            allowed = np.flatnonzero(state.legal_K)
            step = world.step(int(allowed[(world.number + number) % len(allowed)]), None)
            state = step.state
            rows.append([state.text, state.features_W.tolist(), step.cost_usd, step.score])
    return rows


def test_another_process_plays_the_same_episodes():
    code = (
        "import sys, json; sys.path.insert(0, 'tests/worlds'); import test_dispatch; "
        "print(json.dumps(test_dispatch.record_episodes()))"
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
        alone.append(play(first, choose_cheapest_worker))
    first.reset(tasks[0], 3)
    second.reset(tasks[1], 3)
    ends = [(0.0, 0.0), (0.0, 0.0)]
    while not (first.done and second.done):
        for number, lane in enumerate((first, second)):
            if not lane.done:
                step = lane.step(choose_cheapest_worker(lane), None)
                ends[number] = (step.score, ends[number][1] + step.cost_usd)
    assert ends == alone


def test_splits_are_disjoint_and_workflows_take_turns():
    tasks = [task for split in ("train", "val", "test") for task in WORLD.list_tasks(split)]
    assert len({task.id for task in tasks}) == len(tasks) == 600
    assert len({repr(WORLD.contents[task.id].messages) for task in tasks}) > 590
    assert [task.task for task in tasks[:3]] == ["hiring", "support", "hiring"]


def test_states_have_named_finite_features_and_short_texts():
    world = WORLD.fork()
    for task in world.list_tasks("train"):
        state, limit = world.reset(task, 2), 60
        assert task.text in state.text
        while True:
            assert len(state.text.split()) <= limit
            assert state.features_W.dtype == np.float32
            assert state.features_W.shape == (len(world.feature_names),)
            assert state.features_W.min() >= 0
            assert state.features_W.max() <= 1
            assert state.legal_K[world.skip]
            seen = dict(zip(world.feature_names, state.features_W.tolist(), strict=True))
            assert seen[f"stage_{task.task}_{world.stage}"] == 1
            if world.done:
                assert seen["messages_left"] == 0
                break
            text, limit = world.message.text, 25
            assert state.text.endswith(f"Stage {world.stage}. User: {text}")
            buckets = {f"words_{one}" for one in hash_words(text, world.config.word_buckets)}
            assert {n for n, v in seen.items() if n.startswith("words_") and v} == buckets
            state = world.step(choose_cheapest_worker(world), None).state


def test_executors_stand_by_price_and_skip_is_free():
    assert IDS == ["skip", "forms", "small", "recruiter", "technician", "large"]
    assert WORLD.executors[0].prices.compute_cost(1000, 100) == 0
    assert [one.kind for one in WORLD.executors] == [
        *("tool", "tool", "model", "agent", "agent", "model")
    ]
    assert WORLD.executor_features_KD.dtype == np.float32
    assert WORLD.executor_features_KD.shape == (6, 3 + 3 + len(WORLD.intents) + 1)
    assert np.isfinite(WORLD.executor_features_KD).all()


def test_the_numbers_of_the_docstring_are_measured_ones():
    policies: dict[Callable[[DispatchWorld], int], tuple[float, float, float, float]] = {
        (lambda world: world.skip): (0.272, 0.0, 0.272, 0.0),
        choose_cheapest_worker: (0.647, 0.0038, 0.603, 0.146),
        choose_dearest: (0.938, 0.0250, 0.643, 0.734),
        (lambda world: world.advise() or 0): (0.905, 0.0084, 0.805, 0.773),
    }
    worlds = [WORLD.fork(), DispatchWorld(DispatchConfig(score="all"))]
    for choose, expected in policies.items():
        rows: list[list[tuple[float, float, float]]] = [[], []]
        for world, outcomes in zip(worlds, rows, strict=True):
            for task in world.list_tasks("test"):
                for seed in range(5):
                    world.reset(task, seed)
                    score, cost = play(world, choose)
                    utility = score - 0.3 * cost / world.content.reference_usd
                    outcomes.append((score, cost, utility))
        score, cost, utility = np.mean(rows[0], axis=0)
        assert score == pytest.approx(expected[0], abs=6e-4)
        assert cost == pytest.approx(expected[1], abs=6e-5)
        assert utility == pytest.approx(expected[2], abs=6e-4)
        assert np.mean(rows[1], axis=0)[0] == pytest.approx(expected[3], abs=6e-4)


def change(base: dict[str, object], *path: str, value: object) -> dict[str, object]:
    """A copy of nested dicts with one value set."""
    head, *rest = path
    inner = base.get(head, {})
    assert isinstance(inner, dict) or not rest
    return {**base, head: change(inner, *rest, value=value) if rest else value}


INTENTS = ("workflows", "short", "intents")
SKILLS = ("executors", "low", "skills")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (change(SMALL, "min_messages", value=5), "min_messages: must be at most max_messages"),
        ({"min_messages": 2}, "workflow 'hiring' takes 3 messages"),
        ({"idle_rate": 0.6, "illegal_rate": 0.6}, "must sum to at most 1"),
        ({"score": "some"}, "score: Input should be 'share' or 'all'"),
        (change(SMALL, *INTENTS, "work", "stages", value=["shut"]), "unknown stage 'shut'"),
        (change(SMALL, *INTENTS, "ask", "leads_to", value="open"), "must come after all"),
        (change(SMALL, *INTENTS, "work", "leads_to", value=None), "none leads from stage 'open'"),
        (change(SMALL, *INTENTS, "chat", "idle", value=False), "none is idle"),
        (change(SMALL, *INTENTS, "chat", "stages", value=["open"]), "needs nothing"),
        (change(SMALL, "workflows", "short", "stages", value=["a", "a"]), "must be distinct"),
        (change(SMALL, *SKILLS, "fly", value={"success": 1}), "no workflow has this intent"),
        (change(SMALL, *SKILLS, "work", "leads_to", value="far"), "unknown stage 'far'"),
        (change(SMALL, *SKILLS, "work", "success", value=1.5), "less than or equal to 1"),
        (change(SMALL, "executors", "low", "prices", "per_call", value=0), "must cost something"),
        (change(SMALL, "executors", "low", "prices", value={"input": 1}), "output: Field required"),
        (change(SMALL, "executors", "skip", value=TWO_EXECUTORS["low"]), "always there"),
        (change(SMALL, *INTENTS, "fly", value={"templates": ["up"]}), "serves it in 'open'"),
        (change(SMALL, *INTENTS, "ask", "templates", value=["{who}?"]), "the only field"),
        (change(SMALL, "word_bucket", value=3), "did you mean 'word_buckets'"),
    ],
)
def test_faults_of_the_config_are_named_in_one_line(fields, message):
    with pytest.raises(RLRouteError, match=message) as fault:
        parse_config(DispatchConfig, fields, "recipe.yaml")
    assert "\n" not in str(fault.value)


def test_a_task_of_another_world_is_refused():
    with pytest.raises(RLRouteError, match="task 'other': not a task of this world"):
        WORLD.fork().reset(Query("other", "text"), 0)


def test_the_config_survives_a_recipe_file():
    config = DispatchConfig(seed=3)
    assert parse_config(DispatchConfig, yaml.safe_load(dump_config(config)), "file") == config
