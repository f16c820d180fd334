"""Cassettes: the replies of a pool as JSONL, to be replayed without asking anybody.

What it is: `CassettePool` writes every reply of the pool behind it to a file, and answers from the
file what it holds. A call is found by what decides its answer (candidate, texts, temperature,
sample, limit), not by the id of its query. A line holds the reply and a hash of the call; the
prompt's text is written only on request, a key never.

What it leaves out: failures that say nothing about the call (budget, cancelled): those are not
recorded. Prices: a replayed reply is marked `cached`, was sent no request, and keeps the cost that
it had.

How to use:
    pool = CassettePool(Path("replies.jsonl"), live)          # ask what is not held, write it down
    pool = CassettePool(Path("replies.jsonl"), None)          # strict: what is not held is an error
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlroute.pool.base import Pool
from rlroute.pool.sealed_lines import LineWriter, read_lines
from rlroute.types import Call, FailureKind, Reply, RLRouteError, Usage

NOT_RECORDED = (FailureKind.BUDGET, FailureKind.CANCELLED)


def hash_call(call: Call, *causes: Any) -> str:
    """Return a hash of everything in a call that decides its answer, and of further causes."""
    parts = [call.candidate_id, call.system, call.text, call.temperature, call.sample]
    parts += [call.max_output_tokens, *causes]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def dump_reply(reply: Reply) -> dict[str, Any]:
    """Return a reply as plain values, without its call."""
    usage = reply.usage
    return {
        "text": reply.text,
        "usage": None
        if usage is None
        else [usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.estimated],
        "cost_usd": reply.cost_usd,
        "latency_seconds": reply.latency_seconds,
        "score": reply.score,
        "failure": None if reply.failure is None else str(reply.failure),
        "attempts": reply.attempts,
        "cached": reply.cached,
    }


def restore_reply(call: Call, values: dict[str, Any]) -> Reply:
    """Return the reply to `call` of what `dump_reply` returned."""
    usage, failure = values["usage"], values["failure"]
    return Reply(
        call,
        text=values["text"],
        usage=None if usage is None else Usage(*usage),
        cost_usd=values["cost_usd"],
        latency_seconds=values["latency_seconds"],
        score=values["score"],
        failure=None if failure is None else FailureKind(failure),
        attempts=values["attempts"],
        cached=values["cached"],
    )


class CassettePool:
    """Replays the replies of a file; what it does not hold goes to `live` and is written down.

    Without `live` the file must exist and is only read. `replay=False` asks `live` everything; the
    last reply that stands in a file counts.

    Raises:
        RLRouteError: the file is missing, damaged, or written by another process.
    """

    def __init__(
        self, path: Path, live: Pool | None, *, replay: bool = True, keep_prompts: bool = False
    ) -> None:
        self.path, self.live, self.replay, self.keep_prompts = path, live, replay, keep_prompts
        self._writer = None if live is None else LineWriter(path)
        records = read_lines(path)[0] if self._writer is None else self._writer.read_and_repair()
        self._replies = {record["key"]: record["reply"] for record in records}

    async def ask_many(self, calls: Sequence[Call]) -> list[Reply]:
        """Return one reply per call, in the same order; one call that occurs twice is asked once.

        Raises:
            RLRouteError: a call was not recorded and there is nobody to ask.
        """
        keys = [hash_call(call) for call in calls]
        replies = {
            key: replace(restore_reply(call, self._replies[key]), attempts=0, cached=True)
            for key, call in zip(keys, calls, strict=True)
            if self.replay and key in self._replies
        }
        missing = {key: call for key, call in zip(keys, calls, strict=True) if key not in replies}
        if missing:
            replies |= await self._ask(missing)
        return [
            replace(replies[key], call=call)  # its own call, where two are alike
            for key, call in zip(keys, calls, strict=True)
        ]

    async def _ask(self, missing: dict[str, Call]) -> dict[str, Reply]:
        """Ask the pool behind, and write down what it replies."""
        if self.live is None or self._writer is None:
            call = next(iter(missing.values()))
            raise RLRouteError(
                f"{self.path}: holds no reply of candidate '{call.candidate_id}' to query "
                f"'{call.query.id}'; record it, or let the cassette fall through"
            )
        replies = await self.live.ask_many(list(missing.values()))
        held = dict(zip(missing, replies, strict=True))
        records = []
        for key, reply in held.items():
            if reply.failure not in NOT_RECORDED:
                self._replies[key] = dump_reply(reply)
                prompt = {"prompt": reply.call.text} if self.keep_prompts else {}
                candidate = {"candidate": reply.call.candidate_id}
                records.append({"key": key, "reply": self._replies[key]} | candidate | prompt)
        self._writer.write(records)
        return held

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.sync()
            self._writer.close()
