"""What both policies that are language models share: settings of adapters, loading, a value head.

It leaves out how they decide (`rlroute.policies.choice` scores labels; text policies write, see
`rlroute.trainers.text_model`) and weights on their way to a server (`rlroute.rollout`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from rlroute.config import StrictModel
from rlroute.extras import require
from rlroute.seeding import derive_seed
from rlroute.types import RLRouteError

EXTRA = "text"
VALUE_HEAD = "value_head"

Precision = Literal["float32", "bfloat16"]


class LoraConfig(StrictModel):
    """Train low-rank adapters on all linear layers instead of all weights (Hu et al., 2022)."""

    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)


class ValueHead(nn.Module):
    """Two layers from a hidden state [..., H] to a value [...]; it starts at zero everywhere."""

    def __init__(self, hidden: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, VALUE_HEAD))
            self.inner = nn.Linear(hidden, hidden)
            self.outer = nn.Linear(hidden, 1)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the value of each hidden state, in float32."""
        hidden = hidden.to(self.inner.weight.dtype)
        value: Tensor = self.outer(torch.tanh(self.inner(hidden))).squeeze(-1)
        return value.float()


def load_causal_model(source: str | Path, precision: Precision, key: str) -> Any:
    """Load a causal language model with weights of a precision; `key` names the setting.

    Raises:
        RLRouteError: no such checkpoint, or it is no causal language model.
    """
    transformers = require("transformers", EXTRA)
    dtype = getattr(torch, precision)
    try:
        return transformers.AutoModelForCausalLM.from_pretrained(str(source), dtype=dtype)
    except (OSError, ValueError) as error:
        raise RLRouteError(f"{key} '{source}': cannot be loaded ({error})") from None


def load_tokenizer(source: str | Path, key: str) -> Any:
    """Load the tokenizer of a checkpoint; one without a padding token pads with end-of-text.

    Raises:
        RLRouteError: there is none.
    """
    transformers = require("transformers", EXTRA)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(source), padding_side="left")
    except (OSError, ValueError) as error:
        raise RLRouteError(f"{key} '{source}': no tokenizer ({error})") from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
