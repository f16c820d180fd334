"""Whatever a model writes is read, and what was not written as asked is flagged."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_example import CHUNKS

from rlroute.memory.replies import find_answer, read_answer, read_filter, read_notes, read_summary

PIECES = st.sampled_from(
    [
        "<answer>",
        "</answer>",
        "```json\n",
        "```",
        "[",
        "]",
        "{",
        "}",
        '"',
        "\\ud800",
        "7",
        ", ",
        "\n",
    ]
)
REPLIES = st.one_of(st.text(), st.lists(st.one_of(PIECES, st.text(max_size=4))).map("".join))


def read_ids(text, keep=5):
    reading = read_filter(text, CHUNKS, keep)
    return [int(chunk.id[-1]) for chunk in reading.output], reading.malformed


# --- Answer tags ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<answer>a</answer>", ("a", True)),
        ("I shall use <answer> tags. <answer>a</answer> Done.", ("a", True)),
        ("<answer>draft</answer> no, better: <answer>a</answer>", ("a", True)),
        ("<ANSWER>```json\n[1]\n```</Answer>", ("[1]", True)),
        ("PLAN: x <answer>[1, 2", ("[1, 2", False)),
        ("no tags", ("no tags", False)),
        ("closed </answer>", ("closed </answer>", False)),
        ("", ("", False)),
    ],
)
def test_the_last_pair_of_tags_counts(text, expected):
    assert find_answer(text) == expected


# --- Filter ---------------------------------------------------------------------------------------


def test_chunks_come_by_score_and_ties_in_their_order():
    assert read_ids("<answer>[2, 9, 2, 10, 9]</answer>") == ([3, 1, 4, 0, 2], False)


def test_a_filter_hands_on_the_best_few():
    assert read_ids("<answer>[2, 9, 2, 10, 9]</answer>", keep=2) == ([3, 1], False)


def test_reasoning_before_the_answer_is_not_read():
    assert read_ids("Pieces [1, 2] matter.\n<answer>[0, 0, 0, 0, 1]</answer>", 1) == ([4], False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<answer>[0, 0, 8, 0, 1,]</answer>", [2, 4]),  # repaired
        ("<answer>[0, 0, 8, 0, 1", [2, 4]),
        ("<answer>0, 0, 8, 0, 1</answer>", [2, 4]),  # numbers in the text
        ("piece scores: 0; 0; 8; 0; 1.", [0, 1]),  # "1." is no whole number
        ("<answer>[0, 0, 8]</answer>", [0, 1]),  # too few
        ("<answer>[0, 0, 8, 0, 1, 1]</answer>", [0, 1]),  # too many
        ("<answer>[0, 0, 11, 0, 1]</answer>", [0, 1]),  # no such score
        ("<answer>[0, 0, true, 0, 1]</answer>", [0, 1]),
        ("<answer>[0, 0, NaN, 0, 1]</answer>", [0, 1]),
        ('<answer>{"a": 0, "b": 0, "c": 8, "d": 0, "e": 1}</answer>', [0, 1]),  # another shape
        ("<answer>[[0, 0, 8, 0, 1]]</answer>", [0, 1]),
        ("I cannot do that.", [0, 1]),
        ("", [0, 1]),
    ],
)
def test_a_malformed_filter_reply_is_flagged_and_has_a_fallback(text, expected):
    assert read_ids(text, keep=2) == (expected, True)


# --- Extractors -----------------------------------------------------------------------------------


def test_notes_are_read_as_lines():
    text = '<answer>["Anna - owns - a cat", "Ben - plays\\n  - the harp"]</answer>'
    reading = read_notes(text)
    assert reading.output == ("Anna - owns - a cat", "Ben - plays - the harp")
    assert not reading.malformed


def test_an_empty_list_is_well_formed():
    assert read_notes("<answer>[]</answer>").output == ()
    assert not read_notes("<answer>[]</answer>").malformed


def test_empty_and_repeated_notes_are_left_out():
    assert read_notes('<answer>["a", " ", "a", "b"]</answer>').output == ("a", "b")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('<answer>["a", "b', ("a", "b")),  # repaired
        ("<answer>['a', 'b']</answer>", ("a", "b")),
        ("<answer>Anna owns a cat.</answer>", ("Anna owns a cat.",)),  # the text as one note
        ("There is\nnothing.", ("There is nothing.",)),
        ("", ()),
        ('<answer>{"a": "b"}</answer>', ()),  # another shape
        ('<answer>{"a": "b"</answer>', ()),
        ('<answer>[{"subject": "Anna"}]</answer>', ()),
        ('<answer>["a", 3]</answer>', ("a",)),
    ],
)
def test_malformed_notes_are_flagged_and_keep_the_question(text, expected):
    reading = read_notes(text)
    assert reading.output == expected
    assert reading.malformed


def test_half_a_character_does_not_get_through():
    output = read_notes('<answer>["a \\ud800 b"]</answer>').output
    assert output == ("a ? b",)


# --- Summary and answer ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected", "malformed"),
    [
        ("PLAN: x\n<answer>Anna has a cat.\nIt is old.</answer>", "Anna has a cat.\nIt is old.", 0),
        ('{"response": " Anna has a cat. "}', "Anna has a cat.", 1),
        ("Anna has a cat.", "Anna has a cat.", 1),
        ("<answer>Anna has a", "Anna has a", 1),
        ("<answer></answer>", "", 1),
        ('{"other": "x"}', '{"other": "x"}', 1),
        ("", "", 1),
    ],
)
def test_a_summary_is_the_tagged_text_or_a_fallback(text, expected, malformed):
    reading = read_summary(text)
    assert reading.output == expected
    assert reading.malformed == bool(malformed)


def test_an_answer_is_the_text_or_what_stands_in_tags():
    assert read_answer(" 7 May 2023\n") == "7 May 2023"
    assert read_answer("It is <answer>7 May</answer>.") == "7 May"


# --- Whatever the text ----------------------------------------------------------------------------


@given(REPLIES, st.integers(1, 6))
def test_a_filter_always_hands_on_distinct_chunks(text, keep):
    output = read_filter(text, CHUNKS, keep).output
    assert len(output) == len(set(output)) == min(keep, len(CHUNKS))


@given(REPLIES)
def test_notes_are_always_lines_that_can_be_written(text):
    output = read_notes(text).output
    assert all(line and "\n" not in line and line.encode() for line in output)
    read_summary(text).output.encode()
    read_answer(text).encode()


@given(st.lists(st.integers(0, 10), min_size=5, max_size=5))
def test_well_formed_scores_are_read_as_written(scores):
    ids, malformed = read_ids(f"<answer>{json.dumps(scores)}</answer>")
    assert not malformed
    assert [scores[place] for place in ids] == sorted(scores, reverse=True)


@pytest.mark.parametrize("text", ["[" * 3_000, '["' * 50_000, '{"a":' * 1_500, "{" * 3_000])
def test_deep_nesting_is_malformed_and_nothing_worse(text):
    assert read_notes(text).malformed
    assert read_ids(text, 1) == ([0], True)
