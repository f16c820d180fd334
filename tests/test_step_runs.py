"""Evaluate of step-by-step runs: paired episodes, hard budgets, honest baselines, whole files."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("accelerate", reason="the extra `train` is absent")
pytest.importorskip("matplotlib", reason="the extra `train` is absent")

from rlroute.config import parse_config
from rlroute.evaluation.step_results import StepEvaluation, StepPoint, StepSetting
from rlroute.policies.step_baselines import StaticPolicy
from rlroute.rewards.boundary import BoundaryReward
from rlroute.rollout.boundary import RolloutFile
from rlroute.step_runs import (
    evaluate_step_run,
    is_reading,
    list_policies,
    open_arena,
    read_step_run,
)
from rlroute.trainers.step_arena import Arena, Contender
from rlroute.trainers.step_contenders import PROBES, list_baselines, make_sigma, train_bandit
from rlroute.trainers.step_recipe import StepRecipe
from rlroute.trainers.step_run import train_steps
from rlroute.types import RLRouteError

HARD = {"name": "hard", "share": 0.6, "critical_steps": 2, "success": [0.1, 0.95], "hint": 0.9}
EASY = {"name": "easy", "share": 0.4, "critical_steps": 1, "success": [0.95, 0.97], "hint": 0.1}
WORLD = {"kind": "chain", "horizon": 5, "train": 60, "val": 30, "test": 40, "kinds": [EASY, HARD]}
FILES = ("evaluation.json", "frontier.png", "curves.png", "transcripts.jsonl", "report.html")


def make_recipe(**parts: Any) -> StepRecipe:
    """Return the recipe of a run of seconds, with other parts in the place of its own."""
    stated: dict[str, Any] = {
        "environment": "step_budget",
        "world": WORLD,
        "updates": 2,
        "reward": {"unit": "calls"},
        "budget": {"caps": [None, 2]},
        "boundary": {"rollouts": 3, "evaluation_rollouts": 2, "sweep": 5},
        "policy": {"kind": "mlp", "hidden": 8},
        "warm_start": {"epochs": 10},
        "algorithm": {"kind": "grpo", "group_size": 4, "episodes": 16},
        "validation": {"every": 1},
        "evaluation": {"rollouts": 2, "bootstrap": 100, "transcripts": 12},
        "tracking": {"wandb": False},
    }
    return parse_config(StepRecipe, stated | parts, "recipe")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "mine"
    train_steps(make_recipe(), folder, command="rlroute train mine.yaml")
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "plain"
    train_steps(make_recipe(seed=1, warm_start=None), folder)
    return folder


@pytest.fixture(scope="module")
def result(run: Path, other: Path) -> StepEvaluation:
    return evaluate_step_run(run, beside=[other])


def find_point(result: StepEvaluation, name: str, place: int = 0) -> StepPoint:
    point = result.find(name).points[place]
    assert point is not None
    return point


# --- Who plays ------------------------------------------------------------------------------------


def test_the_policy_meets_its_relatives_and_every_baseline(result: StepEvaluation) -> None:
    names = [policy.name for policy in result.policies]
    assert names[:4] == ["grpo", "grpo sampled", "SFT only", "run plain"]
    assert names[4:7] == ["always small", "always large", "random"]
    families = {policy.family: policy.kind for policy in result.policies}
    assert families["Bernoulli"] == families["first-large"] == "sweep"
    assert (families["LinUCB"], families["sigma of probes"]) == ("bandit", "probe")
    assert families["world's best"] == "optimal"
    sweep = [policy.name for policy in result.policies if policy.family == "Bernoulli"]
    assert sweep == [f"Bernoulli 0.{n}" for n in range(1, 10)]
    steps = [policy.name for policy in result.policies if policy.family == "first-large"]
    assert steps == [f"first-large {n}" for n in range(1, 5)]
    assert result.left_out == ("cascade: world 'chain' has no feature 'confidence'",)


def test_everybody_plays_under_every_cap_but_first_large(result: StepEvaluation) -> None:
    assert result.settings == (StepSetting(None, 0.3), StepSetting(2, 0.3))
    for policy in result.policies:
        free, capped = policy.points
        assert free is not None
        assert free.episodes == 80
        assert (capped is None) == (policy.family == "first-large")
        for point in policy.points:
            if point is not None:
                assert (point.failed, point.violations) == (0, 0)


def test_a_cap_is_never_passed_and_its_use_is_told(result: StepEvaluation) -> None:
    large = find_point(result, "always large", 1)
    assert (large.calls, large.utilisation) == (2.0, 1.0)
    assert find_point(result, "always small", 1).utilisation == 0.0
    for policy in result.policies:
        point = policy.points[1]
        if point is not None and policy.kind != "probe":
            assert point.calls is not None
            assert point.calls <= 2.0
        assert policy.points[0] is None or policy.points[0].utilisation is None


def test_costs_and_success_relate_to_the_dearest_alone_without_a_cap(
    result: StepEvaluation,
) -> None:
    assert result.large == dataclasses.replace(
        find_point(result, "always large"), lead=None, reward_lead=None
    )
    for place in (0, 1):
        point = find_point(result, "always small", place)
        assert point.cost_ratio is not None
        assert point.cost_ratio.value == pytest.approx(0.2, rel=1e-3)  # prices of 1 to 5
        assert point.gap_recovered == pytest.approx(0.0)
    assert find_point(result, "always large").gap_recovered == pytest.approx(1.0)
    best = find_point(result, "world's best").success
    small = find_point(result, "always small").success
    assert best is not None
    assert small is not None
    assert best.value > small.value + 0.3


def test_classes_are_those_of_the_test_tasks(result: StepEvaluation, run: Path) -> None:
    assert sum(result.class_tasks.values()) == 40
    assert result.class_tasks["hard"] > 10
    for policy in result.policies:
        parts = find_point(result, policy.name).by_class
        assert {name: part.tasks for name, part in parts.items()} == dict(result.class_tasks)
    lines = (run / "boundaries.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    test = [json.loads(line) for line in lines if json.loads(line)["split"] == "test"]
    assert len(test) == 2 * 40 * PROBES  # more than the classes need: the probes


def test_rows_and_the_best_baseline_are_chosen_on_val(run: Path, result: StepEvaluation) -> None:
    with open_arena(read_step_run(run), []) as arena:
        contenders, _ = list_baselines(arena)
        reward = {}
        for contender in contenders:
            if contender.kind != "optimal":
                played = arena.measure(contender, "val")[0]
                assert played is not None
                reward[contender.name] = float(played.reward_Q.mean())
    bernoulli = {name: value for name, value in reward.items() if name.startswith("Bern")}
    assert max(bernoulli, key=bernoulli.__getitem__) in result.shown[0]
    assert max(reward, key=reward.__getitem__) == result.best_baselines[0]
    shown = [name for name in result.shown[0] if name.startswith(("Bernoulli", "first-large"))]
    assert len(shown) == 2
    assert not any(name.startswith("first-large") for name in result.shown[1])


# --- Rewards, bills, budgets ----------------------------------------------------------------------


def test_rewards_are_the_environment_s_own_without_the_bonus(run: Path) -> None:
    with open_arena(read_step_run(run), []) as arena:
        setting = StepSetting(2, 0.4)
        contender = Contender("always large", "static", lambda split: StaticPolicy(1))
        batch = arena.play(StaticPolicy(1), "test", setting)
        played = arena.score(contender, batch, "test", setting)
        terms = {name: value.sum(axis=1) for name, value in batch.reward_terms_BT.items()}
        reward_B = terms["outcome"] - 0.4 * terms["cost"]
        expected_Q = reward_B.reshape(2, 40).mean(axis=0)
    np.testing.assert_allclose(played.reward_Q, expected_Q, atol=1e-6)
    assert BoundaryReward(arena.recipe.reward).config.hard_bonus > 0


def test_the_sigma_rule_pays_for_its_probes(run: Path) -> None:
    with open_arena(read_step_run(run), []) as arena:
        contender, setting = make_sigma(arena), StepSetting(2, 0.3)
        policy = contender.load("test")
        batch = arena.play(policy, "test", setting)
        played = arena.score(contender, batch, "test", setting)
        bare = arena.score(dataclasses.replace(contender, bills=None), batch, "test", setting)
        task = arena.stage.tasks["test"][0].id
        probes = arena.file.list_of("test", task, "small")[:PROBES]
        answers = {probe.score for probe in probes}
        first_B = batch.query_index_B == 0
        picks = set(batch.action_BT[first_B][batch.valid_BT[first_B]].tolist())
    bill_Q = played.cost_usd_Q - bare.cost_usd_Q
    assert bill_Q[0] == pytest.approx(sum(probe.cost_usd for probe in probes), rel=1e-5)
    assert (bill_Q > 0).all()
    np.testing.assert_array_equal(played.used_Q, bare.used_Q)  # the mask does not see it
    assert (1 in picks) == (len(answers) > 1)


def test_probes_count_in_the_reward_where_money_does(tmp_path: Path) -> None:
    recipe = make_recipe(reward={"unit": "usd", "gate": False}, budget={"caps": [None]})
    train_steps(recipe, tmp_path / "run")
    with open_arena(read_step_run(tmp_path / "run"), []) as arena:
        contender, setting = make_sigma(arena), arena.settings[0]
        batch = arena.play(contender.load("test"), "test", setting)
        played = arena.score(contender, batch, "test", setting)
        bare = arena.score(dataclasses.replace(contender, bills=None), batch, "test", setting)
    assert (played.reward_Q <= bare.reward_Q).all()
    assert (played.reward_Q < bare.reward_Q).any()


def test_a_passed_cap_ends_the_evaluation_with_an_error(run: Path) -> None:
    with open_arena(read_step_run(run), []) as arena:
        setting = StepSetting(2, 0.3)
        batch = arena.play(StaticPolicy(1), "test", setting)
        assert batch.ends is not None
        calls_B = batch.ends.calls_B.copy()
        calls_B[5] = 3
        broken = dataclasses.replace(batch, ends=dataclasses.replace(batch.ends, calls_B=calls_B))
        contender = Contender("always large", "static", lambda split: StaticPolicy(1))
        with pytest.raises(RLRouteError, match=r"always large: 1 of 80 episodes passed the cap of"):
            arena.score(contender, broken, "test", setting)


def test_linucb_learns_on_train_and_explores_no_more(run: Path) -> None:
    with open_arena(read_step_run(run), []) as arena:
        bandit, again = train_bandit(arena), train_bandit(arena)
    assert bandit.alpha == 0.0
    assert (bandit.moment_KFF != np.eye(bandit.features + 1)).any()
    np.testing.assert_array_equal(bandit.reward_KF, again.reward_KF)


# --- Files ----------------------------------------------------------------------------------------


def test_a_second_evaluation_gives_the_same_bytes(
    run: Path, other: Path, result: StepEvaluation
) -> None:
    before = {name: (run / name).read_bytes() for name in FILES}
    assert evaluate_step_run(run, beside=[other]) == result
    assert {name: (run / name).read_bytes() for name in FILES} == before
    assert json.loads(before["evaluation.json"]) == result.to_dict()


def test_transcripts_are_episodes_that_were_evaluated(run: Path, result: StepEvaluation) -> None:
    rows = [json.loads(line) for line in (run / "transcripts.jsonl").open(encoding="utf-8")]
    assert len(rows) == 12
    assert len({row["task"] for row in rows}) == 12
    assert [row["cap"] for row in rows] == [None] * 6 + [2] * 6
    stored = read_step_run(run)
    with open_arena(stored, []) as arena:
        policy = list_policies(stored, [], arena.stage)[0].load("test")
        batches = {cap: arena.play(policy, "test", StepSetting(cap, 0.3)) for cap in (None, 2)}
        ids = [task.id for task in arena.stage.tasks["test"]]
        names = arena.stage.feature_names
    for row in rows:
        batch, place = batches[row["cap"]], ids.index(row["task"])  # rollout 0 of the task
        assert batch.ends is not None
        assert row["score"] == pytest.approx(batch.ends.score_B[place])
        assert row["cost_usd"] == pytest.approx(batch.ends.cost_usd_B[place])
        taken = batch.action_BT[place, batch.valid_BT[place]]
        executors = [("small", "large")[action] for action in taken]
        assert [step["executor"] for step in row["steps"]] == executors
        for turn, step in enumerate(row["steps"]):
            assert list(step["features"]) == list(names)
            assert step["executor"] in step["allowed"]
            assert step["advised"] in ("small", "large")
            assert 0.5 <= step["probability"] <= 1.0  # greedy, of two
            left = None if row["cap"] is None else 2 - executors[:turn].count("large")
            assert step["budget_left"] == left
        assert sum(step["cost_usd"] for step in row["steps"]) == pytest.approx(row["cost_usd"])


def test_the_report_tells_what_was_trained_and_what_was_found(
    run: Path, result: StepEvaluation
) -> None:
    page = (run / "report.html").read_text(encoding="utf-8")
    for text in (
        "rlroute train mine.yaml",
        "run plain",
        "What the warm start taught",
        "horizon: 5",
    ):
        assert text in page


def test_cost_weights_are_played_by_the_policy_only_and_scored_for_all(tmp_path: Path) -> None:
    recipe = make_recipe(
        cost_weight={"min": 0.0, "max": 0.6},
        budget={"unit": "usd", "caps": [0.01]},
        evaluation={"cost_weights": 2, "bootstrap": 50, "transcripts": 0},
    )
    train_steps(recipe, tmp_path / "run")
    result = evaluate_step_run(tmp_path / "run")
    assert result.settings == (StepSetting(0.01, 0.0), StepSetting(0.01, 0.6))
    assert not any(policy.family == "first-large" for policy in result.policies if policy.points[0])
    first, second = result.find("always large").points
    assert first is not None
    assert second is not None
    assert (first.success, first.cost_usd) == (second.success, second.cost_usd)
    assert first.reward is not None
    assert second.reward is not None
    assert second.reward.value < first.reward.value
    assert first.utilisation is not None
    assert 0.5 < first.utilisation <= 1.0
    assert result.large.utilisation is None  # without a cap, though no setting is
    assert (tmp_path / "run" / "transcripts.jsonl").read_text() == ""


# --- Language models ------------------------------------------------------------------------------


def test_a_language_model_is_compared_with_itself_before_training(
    tmp_path: Path, run: Path
) -> None:
    pytest.importorskip("peft", reason="the extra `text` is absent")
    from tiny_llama import save_tiny_llama

    save_tiny_llama(tmp_path / "llama", max_position_embeddings=512, initializer_range=0.15)
    recipe = make_recipe(
        budget={"caps": [2]},
        policy={
            "kind": "choice",
            "model": str(tmp_path / "llama"),
            "precision": "float32",
            "context_tokens": 512,
        },
        optimiser={"learning_rate": 1e-3},
        warm_start={"epochs": 1, "learning_rate": 1e-3},
        updates=1,
        evaluation={"rollouts": 1, "bootstrap": 50, "transcripts": 3},
    )
    train_steps(recipe, tmp_path / "run")
    result = evaluate_step_run(tmp_path / "run", beside=[run])
    names = [policy.name for policy in result.policies]
    assert names[:5] == ["grpo", "grpo sampled", "SFT only", "prompted LLM", "run mine"]
    assert result.find("prompted LLM").kind == "prompted"
    rows = [json.loads(line) for line in (tmp_path / "run" / "transcripts.jsonl").open()]
    assert all(step["features"] == {} and step["text"] for row in rows for step in row["steps"])
    assert "Budget left: 2 dear calls." in rows[0]["steps"][0]["text"]
    # the same policy of arrays, read as single worlds here, does what it does there
    with open_arena(read_step_run(run), [read_step_run(tmp_path / "run")]) as arena:
        assert not arena.stage.arrays
        small = Contender("always small", "static", lambda split: StaticPolicy(0))
        slow = arena.measure(small, "test")[0]
    with open_arena(read_step_run(run), []) as arena:
        assert arena.stage.arrays
        fast = arena.measure(small, "test")[0]
    assert slow is not None
    assert fast is not None
    np.testing.assert_allclose(slow.success_Q, fast.success_Q)
    np.testing.assert_allclose(slow.cost_usd_Q, fast.cost_usd_Q, rtol=1e-6)


# --- Bad input ------------------------------------------------------------------------------------


def test_runs_that_cannot_be_compared_are_refused_in_one_line(
    tmp_path: Path, run: Path, other: Path
) -> None:
    with pytest.raises(RLRouteError, match="is not compared with itself"):
        evaluate_step_run(run, beside=[run])
    copy = tmp_path / "elsewhere"
    shutil.copytree(other, copy)
    text = (copy / "recipe.resolved.yaml").read_text(encoding="utf-8")
    changed = text.replace("horizon: 5", "horizon: 6")
    (copy / "recipe.resolved.yaml").write_text(changed, encoding="utf-8")
    with pytest.raises(RLRouteError, match="its world is not that of") as caught:
        evaluate_step_run(run, beside=[copy])
    assert "\n" not in str(caught.value)
    (copy / "recipe.resolved.yaml").write_text("environment: multi_round\n", encoding="utf-8")
    with pytest.raises(RLRouteError, match="a run of 'multi_round'"):
        evaluate_step_run(run, beside=[copy])
    with pytest.raises(RLRouteError, match="no run lies here"):
        evaluate_step_run(tmp_path / "absent")
    shutil.rmtree(copy)
    shutil.copytree(other, copy)
    shutil.rmtree(copy / "best")
    with pytest.raises(RLRouteError, match="has not kept a policy yet"):
        evaluate_step_run(copy)


def test_runs_of_one_name_are_told_apart_by_their_folders(
    tmp_path: Path, run: Path, other: Path
) -> None:
    copy = tmp_path / "plain"
    shutil.copytree(other, copy)
    stored, others = read_step_run(run), [read_step_run(other), read_step_run(copy)]
    with open_arena(stored, others) as arena:
        names = [one.name for one in list_policies(stored, others, arena.stage)]
    assert names[3:] == [f"run {other}", f"run {copy}"]
    assert not is_reading(stored.recipe)


def test_a_run_whose_rollouts_are_gone_plays_them_again(tmp_path: Path, run: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "boundaries.jsonl").unlink()
    with open_arena(read_step_run(copy), []) as arena, open_arena(read_step_run(run), []) as first:
        assert isinstance(arena, Arena)
        assert isinstance(arena.file, RolloutFile)
        assert arena.facts["test"].classes == first.facts["test"].classes
        assert arena.facts["train"].yardsticks == first.facts["train"].yardsticks
