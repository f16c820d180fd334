"""Runs on sessions: the same numbers after a stop, from a file, and what a run folder refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlroute.config import load_config, parse_config
from rlroute.data.session_world import GeneratedSessionsConfig, SessionWorld
from rlroute.data.sessions import write_sessions
from rlroute.policies.session_scorer import describe_standing
from rlroute.trainers import session_run
from rlroute.trainers.session_evaluation import evaluate_session_run
from rlroute.trainers.session_problem import build_problem, make_transitions
from rlroute.trainers.session_recipe import SessionRecipe
from rlroute.trainers.session_run import (
    load_best_scorer,
    make_learner,
    read_session_run,
    run_update,
    train_sessions,
)
from rlroute.types import RLRouteError

RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "step_budget"
BUDGETS = [500, 1500, 3000]
CONSERVATIVE = {"kind": "cql", "target": {"kind": "copy", "every": 7}}
SMALL = {
    "sessions": {"kind": "generated", "sessions": 150},
    "budgets": BUDGETS,
    "cost_weights": [0, 0.001],
    "encoder": {"kind": "tfidf", "dimension": 32, "ngram_range": [1, 1]},
    "policy": {"hidden": [16]},
    "algorithm": {"kind": "cql"},
    "updates": 6,
    "steps": 5,
    "batch": 32,
    "checkpoint_every": 4,
    "evaluation": {"bootstrap": 20},
    "tracking": {"wandb": False},
}


def make_recipe(**changes: Any) -> SessionRecipe:
    return parse_config(SessionRecipe, {**SMALL, **changes}, "recipe")


def read_rows(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def write_log(folder: Path, sessions: int = 150, *, features: bool = False) -> Path:
    """Write a made log; with features, three numbers stand in the place of texts."""
    world = SessionWorld(GeneratedSessionsConfig(sessions=sessions))
    drawn = world.draw()
    log = world.make_log(drawn)
    if features:
        kinds = np.stack([drawn.difficulty_ST, drawn.length_ST, drawn.cost_STK[..., 0]], axis=-1)
        log = replace(
            log,
            sessions=tuple(
                replace(
                    one,
                    turns=tuple(
                        replace(turn, text="", features=tuple(kinds[s, t].astype(float).tolist()))
                        for t, turn in enumerate(one.turns)
                    ),
                )
                for s, one in enumerate(log.sessions)
            ),
        )
    write_sessions(log, folder)
    return folder


# --- Transitions ----------------------------------------------------------------------------------


def test_each_session_is_learnt_from_under_each_budget_until_it_is_bankrupt():
    recipe = make_recipe()
    problem = build_problem(recipe)
    rows = make_transitions(problem, recipe)
    logged = problem.parts["train"].logged
    place = 0
    for s in range(len(logged.valid_ST)):
        for budget in BUDGETS:
            balance = float(budget)
            for t in range(int(logged.valid_ST[s].sum())):
                share = rows.standing_NP[place, 0].item()
                assert share == pytest.approx(balance / budget, abs=1e-6)
                assert rows.standing_NP[place, 2].item() == t / 4
                assert rows.place_N[place] == s * logged.valid_ST.shape[1] + t
                assert rows.action_N[place] == logged.action_ST[s, t]
                balance -= logged.cost_ST[s, t]
                reward = logged.quality_ST[s, t] - 5.0 * (balance < 0)
                assert rows.reward_N[place].item() == pytest.approx(reward, abs=1e-6)
                ends = balance < 0 or t + 1 == logged.valid_ST[s].sum()
                assert rows.last_N[place].item() is bool(ends)
                place += 1
                if balance < 0:
                    break
    assert place == len(rows.action_N)


def test_the_share_of_the_budget_cannot_tell_one_budget_from_another():
    budget_N = np.array(BUDGETS, dtype=float)
    alike = describe_standing(
        budget_N, budget_N, 0, dearest_cost=750.0, max_turns=4, balance="share"
    )
    assert (alike == alike[0]).all()
    told = describe_standing(
        budget_N, budget_N, 0, dearest_cost=750.0, max_turns=4, balance="share_and_calls"
    )
    assert told[:, 1].tolist() == pytest.approx([500 / 3000, 0.5, 1.0])


# --- Training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", [1, 2])
def test_q_learning_finds_the_values_of_a_world_where_every_turn_is_like_the_first(turns):
    sessions = {"kind": "generated", "sessions": 1500, "max_turns": turns}
    recipe = make_recipe(
        sessions={**sessions, "continue_probability": 1.0, "persistence": 1.0},
        budgets=[8000],
        algorithm={"kind": "cql", "alpha": 0},
        policy={"hidden": [32]},
        optimiser={"learning_rate": 0.003},
        updates=12,
        steps=50,
        batch=256,
    )
    learner = make_learner(recipe, build_problem(recipe))
    for update in range(recipe.updates):
        run_update(learner, update)
    test = learner.problem.parts["test"]
    features_NF = torch.from_numpy(test.features_STF[:, 0])
    standing_NP = torch.tensor([[1.0, 1.0, 0.0]]).expand(len(features_NF), -1)
    with torch.no_grad():
        score_NK = learner.scorer(features_NF, standing_NP).numpy()
    drawn = learner.problem.drawn
    assert drawn is not None
    place = [drawn.ids.index(name) for name in test.ids]
    quality_KD = np.array([[0.75, 0.5, 0.2], [0.8, 0.75, 0.7]])
    expected_NK = quality_KD.T[drawn.difficulty_ST[place, 0]]
    if turns == 2:  # the budget pays for the better executor on the second turn
        expected_NK = expected_NK + 0.99 * expected_NK[:, 1:]
    assert abs(score_NK - expected_NK).mean() < 0.1


def test_no_two_steps_learn_from_the_same_rows(monkeypatch):
    recipe = make_recipe(updates=2)
    learner = make_learner(recipe, build_problem(recipe))
    seen = []
    compute = session_run.compute_loss

    def watch(learner, row_N):
        seen.append(tuple(row_N.tolist()))
        return compute(learner, row_N)

    monkeypatch.setattr(session_run, "compute_loss", watch)
    for update in range(recipe.updates):
        run_update(learner, update)
    assert len(set(seen)) == len(seen) == recipe.updates * recipe.steps


@pytest.mark.parametrize("algorithm", [CONSERVATIVE, {"kind": "cql"}, {"kind": "bc"}])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, monkeypatch, algorithm):
    recipe = make_recipe(algorithm=algorithm)
    train_sessions(recipe, tmp_path / "whole")
    step = session_run.run_update

    def stop_at_five(learner, update):
        if update == 5:
            raise KeyboardInterrupt
        return step(learner, update)

    monkeypatch.setattr(session_run, "run_update", stop_at_five)
    with pytest.raises(KeyboardInterrupt):
        train_sessions(recipe, tmp_path / "parts")
    monkeypatch.undo()
    train_sessions(recipe, tmp_path / "parts", resume=True)
    assert read_rows(tmp_path / "parts") == read_rows(tmp_path / "whole")
    for name in (
        "best/policy.safetensors",
        "best/best.json",
        "checkpoints/step-6/policy.safetensors",
    ):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_log_from_a_file_is_learnt_from_like_the_world_that_made_it(tmp_path):
    train_sessions(make_recipe(), tmp_path / "made")
    sessions = {"kind": "file", "path": str(write_log(tmp_path / "log"))}
    train_sessions(make_recipe(sessions=sessions), tmp_path / "read")
    assert read_rows(tmp_path / "read") == read_rows(tmp_path / "made")


def test_another_seed_trains_another_network(tmp_path):
    train_sessions(make_recipe(), tmp_path / "zero")
    train_sessions(make_recipe(seed=1), tmp_path / "one")
    assert read_rows(tmp_path / "zero") != read_rows(tmp_path / "one")


def test_the_best_weights_are_those_that_validation_found_best(tmp_path):
    state = train_sessions(make_recipe(), tmp_path / "run")
    found = {
        row["step"]: row["eval/return"]
        for row in read_rows(tmp_path / "run")
        if "eval/return" in row
    }
    assert sorted(found) == [2, 4, 6]
    assert state.best_metric == max(found.values())
    recipe, problem, facts = read_session_run(tmp_path / "run")
    _, best = load_best_scorer(tmp_path / "run", recipe, problem)
    assert found[best["update"]] == state.best_metric
    assert facts["sessions"] == {split: len(part.ids) for split, part in problem.parts.items()}


# --- Refusals -------------------------------------------------------------------------------------


def test_a_run_is_not_overwritten_unasked(tmp_path):
    recipe = make_recipe(updates=1)
    train_sessions(recipe, tmp_path / "run")
    with pytest.raises(RLRouteError, match="a run lies here"):
        train_sessions(recipe, tmp_path / "run")
    train_sessions(recipe, tmp_path / "run", overwrite=True)
    with pytest.raises(RLRouteError, match="no run lies here"):
        train_sessions(recipe, tmp_path / "none", resume=True)


def test_a_log_that_has_changed_is_not_gone_on_with(tmp_path):
    log = write_log(tmp_path / "log")
    train_sessions(make_recipe(sessions={"kind": "file", "path": str(log)}), tmp_path / "run")
    write_log(log, sessions=160)
    with pytest.raises(RLRouteError, match="has changed since"):
        read_session_run(tmp_path / "run")


def test_features_need_no_encoder_and_refuse_one(tmp_path):
    sessions = {"kind": "file", "path": str(write_log(tmp_path / "log", features=True))}
    with pytest.raises(RLRouteError, match="holds features; leave the encoder out"):
        train_sessions(make_recipe(sessions=sessions), tmp_path / "run")
    train_sessions(make_recipe(sessions=sessions, encoder=None), tmp_path / "run")
    _, problem, facts = read_session_run(tmp_path / "run")
    assert problem.feature_count == 3
    assert facts["encoder"] is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"budgets": [500, 500]}, "budgets: must rise"),
        ({"budgets": [0]}, "budgets"),
        ({"cost_weights": [0.1, 0]}, "cost_weights: must rise"),
        ({"budget": [500]}, "unknown key 'budget'; did you mean 'budgets'"),
        ({"algorithm": {"kind": "bc", "alpha": 1}}, "unknown key 'algorithm.alpha'"),
        ({"sessions": {"kind": "file"}}, "sessions.path"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(changes, told):
    with pytest.raises(RLRouteError) as caught:
        make_recipe(**changes)
    assert told in str(caught.value)


# --- Evaluation -----------------------------------------------------------------------------------


def test_an_evaluation_compares_everybody_and_leaves_its_files(tmp_path, capsys):
    folder = tmp_path / "run"
    train_sessions(make_recipe(), folder)
    result = evaluate_session_run(folder)
    names = ["cql", "bc", "cheapest sufficient", "always weak", "always strong", "optimum (exact)"]
    assert [policy.name for policy in result.policies] == names
    assert [len(policy.points) for policy in result.policies] == [2, 2, 1, 1, 1, 2]
    stored = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    assert [policy["name"] for policy in stored["policies"]] == names
    assert (folder / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert "played in the made world" in capsys.readouterr().out
    optimum = result.find("optimum (exact)").points
    assert optimum[0].regret is not None
    assert optimum[0].regret.value == 0
    assert optimum[1].cost.value < optimum[0].cost.value
    assert set(result.leads) == {"bc", "cheapest sufficient"}


def test_a_log_is_evaluated_by_replay_and_says_so(tmp_path, capsys):
    sessions = {"kind": "file", "path": str(write_log(tmp_path / "log"))}
    folder = tmp_path / "run"
    train_sessions(make_recipe(sessions=sessions, algorithm={"kind": "bc"}), folder)
    result = evaluate_session_run(folder)
    assert [policy.name for policy in result.policies] == [
        *("bc", "cheapest sufficient", "always weak", "always strong")
    ]
    assert result.policies[0].points[0].regret is None
    assert not result.expected_optimum_M
    printed = " ".join(capsys.readouterr().out.split())
    assert "replayed on the log" in printed
    assert "estimates" in printed


@pytest.mark.parametrize("name", ["sessions_cql.yaml", "sessions_bc.yaml"])
def test_the_shipped_recipes_are_valid(name):
    recipe = load_config(SessionRecipe, RECIPES / name)
    assert recipe.algorithm.kind == name.removeprefix("sessions_").removesuffix(".yaml")
