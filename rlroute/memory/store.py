"""Module runs and answers that were made once, kept by their content.

The key of a run is the SHA-256 of its tier's fingerprint and of the input that the role reads: the
question, the chunks and, for a summary, the notes. Whatever changes an output changes the key, so
nothing is ever out of date. A kept run keeps what it cost; a failed one is not kept. Chunks that a
filter chose are kept by id and taken from its input again.

With a path all runs also stand in a file, one sealed line each (`rlroute.pool.sealed_lines`), which
the next process finds; a process at a time may have it open. In memory they are compressed. Runs of
two histories never coincide: where memory is short, a store for each part of the questions loses
nothing.

What it leaves out: two calls for one key at the same moment, which both run.

How to use:
    store = RunStore(Path("runs.jsonl"))
    key = make_run_key(tier.fingerprint(), module.role, work)
    if (run := store.find_run(key, work)) is None:
        store.keep_runs({key: run_it(work)})
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlroute.data.encoders import dump_json, hash_parts
from rlroute.memory.base import (
    AnswerRun,
    Chunk,
    MemoryQuestion,
    ModuleInput,
    ModuleOutput,
    ModuleRun,
    Role,
)
from rlroute.pool.sealed_lines import LineWriter, seal_line
from rlroute.types import RLRouteError, Usage

HEADER = {"format": "rlroute module runs", "version": 1}


def make_run_key(fingerprint: str, role: Role, work: ModuleInput) -> str:
    """Return the key of a module's run on an input, in hexadecimal digits."""
    chunks = [[chunk.id, chunk.when, chunk.text, chunk.turn_ids] for chunk in work.chunks]
    notes = list(work.notes.items()) if role == "summary" else []
    facts = [role, _describe_question(work.question), chunks, notes]
    return hash_parts(fingerprint.encode(), dump_json(facts))


def make_answer_key(fingerprint: str, question: MemoryQuestion, summary: str) -> str:
    """Return the key of the answer to a question from a summary, in hexadecimal digits."""
    facts = ["answer", _describe_question(question), summary]
    return hash_parts(fingerprint.encode(), dump_json(facts))


def _describe_question(question: MemoryQuestion) -> list[str]:
    """Return what tells a question from others of any history."""
    return [question.history_id, question.query.id, question.query.text, question.asked_on]


class RunStore:
    """Runs and answers by key.

    `hits` and `misses` count what was looked for and found, or not; a pipeline looks once for each
    distinct piece of work in a batch.

    Args:
        path: the file to read and append to; None keeps everything in memory only.

    Raises:
        RLRouteError: the file is no store, is damaged, cannot be written, or another process
            has it open.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.hits = self.misses = 0
        self._kept: dict[str, bytes] = {}
        self._is_mine = path is not None and not path.exists()
        self._writer = None if path is None else LineWriter(path)
        if self._writer is not None:
            self._read(self._writer)

    def __len__(self) -> int:
        return len(self._kept)

    def find_run(self, key: str, work: ModuleInput) -> ModuleRun | None:
        """Return the run that is kept under a key, None where there is none.

        `work` is the input that the key was made of: chunks are taken from it.
        """
        record = self._find(key)
        return None if record is None else _restore_run(record, work)

    def find_answer(self, key: str) -> AnswerRun | None:
        """Return the answer that is kept under a key, None where there is none."""
        record = self._find(key)
        if record is None:
            return None
        return AnswerRun(record["text"], record["cost_usd"], _restore_usage(record["usage"]))

    def keep_runs(self, runs: Mapping[str, ModuleRun]) -> None:
        """Keep runs by key, the failed ones left out."""
        good = {key: run for key, run in runs.items() if run.failure is None}
        self._keep({key: _describe_run(run) for key, run in good.items()})

    def keep_answers(self, answers: Mapping[str, AnswerRun]) -> None:
        """Keep answers by key, the failed ones left out."""
        self._keep({key: asdict(run) for key, run in answers.items() if run.failure is None})

    def close(self) -> None:
        """Close the file, where there is one; one that holds no run goes."""
        if self._writer is not None:
            if not self._kept and self._is_mine:  # while no other process can have it open
                self._writer.path.unlink(missing_ok=True)
            self._writer.close()
            self._writer = None

    def _find(self, key: str) -> dict[str, Any] | None:
        """Return a record and count whether there was one."""
        packed = self._kept.get(key)
        if packed is None:
            self.misses += 1
            return None
        self.hits += 1
        record: dict[str, Any] = json.loads(zlib.decompress(packed))
        return record

    def _keep(self, records: Mapping[str, dict[str, Any]]) -> None:
        """Keep records that are not kept yet, in the file first."""
        new = {key: record for key, record in records.items() if key not in self._kept}
        if self._writer is not None and new:
            self._writer.write([{"key": key, "run": record} for key, record in new.items()])
        for key, record in new.items():
            self._kept[key] = zlib.compress(dump_json(record), level=1)

    def _read(self, writer: LineWriter) -> None:
        """Read the file, or begin it."""
        header = seal_line(HEADER)
        try:
            with writer.path.open("rb") as file:  # before a repair cuts off what is no line of ours
                if not header.startswith(file.read(len(header))):
                    raise RLRouteError(f"{writer.path}: not a store of module runs; name another")
            lines = writer.read_and_repair()
            if not lines:
                writer.write([HEADER])
        except RLRouteError:
            self.close()
            raise
        for line in lines[1:]:
            self._kept[line["key"]] = zlib.compress(dump_json(line["run"]), level=1)


def _describe_run(run: ModuleRun) -> dict[str, Any]:
    """Return a run as JSON holds it; chunks by id."""
    if isinstance(run.output, str):
        output: dict[str, Any] = {"text": run.output}
    else:
        output = {
            "chunks": [item.id for item in run.output if isinstance(item, Chunk)],
            "notes": [item for item in run.output if isinstance(item, str)],
        }
    return {
        **output,
        "cost_usd": run.cost_usd,
        "usage": None if run.usage is None else asdict(run.usage),
        "seconds": run.seconds,
        "malformed": run.malformed,
    }


def _restore_run(record: Mapping[str, Any], work: ModuleInput) -> ModuleRun:
    """Return the run that `_describe_run` described."""
    if "text" in record:
        output: ModuleOutput = record["text"]
    elif record["notes"]:
        output = tuple(record["notes"])
    else:
        chunks = {chunk.id: chunk for chunk in work.chunks}
        output = tuple(chunks[chunk_id] for chunk_id in record["chunks"])
    return ModuleRun(
        output,
        record["cost_usd"],
        _restore_usage(record["usage"]),
        record["seconds"],
        malformed=record["malformed"],
    )


def _restore_usage(record: Mapping[str, Any] | None) -> Usage | None:
    """Return the usage that a record states."""
    return None if record is None else Usage(**record)
