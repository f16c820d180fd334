"""The kernel start: worked numbers, holes, what it falls back to, new candidates and new prices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from table_examples import build, build_topics

from rlroute.data.routing_data import (
    ProfileConfig,
    RoutingData,
    build_candidate_features,
    fit_clusters,
    fit_feature_scale,
    measure_profiles,
)
from rlroute.policies.kernel_start import (
    KernelConfig,
    compute_kernel,
    draw_anchors,
    find_score_columns,
    fit_coefficients,
    fit_kernel_start,
    map_coefficients,
)
from rlroute.policies.mlp import CandidateScorer, ScorerConfig

NAN = np.nan


def profile(data: RoutingData, clusters: int = 4) -> tuple[RoutingData, np.ndarray]:
    """Return a split with measured candidate features, and the centres of its query clusters."""
    centroids_CF = fit_clusters(data.features_QF, ProfileConfig(clusters=clusters), seed=0)
    candidates = measure_profiles(data.table, data.features_QF, centroids_CF)
    features_KD = build_candidate_features(candidates, fit_feature_scale(candidates))
    table = replace(data.table, candidates=candidates)
    return replace(data, table=table, candidate_features_KD=features_KD), centroids_CF


def start_scorer(data: RoutingData, centroids_CF, config: KernelConfig) -> CandidateScorer:
    """Return an untrained network at the kernel start of a split."""
    start = fit_kernel_start(data, config, seed=0)
    scorer = CandidateScorer(
        ScorerConfig(
            features=data.features_QF.shape[1],
            clusters=len(centroids_CF),
            hidden=8,
            anchors=len(start.anchors_MF),
            decay=config.decay,
        )
    )
    scorer.centroids_CF.copy_(torch.as_tensor(centroids_CF))
    scorer.anchors_MF.copy_(torch.as_tensor(start.anchors_MF))
    scorer.start_MD.copy_(torch.as_tensor(start.weight_MD))
    return scorer.eval()


def estimate(scorer: CandidateScorer, features_QF, features_KD) -> np.ndarray:
    """Return the qualities [Q, K] that a network states."""
    features_QF = torch.as_tensor(np.asarray(features_QF, np.float32))
    mask_QK = torch.ones(len(features_QF), len(features_KD), dtype=torch.bool)
    weight_Q = torch.zeros(len(features_QF))
    with torch.no_grad():
        scores = scorer(features_QF, torch.as_tensor(features_KD), mask_QK, weight_Q)
    return scores.quality_BK.numpy()


def test_the_kernel_of_known_distances_has_known_values():
    kernel_QM = compute_kernel(
        np.array([[0.0, 0.0], [3.0, 4.0]], np.float32), np.array([[0.0, 0.0]], np.float32), 0.1
    )
    assert kernel_QM[:, 0] == pytest.approx([1.0, np.exp(-2.5)])


def test_two_queries_far_apart_are_each_shrunk_by_the_penalty():
    # kernel matrix = identity: (1 + penalty) a = deviation, so a = deviation / 3 at penalty 2
    data = build([[1, 0, 1], [0, 0, 1]], np.ones((2, 3)), 100 * np.eye(2))
    mean_K = np.array([0.5, 0.0, 1.0])
    coefficient_MK = fit_coefficients(data, data.features_QF, mean_K, KernelConfig(penalty=2.0))
    expected_MK = np.array([[0.5, 0, 0], [-0.5, 0, 0]]) / 3
    assert coefficient_MK == pytest.approx(expected_MK, abs=1e-6)


def test_a_hole_is_left_out_and_never_a_score_of_zero():
    # candidate a was never tried on the second query: its coefficient there is 0, not negative
    whole = build([[1, 0, 1], [0, 0, 1]], np.ones((2, 3)), 100 * np.eye(2))
    holed = build([[1, 0, 1], [NAN, 0, 1]], np.ones((2, 3)), 100 * np.eye(2))
    mean_K = np.array([0.5, 0.0, 1.0])
    found = [
        fit_coefficients(data, data.features_QF, mean_K, KernelConfig(penalty=2.0))
        for data in (whole, holed)
    ]
    assert found[1][1, 0] == pytest.approx(0, abs=1e-6)
    assert found[1][0, 0] == pytest.approx(0.5 / 3, abs=1e-6)
    assert found[1][:, 1:] == pytest.approx(found[0][:, 1:], abs=1e-6)


def test_a_hole_takes_no_part_in_the_shrinkage_either():
    # both queries lie on the one anchor; a was tried on the first only: .5 / (1 + 2), not / (2 + 2)
    data = build([[1, 0], [NAN, 0]], np.ones((2, 2)), np.ones((2, 2)))
    anchors_MF = np.ones((1, 2), np.float32)
    found_MK = fit_coefficients(data, anchors_MF, np.array([0.5, 0.4]), KernelConfig(penalty=2.0))
    assert found_MK[0] == pytest.approx([0.5 / 3, -0.8 / 4], abs=1e-5)


def test_anchors_are_drawn_without_repeats_and_depend_on_the_seed():
    config = KernelConfig(anchors=10)
    rows_M = draw_anchors(100, config, seed=1)
    assert len(set(rows_M.tolist())) == 10
    assert rows_M.tolist() == draw_anchors(100, config, seed=1).tolist()
    assert rows_M.tolist() != draw_anchors(100, config, seed=2).tolist()
    assert draw_anchors(4, config, seed=1).tolist() == [0, 1, 2, 3]


def test_the_map_gives_the_coefficients_back_and_reads_scores_only():
    generator = np.random.default_rng(0)
    features_QF = np.repeat(np.eye(4), 20, axis=0) + 0.01 * generator.standard_normal((80, 4))
    chance_QK = generator.random((4, 3)).repeat(20, axis=0)
    data, _ = profile(build(generator.random((80, 3)) < chance_QK, np.ones((80, 3)), features_QF))
    coefficient_MK = generator.standard_normal((5, 3))
    weight_MD = map_coefficients(coefficient_MK, data.candidate_features_KD)
    described_KD = data.candidate_features_KD[:, : weight_MD.shape[1]]
    error_MK = weight_MD @ described_KD.T - coefficient_MK
    assert np.abs(error_MK).max() < 0.05
    others = np.setdiff1d(
        np.arange(weight_MD.shape[1]), find_score_columns(data.candidate_features_KD.shape[1])
    )
    assert (weight_MD[:, others] == 0).all()


def test_the_network_starts_from_the_middle_of_cluster_mean_and_regression():
    data, centroids_CF = profile(build_topics(80, 1), clusters=2)
    config = KernelConfig(anchors=40, penalty=1.0)
    scorer = start_scorer(data, centroids_CF, config)
    start = fit_kernel_start(data, config, seed=0)
    described_KD = data.candidate_features_KD[:, : start.weight_MD.shape[1]]
    kernel_QM = compute_kernel(data.features_QF, start.anchors_MF, config.decay)
    mean_K = data.candidate_features_KD[:, 0]
    regression_QK = mean_K + kernel_QM @ (start.weight_MD @ described_KD.T)
    plain = ScorerConfig(features=2, clusters=2, hidden=8)
    cluster_scorer = CandidateScorer(plain)
    cluster_scorer.centroids_CF.copy_(torch.as_tensor(centroids_CF))
    cluster_QK = estimate(cluster_scorer, data.features_QF, data.candidate_features_KD)
    found_QK = estimate(scorer, data.features_QF, data.candidate_features_KD)
    assert found_QK == pytest.approx((cluster_QK + regression_QK) / 2, abs=1e-5)


def test_near_train_queries_the_start_knows_who_solves_them():
    data, centroids_CF = profile(build_topics(200, 2))
    scorer = start_scorer(data, centroids_CF, KernelConfig(anchors=100, penalty=1.0))
    quality_QK = estimate(scorer, np.eye(2), data.candidate_features_KD)
    assert quality_QK == pytest.approx(np.array([[1, 0, 0], [0, 0, 1]]), abs=0.1)


def test_far_from_all_train_queries_the_regression_falls_back_to_the_means():
    data, _ = profile(build_topics(200, 3))
    config = KernelConfig(anchors=100)
    start = fit_kernel_start(data, config, seed=0)
    kernel_QM = compute_kernel(np.array([[40.0, 40.0]], np.float32), start.anchors_MF, config.decay)
    assert (kernel_QM == 0).all()


def test_a_candidate_added_by_its_profile_is_judged_like_its_twin():
    data, centroids_CF = profile(build_topics(200, 4))
    scorer = start_scorer(data, centroids_CF, KernelConfig(anchors=100, penalty=1.0))
    features_KD = data.candidate_features_KD[[0, 1, 2, 0]]
    quality_QK = estimate(scorer, data.features_QF, features_KD)
    assert quality_QK[:, 3] == pytest.approx(quality_QK[:, 0], abs=1e-6)


def test_a_new_price_changes_no_quality():
    data, centroids_CF = profile(build_topics(200, 5))
    scorer = start_scorer(data, centroids_CF, KernelConfig(anchors=100, penalty=1.0))
    dearer_KD = data.candidate_features_KD.copy()
    dearer_KD[:, 1:5] += 3.0  # mean cost and the three prices
    before_QK = estimate(scorer, data.features_QF, data.candidate_features_KD)
    assert estimate(scorer, data.features_QF, dearer_KD) == pytest.approx(before_QK, abs=1e-6)
