"""The recipe of a collection: tasks by difficulty level, candidates, and a price rule.

What it is: pydantic models, read by `rlroute.config.load_config`. Tasks come from reasoning-gym; a
candidate is a local model in one mode, or a program tool.

What it leaves out: the run (`rlroute.collection.collect`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from rlroute.config import StrictModel
from rlroute.pool.pool_file import Mode, ModelSource


class CandidateRecipe(StrictModel):
    """A model in a mode (`samples` and `temperature` for self_consistency), or a tool."""

    description: str
    model: str | None = None
    mode: Mode | None = None
    samples: int = Field(1, gt=0)
    temperature: float = Field(0.0, ge=0)
    tool: str | None = None
    usd_per_call: float | None = Field(None, ge=0)

    @model_validator(mode="after")
    def check_kind(self) -> CandidateRecipe:
        """Ask for model and mode, or for tool and its price."""
        if self.tool is None and (self.model is None or self.mode is None):
            raise ValueError("a candidate needs model and mode, or tool and usd_per_call")
        if (self.tool is None) != (self.usd_per_call is None):
            raise ValueError("usd_per_call is the price of a tool, and a tool needs one")
        if self.tool is not None and self.model is not None:
            raise ValueError("a candidate is a model or a tool, not both")
        if self.mode == "self_consistency" and (self.samples < 2 or self.temperature == 0):
            raise ValueError("self_consistency needs samples of 2 or more and a temperature")
        return self


class PriceRule(StrictModel):
    """Prices of local models: in proportion to their parameters."""

    input_usd_per_mtok_per_billion: float = Field(gt=0)
    output_to_input: float = Field(gt=0)


class CollectRecipe(StrictModel):
    """A collection: candidates x tasks.

    `generators` hold the settings of each level, easiest first; `note` goes into the README;
    `only` names the candidates to ask now. Checkpoints made of packages are kept in `cache`.
    """

    name: str
    seed: int = 0
    tasks_per_level: int = Field(gt=0)
    examples: int = Field(3, gt=0)
    generators: dict[str, list[dict[str, Any]]] = Field(min_length=1)
    models: dict[str, ModelSource]
    candidates: dict[str, CandidateRecipe] = Field(min_length=1)
    prices: PriceRule
    cache: Path
    note: str = ""
    only: tuple[str, ...] = ()

    @model_validator(mode="after")
    def check_names(self) -> CollectRecipe:
        """Refuse names of nothing stated, and generators without a level."""
        for name, candidate in self.candidates.items():
            if candidate.model is not None and candidate.model not in self.models:
                known = ", ".join(sorted(self.models))
                raise ValueError(f"candidates.{name}: unknown model '{candidate.model}' ({known})")
        unknown = sorted(set(self.only) - set(self.candidates))
        if unknown:
            raise ValueError(f"only: '{unknown[0]}' is none of {', '.join(self.candidates)}")
        empty = sorted(name for name, levels in self.generators.items() if not levels)
        if empty:
            raise ValueError(f"generators.{empty[0]}: state at least one level")
        return self
