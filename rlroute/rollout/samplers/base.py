"""What a rollout asks of a language model: token ids in, sampled token ids and log-probs out.

It leaves out text: a sampler is never sent any, so nothing that a policy wrote is tokenised again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rlroute.types import Finish


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One text to continue.

    Args:
        token_ids: everything before: prompt, the policy's earlier tokens, observations.
        max_new_tokens: where the continuation is cut.
        stop: strings; the token that completes one of them is kept whole and is the last.
        temperature: divides the logits; 0 takes the likeliest token.
        seed: what is drawn depends on this, the weights and `token_ids`, and on nothing else.
    """

    token_ids: tuple[int, ...]
    max_new_tokens: int
    stop: tuple[str, ...]
    temperature: float
    seed: int


@dataclass(frozen=True, slots=True)
class Sample:
    """A continuation as sampled; the end-of-text token is kept where it came.

    `logps` are under the distribution that was sampled from, so at the request's temperature; at
    temperature 0 they are those at temperature 1.
    """

    token_ids: tuple[int, ...]
    logps: tuple[float, ...]
    finish: Finish
    policy_version: int


class Sampler(Protocol):
    """Continues texts; whoever is ready asks, and what is asked at the same time is batched."""

    async def sample(self, request: SampleRequest) -> Sample:
        """Return one continuation."""

    async def close(self) -> None:
        """Release what the sampler holds."""


def decode_ids(tokenizer: Any, token_ids: Sequence[int]) -> str:
    """Return the text of tokens, letter for letter, without the special ones."""
    text: str = tokenizer.decode(
        list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text
