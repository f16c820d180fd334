"""Graders: a reference scores 1, nothing scores 0, a failed call has no grade."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlroute.rewards.grading import (
    GRADES,
    grade_choice,
    grade_exact,
    grade_f1,
    grade_numeric,
    grade_squad_exact,
    grade_squad_f1,
    normalise_answer,
    normalise_squad_answer,
    read_choice,
    read_number,
)

GOLD = {
    **dict.fromkeys(("exact", "f1", "squad_exact", "squad_f1"), "The Eiffel Tower"),
    "numeric": "-1,234.5",
    "choice": "B",
}


@pytest.mark.parametrize("name", GRADES)
def test_gold_scores_one_and_empty_zero(name: str) -> None:
    references = (GOLD[name], GOLD[name])
    assert GRADES[name](GOLD[name], references) == 1.0
    assert GRADES[name]("", references) == 0.0
    assert GRADES[name]("   \n", references) == 0.0


@given(reference=st.text().filter(str.strip), answer=st.text())
def test_grades_lie_in_the_unit_interval_and_gold_is_best(reference: str, answer: str) -> None:
    for grade in (grade_exact, grade_f1, grade_squad_exact, grade_squad_f1):
        assert grade(reference, [reference]) == pytest.approx(1.0)
        assert 0.0 <= grade(answer, [reference]) <= 1.0
    for grade in (grade_numeric, grade_choice):
        assert grade(answer, [reference]) in (0.0, 1.0)


def test_normalisation_drops_case_articles_punctuation_and_blanks() -> None:
    assert normalise_answer("  The  U.S.A.,\n a place ") == "u s place"
    assert grade_exact("the eiffel tower!", ["Eiffel Tower", "no"]) == 1.0
    assert grade_exact("Eiffel", ["Eiffel Tower"]) == 0.0
    assert grade_exact("The", ["the"]) == 1.0
    assert grade_exact("a", ["the"]) == 0.0


def test_token_f1_is_the_harmonic_mean_of_precision_and_recall() -> None:
    assert grade_f1("big red dog", ["red dog barks loud"]) == pytest.approx(2 * 2 / (3 + 4))
    assert grade_f1("red red", ["red"]) == pytest.approx(2 / 3)
    assert grade_f1("cat", ["dog", "cat"]) == 1.0


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 3 + 4 = 7.", "7"),
        ("It is $1,234.50 in all", "1234.50"),
        ("x = -3", "-3"),
        ("5-3", "3"),
        ("\u22122.5", "-2.5"),
        ("1e-3", "0.001"),
        ("3/4", "0.75"),
        ("50%", "50"),
        (".5", "0.5"),
        ("none", None),
        ("1/0", None),
    ],
)
def test_the_last_number_is_read(text: str, number: str | None) -> None:
    found = read_number(text)
    assert (None if found is None else float(found)) == (None if number is None else float(number))


def test_whole_numbers_are_compared_exactly_and_others_nearly() -> None:
    assert grade_numeric("12345678", ["12345679"]) == 0.0
    assert grade_numeric("0.33333333", ["1/3"]) == 1.0
    assert grade_numeric("0.333", ["1/3"]) == 0.0
    assert grade_numeric("7.0", ["7"]) == 1.0
    assert grade_numeric("1e999", ["1e998"]) == 0.0


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("b", "B"),
        ("(C).", "C"),
        ("A) is wrong. The answer is (D) because", "D"),
        ("Answer: **B**", "B"),
        (r"thus \boxed{E}", "E"),
        ("B. Because it is", "B"),
        ("A dog is an animal", None),
        ("I do not know", None),
        ("", None),
    ],
)
def test_the_chosen_letter_is_read(text: str, letter: str | None) -> None:
    assert read_choice(text) == letter


@pytest.mark.parametrize(
    ("answer", "reference", "exact", "f1"),
    [
        ("The Paris.", "paris", 1, 1.0),
        ("Paris, France", "Paris", 0, 0.6667),
        ("U.S.A.", "USA", 1, 1.0),
        ("twenty-one", "twenty one", 0, 0.0),
        ("Beyonc\u00e9", "Beyonce", 0, 0.0),
        ("the city of Paris", "Paris France", 0, 0.4),
        ("New York City", "New York", 0, 0.8),
        ("a b c", "c b a d", 0, 0.8),
        ("yes", "no", 0, 0.0),
        ("yes it is", "yes", 0, 0.0),
        ("no", "No.", 1, 1.0),
        ("", "Paris", 0, 0.0),
        ("Barack Hussein Obama", "Barack Obama", 0, 0.8),
        ("1990s", "1990", 0, 0.0),
        ("an apple and a pear", "apple and pear", 1, 1.0),
        ("paris paris", "paris", 0, 0.6667),
    ],
    ids=[f"M{number}" for number in range(1, 17)],
)
def test_squad_grades_equal_router_r1s(answer: str, reference: str, exact: int, f1: float) -> None:
    assert grade_squad_exact(answer, [reference]) == exact
    assert grade_squad_f1(answer, [reference]) == pytest.approx(f1, abs=5e-5)


def test_the_two_normalisations_differ_in_what_punctuation_becomes() -> None:
    assert (normalise_answer("twenty-one"), normalise_squad_answer("twenty-one")) == (
        "twenty one",
        "twentyone",
    )
    assert (grade_f1("twenty-one", ["twenty one"]), grade_f1("yes it is", ["yes"])) == (1.0, 0.5)
    assert normalise_squad_answer("The") == "the"
    assert grade_squad_exact("", ["The"]) == 0.0


def test_the_best_reference_counts_and_a_closed_answer_among_them_blocks_no_other() -> None:
    assert grade_squad_exact("big apple", ["New York", "the Big Apple"]) == 1.0
    assert grade_squad_f1("New York City", ["no", "New York", "NYC"]) == pytest.approx(0.8)
