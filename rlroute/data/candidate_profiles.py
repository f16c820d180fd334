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
new one's prices.

With `factors` (`rlroute.data.route_profiles`) the clusters are first filled in by what goes
together in the known candidates, so that calls on one cluster tell of others too.

What it leaves out: which queries are asked (`rlroute.data.profile_calls`), other descriptions than
prices, kind and family (`rlroute.data.route_profiles`).

How to use: `estimate_profile(candidate, fit_prior(known), calls)`.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rlroute.data.repricing import price_calls
from rlroute.data.route_profiles import Factors, train_factors
from rlroute.data.routing_data import (
    MINIMUM_PRICE,
    average_by_cluster,
    get_profile,
)
from rlroute.types import (
    Candidate,
    FloatArray,
    IntArray,
    Profile,
    RLRouteError,
    TokenProfile,
)

Float64Array = npt.NDArray[np.float64]
PENALTIES = (1.0, 10.0, 100.0, np.inf)  # infinite: everybody is expected to be as the average
# A newcomer may always be off what few known candidates let one expect: by 0.05 of mean score, by a
# tenth of mean cost (standard deviations), however well the known ones fit.
LEAST_MEAN_VARIANCE = 0.05**2
LEAST_COST_VARIANCE = 0.1**2
SINGLE_CALL_VARIANCE = 1.0  # of one call's cost ratio, where no second call tells


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
class Ridge:
    """A ridge regression on few rows [K, E] -> [K, T], its penalty chosen by leaving one out.

    `error_T` is the mean squared error of each row predicted from the others.
    """

    center_E: Float64Array
    scale_E: Float64Array
    mean_T: Float64Array
    weight_ET: Float64Array
    error_T: Float64Array

    def predict(self, descriptor_E: npt.ArrayLike) -> Float64Array:
        """Return what a description [E] is expected to go with [T]; rows of them give rows."""
        scaled_E = (np.asarray(descriptor_E, np.float64) - self.center_E) / self.scale_E
        return np.asarray(self.mean_T + scaled_E @ self.weight_ET)


def solve_ridge(input_KE: Float64Array, target_KT: Float64Array, penalty: float) -> Ridge:
    """Fit with one penalty on standardised columns; an infinite one keeps the means alone."""
    center_E, spread_E = input_KE.mean(axis=0), input_KE.std(axis=0)
    scale_E = np.where(spread_E > 1e-9, spread_E, np.inf)  # a constant column says nothing
    scaled_KE, mean_T = (input_KE - center_E) / scale_E, target_KT.mean(axis=0)
    weight_ET = np.zeros((input_KE.shape[1], target_KT.shape[1]))
    if np.isfinite(penalty):
        gram_KK = scaled_KE @ scaled_KE.T + penalty * np.eye(len(input_KE))
        weight_ET = scaled_KE.T @ np.linalg.solve(gram_KK, target_KT - mean_T)
    return Ridge(center_E, scale_E, mean_T, weight_ET, np.full(len(mean_T), np.nan))


def fit_ridge(input_KE: Float64Array, target_KT: Float64Array) -> Ridge:
    """Fit with the penalty that predicts each row best from the others, ties to the largest."""
    errors = []
    for penalty in PENALTIES:
        missed_KT = np.empty_like(target_KT)
        for k in range(len(input_KE)):
            others = np.arange(len(input_KE)) != k
            fitted = solve_ridge(input_KE[others], target_KT[others], penalty)
            missed_KT[k] = target_KT[k] - fitted.predict(input_KE[k])
        errors.append((missed_KT**2).mean(axis=0))
    best = min(reversed(range(len(PENALTIES))), key=lambda place: float(errors[place].sum()))
    fitted = solve_ridge(input_KE, target_KT, PENALTIES[best])
    return dataclasses.replace(fitted, error_T=errors[best])


@dataclass(frozen=True, eq=False)
class ProfilePrior:
    """What the known candidates say of a new one (`fit_prior`).

    `mean` predicts a mean score from a description, `clusters` the deviations from it per cluster
    from the description and the mean score. Variances are of one call, and of candidates around
    what is expected of them; `cost_` ones are of ratios. `tokens` is None where none were counted.
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
    ratios, deviations = [], []
    for one, profile in zip(known, profiles, strict=True):
        if tokens is None:
            continue
        mean = float(price_calls(one.prices, tokens.mean_prompt, tokens.mean_completion))
        if mean <= 0 or profile.mean_cost_usd <= 0:
            continue
        expected_C = price_calls(one.prices, tokens.prompt_C, tokens.completion_C)
        ratio = profile.mean_cost_usd / mean
        ratios.append((ratio - 1) ** 2)
        deviations.append(((profile.cost_usd_C / expected_C / ratio - 1) ** 2).mean())
    if not ratios:
        return 1.0, 1.0
    return float(np.mean(ratios)), float(np.mean(deviations))


# --- From calls to a profile ----------------------------------------------------------------------


def estimate_profile(
    candidate: Candidate,
    prior: ProfilePrior,
    calls: ProfileCalls | None = None,
    extra_E: npt.ArrayLike = (),
) -> Profile:
    """Return the profile that description and calls give a candidate; None or no calls: the prior.

    Raises:
        RLRouteError: no call, and no tokens of known candidates to foresee costs from.
    """
    extra_E = np.asarray(extra_E, np.float64)
    if len(extra_E) != prior.extra_columns:
        raise ValueError(f"{len(extra_E)} further columns, the prior knows {prior.extra_columns}")
    described_E = describe(candidate, prior.families, prior.kinds, extra_E)
    calls = calls if calls is not None and len(calls) else None
    mean_score, score_C = estimate_scores(described_E, prior, calls)
    mean_cost, cost_C = estimate_costs(candidate, prior, calls)
    latency_seconds = None
    if calls is not None and np.isfinite(calls.latency_seconds_N).any():
        latency_seconds = float(np.nanmean(calls.latency_seconds_N))
    return Profile(
        mean_score=mean_score,
        mean_cost_usd=mean_cost,
        score_C=score_C.astype(np.float32),
        cost_usd_C=cost_C.astype(np.float32),
        latency_seconds=latency_seconds,
        tokens=estimate_tokens(prior.tokens, calls),
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
    if not (expected_C > 0).all():  # free, or priced by something else than tokens
        paid_C = average_by_cluster(calls.cost_usd_N, calls.cluster_N, clusters)
        return float(calls.cost_usd_N.mean(dtype=np.float64)), paid_C.astype(np.float64)
    ratio_N = calls.cost_usd_N / expected_C[calls.cluster_N]
    variance = float(ratio_N.var(ddof=1)) if len(calls) > 1 else SINGLE_CALL_VARIANCE
    trust = compute_trust(len(calls), variance, max(prior.cost_mean_variance, LEAST_COST_VARIANCE))
    ratio = 1 + trust * float(ratio_N.mean() - 1)
    between = prior.cost_cluster_variance * ratio**2
    kept_C = shrink_clusters(ratio_N - ratio, calls.cluster_N, clusters, variance, between)
    cost_C = expected_C * np.maximum(ratio + kept_C, 0)
    return mean * ratio, cost_C


def compute_trust(calls: int, call_variance: float, variance: float) -> float:
    """Return the weight of an average of n calls against what was expected: t / (t + s / n)."""
    if variance <= 0:
        return 0.0 if call_variance > 0 else 1.0
    return variance / (variance + call_variance / calls)


def shrink_clusters(
    residual_N: Float64Array,
    cluster_N: IntArray,
    clusters: int,
    call_variance: float,
    variance: float,
) -> Float64Array:
    """Return the kept part of the average residual per cluster [C]: n_c / (n_c + s / b) of it."""
    count_C = np.bincount(cluster_N, minlength=clusters)
    total_C = np.bincount(cluster_N, weights=residual_N, minlength=clusters)
    average_C = total_C / np.maximum(count_C, 1)
    kept_C = [compute_trust(n, call_variance, variance) if n else 0.0 for n in count_C.tolist()]
    return np.asarray(kept_C * average_C)


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
