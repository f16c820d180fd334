"""Questions per second of a memory pipeline at each static tier, and the enumeration of its tree.

Side by side with `run_serially`, the shape of the original: one question after the other, one
module after the other, nothing kept. Tiers are rules, MiniLM (real) and a simulated language model
behind a pool that waits `--latency` seconds for each reply, at most `--in-flight` at a time. Every
number is of a pipeline opened anew, so no form finds what another one left behind; histories are
indexed before the clock starts. Both forms must give the same answers and costs. Prints two
Markdown tables.

    PYTHONPATH=. python tests/benchmarks/memory_pipeline.py
    PYTHONPATH=. python tests/benchmarks/memory_pipeline.py --questions 100 --latency 0.5
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from rlroute.config import parse_config
from rlroute.data.encoders import MinilmConfig
from rlroute.memory.base import AnswerRun, MemoryQuestion, ModuleInput, ModuleRun
from rlroute.memory.config import PipelineConfig
from rlroute.memory.enumerate import enumerate_tree
from rlroute.memory.open import open_models, open_pipeline
from rlroute.memory.pipeline import Pipeline, PipelineTrace, read_chunks, read_notes
from rlroute.memory.retriever import share_embedder
from rlroute.memory.simulated_models import SimulatedModelsConfig
from rlroute.memory.store import RunStore
from rlroute.memory.world import GeneratedMemory, generate_memory
from rlroute.memory.world_config import GeneratedMemoryConfig
from rlroute.pool.base import Pool
from rlroute.types import Call, Reply

TIERS = (
    {"kind": "rules"},
    {"kind": "encoder", "price": 0.02},
    {"kind": "llm", "candidate": "large", "prompt": "reflect"},
)
MODULES = (("filter", "filter"), *((n, "extract") for n in ("entity", "temporal", "topic")))
PIPELINE = {
    "retriever": {"kind": "hybrid"},
    "modules": [
        {"name": name, "role": role, "tiers": TIERS}
        for name, role in (*MODULES, ("summary", "summary"))
    ],
    "answerer": {"kind": "reader"},
}
MODELS = {
    "kind": "simulated",
    "candidates": {"large": {"prices": {"input": 0.88, "output": 0.88}}},
}
NAMES = ("Low", "Mid", "High")

RunAll = Callable[[Pipeline, Sequence[MemoryQuestion]], Awaitable[list[PipelineTrace]]]


@dataclass
class WaitingPool:
    """A pool whose replies take `seconds`, with so many calls `in_flight` at most."""

    pool: Pool
    seconds: float
    in_flight: int
    asked: int = 0

    async def ask_many(self, calls: Sequence[Call]) -> list[Reply]:
        """Return one reply per call, after waiting."""
        self.asked += len(calls)
        for start in range(0, len(calls), self.in_flight):
            if calls[start : start + self.in_flight]:
                await asyncio.sleep(self.seconds)
        return await self.pool.ask_many(calls)


class CountingStore(RunStore):
    """A store that counts module runs; it keeps nothing where `keeps` is False."""

    def __init__(self, keeps: bool = True) -> None:
        super().__init__()
        self.keeps, self.module_runs = keeps, 0

    def keep_runs(self, runs: Mapping[str, ModuleRun]) -> None:
        """Count what was run, and keep it."""
        self.module_runs += len(runs)
        if self.keeps:
            super().keep_runs(runs)

    def keep_answers(self, answers: Mapping[str, AnswerRun]) -> None:
        """Keep answers."""
        if self.keeps:
            super().keep_answers(answers)


@dataclass
class Bench:
    """What pipelines are opened from."""

    memory: GeneratedMemory
    questions: Sequence[MemoryQuestion]
    latency: float
    in_flight: int

    def open(self, keeps: bool = True) -> tuple[Pipeline, CountingStore, WaitingPool]:
        """Return a new pipeline that has indexed the questions' histories, its store and pool."""
        share_embedder.cache_clear()  # its vectors are shared by the pipelines of a process
        models = open_models(parse_config(SimulatedModelsConfig, MODELS, "models"), self.memory)
        pool, store = WaitingPool(models.pool, self.latency, self.in_flight), CountingStore(keeps)
        config = parse_config(PipelineConfig, PIPELINE, "pipeline")
        pipeline = open_pipeline(config, self.memory.data, pool, models.candidates, store)
        for question in self.questions:
            pipeline.retrieve(question)
        return pipeline, store, pool


async def run_serially(
    pipeline: Pipeline, questions: Sequence[MemoryQuestion], tiers: Sequence[Sequence[int]]
) -> list[PipelineTrace]:
    """Run questions one by one, module by module, keeping nothing: the original's shape."""
    traces = []
    for question, row in zip(questions, tiers, strict=True):
        retrieved = pipeline.retrieve(question)
        runs: list[ModuleRun] = []
        work = ModuleInput(question, retrieved)
        for module, tier in zip(pipeline.modules, row, strict=True):
            if module.role == "summary":
                notes = {
                    one.name: read_notes(run)
                    for one, run in zip(pipeline.modules[1:], runs[1:], strict=False)
                }
                work = ModuleInput(question, work.chunks, notes)
            runs += await module.tiers[tier].run_many([work])
            if module.role == "filter":
                work = ModuleInput(question, read_chunks(runs[0]))
        (answer,) = await pipeline.answerer.answer_many([question], [str(runs[-1].output)])
        traces.append(PipelineTrace(question, tuple(row), retrieved, tuple(runs), answer))
    return traces


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--trees", type=int, default=2)
    parser.add_argument("--latency", type=float, default=0.1)
    parser.add_argument("--in-flight", type=int, default=32)
    options = parser.parse_args()
    histories = {"train": 1, "val": 1, "test": 1 + options.questions // 20}
    world = {"kind": "generated", "histories": histories, "questions_per_kind": 5}
    memory = generate_memory(parse_config(GeneratedMemoryConfig, world, "world"))
    questions = memory.data.questions["test"][: options.questions]
    bench = Bench(memory, questions, options.latency, options.in_flight)
    print(f"{len(questions)} questions, {options.latency:g} s per reply, real MiniLM\n")
    print_static_tiers(bench)
    print_trees(bench, questions[: options.trees])


def print_static_tiers(bench: Bench) -> None:
    """Print questions per second of the forms at each static tier."""
    questions = bench.questions
    print("| all modules | serial, q/s | pipeline, q/s | ratio | second epoch, q/s | ratio |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for tier, name in enumerate(NAMES):
        rows = [(tier,) * 5] * len(questions)
        pipeline, *_ = bench.open()
        serial, serial_rate = measure(lambda p=pipeline, r=rows: run_serially(p, questions, r))
        pipeline, *_ = bench.open()
        first, first_rate = measure(lambda p=pipeline, r=rows: p.run(questions, r))
        second, second_rate = measure(lambda p=pipeline, r=rows: p.run(questions, r))
        check_same(serial, first)
        check_same(first, second)
        print(
            f"| {name} | {serial_rate:.2f} | {first_rate:.2f} | {first_rate / serial_rate:.1f} | "
            f"{second_rate:.0f} | {second_rate / serial_rate:.0f} |"
        )


def print_trees(bench: Bench, questions: Sequence[MemoryQuestion]) -> None:
    """Print seconds and calls for all ways of choosing tiers, per question."""
    print("\n| tree of a question, 243 leaves | seconds | model calls | module runs |")
    print("| --- | ---: | ---: | ---: |")
    pipeline, _, pool = bench.open()
    leaves = [tuple(row) for row in pipeline.facts.list_leaves().tolist()]
    asked = [question for question in questions for _ in leaves]
    count = len(questions)
    serial, rate = measure(lambda: run_serially(pipeline, asked, leaves * count))
    runs = sum(len(trace.runs) for trace in serial)
    print_tree("serial, nothing kept", len(serial) / rate / count, pool.asked, runs, count)
    pipeline, store, pool = bench.open(keeps=False)
    _, rate = measure(lambda: run_each(pipeline, asked, leaves * count))
    seconds = len(asked) / rate / count
    print_tree("pipeline, no store", seconds, pool.asked, store.module_runs, count)
    encoder = share_embedder(MinilmConfig()).encoder
    pipeline, store, pool = bench.open()
    for name in ("enumerate_tree", "enumerate_tree again"):
        calls_before, runs_before = pool.asked, store.module_runs
        began = time.perf_counter()
        enumerate_tree(pipeline, questions, encoder, bench.memory.data.grade)
        seconds = (time.perf_counter() - began) / count
        calls, runs = pool.asked - calls_before, store.module_runs - runs_before
        print_tree(name, seconds, calls, runs, count)


async def run_each(
    pipeline: Pipeline, questions: Sequence[MemoryQuestion], tiers: Sequence[Sequence[int]]
) -> list[PipelineTrace]:
    """Run questions one by one, the extractors of each side by side."""
    rows = zip(questions, tiers, strict=True)
    return [trace for one, row in rows for trace in await pipeline.run([one], [row])]


def print_tree(name: str, seconds: float, calls: int, runs: int, questions: int) -> None:
    """Print one row, per question."""
    print(f"| {name} | {seconds:.2f} | {calls / questions:.0f} | {runs / questions:.0f} |")


def measure(
    work: Callable[[], Awaitable[list[PipelineTrace]]],
) -> tuple[list[PipelineTrace], float]:
    """Return what was made, and questions per second."""

    async def wait() -> list[PipelineTrace]:
        return await work()

    began = time.perf_counter()
    traces = asyncio.run(wait())
    return traces, len(traces) / (time.perf_counter() - began)


def check_same(one: Sequence[PipelineTrace], other: Sequence[PipelineTrace]) -> None:
    """Make sure that two forms answered alike, at the same cost."""
    for a, b in zip(one, other, strict=True):
        if (a.answer, a.cost_usd) != (b.answer, b.cost_usd):
            raise SystemExit(f"question {a.question.query.id}: the two forms differ")


if __name__ == "__main__":
    main()
