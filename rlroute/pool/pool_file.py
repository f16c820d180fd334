"""pool.yaml: the candidates of a pool, what answers for each, its prices and its limits.

What it is: pydantic models, read by `load_pool`. One declaration per candidate decides its prompt
text, what is charged, and what may be asked. A candidate has a `type`:

- http (the default): a model behind an OpenAI-compatible server;
- recorded: the outcomes of a table, or the replies of a cassette;
- local: a checkpoint run here by transformers (its source stands under `models`);
- tool: one of the programs of `rlroute.pool.tools`;
- simulated: a skill against the difficulty of queries (`rlroute.pool.simulated`);
- vllm: a model that vLLM runs inside this process.

A secret never stands in the file: `api_key_env` names the environment variable that holds it.

What it leaves out: the pool itself (`rlroute.pool.open`).

How to use: `pool_file = load_pool(Path("pool.yaml"), ["max_usd=2"])`.
"""

from __future__ import annotations

import datetime
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias
from urllib.parse import urlsplit

import yaml
from pydantic import Field, field_validator, model_validator

from rlroute.config import StrictModel, load_config
from rlroute.types import Candidate, CandidateKind, FailureKind, Limits, Prices, RLRouteError

Money: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Finite: TypeAlias = Annotated[float, Field(allow_inf_nan=False)]
Tokens: TypeAlias = Annotated[int, Field(gt=0)]
Mode: TypeAlias = Literal["direct", "chat", "few_shot", "self_consistency"]

KEY_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
HTTP_DEFAULTS = (
    *("concurrency", "requests_per_minute", "tokens_per_minute", "timeout_seconds", "retries"),
    *("api_key_env", "endpoint", "context_tokens", "max_output_tokens"),
)


class PricesEntry(StrictModel):
    """USD per million tokens and per call. What a call is charged by has to be written down."""

    input: Money
    output: Money
    cached_input: Money | None = None
    per_call: Money = 0.0
    date: datetime.date | None = None

    def to_prices(self) -> Prices:
        """Return the prices that the entry states."""
        date = "" if self.date is None else self.date.isoformat()
        return Prices(self.input, self.output, self.per_call, self.cached_input, date)


class ToolPrices(StrictModel):
    """What a program charges: it uses no tokens."""

    per_call: Money
    date: datetime.date | None = None

    def to_prices(self) -> Prices:
        """Return the prices that the entry states."""
        return Prices(0.0, 0.0, self.per_call, date="" if self.date is None else str(self.date))


class CandidateSpec(StrictModel):
    """What every candidate has."""

    aliases: tuple[str, ...] = ()
    kind: CandidateKind = "model"
    description: str = ""
    context_tokens: Tokens | None = None
    max_output_tokens: Tokens | None = None

    def make_candidate(self, name: str, prices: Prices) -> Candidate:
        """Return the candidate that is declared, under its id."""
        limits = Limits(self.context_tokens, self.max_output_tokens)
        return Candidate(
            name, prices, self.kind, self.description, limits, aliases=tuple(self.aliases)
        )


class HttpSpec(CandidateSpec):
    """A model behind an OpenAI-compatible server; `model` is the name that it is served by."""

    type: Literal["http"] = "http"
    endpoint: str
    model: str = Field(min_length=1)
    api_key_env: str | None = None
    prices: PricesEntry
    max_output_tokens: Tokens = 1024  # an upper bound of the price needs one
    concurrency: int = Field(16, gt=0)
    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None
    timeout_seconds: Positive = 60.0
    retries: int = Field(3, ge=0, le=20)
    tokenizer: Path | None = None  # counts the tokens where the server reports none

    @field_validator("endpoint")
    @classmethod
    def check_endpoint(cls, url: str) -> str:
        """Refuse what is no URL, and a URL with a secret in it; the URL is not repeated."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be a URL such as http://127.0.0.1:8000/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("must hold no user, password or query; name the key's api_key_env")
        return url.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def check_key_name(cls, name: str | None) -> str | None:
        """Refuse what may be the key itself; it is not repeated."""
        if name is not None and not KEY_NAME.fullmatch(name):
            raise ValueError(
                "must be the NAME of an environment variable (capitals, digits, _), not a key"
            )
        return name


class RecordedSpec(CandidateSpec):
    """What was measured before: the outcomes of a `table`, or the replies of a `cassette`.

    `candidate` is its name there, where that is another; a table brings its own prices.
    """

    type: Literal["recorded"]
    table: str | None = None
    cassette: Path | None = None
    candidate: str | None = None
    prices: PricesEntry | None = None

    @model_validator(mode="after")
    def check_source(self) -> RecordedSpec:
        """Ask for one source, and for prices where the source has none."""
        if (self.table is None) == (self.cassette is None):
            raise ValueError("name either table or cassette")
        if (self.table is None) == (self.prices is None):
            raise ValueError("a cassette needs prices, a table brings its own")
        return self


class LocalSpec(CandidateSpec):
    """A local model in one mode; `samples` and `temperature` are of self_consistency."""

    type: Literal["local"]
    model: str
    mode: Mode = "direct"
    samples: int = Field(1, gt=0)
    temperature: float = Field(0.0, ge=0)
    prices: PricesEntry

    @model_validator(mode="after")
    def check_mode(self) -> LocalSpec:
        """Ask for several different answers where a majority of them is to decide."""
        if self.mode == "self_consistency" and (self.samples < 2 or self.temperature == 0):
            raise ValueError("self_consistency needs samples of 2 or more and a temperature")
        return self


class ToolSpec(CandidateSpec):
    """A program of `rlroute.pool.tools`."""

    type: Literal["tool"]
    program: str
    kind: CandidateKind = "tool"
    prices: ToolPrices


class SimulatedSpec(CandidateSpec):
    """A skill in the world of `simulation`; `failures` are rates by kind of failure."""

    type: Literal["simulated"]
    skill: float = Field(allow_inf_nan=False)
    prices: PricesEntry
    completion_tokens: Positive = 64.0
    latency_seconds: Positive = 0.5
    latency_sigma: float = Field(0.5, ge=0, allow_inf_nan=False)
    failures: dict[FailureKind, Annotated[float, Field(ge=0, le=1)]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def check_rates(self) -> SimulatedSpec:
        """Refuse rates that exceed 1 together."""
        if sum(self.failures.values()) > 1:
            raise ValueError("failures: the rates must sum to at most 1")
        return self


class VllmSpec(CandidateSpec):
    """A model that vLLM runs in this process; `engine` goes to `vllm.LLM`."""

    type: Literal["vllm"]
    model: str
    prices: PricesEntry
    max_output_tokens: Tokens = 1024
    engine: dict[str, Any] = Field(default_factory=dict)


Spec: TypeAlias = Annotated[
    HttpSpec | RecordedSpec | LocalSpec | ToolSpec | SimulatedSpec | VllmSpec,
    Field(discriminator="type"),
]


class ModelSource(StrictModel):
    """Where a local model comes from, and how it is run.

    Either `folder` (a checkpoint) or `packages` (installed packages that hold a GGUF file, in parts
    where there are several; the checkpoint made of it is kept in the `checkpoints` folder).
    """

    folder: Path | None = None
    packages: tuple[str, ...] = ()
    pattern: str = "**/*.gguf*"
    split_digits: bool = False
    parameters: int = Field(gt=0)
    licence: str
    dtype: str = "bfloat16"
    batch_size: int = Field(32, gt=0)
    max_new_tokens: int = Field(16, gt=0)

    @model_validator(mode="after")
    def check_source(self) -> ModelSource:
        """Ask for exactly one of the two sources."""
        if (self.folder is None) == (not self.packages):
            raise ValueError("name either folder or packages")
        return self


class CacheSpec(StrictModel):
    """The file of cached replies and its largest size in bytes."""

    path: Path
    max_bytes: int = Field(1 << 30, gt=0)


class CassetteSpec(StrictModel):
    """A recording of the whole pool.

    record: ask and write down; strict: answer from the file alone; fall_through: answer from the
    file, ask and write down what it does not hold.
    """

    path: Path
    mode: Literal["record", "strict", "fall_through"]
    keep_prompts: bool = False


class SimulationSpec(StrictModel):
    """The world of simulated candidates: difficulties are uniform between the two bounds."""

    discrimination: Positive = 1.7
    easiest: Finite = -3.0
    hardest: Finite = 3.0

    @model_validator(mode="after")
    def check_bounds(self) -> SimulationSpec:
        """Refuse an empty range."""
        if not self.easiest < self.hardest:
            raise ValueError("easiest must be below hardest")
        return self


class PoolFile(StrictModel):
    """A pool: candidates, what they share, and the caps of a run in USD.

    `defaults` fill in what http candidates do not state; `examples` is a JSONL file of worked
    examples (task, question, answer) for local candidates; `seed` is that of local and simulated
    candidates and of the jitter between retries.
    """

    candidates: dict[str, Spec] = Field(min_length=1)
    max_usd: Money | None = None
    max_usd_per_episode: Money | None = None
    max_in_flight: int = Field(64, gt=0)
    seed: int = 0
    cache: CacheSpec | None = None
    cassette: CassetteSpec | None = None
    simulation: SimulationSpec = SimulationSpec()
    models: dict[str, ModelSource] = Field(default_factory=dict)
    examples: Path | None = None
    checkpoints: Path = Path("~/.cache/rlroute/checkpoints")

    @model_validator(mode="before")
    @classmethod
    def apply_defaults(cls, data: Any) -> Any:
        """Make http the type where none is stated, and fill in the defaults of http candidates."""
        if not isinstance(data, dict) or not isinstance(data.get("candidates"), dict):
            return data
        data = dict(data)
        defaults = data.pop("defaults", None) or {}
        unknown = sorted(set(defaults) - set(HTTP_DEFAULTS)) if isinstance(defaults, dict) else []
        if not isinstance(defaults, dict) or unknown:
            fault = f"unknown key '{unknown[0]}'" if unknown else "must map keys to values"
            raise ValueError(f"defaults: {fault} (valid here: {', '.join(sorted(HTTP_DEFAULTS))})")
        filled: dict[Any, Any] = {}
        for name, entry in data["candidates"].items():
            stated = {"type": "http"} | entry if isinstance(entry, dict) else entry
            is_http = isinstance(stated, dict) and stated["type"] == "http"
            filled[name] = defaults | stated if is_http else stated
        return data | {"candidates": filled}

    @model_validator(mode="after")
    def check_names(self) -> PoolFile:
        """Refuse a name that two candidates share, and models and examples that are not stated."""
        names = [name for key, spec in self.candidates.items() for name in (key, *spec.aliases)]
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ValueError(f"candidates: '{twice[0]}' names more than one (ids and aliases)")
        if any(not name.strip() for name in names):
            raise ValueError("candidates: an id or alias is empty")
        for name, spec in self.candidates.items():
            if isinstance(spec, LocalSpec) and spec.model not in self.models:
                known = ", ".join(sorted(self.models)) or "none is stated"
                raise ValueError(f"candidates.{name}: unknown model '{spec.model}' ({known})")
            if not isinstance(spec, LocalSpec) or spec.mode in ("direct", "chat"):
                continue
            if self.examples is None:
                raise ValueError(
                    f"candidates.{name}: mode {spec.mode} needs examples, a JSONL file"
                )
        return self


def load_pool(path: Path, overrides: Sequence[str] = ()) -> PoolFile:
    """Read a pool file, with overrides such as `max_usd=2`.

    Raises:
        RLRouteError: the first fault, in one line: an unknown key, a missing price, a name twice.
    """
    pool_file = load_config(PoolFile, path, overrides)
    refuse_repeated_keys(path, yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader))
    return pool_file


def refuse_repeated_keys(path: Path, node: yaml.Node | None) -> None:
    """Raise RLRouteError where a key stands twice: YAML would quietly take the last one."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                line = key.start_mark.line + 1
                raise RLRouteError(f"{path}, line {line}: '{key.value}' stands twice")
            seen.add(key.value)
            refuse_repeated_keys(path, value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            refuse_repeated_keys(path, value)
