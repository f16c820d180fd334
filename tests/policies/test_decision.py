from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlroute.policies.decision import GreedyPolicy, SamplingPolicy, sample_actions
from rlroute.policies.mlp import CandidateScorer, ScorerConfig

BELOW_ONE = 1 - 2**-53


def make_logp(probabilities: list[float]) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.array([probabilities], dtype=np.float64)).astype(np.float32)


@pytest.fixture
def model(tiny_data) -> CandidateScorer:
    torch.manual_seed(0)
    config = ScorerConfig(features=4, clusters=2, hidden=16)
    scorer = CandidateScorer(config)
    torch.nn.init.normal_(scorer.quality_tower.weight)
    return scorer


@pytest.mark.parametrize(
    ("uniform", "action"),
    [(0.0, 0), (0.2499, 0), (0.2501, 1), (0.7499, 1), (0.7501, 3), (BELOW_ONE, 3)],
)
def test_sampling_inverts_the_cumulative_distribution(uniform, action):
    logp_BK = make_logp([0.25, 0.5, 0.0, 0.25])
    assert sample_actions(logp_BK, np.array([uniform])).tolist() == [action]


@given(
    weights=st.lists(st.floats(0.01, 10), min_size=1, max_size=7),
    masked=st.lists(st.booleans(), min_size=7, max_size=7),
    uniform=st.floats(0, BELOW_ONE),
)
def test_a_masked_candidate_is_never_drawn(weights, masked, uniform):
    weight_K = np.array(weights) * ~np.array(masked[: len(weights)])
    if weight_K.sum() == 0:
        weight_K[0] = 1
    logp_BK = make_logp(list(weight_K / weight_K.sum()))
    (action,) = sample_actions(logp_BK, np.array([uniform]))
    assert 0 <= action < len(weights)
    assert weight_K[action] > 0


def test_the_shares_of_evenly_spread_draws_are_the_probabilities():
    probability_K = [0.125, 0.5, 0.0, 0.375]
    logp_BK = np.repeat(make_logp(probability_K), 8000, axis=0)
    action_B = sample_actions(logp_BK, (np.arange(8000) + 0.5) / 8000)
    share_K = np.bincount(action_B, minlength=4) / 8000
    assert share_K.tolist() == pytest.approx(probability_K, abs=1e-3)


def test_a_decision_holds_the_log_probability_of_its_action(tiny_data, model):
    uniform_B = np.array([0.1, 0.5, 0.9, 0.3, 0.7, 0.99])
    weight_B = np.full(6, 0.5, dtype=np.float32)
    mask_BK = tiny_data.table.present_QK
    decisions = SamplingPolicy(model, version=3).decide(
        tiny_data.features_QF, tiny_data.candidate_features_KD, mask_BK, weight_B, uniform_B
    )
    scores = model(
        torch.as_tensor(tiny_data.features_QF),
        torch.as_tensor(tiny_data.candidate_features_KD),
        torch.as_tensor(mask_BK),
        torch.as_tensor(weight_B),
    )
    logp_BK = scores.logp_BK.detach().numpy()
    assert decisions.action_B.dtype == np.int64
    assert mask_BK[np.arange(6), decisions.action_B].all()
    np.testing.assert_allclose(decisions.logp_B, logp_BK[np.arange(6), decisions.action_B])
    np.testing.assert_allclose(decisions.value_B, scores.value_B.detach().numpy())


def test_deciding_leaves_the_random_generator_of_torch_alone(tiny_data, model):
    before = torch.random.get_rng_state()
    SamplingPolicy(model).decide(
        tiny_data.features_QF,
        tiny_data.candidate_features_KD,
        tiny_data.table.present_QK,
        np.zeros(6, dtype=np.float32),
        np.zeros(6),
    )
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("cost_weight", [0.0, 0.5, 10.0])
def test_the_greedy_policy_puts_all_on_the_best_allowed_candidate(tiny_data, model, cost_weight):
    probability_QK = GreedyPolicy(model).compute_probabilities(tiny_data, cost_weight)
    assert probability_QK.shape == tiny_data.table.present_QK.shape
    assert (probability_QK.sum(axis=1) == 1).all()
    assert (probability_QK.max(axis=1) == 1).all()
    assert (probability_QK[~tiny_data.table.present_QK] == 0).all()


def test_a_dearer_cost_weight_never_picks_a_dearer_candidate(tiny_data, model):
    cost_QK = np.nan_to_num(tiny_data.candidate_features_KD[:, 1])
    spent = [
        float((GreedyPolicy(model).compute_probabilities(tiny_data, weight) @ cost_QK).mean())
        for weight in (0.0, 0.5, 2.0, 50.0)
    ]
    assert spent == sorted(spent, reverse=True)
    assert not math.isclose(spent[0], spent[-1])
