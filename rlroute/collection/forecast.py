"""What a collection will use and cost at least and at most, before anything is asked.

The rule: the high end is the bound that the ledger reserves (`rlroute.pool.chat`: one token per
byte and some for the template, an answer up to its limit), for every attempt that a call may take.
The low end is one token per six bytes and an answer of one token, at the first attempt. Only http
candidates cost money; for the others (local, tool, simulated, recorded) prices say what a call is
worth, and nobody is paid.

What it leaves out: what answers will be like; a few calls (a small query file) tell more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlroute.pool.chat import OVERHEAD_TOKENS, bound_usage
from rlroute.pool.open import make_endpoint
from rlroute.pool.pool_file import HttpSpec, PoolFile
from rlroute.types import TOKENS_PER_PRICE, Call, Candidate

BYTES_PER_TOKEN = 6


@dataclass(frozen=True)
class Forecast:
    """Calls of one candidate: how many, their tokens and USD as (low, high)."""

    candidate: str
    calls: int
    prompt_tokens: tuple[int, int]
    completion_tokens: tuple[int, int | None]
    usd: tuple[float, float]


def forecast_calls(pool_file: PoolFile, candidate: Candidate, calls: Sequence[Call]) -> Forecast:
    """Return what the calls of one candidate will use and cost."""
    spec = pool_file.candidates[candidate.id]
    prompt_low = sum(count_bytes(call) // BYTES_PER_TOKEN + 1 for call in calls)
    if not isinstance(spec, HttpSpec):
        prompt_high = sum(count_bytes(call) + OVERHEAD_TOKENS for call in calls)
        limit = candidate.limits.output_tokens
        most = None if limit is None else limit * len(calls)
        used = (prompt_low, prompt_high), (len(calls), most)
        return Forecast(candidate.id, len(calls), *used, (0.0, 0.0))
    prices = candidate.prices
    bounds = [bound_usage(make_endpoint(candidate, spec), call) for call in calls]
    low_usd = len(calls) * prices.per_call + len(calls) * prices.output / TOKENS_PER_PRICE
    cheapest = min(
        prices.input, prices.input if prices.cached_input is None else prices.cached_input
    )
    return Forecast(
        candidate.id,
        len(calls),
        (prompt_low, sum(bound.prompt_tokens for bound in bounds)),
        (len(calls), sum(bound.completion_tokens for bound in bounds)),
        (
            low_usd + prompt_low * cheapest / TOKENS_PER_PRICE,
            sum(bound_usd(candidate, spec, call) for call in calls),
        ),
    )


def bound_usd(candidate: Candidate, spec: HttpSpec, call: Call) -> float:
    """Return the most that a call can cost in USD: all its attempts billed at their bound."""
    bound = bound_usage(make_endpoint(candidate, spec), call)
    prices = candidate.prices
    dearest = max(
        prices.compute_cost(bound.prompt_tokens, bound.completion_tokens, cached)
        for cached in (0, bound.prompt_tokens)
    )
    return (spec.retries + 1) * dearest


def count_bytes(call: Call) -> int:
    """Return the bytes of a call's prompt."""
    return len(call.system.encode()) + len(call.text.encode())
