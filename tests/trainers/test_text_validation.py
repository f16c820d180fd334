"""Greedy episodes on held-out questions: the same ones every time, at stated cost weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from text_world import SPECIALISTS, make_recipe, open_run

torch = pytest.importorskip("torch")
pytest.importorskip("trl", reason="the extra `text` is absent")

from rlroute.rewards.multi_round import MultiRoundReward  # noqa: E402
from rlroute.tracking import read_metrics  # noqa: E402
from rlroute.trainers.text_problem import plan_evaluation  # noqa: E402
from rlroute.trainers.text_validation import (  # noqa: E402
    OperatingPoint,
    measure_point,
    measure_sweep,
    name_validation_metrics,
)
from rlroute.types import RLRouteError  # noqa: E402

DEAD = {name: spec | {"failures": {"server": 1.0}} for name, spec in SPECIALISTS.items()}
DEAD_GENERALISTS = {
    "small": {
        "accuracy": 0.8,
        "prices": {"input": 0.1, "output": 0.3, "per_call": 4e-5},
        "failures": {"timeout": 1.0},
    },
    "large": {
        "accuracy": 0.9,
        "prices": {"input": 5.0, "output": 15.0, "per_call": 1e-3},
        "failures": {"timeout": 1.0},
    },
}
WINDOW = {"combination": "gated", "normaliser": {"kind": "window", "size": 50}}


def make_point(cost_weight: float, reward: float) -> OperatingPoint:
    return OperatingPoint(cost_weight, reward, 0.5, 1.0, 0.001, 2.0, episodes=8, failed=0)


def test_validation_repeats_itself_and_leaves_the_window_of_charges_alone(tmp_path: Path) -> None:
    with open_run(make_recipe(reward=WINDOW), tmp_path) as run:
        before = run.reward.get_state()
        found = [run.validate() for _ in range(2)]
        assert run.reward.get_state() == before
        assert not run.trainer.model.training or run.trainer.state.global_step == 0
    assert found[0] == found[1]
    assert set(found[0]) == {
        f"eval/{name}" for name in ("reward", "success", "valid_format", "charge_usd", "calls")
    }


def test_each_cost_weight_is_played_and_stated(tmp_path: Path) -> None:
    recipe = make_recipe(episode={"cost_weights": [0.0, 0.5, 1.0]})
    with open_run(recipe, tmp_path) as run:
        play, seen = run.rollouts.play, []

        def watch(queries, plan, *, temperature, cost_weight=None):
            found = play(queries, plan, temperature=temperature, cost_weight=cost_weight)
            seen.append((temperature, cost_weight, len(found)))
            for trajectory in found:
                prompt = trajectory.transitions[0].observation
                assert prompt.cost_weight == cost_weight
                assert f"weight {cost_weight:g}" in prompt.text
            return found

        run.rollouts.play = watch
        found = run.validate()
    assert seen == [(0.0, weight, 8) for weight in (0.0, 0.5, 1.0)]
    assert {"eval/reward/at_0", "eval/success/at_0.5", "eval/charge_usd/at_1"} <= set(found)
    mean = np.mean([found[f"eval/reward/at_{weight}"] for weight in ("0", "0.5", "1")])
    assert found["eval/reward"] == pytest.approx(mean)


def test_an_evaluation_plan_asks_each_question_once_from_seeds_alone() -> None:
    one, same, other = (plan_evaluation(5, seed) for seed in (0, 0, 1))
    assert one.query_index_B.tolist() == [0, 1, 2, 3, 4]
    assert one.episode_seed_B.tolist() == same.episode_seed_B.tolist()
    assert one.episode_seed_B.tolist() != other.episode_seed_B.tolist()
    assert len(set(one.group_B.tolist())) == 5


def test_failed_episodes_are_counted_and_leave_the_means(tmp_path: Path) -> None:
    recipe = make_recipe(world={"specialists": DEAD})
    reward = MultiRoundReward(recipe.reward)
    with open_run(recipe, tmp_path) as run:
        queries = run.problem.val
        played = run.rollouts.play(
            queries, plan_evaluation(len(queries), 0), temperature=1.0, cost_weight=0.4
        )
    failed = [trajectory.failure is not None for trajectory in played]
    assert 0 < sum(failed) < len(failed)
    point = measure_point(played, reward, 0.4)
    kept = [trajectory for trajectory in played if trajectory.failure is None]
    alone = measure_point(kept, reward, 0.4)
    assert (point.episodes, point.failed) == (len(kept), sum(failed))
    assert (alone.episodes, alone.failed) == (len(kept), 0)
    for name in ("reward", "success", "valid_format", "charge_usd", "calls"):
        assert getattr(point, name) == pytest.approx(getattr(alone, name)), name


def test_nothing_but_failures_is_an_error_of_one_line(tmp_path: Path) -> None:
    world = {"specialists": DEAD, "generalists": DEAD_GENERALISTS}
    recipe = make_recipe(world=world)
    with open_run(recipe, tmp_path) as run:
        queries = run.problem.val[:8]
        calling = [
            trajectory
            for trajectory in run.rollouts.play(
                queries, plan_evaluation(8, 0), temperature=1.0, cost_weight=0.4
            )
            if trajectory.failure is not None
        ]
    assert calling
    with pytest.raises(RLRouteError, match=f"all {len(calling)} validation episodes had a failed"):
        measure_point(calling, MultiRoundReward(recipe.reward), 0.4)


def test_a_sweep_names_its_points_only_where_there_are_several() -> None:
    single = name_validation_metrics([make_point(0.4, 0.25)])
    assert set(single) == {
        f"eval/{name}" for name in ("reward", "success", "valid_format", "charge_usd", "calls")
    }
    both = name_validation_metrics([make_point(0.0, 0.2), make_point(0.5, 0.4)])
    assert both["eval/reward"] == pytest.approx(0.3)
    assert both["eval/reward/at_0"] == 0.2
    assert both["eval/calls/at_0.5"] == 2.0


def test_a_measured_sweep_has_one_point_per_weight(tmp_path: Path) -> None:
    recipe = make_recipe()
    with open_run(recipe, tmp_path) as run:
        points = measure_sweep(run.rollouts, run.problem.val[:4], run.reward, [0.0, 1.0], 0)
    assert [point.cost_weight for point in points] == [0.0, 1.0]
    assert all(point.episodes == 4 for point in points)


def test_the_best_policy_is_that_of_the_best_validation(tmp_path: Path) -> None:
    recipe = make_recipe(
        updates=4, validation={"every": 1, "questions": 8}, optimiser={"learning_rate": 5e-3}
    )
    with open_run(recipe, tmp_path) as run:
        run.train(resume=False)
        state = run.state
    rows = {row["step"]: row["eval/reward"] for row in read_metrics(tmp_path)[1:]}
    assert state.best_update == max(rows, key=lambda step: (rows[step], -step))
    assert state.best_metric == pytest.approx(rows[state.best_update])
