"""Actions beyond one of n: computed outcomes by hand, and what holds for any table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from action_tables import NAN, build_table, parse_actions, read_column
from hypothesis import given
from hypothesis import strategies as st

from rlroute.data.actions import MOST_ACTIONS, build_actions
from rlroute.types import Member, Prices, RLRouteError

SCORE_QK = [[1, 0, 1], [0, 0, 1], [0, 1, NAN], [0, 0, 0]]


def test_a_subset_takes_the_best_pays_for_all_and_waits_for_the_slowest():
    table = build_table(SCORE_QK)
    actions = parse_actions({"kind": "subsets", "sizes": [1, 2, 3], "combine": "best_of"})
    wider = build_actions(table, actions)
    ids = [candidate.id for candidate in wider.candidates]
    assert ids == ["a", "b", "c", "a+b", "a+c", "b+c", "a+b+c"]
    assert read_column(wider, "a+b") == [1, 0, 1, 0]
    assert read_column(wider, "a+b", "cost_usd") == [3, 3, 3, 3]
    assert read_column(wider, "a+b", "prompt_tokens") == [30, 30, 30, 30]
    assert read_column(wider, "a+b", "completion_tokens") == [3, 3, 3, 3]
    assert read_column(wider, "a+b", "latency_seconds") == [6, 6, 6, 6]
    np.testing.assert_array_equal(read_column(wider, "b+c"), [1, 1, NAN, 0])
    np.testing.assert_array_equal(read_column(wider, "b+c", "cost_usd"), [6, 6, NAN, 6])
    assert read_column(wider, "b+c", "present") == [True, True, False, True]
    np.testing.assert_array_equal(wider.score_QK[:, :3], table.score_QK)
    subset = wider.candidates[6]
    assert subset.kind == "subset"
    assert subset.prices == Prices(3.0, 6.0, 1.5)
    assert subset.limits.context_tokens == 100
    assert [member.candidate_id for member in subset.asked] == ["a", "b", "c"]
    assert [member.candidate_id for member in wider.candidates[0].asked] == ["a"]


def test_votes_and_means_are_worked_out_by_hand():
    table = build_table(SCORE_QK)
    votes = {"kind": "subsets", "sizes": [2, 3], "combine": "vote", "tie_score": 0.25}
    wider = build_actions(table, parse_actions(votes, {"kind": "skip", "cost_usd": 0}))
    assert read_column(wider, "a+b") == [0.25, 0, 0.25, 0]
    np.testing.assert_array_equal(read_column(wider, "a+c"), [1, 0.25, NAN, 0])
    np.testing.assert_array_equal(read_column(wider, "a+b+c"), [1, 0, NAN, 0])
    means = {"kind": "subsets", "sizes": [3, 1], "combine": "mean"}
    wider = build_actions(table, parse_actions(means))
    np.testing.assert_allclose(read_column(wider, "a+b+c"), [2 / 3, 1 / 3, NAN, 0], rtol=1e-6)


def test_named_candidates_are_combined_and_without_size_1_no_longer_picked_alone():
    table = build_table([[0.5, 0.2, 1]])
    pairs = {"kind": "subsets", "sizes": [2], "combine": "best_of", "candidates": ["c", "a"]}
    wider = build_actions(table, parse_actions(pairs))
    assert [candidate.id for candidate in wider.candidates] == ["b", "a+c"]
    assert wider.score_QK.tolist() == [[np.float32(0.2), 1.0]]


def test_skip_asks_nobody_at_the_declared_score_and_cost():
    skip = {"kind": "skip", "cost_usd": 0.25, "score": 0.5}
    wider = build_actions(build_table(SCORE_QK), parse_actions(skip))
    assert [candidate.id for candidate in wider.candidates] == ["a", "b", "c", "skip"]
    assert read_column(wider, "skip") == [0.5] * 4
    assert read_column(wider, "skip", "cost_usd") == [0.25] * 4
    assert read_column(wider, "skip", "present") == [True] * 4
    assert read_column(wider, "skip", "latency_seconds") == [0] * 4
    assert wider.candidates[3].asked == ()
    assert wider.candidates[3].prices.compute_cost(0, 0) == 0.25


def test_efforts_are_read_as_pairs_and_go_into_subsets():
    table = build_table(SCORE_QK, ids=("gpt@high", "gpt@low", "plain"))
    both = [{"kind": "subsets", "sizes": [1, 2], "combine": "best_of"}, {"kind": "efforts"}]
    wider = build_actions(table, parse_actions(*both))
    assert [candidate.kind for candidate in wider.candidates] == [
        *("effort", "effort", "model", "subset", "subset", "subset")
    ]
    assert wider.candidates[0].asked == (Member("gpt@high", "gpt", "high"),)
    assert wider.candidates[4].asked == (
        Member("gpt@high", "gpt", "high"),
        Member("plain", "plain", None),
    )
    # a pair without an outcome for a query stays masked
    assert not wider.present_QK[2, 2]
    slash = build_table([[1.0, 0.5]], ids=("a/b/high", "a/b/low"))
    wider = build_actions(slash, parse_actions({"kind": "efforts", "separator": "/"}))
    assert wider.candidates[1].asked == (Member("a/b/low", "a/b", "low"),)


def test_one_of_n_is_the_table_itself():
    table = build_table(SCORE_QK)
    assert build_actions(table, ()) is table


def test_a_subset_that_no_train_query_has_is_no_action():
    splits = ["train", "train", "test"]
    table = build_table([[1, 0, NAN], [NAN, 0, 1], [1, 1, 1]], splits=splits)
    pairs = {"kind": "subsets", "sizes": [1, 2], "combine": "best_of"}
    wider = build_actions(table, parse_actions(pairs))
    assert [candidate.id for candidate in wider.candidates] == ["a", "b", "c", "a+b", "b+c"]


PAIRS = {"kind": "subsets", "sizes": [1, 2], "combine": "best_of"}


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ([PAIRS, PAIRS], "kind 'subsets' stands twice"),
        ([PAIRS | {"sizes": [2, 2]}], "a size stands twice"),
        ([PAIRS | {"sizes": []}], "sizes"),
        ([PAIRS | {"sizes": [0]}], "sizes"),
        ([PAIRS | {"combine": "refined"}], "outcomes (a file) goes with combine: refined"),
        ([PAIRS | {"outcomes": "x.csv"}], "outcomes (a file) goes with combine: refined"),
        ([PAIRS | {"combine": "vote"}], "2 voters can tie"),
        ([PAIRS | {"tie_score": 0}], "tie_score goes with combine: vote only"),
        ([{"kind": "skip"}], "cost_usd"),
        ([{"kind": "skip", "cost_usd": -1}], "cost_usd"),
        ([{"kind": "skip", "cost_usd": 0, "score": 2}], "score"),
        ([{"kind": "escalate"}], "escalate"),
    ],
)
def test_bad_settings_are_refused_in_one_line(actions, message):
    with pytest.raises(RLRouteError) as caught:
        parse_actions(*actions)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("ids", "actions", "message"),
    [
        ("abc", [PAIRS | {"candidates": ["d"]}], "unknown candidate 'd' (it has: a, b, c)"),
        ("abc", [PAIRS | {"sizes": [4]}], "no subset of 4 of 3 candidates"),
        ("abc", [PAIRS | {"combine": "vote", "tie_score": 0}], "query 'q1' has 0.5 for 'b'"),
        (("a+", "b", "c"), [PAIRS], "candidate 'a+' holds '+'"),
        ("abc", [{"kind": "efforts"}], "no candidate is named MODEL@EFFORT (it has: a, b, c)"),
        (("a@", "b", "c"), [{"kind": "efforts"}], "'a@' names no effort"),
        (("@a", "b", "c"), [{"kind": "efforts"}], "'@a' names no model"),
        (("skip", "t", "u"), [{"kind": "skip", "cost_usd": 0}], "'skip' is a candidate of the"),
        ("abc", [PAIRS | {"sizes": [3]}], "query 'q2' has an outcome of no action"),
    ],
)
def test_actions_that_do_not_fit_the_table_are_refused_in_one_line(ids, actions, message):
    table = build_table([[1, 0, 1], [0, 0.5, 1], [0, 1, NAN]], ids=tuple(ids))
    with pytest.raises(RLRouteError) as caught:
        build_actions(table, parse_actions(*actions))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_many_actions_are_refused_with_their_number():
    ids = tuple(f"m{k:02}" for k in range(24))
    table = build_table(np.ones((2, 24)), ids=ids)
    with pytest.raises(RLRouteError, match=r"2,048 actions, at most 2,000 .*lower sizes"):
        build_actions(table, parse_actions(PAIRS | {"sizes": [1, 3]}))
    assert len(build_actions(table, parse_actions(PAIRS)).candidates) == 300 < MOST_ACTIONS


TABLES = st.integers(2, 5).flatmap(
    lambda width: st.lists(
        st.lists(st.sampled_from([0.0, 0.25, 1.0, NAN]), min_size=width, max_size=width),
        min_size=1,
        max_size=6,
    )
)


@given(TABLES, st.integers(0, 2**16))
def test_costs_add_up_best_of_grows_with_the_set_and_holes_propagate(score_QK, seed):
    costs = np.random.default_rng(seed).uniform(1e-6, 1e-2, len(score_QK[0])).astype(np.float32)
    table = build_table(score_QK, ids=("a", "b", "c", "d", "e"), costs=costs)
    sizes = list(range(1, len(score_QK[0]) + 1))
    skip = {"kind": "skip", "cost_usd": 0}
    wider = build_actions(table, parse_actions(PAIRS | {"sizes": sizes}, skip))
    column = {candidate.id: k for k, candidate in enumerate(table.candidates)}
    by_members = {
        frozenset(column[one.candidate_id] for one in candidate.asked): k
        for k, candidate in enumerate(wider.candidates)
    }
    for members, k in by_members.items():
        taken = sorted(members)
        present_Q = table.present_QK[:, taken].all(axis=1)
        np.testing.assert_array_equal(wider.present_QK[:, k], present_Q)
        for array in (wider.score_QK, wider.cost_usd_QK, wider.latency_seconds_QK):
            np.testing.assert_array_equal(np.isnan(array[:, k]), ~present_Q)
        total_Q = table.cost_usd_QK[:, taken].sum(axis=1, dtype=np.float64)[present_Q]
        np.testing.assert_allclose(wider.cost_usd_QK[present_Q, k], total_Q, rtol=1e-6)
        for other, j in by_members.items():
            if members < other:
                both_Q = wider.present_QK[:, j]  # and so is the smaller one, if it was measured
                assert (wider.score_QK[both_Q, j] >= wider.score_QK[both_Q, k]).all()
                assert (wider.cost_usd_QK[both_Q, j] >= wider.cost_usd_QK[both_Q, k]).all()


@given(TABLES)
def test_a_vote_of_all_is_what_counting_says(score_QK):
    table = build_table(score_QK, ids=("a", "b", "c", "d", "e"))
    binary = replace(table, score_QK=np.where(table.score_QK == 0.25, 1, table.score_QK))
    width = len(table.candidates)
    vote = {"kind": "subsets", "sizes": [1, width], "combine": "vote", "tie_score": 0.5}
    wider = build_actions(binary, parse_actions(vote, {"kind": "skip", "cost_usd": 0}))
    if width + 2 > len(wider.candidates):  # no query has all answers
        assert not binary.present_QK.all(axis=1).any()
        return
    for q in np.flatnonzero(binary.present_QK.all(axis=1)):
        right = int((binary.score_QK[q] == 1).sum())
        expected = 0.5 if 2 * right == width else float(2 * right > width)
        assert wider.score_QK[q, width] == expected
