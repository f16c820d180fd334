from __future__ import annotations

import dataclasses
import json

import gymnasium
import numpy as np
import pytest

import rlroute.envs  # noqa: F401 - registers the environments
from rlroute.data.encoders import TfidfConfig
from rlroute.data.prepare import compute_table_digest, prepare_table
from rlroute.data.routing_data import (
    FeatureScale,
    ProfileConfig,
    assign_clusters,
    average_by_cluster,
    build_candidate_features,
    fit_clusters,
    fit_feature_scale,
    measure_profiles,
)
from rlroute.data.table import write_table
from rlroute.types import Prices, RLRouteError

WORDS = ["count the apples", "count the pears", "sort these words", "sort those words"]


@pytest.fixture(scope="module")
def worded_table(tiny_table):
    """The tiny table with texts that share words, so that TF-IDF has something to hold on to."""
    queries = tuple(
        dataclasses.replace(query, text=f"{WORDS[row % 4]} number {row}")
        for row, query in enumerate(tiny_table.queries)
    )
    return dataclasses.replace(tiny_table, queries=queries)


def prepare(table):
    return prepare_table(table, TfidfConfig(dimension=8), ProfileConfig(clusters=2), seed=0)


def test_profiles_are_measured_on_the_train_split_and_skip_holes(tiny_data):
    large, small, tool = (item.profile for item in tiny_data.table.candidates)
    assert large.mean_score == pytest.approx(4.5 / 6)
    assert small.mean_score == pytest.approx(3 / 6)
    assert tool.mean_score == pytest.approx(3 / 5)  # five outcomes: the hole counts neither way
    assert (large.mean_cost_usd, tool.mean_cost_usd) == pytest.approx((0.004, 0.0))


def test_the_latency_of_a_profile_is_the_mean_of_what_was_measured(tiny_table):
    train = tiny_table.select_split("train")
    seconds_QK = train.latency_seconds_QK.copy()
    seconds_QK[:2, 0] = 1.0, 2.0
    timed = dataclasses.replace(train, latency_seconds_QK=seconds_QK)
    features_QF = np.eye(len(train.queries), dtype=np.float32)
    profiles = [item.profile for item in measure_profiles(timed, features_QF, features_QF[:1])]
    assert [profile.latency_seconds for profile in profiles] == [1.5, None, None]


def test_means_of_clusters_are_shrunk_as_far_as_chance_explains_them():
    # cluster means 0.75 and 0.25 (n = 4 each), mean 0.5; within = (0.75 + 0.75) / 6 = 0.25,
    # mean square between = 8 * 0.0625 / 1 = 0.5, between = (0.5 - 0.25) / 4 = 0.0625,
    # kept = 4 * 0.0625 / (4 * 0.0625 + 0.25) = 0.5; the empty cluster gets the mean
    value_N = np.float32([1, 1, 1, 0, 1, 0, 0, 0])
    mean_C = average_by_cluster(value_N, np.array([0, 0, 0, 0, 2, 2, 2, 2]), 3)
    np.testing.assert_allclose(mean_C, [0.625, 0.5, 0.375], rtol=1e-6)


def test_clusters_that_differ_by_nothing_but_chance_get_the_overall_mean():
    value_N = np.float32([1, 0, 1, 0, 1, 0])
    mean_C = average_by_cluster(value_N, np.array([0, 0, 1, 1, 2, 2]), 3)
    np.testing.assert_allclose(mean_C, 0.5)
    alone_C = average_by_cluster(np.float32([1, 0]), np.array([0, 1]), 2)
    np.testing.assert_allclose(alone_C, 0.5)  # one query each: nothing to tell chance by


def test_clusters_without_spread_keep_their_means():
    mean_C = average_by_cluster(np.float32([1, 1, 0, 0]), np.array([0, 0, 1, 1]), 2)
    np.testing.assert_allclose(mean_C, [1, 0])


def test_the_leading_columns_are_mean_score_and_normalised_mean_cost(tiny_data):
    np.testing.assert_allclose(tiny_data.candidate_features_KD[:, 0], [0.75, 0.5, 0.6], rtol=1e-6)
    np.testing.assert_allclose(
        tiny_data.candidate_features_KD[:, 1], [1, 0.008 / 6 / 0.004, 0], rtol=1e-6
    )
    assert np.isfinite(tiny_data.candidate_features_KD).all()


def test_the_other_columns_are_standardised_over_the_candidates(tiny_data):
    rest_KD = tiny_data.candidate_features_KD[:, 2 : 2 + 3 + 2 * 2]
    np.testing.assert_allclose(rest_KD.mean(axis=0), 0, atol=1e-5)
    spread_D = rest_KD.std(axis=0)
    assert np.all((abs(spread_D - 1) < 1e-3) | (spread_D < 1e-5))


def test_the_last_columns_are_score_and_normalised_cost_per_cluster(tiny_data):
    for candidate, row_D in zip(
        tiny_data.table.candidates, tiny_data.candidate_features_KD, strict=True
    ):
        profile = candidate.profile
        np.testing.assert_allclose(row_D[-4:-2], profile.score_C, rtol=1e-6)
        expected_C = profile.cost_usd_C / tiny_data.cost_reference_usd
        np.testing.assert_allclose(row_D[-2:], expected_C, rtol=1e-6)


def test_clusters_are_the_nearest_centroids_and_no_more_than_different_texts():
    features_QF = np.float32([[1, 0], [0.98, 0.2], [0, 1], [0.1, 0.99], [1, 0]])
    centroids_CF = fit_clusters(features_QF, ProfileConfig(clusters=2), seed=0)
    cluster_Q = assign_clusters(features_QF, centroids_CF)
    assert cluster_Q[0] == cluster_Q[1] == cluster_Q[4] != cluster_Q[2] == cluster_Q[3]
    assert len(fit_clusters(features_QF, ProfileConfig(clusters=9), seed=0)) == 4


def test_splits_share_candidate_features_and_cut_rows_alike(tiny_table, tiny_splits):
    assert {split: len(data.table.queries) for split, data in tiny_splits.items()} == {
        "train": 6,
        "val": 3,
        "test": 3,
    }
    for split, data in tiny_splits.items():
        assert (data.table.split_Q == split).all()
        assert len(data.features_QF) == len(data.table.queries)
        assert data.candidate_features_KD is tiny_splits["train"].candidate_features_KD
    ids = [query.id for data in tiny_splits.values() for query in data.table.queries]
    assert ids == [query.id for query in tiny_table.queries]


def test_normalised_cost_is_in_units_of_the_dearest_candidates_mean(tiny_data):
    np.testing.assert_allclose(tiny_data.normalised_cost_QK[0], [1, 0.25, 0], rtol=1e-6)
    assert np.isnan(tiny_data.normalised_cost_QK[1, 2])


def test_test_outcomes_change_no_profile_and_no_feature(worded_table):
    test_Q = worded_table.split_Q == "test"
    score_QK = np.where(test_Q[:, None], 1 - worded_table.score_QK, worded_table.score_QK)
    cost_QK = np.where(test_Q[:, None], 9, worded_table.cost_usd_QK).astype(np.float32)
    changed = dataclasses.replace(worded_table, score_QK=score_QK, cost_usd_QK=cost_QK)
    before, after = prepare(worded_table).splits["test"], prepare(changed).splits["test"]
    np.testing.assert_array_equal(before.candidate_features_KD, after.candidate_features_KD)
    np.testing.assert_array_equal(before.features_QF, after.features_QF)
    assert before.cost_reference_usd == after.cost_reference_usd


def test_a_candidate_without_a_train_outcome_is_refused(tiny_table):
    train = tiny_table.select_split("train")
    present_QK = train.present_QK.copy()
    present_QK[:, 1] = False
    holed = dataclasses.replace(train, present_QK=present_QK)
    with pytest.raises(RLRouteError, match="'small' has no outcome in the train split"):
        measure_profiles(holed, np.eye(6, 4, dtype=np.float32), np.eye(2, 4, dtype=np.float32))


def test_a_pool_in_which_nothing_costs_is_refused(tiny_data):
    free = [
        dataclasses.replace(item, profile=dataclasses.replace(item.profile, mean_cost_usd=0.0))
        for item in tiny_data.table.candidates
    ]
    with pytest.raises(RLRouteError, match="all candidates cost 0 USD"):
        fit_feature_scale(free)


def test_a_candidate_without_a_profile_has_no_features(tiny_table, tiny_data):
    scale = fit_feature_scale(tiny_data.table.candidates)
    with pytest.raises(RLRouteError, match="candidate 'large' has no measured profile"):
        build_candidate_features(tiny_table.candidates, scale)


def test_the_scale_survives_json_and_gives_the_same_features(tiny_data):
    candidates = tiny_data.table.candidates
    scale = fit_feature_scale(candidates)
    restored = FeatureScale.from_dict(json.loads(json.dumps(scale.to_dict())))
    np.testing.assert_array_equal(
        build_candidate_features(candidates, scale), build_candidate_features(candidates, restored)
    )


def test_a_repriced_candidate_changes_its_own_row_only(tiny_data):
    large, small, tool = tiny_data.table.candidates
    scale = fit_feature_scale((large, small, tool))
    dearer = dataclasses.replace(small, prices=Prices(5.0, 10.0))
    before = build_candidate_features((large, small, tool), scale)
    after = build_candidate_features((large, dearer, tool), scale)
    np.testing.assert_array_equal(before[[0, 2]], after[[0, 2]])
    assert (before[1] != after[1]).sum() == 2  # the logarithms of the two prices


def test_preparing_encodes_every_query_and_is_repeatable(worded_table):
    first, second = prepare(worded_table), prepare(worded_table)
    for split, data in first.splits.items():
        np.testing.assert_array_equal(data.features_QF, second.splits[split].features_QF)
        assert np.isfinite(data.features_QF).all()
    assert first.candidates[0].profile is not None


def test_the_digest_follows_what_a_table_says(worded_table):
    digest = compute_table_digest(worded_table)
    assert digest == compute_table_digest(worded_table)
    score_QK = worded_table.score_QK.copy()
    score_QK[0, 0] = 0.5
    renamed = dataclasses.replace(worded_table.queries[3], text="another")
    split_Q = worded_table.split_Q.copy()
    split_Q[0] = "val"
    large, small, tool = worded_table.candidates
    repriced = (large, dataclasses.replace(small, prices=Prices(9, 9)), tool)
    changed = [
        dataclasses.replace(worded_table, score_QK=score_QK),
        dataclasses.replace(worded_table, queries=(renamed, *worded_table.queries[1:])),
        dataclasses.replace(worded_table, split_Q=split_Q),
        dataclasses.replace(worded_table, candidates=repriced),
    ]
    digests = {compute_table_digest(table) for table in changed}
    assert len(digests | {digest}) == 5


def test_gymnasium_makes_the_environment_from_a_table_on_disk(worded_table, tmp_path):
    write_table(worded_table, tmp_path / "mine")
    arguments = {
        "table": str(tmp_path / "mine"),
        "split": "val",
        "encoder": {"kind": "tfidf", "dimension": 8},
        "profile": {"clusters": 2},
        "cost_weight": {"max": 2},
    }
    environment = gymnasium.make("rlroute.envs:rlroute/SingleTurn-v0", **arguments).unwrapped
    observation, info = environment.reset(seed=0)
    assert info["query_id"] in {"q06", "q07", "q08"}
    assert observation["candidates"].shape[0] == 3
    assert 0 <= observation["cost_weight"][0] <= 2
