from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlroute.config import parse_config
from rlroute.envs.single_turn import CostWeightConfig, SingleTurn, compute_outcome_terms
from rlroute.types import FailureKind, Reply, RLRouteError

FIXED = CostWeightConfig(min=0.5, max=0.5)


def answer(environment: SingleTurn, action: int, score: float, cost_usd: float):
    (call,) = environment.propose(action)
    return environment.observe([Reply(call, cost_usd=cost_usd, score=score)])


def test_an_observation_holds_the_query_the_mask_and_the_cost_weight(tiny_data):
    environment = SingleTurn(tiny_data, FIXED)
    observation = environment.reset(tiny_data.table.queries[1], seed=3)
    assert observation.text == "question 1"
    assert observation.mask_K.tolist() == [True, True, False]
    assert observation.cost_weight == 0.5
    np.testing.assert_array_equal(observation.features_F, tiny_data.features_QF[1])
    np.testing.assert_array_equal(
        observation.candidate_features_KD, tiny_data.candidate_features_KD
    )


def test_a_proposed_action_is_one_call_of_the_chosen_candidate(tiny_data):
    environment = SingleTurn(tiny_data, FIXED)
    query = tiny_data.table.queries[0]
    environment.reset(query, seed=0)
    (call,) = environment.propose(2)
    assert (call.candidate_id, call.query, call.text) == ("tool", query, "question 0")


def test_terms_are_kept_apart_and_cost_is_in_units_of_the_reference(tiny_data):
    environment = SingleTurn(tiny_data, FIXED)
    environment.reset(tiny_data.table.queries[0], seed=0)
    step = answer(environment, 0, score=0.75, cost_usd=0.002)
    assert tiny_data.cost_reference_usd == pytest.approx(0.004)  # mean train cost of "large"
    assert step.reward_terms == pytest.approx({"outcome": 0.75, "cost": 0.5})
    assert (step.terminated, step.truncated) == (True, False)


def test_a_failed_reply_leaves_both_terms_undefined_even_if_it_cost_nothing(tiny_data):
    environment = SingleTurn(tiny_data, FIXED)
    environment.reset(tiny_data.table.queries[0], seed=0)
    (call,) = environment.propose(0)
    step = environment.observe([Reply(call, cost_usd=0.0, failure=FailureKind.TIMEOUT)])
    assert step.reward_terms == {"outcome": None, "cost": None}


@pytest.mark.parametrize("action", [2, 3, -1])
def test_a_masked_or_unknown_action_is_refused_and_changes_nothing(tiny_data, action):
    environment = SingleTurn(tiny_data, FIXED)
    environment.reset(tiny_data.table.queries[1], seed=0)
    before = environment.get_state()
    with pytest.raises(ValueError, match=r"allowed: 0, 1\)"):
        environment.propose(action)
    assert environment.get_state() == before
    assert environment.propose(1)


def test_an_action_before_the_start_or_after_the_end_is_refused(tiny_data):
    environment = SingleTurn(tiny_data, FIXED)
    with pytest.raises(ValueError, match="reset before"):
        environment.propose(0)
    environment.reset(tiny_data.table.queries[0], seed=0)
    answer(environment, 0, 1.0, 0.001)
    with pytest.raises(ValueError, match="reset before"):
        environment.propose(0)


def test_a_state_survives_json_and_goes_on_alike_elsewhere(tiny_data):
    weights = CostWeightConfig()
    original, restored = SingleTurn(tiny_data, weights), SingleTurn(tiny_data, weights)
    observation = original.reset(tiny_data.table.queries[4], seed=11)
    copy = restored.set_state(json.loads(json.dumps(original.get_state())))
    assert copy.cost_weight == observation.cost_weight
    assert copy.text == observation.text
    assert original.propose(2) == restored.propose(2)


def test_a_state_from_before_the_first_reset_is_json_too(tiny_data):
    state = SingleTurn(tiny_data, FIXED).get_state()
    assert json.loads(json.dumps(state)) == {"query_id": None, "cost_weight": 0.0, "ended": True}


@given(
    low=st.floats(0, 5), width=st.floats(0, 5), power=st.floats(0.1, 5), seed=st.integers(0, 2**61)
)
def test_a_drawn_cost_weight_lies_in_its_range(low, width, power, seed):
    config = CostWeightConfig(min=low, max=low + width, power=power)
    (weight,) = config.draw(np.array([seed]))
    assert np.float32(config.min) <= weight <= np.float32(config.max)


def test_the_cost_weight_follows_from_the_seed_and_bends_towards_the_minimum():
    seed_B = np.arange(4000)
    config = CostWeightConfig(min=0, max=8, power=3)
    weight_B = config.draw(seed_B)
    np.testing.assert_array_equal(weight_B[::-1], config.draw(seed_B[::-1]))
    assert np.mean(weight_B) == pytest.approx(8 / 4, abs=0.15)  # E[u^3] = 1/4
    assert np.median(weight_B) == pytest.approx(8 * 0.5**3, abs=0.15)


def test_an_empty_range_of_cost_weights_is_refused():
    with pytest.raises(RLRouteError, match=r"mine: min \(2\) must not be above max \(1\)"):
        parse_config(CostWeightConfig, {"min": 2, "max": 1}, "mine")


def test_full_feedback_holds_every_candidates_terms_and_nan_in_a_hole(tiny_data):
    terms = compute_outcome_terms(tiny_data, np.array([1, 0]))
    np.testing.assert_allclose(terms["outcome"], [[1, 1, np.nan], [1, 0, 1]])
    np.testing.assert_allclose(terms["cost"], [[0.75, 0.5, np.nan], [1, 0.25, 0]], rtol=1e-6)
