"""Tasks of reasoning-gym: made from stated seeds, graded by their own scorers."""

from __future__ import annotations

import pytest

from rlroute.data.reasoning_tasks import grade_answer, make_examples, make_queries
from rlroute.types import Query, RLRouteError

pytest.importorskip("reasoning_gym", reason="reasoning-gym is absent")

EASY = {"max_terms": 2, "max_digits": 1}
HARD = {"min_terms": 4, "max_terms": 5, "min_digits": 3}
GENERATORS = ["chain_sum", "word_sorting", "coin_flip", "syllogism", "calendar_arithmetic"]


@pytest.mark.parametrize("generator", GENERATORS)
def test_the_reference_scores_one_and_an_empty_answer_nothing(generator: str) -> None:
    for query in make_queries(generator, 1, {}, count=8, seed=0):
        assert grade_answer(query, query.references[0]) == 1.0
        assert grade_answer(query, "") == 0.0
        assert 0.0 <= grade_answer(query, "a wrong answer") < 0.5


def test_the_same_coordinates_make_the_same_tasks() -> None:
    assert make_queries("gcd", 1, {}, count=5, seed=1) == make_queries(
        "gcd", 1, {}, count=5, seed=1
    )


def test_more_tasks_begin_with_the_same_ones() -> None:
    assert make_queries("gcd", 1, {}, count=9, seed=1)[:4] == make_queries(
        "gcd", 1, {}, count=4, seed=1
    )


def test_seed_and_level_change_the_tasks() -> None:
    made = [
        tuple(query.text for query in make_queries("gcd", level, {}, count=5, seed=seed))
        for level, seed in [(1, 1), (1, 2), (2, 1)]
    ]
    assert len(set(made)) == 3


def test_no_text_is_made_twice_or_that_is_excluded() -> None:
    queries = make_queries("products", 1, {"max_digits": 1}, count=60, seed=0)
    texts = [query.text for query in queries]
    assert len(set(texts)) == len(texts) == 60
    others = make_queries("products", 1, {"max_digits": 1}, count=60, seed=0, exclude=texts)
    assert not set(texts) & {query.text for query in others}
    assert len(others) < 60  # there are but a hundred products of two digits


def test_examples_take_the_levels_in_turn_and_repeat_nothing() -> None:
    examples = make_examples("chain_sum", [EASY, HARD], count=6, seed=0)
    assert len({question for question, _ in examples}) == 6
    lengths = [len(question) for question, _ in examples]
    assert max(lengths[0::2]) < min(lengths[1::2])
    assert all(answer.lstrip("-").isdigit() for _, answer in examples)


def test_a_query_carries_its_level_and_is_graded_by_what_it_carries() -> None:
    (query,) = make_queries("chain_sum", 2, HARD, count=1, seed=0)
    assert (query.task, query.metadata["level"]) == ("chain_sum", "2")
    copy = Query(query.id, query.text, query.task, metadata=dict(query.metadata))
    assert grade_answer(copy, query.references[0]) == 1.0
    with pytest.raises(RLRouteError, match="index"):
        grade_answer(Query("q", "text", "chain_sum"), "1")


def test_unknown_generators_and_settings_are_refused_by_name() -> None:
    with pytest.raises(RLRouteError, match="no_such_generator"):
        make_queries("no_such_generator", 1, {}, count=1, seed=0)
    with pytest.raises(RLRouteError, match="max_moons"):
        make_queries("gcd", 1, {"max_moons": 3}, count=1, seed=0)
    with pytest.raises(RLRouteError, match="too few different tasks"):
        make_examples("products", [{"max_digits": 1}], count=500, seed=0)
