"""Linear bandits: the sheet's numbers, Sherman-Morrison, prices, propensities, saved state."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rlroute.bandits.base import Arrival, Pick
from rlroute.bandits.config import (
    LinearEpsilonGreedyConfig,
    LinearThompsonConfig,
    LinUCBConfig,
)
from rlroute.bandits.linear import (
    LinearEpsilonGreedy,
    LinearThompson,
    LinUCB,
    RidgeArms,
    compute_win_chance,
)

NOTHING_E = np.zeros(1, dtype=np.float32)


def make_arrival(
    context=(1.0, 0.0), *, mask=(True, True), factor=(1.0, 1.0), weight=0.0, uniform=0.5
) -> Arrival:
    return Arrival(
        context_F=np.array(context),
        features_E=NOTHING_E,
        mask_K=np.array(mask),
        price_factor_K=np.array(factor),
        cost_weight=weight,
        uniform=uniform,
    )


def test_linucb_gives_the_numbers_of_the_sheet():
    learner = LinUCB(LinUCBConfig(kind="linucb"), features=2, candidates=1)
    arrival = make_arrival(mask=(True,), factor=(1.0,))
    found = []
    for reward in (None, 0.7, 0.5):
        if reward is not None:
            learner.learn(arrival, Pick(0, 1.0), reward, 0.0)
        mean_K, width_K = learner.estimate(arrival)
        found.append((mean_K[0], learner.alpha * width_K[0]))
    expected = [(0.0, 0.447214), (0.666667, 0.097590), (0.585366, 0.069843)]
    np.testing.assert_allclose(found, expected, atol=5e-7)


@given(
    rows=arrays(np.float64, (12, 3), elements=st.floats(-3, 3)),
    ridge=st.floats(0.05, 5),
    outputs=arrays(np.float64, (12, 2), elements=st.floats(0, 1)),
)
def test_sherman_morrison_equals_the_inverse(rows, ridge, outputs):
    arms = RidgeArms(features=3, candidates=2, ridge=ridge)
    for row, output in zip(rows, outputs, strict=True):
        arms.update(1, row, *output)
    matrix = rows.T @ rows + ridge * np.eye(3)
    np.testing.assert_allclose(arms.inverse_KFF[1], np.linalg.inv(matrix), atol=1e-8)
    np.testing.assert_allclose(arms.inverse_KFF[0], np.eye(3) / ridge)  # never picked
    context = np.array([1.0, -0.5, 2.0])
    score_K, cost_K, width_K = arms.predict(context)
    theta_F2 = np.linalg.solve(matrix, rows.T @ outputs)
    np.testing.assert_allclose([score_K[1], cost_K[1]], context @ theta_F2, atol=1e-7)
    assert width_K[1] == pytest.approx(np.sqrt(context @ np.linalg.solve(matrix, context)))


def teach(learner) -> None:
    """Candidate 0 scores .9 for cost 1, candidate 1 .6 for cost .2, often enough to be sure."""
    for _ in range(2000):
        learner.learn(make_arrival(), Pick(0, 1.0), 0.9, 1.0)
        learner.learn(make_arrival(), Pick(1, 1.0), 0.6, 0.2)


LEARNERS = {
    "linucb": lambda: LinUCB(LinUCBConfig(kind="linucb"), 2, 2),
    "epsilon": lambda: LinearEpsilonGreedy(
        LinearEpsilonGreedyConfig(kind="linear_epsilon_greedy", start=0.0, floor=0.0), 2, 2
    ),
    "thompson": lambda: LinearThompson(LinearThompsonConfig(kind="linear_thompson"), 2, 2),
}


@pytest.mark.parametrize("kind", LEARNERS)
def test_one_learner_serves_every_cost_weight_and_a_price_that_changed(kind):
    learner = LEARNERS[kind]()
    teach(learner)
    assert learner.choose(make_arrival(weight=0.0)).action == 0
    assert learner.choose(make_arrival(weight=1.0)).action == 1
    cheaper = make_arrival(weight=1.0, factor=(0.1, 1.0))  # .9 - .1 against .6 - .2
    assert learner.choose(cheaper).action == 0


@pytest.mark.parametrize("kind", LEARNERS)
def test_a_masked_candidate_is_never_picked(kind):
    learner = LEARNERS[kind]()
    teach(learner)
    for uniform in np.linspace(0, 0.999, 50):
        arrival = make_arrival(mask=(False, True), uniform=uniform)
        assert learner.choose(arrival) == Pick(1, pytest.approx(1.0))


@pytest.mark.parametrize("kind", LEARNERS)
def test_a_saved_state_goes_on_as_if_nothing_had_happened(kind):
    learner, other = LEARNERS[kind](), LEARNERS[kind]()
    teach(learner)
    for _ in range(5):
        learner.choose(make_arrival())
    other.set_state(learner.get_state())
    for uniform in np.linspace(0, 0.999, 20):
        arrival = make_arrival((0.3, 0.9), weight=0.5, uniform=uniform)
        pick = learner.choose(arrival)
        assert other.choose(arrival) == pick
        learner.learn(arrival, pick, 0.4, 0.3)
        other.learn(arrival, pick, 0.4, 0.3)


def test_ties_are_broken_by_the_draw_and_not_by_the_place():
    learner = LEARNERS["linucb"]()
    picks = [learner.choose(make_arrival(uniform=u)) for u in (0.1, 0.9)]
    assert [pick.action for pick in picks] == [0, 1]
    assert [pick.propensity for pick in picks] == [0.5, 0.5]


def test_epsilon_greedy_keeps_the_chance_of_both_ways_to_its_pick():
    config = LinearEpsilonGreedyConfig(kind="linear_epsilon_greedy", start=0.4, decay=1.0)
    learner = LinearEpsilonGreedy(config, 2, 2)
    teach(learner)
    low, high = (learner.choose(make_arrival(uniform=u)) for u in (0.5, 0.95))
    assert (low.action, low.propensity) == (0, pytest.approx(0.8))
    assert (high.action, high.propensity) == (1, pytest.approx(0.2))


def test_thompsons_propensity_is_the_frequency_of_its_picks():
    learner = LinearThompson(LinearThompsonConfig(kind="linear_thompson"), 2, 3)
    for candidate, score in ((0, 0.9), (1, 0.5), (2, 0.1)):
        for _ in range(2):
            learner.learn(make_arrival(), Pick(candidate, 1.0), score, 0.0)
    picks = [
        learner.choose(make_arrival(mask=(True,) * 3, factor=(1.0,) * 3, uniform=(n + 0.5) / 4000))
        for n in range(4000)
    ]
    frequency_K = np.bincount([pick.action for pick in picks], minlength=3) / 4000
    propensity = {pick.action: pick.propensity for pick in picks}
    assert sum(propensity.values()) == pytest.approx(1, abs=1e-6)
    for action, chance in propensity.items():
        assert frequency_K[action] == pytest.approx(chance, abs=0.03)
    assert frequency_K[0] > frequency_K[1] > frequency_K[2] > 0.02


def test_the_chance_to_win_of_equal_normals_is_equal_and_a_certain_winner_wins():
    allowed = np.ones(4, bool)
    even = compute_win_chance(np.zeros(4), np.ones(4), allowed, 2)
    assert even == pytest.approx(0.25, abs=1e-6)
    mean_K, spread_K = np.array([5.0, 0, 0, 0]), np.full(4, 0.1)
    assert compute_win_chance(mean_K, spread_K, allowed, 0) == pytest.approx(1.0)
    alone = np.array([False, True, False, False])
    assert compute_win_chance(mean_K, spread_K, alone, 1) == pytest.approx(1.0)
