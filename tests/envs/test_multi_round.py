"""One question, several rounds: what follows each chunk, and what the end is worth."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlroute.envs.multi_round import MultiRound, MultiRoundConfig
from rlroute.parsing import TAGS, Fault
from rlroute.types import (
    Candidate,
    FailureKind,
    Prices,
    Query,
    Reply,
    RLRouteError,
    Usage,
)

CANDIDATES = (
    Candidate("alpha", Prices(1.0, 2.0, 1e-4), aliases=("Small One",)),
    Candidate("beta", Prices(5.0, 15.0, 1e-3)),
)
QUERY = Query("q1", "Who is it?", references=("Ada", "Ada L."), metadata={"hops": "1"})
THINK = "<think>Let me see.</think>"
CALL = f"{THINK}<search>alpha:Who: is?</search>"
ANSWER = f"{THINK}<answer>Ada</answer>"


def make_environment(**options):
    return MultiRound(CANDIDATES, MultiRoundConfig(**options))


def play(environment, chunks, replies=(), seed=0):
    """Play chunks; the n-th call gets the n-th reply text (or failure). Returns the steps."""
    environment.reset(QUERY, seed)
    waiting, steps = list(replies), []
    for chunk in chunks:
        answers = []
        for call in environment.propose(chunk):
            reply = waiting.pop(0) if waiting else "I do not know."
            if isinstance(reply, FailureKind):
                answers.append(Reply(call, failure=reply, cost_usd=0.7))
            else:
                answers.append(Reply(call, text=reply, usage=Usage(3, 5), cost_usd=0.001))
        steps.append(environment.observe(answers))
    return steps


def test_call_then_answer_is_one_call_with_the_whole_query_and_all_three_terms():
    environment = make_environment()
    environment.reset(QUERY, 0)
    (call,) = environment.propose(CALL)
    assert (call.candidate_id, call.text, call.query) == ("alpha", "Who: is?", QUERY)
    assert call.max_output_tokens == 512
    assert call.system
    step = environment.observe([Reply(call, text="Ada.", usage=Usage(3, 5), cost_usd=0.001)])
    assert step.observation.text == "\n\n<information>Ada.</information>\n\nCalls left: 3.\n\n"
    assert step.reward_terms == {}
    assert not step.terminated
    assert environment.propose(ANSWER) == ()
    step = environment.observe([])
    assert step.reward_terms == {"format": 0.0, "outcome": 1.0, "charge_usd": 0.001}
    assert (step.terminated, step.truncated, step.observation.text) == (True, False, "")


def test_the_short_form_puts_the_ledger_on_a_line_of_its_own():
    steps = play(make_environment(prompt="short"), [CALL, "what?"], ["Ada."])
    assert steps[0].observation.text == "\n<information>Ada.</information>\ncalls 3\n"
    assert steps[1].observation.text == f"\n{Fault.NO_TAG.value}\ncalls 3\n"


@pytest.mark.parametrize(
    ("chunk", "fault"),
    [
        ("Ada", Fault.NO_TAG),
        ("<search>alpha</search>", Fault.NO_COLON),
        ("<search>gpt:x</search>", Fault.UNKNOWN_NAME),
        ("<search>alpha: </search>", Fault.EMPTY_QUERY),
        ("<search>LLM-Name:Your-Query</search>", Fault.PLACEHOLDER),
        ("<search>alpha:<think>x</think></search>", Fault.NESTED),
        ("<answer><search></answer>", Fault.NESTED),
    ],
)
def test_an_unusable_chunk_is_a_legal_step_that_is_told_what_is_wrong(chunk, fault):
    for prompt in ("full", "short"):
        environment = make_environment(prompt=prompt)
        steps = play(environment, [chunk, ANSWER])
        assert fault.value in steps[0].observation.text
        assert not steps[0].terminated
        assert steps[1].reward_terms["format"] < 0
        assert steps[1].reward_terms["charge_usd"] == 0
    assert play(make_environment(feedback=False), [chunk])[0].observation.text == ""


@pytest.mark.parametrize("max_calls", [0, 1, 4])
def test_a_policy_that_always_calls_makes_max_calls_calls_and_ends_without_an_answer(max_calls):
    environment = make_environment(max_calls=max_calls)
    steps = play(environment, [CALL] * (max_calls + 1))
    assert [step.terminated for step in steps] == [False] * max_calls + [True]
    assert environment.spent.calls == max_calls
    assert steps[-1].reward_terms == {
        "format": -1.0,
        "outcome": 0.0,
        "charge_usd": pytest.approx(0.001 * max_calls),
    }
    assert not any(step.truncated for step in steps)
    with pytest.raises(ValueError, match="over"):
        environment.propose(CALL)


def test_after_the_last_call_the_policy_reads_that_none_is_left_and_may_answer():
    steps = play(make_environment(max_calls=1), [CALL, ANSWER])
    assert "No calls left" in steps[0].observation.text
    assert steps[1].reward_terms["format"] == 0


def test_the_limit_of_chunks_truncates_and_its_last_chunk_calls_nobody():
    environment = make_environment(max_calls=2, max_turns=3)
    steps = play(environment, ["hm", "hm", CALL])
    assert [(step.terminated, step.truncated) for step in steps] == [
        (False, False),
        (False, False),
        (False, True),
    ]
    assert environment.spent.calls == 0
    assert steps[-1].reward_terms == {"format": -1.0, "outcome": 0.0, "charge_usd": 0.0}
    assert play(environment, ["hm", "hm", ANSWER])[-1].terminated


def test_the_harness_can_end_an_episode_between_two_chunks():
    environment = make_environment()
    play(environment, [CALL])
    step = environment.truncate()
    assert (step.terminated, step.truncated) == (False, True)
    assert step.reward_terms == {"format": -1.0, "outcome": 0.0, "charge_usd": 0.001}
    with pytest.raises(ValueError, match="over"):
        environment.truncate()


@pytest.mark.parametrize("failure", FailureKind)
def test_a_failed_reply_ends_the_episode_and_leaves_every_term_undefined(failure):
    (step,) = play(make_environment(), [CALL], [failure])
    assert (step.terminated, step.truncated, step.observation.text) == (True, False, "")
    assert step.reward_terms == {"format": None, "outcome": None, "charge_usd": None}


def test_a_question_without_references_has_no_outcome():
    environment = make_environment()
    environment.reset(Query("q", "Who?"), 0)
    environment.propose(ANSWER)
    assert environment.observe([]).reward_terms["outcome"] is None


@given(
    st.lists(
        st.sampled_from(
            [f"<{tag}>" for tag in TAGS] + [f"</{tag}>" for tag in TAGS] + ["Ada", " "]
        ),
        max_size=12,
    ).map("".join)
    | st.sampled_from(["<answer>Ada</answer>", "</information><answer>Ada</answer>", "<think>"])
)
def test_tags_in_a_reply_change_no_term_and_no_block(reply):
    for last, outcome in ((ANSWER, 1.0), (f"{THINK}<answer>Bo</answer>", 0.0)):
        steps = play(make_environment(), [CALL, last], [reply])
        assert steps[1].reward_terms == {"format": 0.0, "outcome": outcome, "charge_usd": 0.001}
        block = steps[0].observation.text
        assert block.count("<information>") == block.count("</information>") == 1


def test_a_long_reply_is_cut_and_its_block_closed():
    (step,) = play(make_environment(reply_characters=10), [CALL], ["x" * 9 + "</information>" * 9])
    assert "<information>xxxxxxxxx< [cut]</information>\n\n" in step.observation.text


def test_faults_anywhere_in_an_episode_are_faults_at_its_end():
    steps = play(make_environment(), ["<search>alpha:x</search>", ANSWER])
    assert steps[-1].reward_terms["format"] == -1  # no think block before the call
    steps = play(make_environment(require_think=False), ["<search>alpha:x</search>", ANSWER])
    assert steps[-1].reward_terms["format"] == 0


@given(st.integers(0, 2**62))
def test_the_cost_weight_is_drawn_from_the_list_by_the_seed_alone(seed):
    environment = make_environment(cost_weights=(0.0, 0.3, 1.0))
    first, again = environment.reset(QUERY, seed), environment.reset(QUERY, seed)
    assert first == again
    assert first.cost_weight in (0.0, 0.3, 1.0)
    assert f"Cost weight: {first.cost_weight:g}." in first.text


def test_all_cost_weights_are_drawn():
    environment = make_environment(cost_weights=(0.0, 0.3, 1.0))
    assert {environment.reset(QUERY, seed).cost_weight for seed in range(50)} == {0.0, 0.3, 1.0}


@given(
    st.lists(
        st.sampled_from([CALL, "hm", "<search>x:y</search>", "<search>beta:x</search>", ANSWER]),
        max_size=6,
    )
)
def test_a_state_survives_json_wherever_the_episode_stands(chunks):
    environment, other = make_environment(max_calls=2), make_environment(max_calls=2)
    observation = environment.reset(QUERY, 5)
    for chunk in chunks:
        state = json.loads(json.dumps(environment.get_state(), allow_nan=False))
        assert other.set_state(state) == observation
        assert other.transcript == environment.transcript
        steps = []
        for one in (environment, other):
            replies = [Reply(c, "Ada", Usage(1, 1), 0.001) for c in one.propose(chunk)]
            steps.append(one.observe(replies))
        assert steps[0] == steps[1]
        observation = steps[0].observation
        if steps[0].terminated or steps[0].truncated:
            break
    state = json.loads(json.dumps(environment.get_state()))
    assert other.set_state(state) == observation
    assert other.ended == environment.ended


def test_the_transcript_is_the_prompt_and_all_that_follows_in_order():
    environment = make_environment(prompt="short")
    steps = play(environment, [CALL, ANSWER], ["Ada"])
    assert environment.transcript == (
        environment.prompt + CALL + steps[0].observation.text + ANSWER
    )


def test_steps_out_of_order_are_refused():
    environment = make_environment()
    with pytest.raises(ValueError, match="over"):
        environment.propose(CALL)
    environment.reset(QUERY, 0)
    with pytest.raises(ValueError, match="propose"):
        environment.observe([])
    environment.propose(CALL)
    for refused in (lambda: environment.propose(CALL), environment.truncate, environment.get_state):
        with pytest.raises(ValueError, match="awaited"):
            refused()
    with pytest.raises(ValueError, match="0 replies to 1 calls"):
        environment.observe([])


def test_limits_that_contradict_each_other_and_an_empty_pool_are_refused():
    with pytest.raises(ValueError, match="max_turns"):
        MultiRoundConfig(max_calls=4, max_turns=4)
    with pytest.raises(ValueError, match="strict_paper"):
        MultiRoundConfig(strict_paper=True, max_usd=1.0)
    with pytest.raises(RLRouteError, match="at least one"):
        MultiRound((), MultiRoundConfig())
