"""The tiers made of rules: word overlap, patterns, concatenation. They call and cost nothing.

| module   | what it does                                                                     |
| -------- | -------------------------------------------------------------------------------- |
| filter   | score: the share of the question's words (no stop words) that a chunk holds;     |
|          | chunks with none are dropped, and the first k stand where none is left           |
| entity   | facts, `Anna - lives in - Rome (said 2023-05-08)`                                |
| temporal | facts with an absolute date in the sentence, `Anna - visited - Rome (on ...)`    |
| topic    | all objects of a subject and phrase, `Anna - visited - Rome; Oslo`               |
| others   | as entity                                                                        |
| summary  | the numbered chunks, then the notes                                              |

A fact is read from a relation's first way of saying it in the first person, from its phrase in the
third (`Tom lives in Oslo`), and by entity and temporal from any sentence of the form name, verb,
object. What is said in other words, or dated by `yesterday`, is beyond these rules.

What it leaves out: meaning (`rlroute.memory.encoder_tiers`). Source: BudgetMem (arXiv 2602.06025,
implementation strategy), where spaCy takes the place of the patterns.

How to use: `tier = make_rules_tier(module, RulesTierSpec(kind="rules"), "low", keep=5)`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from rlroute.data.encoders import dump_json, hash_parts
from rlroute.extras import require
from rlroute.memory.base import Chunk, ModuleInput, ModuleRun, Tier
from rlroute.memory.chunks import read_line, split_sentences
from rlroute.memory.config import ModuleSpec, RulesTierSpec
from rlroute.memory.lexicon import RELATIONS, Relation
from rlroute.memory.rules_dates import find_dates, parse_day, remove_dates, write_day
from rlroute.types import RLRouteError

VERSION = "rules 1"
REMEMBERED_CHUNKS = 8192
WORD = re.compile(r"\w+")
NAME = r"[A-Z][\w'-]*(?: [A-Z][\w'-]*)*"

# Where an object ends: at a mark, or before a word that begins something else.
OBJECT = (
    r"(?P<object>[^\s.,;:!?\"][^.,;:!?\"]*?)(?=\s*[.,;:!?\"]|\s*$|\s+(?:and (?:i|we|it|my|he|she|"
    r"they)|but|because|since|while|when|so|which|who|where|now|again|these days|at the moment|"
    r"right now|with|for|to|from|until|after|before)\b)"
)
VERB = (
    r"(?:is|was|are|were|has|had|became|went|met|wrote|won|made|took|got|bought|sold|left|found|"
    r"saw|gave|began|ran|built|[a-z]{2,}(?:s|ed))"
)
PREPOSITION = r"(?:in|at|for|to|as|on|with|by|of|from)"
SENTENCE_FORM = re.compile(
    rf"^(?P<subject>(?:The )?{NAME}) (?P<phrase>{VERB}(?: {PREPOSITION})?) (?i:{OBJECT})"
)


@dataclass(frozen=True)
class Statement:
    """A fact that was read from a sentence; dates are ISO, empty where unknown."""

    subject: str
    phrase: str
    object: str
    said_on: str
    happened_on: str = ""


@dataclass(frozen=True)
class Sentence:
    """A sentence of a chunk without its dates; `speaker` is empty in a document.

    `absolute_date` is the first date that is written out, `date` the first of any sort.
    """

    speaker: str
    text: str
    said_on: str
    absolute_date: str
    date: str


def read_sentences(chunks: Sequence[Chunk]) -> Iterator[Sentence]:
    """Yield the sentences of chunks, in order, a sentence that was cut in two as two."""
    for chunk in chunks:
        yield from read_chunk(chunk)


@lru_cache(maxsize=REMEMBERED_CHUNKS)
def read_chunk(chunk: Chunk) -> tuple[Sentence, ...]:
    """Return the sentences of a chunk; every extractor reads the same few chunks."""
    told_on = parse_day(chunk.when)
    said_on = write_day(chunk.when)
    sentences = []
    for line in chunk.text.splitlines():
        spoken = read_line(line)
        for text in split_sentences(spoken.text):
            mentions = [mention for mention in find_dates(text, told_on) if mention.date]
            absolute = [mention.date for mention in mentions if not mention.relative]
            sentences.append(
                Sentence(
                    spoken.speaker,
                    remove_dates(text),
                    said_on,
                    absolute[0] if absolute else "",
                    mentions[0].date if mentions else "",
                )
            )
    return tuple(sentences)


@lru_cache(maxsize=1)
def load_stop_words() -> frozenset[str]:
    """Return common English words, the list of bm25s."""
    return frozenset(require("bm25s.stopwords", "memory").STOPWORDS_EN_PLUS)


def find_key_words(text: str) -> frozenset[str]:
    """Return the words of a text in lower case, without stop words."""
    return frozenset(WORD.findall(text.lower())) - load_stop_words()


def compute_overlap(query_words: frozenset[str], text: str) -> float:
    """Return the share of the query's words that a text holds; 0 where the query has none."""
    if not query_words:
        return 0.0
    return len(query_words.intersection(WORD.findall(text.lower()))) / len(query_words)


def keep_best(
    chunks: Sequence[Chunk], scores: Sequence[float], least: float, keep: int
) -> tuple[Chunk, ...]:
    """Return up to `keep` chunks that score `least` or more, the best first, equals in order.

    Where there is none, the first `keep` chunks stand.
    """
    order = sorted(range(len(chunks)), key=lambda index: -scores[index])
    kept = [chunks[index] for index in order if scores[index] >= least]
    return tuple(kept[:keep] or chunks[:keep])


def find_relations(names: Sequence[str]) -> tuple[Relation, ...]:
    """Return the relations of these names; all of the lexicon where none is named.

    Raises:
        RLRouteError: a name is not in the lexicon.
    """
    unknown = [name for name in names if name not in RELATIONS]
    if unknown:
        raise RLRouteError(
            f"relation '{unknown[0]}' is not in the lexicon; there are {', '.join(RELATIONS)}"
        )
    return tuple(RELATIONS[name] for name in names or RELATIONS)


@lru_cache(maxsize=256)
def compile_way(way: str) -> re.Pattern[str]:
    """Return the pattern of a way of saying something, with the object as a group."""
    before, after = (re.escape(part) for part in way.split("{}"))
    return re.compile(rf"(?<!\w){before}{OBJECT}{after}", re.IGNORECASE)


@lru_cache(maxsize=256)
def compile_phrase(phrase: str) -> re.Pattern[str]:
    """Return the pattern of a phrase in the third person: subject, phrase, object."""
    subject = rf"(?:\b(?i:my) (?P<kin>\w+)|(?P<name>{NAME}))"
    return re.compile(rf"{subject} {re.escape(phrase)} (?i:{OBJECT})")


def match_relation(sentence: Sentence, relation: Relation) -> Iterator[tuple[str, str]]:
    """Yield subject and object wherever a sentence states a relation in a form that rules know."""
    if sentence.speaker:
        for match in compile_way(relation.ways[0]).finditer(sentence.text):
            yield sentence.speaker, match["object"]
    for match in compile_phrase(relation.phrase).finditer(sentence.text):
        if match["name"] and match["name"].lower() not in load_stop_words():
            yield match["name"], match["object"]
        elif match["kin"] and sentence.speaker:
            yield f"{sentence.speaker}'s {match['kin']}", match["object"]


def read_statements(
    chunks: Sequence[Chunk], relations: Sequence[Relation], any_verb: bool
) -> list[Statement]:
    """Return the statements of chunks, in order; `any_verb` admits verbs outside the relations."""
    found: list[Statement] = []
    for sentence in read_sentences(chunks):
        dates = (sentence.said_on, sentence.absolute_date)
        known = [
            Statement(subject, relation.phrase, thing, *dates)
            for relation in relations
            for subject, thing in match_relation(sentence, relation)
        ]
        match = SENTENCE_FORM.match(sentence.text) if any_verb and not known else None
        if match is not None and match["subject"].lower() not in load_stop_words():
            known.append(Statement(match["subject"], match["phrase"], match["object"], *dates))
        found += known
    return found


def write_note(subject: str, phrase: str, thing: str, context: str = "") -> str:
    """Return a note in one line; marks that structure notes are taken out of its parts."""
    parts = [
        re.sub(r"[()]", "", " ".join(part.split())).replace(" - ", ", ").strip(" .,;:!?\"'")
        for part in (subject, phrase, thing)
    ]
    return " - ".join(parts) + (f" ({context})" if context else "")


def write_facts(statements: Sequence[Statement]) -> tuple[str, ...]:
    """Return one note for each statement, with the day on which it was said."""
    notes = [
        write_note(item.subject, item.phrase, item.object, item.said_on and f"said {item.said_on}")
        for item in statements
    ]
    return tuple(dict.fromkeys(notes))


def write_dated_facts(statements: Sequence[Statement]) -> tuple[str, ...]:
    """Return one note for each statement of which it is known when it happened."""
    notes = [
        write_note(item.subject, item.phrase, item.object, f"on {item.happened_on}")
        for item in statements
        if item.happened_on
    ]
    return tuple(dict.fromkeys(notes))


def write_lists(statements: Sequence[Statement]) -> tuple[str, ...]:
    """Return one note for each subject and phrase, with all their objects."""
    things_by_kind: dict[tuple[str, str], dict[str, str]] = {}
    for item in statements:
        things = things_by_kind.setdefault((item.subject, item.phrase), {})
        things.setdefault(item.object.casefold(), item.object)
    return tuple(
        write_note(subject, phrase, "; ".join(things.values()))
        for (subject, phrase), things in things_by_kind.items()
    )


WriteNotes = Callable[[Sequence[Statement]], tuple[str, ...]]

# How the known extractors write; those of users write facts.
WRITERS: Mapping[str, WriteNotes] = {"temporal": write_dated_facts, "topic": write_lists}


class RulesFilter:
    """Keeps the chunks that share words with the question."""

    def __init__(self, name: str, keep: int) -> None:
        self.name = name
        self.keep = keep

    def fingerprint(self) -> str:
        """Return the hash of the number of chunks that are kept."""
        return hash_parts(dump_json([VERSION, "filter", self.keep]))

    async def run_many(self, inputs: Sequence[ModuleInput]) -> list[ModuleRun]:
        """Return chunks, the best first."""
        return [ModuleRun(self._filter(item)) for item in inputs]

    def _filter(self, item: ModuleInput) -> tuple[Chunk, ...]:
        query_words = find_key_words(item.question.query.text)
        scores = [compute_overlap(query_words, chunk.text) for chunk in item.chunks]
        return keep_best(item.chunks, scores, least=1e-9, keep=self.keep)


class RulesExtractor:
    """Takes notes by patterns; see the module's text for how the known extractors differ."""

    def __init__(self, name: str, module_name: str, relations: Sequence[Relation]) -> None:
        self.name = name
        self.relations = tuple(relations)
        self._module_name = module_name
        self._write = WRITERS.get(module_name, write_facts)
        self._any_verb = module_name in ("entity", "temporal")

    def fingerprint(self) -> str:
        """Return the hash of the module and of what its relations look like."""
        looks = [[relation.phrase, relation.ways[0]] for relation in self.relations]
        return hash_parts(dump_json([VERSION, "extract", self._module_name, looks]))

    async def run_many(self, inputs: Sequence[ModuleInput]) -> list[ModuleRun]:
        """Return notes in the order of the chunks."""
        return [
            ModuleRun(self._write(read_statements(item.chunks, self.relations, self._any_verb)))
            for item in inputs
        ]


class RulesSummary:
    """Puts everything together: the chunks as they are, then the notes."""

    def __init__(self, name: str) -> None:
        self.name = name

    def fingerprint(self) -> str:
        """Return the hash of this version."""
        return hash_parts(dump_json([VERSION, "summary"]))

    async def run_many(self, inputs: Sequence[ModuleInput]) -> list[ModuleRun]:
        """Return texts of numbered chunks and of notes by module."""
        return [ModuleRun(concatenate(item)) for item in inputs]


def concatenate(item: ModuleInput) -> str:
    """Return the numbered chunks with their dates, and the notes of each module under its name."""
    parts = [
        f"[{number}]{f' ({chunk.when})' if chunk.when else ''}\n{chunk.text}"
        for number, chunk in enumerate(item.chunks, start=1)
    ]
    parts += ["\n".join([f"{name}:", *notes]) for name, notes in item.notes.items() if notes]
    return "\n\n".join(parts)


def make_rules_tier(module: ModuleSpec, tier: RulesTierSpec, name: str, keep: int) -> Tier:
    """Make the rules tier of a module; `keep` is how many chunks a filter hands on at most.

    An extractor that names no relations looks for all of the lexicon.

    Raises:
        RLRouteError: a relation is not in the lexicon.
    """
    if module.role == "filter":
        return RulesFilter(name, keep)
    if module.role == "summary":
        return RulesSummary(name)
    return RulesExtractor(name, module.name, find_relations(module.relations))
