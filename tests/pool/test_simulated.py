"""The simulated world: its optimum in closed form is that of enumeration, its draws are seeded."""

from __future__ import annotations

import asyncio
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlroute.pool.simulated import SimulatedPool, Skill, World, find_crossings, find_optimum
from rlroute.types import Call, Candidate, FailureKind, Prices, Query, Reply, RLRouteError

numbers = st.floats(-3, 3, allow_nan=False)


def enumerate_optimum(
    world: World, skills: list[Skill], cost_K: list[float], cost_weight: float, points: int
) -> float:
    """Return the mean worth of the best candidate over a grid of difficulties."""
    width = (world.hardest - world.easiest) / points
    difficulty_N = world.easiest + (np.arange(points) + 0.5) * width
    worth_KN = [
        world.compute_success(skill.skill, difficulty_N) - cost_weight * cost
        for skill, cost in zip(skills, cost_K, strict=True)
    ]
    return float(np.max(worth_KN, axis=0).mean())


@settings(max_examples=60, deadline=None)
@given(
    skills=st.lists(numbers, min_size=1, max_size=4),
    costs=st.lists(st.floats(0, 1), min_size=4, max_size=4),
    cost_weight=st.floats(0, 2),
    discrimination=st.floats(0.3, 4),
)
def test_the_optimum_in_closed_form_is_that_of_enumeration(
    skills: list[float], costs: list[float], cost_weight: float, discrimination: float
) -> None:
    world = World(discrimination=discrimination)
    held = [Skill(skill) for skill in skills]
    cost_K = costs[: len(held)]
    optimum = find_optimum(world, held, cost_K, cost_weight)
    found = enumerate_optimum(world, held, cost_K, cost_weight, 20_000)
    assert optimum.value == pytest.approx(found, abs=1e-6)
    assert optimum.value == pytest.approx(optimum.success - cost_weight * optimum.cost, abs=1e-12)


def test_the_dear_candidate_takes_the_middle_difficulties() -> None:
    optimum = find_optimum(World(), [Skill(-1.0), Skill(1.5)], [0.1, 1.0], 0.4)
    assert optimum.choices == (0, 1, 0)  # too easy to pay for, worth it, hopeless
    low, high = optimum.bounds[1:3]
    assert low < 0.25 < high


@given(skill_i=numbers, skill_j=numbers, gap=st.floats(-1, 1))
def test_two_candidates_are_worth_the_same_at_a_crossing(
    skill_i: float, skill_j: float, gap: float
) -> None:
    world = World()
    for difficulty in find_crossings(world, skill_i, skill_j, gap):
        found = world.compute_success(skill_i, difficulty)
        found = found - world.compute_success(skill_j, difficulty)
        assert float(found) == pytest.approx(gap, abs=1e-9)


def make_pool(skill: Skill, seed: int = 0) -> SimulatedPool:
    candidate = Candidate("a", Prices(1.0, 2.0))
    return SimulatedPool(World(seed=seed), {"a": candidate}, {"a": skill})


def ask(pool: SimulatedPool, count: int, sample: int = 0) -> list[Reply]:
    queries = [Query(f"q{i}", f"text {i}", references=("gold",)) for i in range(count)]
    calls = [Call("a", query, query.text, sample=sample) for query in queries]
    return asyncio.run(pool.ask_many(calls))


def test_draws_have_the_stated_distributions() -> None:
    skill = Skill(0.5, 64.0, 0.5, 0.5, {FailureKind.TIMEOUT: 0.1, FailureKind.SERVER: 0.05})
    replies = ask(make_pool(skill), 8000)
    failures = [reply.failure for reply in replies if reply.failure]
    assert failures.count(FailureKind.TIMEOUT) / 8000 == pytest.approx(0.1, abs=0.015)
    assert failures.count(FailureKind.SERVER) / 8000 == pytest.approx(0.05, abs=0.01)
    answered = [reply for reply in replies if reply.failure is None]
    mean = np.mean([reply.score for reply in answered])
    assert mean == pytest.approx(World().compute_mean_success(0.5, -3, 3), abs=0.02)
    assert {reply.text == "gold" for reply in answered if reply.score == 1.0} == {True}
    seconds = np.array([reply.latency_seconds for reply in replies])
    assert np.median(seconds) == pytest.approx(0.5, rel=0.05)
    assert np.log(seconds).std() == pytest.approx(0.5, rel=0.05)
    tokens = [reply.usage.completion_tokens for reply in answered if reply.usage]
    assert np.median(tokens) == pytest.approx(64, rel=0.1)


def test_a_failed_call_has_no_score_and_no_answer() -> None:
    reply = ask(make_pool(Skill(0.0, failures={FailureKind.REFUSED: 1.0})), 1)[0]
    assert (reply.failure, reply.score, reply.text) == (FailureKind.REFUSED, None, "")


def test_the_same_coordinates_give_the_same_and_others_do_not() -> None:
    first, again = ask(make_pool(Skill(0.0)), 50), ask(make_pool(Skill(0.0)), 50)
    assert first == again
    assert ask(make_pool(Skill(0.0)), 10) == first[:10]
    assert [r.score for r in ask(make_pool(Skill(0.0)), 50, sample=1)] != [r.score for r in first]
    assert [r.score for r in ask(make_pool(Skill(0.0), seed=1), 50)] != [r.score for r in first]


def test_a_stated_difficulty_counts() -> None:
    pool = make_pool(Skill(0.0))
    easy = Query("q", "t", metadata={"difficulty": "-50"})
    assert pool.answer(Call("a", easy, "t")).score == 1.0
    assert math.isclose(pool.get_difficulty(Call("a", easy, "t")), -50.0)
    with pytest.raises(RLRouteError, match="difficulty 'hard' must be a number"):
        pool.answer(Call("a", Query("q", "t", metadata={"difficulty": "hard"}), "t"))
