"""A new user's weights from ratings: no rating is the mean user, many find the truth."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlroute.data.users import UserWeights
from rlroute.evaluation.user_estimation import Answer, Choice, Rating, estimate_user
from rlroute.seeding import draw_uniform
from rlroute.types import RLRouteError

KNOWN = [
    UserWeights(cost_weight=cost, latency_weight=latency)
    for cost, latency in ((0.0, 0.0), (0.5, 1.0), (1.0, 0.0), (2.0, 1.0))
]


def draw_choices(count: int, cost_weight: float, latency_weight: float) -> list[Choice]:
    """Return choices of a user who tells answers apart as sharply as usual."""
    found = []
    for uniform_7 in draw_uniform("test", np.arange(count)[:, None], np.arange(7)):
        one, other = Answer(*uniform_7[:3]), Answer(*uniform_7[3:6])
        utility = [
            a.score - cost_weight * a.cost - latency_weight * a.latency for a in (one, other)
        ]
        chance = 1 / (1 + math.exp(-10 * (utility[0] - utility[1])))
        found.append(Choice(one, other) if uniform_7[6] < chance else Choice(other, one))
    return found


def test_without_a_rating_a_new_user_is_the_mean_of_the_known() -> None:
    found = estimate_user([], KNOWN)
    assert found.cost_weight == pytest.approx(0.875)
    assert found.latency_weight == pytest.approx(0.5)


@pytest.mark.parametrize(("cost_weight", "latency_weight"), [(0.1, 0.9), (1.8, 0.1), (0.5, 0.5)])
def test_many_choices_find_the_weights(cost_weight: float, latency_weight: float) -> None:
    found = estimate_user(draw_choices(2000, cost_weight, latency_weight), KNOWN)
    assert found.cost_weight == pytest.approx(cost_weight, abs=0.1)
    assert found.latency_weight == pytest.approx(latency_weight, abs=0.1)


def test_a_few_scored_answers_find_the_weights() -> None:
    answers = [Answer(*row) for row in draw_uniform("rated", np.arange(40)[:, None], np.arange(3))]
    rated = [Rating(one, one.score - 1.5 * one.cost - 0.2 * one.latency) for one in answers]
    found = estimate_user(rated, KNOWN)
    assert found.cost_weight == pytest.approx(1.5, abs=0.05)
    assert found.latency_weight == pytest.approx(0.2, abs=0.05)


@settings(max_examples=30)
@given(st.integers(0, 60), st.floats(0, 2), st.floats(0, 2))
def test_weights_stay_within_what_the_router_was_trained_for(
    count: int, cost_weight: float, latency_weight: float
) -> None:
    found = estimate_user(
        draw_choices(count, cost_weight, latency_weight),
        KNOWN,
        cost_weights=(0.2, 1.0),
        latency_weights=(0.0, 0.0),
    )
    assert 0.2 <= found.cost_weight <= 1.0
    assert found.latency_weight == 0.0


def test_one_more_choice_of_the_cheaper_answer_never_lowers_the_cost_weight() -> None:
    dear, cheap = Answer(0.9, 1.0), Answer(0.6, 0.1)
    weights = [estimate_user([Choice(cheap, dear)] * n, KNOWN).cost_weight for n in range(6)]
    assert all(after > before for before, after in pairwise(weights))


def test_faults_are_named() -> None:
    with pytest.raises(RLRouteError, match="at least one known user"):
        estimate_user([], [])
    with pytest.raises(RLRouteError, match="not a finite number"):
        estimate_user([Rating(Answer(1.0, math.nan), 1.0)], KNOWN)
    for utility in (math.nan, math.inf):
        with pytest.raises(RLRouteError, match="not a finite number"):
            estimate_user([Rating(Answer(1.0, 0.5), utility)], KNOWN)
