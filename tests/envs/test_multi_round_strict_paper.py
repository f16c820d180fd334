"""`strict_paper`: what the original does with a chunk (its cases S1 to S14), faults included."""

from __future__ import annotations

import pytest

from rlroute.envs.multi_round import MultiRound, MultiRoundConfig
from rlroute.types import Candidate, FailureKind, Prices, Query, Reply, RLRouteError, Usage

NAMES = ("Qwen2.5-7B-Instruct", "Mixtral-8x22B-Instruct")
CANDIDATES = tuple(Candidate(f"served/{name}", Prices(9, 9), aliases=(name,)) for name in NAMES)
QUERY = Query("q", "Who?", references=("X", "Y"))
THINK = "<think>t</think>"
UNKNOWN = "\n\n<information>None</information>\n\n"
REPLY = "\n\n<information>R</information>\n\n"


def start():
    environment = MultiRound(CANDIDATES, MultiRoundConfig(strict_paper=True, grade="squad_exact"))
    environment.reset(QUERY, 0)
    return environment


def take(environment, chunk, text="R", failure=None):
    """Take one chunk; replies have 100 tokens. Returns the proposed calls and the step."""
    calls = environment.propose(chunk)
    usage = None if failure else Usage(50, 100)
    replies = [Reply(call, text=text, usage=usage, failure=failure) for call in calls]
    return calls, environment.observe(replies)


@pytest.mark.parametrize(
    ("chunk", "query", "observation", "micro_usd"),
    [
        (f"{THINK}<search>{NAMES[0]}:Q?</search> junk <answer>X</answer>", "Q?", REPLY, 30.0),
        ("<search>LLM-Name:Your-Query</search>", None, "", 0),
        ("<search>Qwen no colon</search>", None, "", 0),
        ("<search>Qwen: </search>", None, "", 0),
        ("<search>GPT-4o:Q?</search>", None, UNKNOWN, 0),
        (f"<search>{NAMES[1]}:T: rest?</search>", "T", REPLY, 120.0),
        ("<search>:Q?</search>", None, UNKNOWN, 0),
        ("no tags", None, "", 0),
        ("<search>gemma:meant, but not in this pool</search>", None, UNKNOWN, 0),
    ],
    ids=["S1", "S4", "S5", "S6", "S7", "S8", "S9", "S12", "absent"],
)
def test_a_chunk_that_goes_on(chunk, query, observation, micro_usd):
    environment = start()
    calls, step = take(environment, chunk)
    assert [call.text for call in calls] == ([] if query is None else [query])
    assert step.observation.text == observation
    assert not step.terminated
    assert environment.spent.usd * 1e6 == pytest.approx(micro_usd)


@pytest.mark.parametrize(
    ("chunk", "answer", "format_term"),
    [
        (f"{THINK}<answer>X</answer> and text", "X", 0.0),
        (f"{THINK}<answer>X</answer> <search>{NAMES[0]}:Q</search>", "X", -1.0),
        (f"{THINK}<answer></answer>", "", 0.0),
        (f"{THINK}<search><answer>Y</answer>", "Y", -1.0),
    ],
    ids=["S2", "S3", "S10", "S11"],
)
def test_a_chunk_that_answers(chunk, answer, format_term):
    environment = start()
    _, step = take(environment, chunk)
    assert step.terminated
    assert environment.find_answer() == answer
    terms = {"format": format_term, "outcome": float(bool(answer)), "charge_usd": 0.0}
    assert step.reward_terms == terms


def test_a_failed_call_is_free_and_the_episode_goes_on():  # S13
    environment = start()
    _, step = take(environment, "<search>qwen:Q</search>", failure=FailureKind.TIMEOUT)
    assert step.observation.text == UNKNOWN
    assert (step.terminated, environment.spent.usd) == (False, 0.0)


@pytest.mark.parametrize("chunk", ["<search>qwen:Q</search>", "no tags"])
def test_after_four_rounds_of_any_kind_one_closing_chunk_ends_without_a_call(chunk):  # S14
    environment = start()
    for _ in range(4):
        _, step = take(environment, chunk)
        assert not step.terminated
    calls, step = take(environment, "<search>qwen:Q</search>")
    assert calls == ()
    assert (step.terminated, step.truncated, step.observation.text) == (True, False, "")
    assert step.reward_terms["format"] == -1


def test_the_format_is_judged_on_replies_too_and_a_long_one_loses_its_closing_tag():
    terms = []
    for text in ("R", "R</answer>", "R" * 3000):
        environment = start()
        take(environment, f"{THINK}<search>qwen:Q</search>", text)
        terms.append(take(environment, f"{THINK}<answer>X</answer>")[1].reward_terms["format"])
    assert terms == [0, -1, -1]


def test_a_candidate_outside_the_pool_of_the_original_is_refused():
    with pytest.raises(RLRouteError, match="'alpha' is not of Router-R1's pool"):
        MultiRound((Candidate("alpha", Prices(1, 1)),), MultiRoundConfig(strict_paper=True))
