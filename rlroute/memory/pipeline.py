"""A memory pipeline that runs: any tier of any module on any input, and whole questions.

The modules of a stage run at the same time (`asyncio.gather`), the tiers of a module too. Equal
inputs of a batch run once, and what the store holds is not run at all. A module that fails takes
down what depends on it: nothing of that is run, all of it has the failure of the first one, and the
question's cost is NaN.

What it leaves out: limits of concurrency, retries and prices (the pool's), the choice of tiers, and
grading.

How to use:
    pipeline = open_pipeline(config, data, models, candidates, store)
    traces = await pipeline.run(questions, [(0, 2, 1, 0, 1)] * len(questions))
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from rlroute.data.encoders import dump_json, hash_parts
from rlroute.memory.base import (
    Answerer,
    AnswerRun,
    Chunk,
    MemoryQuestion,
    Module,
    ModuleInput,
    ModuleOutput,
    ModuleRun,
    Role,
    Tier,
)
from rlroute.memory.outcomes import ModuleFacts, PipelineFacts
from rlroute.memory.store import RunStore, make_answer_key, make_run_key
from rlroute.types import FailureKind, RLRouteError

ALLOWED_OUTPUTS: Mapping[Role, str] = {
    "filter": "a tuple of chunks that it was given, none twice",
    "extract": "a tuple of texts",
    "summary": "a text",
}


class ChunkFinder(Protocol):
    """Finds the chunks that a filter reads."""

    def fingerprint(self) -> str:
        """Return a hash of everything that its finds depend on, besides the question."""

    def retrieve(self, question: str, history_id: str) -> tuple[Chunk, ...]:
        """Return chunks of a history, best first."""


@dataclass(frozen=True)
class PipelineTrace:
    """One question's way through the pipeline; `runs` and `tiers` in the order of the modules."""

    question: MemoryQuestion
    tiers: tuple[int, ...]
    retrieved: tuple[Chunk, ...]
    runs: tuple[ModuleRun, ...]
    answer: AnswerRun

    @property
    def failure(self) -> FailureKind | None:
        """The first failure, that of the answer included; None where all went well."""
        failures = [*(run.failure for run in self.runs), self.answer.failure]
        return next((failure for failure in failures if failure is not None), None)

    @property
    def cost_usd(self) -> float:
        """What all modules cost together, without the answer; NaN where one of them failed."""
        if any(run.failure is not None for run in self.runs):
            return math.nan
        return math.fsum(run.cost_usd for run in self.runs)


class Pipeline:
    """Modules, a retriever, an answerer and the store of what they made.

    Args:
        modules: the filter, the extractors, the summary.
        retriever: finds chunks.
        answerer: answers from summaries.
        store: what was run before; None for a new one in memory.
        source: a hash of the histories and questions, part of the pipeline's own.
    """

    def __init__(
        self,
        modules: Sequence[Module],
        retriever: ChunkFinder,
        answerer: Answerer,
        store: RunStore | None = None,
        source: str = "",
    ) -> None:
        self.modules = tuple(modules)
        self.retriever = retriever
        self.answerer = answerer
        self.store = RunStore() if store is None else store
        self._tier_fingerprints = [
            [tier.fingerprint() for tier in module.tiers] for module in self.modules
        ]
        self._answerer_fingerprint = answerer.fingerprint()
        self.facts = self._describe(source)

    def _describe(self, source: str) -> PipelineFacts:
        """Return what policies and reports say of the pipeline."""
        modules = tuple(
            ModuleFacts(
                module.name,
                module.role,
                module.description,
                tuple(tier.name for tier in module.tiers),
            )
            for module in self.modules
        )
        parts = [
            [[module.name, module.role] for module in self.modules],
            self._tier_fingerprints,
            self.retriever.fingerprint(),
            self._answerer_fingerprint,
            source,
        ]
        return PipelineFacts(modules, hash_parts(b"pipeline", dump_json(parts)))

    def retrieve(self, question: MemoryQuestion) -> tuple[Chunk, ...]:
        """Return the chunks that the filter reads for a question."""
        return self.retriever.retrieve(question.query.text, question.history_id)

    async def run_module_many(
        self, step: int, tier_B: Sequence[int], inputs: Sequence[ModuleInput]
    ) -> list[ModuleRun]:
        """Run the module at `step` on B inputs, each in its tier; one run each, in order.

        Raises:
            RLRouteError: a tier does not exist, or made something that its role may not.
        """
        module, fingerprints = self.modules[step], self._tier_fingerprints[step]
        _check_tiers(module, tier_B)
        asked = list(zip(tier_B, inputs, strict=True))
        keys = [make_run_key(fingerprints[tier], module.role, work) for tier, work in asked]
        asked_by_key = dict(zip(keys, asked, strict=True))
        runs: dict[str, ModuleRun] = {}
        missing: dict[int, dict[str, ModuleInput]] = {}
        for key, (tier, work) in asked_by_key.items():
            kept = self.store.find_run(key, work)
            if kept is None:
                missing.setdefault(tier, {})[key] = work
            else:
                runs[key] = kept
        made = await asyncio.gather(
            *(
                _run_tier(module, module.tiers[tier], list(works.values()))
                for tier, works in missing.items()
            )
        )
        for works, group in zip(missing.values(), made, strict=True):
            new = dict(zip(works, group, strict=True))
            self.store.keep_runs(new)
            runs |= new
        return [runs[key] for key in keys]

    async def answer_many(
        self, questions: Sequence[MemoryQuestion], summaries: Sequence[str]
    ) -> list[AnswerRun]:
        """Answer questions from summaries, equal ones once; one answer each, in order."""
        asked = list(zip(questions, summaries, strict=True))
        keys = [make_answer_key(self._answerer_fingerprint, *one) for one in asked]
        asked_by_key = dict(zip(keys, asked, strict=True))
        answers: dict[str, AnswerRun] = {}
        missing: list[str] = []
        for key in asked_by_key:
            kept = self.store.find_answer(key)
            if kept is None:
                missing.append(key)
            else:
                answers[key] = kept
        if missing:
            made = await self.answerer.answer_many(
                [asked_by_key[key][0] for key in missing],
                [asked_by_key[key][1] for key in missing],
            )
            new = dict(zip(missing, made, strict=True))
            self.store.keep_answers(new)
            answers |= new
        return [answers[key] for key in keys]

    async def run(
        self, questions: Sequence[MemoryQuestion], tiers: Sequence[Sequence[int]]
    ) -> list[PipelineTrace]:
        """Answer questions, each with a tier for every module; one trace each, in order.

        Raises:
            RLRouteError: the tiers of a question are not one for each module, or do not exist.
        """
        for row in tiers:
            if len(row) != len(self.modules):
                raise RLRouteError(
                    f"{len(row)} tiers stated for {len(self.modules)} modules; state one for each"
                )
        tier_rows = [tuple(int(tier) for tier in row) for row in tiers]
        for step, module in enumerate(self.modules):
            _check_tiers(module, [row[step] for row in tier_rows])
        retrieved = [self.retrieve(question) for question in questions]
        lanes = [
            _Lane(question, row, chunks)
            for question, row, chunks in zip(questions, tier_rows, retrieved, strict=True)
        ]
        last = len(self.modules) - 1
        await self._run_stage([0], lanes)
        await self._run_stage(range(1, last), lanes)
        await self._run_stage([last], lanes)
        return await self._finish(lanes)

    async def _run_stage(self, steps: Sequence[int], lanes: Sequence[_Lane]) -> None:
        """Run modules side by side in all lanes; lanes that failed before have failed again."""
        sound = [lane for lane in lanes if lane.failure is None]
        works = [lane.make_input(self.modules) for lane in sound]
        made = await asyncio.gather(
            *(
                self.run_module_many(step, [lane.tiers[step] for lane in sound], works)
                for step in steps
            )
        )
        for lane in lanes:
            if lane.failure is not None:
                lane.runs += [_make_failed(self.modules[s], lane.failure) for s in steps]
        for lane, runs in zip(sound, zip(*made, strict=True), strict=True):
            lane.runs += runs

    async def _finish(self, lanes: Sequence[_Lane]) -> list[PipelineTrace]:
        """Answer in the lanes whose summary was made."""
        sound = [lane for lane in lanes if lane.failure is None]
        answers = await self.answer_many(
            [lane.question for lane in sound], [str(lane.runs[-1].output) for lane in sound]
        )
        left = iter(answers)
        return [
            PipelineTrace(
                lane.question,
                lane.tiers,
                lane.retrieved,
                tuple(lane.runs),
                next(left) if lane.failure is None else AnswerRun("", failure=lane.failure),
            )
            for lane in lanes
        ]


class _Lane:
    """A question on its way."""

    def __init__(
        self, question: MemoryQuestion, tiers: tuple[int, ...], retrieved: tuple[Chunk, ...]
    ) -> None:
        self.question, self.tiers, self.retrieved = question, tiers, retrieved
        self.runs: list[ModuleRun] = []

    @property
    def failure(self) -> FailureKind | None:
        """The first failure so far."""
        return next((run.failure for run in self.runs if run.failure is not None), None)

    def make_input(self, modules: Sequence[Module]) -> ModuleInput:
        """Return what the next stage reads."""
        if not self.runs:
            return ModuleInput(self.question, self.retrieved)
        notes = {
            module.name: read_notes(run)
            for module, run in zip(modules[1:], self.runs[1:], strict=False)
        }
        return ModuleInput(self.question, read_chunks(self.runs[0]), notes)


def read_chunks(run: ModuleRun) -> tuple[Chunk, ...]:
    """Return the output of a filter."""
    return tuple(item for item in run.output if isinstance(item, Chunk))


def read_notes(run: ModuleRun) -> tuple[str, ...]:
    """Return the output of an extractor."""
    return tuple(item for item in run.output if isinstance(item, str))


def _make_failed(module: Module, failure: FailureKind) -> ModuleRun:
    """Return the run of a module that was not run because of an earlier failure."""
    return ModuleRun("" if module.role == "summary" else (), failure=failure)


def _check_tiers(module: Module, tier_B: Sequence[int]) -> None:
    """Raise RLRouteError where a tier is none of the module's."""
    wrong = next((tier for tier in tier_B if not 0 <= tier < len(module.tiers)), None)
    if wrong is not None:
        raise RLRouteError(
            f"module '{module.name}' has no tier {wrong} (allowed: 0 to {len(module.tiers) - 1})"
        )


async def _run_tier(module: Module, tier: Tier, works: Sequence[ModuleInput]) -> list[ModuleRun]:
    """Run one tier, and check that it made what its role may make."""
    runs = await tier.run_many(works)
    where = f"module '{module.name}', tier '{tier.name}'"
    if len(runs) != len(works):
        raise RLRouteError(f"{where}: {len(runs)} runs for {len(works)} inputs; return one each")
    for work, run in zip(works, runs, strict=True):
        if run.failure is None and not _fits_role(module.role, work, run.output):
            raise RLRouteError(f"{where}: its output must be {ALLOWED_OUTPUTS[module.role]}")
        if run.failure is None and not 0 <= run.cost_usd < math.inf:
            raise RLRouteError(f"{where}: its cost is {run.cost_usd} USD (allowed: 0 or more)")
    return runs


def _fits_role(role: Role, work: ModuleInput, output: ModuleOutput) -> bool:
    """Say whether an output is one of a module of this role."""
    if role == "summary":
        return isinstance(output, str)
    if not isinstance(output, tuple):
        return False
    if role == "extract":
        return all(isinstance(item, str) for item in output)
    ids = {chunk.id for chunk in work.chunks}
    chosen = [item.id for item in output if isinstance(item, Chunk)]
    return len(chosen) == len(output) == len(set(chosen)) and ids.issuperset(chosen)
