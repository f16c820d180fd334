"""What a memory-tier evaluation says, draws and writes: plain words, whole files, escaped text."""

from __future__ import annotations

import dataclasses
import html
import io
import itertools
import json
import re

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the extra `train` is absent")

from memory_examples import MODULES, make_evaluation

from rlroute.evaluation.intervals import Estimate
from rlroute.evaluation.memory_comparison import (
    choose_places,
    describe_memory_result,
    order_contenders,
    render_memory_comparison,
)
from rlroute.evaluation.memory_figures import (
    draw_learning_curves,
    draw_tier_shares,
    list_tier_names,
)
from rlroute.evaluation.memory_pipeline_figure import Box, draw_pipeline, lay_out
from rlroute.evaluation.memory_report import (
    MemoryReportContext,
    WorkedModule,
    WorkedQuestion,
    shorten_text,
    write_memory_report,
)
from rlroute.evaluation.memory_results import MemoryEvaluation, MemoryModule
from rlroute.types import RLRouteError

PNG = b"\x89PNG\r\n\x1a\n"
EVIL = '<img src="http://evil.example/x.png" onerror="alert(1)">'
LONG = "word " * 200


@pytest.fixture(scope="module")
def result() -> MemoryEvaluation:
    return make_evaluation(120, 60)


def strip_to_live(result: MemoryEvaluation) -> MemoryEvaluation:
    """Return what a live run would have: the subject alone, without oracle and statics."""
    points = tuple(
        dataclasses.replace(point, regret=None, oracle_share=None, above_static=None)
        for point in result.subject.points
    )
    subject = dataclasses.replace(result.subject, points=points)
    return dataclasses.replace(result, contenders=(subject,), levels=(), static_points=())


def replace_points(result: MemoryEvaluation, **values: object) -> MemoryEvaluation:
    """Return a result whose subject's points have other values."""
    points = tuple(
        dataclasses.replace(point, **values)  # type: ignore[arg-type]
        for point in result.subject.points
    )
    subject = dataclasses.replace(result.subject, points=points)
    return dataclasses.replace(result, contenders=(subject, *result.contenders[1:]))


def make_context(text: str = "Anna - lives in - Lisbon", runs: int = 2) -> MemoryReportContext:
    """Return a context with three worked questions and runs with learning curves."""
    modules = tuple(
        WorkedModule(one.name, "Low", text, 0.0001, "High" if one.name == "entity" else "Low")
        for one in MODULES
    )
    good = WorkedQuestion(
        "Where does Anna live?", ("Lisbon",), "single", 0.3, modules, "Lisbon",
        1.0, 0.0005, 0.0003, 1.0, 0.0021,
    )  # fmt: skip
    broken = dataclasses.replace(good, score=None, cost_usd=None, answer_cost_usd=None)
    wrong = dataclasses.replace(good, question=text, score=0.0, answer=text, kind=text)
    rows = [{"step": n, "reward/mean": n / 10, "eval/utility": n / 8} for n in range(6)]
    return MemoryReportContext(
        run_name=text,
        facts={"data": text},
        recipe_yaml=f"name: {text}\n",
        questions=(good, broken, wrong),
        audit_columns=("module", "tier", "mean USD"),
        audit_rows=((text, "Low", "0"),),
        audit_notes=(text,),
        histories={f"run {n}": rows for n in range(runs)},
    )


# --- Words ----------------------------------------------------------------------------------------


def test_at_most_three_cost_weights_are_shown(result):
    assert choose_places(result) == [0, 1, 3]
    assert choose_places(dataclasses.replace(result, cost_weights=(0.0, 0.3))) == [0, 1]
    assert choose_places(dataclasses.replace(result, cost_weights=(0.3,))) == [0]


def test_contenders_stand_by_utility_and_those_who_know_more_at_the_end(result):
    names = [one.name for one in order_contenders(result, 1)]
    assert names[:3] == ["routed", "classifier", "best static"]
    assert names[-2:] == ["best static per kind", "oracle"]


def test_sentences_say_who_beats_whom(result):
    text = " ".join(describe_memory_result(result))
    assert "At cost weight 0.1, routed has quality" in text
    assert "of the oracle's utility" in text
    assert re.search(r"beats .*best static \(\+0\.\d+\)", text)
    assert "levels of cost where there is something to win" in text
    assert "0.81 bits at cost weight 0.1" in text
    assert "CONSTANT" not in text


def test_sentences_say_as_plainly_that_it_loses(result):
    worse = dataclasses.replace(
        result,
        levels=tuple(
            dataclasses.replace(level, gain=Estimate(-0.1, -0.2, -0.05), headroom=0.2)
            for level in result.levels
        ),
    )
    text = " ".join(describe_memory_result(worse))
    assert "at 0 of 7 levels" in text
    assert "falls short of it at 7" in text


def test_warnings_name_constant_policies_rising_costs_failures_and_few_histories(result):
    constant = replace_points(result, shares=((1.0, 0.0, 0.0),) * 5)
    assert any(one.startswith("CONSTANT: at cost weight 0, 0.1") for one in
               describe_memory_result(constant))  # fmt: skip
    rising = replace_points(result, cost_change_usd=Estimate(0.002, 0.001, 0.003))
    assert "Its cost rises up to cost weight 0.3, by 2.00 USD" in " ".join(
        describe_memory_result(rising)
    )
    failing = replace_points(result, failed=3.0)
    assert "count for nothing: 3 of 120 at cost weight 0, 3 of" in " ".join(
        describe_memory_result(failing)
    )
    few = dataclasses.replace(result, resampled="questions")
    assert "narrower than they should be" in " ".join(describe_memory_result(few))


def test_a_live_run_is_described_without_an_oracle(result):
    text = " ".join(describe_memory_result(strip_to_live(result)))
    assert "oracle" not in text
    assert "static" not in text


def test_the_table_has_80_columns_and_every_contender(result):
    from rich.console import Console

    console = Console(width=80, file=io.StringIO())
    console.print(render_memory_comparison(dataclasses.replace(result, data="a [red]b")))
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert text.startswith("a [red]b, test")
    for name in ("routed", "all Low", "all High", "classifier", "oracle", "random"):
        assert text.count(name) >= 3
    assert "\N{HORIZONTAL ELLIPSIS}" not in text  # nothing is cut


# --- Pictures -------------------------------------------------------------------------------------


def test_learning_curves_show_several_runs_and_refuse_none():
    rows = [{"step": n, "eval/utility": float(np.sqrt(n))} for n in range(5)]
    one = draw_learning_curves({"per-decision": rows})
    two = draw_learning_curves({"per-decision": rows, "joint": rows})
    assert one.startswith(PNG)
    assert one != two
    with pytest.raises(RLRouteError, match="eval/utility"):
        draw_learning_curves({"empty": [{"step": 0}]})


def test_extractors_are_stacked_between_filter_and_summary():
    boxes, ends = lay_out(MODULES, [1, 2, 3], 2.0)
    assert boxes[1].left == boxes[2].left == boxes[3].left
    assert boxes[1].middle > boxes[2].middle > boxes[3].middle
    assert boxes[2].middle == boxes[0].middle == boxes[4].middle == 2.0
    order = [ends[0], boxes[0], boxes[2], boxes[4], ends[1]]
    assert all(a.right < b.left for a, b in itertools.pairwise(order))
    assert isinstance(ends[0], Box)


def test_tiers_of_different_names_are_told_apart_in_the_legend():
    modules = (MemoryModule("a", "filter", ("Low", "High")), MemoryModule("b", "x", ("Low", "Big")))
    assert list_tier_names(modules) == ["Low", "tier 2: High, Big"]


# --- Files ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory, result):
    """Return a run folder whose texts are long and hold markup."""
    path = tmp_path_factory.mktemp("run")
    write_memory_report(path, result, make_context(EVIL + LONG))
    return path


def test_a_run_folder_holds_the_whole_report(folder, result):
    assert {path.name for path in folder.iterdir()} == {
        *("evaluation.json", "frontier.png", "shares.png", "pipeline.png", "questions.jsonl"),
        "report.html",
    }
    for name in ("frontier.png", "shares.png", "pipeline.png"):
        assert (folder / name).read_bytes().startswith(PNG)
    plain = json.loads((folder / "evaluation.json").read_text())
    assert plain == json.loads(json.dumps(result.to_dict()))
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 6  # three pipelines, frontier, shares, curves
    for text in ("Where does Anna live?", "call failed", "best static per kind", "levels of cost"):
        assert text in page
    rows = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    assert [row["score"] for row in rows] == [1.0, None, 0.0]


def test_equal_data_give_equal_bytes_and_other_contenders_other_pictures(folder, result):
    assert draw_pipeline(result, 1) == (folder / "pipeline.png").read_bytes()
    assert draw_pipeline(result, 3) != (folder / "pipeline.png").read_bytes()
    assert draw_tier_shares(result, "classifier") != (folder / "shares.png").read_bytes()


def test_what_others_wrote_is_escaped(folder):
    page = (folder / "report.html").read_text()
    assert '<img src="http' not in page
    assert "<script" not in page
    # Title, heading, fact, audit (note and row), five modules of three questions, and the recipe.
    assert page.count("&lt;img") >= 21


def test_long_texts_are_cut_on_the_page_and_whole_in_the_file(folder):
    rows = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    assert rows[0]["modules"][0]["text"] == EVIL + LONG
    cell = re.search(r'<td class="returned">(.*?)</td>', (folder / "report.html").read_text())
    shown = html.unescape(cell.group(1))
    assert shown.endswith("...")
    assert 390 < len(shown) <= 400
    assert shorten_text("x" * 400) == "x" * 400
    assert shorten_text("x" * 401) == "x" * 397 + "..."


def test_a_live_run_has_a_report_too(tmp_path, result):
    context = MemoryReportContext(run_name="live", facts={}, recipe_yaml="")
    write_memory_report(tmp_path, strip_to_live(result), context)
    page = (tmp_path / "report.html").read_text()
    assert "The recipe asks for none." in page
    assert "For the same money" not in page
    assert "Do the tiers differ?" not in page
    assert page.count("data:image/png;base64,") == 5
