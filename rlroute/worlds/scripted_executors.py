"""Executors of text games: scripted ones of a stated skill, and agents behind a pool.

A scripted executor follows the game's own next command with a probability that depends on the
command's verb (`follow`, else `follow_otherwise`), and otherwise gives some other command. So some
steps are hard for a weak executor and easy for a strong one. It reports a confidence: uniform in
[0.3, 1] after a step that followed, in [0, 0.7] after one that did not; the former is the higher
one with probability 0.84.

The token model of scripted executors: the prompt is what an agent behind a pool would be sent at
this step, which grows with the conversation, at 4 bytes a token; the completion is always
`completion_tokens`. Their costs are known before the step.

An executor behind a pool is sent the same text and asked for one command. Its reply counts where it
is, as a whole, a command that the game admits; letter case and blanks do not matter. Its usage and
cost are the reply's; before the step they are bounded as pools bound them (a prompt has at most as
many tokens as bytes, and a server's template some more).

What it leaves out: games and episodes (`rlroute.worlds.text_games`).

How to use: `executors = Executors(make_default_executors(FOLLOW))`.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

import numpy as np
from pydantic import Field

from rlroute.config import StrictModel
from rlroute.pool.chat import OVERHEAD_TOKENS
from rlroute.pool.pool_file import PricesEntry
from rlroute.seeding import draw_uniform
from rlroute.types import Candidate, FloatArray, Limits, Usage
from rlroute.worlds.base import NOMINAL_USAGE

Rate: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Tokens: TypeAlias = Annotated[int, Field(gt=0)]
Coordinates: TypeAlias = tuple[int | str, ...]

BYTES_PER_TOKEN = 4
CONFIDENCE_WIDTH = 0.7
CONFIDENCE_GAIN = 0.3  # of a step that followed over one that did not
WORD = re.compile(r"[a-z]+")


class ScriptedExecutor(StrictModel):
    """An executor that follows the game's next command with a probability by its verb.

    Prices are in USD per million tokens.
    """

    kind: Literal["scripted"] = "scripted"
    id: str = Field(min_length=1)
    prices: PricesEntry
    follow: dict[str, Rate] = Field(default_factory=dict)
    follow_otherwise: Rate = 0.95
    completion_tokens: Tokens = 40

    def find_follow_probability(self, command: str) -> float:
        """Return the probability to follow where this is the game's next command."""
        return self.follow.get(find_verb(command), self.follow_otherwise)


class PoolExecutor(StrictModel):
    """An agent that a pool answers for; `id` is the candidate's there, and the prices the same."""

    kind: Literal["pool"] = "pool"
    id: str = Field(min_length=1)
    prices: PricesEntry
    max_output_tokens: Tokens = 64
    temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False)


ExecutorSpec: TypeAlias = Annotated[ScriptedExecutor | PoolExecutor, Field(discriminator="kind")]


@dataclass(frozen=True)
class Attempt:
    """What a scripted executor did: the command, whether it followed, and its confidence."""

    command: str
    followed: bool
    confidence: float


class Executors:
    """The executors of a world in the order of their prices, the cheapest first."""

    def __init__(self, specs: Sequence[ExecutorSpec]) -> None:
        self.specs = tuple(sorted(specs, key=compute_nominal_cost))
        self.candidates = tuple(make_candidate(spec) for spec in self.specs)

    def bound_cost_usd(self, executor: int, prompt: str) -> float:
        """Return the most that a step can cost in USD; a scripted executor's is what it costs."""
        spec = self.specs[executor]
        prices = spec.prices.to_prices()
        if isinstance(spec, ScriptedExecutor):
            usage = estimate_usage(spec, prompt)
            return prices.compute_cost(usage.prompt_tokens, usage.completion_tokens)
        tokens = len(prompt.encode("utf-8")) + OVERHEAD_TOKENS
        return max(  # the larger one, should cached tokens cost more than others
            prices.compute_cost(tokens, spec.max_output_tokens, cached) for cached in (0, tokens)
        )

    def advise(self, policy_command: str | None, share: float) -> int | None:
        """Return the cheapest executor that follows nearly as often as the best one.

        That is with at least `share` of the best one's probability; the cheapest of all where the
        game has no next command. None where an executor stands behind a pool: its skill is unknown.
        """
        scripted = [spec for spec in self.specs if isinstance(spec, ScriptedExecutor)]
        if len(scripted) < len(self.specs):
            return None
        if policy_command is None:
            return 0
        rates = [spec.find_follow_probability(policy_command) for spec in scripted]
        return next(k for k, rate in enumerate(rates) if rate >= share * max(rates))


def compute_nominal_cost(spec: ExecutorSpec) -> float:
    """Return what a nominal call costs in USD, which executors are ordered by."""
    usage = NOMINAL_USAGE
    return spec.prices.to_prices().compute_cost(usage.prompt_tokens, usage.completion_tokens)


def make_candidate(spec: ExecutorSpec) -> Candidate:
    """Return the executor as policies know it."""
    limits = Limits(
        output_tokens=spec.max_output_tokens if isinstance(spec, PoolExecutor) else None
    )
    return Candidate(spec.id, spec.prices.to_prices(), kind="agent", limits=limits)


def make_default_executors(follow: dict[str, float]) -> tuple[ExecutorSpec, ...]:
    """Return a small executor with these probabilities by verb, and a large one that seldom errs.

    Prices are those of GPT-4.1-mini and GPT-4.1.
    """
    small = PricesEntry(input=0.4, output=1.6)
    large = PricesEntry(input=2.0, output=8.0)
    return (
        ScriptedExecutor(id="small", prices=small, follow=follow),
        ScriptedExecutor(id="large", prices=large, follow_otherwise=0.98),
    )


def check_executors(specs: Sequence[ExecutorSpec], verbs: Sequence[str]) -> None:
    """Refuse executors of one name, and verbs that the world does not have (ValueError)."""
    if not specs:
        raise ValueError("must name at least one executor")
    ids = [spec.id for spec in specs]
    if len(set(ids)) < len(ids):
        raise ValueError(f"ids must be distinct (they are: {', '.join(ids)})")
    for spec in specs:
        stated = spec.follow if isinstance(spec, ScriptedExecutor) else {}
        unknown = sorted(set(stated) - set(verbs))
        if unknown:
            raise ValueError(f"'{spec.id}' has an unknown verb '{unknown[0]}' ({', '.join(verbs)})")


def find_verb(command: str) -> str:
    """Return the first word of a command."""
    return command.split(maxsplit=1)[0] if command.strip() else ""


def attempt_step(
    spec: ScriptedExecutor,
    policy_command: str | None,
    distractions: Sequence[str],
    coordinates: Coordinates,
) -> Attempt:
    """Draw what a scripted executor does at a step that these coordinates name.

    Args:
        spec: the executor.
        policy_command: the game's next command; None where it has none, so that nobody follows.
        distractions: the other commands, in a fixed order; at least one.
        coordinates: seed, task, step and whatever else tells this step from others.
    """
    where = (*coordinates, spec.id)
    followed = policy_command is not None and bool(
        draw_uniform(*where, "follow") < spec.find_follow_probability(policy_command)
    )
    confidence = CONFIDENCE_WIDTH * float(draw_uniform(*where, "confidence"))
    confidence += CONFIDENCE_GAIN * followed
    if followed and policy_command is not None:
        return Attempt(policy_command, followed, confidence)
    number = int(draw_uniform(*where, "distraction") * len(distractions))
    return Attempt(distractions[number], followed, confidence)


def estimate_usage(spec: ScriptedExecutor, prompt: str) -> Usage:
    """Return the usage of a scripted executor by the token model."""
    prompt_tokens = math.ceil(len(prompt.encode("utf-8")) / BYTES_PER_TOKEN)
    return Usage(prompt_tokens, spec.completion_tokens)


def normalise_command(text: str) -> str:
    """Return a command in lower case, with one blank between words."""
    return " ".join(text.casefold().split())


def find_command(text: str, admissible: Iterable[str]) -> str | None:
    """Return the admissible command that a reply is, as a whole; None where it is none."""
    wanted = normalise_command(text)
    return next((one for one in admissible if normalise_command(one) == wanted), None)


def list_words(text: str) -> list[str]:
    """Return the words of a text: runs of letters, in lower case."""
    return WORD.findall(text.casefold())


def hash_words(text: str, size: int) -> FloatArray:
    """Return the words of a text as a vector [size] of length 1 (0 for no words).

    Each word adds 1 or -1 to one place (the hashing trick of Weinberger et al., 2009); place and
    sign come from its checksum.
    """
    hashed = np.zeros(size, dtype=np.float32)
    for word in list_words(text):
        checksum = zlib.crc32(word.encode("utf-8"))
        hashed[(checksum >> 1) % size] += 1.0 if checksum & 1 else -1.0
    length = float(np.linalg.norm(hashed))
    return hashed / np.float32(length) if length > 0 else hashed


def limit_words(text: str, most: int) -> str:
    """Return a text with blanks collapsed, cut after so many words."""
    words = text.split()
    return " ".join(words) if len(words) <= most else " ".join(words[:most]) + "..."
