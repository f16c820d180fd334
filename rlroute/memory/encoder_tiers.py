"""The tiers made of a small encoder, which compares meanings; what it reads is charged by token.

| module     | what it does                                                                   |
| ---------- | ------------------------------------------------------------------------------ |
| filter     | score: 0.7 * cosine with the question + 0.3 * share of its words; chunks below |
|            | the threshold are dropped, and the first k stand where none is left            |
| extractors | a sentence states the relation whose ways of saying it, in the first person or |
|            | the third, are nearest, if their cosine reaches the threshold and exceeds that |
|            | of small talk; the object is cut out by program. Temporal resolves relative    |
|            | dates against the day of the chunk                                             |
| summary    | the notes in sections, those nearest to the question first, each by date and   |
|            | without repetitions, then advice on how to read them; no chunks                |

Notes look like those of `rlroute.memory.rules`. A token is a word or a mark; the encoder reads
every token of the input once, and that is charged also where a vector was kept from before.

The mistakes of these tiers are those of their kind: what is merely wished for or told of others in
unforeseen words is taken for a fact, and objects are cut wrongly.

What it leaves out: models that write. Source: BudgetMem (arXiv 2602.06025, implementation
strategy), where a model for relation extraction stands in this place.

How to use: `tier = make_encoder_tier(module, spec, "mid", keep=5)`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from rlroute.data.encoders import dump_json, hash_parts
from rlroute.memory.base import Chunk, ModuleInput, ModuleOutput, ModuleRun, Tier
from rlroute.memory.chunks import count_words
from rlroute.memory.config import EncoderTierSpec, ModuleSpec
from rlroute.memory.lexicon import Relation
from rlroute.memory.retriever import TextEmbedder, compute_cosines, share_embedder
from rlroute.memory.rules import (
    NAME,
    WRITERS,
    Sentence,
    Statement,
    compile_phrase,
    compile_way,
    compute_overlap,
    find_key_words,
    find_relations,
    keep_best,
    load_stop_words,
    read_sentences,
    write_facts,
)
from rlroute.memory.rules_dates import find_dates
from rlroute.types import TOKENS_PER_PRICE, FloatArray, IntArray, Usage

VERSION = "encoder 1"
REMEMBERED_NOTES = 65536
COSINE_SHARE, OVERLAP_SHARE = 0.7, 0.3
SCORE_DECIMALS = 6

NEUTRAL_OBJECT = "something"

# What people say that states none of the relations: a sentence nearer to these is no fact.
SMALL_TALK = (
    *("How are you?", "How was your day?", "Thanks for asking.", "That sounds great."),
    *("I am tired today.", "I slept badly.", "I feel better now.", "I am a bit nervous."),
    *("The weather is nice.", "It has been raining all day.", "The train was late again."),
    *("Everything is getting so expensive.", "I need to do the laundry.", "I cooked dinner."),
    *("Work was busy this week.", "I read something about it.", "I watched a film."),
    *("I talked to a friend about it.", "We should meet soon.", "It makes me happy."),
    *(
        "What do you think?",
        "I will tell you more another time.",
        "People say all sorts of things.",
    ),
    *("Good things take time.", "That is typical of this time of the year.", "It was a long day."),
)

# Words by which a sentence denies, doubts or wishes what it speaks of.
UNREAL = re.compile(
    r"\b(?:not|never|cannot|no longer|nobody|would|could|might|if|whether|almost|nearly|wish|hope|"
    r"dream|wanted|want|used to)\b|n't\b",
    re.IGNORECASE,
)
OTHERS = re.compile(
    r"\b(?i:my|a) (?P<kin>sister|brother|mother|father|cousin|aunt|uncle|niece|nephew|son|daughter|"
    r"grandmother|grandfather|friend|neighbour|neighbor|colleague|boss|teacher|flatmate)s?\b",
    re.IGNORECASE,
)
FIRST_PERSON = re.compile(r"\b(?:I|I'm|I've|I'd|I'll|[Ww]e|[Mm]e|[Mm]y|[Oo]ur)\b")
CLAUSE_END = re.compile(r"\s*;\s+|,\s+(?:and|but|so)\s+(?=(?:i|we|my)\b)", re.IGNORECASE)

# Objects that carry a name (with an article and a word before it), and those that carry none.
NAMES = rf"{NAME}(?: (?:and|of|the|for) (?!I\b){NAME})*"
NAMED_OBJECT = re.compile(rf"(?:\b(?:a|an|the)\s+(?:[a-z]+\s+)?)?(?P<name>\b{NAMES})")
PLAIN_OBJECT = re.compile(r"\b(?P<first>(?:a|an|the)\s+[a-z][\w-]*)(?:\s+(?P<second>[a-z][\w-]*))?")
LAST_WORDS = re.compile(
    r"\b(?:as|is|are|called|named|in|to|at|of|for|with|eating)\s+([^,:]+?)[.!?]?$"
)

ADVICE = (
    "Read the notes of the person who is asked about. Where they differ, the latest date holds. "
    "Count and list each thing once. What no note says is unknown."
)


class EncoderFilter:
    """Keeps the chunks that are near to the question in meaning and words."""

    def __init__(self, name: str, spec: EncoderTierSpec, keep: int) -> None:
        self.name = name
        self.spec = spec
        self.keep = keep
        self._embedder = share_embedder(spec.encoder)

    def fingerprint(self) -> str:
        """Return the hash of encoder, threshold, price and the number of chunks that are kept."""
        return hash_tier(self.spec, self._embedder, "filter", self.keep)

    async def run_many(self, inputs: Sequence[ModuleInput]) -> list[ModuleRun]:
        """Return chunks, the best first."""
        texts = [text for item in inputs for text in self._list_texts(item)]
        self._embedder.embed(texts)  # all inputs in one batch; below, each finds its vectors kept
        return [charge(self.spec, self._filter(item), self._list_texts(item)) for item in inputs]

    def _list_texts(self, item: ModuleInput) -> list[str]:
        """Return the question and the chunks: what is read."""
        return [item.question.query.text, *(chunk.text for chunk in item.chunks)]

    def _filter(self, item: ModuleInput) -> tuple[Chunk, ...]:
        """Return the chunks of an input that are kept."""
        vector_NE = self._embedder.embed(self._list_texts(item))
        cosine_N = compute_cosines(vector_NE[0], vector_NE[1:])
        query_words = find_key_words(item.question.query.text)
        scores = [
            COSINE_SHARE * float(cosine) + OVERLAP_SHARE * compute_overlap(query_words, chunk.text)
            for cosine, chunk in zip(cosine_N, item.chunks, strict=True)
        ]
        rounded = [round(score, SCORE_DECIMALS) for score in scores]
        return keep_best(item.chunks, rounded, self.spec.threshold, self.keep)


class EncoderExtractor:
    """Takes notes of the sentences that are near to a way of saying one of the relations."""

    def __init__(
        self, name: str, spec: EncoderTierSpec, module_name: str, relations: Sequence[Relation]
    ) -> None:
        self.name = name
        self.spec = spec
        self.relations = tuple(relations)
        self._module_name = module_name
        self._write = WRITERS.get(module_name, write_facts)
        self._embedder = share_embedder(spec.encoder)
        # A relation that is not asked for stands too: its sentences belong to none of the others.
        self._known = find_relations(())
        self._ways = [
            (relation, way.format(NEUTRAL_OBJECT))
            for relation in self._known
            for way in (*relation.ways, f"She {relation.phrase} {{}}")
        ]

    def fingerprint(self) -> str:
        """Return the hash of encoder, threshold, price, module and all ways of saying things."""
        names = [relation.name for relation in self.relations]
        looks = [[relation.phrase, *relation.ways] for relation in self._known]
        parts = [self._module_name, names, looks, SMALL_TALK]
        return hash_tier(self.spec, self._embedder, "extract", *parts)

    async def run_many(self, inputs: Sequence[ModuleInput]) -> list[ModuleRun]:
        """Return notes in the order of the chunks."""
        sentences_by_input = [list(split_clauses(read_sentences(item.chunks))) for item in inputs]
        self._embedder.embed([item.text for items in sentences_by_input for item in items])
        return [
            charge(
                self.spec,
                self._write(self._read(sentences)),
                [chunk.text for chunk in item.chunks],
            )
            for item, sentences in zip(inputs, sentences_by_input, strict=True)
        ]

    def _read(self, sentences: Sequence[Sentence]) -> list[Statement]:
        """Return the statements that sentences make, as far as they are understood."""
        statements: list[Statement] = []
        for sentence, relation in zip(sentences, self.classify(sentences), strict=True):
            if relation not in self.relations or UNREAL.search(sentence.text):
                continue
            subject = find_subject(sentence)
            thing = cut_object(sentence, relation)
            if subject and thing:
                dates = (sentence.said_on, sentence.date)
                statements.append(Statement(subject, relation.phrase, thing, *dates))
        return statements

    def classify(self, sentences: Sequence[Sentence]) -> list[Relation | None]:
        """Return the relation that each sentence is nearest to, None where none is near."""
        score_NW = self._compare(sentences, [text for _, text in self._ways])
        talk_N = self._compare(sentences, SMALL_TALK).max(axis=1, initial=-1.0)
        best_N: IntArray = score_NW.argmax(axis=1)
        return [
            self._ways[best][0]
            if score_W[best] >= self.spec.threshold and score_W[best] > talk
            else None
            for best, score_W, talk in zip(best_N, score_NW, talk_N, strict=True)
        ]

    def _compare(self, sentences: Sequence[Sentence], texts: Sequence[str]) -> FloatArray:
        """Return the cosines of N sentences and W texts [N, W]."""
        sentence_NE = self._embedder.embed([sentence.text for sentence in sentences])
        text_WE = self._embedder.embed(texts)
        rows = [compute_cosines(sentence_E, text_WE) for sentence_E in sentence_NE]
        return np.stack(rows) if rows else np.zeros((0, len(texts)), dtype=np.float32)


class EncoderSummary:
    """Puts the notes in order; the chunks are left out."""

    def __init__(self, name: str, spec: EncoderTierSpec) -> None:
        self.name = name
        self.spec = spec
        self._embedder = share_embedder(spec.encoder)

    def fingerprint(self) -> str:
        """Return the hash of encoder, price and this version."""
        return hash_tier(self.spec, self._embedder, "summary", ADVICE)

    async def run_many(self, inputs: Sequence[ModuleInput]) -> list[ModuleRun]:
        """Return texts of titled sections and advice."""
        self._embedder.embed([text for item in inputs for text in self._list_texts(item)])
        return [charge(self.spec, self._summarise(item), self._list_texts(item)) for item in inputs]

    def _list_texts(self, item: ModuleInput) -> list[str]:
        """Return the question and the notes: what is read."""
        notes = [note for notes in item.notes.values() for note in notes]
        return [item.question.query.text, *notes]

    def _summarise(self, item: ModuleInput) -> str:
        """Return the sections of an input, those with the nearest note to the question first."""
        sections = drop_repetitions(item.notes)
        query_E = self._embedder.embed([item.question.query.text])[0]
        nearness = {
            name: float(compute_cosines(query_E, self._embedder.embed(notes)).max())
            for name, notes in sections.items()
        }
        parts = [
            "\n".join([f"{name.capitalize()} notes", *sorted(sections[name], key=find_note_date)])
            for name in sorted(sections, key=lambda name: -nearness[name])
        ]
        return "\n\n".join([*(parts or ["There are no notes."]), ADVICE])


def charge(spec: EncoderTierSpec, output: ModuleOutput, texts: Sequence[str]) -> ModuleRun:
    """Return the run that made an output by reading texts, with its price."""
    tokens = sum(count_words(text) for text in texts)
    cost_usd = tokens * spec.price / TOKENS_PER_PRICE
    return ModuleRun(output, cost_usd, Usage(tokens, 0, estimated=True))


def hash_tier(spec: EncoderTierSpec, embedder: TextEmbedder, *parts: object) -> str:
    """Return the hash of a tier's settings; its name is no part of it."""
    settings = [VERSION, spec.price, spec.threshold, *parts]
    return hash_parts(dump_json(settings), embedder.encoder.fingerprint().encode("ascii"))


def split_clauses(sentences: Iterable[Sentence]) -> Iterable[Sentence]:
    """Yield the main clauses of sentences, each with the sentence's dates."""
    for sentence in sentences:
        for text in CLAUSE_END.split(sentence.text):
            if text.strip():
                yield replace(sentence, text=text.strip())


def find_subject(sentence: Sentence) -> str:
    """Return whom a sentence is about, empty where that cannot be told.

    In a conversation that is the speaker, or a relative or friend whom the sentence names before
    its speaker; in a document the name that it begins with.
    """
    if not sentence.speaker:
        match = re.match(NAME, sentence.text)
        return "" if match is None or match[0].lower() in load_stop_words() else match[0]
    first = FIRST_PERSON.search(sentence.text)
    other = OTHERS.search(sentence.text)
    if other is not None and (first is None or other.start() <= first.start()):
        return f"{sentence.speaker}'s {other['kin'].lower()}"
    return "" if first is None else sentence.speaker


def cut_object(sentence: Sentence, relation: Relation) -> str:
    """Return the words of a sentence that seem to be the object of a relation, empty without any.

    First comes what a known way of saying the relation leaves open, then a name, then a noun with
    its article, then what follows a preposition or copula, then a name at the very beginning.
    """
    text = sentence.text
    patterns = [*(compile_way(way) for way in relation.ways), compile_phrase(relation.phrase)]
    for pattern in patterns:
        match = pattern.search(text)
        if match is not None:
            return match["object"]
    names = [
        match
        for match in NAMED_OBJECT.finditer(text)
        if match["name"].lower() not in load_stop_words()
        and match["name"] != sentence.speaker
        and not FIRST_PERSON.fullmatch(match["name"])
    ]
    inside = [match[0] for match in names if match.start("name") > 0]
    if inside:
        return inside[0]
    nouns = list(PLAIN_OBJECT.finditer(text))
    if nouns:
        second = nouns[-1]["second"]
        return nouns[-1]["first"] if second in load_stop_words() else nouns[-1][0]
    last = LAST_WORDS.search(text)
    if last is not None:
        return last[1]
    return names[0][0] if names and sentence.speaker else ""


def drop_repetitions(notes: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return the notes by module, each note once, modules without any left out."""
    seen: set[str] = set()
    kept: dict[str, list[str]] = {}
    for name, lines in notes.items():
        for line in lines:
            key = " ".join(line.casefold().split())
            if key not in seen:
                seen.add(key)
                kept.setdefault(name, []).append(line)
    return kept


@lru_cache(maxsize=REMEMBERED_NOTES)
def find_note_date(note: str) -> str:
    """Return the first written-out date of a note in ISO form, empty where it has none."""
    return next((mention.date for mention in find_dates(note) if mention.date), "")


def make_encoder_tier(module: ModuleSpec, tier: EncoderTierSpec, name: str, keep: int) -> Tier:
    """Make the encoder tier of a module; `keep` is how many chunks a filter hands on at most.

    An extractor that names no relations looks for all of the lexicon.

    Raises:
        RLRouteError: a relation is not in the lexicon, or the encoder cannot be made.
    """
    if module.role == "filter":
        return EncoderFilter(name, tier, keep)
    if module.role == "summary":
        return EncoderSummary(name, tier)
    return EncoderExtractor(name, tier, module.name, find_relations(module.relations))
