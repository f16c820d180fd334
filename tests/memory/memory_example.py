"""A small history, tiers that do arithmetic on texts, and a pool that writes what it is told."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pool"))

from fault_server import run_fault_server

from rlroute.memory.base import (
    AnswerRun,
    Chunk,
    MemoryQuestion,
    Module,
    ModuleInput,
    ModuleOutput,
    ModuleRun,
    Role,
)
from rlroute.memory.config import LlmTierSpec, ModuleSpec
from rlroute.memory.pipeline import Pipeline
from rlroute.memory.store import RunStore
from rlroute.types import Call, Candidate, FailureKind, Prices, Query, Reply, Usage

__all__ = ["run_fault_server"]

PRICES = Prices(2.0, 10.0)
CANDIDATE = Candidate("large", PRICES)
CHUNKS = tuple(
    Chunk(f"h:0:{n}", f'Anna said "fact {n}"', f"2023-05-0{n + 1}", (f"t{n}",)) for n in range(5)
)
EXTRACTORS = ("entity", "temporal", "topic")


def make_question(name: str = "q1") -> MemoryQuestion:
    """Return a question about the history."""
    return MemoryQuestion(Query(name, f"What is {name}?", references=("x",)), "h", ("t1",))


def make_spec(name: str, role: Role) -> ModuleSpec:
    """Return a module as YAML would state it; its tiers are made elsewhere."""
    return ModuleSpec(
        name=name,
        role=role,
        description=f"Does {name}.",
        instructions=f"Criteria of {name}.",
        tiers=(
            LlmTierSpec(kind="llm", candidate="large"),
            LlmTierSpec(kind="llm", candidate="large", prompt="cot"),
        ),
    )


@dataclass
class WritingPool:
    """Answers each call with what `write` returns: a text, or a failure billed 0.5 USD."""

    write: Callable[[Call], str | FailureKind]
    calls: list[Call] = field(default_factory=list)

    async def ask_many(self, calls: Sequence[Call]) -> list[Reply]:
        """Return one reply per call."""
        self.calls += calls
        return [self.reply(call) for call in calls]

    def reply(self, call: Call) -> Reply:
        """Return the reply to a call: 1,000 prompt tokens, 100 completion tokens."""
        written = self.write(call)
        if isinstance(written, FailureKind):
            return Reply(call, failure=written, cost_usd=0.5)
        usage = Usage(1000, 100)
        cost_usd = PRICES.compute_cost(1000, 100)
        return Reply(call, written, usage, cost_usd, latency_seconds=0.25)


@dataclass
class ScriptedTier:
    """Makes what `make` says, for `cost_usd`; fails for the questions in `fails_for`."""

    name: str
    make: Callable[[ModuleInput], ModuleOutput]
    cost_usd: float = 0.0
    fails_for: frozenset[str] = frozenset()
    identity: str = ""
    seen: list[ModuleInput] = field(default_factory=list)

    def fingerprint(self) -> str:
        """Return its name and what it is."""
        return f"scripted {self.name} {self.identity} {self.cost_usd}"

    async def run_many(self, inputs: Sequence[ModuleInput]) -> list[ModuleRun]:
        """Work, after a turn of the event loop."""
        await asyncio.sleep(0)
        self.seen += inputs
        return [self.run(work) for work in inputs]

    def run(self, work: ModuleInput) -> ModuleRun:
        """Work on one input."""
        if work.question.query.id in self.fails_for:
            return ModuleRun((), cost_usd=0.01, failure=FailureKind.TIMEOUT)
        return ModuleRun(self.make(work), self.cost_usd, Usage(10, 2))


@dataclass
class EchoAnswerer:
    """Answers with the summary."""

    asked: int = 0

    def fingerprint(self) -> str:
        """Return its name."""
        return "echo"

    async def answer_many(
        self, questions: Sequence[MemoryQuestion], summaries: Sequence[str]
    ) -> list[AnswerRun]:
        """Return the summaries."""
        self.asked += len(questions)
        return [AnswerRun(text, 0.001) for text in summaries]


class FixedRetriever:
    """Finds the same chunks for every question."""

    def fingerprint(self) -> str:
        """Return its name."""
        return "fixed"

    def retrieve(self, question: str, history_id: str) -> tuple[Chunk, ...]:
        """Return all chunks."""
        return CHUNKS


def make_modules(*, tiers: int = 3, fails_for: frozenset[str] = frozenset()) -> list[Module]:
    """Return five modules whose outputs tell which tiers made them.

    Tier k of a filter hands on k + 1 chunks; an extractor writes its tier and how many chunks it
    saw; a summary joins all notes. Tier k costs k cents. `fails_for` is of the last entity tier.
    """

    def make_tiers(name: str, make: Callable[[int, ModuleInput], ModuleOutput]) -> tuple:
        return tuple(
            ScriptedTier(
                f"T{k}",
                lambda work, k=k: make(k, work),
                0.01 * k,
                fails_for if name == "entity" and k == tiers - 1 else frozenset(),
                name,
            )
            for k in range(tiers)
        )

    def note(name: str) -> Callable[[int, ModuleInput], ModuleOutput]:
        return lambda k, work: (f"{name} {k} of {len(work.chunks)}",)

    def sum_up(k: int, work: ModuleInput) -> ModuleOutput:
        return f"summary {k}: " + ", ".join(line for some in work.notes.values() for line in some)

    return [
        Module("filter", "filter", "", make_tiers("filter", lambda k, w: w.chunks[: k + 1])),
        *(Module(name, "extract", "", make_tiers(name, note(name))) for name in EXTRACTORS),
        Module("summary", "summary", "", make_tiers("summary", sum_up)),
    ]


def make_pipeline(modules: Sequence[Module] | None = None, store: RunStore | None = None):
    """Return a pipeline of scripted tiers, and its answerer."""
    answerer = EchoAnswerer()
    modules = make_modules() if modules is None else modules
    return Pipeline(modules, FixedRetriever(), answerer, store), answerer
