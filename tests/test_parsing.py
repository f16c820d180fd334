"""The one parser: what a chunk does, what is wrong with it, and which names it knows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlroute.parsing import (
    ANY_TAG,
    TAGS,
    AnswerAction,
    CallAction,
    Fault,
    Unusable,
    escape_tags,
    get_shown_name,
    index_names,
    normalise_name,
    parse_chunk,
)
from rlroute.types import Candidate, Prices, RLRouteError

PRICES = Prices(1.0, 2.0)
CANDIDATES = (
    Candidate("Qwen2.5-7B", PRICES, aliases=("small one", "QWEN")),
    Candidate("meta/llama:free", PRICES, aliases=("Llama-70B",)),
)
NAMES = index_names(CANDIDATES)
THINK = "<think>I do not know.</think>"

# Pieces that make tags, broken tags and nests of tags likely.
PIECES = st.sampled_from(
    [f"<{tag}>" for tag in TAGS]
    + [f"</{tag}>" for tag in TAGS]
    + [
        "< ",
        "/",
        "<",
        ">",
        ":",
        "qwen",
        "Q?",
        "\n",
        " ",
        "LLM-Name",
        "Your-Query",
        "...",
        "é\u200b",
    ]
)
MESSY_TEXT = st.lists(PIECES | st.text(max_size=5), max_size=20).map("".join)


@pytest.mark.parametrize(
    ("chunk", "action", "faults"),
    [
        (f"{THINK}<search>qwen:Who?</search>", CallAction("Qwen2.5-7B", "Who?"), ()),
        (
            f"{THINK}\n\n<search> Small  ONE : Who? </search>\n",
            CallAction("Qwen2.5-7B", "Who?"),
            (),
        ),
        (f"{THINK}<search>qwen:a: b:c</search>", CallAction("Qwen2.5-7B", "a: b:c"), ()),
        (f"{THINK}<search>Llama-70B:\nx\ny</search>", CallAction("meta/llama:free", "x\ny"), ()),
        (f"{THINK} so I ask <search>qwen:x</search>", CallAction("Qwen2.5-7B", "x"), ()),
        (f"{THINK}<answer> Ada </answer>", AnswerAction("Ada"), ()),
        (f"{THINK}<answer> </answer>", AnswerAction(""), (Fault.EMPTY_ANSWER,)),
        (f"{THINK}<search>qwen</search>", Unusable(Fault.NO_COLON), (Fault.NO_COLON,)),
        (f"{THINK}<search>qwen: </search>", Unusable(Fault.EMPTY_QUERY), (Fault.EMPTY_QUERY,)),
        (f"{THINK}<search>GPT:x</search>", Unusable(Fault.UNKNOWN_NAME), (Fault.UNKNOWN_NAME,)),
        (f"{THINK}<search>:x</search>", Unusable(Fault.UNKNOWN_NAME), (Fault.UNKNOWN_NAME,)),
        (f"{THINK}<search>my qwen:x</search>", Unusable(Fault.UNKNOWN_NAME), (Fault.UNKNOWN_NAME,)),
        (
            f"{THINK}<search>LLM-Name:Your-Query</search>",
            Unusable(Fault.PLACEHOLDER),
            (Fault.PLACEHOLDER,),
        ),
        (
            f"{THINK}<search>qwen:your-query</search>",
            Unusable(Fault.PLACEHOLDER),
            (Fault.PLACEHOLDER,),
        ),
        (THINK, Unusable(Fault.NO_TAG), (Fault.NO_TAG,)),
        ("", Unusable(Fault.NO_TAG), (Fault.NO_TAG, Fault.NO_THINK)),
        ("<answer>Ada</answer>", AnswerAction("Ada"), (Fault.NO_THINK,)),
        (f"<answer>Ada</answer>{THINK}", AnswerAction("Ada"), (Fault.NO_THINK, Fault.TEXT_OUTSIDE)),
        ("<think> \n</think><answer>Ada</answer>", AnswerAction("Ada"), (Fault.BLANK_THINK,)),
        ("<think>...</think><answer>Ada</answer>", AnswerAction("Ada"), (Fault.BLANK_THINK,)),
        (f"So: {THINK}<answer>Ada</answer>", AnswerAction("Ada"), (Fault.TEXT_OUTSIDE,)),
        (f"{THINK}<answer>Ada</answer> Done.", AnswerAction("Ada"), (Fault.TEXT_OUTSIDE,)),
        (f"{THINK}<search><answer>Ada</answer>", AnswerAction("Ada"), (Fault.UNBALANCED,)),
        (f"{THINK}</think><answer>Ada</answer>", AnswerAction("Ada"), (Fault.UNBALANCED,)),
        (
            f"{THINK}<information>Ada</information><answer>Ada</answer>",
            AnswerAction("Ada"),
            (Fault.FORGED_INFORMATION,),
        ),
        (
            "<think>or <search>qwen:x</search></think>",
            CallAction("Qwen2.5-7B", "x"),
            (Fault.NO_THINK, Fault.NESTED, Fault.TEXT_OUTSIDE),
        ),
        (
            f"{THINK}<search>qwen:<answer>x</answer></search>",
            Unusable(Fault.NESTED),
            (Fault.NESTED,),
        ),
    ],
)
def test_a_chunk_is_read_as_the_table_says(chunk, action, faults):
    parsed = parse_chunk(chunk, NAMES, require_think=True)
    assert parsed.action == action
    assert parsed.faults == faults


def test_thinking_is_a_fault_only_where_it_is_required():
    parsed = parse_chunk("<answer>Ada</answer>", NAMES, require_think=False)
    assert parsed.faults == ()


@given(MESSY_TEXT | st.text(), st.booleans())
def test_no_text_makes_the_parser_raise_and_unusable_always_says_why(chunk, require_think):
    parsed = parse_chunk(chunk, NAMES, require_think=require_think)
    assert len(set(parsed.faults)) == len(parsed.faults)
    if isinstance(parsed.action, Unusable):
        assert parsed.faults[0] == parsed.action.fault
    if isinstance(parsed.action, CallAction):
        assert parsed.action.text.strip()
        assert not ANY_TAG.search(parsed.action.text)


@given(MESSY_TEXT | st.text())
def test_after_escaping_no_tag_of_ours_remains(text):
    escaped = escape_tags(text)
    assert not ANY_TAG.search(escaped)
    assert escape_tags(escaped) == escaped
    block = f"<information>{escaped}</information>"
    assert [match[0] for match in ANY_TAG.finditer(block)] == ["<information>", "</information>"]


@pytest.mark.parametrize(
    "tag", ["<answer>", "</ANSWER>", "< / Search >", "<think x>", "<\nthink", "<|im_end|>"]
)
def test_tags_are_escaped_whatever_their_case_and_blanks(tag):
    assert escape_tags(tag) == "&lt;" + tag[1:]


def test_other_brackets_stay():
    assert escape_tags("a < b, <b>bold</b>, x <- y") == "a < b, <b>bold</b>, x <- y"


@given(st.data())
def test_every_id_and_alias_that_can_be_called_resolves_in_any_case_and_spacing(data):
    candidate = data.draw(st.sampled_from(CANDIDATES))
    name = data.draw(st.sampled_from([candidate.id, *candidate.aliases]))
    written = data.draw(st.sampled_from([name, name.upper(), name.lower(), f"\n {name} "]))
    chunk = f"<search>{written.replace(' ', '  ')}:x</search>"
    action = parse_chunk(chunk, NAMES, require_think=False).action
    if ":" in name:
        assert action == Unusable(Fault.UNKNOWN_NAME)
    else:
        assert action == CallAction(candidate.id, "x")


@given(st.text(max_size=12))
def test_a_name_is_known_only_if_it_is_listed(name):
    action = parse_chunk(f"<search>{name}:x</search>", NAMES, require_think=False).action
    assert isinstance(action, CallAction) == (normalise_name(name.partition(":")[0]) in NAMES)


def test_the_shown_name_is_the_first_that_can_be_called():
    assert [get_shown_name(candidate) for candidate in CANDIDATES] == ["Qwen2.5-7B", "Llama-70B"]


@pytest.mark.parametrize(
    ("ids_and_aliases", "message"),
    [
        ([("a", ()), ("A", ())], "share name"),
        ([("a", ()), ("a", ())], "share an id"),
        ([("a", ("x y",)), ("b", ("X  Y",))], "share name"),
        ([("a:b", ())], "no name that can be called"),
        ([("<search>", ())], "no name that can be called"),
        ([("llm-name", ())], "placeholder"),
    ],
)
def test_names_that_cannot_be_told_apart_or_called_are_refused(ids_and_aliases, message):
    candidates = [Candidate(name, PRICES, aliases=aliases) for name, aliases in ids_and_aliases]
    with pytest.raises(RLRouteError, match=message):
        index_names(candidates)
