import asyncio
import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlroute.memory.base import Chunk, MemoryQuestion, ModuleInput
from rlroute.memory.chunks import render_turn
from rlroute.memory.config import ModuleSpec, RulesTierSpec
from rlroute.memory.rules import compute_overlap, find_key_words, make_rules_tier
from rlroute.memory.rules_dates import find_dates, parse_day, remove_dates
from rlroute.types import Query, RLRouteError

RULES = RulesTierSpec(kind="rules")
MONDAY = datetime.date(2023, 5, 8)


def make(name, role="extract", keep=5, relations=()):
    spec = ModuleSpec(name=name, role=role, relations=relations, tiers=(RULES, RULES))
    return make_rules_tier(spec, RULES, "low", keep)


def ask(text, *chunks, notes=None):
    return ModuleInput(MemoryQuestion(Query("q", text), "h"), chunks, notes or {})


def say(*texts, speaker="Anna", when="2023-05-08", id="h:0:0"):
    return Chunk(id, "\n".join(render_turn(speaker, text) for text in texts), when)


def run(tier, *inputs):
    return [item.output for item in asyncio.run(tier.run_many(inputs))]


def take_notes(name, *texts, **options):
    return run(
        make(name, relations=options.pop("relations", ())), ask("?", say(*texts, **options))
    )[0]


# The filter


def test_the_overlap_is_the_share_of_the_words_that_are_no_stop_words():
    words = find_key_words("Where does Anna keep the red kettle?")
    assert words == {"anna", "keep", "red", "kettle"}
    assert compute_overlap(words, 'Anna said "The kettle is red."') == 0.75
    assert compute_overlap(frozenset(), "anything") == 0.0


def test_the_filter_sorts_by_overlap_and_drops_chunks_without_any():
    chunks = [say(text, id=text) for text in ("kettle", "nothing", "red kettle", "a kettle")]
    kept = run(make("filter", "filter"), ask("the red kettle", *chunks))[0]
    assert [chunk.id for chunk in kept] == ["red kettle", "kettle", "a kettle"]


def test_the_filter_keeps_the_first_chunks_where_none_overlaps():
    chunks = [say(text, id=text) for text in ("one", "two", "three")]
    kept = run(make("filter", "filter", keep=2), ask("the red kettle", *chunks))[0]
    assert [chunk.id for chunk in kept] == ["one", "two"]


def test_the_filter_hands_on_no_more_than_keep():
    chunks = [say("kettle", id=str(index)) for index in range(4)]
    kept = run(make("filter", "filter", keep=3), ask("kettle", *chunks))[0]
    assert [chunk.id for chunk in kept] == ["0", "1", "2"]


# Entity


def test_the_first_way_of_saying_a_relation_becomes_a_note_about_the_speaker():
    assert take_notes("entity", "By the way, I live in Lisbon. I work as a nurse, you know!") == (
        "Anna - lives in - Lisbon (said 2023-05-08)",
        "Anna - works as - a nurse (said 2023-05-08)",
    )


def test_other_ways_of_saying_it_are_beyond_the_rules():
    assert take_notes("entity", "my home is in Lisbon", "I am employed as a nurse") == ()


def test_a_denial_is_no_first_way():
    assert take_notes("entity", "I don't live in Oslo", "I never lived in Rome") == ()


def test_the_third_person_is_read_by_phrase_and_by_sentence_form():
    assert take_notes("entity", "Tom lives in Oslo now.", "Maria sings in a choir.") == (
        "Tom - lives in - Oslo (said 2023-05-08)",
        "Maria - sings in - a choir (said 2023-05-08)",
    )


def test_a_relative_of_the_speaker_is_not_the_speaker():
    assert take_notes("entity", "my cousin lives in Rome") == (
        "Anna's cousin - lives in - Rome (said 2023-05-08)",
    )


def test_pronouns_are_no_subjects():
    assert take_notes("entity", "She lives in Oslo.", "This is nice.", "It was late.") == ()


def test_a_document_is_read_in_the_third_person_only():
    chunk = Chunk("h:0:0", "Document 1: x. Paris is the capital of France. I live in Lisbon.")
    assert run(make("entity"), ask("?", chunk))[0] == ("Paris - is - the capital of France",)


def test_a_date_is_no_part_of_the_object():
    assert take_notes("entity", "I visited Rome on 5 May 2023.", "I visited Oslo yesterday.") == (
        "Anna - visited - Rome (said 2023-05-08)",
        "Anna - visited - Oslo (said 2023-05-08)",
    )


def test_repeated_facts_are_noted_once_and_the_day_is_left_out_where_unknown():
    assert take_notes("entity", "I drive a Volvo.", "I drive a Volvo!", when="") == (
        "Anna - drives - a Volvo",
    )


def test_marks_that_structure_notes_are_taken_out_of_objects():
    assert take_notes("entity", "I visited Rome (Italy) - twice", when="") == (
        "Anna - visited - Rome Italy, twice",
    )


# Temporal, topic, others


def test_temporal_notes_need_a_date_that_is_written_out():
    texts = ("I visited Rome on 5 May 2023.", "I attended the fair yesterday.", "I visited Oslo.")
    assert take_notes("temporal", *texts) == ("Anna - visited - Rome (on 2023-05-05)",)
    assert take_notes("temporal", "I visited Riga on 2023-04-30") == (
        "Anna - visited - Riga (on 2023-04-30)",
    )


def test_topic_notes_collect_objects_over_chunks():
    first, second = (
        say("I visited Rome.", "I play the cello."),
        say("I visited Oslo.", "I visited rome."),
    )
    assert run(make("topic"), ask("?", first, second))[0] == (
        "Anna - visited - Rome; Oslo",
        "Anna - plays - the cello",
    )


def test_an_extractor_of_the_users_own_looks_for_its_relations_only():
    notes = take_notes(
        "travel", "I visited Rome.", "I live in Oslo.", "Tom is tall.", relations=("place",)
    )
    assert notes == ("Anna - visited - Rome (said 2023-05-08)",)


def test_a_relation_that_is_not_in_the_lexicon_is_refused():
    with pytest.raises(
        RLRouteError, match="relation 'hobby' is not in the lexicon; there are home,"
    ):
        make("x", relations=("hobby",))


# Summary, identity


def test_the_summary_is_the_numbered_chunks_and_the_notes():
    item = ask("?", say("Hi."), say("Bye.", when=""), notes={"entity": ("A - b - c",), "topic": ()})
    assert run(make("summary", "summary"), item)[0] == (
        '[1] (2023-05-08)\nAnna said "Hi."\n\n[2]\nAnna said "Bye."\n\nentity:\nA - b - c'
    )


def test_rules_cost_nothing_and_never_fail():
    runs = [
        asyncio.run(tier.run_many([ask("?"), ask("?", say("I live in Rome."))]))
        for tier in (make("filter", "filter"), make("entity"), make("summary", "summary"))
    ]
    assert {(item.cost_usd, item.failure, item.usage) for items in runs for item in items} == {
        (0.0, None, None)
    }


def test_fingerprints_differ_with_what_changes_outputs_but_not_with_the_name():
    spec = ModuleSpec(name="entity", role="extract", tiers=(RULES, RULES))
    same = {make_rules_tier(spec, RULES, name, 5).fingerprint() for name in ("low", "other")}
    others = {
        make("filter", "filter").fingerprint(),
        make("filter", "filter", keep=4).fingerprint(),
        make("temporal").fingerprint(),
        make("entity", relations=("home",)).fingerprint(),
        make("summary", "summary").fingerprint(),
    }
    assert len(same) == 1
    assert len(same | others) == 6


# Dates


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("on 5 May 2023", "2023-05-05"),
        ("the 5th of May, 2023", "2023-05-05"),
        ("1:56 pm on 8 May, 2023", "2023-05-08"),
        ("May 5, 2023", "2023-05-05"),
        ("2023/05/20 (Sat) 02:21", "2023-05-20"),
        ("2023-05-08T10:00", "2023-05-08"),
        ("in June 2023", "2023-06"),
        ("yesterday", "2023-05-07"),
        ("the day before yesterday", "2023-05-06"),
        ("today", "2023-05-08"),
        ("last Friday", "2023-05-05"),
        ("last Monday", "2023-05-01"),
        ("the Friday before last", "2023-04-28"),
        ("on Sunday", "2023-05-07"),
        ("three days ago", "2023-05-05"),
        ("10 days ago", "2023-04-28"),
        ("two weeks ago", "2023-04-24"),
        ("a week ago", "2023-05-01"),
        ("a couple of days ago", "2023-05-06"),
        ("a fortnight ago", "2023-04-24"),
        ("last week", "2023-05-01"),
        ("last month", "2023-04"),
        ("five months ago", "2022-12"),
        ("last year", "2022"),
        ("on 5 May", "2023-05-05"),
        ("December 24th", "2022-12-24"),
    ],
)
def test_a_date_is_resolved(text, date):
    mentions = find_dates(f"I was there {text}, really.", MONDAY)
    assert [mention.date for mention in mentions] == [date]


def test_relative_dates_stay_open_without_a_day_of_telling():
    assert [(m.date, m.relative) for m in find_dates("I came last Friday.")] == [("", True)]


@pytest.mark.parametrize("text", ["I may 5 times", "31 February 2023", "2023-13-01", "Marching 5"])
def test_what_is_no_date_is_left_alone(text):
    assert find_dates(text, MONDAY) == []


def test_a_session_without_a_full_date_has_no_day():
    assert parse_day("May 2023") is None
    assert parse_day("") is None


def test_the_words_of_dates_are_removed():
    assert remove_dates("I visited Rome on 5 May 2023, and Oslo last Friday.") == (
        "I visited Rome, and Oslo."
    )


@given(st.dates(datetime.date(1990, 1, 1), datetime.date(2040, 1, 1)), st.integers(1, 300))
def test_days_are_counted_back_from_the_day_of_telling(told_on, days):
    expected = told_on - datetime.timedelta(days=days)
    found = find_dates(f"it was {days} days ago", told_on)
    assert [mention.date for mention in found] == [expected.isoformat()]
    written = f"on {expected.day} {expected:%B} {expected.year}"
    assert [mention.date for mention in find_dates(written)] == [expected.isoformat()]
    assert remove_dates(f"I came {written}.") == "I came."


@given(st.dates(datetime.date(1990, 1, 1), datetime.date(2040, 1, 1)))
def test_last_weekday_is_within_the_last_seven_days(told_on):
    date = datetime.date.fromisoformat(find_dates("last Tuesday", told_on)[0].date)
    assert date.weekday() == 1
    assert 1 <= (told_on - date).days <= 7
