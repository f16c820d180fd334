"""The generated world: equal settings, what is stated where, questions, exact grades."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlroute.config import parse_config
from rlroute.memory.base import MemoryQuestion
from rlroute.memory.lexicon import RELATIONS
from rlroute.memory.world import (
    GeneratedMemory,
    generate_memory,
    grade,
    read_date,
    read_number,
    split_list,
)
from rlroute.memory.world_config import GeneratedMemoryConfig, HistoryCounts
from rlroute.memory.world_dates import list_relative_phrases, spell_date
from rlroute.memory.world_facts import LAGS
from rlroute.memory.world_questions import parse_question
from rlroute.memory.world_text import DATED, SAYINGS
from rlroute.types import Query, RLRouteError

COUNTS = HistoryCounts(train=6, val=2, test=2)
CONFIG = GeneratedMemoryConfig(histories=COUNTS, seed=3)
KINDS = {"single", "temporal", "update", "aggregate", "unanswerable"}


@pytest.fixture(scope="module")
def world() -> GeneratedMemory:
    return generate_memory(CONFIG)


def list_questions(world: GeneratedMemory) -> list[MemoryQuestion]:
    return [question for asked in world.data.questions.values() for question in asked]


def make(gold: str, form: str) -> MemoryQuestion:
    return MemoryQuestion(Query("q", "?", references=(gold,), metadata={"form": form}), "h")


def test_equal_settings_give_equal_worlds_and_other_seeds_others(world: GeneratedMemory) -> None:
    again = generate_memory(CONFIG)
    assert again == world
    other = generate_memory(CONFIG.model_copy(update={"seed": 4}))
    assert other.data.histories != world.data.histories


def test_a_history_does_not_depend_on_how_many_others_there_are(world: GeneratedMemory) -> None:
    few = generate_memory(CONFIG.model_copy(update={"histories": HistoryCounts(train=1, val=0)}))
    assert few.data.histories["train0"] == world.data.histories["train0"]
    first = [q for q in world.data.questions["train"] if q.history_id == "train0"]
    assert list(few.data.questions["train"]) == first


def test_histories_have_the_sizes_that_are_set(world: GeneratedMemory) -> None:
    assert len(world.data.histories) == 10
    for history in world.data.histories.values():
        assert len(history.sessions) == 20
        assert {len(session.turns) for session in history.sessions} == {12}
        days = [datetime.date.fromisoformat(session.when) for session in history.sessions]
        assert days == sorted(set(days))
        assert 120 < (days[-1] - days[0]).days < 155
        assert len({turn.speaker for s in history.sessions for turn in s.turns}) == 3


def test_no_history_is_in_two_splits(world: GeneratedMemory) -> None:
    used = [{q.history_id for q in asked} for asked in world.data.questions.values()]
    assert not used[0] & used[1]
    assert not used[0] & used[2]
    assert not used[1] & used[2]


def test_turns_say_what_the_facts_say(world: GeneratedMemory) -> None:
    turns = {t.id: t for h in world.data.histories.values() for s in h.sessions for t in s.turns}
    assert len(turns) == 2400
    for turn_id, facts in world.facts.items():
        for fact in facts:
            assert turns[turn_id].speaker == fact.subject
            assert fact.object.casefold() in turns[turn_id].text.casefold()
    assert not set(world.facts) & set(world.seeming)


def test_what_only_seems_to_be_stated_is_never_stated(world: GeneratedMemory) -> None:
    stated = {
        (turn.split(":")[0], fact.subject, fact.relation, fact.object)
        for turn, facts in world.facts.items()
        for fact in facts
    }
    assert world.seeming
    for turn, facts in world.seeming.items():
        for fact in facts:
            key = (turn.split(":")[0], fact.subject, fact.relation, fact.object)
            assert key not in stated


def test_dated_facts_have_a_day_before_the_telling_which_the_words_give(
    world: GeneratedMemory,
) -> None:
    turns = {t.id: t for h in world.data.histories.values() for s in h.sessions for t in s.turns}
    told = {"relative": 0, "absolute": 0}
    for turn_id, (fact, *_) in world.facts.items():
        assert (fact.happened_on is not None) == (fact.relation in DATED)
        if fact.happened_on is None:
            continue
        assert (fact.said_on - fact.happened_on).days in LAGS
        text = turns[turn_id].text.casefold()
        phrases = (spell_date(fact.happened_on),)
        if fact.relative:
            phrases = list_relative_phrases(fact.happened_on, fact.said_on)
        assert any(phrase.casefold() in text for phrase in phrases)
        told["relative" if fact.relative else "absolute"] += 1
    assert told["relative"] / sum(told.values()) == pytest.approx(0.6, abs=0.1)


def test_relative_phrases_mean_the_day() -> None:
    said = datetime.date(2023, 5, 8)  # a Monday
    friday, tuesday = datetime.date(2023, 5, 5), datetime.date(2023, 4, 25)
    assert list_relative_phrases(friday, said) == ("three days ago", "last Friday")
    assert list_relative_phrases(tuesday, said) == ("thirteen days ago", "the Tuesday before last")
    assert list_relative_phrases(datetime.date(2023, 5, 7), said) == ("yesterday",)
    assert list_relative_phrases(datetime.date(2023, 4, 24), said)[1] == "a fortnight ago"


def test_shares_of_paraphrases_are_those_of_the_settings(world: GeneratedMemory) -> None:
    facts = [fact for facts in world.facts.values() for fact in facts]
    share = sum(fact.paraphrased for fact in facts) / len(facts)
    assert share == pytest.approx(CONFIG.paraphrase, abs=0.06)


def test_paraphrases_and_seeming_sentences_are_in_no_way_of_the_lexicon() -> None:
    for name, relation in RELATIONS.items():
        assert not set(SAYINGS[name].told) & set(relation.ways)
        assert not set(SAYINGS[name].seeming) & set(relation.ways)
        assert all(text.count("{}") == 1 for text in SAYINGS[name].told + SAYINGS[name].seeming)


def test_questions_of_all_five_kinds_have_gold_answers_and_evidence(world: GeneratedMemory) -> None:
    questions = list_questions(world)
    assert {question.query.task for question in questions} == KINDS
    assert len({question.query.id for question in questions}) == len(questions) >= 10 * 23
    for question in questions:
        assert grade(question, question.query.references[0]) == 1
        assert grade(question, "") == 0
        assert bool(question.evidence) == (question.query.task != "unanswerable")
        assert grade(question, "unknown") == (question.query.task == "unanswerable")
        assert all(turn in world.facts for turn in question.evidence)


def test_gold_answers_follow_from_the_facts(world: GeneratedMemory) -> None:
    for question in list_questions(world):
        ask = parse_question(question.query.text)
        if ask is None:
            assert question.query.task == "unanswerable"
            continue
        facts = [
            fact
            for turn, facts in world.facts.items()
            for fact in facts
            if turn.startswith(f"{question.history_id}:")
            and (fact.subject, fact.relation) == (ask.subject, ask.relation)
        ]
        gold = question.query.references[0]
        named = [f for thing in ask.things for f in facts if f.object == thing]
        if question.query.task == "unanswerable":
            assert not named if ask.things else not facts
        elif ask.form == "value":
            assert max(facts, key=lambda fact: fact.said_on).object == gold
            assert (len(facts) == 1) == (question.query.task == "single")
        elif ask.form == "when":
            assert [str(fact.happened_on) for fact in named] == [gold]
        elif ask.form == "first":
            assert min(named, key=lambda fact: str(fact.happened_on)).object == gold
        else:
            assert (ask.form == "count" and gold == str(len(facts))) or (
                split_list(gold) == split_list(";".join(fact.object for fact in facts))
            )


def test_without_changes_there_are_no_update_questions() -> None:
    still = GeneratedMemoryConfig(histories=HistoryCounts(train=2, val=0, test=0), changes=0.0)
    kinds = {q.query.task for q in generate_memory(still).data.questions["train"]}
    assert kinds == KINDS - {"update"}


@pytest.mark.parametrize(
    ("gold", "form", "answer", "score"),
    [
        ("a nurse", "text", "Nurse", 1),
        ("a nurse", "text", "a nurse.", 1),
        ("a nurse", "text", "nurses", 0),
        ("unknown", "text", "Unknown.", 1),
        ("2023-05-05", "date", "5 May 2023", 1),
        ("2023-05-05", "date", "May 5, 2023.", 1),
        ("2023-05-05", "date", "6 May 2023", 0),
        ("2023-05-05", "date", "last Friday", 0),
        ("3", "count", "three", 1),
        ("3", "count", "3", 1),
        ("3", "count", "4", 0),
        ("Rome; Oslo", "list", "Oslo and Rome", 1),
        ("Rome; Oslo", "list", "Oslo, Rome", 1),
        ("Rome; Oslo", "list", "Oslo", 0),
        ("Rome; Oslo", "list", "Oslo; Rome; Lima", 0),
    ],
)
def test_answers_are_graded_by_value(gold: str, form: str, answer: str, score: int) -> None:
    assert grade(make(gold, form), answer) == score


@given(st.text(max_size=30))
@settings(max_examples=200, deadline=None)
def test_any_text_can_be_graded(text: str) -> None:
    for gold, form in (("1", "count"), ("a", "list"), ("2023-05-05", "date"), ("a b", "text")):
        assert grade(make(gold, form), text) in (0.0, 1.0)


def test_dates_and_numbers_are_read_or_none() -> None:
    assert read_date("2023-02-30") is None
    assert read_number("many") is None
    assert read_number("12") == 12
    assert read_date(" 1 March 2024 ") == datetime.date(2024, 3, 1)


def test_too_short_sessions_are_refused() -> None:
    with pytest.raises(RLRouteError, match="turns_per_session must be at least 14 for 6"):
        parse_config(GeneratedMemoryConfig, {"people": 6, "turns_per_session": 10}, "x")
