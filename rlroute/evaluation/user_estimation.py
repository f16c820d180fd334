"""A new user's weights from a few ratings: which of two answers was better, or how good one was.

What it is: the utility of an answer to a user is

    u = score - cost weight * normalised cost - latency weight * normalised latency

and a user says that answer a is better than b with chance sigmoid(sharpness * (u_a - u_b)), or
rates an answer u with an error of standard deviation `RATING_ERROR`. The weights are those that
make the ratings likeliest, held back by what is known of other users (a normal prior with their
mean and spread), so that no rating at all gives the mean user, and many ratings speak for
themselves. How sharply a user tells answers apart is estimated beside. The fit is one small bounded
minimisation (L-BFGS-B).

What it leaves out: a liking of candidates (`candidate_bias`): who has one is estimated as if not.

How to use: `estimate_user([Choice(better, worse), ...], known_users)` gives weights that
`Router.route(text, user=weights)` takes. Costs and latencies are in units of the router's
`cost_reference_usd` and `latency_reference_seconds`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rlroute.data.users import Preference, UserWeights, make_preference
from rlroute.evaluation import metrics
from rlroute.evaluation.frontier import Float64Array
from rlroute.evaluation.intervals import Estimate, make_estimate
from rlroute.evaluation.preferences import MakePolicy, Setting, compute_utility
from rlroute.seeding import draw_uniform
from rlroute.types import RLRouteError

if TYPE_CHECKING:
    from rlroute.data.routing_data import RoutingData

RATING_ERROR = 0.1  # utility
USUAL_SHARPNESS = 10.0  # a utility better by 0.1 is preferred in 73 of 100 cases
SPREAD_OF_LOG_SHARPNESS = 1.0
LEAST_SPREAD = 0.05  # of weights among known users: one user alone says nothing of others
Bounds = tuple[float, float]
ANY: Bounds = (0.0, math.inf)


@dataclass(frozen=True)
class Answer:
    """What a user saw: score in [0, 1], cost and latency in units of the router's references."""

    score: float
    cost: float
    latency: float = 0.0


@dataclass(frozen=True)
class Choice:
    """A user found one answer better than another."""

    better: Answer
    worse: Answer


@dataclass(frozen=True)
class Rating:
    """A user rated an answer by its utility: 1 is a perfect one that is free and immediate."""

    answer: Answer
    utility: float


@dataclass(frozen=True)
class RatingResult:
    """What ratings of a new user are worth: utility lost on a split by not knowing the weights.

    The mean over repeated draws of the ratings, and the range that holds 95 % of them.
    """

    user: str
    ratings: int
    lost: Estimate
    cost_weight: float
    latency_weight: float


def estimate_user(
    ratings: Sequence[Choice | Rating],
    known: Collection[UserWeights],
    *,
    cost_weights: Bounds = ANY,
    latency_weights: Bounds = ANY,
) -> UserWeights:
    """Return the likeliest weights of a user; `known` are other users, at least one.

    The bounds are the ranges that the router was trained for.

    Raises:
        RLRouteError: nobody is known, or a rating holds a number that is not finite.
    """
    if not known:
        raise RLRouteError("estimate_user: name at least one known user, whom a new one resembles")
    weight_U2 = np.array([[one.cost_weight, one.latency_weight] for one in known])
    mean_2 = weight_U2.mean(axis=0)
    spread_2 = np.maximum(weight_U2.std(axis=0), LEAST_SPREAD)
    choices = [one for one in ratings if isinstance(one, Choice)]
    scored = [one for one in ratings if isinstance(one, Rating)]
    better_N3, worse_N3 = (
        stack_answers([getattr(one, side) for one in choices]) for side in ("better", "worse")
    )
    rated_M3 = stack_answers([one.answer for one in scored])
    utility_M = np.array([one.utility for one in scored])
    seen = (better_N3, worse_N3, rated_M3, utility_M)
    if not all(np.isfinite(one).all() for one in seen):
        raise RLRouteError(
            "estimate_user: a score, cost, latency or utility is not a finite number"
        )

    def compute_loss(point_3: Float64Array) -> tuple[float, Float64Array]:
        """Return the negative log-posterior and its gradient at (log sharpness, weights)."""
        sharpness, weight_2 = math.exp(point_3[0]), point_3[1:]
        gap_N3 = better_N3 - worse_N3
        gap_N = gap_N3[:, 0] - gap_N3[:, 1:] @ weight_2
        wrong_N = 1 / (1 + np.exp(np.clip(sharpness * gap_N, -500, 500)))
        error_M = rated_M3[:, 0] - rated_M3[:, 1:] @ weight_2 - utility_M
        off_3 = np.append(
            (point_3[0] - math.log(USUAL_SHARPNESS)) / SPREAD_OF_LOG_SHARPNESS,
            (weight_2 - mean_2) / spread_2,
        )
        loss = np.logaddexp(0, -sharpness * gap_N).sum()
        loss += (error_M**2).sum() / (2 * RATING_ERROR**2) + (off_3**2).sum() / 2
        gradient_3 = off_3 / np.append(SPREAD_OF_LOG_SHARPNESS, spread_2)
        gradient_3[0] -= sharpness * (wrong_N * gap_N).sum()
        gradient_3[1:] += sharpness * wrong_N @ gap_N3[:, 1:]
        gradient_3[1:] -= error_M @ rated_M3[:, 1:] / RATING_ERROR**2
        return float(loss), gradient_3

    from scipy.optimize import minimize  # here: it takes its time to start

    found = minimize(
        compute_loss,
        np.append(math.log(USUAL_SHARPNESS), mean_2),
        jac=True,
        method="L-BFGS-B",
        bounds=[(None, None), cost_weights, latency_weights],
    )
    return UserWeights(cost_weight=float(found.x[1]), latency_weight=float(found.x[2]))


def stack_answers(answers: Sequence[Answer]) -> Float64Array:
    """Return score, cost and latency of answers [N, 3]."""
    rows = [(one.score, one.cost, one.latency) for one in answers]
    return np.array(rows, dtype=np.float64).reshape(len(rows), 3)


def draw_choices(
    data: RoutingData, setting: Setting, count: int, *coordinates: int | str
) -> list[Choice]:
    """Return choices of a made user between two answers of a query, by coordinates.

    Queries on which fewer than two candidates have an outcome are left out. The user is as sharp as
    `USUAL_SHARPNESS` says.
    """
    rows = np.flatnonzero(data.table.present_QK.sum(axis=1) >= 2)
    if not len(rows):
        raise RLRouteError(f"table '{data.table.name}': no query has two answers to choose between")
    utility_QK = compute_utility(data, setting)
    uniform_N4 = draw_uniform("choice", *coordinates, np.arange(count)[:, None], np.arange(4))
    found = []
    for uniform_4 in uniform_N4:
        row = int(rows[int(uniform_4[0] * len(rows))])
        held_K = np.flatnonzero(data.table.present_QK[row])
        first = int(uniform_4[1] * len(held_K))
        second = (first + 1 + int(uniform_4[2] * (len(held_K) - 1))) % len(held_K)
        one, other = int(held_K[first]), int(held_K[second])
        gap = utility_QK[row, one] - utility_QK[row, other]
        if uniform_4[3] >= 1 / (1 + math.exp(-USUAL_SHARPNESS * gap)):
            one, other = other, one
        found.append(Choice(read_answer(data, row, one), read_answer(data, row, other)))
    return found


def read_answer(data: RoutingData, row: int, column: int) -> Answer:
    """Return an outcome of the table as a user sees it."""
    table, seconds = data.table, data.latency_reference_seconds
    return Answer(
        score=float(table.score_QK[row, column]),
        cost=float(table.cost_usd_QK[row, column]) / data.cost_reference_usd,
        latency=0.0 if seconds is None else float(table.latency_seconds_QK[row, column]) / seconds,
    )


def measure_ratings(
    make_policy: MakePolicy,
    users: Mapping[str, UserWeights],
    new: Sequence[str],
    splits: tuple[RoutingData, RoutingData],
    *,
    bounds: tuple[Bounds, Bounds],
    counts: Sequence[int] = (0, 5, 20, 100),
    repeats: int = 20,
    seed: int = 0,
) -> list[RatingResult]:
    """Measure what a policy loses by estimating new users from so many choices.

    Choices are between answers of the first split (val), utility is lost on the second (test).
    `bounds` are the trained ranges of cost and latency weight. The other users are the known ones.
    """
    asked, test = splits
    known = [user for name, user in users.items() if name not in new]
    ids = [candidate.id for candidate in test.table.candidates]
    found = []
    for name in new:
        truth = Setting(users[name].cost_weight, make_preference(users[name], ids))
        utility_QK = compute_utility(test, truth)

        def measure(setting: Setting, utility_QK: Float64Array = utility_QK) -> float:
            policy = make_policy(setting.preference)
            probability_QK = policy.compute_probabilities(test, setting.cost_weight)
            return float(metrics.average_picks(utility_QK, probability_QK).mean())

        knowing = measure(truth)
        for count in counts:
            lost, weights = [], []
            for repeat in range(repeats if count else 1):  # nothing is drawn where nothing is rated
                choices = draw_choices(asked, truth, count, seed, name, repeat)
                guess = estimate_user(
                    choices, known, cost_weights=bounds[0], latency_weights=bounds[1]
                )
                preference = Preference(guess.latency_weight, truth.preference.bias_K)
                lost.append(knowing - measure(Setting(guess.cost_weight, preference)))
                weights.append((guess.cost_weight, guess.latency_weight))
            cost_weight, latency_weight = np.mean(weights, axis=0).tolist()
            estimate = make_estimate(float(np.mean(lost)), lost)
            found.append(RatingResult(name, count, estimate, cost_weight, latency_weight))
    return found
