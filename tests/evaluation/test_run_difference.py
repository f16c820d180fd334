"""Two routers on the same queries: leads, settings, tests, where they differ, page and JSON."""

from __future__ import annotations

import dataclasses
import html.parser
import io
import json

import numpy as np
import pytest
from evaluation_examples import build_data, build_topics, build_worked_example
from rich.console import Console

from rlroute.evaluation.contenders import Contender, Setting
from rlroute.evaluation.evaluate import evaluate_policies
from rlroute.evaluation.metrics import make_one_hot
from rlroute.evaluation.run_difference import compare_contenders
from rlroute.evaluation.run_difference_report import (
    describe_difference,
    render_difference,
    write_difference,
)
from rlroute.evaluation.tests_of_difference import count_queries_needed
from rlroute.policies.baselines import AlwaysCandidate, Oracle
from rlroute.types import RLRouteError

WEIGHTS = [0.0, 0.5, 2.0, 5.0]


class FixedPicks:
    """Picks the same candidates at any cost weight."""

    def __init__(self, name, picks):
        self.name, self.picks = name, picks

    def compute_probabilities(self, data, cost_weight):
        return make_one_hot(self.picks, len(data.table.candidates)).astype(np.float32)


def enter(name, policy, test, train=None, weights=WEIGHTS):
    return Contender(name, policy, {"train": train or test, "val": test, "test": test}, weights)


@pytest.fixture(scope="module")
def worked():
    """The router S, L, L, M against the oracle, which picks S, M, L, S at weight 0."""
    data = build_worked_example()
    router = enter("router", FixedPicks("router", [0, 2, 2, 1]), data)
    return compare_contenders(router, enter("oracle", Oracle(), data), Setting(), bootstrap=50)


@pytest.fixture(scope="module")
def topics():
    train, test = build_topics(300, 0, "train"), build_topics(400, 1)
    dear = enter("dear", AlwaysCandidate("model-2"), test, train, [0.0, 1.0])
    cheap = enter("cheap", AlwaysCandidate("model-0"), test, train, [0.0, 1.0])
    return compare_contenders(dear, cheap, Setting(cost_weight=1.0), bootstrap=200, seed=3)


def test_the_worked_example_gives_its_leads(worked):
    assert worked.aiq.first.value == pytest.approx(0.6771, abs=5e-5)
    assert worked.aiq.second.value == pytest.approx(0.9375)
    assert worked.aiq.lead.value == pytest.approx(0.6771 - 0.9375, abs=5e-5)
    assert [row.cost_weight for row in worked.weights] == WEIGHTS
    at_half = worked.weights[1]  # weight 0.5 over a reference of 10: 0.05 per unit of cost
    assert at_half.utility.first.value == pytest.approx(0.4375)
    assert at_half.utility.second.value == pytest.approx(0.800)
    assert at_half.cost_usd.lead.value == pytest.approx(6.25 - 4.0)
    assert worked.weights[3].quality.second.value == 0.5  # at 5.0 the oracle picks S


def test_the_setting_is_the_least_common_weight_and_tells_where_they_differ(worked):
    setting = worked.setting
    assert (setting.first_weight, setting.second_weight) == (0, 0)
    assert [query.query_id for query in setting.queries] == ["q3", "q1"]
    first = setting.queries[0]
    assert (first.first_pick, first.second_pick) == ("model-1", "model-0")
    assert (first.first_score, first.second_score) == (0, 1)
    assert (first.first_cost_usd, first.second_cost_usd) == (4, 1)
    moves = {(move.first_pick, move.second_pick): move for move in setting.moves}
    assert moves["model-2", "model-1"].cost_lead_usd == 6
    assert moves["model-1", "model-0"].score_lead == -1
    assert setting.mcnemar is not None
    assert (setting.mcnemar.only_first, setting.mcnemar.only_second) == (0, 1)
    assert setting.mcnemar.exact_p == 1
    # 1 of 4 queries disagrees: (1/4 - 1/16) * (2 / (1/4))^2
    assert setting.queries_needed == 12
    text = " ".join(describe_difference(worked))
    assert "12 queries like these are needed: the 4 here are too few" in text
    assert not setting.equivalence.equivalent


def test_the_lead_in_aiq_is_that_of_an_evaluation_of_both(topics):
    train, test = build_topics(300, 0, "train"), build_topics(400, 1)
    policies = [AlwaysCandidate("model-2"), AlwaysCandidate("model-0")]
    whole = evaluate_policies(policies, train, test, [0.0, 1.0], bootstrap=200, seed=3)
    assert topics.aiq.first == whole.policies[0].frontier.aiq
    assert topics.aiq.lead == whole.policies[1].subject_lead


def test_a_clear_difference_is_called_one(topics):
    setting = topics.setting
    assert setting.quality.lead.low > 0
    assert setting.mcnemar.mid_p < 0.001
    assert setting.permutation_p < 0.001
    assert setting.utility.lead.value == pytest.approx(
        setting.quality.lead.value - setting.cost_usd.lead.value / 10
    )
    text = " ".join(describe_difference(topics))
    assert "dear is better than cheap in quality" in text
    only = setting.mcnemar.only_first, setting.mcnemar.only_second
    assert min(only) > 0
    needed = count_queries_needed(sum(only) / 400, setting.quality.lead.value)
    assert setting.queries_needed == needed < 400
    assert "the 400 here are enough" in text
    assert "NOT shown to be equivalent" in text
    assert {task.task for task in setting.tasks} == {"topic 0", "topic 1"}
    assert sum(task.queries for task in setting.tasks) == 400
    by_task = {task.task: task.quality.lead.value for task in setting.tasks}
    assert by_task["topic 1"] > 0.5 > 0 > by_task["topic 0"]


def test_a_router_against_its_like_is_equivalent_and_differs_nowhere():
    data = build_topics(100, 2)
    first, second = (enter(name, AlwaysCandidate("model-1"), data) for name in "ab")
    found = compare_contenders(first, second, Setting(), bootstrap=20)
    assert found.setting.equivalence.equivalent
    assert found.setting.queries == found.setting.moves == ()
    assert found.setting.permutation_p == 1
    assert found.setting.queries_needed is None
    assert not found.aiq.lead.excludes_zero
    assert "equivalent within 0.5 points" in " ".join(describe_difference(found))


def test_graded_scores_have_no_mcnemar():
    data = build_data([[0.5, 1], [0.2, 0]], [[1, 2], [1, 2]])
    pair = (enter(f"{k}", AlwaysCandidate(f"model-{k}"), data) for k in (0, 1))
    found = compare_contenders(*pair, Setting(), bootstrap=10)
    assert found.setting.mcnemar is None
    assert found.setting.queries_needed is None
    assert "needs scores of 0 and 1" in " ".join(describe_difference(found))
    assert "are needed" not in " ".join(describe_difference(found))


def test_under_a_budget_each_has_its_own_weight():
    data = build_worked_example()
    oracle = enter("oracle", Oracle(), data)
    cheap = enter("cheap", AlwaysCandidate("model-0"), data)
    found = compare_contenders(oracle, cheap, Setting(budget_usd=2.0), bootstrap=10).setting
    assert (found.first_weight, found.second_weight) == (2.0, 0.0)
    assert found.cost_usd.first.value <= 2.0
    assert found.utility is None
    dear = enter("dear", AlwaysCandidate("model-2"), data)
    with pytest.raises(RLRouteError, match="dear has no cost weight that keeps 2000 USD"):
        compare_contenders(cheap, dear, Setting(budget_usd=2.0))


def test_only_common_cost_weights_are_compared():
    data = build_worked_example()
    wide, narrow = (
        enter(name, Oracle(), data, weights=weights)
        for name, weights in (("wide", [0.0, 1.0, 5.0]), ("narrow", [0.5, 2.0]))
    )
    found = compare_contenders(wide, narrow, Setting(), bootstrap=5)
    assert [row.cost_weight for row in found.weights] == [0.5, 1.0, 2.0]
    with pytest.raises(RLRouteError, match="out of the range"):
        compare_contenders(wide, narrow, Setting(cost_weight=3.0))
    with pytest.raises(RLRouteError, match="none in common"):
        compare_contenders(wide, enter("far", Oracle(), data, weights=[9.0]), Setting())
    with pytest.raises(RLRouteError, match="not both"):
        compare_contenders(wide, narrow, Setting(1.0, 1.0))


def test_other_queries_candidates_or_units_are_refused():
    data = build_worked_example()
    router = enter("router", Oracle(), data)
    fewer = dataclasses.replace(data, table=data.table.select_queries([0, 1]))
    with pytest.raises(RLRouteError, match="other test queries"):
        compare_contenders(router, enter("fewer", Oracle(), fewer), Setting())
    score_QK = 1 - data.table.score_QK
    other = dataclasses.replace(data, table=dataclasses.replace(data.table, score_QK=score_QK))
    with pytest.raises(RLRouteError, match="other outcomes of the same candidates"):
        compare_contenders(router, enter("other", Oracle(), other), Setting())
    candidates = tuple(dataclasses.replace(one, id="x" + one.id) for one in data.table.candidates)
    other = dataclasses.replace(data, table=dataclasses.replace(data.table, candidates=candidates))
    with pytest.raises(RLRouteError, match="no candidate in common"):
        compare_contenders(router, enter("other", Oracle(), other), Setting())
    unit = dataclasses.replace(data, cost_reference_usd=9.0)
    with pytest.raises(RLRouteError, match="other units"):
        compare_contenders(router, enter("unit", Oracle(), unit), Setting())


@pytest.mark.parametrize("turned", [False, True])
def test_other_candidates_are_paired_by_query_at_the_same_price_of_quality(turned):
    data = build_worked_example()  # S, M, L cost 1, 4, 10; the unit of cost is 10
    table = data.table.select_candidates(["model-0", "model-1"])
    few = dataclasses.replace(data, table=table, cost_reference_usd=4.0)
    both = [enter("all", Oracle(), data), enter("few", Oracle(), few)]
    first, second = reversed(both) if turned else both
    unit, other_unit = (4.0, 10.0) if turned else (10.0, 4.0)
    weight = 0.05 * unit  # 0.05 of quality for each USD
    found = compare_contenders(first, second, Setting(cost_weight=weight), bootstrap=20)
    assert (found.cost_min_usd, found.cost_max_usd) == (1, 4)  # of S and M, which both have
    weights = np.union1d(WEIGHTS, np.array(WEIGHTS) * unit / other_unit)
    expected = weights[weights <= min(5.0, 5.0 * unit / other_unit)]
    assert [row.cost_weight for row in found.weights] == pytest.approx(list(expected))
    setting = found.setting
    chosen = (setting.first_weight, setting.second_weight)
    assert chosen == pytest.approx((0.05 * unit, 0.05 * other_unit))
    for row in found.weights:
        best = []
        for columns in ([0, 1, 2], [0, 1]):
            usd_K = np.array([1.0, 4.0, 10.0])[columns]
            utility_QK = data.table.score_QK[:, columns] - row.cost_weight * usd_K / unit
            best.append(float(utility_QK.max(1).mean()))
        pair = [row.utility.first.value, row.utility.second.value]
        assert (pair[::-1] if turned else pair) == pytest.approx(best)
    (move,) = setting.moves
    picks = [move.first_pick, move.second_pick]
    assert (picks[::-1] if turned else picks) == ["model-2", "model-0"]  # what L alone can do
    assert move.queries == 1
    words = " ".join(describe_difference(found))
    assert "AIQ spans the costs of the 2 that both have" in words
    assert "pay the same USD for a point of quality" in words


class Page(html.parser.HTMLParser):
    """Collects what a page refers to and says."""

    def __init__(self, text):
        super().__init__()
        self.links, self.words = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        assert tag != "script"
        self.links += [value for key, value in attrs if key in ("src", "href")]

    def handle_data(self, data):
        self.words += data


def test_a_folder_gets_page_picture_and_numbers(worked, tmp_path):
    texts = {f"q{q}": f"text <script>{q}</script>" for q in range(4)}
    write_difference(tmp_path, worked, texts)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["compare.html", "compare.json", "compare.png"]
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    plain = json.loads((tmp_path / "compare.json").read_text(encoding="utf-8"))
    assert plain["aiq"]["lead"]["value"] == pytest.approx(worked.aiq.lead.value)
    assert plain["setting"]["equivalence"]["equivalent"] is False
    assert [query["query_id"] for query in plain["setting"]["queries"]] == ["q3", "q1"]
    page = Page((tmp_path / "compare.html").read_text(encoding="utf-8"))
    assert all(link.startswith("data:image/png") for link in page.links)
    assert "text <script>3</script>" in page.words
    for sentence in describe_difference(worked):
        assert sentence in page.words


def test_the_table_fits_80_columns(topics):
    cheap = dataclasses.replace(  # costs of small models: more digits per number
        topics.weights[0], cost_usd=scale_pair(topics.weights[0].cost_usd, 1e-8)
    )
    console = Console(file=io.StringIO(), width=80)
    console.print(render_difference(dataclasses.replace(topics, weights=(cheap, *topics.weights))))
    text = console.file.getvalue()
    assert "worse" in text
    assert "\N{HORIZONTAL ELLIPSIS}" not in text


def scale_pair(pair, factor):
    return dataclasses.replace(
        pair, **{key: getattr(pair, key).scale(factor) for key in ("first", "second", "lead")}
    )
