"""Program tools: they solve what they claim, say so where they cannot, and execute nothing."""

from __future__ import annotations

import asyncio
import importlib.util
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlroute.pool.tools import CANNOT, TOOLS, ToolCandidate, answer_with_tool, find_dates, read_line
from rlroute.types import Call, Candidate, FailureKind, Prices, Query, RLRouteError

needs_reasoning_gym = pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is None, reason="reasoning-gym is absent"
)

SOLVED: list[tuple[str, str, dict[str, Any]]] = [
    ("calculator", "chain_sum", {}),
    ("calculator", "products", {"max_digits": 3}),
    ("calculator", "gcd", {}),
    ("calculator", "lcm", {}),
    ("calculator", "simple_equations", {}),
    ("calculator", "fraction_simplification", {"styles": ["plain"]}),
    ("calculator", "decimal_chain_sum", {}),
    ("word_tool", "letter_counting", {}),
    ("word_tool", "word_sorting", {}),
    ("word_tool", "spell_backward", {}),
    ("word_tool", "word_sequence_reversal", {}),
    ("word_tool", "isomorphic_strings", {}),
    ("word_tool", "ransom_note", {}),
    ("date_tool", "calendar_arithmetic", {"tasks": ["is_leap_year", "weekday_offset"]}),
    ("date_tool", "calendar_arithmetic", {"tasks": ["weekday_of_date"]}),
    ("date_tool", "time_intervals", {"task_types": ["date"]}),
]


@needs_reasoning_gym
@pytest.mark.parametrize(("tool", "generator", "settings"), SOLVED)
def test_a_tool_solves_the_generators_it_is_made_for(
    tool: str, generator: str, settings: dict[str, Any]
) -> None:
    from rlroute.data.reasoning_tasks import grade_answer, make_queries

    for query in make_queries(generator, 1, settings, count=25, seed=3):
        assert grade_answer(query, answer_with_tool(tool, query.text)) == 1.0, query.text


@needs_reasoning_gym
@pytest.mark.parametrize(
    "generator", ["syllogism", "coin_flip", "needle_haystack", "self_reference"]
)
def test_no_tool_solves_what_none_is_made_for(generator: str) -> None:
    from rlroute.data.reasoning_tasks import make_queries

    for query in make_queries(generator, 1, {}, count=10, seed=3):
        assert {answer_with_tool(tool, query.text) for tool in TOOLS} <= {CANNOT, "0", "1"}


@pytest.mark.parametrize(
    ("tool", "text", "answer"),
    [
        ("calculator", "State the answer: 4 - 1 - 7 =", "-4"),
        ("calculator", "What is (2 + 3) * -4?", "-20"),
        ("calculator", "Compute 1.5 + 0.25.", "1.75"),
        ("calculator", "Calculate 007 + 1", "8"),
        ("calculator", "Solve for x: 2*x + 3 = 4*x - 5", "4"),
        ("calculator", "Solve for x: 2*x = 3", "1.5"),
        ("calculator", "Calculate 3 / 0", CANNOT),
        ("calculator", "Solve for x: x*x = 4", CANNOT),
        ("calculator", "Solve for x: x + y = 4", CANNOT),
        ("calculator", "Compute 9**9**9**9", CANNOT),
        ("calculator", 'How many times does the letter "a" appear in the text: "banana"?', CANNOT),
        ("word_tool", 'How many times does the letter "a" appear in the text: "Banana A"?', "4"),
        ("word_tool", "4 - 1 =", CANNOT),
        ("date_tool", "Is 1900 a leap year? Answer with Yes or No.", "No"),
        ("date_tool", "What day of the week was January 15, 2024?", "Monday"),
        ("date_tool", "Which weekday was it 2 days before Wednesday, March 13, 2024?", "Monday"),
        ("date_tool", "From 23:50 to 00:20. Please answer in HH:MM.", "00:30"),
        (
            "date_tool",
            "From 2024-02-28 10:00 to 2024-03-01 09:30. Answer in D days, HH:MM:SS.",
            "1 days, 23:30:00",
        ),
        (
            "date_tool",
            "From 2024-02-28 10:00 +0000 to 2024-03-01 09:30 +0300. Answer in D days, HH:MM.",
            CANNOT,
        ),
        ("date_tool", "What day of the week was February 31, 2024?", CANNOT),
    ],
)
def test_answers_and_limits(tool: str, text: str, answer: str) -> None:
    assert answer_with_tool(tool, text) == answer


@given(st.text(), st.sampled_from(sorted(TOOLS)))
def test_any_text_gets_an_answer_and_no_exception(text: str, tool: str) -> None:
    assert isinstance(answer_with_tool(tool, text), str)


@given(
    st.text(alphabet="0123456789+-*/(). x=:", max_size=60), st.sampled_from(["", "Solve for x: "])
)
def test_scrambled_arithmetic_gets_an_answer_and_no_exception(text: str, start: str) -> None:
    assert isinstance(answer_with_tool("calculator", start + text), str)


@given(st.lists(st.tuples(st.sampled_from("+-*"), st.integers(0, 999)), min_size=1, max_size=6))
def test_expressions_have_their_exact_value(terms: list[tuple[str, int]]) -> None:
    total, product = Fraction(0), Fraction(0)
    for operator, number in terms:  # products bind first: keep the open one apart from the sum
        if operator == "*":
            product *= number
        else:
            total, product = total + product, Fraction(number if operator == "+" else -number)
    text = "0" + "".join(f" {operator} {number}" for operator, number in terms)
    assert read_line(text, "") == (Fraction(0), total + product)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "x.real",
        "x if x else 1",
        "[1][0]",
        "1 << 9",
        "2 ** 3",
        "x",
        "1e999999999",
        "0xff",
    ],
)
def test_nothing_but_arithmetic_is_read(text: str) -> None:
    assert read_line(text, "") is None


def test_dates_are_found_in_the_forms_that_are_common() -> None:
    forms = ["2024-01-05", "01/05/2024", "January 5, 2024", "Fri Jan 05 2024", "05 January 2024"]
    assert {str(find_dates(f"on {form}.")[0]) for form in forms} == {"2024-01-05"}


def ask(tool: str, *texts: str) -> list[Any]:
    candidate = Candidate("t", Prices(0.0, 0.0, per_call=0.5), "tool")
    calls = [Call("t", Query(str(i), text), text) for i, text in enumerate(texts)]
    return asyncio.run(ToolCandidate(candidate, tool).ask_many(calls))


def test_a_tool_that_cannot_answer_is_wrong_and_is_paid() -> None:
    right, wrong = ask("calculator", "1 + 1 =", "Who likes pandas?")
    assert (right.text, right.score, right.cost_usd) == ("2", None, 0.5)
    assert (wrong.text, wrong.score, wrong.cost_usd) == (CANNOT, 0.0, 0.5)
    assert wrong.failure is None


def test_a_program_that_breaks_down_is_a_failure_and_not_a_score(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def divide(text: str) -> str:
        return str(1 // len(text))

    monkeypatch.setitem(TOOLS, "divider", (divide,))
    fine, broken = ask("divider", "a", "")
    assert fine.text == "1"
    assert (broken.failure, broken.score, broken.cost_usd) == (FailureKind.SERVER, None, 0.0)


def test_an_unknown_tool_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RLRouteError, match="calculator, date_tool, word_tool"):
        ask("oracle", "?")
