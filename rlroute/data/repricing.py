"""A candidate at other prices: its costs move by what its calls would cost, its scores stay.

    cost at new prices = measured cost * (cost of its mean tokens at the new prices)
                                       / (cost of its mean tokens at the old ones)

over all queries and per cluster of them. Where the old prices were 0 the new cost is that of the
tokens. A profile without tokens can be repriced only where all its prices move by one factor.

What it leaves out: how a policy is served at other prices (`rlroute.router`).

How to use: `reprice_candidate(candidate, Prices(0.6, 2.4))`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from rlroute.data.routing_data import get_profile
from rlroute.types import TOKENS_PER_PRICE, Candidate, Prices, RLRouteError

Float64Array = npt.NDArray[np.float64]


def reprice_candidates(
    candidates: Sequence[Candidate], prices: Mapping[str, Prices]
) -> tuple[Candidate, ...]:
    """Return the candidates with other prices of those named; a subset costs what its members do.

    Raises:
        RLRouteError: a name that is no candidate, no price, a price that is negative or not
            finite, or costs that cannot be known at the new prices.
    """
    by_id = {one.id: one for one in candidates}
    for name, price in prices.items():
        if name not in by_id:
            raise RLRouteError(f"prices: no candidate '{name}' (known: {', '.join(by_id)})")
        check_prices(name, price)
    moved = {name: reprice_candidate(by_id[name], price) for name, price in prices.items()}
    return tuple(
        moved[one.id] if one.id in moved else move_subset(one, by_id, moved) for one in candidates
    )


def check_prices(name: str, prices: Prices) -> None:
    """Raise RLRouteError unless all prices are finite and at least 0."""
    if not isinstance(prices, Prices):
        raise RLRouteError(f"prices: of '{name}' is a {type(prices).__name__}, must be Prices(...)")
    for key in ("input", "output", "per_call"):
        value = getattr(prices, key)
        if not np.isfinite(value) or value < 0:
            raise RLRouteError(f"prices: {key} of '{name}' is {value}, must be a number >= 0 (USD)")


def move_subset(
    candidate: Candidate, old: Mapping[str, Candidate], moved: Mapping[str, Candidate]
) -> Candidate:
    """Return a subset whose costs move as the sum of its members' costs; others as they are.

    Raises:
        RLRouteError: the costs of a member are unknown.
    """
    asked = [member.candidate_id for member in candidate.asked]
    if candidate.members is None or not set(asked) & set(moved):
        return candidate
    missing = sorted(set(asked) - set(old))
    if missing:
        raise RLRouteError(
            f"'{candidate.id}' asks '{missing[0]}', which is no candidate by itself: what the "
            "subset costs at other prices is unknown"
        )
    before = [get_profile(old[name]) for name in asked]
    after = [get_profile(moved.get(name, old[name])) for name in asked]
    profile = get_profile(candidate)
    sums = [
        (
            np.asarray(sum(one.mean_cost_usd for one in side), np.float64),
            np.asarray(np.sum([one.cost_usd_C for one in side], axis=0, dtype=np.float64)),
        )
        for side in (before, after)
    ]
    repriced = dataclasses.replace(
        profile,
        mean_cost_usd=float(move_cost(profile.mean_cost_usd, sums[0][0], sums[1][0])),
        cost_usd_C=move_cost(profile.cost_usd_C, sums[0][1], sums[1][1]).astype(np.float32),
    )
    return dataclasses.replace(candidate, profile=repriced)


def reprice_candidate(candidate: Candidate, prices: Prices) -> Candidate:
    """Return the candidate with other prices and the profile that goes with them.

    Raises:
        RLRouteError: it has no profile, asks several others, or its tokens were not counted and
            the prices do not move by one factor.
    """
    if candidate.members is not None:
        raise RLRouteError(
            f"candidate '{candidate.id}' is a {candidate.kind}: name new prices of those it asks"
        )
    profile, tokens = get_profile(candidate), get_profile(candidate).tokens
    if prices == candidate.prices:
        return candidate
    if tokens is None:
        factor = find_common_factor(candidate, prices)
        mean_cost = profile.mean_cost_usd * factor
        cost_C = profile.cost_usd_C * factor
    else:
        mean_cost = float(
            move_cost(
                profile.mean_cost_usd,
                price_calls(candidate.prices, tokens.mean_prompt, tokens.mean_completion),
                price_calls(prices, tokens.mean_prompt, tokens.mean_completion),
            )
        )
        cost_C = move_cost(
            profile.cost_usd_C,
            price_calls(candidate.prices, tokens.prompt_C, tokens.completion_C),
            price_calls(prices, tokens.prompt_C, tokens.completion_C),
        )
    repriced = dataclasses.replace(
        profile, mean_cost_usd=mean_cost, cost_usd_C=np.asarray(cost_C, dtype=np.float32)
    )
    return dataclasses.replace(candidate, prices=prices, profile=repriced)


def price_calls(
    prices: Prices, prompt_tokens: npt.ArrayLike, completion_tokens: npt.ArrayLike
) -> Float64Array:
    """Return what calls of so many tokens cost, in USD, in the shape of the tokens."""
    tokens_cost = np.asarray(prompt_tokens, np.float64) * prices.input
    tokens_cost = tokens_cost + np.asarray(completion_tokens, np.float64) * prices.output
    return np.asarray(prices.per_call + tokens_cost / TOKENS_PER_PRICE)


def move_cost(measured: npt.ArrayLike, old: Float64Array, new: Float64Array) -> Float64Array:
    """Return measured costs times new / old; the new cost itself where the old one is 0."""
    ratio = np.divide(new, old, out=np.ones_like(new), where=old > 0)
    return np.where(old > 0, np.asarray(measured, np.float64) * ratio, new)


def find_common_factor(candidate: Candidate, prices: Prices) -> float:
    """Return the factor by which all prices move.

    Raises:
        RLRouteError: they do not move alike, so that tokens would have to be known.
    """
    old, new = candidate.prices, prices
    pairs = [(old.input, new.input), (old.output, new.output), (old.per_call, new.per_call)]
    charged = [(before, after) for before, after in pairs if before > 0]
    factors = [after / before for before, after in charged]
    if (
        not factors
        or any(after > 0 for before, after in pairs if before == 0)
        or not np.allclose(factors, factors[0], rtol=1e-6, atol=0)
    ):
        raise RLRouteError(
            f"candidate '{candidate.id}': its tokens were not counted, so its costs at other "
            "prices are known only where all prices move by one factor"
        )
    return factors[0]
