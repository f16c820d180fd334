"""Baselines that count, and cascades: worked by hand on small tables."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from table_examples import build, build_topics, list_picks

from rlroute.evaluation.evaluate import evaluate_policies
from rlroute.evaluation.sampling import sweep_policy
from rlroute.policies.table_baselines import PredictThenOptimise, draw_arrival
from rlroute.policies.table_baselines_cascade import (
    CheapestSufficient,
    PaidProbes,
    ProbePlan,
    pick_sufficient,
)
from rlroute.policies.table_baselines_groups import (
    Clusters,
    MovingAverage,
    NearestCentroid,
    PheromoneTable,
    SkillProfile,
    follow_average,
)
from rlroute.types import RLRouteError

NAN = np.nan


class FixedPrediction:
    """Predicts what it was given."""

    name = "fixed"

    def __init__(self, score_QK, cost_QK):
        self.score_QK, self.cost_QK = np.asarray(score_QK, float), np.asarray(cost_QK, float)

    def predict(self, features_QF):
        return self.score_QK, self.cost_QK


def test_a_moving_average_moves_by_the_decay_and_starts_at_the_first_outcome():
    value_QK = np.array([[1.0, NAN], [0.0, 0.5], [NAN, 1.0]])
    average_K = follow_average(value_QK, np.isfinite(value_QK), decay=0.25)
    assert average_K.tolist() == [0.75, 0.625]


def test_the_moving_average_forgets_the_query_and_heeds_the_cost_weight():
    train = build_topics(200, 0)
    policy = PredictThenOptimise(MovingAverage(train), train)
    assert len(set(list_picks(policy, train, 0.0))) == 1
    assert set(list_picks(policy, train, 5.0)) == {0}


def test_the_order_of_arrival_depends_on_ids_alone_and_mixes_tasks():
    train = build_topics(200, 0)
    order = np.arange(200)[::-1]
    turned = dataclasses.replace(train, table=train.table.select_queries(order))
    ids = [train.table.queries[q].id for q in draw_arrival(train)]
    assert ids == [turned.table.queries[q].id for q in draw_arrival(turned)]
    assert sorted(ids) == sorted(query.id for query in train.table.queries)
    assert ids != [query.id for query in train.table.queries]


def test_a_centroid_draws_queries_like_those_its_candidate_solved():
    # a solves what points right, b what points left; c solves everything: no direction
    features = [[1, 0], [1, 0], [-1, 0], [-1, 0]]
    train = build([[1, 0, 1], [1, 0, 1], [0, 1, 1], [0, 1, 1]], np.ones((4, 3)), features)
    score_QK = NearestCentroid(train).predict_score(np.array([[2, 0], [-3, 0]], np.float32))
    assert score_QK == pytest.approx(np.array([[1, 0, 1], [0, 1, 1]]))


def test_a_candidate_that_solved_nothing_keeps_its_mean_of_zero():
    train = build([[0, 1], [0, 0]], np.ones((2, 2)), np.eye(2))
    assert NearestCentroid(train).predict_score(train.features_QF)[:, 0].tolist() == [0, 0]


@pytest.mark.parametrize("holes", [0.0, 0.3])
def test_clusters_skills_and_pheromones_learn_the_topic(holes):
    train, test = build_topics(300, 0, holes), build_topics(100, 2)
    clusters = Clusters(train, clusters=2)
    expected = [0, 2] * 50
    assert list_picks(PheromoneTable(train, clusters), test) == expected
    skills = PredictThenOptimise(SkillProfile(clusters), train)
    assert list_picks(skills, test) == expected
    assert set(list_picks(skills, test, cost_weight=50.0)) == {0}


def test_needs_of_skills_are_a_softmax_of_cosines():
    train = build(
        [[1, 0], [1, 0], [0, 1], [0, 1]], np.ones((4, 2)), [[1, 0], [1, 0], [0, 1], [0, 1]]
    )
    profile = SkillProfile(Clusters(train, clusters=2), temperature=0.5)
    need_QC = profile.compute_needs(np.array([[3, 0], [1, 1]], np.float32))
    high = 1 / (1 + np.exp(-2))
    assert sorted(need_QC[0]) == pytest.approx([1 - high, high])
    assert need_QC[1] == pytest.approx([0.5, 0.5])
    score_QK, _ = profile.predict(np.array([[3, 0]], np.float32))
    clusters = profile.clusters
    assert score_QK[0] == pytest.approx(need_QC[0] @ clusters.score_CK)


def test_a_trail_evaporates_and_grows_and_a_hole_leaves_it_alone():
    # one cluster; the trail begins at the mean score, and each outcome moves it by a tenth
    train = build([[1, NAN], [1, 0.5], [0, 0.5]], np.ones((3, 2)), np.ones((3, 1)))
    table = PheromoneTable(train, Clusters(train, clusters=1), evaporation=0.1)
    trail = 2 / 3
    for q in draw_arrival(train):
        trail = 0.9 * trail + 0.1 * [1, 1, 0][q]
    assert table.trail_CK[0] == pytest.approx([trail, 0.5])


def test_cost_is_the_visibility_of_a_trail():
    train = build([[0.5, 0.9]] * 3, [[1, 10]] * 3, np.ones((3, 1)))
    policy = PheromoneTable(train, Clusters(train, clusters=1))
    # costs .1 and 1 of the reference: .5 / (1 + .1 w) passes .9 / (1 + w) at w = .4 / .41
    assert list_picks(policy, train, 0.95) == [1, 1, 1]
    assert list_picks(policy, train, 1.0) == [0, 0, 0]


def test_the_cheapest_sufficient_candidate_is_picked_or_else_the_best():
    score_QK = np.array([[0.6, 0.7, 0.9], [0.1, 0.2, 0.3], [0.6, 0.7, 0.9]])
    cost_QK = np.tile([1.0, 2.0, 3.0], (3, 1))
    present_QK = np.ones((3, 3), bool)
    present_QK[2, 0] = False
    assert pick_sufficient(score_QK, cost_QK, present_QK, 0.6).tolist() == [0, 2, 1]
    assert pick_sufficient(score_QK, cost_QK, present_QK, 0.8).tolist() == [2, 2, 2]


def test_the_threshold_is_the_one_of_the_best_validation_utility():
    # where .6 is predicted for a it fails, where .8 is predicted it succeeds
    predicted = FixedPrediction([[0.6, 0.9], [0.8, 0.9]] * 2, [[0.1, 1.0]] * 4)
    data = build([[0, 1], [1, 1]] * 2, [[1, 10]] * 4, np.ones((4, 1)))
    policy = CheapestSufficient(predicted, data, data)
    assert policy.choose_threshold(0.5) == pytest.approx(0.62)
    assert list_picks(policy, data, 0.5) == [1, 0, 1, 0]
    assert list_picks(policy, data, 5.0) == [0, 0, 0, 0]
    assert policy.choose_threshold(5.0) == 0


def test_probes_are_all_paid_and_the_best_answer_seen_is_given():
    data = build([[1, 1], [0, 1], [0, 0], [NAN, 0], [0, NAN]], [[1, 10]] * 5, np.ones((5, 1)))
    probes = PaidProbes(data, data)
    pick_Q, paid_usd_Q = probes.ask(ProbePlan((0, 1), 1.0), data)
    assert pick_Q.tolist() == [0, 1, 0, 1, 0]
    assert paid_usd_Q.tolist() == [1, 11, 11, 10, 1]
    pick_Q, paid_usd_Q = probes.ask(ProbePlan((0,), 1.0), data)
    assert pick_Q.tolist() == [0, 0, 0, 1, 0]  # where it is absent, the cheapest that is there
    assert paid_usd_Q.tolist() == [1, 1, 1, 10, 1]


def test_a_probe_is_left_out_where_it_costs_more_than_it_saves():
    # a never helps; b solves all for 4: asking a first would only add its cost
    data = build([[0, 1, 1]] * 4, [[1, 4, 10]] * 4, np.ones((4, 1)))
    probes = PaidProbes(data, data)
    assert probes.choose_plan(0.5).column_N == (1,)
    assert probes.choose_plan(50.0).column_N == (0,)


def test_the_evaluation_counts_the_cost_of_probes_in_costs_and_regret():
    data = build([[1, 1], [0, 1], [0, 1], [1, 0]], [[1, 10]] * 4, np.ones((4, 1)))
    probes = PaidProbes(data, data)
    assert probes.choose_plan(0.2).column_N == (0, 1)
    sweep = sweep_policy(probes, data, np.array([0.2]))
    assert sweep.cost_usd_NQ[0].tolist() == [1, 11, 11, 1]
    # the oracle pays 10 for the second query; the probe of 1 costs .2 * 1 / 10 more
    assert sweep.regret_LQ[0] == pytest.approx([0, 0.02, 0.02, 0], abs=1e-7)
    result = evaluate_policies([probes], data, data, [0.2], val=data, bootstrap=5)
    assert result.subject.points[0].cost_usd.value == 6
    assert result.subject.operating_points[0].cost_usd.value == 6


@given(seed=st.integers(0, 1000), holes=st.floats(0, 0.5), weight=st.floats(0, 10))
def test_probes_never_cost_less_than_the_pick_and_regret_is_never_negative(seed, holes, weight):
    data = build_topics(30, seed, holes)
    data.table.score_QK[0] = np.where(data.table.present_QK[0], 0.5, NAN)
    data.table.score_QK[1:4] = np.where(data.table.present_QK[1:4], 1.0, NAN)
    for column in range(3):  # every candidate has an outcome somewhere
        if not data.table.present_QK[:, column].any():
            return
    probes = PaidProbes(data, data)
    assert (probes.compute_probe_cost(data, weight) >= 0).all()
    assert (sweep_policy(probes, data, np.array([weight])).regret_LQ >= 0).all()


def test_probing_baselines_refuse_other_candidates_than_they_were_fitted_on():
    data = build_topics(20, 0)
    fewer = dataclasses.replace(data, table=data.table.select_candidates(["a", "c"]))
    for policy in (PaidProbes(data, data), PheromoneTable(data, Clusters(data, clusters=2))):
        with pytest.raises(RLRouteError, match="fitted on candidates a, b, c"):
            policy.compute_probabilities(fewer, 0.0)
