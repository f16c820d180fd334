"""The one parser of what a text policy writes: environment, format reward and router share it.

A chunk is what the policy wrote since it last read something. Its first well-formed pair of search
or answer tags (closed by the same tag, not greedy, across lines) decides what it does:

| chunk holds first                               | action                                         |
| ----------------------------------------------- | ---------------------------------------------- |
| `<search>NAME:QUERY</search>`                   | a call; everything after the first colon is    |
|                                                 | the query, further colons belong to it         |
| `<answer>TEXT</answer>`                         | an answer; an empty one too                    |
| neither, or a search without colon, query or    | unusable, for exactly one fault                |
| known name, or with one of our tags inside      |                                                |

A name is an id or an alias of a candidate, compared in folded case with blanks squeezed; nothing is
guessed from parts of names. Beside the action stand all faults of form in the chunk, so whatever is
judged later is judged on the policy's own text, by the same reading that decided what happened.
Tags are exactly `<think>`, `<search>`, `<information>`, `<answer>` and their closing forms.

What it leaves out: what a fault costs (`rlroute.rewards.format`), and the rules of the original
Router-R1 (`rlroute.router_r1`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, get_args

from rlroute.types import Candidate, RLRouteError

Tag = Literal["think", "search", "information", "answer"]
TAGS: tuple[Tag, ...] = get_args(Tag)
STOP_STRINGS = ("</search>", "</answer>")
PLACEHOLDER_NAME = "LLM-Name"
PLACEHOLDER_QUERY = "Your-Query"

_NAMES = "|".join(TAGS)
ANY_TAG = re.compile(rf"</?(?:{_NAMES})>")
BLOCK = re.compile(rf"<({_NAMES})>(.*?)</\1>", re.DOTALL)
DECIDING_BLOCK = re.compile(r"<(search|answer)>(.*?)</\1>", re.DOTALL)
BLANK_THOUGHT = re.compile(r"[\s.\u2026]*")
TAG_LIKE = re.compile(rf"<(?=\s*/?\s*(?:{_NAMES})|\|)", re.IGNORECASE)


class Fault(StrEnum):
    """What is wrong with a chunk; the values are read by people and, as feedback, by the policy."""

    NO_TAG = "there is no complete search or answer block"
    NO_COLON = "the search block has no colon between name and query"
    UNKNOWN_NAME = "the name before the colon is not in the list"
    EMPTY_QUERY = "there is no query after the colon"
    PLACEHOLDER = "the search block holds the placeholder, not a name and a query"
    NESTED = "a tag stands inside another block"
    EMPTY_ANSWER = "the answer block is empty"
    NO_THINK = "there is no think block before the action"
    BLANK_THINK = "a think block is blank"
    TEXT_OUTSIDE = "text stands before the first or after the last block"
    FORGED_INFORMATION = "information tags may not be written by the policy"
    UNBALANCED = "a tag is opened but not closed, or closed but not opened"
    UNAFFORDABLE = "the call could cost more than what is left"
    NO_CALLS_LEFT = "no call is left"


@dataclass(frozen=True)
class CallAction:
    """A call of a candidate with the query that the policy wrote."""

    candidate_id: str
    text: str


@dataclass(frozen=True)
class AnswerAction:
    """The final answer, trimmed; it may be empty."""

    text: str


@dataclass(frozen=True)
class Unusable:
    """A chunk that neither calls nor answers, and why."""

    fault: Fault


TextAction = CallAction | AnswerAction | Unusable


@dataclass(frozen=True)
class ParsedChunk:
    """What a chunk does, and its faults of form (that of an unusable action included), once each.

    `UNAFFORDABLE` and `NO_CALLS_LEFT` are added by the environment, which knows what is left.
    """

    action: TextAction
    faults: tuple[Fault, ...] = ()


def normalise_name(name: str) -> str:
    """Return a name in folded case with single blanks: what names are compared by."""
    return " ".join(name.casefold().split())


def is_callable_name(name: str) -> bool:
    """Say whether a name can stand before the colon of a call."""
    normalised = normalise_name(name)
    return bool(normalised) and ":" not in name and not ANY_TAG.search(name)


def index_names(candidates: Sequence[Candidate]) -> dict[str, str]:
    """Return every id and alias that can be called, normalised, with its candidate's id.

    Raises:
        RLRouteError: two candidates share an id or another name, one has the placeholder's name,
            or one has no name that can be called.
    """
    names: dict[str, str] = {}
    if len({candidate.id for candidate in candidates}) < len(candidates):
        raise RLRouteError("two candidates share an id")
    for candidate in candidates:
        get_shown_name(candidate)  # refuses a candidate without one
        for name in filter(is_callable_name, (candidate.id, *candidate.aliases)):
            owner = names.setdefault(normalise_name(name), candidate.id)
            if owner != candidate.id:
                raise RLRouteError(f"candidates '{owner}' and '{candidate.id}' share name '{name}'")
    placeholder = names.get(normalise_name(PLACEHOLDER_NAME))
    if placeholder is not None:
        raise RLRouteError(f"candidate '{placeholder}': '{PLACEHOLDER_NAME}' is the placeholder")
    return names


def get_shown_name(candidate: Candidate) -> str:
    """Return the name that prompts show: the id, or the first alias that can be called.

    Raises:
        RLRouteError: neither can be called, because a call's name ends at the first colon.
    """
    for name in (candidate.id, *candidate.aliases):
        if is_callable_name(name):
            return " ".join(name.split())
    raise RLRouteError(
        f"candidate '{candidate.id}' has no name that can be called: add an alias without ':'"
    )


def parse_chunk(chunk: str, names: Mapping[str, str], *, require_think: bool) -> ParsedChunk:
    """Read a chunk; `names` is what `index_names` returned. Never raises, whatever the text."""
    block = DECIDING_BLOCK.search(chunk)
    action: TextAction = Unusable(Fault.NO_TAG)
    faults: list[Fault] = []
    if block is not None:
        action = read_search(block[2], names) if block[1] == "search" else read_answer(block[2])
    if isinstance(action, Unusable):
        faults.append(action.fault)
    elif isinstance(action, AnswerAction) and not action.text:
        faults.append(Fault.EMPTY_ANSWER)
    before = chunk if block is None else chunk[: block.start()]
    faults += find_think_faults(chunk, before, require_think)
    faults += find_tag_faults(chunk, None if block is None else block.end())
    return ParsedChunk(action, tuple(dict.fromkeys(faults)))


def read_search(content: str, names: Mapping[str, str]) -> CallAction | Unusable:
    """Read what stands between the search tags."""
    name, colon, query = content.partition(":")
    name, query = normalise_name(name), query.strip()
    if ANY_TAG.search(content):
        return Unusable(Fault.NESTED)
    if not colon:
        return Unusable(Fault.NO_COLON)
    if name == PLACEHOLDER_NAME.casefold() or query.casefold() == PLACEHOLDER_QUERY.casefold():
        return Unusable(Fault.PLACEHOLDER)
    if not query:
        return Unusable(Fault.EMPTY_QUERY)
    if name not in names:
        return Unusable(Fault.UNKNOWN_NAME)
    return CallAction(names[name], query)


def read_answer(content: str) -> AnswerAction | Unusable:
    """Read what stands between the answer tags."""
    return Unusable(Fault.NESTED) if ANY_TAG.search(content) else AnswerAction(content.strip())


def find_think_faults(chunk: str, before: str, require_think: bool) -> list[Fault]:
    """Look at the think blocks; `before` is the chunk up to the block that decides."""
    thoughts = [content for tag, content in BLOCK.findall(chunk) if tag == "think"]
    faults = []
    if require_think and not any(tag == "think" for tag, _ in BLOCK.findall(before)):
        faults.append(Fault.NO_THINK)
    if any(BLANK_THOUGHT.fullmatch(content) for content in thoughts):
        faults.append(Fault.BLANK_THINK)
    return faults


def find_tag_faults(chunk: str, end: int | None) -> list[Fault]:
    """Look at where the tags stand; `end` is where the block that decides ends."""
    faults = []
    blocks = list(BLOCK.finditer(chunk))
    if any(ANY_TAG.search(block[2]) for block in blocks):
        faults.append(Fault.NESTED)
    first = ANY_TAG.search(chunk)
    if (first is not None and chunk[: first.start()].strip()) or (
        end is not None and chunk[end:].strip()
    ):
        faults.append(Fault.TEXT_OUTSIDE)
    if "<information>" in chunk or "</information>" in chunk:
        faults.append(Fault.FORGED_INFORMATION)
    if any(chunk.count(f"<{tag}>") != chunk.count(f"</{tag}>") for tag in TAGS):
        faults.append(Fault.UNBALANCED)
    return faults


def escape_tags(text: str) -> str:
    """Return a text in which none of our tags remains, whatever its case and inner blanks.

    Only the opening bracket is written `&lt;`; a second pass changes nothing. The marks of chat
    templates that begin with `<|` are broken too: a tokenizer would read them as the end of a turn.
    """
    return TAG_LIKE.sub("&lt;", text)
