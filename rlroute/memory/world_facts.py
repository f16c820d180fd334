"""What is true in a generated history: who says which fact when, and what is never said.

A history is cut into segments, two to a session, each about one relation of the lexicon. A fact
belongs to a person and a segment. Relations with one value at a time keep it, change it (every
value in a later session) or are never stated by a person; the others collect values.

What it leaves out: words (`rlroute.memory.world`).
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from rlroute.memory.lexicon import RELATIONS
from rlroute.memory.world_config import GeneratedMemoryConfig
from rlroute.memory.world_text import DATED, PEOPLE, SAYINGS
from rlroute.seeding import draw_permutation, draw_uniform

T = TypeVar("T")

DAYS = 150
FIRST_DAY = datetime.date(2023, 1, 9)
NEVER_SAID = 0.2  # share of the single-valued relations that a person says nothing of
LAGS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 21)  # days from an event to its telling


@dataclass(frozen=True)
class Fact:
    """A fact as it was stated; `relation` is a name of the lexicon, `object` stands as said.

    `paraphrased` says that the words are not in the lexicon, `relative` that the date was told by
    the day of telling. `happened_on` is None where a relation has no date of its own.
    """

    subject: str
    relation: str
    object: str
    said_on: datetime.date
    happened_on: datetime.date | None = None
    paraphrased: bool = False
    relative: bool = False


@dataclass(frozen=True)
class HistoryPlan:
    """The people, the day of each session, the relation of each segment, the facts of each."""

    people: tuple[str, ...]
    days: tuple[datetime.date, ...]
    themes: tuple[str, ...]
    facts: tuple[tuple[Fact, ...], ...]


def pick(options: Sequence[T], *where: int | str) -> T:
    """Return one of the options; the coordinates decide which."""
    return options[int(draw_uniform(*where) * len(options))]


def pick_some(options: Sequence[T], count: int, *where: int | str) -> tuple[T, ...]:
    """Return `count` different options (all where there are fewer), in an order of their own."""
    order = draw_permutation(len(options), *where)[:count]
    return tuple(options[int(index)] for index in order)


def plan_history(config: GeneratedMemoryConfig, *where: int | str) -> HistoryPlan:
    """Return what is true in a history; the coordinates name it."""
    people = pick_some(PEOPLE, config.people, *where, "people")
    days = draw_days(config.sessions, *where)
    themes = draw_themes(2 * config.sessions, *where)
    facts: list[list[Fact]] = [[] for _ in themes]
    for relation in RELATIONS:
        segments = [index for index, theme in enumerate(themes) if theme == relation]
        for person in people:
            here = (*where, relation, person)
            count = draw_count(config, relation, len(segments), *here)
            chosen = sorted(pick_some(segments, count, *here, "segments"))
            objects = pick_some(SAYINGS[relation].objects, count, *here, "objects")
            for segment, thing in zip(chosen, objects, strict=True):
                fact = draw_fact(config, person, relation, thing, days[segment // 2], *here)
                facts[segment].append(fact)
    return HistoryPlan(people, days, themes, tuple(tuple(items) for items in facts))


def draw_days(sessions: int, *where: int | str) -> tuple[datetime.date, ...]:
    """Return the days of the sessions, in order, all different, over about five months."""
    start = int(draw_uniform(*where, "start") * 200)
    step = max(DAYS / sessions, 2.0)
    jitter_S = draw_uniform(*where, "jitter", np.arange(sessions))
    offsets = [int(step * (index + 0.9 * jitter)) for index, jitter in enumerate(jitter_S)]
    return tuple(FIRST_DAY + datetime.timedelta(days=start + offset) for offset in offsets)


def draw_themes(segments: int, *where: int | str) -> tuple[str, ...]:
    """Return a relation for each segment; all of them come equally often, but for one more."""
    names = tuple(RELATIONS)
    themes: list[str] = []
    while len(themes) < segments:
        themes += pick_some(names, len(names), *where, "themes", len(themes))
    return tuple(themes[:segments])


def draw_count(
    config: GeneratedMemoryConfig, relation: str, segments: int, *where: int | str
) -> int:
    """Return how many values a person states: 0, 1 or more; no more than there are segments."""
    if not RELATIONS[relation].single:
        return min(segments, 2 + int(draw_uniform(*where, "many") * 2.5))
    if draw_uniform(*where, "never") < NEVER_SAID:
        return 0
    if draw_uniform(*where, "changes") < config.changes:
        return min(segments, 2 + int(draw_uniform(*where, "times") * 2))
    return min(segments, 1)


def draw_fact(
    config: GeneratedMemoryConfig,
    person: str,
    relation: str,
    thing: str,
    day: datetime.date,
    *where: int | str,
) -> Fact:
    """Return a fact that is told on a day, with the way of telling it."""
    here = (*where, thing)
    paraphrased = bool(draw_uniform(*here, "paraphrased") < config.paraphrase)
    if relation not in DATED:
        return Fact(person, relation, thing, day, None, paraphrased)
    happened_on = day - datetime.timedelta(days=pick(LAGS, *here, "lag"))
    relative = bool(draw_uniform(*here, "relative") < config.relative_dates)
    return Fact(person, relation, thing, day, happened_on, paraphrased, relative)
