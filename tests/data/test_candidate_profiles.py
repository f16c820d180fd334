"""Profiles of new candidates: shrinkage by hand, what descriptions say, what calls say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlroute.data.candidate_profiles import (
    ProfileCalls,
    estimate_profile,
    find_family,
    fit_prior,
)
from rlroute.data.ridge import fit_ridge
from rlroute.data.shrinkage import compute_trust, shrink_clusters
from rlroute.types import Candidate, Member, Prices, Profile, RLRouteError, TokenProfile

CLUSTERS = 4
TOKENS = TokenProfile(
    100.0, 50.0, np.full(CLUSTERS, 100, np.float32), np.full(CLUSTERS, 50, np.float32)
)


def make_known(count: int = 8) -> list[Candidate]:
    """Candidates whose mean score rises with the logarithm of their price; cluster 0 is easy."""
    known = []
    for k in range(count):
        price = 0.1 * 2.0**k
        mean = 0.2 + 0.07 * k
        score_C = mean + np.array([0.15, -0.05, -0.05, -0.05])
        cost = (100 + 50) * price / 1e6
        profile = Profile(
            mean,
            cost,
            score_C.astype(np.float32),
            np.full(CLUSTERS, cost, np.float32),
            tokens=TOKENS,
        )
        known.append(Candidate(f"model{k}", Prices(price, price), profile=profile))
    return known


def make_calls(score_N, cluster_N=None, cost_N=None, tokens=(100.0, 50.0)) -> ProfileCalls:
    score_N = np.asarray(score_N, np.float32)
    many = len(score_N)
    cluster_N = np.arange(many) % CLUSTERS if cluster_N is None else np.asarray(cluster_N)
    cost_N = np.full(many, 1.5e-4) if cost_N is None else np.asarray(cost_N)
    return ProfileCalls(
        cluster_N,
        score_N,
        cost_N.astype(np.float32),
        np.full(many, tokens[0], np.float32),
        np.full(many, tokens[1], np.float32),
        np.full(many, np.nan, np.float32),
    )


def test_shrinkage_by_hand():
    # four calls of variance 0.25 around what was expected to within 0.0625: half of the average
    assert compute_trust(4, 0.25, 0.0625) == 0.5
    assert compute_trust(100, 0.25, 0.0) == 0
    # cluster 0: 1 call, kept 1 / (1 + 0.25 / 0.125) = 1/3; cluster 1: 2 calls, kept 2 / 4
    kept_C = shrink_clusters(np.array([0.6, 0.2, 0.4]), np.array([0, 1, 1]), 3, 0.25, 0.125)
    assert kept_C == pytest.approx([0.2, 0.15, 0.0])


def test_without_a_call_the_description_says_what_to_expect():
    known = make_known()
    prior = fit_prior(known)
    new = Candidate("newcomer", Prices(0.1 * 2.0**3.5, 0.1 * 2.0**3.5))
    profile = estimate_profile(new, prior)
    assert profile.mean_score == pytest.approx(0.2 + 0.07 * 3.5, abs=0.02)
    assert profile.score_C[0] - profile.score_C[1] == pytest.approx(0.2, abs=0.02)
    assert profile.mean_cost_usd == pytest.approx(150 * new.prices.input / 1e6)
    assert profile.tokens is not None
    assert profile.tokens.mean_prompt == 100


def test_what_nothing_predicts_is_expected_to_be_average():
    draw = np.random.default_rng(0)
    ridge = fit_ridge(draw.normal(size=(12, 3)), draw.normal(size=(12, 1)))
    assert ridge.weight_ET.tolist() == [[0.0]] * 3
    line_KE = np.arange(12.0)[:, None]
    straight = fit_ridge(line_KE, 2 * line_KE)
    assert straight.predict([5.0]) == pytest.approx([10.0], abs=0.3)
    assert straight.error_T[0] < ridge.error_T[0]


def test_many_calls_outweigh_the_description():
    prior, new = fit_prior(make_known()), Candidate("newcomer", Prices(0.1, 0.1))
    expected = estimate_profile(new, prior).mean_score
    few = estimate_profile(new, prior, make_calls(np.ones(4))).mean_score
    many = estimate_profile(new, prior, make_calls(np.ones(4000))).mean_score
    assert expected < few < many
    assert many > 0.95


def test_calls_on_one_cluster_move_it_more_than_the_others():
    known = make_known()
    # clusters differ from candidate to candidate, so that a cluster of its own is believed
    draw = np.random.default_rng(1)
    for k, one in enumerate(known):
        score_C = np.clip(one.profile.score_C + draw.normal(0, 0.15, CLUSTERS), 0, 1)
        known[k] = replace(one, profile=replace(one.profile, score_C=score_C.astype(np.float32)))
    prior, new = fit_prior(known), Candidate("newcomer", Prices(0.4, 0.4))
    before = estimate_profile(new, prior).score_C
    score_N = [1.0] * 100 + [0.3] * 300
    calls = make_calls(score_N, [0] * 100 + [1, 2, 3] * 100)
    after = estimate_profile(new, prior, calls).score_C
    assert after[0] - before[0] > 0.2
    assert after[0] > after[1:].max() + 0.3


def test_costs_are_learnt_from_the_calls_too():
    prior, new = fit_prior(make_known()), Candidate("newcomer", Prices(1.0, 1.0))
    calls = make_calls(np.zeros(400), cost_N=np.full(400, 4.5e-4), tokens=(300.0, 150.0))
    profile = estimate_profile(new, prior, calls)
    assert profile.tokens is not None
    assert profile.tokens.mean_completion == pytest.approx(150)
    assert profile.mean_cost_usd == pytest.approx(4.5e-4, rel=0.02)
    assert profile.cost_usd_C == pytest.approx([4.5e-4] * CLUSTERS, rel=0.02)


def test_a_candidate_that_is_free_costs_nothing():
    prior, free = fit_prior(make_known()), Candidate("tool", Prices(0.0, 0.0))
    assert estimate_profile(free, prior).mean_cost_usd == 0
    found = estimate_profile(free, prior, make_calls(np.ones(8), cost_N=np.zeros(8)))
    assert found.cost_usd_C.tolist() == [0.0] * CLUSTERS


def test_costs_that_nobody_can_foresee_are_refused():
    known = [replace(one, profile=replace(one.profile, tokens=None)) for one in make_known()]
    prior, new = fit_prior(known), Candidate("newcomer", Prices(1.0, 1.0))
    with pytest.raises(RLRouteError, match="'newcomer': the tokens of no known candidate"):
        estimate_profile(new, prior)
    measured = estimate_profile(new, prior, make_calls(np.ones(8)))
    assert measured.mean_cost_usd == pytest.approx(1.5e-4)
    assert measured.tokens is None


def test_too_few_known_candidates_and_subsets_are_refused():
    with pytest.raises(RLRouteError, match=r"at least 3 known ones \(here: 2\)"):
        fit_prior(make_known(2))
    both = replace(make_known()[0], kind="subset", members=(Member("a", "a"),))
    with pytest.raises(RLRouteError, match="is a subset"):
        fit_prior([*make_known(), both])


def test_factors_that_reconstruct_nothing_are_refused():
    with pytest.raises(RLRouteError, match="use learning 'none'"):
        fit_prior(make_known(), factor_seed=0)  # nothing is left beside the means


@given(st.permutations(range(8)), st.integers(0, 30))
def test_the_order_of_known_candidates_changes_nothing(order, count):
    known, calls = make_known(), make_calls(np.arange(count) % 2)
    new = Candidate("newcomer", Prices(0.7, 0.7))
    first = estimate_profile(new, fit_prior(known), calls)
    second = estimate_profile(new, fit_prior([known[k] for k in order]), calls)
    assert second.mean_score == pytest.approx(first.mean_score, abs=1e-6)
    assert second.score_C == pytest.approx(first.score_C, abs=1e-5)
    assert second.cost_usd_C == pytest.approx(first.cost_usd_C, rel=1e-5)


def test_families_are_read_from_ids():
    names = {"a/qwen2.5-7b": "qwen", "Llama-3.1": "llama", "gpt": "gpt", "01-ai": ""}
    assert {name: find_family(Candidate(name, Prices(0, 0))) for name in names} == names


def make_timed() -> list[Candidate]:
    """Known candidates that take 1 and 3 seconds; twice as long in cluster 0 as in the others."""
    timed = []
    for k, one in enumerate(make_known()):
        assert one.profile is not None
        seconds = 1.0 + 2 * (k % 2)
        seconds_C = np.array([1.6, 0.8, 0.8, 0.8], np.float32) * np.float32(seconds)
        profile = replace(one.profile, latency_seconds=seconds, latency_seconds_C=seconds_C)
        timed.append(replace(one, profile=profile))
    return timed


def test_latencies_move_as_costs_do():
    # known: 2 seconds on average, the ratios to it are 0.5 and 1.5: variance 0.25, by cluster none
    prior, new = fit_prior(make_timed()), Candidate("newcomer", Prices(0.7, 0.7))
    described = estimate_profile(new, prior)
    assert described.latency_seconds == pytest.approx(2.0)
    assert described.latency_seconds_C == pytest.approx([3.2, 1.6, 1.6, 1.6])
    # ratios 1 and 3: average 2, variance 2; trust .25 / (.25 + 2 / 2) = .2, so the ratio is 1.2
    calls = replace(make_calls([1, 1], [0, 1]), latency_seconds_N=np.array([3.2, 4.8], np.float32))
    profile = estimate_profile(new, prior, calls)
    assert profile.latency_seconds == pytest.approx(2.4)
    assert profile.latency_seconds_C == pytest.approx([3.84, 1.92, 1.92, 1.92])


def test_a_latency_is_neither_invented_nor_left_out_where_it_counts():
    new = Candidate("newcomer", Prices(0.7, 0.7))
    half = replace(make_calls([1, 1]), latency_seconds_N=np.array([3.0, np.nan], np.float32))
    with pytest.raises(RLRouteError, match="'newcomer': a result has no latency_seconds"):
        estimate_profile(new, fit_prior(make_timed()), half)
    untimed = estimate_profile(new, fit_prior(make_known()), half)
    assert untimed.latency_seconds == 3.0
    assert untimed.latency_seconds_C is None
    assert estimate_profile(new, fit_prior(make_known())).latency_seconds is None
