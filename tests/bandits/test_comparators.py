"""Comparators: hand-made numbers, and what each of them knows."""

from __future__ import annotations

import numpy as np
import pytest
from bandit_streams import IDS, make_data, stream_topics

from rlroute.bandits.comparators import (
    BEST_AVAILABLE,
    BEST_FIXED,
    LINEAR,
    OPTIMUM,
    build_comparators,
    rank_candidates,
)
from rlroute.bandits.config import DiesConfig, JoinsConfig, RepricesConfig
from rlroute.bandits.contexts import prepare_stream
from rlroute.bandits.stream import make_stream
from rlroute.data.irt_table import IrtTableConfig, make_irt_table
from rlroute.envs.single_turn import CostWeightConfig


def find(stream):
    return {one.name: one for one in build_comparators(stream)}


def test_the_sheets_table_gives_the_sheets_regret():
    scores = [[1, 1, 1], [0, 1, 1], [0, 0, 1], [1, 0, 0]]
    data = make_data(scores, cost_usd_K=(1.0, 4.0, 10.0), ids=("a-small", "b-medium", "c-large"))
    # weight .05 per unit of cost; the stream's unit is the dearest one's mean, 10
    stream = stream_topics(4, data=data, weight=0.5)
    found = find(stream)
    assert found[BEST_AVAILABLE].utility_T.mean() == pytest.approx(0.800)
    picks_Q = np.array([0, 2, 2, 1])  # the sheet's router: S, L, L, M
    utility_T = stream.compute_utility(picks_Q[stream.query_T])
    assert utility_T.mean() == pytest.approx(0.4375)
    regret_T = (found[BEST_AVAILABLE].utility_T - utility_T).cumsum()
    assert regret_T[-1] / 4 == pytest.approx(0.3625)


def test_the_best_fixed_candidate_changes_with_the_phases_and_pays_the_price_of_the_moment():
    events = [
        JoinsConfig(kind="joins", candidate="gamma", at=400),
        DiesConfig(kind="dies", candidate="gamma", at=800),
    ]
    stream = stream_topics(1200, events, weight=0.1)
    fixed = find(stream)[BEST_FIXED]
    picked = [IDS[fixed.action_T[step]] for step in (0, 399, 400, 799, 800)]
    assert picked[:2] == picked[4:] * 2
    assert picked[0] in ("alpha", "beta")  # .5 each, less .1
    assert picked[2:4] == ["gamma"] * 2  # .5 less .05
    np.testing.assert_allclose(fixed.utility_T[400:800], 0.45, atol=1e-6)
    dearer = [RepricesConfig(kind="reprices", candidate="gamma", at=600, factor=10.0)]
    fixed = find(stream_topics(1200, dearer, weight=0.1))[BEST_FIXED]
    assert [IDS[fixed.action_T[599]], IDS[fixed.action_T[600]] != "gamma"] == ["gamma", True]


def test_a_linear_policy_with_hindsight_reaches_the_best_where_topics_decide():
    found = find(stream_topics(400))
    gap = (found[BEST_AVAILABLE].utility_T - found[LINEAR].utility_T).mean()
    assert 0 <= gap < 1e-6
    assert OPTIMUM not in found


def test_the_optimum_of_a_made_table_is_its_best_value():
    made = make_irt_table(IrtTableConfig(queries=4000, topics=3, words=8), seed=1)
    features_QE = made.features_QF / np.linalg.norm(made.features_QF, axis=1, keepdims=True)
    data = prepare_stream(
        made.table, features_QE, dimension=24, clusters=4, seed=0, success_QK=made.success_QK
    )
    weights = CostWeightConfig(min=0.3, max=0.3)
    stream = make_stream(data, length=4000, seed=0, events=(), weights=weights)
    found = find(stream)
    rate = data.cost_reference_usd / made.cost_reference_usd  # the table's unit is that of train
    expected = made.compute_best_value(0.3 / rate)
    assert found[OPTIMUM].utility_T.mean() == pytest.approx(expected, abs=0.02)
    assert found[BEST_FIXED].utility_T.mean() < found[OPTIMUM].utility_T.mean() - 0.02
    assert found[OPTIMUM].utility_T.mean() < found[BEST_AVAILABLE].utility_T.mean()


def test_candidates_are_ranked_by_what_they_are_worth_over_the_whole_stream():
    order = [IDS[k] for k in rank_candidates(stream_topics(400))]
    assert order[0] == "gamma"
    assert order[-1] == "omega"
