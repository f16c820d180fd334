"""Learners that meet the train split once: they find the best, and no hole is learnt from."""

from __future__ import annotations

import numpy as np
import pytest
from table_examples import build, build_topics, list_picks

from rlroute.policies.table_baselines import PredictThenOptimise
from rlroute.policies.table_baselines_bandits import fit_bandits

NAMES = ["1-pass LinUCB", "1-pass epsilon", "1-pass Thompson"]


@pytest.mark.parametrize("place", range(3), ids=NAMES)
def test_a_learner_finds_the_best_of_a_planted_linear_table_at_every_weight(place):
    train, test = build_topics(600, 0, holes=0.2), build_topics(200, 1)
    bandit = fit_bandits(train, (0.0, 2.0))[place]
    assert bandit.name == NAMES[place]
    policy = PredictThenOptimise(bandit, train)
    best = np.arange(200) % 2 * 2  # a for the first topic, c for the second
    assert np.mean(list_picks(policy, test) == best) >= 0.98
    # at weight 2 the right answer of c is not worth its price: a costs a tenth
    assert np.mean(np.array(list_picks(policy, test, 2.0)) == 0) >= 0.98


@pytest.mark.parametrize("place", range(3), ids=NAMES)
def test_no_hole_is_ever_picked_or_learnt_from(place):
    train = build_topics(300, 2, holes=0.5)
    bandit = fit_bandits(train)[place]
    picked_Q = train.table.present_QK[np.arange(300), bandit.pick_Q]
    assert picked_Q.all()
    assert np.isfinite(bandit.arms.moment_KOF).all()
    # the moments are those of the picked cells by themselves
    rows, context_QF = np.arange(300), bandit.contexts.reduce(train.features_QF)
    score_Q = train.table.score_QK[rows, bandit.pick_Q].astype(float)
    expected_KF = [(score_Q * (bandit.pick_Q == k)) @ context_QF for k in range(3)]
    np.testing.assert_allclose(bandit.arms.moment_KOF[:, 0], expected_KF, atol=1e-9)


def test_who_was_never_tried_is_picked_only_where_nobody_else_can_be():
    score_QK = np.array([[1.0, 0.0, np.nan]] * 40)
    train = build(score_QK, [[1.0, 4.0, 10.0]] * 40, np.eye(40)[:, :2])
    test = build([[0, 0, 1], [np.nan, np.nan, 1]], [[1.0, 4.0, 10.0]] * 2, np.eye(2))
    for bandit in fit_bandits(train):
        policy = PredictThenOptimise(bandit, train)
        assert list_picks(policy, test, 50.0)[1] == 2
        assert list_picks(policy, test, 50.0)[0] in (0, 1)


def test_the_order_of_the_rows_changes_nothing():
    train = build_topics(100, 3)
    turned = train.select_queries(np.arange(100)[::-1])
    for one, other in zip(fit_bandits(train), fit_bandits(turned), strict=True):
        np.testing.assert_array_equal(one.pick_Q, other.pick_Q[::-1])
