"""LoCoMo: ten conversations of many sessions, as `locomo10.json` of its authors holds them.

An item has `sample_id`, `conversation` (`session_N`: turns with `speaker`, `dia_id`, `text` and
perhaps `blip_caption`; `session_N_date_time`) and `qa` (`question`, `answer`, `evidence`,
`category`). Categories become kinds of question: 1 multi-hop, 2 temporal, 3 open-domain, 4
single-hop; 5 (adversarial) is left out. The gold answer of category 3 ends at its first semicolon.
Multi-hop answers are graded by `grade_partial_f1`, others by `grade_stemmed_f1`.

The split goes by place in the file: conversations 0-5 train, 6-7 val, the rest test. Evidence that
names no turn of its conversation, as the file has in places, is left out; ids that stand in one
text ("D8:6; D9:17") are told apart.

What it leaves out: summaries, observations and events, and the order in which the original deals
questions to its updates. Source: Maharana et al., 2024; BudgetMem (arXiv 2602.06025) for the use.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from rlroute.config import StrictModel, parse_config
from rlroute.memory.base import History, MemoryData, MemoryQuestion, Session, Turn
from rlroute.memory.dataset_files import (
    FileModel,
    Text,
    group_questions,
    read_items,
    read_when,
    write_number,
)
from rlroute.rewards.memory_answers import grade_partial_f1, grade_stemmed_f1
from rlroute.types import Query, RLRouteError, SplitName

MULTI_HOP, OPEN_DOMAIN, ADVERSARIAL = 1, 3, 5
KINDS = {MULTI_HOP: "multi-hop", 2: "temporal", OPEN_DOMAIN: "open-domain", 4: "single-hop"}

SESSION_KEY = re.compile(r"session_(\d+)")
TURN_ID = re.compile(r"D(\d+):(\d+)")


class LocomoConfig(StrictModel):
    """The file, and how many of its conversations are train and val; the rest are test."""

    kind: Literal["locomo"]
    path: Path
    train_conversations: int = Field(default=6, ge=1)
    val_conversations: int = Field(default=2, ge=1)


class LocomoTurn(FileModel):
    """A turn of a session."""

    speaker: Text
    dia_id: Text
    text: str
    blip_caption: str = ""


class LocomoSession(FileModel):
    """The turns of a session under the name that it has in the file."""

    turns: tuple[LocomoTurn, ...]


class LocomoQuestion(FileModel):
    """A question; adversarial ones have no `answer`."""

    question: Text
    answer: Annotated[str | None, BeforeValidator(write_number)] = None
    category: int = Field(ge=1, le=5)
    evidence: tuple[str, ...] = ()

    @model_validator(mode="after")
    def check_answer(self) -> LocomoQuestion:
        """Refuse a question that is used and has no answer."""
        if self.category != ADVERSARIAL and not (self.answer or "").strip():
            raise ValueError("'answer' is missing or empty")
        return self


class LocomoItem(FileModel):
    """A conversation and its questions."""

    sample_id: Text
    conversation: dict[str, Any]
    qa: tuple[LocomoQuestion, ...]


def read_locomo(config: LocomoConfig) -> MemoryData:
    """Read the file.

    Raises:
        RLRouteError: a fault of the file, or too few conversations for three splits.
    """
    items = read_items(config.path)
    val_end = config.train_conversations + config.val_conversations
    if len(items) <= val_end:
        raise RLRouteError(
            f"{config.path}: {len(items)} conversations, of which {config.train_conversations} "
            f"are train and {config.val_conversations} val, leave none for test; set "
            f"train_conversations and val_conversations to fewer"
        )
    histories: dict[str, History] = {}
    questions: list[tuple[SplitName, MemoryQuestion]] = []
    for number, raw in enumerate(items):
        where = f"{config.path}, item {number}"
        item = parse_config(LocomoItem, raw, where)
        if item.sample_id in histories:
            raise RLRouteError(f"{where}: sample_id '{item.sample_id}' stands twice")
        history = read_conversation(where, item.sample_id, item.conversation)
        histories[history.id] = history
        place = (number >= config.train_conversations) + (number >= val_end)
        split: SplitName = ("train", "val", "test")[place]
        questions += [(split, question) for question in read_questions(item, history)]
    return MemoryData("locomo", histories, group_questions(config.path, questions), grade_locomo)


def read_questions(item: LocomoItem, history: History) -> Iterable[MemoryQuestion]:
    """Yield the questions of a conversation that are used, with ids by their place in `qa`."""
    for number, asked in enumerate(item.qa):
        if asked.category == ADVERSARIAL:
            continue
        gold = str(asked.answer)
        if asked.category == OPEN_DOMAIN:
            gold = gold.partition(";")[0]
        query = Query(
            id=f"{item.sample_id}/{number}",
            text=asked.question,
            task=KINDS[asked.category],
            dataset="locomo",
            references=(gold.strip(),),
        )
        yield MemoryQuestion(query, history.id, find_evidence(asked.evidence, history))


def read_conversation(where: str, history_id: str, conversation: dict[str, Any]) -> History:
    """Return the history of a `conversation` object; `where` names its item.

    A date without a session, as the authors' file has, is not read; nor is a session without turns.

    Raises:
        RLRouteError: no session, a session without date, or a fault of a turn.
    """
    matches = [match for key in conversation if (match := SESSION_KEY.fullmatch(key))]
    sessions = []
    for match in sorted(matches, key=lambda match: int(match[1])):
        key = match[0]
        read = parse_config(LocomoSession, {"turns": conversation[key]}, f"{where}, {key}")
        date_key = f"{key}_date_time"
        when = conversation.get(date_key)
        if not isinstance(when, str) or not when.strip():
            raise RLRouteError(f"{where}, conversation: '{date_key}' must be a date as text")
        turns = tuple(
            Turn(turn.dia_id, turn.speaker, turn.text, turn.blip_caption) for turn in read.turns
        )
        if turns:
            sessions.append(Session(read_when(when), turns))
    if not sessions:
        raise RLRouteError(
            f"{where}, conversation: has no turns (they stand under session_1, session_2, ...)"
        )
    return History(history_id, tuple(sessions))


def find_evidence(named: Sequence[str], history: History) -> tuple[str, ...]:
    """Return the ids of the turns that evidence texts name, in their order, each once."""
    turn_ids = (turn.id for part in history.sessions for turn in part.turns)
    id_of_place = {place: turn_id for turn_id in turn_ids for place in list_places(turn_id)}
    found = [id_of_place.get(place) for text in named for place in list_places(text)]
    return tuple(dict.fromkeys(turn_id for turn_id in found if turn_id is not None))


def list_places(text: str) -> list[tuple[int, int]]:
    """Return session and turn of every id such as D8:6 in a text; D8:06 is the same."""
    return [(int(session), int(turn)) for session, turn in TURN_ID.findall(text)]


def grade_locomo(question: MemoryQuestion, answer: str) -> float:
    """Return the F1 of an answer, part by part for a multi-hop question."""
    is_list = question.query.task == KINDS[MULTI_HOP]
    grade = grade_partial_f1 if is_list else grade_stemmed_f1
    return max(grade(answer, gold) for gold in question.query.references)
