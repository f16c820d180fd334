"""From pool.yaml to a pool: everything that a pool file declares, behind one `ask_many`.

What it is: `open_pool` checks what can be checked before anything starts (keys, tables, models,
tools), and returns an `OpenPool` that sends each call to what answers for its candidate. Calls may
name a candidate by its id or by an alias. Models that run here (local, vllm) answer in a thread of
their own, so that servers are not kept waiting.

What it leaves out: the parts themselves (the other modules of this package).

How to use:
    pool = open_pool(load_pool(Path("pool.yaml")), max_usd=2.0)
    try:
        replies = await pool.ask_many(calls)
    finally:
        await pool.close()
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from rlroute.data.table import read_table
from rlroute.data.text_files import read_utf8
from rlroute.pool.base import Pool
from rlroute.pool.cache import ReplyCache
from rlroute.pool.cassette import CassettePool
from rlroute.pool.checkpoints import convert_gguf, find_package_files
from rlroute.pool.http import Endpoint, read_api_key
from rlroute.pool.ledger import Ledger
from rlroute.pool.live import LivePool
from rlroute.pool.local import Examples, LocalModel
from rlroute.pool.local_candidate import LocalCandidate
from rlroute.pool.pool_file import (
    HttpSpec,
    LocalSpec,
    ModelSource,
    PoolFile,
    RecordedSpec,
    SimulatedSpec,
    Spec,
    ToolSpec,
    VllmSpec,
)
from rlroute.pool.recorded import RecordedPool
from rlroute.pool.simulated import SimulatedPool, Skill, World
from rlroute.pool.tools import ToolCandidate
from rlroute.pool.vllm import VllmCandidate
from rlroute.types import Call, Candidate, Reply, RLRouteError


@dataclass
class OpenPool:
    """The candidates of a pool file, ready to be asked.

    `ledger` holds what live calls cost; candidates that need no network charge it nothing.
    `max_usd` is its cap for the run, None where there is none.
    """

    candidates: Mapping[str, Candidate]
    members: Mapping[str, Pool]
    ledger: Ledger
    max_usd: float | None
    live: LivePool | None = None
    cache: ReplyCache | None = None
    cassettes: Sequence[CassettePool] = ()
    names: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.names = {
            name: key for key, item in self.candidates.items() for name in (key, *item.aliases)
        }

    async def ask_many(self, calls: Sequence[Call]) -> list[Reply]:
        """Return one reply per call, in the same order.

        Raises:
            RLRouteError: a candidate is in no pool file, or what answers for it raised it.
        """
        groups: dict[int, list[int]] = {}
        for place, call in enumerate(calls):
            if call.candidate_id not in self.names:
                known = ", ".join(sorted(self.names))
                raise RLRouteError(f"unknown candidate '{call.candidate_id}' (known: {known})")
            member = self.members[self.names[call.candidate_id]]
            groups.setdefault(id(member), []).append(place)
        answered = await asyncio.gather(
            *(self._ask_member([calls[place] for place in places]) for places in groups.values())
        )
        replies: dict[int, Reply] = {}
        for places, group in zip(groups.values(), answered, strict=True):
            for place, reply in zip(places, group, strict=True):
                replies[place] = replace(reply, call=calls[place])
        return [replies[place] for place in range(len(calls))]

    async def _ask_member(self, calls: Sequence[Call]) -> list[Reply]:
        """Ask the one member that answers for all of these calls, by the ids of candidates."""
        renamed = [replace(call, candidate_id=self.names[call.candidate_id]) for call in calls]
        return await self.members[renamed[0].candidate_id].ask_many(renamed)

    async def close(self) -> None:
        """Close connections and files."""
        if self.live is not None:
            await self.live.close()
        if self.cache is not None:
            self.cache.close()
        for cassette in self.cassettes:
            cassette.close()


class ThreadedPool:
    """A pool that keeps the processor busy, in a thread so that others can wait meanwhile."""

    threads = ThreadPoolExecutor(1, thread_name_prefix="rlroute-local")

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    async def ask_many(self, calls: Sequence[Call]) -> list[Reply]:
        """Return one reply per call, in the same order."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.threads, lambda: asyncio.run(_ask(self.pool, calls)))


async def _ask(pool: Pool, calls: Sequence[Call]) -> list[Reply]:
    return await pool.ask_many(calls)


@dataclass(frozen=True)
class RenamedPool:
    """A pool in which a candidate goes by another name."""

    pool: Pool
    name: str

    async def ask_many(self, calls: Sequence[Call]) -> list[Reply]:
        """Return one reply per call, in the same order."""
        renamed = [replace(call, candidate_id=self.name) for call in calls]
        replies = await self.pool.ask_many(renamed)
        return [replace(r, call=call) for r, call in zip(replies, calls, strict=True)]


def list_candidates(pool_file: PoolFile) -> dict[str, Candidate]:
    """Return the candidates that a pool file declares; those of a table have the table's prices.

    Raises:
        RLRouteError: a table cannot be read, or holds no such candidate.
    """
    return {name: make_candidate(name, spec) for name, spec in pool_file.candidates.items()}


def make_candidate(name: str, spec: Spec) -> Candidate:
    """Return one candidate; see `list_candidates`."""
    if isinstance(spec, RecordedSpec) and spec.table is not None:
        wanted, table = spec.candidate or name, read_table(spec.table)
        found = next((item for item in table.candidates if item.id == wanted), None)
        if found is None:
            known = ", ".join(item.id for item in table.candidates)
            raise RLRouteError(f"candidates.{name}: table '{spec.table}' holds only {known}")
        description = spec.description or found.description
        return replace(found, id=name, aliases=spec.aliases, description=description)
    if spec.prices is None:
        raise RLRouteError(f"candidates.{name}: states no prices")
    return spec.make_candidate(name, spec.prices.to_prices())


def open_pool(
    pool_file: PoolFile,
    *,
    max_usd: float | None = None,
    already_spent_usd: float = 0.0,
    only: Sequence[str] = (),
) -> OpenPool:
    """Open a pool; `max_usd` lowers the file's own cap, `only` names the candidates to open.

    `already_spent_usd` is what earlier starts of the same run have spent of the cap.

    Raises:
        RLRouteError: a key's environment variable is not set, a table, cassette, model, tool or
            extra is missing.
    """
    specs = {name: spec for name, spec in pool_file.candidates.items() if not only or name in only}
    candidates = {name: make_candidate(name, spec) for name, spec in specs.items()}
    caps = [cap for cap in (max_usd, pool_file.max_usd) if cap is not None]
    cap = min(caps, default=None)
    ledger = Ledger(cap, pool_file.max_usd_per_episode, already_spent_usd=already_spent_usd)
    whole = pool_file.cassette
    if whole is not None and whole.mode == "strict":  # nothing else is opened
        cassette = CassettePool(whole.path, None)
        return OpenPool(
            candidates, dict.fromkeys(specs, cassette), ledger, cap, cassettes=[cassette]
        )
    stated = pool_file.cache
    cache = None if stated is None else ReplyCache(stated.path.expanduser(), stated.max_bytes)
    live = open_live(pool_file, specs, candidates, ledger, cache)
    members, cassettes = open_members(pool_file, specs, candidates)
    if live is not None:
        members |= {name: live for name, spec in specs.items() if isinstance(spec, HttpSpec)}
    pool = OpenPool(candidates, members, ledger, cap, live, cache, cassettes)
    if whole is None:
        return pool
    replay = whole.mode == "fall_through"
    cassette = CassettePool(whole.path, pool, replay=replay, keep_prompts=whole.keep_prompts)
    held = [*cassettes, cassette]
    return OpenPool(candidates, dict.fromkeys(specs, cassette), ledger, cap, live, cache, held)


def open_live(
    pool_file: PoolFile,
    specs: Mapping[str, Spec],
    candidates: Mapping[str, Candidate],
    ledger: Ledger,
    cache: ReplyCache | None,
) -> LivePool | None:
    """Return the pool of all http candidates, None where there are none."""
    endpoints = {
        name: make_endpoint(candidates[name], spec)
        for name, spec in specs.items()
        if isinstance(spec, HttpSpec)
    }
    if not endpoints:
        return None
    for endpoint in endpoints.values():
        read_api_key(endpoint)
    return LivePool(
        endpoints,
        ledger=ledger,
        cache=cache,
        seed=pool_file.seed,
        max_in_flight=pool_file.max_in_flight,
    )


def make_endpoint(candidate: Candidate, spec: HttpSpec) -> Endpoint:
    """Return where an http candidate answers, and within which limits."""
    return Endpoint(
        candidate,
        spec.endpoint,
        spec.model,
        spec.api_key_env,
        spec.concurrency,
        spec.requests_per_minute,
        spec.tokens_per_minute,
        spec.timeout_seconds,
        spec.retries,
        spec.tokenizer,
    )


def open_members(
    pool_file: PoolFile, specs: Mapping[str, Spec], candidates: Mapping[str, Candidate]
) -> tuple[dict[str, Pool], list[CassettePool]]:
    """Return what answers for each candidate that is not http, and the cassettes among it."""
    members: dict[str, Pool] = {}
    models: dict[str, LocalModel] = {}
    cassettes: dict[Path, CassettePool] = {}
    simulated = open_simulated(pool_file, specs, candidates)
    for name, spec in specs.items():
        candidate = candidates[name]
        if isinstance(spec, ToolSpec):
            members[name] = ToolCandidate(candidate, spec.program)
        elif isinstance(spec, SimulatedSpec):
            members[name] = simulated
        elif isinstance(spec, LocalSpec):
            source = pool_file.models[spec.model]
            if spec.model not in models:
                models[spec.model] = open_model(source, spec.model, pool_file.checkpoints)
            model, examples = models[spec.model], read_examples(pool_file.examples)
            settings = (spec.mode, examples, spec.samples, spec.temperature, pool_file.seed)
            members[name] = ThreadedPool(LocalCandidate(candidate, model, *settings))
        elif isinstance(spec, VllmSpec):
            members[name] = ThreadedPool(VllmCandidate(candidate, spec.model, spec.engine))
        elif isinstance(spec, RecordedSpec) and spec.table is not None:
            members[name] = RenamedPool(
                RecordedPool(read_table(spec.table)), spec.candidate or name
            )
        elif isinstance(spec, RecordedSpec) and spec.cassette is not None:
            if spec.cassette not in cassettes:
                cassettes[spec.cassette] = CassettePool(spec.cassette, None)
            members[name] = RenamedPool(cassettes[spec.cassette], spec.candidate or name)
    return members, list(cassettes.values())


def open_simulated(
    pool_file: PoolFile, specs: Mapping[str, Spec], candidates: Mapping[str, Candidate]
) -> SimulatedPool:
    """Return the pool of all simulated candidates."""
    stated = pool_file.simulation
    world = World(stated.discrimination, stated.easiest, stated.hardest, pool_file.seed)
    skills = {
        name: Skill(
            spec.skill,
            spec.completion_tokens,
            spec.latency_seconds,
            spec.latency_sigma,
            spec.failures,
        )
        for name, spec in specs.items()
        if isinstance(spec, SimulatedSpec)
    }
    return SimulatedPool(world, candidates, skills)


def open_model(source: ModelSource, name: str, checkpoints: Path) -> LocalModel:
    """Load a model, converting its package's file on first use.

    Raises:
        RLRouteError: its packages are missing, or it has not the parameters that are stated.
    """
    folder = (source.folder or checkpoints / name).expanduser()
    if source.folder is None:
        parts = [
            p for package in source.packages for p in find_package_files(package, source.pattern)
        ]
        convert_gguf(parts, folder, split_digits=source.split_digits)
    model = LocalModel.load(
        folder,
        dtype=source.dtype,
        batch_size=source.batch_size,
        max_new_tokens=source.max_new_tokens,
    )
    if model.parameters != source.parameters:
        raise RLRouteError(
            f"models.{name}.parameters: stated {source.parameters}, {folder} has {model.parameters}"
        )
    return model


def read_examples(path: Path | None) -> Examples:
    """Read worked examples, one JSON object per line with task, question and answer.

    Raises:
        RLRouteError: a line is no such object; the message names it.
    """
    examples: dict[str, list[tuple[str, str]]] = {}
    if path is None:
        return examples
    for number, line in enumerate(read_utf8(path).decode("utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        keys = ("task", "question", "answer")
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in keys):
            raise RLRouteError(
                f"{path}, line {number}: must be JSON with the texts {', '.join(keys)}"
            )
        examples.setdefault(row["task"], []).append((row["question"], row["answer"]))
    return examples
