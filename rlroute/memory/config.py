"""The YAML form of a memory pipeline: modules, tiers, retrieval and the answerer.

    pipeline:
      modules:
        - {name: filter, role: filter, tiers: [{kind: rules}, {kind: encoder, price: 0.02},
           {kind: llm, candidate: large, prompt: reflect}]}
        - ...

Modules are listed in the order filter, extractors, summary. An extractor of the user's own gives a
`description`, `instructions` for language models and `relations` for rules and encoder tiers.

What it leaves out: the models that `candidate` names (`MemoryModelsConfig` in
`rlroute.memory.open`), and behaviour (there too).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlroute.config import StrictModel
from rlroute.data.encoders import EncoderConfig, MinilmConfig
from rlroute.memory.base import Role

Share = Annotated[float, Field(ge=0, le=1)]
Money = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PromptStyle = Literal["direct", "cot", "reflect"]


class RulesTierSpec(StrictModel):
    """Programs only: word overlap, patterns, concatenation. It calls nothing and costs nothing."""

    kind: Literal["rules"]
    name: str | None = None


class EncoderTierSpec(StrictModel):
    """A small encoder compares meanings; `price` is in USD per million tokens that it reads."""

    kind: Literal["encoder"]
    name: str | None = None
    price: Money
    encoder: EncoderConfig = MinilmConfig()
    threshold: Share = 0.3


class LlmTierSpec(StrictModel):
    """A language model of the pool, asked by a prompt of one of three styles."""

    kind: Literal["llm"]
    name: str | None = None
    candidate: str = Field(min_length=1)
    prompt: PromptStyle = "direct"
    max_output_tokens: int = Field(default=512, ge=1)


TierSpec = Annotated[RulesTierSpec | EncoderTierSpec | LlmTierSpec, Field(discriminator="kind")]


class ModuleSpec(StrictModel):
    """A module; `description`, `instructions` and `relations` have defaults for the known five."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    role: Role
    description: str = ""
    instructions: str = ""
    relations: tuple[str, ...] = ()
    tiers: tuple[TierSpec, ...] = Field(min_length=2)


class RetrieverConfig(StrictModel):
    """How chunks are found: `top` of them, by words, by meaning, or by the mean of both ranks."""

    kind: Literal["bm25", "encoder", "hybrid"] = "hybrid"
    top: int = Field(default=10, ge=1)
    encoder: EncoderConfig = MinilmConfig()


class ReaderAnswererSpec(StrictModel):
    """The scripted reader of the generated world: a program, free of charge."""

    kind: Literal["reader"]


class LlmAnswererSpec(StrictModel):
    """A language model of the pool answers from the summary."""

    kind: Literal["llm"]
    candidate: str = Field(min_length=1)
    max_output_tokens: int = Field(default=64, ge=1)


AnswererSpec = Annotated[ReaderAnswererSpec | LlmAnswererSpec, Field(discriminator="kind")]


class PipelineConfig(StrictModel):
    """A whole pipeline; `keep` is how many chunks the filter hands on at most."""

    chunk_tokens: int = Field(default=128, ge=8)
    retriever: RetrieverConfig = RetrieverConfig()
    keep: int = Field(default=5, ge=1)
    modules: tuple[ModuleSpec, ...] = Field(min_length=3)
    answerer: AnswererSpec

    @model_validator(mode="after")
    def check_modules(self) -> PipelineConfig:
        """Refuse modules out of order, and names that stand twice."""
        roles = [module.role for module in self.modules]
        if roles != ["filter", *["extract"] * (len(roles) - 2), "summary"]:
            raise ValueError("modules: list one filter, then extractors, then one summary")
        names = [module.name for module in self.modules]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"modules: '{twice[0]}' stands twice")
        return self
