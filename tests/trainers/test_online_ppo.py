"""PPO on a stream: probes, profiles, what goes into a batch, prices, and what is dropped."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from bandit_streams import IDS, make_topics, stream_topics

from rlroute.bandits.base import Pick
from rlroute.bandits.config import AvailabilityConfig, OnlinePPOConfig, RepricesConfig
from rlroute.bandits.play import Play
from rlroute.bandits.profiles import StreamProfiles
from rlroute.data.routing_data import average_by_cluster
from rlroute.trainers.online_ppo import OnlinePPO

CONFIG = OnlinePPOConfig(kind="ppo", probes=3, episodes=16, hidden=16)
NOBODY_K = np.zeros(4, bool)


@pytest.fixture
def learner():
    return OnlinePPO(CONFIG, make_topics(), seed=0)


def teach(learner, stream, steps) -> list[Pick]:
    picks = []
    for step in steps:
        arrival = stream.make_arrival(step, NOBODY_K)
        picks.append(learner.choose(arrival))
        outcome = stream.answer(step, picks[-1].action)
        learner.learn(arrival, picks[-1], outcome.score, outcome.cost)
    return picks


def test_every_candidate_is_probed_first_and_probes_are_no_decisions(learner):
    stream = stream_topics(100)
    picks = teach(learner, stream, range(12))
    assert np.bincount([pick.action for pick in picks]).tolist() == [3, 3, 3, 3]
    assert learner.rows == []
    assert picks[0].propensity == 0.25
    assert not learner.profiles.known_K.any()
    teach(learner, stream, range(12, 13))
    assert learner.profiles.known_K.all()
    assert len(learner.rows) == 1


def test_a_batch_gives_an_update_and_fresh_profiles(learner):
    stream = stream_topics(100)
    teach(learner, stream, range(12 + 15))
    before = {name: value.clone() for name, value in learner.scorer.state_dict().items()}
    features_KD = learner.features_KD.copy()
    assert (learner.updates, len(learner.rows)) == (0, 15)
    teach(learner, stream, range(27, 28))
    assert (learner.updates, len(learner.rows)) == (1, 0)
    after = learner.scorer.state_dict()
    assert any((after[name] != value).any() for name, value in before.items())
    assert (learner.features_KD != features_KD).any()
    assert learner.profiles.measured == 28


def test_the_batch_holds_what_was_decided_seen_and_paid(learner):
    events = [RepricesConfig(kind="reprices", candidate=i, at=1, factor=2.0) for i in IDS]
    stream = stream_topics(100, events, weight=0.5)
    picks = teach(learner, stream, range(20))[12:]
    batch = learner.make_batch()
    assert batch.action_BT[:, 0].tolist() == [pick.action for pick in picks]
    np.testing.assert_allclose(
        np.exp(batch.logp_BT[:, 0]), [pick.propensity for pick in picks], rtol=1e-5
    )
    rows_T, query_T = np.arange(12, 20), stream.query_T[12:20]
    reward_B = learner.learner.rewards.combine(batch.reward_terms_BT, batch.cost_weight_B[:, None])
    expected_T = stream.utility_TK[rows_T, batch.action_BT[:, 0]]
    np.testing.assert_allclose(reward_B[:, 0], expected_T, atol=1e-6)
    np.testing.assert_array_equal(batch.features_BTF[:, 0], stream.data.features_QE[query_T])


def test_a_change_of_price_scales_profiles_and_drops_the_unfinished_batch(learner):
    factor = RepricesConfig(kind="reprices", candidate="alpha", at=20, factor=0.5)
    stream = stream_topics(100, [factor])
    teach(learner, stream, range(20))
    assert len(learner.rows) == 8
    cost = learner.features_KD[:, 1].copy()  # mean cost in units of the reference
    teach(learner, stream, range(20, 21))
    assert len(learner.rows) == 1
    np.testing.assert_allclose(learner.features_KD[:, 1], cost * [0.5, 1, 1, 1])


def test_a_candidate_that_is_not_known_has_no_chance(learner):
    stream = stream_topics(100)
    arrival = stream.make_arrival(0, NOBODY_K)
    two = dataclasses.replace(arrival, mask_K=np.array([True, True, False, False]))
    for _ in range(6):
        pick = learner.choose(two)
        learner.learn(two, pick, 0.5, 0.5)
    rest = dataclasses.replace(arrival, mask_K=np.array([True, True, True, False]))
    assert learner.choose(rest).action == 2  # it is probed
    assert learner.decided is None
    picks = [
        learner.choose(dataclasses.replace(two, uniform=u)).action for u in (0.0, 0.4, 0.8, 0.999)
    ]
    assert set(picks) <= {0, 1}


def test_profiles_are_means_of_what_was_paid_for():
    data = make_topics()
    profiles = StreamProfiles(data, probes=2)
    rows = [(0, 1.0, 0.5), (1, 0.0, 0.7), (0, 0.5, 0.6)]
    for query, score, cost in rows:
        profiles.record(data.features_QE[query], 2, score, cost)
    profiles.record(data.features_QE[0], 1, 1.0, 1.0)
    profiles.measure()
    assert profiles.known_K.tolist() == [False, False, True, False]
    assert profiles.ready_K.tolist() == [False, False, True, False]
    profile = profiles.profile_by_column[2]
    assert profile.mean_score == pytest.approx(0.5)
    assert profile.mean_cost_usd == pytest.approx(0.6 * data.cost_reference_usd)
    cluster_N = np.array([row[0] for row in profiles.history[:3]])
    expected_C = average_by_cluster(np.array([1.0, 0.0, 0.5]), cluster_N, 4)
    np.testing.assert_allclose(profile.score_C, expected_C)
    features_KD = profiles.build_features(np.ones(4))
    assert (features_KD[[0, 1, 3]] == 0).all()
    np.testing.assert_allclose(features_KD[2, :2], [0.5, 0.6], rtol=1e-6)


def test_equal_seeds_give_equal_picks_and_others_do_not():
    stream = stream_topics(120)
    plays = [
        Play(stream, OnlinePPO(CONFIG, stream.data, seed), AvailabilityConfig())
        for seed in (0, 0, 1)
    ]
    for game in plays:
        game.advance(120)
    first, again, other = (game.picks.propensity_T for game in plays)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
