"""A memory pipeline of plain arithmetic: what modules say and cost follows from hashes and prices.

Costs are tokens times a tier's price, so they can be worked out by hand. It keeps what it ran, by
content, and counts.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

import numpy as np

from rlroute.memory.base import AnswerRun, Chunk, MemoryQuestion, ModuleInput, ModuleRun, Role
from rlroute.memory.enumerate import enumerate_tree
from rlroute.memory.outcomes import ModuleFacts, PipelineFacts
from rlroute.memory.tree import TierTree
from rlroute.seeding import draw_uniform, mix
from rlroute.types import FailureKind, Query

PRICES = (0.001, 0.003, 0.01, 0.02)  # USD per token of a tier's output, made up and large


class HashEncoder:
    """Vectors of length 1 that follow from a text's checksum."""

    kind = "hash"
    dimension = 8

    def __init__(self) -> None:
        self.encoded: Counter[str] = Counter()

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.encoded.update(texts)
        value_NE = np.array([draw_uniform(text, np.arange(self.dimension)) for text in texts])
        value_NE = value_NE.reshape(len(texts), self.dimension) - 0.5
        return (value_NE / np.linalg.norm(value_NE, axis=1, keepdims=True)).astype(np.float32)

    def fingerprint(self) -> str:
        return "hash-encoder"


def make_facts(tier_counts: Sequence[int]) -> PipelineFacts:
    names = ["filter", *[f"notes{place}" for place in range(len(tier_counts) - 2)], "summary"]
    roles: list[Role] = ["filter", *["extract"] * (len(tier_counts) - 2), "summary"]
    modules = tuple(
        ModuleFacts(name, role, f"What {name} does.", tuple(f"tier{k}" for k in range(count)))
        for name, role, count in zip(names, roles, tier_counts, strict=True)
    )
    return PipelineFacts(modules, fingerprint="arithmetic")


def make_questions(count: int) -> tuple[MemoryQuestion, ...]:
    return tuple(
        MemoryQuestion(
            Query(f"q{n}", f"question {n}", "kind", references=("right",), metadata={"n": str(n)}),
            history_id=f"h{n // 4}",
            evidence=(f"turn{n}",),
        )
        for n in range(count)
    )


def grade(question: MemoryQuestion, answer: str) -> float:
    return {"right": 1.0, "half": 0.5}.get(answer, 0.0)


class ArithmeticPipeline:
    """See the module's text; `failing` holds (step, tier, question id) of runs that fail.

    Tiers of a filter in `alike` give what the tier before them gives; extractors have 0 to 2 notes,
    `fewest` at least.
    """

    def __init__(self, tier_counts: Sequence[int] = (3, 3, 3, 3, 3)) -> None:
        self.facts = make_facts(tier_counts)
        self.failing: set[tuple[int, int, str]] = set()
        self.failing_answers: set[str] = set()  # question ids
        self.alike: set[int] = set()
        self.fewest = 0
        self.kept: dict[tuple, ModuleRun] = {}
        self.module_runs: Counter[tuple[int, str]] = Counter()  # by step and question id
        self.answers: Counter[str] = Counter()
        self.running = self.most_at_once = 0

    def retrieve(self, question: MemoryQuestion) -> tuple[Chunk, ...]:
        texts = [f"{question.query.id} said {n} in {question.history_id}" for n in range(4)]
        return tuple(Chunk(f"{question.query.id}:{n}", text) for n, text in enumerate(texts))

    async def run_module_many(
        self, step: int, tier_B: Sequence[int], inputs: Sequence[ModuleInput]
    ) -> list[ModuleRun]:
        self.running += 1
        self.most_at_once = max(self.most_at_once, self.running)
        await asyncio.sleep(0)
        found = [self.run_one(step, int(k), one) for k, one in zip(tier_B, inputs, strict=True)]
        self.running -= 1
        return found

    def run_one(self, step: int, tier: int, given: ModuleInput) -> ModuleRun:
        notes = tuple((name, tuple(lines)) for name, lines in given.notes.items())
        key = (step, tier, given.question.query.id, given.chunks, notes)
        if key not in self.kept:
            self.module_runs[step, given.question.query.id] += 1
            if (step, tier, given.question.query.id) in self.failing:
                return ModuleRun(output=(), cost_usd=0.0, failure=FailureKind.TIMEOUT)
            self.kept[key] = self.work(step, tier, given)
        return self.kept[key]

    def work(self, step: int, tier: int, given: ModuleInput) -> ModuleRun:
        if step == 0:
            kept = 4 - (tier - (tier in self.alike))
            return ModuleRun(given.chunks[:kept], PRICES[tier] * 4)
        if step < len(self.facts.modules) - 1:
            lines = int(mix(step, tier, given.question.query.id, len(given.chunks))) % 3
            lines, name = max(lines, self.fewest), self.facts.modules[step].name
            notes = tuple(
                f"{name} - {tier} - {n} ({len(given.chunks)} chunks)" for n in range(lines)
            )
            return ModuleRun(notes, PRICES[tier] * (1 + len(given.chunks)))
        lines = [line for some in given.notes.values() for line in some]
        return ModuleRun(f"tier {tier}: " + "; ".join(lines), PRICES[tier] * (1 + len(lines)))

    async def answer_many(
        self, questions: Sequence[MemoryQuestion], summaries: Sequence[str]
    ) -> list[AnswerRun]:
        found = []
        for question, summary in zip(questions, summaries, strict=True):
            self.answers[question.query.id] += 1
            if question.query.id in self.failing_answers:
                found.append(AnswerRun("", failure=FailureKind.SERVER))
                continue
            word = ("right", "half", "wrong")[int(mix(question.query.id, summary)) % 3]
            found.append(AnswerRun(word, cost_usd=0.0001 * len(summary)))
        return found


def make_tree(
    questions: int = 6, tier_counts: Sequence[int] = (3, 3, 3, 3, 3), failing: Sequence = ()
) -> TierTree:
    pipeline = ArithmeticPipeline(tier_counts)
    pipeline.failing = set(failing)
    return enumerate_tree(pipeline, make_questions(questions), HashEncoder(), grade)
