"""The questions of the generated world: how they are put, what they ask, which answer is right.

| kind           | asks                                          | gold answer                     |
| -------------- | --------------------------------------------- | ------------------------------- |
| `single`       | a value that a person stated once             | the value                       |
| `update`       | a value that changed                          | the latest value                |
| `temporal`     | when something was, or which of two was first | a date (ISO), or one of the two |
| `aggregate`    | all values, or how many                       | `A; B; C`, or a number          |
| `unanswerable` | what was never said                           | `unknown`                       |

What a question asks can be read off its text (`parse_question`): the scripted reader and the
simulated models do so. A question about something that the lexicon has no relation for cannot be
parsed, and half of the unanswerable ones are of that sort; the others are put like any other.

What it leaves out: grading (`rlroute.memory.world`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Literal

from rlroute.memory.base import MemoryQuestion
from rlroute.memory.world_facts import Fact, pick, pick_some
from rlroute.memory.world_text import DATED, SAYINGS
from rlroute.seeding import draw_uniform
from rlroute.types import Query

Form = Literal["value", "when", "first", "list", "count"]
DATASET = "generated-memory"
UNKNOWN = "unknown"

VALUE_STEMS: dict[str, tuple[str, ...]] = {
    "home": ("Where does {p} live", "In which town is {p}'s home", "Which town does {p} live in"),
    "job": ("What does {p} work as", "What is {p}'s job", "Which profession does {p} have"),
    "employer": ("Which company does {p} work for", "Who is {p}'s employer", "Who employs {p}"),
    "pet": ("What is {p}'s pet called", "What is the name of {p}'s pet", "How is {p}'s pet called"),
    "car": ("Which car does {p} drive", "What kind of car is {p}'s", "What does {p} drive"),
    "partner": ("Who is {p}'s partner", "Who is {p} together with", "With whom is {p} together"),
    "food": (
        "What does {p} like to eat",
        "What is {p}'s favourite food",
        "Which food does {p} love",
    ),
}
UPDATE_ENDS = (" now", " these days", " at present", " by now, after the latest news")
WHEN_STEMS: dict[str, tuple[str, ...]] = {
    "place": ("When did {p} visit {o}", "On which day was {p} in {o}"),
    "event": ("When did {p} attend {o}", "On which day was {p} at {o}"),
    "purchase": ("When did {p} buy {o}", "On which day did {p} buy {o}"),
}
FIRST_STEMS: dict[str, tuple[str, ...]] = {
    "place": ("Which did {p} visit first, {o} or {q}", "Where was {p} earlier, in {o} or in {q}"),
    "event": ("Which did {p} attend first, {o} or {q}", "Where was {p} earlier, at {o} or at {q}"),
    "purchase": (
        "Which did {p} buy first, {o} or {q}",
        "What did {p} pay for earlier, {o} or {q}",
    ),
}
LIST_STEMS: dict[str, tuple[str, ...]] = {
    "instrument": ("Which instruments does {p} play", "List all instruments that {p} plays"),
    "place": ("Which places did {p} visit", "List all places that {p} visited"),
    "event": ("Which events did {p} attend", "List all events that {p} attended"),
    "purchase": ("Which things did {p} buy", "List all things that {p} bought"),
}
COUNT_STEMS: dict[str, tuple[str, ...]] = {
    "instrument": ("How many instruments does {p} play",),
    "place": ("How many places did {p} visit", "How many different places has {p} been to"),
    "event": ("How many events did {p} attend", "How many different events has {p} been to"),
    "purchase": ("How many things did {p} buy", "How many different things has {p} bought"),
}
OUTSIDE_STEMS = (
    "What is {p}'s blood type",
    "What is {p}'s shoe size",
    "What was {p}'s first teacher called",
    "Which political party did {p} vote for",
    "What is {p}'s middle name",
    "How tall is {p}",
    "What is the phone number of {p}",
    "Which school did {p} go to as a child",
    "What colour are {p}'s eyes",
    "On which day is {p}'s birthday",
    "How much does {p} earn",
    "What is {p}'s favourite film",
)


@dataclass(frozen=True)
class Ask:
    """What a question asks: a form, a person, a relation, and the things that it names."""

    form: Form
    subject: str
    relation: str
    things: tuple[str, ...] = ()


@dataclass(frozen=True)
class Draft:
    """A question before it has an id: the kind, the text, gold answer and evidence."""

    kind: str
    text: str
    gold: str
    form: str
    evidence: tuple[str, ...] = ()


Stated = Mapping[tuple[str, str], Sequence[tuple[str, Fact]]]  # of a person and a relation: turns


def parse_question(text: str) -> Ask | None:
    """Return what a question asks, or None where it asks for nothing that the lexicon has."""
    for form, relation, pattern in list_patterns():
        match = pattern.fullmatch(text.strip())
        if match is not None:
            found = match.groupdict()
            things = tuple(found[name] for name in ("o", "q") if found.get(name))
            return Ask(form, found["p"], relation, things)
    return None


@cache
def list_patterns() -> tuple[tuple[Form, str, re.Pattern[str]], ...]:
    """Return a pattern for every way of asking; those that name more things come first."""
    ends = "|".join(re.escape(end) for end in UPDATE_ENDS)
    tables: tuple[tuple[Form, dict[str, tuple[str, ...]], str], ...] = (
        ("first", FIRST_STEMS, ""),
        ("when", WHEN_STEMS, ""),
        ("list", LIST_STEMS, ""),
        ("count", COUNT_STEMS, ""),
        ("value", VALUE_STEMS, f"(?:{ends})?"),
    )
    return tuple(
        (form, relation, compile_stem(stem, end))
        for form, stems, end in tables
        for relation, texts in stems.items()
        for stem in texts
    )


def compile_stem(stem: str, end: str) -> re.Pattern[str]:
    """Return the pattern of a question; `p` is a name, `o` and `q` are things."""
    pattern = re.escape(stem)
    for mark, part in (("p", r"\w+"), ("o", r".+?"), ("q", r".+?")):
        pattern = pattern.replace(re.escape(f"{{{mark}}}"), f"(?P<{mark}>{part})")
    return re.compile(rf"{pattern}{end}\s*\?", re.IGNORECASE)


def draft_questions(
    people: Sequence[str], stated: Stated, per_kind: int, *where: int | str
) -> Iterator[Draft]:
    """Yield the questions of a history, at most `per_kind` of each kind."""
    drafts: dict[str, list[Draft]] = {
        "single": list(draft_values(people, stated, "single", *where)),
        "temporal": list(draft_times(people, stated, *where)),
        "update": list(draft_values(people, stated, "update", *where)),
        "aggregate": list(draft_aggregates(people, stated, *where)),
    }
    for kind, found in drafts.items():
        yield from pick_some(found, per_kind, *where, kind, "chosen")
    yield from draft_unanswerable(people, stated, per_kind, *where)


def draft_values(
    people: Sequence[str], stated: Stated, kind: str, *where: int | str
) -> Iterator[Draft]:
    """Yield questions for a value that was stated once (`single`) or changed (`update`)."""
    for person in people:
        for relation, stems in VALUE_STEMS.items():
            facts = stated.get((person, relation), ())
            if len(facts) != 1 if kind == "single" else len(facts) < 2:
                continue
            here = (*where, person, relation)
            end = "" if kind == "single" else pick(UPDATE_ENDS, *here, "end")
            text = pick(stems, *here, "stem").format(p=person) + end + "?"
            turn, fact = max(facts, key=lambda item: item[1].said_on)
            yield Draft(kind, text, fact.object, "text", (turn,))


def draft_times(people: Sequence[str], stated: Stated, *where: int | str) -> Iterator[Draft]:
    """Yield questions for a day, and as many at most for which of two was first."""
    for person in people:
        for relation in DATED:
            facts = stated.get((person, relation), ())
            here = (*where, person, relation)
            for turn, fact in facts:
                stem = pick(WHEN_STEMS[relation], *here, fact.object, "when")
                text = stem.format(p=person, o=fact.object) + "?"
                yield Draft("temporal", text, str(fact.happened_on), "date", (turn,))
            pairs = [
                p for p in combinations(facts, 2) if p[0][1].happened_on != p[1][1].happened_on
            ]
            for pair in pick_some(pairs, len(facts), *here, "pairs"):
                two = pick_some(pair, 2, *here, pair[0][0], pair[1][0])
                things = [fact.object for _, fact in two]
                stem = pick(FIRST_STEMS[relation], *here, *things, "first")
                text = stem.format(p=person, o=things[0], q=things[1]) + "?"
                first = min(pair, key=lambda item: str(item[1].happened_on))[1].object
                yield Draft("temporal", text, first, "text", tuple(turn for turn, _ in pair))


def draft_aggregates(people: Sequence[str], stated: Stated, *where: int | str) -> Iterator[Draft]:
    """Yield questions for all values of a relation, or for their number."""
    for person in people:
        for relation in LIST_STEMS:
            facts = stated.get((person, relation), ())
            if len(facts) < 2:
                continue
            here = (*where, person, relation)
            counts = draw_uniform(*here, "counts") < 0.5
            stems = COUNT_STEMS if counts else LIST_STEMS
            text = pick(stems[relation], *here, "stem").format(p=person) + "?"
            listed = "; ".join(fact.object for _, fact in facts)
            gold, form = (str(len(facts)), "count") if counts else (listed, "list")
            yield Draft("aggregate", text, gold, form, tuple(turn for turn, _ in facts))


def draft_unanswerable(
    people: Sequence[str], stated: Stated, count: int, *where: int | str
) -> Iterator[Draft]:
    """Yield `count` questions for what was never said: half of them outside the lexicon."""
    outside = [stem.format(p=person) + "?" for person in people for stem in OUTSIDE_STEMS]
    inside = []
    for person in people:
        for relation, stems in VALUE_STEMS.items():
            if not stated.get((person, relation)):
                inside.append(pick(stems, *where, person, relation, "never").format(p=person) + "?")
        for relation in DATED:
            said = {fact.object for _, fact in stated.get((person, relation), ())}
            others = [thing for thing in SAYINGS[relation].objects if thing not in said]
            thing = pick(others, *where, person, relation, "never")
            stem = pick(WHEN_STEMS[relation], *where, person, relation, "never")
            inside.append(stem.format(p=person, o=thing) + "?")
    first = pick_some(inside, (count + 1) // 2, *where, "inside")
    rest = pick_some(outside, count - len(first), *where, "outside")
    yield from (Draft("unanswerable", text, UNKNOWN, "text") for text in (*first, *rest))


def finish_question(draft: Draft, history_id: str, number: int, asked_on: str) -> MemoryQuestion:
    """Return a draft as a question; `form` in its metadata says how its answer is graded."""
    query = Query(
        f"{history_id}:q{number}",
        draft.text,
        draft.kind,
        DATASET,
        (draft.gold,),
        {"form": draft.form},
    )
    return MemoryQuestion(query, history_id, draft.evidence, asked_on)
