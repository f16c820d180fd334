"""Tiers in lock-step: what lanes see, what they pay, what a budget allows, and failures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tier_worlds import PRICES, ArithmeticPipeline, HashEncoder, grade, make_questions, make_tree

from rlroute.envs.memory_tiers import TierEpisodes
from rlroute.memory.live import LiveOutcomes
from rlroute.types import RLRouteError

RAGGED = (2, 3, 2, 4)  # modules with two to four tiers
REFERENCE = 0.05
TREE = make_tree(8)
RAGGED_TREE = make_tree(8, RAGGED)
WIDTH = HashEncoder.dimension


def make_episodes(tree=TREE, **fields) -> TierEpisodes:
    return TierEpisodes(tree, reference_usd=REFERENCE, **fields)


def play(episodes: TierEpisodes, tier_BM) -> list:
    """Play the episodes and return the views before each decision."""
    views = []
    for action_B in np.asarray(tier_BM).T:
        views.append(episodes.observe())
        episodes.act(action_B)
    return views


# --- Observations ---------------------------------------------------------------------------------


def test_features_are_question_state_and_extras_by_hand():
    episodes = make_episodes()
    tiers = [[2, 0, 1, 2, 1]]
    episodes.start(np.array([3]), np.array([0.5], dtype=np.float32))
    views = play(episodes, tiers)
    assert [view.module for view in views] == [0, 1, 2, 3, 4]
    assert episodes.features == views[0].features_BF.shape[1] == 2 * WIDTH + 3 + 15
    index_1, tier_1M = np.array([3]), np.array(tiers)
    filtered = PRICES[2] * 4  # the filter runs at once,
    extracted = PRICES[0] * 3 + PRICES[1] * 3 + PRICES[2] * 3  # the extractors after the last
    spent = [0, filtered, filtered, filtered, filtered + extracted]
    chosen = np.zeros((5, 3))
    for step, view in enumerate(views):
        row = view.features_BF[0]
        assert np.array_equal(row[:WIDTH], TREE.query_QE[3])
        assert np.array_equal(row[WIDTH : 2 * WIDTH], TREE.look(index_1, step, tier_1M)[0])
        assert row[2 * WIDTH :][:3] == pytest.approx(
            [spent[step] / REFERENCE, np.log(1.5), step / 5], rel=1e-6
        )
        assert np.array_equal(row[2 * WIDTH + 3 :], chosen.ravel())
        chosen[step, tiers[0][step]] = 1
        assert view.mask_BK.all()
        assert view.cost_weight_B.tolist() == [0.5]


def test_extractors_are_decided_from_one_state_and_what_one_chose_is_known_to_the_next():
    episodes = make_episodes()
    episodes.start(np.array([3, 3]), np.zeros(2, dtype=np.float32))
    views = play(episodes, [[1, 0, 0, 0, 0], [1, 2, 0, 0, 0]])
    states = [view.features_BF[:, WIDTH : 2 * WIDTH] for view in views[1:4]]
    assert np.array_equal(states[0], states[1])
    assert np.array_equal(states[1], states[2])
    assert np.array_equal(views[1].features_BF[0], views[1].features_BF[1])
    assert not np.array_equal(views[2].features_BF[0], views[2].features_BF[1])


def test_after_the_last_decision_there_is_no_state_and_no_mask():
    episodes = make_episodes(RAGGED_TREE)
    episodes.start(np.array([0]), np.zeros(1, dtype=np.float32))
    play(episodes, [[1, 2, 1, 3]])
    assert episodes.ended
    view = episodes.observe()
    assert view.module == 4
    assert not view.features_BF[:, WIDTH : 2 * WIDTH].any()
    assert view.mask_BK.all()
    assert view.features_BF[0, 2 * WIDTH + 3 :].reshape(4, 4).argmax(axis=1).tolist() == [
        1,
        2,
        1,
        3,
    ]


def test_tiers_that_a_module_lacks_are_masked_and_refused():
    episodes = make_episodes(RAGGED_TREE)
    episodes.start(np.array([0, 1]), np.zeros(2, dtype=np.float32))
    for tiers in RAGGED:
        mask_BK = episodes.observe().mask_BK
        assert mask_BK.tolist() == [[tier < tiers for tier in range(4)]] * 2
        for wrong in (tiers, 4, -1):
            allowed = ", ".join(map(str, range(tiers)))
            with pytest.raises(ValueError, match=rf"action {wrong} of lane 1 .*{allowed}\)"):
                episodes.act(np.array([0, wrong]))
        episodes.act(np.array([0, tiers - 1]))
    with pytest.raises(ValueError, match="over"):
        episodes.act(np.array([0, 0]))
    assert episodes.end().tier_BM.tolist() == [[0, 0, 0, 0], [1, 2, 1, 3]]


# --- Ends -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tree", [TREE, RAGGED_TREE], ids=["243 leaves", "ragged"])
def test_ends_are_the_leaves_of_the_tree_in_every_bit(tree):
    leaves, questions = tree.facts.leaves, len(tree.questions)
    episodes = make_episodes(tree)
    index_B = np.repeat(np.arange(questions), leaves)
    episodes.start(index_B, np.zeros(len(index_B), dtype=np.float32))
    play(episodes, np.tile(tree.facts.list_leaves(), (questions, 1)))
    ends = episodes.end()
    assert np.array_equal(ends.cost_usd_B, tree.leaf_cost_QL.ravel())
    assert np.array_equal(ends.score_B, tree.leaf_score_QL.ravel())
    assert np.array_equal(ends.answer_cost_usd_B, tree.answer_cost_QL.ravel())


def test_an_end_is_not_told_before_it_is_there():
    episodes = make_episodes()
    episodes.start(np.array([0]), np.zeros(1, dtype=np.float32))
    with pytest.raises(ValueError, match="5 modules are not decided yet"):
        episodes.end()


@pytest.mark.parametrize("bounds", [None, TREE.find_largest_costs()], ids=["free", "budget"])
def test_a_failed_lane_goes_on_is_worth_nothing_and_leaves_others_alone(bounds):
    failing = make_tree(8, failing=[(0, 1, "q2")])
    tiers = [[1, 0, 2, 1, 2]] * 3
    seen, ends = [], []
    for tree in (TREE, failing):
        episodes = make_episodes(tree, bound_usd_MK=bounds)
        episodes.start(np.array([1, 2, 3]), np.ones(3, dtype=np.float32))
        seen.append(np.stack([view.features_BF for view in play(episodes, tiers)], axis=1))
        ends.append(episodes.end())
    assert np.isfinite(seen[1]).all()
    assert np.array_equal(seen[0][[0, 2]], seen[1][[0, 2]])
    assert not seen[1][1, 1:, WIDTH : 2 * WIDTH + 1].any()  # neither state nor money
    for name in ("score_B", "cost_usd_B", "answer_cost_usd_B"):
        value_B, sound_B = getattr(ends[1], name), getattr(ends[0], name)
        assert np.isnan(value_B).tolist() == [False, True, False]
        assert np.array_equal(value_B[[0, 2]], sound_B[[0, 2]])


def test_live_outcomes_make_the_same_episodes_as_the_tree():
    live = LiveOutcomes(ArithmeticPipeline(RAGGED), make_questions(8), HashEncoder(), grade)
    tier_BM = RAGGED_TREE.facts.list_leaves()[::3]
    index_B = np.arange(len(tier_BM)) % 8
    runs = []
    for outcomes in (RAGGED_TREE, live):
        episodes = make_episodes(outcomes)
        episodes.start(index_B, np.linspace(0, 1, len(index_B), dtype=np.float32))
        views = play(episodes, tier_BM)
        runs.append([*[view.features_BF for view in views], *vars(episodes.end()).values()])
    for of_tree, of_live in zip(*runs, strict=True):
        assert np.array_equal(of_tree, of_live)


@pytest.mark.parametrize("reference", [0.0, -1.0, np.inf, np.nan])
def test_a_reference_that_is_no_scale_is_refused(reference):
    with pytest.raises(RLRouteError, match="reference_usd"):
        TierEpisodes(TREE, reference_usd=reference)


# --- Budgets --------------------------------------------------------------------------------------

BOUNDS = RAGGED_TREE.find_largest_costs()
CHEAPEST = float(BOUNDS.min(axis=1).sum())  # what the cheapest way through costs at most
DEAREST = float(np.where(np.isinf(BOUNDS), 0, BOUNDS).max(axis=1).sum())


@settings(max_examples=80)
@given(
    st.lists(st.floats(CHEAPEST, DEAREST), min_size=8, max_size=8),
    st.lists(st.integers(0, 3), min_size=4, max_size=4),
)
def test_no_wish_passes_a_cap_that_the_cheapest_way_fits_into(caps, wishes):
    episodes = make_episodes(RAGGED_TREE, bound_usd_MK=BOUNDS)
    episodes.start(np.arange(8), np.zeros(8, dtype=np.float32), np.array(caps))
    for wish in wishes:
        mask_BK = episodes.observe().mask_BK
        assert mask_BK.any(axis=1).all()
        distance_BK = np.where(mask_BK, np.abs(np.arange(4) - wish), 9)
        episodes.act(distance_BK.argmin(axis=1))
    assert (episodes.end().cost_usd_B <= np.array(caps) + 1e-11).all()


@pytest.mark.parametrize(("missing", "allowed"), [(0.0, True), (2e-12, False)])
def test_a_tier_that_just_fits_beside_the_cheapest_of_later_modules_is_allowed(missing, allowed):
    cap = BOUNDS[0, 1] + BOUNDS[1:].min(axis=1).sum() - missing
    episodes = make_episodes(RAGGED_TREE, bound_usd_MK=BOUNDS)
    episodes.start(np.array([0]), np.zeros(1, dtype=np.float32), np.array([cap]))
    assert episodes.observe().mask_BK[0].tolist() == [True, allowed, False, False]


def test_the_cheapest_tier_may_act_under_any_cap_and_nothing_else_under_none_left():
    episodes = make_episodes(RAGGED_TREE, bound_usd_MK=BOUNDS)
    episodes.start(np.array([0, 1]), np.zeros(2, dtype=np.float32), np.array([0.0, np.inf]))
    for tiers in RAGGED:
        mask_BK = episodes.observe().mask_BK
        assert mask_BK.sum(axis=1).tolist() == [1, tiers]
        assert mask_BK[0, 0]
        episodes.act(np.array([0, tiers - 1]))


def test_extractors_that_are_chosen_but_not_run_yet_count_against_the_budget():
    bound_usd_MK = np.array([[1.0, 2.0]] * 4)
    tree = make_tree(2, (2, 2, 2, 2))
    episodes = TierEpisodes(tree, reference_usd=10.0, bound_usd_MK=bound_usd_MK)
    episodes.start(np.array([0]), np.zeros(1, dtype=np.float32), np.array([4.504]))
    left = []
    for action, dear in ((0, False), (1, True), (0, False), (0, True)):
        view = episodes.observe()
        assert view.mask_BK[0].tolist() == [True, dear]
        left.append(float(view.features_BF[0, -1]) * 10)
        episodes.act(np.array([action]))
    filtered, extracted = PRICES[0] * 4, PRICES[1] * 5 + PRICES[0] * 5  # what they really cost
    left_by_hand = [4.504, 4.504 - filtered, 4.504 - filtered - 2, 4.504 - filtered - extracted]
    assert left == pytest.approx(left_by_hand, rel=1e-6)


def test_what_is_left_of_the_budget_is_a_feature_up_to_two_references():
    reference = 0.1
    episodes = TierEpisodes(TREE, reference_usd=reference, bound_usd_MK=TREE.find_largest_costs())
    caps = np.array([0.15, 1.0, np.inf, 0.0])
    episodes.start(np.zeros(4, dtype=np.int64), np.zeros(4, dtype=np.float32), caps)
    views = play(episodes, [[0, 0, 0, 0, 0]] * 4)
    assert episodes.features == make_episodes().features + 1
    assert views[0].features_BF[:, -1].tolist() == pytest.approx([1.5, 2.0, 2.0, 0.0])
    assert views[1].features_BF[0, -1] == pytest.approx((0.15 - PRICES[0] * 4) / reference)


def test_bounds_and_caps_that_do_not_fit_are_refused():
    with pytest.raises(RLRouteError, match=r"\(2, 3\), and there are \(modules, tiers\) \(5, 3\)"):
        make_episodes(bound_usd_MK=np.zeros((2, 3)))
    bound_usd_MK = np.ones((5, 3))
    bound_usd_MK[3, 1] = np.inf
    with pytest.raises(RLRouteError, match="inf for tier 1 of module 3 is no bound"):
        make_episodes(bound_usd_MK=bound_usd_MK)
    with pytest.raises(ValueError, match="a cap needs bound_usd_MK"):
        make_episodes().start(np.array([0]), np.zeros(1, dtype=np.float32), np.array([1.0]))
