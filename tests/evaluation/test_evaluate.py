"""The comparison of policies: conventions, pairing, operating points, JSON."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from evaluation_examples import build_data, build_topics, build_worked_example
from rich.console import Console

from rlroute.evaluation.comparison import describe_result, render_comparison
from rlroute.evaluation.evaluate import (
    choose_cost_weight,
    compute_validation_metrics,
    evaluate_policies,
)
from rlroute.evaluation.metrics import make_one_hot
from rlroute.policies.baselines import AlwaysCandidate, Oracle, RandomCandidate, fit_baselines
from rlroute.types import RLRouteError

WEIGHTS = (0.0, 0.1, 0.5, 2.0)


class FixedPicks:
    """Picks the same candidates at any cost weight."""

    def __init__(self, name, picks):
        self.name, self.picks = name, picks

    def compute_probabilities(self, data, cost_weight):
        return make_one_hot(self.picks, len(data.table.candidates)).astype(np.float32)


@pytest.fixture(scope="module")
def worked():
    data = build_worked_example()
    router = FixedPicks("router", [0, 2, 2, 1])
    return evaluate_policies([router, Oracle()], data, data, [0.0, 0.5, 5.0], bootstrap=50)


@pytest.fixture(scope="module")
def topics():
    train, val = build_topics(400, 0, "train"), build_topics(200, 1, "val")
    test = build_topics(300, 2)
    knn, *others = fit_baselines(train, val)[3:]
    policies = [knn, *others, *fit_baselines(train, val)[:3]]
    return evaluate_policies(policies, train, test, WEIGHTS, val=val, bootstrap=200, seed=1)


def test_the_worked_example_gives_its_numbers(worked):
    router, oracle = worked.policies
    assert router.points[0].quality.value == 0.75
    assert router.points[0].cost_usd.value == 6.25
    assert worked.zero_router.aiq.value == pytest.approx(0.6250)
    assert router.frontier.aiq.value == pytest.approx(0.6771, abs=5e-5)
    assert router.frontier.quality_neutral_cost.value == pytest.approx(0.625)
    assert router.frontier.cost_saved.value == pytest.approx(0.375)
    assert router.gap_closed == 0
    # At weight 0 it spends 4 for 1.00, at 0.5 (0.05 per unit of cost) the same, at 5.0 it picks S.
    assert [point.cost_usd.value for point in oracle.points] == [4.0, 4.0, 1.0]
    assert router.regrets[1].value == pytest.approx(0.3625)


def test_references_and_singles_of_the_worked_example(worked):
    assert worked.best_single == "model-2"
    assert worked.cheapest == "model-0"
    assert [single.on_hull for single in worked.singles] == [True, False, True]
    assert {one.name: one.quality for one in worked.references} == pytest.approx(
        {"quality oracle": 1.0, "task oracle": 0.75, "random": 7 / 12}
    )


def test_the_hull_includes_the_cheapest_single_candidate(worked):
    assert worked.policies[0].frontier.cost_usd == (1.0, 6.25)
    assert worked.policies[0].frontier.quality == (0.5, 0.75)


def test_a_policy_without_a_knob_is_one_point_with_regret_at_every_weight(worked):
    router = worked.policies[0]
    assert [point.cost_weight for point in router.points] == [None]
    assert len(router.regrets) == 3


def test_selection_shares_of_the_worked_example(worked):
    point = worked.policies[0].points[0]
    assert point.share_K == (0.25, 0.25, 0.5)
    assert point.entropy == pytest.approx(1.5 * np.log(2))
    assert worked.policies[0].operating_points[0].share_by_task == {"all": (0.25, 0.25, 0.5)}


def test_the_best_single_against_itself_is_zero_with_an_interval_of_zero(topics):
    best = next(policy for policy in topics.policies if policy.name == "best single")
    gain, saved = best.points[0].quality_gain, best.frontier.cost_saved
    assert (gain.value, gain.low, gain.high) == pytest.approx((0, 0, 0), abs=1e-9)
    assert not gain.excludes_zero
    assert (saved.value, saved.low, saved.high) == pytest.approx((0, 0, 0), abs=1e-9)


def test_a_router_that_knows_the_topic_beats_the_hull_of_the_singles(topics):
    assert topics.subject.name == "kNN-40"
    assert topics.subject.frontier.aiq_gain.low > 0
    assert topics.subject.points[0].quality_gain.low > 0
    assert topics.subject.frontier.cost_saved.low > 0


def test_intervals_hold_their_values(topics):
    for policy in topics.policies:
        for one in (policy.frontier.aiq, *policy.regrets, *(p.quality for p in policy.points)):
            assert one.low - 1e-9 <= one.value <= one.high + 1e-9


def test_the_lead_of_the_subject_is_the_difference_of_aiq(topics):
    assert topics.subject.subject_lead is None
    for policy in topics.policies[1:]:
        lead = topics.subject.frontier.aiq.value - policy.frontier.aiq.value
        assert policy.subject_lead.value == pytest.approx(lead)


def test_operating_points_keep_their_cap_on_validation(topics):
    first, capped, tight = topics.subject.operating_points
    assert first.budget_usd is None
    assert tight.budget_usd == pytest.approx(0.3 * capped.budget_usd)
    assert tight.cost_usd.value < capped.cost_usd.value <= 1.1 * capped.budget_usd
    assert sorted(tight.share_by_task) == ["topic 0", "topic 1"]


def test_the_cost_weight_is_the_best_on_validation_within_the_budget():
    data = build_worked_example()
    weights = [0.0, 0.5, 5.0]
    assert choose_cost_weight(Oracle(), data, weights, budget_usd=4.0) == 0.0
    assert choose_cost_weight(Oracle(), data, weights, budget_usd=3.9) == 5.0
    assert choose_cost_weight(Oracle(), data, weights, budget_usd=0.5) is None


def test_a_policy_that_never_fits_a_cap_has_no_operating_point_there():
    data = build_worked_example()
    always = AlwaysCandidate("model-2")
    result = evaluate_policies([always], data, data, [0.0], val=data, bootstrap=5)
    assert [point.budget_usd for point in result.subject.operating_points] == [None, 10.0]


def test_the_order_of_rows_changes_no_number():
    train, test = build_topics(100, 0, "train"), build_topics(80, 1)
    order = np.random.default_rng(0).permutation(80)
    shuffled = build_data(
        test.table.score_QK[order],
        test.table.cost_usd_QK[order],
        [test.table.queries[q].task for q in order],
        test.features_QF[order],
    )
    one, other = (
        evaluate_policies([Oracle(), RandomCandidate()], train, data, WEIGHTS, bootstrap=5)
        for data in (test, shuffled)
    )
    for left, right in zip(one.policies, other.policies, strict=True):
        assert left.frontier.aiq.value == pytest.approx(right.frontier.aiq.value, abs=1e-9)
        assert left.frontier.cost_usd == pytest.approx(right.frontier.cost_usd)


def test_the_same_seed_gives_the_same_result(topics):
    train, test = build_topics(50, 0, "train"), build_topics(40, 1)
    one, other, third = (
        evaluate_policies([Oracle()], train, test, WEIGHTS, bootstrap=20, seed=seed)
        for seed in (3, 3, 4)
    )
    assert one == other
    assert one.subject.frontier.aiq.value == third.subject.frontier.aiq.value
    assert one.subject.frontier.aiq != third.subject.frontier.aiq


def test_holes_are_masked_all_the_way():
    train, val = build_topics(200, 0, "train", holes=0.2), build_topics(100, 1, "val", holes=0.2)
    test = build_topics(150, 2, holes=0.2)
    result = evaluate_policies(
        fit_baselines(train, val), train, test, WEIGHTS, val=val, bootstrap=20
    )
    for policy in result.policies:
        assert np.isfinite(policy.frontier.aiq.value)
        assert all(regret.value >= 0 for regret in policy.regrets)


@pytest.mark.filterwarnings("error")
def test_a_free_best_single_candidate_leaves_nothing_to_save():
    data = build_data([[1, 0], [1, 1], [1, 0]], np.tile([0, 10], (3, 1)))
    result = evaluate_policies(
        [RandomCandidate(), AlwaysCandidate("model-0")], data, data, [0.0], bootstrap=20
    )
    random, best = result.policies
    assert best.frontier.cost_saved.value == 0
    assert best.operating_points[0].cost_ratio.value == 1
    assert random.operating_points[0].cost_ratio.value == np.inf
    json.dumps(result.to_dict(), allow_nan=False)


def test_two_candidates_bring_the_two_model_metrics():
    data = build_data([[0, 1], [1, 1], [0, 1], [1, 0]], np.tile([1, 10], (4, 1)))
    result = evaluate_policies([Oracle(), RandomCandidate()], data, data, [0, 9], bootstrap=5)
    oracle, random = (policy.two_model for policy in result.policies)
    assert random.average_gap_recovered == pytest.approx(0.5)
    assert random.call_threshold_80 == pytest.approx(0.8)
    # (0, 0.50), (0.5, 1.00), (1, 0.75): PGR 0, 2, 1.
    assert oracle.average_gap_recovered == pytest.approx(1.25)
    assert oracle.call_threshold_50 == pytest.approx(0.125)


def test_two_model_metrics_are_undefined_when_strong_is_not_stronger():
    data = build_data([[1, 1], [0, 0]], np.tile([1, 10], (2, 1)))
    result = evaluate_policies([RandomCandidate()], data, data, [0], bootstrap=5)
    assert result.subject.two_model.average_gap_recovered is None


def test_validation_metrics_agree_with_the_evaluation(worked):
    data = build_worked_example()
    found = compute_validation_metrics(Oracle(), data, [0.0, 0.5, 5.0])
    oracle = worked.policies[1]
    assert found["aiq"] == pytest.approx(oracle.frontier.aiq.value)
    assert found["quality"] == 1.0
    assert found["cost_usd"] == 4.0
    assert found["regret_oracle"] == 0
    # Utilities: 1.00, then 0.800 of the worked example, then 0.5 - 5 * 1 / 10.
    assert found["utility"] == pytest.approx((1.0 + 0.8 + 0.0) / 3)


@pytest.mark.parametrize("weights", [[], [-0.1], [np.nan], [np.inf]])
def test_bad_cost_weights_are_refused(weights):
    data = build_worked_example()
    with pytest.raises(RLRouteError, match="cost weights"):
        evaluate_policies([Oracle()], data, data, weights, bootstrap=5)


def test_an_evaluation_of_nothing_or_across_candidates_is_refused():
    data = build_worked_example()
    with pytest.raises(RLRouteError, match="at least one policy"):
        evaluate_policies([], data, data, [0.0])
    other = build_data([[1, 0]], [[1, 2]])
    with pytest.raises(RLRouteError, match="train has candidates"):
        evaluate_policies([Oracle()], data, other, [0.0])


def test_the_result_is_plain_json_without_infinities(topics):
    plain = json.loads(json.dumps(topics.to_dict(), allow_nan=False))
    assert plain["format_version"] == 2
    assert plain["table"] == "example"
    cheapest = next(policy for policy in plain["policies"] if policy["name"] == "cheapest")
    assert cheapest["frontier"]["quality_neutral_cost"]["value"] is None


def test_the_headline_names_the_best_single_and_says_what_is_not_beaten(topics, worked):
    text = " ".join(describe_result(topics))
    assert "better than the best single candidate, model-2" in text
    assert "It beats the hull of the single candidates" in text
    assert "does not clearly differ from ridge" in text
    data = build_worked_example()
    worse = FixedPicks("worse", [2, 0, 0, 2])
    big = [build_data(np.tile(data.table.score_QK, (50, 1)), np.tile([1, 4, 10], (200, 1)))] * 2
    worse.picks = worse.picks * 50
    found = describe_result(evaluate_policies([worse], *big, [0.0], bootstrap=50))
    assert "worse than the best single candidate" in found[0]
    assert "It does NOT beat the hull of the single candidates" in found[-1]


def test_the_headline_warns_of_a_router_that_is_one_candidate_in_disguise():
    data = build_worked_example()
    result = evaluate_policies([AlwaysCandidate("model-1")], data, data, [0.0], bootstrap=5)
    assert "sends 100% of the queries to model-1" in describe_result(result)[-1]


def test_the_comparison_prints_one_aligned_row_per_policy(topics):
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render_comparison(topics))
    lines = console.export_text().splitlines()
    names = [policy.name for policy in topics.policies] + ["hull of singles"]
    rows = {name: line for line in lines for name in names if line.startswith(name + "  ")}
    assert sorted(rows) == sorted(names)
    assert next(iter(rows)) == "kNN-40"
    assert [*rows][-2:] == ["oracle", "hull of singles"]
    # The decimal points of quality stand in one column, and nothing is cut.
    assert len({row.index(".") for row in rows.values()}) == 1
    assert "…" not in "".join(lines)
