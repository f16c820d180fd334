"""The profile of a candidate that was never trained on: from its description and some calls.

Without a call it is what candidates of such a description are expected to do. Every call then
moves it, twice over, as far as its number outweighs chance (empirical Bayes):

    residual_i = score_i - expected score of its cluster
    mean       = expected + trust * average residual,       trust  = t / (t + s / n)
    cluster c  = expected + kept * average residual of c,   kept_c = n_c / (n_c + s / b)

where s is the variance of a call, t how far candidates lie from what their description says of
their means, b the same of a cluster's deviation from the mean; t and b are the errors of ridge
regressions on the known candidates, each predicted from the others (t is never taken for 0). Costs
move in the same way, as ratios to what the mean tokens of the known candidates would cost at the
new one's prices; where latency counts so do latencies, as ratios to the mean of the known ones.

With `factors` (`rlroute.data.route_profiles`) the clusters are first filled in by what goes
together in the known candidates, so that calls on one cluster tell of others too.

What it leaves out: which queries are asked (`rlroute.data.profile_calls`), other descriptions than
prices, kind and family (`rlroute.data.route_profiles`).

How to use: `estimate_profile(candidate, fit_prior(known), calls)`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rlroute.data.repricing import price_calls
from rlroute.data.ridge import Ridge, fit_ridge
from rlroute.data.route_profiles import Factors, train_factors
from rlroute.data.routing_data import MINIMUM_PRICE, get_profile
from rlroute.data.shrinkage import compute_trust, measure_spread, move_amounts, shrink_clusters
from rlroute.types import (
    Candidate,
    FloatArray,
    IntArray,
    Profile,
    RLRouteError,
    TokenProfile,
)

Float64Array = npt.NDArray[np.float64]
# A newcomer may always be off what few known candidates let one expect: by 0.05 of mean score
# (standard deviation), however well the known ones fit.
LEAST_MEAN_VARIANCE = 0.05**2


@dataclass(frozen=True, eq=False)
class ProfileCalls:
    """What n calls to one candidate gave: cluster of the query, score, cost in USD, tokens.

    Tokens and latency (seconds) are NaN where they were not counted.
    """

    cluster_N: IntArray
    score_N: FloatArray
    cost_usd_N: FloatArray
    prompt_tokens_N: FloatArray
    completion_tokens_N: FloatArray
    latency_seconds_N: FloatArray

    def __len__(self) -> int:
        return len(self.cluster_N)

    @property
    def cost_usd(self) -> float:
        """What the calls cost together, in USD."""
        return float(self.cost_usd_N.sum(dtype=np.float64))


@dataclass(frozen=True, eq=False)
class LatencyPrior:
    """Mean latencies of the known candidates in seconds, and the variances of ratios to them."""

    mean_seconds: float
    seconds_C: Float64Array
    mean_variance: float
    cluster_variance: float


@dataclass(frozen=True, eq=False)
class ProfilePrior:
    """What the known candidates say of a new one (`fit_prior`).

    `mean` predicts a mean score from a description, `clusters` the deviations from it per cluster
    from the description and the mean score. Variances are of one call, and of candidates around
    what is expected of them; `cost_` ones are of ratios. `tokens` is None where none were counted,
    `latency` where not all were timed per cluster.
    """

    families: tuple[str, ...]
    kinds: tuple[str, ...]
    extra_columns: int
    mean: Ridge
    clusters: Ridge
    call_variance: float
    cost_mean_variance: float
    cost_cluster_variance: float
    tokens: TokenProfile | None
    factors: Factors | None = None
    latency: LatencyPrior | None = None


def fit_prior(
    known: Sequence[Candidate],
    extra_KE: npt.ArrayLike | None = None,
    factor_seed: int | None = None,
) -> ProfilePrior:
    """Fit what a description says on candidates with measured profiles, at least three.

    `extra_KE` are further columns of the descriptions, one row per known candidate. With a
    `factor_seed` factors are trained on them too; it draws the masks.

    Raises:
        RLRouteError: too few candidates to learn from, a candidate that asks several or nobody, or
            factors that reconstruct masked profiles no better than none.
    """
    for one in known:
        if one.members is not None:
            raise RLRouteError(f"candidate '{one.id}' is a {one.kind}: nothing is learnt from it")
    if len(known) < 3:
        raise RLRouteError(
            f"a new candidate's profile is learnt from at least 3 known ones (here: {len(known)})"
        )
    profiles = [get_profile(one) for one in known]
    counts = Counter(find_family(one) for one in known)
    families = tuple(sorted(name for name, count in counts.items() if count > 1))
    kinds = tuple(sorted({one.kind for one in known}))
    extra_KE = np.zeros((len(known), 0)) if extra_KE is None else np.asarray(extra_KE, np.float64)
    described_KE = np.array(
        [
            describe(one, families, kinds, extra_E)
            for one, extra_E in zip(known, extra_KE, strict=True)
        ]
    )
    mean_K1 = np.array([[profile.mean_score] for profile in profiles])
    score_KC = np.array([profile.score_C for profile in profiles], dtype=np.float64)
    clusters = fit_ridge(np.hstack((described_KE, mean_K1)), score_KC - mean_K1)
    factors = None
    if factor_seed is not None:
        expected_KC = mean_K1 + clusters.predict(np.hstack((described_KE, mean_K1)))
        factors = train_factors(score_KC - expected_KC, factor_seed)
        if factors is None:
            raise RLRouteError(
                "learning 'trained': no factor reconstructs masked profiles of these candidates "
                "better than none; use learning 'none'"
            )
    tokens = average_tokens(profiles)
    spread = measure_cost_spread(known, profiles, tokens)
    return ProfilePrior(
        families=families,
        kinds=kinds,
        extra_columns=extra_KE.shape[1],
        mean=fit_ridge(described_KE, mean_K1),
        clusters=clusters,
        # of a score that is 0 or 1; partial credit varies less
        call_variance=float((score_KC * (1 - score_KC)).mean()),
        cost_mean_variance=spread[0],
        cost_cluster_variance=spread[1],
        tokens=tokens,
        factors=factors,
        latency=expect_latency(profiles),
    )


def find_family(candidate: Candidate) -> str:
    """Return the letters that an id begins with, without an organisation: `a/qwen2.5` -> `qwen`."""
    found = re.match(r"[^\W\d_]*", candidate.id.rpartition("/")[2])
    return found.group().lower() if found else ""


def describe(
    candidate: Candidate,
    families: Sequence[str],
    kinds: Sequence[str],
    extra_E: npt.ArrayLike = (),
) -> Float64Array:
    """Return what is known of a candidate before any call [E]: prices, kind, family, more."""
    prices, family = candidate.prices, find_family(candidate)
    price_3 = [prices.input, prices.output, prices.per_call * 1_000_000]
    return np.concatenate(
        (
            np.log10(np.maximum(price_3, MINIMUM_PRICE)),
            [float(candidate.kind == kind) for kind in kinds],
            [float(family == name) for name in families],
            np.asarray(extra_E, np.float64),
        )
    )


def average_tokens(profiles: Sequence[Profile]) -> TokenProfile | None:
    """Return the mean tokens over the candidates whose tokens were counted, None without one."""
    counted = [profile.tokens for profile in profiles if profile.tokens is not None]
    if not counted:
        return None
    return TokenProfile(
        mean_prompt=float(np.mean([one.mean_prompt for one in counted])),
        mean_completion=float(np.mean([one.mean_completion for one in counted])),
        prompt_C=np.mean([one.prompt_C for one in counted], axis=0).astype(np.float32),
        completion_C=np.mean([one.completion_C for one in counted], axis=0).astype(np.float32),
    )


def measure_cost_spread(
    known: Sequence[Candidate], profiles: Sequence[Profile], tokens: TokenProfile | None
) -> tuple[float, float]:
    """Return the variances, around 1, of mean cost over expected cost, and of it by cluster."""
    rows = []
    for one, profile in zip(known, profiles, strict=True):
        if tokens is None:
            continue
        mean = float(price_calls(one.prices, tokens.mean_prompt, tokens.mean_completion))
        expected_C = price_calls(one.prices, tokens.prompt_C, tokens.completion_C)
        rows.append((profile.mean_cost_usd, profile.cost_usd_C, mean, expected_C))
    return measure_spread(rows)


def expect_latency(profiles: Sequence[Profile]) -> LatencyPrior | None:
    """Return what the known candidates say of a new one's latency; None unless all were timed."""
    timed = [one for one in profiles if one.latency_seconds_C is not None]
    seconds_K = [one.latency_seconds for one in timed if one.latency_seconds is not None]
    if len(seconds_K) < len(profiles):
        return None
    seconds_KC = np.array([one.latency_seconds_C for one in timed], dtype=np.float64)
    mean, expected_C = float(np.mean(seconds_K)), seconds_KC.mean(axis=0)
    rows = [
        (one, own_C, mean, expected_C) for one, own_C in zip(seconds_K, seconds_KC, strict=True)
    ]
    return LatencyPrior(mean, expected_C, *measure_spread(rows))


# --- From calls to a profile ----------------------------------------------------------------------


def estimate_profile(
    candidate: Candidate,
    prior: ProfilePrior,
    calls: ProfileCalls | None = None,
    extra_E: npt.ArrayLike = (),
) -> Profile:
    """Return the profile that description and calls give a candidate; None or no calls: the prior.

    Raises:
        RLRouteError: no call, and no tokens of known candidates to foresee costs from; or an
            untimed call, and all known candidates were timed.
    """
    extra_E = np.asarray(extra_E, np.float64)
    if len(extra_E) != prior.extra_columns:
        raise ValueError(f"{len(extra_E)} further columns, the prior knows {prior.extra_columns}")
    described_E = describe(candidate, prior.families, prior.kinds, extra_E)
    calls = calls if calls is not None and len(calls) else None
    mean_score, score_C = estimate_scores(described_E, prior, calls)
    mean_cost, cost_C = estimate_costs(candidate, prior, calls)
    latency_seconds, latency_seconds_C = estimate_latency(candidate, prior, calls)
    return Profile(
        mean_score=mean_score,
        mean_cost_usd=mean_cost,
        score_C=score_C.astype(np.float32),
        cost_usd_C=cost_C.astype(np.float32),
        latency_seconds=latency_seconds,
        tokens=estimate_tokens(prior.tokens, calls),
        latency_seconds_C=latency_seconds_C,
    )


def estimate_scores(
    described_E: Float64Array, prior: ProfilePrior, calls: ProfileCalls | None
) -> tuple[float, Float64Array]:
    """Return mean score and score per cluster [C]."""

    def expect(mean_score: float) -> Float64Array:
        deviation_C = prior.clusters.predict(np.append(described_E, mean_score))
        return np.clip(mean_score + deviation_C, 0, 1)

    mean_score = float(np.clip(prior.mean.predict(described_E)[0], 0, 1))
    expected_C = expect(mean_score)
    if calls is None:
        return mean_score, expected_C
    variance = max(prior.call_variance, np.finfo(np.float64).tiny)
    residual_N = calls.score_N - expected_C[calls.cluster_N]
    trust = compute_trust(
        len(calls), variance, max(float(prior.mean.error_T[0]), LEAST_MEAN_VARIANCE)
    )
    mean_score = float(np.clip(mean_score + trust * residual_N.mean(), 0, 1))
    expected_C = expect(mean_score)
    between = float(prior.clusters.error_T.mean())
    if prior.factors is not None:
        residual_N = calls.score_N - expected_C[calls.cluster_N]
        filled_C = prior.factors.fill(residual_N, calls.cluster_N, variance)
        expected_C = np.clip(expected_C + filled_C, 0, 1)
        between = prior.factors.rest_variance
    residual_N = calls.score_N - expected_C[calls.cluster_N]
    kept_C = shrink_clusters(residual_N, calls.cluster_N, len(expected_C), variance, between)
    return mean_score, np.clip(expected_C + kept_C, 0, 1)


def estimate_costs(
    candidate: Candidate, prior: ProfilePrior, calls: ProfileCalls | None
) -> tuple[float, Float64Array]:
    """Return mean cost and cost per cluster [C], in USD.

    Raises:
        RLRouteError: no call, and no tokens of known candidates to foresee costs from.
    """
    clusters = len(prior.clusters.mean_T)
    mean, expected_C = 0.0, np.zeros(clusters)
    if prior.tokens is not None:
        tokens, prices = prior.tokens, candidate.prices
        mean = float(price_calls(prices, tokens.mean_prompt, tokens.mean_completion))
        expected_C = price_calls(prices, tokens.prompt_C, tokens.completion_C)
    if calls is None:
        if prior.tokens is None:
            raise RLRouteError(
                f"candidate '{candidate.id}': the tokens of no known candidate were counted, so "
                "what it costs cannot be foreseen; give the results of some calls"
            )
        return mean, expected_C
    spread = (prior.cost_mean_variance, prior.cost_cluster_variance)
    return move_amounts(calls.cost_usd_N, calls.cluster_N, mean, expected_C, spread)


def estimate_latency(
    candidate: Candidate, prior: ProfilePrior, calls: ProfileCalls | None
) -> tuple[float | None, FloatArray | None]:
    """Return mean latency and latency per cluster [C], in seconds; None where they are unknown.

    Per cluster only where all known candidates were timed so.

    Raises:
        RLRouteError: they were, and a call was not timed.
    """
    known = prior.latency
    if known is None:
        if calls is None or not np.isfinite(calls.latency_seconds_N).any():
            return None, None
        return float(np.nanmean(calls.latency_seconds_N)), None
    if calls is None:
        return known.mean_seconds, known.seconds_C.astype(np.float32)
    if not np.isfinite(calls.latency_seconds_N).all():
        raise RLRouteError(
            f"candidate '{candidate.id}': a result has no latency_seconds, and this policy weighs "
            "latency; measure it"
        )
    spread = (known.mean_variance, known.cluster_variance)
    mean, seconds_C = move_amounts(
        calls.latency_seconds_N, calls.cluster_N, known.mean_seconds, known.seconds_C, spread
    )
    return mean, seconds_C.astype(np.float32)


def estimate_tokens(
    expected: TokenProfile | None, calls: ProfileCalls | None
) -> TokenProfile | None:
    """Return mean tokens: those expected, scaled to what the calls took; None where unknown."""
    if expected is None or calls is None:
        return expected
    counted = np.isfinite(calls.prompt_tokens_N) & np.isfinite(calls.completion_tokens_N)
    if not counted.all():
        return None
    prompt = scale_tokens(calls.prompt_tokens_N, expected.prompt_C[calls.cluster_N])
    completion = scale_tokens(calls.completion_tokens_N, expected.completion_C[calls.cluster_N])
    return TokenProfile(
        mean_prompt=expected.mean_prompt * prompt,
        mean_completion=expected.mean_completion * completion,
        prompt_C=expected.prompt_C * np.float32(prompt),
        completion_C=expected.completion_C * np.float32(completion),
    )


def scale_tokens(taken_N: FloatArray, expected_N: FloatArray) -> float:
    """Return how many times the expected tokens were taken; 1 where none were expected."""
    total = float(expected_N.sum(dtype=np.float64))
    return float(taken_N.sum(dtype=np.float64)) / total if total > 0 else 1.0
