from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from rlroute.pool.pool_file import PricesEntry
from rlroute.types import Usage
from rlroute.worlds.scripted_executors import (
    Executors,
    ExecutorSpec,
    PoolExecutor,
    ScriptedExecutor,
    attempt_step,
    check_executors,
    estimate_usage,
    find_command,
    hash_words,
    limit_words,
    make_default_executors,
)
from rlroute.worlds.text_games import Memo

SMALL = PricesEntry(input=0.4, output=1.6)
LARGE = PricesEntry(input=2.0, output=8.0)
VERBS = ("go", "take", "open")


def make_small(**fields):
    return ScriptedExecutor(id="small", prices=SMALL, **fields)


def attempt_many(spec, command="take key", count=2000):
    others = ("look", "go east", "inventory")
    return [attempt_step(spec, command, others, (seed, "task", 3)) for seed in range(count)]


@pytest.mark.parametrize(("command", "rate"), [("take key", 0.2), ("go east", 0.9), ("", 0.9)])
def test_the_probability_to_follow_goes_by_the_first_word(command, rate):
    spec = make_small(follow={"take": 0.2}, follow_otherwise=0.9)
    assert spec.find_follow_probability(command) == rate


def test_executors_follow_as_often_as_stated_and_otherwise_spread_over_the_distractions():
    attempts = attempt_many(make_small(follow={"take": 0.3}))
    assert np.mean([one.followed for one in attempts]) == pytest.approx(0.3, abs=0.04)
    assert all(one.followed == (one.command == "take key") for one in attempts)
    for distraction in ("look", "go east", "inventory"):
        share = np.mean([one.command == distraction for one in attempts])
        assert share == pytest.approx(0.7 / 3, abs=0.04)


def test_confidence_tells_steps_that_followed_from_others_but_not_always():
    attempts = attempt_many(make_small(follow={"take": 0.5}))
    followed = np.array([one.confidence for one in attempts if one.followed])
    strayed = np.array([one.confidence for one in attempts if not one.followed])
    assert (followed[:, None] > strayed[None, :]).mean() == pytest.approx(0.837, abs=0.03)
    assert followed.min() < strayed.max()
    assert 0 <= strayed.min() <= followed.max() <= 1


def test_attempts_depend_on_their_coordinates_and_the_executor_alone():
    spec = make_small(follow={"take": 0.5})
    other = ScriptedExecutor(id="other", prices=SMALL, follow={"take": 0.5})
    assert attempt_many(spec, count=50) == attempt_many(spec, count=50)
    assert attempt_many(spec, count=50) != attempt_many(other, count=50)


def test_nobody_follows_where_the_game_has_no_next_command():
    attempt = attempt_step(make_small(follow_otherwise=1.0), None, ("look",), (1,))
    assert (attempt.command, attempt.followed) == ("look", False)


def test_the_token_model_counts_4_bytes_a_token_and_a_fixed_completion():
    assert estimate_usage(make_small(), "a" * 401) == Usage(101, 40)
    executors = Executors((make_small(completion_tokens=200),))
    assert executors.bound_cost_usd(0, "a" * 12_000) == pytest.approx(0.00152)


def test_the_bound_of_a_pool_executor_counts_every_byte_and_the_template():
    executors = Executors((PoolExecutor(id="agent", prices=LARGE, max_output_tokens=100),))
    assert executors.bound_cost_usd(0, "é" * 500) == pytest.approx((1256 * 2 + 100 * 8) / 1e6)


def test_the_bound_takes_the_dearer_of_cached_and_other_tokens():
    prices = PricesEntry(input=1.0, output=0.0, cached_input=3.0)
    executors = Executors((PoolExecutor(id="agent", prices=prices),))
    assert executors.bound_cost_usd(0, "a" * 744) == pytest.approx(1000 * 3 / 1e6)


def test_executors_stand_in_the_order_of_their_prices():
    dear, cheap = make_default_executors({})[1], make_default_executors({})[0]
    executors = Executors((dear, cheap))
    assert [one.id for one in executors.candidates] == ["small", "large"]
    assert executors.candidates[1].prices == LARGE.to_prices()


@pytest.mark.parametrize(("command", "advised"), [("take key", 1), ("go east", 0), (None, 0)])
def test_advice_is_the_cheapest_executor_that_follows_nearly_as_often(command, advised):
    executors = Executors(make_default_executors({"take": 0.1}))
    assert executors.advise(command, 0.8) == advised


def test_there_is_no_advice_where_a_skill_is_unknown():
    pool = PoolExecutor(id="agent", prices=LARGE)
    assert Executors((make_small(), pool)).advise("go east", 0.8) is None


@pytest.mark.parametrize(
    ("reply", "command"),
    [
        ("take key from box", "take key from box"),
        ("  Take  KEY\nfrom box ", "take key from box"),
        ("I take key from box", None),
        ("take key from box.", None),
        ("take key", None),
        ("", None),
    ],
)
def test_a_reply_is_a_command_as_a_whole_or_not_at_all(reply, command):
    assert find_command(reply, ["go east", "take key from box"]) == command


@given(st.text(), st.integers(1, 40))
def test_hashed_words_have_length_one_or_none(text, size):
    hashed = hash_words(text, size)
    assert hashed.shape == (size,)
    assert hashed.dtype == np.float32
    length = float(np.linalg.norm(hashed))
    assert length == pytest.approx(1.0, abs=1e-5) or length == 0


def test_hashed_words_ignore_case_order_and_marks():
    assert np.array_equal(hash_words("Take the Key!", 16), hash_words("key the take", 16))
    assert not np.array_equal(hash_words("take", 16), hash_words("drop", 16))


@given(st.text(), st.integers(1, 30))
def test_a_limited_text_has_no_more_words_than_that(text, most):
    assert len(limit_words(text, most).split()) <= most


def test_a_limited_text_says_that_it_was_cut():
    assert limit_words("one  two three", 2) == "one two..."
    assert limit_words("one  two", 2) == "one two"


@pytest.mark.parametrize(
    ("specs", "fault"),
    [
        ([], "at least one"),
        ([make_small(), make_small()], "distinct"),
        ([make_small(follow={"tkae": 0.5})], "unknown verb 'tkae' \\(go, take, open\\)"),
    ],
)
def test_faulty_pools_are_refused(specs, fault):
    with pytest.raises(ValueError, match=fault):
        check_executors(specs, VERBS)


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_rates_outside_0_and_1_are_refused(rate):
    with pytest.raises(ValueError):
        make_small(follow={"take": rate})


def test_the_kind_tells_scripted_executors_from_those_behind_a_pool():
    stated = {"kind": "pool", "id": "agent", "prices": {"input": 1, "output": 2}}
    assert isinstance(TypeAdapter(ExecutorSpec).validate_python(stated), PoolExecutor)


def test_a_memo_forgets_what_was_used_longest_ago():
    memo, computed = Memo(2), []

    def find(key):
        return memo.find(key, lambda: computed.append(key) or key)

    assert [find(key) for key in "abac"] == list("abac")
    assert computed == list("abc")
    find("a")
    find("b")
    assert computed == list("abcb")
