"""What a path of tiers through a logged trajectory costs, and the cheapest path that passes.

What it is: tokens, prices and the prompt cache of TwinRouterBench's static track. Every prompt
token of a step is read from the cache or written to it. It is read if it belongs to the prefix of
the row before, that row was given the same tier, its messages are the beginning of this row's, and
the tier was last used at most `CACHE_STEPS` steps ago; all else is written. So a step's cost
depends on the tier of the step before: to leave a tier and come back re-writes the whole prefix.

A prefix has 2 tokens, and 4 more per message than its text. The output of a step is taken from the
assistant's messages that the next row adds (with the tokenizer of the label's tier, whichever tier
is chosen); that of the last step is the mean of those that are not 0, or `DEFAULT_OUTPUT_TOKENS`.

`find_oracle` is dynamic programming over (step, tier of the step before): the cheapest path with no
tier below its label. `compute_reward` is the reward whose mean over a workload, weighted by the
cost of always `high`, is the benchmark's CostSave.

Tokens are counted by the four tokenizers of the benchmark where the user has their files
(`TokenizerFiles`), else approximated by a quarter of the characters.

What it leaves out: the published input prices of the tiers, by which nothing is charged.

Source: arXiv 2605.18859 and the published scorer's rules.

How to use: `priced = price_bank(read_bank(path), ApproximateTokens())`, `find_oracle(priced[0])`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import numpy as np
from pydantic import Field

from rlroute.config import StrictModel
from rlroute.data.twin_router_bank import TIERS, BankRow, ChatMessage, LoggedTrajectory
from rlroute.extras import require
from rlroute.types import BoolArray, IntArray, Prices, RLRouteError

# USD per million tokens, in the order of TIERS: `input` is written to the cache, `cached_input`
# read from it.
PRICES = (
    Prices(input=0.26, output=0.5, cached_input=0.13),
    Prices(input=0.30, output=2.0, cached_input=0.059),
    Prices(input=0.08333, output=5.0, cached_input=0.05),
    Prices(input=6.25, output=25.0, cached_input=0.50),
)
HIGH = len(TIERS) - 1
CACHE_STEPS = 3
DEFAULT_OUTPUT_TOKENS = 500
PREFIX_TOKENS = 2
MESSAGE_TOKENS = 4
CHARACTERS_PER_TOKEN = 4

TokenCounter: TypeAlias = Callable[[str], int]


class ApproximateTokens(StrictModel):
    """A quarter of the characters of a text, rounded up: an approximation, for all tiers."""

    kind: Literal["approximate"] = "approximate"


class WordTokens(StrictModel):
    """Words between blanks, for all tiers: for worked examples."""

    kind: Literal["words"] = "words"


class TokenizerFiles(StrictModel):
    """A tokenizer.json for each tier (extra `http`); special tokens that it adds are counted."""

    kind: Literal["tokenizers"] = "tokenizers"
    low: Path
    mid: Path
    mid_high: Path
    high: Path


TokensConfig = Annotated[
    ApproximateTokens | WordTokens | TokenizerFiles, Field(discriminator="kind")
]


def make_counters(
    config: ApproximateTokens | WordTokens | TokenizerFiles,
) -> tuple[TokenCounter, ...]:
    """Return what counts the tokens of a text, one for each of TIERS; counts are remembered.

    Raises:
        RLRouteError: a tokenizer cannot be read, or the extra `http` is missing.
    """
    if isinstance(config, TokenizerFiles):
        paths = (config.low, config.mid, config.mid_high, config.high)
        loaded = {path: functools.cache(load_counter(path)) for path in dict.fromkeys(paths)}
        return tuple(loaded[path] for path in paths)
    count = count_words if isinstance(config, WordTokens) else approximate_tokens
    return (functools.cache(count),) * len(TIERS)


def count_words(text: str) -> int:
    """Return the number of words between blanks."""
    return len(text.split())


def approximate_tokens(text: str) -> int:
    """Return a quarter of the number of characters, rounded up."""
    return math.ceil(len(text) / CHARACTERS_PER_TOKEN)


def load_counter(path: Path) -> TokenCounter:
    """Return the counter of a tokenizer.json; limits of length in the file are lifted."""
    tokenizers = require("tokenizers", "http")
    if not path.is_file():
        raise RLRouteError(f"tokenizer {path}: no such file")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises no narrower class
        raise RLRouteError(f"tokenizer {path}: cannot be read ({error})") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: len(tokenizer.encode(text).ids)


@dataclass(frozen=True)
class PricedTrajectory:
    """A trajectory with all that its costs need; K are the four tiers.

    `prompt_tokens_TK` counts each prefix in the tokens of each tier. `continued_T` is True where
    the messages of the row before are the beginning of this row's.
    """

    logged: LoggedTrajectory
    gold_T: IntArray
    step_index_T: IntArray
    prompt_tokens_TK: IntArray
    output_tokens_T: IntArray
    continued_T: BoolArray

    def count_cached(self, step: int, tier: int, previous: int | None, last_use: int | None) -> int:
        """Return the prompt tokens that are read from the cache at `step` (from 0).

        `previous` is the tier of the row before on this path, None where it had none; `last_use` is
        the step index at which this path last used the tier, None if never.
        """
        if previous != tier or not self.continued_T[step]:
            return 0
        if last_use is not None and self.step_index_T[step] - last_use > CACHE_STEPS:
            return 0
        return int(self.prompt_tokens_TK[step - 1, tier])

    def compute_step_cost(self, step: int, tier: int, cached_tokens: int) -> float:
        """Return the cost in USD of a step, of whose prompt so many tokens are cached."""
        return PRICES[tier].compute_cost(
            int(self.prompt_tokens_TK[step, tier]), int(self.output_tokens_T[step]), cached_tokens
        )


def price_bank(
    trajectories: Sequence[LoggedTrajectory],
    tokens: ApproximateTokens | WordTokens | TokenizerFiles,
) -> tuple[PricedTrajectory, ...]:
    """Count the tokens of all trajectories, in their order.

    Raises:
        RLRouteError: a tokenizer cannot be read, or the extra `http` is missing.
    """
    counters = make_counters(tokens)
    return tuple(price_trajectory(one, counters) for one in trajectories)


def price_trajectory(
    logged: LoggedTrajectory, counters: Sequence[TokenCounter]
) -> PricedTrajectory:
    """Count the tokens of a trajectory with a counter for each tier."""
    rows = logged.rows
    prompts = [[count_prompt(row.messages, counter) for counter in counters] for row in rows]
    continued = [False] + [
        starts_with(rows[step].messages, rows[step - 1].messages) for step in range(1, len(rows))
    ]
    return PricedTrajectory(
        logged=logged,
        gold_T=np.array([row.gold for row in rows], dtype=np.int64),
        step_index_T=np.array([row.step_index for row in rows], dtype=np.int64),
        prompt_tokens_TK=np.array(prompts, dtype=np.int64),
        output_tokens_T=np.array(estimate_outputs(rows, counters), dtype=np.int64),
        continued_T=np.array(continued, dtype=np.bool_),
    )


def count_prompt(messages: Sequence[ChatMessage], counter: TokenCounter) -> int:
    """Return the tokens of a prefix."""
    return PREFIX_TOKENS + sum(MESSAGE_TOKENS + counter(message.text) for message in messages)


def starts_with(messages: Sequence[ChatMessage], beginning: Sequence[ChatMessage]) -> bool:
    """Say whether the messages begin with these."""
    return len(beginning) <= len(messages) and all(
        one.identity == other.identity for one, other in zip(messages, beginning, strict=False)
    )


def estimate_outputs(rows: Sequence[BankRow], counters: Sequence[TokenCounter]) -> list[int]:
    """Return the output tokens of each step; see the module's text."""
    outputs = []
    for step in range(len(rows) - 1):
        added = rows[step + 1].messages[len(rows[step].messages) :]
        counter = counters[rows[step].gold]
        written = [counter(message.text) for message in added if message.role == "assistant"]
        outputs.append(sum(written) + MESSAGE_TOKENS * len(written))
    positive = [tokens for tokens in outputs if tokens > 0]
    last = sum(positive) // len(positive) if positive else DEFAULT_OUTPUT_TOKENS
    return [*outputs, last]


def compute_path_costs(
    priced: PricedTrajectory, tiers: Sequence[int | None], billed: Sequence[bool] | None = None
) -> list[float]:
    """Return the cost in USD of each step on a path of tiers, which is 0 where nothing is billed.

    `tiers` may hold None at steps that are not billed: the next step is cold then. A step that has
    a tier but is not billed still leaves its prefix in the cache, yet is no use of the tier. (So
    the published scorer treats the path of always `high` where a prediction is missing.)
    """
    costs: list[float] = []
    last_use: dict[int, int] = {}
    for step, tier in enumerate(tiers):
        if tier is None or (billed is not None and not billed[step]):
            costs.append(0.0)
            continue
        previous = tiers[step - 1] if step > 0 else None
        cached = priced.count_cached(step, tier, previous, last_use.get(tier))
        costs.append(priced.compute_step_cost(step, tier, cached))
        last_use[tier] = int(priced.step_index_T[step])
    return costs


def compute_reward(priced: PricedTrajectory, tiers: Sequence[int]) -> float:
    """Return what a whole path saves, as a share of the cost of always `high`.

    A path passes if no tier is below its label, and saves what it is cheaper. One that fails has to
    be run again with `high`, so what it cost is lost. At most 1; below 0 also for a path that
    passes but switches so often that it is dearer than `high`.

    Raises:
        ValueError: there is not one tier for each step.
    """
    if len(tiers) != len(priced.gold_T):
        raise ValueError(f"{len(tiers)} tiers for {len(priced.gold_T)} steps")
    high = sum(compute_path_costs(priced, [HIGH] * len(tiers)))
    spent = sum(compute_path_costs(priced, tiers))
    passed = all(tier >= gold for tier, gold in zip(tiers, priced.gold_T, strict=True))
    return (high - spent if passed else -spent) / high


@dataclass(frozen=True)
class Oracle:
    """The cheapest path that passes: its tiers and its cost in USD.

    `best_TJ[t, j]` is the best tier at step t after tier j; j = 4 stands for none (the start).
    """

    tiers: tuple[int, ...]
    cost_usd: float
    best_TJ: IntArray


def find_oracle(priced: PricedTrajectory) -> Oracle:
    """Return the cheapest path whose tiers reach the labels; of two that cost the same, the lower.

    It is also the path that saves most: always `high` passes and saves 0, a path that fails saves
    less than that.
    """
    steps, none = len(priced.gold_T), len(TIERS)
    to_go_J = np.zeros(none + 1)
    best_TJ = np.zeros((steps, none + 1), dtype=np.int64)
    for step in reversed(range(steps)):
        gold, last_use = int(priced.gold_T[step]), int(priced.step_index_T[step - 1])
        cost_J = np.empty(none + 1)
        for previous in range(none + 1):
            cost_K = np.full(none, np.inf)
            for tier in range(gold, none):
                cached = priced.count_cached(step, tier, previous, last_use)
                cost_K[tier] = priced.compute_step_cost(step, tier, cached) + to_go_J[tier]
            best_TJ[step, previous] = cost_K.argmin()
            cost_J[previous] = cost_K.min()
        to_go_J = cost_J
    tiers, previous = [], none
    for step in range(steps):
        previous = int(best_TJ[step, previous])
        tiers.append(previous)
    return Oracle(tuple(tiers), float(to_go_J[none]), best_TJ)
