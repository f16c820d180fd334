"""The merged report of a sweep: spreads over seeds, tables, failures, files."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from evaluation_examples import build_topics
from rich.console import Console

from rlroute.evaluation.evaluate import evaluate_policies
from rlroute.evaluation.sweep_report import (
    HULL,
    Line,
    SeedResult,
    read_seed_result,
    render_sweep,
    summarise_sweep,
    trace_mean,
    write_markdown,
    write_sweep,
)
from rlroute.policies.baselines import AlwaysCandidate, Oracle
from rlroute.types import RLRouteError

LINE = Line((1.0, 3.0), (0.5, 0.7))


def make_result(setting, seed, aiq, saved=0.2, table="world"):
    own = {
        "aiq": aiq,
        "aiq_gain": aiq - 0.6,
        "quality": 0.7,
        "cost_usd": 0.002,
        "quality_at_best_single_cost": 0.7,
        "cost_saved": saved,
    }
    measures = {"setting": own, "kNN": own | {"aiq": 0.65}, HULL: own | {"aiq": 0.6}}
    return SeedResult(setting, seed, table, 100, (0.001, 0.004), measures, LINE, LINE)


@pytest.fixture
def results():
    return [
        make_result("hidden=8", 0, 0.61),
        make_result("hidden=8", 1, 0.64, saved=-np.inf),
        make_result("hidden=64", 0, 0.70),
        make_result("hidden=64", 1, 0.74),
    ]


def test_settings_and_baselines_stand_from_the_best_to_the_worst(results):
    rows = summarise_sweep(results, {}).rows
    assert [row.name for row in rows] == ["hidden=64", "kNN", "hidden=8", HULL]
    assert [row.is_setting for row in rows] == [True, False, True, False]
    spread = rows[0].spreads["aiq"]
    assert (spread.mean, spread.smallest, spread.largest) == pytest.approx((0.72, 0.70, 0.74))
    assert rows[0].seeds == (0, 1)


def test_a_quality_that_one_seed_never_reaches_has_no_mean_cost_saved(results):
    text = write_markdown(summarise_sweep(results, {}))
    row = next(line for line in text.splitlines() if "**hidden=8**" in line)
    assert "never (never to 20%)" in row
    assert "0.625 (0.610 to 0.640)" in row


def test_tables_have_their_own_section_and_failures_their_reason(results):
    results.append(make_result("hidden=8", 0, 0.3, table="other"))
    text = write_markdown(summarise_sweep(results, {"hidden=1-s0": "it broke"}))
    assert text.index("## world") < text.index("## other") < text.index("## Failed runs")
    assert "- hidden=1-s0: it broke" in text
    other = text[text.index("## other") :]
    assert "hidden=64" not in other


def test_one_seed_is_one_number():
    text = write_markdown(summarise_sweep([make_result("a|b", 3, 0.5)], {}))
    assert "| **a\\|b** | 3 | 0.500 | " in text


def test_the_band_holds_the_mean_and_nothing_stands_left_of_a_first_point():
    lines = [Line((1.0, 3.0), (0.2, 0.6)), Line((2.0, 3.0), (0.4, 0.4))]
    mean_N, smallest_N, largest_N = trace_mean(lines, np.array([1.5, 2.0, 3.0, 9.0]))
    assert np.isnan(mean_N[0])
    assert mean_N[1:] == pytest.approx([0.4, 0.5, 0.5])
    assert smallest_N[1:] == pytest.approx([0.4, 0.4, 0.4])
    assert largest_N[1:] == pytest.approx([0.4, 0.6, 0.6])


def test_what_an_evaluation_wrote_is_read(tmp_path, results):
    train, test = build_topics(60, 0, "train"), build_topics(50, 1)
    policies = [AlwaysCandidate("model-0"), AlwaysCandidate("model-2"), Oracle()]
    found = evaluate_policies(policies, train, test, [0.0, 1.0], bootstrap=10)
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(found.to_dict()), encoding="utf-8")
    read = read_seed_result(path, "always cheap", 4)
    assert (read.setting, read.seed, read.queries) == ("always cheap", 4, 50)
    assert read.measures["setting"]["aiq"] == found.subject.frontier.aiq.value
    assert read.measures["setting"]["cost_saved"] == -np.inf  # it never is as good
    assert read.measures[HULL]["aiq"] == found.zero_router.aiq.value
    assert len(read.measures) == 3  # the oracle is no rival
    assert read.line.cost_usd == found.subject.frontier.cost_usd


@pytest.mark.parametrize("content", ["{", "[]", '{"policies": []}', '{"policies": [{}]}'])
def test_a_torn_evaluation_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "evaluation.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(RLRouteError, match="cannot be read as an evaluation") as error:
        read_seed_result(path, "s", 0)
    assert "\n" not in str(error.value)


def test_a_folder_gets_json_markdown_and_picture(tmp_path, results):
    summary = write_sweep(tmp_path, results, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("sweep.json", "sweep.md", "sweep.png"),
    ]
    plain = json.loads((tmp_path / "sweep.json").read_text(encoding="utf-8"))
    assert plain["rows"][0]["spreads"]["aiq"]["smallest"] == pytest.approx(0.70)
    assert plain["rows"][2]["spreads"]["cost_saved"]["mean"] is None
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    console = Console(file=io.StringIO(), width=80)
    console.print(render_sweep(summary))
    assert "0.720 (0.700 to 0.740)" in console.file.getvalue()
