"""The reward of memory tiers: BudgetMem's scale (A) and sums (W) number by number, and ours."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from rlroute.rewards.memory import (
    AlignmentConfig,
    MemoryReward,
    MemoryRewardConfig,
    ScaleAlignment,
)
from rlroute.types import RLRouteError

NAN = float("nan")
AS_PUBLISHED = {"floor": 1e-5, "cap": None, "warm_up": 2}
OUTCOMES = st.sampled_from([0.0, 0.5, 1.0])
COSTS = st.integers(1, 50).map(lambda number: number * 1e-4)
EPISODES = st.lists(st.tuples(OUTCOMES, COSTS), min_size=4, max_size=30)


def alignment(**options: object) -> ScaleAlignment:
    return ScaleAlignment(AlignmentConfig.model_validate(options))


def make(**options: object) -> MemoryReward:
    return MemoryReward(MemoryRewardConfig.model_validate(options))


def play(
    reward: MemoryReward, outcome: list[float], cost: list[float], weight: float
) -> np.ndarray:
    outcome_B, cost_B = np.array(outcome, np.float32), np.array(cost)
    reward.push(outcome_B, cost_B)
    weight_B = np.full(len(outcome), weight, np.float32)
    return reward.combine(reward.score(outcome_B, cost_B), weight_B)


@pytest.mark.parametrize(
    ("outcome", "cost", "scale", "scaled"),
    [
        ([1], [0.5], 1, [1]),
        ([1, 0], [0, 1], 1, [1, 0]),
        ([1, 0, 1, 0], [0.25, 0.75, 0.5, 0.5], 0.353553, [0.3536, 0, 0.3536, 0]),
        ([1, 0.5, 0.5, 0], [1, 0.8, 0.2, 0], 1.16619, [1.1662, 0.5831, 0.5831, 0]),
        ([1, 1], [0.2, 0.8], 30000, [30000, 30000]),
        ([0, 0], [0.2, 0.8], 30000, [0, 0]),
        ([1, 0], [0.5, 0.5], 2e-05, [0, 0]),
        ([1, 0, 0.5], [0, 1, 0.5], 1, [0.5]),
        ([1, 1], [0.5, 0.7], 10000, [10000]),
        ([1, 0], [0.5, 0.7], 0.2, [0]),
        ([0.5, 0.5, 1, 0], [0.9, 0.1, 0.9, 0.1], 1.13137, [0.5657, 0.5657, 1.1314, 0]),
        ([0.2, 0.4, 0.6, 0.8], [1, 0.7, 0.3, 0], 1.70294, [0.3406, 0.6812, 1.0218, 1.3624]),
        ([1, 0] * 8, [0.6, 0.4] * 8, 0.2, [0.2, 0] * 8),
    ],
    ids=[f"A{number}" for number in range(1, 14)],
)
def test_the_scale_is_the_originals_where_it_is_set_so(
    outcome: list[float], cost: list[float], scale: float, scaled: list[float]
) -> None:
    last = len(scaled)
    original = alignment(**AS_PUBLISHED)
    original.push(np.array(outcome[:-last]), np.array(cost[:-last]))
    original.push(np.array(outcome[-last:]), np.array(cost[-last:]))
    assert original.scale == pytest.approx(scale, rel=1e-5)
    np.testing.assert_allclose(
        original.scale * np.array(outcome[-last:]), scaled, rtol=1e-5, atol=5e-5
    )


@pytest.mark.parametrize("outcome", [[1, 1], [0, 0]], ids=["A5", "A6"])
def test_the_scale_does_not_explode_by_default(outcome: list[float]) -> None:
    early, late = alignment(), alignment(warm_up=2)
    for measured in (early, late):
        measured.push(np.array(outcome), np.array([0.2, 0.8]))
    assert early.scale == 1.0  # during the warm-up
    assert late.scale == pytest.approx(0.3 / 0.05)  # the floor
    capped = alignment(warm_up=2, cap=2)
    capped.push(np.array(outcome), np.array([0.2, 0.8]))
    assert capped.scale == 2.0
    capped.push(np.tile([0.0, 1.0], 200), np.full(400, 0.5))
    assert capped.scale == 0.5  # beta is capped as k is


def test_the_scale_is_one_until_the_warm_up_is_over() -> None:
    measured = alignment()
    measured.push(np.tile([0.0, 1.0], 31), np.tile([0.4, 0.6], 31))
    assert (len(measured), measured.scale) == (62, 1.0)
    measured.push(np.array([0.0, 1.0]), np.array([0.4, 0.6]))
    assert (len(measured), measured.scale) == (64, pytest.approx(0.2))


def test_the_history_keeps_the_last_pairs_and_no_undefined_ones() -> None:
    measured = alignment(size=3, warm_up=2)
    measured.push(np.array([0.0, NAN, 1.0, 0.5]), np.array([0.1, 0.2, 0.3, NAN]))
    assert measured.get_state() == {"outcomes": [0.0, 1.0], "costs": [0.1, 0.3]}
    measured.push(np.array([0.0, 1.0]), np.array([0.3, 0.9]))
    assert measured.get_state() == {"outcomes": [1.0, 0.0, 1.0], "costs": [0.3, 0.3, 0.9]}
    assert measured.scale == pytest.approx(0.6)


CASES = [
    (
        [0.0001, 0.0004, 0.0009, 0.0016, 0.0025],
        [0.0, 0.5, 0.5, 1.0, 1.0],
        [1.0, 0.7778, 0.5, 0.2222, 0.0],
        {
            0.0: ([0.0, 0.4834, 0.4834, 0.9668, 0.9668], [0.0, 0.5, 0.5, 1.0, 1.0]),
            0.1: ([0.1, 0.5612, 0.5334, 0.989, 0.9668], [0.1034, 0.5804, 0.5517, 1.023, 1.0]),
            0.3: ([0.3, 0.7167, 0.6334, 1.0335, 0.9668], [0.3103, 0.7413, 0.6551, 1.069, 1.0]),
            0.9: ([0.9, 1.1834, 0.9334, 1.1668, 0.9668], [0.9309, 1.224, 0.9654, 1.2069, 1.0]),
        },
    ),
    (
        [0.0005, 0.0005, 0.004, 0.004],
        [0.5, 0.0, 1.0, 0.5],
        [1.0, 1.0, 0.0, 0.0],
        {
            0.0: ([0.7071, 0.0, 1.4142, 0.7071], [0.5, 0.0, 1.0, 0.5]),
            0.1: ([0.8071, 0.1, 1.4142, 0.7071], [0.5707, 0.0707, 1.0, 0.5]),
            0.3: ([1.0071, 0.3, 1.4142, 0.7071], [0.7121, 0.2121, 1.0, 0.5]),
            0.9: ([1.6071, 0.9, 1.4142, 0.7071], [1.1364, 0.6364, 1.0, 0.5]),
        },
    ),
    (
        [0.0, 0.002],
        [1.0, 1.0],
        [1.0, 0.0],
        {
            0.0: ([50000.0, 50000.0], [1.0, 1.0]),
            0.1: ([50000.1, 50000.0], [1.0, 1.0]),
            0.3: ([50000.3, 50000.0], [1.0, 1.0]),
            0.9: ([50000.9, 50000.0], [1.0, 1.0]),
        },
    ),
    (
        [0.001, 0.002, 0.003],
        [1.0, 0.0, 1.0],
        [1.0, 0.4342, 0.0],
        {
            0.0: ([0.8685, 0.0, 0.8685], [1.0, 0.0, 1.0]),
            0.1: ([0.9685, 0.0434, 0.8685], [1.1151, 0.05, 1.0]),
            0.3: ([1.1685, 0.1303, 0.8685], [1.3454, 0.15, 1.0]),
            0.9: ([1.7685, 0.3908, 0.8685], [2.0362, 0.4499, 1.0]),
        },
    ),
]


@pytest.mark.parametrize(
    ("cost", "outcome", "term", "weight", "code", "paper"),
    [
        (cost, outcome, term, weight, *forms)
        for cost, outcome, term, by_weight in CASES
        for weight, forms in by_weight.items()
    ],
    ids=[f"W{number}" for number in range(1, 17)],
)
def test_both_forms_give_what_the_original_gives(
    cost: list[float],
    outcome: list[float],
    term: list[float],
    weight: float,
    code: list[float],
    paper: list[float],
) -> None:
    for form, expected in (("code", code), ("paper", paper)):
        reward = make(form=form, alignment=AS_PUBLISHED)
        np.testing.assert_allclose(
            play(reward, outcome, cost, weight), expected, rtol=1e-7, atol=6e-5
        )
        terms = reward.score(np.array(outcome, np.float32), np.array(cost))
        np.testing.assert_allclose(terms["cost"], term, atol=5e-5)
        np.testing.assert_array_equal(terms["outcome"], outcome)


@pytest.mark.parametrize("form", ["paper", "code"])
def test_targets_stay_small_when_the_first_fifty_answers_are_all_right(form: str) -> None:
    ours, original = make(form=form), make(form=form, alignment=AS_PUBLISHED)
    costs = np.random.default_rng(0).uniform(0.0005, 0.005, 50)
    most = {
        name: max(abs(play(reward, [1.0], [cost], 0.9)[0]) for cost in costs)
        for name, reward in (("ours", ours), ("original", original))
    }
    assert most["ours"] < 10
    if form == "code":
        assert most["original"] > 10_000


@given(episodes=EPISODES, weight=st.sampled_from([0.0, 0.1, 0.5, 0.9]), published=st.booleans())
def test_both_forms_rank_the_episodes_of_a_batch_alike(
    episodes: list[tuple[float, float]], weight: float, published: bool
) -> None:
    outcome, cost = map(list, zip(*episodes, strict=True))
    options = AS_PUBLISHED if published else {"warm_up": 2}
    paper_B = play(make(form="paper", alignment=options), outcome, cost, weight).astype(float)
    reward = make(form="code", alignment=options)
    code_B = play(reward, outcome, cost, weight).astype(float)
    assume(reward.scale < 1000)  # beyond it 32 bits do not hold what a cost is worth
    apart_BB = paper_B[:, None] - paper_B
    np.testing.assert_allclose(code_B[:, None] - code_B, reward.scale * apart_BB, atol=1e-4)
    assume(paper_B.std() > 0.05)
    standard = [(total_B - total_B.mean()) / total_B.std(ddof=1) for total_B in (paper_B, code_B)]
    np.testing.assert_allclose(*standard, atol=2e-6)


def test_standardised_advantages_of_both_forms_agree_to_a_millionth() -> None:
    cost, outcome, _, _ = CASES[0]
    paper_B, code_B = (
        play(make(form=form, alignment=AS_PUBLISHED), outcome, cost, 0.3).astype(float)
        for form in ("paper", "code")
    )
    standard = [(total_B - total_B.mean()) / total_B.std(ddof=1) for total_B in (paper_B, code_B)]
    np.testing.assert_allclose(*standard, atol=1e-6)
    assert abs(paper_B - code_B).max() > 0.02


@given(episodes=EPISODES)
def test_the_scale_makes_both_terms_spread_alike(episodes: list[tuple[float, float]]) -> None:
    outcome_B, cost_B = np.array(episodes).T
    reward = make(alignment={"warm_up": 2})
    reward.push(outcome_B, cost_B)
    terms = reward.score(outcome_B, cost_B)
    spread = {name: float(value_B.astype(float).std()) for name, value_B in terms.items()}
    assume(min(spread.values()) > 0.05)
    assert reward.scale * spread["outcome"] == pytest.approx(spread["cost"], rel=1e-5)


@given(episodes=EPISODES, seed=st.integers(0, 100))
def test_at_weight_zero_costs_count_for_nothing(
    episodes: list[tuple[float, float]], seed: int
) -> None:
    outcome, cost = map(list, zip(*episodes, strict=True))
    mixed = np.random.default_rng(seed).permutation(cost).tolist()
    options = {"warm_up": 2}
    paper_B, paper_mixed_B = (
        play(make(form="paper", alignment=options), outcome, costs, 0.0) for costs in (cost, mixed)
    )
    np.testing.assert_array_equal(paper_B, paper_mixed_B)
    np.testing.assert_array_equal(paper_B, np.array(outcome, np.float32))
    code_B, code_mixed_B = (
        play(make(form="code", alignment=options), outcome, costs, 0.0) for costs in (cost, mixed)
    )
    np.testing.assert_array_equal(
        np.argsort(code_B, kind="stable"), np.argsort(code_mixed_B, kind="stable")
    )


@pytest.mark.parametrize("form", ["paper", "code"])
def test_a_failed_episode_earns_nothing_and_enters_nothing(form: str) -> None:
    holed, whole = make(form=form), make(form=form)
    outcome_B = np.array([1.0, NAN, 0.0, 0.5], np.float32)
    cost_B = np.array([0.004, 0.0, NAN, 0.001])
    holed.push(outcome_B, cost_B)
    whole.push(outcome_B[[0, 3]], cost_B[[0, 3]])
    assert holed.get_state() == whole.get_state()
    terms = holed.score(outcome_B, cost_B)
    for value_B in (*terms.values(), holed.combine(terms, np.zeros(4, np.float32))):
        np.testing.assert_array_equal(np.isnan(value_B), [False, True, True, False])


def test_terms_of_many_steps_are_combined_by_the_weight_of_their_episode() -> None:
    reward = make(form="paper", alignment=None)
    terms = {
        "outcome": np.array([[0, 0, 1], [0, 0, NAN]], np.float32),
        "cost": np.array([[0, 0, 0.5], [0, 0, NAN]], np.float32),
    }
    total_BT = reward.combine(terms, np.array([[0.2], [0.0]], np.float32))
    assert total_BT.dtype == np.float32
    np.testing.assert_allclose(total_BT, [[0, 0, 1.1], [0, 0, NAN]], rtol=1e-6)


def test_scoring_moves_nothing_and_a_frozen_reward_takes_nothing() -> None:
    reward = make(alignment={"warm_up": 2})
    play(reward, [1.0, 0.0, 1.0], [0.001, 0.002, 0.003], 0.3)
    before, frozen = reward.get_state(), reward.freeze()
    outcome_B, cost_B = np.array([1.0], np.float32), np.array([0.0015])
    kept = reward.score(outcome_B, cost_B)["cost"]
    assert reward.get_state() == before
    reward.push(np.ones(50, np.float32), np.linspace(0.0, 0.9, 50))
    assert reward.score(outcome_B, cost_B)["cost"] != kept
    np.testing.assert_array_equal(frozen.score(outcome_B, cost_B)["cost"], kept)
    assert frozen.scale == pytest.approx(0.8685, abs=5e-5)
    with pytest.raises(RLRouteError, match="a frozen memory reward takes no episodes"):
        frozen.push(outcome_B, cost_B)


@given(earlier=EPISODES, later=EPISODES, form=st.sampled_from(["paper", "code"]))
def test_a_saved_reward_goes_on_as_if_nothing_had_happened(
    earlier: list[tuple[float, float]], later: list[tuple[float, float]], form: str
) -> None:
    whole, restored = (make(form=form, alignment={"warm_up": 5}) for _ in range(2))
    outcome, cost = map(list, zip(*earlier, strict=True))
    play(whole, outcome, cost, 0.3)
    restored.set_state(json.loads(json.dumps(whole.get_state(), allow_nan=False)))
    assert restored.scale == whole.scale
    outcome, cost = map(list, zip(*later, strict=True))
    np.testing.assert_array_equal(
        play(restored, outcome, cost, 0.3), play(whole, outcome, cost, 0.3)
    )
    assert restored.get_state() == whole.get_state()


def test_a_fixed_reference_is_filled_in_once_it_is_known() -> None:
    config = MemoryRewardConfig.model_validate(
        {"cost": {"kind": "fixed", "reference_usd": None}, "alignment": None}
    )
    with pytest.raises(RLRouteError, match="give reference_usd in USD"):
        MemoryReward(config)
    reward = MemoryReward(config.resolve(0.004))
    found = play(reward, [1.0, 1.0, 0.0], [0.0, 0.001, 0.008], 0.5)
    np.testing.assert_allclose(found, [1.5, 1.375, 0.0])
    given_one = MemoryRewardConfig.model_validate({"cost": {"kind": "fixed", "reference_usd": 2}})
    assert given_one.resolve(0.004) == given_one
    assert MemoryRewardConfig().resolve(NAN) == MemoryRewardConfig()  # a window needs none
    for wrong in (0.0, NAN, np.inf):
        with pytest.raises(RLRouteError, match="must be a finite number above 0 USD"):
            config.resolve(wrong)


@pytest.mark.parametrize("weight", [0.0, 0.25, 0.8])
def test_an_unclipped_reference_charges_every_dollar_alike(weight: float) -> None:
    cost = {"kind": "fixed", "reference_usd": 0.004, "clip": False}
    found = play(make(cost=cost, alignment=None), [1.0, 0.5, 0.5], [0.002, 0.006, 0.01], weight)
    utility = np.array([1.0, 0.5, 0.5]) - weight * np.array([0.5, 1.5, 2.5])
    np.testing.assert_allclose(found, utility + weight, rtol=1e-6)


@pytest.mark.parametrize(
    ("outcome", "cost", "message"),
    [
        ([7.0], [0.1], r"a score must lie in \[0, 1\] \(NaN if undefined\), not 7.0"),
        ([-1.0], [0.1], r"a score must lie in \[0, 1\]"),
        ([1.0], [-0.1], "must be 0 USD or more"),
        ([1.0], [np.inf], "must be 0 USD or more"),
    ],
)
def test_impossible_scores_and_costs_are_refused(
    outcome: list[float], cost: list[float], message: str
) -> None:
    reward = make()
    for act in (reward.push, reward.score):
        with pytest.raises(RLRouteError, match=message):
            act(np.array(outcome, np.float32), np.array(cost))
    assert reward.get_state() == make().get_state()


@pytest.mark.parametrize(
    ("options", "state", "message"),
    [
        ({}, {"cost": {}}, "not the state of a memory reward"),
        ({}, {"cost": {}, "alignment": {}}, "not the state of a charge window"),
        (
            {"alignment": None},
            {"cost": {"charges_micro_usd": []}, "alignment": {"outcomes": [], "costs": []}},
            "this one has alignment: null",
        ),
        (
            {},
            {"cost": {"charges_micro_usd": []}, "alignment": {}},
            "not the state of a scale alignment",
        ),
        (
            {"alignment": {"size": 2, "warm_up": 2}},
            {
                "cost": {"charges_micro_usd": []},
                "alignment": {"outcomes": [1.0] * 3, "costs": [0.5] * 3},
            },
            "holds 3 outcomes and 3 costs; it must hold as many of both, 2 at most",
        ),
    ],
)
def test_a_state_of_something_else_is_refused(
    options: dict[str, object], state: dict[str, object], message: str
) -> None:
    with pytest.raises(RLRouteError, match=message):
        make(**options).set_state(state)


@pytest.mark.parametrize(
    "options",
    [
        {"form": "product"},
        {"cost": {"kind": "fixed", "reference_usd": 0}},
        {"alignment": {"floor": 0}},
        {"alignment": {"cap": 0.5}},
        {"alignment": {"warm_up": 1}},
        {"alignment": {"warm_up": 65, "size": 64}},
    ],
)
def test_settings_without_a_sense_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        MemoryRewardConfig.model_validate(options)
