"""The report: complete, self-contained, escaped, atomic."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import struct

import numpy as np
import pytest
from evaluation_examples import build_data, build_topics

from rlroute.evaluation import labels
from rlroute.evaluation.comparison import format_number, format_price, format_share, rank_singles
from rlroute.evaluation.evaluate import evaluate_policies
from rlroute.evaluation.figures import draw_frontier, draw_learning_curve, make_figure
from rlroute.evaluation.figures_selection import draw_selection_by_task, draw_selection_by_weight
from rlroute.evaluation.report import ReportContext, format_duration, write_report
from rlroute.policies.baselines import Oracle, RandomCandidate, fit_baselines

PNG = b"\x89PNG\r\n\x1a\n"


class Page(html.parser.HTMLParser):
    """Collects what a page refers to, and checks that its tags nest."""

    VOID = ("meta", "br", "img", "link", "input", "hr")

    def __init__(self, text):
        super().__init__()
        self.links, self.tags, self.text, self.open = [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for key, value in attrs if key in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def result():
    train, val = build_topics(200, 0, "train"), build_topics(100, 1, "val")
    best, cheapest, random, knn, ridge, *_, oracle = fit_baselines(train, val)
    policies = [knn, best, cheapest, random, ridge, oracle]
    weights = [0.0, 0.1, 0.5, 2.0]
    test = build_topics(120, 2)
    return evaluate_policies(policies, train, test, weights, val=val, bootstrap=50)


@pytest.fixture(scope="module")
def context():
    candidates = build_topics(2, 0).table.candidates
    return ReportContext(
        run_name="run <script>alert(1)</script>",
        split_queries={"train": 200, "val": 100, "test": 120},
        candidates=candidates,
        encoder="hashing, 2 dimensions",
        algorithm="kNN & nothing else",
        seed=7,
        recipe_yaml="table: example\nnote: '<b>'\n",
        history=[{"step": step, "eval/aiq": 0.5 + step / 100} for step in range(5)],
        command="rlroute train x.yaml",
        versions={"numpy": "2.0"},
        wall_seconds=83.0,
    )


@pytest.fixture(scope="module")
def page(result, context, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_report(folder, result, context)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def read_size(png):
    assert png.startswith(PNG)
    return struct.unpack(">II", png[16:24])


def test_a_run_folder_gets_page_picture_and_numbers_and_nothing_else(result, context, tmp_path):
    write_report(tmp_path, result, context)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["evaluation.json", "frontier.png", "report.html"]
    plain = json.loads((tmp_path / "evaluation.json").read_text())
    assert plain["best_single"] == result.best_single
    assert read_size((tmp_path / "frontier.png").read_bytes())[0] > 1000


def test_the_page_is_self_contained_and_runs_no_script(page):
    assert page.links
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert page.open == []


def test_what_comes_from_outside_is_escaped(page):
    assert "run <script>alert(1)</script>" in page.text
    assert "note: '<b>'" in page.text
    assert "b" not in page.tags[page.tags.index("pre") :]


def test_the_page_tells_what_was_trained_on_what(page):
    for part in ("example", "200 train, 100 val, 120 test", "hashing, 2 dimensions"):
        assert part in page.text
    for part in ("kNN & nothing else", "83.0 s", "rlroute train x.yaml", "numpy 2.0"):
        assert part in page.text


def test_the_page_names_every_policy_candidate_and_word(page, result):
    for policy in result.policies:
        assert policy.name in page.text
    for name in (*result.candidate_ids, "hull of the singles", "AIQ", "quality oracle", "regret"):
        assert name in page.text


def test_a_page_without_history_or_knob_is_whole_too(context, tmp_path):
    data = build_data([[0, 1], [1, 1], [0, 1], [1, 0]], np.tile([1, 2], (4, 1)))
    result = evaluate_policies([RandomCandidate(), Oracle()], data, data, [0.0], bootstrap=5)
    write_report(tmp_path, result, dataclasses.replace(context, history=[]))
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "APGR" in page.text
    assert "How it learnt" not in page.text


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("cost", [[5, 5], [0, 10], [0.001, 10]])
def test_costs_of_any_spread_can_be_drawn(cost):
    data = build_data([[0, 1], [1, 1], [0, 1], [1, 0]], np.tile(cost, (4, 1)))
    result = evaluate_policies([Oracle(), RandomCandidate()], data, data, [0.0, 1.0], bootstrap=5)
    assert draw_frontier(result).startswith(PNG)


def test_equal_data_give_equal_pictures(result):
    assert draw_frontier(result) == draw_frontier(result)
    assert read_size(draw_selection_by_task(result))[0] > 1000
    assert read_size(draw_selection_by_weight(result))[0] > 1000


def test_the_learning_curve_shows_what_there_is():
    assert draw_learning_curve([]) is None
    assert draw_learning_curve([{"step": 0, "loss": 1.0}, {"step": 1, "loss": 0.5}]) is None
    assert draw_learning_curve([{"step": s, "eval/aiq": 0.5} for s in range(3)]).startswith(PNG)


def test_labels_of_a_crowd_of_points_never_overlap():
    figure = make_figure(6, 4)
    axes = figure.subplots()
    generator = np.random.default_rng(0)
    points = [(*generator.normal(0.5, 0.1, 2), f"candidate-{n}") for n in range(15)]
    axes.plot([p[0] for p in points], [p[1] for p in points], "o")
    labels.place_labels(axes, points)
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    # The extent of the text alone: an annotation's own extent includes its leader line.
    boxes = [
        super(type(text), text).get_window_extent(renderer).extents.tolist() for text in axes.texts
    ]
    assert len(boxes) >= 10
    for i, box in enumerate(boxes):
        shrunk = (box[0] + 1, box[1] + 1, box[2] - 1, box[3] - 1)
        assert not any(labels.overlaps(shrunk, other) for other in boxes[i + 1 :])


def test_numbers_are_written_for_readers():
    assert format_number(-0.0001) == "0.000"
    assert format_number(-0.25, sign=True) == "\N{MINUS SIGN}0.250"
    assert format_number(0.25, sign=True) == "+0.250"
    assert format_number(float("inf")) == "never"
    assert format_price(0.000664) == "0.664"
    assert format_price(0.0000264) == "0.0264"
    assert format_price(0.0) == "0.000"
    assert format_share(0.001) == "<1%"
    assert format_share(1e-17) == "0%"
    assert format_share(0.66) == "66%"
    assert format_duration(83) == "83.0 s"
    assert format_duration(163) == "2 min 43 s"
    assert format_duration(7260) == "2 h 01 min"


def test_of_many_candidates_the_page_shows_those_that_matter_and_says_how_many(context, tmp_path):
    draw = np.random.default_rng(0)
    score_QK = draw.integers(2, size=(30, 60))
    score_QK[:, 17] = 1  # the only one of worth, so the hull's and the oracle's
    cost_QK = np.tile(np.linspace(1, 2, 60), (30, 1))
    data = build_data(score_QK, cost_QK)
    result = evaluate_policies([Oracle(), RandomCandidate()], data, data, [0.0, 1.0], bootstrap=5)
    first = [one.candidate_id for one in rank_singles(result)[:2]]
    ids = [candidate.id for candidate in data.table.candidates]
    assert {ids[0], ids[17]} == set(first)
    subset = dataclasses.replace(data.table.candidates[17], kind="subset")
    candidates = [*data.table.candidates[:17], subset, *data.table.candidates[18:]]
    write_report(tmp_path, result, dataclasses.replace(context, candidates=candidates))
    text = " ".join(Page((tmp_path / "report.html").read_text(encoding="utf-8")).text.split())
    assert "40 of 60: the best and the cheapest" in text
    assert "asks all its members side by side" in text
    assert draw_frontier(result).startswith(PNG)
