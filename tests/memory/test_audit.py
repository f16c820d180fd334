"""An audit tells which tiers differ, and refuses a strategy whose tiers are the same."""

from __future__ import annotations

import io

import pytest
from memory_example import CHUNKS, ScriptedTier, make_modules, make_pipeline, make_question
from rich.console import Console

from rlroute.memory.audit import audit_tiers, render_audit
from rlroute.memory.base import Module
from rlroute.types import RLRouteError

QUESTIONS = [make_question(f"q{n}") for n in range(6)]


def audit(*tiers, questions=QUESTIONS):
    """Return the audit of a pipeline whose entity module has these tiers."""
    modules = make_modules()
    modules[1] = Module("entity", "extract", "", tiers)
    return audit_tiers(make_pipeline(modules)[0], questions)


def note(text, name="a", **settings):
    return ScriptedTier(name, lambda work: tuple(text.split()), identity=text, **settings)


def get_rows(found, module="entity"):
    return [row for row in found.rows if row.module == module]


def test_tiers_that_differ_in_output_and_cost_pass():
    found = audit_tiers(make_pipeline()[0], QUESTIONS)
    found.check()
    assert len(found.rows) == 15
    assert found.list_faults() == found.list_equal_costs() == []
    assert [row.mean_cost_usd for row in found.rows[:3]] == pytest.approx([0, 0.01, 0.02])
    assert [row.differs for row in found.rows[:3]] == [None, 1.0, 1.0]


def test_the_share_of_inputs_with_another_output_is_measured():
    half = ScriptedTier(
        "half", lambda work: ("x",) if work.question.query.id in ("q0", "q1", "q2") else ("y",), 1.0
    )
    assert [row.differs for row in get_rows(audit(note("x"), half))] == [None, 0.5]


def test_notes_that_are_kept_for_low_and_mid_together_are_refused():
    """The original merges and keeps the notes of Low and Mid; both return them afterwards."""
    rules, encoder = {"Anna - owns - a cat"}, {"Anna - plays - the harp", "Anna - owns - a cat"}
    union = rules | encoder
    low = ScriptedTier("Low", lambda work: tuple(sorted(union)), identity="rules")
    mid = ScriptedTier("Mid", lambda work: tuple(sorted(union, reverse=True)), identity="encoder")
    high = ScriptedTier("High", lambda work: ("Anna - owns - two cats",), 0.01)
    found = audit(low, mid, high)
    message = "module 'entity', tier 'Mid': makes the same as tier 'Low' on every input"
    with pytest.raises(RLRouteError, match=message):
        found.check()
    assert len(found.list_faults()) == 1


def test_the_order_of_chunks_counts():
    modules = make_modules()
    tiers = (
        ScriptedTier("Low", lambda work: work.chunks[:2]),
        ScriptedTier("High", lambda work: work.chunks[1::-1], 0.01),
    )
    modules[0] = Module("filter", "filter", "", tiers)
    found = audit_tiers(make_pipeline(modules)[0], QUESTIONS)
    assert get_rows(found, "filter")[1].differs == 1.0


def test_equal_costs_are_reported_and_allowed():
    found = audit(note("x", "Low"), note("y", "Mid"), note("z", "High", cost_usd=0.5))
    found.check()
    assert found.list_equal_costs() == [
        "module 'entity': tiers 'Low' and 'Mid' both cost 0 USD; only what they make tells them "
        "apart"
    ]


def test_costs_that_fall_are_refused_with_numbers():
    found = audit(note("x", "Low", cost_usd=0.25), note("y", "High", cost_usd=0.125))
    message = r"tier 'High': costs 0\.125 USD, tier 'Low' before it 0\.25; list tiers from"
    with pytest.raises(RLRouteError, match=message):
        found.check()


def test_costs_are_compared_where_both_tiers_did_well():
    """Failures on the dear inputs alone would make the higher tier look cheaper."""

    class LengthTier(ScriptedTier):
        def run(self, work):
            made = super().run(work)
            dear = work.question.query.id in ("q4", "q5")
            return made if made.failure or not dear else type(made)(made.output, 10.0)

    low = LengthTier("Low", lambda work: ("x",), 0.25)
    high = LengthTier("High", lambda work: ("y",), 0.5, frozenset({"q4", "q5"}))
    found = audit(low, high)
    found.check()
    rows = get_rows(found)
    assert [row.failures for row in rows] == [0, 2]
    assert rows[0].mean_cost_usd == pytest.approx((4 * 0.25 + 20) / 6)
    assert (rows[1].cost_below_usd, rows[1].cost_above_usd) == (0.25, 0.5)


def test_a_tier_whose_runs_all_failed_is_refused():
    names = frozenset(question.query.id for question in QUESTIONS)
    found = audit(note("x", "Low"), note("y", "High", fails_for=names))
    row = get_rows(found)[1]
    assert (row.failures, row.mean_cost_usd, row.differs) == (6, None, None)
    with pytest.raises(RLRouteError, match="tier 'High': all 6 runs failed"):
        found.check()


def test_malformed_replies_are_counted():
    class SloppyTier(ScriptedTier):
        def run(self, work):
            made = super().run(work)
            return type(made)(made.output, 0.5, malformed=work.question.query.id == "q3")

    rows = get_rows(audit(note("x"), SloppyTier("b", lambda work: ("y",))))
    assert [row.malformed for row in rows] == [0, 1]


def test_later_modules_read_what_every_tier_before_them_made():
    modules = make_modules()
    audit_tiers(make_pipeline(modules)[0], QUESTIONS)
    seen = {len(work.chunks) for work in modules[1].tiers[0].seen}
    assert seen == {1, 2, 3}


def test_questions_are_asked_for():
    with pytest.raises(RLRouteError, match="needs at least one question"):
        audit(note("x"), note("y"), questions=[])


def test_a_module_that_is_left_without_input_is_named():
    names = frozenset(question.query.id for question in QUESTIONS)
    modules = make_modules()
    failing = ScriptedTier("F", lambda work: CHUNKS, fails_for=names)
    modules[0] = Module("filter", "filter", "", (failing, failing))
    message = (
        r"^module 'filter', tier 'F': 6 of 6 runs failed \(\w+\); module 'entity' has nothing left "
        "to read$"
    )
    with pytest.raises(RLRouteError, match=message):
        audit_tiers(make_pipeline(modules)[0], QUESTIONS)


def test_rows_are_plain_and_the_table_shows_them():
    names = frozenset(question.query.id for question in QUESTIONS)
    found = audit(note("x", "Low", cost_usd=0.001), note("y", "High", fails_for=names))
    row = next(row for row in found.to_rows() if row["tier"] == "Low")
    assert row["module"] == "entity"
    assert row["mean_cost_usd"] == pytest.approx(0.001)
    console = Console(width=120, file=io.StringIO())
    console.print(render_audit(found))
    lines = [line.split() for line in console.file.getvalue().splitlines() if "entity" in line]
    assert [[word for word in line if word != "│"] for line in lines] == [
        ["entity", "Low", "1.0000", "-", "0", "0", "6"],
        ["entity", "High", "-", "-", "6", "0", "6"],
    ]
