"""A pipeline runs the tiers that are chosen, each piece of work once, and stops where one fails."""

from __future__ import annotations

import asyncio
import math
from itertools import product

import pytest
from memory_example import (
    CHUNKS,
    EXTRACTORS,
    FixedRetriever,
    ScriptedTier,
    make_modules,
    make_pipeline,
    make_question,
)

from rlroute.memory.base import Module, ModuleInput, ModuleRun
from rlroute.memory.pipeline import Pipeline
from rlroute.memory.store import RunStore
from rlroute.types import FailureKind, RLRouteError

ALL = list(product(range(3), repeat=5))


def run(pipeline, questions, tiers):
    return asyncio.run(pipeline.run(questions, tiers))


def count_runs(modules):
    """Return how many inputs the tiers of each module have seen."""
    return [sum(len(tier.seen) for tier in module.tiers) for module in modules]


def test_each_module_reads_what_the_ones_before_it_made():
    pipeline, _ = make_pipeline()
    (trace,) = run(pipeline, [make_question()], [(1, 0, 2, 1, 2)])
    assert trace.retrieved == CHUNKS
    assert trace.runs[0].output == CHUNKS[:2]
    assert [made.output for made in trace.runs[1:4]] == [
        ("entity 0 of 2",),
        ("temporal 2 of 2",),
        ("topic 1 of 2",),
    ]
    assert trace.answer.text == "summary 2: entity 0 of 2, temporal 2 of 2, topic 1 of 2"
    assert trace.cost_usd == pytest.approx(0.01 * (1 + 0 + 2 + 1 + 2))  # the answer is apart
    assert trace.failure is None


def test_another_tier_of_one_extractor_leaves_the_others_alone():
    pipeline, _ = make_pipeline()
    one, other = run(pipeline, [make_question()] * 2, [(2, 0, 1, 1, 0), (2, 2, 1, 1, 0)])
    assert one.runs[1] != other.runs[1]
    assert one.runs[2:4] == other.runs[2:4]


def test_another_filter_changes_what_every_extractor_reads():
    pipeline, _ = make_pipeline()
    one, other = run(pipeline, [make_question()] * 2, [(0, 1, 1, 1, 0), (2, 1, 1, 1, 0)])
    assert all(one.runs[step] != other.runs[step] for step in range(1, 4))


def test_all_243_ways_need_273_module_runs_and_nothing_the_second_time():
    modules = make_modules()
    store = RunStore()
    pipeline, answerer = make_pipeline(modules, store)
    first = run(pipeline, [make_question()] * 243, ALL)
    assert count_runs(modules) == [3, 9, 9, 9, 243]
    assert answerer.asked == 243
    assert run(pipeline, [make_question()] * 243, ALL) == first
    assert count_runs(modules) == [3, 9, 9, 9, 243]
    assert answerer.asked == 243
    assert store.misses == 273 + 243


def test_a_kept_run_still_costs_what_it_cost(tmp_path):
    tiers = [(2, 2, 2, 2, 2)]
    costs = []
    for _ in range(2):
        store = RunStore(tmp_path / "runs.jsonl")
        modules = make_modules()
        pipeline, _ = make_pipeline(modules, store)
        costs += [trace.cost_usd for trace in run(pipeline, [make_question()], tiers)]
        store.close()
    assert count_runs(modules) == [0] * 5
    assert costs == [pytest.approx(0.10)] * 2


def test_duplicates_in_a_batch_run_once():
    modules = make_modules()
    pipeline, _ = make_pipeline(modules)
    work = ModuleInput(make_question(), CHUNKS)
    runs = asyncio.run(pipeline.run_module_many(0, [1, 2, 1, 1], [work] * 4))
    assert [len(made.output) for made in runs] == [2, 3, 2, 2]
    assert count_runs(modules)[0] == 2


def test_extractors_and_tiers_are_under_way_at_the_same_time():
    meeting = asyncio.Barrier(6)  # passes only when six are there: three modules in two tiers

    class MeetingTier(ScriptedTier):
        async def run_many(self, inputs):
            await asyncio.wait_for(meeting.wait(), 5)
            return await super().run_many(inputs)

    modules = make_modules()
    for place, name in enumerate(EXTRACTORS, start=1):
        tiers = tuple(
            MeetingTier(f"T{k}", lambda work: ("x",), 0.0, identity=f"{name}{k}") for k in (0, 1)
        )
        modules[place] = Module(name, "extract", "", tiers)
    pipeline, _ = make_pipeline(modules)
    questions = [make_question("a"), make_question("b")]
    traces = run(pipeline, questions, [(0, 0, 0, 0, 0), (0, 1, 1, 1, 0)])
    assert [trace.failure for trace in traces] == [None, None]


# --- Failures -------------------------------------------------------------------------------------


def test_a_failure_takes_down_what_depends_on_it_and_nothing_else():
    modules = make_modules(fails_for=frozenset({"bad"}))
    pipeline, answerer = make_pipeline(modules)
    questions = [make_question("good"), make_question("bad"), make_question("bad")]
    good, bad, spared = run(pipeline, questions, [(0, 2, 0, 0, 0)] * 2 + [(0, 1, 0, 0, 0)])
    assert good.failure is None
    assert spared.failure is None  # another tier of the same module
    assert [made.failure for made in bad.runs] == [
        None,
        FailureKind.TIMEOUT,
        None,
        None,
        FailureKind.TIMEOUT,
    ]
    assert bad.answer.failure is FailureKind.TIMEOUT
    assert (bad.runs[4].output, bad.answer.text) == ("", "")
    assert math.isnan(bad.cost_usd)
    assert len(modules[4].tiers[0].seen) == answerer.asked == 2


def test_a_failed_filter_leaves_nothing_to_run():
    modules = make_modules()
    failing = ScriptedTier("F", lambda work: (), fails_for=frozenset({"q1"}))
    modules[0] = Module("filter", "filter", "", (failing, failing))
    pipeline, _ = make_pipeline(modules)
    (trace,) = run(pipeline, [make_question()], [(0, 0, 0, 0, 0)])
    assert {made.failure for made in trace.runs} == {FailureKind.TIMEOUT}
    assert count_runs(modules)[1:] == [0] * 4


def test_a_failed_run_is_tried_again_the_next_time():
    modules = make_modules(fails_for=frozenset({"q1"}))
    pipeline, _ = make_pipeline(modules)
    for _ in range(2):
        run(pipeline, [make_question()], [(0, 2, 0, 0, 0)])
    assert count_runs(modules)[:4] == [1, 2, 1, 1]


def test_no_question_gives_no_trace():
    pipeline, _ = make_pipeline()
    assert run(pipeline, [], []) == []


# --- What the pipeline says of itself -------------------------------------------------------------


def test_the_facts_name_modules_and_tiers_in_order():
    facts = make_pipeline()[0].facts
    assert [module.name for module in facts.modules] == ["filter", *EXTRACTORS, "summary"]
    assert facts.tier_counts == (3,) * 5
    assert facts.modules[1].tiers == ("T0", "T1", "T2")


def test_the_fingerprint_changes_with_tiers_and_source():
    modules = make_modules()
    answerer = make_pipeline()[1]
    other = [*modules[:4], Module("summary", "summary", "", modules[4].tiers[:2])]
    prints = {
        Pipeline(modules, FixedRetriever(), answerer).facts.fingerprint,
        Pipeline(make_modules(), FixedRetriever(), answerer).facts.fingerprint,
        Pipeline(modules, FixedRetriever(), answerer, source="x").facts.fingerprint,
        Pipeline(other, FixedRetriever(), answerer).facts.fingerprint,
    }
    assert len(prints) == 3  # equal pipelines have equal ones


# --- Refused --------------------------------------------------------------------------------------


def test_a_tier_that_does_not_exist_is_refused():
    pipeline, _ = make_pipeline()
    with pytest.raises(RLRouteError, match=r"module 'topic' has no tier 3 \(allowed: 0 to 2\)"):
        run(pipeline, [make_question()], [(0, 0, 0, 3, 0)])
    with pytest.raises(RLRouteError, match="module 'filter' has no tier -1"):
        run(pipeline, [make_question()], [(-1, 0, 0, 0, 0)])


def test_a_tier_for_every_module_is_asked_for():
    pipeline, _ = make_pipeline()
    with pytest.raises(RLRouteError, match="4 tiers stated for 5 modules"):
        run(pipeline, [make_question()], [(0, 0, 0, 0)])


@pytest.mark.parametrize(
    ("step", "output", "message"),
    [
        (0, (CHUNKS[0], CHUNKS[0]), "chunks that it was given, none twice"),
        (0, ("a text",), "chunks that it was given, none twice"),
        (1, "a text", "a tuple of texts"),
        (1, [1], "a tuple of texts"),
        (4, ("a",), "must be a text"),
    ],
)
def test_an_output_that_the_role_does_not_allow_is_refused(step, output, message):
    modules = make_modules()
    old = modules[step]
    wrong = ScriptedTier("mine", lambda work: output)
    modules[step] = Module(old.name, old.role, "", (wrong, wrong))
    pipeline, _ = make_pipeline(modules)
    with pytest.raises(RLRouteError, match=f"module '{old.name}', tier 'mine': .*{message}"):
        run(pipeline, [make_question()], [(0, 0, 0, 0, 0)])


@pytest.mark.parametrize("cost_usd", [math.nan, math.inf, -0.01])
def test_a_cost_that_is_no_amount_of_money_is_refused(cost_usd):
    modules = make_modules()
    tier = ScriptedTier("mine", lambda work: (), cost_usd)
    modules[1] = Module("entity", "extract", "", (tier, tier))
    pipeline, _ = make_pipeline(modules)
    with pytest.raises(RLRouteError, match="tier 'mine': its cost is"):
        run(pipeline, [make_question()], [(0, 0, 0, 0, 0)])


def test_a_tier_that_loses_inputs_is_refused():
    class LosingTier(ScriptedTier):
        async def run_many(self, inputs):
            return [ModuleRun(())]

    modules = make_modules()
    tier = LosingTier("mine", lambda work: ())
    modules[1] = Module("entity", "extract", "", (tier, tier))
    pipeline, _ = make_pipeline(modules)
    with pytest.raises(RLRouteError, match="tier 'mine': 1 runs for 2 inputs"):
        run(pipeline, [make_question("a"), make_question("b")], [(0, 0, 0, 0, 0)] * 2)
