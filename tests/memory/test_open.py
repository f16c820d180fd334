"""From YAML to a pipeline that answers: defaults, names, models, and faults in one line."""

from __future__ import annotations

import asyncio
import math

import pytest
import yaml
from memory_example import CANDIDATE, CHUNKS, WritingPool, make_question

from rlroute.config import parse_config
from rlroute.memory.base import History, MemoryData, ModuleInput, Session, Turn
from rlroute.memory.config import ModuleSpec, PipelineConfig
from rlroute.memory.lexicon import RELATIONS
from rlroute.memory.llm_tiers import LlmAnswerer, LlmTier
from rlroute.memory.open import (
    DESCRIPTIONS,
    RELATIONS_BY_MODULE,
    PoolModelsConfig,
    complete_module,
    fingerprint_data,
    identify_candidates,
    name_tiers,
    open_models,
    open_pipeline,
)
from rlroute.memory.prompts import INSTRUCTIONS
from rlroute.memory.reader import ScriptedReader
from rlroute.memory.simulated_models import SimulatedModelsConfig
from rlroute.memory.world import generate_memory
from rlroute.memory.world_config import GeneratedMemoryConfig
from rlroute.pool.pool_file import PoolFile, load_pool
from rlroute.types import Candidate, FailureKind, Prices, RLRouteError

RULES_AND_LLM = [{"kind": "rules"}, {"kind": "llm", "candidate": "large"}]
PRICES = {"input": 2.0, "output": 10.0}
WORLD = {
    "kind": "generated",
    "histories": {"train": 1, "val": 1, "test": 1},
    "questions_per_kind": 1,
}


def make_config(tiers=None, answerer=None, extractors=("entity", "temporal", "topic")):
    """Return the config of a pipeline whose modules all have these tiers."""
    roles = [("filter", "filter"), *((name, "extract") for name in extractors)]
    return parse_config(
        PipelineConfig,
        {
            "retriever": {"kind": "bm25", "top": 3},
            "keep": 2,
            "modules": [
                {"name": name, "role": role, "tiers": tiers or RULES_AND_LLM}
                for name, role in [*roles, ("summary", "summary")]
            ],
            "answerer": answerer or {"kind": "reader"},
        },
        "test",
    )


def make_module(name="entity", role="extract", tiers=None, **stated):
    """Return a module as YAML states it."""
    module = {"name": name, "role": role, "tiers": tiers or RULES_AND_LLM, **stated}
    return parse_config(ModuleSpec, module, "test")


def make_data(text="I live in Lisbon"):
    turns = tuple(Turn(f"t{n}", "Anna", f"{text}, part {n}") for n in range(4))
    history = History("h", (Session("2023-05-08", turns),))
    questions = {"train": (make_question(),), "val": (), "test": ()}
    return MemoryData("small", {"h": history}, questions, lambda question, answer: 1.0)


def write(call):
    return "<answer>x</answer>" if "editor" in call.text else "<answer>[]</answer>"


def open_small(config, candidates=None, pool=None, **settings):
    candidates = {"large": CANDIDATE} if candidates is None else candidates
    return open_pipeline(config, make_data(), pool or WritingPool(write), candidates, **settings)


# --- Pipelines ------------------------------------------------------------------------------------


def test_a_pipeline_of_rules_and_a_model_answers_a_question():
    pipeline = open_small(make_config(answerer={"kind": "llm", "candidate": "large"}))
    (trace,) = asyncio.run(pipeline.run([make_question()], [(0, 1, 0, 0, 1)]))
    assert trace.failure is None
    assert trace.answer.text == "[]"  # the answering prompt is not the editor's
    assert trace.cost_usd == pytest.approx(2 * 0.003)
    assert len(trace.retrieved) <= 3
    assert len(trace.runs[0].output) <= 2


def test_stated_answerers_are_opened():
    assert isinstance(open_small(make_config()).answerer, ScriptedReader)
    spec = {"kind": "llm", "candidate": "large", "max_output_tokens": 7}
    answerer = open_small(make_config(answerer=spec)).answerer
    assert isinstance(answerer, LlmAnswerer)
    assert answerer.spec.max_output_tokens == 7


def test_a_candidate_may_be_named_by_an_alias():
    aliased = Candidate("big", CANDIDATE.prices, aliases=("large",))
    pipeline = open_small(make_config(), {"big": aliased})
    tier = pipeline.modules[0].tiers[1]
    assert isinstance(tier, LlmTier)
    assert tier.candidate is aliased


def test_a_failing_model_fails_the_question_and_leaves_no_cost():
    pipeline = open_small(make_config(), pool=WritingPool(lambda call: FailureKind.SERVER))
    (trace,) = asyncio.run(pipeline.run([make_question()], [(0, 0, 1, 0, 0)]))
    assert trace.failure is FailureKind.SERVER
    assert math.isnan(trace.cost_usd)


def test_another_model_behind_the_same_name_makes_another_pipeline():
    prints = {
        open_small(make_config(), identities={"large": name}).facts.fingerprint for name in "aab"
    }
    assert len(prints) == 2


def test_other_histories_or_gold_answers_make_another_pipeline():
    data = make_data()
    other = MemoryData("small", data.histories, {"train": (), "val": (), "test": ()}, data.grade)
    prints = {fingerprint_data(one) for one in (data, make_data(), make_data("I moved"), other)}
    assert len(prints) == 3


# --- Defaults and names ---------------------------------------------------------------------------


def test_known_modules_need_nothing_but_tiers():
    for name, role in [("entity", "extract"), ("pick", "filter"), ("digest", "summary")]:
        filled = complete_module(make_module(name, role))
        known = name if role == "extract" else role
        assert filled.description == DESCRIPTIONS[known]
        assert filled.instructions == INSTRUCTIONS[known]
        assert filled.relations == RELATIONS_BY_MODULE.get(known, ())


def test_what_is_stated_wins_over_defaults():
    stated = {"description": "Mine.", "instructions": "Do it.", "relations": ["home"]}
    filled = complete_module(make_module(**stated))
    assert (filled.description, filled.instructions) == ("Mine.", "Do it.")
    assert filled.relations == ("home",)


def test_the_relations_of_known_modules_are_in_the_lexicon():
    named = {name for names in RELATIONS_BY_MODULE.values() for name in names}
    assert named == set(RELATIONS)


@pytest.mark.parametrize(
    ("tiers", "names"),
    [
        ([{"kind": "rules"}] * 3, ("Low", "Mid", "High")),
        ([{"kind": "rules", "name": "Free"}, *[{"kind": "rules"}] * 2], ("Free", "Mid", "High")),
        (RULES_AND_LLM, ("rules", "large-direct")),
        (
            [
                {"kind": "encoder", "price": 0.02},
                {"kind": "llm", "candidate": "small", "prompt": "cot"},
            ],
            ("encoder", "small-cot"),
        ),
    ],
)
def test_tiers_without_a_name_are_called_after_their_place_or_kind(tiers, names):
    assert name_tiers(make_module(tiers=tiers)) == names


def test_a_user_module_works_beside_the_known_ones():
    config = make_config()
    mine = make_module(
        "health", description="Notes illness.", instructions="Note it.", relations=["event"]
    )
    modules = (*config.modules[:4], mine, config.modules[4])
    pipeline = open_small(config.model_copy(update={"modules": modules}))
    assert pipeline.facts.tier_counts == (2,) * 6
    (trace,) = asyncio.run(pipeline.run([make_question()], [(0, 0, 0, 0, 1, 0)]))
    assert trace.failure is None
    assert (
        "Criteria: Note it."
        in pipeline.modules[4].tiers[1].make_call(ModuleInput(make_question(), CHUNKS)).text
    )


# --- Faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({}, r"module 'health': state its description \(only entity, temporal, topic have"),
        ({"description": "x"}, "module 'health': state its instructions"),
        ({"description": "x", "instructions": "y"}, "module 'health': state its relations"),
        (
            {"description": "x", "instructions": "y", "relations": ["illness"]},
            r"module 'health': unknown relation 'illness' \(known: home, job,",
        ),
    ],
)
def test_a_user_module_states_what_its_tiers_need(stated, message):
    with pytest.raises(RLRouteError, match=message):
        complete_module(make_module("health", **stated))


def test_a_module_of_models_only_needs_no_relations():
    tiers = [{"kind": "llm", "candidate": "large", "prompt": style} for style in ("direct", "cot")]
    complete_module(make_module("health", tiers=tiers, description="x", instructions="y"))


def test_two_tiers_of_one_name_are_refused():
    with pytest.raises(RLRouteError, match="module 'entity': two tiers are called 'rules'"):
        name_tiers(make_module(tiers=[{"kind": "rules"}] * 2))


def test_an_unknown_candidate_is_named_with_the_known_ones():
    message = r"module 'filter', tier 'large-direct': unknown candidate 'large' \(known: a, b\)"
    candidates = {name: Candidate(name, CANDIDATE.prices) for name in "ba"}
    with pytest.raises(RLRouteError, match=message):
        open_small(make_config(), candidates)
    with pytest.raises(RLRouteError, match=r"answerer: unknown candidate 'x' \(known: large\)"):
        open_small(make_config(answerer={"kind": "llm", "candidate": "x"}))


@pytest.mark.parametrize("price", [math.nan, -1.0, math.inf])
def test_a_price_that_is_no_amount_of_money_is_refused(price):
    unpriced = Candidate("large", Prices(price, 10.0))
    with pytest.raises(RLRouteError, match=f"candidate 'large': price 'input' is {price}"):
        open_small(make_config(), {"large": unpriced})


# --- Models ---------------------------------------------------------------------------------------


def write_pool(path, **candidate):
    entry = {"endpoint": "http://127.0.0.1:9/v1", "model": "m", "prices": PRICES, **candidate}
    path.write_text(yaml.safe_dump({"candidates": {"large": entry}}))
    return path


def test_models_of_a_pool_file_are_opened_with_overrides(tmp_path):
    path = write_pool(tmp_path / "pool.yaml")
    override = ("candidates.large.prices.input=3",)
    models = open_models(PoolModelsConfig(kind="pool", path=path, overrides=override))
    assert models.candidates["large"].prices.input == 3.0
    assert set(models.identities) == {"large"}
    asyncio.run(models.close())


def test_a_pool_file_without_prices_is_refused(tmp_path):
    path = write_pool(tmp_path / "pool.yaml", prices=None)
    with pytest.raises(RLRouteError, match="prices"):
        open_models(PoolModelsConfig(kind="pool", path=path))


def test_an_identity_is_what_answers_and_not_what_it_costs(tmp_path):
    def identify(**candidate):
        return identify_candidates(load_pool(write_pool(tmp_path / "pool.yaml", **candidate)))

    assert identify() == identify(concurrency=3) == identify(prices={"input": 1, "output": 1})
    assert identify() != identify(model="another")


def test_the_identity_of_a_simulated_candidate_is_its_skill():
    def identify(skill):
        spec = {"type": "simulated", "skill": skill, "prices": PRICES}
        return identify_candidates(PoolFile.model_validate({"candidates": {"large": spec}}))

    assert identify(1.0) == identify(1.0) != identify(2.0)


def test_simulated_models_answer_a_generated_world():
    memory = generate_memory(parse_config(GeneratedMemoryConfig, WORLD, "test"))
    config = parse_config(
        SimulatedModelsConfig,
        {"kind": "simulated", "candidates": {"large": {"prices": PRICES}}},
        "test",
    )
    models = open_models(config, memory)
    other = open_models(config.model_copy(update={"seed": 1}), memory)
    assert models.identities["large"] != other.identities["large"]
    pipeline = open_pipeline(
        make_config(), memory.data, models.pool, models.candidates, None, models.identities
    )
    questions = memory.data.questions["test"]
    traces = asyncio.run(pipeline.run(questions, [(1, 1, 1, 1, 1)] * len(questions)))
    assert [trace.failure for trace in traces] == [None] * len(questions)
    assert not any(run.malformed for trace in traces for run in trace.runs)
    assert all(trace.cost_usd > 0 for trace in traces)


def test_simulated_models_need_a_generated_world():
    spec = {"kind": "simulated", "candidates": {"large": {"prices": PRICES}}}
    with pytest.raises(RLRouteError, match="'simulated' needs data of kind 'generated'"):
        open_models(parse_config(SimulatedModelsConfig, spec, "test"))
