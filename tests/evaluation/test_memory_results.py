"""What memory-tier evaluations measure: exact means, failures, frontiers, information, seeds."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_examples import MODULES, WEIGHTS, make_evaluation, make_frame, make_policy, make_table

from rlroute.evaluation.memory_measures import MemoryFrame, MemoryPlays, measure_memory
from rlroute.evaluation.memory_results import MemoryEvaluation, MemoryModule, merge_seeds
from rlroute.evaluation.memory_table import (
    TierPlayed,
    TierTable,
    compute_information,
    find_reference,
    play_leaves,
    play_tiers,
)
from rlroute.evaluation.metrics import make_one_hot
from rlroute.types import RLRouteError

TWO = (MemoryModule("filter", "filter", ("Low", "High")),)


def make_tiny(score_QL: list[list[float]], cost_QL: list[list[float]]) -> TierTable:
    """Return a table of one module with two tiers; the answer costs 0.5 USD."""
    score = np.array(score_QL)
    hole = np.isnan(score)
    return TierTable(
        score_QL=score,
        cost_usd_QL=np.where(hole, np.nan, np.array(cost_QL)),
        answer_cost_usd_QL=np.where(hole, np.nan, 0.5),
        kind_Q=("a", "b", "a", "b")[: len(score)],
        history_Q=("one", "one", "two", "two")[: len(score)],
        query_QE=np.zeros((len(score), 2), np.float32),
        leaf_tier_LM=np.array([[0], [1]]),
        modules=TWO,
    )


TINY = make_tiny([[0, 1], [1, 1], [0, 0], [0, 1]], [[0, 2], [0, 4], [0, 2], [0, 4]])


def make_tiny_frame(**settings: object) -> MemoryFrame:
    """Return a frame for the tiny table, at weights 0 and 0.5 of a reference of 4 USD."""
    return MemoryFrame(
        data="tiny", modules=TWO, kind_Q=TINY.kind_Q, history_Q=TINY.history_Q,
        cost_weights=(0.0, 0.5), reference_usd=4.0, bootstrap=50, **settings,  # type: ignore[arg-type]
    )  # fmt: skip


def play_tiny(*leaf: int) -> TierPlayed:
    """Return what fixed leaves get on the tiny table."""
    return play_leaves(TINY, make_one_hot(leaf, 2))


def measure_tiny() -> MemoryEvaluation:
    """Return the comparison of a policy with the two static assignments and the oracle."""
    low, high, own = play_tiny(0, 0, 0, 0), play_tiny(1, 1, 1, 1), play_tiny(1, 0, 1, 1)
    best = play_tiny(1, 0, 0, 1)
    return measure_memory(
        [
            MemoryPlays("routed", "policy", (own, own)),
            MemoryPlays("all Low", "static", (low, low)),
            MemoryPlays("all High", "static", (high, high)),
            MemoryPlays("best static", "best_static", (high, low), (low, high)),
            MemoryPlays("oracle", "oracle", (best, best)),
        ],
        make_tiny_frame(),
        TINY,
    )


def test_the_numbers_of_a_tiny_comparison_are_those_of_a_hand_calculation():
    result = measure_tiny()
    first, second = result.subject.points
    assert first.quality.value == pytest.approx(0.75)
    assert first.cost_usd.value == pytest.approx(2.0)
    assert first.answer_cost_usd == pytest.approx(0.5)
    assert first.regret.value == pytest.approx(0.0)
    assert second.utility.value == pytest.approx(0.75 - 0.5 * 2 / 4)
    # The oracle leaves out the third question, which nothing answers: 1.5 USD in place of 2.
    assert second.regret.value == pytest.approx(0.5 * 0.5 / 4)
    assert second.oracle_share.value == pytest.approx(0.5 / 0.5625)
    assert second.cost_change_usd.value == 0
    assert first.cost_change_usd is None
    high = result.find("all High").points[1]
    assert high.lead.value == pytest.approx(0.5 - (0.75 - 0.5 * 3 / 4))
    assert first.lead is None


def test_the_gain_over_static_assignments_is_measured_at_the_same_cost():
    result = measure_tiny()
    # The static frontier goes from 0.25 for nothing to 0.75 for 3 USD: 0.5833 for 2 USD.
    assert result.subject.points[0].above_static.value == pytest.approx(0.75 - 0.25 - 0.5 * 2 / 3)
    half = next(level for level in result.levels if level.cost_usd == pytest.approx(1.5))
    assert half.static_quality == pytest.approx(0.5)
    assert half.quality == pytest.approx(0.25 + 0.5 * 1.5 / 2)
    assert half.gain.value == pytest.approx(0.125)
    assert half.headroom == pytest.approx(0.25)
    assert result.static_points == ((0.0, 0.25), (3.0, 0.75))


def test_aiq_is_the_mean_height_of_the_frontier_over_the_range_of_cost():
    result = measure_tiny()
    assert (result.cost_min_usd, result.cost_max_usd) == (0.0, 3.0)
    assert result.find("all Low").aiq.value == pytest.approx(0.25)
    assert result.find("best static").aiq.value == pytest.approx(0.5)
    assert result.subject.aiq.value == pytest.approx((2 * 0.5 + 0.75) / 3)
    lead = result.find("best static").aiq_lead
    assert lead.value == pytest.approx((2 * 0.5 + 0.75) / 3 - 0.5)


def test_a_failed_leaf_is_neither_cheap_nor_scored_and_is_counted():
    table = make_tiny([[np.nan, 1], [1, 1]], [[0, 2], [0, 2]])
    low = play_leaves(table, make_one_hot([0, 0], 2))
    assert np.isnan(low.score_Q[0])
    assert np.isnan(low.cost_usd_Q[0])
    assert np.isnan(low.answer_cost_usd_Q[0])
    assert low.failed_Q.tolist() == [1.0, 0.0]
    mixed = play_leaves(table, np.full((2, 2), 0.5))
    assert mixed.cost_usd_Q.tolist() == [2.0, 1.0]  # an expectation over what did not fail
    assert mixed.failed_Q.tolist() == [0.5, 0.0]
    frame = dataclasses.replace(make_tiny_frame(), kind_Q=("a", "b"), history_Q=("one", "two"))
    point = measure_memory([MemoryPlays("p", "policy", (low, low))], frame).subject.points[0]
    assert point.failed == 1
    assert point.questions == 2
    assert point.quality.value == 1.0


def test_live_runs_need_neither_statics_nor_an_oracle():
    tier_QM = np.array([[0], [1], [1], [0]])
    live = play_tiers([0, 1, np.nan, 1], [0, 4, 0, 1], [0.5] * 4, tier_QM, TWO)
    assert np.isnan(live.cost_usd_Q[2])
    other = play_tiers([0, 0, 1, 0], [0, 0, 1, 0], [0.5] * 4, tier_QM * 0, TWO)
    result = measure_memory(
        [MemoryPlays("p", "policy", (live, live)), MemoryPlays("q", "run", (other, other))],
        make_tiny_frame(),
    )
    point = result.subject.points[0]
    assert point.regret is None
    assert point.oracle_share is None
    assert point.above_static is None
    assert result.levels == ()
    assert result.find("q").points[0].lead.value == pytest.approx(2 / 3)  # of the three it shares
    assert point.shares == ((0.5, 0.5),)


def test_information_is_one_bit_where_two_kinds_get_different_tiers_and_none_where_alike():
    assert compute_information(np.eye(2), ["a", "b"]) == pytest.approx(1.0)
    assert compute_information(np.full((2, 2), 0.5), ["a", "b"]) == 0
    # Four kinds, one of which gets the second tier: the entropy of a quarter.
    share = np.eye(2)[[0, 0, 0, 1]]
    assert compute_information(share, list("abcd")) == pytest.approx(0.8112781, abs=1e-6)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2)), min_size=1, max_size=30))
def test_information_lies_between_nothing_and_the_entropy_of_the_tiers(rows):
    share_QK = np.eye(3)[[tier for _, tier in rows]]
    bits = compute_information(share_QK, [kind for kind, _ in rows])
    mean_K = share_QK.mean(axis=0)
    held_K = mean_K[mean_K > 0]
    assert 0 <= bits <= -(held_K * np.log2(held_K)).sum() + 1e-9


def test_questions_of_one_history_are_resampled_together():
    kind_Q, history_Q = ("a",) * 12, tuple(f"h{q // 2}" for q in range(12))
    frame = dataclasses.replace(make_tiny_frame(), kind_Q=kind_Q, history_Q=history_Q)
    weight_SQ = frame.weight_SQ
    assert frame.by_histories
    np.testing.assert_allclose(weight_SQ.sum(axis=1), 1)
    np.testing.assert_allclose(weight_SQ[0], 1 / 12)
    np.testing.assert_array_equal(weight_SQ[:, ::2], weight_SQ[:, 1::2])
    assert (weight_SQ[1:].std(axis=1) > 0).all()


def test_histories_with_many_questions_keep_their_weight_per_question():
    history_Q = ("h0",) * 6 + ("h1", "h2", "h3", "h4")
    frame = dataclasses.replace(make_tiny_frame(), kind_Q=("a",) * 10, history_Q=history_Q)
    value_Q = np.array([1.0] * 6 + [0.0] * 4)
    drawn_S = frame.weight_SQ @ value_Q
    assert drawn_S[0] == pytest.approx(0.6)
    assert drawn_S.min() == 0  # the large history is sometimes not drawn at all


def test_with_too_few_histories_questions_are_resampled_and_the_result_says_so():
    frame = make_tiny_frame()
    assert not frame.by_histories
    assert measure_tiny().resampled == "questions"
    assert (frame.weight_SQ[:, 0] != frame.weight_SQ[:, 1]).any()


def test_the_planted_need_of_each_kind_shows_in_the_shares():
    result = make_evaluation()
    point = result.subject.points[1]
    assert point.by_kind["temporal"].shares[2] == (0.0, 0.0, 1.0)
    assert point.by_kind["single"].shares[2] == (1.0, 0.0, 0.0)
    assert point.information[2] == pytest.approx(0.811, abs=1e-3)
    assert point.information[0] == 0
    assert result.find("all High").points[0].information == (0.0,) * 5
    assert result.find("oracle").points[1].regret.value == 0
    assert all(one.points[1].regret.value >= 0 for one in result.contenders)


def test_the_json_of_an_evaluation_holds_no_nan_also_when_calls_failed():
    plain = make_evaluation(failed=0.05).to_dict()
    text = json.dumps(plain, allow_nan=False)
    assert json.loads(text)["contenders"][0]["name"] == "routed"
    assert any(one["points"][0]["failed"] > 0 for one in plain["contenders"])


def test_the_same_seed_gives_the_same_evaluation():
    assert make_evaluation(60, 30) == make_evaluation(60, 30)


def test_seeds_merge_into_mean_least_and_most():
    table = make_table(60)
    frame = make_frame(table, find_reference(table), 20)
    low = play_leaves(table, make_one_hot(np.zeros(60, int), table.leaves))
    runs = [make_policy(table), dataclasses.replace(make_policy(table), plays=(low,) * 4)]
    evaluations = [measure_memory([run], frame) for run in runs]
    merged = merge_seeds(evaluations)
    first, second = (one.subject.points[0].quality.value for one in evaluations)
    quality = merged.contenders[0].points[0].quality
    assert merged.seeds == 2
    assert quality.mean == pytest.approx((first + second) / 2)
    assert (quality.low, quality.high) == (min(first, second), max(first, second))
    assert merged.contenders[0].points[0].regret is None
    json.dumps(merged.to_dict(), allow_nan=False)


def test_levels_of_cost_are_merged_too():
    merged = merge_seeds([measure_tiny(), measure_tiny()])
    assert [level.gain.mean for level in merged.levels] == [
        pytest.approx(level.gain.value) for level in measure_tiny().levels
    ]


def test_evaluations_that_do_not_belong_together_are_not_merged():
    result = measure_tiny()
    with pytest.raises(RLRouteError, match="cost_weights"):
        merge_seeds([result, dataclasses.replace(result, cost_weights=(0.0, 0.7))])
    other = dataclasses.replace(result, contenders=result.contenders[1:])
    with pytest.raises(RLRouteError, match="all Low"):
        merge_seeds([result, other])
    with pytest.raises(RLRouteError, match="at least one"):
        merge_seeds([])


def test_bad_frames_contenders_and_tables_are_refused_in_one_line():
    play = play_tiny(0, 0, 0, 0)
    with pytest.raises(RLRouteError, match="must rise"):
        dataclasses.replace(make_tiny_frame(), cost_weights=(0.5, 0.0))
    with pytest.raises(RLRouteError, match="above 0 USD"):
        dataclasses.replace(make_tiny_frame(), reference_usd=0.0)
    with pytest.raises(RLRouteError, match="1 plays"):
        measure_memory([MemoryPlays("p", "policy", (play,))], make_tiny_frame())
    with pytest.raises(RLRouteError, match="twice"):
        measure_memory([MemoryPlays("p", "policy", (play, play))] * 2, make_tiny_frame())
    with pytest.raises(RLRouteError, match="score_QL"):
        make_tiny([[0, 2]], [[0, 0]])
    with pytest.raises(RLRouteError, match="cost_usd_QL"):
        make_tiny([[0, 1]], [[0, -1]])
    with pytest.raises(RLRouteError, match="no assignment"):
        find_reference(make_tiny([[0, 1]], [[0, 0]]))
    failed = make_tiny([[np.nan, np.nan]] * 4, [[0, 0]] * 4)
    nothing = play_leaves(failed, make_one_hot([0] * 4, 2))
    with pytest.raises(RLRouteError, match="every question"):
        measure_memory([MemoryPlays("p", "policy", (nothing,) * 2)], make_tiny_frame())


def test_the_reference_is_the_mean_cost_of_the_dearest_assignment():
    assert find_reference(TINY) == 3.0
    assert len(MODULES) == 5
    assert make_table().take([0, 3]).kind_Q == ("single", "unanswerable")
    assert make_frame(make_table(), 1.0).cost_weights == WEIGHTS
