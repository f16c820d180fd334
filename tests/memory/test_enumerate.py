"""Enumeration through the real pipeline: its store makes a second tree free, live runs as well."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tier_worlds import HashEncoder, make_questions

from rlroute.memory.base import AnswerRun, Chunk, MemoryQuestion, Module, ModuleInput, ModuleRun
from rlroute.memory.enumerate import enumerate_tree
from rlroute.memory.live import LiveOutcomes
from rlroute.memory.pipeline import Pipeline
from rlroute.memory.store import RunStore
from rlroute.memory.tree import TREE_ARRAYS, TierTree
from rlroute.types import FailureKind

CHUNKS = tuple(Chunk(f"h:0:{n}", f"chunk {n}") for n in range(4))
ROLES = {
    "filter": "filter",
    "entity": "extract",
    "temporal": "extract",
    "topic": "extract",
    "summary": "summary",
}


class CountingTier:
    """Says what it read, and counts; fails for one question until it is mended."""

    def __init__(self, module: str, role: str, level: int) -> None:
        self.role, self.level, self.name = role, level, f"{module} {level}"
        self.runs = 0
        self.fails_for = ""

    def fingerprint(self) -> str:
        return self.name

    async def run_many(self, inputs: Sequence[ModuleInput]) -> list[ModuleRun]:
        self.runs += len(inputs)
        return [self.work(given) for given in inputs]

    def work(self, given: ModuleInput) -> ModuleRun:
        if given.question.query.id == self.fails_for:
            return ModuleRun((), failure=FailureKind.SERVER)
        cost_usd = 0.001 * self.level * (len(given.chunks) + len(given.notes))
        if self.role == "filter":
            return ModuleRun(given.chunks[: 4 - self.level], cost_usd)
        if self.role == "summary":
            return ModuleRun(f"{self.level}: {dict(given.notes)}", cost_usd)
        return ModuleRun((f"{self.level} of {len(given.chunks)}",), cost_usd)


class LengthAnswerer:
    """Answers with the length of the summary."""

    def __init__(self) -> None:
        self.asked = 0

    def fingerprint(self) -> str:
        return "length"

    async def answer_many(
        self, questions: Sequence[MemoryQuestion], summaries: Sequence[str]
    ) -> list[AnswerRun]:
        self.asked += len(questions)
        return [AnswerRun(str(sum(map(ord, summary))), 0.01) for summary in summaries]


class AllChunks:
    """Finds the same chunks for every question."""

    def fingerprint(self) -> str:
        return "all"

    def retrieve(self, question: str, history_id: str) -> tuple[Chunk, ...]:
        return CHUNKS


def grade(question: MemoryQuestion, answer: str) -> float:
    return int(answer) % 5 / 4


def make_pipeline(path: Path | None = None) -> Pipeline:
    modules = [
        Module(name, role, name, tuple(CountingTier(name, role, level) for level in range(3)))
        for name, role in ROLES.items()
    ]
    return Pipeline(modules, AllChunks(), LengthAnswerer(), RunStore(path))


def count_runs(pipeline: Pipeline) -> int:
    return sum(tier.runs for module in pipeline.modules for tier in module.tiers)


def assert_same(left: TierTree, right: TierTree) -> None:
    for name in TREE_ARRAYS:
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)


def test_a_tree_is_273_runs_per_question_once_and_none_from_the_store(tmp_path):
    questions = make_questions(2)
    first = make_pipeline(tmp_path / "runs")
    tree = enumerate_tree(first, questions, HashEncoder(), grade)
    assert count_runs(first) == 2 * 273
    assert first.answerer.asked == 2 * 243
    assert len(set(tree.leaf_score_QL[0].tolist())) == 5
    again = enumerate_tree(first, questions, HashEncoder(), grade)
    assert count_runs(first) == 2 * 273
    assert first.answerer.asked == 2 * 243
    first.store.close()
    later = make_pipeline(tmp_path / "runs")
    from_disk = enumerate_tree(later, questions, HashEncoder(), grade)
    assert (count_runs(later), later.answerer.asked) == (0, 0)
    assert_same(tree, again)
    assert_same(tree, from_disk)


def test_live_runs_after_a_tree_cost_nothing_and_agree_with_it():
    pipeline, questions = make_pipeline(), make_questions(3)
    tree = enumerate_tree(pipeline, questions, HashEncoder(), grade)
    runs = count_runs(pipeline)
    live = LiveOutcomes(pipeline, questions, HashEncoder(), grade)
    index_B, tier_BM = np.arange(3), np.array([[2, 1, 0, 2, 1], [0, 0, 0, 0, 2], [1, 1, 2, 0, 0]])
    for step in range(5):
        assert np.array_equal(live.look(index_B, step, tier_BM), tree.look(index_B, step, tier_BM))
        assert np.array_equal(live.run(index_B, step, tier_BM), tree.run(index_B, step, tier_BM))
    assert np.array_equal(
        live.answer(index_B, tier_BM).score_B, tree.answer(index_B, tier_BM).score_B
    )
    assert count_runs(pipeline) == runs


def test_what_failed_is_run_again_and_nothing_else():
    pipeline, questions = make_pipeline(), make_questions(2)
    broken = pipeline.modules[2].tiers[1]
    assert isinstance(broken, CountingTier)
    broken.fails_for = "q1"
    lost = enumerate_tree(pipeline, questions, HashEncoder(), grade)
    assert np.isnan(lost.leaf_cost_QL).sum(axis=1).tolist() == [0, 81]
    runs = count_runs(pipeline)
    broken.fails_for = ""
    mended = enumerate_tree(pipeline, questions, HashEncoder(), grade)
    assert count_runs(pipeline) == runs + 3 + 81  # behind each filter tier, and the summaries
    assert_same(mended, enumerate_tree(make_pipeline(), questions, HashEncoder(), grade))
