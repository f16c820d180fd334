"""The reward of multi-round episodes: terms, their sum, and the state in between."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlroute.config import parse_config
from rlroute.rewards.multi_round import MultiRoundReward, MultiRoundRewardConfig
from rlroute.types import RLRouteError

NAN = float("nan")
EPISODES = st.lists(
    st.tuples(
        st.sampled_from([0.0, -1.0, -0.5]),
        st.sampled_from([0.0, 0.5, 1.0]),
        st.sampled_from([0.0, 1e-5, 4e-5, 1e-3]),
        st.sampled_from([0.0, 0.25, 0.6, 1.0]),
    ),
    min_size=1,
    max_size=12,
)
COMBINATIONS = ("gated", "additive", "multiplicative")


def build(**options: object) -> MultiRoundReward:
    return MultiRoundReward(parse_config(MultiRoundRewardConfig, options, "recipe.yaml"))


def terms(*episodes: tuple[float, float, float]) -> dict[str, np.ndarray]:
    columns = np.array(episodes, dtype=np.float32).reshape(-1, 3).T
    return dict(zip(("format", "outcome", "charge_usd"), columns, strict=True))


def weights(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def test_the_whole_example_gated_with_a_window() -> None:
    reward = build()
    warm = [(0.0, 1.0, charge * 1e-6) for charge in (0, 30, 60, 90, 120)]
    reward.score(terms(*warm), np.full(5, 0.6, dtype=np.float32), frozen=False)
    state = reward.get_state()
    for episode, expected in (
        ((0.0, 1.0, 44e-6), 0.6574),
        ((0.0, 0.0, 44e-6), 0.0),
        ((-1.0, 1.0, 44e-6), -1.0),
    ):
        reward.set_state(state)
        scores = reward.score(terms(episode), weights(0.6), frozen=False)
        assert scores["cost"][0] == pytest.approx(0.4289, abs=1e-4)
        assert scores["reward"][0] == pytest.approx(expected, abs=5e-5)
        assert list(scores) == ["format", "outcome", "cost", "reward"]
        assert {value.dtype for value in scores.values()} == {np.dtype(np.float32)}


def test_combinations_differ_on_a_cheap_wrong_answer() -> None:
    fixed = {"kind": "fixed", "reference_usd": 0.001}
    wrong = terms((0.0, 0.0, 0.0005))
    rewards = {
        name: build(combination=name, normaliser=fixed).score(wrong, weights(0.4), frozen=False)
        for name in COMBINATIONS
    }
    assert {name: float(scores["reward"][0]) for name, scores in rewards.items()} == {
        "gated": 0.0,
        "additive": pytest.approx(0.2),
        "multiplicative": 0.0,
    }


@pytest.mark.parametrize("hole", [0, 1, 2])
def test_an_episode_with_a_failed_call_has_no_reward_and_enters_no_window(hole: int) -> None:
    reward, clean = build(), build()
    failed = [0.0, 1.0, 5e-5]
    failed[hole] = NAN
    first, last = (0.0, 1.0, 1e-5), (0.0, 1.0, 4e-5)
    scores = reward.score(
        terms(first, (failed[0], failed[1], failed[2]), last), weights(0, 0, 0), frozen=False
    )
    assert np.isnan(scores["reward"]).tolist() == [False, True, False]
    assert np.isnan(scores["cost"]).tolist() == [False, True, False]
    clean.score(terms(first, last), weights(0, 0), frozen=False)
    assert reward.get_state() == clean.get_state()


@pytest.mark.parametrize("combination", COMBINATIONS)
@given(before=EPISODES, evaluated=EPISODES, after=EPISODES)
def test_evaluation_leaves_training_as_it_was_and_a_restored_reward_goes_on(
    combination: str, before: list, evaluated: list, after: list
) -> None:
    def score(reward: MultiRoundReward, episodes: list, frozen: bool = False) -> np.ndarray:
        rows = terms(*(episode[:3] for episode in episodes))
        weight_N = weights(*(episode[3] for episode in episodes))
        return reward.score(rows, weight_N, frozen=frozen)["reward"]

    plain, evaluating, restored = (build(combination=combination) for _ in range(3))
    score(plain, before)
    score(evaluating, before)
    score(evaluating, evaluated, frozen=True)
    restored.set_state(json.loads(json.dumps(evaluating.get_state())))
    expected_N = score(plain, after)
    np.testing.assert_array_equal(score(evaluating, after), expected_N)
    np.testing.assert_array_equal(score(restored, after), expected_N)


@pytest.mark.parametrize("combination", COMBINATIONS)
@given(episodes=EPISODES)
def test_weighed_terms_add_up_to_the_reward(combination: str, episodes: list) -> None:
    reward = build(combination=combination)
    weight_N = weights(*(episode[3] for episode in episodes))
    scores = reward.score(terms(*(episode[:3] for episode in episodes)), weight_N, frozen=False)
    kept, weighed = reward.cancel(scores), reward.weigh(weight_N)
    assert list(kept) == list(weighed) == ["format", "outcome", "cost"]
    total_N = sum(kept[name] * weighed[name] for name in kept)
    np.testing.assert_allclose(total_N, scores["reward"], atol=1e-6)
    broken_N = scores["format"] < 0
    assert (kept["outcome"][broken_N] == 0).all()
    assert (kept["cost"][broken_N] == 0).all()


def test_weights_at_a_cost_weight() -> None:
    for name in ("gated", "additive"):
        found = build(combination=name).weigh(weights(0.25))
        assert {term: value.tolist() for term, value in found.items()} == {
            "format": [1.0],
            "outcome": [0.75],
            "cost": [0.25],
        }
    multiplicative = build(combination="multiplicative", multiplicative={"ceiling": 2, "cap": 1})
    found = multiplicative.weigh(weights(0.25))
    assert {term: value.tolist() for term, value in found.items()} == {
        "format": [1.0],
        "outcome": [1.75],
        "cost": [0.25],
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"combination": "sum"}, "combination: .*'gated', 'additive' or 'multiplicative'"),
        ({"normaliser": {"kind": "fixed"}}, "normaliser.reference_usd: Field required"),
        ({"normaliser": {"kind": "window", "low": 9, "high": 3}}, r"low \(9.0\) must be below"),
        ({"normaliser": {"size": 3}}, "normaliser: 'kind' is missing"),
        ({"multiplicative": {}}, "no meaning with combination 'gated'"),
        ({"combination": "multiplicative", "multiplicative": {"cap": 3}}, "must not exceed"),
        ({"format": {"severe": 0.5}}, "must not rise"),
    ],
)
def test_a_recipe_with_a_fault_is_refused_by_name(options: dict, message: str) -> None:
    with pytest.raises(RLRouteError, match=f"^recipe.yaml: .*{message}"):
        build(**options)


def test_a_wrong_cost_weight_moves_no_window() -> None:
    reward = build()
    with pytest.raises(RLRouteError, match=r"must lie in \[0, 1\]"):
        reward.score(terms((0.0, 1.0, 1e-5)), weights(1.5), frozen=False)
    assert reward.get_state() == build().get_state()
