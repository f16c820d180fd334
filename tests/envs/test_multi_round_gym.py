"""The multi-round environment through Gymnasium."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlroute.types import Candidate, FailureKind, Prices, Query, Reply, RLRouteError, Usage

gymnasium = pytest.importorskip("gymnasium")

from rlroute.envs.checker import run_check  # noqa: E402 - needs gymnasium
from rlroute.envs.multi_round_gym import ChunkText, UnicodeText  # noqa: E402

MULTI_ROUND = "rlroute/MultiRound-v0"
CANDIDATES = (Candidate("alpha", Prices(1.0, 2.0)), Candidate("beta", Prices(5.0, 15.0)))
QUERIES = (Query("q1", "Who?", references=("Ada",)), Query("q2", "Where?", references=("Rome",)))
FIXED = {"normaliser": {"kind": "fixed", "reference_usd": 0.01}}
THINK = "<think>hm</think>"


class EchoPool:
    """Answers with the query; `beta` always fails."""

    async def ask_many(self, calls):
        return [
            Reply(call, failure=FailureKind.TIMEOUT)
            if call.candidate_id == "beta"
            else Reply(call, text=call.text, usage=Usage(4, 4), cost_usd=0.004)
            for call in calls
        ]


def make(**arguments):
    given = {"candidates": CANDIDATES, "queries": QUERIES, "pool": EchoPool(), "reward": FIXED}
    return gymnasium.make(MULTI_ROUND, **{**given, **arguments})


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"config": {"prompt": "short", "cost_weights": [0.0, 0.5], "max_calls": 2}},
        {"config": {"max_usd": 0.004, "feedback": False}, "reward": {"combination": "additive"}},
    ],
    ids=["default", "short", "limits"],
)
def test_our_checker_and_gymnasiums_pass_on_the_relations_world(arguments):
    assert len(run_check(MULTI_ROUND, arguments)) == 6


def test_our_checker_passes_where_calls_fail():
    arguments = {"candidates": CANDIDATES, "queries": QUERIES, "pool": EchoPool(), "reward": FIXED}
    assert len(run_check(MULTI_ROUND, arguments)) == 6


def test_an_episode_is_rewarded_at_its_end_with_the_terms_apart():
    environment = make(config={"cost_weights": [0.5]})
    text, info = environment.reset(seed=0, options={"query_id": "q1"})
    assert "Question: Who?" in text
    assert info == {"query_id": "q1", "cost_weight": 0.5}
    text, reward, *ends, info = environment.step(f"{THINK}<search>alpha:é\u4e2d?</search>")
    assert "<information>é\u4e2d?</information>" in text
    assert (reward, ends) == (0.0, [False, False])
    assert "reward_terms" not in info
    *_, reward, terminated, truncated, info = environment.step(f"{THINK}<answer>Ada</answer>")
    assert (terminated, truncated) == (True, False)
    assert info["reward_terms"] == pytest.approx(
        {"format": 0.0, "outcome": 1.0, "charge_usd": 0.004, "cost": 0.6}
    )
    assert reward == pytest.approx(0.5 * 1.0 + 0.5 * 0.6)


def test_a_failed_call_gives_no_number():
    environment = make()
    environment.reset(seed=0)
    _, reward, terminated, _, info = environment.step(f"{THINK}<search>beta:Who?</search>")
    assert terminated
    assert math.isnan(reward)
    assert all(math.isnan(value) for value in info["reward_terms"].values())


def test_options_decide_query_and_cost_weight():
    environment = make(config={"cost_weights": [0.0, 0.5, 1.0]})
    first = environment.reset(seed=1, options={"query_index": 1, "episode_seed": 7})
    assert environment.reset(seed=2, options={"query_id": "q2", "episode_seed": 7}) == first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pool": None}, "give candidates, queries and pool"),
        ({"queries": ()}, "queries is empty"),
        ({"config": {"max_call": 2}}, "unknown key 'max_call'"),
        ({"reward": {"combination": "sum"}}, "reward: combination"),
    ],
)
def test_unfit_arguments_are_refused_in_one_line(arguments, message):
    with pytest.raises(RLRouteError, match=message):
        make(**arguments)


@given(st.text())
def test_any_text_is_in_the_spaces(text):
    assert text in UnicodeText()
    assert text in ChunkText(["alpha"])


def test_sampled_chunks_are_reproducible_and_of_every_kind():
    space, other = ChunkText(["alpha"]), ChunkText(["alpha"])
    space.seed(3)
    other.seed(3)
    samples = [space.sample() for _ in range(60)]
    assert samples == [other.sample() for _ in range(60)]
    assert any("<search>alpha:" in sample for sample in samples)
    assert any("<answer>" in sample for sample in samples)
