"""Limits of an episode: hard, by upper bounds, and told to the policy."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from rlroute.envs.multi_round import MultiRound, MultiRoundConfig
from rlroute.parsing import Fault
from rlroute.pool.chat import OVERHEAD_TOKENS
from rlroute.types import Candidate, Limits, Prices, Query, Reply, Usage

CANDIDATES = (
    Candidate("alpha", Prices(1.0, 2.0, 1e-4)),
    Candidate("beta", Prices(5.0, 15.0, 1e-3), limits=Limits(output_tokens=100)),
    Candidate("gamma", Prices(3.0, 1.0, 0.0, cached_input=4.0)),
    Candidate("free", Prices(0.0, 0.0)),
)
BY_ID = {candidate.id: candidate for candidate in CANDIDATES}
QUERY = Query("q1", "Who is the coach of Ada?", references=("Bo",))
ANSWER = "<think>ok</think><answer>Bo</answer>"


def write_call(name: str, text: str) -> str:
    return f"<think>I ask.</think><search>{name}:{text}</search>"


def reply_dearly(call) -> Reply:
    """Return the dearest reply that a pool may give: every limit used up."""
    candidate = BY_ID[call.candidate_id]
    prompt_tokens = len(call.text.encode()) + len(call.system.encode()) + OVERHEAD_TOKENS
    tokens = min(call.max_output_tokens, candidate.limits.output_tokens or 10**9)
    prices = candidate.prices
    dearest = dataclasses.replace(prices, input=max(prices.input, prices.cached_input or 0.0))
    cost = dearest.compute_cost(prompt_tokens, tokens)
    return Reply(call, text="x", usage=Usage(prompt_tokens, tokens), cost_usd=cost)


@given(
    st.lists(st.tuples(st.sampled_from(sorted(BY_ID)), st.text(min_size=1, max_size=200))),
    st.none() | st.floats(1e-6, 0.05),
    st.none() | st.integers(1, 1500),
    st.integers(1, 512),
)
def test_nothing_that_a_pool_may_charge_passes_a_cap(calls, max_usd, max_tokens, reply_tokens):
    config = MultiRoundConfig(
        max_calls=6,
        max_turns=50,
        max_usd=max_usd,
        max_reply_tokens_total=max_tokens,
        reply_tokens=reply_tokens,
    )
    environment = MultiRound(CANDIDATES, config)
    environment.reset(QUERY, 0)
    for name, text in calls[:49]:
        if environment.ended:
            break
        environment.observe([reply_dearly(c) for c in environment.propose(write_call(name, text))])
        spent = environment.spent
        assert spent.calls <= 6
        assert max_usd is None or spent.usd <= max_usd
        assert max_tokens is None or spent.reply_tokens <= max_tokens


@given(st.floats(1e-6, 0.05), st.integers(1, 1500))
def test_a_listed_candidate_is_called_with_the_question_and_an_unlisted_one_is_not(usd, tokens):
    config = MultiRoundConfig(prompt="short", max_usd=usd, max_reply_tokens_total=tokens)
    environment = MultiRound(CANDIDATES, config)
    head = environment.reset(QUERY, 0).text.split("\n")[0]
    listed = head.partition(" afford ")[2].split(", ")
    for candidate in CANDIDATES:
        environment.reset(QUERY, 0)
        proposed = environment.propose(write_call(candidate.id, QUERY.text))
        assert bool(proposed) == (candidate.id in listed)


def test_an_unaffordable_call_is_a_legal_step_and_no_fault_of_form():
    environment = MultiRound(CANDIDATES, MultiRoundConfig(max_usd=0.002))
    prompt = environment.reset(QUERY, 0).text
    assert "Models you can still afford: alpha, free." in prompt
    assert environment.propose(write_call("beta", "Who?")) == ()
    step = environment.observe([])
    assert Fault.UNAFFORDABLE.value in step.observation.text
    assert "Models you can still afford: alpha, free." in step.observation.text
    assert not step.terminated
    environment.propose(ANSWER)
    terms = environment.observe([]).reward_terms
    assert terms == {"format": 0.0, "outcome": 1.0, "charge_usd": 0.0}


def test_a_query_with_half_a_character_is_bounded_too():
    environment = MultiRound(CANDIDATES, MultiRoundConfig(max_usd=0.002))
    environment.reset(QUERY, 0)
    assert len(environment.propose(write_call("alpha", "Who is \ud800?"))) == 1


def test_where_nobody_is_affordable_the_policy_is_told_to_answer():
    environment = MultiRound(CANDIDATES, MultiRoundConfig(max_reply_tokens_total=50))
    assert "none, answer now" in environment.reset(QUERY, 0).text


def test_a_reply_without_usage_counts_as_long_as_it_may_be():
    config = MultiRoundConfig(reply_tokens=200, max_reply_tokens_total=250)
    environment = MultiRound(CANDIDATES, config)
    environment.reset(QUERY, 0)
    (call,) = environment.propose(write_call("alpha", "Who?"))
    step = environment.observe([Reply(call, text="x", cost_usd=0.001)])
    assert environment.spent.reply_tokens == 200
    assert "Tokens left for replies: 50." in step.observation.text
    assert environment.propose(write_call("alpha", "Who?")) == ()


def test_without_the_ledger_only_the_reply_follows_a_call():
    environment = MultiRound(CANDIDATES, MultiRoundConfig(ledger=False, max_usd=1.0))
    environment.reset(QUERY, 0)
    (call,) = environment.propose(write_call("alpha", "Who?"))
    step = environment.observe([reply_dearly(call)])
    assert step.observation.text == "\n\n<information>x</information>\n\n"
