"""A generated world of conversations: months of talk between several people, and questions.

Every history is the talk of a few people in some twenty sessions over five months. People state
facts of the lexicon in the first person, in ways that the lexicon lists and in others, with dates
or "last Friday", change their homes and jobs, and in between say things that only look like facts.
All of it is a pure function of the settings; `facts` says for every turn what it really states,
and `seeming` what it only seems to state.

What it leaves out: how questions are put (`rlroute.memory.world_questions`), the words
(`rlroute.memory.world_text`), models and readers.

How to use: `world = generate_memory(GeneratedMemoryConfig(seed=1))`, `world.data.histories`.
"""

from __future__ import annotations

import datetime
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from rlroute.memory.base import History, MemoryData, MemoryQuestion, Session, Turn
from rlroute.memory.lexicon import RELATIONS
from rlroute.memory.world_config import GeneratedMemoryConfig
from rlroute.memory.world_dates import NUMBERS, list_relative_phrases, spell_date
from rlroute.memory.world_facts import Fact, HistoryPlan, pick, pick_some, plan_history
from rlroute.memory.world_questions import draft_questions, finish_question
from rlroute.memory.world_text import GENERAL_TALK, OPENERS, SAYINGS, TAILS
from rlroute.seeding import draw_uniform
from rlroute.types import SPLITS, SplitName

ARTICLE = re.compile(r"\b(a|an|the)\b")
MARK = re.compile(r"[^\w\s]")
LIST_SEPARATOR = re.compile(r";|,|\band\b")
DATE_FORMATS = ("%Y-%m-%d", "%d %B %Y", "%B %d, %Y", "%B %d %Y", "%d %B, %Y")


@dataclass(frozen=True)
class GeneratedMemory:
    """Histories and questions, and by turn id the facts stated there and those that seem to be.

    Turns that state nothing are not listed in `facts`; likewise `seeming`.
    """

    data: MemoryData
    facts: Mapping[str, tuple[Fact, ...]]
    seeming: Mapping[str, tuple[Fact, ...]]


def generate_memory(config: GeneratedMemoryConfig) -> GeneratedMemory:
    """Return the world of some settings; equal settings give equal worlds."""
    histories: dict[str, History] = {}
    questions: dict[SplitName, tuple[MemoryQuestion, ...]] = {}
    facts: dict[str, tuple[Fact, ...]] = {}
    seeming: dict[str, tuple[Fact, ...]] = {}
    for split in SPLITS:
        asked: list[MemoryQuestion] = []
        for number in range(getattr(config.histories, split)):
            name = f"{split}{number}"
            where = (config.seed, "memory world", name)
            plan = plan_history(config, *where)
            histories[name] = write_history(config, plan, name, facts, seeming, *where)
            asked += ask_questions(config, plan, histories[name], facts, *where)
        questions[split] = tuple(asked)
    data = MemoryData("generated", histories, questions, grade)
    return GeneratedMemory(data, facts, seeming)


def write_history(
    config: GeneratedMemoryConfig,
    plan: HistoryPlan,
    name: str,
    facts: dict[str, tuple[Fact, ...]],
    seeming: dict[str, tuple[Fact, ...]],
    *where: int | str,
) -> History:
    """Return the talk of a plan; what its turns state and seem to state is added to the maps."""
    sessions = []
    for number, day in enumerate(plan.days):
        turns: list[Turn] = []
        for half in (0, 1):
            segment = 2 * number + half
            size = (config.turns_per_session + 1 - half) // 2
            stated = plan.facts[segment]
            openings = (0, 2) if size >= config.people + 2 else (0,)  # a chunk may begin at 1 or 2
            free = [place for place in range(size) if place not in openings]
            chosen = pick_some(free, len(stated), *where, segment, "order")
            at = dict(zip(chosen, stated, strict=True))
            for place in range(size):
                here = (*where, segment, place)
                turn_id = f"{name}:{number}:{len(turns)}"
                fact = at.get(place)
                if fact is not None:
                    turns.append(Turn(turn_id, fact.subject, say_fact(fact, *here)))
                    facts[turn_id] = (fact,)
                    continue
                speaker = pick(plan.people, *here, "speaker")
                theme = plan.themes[segment]
                if place in openings:
                    text = pick(SAYINGS[theme].openings, *here, "words")
                elif draw_uniform(*here, "seeming") < config.distractors:
                    said = draw_seeming(plan, speaker, theme, day, *here)
                    seeming[turn_id] = (said,)
                    text = pick(SAYINGS[theme].seeming, *here, "words").format(said.object)
                else:
                    own = SAYINGS[theme]
                    talks = (own.openings, own.openings, own.talk, GENERAL_TALK)
                    text = pick(pick(talks, *here, "talk"), *here, "words")
                turns.append(Turn(turn_id, speaker, dress(text, *here)))
        sessions.append(Session(day.isoformat(), tuple(turns)))
    return History(name, tuple(sessions))


def draw_seeming(
    plan: HistoryPlan, speaker: str, relation: str, day: datetime.date, *where: int | str
) -> Fact:
    """Return a fact that somebody seems to state: of an object that is none of theirs."""
    own = {f.object for facts in plan.facts for f in facts if f.subject == speaker}
    others = [thing for thing in SAYINGS[relation].objects if thing not in own]
    return Fact(speaker, relation, pick(others, *where, "object"), day)


def say_fact(fact: Fact, *where: int | str) -> str:
    """Return the words in which a fact is told; the lexicon's first way is twice as likely."""
    known = RELATIONS[fact.relation].ways
    ways = SAYINGS[fact.relation].told if fact.paraphrased else (known[0], *known)
    text = pick(ways, *where, "way").format(fact.object)
    if fact.happened_on is None:
        return dress(text, *where)
    phrase = f"on {spell_date(fact.happened_on)}"
    if fact.relative:
        phrase = pick(list_relative_phrases(fact.happened_on, fact.said_on), *where, "phrase")
    if draw_uniform(*where, "date first") < 0.4:
        return dress(f"{phrase} {text}", *where)
    return dress(f"{text} {phrase}" if not fact.paraphrased else f"{text}: {phrase}", *where)


def dress(text: str, *where: int | str) -> str:
    """Return a sentence with, at times, an opener before it and a remark after it."""
    if draw_uniform(*where, "opener") < 0.3:
        text = f"{pick(OPENERS, *where, 'which opener')} {text}"
    text = f"{text[0].upper()}{text[1:]}."
    if draw_uniform(*where, "tail") < 0.4:
        text = f"{text} {pick(TAILS, *where, 'which tail')}"
    return text


def ask_questions(
    config: GeneratedMemoryConfig,
    plan: HistoryPlan,
    history: History,
    facts: Mapping[str, tuple[Fact, ...]],
    *where: int | str,
) -> list[MemoryQuestion]:
    """Return the questions about a history, put on the day after its last session."""
    stated: dict[tuple[str, str], list[tuple[str, Fact]]] = defaultdict(list)
    for session in history.sessions:
        for turn in session.turns:
            for fact in facts.get(turn.id, ()):
                stated[fact.subject, fact.relation].append((turn.id, fact))
    asked_on = (plan.days[-1] + datetime.timedelta(days=1)).isoformat()
    drafts = draft_questions(plan.people, stated, config.questions_per_kind, *where, "questions")
    return [finish_question(draft, history.id, n, asked_on) for n, draft in enumerate(drafts)]


def grade(question: MemoryQuestion, answer: str) -> float:
    """Return 1 for a right answer and 0 for any other.

    Dates are compared by value, numbers also as words, lists as sets, and text without case,
    articles and marks. Metadata `form` says which of these a question takes.
    """
    gold, form = question.query.references[0], question.query.metadata["form"]
    if form == "date":
        return float(read_date(answer) == read_date(gold))
    if form == "count":
        return float(read_number(answer) == read_number(gold))
    if form == "list":
        return float(split_list(answer) == split_list(gold))
    return float(normalise(answer) == normalise(gold))


def normalise(text: str) -> str:
    """Return text in folded case without articles, marks and doubled blanks."""
    return " ".join(ARTICLE.sub(" ", MARK.sub(" ", text.casefold())).split())


def split_list(text: str) -> set[str]:
    """Return the normalised parts of a list that is separated by `;`, `,` or "and"."""
    return {part for part in map(normalise, LIST_SEPARATOR.split(text)) if part}


def read_date(text: str) -> datetime.date | None:
    """Return the date that a text is (ISO, 5 May 2023, May 5, 2023), or None."""
    for form in DATE_FORMATS:
        try:
            return datetime.datetime.strptime(text.strip().rstrip("."), form).date()
        except ValueError:
            continue
    return None


def read_number(text: str) -> int | None:
    """Return the whole number that a text is, in digits or as a word, or None."""
    word = normalise(text)
    if word in NUMBERS:
        return NUMBERS.index(word)
    return int(word) if word.isascii() and word.isdigit() else None
