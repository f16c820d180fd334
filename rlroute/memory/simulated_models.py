"""Simulated language models for the generated world: behind `ask_many`, as real ones are.

They get the real prompts, are charged by the real prices for the tokens of prompt and reply, and
their replies are read by the real parser. What they know they do not read from the prompt: the
query's metadata says under `memory` which turns and notes were shown, the world says what was
stated there, and a skill says how much of it is found:

    filter    a score per chunk: 10 where the gold evidence is, less for what is near, and noise
    entity    what people are and have, and when they said so: `Anna - works as - a nurse (said D)`
    temporal  what has a day of its own: `Anna - visited - Rome (on D)`
    topic     lists by person and relation: `Anna - visited - Rome; Oslo`
    others    every fact, as entity and temporal write it
    summary   the notes it was given: those on the question's person and relation first, by date,
              or gathered into one list where all things or their number are asked for

Facts are missed (the more so in words that the lexicon does not list), relative dates are misread,
sentences that only look like facts are taken for facts, replies are malformed, calls fail. A style
of prompt divides these errors and costs output tokens; a reply is cut at the limit of the call.
Every draw is a hash of seed, candidate, style and what it concerns: equal calls get equal replies,
and whether an extractor finds a fact does not depend on the other chunks.

What it leaves out: answering (`rlroute.memory.reader`), waiting, other worlds.

How to use: `pool = SimulatedModels(SimulatedModelsConfig(kind="simulated"), generate_memory(...))`.
"""

from __future__ import annotations

import datetime
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import Field, model_validator

from rlroute.config import StrictModel
from rlroute.memory.base import MemoryQuestion
from rlroute.memory.config import PromptStyle, Share
from rlroute.memory.lexicon import RELATIONS
from rlroute.memory.reader import read_notes
from rlroute.memory.world import GeneratedMemory, normalise
from rlroute.memory.world_facts import Fact
from rlroute.memory.world_questions import parse_question
from rlroute.memory.world_text import DATED
from rlroute.pool.pool_file import PricesEntry
from rlroute.pool.simulated import BYTES_PER_TOKEN
from rlroute.seeding import draw_uniform
from rlroute.types import Call, Candidate, FailureKind, Reply, RLRouteError, Usage

SUMMARY_LINES = 8
MALFORMED_REPLY = "I am not certain what is asked for here."
ADVICE = "Answer from these notes only; where a fact changed, the latest date counts."
THOUGHT = "Let me see which of the given lines bear on this, and whether the dates agree. "

MODULE_RELATIONS: dict[str, tuple[str, ...]] = {
    "entity": tuple(name for name in RELATIONS if name not in DATED),
    "temporal": DATED,
    "topic": tuple(name for name, relation in RELATIONS.items() if not relation.single),
}


class SimulatedSkill(StrictModel):
    """How good a simulated model is; all but `filter_noise` are shares.

    `recall` and `paraphrase_recall` are of facts in words that the lexicon lists and in others,
    `invented` of sentences that only look like facts, `date_errors` of relative dates,
    `summary_recall` of notes. `filter_noise` is the largest error of a chunk's score, in points.
    """

    recall: Share = 1.0
    paraphrase_recall: Share = 1.0
    invented: Share = 0.0
    date_errors: Share = 0.0
    summary_recall: Share = 1.0
    filter_noise: float = Field(default=0.0, ge=0, le=10)
    malformed: Share = 0.0


class SimulatedCandidate(StrictModel):
    """A simulated model: what it charges, how good it is, and how often its calls fail."""

    description: str = "a simulated model"
    prices: PricesEntry
    skill: SimulatedSkill = SimulatedSkill()
    failures: dict[FailureKind, Share] = Field(default_factory=dict)

    @model_validator(mode="after")
    def check_failures(self) -> SimulatedCandidate:
        """Refuse rates that exceed certainty."""
        if sum(self.failures.values()) > 1:
            raise ValueError("failures: the rates must sum to at most 1")
        return self


class SimulatedStyle(StrictModel):
    """What a style of prompt does: errors are multiplied, and words of reasoning are written."""

    errors: float = Field(default=1.0, ge=0, le=1)
    reasoning_tokens: int = Field(default=0, ge=0)


DEFAULT_STYLES: dict[PromptStyle, SimulatedStyle] = {
    "direct": SimulatedStyle(),
    "cot": SimulatedStyle(errors=0.7, reasoning_tokens=80),
    "reflect": SimulatedStyle(errors=0.5, reasoning_tokens=220),
}


class SimulatedModelsConfig(StrictModel):
    """Simulated models by id, and what the styles of prompts do to all of them."""

    kind: Literal["simulated"]
    seed: int = 0
    candidates: dict[str, SimulatedCandidate] = Field(min_length=1)
    styles: dict[PromptStyle, SimulatedStyle] = Field(default_factory=lambda: dict(DEFAULT_STYLES))


@dataclass(frozen=True)
class Task:
    """What a call is about, as its metadata says."""

    module: str
    role: str
    style: PromptStyle
    turn_ids: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


class SimulatedModels:
    """The pool of simulated models of one generated world."""

    def __init__(self, config: SimulatedModelsConfig, memory: GeneratedMemory) -> None:
        self.config, self.memory = config, memory
        self.candidates = {
            name: Candidate(name, spec.prices.to_prices(), description=spec.description)
            for name, spec in config.candidates.items()
        }
        self.questions: dict[str, MemoryQuestion] = {
            question.query.id: question
            for asked in memory.data.questions.values()
            for question in asked
        }

    async def ask_many(self, calls: Sequence[Call]) -> list[Reply]:
        """Return one reply per call, in the same order.

        Raises:
            RLRouteError: a candidate, question, style or turn is unknown, or a call says not what
                it is about.
        """
        return [self.reply(call) for call in calls]

    def reply(self, call: Call) -> Reply:
        """Reply to one call; see `ask_many`."""
        spec = self.config.candidates.get(call.candidate_id)
        if spec is None:
            known = ", ".join(sorted(self.config.candidates))
            raise RLRouteError(f"unknown candidate '{call.candidate_id}' (known: {known})")
        task = read_task(call)
        style = self.config.styles.get(task.style)
        if style is None:
            known = ", ".join(sorted(self.config.styles))
            raise RLRouteError(
                f"simulated models: no style '{task.style}' (known: {known}); give the tier one of "
                f"them as its prompt, or add it, such as models.styles.{task.style}: "
                "{errors: 1.0, reasoning_tokens: 0}"
            )
        prompt_tokens = len(f"{call.system}{call.text}".encode()) // BYTES_PER_TOKEN + 1
        failure = self._draw_failure(spec, call)
        if failure is not None:
            return Reply(call, failure=failure)
        text = write_thoughts(style.reasoning_tokens) + self._write_answer(call, spec, task, style)
        completion_tokens = len(text.encode()) // BYTES_PER_TOKEN + 1
        limit = call.max_output_tokens
        if limit is not None and completion_tokens > limit:
            text, completion_tokens = text[: limit * BYTES_PER_TOKEN], limit
        usage = Usage(prompt_tokens, completion_tokens)
        prices = self.candidates[call.candidate_id].prices
        cost_usd = prices.compute_cost(prompt_tokens, completion_tokens)
        return Reply(call, text=text, usage=usage, cost_usd=cost_usd)

    def _draw_failure(self, spec: SimulatedCandidate, call: Call) -> FailureKind | None:
        """Return the failure that the call's draw falls on, or None."""
        where = (call.candidate_id, call.query.id, call.text, call.sample)
        draw = float(draw_uniform(self.config.seed, "failure", *where))
        reached = 0.0
        for kind, rate in spec.failures.items():
            reached += rate
            if draw < reached:
                return kind
        return None

    def _write_answer(
        self, call: Call, spec: SimulatedCandidate, task: Task, style: SimulatedStyle
    ) -> str:
        """Return the part of the reply that counts, in its tags, or a malformed reply."""
        mind = Mind(
            self.memory, spec.skill, style.errors, (self.config.seed, call.candidate_id, task.style)
        )
        if mind.errs(spec.skill.malformed, task.module, "malformed", call.text, scaled=False):
            return MALFORMED_REPLY
        question = self.questions.get(call.query.id)
        if question is None:
            raise RLRouteError(
                f"simulated models know the questions of their world only, not '{call.query.id}'"
            )
        if task.role == "filter":
            body = json.dumps([mind.score_chunk(question, turns) for turns in task.turn_ids])
        elif task.role == "extract":
            body = json.dumps(mind.take_notes(task), ensure_ascii=False)
        else:
            body = mind.sum_up(question, task.notes)
        return f"<answer>{body}</answer>"


@dataclass(frozen=True)
class Mind:
    """What a simulated model makes of what it is shown; `where` are the coordinates of its draws.

    `errors` multiplies all shares of errors.
    """

    memory: GeneratedMemory
    skill: SimulatedSkill
    errors: float
    where: tuple[int | str, ...]

    def errs(self, share: float, *what: int | str, scaled: bool = True) -> bool:
        """Say whether an error of a given share happens to something."""
        chance = share * self.errors if scaled else share
        return bool(draw_uniform(*self.where, *what) < chance)

    def score_chunk(self, question: MemoryQuestion, turn_ids: Sequence[str]) -> int:
        """Return how much a chunk seems to help, from 0 to 10."""
        score = self._find_relevance(question, turn_ids)
        draw = draw_uniform(*self.where, "score", question.query.id, *turn_ids)
        noise = (2 * float(draw) - 1) * self.skill.filter_noise * self.errors
        return min(max(round(score + noise), 0), 10)

    def _find_relevance(self, question: MemoryQuestion, turn_ids: Sequence[str]) -> int:
        """Return how much a chunk helps: evidence, the same person, the same subject, or less."""
        if set(turn_ids) & set(question.evidence):
            return 10
        ask = parse_question(question.query.text)
        if ask is None:
            return 1
        said = [fact for turn in turn_ids for fact in self.memory.facts.get(turn, ())]
        seeming = [fact for turn in turn_ids for fact in self.memory.seeming.get(turn, ())]
        near = [fact.subject for fact in (*said, *seeming) if fact.relation == ask.relation]
        return 1 if not near else 6 if ask.subject in near else 4

    def take_notes(self, task: Task) -> list[str]:
        """Return an extractor's notes on what is shown, each once."""
        relations = MODULE_RELATIONS.get(task.module, tuple(RELATIONS))
        turns = [turn for shown in task.turn_ids for turn in shown]
        facts = [
            fact
            for turn in dict.fromkeys(turns)
            for fact in self._find_facts(task.module, turn)
            if fact.relation in relations
        ]
        if task.module != "topic":
            return list(dict.fromkeys(write_note(fact) for fact in facts))
        lists: dict[tuple[str, str], list[str]] = defaultdict(list)
        for fact in facts:
            lists[fact.subject, RELATIONS[fact.relation].phrase].append(fact.object)
        return [
            f"{subject} - {phrase} - {'; '.join(dict.fromkeys(things))}"
            for (subject, phrase), things in lists.items()
        ]

    def _find_facts(self, module: str, turn: str) -> list[Fact]:
        """Return the facts that are found in a turn, with dates as they are understood."""
        found = []
        for number, fact in enumerate(self.memory.facts.get(turn, ())):
            skill = self.skill
            recall = skill.paraphrase_recall if fact.paraphrased else skill.recall
            if not self.errs(1 - recall, module, "missed", turn, number):
                found.append(self._understand(fact, module, turn, number))
        for number, fact in enumerate(self.memory.seeming.get(turn, ())):
            if self.errs(self.skill.invented, module, "invented", turn, number):
                happened_on = fact.said_on if fact.relation in DATED else None
                found.append(replace(fact, happened_on=happened_on))
        return found

    def _understand(self, fact: Fact, module: str, turn: str, number: int) -> Fact:
        """Return a fact with its day, which is wrong where a relative date was misread."""
        what = (module, "date", turn, number)
        if fact.happened_on is None or not fact.relative:
            return fact
        if not self.errs(self.skill.date_errors, *what):
            return fact
        days = 1 + int(draw_uniform(*self.where, *what, "days") * 6)
        return replace(fact, happened_on=fact.happened_on + datetime.timedelta(days=days))

    def sum_up(self, question: MemoryQuestion, notes: Sequence[str]) -> str:
        """Return a summary of the given notes: what is asked about first, each once, by date.

        Where all things or their number are asked for, they are gathered into one list.
        """
        ask = parse_question(question.query.text)
        wanted: list[tuple[str, int, str]] = []
        things: dict[str, str] = {}
        others: list[str] = []
        for number, line in enumerate(dict.fromkeys(notes)):
            if self.errs(1 - self.skill.summary_recall, "summary", question.query.id, line):
                continue
            note = next(read_notes(line), None)
            asked = ask and (ask.subject.casefold(), ask.relation)
            if note is not None and (note.subject, note.relation) == asked:
                wanted.append((str(note.date or ""), number, line))
                things |= {normalise(thing): thing for thing in note.things}
            else:
                others.append(line)
        lines = [line for _, _, line in sorted(wanted)]
        if ask is not None and ask.form in ("list", "count") and things:
            phrase = RELATIONS[ask.relation].phrase
            lines = [f"{ask.subject} - {phrase} - {'; '.join(things.values())}"]
        lines += others[: max(SUMMARY_LINES - len(lines), 0)]
        return "\n".join([*lines, ADVICE])


def write_note(fact: Fact) -> str:
    """Return a fact as a note."""
    context = f"said {fact.said_on}" if fact.happened_on is None else f"on {fact.happened_on}"
    phrase = RELATIONS[fact.relation].phrase
    return f"{fact.subject} - {phrase} - {fact.object} ({context})"


def write_thoughts(tokens: int) -> str:
    """Return reasoning of about so many tokens."""
    count = tokens * BYTES_PER_TOKEN
    return f"{(THOUGHT * (count // len(THOUGHT) + 1))[:count].strip()}\n" if count else ""


def read_task(call: Call) -> Task:
    """Return what a call is about.

    Raises:
        RLRouteError: its query's metadata do not say so.
    """
    try:
        facts: dict[str, Any] = json.loads(call.query.metadata["memory"])
        return Task(
            facts["module"],
            facts["role"],
            facts["style"],
            tuple(tuple(turns) for turns in facts["turn_ids"]),
            tuple(line for lines in facts["notes"].values() for line in lines),
        )
    except (KeyError, ValueError, TypeError, AttributeError):
        raise RLRouteError(
            f"simulated models: the call for query '{call.query.id}' does not say in its metadata "
            "'memory' what it shows; they filter, take notes and sum up, they do not answer"
        ) from None
