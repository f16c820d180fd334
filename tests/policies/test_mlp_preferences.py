"""Latency as a second price of the candidate scorer, and a user's liking beside it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlroute.data.irt_table import IrtTableConfig, make_irt_table
from rlroute.data.routing_data import (
    RoutingData,
    build_candidate_features,
    fit_feature_scale,
    measure_profiles,
)
from rlroute.data.users import Preference
from rlroute.policies.decision import GreedyPolicy
from rlroute.policies.kernel_start import KernelConfig, fit_kernel_start
from rlroute.policies.mlp import CandidateScorer, ScorerConfig
from rlroute.types import RLRouteError

IRT = IrtTableConfig(queries=120, candidates=4, topics=2, seconds_per_token=(0.002, 0.05))
MADE = make_irt_table(IRT, seed=1)
CENTROIDS_CF = MADE.features_QF[[0, 40, 80]]
CLUSTERS = len(CENTROIDS_CF)


def make_data(*, latency: bool) -> RoutingData:
    """Return the made table as a policy sees it, profiles measured on all of it."""
    candidates = measure_profiles(MADE.table, MADE.features_QF, CENTROIDS_CF, latency=latency)
    scale = fit_feature_scale(candidates, latency=latency)
    return RoutingData(
        table=replace(MADE.table, candidates=candidates),
        features_QF=MADE.features_QF,
        candidate_features_KD=build_candidate_features(candidates, scale),
        cost_reference_usd=scale.cost_reference_usd,
        latency_reference_seconds=scale.latency_reference_seconds,
    )


PLAIN, TIMED = make_data(latency=False), make_data(latency=True)


def make_model(*, latency: bool, seed: int = 0, trained: bool = False) -> CandidateScorer:
    """Return a scorer; `trained` fills its towers at random, those of latency last."""
    torch.manual_seed(seed)
    config = ScorerConfig(
        features=MADE.features_QF.shape[1], clusters=CLUSTERS, hidden=16, latency=latency
    )
    model = CandidateScorer(config).eval()
    model.centroids_CF.copy_(torch.as_tensor(CENTROIDS_CF))
    if trained:
        torch.manual_seed(seed + 1)
        for tower in (model.quality_tower, model.cost_tower):
            torch.nn.init.normal_(tower.weight, std=0.3)
        if latency:
            torch.nn.init.normal_(model.latency_tower.weight, std=0.3)
    return model


def score(model: CandidateScorer, data: RoutingData, latency_weight: float | None, bias_K=None):
    rows = len(data.features_QF)
    latency_B = None if latency_weight is None else torch.full((rows,), latency_weight)
    bias_BK = None if bias_K is None else torch.tensor(bias_K).expand(rows, -1)
    with torch.no_grad():
        return model(
            torch.as_tensor(data.features_QF),
            torch.as_tensor(data.candidate_features_KD),
            torch.as_tensor(data.table.present_QK),
            torch.full((rows,), 0.3),
            None,
            latency_B,
            bias_BK,
        )


def test_at_latency_weight_0_a_policy_decides_bit_for_bit_as_one_that_knows_no_latency() -> None:
    plain = score(make_model(latency=False, trained=True), PLAIN, None)
    timed = score(make_model(latency=True, trained=True), TIMED, 0.0)
    for name in ("logits_BK", "quality_BK", "cost_BK"):
        assert torch.equal(getattr(plain, name), getattr(timed, name)), name
    assert plain.latency_BK is None
    weighed = score(make_model(latency=True, trained=True), TIMED, 0.5)
    assert not torch.equal(plain.logits_BK, weighed.logits_BK)


def test_latency_starts_at_the_profile_of_the_cluster_and_is_charged_by_its_weight() -> None:
    model = make_model(latency=True)
    scores = score(model, TIMED, 0.7)
    cluster_B = model.find_clusters(torch.as_tensor(TIMED.features_QF))
    seconds_KC = np.stack([one.profile.latency_seconds_C for one in TIMED.table.candidates])
    expected_BK = (seconds_KC.T / TIMED.latency_reference_seconds)[cluster_B]
    np.testing.assert_allclose(scores.latency_BK, expected_BK, rtol=1e-5)
    utility_BK = scores.quality_BK - 0.3 * scores.cost_BK - 0.7 * scores.latency_BK
    torch.testing.assert_close(scores.logits_BK, 10 * utility_BK)
    # the unit is one average wait for the slowest candidate
    mean_K = TIMED.normalised_latency_QK.mean(axis=0)
    assert mean_K.max() == pytest.approx(1, rel=1e-4)


def test_a_liking_is_added_to_the_utility_as_it_is() -> None:
    model = make_model(latency=False)
    bias_K = [0.0, 0.25, -0.5, 0.0]
    liked, plain = score(model, PLAIN, None, bias_K), score(model, PLAIN, None)
    torch.testing.assert_close(
        liked.logits_BK - plain.logits_BK, 10 * torch.tensor(bias_K).expand(120, -1)
    )


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 50),
    st.lists(st.floats(0, 4, width=32), min_size=2, max_size=5),
    st.floats(0, 2, width=32),
)
def test_a_higher_latency_weight_never_raises_the_expected_latency_of_the_picks(
    seed: int, weights: list[float], cost_weight: float
) -> None:
    model = make_model(latency=True, seed=seed, trained=True)
    expected = score(model, TIMED, 0.0).latency_BK
    assert expected is not None
    means = []
    for weight in sorted(weights):
        policy = GreedyPolicy(model, preference=Preference(weight))
        pick_Q, _, _ = policy.estimate_picks(TIMED, cost_weight)
        means.append(float(expected.double().gather(1, torch.as_tensor(pick_Q)[:, None]).mean()))
    assert all(after <= before + 1e-6 for before, after in pairwise(means))


def test_the_critic_sees_the_latency_weight() -> None:
    model = make_model(latency=True)
    torch.nn.init.normal_(model.value_head[2].weight)
    low, high = (score(model, TIMED, weight) for weight in (0.0, 2.0))

    def expect(scores, weight: float) -> torch.Tensor:
        utility_BK = scores.quality_BK - 0.3 * scores.cost_BK - weight * scores.latency_BK
        return (scores.logp_BK.exp() * utility_BK).sum(dim=1)

    learnt_low, learnt_high = low.value_B - expect(low, 0.0), high.value_B - expect(high, 2.0)
    assert (learnt_low - learnt_high).abs().min() > 1e-4


def test_a_kernel_start_reads_the_same_columns_with_latencies_and_without() -> None:
    config = KernelConfig(anchors=30)
    plain, timed = (fit_kernel_start(data, config, seed=0) for data in (PLAIN, TIMED))
    np.testing.assert_array_equal(plain.weight_MD, timed.weight_MD)


def test_what_weighs_no_latency_refuses_a_weight_of_it() -> None:
    with pytest.raises(ValueError, match="weighs no latency"):
        score(make_model(latency=False), PLAIN, 0.5)
    with pytest.raises(ValueError, match="weighs no latency"):
        GreedyPolicy(make_model(latency=False), preference=Preference(0.5)).estimate_picks(PLAIN, 0)
    with pytest.raises(ValueError, match="prepared without latencies"):
        _ = PLAIN.normalised_latency_QK
    untimed = measure_profiles(MADE.table, MADE.features_QF, CENTROIDS_CF)
    scale = fit_feature_scale(TIMED.table.candidates, latency=True)
    with pytest.raises(RLRouteError, match="'candidate-a' has no latency per query cluster"):
        build_candidate_features(untimed, scale)
