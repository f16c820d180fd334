"""The scripted reader: answers questions of the generated world from a summary, free of charge.

It stands in for a language model that reads well and guesses nothing. It knows the text of the
question and of the summary, and attends to the first `attention_words` words of the summary only.
In them it looks for notes `SUBJECT - PHRASE - OBJECT (CONTEXT)` about what is asked:

| asked       | answer                                                                        |
| ----------- | ----------------------------------------------------------------------------- |
| a value     | the object of the note with the latest date; without dates, of the last note  |
| when        | the date of a note with the object whose context is `on DATE`                 |
| which first | the one with the earlier `on DATE`; needs the dates of both                   |
| all, number | from the longest list `A; B; C` in one note: it gathers nothing over lines    |

For a value, where there is no note at all, it also understands a quoted turn (`NAME said "..."`)
that states the fact in the lexicon's first way. Without evidence it says "unknown".

What it leaves out: any other sort of question (`parse_question`), and other languages.
"""

from __future__ import annotations

import datetime
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlroute.memory.base import AnswerRun, MemoryQuestion
from rlroute.memory.lexicon import RELATIONS
from rlroute.memory.world import normalise
from rlroute.memory.world_questions import UNKNOWN, Ask, parse_question

VERSION = "scripted reader 1"
ATTENTION_WORDS = 400

NOTE = re.compile(
    r"^[\s*\u2022-]*(?:\d+[.)]\s*)?(?P<subject>[^-]+?) - (?P<phrase>[^-]+?) - "
    r"(?P<object>.+?)(?:\s*\((?P<context>[^()]*)\))?[\s.]*$"
)
QUOTED = re.compile(r"^(?P<speaker>\w+) said \"(?P<text>.*)\"", re.MULTILINE)
ISO_DATE = re.compile(r"\b(\d{4})-(\d{2})-(\d{2})\b")
OBJECT_END = r"(?P<object>[^.,;:!?\"]+)"

PHRASES: dict[str, str] = {
    **{relation.phrase: relation.name for relation in RELATIONS.values()},
    **{"resides in": "home", "has home in": "home", "moved to": "home"},
    **{"is employed as": "job", "has the job of": "job", "started as": "job"},
    **{"is employed by": "employer", "works at": "employer", "joined": "employer"},
    **{"has a pet named": "pet", "adopted": "pet", "owns a car": "car", "has a car": "car"},
    **{"is married to": "partner", "married": "partner"},
    **{"practises": "instrument", "learns": "instrument", "can play": "instrument"},
    **{"loves eating": "food", "loves to eat": "food"},
    **{"travelled to": "place", "went to": "event", "took part in": "event"},
    **{"paid for": "purchase", "purchased": "purchase"},
}


@dataclass(frozen=True)
class Note:
    """A note that was understood; `happened` says that its date is of the event, not of telling."""

    subject: str
    relation: str
    things: tuple[str, ...]
    date: datetime.date | None
    happened: bool


class ScriptedReader:
    """An answerer for the generated world."""

    def __init__(self, attention_words: int = ATTENTION_WORDS) -> None:
        self.attention_words = attention_words

    def fingerprint(self) -> str:
        """Return a hash of everything that the answers depend on."""
        settings = f"{VERSION} {self.attention_words} {sorted(PHRASES.items())}"
        return hashlib.sha256(settings.encode()).hexdigest()

    async def answer_many(
        self, questions: Sequence[MemoryQuestion], summaries: Sequence[str]
    ) -> list[AnswerRun]:
        """Return one answer each, in order; nothing is charged and nothing fails."""
        pairs = zip(questions, summaries, strict=True)
        return [AnswerRun(self.answer(question.query.text, text)) for question, text in pairs]

    def answer(self, question: str, summary: str) -> str:
        """Answer the text of a question from the text of a summary."""
        ask = parse_question(question)
        if ask is None:
            return UNKNOWN
        seen = cut_words(summary, self.attention_words)
        about = [
            note
            for note in read_notes(seen)
            if note.subject == ask.subject.casefold() and note.relation == ask.relation
        ]
        if ask.form == "value":
            return find_value(about) or find_quoted(seen, ask) or UNKNOWN
        if ask.form == "when":
            date = find_day(about, ask.things[0])
            return UNKNOWN if date is None else date.isoformat()
        if ask.form == "first":
            return find_first(about, ask.things)
        return find_list(about, counted=ask.form == "count")


def cut_words(text: str, limit: int) -> str:
    """Return the first `limit` words of a text with its line breaks."""
    words = list(re.finditer(r"\S+", text))
    return text if len(words) <= limit else text[: words[limit - 1].end()]


def read_notes(text: str) -> Iterator[Note]:
    """Yield the notes of a text whose phrases are known, in order."""
    for line in text.splitlines():
        match = NOTE.match(line)
        relation = match and PHRASES.get(normalise_phrase(match["phrase"]))
        if match is None or not relation:
            continue
        context = match["context"] or ""
        things = tuple(part.strip() for part in match["object"].split(";") if part.strip())
        happened = re.match(r"on\b", context.strip()) is not None
        yield Note(
            match["subject"].strip().casefold(), relation, things, find_date(context), happened
        )


def normalise_phrase(phrase: str) -> str:
    """Return a phrase in folded case with single blanks."""
    return " ".join(phrase.casefold().split())


def find_date(context: str) -> datetime.date | None:
    """Return the first ISO date in a note's context, or None."""
    for match in ISO_DATE.finditer(context):
        try:
            return datetime.date.fromisoformat(match.group())
        except ValueError:
            continue
    return None


def find_value(notes: Sequence[Note]) -> str | None:
    """Return the object of the note with the latest date; the last one where dates are equal."""
    best: Note | None = None
    for note in notes:
        newer = best is None or (note.date or datetime.date.min) >= (best.date or datetime.date.min)
        if note.things and newer:
            best = note
    return None if best is None else best.things[-1]


def find_quoted(text: str, ask: Ask) -> str | None:
    """Return the object of the last quoted turn that states what is asked in the first way."""
    way = RELATIONS[ask.relation].ways[0].replace("{}", "\0")
    pattern = re.compile(rf"\b{re.escape(way)}".replace("\0", OBJECT_END), re.IGNORECASE)
    found = None
    for turn in QUOTED.finditer(text):
        match = pattern.search(turn["text"])
        if match is not None and turn["speaker"].casefold() == ask.subject.casefold():
            found = match["object"].strip()
    return found


def find_day(notes: Sequence[Note], thing: str) -> datetime.date | None:
    """Return the day on which something happened, by the first note that says so."""
    for note in notes:
        named = normalise(thing) in map(normalise, note.things)
        if named and note.happened and note.date is not None:
            return note.date
    return None


def find_first(notes: Sequence[Note], things: Sequence[str]) -> str:
    """Return which of two things was earlier, "unknown" where the day of one is missing."""
    days = [find_day(notes, thing) for thing in things]
    if days[0] is None or days[1] is None:
        return UNKNOWN
    return things[0] if days[0] <= days[1] else things[1]


def find_list(notes: Sequence[Note], counted: bool) -> str:
    """Return the longest list of one note, or its length."""
    lists = [{normalise(thing): thing for thing in note.things} for note in notes]
    longest = max(lists, key=len, default={})
    if not longest:
        return UNKNOWN
    return str(len(longest)) if counted else "; ".join(longest.values())
