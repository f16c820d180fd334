"""Measures of online learners on streams small enough to count by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from bandit_streams import IDS, stream_topics

from rlroute.bandits.comparators import BEST_AVAILABLE, BEST_FIXED, LINEAR
from rlroute.bandits.config import DiesConfig, JoinsConfig, RepricesConfig
from rlroute.bandits.play import Picks
from rlroute.evaluation.bandit_comparison import describe_bandits, render_bandits
from rlroute.evaluation.bandit_figures import draw_regret, draw_shares
from rlroute.evaluation.bandit_results import LearnerRun, list_metrics, measure_bandits, trace

ALPHA, BETA, GAMMA, OMEGA = range(4)
ALPHA_DIES = DiesConfig(kind="dies", candidate="alpha", at=600)
BETA_JOINS = JoinsConfig(kind="joins", candidate="beta", at=200)


def make_run(name, stream, action_T) -> LearnerRun:
    length = stream.length
    costs = np.full(length, 0.002)
    return LearnerRun(name, stream, Picks(np.array(action_T), np.ones(length), costs), seconds=4.0)


def find(result, name):
    return next(one for one in (*result.learners, *result.comparators) if one.name == name)


def test_regret_reward_and_spending_are_sums_and_means_of_the_picks():
    stream = stream_topics(400, weight=0.1)
    result = measure_bandits([stream], [make_run("gamma", stream, [GAMMA] * 400)], window=50)
    found = find(result, "gamma")
    assert found.reward.mean == pytest.approx(0.45)
    assert found.score.mean == pytest.approx(0.5)
    assert found.cost_usd.mean == pytest.approx(0.8)
    assert found.regret[BEST_AVAILABLE].mean == pytest.approx(400 * 0.45)
    assert found.regret[LINEAR].mean == pytest.approx(400 * 0.45)
    assert found.regret[BEST_FIXED].mean == pytest.approx(0, abs=1e-4)  # gamma is the best one
    assert found.seconds_per_query == pytest.approx(0.01)
    curve = found.curves[BEST_AVAILABLE]
    assert (curve.step[0], curve.step[-1], len(curve.step)) == (1, 400, 200)
    assert curve.mean[-1] == pytest.approx(180)
    assert find(result, BEST_AVAILABLE).seconds_per_query is None


def test_shares_are_counted_phase_by_phase():
    stream = stream_topics(400, [BETA_JOINS])
    action_T = [ALPHA] * 200 + [BETA] * 50 + [GAMMA] * 150
    result = measure_bandits([stream], [make_run("x", stream, action_T)], window=50)
    shares = find(result, "x").shares
    assert [share["alpha"] for share in shares] == [1.0, 0.0]
    assert [share["beta"] for share in shares] == [0.0, 0.25]
    assert [phase.happened for phase in result.phases] == ["start", "beta joins"]


def test_only_picks_after_the_death_are_failures_and_they_score_0():
    stream = stream_topics(800, [ALPHA_DIES])
    action_T = [ALPHA] * 610 + [GAMMA] * 190
    result = measure_bandits([stream], [make_run("x", stream, action_T)], window=50)
    found = find(result, "x")
    assert found.failures["alpha"].mean == 10
    own_T = stream.data.table.score_QK[stream.query_T, action_T]
    assert found.score.mean == pytest.approx((own_T[:600].sum() + own_T[610:].sum()) / 800)
    rows = list_metrics(make_run("x", stream, action_T), window=200)
    assert [row["errors/failed"] for row in rows] == [0, 0, 0, 10]
    assert [row["step"] for row in rows] == [200, 400, 600, 800]
    assert rows[0]["selection/share/alpha"] == 1.0
    assert rows[-1]["cost/usd_total"] == pytest.approx(1.6)
    regret = [row["regret/best_available"] for row in rows]
    assert regret == sorted(regret)


def test_the_delay_of_a_newcomer_runs_until_it_has_half_of_its_share():
    stream = stream_topics(1000, [BETA_JOINS])  # the linear policy gives beta half of the picks
    late = [ALPHA] * 500 + [BETA] * 500
    half = np.where(np.arange(1000) % 3 == 0, BETA, ALPHA)  # a third: more than half of its half
    half[:200] = ALPHA
    runs = [
        make_run("late", stream, late),
        make_run("half", stream, half),
        make_run("never", stream, [ALPHA] * 1000),
    ]
    result = measure_bandits([stream], runs, window=100)
    # with beta from query 500 on, the 100 picks after 425 hold a quarter of beta
    assert find(result, "late").delays["beta"].mean == pytest.approx(225, abs=4)
    assert find(result, "half").delays["beta"].mean == 0
    assert math.isinf(find(result, "never").delays["beta"].mean)
    assert result.to_dict()["learners"][0]["delays"]["beta"]["mean"] is not None


def test_a_newcomer_that_nobody_should_pick_has_no_delay():
    joins = JoinsConfig(kind="joins", candidate="omega", at=200)
    stream = stream_topics(400, [joins])
    result = measure_bandits([stream], [make_run("x", stream, [ALPHA] * 400)], window=50)
    assert find(result, "x").delays == {"omega": None}
    assert result.to_dict()["learners"][0]["delays"] == {"omega": None}


def test_seeds_become_mean_smallest_and_largest():
    streams = [stream_topics(200, seed=seed) for seed in (0, 1)]
    runs = [
        make_run("x", streams[0], [GAMMA] * 200),
        make_run("x", streams[1], [OMEGA] * 200),
    ]
    regret = find(measure_bandits(streams, runs, window=50), "x").regret[BEST_AVAILABLE]
    low, high = 200 * 0.45, 200 * 0.825
    assert (regret.mean, regret.smallest, regret.largest) == pytest.approx(
        ((low + high) / 2, low, high)
    )
    curve = trace([np.arange(3.0), np.arange(3.0) * 2])
    assert curve.mean == (0.0, 1.5, 3.0)
    assert curve.largest == (0.0, 2.0, 4.0)


def test_words_and_pictures_say_what_happened():
    events = [
        BETA_JOINS,
        ALPHA_DIES,
        RepricesConfig(kind="reprices", candidate="gamma", at=700, factor=0.5),
    ]
    stream = stream_topics(800, events)
    runs = [
        make_run("good", stream, stream_best(stream)),
        make_run("poor", stream, [OMEGA] * 800),
    ]
    result = measure_bandits([stream], runs, window=100)
    sentences = " ".join(describe_bandits(result))
    assert sentences.startswith("good has the least regret: 0 over 800 queries")
    assert "Second is poor" in sentences
    assert "No learner picked alpha more than 0 times after it died." in sentences
    assert [phase.happened for phase in result.phases[1:]] == [
        "beta joins",
        "alpha dies",
        "gamma reprices to 0.5 of its price",
    ]
    assert render_bandits(result).row_count == 2 + 3
    assert draw_regret(result).startswith(b"\x89PNG")
    shares_png = draw_shares(result)
    assert shares_png is not None
    assert shares_png.startswith(b"\x89PNG")
    quiet = stream_topics(100)
    still = measure_bandits([quiet], [make_run("x", quiet, [ALPHA] * 100)], window=50)
    assert draw_shares(still) is None


def stream_best(stream) -> np.ndarray:
    return np.nanargmax(stream.utility_TK, axis=1)


def test_the_names_of_the_columns_are_those_of_the_helper():
    assert [IDS[k] for k in (ALPHA, BETA, GAMMA, OMEGA)] == ["alpha", "beta", "gamma", "omega"]
