"""From YAML to a pipeline: modules with their defaults, tiers, models, the answerer.

The five known modules (filter; entity, temporal, topic; summary) need no description, instructions
or relations; those that are stated win. A filter and a summary keep their defaults under any name.
An extractor of the user's own states what its tiers need:

    {name: health, role: extract, description: Notes illnesses and treatments.,
     instructions: Note who had which illness and when., relations: [event], tiers: [...]}

Tiers without a name are called Low, Mid and High where a module has three; otherwise after what
they are: `rules`, `encoder`, or candidate and prompt, such as `large-reflect`.

What it leaves out: the data (`rlroute.memory.datasets`).

How to use:
    models = open_models(config.models, generated)
    pipeline = open_pipeline(
        config.pipeline, data, models.pool, models.candidates, store, models.identities,
        models.addresses,
    )
    ...
    await models.close()
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from rlroute.config import StrictModel
from rlroute.data.encoders import dump_json, hash_parts
from rlroute.memory.base import Answerer, MemoryData, Module, Tier
from rlroute.memory.config import (
    AnswererSpec,
    EncoderTierSpec,
    LlmTierSpec,
    ModuleSpec,
    PipelineConfig,
    ReaderAnswererSpec,
    RulesTierSpec,
    TierSpec,
)
from rlroute.memory.encoder_tiers import make_encoder_tier
from rlroute.memory.lexicon import RELATIONS
from rlroute.memory.llm_tiers import LlmAnswerer, LlmTier
from rlroute.memory.pipeline import Pipeline
from rlroute.memory.prompts import INSTRUCTIONS
from rlroute.memory.reader import ScriptedReader
from rlroute.memory.retriever import Retriever
from rlroute.memory.rules import make_rules_tier
from rlroute.memory.simulated_models import SimulatedModels, SimulatedModelsConfig
from rlroute.memory.store import RunStore
from rlroute.memory.world import GeneratedMemory
from rlroute.pool.base import Pool
from rlroute.pool.open import OpenPool, open_pool
from rlroute.pool.pool_file import HttpSpec, PoolFile, load_pool
from rlroute.types import Candidate, Prices, RLRouteError

DESCRIPTIONS: Mapping[str, str] = {
    "filter": "Picks the pieces of a long history that help to answer a question.",
    "entity": "Notes facts about people and things, and when they were told.",
    "temporal": "Notes what happened and on which date.",
    "topic": "Collects what belongs to the same person and matter into lists.",
    "summary": "Puts notes in order into a short text from which the question can be answered.",
}
EVENTS = ("place", "event", "purchase")  # what happens on a day; the rest are states
RELATIONS_BY_MODULE: Mapping[str, tuple[str, ...]] = {
    "entity": tuple(name for name in RELATIONS if name not in EVENTS),
    "temporal": EVENTS,
    "topic": tuple(name for name, relation in RELATIONS.items() if not relation.single),
}
THREE_NAMES = ("Low", "Mid", "High")


class PoolModelsConfig(StrictModel):
    """The models of a pool file; `overrides` such as `max_usd=2` change it."""

    kind: Literal["pool"]
    path: Path
    overrides: tuple[str, ...] = ()


MemoryModelsConfig = Annotated[
    SimulatedModelsConfig | PoolModelsConfig, Field(discriminator="kind")
]


@dataclass(frozen=True)
class OpenModels:
    """Models to ask, by candidate id.

    `identities` hold what answers behind each id, as a hash: replies of one identity are never
    taken for those of another. `addresses` are the URLs of those that a server answers for.
    """

    pool: Pool
    candidates: Mapping[str, Candidate]
    identities: Mapping[str, str]
    addresses: Mapping[str, str] = field(default_factory=dict)

    async def close(self) -> None:
        """Close connections and files."""
        if isinstance(self.pool, OpenPool):
            await self.pool.close()


def open_models(
    config: SimulatedModelsConfig | PoolModelsConfig, memory: GeneratedMemory | None = None
) -> OpenModels:
    """Open the models that tiers and answerers name.

    Raises:
        RLRouteError: the pool file has a fault, something it names is missing, or models are
            simulated and `memory`, the generated world that they need, is None.
    """
    if isinstance(config, PoolModelsConfig):
        pool_file = load_pool(config.path, config.overrides)
        pool = open_pool(pool_file)
        return OpenModels(
            pool, pool.candidates, identify_candidates(pool_file), list_addresses(pool_file)
        )
    if memory is None:
        raise RLRouteError("models: kind 'simulated' needs data of kind 'generated'; write pool")
    simulated = SimulatedModels(config, memory)
    world = fingerprint_data(memory.data)
    identity = hash_parts(dump_json(config.model_dump(mode="json")), world.encode())
    candidates = simulated.candidates
    return OpenModels(simulated, candidates, dict.fromkeys(candidates, identity))


def identify_candidates(pool_file: PoolFile) -> dict[str, str]:
    """Return for each candidate a hash of what decides its replies; prices and limits are not."""
    shared = pool_file.model_dump(mode="json", include={"seed", "models", "simulation"})
    identities = {}
    for name, spec in pool_file.candidates.items():
        if isinstance(spec, HttpSpec):
            facts: object = [spec.endpoint, spec.model]
        else:
            facts = [shared, spec.model_dump(mode="json", exclude={"prices", "description"})]
        identities[name] = hash_parts(dump_json(facts))
    return identities


def list_addresses(pool_file: PoolFile) -> dict[str, str]:
    """Return the URLs of the candidates behind a server; the pool file lets no key stand in one."""
    specs = pool_file.candidates
    return {name: spec.endpoint for name, spec in specs.items() if isinstance(spec, HttpSpec)}


def open_pipeline(
    config: PipelineConfig,
    data: MemoryData,
    models: Pool,
    candidates: Mapping[str, Candidate],
    store: RunStore | None = None,
    identities: Mapping[str, str] | None = None,
    addresses: Mapping[str, str] | None = None,
) -> Pipeline:
    """Return the pipeline that a config describes, over the histories of `data`.

    Args:
        config: modules, retrieval and the answerer.
        data: histories.
        models: who answers for candidates.
        candidates: by id, with their prices.
        store: what was run before; None for a new one in memory.
        identities: see `OpenModels`.
        addresses: see `OpenModels`.

    Raises:
        RLRouteError: a candidate is unknown or has no usable price, a module of the user's own
            lacks what its tiers need, a relation is unknown, or names of tiers are the same.
    """
    asked = AskedModels(models, candidates, identities or {}, addresses or {})
    modules = [open_module(spec, config.keep, asked) for spec in config.modules]
    return Pipeline(
        modules,
        Retriever(config.retriever, data.histories, config.chunk_tokens),
        open_answerer(config.answerer, asked),
        store,
        source=fingerprint_data(data),
    )


def fingerprint_data(data: MemoryData) -> str:
    """Return a hash of histories and questions."""
    histories = [asdict(history) for history in data.histories.values()]
    questions = [
        [split, one.history_id, one.asked_on, one.query.id, one.query.text, one.query.references]
        for split, some in data.questions.items()
        for one in some
    ]
    return hash_parts(dump_json([data.name, histories, questions]))


@dataclass(frozen=True)
class AskedModels:
    """The models that tiers may name."""

    pool: Pool
    candidates: Mapping[str, Candidate]
    identities: Mapping[str, str]
    addresses: Mapping[str, str]

    def find(self, name: str, where: str) -> Candidate:
        """Return the candidate of an id or alias.

        Raises:
            RLRouteError: there is none, or a price of it is no amount of money.
        """
        names = {known: one for one in self.candidates.values() for known in (*one.aliases, one.id)}
        if name not in names:
            listed = ", ".join(sorted(self.candidates)) or "none"
            raise RLRouteError(f"{where}: unknown candidate '{name}' (known: {listed})")
        check_prices(names[name].prices, f"{where}: candidate '{name}'")
        return names[name]


def check_prices(prices: Prices, where: str) -> None:
    """Raise RLRouteError where a price is missing or no amount of money."""
    stated = {"input": prices.input, "output": prices.output, "per_call": prices.per_call}
    for name, price in stated.items():
        if not 0 <= price < math.inf:
            raise RLRouteError(f"{where}: price '{name}' is {price} (allowed: 0 or more)")


def open_answerer(spec: AnswererSpec, asked: AskedModels) -> Answerer:
    """Return the answerer; see `open_pipeline`."""
    if isinstance(spec, ReaderAnswererSpec):
        return ScriptedReader()
    candidate = asked.find(spec.candidate, "answerer")
    identity = asked.identities.get(candidate.id, "")
    return LlmAnswerer(spec, candidate, asked.pool, identity)


def open_module(stated: ModuleSpec, keep: int, asked: AskedModels) -> Module:
    """Return a module with its tiers; see `open_pipeline`."""
    spec = complete_module(stated)
    names = name_tiers(spec)
    tiers = tuple(
        open_tier(spec, tier, name, keep, asked)
        for tier, name in zip(spec.tiers, names, strict=True)
    )
    return Module(spec.name, spec.role, spec.description, tiers)


def open_tier(module: ModuleSpec, spec: TierSpec, name: str, keep: int, asked: AskedModels) -> Tier:
    """Return a tier; see `open_pipeline`."""
    if isinstance(spec, RulesTierSpec):
        return make_rules_tier(module, spec, name, keep)
    if isinstance(spec, EncoderTierSpec):
        return make_encoder_tier(module, spec, name, keep)
    candidate = asked.find(spec.candidate, f"module '{module.name}', tier '{name}'")
    identity = asked.identities.get(candidate.id, "")
    address = asked.addresses.get(candidate.id, "")
    return LlmTier(name, module, spec, candidate, asked.pool, keep, identity, address)


def complete_module(spec: ModuleSpec) -> ModuleSpec:
    """Return a module with the defaults of the known ones filled in.

    Raises:
        RLRouteError: it is not a known one and lacks what its tiers need, or names a relation that
            the lexicon does not have.
    """
    known = spec.name if spec.role == "extract" else spec.role
    known = "" if spec.role == "extract" and known in ("filter", "summary") else known
    filled = spec.model_copy(
        update={
            "description": spec.description or DESCRIPTIONS.get(known, ""),
            "instructions": spec.instructions or INSTRUCTIONS.get(known, ""),
            "relations": spec.relations or RELATIONS_BY_MODULE.get(known, ()),
        }
    )
    kinds = {tier.kind for tier in spec.tiers}
    needed = ["description"]
    needed += ["instructions"] if "llm" in kinds else []
    needed += ["relations"] if spec.role == "extract" and kinds - {"llm"} else []
    for key in needed:
        if not getattr(filled, key):
            kept = ", ".join(RELATIONS_BY_MODULE)
            raise RLRouteError(
                f"module '{spec.name}': state its {key} (only {kept} have a default)"
            )
    unknown = sorted(set(filled.relations) - set(RELATIONS))
    if unknown:
        raise RLRouteError(
            f"module '{spec.name}': unknown relation '{unknown[0]}' (known: {', '.join(RELATIONS)})"
        )
    return filled


def name_tiers(module: ModuleSpec) -> tuple[str, ...]:
    """Return the names of a module's tiers: stated, or made as the module's text says.

    Raises:
        RLRouteError: two tiers have the same name.
    """
    names: list[str] = []
    for place, tier in enumerate(module.tiers):
        if tier.name is not None:
            names.append(tier.name)
        elif len(module.tiers) == len(THREE_NAMES):
            names.append(THREE_NAMES[place])
        elif isinstance(tier, LlmTierSpec):
            names.append(f"{tier.candidate}-{tier.prompt}")
        else:
            names.append(tier.kind)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RLRouteError(
            f"module '{module.name}': two tiers are called '{twice[0]}'; give each a name"
        )
    return tuple(names)
