"""How well one policy serves different wishes: weights of latency, and users.

What it is: at a setting (cost weight, latency weight, liking of candidates) the utility of an
outcome is

    score - cost weight * normalised cost - latency weight * normalised latency + bias(candidate)

`sweep_latency` measures a policy over a grid of both weights, `measure_users` user by user: the
utility, the regret against the user's own oracle (which sees every outcome of the query), and the
lead over the user's own best single candidate (chosen on train). Intervals (95 %) are by paired
bootstrap over queries.

What it leaves out: users whose weights nobody knows (`rlroute.evaluation.user_estimation`), what
the report shows of it (`rlroute.evaluation.preference_report`).

How to use: `measure_users(make_policy, users, train, test, seed=0)`, where `make_policy` takes a
`Preference` and returns a policy that decides for it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rlroute.data.users import ANYBODY, Preference, UserWeights, make_preference
from rlroute.evaluation import metrics
from rlroute.evaluation.frontier import Float64Array
from rlroute.evaluation.intervals import Estimate, draw_resamples
from rlroute.evaluation.sampling import RoutingPolicy, estimate

if TYPE_CHECKING:
    from rlroute.data.routing_data import RoutingData

MakePolicy = Callable[[Preference], RoutingPolicy]


@dataclass(frozen=True)
class Setting:
    """Whom a policy decides for: a cost weight, and the rest."""

    cost_weight: float
    preference: Preference = ANYBODY


@dataclass(frozen=True)
class SettingResult:
    """What a policy is worth at a setting, on one split.

    `regret` is utility lost against the oracle of the setting, `lead` utility won over the best
    single candidate of the setting; `oracle` and `single` are their mean utilities.
    `latency_seconds` is the mean, None where latency does not count.
    """

    cost_weight: float
    latency_weight: float
    utility: Estimate
    regret: Estimate
    lead: Estimate
    quality: Estimate
    cost_usd: Estimate
    latency_seconds: Estimate | None
    best_single: str
    oracle: float
    single: float


@dataclass(frozen=True)
class UserResult:
    """What a policy is worth to a user; `held_out` users were not trained for."""

    name: str
    held_out: bool
    result: SettingResult


def compute_utility(data: RoutingData, setting: Setting) -> Float64Array:
    """Return the utility of every pair [Q, K] at a setting; NaN where there is a hole."""
    table, preference = data.table, setting.preference
    utility_QK = table.score_QK.astype(np.float64)
    utility_QK -= setting.cost_weight * data.normalised_cost_QK
    if preference.latency_weight:
        utility_QK -= preference.latency_weight * data.normalised_latency_QK
    if preference.bias_K is not None:
        utility_QK += preference.bias_K
    return utility_QK


def find_best(utility_QK: Float64Array, data: RoutingData) -> Float64Array:
    """Return the oracle's utility of each query [Q]."""
    best_Q: Float64Array = np.where(data.table.present_QK, utility_QK, -np.inf).max(axis=1)
    return best_Q


def measure_settings(
    make_policy: MakePolicy, data: RoutingData, settings: Sequence[Setting]
) -> dict[str, float]:
    """Return mean utility and mean regret against the oracle over settings; for validation."""
    utility, regret = [], []
    for setting in settings:
        policy = make_policy(setting.preference)
        utility_QK = compute_utility(data, setting)
        probability_QK = policy.compute_probabilities(data, setting.cost_weight)
        utility_Q = metrics.average_picks(utility_QK, probability_QK)
        utility.append(utility_Q.mean())
        regret.append((find_best(utility_QK, data) - utility_Q).mean())
    return {"utility": float(np.mean(utility)), "regret_oracle": float(np.mean(regret))}


def measure_setting(
    policy: RoutingPolicy,
    setting: Setting,
    train: RoutingData,
    test: RoutingData,
    weight_SQ: Float64Array,
) -> SettingResult:
    """Measure a policy at a setting; row 0 of `weight_SQ` is the split, the rest are resamples."""
    table, utility_QK = test.table, compute_utility(test, setting)
    probability_QK = policy.compute_probabilities(test, setting.cost_weight)
    utility_Q = metrics.average_picks(utility_QK, probability_QK)
    best_Q = find_best(utility_QK, test)
    mean_K = metrics.average_candidates(compute_utility(train, setting), train.table.present_QK)
    column = int(mean_K.argmax())
    always_QK = metrics.make_always(column, table.present_QK)
    single_Q = metrics.average_picks(utility_QK, always_QK)

    def average(value_Q: Float64Array) -> Estimate:
        return estimate(weight_SQ @ value_Q)

    seconds = None
    if test.latency_reference_seconds is not None:
        seconds = average(metrics.average_picks(table.latency_seconds_QK, probability_QK))
    return SettingResult(
        cost_weight=setting.cost_weight,
        latency_weight=setting.preference.latency_weight,
        utility=average(utility_Q),
        regret=average(best_Q - utility_Q),
        lead=average(utility_Q - single_Q),
        quality=average(metrics.average_picks(table.score_QK, probability_QK)),
        cost_usd=average(metrics.average_picks(table.cost_usd_QK, probability_QK)),
        latency_seconds=seconds,
        best_single=table.candidates[column].id,
        oracle=float(best_Q.mean()),
        single=float(single_Q.mean()),
    )


def draw_samples(queries: int, bootstrap: int, seed: int) -> Float64Array:
    """Return the split itself and its resamples as weights of queries [1 + R, Q]."""
    whole_1Q = np.full((1, queries), 1 / queries)
    return np.concatenate((whole_1Q, draw_resamples(queries, bootstrap, seed)))


def sweep_latency(
    make_policy: MakePolicy,
    train: RoutingData,
    test: RoutingData,
    cost_weights: Sequence[float],
    latency_weights: Sequence[float],
    *,
    bootstrap: int = 1000,
    seed: int = 0,
) -> list[SettingResult]:
    """Measure a policy at every pair of weights, latency weight by latency weight."""
    weight_SQ = draw_samples(len(test.table.queries), bootstrap, seed)
    found = []
    for latency_weight in latency_weights:
        preference = Preference(latency_weight)
        policy = make_policy(preference)
        for cost_weight in cost_weights:
            setting = Setting(cost_weight, preference)
            found.append(measure_setting(policy, setting, train, test, weight_SQ))
    return found


def measure_users(
    make_policy: MakePolicy,
    users: Mapping[str, UserWeights],
    train: RoutingData,
    test: RoutingData,
    *,
    held_out: Collection[str] = (),
    bootstrap: int = 1000,
    seed: int = 0,
) -> list[UserResult]:
    """Measure a policy for every user, those it was trained for first."""
    weight_SQ = draw_samples(len(test.table.queries), bootstrap, seed)
    ids = [candidate.id for candidate in test.table.candidates]
    found = []
    for name in sorted(users, key=lambda one: one in held_out):
        preference = make_preference(users[name], ids)
        setting = Setting(users[name].cost_weight, preference)
        result = measure_setting(make_policy(preference), setting, train, test, weight_SQ)
        found.append(UserResult(name, name in held_out, result))
    return found
