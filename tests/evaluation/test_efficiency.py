"""Cost of a solved query, token efficiency, latency with holes; and where a report shows them."""

from __future__ import annotations

import dataclasses
import html.parser
import json

import numpy as np
import pytest
from evaluation_examples import build_data, build_topics, build_worked_example
from hypothesis import given
from hypothesis import strategies as st

from rlroute.evaluation.efficiency import (
    compute_cost_per_solved,
    compute_effective_candidates,
    compute_latency,
    compute_token_efficiency,
    measure_efficiency,
)
from rlroute.evaluation.evaluate import evaluate_policies
from rlroute.evaluation.metrics import average_picks, make_always, make_one_hot
from rlroute.evaluation.report import ReportContext, RouterSeconds, render_report
from rlroute.evaluation.sampling import make_yardstick
from rlroute.policies.baselines import AlwaysCandidate, Oracle

NAN = np.nan
ROUTER_QK = make_one_hot([0, 2, 2, 1], 3)


def measure(data, probability_QK):
    cost_Q = average_picks(data.table.cost_usd_QK, probability_QK)
    return measure_efficiency(data, probability_QK, cost_Q, make_yardstick(data, data, 50, 0))


def with_tables(data, **arrays):
    return dataclasses.replace(data, table=dataclasses.replace(data.table, **arrays))


def test_cost_of_a_solved_query_counts_the_failed_ones():
    assert compute_cost_per_solved([0.35], [70]).tolist() == [pytest.approx(0.005)]
    found = measure(build_worked_example(), ROUTER_QK)
    assert found.cost_per_solved_usd.value == pytest.approx(6.25 / 0.75)
    assert found.cost_per_solved_ratio.value == pytest.approx(0.625)  # L solves one for 10/0.75


def test_paid_probes_count_in_the_cost_of_a_solved_query():
    data = build_worked_example()
    cost_Q = average_picks(data.table.cost_usd_QK, ROUTER_QK) + 1
    found = measure_efficiency(data, ROUTER_QK, cost_Q, make_yardstick(data, data, 50, 0))
    assert found.cost_per_solved_usd.value == pytest.approx(7.25 / 0.75)


def test_a_router_that_solves_nothing_has_no_finite_cost_of_a_solved_query():
    data = build_data([[0, 1], [0, 1]], [[1, 2], [1, 2]])
    found = measure(data, make_always(0, data.table.present_QK))
    assert found.cost_per_solved_usd.value == np.inf
    assert found.cost_per_solved_ratio.value == np.inf


@pytest.mark.parametrize(
    ("quality", "tokens", "expected"), [(0.6, 3000, 0.10), (0.6, 1800, 0.25), (0.5, 600, 0)]
)
def test_token_efficiency_has_the_worked_numbers(quality, tokens, expected):
    assert compute_token_efficiency(quality, tokens, 0.5, 1000) == pytest.approx(expected)


def test_token_efficiency_is_undefined_without_a_change_of_tokens_or_a_base():
    assert compute_token_efficiency(0.6, 1000, 0.5, 1000) is None
    assert compute_token_efficiency(0.6, 1000, 0.0, 500) is None
    assert compute_token_efficiency(0.6, 1000, 0.5, 0) is None


def test_tokens_are_those_of_the_picks_and_unknown_where_one_is_unknown():
    data = build_worked_example()
    token_QK = np.tile(np.array([100, 200, 400], np.float32), (4, 1))
    known = with_tables(data, prompt_tokens_QK=token_QK, completion_tokens_QK=token_QK)
    found = measure(known, ROUTER_QK)
    assert found.tokens == 2 * (100 + 400 + 400 + 200) / 4
    assert found.token_efficiency == pytest.approx(0.5 / 1.75)  # 0.50 -> 0.75, 200 -> 550
    token_QK[3, 1] = NAN
    holed = with_tables(data, prompt_tokens_QK=token_QK, completion_tokens_QK=token_QK)
    found = measure(holed, ROUTER_QK)
    assert (found.tokens, found.token_efficiency) == (None, None)


def test_latency_percentiles_are_those_of_the_picks():
    seconds_QK = np.stack((np.arange(1, 101), np.full(100, 1e6)), axis=1)
    found = compute_latency(seconds_QK, make_always(0, np.ones((100, 2), bool)))
    assert (found.p50_seconds, found.p95_seconds, found.p99_seconds) == (50, 95, 99)
    assert found.known_share == 1


def test_an_unknown_latency_is_left_out_and_never_zero():
    seconds_QK = [[4.0, 9.0], [NAN, 9.0], [6.0, 9.0], [NAN, NAN]]
    found = compute_latency(seconds_QK, make_always(0, np.ones((4, 2), bool)))
    assert found.known_share == 0.5
    assert found.p50_seconds == 4
    assert found.p99_seconds == 6
    nothing = compute_latency(np.full((4, 2), NAN), make_always(0, np.ones((4, 2), bool)))
    assert dataclasses.astuple(nothing) == (0, None, None, None, None)


def test_the_routers_own_time_is_added_to_every_percentile():
    seconds_QK = np.stack((np.arange(1, 101), np.full(100, 1e6)), axis=1)
    found = compute_latency(seconds_QK, make_always(0, np.ones((100, 2), bool)), 0.25)
    assert dataclasses.astuple(found) == (1, 50.25, 95.25, 99.25, 0.25)


def test_without_known_latencies_the_routers_time_stands_alone_and_is_no_percentile():
    found = compute_latency(np.full((4, 2), NAN), make_always(0, np.ones((4, 2), bool)), 0.25)
    assert dataclasses.astuple(found) == (0, None, None, None, 0.25)


def test_efficiency_counts_the_routers_time_of_the_picks_of_the_example():
    data = build_worked_example()
    seconds_QK = np.tile(np.array([1, 2, 4], np.float32), (4, 1))  # R picks 1, 4, 4, 2
    timed = with_tables(data, latency_seconds_QK=seconds_QK)
    cost_Q = average_picks(data.table.cost_usd_QK, ROUTER_QK)
    yardstick = make_yardstick(timed, timed, 50, 0)
    counted = measure_efficiency(timed, ROUTER_QK, cost_Q, yardstick, 0.5).latency
    assert (counted.p50_seconds, counted.p95_seconds) == (2.5, 4.5)
    alone = measure_efficiency(timed, ROUTER_QK, cost_Q, yardstick).latency
    assert (alone.p50_seconds, alone.p95_seconds, alone.router_seconds) == (2, 4, None)


def test_a_cell_counts_with_its_probability():
    found = compute_latency([[1.0, 100.0]], [[0.96, 0.04]])
    assert (found.p50_seconds, found.p95_seconds, found.p99_seconds) == (1, 1, 100)


@given(st.integers(0, 1000))
def test_percentiles_rise_and_lie_among_the_known_values(seed):
    rng = np.random.default_rng(seed)
    seconds_QK = np.where(rng.random((30, 3)) < 0.3, NAN, rng.random((30, 3)))
    seconds_QK[0, 0] = 0.5
    probability_QK = rng.dirichlet([1, 1, 1], 30)
    found = compute_latency(seconds_QK, probability_QK)
    percentiles = [found.p50_seconds, found.p95_seconds, found.p99_seconds]
    assert percentiles == sorted(percentiles)
    assert np.isin(percentiles, seconds_QK).all()
    assert 0 < found.known_share <= 1


def test_the_effective_number_of_candidates_has_the_worked_numbers():
    assert compute_effective_candidates([0.9, 0.05, 0.03, 0.02]) == pytest.approx(1.2288, abs=5e-5)
    assert compute_effective_candidates([0.25] * 4) == 4


def test_the_metrics_of_router_arena_stand_beside_them():
    data = build_worked_example()
    found = measure(data, ROUTER_QK)
    assert (found.optimal_selection, found.optimal_accuracy) == (0.50, 0.75)
    assert found.optimal_cost == pytest.approx(15 / 21)
    assert found.arena_score == 0  # 6,250 USD per 1,000 queries is above its range
    cheap = with_tables(data, cost_usd_QK=np.full((4, 3), 0.0005, np.float32))
    assert measure(cheap, make_always(2, data.table.present_QK)).arena_score == pytest.approx(
        1.1 * 0.75 * 0.5587 / (0.1 * 0.75 + 0.5587), abs=1e-4
    )


class Text(html.parser.HTMLParser):
    """The words of a page."""

    def __init__(self, page):
        super().__init__()
        self.words = ""
        self.feed(page)

    def handle_data(self, data):
        self.words += " " + data.strip()


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr("rlroute.evaluation.report.draw_selection_by_task", lambda result: b"")
    monkeypatch.setattr("rlroute.evaluation.report.draw_selection_by_weight", lambda result: b"")


def evaluate_always_1(seconds, router_seconds=None):
    """Evaluate always model-1, whose latency is `seconds`, beside model-0, whose nobody knows."""
    train, test = build_topics(60, 0, "train"), build_topics(50, 1)
    seconds_QK = np.full((50, 3), NAN, np.float32)
    seconds_QK[:, 1] = seconds
    test = with_tables(test, latency_seconds_QK=seconds_QK)
    policies = [AlwaysCandidate("model-1"), AlwaysCandidate("model-0"), Oracle()]
    weights = [0.0, 0.5]
    return evaluate_policies(
        *(policies, train, test, weights), val=train, bootstrap=20, router_seconds=router_seconds
    )


def list_latencies(result):
    plain = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    return [one["operating_points"][0]["efficiency"]["latency"] for one in plain["policies"]]


def read_report(result, **changes):
    candidates = build_topics(2, 1).table.candidates
    context = ReportContext(
        *("run", {"test": 50}, candidates, "none", "none", 0, "a: 1", [], "x", {}, 1.0), **changes
    )
    return " ".join(Text(render_report(result, context, b"")).words.split())


def test_the_report_and_its_json_tell_cost_per_solved_query_and_latency():
    result = evaluate_always_1(1.375)
    first, second = list_latencies(result)[:2]
    assert (first["p95_seconds"], first["router_seconds"]) == (1.375, None)
    assert (second["p95_seconds"], second["known_share"]) == (None, 0)
    words = read_report(result)
    assert "Cost of a solved query, tokens, latency" in words
    assert "1.375" in words
    assert "own time is not counted" in words
    assert "paid call" not in words


ROUTER_SECONDS = RouterSeconds(64, 0.1, 0.2, 0.02, 0.03, 0.125)


def test_the_report_counts_the_routers_time_for_the_subject_alone_and_says_so():
    result = evaluate_always_1(1.375, ROUTER_SECONDS.total_p50)
    first, second = list_latencies(result)[:2]
    assert (first["p50_seconds"], first["p99_seconds"], first["router_seconds"]) == (
        1.5,
        1.5,
        0.125,
    )
    assert (second["p50_seconds"], second["router_seconds"]) == (None, None)
    words = read_report(result, router_seconds=ROUTER_SECONDS)
    assert "1.500 1.500 1.500 125 ms 8% 100%" in words
    assert "125 ms to encode and decide a query" in words
    assert "not timed" in words
    assert "stands alone" not in words
    assert "nan" not in words


def test_a_wait_below_half_a_millisecond_is_not_shown_as_nothing():
    words = read_report(evaluate_always_1(0.00001, 0.0002), router_seconds=ROUTER_SECONDS)
    assert "<0.001 <0.001 <0.001 0.2 ms 95% 100%" in words


def test_a_table_without_latencies_shows_the_routers_time_alone():
    result = evaluate_always_1(NAN, ROUTER_SECONDS.total_p50)
    assert list_latencies(result)[0]["router_seconds"] == 0.125
    words = read_report(result, router_seconds=ROUTER_SECONDS)
    assert "\N{EN DASH} \N{EN DASH} \N{EN DASH} 125 ms \N{EN DASH} 0%" in words
    assert "time stands alone" in words
    assert "nan" not in words


def test_the_report_says_why_a_paid_encoder_is_not_timed():
    words = read_report(evaluate_always_1(1.375), encoding_is_paid=True)
    assert words.count("every encoding is a paid call") == 2
    assert "1.375 1.375 1.375 \N{EN DASH} \N{EN DASH} 100%" in words
