"""LongMemEval: 500 questions, each about its own history of chats with an assistant.

Two forms are read, told apart item by item:

- the authors' own (`longmemeval_s.json` and its kin): `question_id`, `question_type`, `question`,
  `answer`, `question_date`, and `haystack_sessions` (lists of turns with `role`, `content` and, on
  turns that hold the answer, `has_answer`) with `haystack_dates` and `haystack_session_ids`;
- one converted to LoCoMo's shape, as BudgetMem trains on: `sample_id`, `conversation`, and `qa`
  with `question`, `answer`, `category` 1-6 and `question_date`. Which type has which number is not
  documented, so its kinds are called category-1 to category-6.

The kind of a question is its type; one whose id ends in `_abs` cannot be answered from its history
and is of kind abstention. All are graded by `grade_stemmed_f1`. Evidence are the marked turns.

The authors give no splits: a hash of the id decides, with a question and its `_abs` twin on one
side. `splits` names a JSON file {"train": [...], "val": [...], "test": [...]} of places in the file
(from 0) or ids instead; what it does not name is left out.

What it leaves out: `answer_session_ids` (sessions are no turns). Source: Wu et al., 2025.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, StrictInt, StrictStr, model_validator

from rlroute.config import StrictModel, parse_config
from rlroute.data.text_files import read_utf8
from rlroute.memory.base import History, MemoryData, MemoryQuestion, Session, Turn
from rlroute.memory.dataset_files import (
    FileModel,
    Fractions,
    Text,
    TextOrNumber,
    assign_split_names,
    group_questions,
    read_items,
    read_json,
    read_when,
)
from rlroute.memory.locomo import find_evidence, read_conversation
from rlroute.rewards.memory_answers import grade_stemmed_f1
from rlroute.types import SPLITS, Query, RLRouteError, SplitName

ABSTENTION_MARK = "_abs"
DATE_LENGTH = len("2023-05-30")

QuestionType = Literal[
    "single-session-user",
    "single-session-assistant",
    "single-session-preference",
    "multi-session",
    "temporal-reasoning",
    "knowledge-update",
]


class LongMemEvalConfig(StrictModel):
    """The file, and either a file with its splits or the shares and seed of splits by hash."""

    kind: Literal["longmemeval"]
    path: Path
    splits: Path | None = None
    fractions: Fractions = (0.6, 0.2, 0.2)
    seed: int = 0

    @model_validator(mode="after")
    def check_splits(self) -> LongMemEvalConfig:
        """Refuse shares or a seed beside a file of splits, which would not be read."""
        if self.splits is not None and {"fractions", "seed"} & self.model_fields_set:
            raise ValueError("give 'splits', or 'fractions' and 'seed', not both")
        return self


class PublishedTurn(FileModel):
    """A turn of the authors' form."""

    role: Literal["user", "assistant"]
    content: str
    has_answer: bool | None = None


class PublishedItem(FileModel):
    """An item of the authors' form."""

    question_id: Text
    question_type: QuestionType
    question: Text
    answer: TextOrNumber
    question_date: Text
    haystack_dates: tuple[Text, ...]
    haystack_session_ids: tuple[str, ...]
    haystack_sessions: tuple[tuple[PublishedTurn, ...], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def check_lengths(self) -> PublishedItem:
        """Refuse lists of sessions, dates and ids that do not match."""
        lengths = [len(self.haystack_sessions), len(self.haystack_dates)]
        lengths.append(len(self.haystack_session_ids))
        if len(set(lengths)) > 1:
            raise ValueError(
                "haystack_sessions, haystack_dates and haystack_session_ids must be equally long, "
                f"not {lengths[0]}, {lengths[1]} and {lengths[2]}"
            )
        return self


class ConvertedQuestion(FileModel):
    """A question of the converted form."""

    question: Text
    answer: TextOrNumber
    category: int = Field(ge=1, le=6)
    question_date: str = ""
    evidence: tuple[str, ...] = ()


class ConvertedItem(FileModel):
    """An item of the converted form."""

    sample_id: Text
    conversation: dict[str, Any]
    qa: tuple[ConvertedQuestion, ...]


PlaceOrId = StrictInt | StrictStr


class SplitFile(StrictModel):
    """Places in the data file, or ids, by split."""

    train: tuple[PlaceOrId, ...]
    val: tuple[PlaceOrId, ...]
    test: tuple[PlaceOrId, ...]


Item = tuple[History, list[MemoryQuestion]]


def read_longmemeval(config: LongMemEvalConfig) -> MemoryData:
    """Read the file in either form.

    Raises:
        RLRouteError: a fault of the file or of the file of splits.
    """
    items = [
        read_item(f"{config.path}, item {number}", raw)
        for number, raw in enumerate(read_items(config.path))
    ]
    ids = [history.id for history, _ in items]
    if len(set(ids)) < len(ids):
        twice = next(one for one in ids if ids.count(one) > 1)
        raise RLRouteError(f"{config.path}: id '{twice}' stands twice")
    if config.splits is None:
        keys = [one.removesuffix(ABSTENTION_MARK) for one in ids]
        names = assign_split_names(keys, config.fractions, config.seed)
        split_of: Mapping[str, SplitName] = dict(zip(ids, names, strict=True))
    else:
        split_of = read_splits(config.splits, ids)
    used = [item for item in items if item[0].id in split_of]
    questions = [(split_of[history.id], question) for history, asked in used for question in asked]
    return MemoryData(
        name="longmemeval",
        histories={history.id: history for history, _ in used},
        questions=group_questions(config.path, questions),
        grade=grade_longmemeval,
    )


def read_item(where: str, raw: Any) -> Item:
    """Return the history and the questions of an item in either form."""
    if isinstance(raw, dict) and "haystack_sessions" in raw:
        return read_published(parse_config(PublishedItem, raw, where))
    if isinstance(raw, dict) and "conversation" in raw:
        return read_converted(where, parse_config(ConvertedItem, raw, where))
    raise RLRouteError(
        f"{where}: must be an object with 'haystack_sessions' (the authors' form) or "
        "'conversation' (the form of LoCoMo)"
    )


def read_published(item: PublishedItem) -> Item:
    """Return history and question of the authors' form; a turn's id is SESSION#PLACE:NUMBER.

    The place of the session is in it since a session may stand twice in a history.
    """
    sessions, evidence = [], []
    parts = zip(item.haystack_sessions, item.haystack_dates, item.haystack_session_ids, strict=True)
    for place, (said, date, session_id) in enumerate(parts, start=1):
        turns = []
        for number, turn in enumerate(said, start=1):
            turns.append(Turn(f"{session_id}#{place}:{number}", turn.role, turn.content))
            if turn.has_answer:
                evidence.append(turns[-1].id)
        if turns:
            sessions.append(Session(read_when(date), tuple(turns)))
    abstains = item.question_id.endswith(ABSTENTION_MARK)
    query = Query(
        id=item.question_id,
        text=item.question,
        task="abstention" if abstains else item.question_type,
        dataset="longmemeval",
        references=(item.answer,),
    )
    history = History(item.question_id, tuple(sessions))
    asked_on = read_date(item.question_date)
    return history, [MemoryQuestion(query, history.id, tuple(evidence), asked_on)]


def read_converted(where: str, item: ConvertedItem) -> Item:
    """Return history and questions of the converted form."""
    history = read_conversation(where, item.sample_id, item.conversation)
    questions = []
    for number, asked in enumerate(item.qa):
        query = Query(
            id=f"{item.sample_id}/{number}",
            text=asked.question,
            task=f"category-{asked.category}",
            dataset="longmemeval",
            references=(asked.answer,),
        )
        evidence = find_evidence(asked.evidence, history)
        questions.append(
            MemoryQuestion(query, history.id, evidence, read_date(asked.question_date))
        )
    return history, questions


def read_date(text: str) -> str:
    """Return the day of a date as ISO, without the time; as it is where it is no date."""
    when = read_when(text)
    return when[:DATE_LENGTH] if when != text.strip() else when


def read_splits(path: Path, ids: Sequence[str]) -> dict[str, SplitName]:
    """Return the split of the ids that a file of splits names by place or by id.

    Raises:
        RLRouteError: a fault of the file, a place or an id that does not exist or stands twice.
    """
    raw = read_json(path, read_utf8(path).decode("utf-8-sig"))
    named = parse_config(SplitFile, raw, str(path))
    known = set(ids)
    found: dict[str, SplitName] = {}
    for split in SPLITS:
        for entry in getattr(named, split):
            is_place = isinstance(entry, int) and 0 <= entry < len(ids)
            one = ids[entry] if is_place else entry
            if one not in known:
                raise RLRouteError(
                    f"{path}, {split}: '{entry}' is no id of the data and no place "
                    f"from 0 to {len(ids) - 1}"
                )
            if one in found:
                raise RLRouteError(f"{path}, {split}: '{entry}' stands in {found[one]} already")
            found[one] = split
    return found


def grade_longmemeval(question: MemoryQuestion, answer: str) -> float:
    """Return the F1 of an answer with the best gold answer."""
    return max(grade_stemmed_f1(answer, gold) for gold in question.query.references)
