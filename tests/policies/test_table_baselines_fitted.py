"""Baselines with weights: worked numbers of their papers, gradients, what they must learn."""

from __future__ import annotations

import numpy as np
import pytest
from table_examples import build, build_topics, list_picks

from rlroute.policies.table_baselines import PredictThenOptimise, ScoreWithCost
from rlroute.policies.table_baselines_fitted import (
    BoostedTrees,
    Flag,
    LossWithFlags,
    SoftLabels,
    compute_cross_entropy,
    make_soft_labels,
)
from rlroute.policies.table_baselines_item_response import (
    ChebyshevPick,
    ItemResponse,
    compute_information,
    compute_response_loss,
    compute_success,
    compute_worse_objective,
)
from rlroute.types import RLRouteError

NAN = np.nan


class FixedPrediction:
    """Predicts the same scores and costs for every query."""

    name = "fixed"

    def __init__(self, score_K, cost_K):
        self.score_K, self.cost_K = np.asarray(score_K, float), np.asarray(cost_K, float)

    def predict(self, features_QF):
        rows = (len(features_QF), 1)
        return np.tile(self.score_K, rows), np.tile(self.cost_K, rows)


def measure_gradient(measure, point, step=1e-6):
    """Return the gradient by central differences, flat."""
    flat = point.ravel()
    found = np.empty(len(flat))
    for i in range(len(flat)):
        shift = np.zeros(len(flat))
        shift[i] = step
        above, below = (measure((flat + sign * shift).reshape(point.shape)) for sign in (1, -1))
        found[i] = (above - below) / (2 * step)
    return found


def test_soft_labels_are_a_softmax_over_the_outcomes():
    data = build([[1, 1, 0], [NAN, 1, 0], [0, 0, 0]], np.ones((3, 3)), np.eye(3))
    e = np.e
    expected = [
        [e / (2 * e + 1), e / (2 * e + 1), 1 / (2 * e + 1)],
        [0, e / (e + 1), 1 / (e + 1)],
        [1 / 3, 1 / 3, 1 / 3],
    ]
    assert make_soft_labels(data) == pytest.approx(np.array(expected))


def test_the_gradient_of_the_cross_entropy_is_that_of_its_differences():
    generator = np.random.default_rng(0)
    data = build_topics(12, 0, holes=0.3)
    features_QF, target_QK = generator.standard_normal((12, 4)), make_soft_labels(data)
    weight_EK = generator.standard_normal((5, 3))
    arguments = features_QF, target_QK, data.table.present_QK
    _, gradient_EK = compute_cross_entropy(weight_EK, *arguments)
    expected = measure_gradient(lambda w: compute_cross_entropy(w, *arguments)[0], weight_EK)
    assert gradient_EK.ravel() == pytest.approx(expected, abs=1e-8)


def test_the_gradient_of_the_response_loss_is_that_of_its_differences():
    generator = np.random.default_rng(0)
    data = build_topics(12, 0, holes=0.3)
    features_QE = generator.standard_normal((12, 4))
    weights = generator.standard_normal(4 + 4 + 3)
    score_QK = data.table.score_QK.astype(np.float64)
    arguments = features_QE, score_QK, data.table.present_QK
    _, gradient = compute_response_loss(weights, *arguments)
    expected = measure_gradient(lambda w: compute_response_loss(w, *arguments)[0], weights)
    assert gradient == pytest.approx(expected, abs=1e-8)


def make_trees(train, val):
    return BoostedTrees(train)


@pytest.mark.parametrize("fit", [SoftLabels, make_trees], ids=["soft labels", "trees"])
@pytest.mark.parametrize("holes", [0.0, 0.2])
def test_soft_labels_and_trees_learn_the_topic_and_heed_the_cost_weight(fit, holes):
    train, val, test = build_topics(300, 0, holes), build_topics(100, 1, holes), build_topics(80, 2)
    model = fit(train, val)
    predictor = model
    if isinstance(model, SoftLabels):
        predictor = ScoreWithCost(model, FixedPrediction([0, 0, 0], [0.1, 0.4, 1.0]))
    policy = PredictThenOptimise(predictor, train)
    assert list_picks(policy, test) == [0, 2] * 40
    assert set(list_picks(policy, test, cost_weight=5.0)) == {0}


def test_differences_of_soft_logits_are_differences_of_scores():
    data = build([[0.2, 0.7, 0.4]] * 20, np.ones((20, 3)), np.ones((20, 1)))
    logit_K = SoftLabels(data, data).predict_score(data.features_QF)[0]
    assert logit_K - logit_K[0] == pytest.approx([0, 0.5, 0.2], abs=2e-3)


def test_trees_predict_scores_and_costs_of_each_topic():
    train, test = build_topics(400, 0), build_topics(40, 2)
    score_QK, cost_QK = BoostedTrees(train).predict(test.features_QF)
    assert score_QK == pytest.approx(test.table.score_QK, abs=0.1)
    assert cost_QK == pytest.approx(test.normalised_cost_QK, abs=0.01)


def test_a_flag_adds_its_weighted_part_of_the_largest_value_to_the_loss():
    # losses .1 .2 .4, seconds 8 2 0: with latency weighted .4 they are .5 .3 .4
    data = build([[1, 1, 1]] * 2, [[1, 1, 1]] * 2, np.ones((2, 1)))
    predictor = FixedPrediction([0.9, 0.8, 0.6], [0, 0, 0])
    assert list_picks(LossWithFlags(predictor, data), data) == [0, 0]
    slow = LossWithFlags(predictor, data, {"latency": Flag([8, 2, 0], weight=0.4)})
    assert list_picks(slow, data) == [1, 1]
    both = {"latency": Flag([8, 2, 0], weight=0.4), "size": Flag([1, 9, 3], weight=0.3)}
    assert list_picks(LossWithFlags(predictor, data, both), data) == [2, 2]


def test_the_flag_of_cost_is_the_mean_train_cost_at_the_cost_weight():
    data = build([[1, 1]] * 2, [[1, 10]] * 2, np.ones((2, 1)))
    policy = LossWithFlags(FixedPrediction([0.5, 0.95], [9, 9]), data)
    assert list_picks(policy, data, 0.49) == [1, 1]  # .45 of loss against .9 of cost
    assert list_picks(policy, data, 0.51) == [0, 0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, 2], r"flag 'latency': needs one value for each of 3 candidates, got shape \(2,\)"),
        ([1, NAN, 2], "flag 'latency': the value of candidate 1 is nan"),
        ([1, 2, -1], "flag 'latency': the value of candidate 2 is -1.0"),
    ],
)
def test_flags_that_are_unknown_negative_or_too_few_are_refused(values, message):
    data = build_topics(10, 0)
    predictor = FixedPrediction([0, 0, 0], [0, 0, 0])
    with pytest.raises(RLRouteError, match=message):
        LossWithFlags(predictor, data, {"latency": Flag(values, weight=1.0)})


def test_radars_worked_example_of_success_and_information():
    success_K = compute_success([1.5], [0.5], [0.2, 1.4])[0]
    assert success_K == pytest.approx([0.389361, 0.794130], abs=5e-7)
    information_K = compute_information([1.5], [0.5], [0.2, 1.4])[0]
    assert information_K == pytest.approx([0.5350, 0.3678], abs=5e-5)


@pytest.mark.parametrize(
    ("weight", "worse", "straight_pick", "chebyshev_pick"),
    [(0.3, [0.1832, 0.42], 0, 0), (0.5, [0.3053, 0.30], 0, 1), (0.9, [0.5496, 0.1853], 1, 1)],
)
def test_radars_worked_example_of_both_rules(weight, worse, straight_pick, chebyshev_pick):
    success_QK = compute_success([1.5], [0.5], [0.2, 1.4])
    found = compute_worse_objective(success_QK, np.array([[0.1, 0.6]]), weight)[0]
    assert found == pytest.approx(worse, abs=5e-5)
    data = build([[1, 1]], [[1, 6]], np.ones((1, 1)))
    predictor = FixedPrediction(success_QK[0], [0.1, 0.6])
    cost_weight = (1 - weight) / weight
    assert list_picks(ChebyshevPick(predictor, data), data, cost_weight) == [chebyshev_pick]
    assert list_picks(PredictThenOptimise(predictor, data), data, cost_weight) == [straight_pick]


def test_item_response_recovers_difficulties_and_abilities():
    generator = np.random.default_rng(0)
    difficulty_Q = generator.uniform(-2, 2, 3000)
    success_QK = compute_success(np.full(3000, 1.5), difficulty_Q, [-1.0, 0.0, 1.0])
    score_QK = (generator.random((3000, 3)) < success_QK).astype(float)
    score_QK[generator.random((3000, 3)) < 0.2] = NAN
    score_QK[~np.isfinite(score_QK).any(1), 1] = 0
    data = build(score_QK, np.ones((3000, 3)), difficulty_Q[:, None])
    found_QK = ItemResponse(data, data).predict_score(data.features_QF)
    assert np.abs(found_QK - success_QK).mean() < 0.03
    assert (found_QK.argmax(1) == 2).all()


def test_a_candidate_without_train_outcome_is_refused_by_all():
    data = build([[1, NAN], [0, NAN]], np.ones((2, 2)), np.eye(2))
    for fit in (BoostedTrees, lambda train: ItemResponse(train, train)):
        with pytest.raises(RLRouteError, match="column 1 has no outcome"):
            fit(data)
