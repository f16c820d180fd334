"""The format term: the worst fault of the policy's own text counts, replies never do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rlroute.parsing import (
    AnswerAction,
    CallAction,
    Fault,
    ParsedChunk,
    Unusable,
    index_names,
    parse_chunk,
)
from rlroute.rewards.format import SEVERITIES, FormatRule, score_format
from rlroute.types import Candidate, Prices

NAMES = index_names([Candidate("qwen", Prices(0.1, 0.3))])
CALL = "<think>who knows?</think><search>qwen:Q?</search>"
ANSWER = "<think>I know</think><answer>X</answer>"
GRADED = FormatRule(severe=1.0, medium=0.5, small=0.25)


def score(*chunks: str, answered: bool = True, rule: FormatRule = GRADED) -> float:
    return score_format(
        [parse_chunk(chunk, NAMES, require_think=True) for chunk in chunks], answered, rule
    )


def test_an_episode_in_good_form_costs_nothing() -> None:
    assert score(ANSWER) == 0
    assert score(CALL, CALL, ANSWER) == 0
    assert str(score(ANSWER)) == "0.0"  # and not minus zero


@pytest.mark.parametrize(
    ("chunk", "graded"),
    [
        ("I do not know.", -1.0),
        ("<think>who</think><search>qwen:Q?</search><information>X</information>", -1.0),
        ("<think>who<search>qwen:Q?</search>", -1.0),
        ("<think>who</think><search>qwen Q?</search>", -0.5),
        ("<think>who</think><search>gpt:Q?</search>", -0.5),
        ("<think>who</think><search>qwen: </search>", -0.5),
        ("<think>who</think><search>LLM-Name:Your-Query</search>", -0.5),
        ("<search>qwen:Q?</search>", -0.25),
        ("<think>...</think><search>qwen:Q?</search>", -0.25),
        ("<think>who</think><search>qwen:Q?</search> well", -0.25),
    ],
)
def test_one_fault_marks_the_episode_and_grades_are_an_option(chunk: str, graded: float) -> None:
    assert score(chunk, ANSWER) == graded
    assert score(ANSWER.replace("X", ""), chunk, rule=FormatRule()) == -1
    assert score(chunk, ANSWER, rule=FormatRule()) == -1


def test_no_answer_is_severe_unless_moved() -> None:
    assert score(CALL, answered=False) == score(answered=False) == -1
    assert score(CALL, answered=False, rule=FormatRule(small=0.1, unanswered="small")) == -0.1
    assert score(CALL, answered=False, rule=FormatRule(unanswered="none")) == 0


def test_the_worst_fault_counts_once() -> None:
    assert score("<search>qwen Q?</search>", "<search>qwen:Q?</search>", ANSWER) == -0.5


def test_a_call_that_the_ledger_refuses_is_no_fault_of_form_unless_made_one() -> None:
    chunk = ParsedChunk(Unusable(Fault.UNAFFORDABLE), (Fault.UNAFFORDABLE,))
    assert score_format([chunk], True, FormatRule()) == 0
    assert score_format([chunk], True, FormatRule(classes={"unaffordable": "small"})) == -1


def test_a_fault_can_be_moved_to_another_class() -> None:
    unknown = "<think>who</think><search>gpt:Q?</search>"
    for severity, expected in (("severe", -1), ("small", -0.25), ("none", 0)):
        moved = GRADED.model_copy(update={"classes": {"unknown_name": severity}})
        assert score(unknown, ANSWER, rule=moved) == expected


def test_every_fault_of_the_parser_has_a_class() -> None:
    assert set(SEVERITIES) == set(Fault)


@given(
    faults=st.lists(st.lists(st.sampled_from(Fault), max_size=3), max_size=5),
    answered=st.booleans(),
    more=st.sampled_from(Fault),
)
def test_another_fault_never_improves_the_form(
    faults: list[list[Fault]], answered: bool, more: Fault
) -> None:
    chunks = [ParsedChunk(CallAction("qwen", "Q?"), tuple(some)) for some in faults]
    value = score_format(chunks, answered, GRADED)
    assert -1 <= value <= 0
    worse = [*chunks, ParsedChunk(AnswerAction("X"), (more,))]
    assert score_format(worse, answered, GRADED) <= value
    assert score_format(chunks, answered, FormatRule()) in (0, -1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"severe": 0.1}, "must not rise"),
        ({"severe": 1, "medium": 0.2, "small": 0.3}, "must not rise"),
        ({"severe": 2}, "less than or equal to 1"),
        ({"classes": {"spelling": "small"}}, "no such fault 'spelling'.*no_tag"),
        ({"classes": {"no_tag": "tiny"}}, "'severe', 'medium', 'small' or 'none'"),
    ],
)
def test_a_rule_without_sense_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FormatRule.model_validate(options)
