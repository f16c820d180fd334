"""One reward from three terms: Router-R1's number by number (R), xRouter's, and their laws."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rlroute.rewards.charge import FixedReference, FixedReferenceConfig
from rlroute.rewards.combination import (
    Combination,
    MultiplicativeConfig,
    cancel_terms,
    combine_terms,
    weigh_terms,
)
from rlroute.rewards.grading import GRADES
from rlroute.types import RLRouteError

UNIT = st.floats(0, 1, width=32)
FORMAT = st.sampled_from([0.0, -1.0])
NAN = float("nan")
TOLERANCE = 1e-6
CONSTANTS = MultiplicativeConfig()

Combine = Callable[[float, float, float, float], float]


def single(combination: Combination, constants: MultiplicativeConfig = CONSTANTS) -> Combine:
    """Return a combination of numbers instead of arrays."""

    def combine_one(format: float, outcome: float, cost: float, weight: float) -> float:
        terms = {"format": format, "outcome": outcome, "cost": cost}
        arrays = {name: np.array([value], dtype=np.float32) for name, value in terms.items()}
        weight_N = np.array([weight], dtype=np.float32)
        return float(combine_terms(arrays, weight_N, combination, constants)[0])

    return combine_one


gated = single("gated")
additive = single("additive")
multiplicative = single("multiplicative")
ALL = {"gated": gated, "additive": additive, "multiplicative": multiplicative}


@pytest.mark.parametrize(
    ("grade", "answer", "gold", "format", "cost", "weight", "outcome", "reward"),
    [
        ("exact", "Paris", ["Paris"], 0, 1.0, 0.0, 1.0, 1.0),
        ("exact", "Paris", ["Paris"], 0, 0.2, 0.0, 1.0, 1.0),
        ("exact", "London", ["Paris"], 0, 1.0, 0.0, 0.0, 0.0),
        ("exact", "London", ["Paris"], 0, 1.0, 0.9, 0.0, 0.0),
        ("exact", "Paris", ["Paris"], -1, 1.0, 0.6, 1.0, -1.0),
        ("exact", "Paris", ["Paris"], 0, 1.0, 0.6, 1.0, 1.0),
        ("exact", "Paris", ["Paris"], 0, 0.5, 0.6, 1.0, 0.7),
        ("exact", "Paris", ["Paris"], 0, 0.0, 0.6, 1.0, 0.4),
        ("exact", "Paris", ["Paris"], 0, 0.0, 0.9, 1.0, 0.1),
        ("exact", "Paris", ["Paris"], 0, 0.5, 0.9, 1.0, 0.55),
        ("exact", "big apple", ["New York", "the Big Apple"], 0, 0.25, 0.6, 1.0, 0.55),
        ("f1", "Paris France", ["Paris"], 0, 0.8, 0.0, 0.6667, 0.6667),
        ("f1", "Paris France", ["Paris"], 0, 0.8, 0.6, 0.6667, 0.7467),
        ("f1", "Paris France", ["Paris"], 0, 0.8, 0.9, 0.6667, 0.7867),
        ("f1", "London", ["Paris"], 0, 0.8, 0.6, 0.0, 0.0),
        ("f1", "Paris France", ["Paris"], -1, 0.8, 0.6, 0.6667, -1.0),
        ("exact", "", ["Paris"], -1, 0.7, 0.6, 0.0, -1.0),
        ("exact", "", ["Paris"], 0, 0.7, 0.6, 0.0, 0.0),
        ("f1", "New York City", ["New York", "NYC"], 0, 0.0, 0.7, 0.8, 0.24),
        ("exact", "Paris", ["Paris"], 0, 0.3, 1.0, 1.0, 0.3),
    ],
    ids=[f"R{number}" for number in range(1, 21)],
)
def test_the_gated_reward_is_the_originals(
    grade: str,
    answer: str,
    gold: list[str],
    format: float,
    cost: float,
    weight: float,
    outcome: float,
    reward: float,
) -> None:
    graded = GRADES[f"squad_{grade}"](answer, gold)
    assert graded == pytest.approx(outcome, abs=5e-5)
    assert gated(format, graded, cost, weight) == pytest.approx(reward, abs=5e-5)


def test_a_cheap_wrong_answer_earns_in_the_additive_form_only() -> None:
    assert additive(0, 0, 1, 0.9) == pytest.approx(0.9)
    assert additive(0, 1, 0.5, 0.6) == pytest.approx(0.7)
    assert additive(-1, 1, 1, 0.6) == -1
    assert gated(0, 0, 1, 0.9) == multiplicative(0, 0, 1, 0.9) == 0


@pytest.mark.parametrize(
    ("penalty_per_usd", "cap", "score", "cost_usd", "reward"),
    [
        (3.0, 0.8, 1, 0.10, 0.70),
        (3.0, 0.8, 1, 0.25, 0.25),
        (3.0, 0.8, 1, 0.50, 0.20),
        (3.0, 0.8, 0.5, 0.10, 0.35),
        (3.0, 0.8, 0, 0.01, 0.0),
        (3.0, 0.8, 1, 0.0, 1.0),
        (2.0, 0.6, 1, 0.2, 0.60),
        (2.0, 0.6, 1, 0.4, 0.40),
    ],
)
def test_the_multiplicative_reward_is_xrouters_at_cost_weight_one(
    penalty_per_usd: float, cap: float, score: float, cost_usd: float, reward: float
) -> None:
    reference = FixedReference(FixedReferenceConfig(reference_usd=cap / penalty_per_usd))
    cost = float(reference.normalise(np.array([cost_usd]))[0])
    combine = single("multiplicative", MultiplicativeConfig(ceiling=1.0, cap=cap))
    assert combine(0, score, cost, 1) == pytest.approx(reward, abs=1e-6)
    assert combine(0, score, cost, 0) == pytest.approx(score)


@pytest.mark.parametrize("name", ALL)
@given(value=st.floats(-1, -0.001953125, width=32), outcome=UNIT, cost=UNIT, weight=UNIT)
def test_a_broken_format_is_the_whole_reward(
    name: str, value: float, outcome: float, cost: float, weight: float
) -> None:
    assert ALL[name](value, outcome, cost, weight) == value


@given(cost=UNIT, other=UNIT, weight=UNIT)
def test_for_a_wrong_answer_cost_moves_the_additive_reward_alone(
    cost: float, other: float, weight: float
) -> None:
    for combine in (gated, multiplicative):
        assert combine(0, 0, cost, weight) == combine(0, 0, other, weight) == 0
    difference = additive(0, 0, cost, weight) - additive(0, 0, other, weight)
    assert difference == pytest.approx(weight * (cost - other), abs=TOLERANCE)


@pytest.mark.parametrize("name", ALL)
@given(format=FORMAT, outcome=UNIT, cheap=UNIT, dear=UNIT, weight=UNIT)
def test_a_dearer_episode_never_earns_more(
    name: str, format: float, outcome: float, cheap: float, dear: float, weight: float
) -> None:
    low, high = sorted((cheap, dear))
    combine = ALL[name]
    assert combine(format, outcome, low, weight) <= combine(format, outcome, high, weight)


@pytest.mark.parametrize("name", ["gated", "additive"])
@given(outcome=UNIT.filter(lambda value: value > 0), cost=UNIT, less=UNIT, more=UNIT)
def test_a_larger_cost_weight_pulls_the_reward_towards_the_cost_term(
    name: str, outcome: float, cost: float, less: float, more: float
) -> None:
    low, high = sorted((less, more))
    change = ALL[name](0, outcome, cost, high) - ALL[name](0, outcome, cost, low)
    assert change <= TOLERANCE if cost < outcome else change >= -TOLERANCE


@pytest.mark.parametrize("name", ALL)
@given(format=FORMAT, outcome=UNIT, cost=UNIT, weight=UNIT)
def test_a_reward_is_minus_one_or_lies_in_the_unit_interval(
    name: str, format: float, outcome: float, cost: float, weight: float
) -> None:
    reward = ALL[name](format, outcome, cost, weight)
    assert reward == -1 or 0 <= reward <= 1
    assert (reward == -1) == (format == -1)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("hole", range(3))
def test_an_undefined_term_makes_the_reward_undefined_whatever_the_others(
    name: str, hole: int
) -> None:
    for format in (0.0, -1.0):
        for weight in (0.0, 0.5, 1.0):
            terms = [format, 0.0, 0.5]
            terms[hole] = NAN
            assert np.isnan(ALL[name](*terms, weight))


@pytest.mark.parametrize("name", ALL)
@given(format=FORMAT, outcome=UNIT, cost=UNIT, weight=UNIT)
def test_the_reward_is_the_weighted_sum_of_the_cancelled_terms(
    name: str, format: float, outcome: float, cost: float, weight: float
) -> None:
    given_terms = {"format": format, "outcome": outcome, "cost": cost}
    arrays = {term: np.array([value], dtype=np.float32) for term, value in given_terms.items()}
    kept = cancel_terms(arrays, name)  # type: ignore[arg-type]
    weights = weigh_terms(np.array([weight]), name, MultiplicativeConfig())  # type: ignore[arg-type]
    total = sum(weights[term][0] * kept[term][0] for term in kept)
    assert ALL[name](format, outcome, cost, weight) == pytest.approx(total, abs=TOLERANCE)


@pytest.mark.parametrize("weight", [-0.1, 1.1, NAN])
def test_a_cost_weight_outside_the_unit_interval_is_refused(weight: float) -> None:
    with pytest.raises(RLRouteError, match=r"must lie in \[0, 1\]"):
        gated(0, 1, 1, weight)


def test_a_cap_above_the_ceiling_would_punish_right_answers_and_is_refused() -> None:
    with pytest.raises(ValidationError, match="must not exceed ceiling"):
        MultiplicativeConfig(ceiling=0.5, cap=0.6)
