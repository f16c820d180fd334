"""The nouns of a memory pipeline, and what each of its parts promises.

    history -> chunks -> retriever -> FILTER -> entity | temporal | topic -> SUMMARY -> answer

A module does one piece of work in one of several tiers; a tier is any object with `fingerprint` and
`run_many`. There is one module of role `filter`, then one or more of role `extract`, which do not
see each other and run side by side, then one of role `summary`. The answerer sees the question and
the summary, nothing else, and is not routed.

    role     reads                                  output
    filter   question, retrieved chunks             some of the chunks, best first
    extract  question, filtered chunks              notes, one line each (see below)
    summary  question, filtered chunks, all notes   text

A note is one line `SUBJECT - RELATION - OBJECT (CONTEXT)`; the context, which may be missing, holds
an ISO date where one is known. What was run once on equal content is never run again
(`rlroute.memory.pipeline`), so a tier's output may depend on nothing but its fingerprint and input.

What it leaves out: behaviour. Source: BudgetMem (arXiv 2602.06025, sections on pipeline and tiers).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

from rlroute.types import FailureKind, Query, SplitName, Usage

Role: TypeAlias = Literal["filter", "extract", "summary"]


@dataclass(frozen=True)
class Turn:
    """What someone said; `caption` describes a picture that was shared with it."""

    id: str
    speaker: str
    text: str
    caption: str = ""


@dataclass(frozen=True)
class Session:
    """Turns of one occasion; `when` is its date, ISO (YYYY-MM-DD...) or as its authors wrote it."""

    when: str
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class History:
    """What is to be remembered: a conversation of many sessions, or a list of documents."""

    id: str
    sessions: tuple[Session, ...] = ()
    documents: tuple[str, ...] = ()


@dataclass(frozen=True)
class MemoryQuestion:
    """A question about a history.

    `query.task` is the kind of question, `query.references` the gold answers. `evidence` names the
    turns that hold the answer, where the data say so: for graders and reports, never for a policy.
    """

    query: Query
    history_id: str
    evidence: tuple[str, ...] = ()
    asked_on: str = ""


Grade: TypeAlias = Callable[[MemoryQuestion, str], float]  # an answer to its score in [0, 1]


@dataclass(frozen=True)
class MemoryData:
    """Histories and the questions about them; no history is in two splits. `grade` is pure."""

    name: str
    histories: Mapping[str, History]
    questions: Mapping[SplitName, tuple[MemoryQuestion, ...]]
    grade: Grade


@dataclass(frozen=True)
class Chunk:
    """A piece of a history, of one session. `turn_ids` are the turns in it (none: a document)."""

    id: str
    text: str
    when: str = ""
    turn_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModuleInput:
    """What a module reads: chunks, and for a summary the notes by module, in pipeline order."""

    question: MemoryQuestion
    chunks: tuple[Chunk, ...]
    notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


ModuleOutput: TypeAlias = tuple[Chunk, ...] | tuple[str, ...] | str


@dataclass(frozen=True)
class ModuleRun:
    """What a module made of its input, in one tier.

    `cost_usd` is what the run costs, also where it was kept from before. A run with `failure` set
    has an empty output and is worth nothing: whatever depends on it has failed as well. `malformed`
    says that a model's reply could not be read as asked and a fallback stands in its place, which
    is no failure. `seconds` is None where it was not measured.
    """

    output: ModuleOutput
    cost_usd: float = 0.0
    usage: Usage | None = None
    seconds: float | None = None
    failure: FailureKind | None = None
    malformed: bool = False


@dataclass(frozen=True)
class AnswerRun:
    """What the answerer said, and what that cost; see `ModuleRun`."""

    text: str
    cost_usd: float = 0.0
    usage: Usage | None = None
    failure: FailureKind | None = None


class Tier(Protocol):
    """One way of doing a module's work."""

    @property
    def name(self) -> str:
        """What it is called, such as Low."""

    def fingerprint(self) -> str:
        """Return a hash of everything that its outputs and costs depend on, besides the input."""

    async def run_many(self, inputs: Sequence[ModuleInput]) -> list[ModuleRun]:
        """Work on several inputs, one run each in their order; failures are returned, not raised.

        A run depends on its own input only, however many others come with it.
        """


class Answerer(Protocol):
    """Answers from a summary."""

    def fingerprint(self) -> str:
        """Return a hash of everything that its answers and costs depend on, besides the input."""

    async def answer_many(
        self, questions: Sequence[MemoryQuestion], summaries: Sequence[str]
    ) -> list[AnswerRun]:
        """Return one answer each, in order; failures are returned, not raised."""


@dataclass(frozen=True)
class Module:
    """A module and its tiers, the cheapest first. `description` says in a sentence what it does."""

    name: str
    role: Role
    description: str
    tiers: tuple[Tier, ...]
