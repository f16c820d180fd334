"""What came of tiers, found by running the pipeline now: `TierOutcomes` on demand.

`LiveOutcomes` remembers every module run by question and by the tiers that it depends on, so lanes
that come along the same way run once, and states and costs are what `TierTree` has for them, bit by
bit. The extractors of all lanes run at once. Failures are not kept: the next episode that comes
along tries again.

What it leaves out: keeping runs from one process to the next, and running equal content once; both
are the pipeline's (`rlroute.memory.pipeline`). It must not be called inside a running event loop.

How to use: `LiveOutcomes(pipeline, data.questions["train"], encoder, data.grade)`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np

from rlroute.data.encoders import Encoder
from rlroute.memory.base import AnswerRun, Chunk, Grade, MemoryQuestion, ModuleInput, ModuleRun
from rlroute.memory.outcomes import Answers, PipelineFacts
from rlroute.memory.pipeline import read_chunks, read_notes
from rlroute.memory.states import TextVectors, average_texts, combine_notes, embed_notes
from rlroute.memory.tree import add_in_order
from rlroute.types import BoolArray, FloatArray, IntArray, RLRouteError, UsdArray

RunKey: TypeAlias = tuple[int, ...]  # question, step, and the tiers that the run depends on
Lane: TypeAlias = tuple[int, tuple[int, ...]]  # question, and the tiers of all modules

FAILED_BEFORE = ModuleRun(output=())  # in the place of what was not run because of a failure


class TierPipeline(Protocol):
    """What of a pipeline is needed here; see `rlroute.memory.pipeline.Pipeline`."""

    @property
    def facts(self) -> PipelineFacts:
        """The pipeline's modules and tiers."""

    def retrieve(self, question: MemoryQuestion) -> tuple[Chunk, ...]:
        """Return the chunks that the filter reads."""

    async def run_module_many(
        self, step: int, tier_B: Sequence[int], inputs: Sequence[ModuleInput]
    ) -> list[ModuleRun]:
        """Run the module at `step` on several inputs, each in its tier."""

    async def answer_many(
        self, questions: Sequence[MemoryQuestion], summaries: Sequence[str]
    ) -> list[AnswerRun]:
        """Answer from summaries."""


@dataclass(frozen=True)
class GradedAnswer:
    """An answer and its score; NaN where the call failed."""

    run: AnswerRun
    score: float


NO_ANSWER = GradedAnswer(AnswerRun("", cost_usd=np.nan), np.nan)


class LiveOutcomes:
    """Runs the pipeline for lanes of questions; see the module's text.

    `vectors`, where given, are used (and added to) in place of new ones.

    Raises:
        ValueError: `look`, `run` or `answer` is called before the stages that come first were run.
        RLRouteError: `grade` returns a score outside [0, 1].
    """

    def __init__(
        self,
        pipeline: TierPipeline,
        questions: Sequence[MemoryQuestion],
        encoder: Encoder,
        grade: Grade,
        vectors: TextVectors | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.facts = pipeline.facts
        self.questions = tuple(questions)
        self.grade = grade
        self.vectors = vectors or TextVectors(encoder)
        self.query_QE = self.vectors.encode([one.query.text for one in self.questions])
        self._last = len(self.facts.modules) - 1
        self._chunks_by_question: dict[int, tuple[Chunk, ...]] = {}
        self._run_by_key: dict[RunKey, ModuleRun] = {}
        self._answer_by_lane: dict[Lane, GradedAnswer] = {}

    # --- TierOutcomes -----------------------------------------------------------------------------

    def look(self, question_index_B: IntArray, step: int, tier_BM: IntArray) -> FloatArray:
        """Return the state before the decision at `step` [B, E]; zero where a run failed."""
        lanes = list_lanes(question_index_B, tier_BM)
        if step == 0:
            return self._embed_chunks([self._retrieve(question) for question, _ in lanes])
        filtered_BE = self._embed_chunks([read_chunks(self.find_run(lane, 0)) for lane in lanes])
        if step < self._last:
            return filtered_BE
        failed_B = [self._has_failed(lane, self._last) for lane in lanes]
        runs = [
            FAILED_BEFORE if failed else self.find_run(lane, place)
            for lane, failed in zip(lanes, failed_B, strict=True)
            for place in range(1, self._last)
        ]
        notes_NE, has_notes_N = self.embed_notes(runs)
        shape = (len(lanes), self._last - 1)
        state_BE = combine_notes(
            notes_NE.reshape(*shape, -1), has_notes_N.reshape(shape), filtered_BE
        )
        state_BE[failed_B] = 0
        return state_BE

    def run(self, question_index_B: IntArray, step: int, tier_BM: IntArray) -> UsdArray:
        """Return what the stage that ends at `step` costs [B]; 0 inside a stage, NaN if failed."""
        lanes = list_lanes(question_index_B, tier_BM)
        stage = self.facts.find_stage(step)
        failed_B = np.array([self._has_failed(lane, stage.start) for lane in lanes])
        if step < stage.stop - 1:
            return np.where(failed_B, np.nan, 0.0)
        places = range(stage.start, stage.stop)
        going = [lane for lane, failed in zip(lanes, failed_B, strict=True) if not failed]
        missing = {place: self._find_missing(place, going) for place in places}
        if any(missing.values()):
            asyncio.run(self._run_stage(missing))
        cost_BX = np.full((len(lanes), len(places)), np.nan)
        for row in np.flatnonzero(~failed_B):
            cost_BX[row] = [read_cost(self.find_run(lanes[row], place)) for place in places]
        return add_in_order(cost_BX)

    def answer(self, question_index_B: IntArray, tier_BM: IntArray) -> Answers:
        """Answer from the summaries; where a run failed nothing is asked."""
        lanes = list_lanes(question_index_B, tier_BM)
        going = [lane for lane in lanes if not self._has_failed(lane, self._last + 1)]
        missing = {
            lane: None
            for lane in going
            if lane not in self._answer_by_lane or self._answer_by_lane[lane].run.failure
        }
        if missing:
            asyncio.run(self._answer(list(missing)))
        found = {lane: self._answer_by_lane[lane] for lane in going}
        graded = [found.get(lane, NO_ANSWER) for lane in lanes]
        return Answers(
            score_B=np.array([one.score for one in graded], dtype=np.float32),
            cost_usd_B=np.array([read_cost(one.run) for one in graded], dtype=np.float64),
        )

    # --- What was run -----------------------------------------------------------------------------

    def find_run(self, lane: Lane, step: int) -> ModuleRun:
        """Return the run of the module at `step` for a question along its tiers.

        Raises:
            ValueError: it was not run.
        """
        run = self._run_by_key.get(self._make_key(lane, step))
        if run is None:
            name = self.facts.modules[step].name
            raise ValueError(f"module '{name}' was not run for question {lane[0]}, tiers {lane[1]}")
        return run

    def embed_notes(self, runs: Sequence[ModuleRun]) -> tuple[FloatArray, BoolArray]:
        """Return the embeddings of N extractors' notes [N, E], zero without, and who has any."""
        return embed_notes(self.vectors, [read_notes(run) for run in runs])

    def _make_key(self, lane: Lane, step: int) -> RunKey:
        """Return what a run depends on: an extractor's on the filter's tier and its own."""
        question, tiers = lane
        if step == self._last:
            return (question, step, *tiers)
        return (question, step, tiers[0]) if step == 0 else (question, step, tiers[0], tiers[step])

    def _has_failed(self, lane: Lane, stop: int) -> bool:
        """Say whether one of the modules before `stop` failed; what comes after it was not run."""
        return any(self.find_run(lane, step).failure is not None for step in range(stop))

    def _find_missing(self, step: int, lanes: Sequence[Lane]) -> dict[RunKey, Lane]:
        """Return the runs of a module that the lanes need and that are not there, or failed."""
        missing: dict[RunKey, Lane] = {}
        for lane in lanes:
            key = self._make_key(lane, step)
            if key not in self._run_by_key or self._run_by_key[key].failure is not None:
                missing[key] = lane
        return missing

    async def _run_stage(self, missing: dict[int, dict[RunKey, Lane]]) -> None:
        """Run what is missing of the modules of a stage, all at once."""
        wanted = {step: lanes for step, lanes in missing.items() if lanes}
        found = await asyncio.gather(
            *(
                self.pipeline.run_module_many(
                    step,
                    [tiers[step] for _, tiers in lanes.values()],
                    [self._make_input(lane, step) for lane in lanes.values()],
                )
                for step, lanes in wanted.items()
            )
        )
        for lanes, runs in zip(wanted.values(), found, strict=True):
            self._run_by_key.update(zip(lanes, runs, strict=True))

    def _make_input(self, lane: Lane, step: int) -> ModuleInput:
        """Return what a module reads."""
        question = self.questions[lane[0]]
        if step == 0:
            return ModuleInput(question, self._retrieve(lane[0]))
        chunks = read_chunks(self.find_run(lane, 0))
        if step < self._last:
            return ModuleInput(question, chunks)
        notes = {
            self.facts.modules[place].name: read_notes(self.find_run(lane, place))
            for place in range(1, self._last)
        }
        return ModuleInput(question, chunks, notes)

    async def _answer(self, lanes: Sequence[Lane]) -> None:
        """Answer and grade for lanes that are all right so far; equal summaries once."""
        asked = {lane: (lane[0], str(self.find_run(lane, self._last).output)) for lane in lanes}
        distinct = list(dict.fromkeys(asked.values()))
        questions = [self.questions[question] for question, _ in distinct]
        runs = await self.pipeline.answer_many(questions, [summary for _, summary in distinct])
        graded = {
            one: self._grade(question, run)
            for one, question, run in zip(distinct, questions, runs, strict=True)
        }
        self._answer_by_lane.update((lane, graded[asked[lane]]) for lane in lanes)

    def _grade(self, question: MemoryQuestion, run: AnswerRun) -> GradedAnswer:
        """Return an answer with its score; a failed one has none."""
        if run.failure is not None:
            return GradedAnswer(run, np.nan)
        score = self.grade(question, run.text)
        if not 0 <= score <= 1:
            raise RLRouteError(
                f"question '{question.query.id}': its grade is {score} (allowed: 0 to 1)"
            )
        return GradedAnswer(run, score)

    def _retrieve(self, question: int) -> tuple[Chunk, ...]:
        """Return the chunks that were found for a question."""
        if question not in self._chunks_by_question:
            self._chunks_by_question[question] = self.pipeline.retrieve(self.questions[question])
        return self._chunks_by_question[question]

    def _embed_chunks(self, chunks_B: Sequence[tuple[Chunk, ...]]) -> FloatArray:
        """Return the mean embedding of each lane's chunks [B, E]; zero where it has none."""
        distinct = dict.fromkeys(chunks_B)
        self.vectors.encode([chunk.text for chunks in distinct for chunk in chunks])
        mean_by_chunks = {
            chunks: average_texts(self.vectors, [chunk.text for chunk in chunks])
            for chunks in distinct
        }
        return np.stack([mean_by_chunks[chunks] for chunks in chunks_B])


def list_lanes(question_index_B: IntArray, tier_BM: IntArray) -> list[Lane]:
    """Return the question and the tiers of each lane as plain numbers."""
    return [
        (question, tuple(tiers))
        for question, tiers in zip(question_index_B.tolist(), tier_BM.tolist(), strict=True)
    ]


def read_cost(run: ModuleRun | AnswerRun) -> float:
    """Return what a run costs in USD; NaN where it failed."""
    return np.nan if run.failure is not None else run.cost_usd
