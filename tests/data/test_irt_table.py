"""Made item-response tables: what is hidden in them is known, and the optimum is exact."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlroute.data.irt_table import IrtTable, IrtTableConfig, make_irt_table
from rlroute.data.table import read_table, write_table
from rlroute.evaluation.metrics import compute_utility, make_one_hot, pick_best, pick_oracle
from rlroute.types import RLRouteError

SMALL = IrtTableConfig(queries=60, candidates=4)
WEIGHTS = [0.0, 0.3, 1.0, 4.0]


@pytest.fixture(scope="module")
def large() -> IrtTable:
    return make_irt_table(IrtTableConfig(queries=20_000), seed=1)


def enumerate_oracle_value(made: IrtTable, cost_weight: float) -> float:
    """Sum over all 2^K draws of each query."""
    cost_QK = cost_weight * made.normalise_cost()
    total = 0.0
    for draw in itertools.product([0, 1], repeat=made.success_QK.shape[1]):
        draw_K = np.array(draw)
        chance_Q = np.where(draw_K == 1, made.success_QK, 1 - made.success_QK).prod(1)
        total += float((chance_Q * (draw_K - cost_QK).max(1)).sum())
    return total / len(cost_QK)


@pytest.mark.parametrize("cost_weight", WEIGHTS)
def test_the_oracles_closed_form_equals_the_sum_over_all_draws(cost_weight):
    made = make_irt_table(SMALL, seed=3)
    expected = enumerate_oracle_value(made, cost_weight)
    assert made.compute_oracle_value(cost_weight) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    cost_weight=st.floats(0, 20),
    specialty=st.floats(0, 3),
    discrimination=st.floats(0.1, 10),
)
def test_no_policy_beats_the_best_and_the_oracle_bounds_it(
    seed, cost_weight, specialty, discrimination
):
    config = IrtTableConfig(
        queries=60, candidates=3, specialty=specialty, discrimination=discrimination
    )
    made = make_irt_table(config, seed=seed)
    best = made.compute_best_value(cost_weight)
    always = [made.compute_policy_value(np.tile(row, (60, 1)), cost_weight) for row in np.eye(3)]
    assert max(always) <= best + 1e-12
    assert best <= made.compute_oracle_value(cost_weight) + 1e-12
    assert made.compute_oracle_value(cost_weight) == pytest.approx(
        enumerate_oracle_value(made, cost_weight), abs=1e-9
    )


@pytest.mark.parametrize("cost_weight", WEIGHTS)
def test_what_the_drawn_scores_earn_agrees_with_what_is_expected(large, cost_weight):
    table, cost_QK = large.table, large.normalise_cost()
    utility_QK = large.success_QK - cost_weight * cost_QK
    best_QK = make_one_hot(pick_best(utility_QK, cost_QK, table.present_QK), 5)
    oracle_Q = pick_oracle(table.score_QK, cost_QK, table.present_QK, cost_weight)
    drawn_QK = compute_utility(table.score_QK, cost_QK, cost_weight)
    assert large.compute_policy_value(best_QK, cost_weight) == pytest.approx(
        large.compute_best_value(cost_weight), abs=1e-12
    )
    assert (best_QK * drawn_QK).sum(1).mean() == pytest.approx(
        large.compute_best_value(cost_weight), abs=0.015
    )
    assert drawn_QK[np.arange(20_000), oracle_Q].mean() == pytest.approx(
        large.compute_oracle_value(cost_weight), abs=0.015
    )


def test_chances_follow_the_model_and_scores_follow_the_chances(large):
    lead_QK = large.ability_TK[large.topic_Q] - large.difficulty_Q[:, None]
    assert large.success_QK == pytest.approx(1 / (1 + np.exp(-2.0 * lead_QK)))
    for low, high in ((0.0, 0.2), (0.4, 0.6), (0.8, 1.0)):
        cells = (large.success_QK >= low) & (large.success_QK < high)
        assert cells.sum() > 1000
        assert large.table.score_QK[cells].mean() == pytest.approx(
            large.success_QK[cells].mean(), abs=0.02
        )


def test_the_difficulty_is_linear_in_the_features(large):
    weight_F, *_ = np.linalg.lstsq(large.features_QF, large.difficulty_Q, rcond=None)
    assert large.features_QF @ weight_F == pytest.approx(large.difficulty_Q, abs=1e-4)


def test_without_specialty_the_dearest_candidate_is_the_ablest_for_every_query():
    made = make_irt_table(IrtTableConfig(queries=200, specialty=0), seed=0)
    assert (made.success_QK.argmax(1) == 4).all()
    assert (np.diff(made.table.cost_usd_QK, axis=1) > 0).all()


def test_routing_pays_at_every_weight_of_the_default_table(large):
    for cost_weight in WEIGHTS:
        always = [
            large.compute_policy_value(np.tile(row, (20_000, 1)), cost_weight) for row in np.eye(5)
        ]
        gain = large.compute_best_value(cost_weight) - max(always)
        assert gain > (0.02 if cost_weight < 4 else 0.005)


def test_costs_are_those_of_prices_and_tokens():
    table = make_irt_table(SMALL, seed=0).table
    for k, candidate in enumerate(table.candidates):
        expected = [
            candidate.prices.compute_cost(prompt, completion)
            for prompt, completion in zip(
                table.prompt_tokens_QK[:, k], table.completion_tokens_QK[:, k], strict=True
            )
        ]
        assert table.cost_usd_QK[:, k] == pytest.approx(expected)


def test_the_table_can_be_written_and_read(tmp_path):
    made = make_irt_table(SMALL, seed=0)
    write_table(made.table, tmp_path / "irt", format="parquet")
    table = read_table(tmp_path / "irt")
    order = {query.id: row for row, query in enumerate(made.table.queries)}
    rows = [order[query.id] for query in table.queries]
    assert (table.score_QK == made.table.score_QK[rows]).all()
    assert table.split_Q.tolist() == made.table.split_Q[rows].tolist()


def test_the_seed_decides_everything():
    one, same, other = (make_irt_table(SMALL, seed=seed) for seed in (5, 5, 6))
    assert [q.text for q in one.table.queries] == [q.text for q in same.table.queries]
    assert (one.table.score_QK == same.table.score_QK).all()
    assert (one.success_QK != other.success_QK).any()


def test_a_split_keeps_rows_together_and_the_cost_reference():
    made = make_irt_table(SMALL, seed=0)
    test = made.select_split("test")
    rows = np.flatnonzero(made.table.split_Q == "test")
    assert (test.success_QK == made.success_QK[rows]).all()
    assert [q.id for q in test.table.queries] == [made.table.queries[r].id for r in rows]
    assert test.cost_reference_usd == made.cost_reference_usd


def test_too_few_queries_for_three_splits_are_refused():
    with pytest.raises(RLRouteError, match="2 queries leave a split empty"):
        make_irt_table(IrtTableConfig(queries=2), seed=0)
