"""Streams: order, events, what a failure counts for, regret, and faulty events."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from bandit_streams import COSTS, IDS, make_data, make_topics, stream_topics
from hypothesis import given
from hypothesis import strategies as st

from rlroute.bandits.config import DiesConfig, JoinsConfig, RepricesConfig
from rlroute.bandits.stream import make_stream
from rlroute.data.table import list_arrays
from rlroute.envs.single_turn import CostWeightConfig
from rlroute.types import RLRouteError

GAMMA_JOINS = JoinsConfig(kind="joins", candidate="gamma", at=40)
ALPHA_DIES = DiesConfig(kind="dies", candidate="alpha", at=80, billed=0.5)
BETA_FALLS = RepricesConfig(kind="reprices", candidate="beta", at=60, factor=0.25)
EVENTS = (ALPHA_DIES, BETA_FALLS, GAMMA_JOINS)
NOBODY_K = np.zeros(4, bool)


def test_every_pass_holds_every_query_once_in_an_order_of_its_own():
    stream = stream_topics(200)
    first, second = stream.query_T[:80], stream.query_T[80:160]
    assert sorted(first) == sorted(second) == list(range(80))
    assert (first != second).any()
    assert (stream.query_T != stream_topics(200, seed=1).query_T).any()
    assert (stream.query_T == stream_topics(200).query_T).all()


def test_cost_weights_are_drawn_per_arrival_within_their_range():
    weights = CostWeightConfig(min=0.5, max=2.0, power=1.0)
    stream = make_stream(make_topics(), length=500, seed=0, events=(), weights=weights)
    assert 0.5 <= stream.cost_weight_T.min() < 0.6
    assert 1.9 < stream.cost_weight_T.max() <= 2.0


def test_events_cut_the_stream_into_phases():
    stream = stream_topics(120, EVENTS)
    assert [phase.start for phase in stream.phases] == [0, 40, 60, 80]
    arrivals = [stream.make_arrival(step, NOBODY_K) for step in (39, 40, 59, 60, 80)]
    gamma, beta = IDS.index("gamma"), IDS.index("beta")
    assert [bool(arrival.mask_K[gamma]) for arrival in arrivals] == [False, True, True, True, True]
    assert [arrival.price_factor_K[beta] for arrival in arrivals] == [1, 1, 1, 0.25, 0.25]
    assert all(arrival.mask_K[IDS.index("alpha")] for arrival in arrivals)  # dead, but offered
    assert not stream.available_TK[80:, IDS.index("alpha")].any()


def test_a_change_of_price_moves_bill_and_utility_and_not_the_cost_that_is_learnt():
    stream = stream_topics(120, EVENTS, weight=1.0)
    beta = IDS.index("beta")
    before, after = stream.answer(59, beta), stream.answer(60, beta)
    assert (before.cost_usd, after.cost_usd) == (
        pytest.approx(0.004),
        pytest.approx(0.001),
    )
    assert before.cost == after.cost == pytest.approx(1.0)  # beta is one of the dearest
    score_T = stream.data.table.score_QK[stream.query_T, beta]
    paid_T = score_T - stream.full_utility_TK[:, beta]
    np.testing.assert_allclose(paid_T, np.where(np.arange(120) < 60, 1.0, 0.25), atol=1e-6)


def test_a_failed_call_is_billed_as_configured_and_counts_as_a_wrong_answer_at_its_price():
    stream = stream_topics(120, EVENTS, weight=1.0)
    alpha = IDS.index("alpha")
    outcome = stream.answer(80, alpha)
    assert outcome.failed
    assert np.isnan(outcome.score)
    assert np.isnan(outcome.cost)
    assert outcome.cost_usd == pytest.approx(0.002)  # half of its price
    always_T = np.full(120, alpha)
    utility_T = stream.compute_utility(always_T)
    wrong = -1.0  # score 0 at cost 1, weight 1, whatever the bill
    np.testing.assert_allclose(utility_T[80:], np.minimum(wrong, stream.best_T[80:]))
    assert stream.find_failures(always_T).sum() == 40


def test_a_cheap_candidate_that_fails_earns_no_more_than_the_best_that_answers():
    scores = np.zeros((8, 4))  # nobody is ever right, and the cheapest one dies
    dies = DiesConfig(kind="dies", candidate="omega", at=1)
    stream = stream_topics(8, [dies], data=make_data(scores), weight=1.0)
    utility_T = stream.compute_utility(np.full(8, IDS.index("omega")))
    assert utility_T[0] == pytest.approx(-0.25)
    np.testing.assert_allclose(utility_T[1:], -0.5)  # as gamma, the cheapest that is left


@given(
    seed=st.integers(0, 10**6),
    weight=st.floats(0, 5),
    at=st.integers(1, 59),
    data=st.data(),
)
def test_regret_against_the_best_available_is_never_negative(seed, weight, at, data):
    draw = np.random.default_rng(seed)
    present_QK = draw.random((20, 4)) < 0.8
    present_QK[:, :2] |= ~present_QK[:, :2].any(axis=1, keepdims=True)
    problem = make_data(draw.random((20, 4)), present_QK=present_QK)
    dies = DiesConfig(kind="dies", candidate="omega", at=at)
    joins = JoinsConfig(kind="joins", candidate="gamma", at=data.draw(st.integers(1, 59)))
    stream = stream_topics(60, [dies, joins], seed=seed, weight=weight, data=problem)
    action_T = np.array(
        [draw.choice(np.flatnonzero(stream.list_offered(step))) for step in range(60)]
    )
    utility_T = stream.compute_utility(action_T)
    assert np.isfinite(utility_T).all()
    assert (stream.best_T - utility_T >= 0).all()


def test_the_place_of_a_candidate_in_its_table_changes_nothing():
    data = make_topics()
    turned = dataclasses.replace(
        data.table,
        candidates=data.table.candidates[::-1],
        **{name: getattr(data.table, name)[:, ::-1] for name in list_arrays()},
    )
    from rlroute.bandits.contexts import prepare_stream

    again = prepare_stream(turned, data.features_QE, dimension=8, clusters=4, seed=0)
    one, other = stream_topics(120, EVENTS, data=data), stream_topics(120, EVENTS, data=again)
    assert one.candidate_ids == other.candidate_ids
    np.testing.assert_array_equal(one.utility_TK, other.utility_TK)


def test_what_may_not_be_picked_is_refused():
    stream = stream_topics(120, EVENTS)
    with pytest.raises(ValueError, match="may not be picked at query 0"):
        stream.answer(0, IDS.index("gamma"))


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([JoinsConfig(kind="joins", candidate="sigma", at=1)], "no such candidate .*alpha, beta"),
        ([ALPHA_DIES.model_copy(update={"at": 120})], "the stream has 120 queries"),
        ([ALPHA_DIES, ALPHA_DIES.model_copy(update={"at": 90})], "it dies at 80 already"),
        (
            [
                ALPHA_DIES,
                JoinsConfig(kind="joins", candidate="alpha", at=100),
            ],
            "it dies at 80, before it joins",
        ),
        (
            [DiesConfig(kind="dies", candidate=name, at=10) for name in IDS],
            "nobody who is available at 10",
        ),
    ],
)
def test_events_that_cannot_happen_are_refused_in_one_line(events, words):
    with pytest.raises(RLRouteError, match=words) as caught:
        stream_topics(120, events)
    assert "\n" not in str(caught.value)


def test_the_unit_of_cost_is_the_dearest_candidates_mean_and_free_tables_are_refused():
    assert make_topics().cost_reference_usd == pytest.approx(max(COSTS))
    with pytest.raises(RLRouteError, match="all candidates cost 0 USD"):
        make_data(np.ones((8, 4)), cost_usd_K=(0, 0, 0, 0))


def test_contexts_end_in_a_constant_and_have_length_1_on_average():
    context_QF = make_topics().context_QF
    np.testing.assert_array_equal(context_QF[:, -1], 1.0)
    assert (context_QF[:, :-1] ** 2).sum(axis=1).mean() == pytest.approx(1.0)
