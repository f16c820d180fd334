"""Baselines on tables small enough to see what each has to pick."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from table_examples import build, build_topics, list_picks

from rlroute.policies.baselines import (
    AlwaysCandidate,
    NearestNeighbours,
    Oracle,
    PredictThenOptimise,
    RandomCandidate,
    RidgeRegression,
    TaskOracle,
    fit_baselines,
)
from rlroute.types import RLRouteError


@pytest.mark.parametrize("holes", [0.0, 0.3])
@pytest.mark.parametrize("cost_weight", [0.0, 0.5, 3.0])
def test_every_baseline_gives_probabilities_over_present_candidates_only(holes, cost_weight):
    train, val = build_topics(80, 0, holes), build_topics(40, 1, holes)
    for policy in fit_baselines(train, val):
        probability_QK = policy.compute_probabilities(val, cost_weight)
        assert probability_QK.shape == (40, 3)
        assert probability_QK.dtype == np.float32
        assert probability_QK.sum(1) == pytest.approx(np.ones(40))
        assert (probability_QK[~val.table.present_QK] == 0).all()


def test_all_baselines_are_fitted_under_their_names():
    policies = fit_baselines(build_topics(80, 0), build_topics(40, 1))
    names = [policy.name for policy in policies]
    assert names == [
        *("best single", "cheapest", "random", "kNN-40", "ridge", "EMA", "centroids"),
        *("skill profile", "soft labels", "boosted trees", "IRT", "IRT, Chebyshev", "pheromones"),
        *("loss with flags", "sufficient", "paid probes", "1-pass LinUCB"),
        *("1-pass epsilon", "1-pass Thompson", "task oracle", "oracle"),
    ]


def test_best_single_and_cheapest_are_chosen_on_train():
    train = build([[0, 1], [0, 1], [1, 1]], [[1, 5]] * 3, np.eye(3))
    other = build([[1, 0], [1, 0], [1, 0]], [[9, 5]] * 3, np.eye(3))
    best, cheapest = fit_baselines(train, other)[:2]
    assert list_picks(best, other) == [1, 1, 1]
    assert list_picks(cheapest, other) == [0, 0, 0]


def test_always_falls_back_to_a_random_present_candidate_in_a_hole():
    data = build([[np.nan, 0, 1], [1, 1, 1]], np.ones((2, 3)), np.eye(2))
    probability_QK = AlwaysCandidate("a").compute_probabilities(data, 0.0)
    assert probability_QK.tolist() == [[0, 0.5, 0.5], [1, 0, 0]]


def test_always_an_unknown_candidate_is_refused_with_the_known_ones():
    with pytest.raises(RLRouteError, match=r"no candidate 'z' \(it has: a, b, c\)"):
        AlwaysCandidate("z").compute_probabilities(build_topics(4, 0), 0.0)


def test_random_is_uniform_over_the_present_candidates():
    data = build([[np.nan, 0, 1], [1, 1, 1]], np.ones((2, 3)), np.eye(2))
    probability_QK = RandomCandidate().compute_probabilities(data, 0.0)
    assert probability_QK == pytest.approx(np.array([[0, 0.5, 0.5], [1 / 3, 1 / 3, 1 / 3]]))


def test_the_oracle_picks_best_utility_and_breaks_ties_to_the_cheapest():
    score_QK = [[1, 1, 1], [0, 1, 1], [0, 0, 1], [1, 0, 0]]
    data = build(score_QK, [[1, 4, 10]] * 4, np.eye(4))
    assert list_picks(Oracle(), data) == [0, 1, 2, 0]
    assert list_picks(Oracle(), data, cost_weight=2.0) == [0, 1, 0, 0]


def test_the_task_oracle_picks_per_task_and_heeds_the_cost_weight():
    data = build([[1, 1], [0, 1], [0, 1], [1, 0], [1, 1]], [[1, 10]] * 5, np.eye(5), "xxyyy")
    assert list_picks(TaskOracle(), data) == [1, 1, 0, 0, 0]
    assert list_picks(TaskOracle(), data, cost_weight=1.0) == [0] * 5


@pytest.mark.parametrize("holes", [0.0, 0.2])
def test_neighbours_and_ridge_learn_the_topic_and_heed_the_cost_weight(holes):
    train, val, test = (build_topics(200, seed, holes) for seed in range(3))
    complete = build_topics(200, 2)
    topic_Q = np.arange(200) % 2
    for predictor in (NearestNeighbours(train), RidgeRegression(train, val)):
        policy = PredictThenOptimise(predictor, train)
        assert list_picks(policy, complete) == np.where(topic_Q == 0, 0, 2).tolist()
        assert set(list_picks(policy, complete, cost_weight=5.0)) == {0}
        quality = np.nansum(policy.compute_probabilities(test, 0.0) * test.table.score_QK)
        assert quality >= 0.99 * np.nanmax(test.table.score_QK, axis=1).sum()


def test_a_hole_counts_neither_for_nor_against_a_candidate():
    train = build([[np.nan, 0.4], [1.0, 0.4], [np.nan, 0.4]], np.ones((3, 2)), np.eye(3))
    policy = NearestNeighbours(train, neighbours=3)
    score_QK, cost_QK = policy.predict(np.eye(3, dtype=np.float32))
    assert score_QK == pytest.approx(np.tile([1.0, 0.4], (3, 1)))
    assert cost_QK == pytest.approx(np.full((3, 2), 0.1))


def test_without_any_present_neighbour_the_train_mean_stands_in():
    features = [[1, 0], [1, 0.01], [-1, 0]]
    train = build([[np.nan, 0], [np.nan, 0], [0.7, 0]], np.ones((3, 2)), features)
    policy = NearestNeighbours(train, neighbours=2)
    score_QK, _ = policy.predict(np.array([[1, 0]], np.float32))
    assert score_QK[0] == pytest.approx([0.7, 0])


def test_fewer_train_queries_than_neighbours_are_all_neighbours():
    predictor = NearestNeighbours(build_topics(10, 0))
    assert predictor.name == "kNN-10"
    assert predictor.predict(build_topics(4, 1).features_QF)[0].shape == (4, 3)


def test_ridge_on_features_of_noise_predicts_the_train_means():
    generator = np.random.default_rng(0)
    score_QK = (generator.random((300, 2)) < [0.2, 0.8]).astype(float)
    noise = [generator.standard_normal((300, 5)) for _ in range(2)]
    train, val = (build(score_QK, np.ones((300, 2)), features) for features in noise)
    policy = RidgeRegression(train, val)
    score_QK, _ = policy.predict(val.features_QF)
    assert policy.score_penalty == 1.0
    assert score_QK.mean(0) == pytest.approx(train.table.score_QK.mean(0), abs=0.03)


def test_ridge_agrees_with_the_closed_form():
    train, val = build_topics(60, 0), build_topics(30, 1)
    policy = RidgeRegression(train, val)
    centred_QF = train.features_QF - train.features_QF.mean(0, dtype=np.float64)
    target_QK = train.table.score_QK - train.table.score_QK.mean(0)
    gram_FF = centred_QF.T @ centred_QF + policy.score_penalty * 60 * np.eye(2)
    assert policy.score_FK == pytest.approx(np.linalg.solve(gram_FF, centred_QF.T @ target_QK))


def test_the_order_of_train_queries_changes_no_pick():
    train, val, test = (build_topics(120, seed) for seed in range(3))
    order = np.random.default_rng(0).permutation(120)
    shuffled = dataclasses.replace(
        train, table=train.table.select_queries(order), features_QF=train.features_QF[order]
    )
    for one, other in zip(fit_baselines(train, val), fit_baselines(shuffled, val), strict=True):
        assert list_picks(one, test, 0.1) == list_picks(other, test, 0.1)


def test_predictors_refuse_other_candidates_than_they_were_fitted_on():
    train = build_topics(40, 0)
    test = build_topics(10, 1)
    fewer = dataclasses.replace(test, table=test.table.select_candidates(["a", "c"]))
    with pytest.raises(RLRouteError, match="fitted on candidates a, b, c"):
        PredictThenOptimise(NearestNeighbours(train), train).compute_probabilities(fewer, 0.0)


def test_the_kept_prediction_is_that_of_the_data_at_hand():
    train, val, test = (build_topics(40, seed) for seed in range(3))
    policy = PredictThenOptimise(NearestNeighbours(train), train)
    first = policy.compute_probabilities(test, 0.0)
    policy.compute_probabilities(val, 0.0)
    assert (policy.compute_probabilities(test, 0.0) == first).all()
