"""Where a tier policy starts: measured assignments by kind of question, their best completions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rlroute.policies.tier_profiles import (
    TierProfileConfig,
    TierProfiles,
    TierStart,
    TierStartShape,
    measure_tier_profiles,
)
from rlroute.policies.tier_scorer import TierScorer, TierScorerConfig

REFERENCE = 0.002  # USD
WIDTH = 12


def make_start(counts: tuple[int, ...], score_CL, cost_CL, centroids_CP) -> TierStart:
    """Return a start whose directions are the embedding's own axes."""
    clusters, width = np.shape(centroids_CP)
    shape = TierStartShape(clusters=clusters, directions=width, counts=counts)
    start = TierStart(shape, width)
    arrays = (np.eye(width), centroids_CP, score_CL, cost_CL)
    start.set_profiles(TierProfiles(*(np.asarray(one, dtype=np.float32) for one in arrays)))
    return start


def ask(start: TierStart, query_NE, weight: float, chosen: list[list[int]], module: int):
    """Return start values [N, K], each row having chosen these tiers of the modules before."""
    counts = start.shape.counts
    chosen_NMK = np.zeros((len(query_NE), len(counts), max(counts)), dtype=np.float32)
    for row, tiers in enumerate(chosen):
        chosen_NMK[row, range(len(tiers)), tiers] = 1
    found = start(
        torch.as_tensor(np.asarray(query_NE, dtype=np.float32)),
        torch.full((len(query_NE),), weight),
        torch.as_tensor(chosen_NMK),
        torch.full((len(query_NE),), module),
    )
    return found.numpy()


def make_questions(count: int, seed: int = 0):
    """Return embeddings of two kinds, and the kinds: what is loudest in them is not the kind."""
    rng = np.random.default_rng(seed)
    kind_Q = np.arange(count) % 2
    query_QE = rng.normal(0, 0.05, (count, WIDTH))
    query_QE[np.arange(count), rng.integers(3, WIDTH, count)] += 1.0  # a name
    query_QE[:, 0] += 0.3 * (2 * kind_Q - 1)
    return query_QE.astype(np.float32), kind_Q


def measure(query_QE, score_QL, cost_QL, **fields) -> TierProfiles:
    config = TierProfileConfig.model_validate({"clusters": 2, "directions": 2} | fields)
    return measure_tier_profiles(query_QE, score_QL, cost_QL, REFERENCE, config, seed=0)


def find_clusters(profiles: TierProfiles, query_QE) -> np.ndarray:
    clusters, directions = profiles.centroids_CP.shape
    leaves = profiles.score_CL.shape[1]
    shape = TierStartShape(clusters=clusters, directions=directions, counts=(leaves,))
    start = TierStart(shape, query_QE.shape[1])
    start.set_profiles(profiles)
    return start.find_clusters(torch.as_tensor(query_QE)).numpy()


# --- Start values ---------------------------------------------------------------------------------


def test_a_tier_is_worth_the_best_that_can_still_come_of_it():
    # two modules of two tiers; leaves in order: 00, 01, 10, 11
    score_CL = [[0.2, 0.9, 0.5, 0.6], [0.1, 0.2, 0.3, 0.4]]
    cost_CL = [[0.0, 0.5, 0.1, 0.7], [0.0, 0.1, 0.2, 0.3]]
    start = make_start((2, 2), score_CL, cost_CL, [[0.0], [1.0]])
    query_NE = [[0.1], [0.9]]
    first_NK = ask(start, query_NE, 0.0, [[], []], module=0)
    np.testing.assert_allclose(first_NK, [[0.9, 0.6], [0.2, 0.4]], rtol=1e-6)
    dear_NK = ask(start, query_NE, 1.0, [[], []], module=0)
    np.testing.assert_allclose(dear_NK, [[0.4, 0.4], [0.1, 0.1]], rtol=1e-6)
    last_NK = ask(start, query_NE, 1.0, [[1], [0]], module=1)
    np.testing.assert_allclose(last_NK, [[0.4, -0.1], [0.1, 0.1]], rtol=1e-6, atol=1e-7)


@given(st.integers(0, 2**32 - 1), st.sampled_from([(2, 3, 2), (3, 3, 3), (2, 2, 2, 4)]))
def test_start_values_are_those_of_going_through_all_assignments(seed, counts):
    rng = np.random.default_rng(seed)
    leaves, clusters, module = int(np.prod(counts)), 3, int(rng.integers(len(counts)))
    score_CL, cost_CL = rng.random((clusters, leaves)), rng.random((clusters, leaves))
    start = make_start(counts, score_CL, cost_CL, np.eye(clusters))
    cluster_N, weight = rng.integers(clusters, size=5), float(rng.random())
    chosen = [[int(rng.integers(count)) for count in counts[:module]] for _ in cluster_N]
    found_NK = ask(start, np.eye(clusters)[cluster_N], weight, chosen, module)
    assignments = list(itertools.product(*(range(count) for count in counts)))
    for row, (cluster, tiers) in enumerate(zip(cluster_N, chosen, strict=True)):
        utility_L = score_CL[cluster] - weight * cost_CL[cluster]
        for tier in range(counts[module]):
            begun = (*tiers, tier)
            best = max(
                utility_L[leaf]
                for leaf, one in enumerate(assignments)
                if one[: module + 1] == begun
            )
            assert found_NK[row, tier] == pytest.approx(best, abs=1e-5)


def test_rows_of_several_modules_are_scored_as_they_are_alone():
    rng = np.random.default_rng(3)
    start = make_start((2, 3), rng.random((2, 6)), rng.random((2, 6)), np.eye(2))
    query_NE = np.eye(2)[[0, 1, 1]]
    chosen_NMK = torch.zeros(3, 2, 3)
    chosen_NMK[:, 0, 1] = 1
    module_N = torch.tensor([1, 0, 1])
    mixed = start(torch.as_tensor(query_NE).float(), torch.full((3,), 0.4), chosen_NMK, module_N)
    for row, module in enumerate(module_N.tolist()):
        chosen = [[1]] if module else [[]]
        alone_1K = ask(start, query_NE[row : row + 1], 0.4, chosen, module)
        tiers = start.shape.counts[module]
        np.testing.assert_array_equal(mixed[row, :tiers], alone_1K[0, :tiers])


# --- Measuring ------------------------------------------------------------------------------------


def test_questions_are_grouped_by_what_their_scores_depend_on_and_not_by_names():
    query_QE, kind_Q = make_questions(400)
    luck_Q = np.random.default_rng(4).random(400) < 0.5  # nothing tells when the last one is right
    score_QL = np.stack([kind_Q == 0, kind_Q == 1, np.ones(400), luck_Q], axis=1)
    cost_QL = np.tile([0.001, 0.001, 0.004, 0.001], (400, 1))
    profiles = measure(query_QE, score_QL.astype(np.float32), cost_QL, directions=1)
    other_QE, other_Q = make_questions(200, seed=5)
    cluster_Q = find_clusters(profiles, other_QE)
    assert max((cluster_Q == other_Q).mean(), (cluster_Q != other_Q).mean()) > 0.97
    kind_C = [other_Q[cluster_Q == cluster].mean() for cluster in (0, 1)]
    np.testing.assert_allclose(profiles.score_CL[:, 1], kind_C, atol=0.1)
    np.testing.assert_allclose(profiles.score_CL[:, 2], 1.0, rtol=1e-6)
    np.testing.assert_allclose(profiles.cost_CL, [[0.5, 0.5, 2.0, 0.5]] * 2, rtol=1e-6)


def test_where_questions_do_not_differ_all_get_the_best_static_assignment():
    query_QE, _ = make_questions(600)
    rng = np.random.default_rng(1)
    score_QL = (rng.random((600, 4)) < [0.3, 0.5, 0.7, 0.6]).astype(np.float32)
    profiles = measure(query_QE, score_QL, np.tile([0.0, 0.1, 0.2, 0.3], (600, 1)), clusters=8)
    assert (profiles.score_CL.argmax(axis=1) == 2).all()
    spread_L = profiles.score_CL.max(axis=0) - profiles.score_CL.min(axis=0)
    raw_L = [0.2] * 4  # what eight raw means of 75 questions would spread by, at least
    assert (spread_L < raw_L).all()


def test_a_failed_run_counts_for_nothing():
    query_QE, kind_Q = make_questions(200)
    score_QL = np.stack([kind_Q == 0, np.ones(200)], axis=1).astype(np.float32)
    cost_QL = np.tile([0.001, 0.002], (200, 1))
    query_QE[:, 1] += 3 * (np.random.default_rng(2).random(200) < 0.5)
    holes_Q = query_QE[:, 1] > 1.5  # who fails can be told, and says nothing about scores
    holed_QL, holed_cost_QL = score_QL.copy(), cost_QL.copy()
    holed_QL[holes_Q, 1], holed_cost_QL[holes_Q, 1] = np.nan, np.nan
    profiles = measure(query_QE, holed_QL, holed_cost_QL, directions=1)
    np.testing.assert_allclose(profiles.score_CL[:, 1], 1.0, rtol=1e-6)
    np.testing.assert_allclose(profiles.cost_CL[:, 1], 1.0, rtol=1e-6)
    assert profiles.score_CL[:, 0].min() < 0.1 < 0.9 < profiles.score_CL[:, 0].max()


def test_an_assignment_that_always_failed_is_never_the_best_nor_cheap():
    query_QE, _ = make_questions(50)
    score_QL = np.tile(np.float32([0.1, np.nan, 0.4]), (50, 1))
    cost_QL = np.tile([0.0, np.nan, 0.006], (50, 1))
    profiles = measure(query_QE, score_QL, cost_QL)
    np.testing.assert_allclose(profiles.score_CL[:, 1], 0.0)
    np.testing.assert_allclose(profiles.cost_CL[:, 1], 3.0, rtol=1e-6)
    nothing = measure(query_QE, np.full((50, 2), np.nan), np.full((50, 2), np.nan))
    assert (nothing.score_CL == 0).all()
    assert (nothing.cost_CL == 1).all()


def test_few_questions_leave_clusters_and_directions_that_none_falls_into():
    query_QE = np.eye(3, WIDTH, dtype=np.float32)
    score_QL = np.float32([[0, 1], [1, 0], [1, 1]])
    profiles = measure(query_QE, score_QL, np.ones((3, 2)), clusters=6, directions=4)
    assert profiles.projection_EP.shape == (WIDTH, 4)
    assert profiles.centroids_CP.shape == (6, 4)
    assert profiles.score_CL.shape == profiles.cost_CL.shape == (6, 2)
    assert (find_clusters(profiles, query_QE) < 3).all()
    for array in (profiles.projection_EP, profiles.centroids_CP, profiles.score_CL):
        assert np.isfinite(array).all()


# --- In the network -------------------------------------------------------------------------------


def make_shape(**fields) -> TierScorerConfig:
    shape = {"dimension": 2, "extras": 3 + 4, "modules": 2, "tiers": 2, "hidden": 8}
    start = {"clusters": 2, "directions": 2, "sharpness": 5.0, "counts": (2, 2)}
    return TierScorerConfig.model_validate(shape | {"start": start} | fields)


def test_the_first_policy_is_that_of_the_profiles_and_learning_moves_it():
    scorer = TierScorer(make_shape())
    score_CL = np.float32([[0.2, 0.9, 0.5, 0.6], [0.1, 0.2, 0.3, 0.4]])
    arrays = (np.eye(2), np.eye(2), score_CL, np.zeros((2, 4)))
    scorer.begin_from(TierProfiles(*(np.asarray(one, dtype=np.float32) for one in arrays)))
    scorer.describe(np.eye(2, dtype=np.float32), np.ones((2, 2, 4), dtype=np.float32))
    scorer.tier_features_MKD[:, 1, 1] = 2.0
    features_NF = torch.zeros(1, 2 * 2 + 7)
    features_NF[0, 0] = 1.0  # cluster 0
    everything_NK = torch.ones(1, 2, dtype=torch.bool)
    logits_NK = scorer(features_NF, torch.tensor([0]), everything_NK).logits_BK
    torch.testing.assert_close(logits_NK, torch.tensor([[5 * 0.9, 5 * 0.6]]))
    torch.nn.init.normal_(scorer.output.weight)
    moved_NK = scorer(features_NF, torch.tensor([0]), everything_NK).logits_BK
    assert (moved_NK - logits_NK).abs().max() > 1e-3
    assert not any("start" in name for name, _ in scorer.named_parameters())  # nothing to learn
    assert {f"start.{name}" for name in ("score_CL", "cost_CL")} <= set(scorer.state_dict())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"modules": 3}, "must name the tiers of each module"),
        ({"tiers": 3}, "must name the tiers of each module"),
        ({"read_extras": "none"}, "reads the cost weight"),
    ],
)
def test_a_start_that_does_not_fit_the_network_is_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        make_shape(**fields)
