"""The scripted reader: what it understands of a summary, and what it does not."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlroute.memory.base import AnswerRun, MemoryQuestion
from rlroute.memory.lexicon import RELATIONS
from rlroute.memory.reader import ScriptedReader, cut_words
from rlroute.memory.world import generate_memory, grade
from rlroute.memory.world_config import GeneratedMemoryConfig, HistoryCounts
from rlroute.types import Query

READER = ScriptedReader()
HOME = "Where does Anna live now?"
WHEN = "When did Anna visit Rome?"
FIRST = "Which did Anna visit first, Rome or Oslo?"
LIST = "Which places did Anna visit?"
COUNT = "How many places did Anna visit?"


@pytest.mark.parametrize(
    ("question", "summary", "answer"),
    [
        (HOME, "Anna - lives in - Graz (said 2023-01-02)", "Graz"),
        (HOME, "ANNA - Lives  in - Graz", "Graz"),
        (HOME, "3. Anna - resides in - Graz.", "Graz"),
        (HOME, "- Boris - lives in - Graz", "unknown"),
        (HOME, "Anna - works for - Graz", "unknown"),
        (HOME, "Anna lives in Graz", "unknown"),
        (
            HOME,
            "Anna - lives in - Lyon (said 2023-03-01)\nAnna - lives in - Graz (said 2023-02-01)",
            "Lyon",
        ),
        (HOME, "Anna - lives in - Lyon\nAnna - lives in - Graz", "Graz"),
        (HOME, "Anna - lives in - Lyon (said 2023-03-01)\nAnna - lives in - Graz", "Lyon"),
        (HOME, 'Anna said "So, I live in Graz. More later."', "Graz"),
        (HOME, 'Boris said "I live in Graz."', "unknown"),
        (HOME, 'Anna said "My home is in Graz."', "unknown"),
        (HOME, 'Anna - lives in - Lyon\nAnna said "I live in Graz."', "Lyon"),
        (WHEN, "Anna - visited - Rome (on 2023-05-05)", "2023-05-05"),
        (WHEN, "Anna - visited - Rome (said 2023-05-05)", "unknown"),
        (WHEN, "Anna - visited - Rome (on 2023-02-31)", "unknown"),
        (WHEN, "Anna - visited - Oslo (on 2023-05-05)", "unknown"),
        (
            FIRST,
            "Anna - visited - Rome (on 2023-05-05)\nAnna - visited - Oslo (on 2023-04-05)",
            "Oslo",
        ),
        (FIRST, "Anna - visited - Rome (on 2023-05-05)", "unknown"),
        (LIST, "Anna - visited - Rome; Oslo; rome", "rome; Oslo"),
        (LIST, "Anna - visited - Rome; Oslo\nAnna - visited - Lima", "Rome; Oslo"),
        (COUNT, "Anna - visited - Rome; Oslo", "2"),
        (COUNT, "Anna - visited - Rome\nAnna - visited - Oslo", "1"),
        (COUNT, "", "unknown"),
        ("What is Anna's blood type?", "Anna - lives in - Graz", "unknown"),
    ],
)
def test_a_summary_is_read_as_the_table_says(question: str, summary: str, answer: str) -> None:
    assert READER.answer(question, summary) == answer


def test_notes_beyond_the_attention_are_not_read() -> None:
    note = "Anna - lives in - Graz"
    assert ScriptedReader(6).answer(HOME, note) == "Graz"
    assert ScriptedReader(5).answer(HOME, note) == "unknown"
    assert READER.answer(HOME, "\n".join(["word " * 400, note])) == "unknown"


def test_words_are_cut_and_lines_kept() -> None:
    assert cut_words("a b\nc d", 3) == "a b\nc"
    assert cut_words("a b\n", 2) == "a b\n"


def test_gold_notes_answer_every_question_of_a_world() -> None:
    counts = HistoryCounts(train=3, val=0, test=0)
    world = generate_memory(GeneratedMemoryConfig(histories=counts))
    for question in world.data.questions["train"]:
        facts = [fact for turn in question.evidence for fact in world.facts[turn]]
        lines = [
            f"{f.subject} - {RELATIONS[f.relation].phrase} - {f.object} "
            + (f"(on {f.happened_on})" if f.happened_on else f"(said {f.said_on})")
            for f in facts
        ]
        if question.query.task == "aggregate":
            head, things = lines[0].rsplit(" - ", 1)[0], "; ".join(f.object for f in facts)
            lines = [f"{head} - {things}"]
        answer = READER.answer(question.query.text, "\n".join(lines))
        assert grade(question, answer) == 1, question


def test_answers_are_free_and_in_order() -> None:
    questions = [MemoryQuestion(Query(text, text), "h") for text in (HOME, COUNT)]
    summaries = ["Anna - lives in - Graz", "Anna - visited - Rome"]
    runs = asyncio.run(READER.answer_many(questions, summaries))
    assert runs == [AnswerRun("Graz"), AnswerRun("1")]


def test_the_fingerprint_changes_with_the_attention() -> None:
    assert READER.fingerprint() == ScriptedReader().fingerprint()
    assert READER.fingerprint() != ScriptedReader(10).fingerprint()


@given(st.text(max_size=80), st.sampled_from([HOME, WHEN, FIRST, LIST, COUNT]))
def test_no_text_breaks_the_reader(summary: str, question: str) -> None:
    assert READER.answer(question, summary)
