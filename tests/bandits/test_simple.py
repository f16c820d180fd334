"""Learners without contexts, exploration that starts anew, and candidates that rest."""

from __future__ import annotations

import numpy as np
import pytest
from test_linear import make_arrival

from rlroute.bandits.availability import Breaker
from rlroute.bandits.base import Exploration, Pick, draw_pick
from rlroute.bandits.config import AvailabilityConfig, EpsilonGreedyConfig
from rlroute.bandits.simple import EpsilonGreedy, FixedOrder, FollowLeader, Random


def test_a_draw_inverts_the_cumulative_distribution():
    probability_K = np.array([0.2, 0.0, 0.5, 0.3])
    picks = [draw_pick(probability_K, uniform) for uniform in (0.0, 0.19, 0.2, 0.69, 0.71)]
    assert [pick.action for pick in picks] == [0, 0, 2, 2, 3]
    assert [pick.propensity for pick in picks] == pytest.approx([0.2, 0.2, 0.5, 0.5, 0.3])


def test_the_leader_is_whoever_has_the_best_mean_at_this_weight_and_price():
    learner = FollowLeader(candidates=2)
    learner.learn(make_arrival(), Pick(0, 1.0), 0.9, 1.0)
    assert learner.choose(make_arrival()).action == 1  # never tried
    learner.learn(make_arrival(), Pick(1, 1.0), 0.6, 0.2)
    assert learner.choose(make_arrival()).action == 0
    assert learner.choose(make_arrival(weight=1.0)).action == 1
    assert learner.choose(make_arrival(weight=1.0, factor=(0.1, 1.0))).action == 0
    assert learner.choose(make_arrival(mask=(False, True))).action == 1


def test_exploration_falls_to_its_floor_and_starts_anew_for_a_newcomer():
    exploration = Exploration(3, start=1.0, floor=0.01, decay=0.98)
    two, three = np.array([True, True, False]), np.ones(3, bool)
    shares = [exploration.advance(two) for _ in range(400)]
    assert shares[:3] == pytest.approx([1.0, 0.98, 0.9604])
    assert shares[-1] == 0.01
    assert exploration.advance(three) == 1.0
    assert exploration.advance(two) == pytest.approx(0.98)  # one that is gone is no newcomer


def test_epsilon_greedy_explores_as_often_as_it_says():
    config = EpsilonGreedyConfig(kind="epsilon_greedy", start=0.5, floor=0.5)
    learner = EpsilonGreedy(config, candidates=2)
    learner.learn(make_arrival(), Pick(0, 1.0), 1.0, 0.0)
    learner.learn(make_arrival(), Pick(1, 1.0), 0.0, 0.0)
    picks = [learner.choose(make_arrival(uniform=(n + 0.5) / 100)) for n in range(100)]
    assert sum(pick.action == 0 for pick in picks) == 75
    assert {pick.propensity for pick in picks} == {0.75, 0.25}


def test_a_fixed_order_takes_the_next_one_where_the_first_may_not_be_picked():
    learner = FixedOrder([1, 0])
    assert learner.choose(make_arrival()) == Pick(1, 1.0)
    assert learner.choose(make_arrival(mask=(True, False))) == Pick(0, 1.0)
    assert Random().choose(make_arrival(mask=(True, False), uniform=0.9)) == Pick(0, 1.0)


def test_a_saved_leader_and_its_exploration_go_on_as_they_were():
    config = EpsilonGreedyConfig(kind="epsilon_greedy")
    learner, other = EpsilonGreedy(config, 2), EpsilonGreedy(config, 2)
    for n in range(30):
        arrival = make_arrival(uniform=n / 30)
        learner.learn(arrival, learner.choose(arrival), n % 3 / 2, 0.1)
    other.set_state(learner.get_state())
    for n in range(30):
        arrival = make_arrival(uniform=n / 30)
        assert other.choose(arrival) == learner.choose(arrival)


def test_a_candidate_that_fails_rests_longer_each_time_until_it_answers():
    breaker = Breaker(AvailabilityConfig(rest=4, growth=2.0), candidates=2)
    both, calls = np.ones(2, bool), []
    for step in range(200):
        if not breaker.list_blocked(step, both)[0]:
            calls.append(step)
            breaker.record(step, 0, failed=True)
    assert calls == [0, 5, 14, 31, 64, 129]  # rests of 4, 8, 16, 32, 64
    breaker.record(200, 0, failed=False)
    breaker.record(201, 0, failed=True)
    assert breaker.list_blocked(205, both)[0]
    assert not breaker.list_blocked(206, both)[0]


def test_nobody_rests_where_all_that_may_be_picked_would():
    breaker = Breaker(AvailabilityConfig(), candidates=3)
    breaker.record(0, 0, failed=True)
    breaker.record(0, 1, failed=True)
    assert breaker.list_blocked(1, np.ones(3, bool)).tolist() == [True, True, False]
    assert not breaker.list_blocked(1, np.array([True, True, False])).any()


def test_a_saved_breaker_rests_on():
    breaker, other = (Breaker(AvailabilityConfig(), 2) for _ in range(2))
    breaker.record(0, 1, failed=True)
    other.set_state(breaker.get_state())
    both = np.ones(2, bool)
    for step in range(40):
        assert (other.list_blocked(step, both) == breaker.list_blocked(step, both)).all()
