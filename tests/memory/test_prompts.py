"""What models are asked: the parts, the styles, and what a prompt may not show."""

from __future__ import annotations

from dataclasses import replace

import pytest
from memory_example import CHUNKS, EXTRACTORS, make_question, make_spec

from rlroute.memory.base import ModuleInput
from rlroute.memory.prompts import INSTRUCTIONS, write_answer_prompt, write_module_prompt

NOTES = {"entity": ("Anna - owns - a cat (said 2023-05-08)",), "topic": ()}
STYLES = ("direct", "cot", "reflect")


def write(name, role, style="direct", question=None):
    question = question or make_question()
    return write_module_prompt(make_spec(name, role), style, ModuleInput(question, CHUNKS, NOTES))


def test_the_parts_stand_in_their_order():
    text = write("entity", "extract")
    parts = ["Task:", "Criteria: Criteria of entity.", "Way of working:", "Input:", "Output:"]
    places = [text.index(part) for part in [*parts, "Question: What is q1?", "<piece"]]
    assert places == sorted(places)


def test_chunks_are_numbered_and_dated():
    text = write("filter", "filter")
    assert '<piece number="5" date="2023-05-05">\nAnna said "fact 4"\n</piece>' in text
    assert "holds 5 whole numbers from 0 to 10" in text


def test_a_chunk_without_a_date_has_no_date_attribute():
    work = ModuleInput(make_question(), (replace(CHUNKS[0], when=""),))
    assert '<piece number="1">' in write_module_prompt(make_spec("e", "extract"), "direct", work)


def test_a_summary_sees_the_notes_and_no_chunk():
    text = write("summary", "summary")
    assert '<notes from="entity">\nAnna - owns - a cat (said 2023-05-08)\n</notes>' in text
    assert '<notes from="topic">\n(none)\n</notes>' in text
    assert "fact 0" not in text


def test_the_scales_of_a_filter_are_those_of_the_method():
    shared = "10 essential, 7-9 clearly helpful, 4-6 partly helpful, 1-3 weak, 0 irrelevant"
    reflect = "9-10 essential, 6-8 clearly helpful, 3-5 partly helpful, 1-2 weak, 0 irrelevant"
    texts = [write("filter", "filter", style) for style in STYLES]
    assert [shared in text for text in texts] == [True, True, False]
    assert [reflect in text for text in texts] == [False, False, True]


@pytest.mark.parametrize("role", ["filter", "extract", "summary"])
def test_styles_ask_for_more_and_more_words(role):
    lengths = [len(write("entity", role, style).split()) for style in STYLES]
    assert lengths == sorted(set(lengths))


@pytest.mark.parametrize("role", ["filter", "extract", "summary"])
def test_reflect_asks_for_a_plan_its_execution_and_a_check(role):
    text = write("entity", role, "reflect")
    places = [text.index(word) for word in ("PLAN:", "ACT:", "REFLECT:", "<answer>")]
    assert places == sorted(places)


def test_extractors_are_asked_for_the_grammar_of_notes():
    assert "SUBJECT - RELATION - OBJECT (CONTEXT)" in write("entity", "extract")


def test_every_known_module_has_criteria_of_its_own():
    assert set(INSTRUCTIONS) == {"filter", *EXTRACTORS, "summary"}
    assert len(set(INSTRUCTIONS.values())) == 5


def test_the_answering_model_sees_the_summary_and_the_question_only():
    text = write_answer_prompt(make_question(), "Anna owns a cat.")
    assert "<summary>\nAnna owns a cat.\n</summary>\n\nQuestion: What is q1?" in text
    assert "Asked on" not in text


def test_a_question_that_was_asked_on_a_day_says_so_everywhere():
    question = replace(make_question(), asked_on="2023-06-01")
    for text in (write("entity", "extract", "cot", question), write_answer_prompt(question, "")):
        assert "Asked on: 2023-06-01\nQuestion: What is q1?" in text
