"""Language models as tiers: what is asked, what a run costs, and what a failure is worth."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest
from memory_example import (
    CANDIDATE,
    CHUNKS,
    WritingPool,
    make_question,
    make_spec,
    run_fault_server,
)

from rlroute.memory.base import ModuleInput
from rlroute.memory.config import LlmAnswererSpec, LlmTierSpec
from rlroute.memory.llm_tiers import LlmAnswerer, LlmTier
from rlroute.pool.open import open_pool
from rlroute.pool.pool_file import PoolFile
from rlroute.types import FailureKind, Prices

NOTES = {"entity": ("Anna - owns - a cat",), "temporal": (), "topic": ("Anna - owns - a; b",)}


def make_tier(role, write, style="direct", name="entity", keep=2):
    spec = LlmTierSpec(kind="llm", candidate="large", prompt=style, max_output_tokens=99)
    return LlmTier("High", make_spec(name, role), spec, CANDIDATE, WritingPool(write), keep)


def run(tier, *works):
    return asyncio.run(tier.run_many(works or [ModuleInput(make_question(), CHUNKS)]))


def test_one_call_is_made_per_input_at_temperature_zero():
    tier = make_tier("extract", lambda call: "<answer>[]</answer>")
    run(tier, *(ModuleInput(make_question(name), CHUNKS) for name in "abc"))
    calls = tier.pool.calls
    assert [call.query.id for call in calls] == ["a", "b", "c"]
    facts = {(call.candidate_id, call.temperature, call.max_output_tokens) for call in calls}
    assert facts == {("large", 0.0, 99)}


def test_a_call_says_what_it_is_about_in_terms_of_turns():
    tier = make_tier("extract", lambda call: "<answer>[]</answer>", "cot")
    question = make_question()
    query = replace(question.query, metadata={"level": "easy"})
    run(tier, ModuleInput(replace(question, query=query), CHUNKS[:2]))
    metadata = tier.pool.calls[0].query.metadata
    assert metadata["level"] == "easy"
    assert json.loads(metadata["memory"]) == {
        "module": "entity",
        "role": "extract",
        "style": "cot",
        "turn_ids": [["t0"], ["t1"]],
        "notes": {},
    }


def test_a_summary_is_about_notes_and_no_turns():
    tier = make_tier("summary", lambda call: "<answer>s</answer>", "reflect", "summary")
    (made,) = run(tier, ModuleInput(make_question(), CHUNKS, NOTES))
    about = json.loads(tier.pool.calls[0].query.metadata["memory"])
    assert about["turn_ids"] == []
    assert about["notes"] == {name: list(lines) for name, lines in NOTES.items()}
    assert made.output == "s"


def test_a_run_costs_what_the_reply_costs():
    (made,) = run(make_tier("filter", lambda call: "<answer>[0, 1, 2, 3, 4]</answer>"))
    assert [chunk.id for chunk in made.output] == ["h:0:4", "h:0:3"]
    assert made.cost_usd == pytest.approx((1000 * 2 + 100 * 10) / 1e6)
    assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (1000, 100)
    assert (made.seconds, made.failure, made.malformed) == (0.25, None, False)


def test_a_malformed_reply_is_flagged_and_paid():
    (made,) = run(make_tier("extract", lambda call: '<answer>{"facts": 3}</answer>'))
    assert (made.output, made.malformed, made.failure) == ((), True, None)
    assert made.cost_usd > 0


@pytest.mark.parametrize(("role", "empty"), [("filter", ()), ("extract", ()), ("summary", "")])
def test_a_failed_call_is_a_failed_run_with_an_empty_output(role, empty):
    (made,) = run(make_tier(role, lambda call: FailureKind.TIMEOUT))
    assert made.failure is FailureKind.TIMEOUT
    assert made.output == empty
    assert made.cost_usd == 0.5  # what the attempts were billed


def test_a_failure_leaves_the_other_inputs_alone():
    tier = make_tier(
        "extract",
        lambda call: FailureKind.SERVER if call.query.id == "b" else '<answer>["x"]</answer>',
    )
    runs = run(tier, *(ModuleInput(make_question(name), CHUNKS) for name in "abc"))
    assert [made.output for made in runs] == [("x",), (), ("x",)]


def test_the_fingerprint_tells_apart_all_that_changes_outputs_or_costs():
    def write(call):
        return ""

    tier = make_tier("extract", write)
    cheaper = replace(CANDIDATE, prices=Prices(1.0, 10.0))
    others = [
        make_tier("extract", write, "cot"),
        make_tier("extract", write, name="topic"),
        make_tier("summary", write),
        replace(tier, candidate=cheaper),
        replace(tier, candidate=replace(CANDIDATE, id="larger")),
        replace(tier, identity="another model behind this name"),
        replace(tier, spec=tier.spec.model_copy(update={"max_output_tokens": 100})),
        replace(tier, module=tier.module.model_copy(update={"instructions": "Note nothing."})),
    ]
    prints = {one.fingerprint() for one in [tier, *others]}
    assert len(prints) == len(others) + 1
    assert replace(tier, name="Top").fingerprint() == tier.fingerprint()


def test_only_a_filter_depends_on_how_many_chunks_are_kept():
    for role, equal in (("filter", False), ("extract", True), ("summary", True)):
        tier = make_tier(role, str)
        assert (replace(tier, keep=3).fingerprint() == tier.fingerprint()) is equal


def test_an_answerer_reads_the_summary_only():
    pool = WritingPool(lambda call: FailureKind.REFUSED if call.query.id == "b" else " a cat ")
    answerer = LlmAnswerer(LlmAnswererSpec(kind="llm", candidate="large"), CANDIDATE, pool)
    questions = [make_question("a"), make_question("b")]
    good, failed = asyncio.run(answerer.answer_many(questions, ["Anna owns a cat.", "s"]))
    assert (good.text, good.failure, good.cost_usd) == ("a cat", None, pytest.approx(0.003))
    assert (failed.text, failed.failure) == ("", FailureKind.REFUSED)
    assert "<summary>\nAnna owns a cat.\n</summary>" in pool.calls[0].text
    assert pool.calls[0].max_output_tokens == 64


def test_a_tier_asks_a_real_server_through_the_pool(tmp_path):
    spec = LlmTierSpec(kind="llm", candidate="large", max_output_tokens=64)
    module = make_spec("entity", "extract")
    with run_fault_server(prices={"input": 2.0, "output": 10.0}) as server:
        pool_file = PoolFile.model_validate(
            {
                "candidates": {
                    "large": {
                        "endpoint": server.url,
                        "model": "served",
                        "prices": {"input": 2.0, "output": 10.0},
                    }
                }
            }
        )
        pool = open_pool(pool_file)

        async def ask():
            tier = LlmTier("High", module, spec, pool.candidates["large"], pool, 5)
            works = [ModuleInput(make_question(name), CHUNKS) for name in "ab"]
            try:
                return await tier.run_many(works)
            finally:
                await pool.close()

        runs = asyncio.run(ask())
        report = server.read_report()
    assert [made.failure for made in runs] == [None, None]
    assert report["requests"] == {"ok": 2}
    billed = sum(made.usage.prompt_tokens * 2 + made.usage.completion_tokens * 10 for made in runs)
    assert sum(made.cost_usd for made in runs) == pytest.approx(billed / 1e6)
    assert all(made.seconds > 0 and made.output == () for made in runs)  # it echoes the prompt
