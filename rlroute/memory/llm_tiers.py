"""Tiers and answerers that are language models of a pool.

A module's tier asks one model by one prompt, once per input, at temperature 0. It costs what the
reply costs. What the call was about stands in the metadata of its query under `memory`, as JSON, in
terms of turns instead of text; simulated models read it, real ones never see it:

    {"module": name, "role": role, "style": "direct|cot|reflect",
     "turn_ids": [[...] per chunk shown], "notes": {module: [lines]}}

What it leaves out: prices, limits, caches and retries, which are the pool's.

How to use: `LlmTier("High", module, spec, candidate, pool, keep=5)`; `rlroute.memory.open` makes
them from YAML.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlroute.data.encoders import dump_json, hash_parts
from rlroute.memory.base import (
    AnswerRun,
    Chunk,
    MemoryQuestion,
    ModuleInput,
    ModuleRun,
)
from rlroute.memory.config import LlmAnswererSpec, LlmTierSpec, ModuleSpec
from rlroute.memory.prompts import write_answer_prompt, write_module_prompt
from rlroute.memory.replies import (
    READING_VERSION,
    Reading,
    read_answer,
    read_filter,
    read_notes,
    read_summary,
)
from rlroute.pool.base import Pool
from rlroute.types import Call, Candidate, Query, Reply

# What prompts are hashed by: every part of them shows up with this question and this piece.
SAMPLE_QUESTION = MemoryQuestion(Query("sample", "a question"), "history", asked_on="2023-05-09")
SAMPLE_CHUNK = Chunk("history:0:0", "a piece", "2023-05-08", ("turn",))


@dataclass(frozen=True)
class LlmTier:
    """A module's work done by a language model.

    Args:
        name: what the tier is called.
        module: name, role and instructions of the module.
        spec: prompt style and the limit of output tokens.
        candidate: whom to ask, with the prices that the pool charges.
        pool: who answers.
        keep: how many chunks a filter hands on at most.
        identity: what answers behind the candidate's id, where that is more than its name.
        address: the URL of the candidate's server, empty where it has none; it decides nothing.
    """

    name: str
    module: ModuleSpec
    spec: LlmTierSpec
    candidate: Candidate
    pool: Pool
    keep: int
    identity: str = ""
    address: str = ""

    def fingerprint(self) -> str:
        """Return a hash of model, prices, limits, prompt, and the way replies are read."""
        sample = ModuleInput(SAMPLE_QUESTION, (SAMPLE_CHUNK,), {"entity": ("a note",)})
        role = self.module.role
        facts = {
            "module": [self.module.name, role],
            "model": describe_model(self.candidate, self.identity),
            "prompt": write_module_prompt(self.module, self.spec.prompt, sample),
            "max_output_tokens": self.spec.max_output_tokens,
            "keep": self.keep if role == "filter" else None,
            "reading": READING_VERSION,
        }
        return hash_parts(b"llm tier", dump_json(facts))

    async def run_many(self, inputs: Sequence[ModuleInput]) -> list[ModuleRun]:
        """Ask once per input; a failed call is a failed run, and what it was billed its cost."""
        replies = await self.pool.ask_many([self.make_call(work) for work in inputs])
        return [self.make_run(work, reply) for work, reply in zip(inputs, replies, strict=True)]

    def make_call(self, work: ModuleInput) -> Call:
        """Return the call of one input."""
        query = work.question.query
        metadata = {**query.metadata, "memory": json.dumps(self.describe_work(work))}
        return Call(
            self.candidate.id,
            replace(query, metadata=metadata),
            write_module_prompt(self.module, self.spec.prompt, work),
            max_output_tokens=self.spec.max_output_tokens,
        )

    def describe_work(self, work: ModuleInput) -> dict[str, Any]:
        """Return what a call shows to the model, in terms of turns; a summary shows no chunks."""
        shown = () if self.module.role == "summary" else work.chunks
        return {
            "module": self.module.name,
            "role": self.module.role,
            "style": self.spec.prompt,
            "turn_ids": [list(chunk.turn_ids) for chunk in shown],
            "notes": {name: list(lines) for name, lines in work.notes.items()},
        }

    def make_run(self, work: ModuleInput, reply: Reply) -> ModuleRun:
        """Return what a reply means for the module."""
        if reply.failure is not None:
            return ModuleRun(
                "" if self.module.role == "summary" else (),
                reply.cost_usd,
                reply.usage,
                reply.latency_seconds,
                failure=reply.failure,
            )
        reading = self.read(reply.text, work)
        return ModuleRun(
            reading.output,
            reply.cost_usd,
            reply.usage,
            reply.latency_seconds,
            malformed=reading.malformed,
        )

    def read(self, text: str, work: ModuleInput) -> Reading[Any]:
        """Read a reply as the module's role wants it."""
        if self.module.role == "filter":
            return read_filter(text, work.chunks, self.keep)
        return read_notes(text) if self.module.role == "extract" else read_summary(text)


@dataclass(frozen=True)
class LlmAnswerer:
    """A language model that answers from the summary; see `LlmTier`."""

    spec: LlmAnswererSpec
    candidate: Candidate
    pool: Pool
    identity: str = ""

    def fingerprint(self) -> str:
        """Return a hash of model, prices, limits and prompt."""
        facts = {
            "model": describe_model(self.candidate, self.identity),
            "prompt": write_answer_prompt(SAMPLE_QUESTION, "a summary"),
            "max_output_tokens": self.spec.max_output_tokens,
            "reading": READING_VERSION,
        }
        return hash_parts(b"llm answerer", dump_json(facts))

    async def answer_many(
        self, questions: Sequence[MemoryQuestion], summaries: Sequence[str]
    ) -> list[AnswerRun]:
        """Ask once per question."""
        calls = [
            Call(
                self.candidate.id,
                question.query,
                write_answer_prompt(question, summary),
                max_output_tokens=self.spec.max_output_tokens,
            )
            for question, summary in zip(questions, summaries, strict=True)
        ]
        return [make_answer(reply) for reply in await self.pool.ask_many(calls)]


def make_answer(reply: Reply) -> AnswerRun:
    """Return what a reply means as an answer; that of a failed call is empty."""
    text = "" if reply.failure is not None else read_answer(reply.text)
    return AnswerRun(text, reply.cost_usd, reply.usage, reply.failure)


def describe_model(candidate: Candidate, identity: str) -> dict[str, Any]:
    """Return what of a model decides its replies and their prices, ready for JSON."""
    prices, limits = candidate.prices, candidate.limits
    return {
        "candidate": candidate.id,
        "identity": identity,
        "prices": [prices.input, prices.output, prices.per_call, prices.cached_input],
        "limits": [limits.context_tokens, limits.output_tokens],
    }
