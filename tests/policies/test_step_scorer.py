"""The small network of many-step episodes: its first policy, masks, executors that come and go."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlroute.config import parse_config
from rlroute.policies.step_scorer import (
    EstimateColumns,
    ScorerPolicy,
    StepScorer,
    StepScorerConfig,
)
from rlroute.policies.stepwise import ReadingPolicy, StepInputs
from rlroute.types import Candidate, Prices, RLRouteError
from rlroute.worlds.base import describe_executors

PRICES = {"small": (0.4, 1.6), "middle": (1.0, 4.0), "large": (2.0, 8.0)}


def describe(*names: str) -> np.ndarray:
    return describe_executors(tuple(Candidate(name, Prices(*PRICES[name])) for name in names))


def make_scorer(hidden: int = 8, *, trained: bool = True, **fields) -> StepScorer:
    """Return a scorer of four features; `trained` gives it weights as training might."""
    torch.manual_seed(0)
    scorer = StepScorer(StepScorerConfig(features=4, described=3, hidden=hidden, **fields))
    if trained:
        torch.nn.init.normal_(scorer.executor_tower.weight)
        torch.nn.init.normal_(scorer.value_head[2].weight)
    return scorer.eval()


def make_inputs(mask_BK, executors_KD=None, seed: int = 0) -> StepInputs:
    mask_BK = np.asarray(mask_BK, dtype=np.bool_)
    lanes = len(mask_BK)
    rng = np.random.default_rng(seed)
    return StepInputs(
        lane_B=np.arange(lanes),
        row_B=np.arange(lanes),
        task_index_B=np.zeros(lanes, dtype=np.int64),
        features_BF=rng.normal(size=(lanes, 4)).astype(np.float32),
        candidate_features_KD=describe(*PRICES) if executors_KD is None else executors_KD,
        mask_BK=mask_BK,
        cost_weight_B=rng.random(lanes).astype(np.float32),
        uniform_B=rng.random(lanes),
    )


def score(scorer: StepScorer, inputs: StepInputs):
    with torch.no_grad():
        return scorer(
            torch.as_tensor(inputs.features_BF),
            torch.as_tensor(inputs.candidate_features_KD),
            torch.as_tensor(inputs.mask_BK),
            torch.as_tensor(inputs.cost_weight_B),
        )


def test_executors_are_described_by_their_prices_and_rank():
    # 1,000 prompt and 100 completion tokens: 0.56, 1.4 and 2.8 thousandths of a dollar
    expected = [[1, 0, 0], [1, math.log10(2.5), 0.5], [1, math.log10(5), 1]]
    np.testing.assert_allclose(describe(*PRICES), expected, rtol=1e-6)
    free = describe_executors((Candidate("free", Prices(0, 0)), Candidate("paid", Prices(1, 1))))
    np.testing.assert_allclose(free, [[1, -3, 0], [1, 0, 1]], rtol=1e-6)


@pytest.mark.parametrize("hidden", [0, 8])
@pytest.mark.parametrize(("bias", "share"), [(0.0, 0.5), (-1.4, 0.198), (2.0, 0.881)])
def test_the_first_policy_is_uniform_but_for_its_price_bias(hidden, bias, share):
    scorer = make_scorer(hidden, trained=False, price_bias=bias)
    found = score(scorer, make_inputs(np.ones((50, 2)), describe("small", "large")))
    np.testing.assert_allclose(found.logp_BK[:, 1].exp(), share, atol=5e-4)
    assert (found.value_B == 0).all()


@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 8]))
def test_a_masked_executor_has_no_probability_and_is_never_chosen(seed, hidden):
    rng = np.random.default_rng(seed)
    mask_BK = rng.random((30, 3)) < 0.5
    mask_BK[~mask_BK.any(axis=1), 1] = True
    inputs = make_inputs(mask_BK, seed=seed)
    scorer = make_scorer(hidden)
    probability_BK = score(scorer, inputs).logp_BK.exp().numpy()
    assert (probability_BK[~mask_BK] == 0).all()
    np.testing.assert_allclose(probability_BK.sum(axis=1), 1, rtol=1e-5)
    for greedy in (False, True):
        taken = ScorerPolicy(scorer, greedy=greedy).decide(inputs)
        assert mask_BK[np.arange(30), taken.action_B].all()
        chosen_B = probability_BK[np.arange(30), taken.action_B]
        np.testing.assert_allclose(np.exp(taken.logp_B), chosen_B, rtol=1e-5)
        assert (taken.logp_B[mask_BK.sum(axis=1) == 1] == 0).all()


def test_a_greedy_policy_takes_the_likeliest_and_a_sampling_one_by_its_probabilities():
    scorer = make_scorer()
    one = make_inputs(np.ones((1, 3)), seed=3)
    probability_K = score(scorer, one).logp_BK.exp().numpy()[0]
    assert ScorerPolicy(scorer, greedy=True).decide(one).action_B[0] == probability_K.argmax()
    count = 20_000
    many = StepInputs(
        lane_B=np.arange(count),
        row_B=np.arange(count),
        task_index_B=np.zeros(count, dtype=np.int64),
        features_BF=np.repeat(one.features_BF, count, axis=0),
        candidate_features_KD=one.candidate_features_KD,
        mask_BK=np.ones((count, 3), dtype=np.bool_),
        cost_weight_B=np.repeat(one.cost_weight_B, count),
        uniform_B=np.random.default_rng(0).random(count),
    )
    share_K = np.bincount(ScorerPolicy(scorer).decide(many).action_B, minlength=3) / count
    error_K = np.sqrt(probability_K * (1 - probability_K) / count)
    assert (np.abs(share_K - probability_K) < 4 * error_K).all()


@pytest.mark.parametrize("hidden", [0, 8])
def test_an_executor_is_scored_by_its_description_wherever_it_stands(hidden):
    scorer = make_scorer(hidden)
    executors_KD = describe(*PRICES)
    whole = score(scorer, make_inputs(np.ones((9, 3)), executors_KD)).logits_BK
    turned = score(scorer, make_inputs(np.ones((9, 3)), executors_KD[[2, 0, 1]])).logits_BK
    torch.testing.assert_close(turned, whole[:, [2, 0, 1]])
    fewer = score(scorer, make_inputs(np.ones((9, 2)), executors_KD[[0, 2]])).logits_BK
    torch.testing.assert_close(fewer, whole[:, [0, 2]])


def test_without_hidden_units_the_logits_are_linear_in_the_features():
    scorer = make_scorer(hidden=0)
    inputs = make_inputs(np.ones((3, 3)))
    x_B6 = np.concatenate(
        [inputs.features_BF, np.log1p(inputs.cost_weight_B)[:, None], np.ones((3, 1))], axis=1
    )
    weight_6D = scorer.executor_tower.weight.detach().numpy()
    expected_BK = x_B6 @ weight_6D @ inputs.candidate_features_KD.T
    np.testing.assert_allclose(score(scorer, inputs).logits_BK, expected_BK, rtol=1e-4, atol=1e-5)


def test_one_lane_is_decided_as_it_is_among_many():
    scorer = make_scorer()
    inputs = make_inputs(np.ones((20, 3)))
    together = ScorerPolicy(scorer).decide(inputs)
    for lane in range(20):
        only = slice(lane, lane + 1)
        alone = ScorerPolicy(scorer).decide(
            StepInputs(
                lane_B=inputs.lane_B[only],
                row_B=inputs.row_B[only],
                task_index_B=inputs.task_index_B[only],
                features_BF=inputs.features_BF[only],
                candidate_features_KD=inputs.candidate_features_KD,
                mask_BK=inputs.mask_BK[only],
                cost_weight_B=inputs.cost_weight_B[only],
                uniform_B=inputs.uniform_B[only],
            )
        )
        assert alone.action_B[0] == together.action_B[lane]
        assert alone.logp_B[0] == pytest.approx(together.logp_B[lane], abs=1e-5)
        assert alone.value_B[0] == pytest.approx(together.value_B[lane], abs=1e-5)


def test_a_small_network_reads_no_texts():
    assert not isinstance(ScorerPolicy(make_scorer()), ReadingPolicy)


@pytest.mark.parametrize(
    "fields",
    [{"hidden": -1}, {"price_bias": float("nan")}, {"described": 2}, {"features": 0}, {"width": 3}],
)
def test_impossible_shapes_are_refused_in_one_line(fields):
    with pytest.raises(RLRouteError, match=next(iter(fields))) as caught:
        parse_config(StepScorerConfig, {"features": 4, "described": 3} | fields, "policy")
    assert "\n" not in str(caught.value)


# --- A start at estimates -------------------------------------------------------------------------


def test_the_first_policy_is_that_of_the_estimates_at_the_cost_weight():
    columns = EstimateColumns(expected=0, charge=2, sharpness=10.0)
    config = StepScorerConfig(features=4, described=3, hidden=8, start=columns)
    scorer = StepScorer(config).eval()
    features_BF = torch.tensor([[0.5, 0.9, 0.1, 1.0], [0.5, 0.9, 0.1, 1.0]])
    mask_BK = torch.ones((2, 2), dtype=torch.bool)
    weight_B = torch.tensor([0.0, 1.0])
    with torch.no_grad():
        scores = scorer(features_BF, torch.as_tensor(describe("small", "large")), mask_BK, weight_B)
    # 10 * (0.5, 0.9), and 10 * (0.5 - 0.1, 0.9 - 1.0)
    np.testing.assert_allclose(scores.logits_BK, [[5.0, 9.0], [4.0, -1.0]], atol=1e-6)


def test_a_start_without_sharpness_is_refused():
    with pytest.raises(RLRouteError, match="sharpness"):
        parse_config(EstimateColumns, {"expected": 0, "charge": 2, "sharpness": 0}, "test")
