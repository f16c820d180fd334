"""`rlroute pool check`: one tiny call per candidate, and what came back.

What it is: every candidate of a pool file is asked once, through the same client as ever, and
without the file's cache, cassette or retries. A second request to each server, of one token, asks
for log-probabilities. Printed are seconds, whether usage and log-probabilities come back, and what
the call cost; the price of the second request is in no column.

What it leaves out: whether answers are good. Candidates that no query fits (recorded ones) are
opened, not asked.

How to use: `rlroute pool check pool.yaml`; exit code 0 where all answer, 1 where one does not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlroute.extras import require
from rlroute.pool.chat import build_body
from rlroute.pool.http import Endpoint, read_api_key
from rlroute.pool.open import OpenPool, make_endpoint, open_pool
from rlroute.pool.pool_file import HttpSpec, PoolFile, RecordedSpec, load_pool
from rlroute.types import Call, Candidate, FailureKind, Query, Reply

QUESTION = "Say yes."
TOKENS = 8


@dataclass(frozen=True)
class Check:
    """What one candidate did. None stands for what was not tried."""

    candidate: Candidate
    reply: Reply | None
    logprobs: bool | None = None

    @property
    def passed(self) -> bool:
        """Whether it answered; one that is not asked passes."""
        return self.reply is None or self.reply.failure is None


def run_pool_check(path: Path, overrides: Sequence[str] = ()) -> bool:
    """Check every candidate, print a table, and say whether all passed.

    Raises:
        RLRouteError: a fault of the pool file, a missing key, table, model or extra.
    """
    checks = check_pool(load_pool(path, overrides))
    print_checks(checks)
    return all(check.passed for check in checks)


def check_pool(pool_file: PoolFile) -> list[Check]:
    """Ask every candidate once; see `run_pool_check`."""
    bare = {
        name: spec.model_copy(update={"retries": 0}) if isinstance(spec, HttpSpec) else spec
        for name, spec in pool_file.candidates.items()
    }
    changes = {"candidates": bare, "cache": None, "cassette": None}
    pool_file = pool_file.model_copy(update=changes)
    return asyncio.run(ask_everybody(pool_file, open_pool(pool_file)))


async def ask_everybody(pool_file: PoolFile, pool: OpenPool) -> list[Check]:
    """Ask all candidates side by side."""
    try:
        checks = (ask_candidate(pool_file, pool, name) for name in pool.candidates)
        return await asyncio.gather(*checks)
    finally:
        await pool.close()


async def ask_candidate(pool_file: PoolFile, pool: OpenPool, name: str) -> Check:
    """Ask one candidate."""
    spec, candidate = pool_file.candidates[name], pool.candidates[name]
    if isinstance(spec, RecordedSpec):
        return Check(candidate, None)
    query = Query("check", QUESTION, task="check")
    call = Call(name, query, QUESTION, max_output_tokens=TOKENS)
    reply = (await pool.ask_many([call]))[0]
    if not isinstance(spec, HttpSpec) or reply.failure is not None:
        return Check(candidate, reply)
    return Check(candidate, reply, await ask_logprobs(make_endpoint(candidate, spec), call))


async def ask_logprobs(endpoint: Endpoint, call: Call) -> bool:
    """Say whether the server returns log-probabilities when it is asked to."""
    httpx = require("httpx", "http")
    body = build_body(endpoint, call) | {"max_tokens": 1, "logprobs": True, "top_logprobs": 1}
    key = read_api_key(endpoint)
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    url = f"{endpoint.url}/chat/completions"
    try:
        async with httpx.AsyncClient(timeout=endpoint.timeout_seconds) as client:
            response = await client.post(url, json=body, headers=headers)
            return holds_logprobs(response.json())
    except (httpx.HTTPError, ValueError):  # ValueError: no JSON
        return False


def holds_logprobs(body: Any) -> bool:
    """Say whether the body of a reply holds the log-probability of a token."""
    choices = body.get("choices") if isinstance(body, Mapping) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    logprobs = choice.get("logprobs") if isinstance(choice, Mapping) else None
    content = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    return isinstance(content, list) and bool(content)


def print_checks(checks: Sequence[Check]) -> None:
    """Print the checks as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for heading in ("candidate", "result", "seconds", "usage", "log-probs", "USD per call"):
        table.add_column(heading)
    for check in checks:
        table.add_row(check.candidate.id, *describe_check(check))
    Console(width=110).print(table)


def describe_check(check: Check) -> tuple[str, str, str, str, str]:
    """Return the cells of one check."""
    reply = check.reply
    if reply is None:
        return "recorded", "", "", "", ""
    if reply.failure is not None:
        hint = " (is the key right?)" if reply.failure is FailureKind.AUTH else ""
        return f"{reply.failure}{hint}", "", "", "", ""
    seconds = "" if reply.latency_seconds is None else f"{reply.latency_seconds:.3f}"
    usage = "no" if reply.usage is None or reply.usage.estimated else "yes"
    logprobs = {None: "", True: "yes", False: "no"}[check.logprobs]
    return "answered", seconds, usage, logprobs, f"{reply.cost_usd:.9f}"
