"""Grades of answers about histories: the sheet's table F, number by number, and their bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlroute.rewards.memory_answers import (
    ERROR_REPLY,
    grade_partial_f1,
    grade_stemmed_f1,
    list_stems,
)

# number, answer, gold, F1 of the whole texts, F1 part by part
TABLE_F = [
    ("F1", "7 May 2023", "7 May 2023", 1.0000, 1.0000),
    ("F2", "May 7, 2023", "7 May 2023", 1.0000, 0.8000),
    ("F3", "She went camping", "camped", 0.5000, 0.5000),
    ("F4", "running", "runs", 1.0000, 1.0000),
    ("F5", "the cats and dogs", "cat dog", 1.0000, 1.0000),
    ("F6", "yes", "no", 0.0000, 0.0000),
    ("F7", "Yes, it is", "yes", 0.5000, 1.0000),
    ("F8", "", "x", 0.0000, 0.0000),
    ("F9", "API Request Error", "API error", 0.0000, 0.0000),
    ("F10", "New York, London", "London", 0.5000, 1.0000),
    ("F11", "1,000 dollars", "1000 dollar", 1.0000, 0.5000),
    ("F12", "pottery classes on Tuesday", "pottery class", 0.6667, 0.6667),
    ("F13", "A1, B1, C1", "B1, D1", 0.4000, 0.5000),
    (
        *("F14", "pottery, camping, painting", "pottery, camping, painting, swimming"),
        *(0.8571, 0.7500),
    ),
    ("F15", "pottery camping", "pottery, camping", 1.0000, 0.6667),
    ("F16", "Oliver, Luna, Bailey", "Bailey, Oliver, Luna", 1.0000, 1.0000),
    ("F17", "Sweden", "Her home country, Sweden", 0.4000, 0.5000),
]

WORDS = st.sampled_from(["cat", "dogs", "running", "Sweden", "2023", "blue", "and", "the", "!"])
TEXTS = st.lists(WORDS, max_size=6).map(" ".join)


@pytest.mark.parametrize(
    ("answer", "gold", "whole", "partial"),
    [row[1:] for row in TABLE_F],
    ids=lambda value: str(value),
)
def test_the_table_of_f1_is_met_number_by_number(
    answer: str, gold: str, whole: float, partial: float
) -> None:
    assert round(grade_stemmed_f1(answer, gold), 4) == whole
    assert round(grade_partial_f1(answer, gold), 4) == partial


def test_a_text_is_read_without_commas_punctuation_and_dropped_words() -> None:
    assert list_stems("The U.S.A., and 1,234 Ponies!") == ["usa", "1234", "poni"]
    assert list_stems("an Andes trip") == ["and", "trip"]  # words go whole and before stemming


def test_stems_count_with_repetition() -> None:
    assert grade_stemmed_f1("red red", "red") == pytest.approx(2 / 3)
    assert grade_stemmed_f1("red red", "reds red") == 1.0


def test_the_error_reply_grades_zero_even_against_itself() -> None:
    assert grade_stemmed_f1(f" {ERROR_REPLY}\n", ERROR_REPLY) == 0.0
    assert grade_partial_f1(ERROR_REPLY, ERROR_REPLY) == 0.0


def test_blank_parts_of_a_list_change_nothing() -> None:
    assert grade_partial_f1("tea,, milk,", "tea, , milk,") == 1.0
    assert grade_partial_f1("tea", ",") == grade_partial_f1(",", "tea") == 0.0


@given(answer=TEXTS, gold=TEXTS)
def test_f1_is_symmetric_and_lies_in_the_unit_interval(answer: str, gold: str) -> None:
    assert 0.0 <= grade_stemmed_f1(answer, gold) <= 1.0
    assert grade_stemmed_f1(answer, gold) == grade_stemmed_f1(gold, answer)
    assert grade_stemmed_f1(answer, answer) == float(bool(list_stems(answer)))


@given(answer=st.text(), gold=st.text())
def test_any_two_texts_have_grades_in_the_unit_interval(answer: str, gold: str) -> None:
    assert 0.0 <= grade_stemmed_f1(answer, gold) <= 1.0
    assert 0.0 <= grade_partial_f1(answer, gold) <= 1.0


@given(parts=st.lists(WORDS.filter(str.isalpha), min_size=1, max_size=5), data=st.data())
def test_the_order_of_the_parts_of_a_list_does_not_count(
    parts: list[str], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(parts))
    assert grade_partial_f1(", ".join(shuffled), "tea, cat") == pytest.approx(
        grade_partial_f1(", ".join(parts), "tea, cat")
    )
