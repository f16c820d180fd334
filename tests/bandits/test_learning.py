"""What every learner must do on a problem whose optimum is known: learn, notice, take in."""

from __future__ import annotations

import numpy as np
import pytest
from bandit_streams import IDS, make_topics, stream_topics

from rlroute.bandits.config import (
    AvailabilityConfig,
    DiesConfig,
    EpsilonGreedyConfig,
    JoinsConfig,
    LeaderConfig,
    LinearEpsilonGreedyConfig,
    LinearThompsonConfig,
    LinUCBConfig,
    OnlinePPOConfig,
    RandomConfig,
)
from rlroute.bandits.play import Play
from rlroute.trainers.bandit_run import make_learner

CONTEXTUAL = {
    "linucb": LinUCBConfig(kind="linucb"),
    "thompson": LinearThompsonConfig(kind="linear_thompson"),
    "linear_epsilon": LinearEpsilonGreedyConfig(kind="linear_epsilon_greedy"),
    "ppo": OnlinePPOConfig(
        kind="ppo", episodes=64, hidden=32, learning_rate=2e-3, dropout=0.0, probes=12
    ),
}
LEARNERS = CONTEXTUAL | {
    "epsilon": EpsilonGreedyConfig(kind="epsilon_greedy"),
    "leader": LeaderConfig(kind="leader"),
    "random": RandomConfig(kind="random"),
}
LENGTH = 1600


def run(config, stream):
    game = Play(stream, make_learner(config, stream), AvailabilityConfig())
    game.advance(stream.length)
    regret_T = stream.best_T - stream.compute_utility(game.picks.action_T)
    return game.picks, regret_T


@pytest.mark.parametrize("name", CONTEXTUAL)
def test_a_contextual_learners_regret_levels_off(name):
    stream = stream_topics(LENGTH)
    picks, regret_T = run(CONTEXTUAL[name], stream)
    first, last = regret_T[: LENGTH // 4].sum(), regret_T[-LENGTH // 4 :].sum()
    assert (regret_T >= 0).all()
    assert last < 0.45 * first  # a learner without contexts keeps .45 a query for good
    assert last / (LENGTH // 4) < 0.12
    assert ((picks.propensity_T > 0) & (picks.propensity_T <= 1 + 1e-9)).all()


def test_without_contexts_regret_stays_that_of_the_best_fixed_candidate():
    stream = stream_topics(LENGTH)
    _, regret_T = run(LEARNERS["epsilon"], stream)
    assert regret_T[-400:].mean() == pytest.approx(0.45, abs=0.08)  # .9 against .45 or .4
    _, random_T = run(LEARNERS["random"], stream)
    assert random_T.mean() == pytest.approx(0.9 - (0.4 + 0.4 + 0.45 + 0.075) / 4, abs=0.05)


@pytest.mark.parametrize("name", LEARNERS)
def test_a_dead_candidate_is_asked_a_few_times_only(name):
    dies = DiesConfig(kind="dies", candidate="alpha", at=800)
    stream = stream_topics(LENGTH, [dies])
    picks, _ = run(LEARNERS[name], stream)
    failed_T = stream.find_failures(picks.action_T)
    assert failed_T.sum() <= 7  # rests of 20, 40, ..., 640 fill 800 queries with 6 calls
    before = (picks.action_T[400:800] == IDS.index("alpha")).sum()
    if name in CONTEXTUAL:
        assert before > 100  # it was a favourite
    assert (picks.cost_usd_T[failed_T] == 0).all()  # billed: 0


@pytest.mark.parametrize("name", ["linucb", "thompson", "linear_epsilon", "ppo"])
def test_a_better_candidate_that_joins_gets_its_queries(name):
    joins = JoinsConfig(kind="joins", candidate="alpha", at=600)
    stream = stream_topics(LENGTH, [joins])
    picks, _ = run(LEARNERS[name], stream)
    alpha = picks.action_T == IDS.index("alpha")
    assert not alpha[:600].any()
    own_T = np.isin(stream.query_T % 4, [0, 1])  # the topics that alpha alone solves
    last_T = np.arange(LENGTH) >= LENGTH - 400
    assert alpha[own_T & last_T].mean() > 0.7
    assert alpha[~own_T & last_T].mean() < 0.3


@pytest.mark.parametrize("name", LEARNERS)
def test_a_learner_is_told_of_answers_only(name):
    """No learner may take a failure for an outcome: none with a failed or unknown number arrives.

    Omega is the cheapest and fails from the start on, unbilled: there are no cheaper calls.
    """
    dies = DiesConfig(kind="dies", candidate="omega", at=1)
    stream = stream_topics(400, [dies], weight=3.0)  # only the cheapest is worth its price
    learner = make_learner(LEARNERS[name], stream)
    told = []
    learn = learner.learn

    def listen(arrival, pick, score, cost):
        told.append((pick.action, score, cost))
        learn(arrival, pick, score, cost)

    learner.learn = listen
    game = Play(stream, learner, AvailabilityConfig())
    game.advance(400)
    failed_T = stream.find_failures(game.picks.action_T)
    omega = IDS.index("omega")
    assert len(told) == 400 - failed_T.sum()
    assert sum(action == omega for action, _, _ in told) <= 1  # before it died
    assert np.isfinite([numbers[1:] for numbers in told]).all()
    assert failed_T.sum() <= 6


@pytest.mark.parametrize("name", LEARNERS)
def test_an_interrupted_play_goes_on_as_if_it_had_not_been(name):
    events = [
        JoinsConfig(kind="joins", candidate="beta", at=150),
        DiesConfig(kind="dies", candidate="alpha", at=250),
    ]
    stream = stream_topics(420, events, data=make_topics(40))
    whole = Play(stream, make_learner(LEARNERS[name], stream), AvailabilityConfig())
    whole.advance(420)
    first = Play(stream, make_learner(LEARNERS[name], stream), AvailabilityConfig())
    first.advance(287)
    second = Play(stream, make_learner(LEARNERS[name], stream), AvailabilityConfig())
    second.set_state(first.get_state())
    assert second.advance(1000) == 420 - 287
    for field in ("action_T", "propensity_T", "cost_usd_T"):
        np.testing.assert_array_equal(
            getattr(whole.picks, field), getattr(second.picks, field), err_msg=field
        )
    for field, value in whole.get_state().items():
        np.testing.assert_array_equal(value, second.get_state()[field], err_msg=field)
