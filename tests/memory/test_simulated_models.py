"""Simulated language models: what they find, what they charge, how they fail."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from rlroute.config import parse_config
from rlroute.memory.base import MemoryQuestion
from rlroute.memory.lexicon import RELATIONS
from rlroute.memory.simulated_models import SimulatedModels, SimulatedModelsConfig
from rlroute.memory.world import GeneratedMemory, generate_memory
from rlroute.memory.world_config import GeneratedMemoryConfig, HistoryCounts
from rlroute.types import Call, FailureKind, Query, Reply, RLRouteError

SKILL = {"recall": 0.8, "paraphrase_recall": 0.5, "invented": 0.3, "date_errors": 0.4}
CONFIG = {
    "kind": "simulated",
    "candidates": {
        "perfect": {"prices": {"input": 0.88, "output": 0.88}},
        "weak": {"prices": {"input": 0.06, "output": 0.06}, "skill": SKILL},
        "mumbling": {"prices": {"input": 1, "output": 1}, "skill": {"malformed": 1.0}},
        "broken": {"prices": {"input": 1, "output": 1}, "failures": {"timeout": 0.5}},
    },
}


@pytest.fixture(scope="module")
def world() -> GeneratedMemory:
    counts = HistoryCounts(train=4, val=0, test=0)
    return generate_memory(GeneratedMemoryConfig(histories=counts))


@pytest.fixture(scope="module")
def models(world: GeneratedMemory) -> SimulatedModels:
    return SimulatedModels(parse_config(SimulatedModelsConfig, CONFIG, "x"), world)


def ask(
    models: SimulatedModels,
    question: MemoryQuestion,
    candidate: str = "perfect",
    text: str = "a prompt",
    limit: int | None = None,
    **task: Any,
) -> Reply:
    facts = {"module": "entity", "role": "extract", "style": "direct", "turn_ids": [], "notes": {}}
    memory = json.dumps({**facts, **task})
    query = Query(question.query.id, question.query.text, metadata={"memory": memory})
    call = Call(candidate, query, text, max_output_tokens=limit)
    return asyncio.run(models.ask_many([call]))[0]


def read(reply: Reply) -> Any:
    return json.loads(reply.text.split("<answer>")[1].split("</answer>")[0])


def find_notes(
    models: SimulatedModels, turns: Sequence[str], module: str, candidate: str, style: str
) -> list[str]:
    question = models.memory.data.questions["train"][0]
    task = {"module": module, "style": style, "turn_ids": [list(turns)]}
    notes: list[str] = read(ask(models, question, candidate, **task))
    return notes


def list_turns(world: GeneratedMemory, history: str = "train0") -> list[str]:
    return [t.id for s in world.data.histories[history].sessions for t in s.turns]


def find(world: GeneratedMemory, kind: str) -> MemoryQuestion:
    return next(q for q in world.data.questions["train"] if q.query.task == kind)


def test_a_perfect_model_notes_what_was_stated_and_nothing_else(
    models: SimulatedModels, world: GeneratedMemory
) -> None:
    turns = list_turns(world)
    stated = [fact for turn in turns for fact in world.facts.get(turn, ())]
    entity = find_notes(models, turns, "entity", "perfect", "direct")
    temporal = find_notes(models, turns, "temporal", "perfect", "direct")
    assert len(entity) + len(temporal) == len(stated)
    dated = next(fact for fact in stated if fact.relation == "place")
    assert f"{dated.subject} - visited - {dated.object} (on {dated.happened_on})" in temporal
    home = next(fact for fact in stated if fact.relation == "home")
    assert f"{home.subject} - lives in - {home.object} (said {home.said_on})" in entity
    assert set(find_notes(models, turns, "mine", "perfect", "direct")) == {*entity, *temporal}


def test_topics_are_lists_by_person_and_relation(
    models: SimulatedModels, world: GeneratedMemory
) -> None:
    question = find(world, "aggregate")
    (note,) = find_notes(models, question.evidence, "topic", "perfect", "direct")
    facts = [fact for turn in question.evidence for fact in world.facts[turn]]
    assert note.startswith(f"{facts[0].subject} - ")
    assert note.endswith(" - " + "; ".join(fact.object for fact in facts))


def test_what_is_found_of_a_chunk_does_not_depend_on_the_others(
    models: SimulatedModels, world: GeneratedMemory
) -> None:
    turns = list_turns(world)
    for module in ("entity", "temporal"):
        whole = find_notes(models, turns, module, "weak", "cot")
        parts = [n for turn in turns for n in find_notes(models, [turn], module, "weak", "cot")]
        assert whole == list(dict.fromkeys(parts))


def test_errors_come_at_the_rates_of_the_skill_and_styles_divide_them(
    models: SimulatedModels, world: GeneratedMemory
) -> None:
    stated = [(turn, fact) for turn, facts in world.facts.items() for fact in facts]
    plain = [turn for turn, fact in stated if not fact.paraphrased]
    other = [turn for turn, fact in stated if fact.paraphrased]
    relative = [(turn, fact) for turn, fact in stated if fact.relative]

    def measure(turns: Sequence[str], style: str) -> float:
        return sum(bool(find_notes(models, [turn], "mine", "weak", style)) for turn in turns) / len(
            turns
        )

    assert measure(plain, "direct") == pytest.approx(0.8, abs=0.08)
    assert measure(plain, "reflect") == pytest.approx(0.9, abs=0.08)
    assert measure(other, "direct") == pytest.approx(0.5, abs=0.13)
    assert measure(other, "reflect") == pytest.approx(0.75, abs=0.13)
    assert measure(list(world.seeming), "direct") == pytest.approx(0.3, abs=0.07)
    assert measure(list(world.seeming), "reflect") == pytest.approx(0.15, abs=0.06)
    notes = [
        (note, str(fact.happened_on))
        for turn, fact in relative
        for note in find_notes(models, [turn], "temporal", "weak", "direct")
    ]
    wrong = sum(day not in note for note, day in notes) / len(notes)
    assert wrong == pytest.approx(0.4, abs=0.15)


def test_filters_score_evidence_highest(models: SimulatedModels, world: GeneratedMemory) -> None:
    question = find(world, "update")
    turns = list_turns(world)
    chunks = [turns[start : start + 6] for start in range(0, len(turns), 6)]
    reply = ask(models, question, module="filter", role="filter", turn_ids=chunks)
    scores = read(reply)
    assert len(scores) == len(chunks)
    assert set(scores) <= set(range(11))
    held = [bool(set(chunk) & set(question.evidence)) for chunk in chunks]
    assert [score == 10 for score in scores] == held
    assert 6 in scores


def test_summaries_put_what_is_asked_first_by_date_and_once(
    models: SimulatedModels, world: GeneratedMemory
) -> None:
    base = find(world, "single")
    subject = world.facts[base.evidence[0]][0].subject
    turns = list_turns(world, base.history_id)
    notes = find_notes(models, turns, "entity", "perfect", "direct")
    reply = ask(
        models, base, module="summary", role="summary", notes={"entity": notes, "topic": notes}
    )
    lines = reply.text.removeprefix("<answer>").removesuffix("</answer>").splitlines()
    gold = world.facts[base.evidence[0]][0].object
    assert lines[0].startswith(f"{subject} - ")
    assert f"- {gold} (" in lines[0]
    assert len(lines) == len(set(lines)) == 9
    assert set(lines[:-1]) <= set(notes)


def test_summaries_gather_what_is_asked_for_in_full(
    models: SimulatedModels, world: GeneratedMemory
) -> None:
    question = find(world, "aggregate")
    fact = world.facts[question.evidence[0]][0]
    head = f"{fact.subject} - {RELATIONS[fact.relation].phrase}"
    notes = {"entity": [f"{head} - Rome (said 2023-05-05)"], "topic": [f"{head} - Oslo; rome"]}
    reply = ask(models, question, module="summary", role="summary", notes=notes)
    assert reply.text.splitlines()[0] == f"<answer>{head} - rome; Oslo"


def test_tokens_and_prices_are_those_of_the_texts(
    models: SimulatedModels, world: GeneratedMemory
) -> None:
    reply = ask(models, find(world, "single"), text="x" * 400)
    assert reply.usage is not None
    assert reply.text == "<answer>[]</answer>"
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (101, 5)
    assert reply.cost_usd == pytest.approx(106 * 0.88e-6)
    long = ask(models, find(world, "single"), text="x" * 400, style="reflect")
    assert long.usage is not None
    assert 220 < long.usage.completion_tokens < 240


def test_a_reply_is_cut_at_the_limit(models: SimulatedModels, world: GeneratedMemory) -> None:
    reply = ask(models, find(world, "single"), limit=100, style="reflect")
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 100
    assert "<answer>" not in reply.text
    assert len(reply.text) == 400


def test_malformed_replies_have_no_answer(models: SimulatedModels, world: GeneratedMemory) -> None:
    reply = ask(models, find(world, "single"), "mumbling")
    assert reply.failure is None
    assert "<answer>" not in reply.text
    assert reply.cost_usd > 0


def test_failures_come_at_their_rate_and_have_no_text(
    models: SimulatedModels, world: GeneratedMemory
) -> None:
    question = find(world, "single")
    replies = [ask(models, question, "broken", text=str(number)) for number in range(300)]
    failed = [reply for reply in replies if reply.failure is not None]
    assert len(failed) / 300 == pytest.approx(0.5, abs=0.1)
    assert {(reply.failure, reply.text) for reply in failed} == {(FailureKind.TIMEOUT, "")}


def test_equal_calls_get_equal_replies_and_other_seeds_others(
    models: SimulatedModels, world: GeneratedMemory
) -> None:
    other = SimulatedModels(models.config.model_copy(update={"seed": 1}), world)
    turns = list_turns(world)
    notes = [find_notes(m, turns, "entity", "weak", "direct") for m in (models, models, other)]
    assert notes[0] == notes[1] != notes[2]


def test_faults_are_told_in_one_line(models: SimulatedModels, world: GeneratedMemory) -> None:
    question = find(world, "single")
    with pytest.raises(RLRouteError, match=r"unknown candidate 'nobody' .known: broken, mumbling"):
        ask(models, question, "nobody")
    with pytest.raises(RLRouteError, match=r"no style 'haiku' .known: cot, direct, reflect"):
        ask(models, question, style="haiku")
    spec = {"kind": "simulated", "candidates": {"perfect": {"prices": {"input": 1, "output": 1}}}}
    config = parse_config(SimulatedModelsConfig, spec | {"styles": {"reflect": {}}}, "x")
    message = (
        r"no style 'direct' \(known: reflect\); give the tier one of them as its prompt, or add "
        r"it, such as models\.styles\.direct: \{errors: "
    )
    with pytest.raises(RLRouteError, match=message):
        ask(SimulatedModels(config, world), question, style="direct")
    with pytest.raises(RLRouteError, match="does not say in its metadata 'memory'"):
        asyncio.run(models.ask_many([Call("perfect", question.query, "answer this")]))
    with pytest.raises(RLRouteError, match="the questions of their world only, not 'q'"):
        ask(models, MemoryQuestion(Query("q", "?"), "train0"))
    with pytest.raises(RLRouteError, match="prices: Field required"):
        parse_config(SimulatedModelsConfig, {"kind": "simulated", "candidates": {"a": {}}}, "x")
    rates = {"prices": {"input": 1, "output": 1}, "failures": {"timeout": 0.6, "server": 0.6}}
    with pytest.raises(RLRouteError, match="rates must sum to at most 1"):
        parse_config(SimulatedModelsConfig, {"kind": "simulated", "candidates": {"a": rates}}, "x")
