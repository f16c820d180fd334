"""Sessions played under budgets: on a made world, and on a log with estimates in the gaps."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from rlroute.algorithms.offline import compute_discounted_return, relabel_budgets
from rlroute.data.session_optimum import solve_sessions
from rlroute.data.session_world import GeneratedSessionsConfig, SessionWorld
from rlroute.data.sessions import SessionArrays, make_arrays
from rlroute.evaluation.intervals import draw_resamples
from rlroute.evaluation.session_replay import (
    Chooser,
    SessionOutcomes,
    always,
    choose_cheapest_sufficient,
    fit_outcome_model,
    impute_outcomes,
    play_sessions,
)
from rlroute.evaluation.session_results import (
    SessionEvaluation,
    SessionPolicyKind,
    SessionPolicyResult,
    describe_session_result,
    measure_session_point,
    render_session_comparison,
)
from rlroute.types import RLRouteError

BUDGETS = (500.0, 1500.0, 3000.0, 8000.0)
WORLD = SessionWorld(GeneratedSessionsConfig(sessions=6000))
DRAWN = WORLD.draw()
LOGGED = make_arrays(WORLD.make_log(DRAWN))
OUTCOMES = SessionOutcomes(DRAWN.valid_ST, DRAWN.cost_STK, DRAWN.quality_STK)


def play(choose: Chooser, outcomes: SessionOutcomes = OUTCOMES, budgets=BUDGETS):
    return play_sessions(outcomes, budgets, choose, penalty=5.0, discount=0.99)


def choose_optimal(cost_weight: float = 0.0) -> Chooser:
    optimum = solve_sessions(WORLD, penalty=5.0, discount=0.99, cost_weight=cost_weight)
    return lambda standing: optimum.choose(
        standing.turn,
        DRAWN.difficulty_ST[standing.session_N, standing.turn],
        DRAWN.length_ST[standing.session_N, standing.turn],
        standing.balance_N,
    )


def test_the_worked_example_is_played_as_it_is_relabelled():
    cost_STK = np.array([[[120, 0], [0, 900], [150, 0], [0, 1100]]], dtype=float)
    quality_STK = np.array([[[0.12, 0], [0, 0.15], [0.11, 0], [0, 0.16]]])
    outcomes = SessionOutcomes(np.ones((1, 4), bool), cost_STK, quality_STK)
    played = play(
        lambda standing: np.full(len(standing.session_N), standing.turn % 2),
        outcomes,
        (500, 1500, 3000),
    )
    assert played.return_SM[0].tolist() == pytest.approx([-4.6815, -4.31994, 0.53156], abs=5e-6)
    assert played.bankrupt_SM[0].tolist() == [True, True, False]
    assert played.cost_SM[0].tolist() == [1020, 2270, 2270]
    assert played.calls_SMK[0].tolist() == [[1, 1], [2, 2], [2, 2]]


@given(st.integers(0, 5000))
def test_replaying_the_log_equals_relabelling_it(start):
    part = slice(start, start + 20)
    outcomes = SessionOutcomes(DRAWN.valid_ST[part], DRAWN.cost_STK[part], DRAWN.quality_STK[part])
    action_ST = LOGGED.action_ST[part]
    played = play(lambda standing: action_ST[standing.session_N, standing.turn], outcomes)
    relabelled = relabel_budgets(
        torch.from_numpy(LOGGED.cost_ST[part]),
        torch.from_numpy(LOGGED.quality_ST[part]),
        torch.from_numpy(LOGGED.valid_ST[part]),
        torch.tensor(BUDGETS),
        5.0,
    )
    expected_SM = compute_discounted_return(relabelled.reward_SMT, 0.99).numpy()
    np.testing.assert_allclose(played.return_SM, expected_SM, atol=1e-12)
    assert (played.bankrupt_SM == relabelled.bankrupt_SM.numpy()).all()


def test_the_optimum_earns_what_it_promises_and_more_than_any_other():
    optimum = solve_sessions(WORLD, penalty=5.0, discount=0.99)
    best = play(choose_optimal())
    promised = [optimum.compute_value(budget) for budget in BUDGETS]
    assert best.return_SM.mean(axis=0).tolist() == pytest.approx(promised, abs=0.05)
    heuristic = choose_cheapest_sufficient(
        WORLD.quality_KD.T[DRAWN.difficulty_ST], np.array([75.0, 750.0]), 0.6
    )
    for other in (always(0), always(1), heuristic, choose_optimal(0.001)):
        assert (best.return_SM.mean(axis=0) >= play(other).return_SM.mean(axis=0) - 1e-9).all()


def test_always_weak_never_runs_out_and_always_strong_does():
    assert not play(always(0)).bankrupt_SM.any()
    rate_M = play(always(1)).bankrupt_SM.mean(axis=0)
    assert rate_M[0] > 0.9
    assert (np.diff(rate_M) < 0).all()
    assert rate_M[-1] == 0


def test_a_greater_cost_weight_makes_the_optimum_cheaper():
    costs = [play(choose_optimal(weight)).cost_SM.mean() for weight in (0, 2e-4, 1e-3, 1e-2)]
    assert (np.diff(costs) < 0).all()
    assert costs[-1] == play(always(0)).cost_SM.mean()


def test_estimates_fill_only_what_the_log_does_not_have():
    kinds = np.eye(6)[DRAWN.difficulty_ST * 2 + DRAWN.length_ST].astype(np.float32)
    model = fit_outcome_model(kinds, LOGGED, ("weak", "strong"))
    imputed = impute_outcomes(model, kinds, LOGGED)
    asked_STK = LOGGED.action_ST[..., None] == np.arange(2)
    valid_STK = DRAWN.valid_ST[..., None] & asked_STK
    assert (imputed.cost_STK[valid_STK] == DRAWN.cost_STK[valid_STK]).all()
    assert (imputed.quality_STK[valid_STK] == DRAWN.quality_STK[valid_STK]).all()
    guessed_STK = DRAWN.valid_ST[..., None] & ~asked_STK
    error_N = imputed.quality_STK[guessed_STK] - DRAWN.quality_STK[guessed_STK]
    assert abs(error_N).max() < 0.13  # noise of 0.1 at most, and what the fit adds
    estimated, true = play(choose_optimal(), imputed), play(choose_optimal())
    assert estimated.return_SM.mean() == pytest.approx(true.return_SM.mean(), abs=0.03)


def test_an_executor_that_the_log_never_asked_is_an_error():
    logged = SessionArrays(
        np.ones((2, 1), bool), np.zeros((2, 1), np.int64), np.ones((2, 1)), np.ones((2, 1))
    )
    with pytest.raises(RLRouteError, match="'strong' took no turn"):
        fit_outcome_model(np.zeros((2, 1, 1), np.float32), logged, ("weak", "strong"))


def test_the_heuristic_takes_the_cheapest_that_is_good_enough_and_paid_for():
    quality_STK = np.array([[[0.2, 0.7, 0.9]]] * 3)
    outcomes = SessionOutcomes(np.ones((3, 1), bool), np.full((3, 1, 3), 1.0), quality_STK)
    cost_K = np.array([1.0, 5.0, 50.0])

    def choose(threshold: float, budget: float) -> int:
        chooser = choose_cheapest_sufficient(quality_STK, cost_K, threshold)
        return int(play(chooser, outcomes, (budget,)).calls_SMK[0, 0].argmax())

    assert [choose(threshold, 100) for threshold in (0.1, 0.5, 0.8, 0.95)] == [0, 1, 2, 2]
    assert [choose(0.8, budget) for budget in (100, 20, 0.5)] == [2, 0, 0]
    assert choose(0.5, 4) == 0


# --- Words ----------------------------------------------------------------------------------------


def evaluate(subject: Chooser, budgets=BUDGETS) -> SessionEvaluation:
    """Return a small comparison of one policy with every executor alone."""
    weight_RS = draw_resamples(len(DRAWN.ids), 50, 0)
    control, best = play(always(0), budgets=budgets), play(choose_optimal(), budgets=budgets)
    entries: list[tuple[str, SessionPolicyKind, Chooser, float | None]] = [
        ("cql", "policy", subject, 0.0),
        ("always weak", "single", always(0), None),
        ("always strong", "single", always(1), None),
    ]
    policies = tuple(
        SessionPolicyResult(
            name,
            kind,
            (
                measure_session_point(
                    play(choose, budgets=budgets), control, best, weight_RS, weight
                ),
            ),
        )
        for name, kind, choose, weight in entries
    )
    return SessionEvaluation(
        log="generated",
        cost_unit="price x tokens",
        played=True,
        sessions=len(DRAWN.ids),
        executor_ids=("weak", "strong"),
        budgets=budgets,
        cost_weights=(0.0,),
        penalty=5.0,
        discount=0.99,
        policies=policies,
        leads={},
        expected_optimum_M=(2.0,) * len(budgets),
        update=0,
        bootstrap=50,
        seed=0,
    )


def test_a_policy_that_is_nearly_always_weak_is_called_so():
    words = " ".join(describe_session_result(evaluate(always(0))))
    assert "cql asks weak on 100.0% of the turns: it is nearly always weak" in words
    assert "not clearly different from always weak" in words
    words = " ".join(describe_session_result(evaluate(choose_optimal())))
    assert "nearly always" not in words
    assert "better than always weak" in words
    assert "No budget binds" not in words


def test_budgets_that_never_bind_are_called_so():
    words = " ".join(describe_session_result(evaluate(always(1), budgets=(8000.0,))))
    assert "No budget binds" in words


def test_the_table_has_a_row_for_every_policy_and_weight_in_80_columns():
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render_session_comparison(evaluate(choose_optimal())))
    lines = console.export_text().splitlines()
    labels = [line[:13].strip() for line in lines[3:7]]
    assert labels == ["cql", "weight 0", "always weak", "always strong"]
    assert lines[1].split() == [
        *("policy", "return", "95%", "cost", "bankrupt", "dearest", "lead", "regret")
    ]
    assert "\N{HORIZONTAL ELLIPSIS}" not in "".join(lines)
