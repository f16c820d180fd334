"""The baselines of memory-tier routing on a tree whose right choices are planted."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "evaluation"))

from memory_examples import MODULES, NEEDED, WEIGHTS, make_table

from rlroute.evaluation.memory_results import MemoryModule
from rlroute.evaluation.memory_table import TierTable, find_reference, play_leaves
from rlroute.evaluation.metrics import pick_oracle
from rlroute.policies.tier_baselines import (
    BestStatic,
    KindStatic,
    LogisticTiers,
    RandomTiers,
    RidgeLeaves,
    StaticTiers,
    TierClassifier,
    TierOracle,
    fit_tier_baselines,
    list_level_statics,
    play_baseline,
)
from rlroute.types import RLRouteError

TRAIN, VAL, TEST = make_table(240, 20, 1), make_table(80, 8, 2), make_table(120, 12, 3)
REFERENCE = find_reference(TRAIN)


def compute_mean_utility(probability_QL: np.ndarray, table: TierTable, weight: float) -> float:
    """Return the mean expected utility."""
    return float(np.nanmean(play_leaves(table, probability_QL).compute_utility(weight, REFERENCE)))


@pytest.fixture(scope="module")
def baselines():
    return {one.name: one for one in fit_tier_baselines(TRAIN, VAL, REFERENCE)}


def test_every_baseline_gives_probabilities_of_leaves(baselines):
    assert list(baselines) == [
        *("all Low", "all Mid", "all High", "random", "best static"),
        *("best static per kind", "classifier", "oracle"),
    ]
    for one in baselines.values():
        for weight in WEIGHTS:
            probability_QL = one.pick(TEST, weight)
            assert probability_QL.shape == (120, 243)
            np.testing.assert_allclose(probability_QL.sum(axis=1), 1)


def test_uniform_assignments_take_one_tier_everywhere(baselines):
    for name, tier in (("all Low", 0), ("all Mid", 1), ("all High", 2)):
        assert TRAIN.leaf_tier_LM[baselines[name].leaf].tolist() == [tier] * 5


def test_modules_with_two_tiers_have_no_middle_and_mixed_names_are_described():
    modules = (MemoryModule("a", "filter", ("x", "y")), MemoryModule("b", "summary", ("z", "y")))
    leaf_LM = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    found = list_level_statics(leaf_LM, modules)
    assert [(one.name, one.leaf) for one in found] == [("all cheapest", 0), ("all y", 3)]


def test_random_is_the_exact_mean_over_all_leaves():
    played = play_leaves(TEST, RandomTiers().pick(TEST, 0.3))
    np.testing.assert_allclose(played.score_Q, TEST.score_QL.mean(axis=1))
    np.testing.assert_allclose(played.cost_usd_Q, TEST.cost_usd_QL.mean(axis=1))


@pytest.mark.parametrize("weight", WEIGHTS)
def test_the_best_static_is_the_best_of_all_on_train(weight):
    chosen = BestStatic(TRAIN, REFERENCE).choose(weight)
    utility_L = TRAIN.compute_utility(weight, REFERENCE).mean(axis=0)
    assert utility_L[chosen] == pytest.approx(utility_L.max())
    ties_L = utility_L >= utility_L.max() - 1e-9
    assert TRAIN.cost_usd_QL.mean(axis=0)[chosen] == TRAIN.cost_usd_QL.mean(axis=0)[ties_L].min()


def test_the_static_frontier_holds_the_choices_of_all_weights():
    best = BestStatic(TRAIN, REFERENCE)
    frontier = best.list_frontier()
    assert {best.choose(weight) for weight in (0.001, 0.1, 0.3, 0.9, 50.0)} <= set(frontier)
    assert TRAIN.leaf_tier_LM[frontier[0]].tolist() == [0] * 5


def test_a_leaf_that_failed_everywhere_is_never_chosen():
    holes = TRAIN.score_QL.copy()
    best = BestStatic(TRAIN, REFERENCE).choose(0.1)
    holes[:, best] = np.nan
    table = dataclasses.replace(TRAIN, score_QL=holes)
    assert BestStatic(table, REFERENCE).choose(0.1) != best
    assert best not in BestStatic(table, REFERENCE).list_frontier()
    leaf_Q = RidgeLeaves(table, REFERENCE, 1.0).predict(TEST.query_QE, 0.1)
    assert best not in leaf_Q
    assert best not in TierOracle(REFERENCE).pick(table, 0.1).argmax(axis=1)


def test_the_best_static_per_kind_takes_high_where_the_kind_needs_it():
    leaf_Q = KindStatic(TRAIN, REFERENCE).pick(TEST, 0.1).argmax(axis=1)
    for kind, module in NEEDED.items():
        tier_M = TEST.leaf_tier_LM[leaf_Q[TEST.kind_Q.index(kind)]]
        assert tier_M.tolist() == [2 if m == module else 0 for m in range(5)]


def test_a_kind_that_train_does_not_hold_gets_the_best_static():
    part = TRAIN.take(np.array(TRAIN.kind_Q) != "topic")
    unknown = dataclasses.replace(TEST, kind_Q=("new",) * len(TEST.kind_Q))
    leaf_Q = KindStatic(part, REFERENCE).pick(unknown, 0.3).argmax(axis=1)
    assert set(leaf_Q) == {BestStatic(part, REFERENCE).choose(0.3)}


@pytest.mark.parametrize("weight", WEIGHTS)
def test_nobody_beats_the_oracle_and_it_is_the_best_leaf_of_each_question(weight, baselines):
    best = compute_mean_utility(baselines["oracle"].pick(TEST, weight), TEST, weight)
    assert best == pytest.approx(TEST.compute_utility(weight, REFERENCE).max(axis=1).mean())
    for one in baselines.values():
        assert compute_mean_utility(one.pick(TEST, weight), TEST, weight) <= best + 1e-12


def test_the_oracle_passes_over_failed_leaves_and_ties_go_to_the_cheapest():
    holed = make_table(60, 6, 4, failed=0.5)
    leaf_Q = TierOracle(REFERENCE).pick(holed, 0.0).argmax(axis=1)
    assert holed.present_QL[np.arange(60), leaf_Q].all()
    expected = pick_oracle(holed.score_QL, holed.cost_usd_QL, holed.present_QL, 0.0)
    cost_Q = holed.cost_usd_QL[np.arange(60), leaf_Q]
    np.testing.assert_allclose(cost_Q, holed.cost_usd_QL[np.arange(60), expected])


@pytest.mark.parametrize("weight", [0.1, 0.3, 0.9])
def test_the_classifier_beats_the_best_static_where_embeddings_tell_the_kind(weight, baselines):
    learnt = compute_mean_utility(baselines["classifier"].pick(TEST, weight), TEST, weight)
    static = compute_mean_utility(baselines["best static"].pick(TEST, weight), TEST, weight)
    assert learnt > static + 0.02


def test_the_classifier_takes_what_is_best_on_val():
    classifier = TierClassifier(TRAIN, VAL, REFERENCE)
    weight = 0.3
    ways = [
        *classifier.ridges,
        *(LogisticTiers(TRAIN, REFERENCE, weight, strength) for strength in (1.0, 30.0)),
    ]
    utility = [
        np.mean(
            VAL.compute_utility(weight, REFERENCE)[np.arange(80), way.predict(VAL.query_QE, weight)]
        )
        for way in ways
    ]
    chosen = classifier.choose(weight).predict(VAL.query_QE, weight)
    reached = VAL.compute_utility(weight, REFERENCE)[np.arange(80), chosen].mean()
    assert reached == pytest.approx(max(utility))
    assert len(set(np.round(utility, 6))) > 1


def test_a_logistic_classifier_learns_which_module_a_kind_needs():
    # Clean kinds: only High is ever right, so that the oracle's tiers are a function of the kind.
    score = np.ones_like(TRAIN.score_QL)
    for q, kind in enumerate(TRAIN.kind_Q):
        if NEEDED[kind] is not None:
            score[q] = TRAIN.leaf_tier_LM[:, NEEDED[kind]] == 2
    clean = dataclasses.replace(TRAIN, score_QL=score)
    leaf_Q = LogisticTiers(clean, REFERENCE, 0.3, 30.0).predict(TEST.query_QE, 0.3)
    wanted = [[2 if m == NEEDED[kind] else 0 for m in range(5)] for kind in TEST.kind_Q]
    assert (TEST.leaf_tier_LM[leaf_Q] == wanted).all(axis=1).mean() > 0.95


def test_ridge_with_holes_equals_a_fit_on_what_did_not_fail():
    holes = TRAIN.score_QL.copy()
    holes[:50, 7] = np.nan
    holed = RidgeLeaves(dataclasses.replace(TRAIN, score_QL=holes), REFERENCE, 1.0)
    part = RidgeLeaves(TRAIN.take(np.arange(50, 240)), REFERENCE, 1.0)
    whole = RidgeLeaves(TRAIN, REFERENCE, 1.0)
    np.testing.assert_allclose(holed.slope_2LE[:, 7], part.slope_2LE[:, 7], atol=1e-9)
    np.testing.assert_allclose(holed.slope_2LE[:, 8], whole.slope_2LE[:, 8], atol=1e-9)


def test_splits_in_which_everything_failed_are_refused():
    nothing = dataclasses.replace(TRAIN, score_QL=np.full_like(TRAIN.score_QL, np.nan))
    with pytest.raises(RLRouteError, match="every run"):
        BestStatic(nothing, REFERENCE)
    with pytest.raises(RLRouteError, match="val split"):
        TierClassifier(TRAIN, nothing, REFERENCE)


def test_a_played_baseline_has_a_play_for_each_weight_and_statics_have_one():
    static = play_baseline(StaticTiers("all Low", 0), TEST, WEIGHTS)
    assert len(static.plays) == 4
    assert len({id(play) for play in static.plays}) == 1
    best = BestStatic(TRAIN, REFERENCE)
    played = play_baseline(best, TEST, WEIGHTS)
    assert len(played.more) == len(best.list_frontier())
    assert played.kind == "best_static"
    assert TEST.modules == MODULES
