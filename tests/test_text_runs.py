"""Evaluate and export of text runs: honest numbers, whole files, one clear line for bad input."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from text_run_example import COST_WEIGHTS, copy_text_run, make_recipe

from rlroute import cli
from rlroute.evaluation.intervals import draw_resamples
from rlroute.evaluation.text_comparison import render_text_comparison
from rlroute.evaluation.text_figures import draw_text_curves, draw_text_frontier
from rlroute.evaluation.text_results import (
    Played,
    TextEvaluation,
    choose_best,
    estimate_mean,
    measure_point,
)
from rlroute.export.text_bundle import read_text_bundle
from rlroute.text_runs import evaluate_text_run, export_text_run
from rlroute.types import RLRouteError

PNG = b"\x89PNG\r\n\x1a\n"
KEY = "sk-live-abcdefgh12345678"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_text_run(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="module")
def result(run: Path) -> TextEvaluation:
    return evaluate_text_run(run)


def write_questions(folder: Path) -> dict[str, Any]:
    """Write two sets of questions and return what a recipe says of them."""
    for name in ("nq", "popqa"):
        (folder / name).mkdir(parents=True)
        for split in ("train", "dev", "test"):
            rows = [
                {"id": f"{split}_{n}", "question": f"{name} {split} {n}", "golden_answers": ["yes"]}
                for n in range(12)
            ]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / name / f"{split}.jsonl").write_text(text, encoding="utf-8")
    counts = {"train": {"nq": 8}, "val": {"nq": 6, "popqa": 6}, "test": {"nq": 10, "popqa": 10}}
    return {"kind": "sets", "sets": {"source": str(folder)} | counts}


def make_sets_recipe(folder: Path, pool: str, **parts: Any) -> Any:
    """Return a recipe of question sets with a pool file of this text."""
    (folder / "pool.yaml").write_text(pool, encoding="utf-8")
    warm_start = make_recipe().warm_start
    assert warm_start is not None
    return make_recipe(
        questions=write_questions(folder / "questions"),
        pool=str(folder / "pool.yaml"),
        warm_start=warm_start.model_dump() | {"planner": "delegating"},
        **parts,
    )


SIMULATED = """
candidates:
  strong: {type: simulated, skill: 4.0, prices: {input: 1.0, output: 2.0}}
  weak: {type: simulated, skill: -4.0, prices: {input: 0.1, output: 0.2}}
"""


# --- Evaluate -------------------------------------------------------------------------------------


def test_all_policies_meet_the_same_questions_at_every_weight(result: TextEvaluation) -> None:
    names = [policy.name for policy in result.policies]
    singles = [f"always {name}" for name in ("alpha", "beta", "dead", "large", "small")]
    assert names == ["grpo", "warm start", *singles, "random", "optimal plan"]
    assert result.cost_weights == tuple(COST_WEIGHTS)
    for policy in result.policies:
        assert [point.cost_weight for point in policy.points] == COST_WEIGHTS
        assert all(point.scored + point.failed == 40 for point in policy.points)


def test_the_trained_policy_learnt_to_call_and_to_answer(result: TextEvaluation) -> None:
    point = result.subject.points[0]
    assert point.valid_format is not None
    assert point.valid_format > 0.8
    assert point.calls == pytest.approx(sum(point.calls_by_candidate.values()))
    assert point.calls > 0.8


def test_a_candidate_that_always_fails_is_counted_and_never_scored(result: TextEvaluation) -> None:
    for point in result.find("always dead").points:
        assert (point.scored, point.failed) == (0, 40)
        assert point.reward is point.success is point.cost_usd is point.lead is None
    partly = result.find("random").points[0]
    assert 0 < partly.failed < 40
    assert partly.success is not None
    assert "always dead" not in result.best_baselines


def test_the_optimum_bounds_every_policy_within_noise(result: TextEvaluation) -> None:
    for place, optimum in enumerate(result.optima):
        for policy in result.policies:
            reward = policy.points[place].reward
            assert reward is None or reward.low <= optimum.reward + 1e-6, policy.name
        plan = result.find("optimal plan").points[place].reward
        assert plan is not None
        assert plan.low - 0.05 <= optimum.reward <= plan.high + 0.05
    costs = [one.cost_usd for one in result.optimum_line]
    assert min(costs) < max(costs)


def test_the_lead_over_the_best_baseline_is_the_paired_difference(result: TextEvaluation) -> None:
    for place, name in enumerate(result.best_baselines):
        own, other = result.subject.points[place], result.find(name).points[place]
        assert own.failed == other.failed == 0
        assert own.lead is None
        assert own.reward is not None
        assert other.reward is not None
        assert other.lead is not None
        assert other.lead.value == pytest.approx(own.reward.value - other.reward.value, abs=1e-6)
        assert other.lead.low <= other.lead.value <= other.lead.high


def test_a_second_evaluation_gives_the_same_bytes(run: Path, result: TextEvaluation) -> None:
    names = ("evaluation.json", "frontier.png", "curves.png", "report.html")
    before = {name: (run / name).read_bytes() for name in names}
    assert evaluate_text_run(run) == result
    assert {name: (run / name).read_bytes() for name in names} == before
    assert before["frontier.png"].startswith(PNG)
    assert before["curves.png"].startswith(PNG)
    assert json.loads(before["evaluation.json"]) == result.to_dict()


def test_the_page_is_whole_by_itself_and_names_what_was_found(
    run: Path, result: TextEvaluation
) -> None:
    page = (run / "report.html").read_text(encoding="utf-8")
    assert re.findall(r'(?:src|href)="(?!data:image/png;base64,)', page) == []
    assert "<script" not in page
    assert page.count("data:image/png;base64,") == 2
    for text in ("optimum (exact)", "always alpha", "rlroute train recipe.yaml", "max_turns: 4"):
        assert text in page


def test_the_table_fits_a_terminal_of_80_columns(result: TextEvaluation) -> None:
    from rich.console import Console

    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render_text_comparison(result))
    lines = console.export_text().splitlines()
    row = next(line for line in lines if line.startswith("always dead"))
    assert row.split()[2:] == ["-", "-", "-", "-", "-", "40"]
    assert any(line.startswith("optimum (exact)") for line in lines)
    assert any("*" in line and line.rstrip().endswith("]") for line in lines)


def test_question_sets_are_compared_with_candidates_that_get_the_whole_question(
    tmp_path: Path,
) -> None:
    folder = copy_text_run(tmp_path / "run", make_sets_recipe(tmp_path, SIMULATED))
    result = evaluate_text_run(folder)
    names = [policy.name for policy in result.policies]
    assert names == ["grpo", "warm start", "always strong", "always weak", "random"]
    assert (result.optima, result.optimum_line) == ((), ())
    strong = result.find("always strong").points[0]
    assert strong.success is not None
    assert strong.success.value > 0.9
    assert strong.calls == 1.0
    assert set(strong.success_by_dataset) == {"nq", "popqa"}
    assert result.best_baselines[0] == "always strong"
    assert "Success by set" in (folder / "report.html").read_text(encoding="utf-8")


def test_no_optimum_is_claimed_where_enumeration_does_not_hold(tmp_path: Path) -> None:
    window = {"normaliser": {"kind": "window"}}
    folder = copy_text_run(tmp_path / "run", make_recipe(reward=window))
    shutil.rmtree(folder / "trainer")
    with pytest.raises(RLRouteError, match="window of charges"):
        evaluate_text_run(folder)
    reward = make_recipe().reward.model_dump(exclude_none=True)
    reward["normaliser"]["transform"] = "sqrt"
    folder = copy_text_run(tmp_path / "other", make_recipe(reward=reward))
    assert evaluate_text_run(folder).optima == ()


# --- The numbers themselves -----------------------------------------------------------------------


def make_played(reward: list[float]) -> Played:
    reward_Q = np.array(reward)
    return Played(reward_Q, reward_Q, reward_Q / 100, reward_Q * 0 + 1, reward_Q[:, None] * 0 + 1)


def make_sample(queries: int) -> np.ndarray:
    return np.concatenate([np.full((1, queries), 1 / queries), draw_resamples(queries, 200, 0)])


def test_failed_questions_enter_no_mean_and_leads_take_the_common_ones() -> None:
    nan = float("nan")
    first, other = make_played([1.0, 0.5, nan, 1.0]), make_played([0.0, 0.5, 1.0, nan])
    arguments = (0.5, ["a"], ["x"] * 4, make_sample(4))
    point = measure_point(other, first, *arguments)
    assert (point.scored, point.failed) == (3, 1)
    assert point.reward is not None
    assert point.lead is not None
    assert point.reward.value == pytest.approx(0.5)
    assert point.lead.value == pytest.approx(0.5)  # questions 0 and 1
    assert point.calls_by_candidate == {"a": 1.0}
    nothing = measure_point(make_played([nan] * 4), first, *arguments)
    assert (nothing.reward, nothing.lead, nothing.calls) == (None, None, None)
    assert nothing.calls_by_candidate == {}


def test_an_interval_is_made_of_resamples_that_hold_a_value() -> None:
    value_Q = np.full(50, np.nan)
    value_Q[0] = 0.25
    found = estimate_mean(value_Q, make_sample(50))
    assert found is not None
    assert (found.value, found.low, found.high) == (0.25, 0.25, 0.25)


def test_the_best_baseline_is_the_one_with_the_best_mean_reward() -> None:
    nan = np.array([np.nan, np.nan])
    rewards = {"dead": nan, "poor": np.array([0.1, np.nan]), "good": np.array([0.0, 0.5])}
    assert choose_best(rewards) == "good"


def test_pictures_are_drawn_whatever_is_missing(result: TextEvaluation) -> None:
    free = [
        dataclasses.replace(
            policy,
            points=tuple(
                dataclasses.replace(
                    one, cost_usd=None if one.cost_usd is None else one.cost_usd.scale(0.0)
                )
                for one in policy.points[:1]
            ),
        )
        for policy in result.policies
    ]
    bare = dataclasses.replace(
        result, policies=tuple(free), optima=(), optimum_line=(), cost_weights=(0.0,)
    )
    assert draw_text_frontier(bare).startswith(PNG)
    rows = [{"step": 0, "eval/reward": 0.1}, {"step": 1, "reward/mean": None, "mismatch/kl": 0.0}]
    assert draw_text_curves(rows, None).startswith(PNG)
    assert draw_text_curves([], 0.5).startswith(PNG)


# --- Export ---------------------------------------------------------------------------------------


def test_an_export_holds_weights_tokenizer_rules_and_a_card(
    run: Path, result: TextEvaluation, tmp_path: Path
) -> None:
    to = tmp_path / "router"
    to.mkdir()  # an empty folder may be there
    export_text_run(run, to)
    names = {path.name for path in to.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "router.json"} <= names
    assert {Path(name).suffix for name in names} <= {".safetensors", ".json", ".md", ".jinja"}
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in to.iterdir())
    bundle = read_text_bundle(to)
    assert bundle.environment.cost_weights == tuple(COST_WEIGHTS)
    assert [one.id for one in bundle.candidates] == list(result.candidate_ids)
    numbers = bundle.summary["test"]["points"]
    assert result.subject.points[1].reward is not None
    assert numbers[1]["reward"]["value"] == result.subject.points[1].reward.value
    assert numbers[1]["best_baseline"] == result.best_baselines[1]
    card = (to / "README.md").read_text(encoding="utf-8")
    assert "TextRouter.load" in card
    assert f"{result.subject.points[1].reward.value:.3f}" in card
    with pytest.raises(RLRouteError, match="is not an empty folder"):
        export_text_run(run, to)
    assert {path.name for path in to.iterdir()} == names


def test_numbers_of_other_weights_are_not_exported(
    run: Path, result: TextEvaluation, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    best = json.loads((folder / "best" / "best.json").read_text(encoding="utf-8"))
    best["update"] = result.update + 1  # as after training went on
    (folder / "best" / "best.json").write_text(json.dumps(best), encoding="utf-8")
    export_text_run(folder, tmp_path / "router")
    assert read_text_bundle(tmp_path / "router").summary["test"] is None
    assert "Not evaluated" in (tmp_path / "router" / "README.md").read_text(encoding="utf-8")


def test_an_export_holds_names_and_prices_but_no_key_and_no_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = """
candidates:
  org/model:v1:
    endpoint: http://127.0.0.1:9/v1
    model: served
    api_key_env: SOME_PROVIDER_KEY
    aliases: [model]
    description: a model
    prices: {input: 0.5, output: 1.5, cached_input: 0.1, date: 2025-06-01}
"""
    monkeypatch.setenv("SOME_PROVIDER_KEY", KEY)
    folder = copy_text_run(tmp_path / "run", make_sets_recipe(tmp_path, pool))
    monkeypatch.delenv("SOME_PROVIDER_KEY")  # an export asks nobody
    export_text_run(folder, tmp_path / "router")
    (found,) = read_text_bundle(tmp_path / "router").candidates
    assert (found.id, found.aliases, found.description) == ("org/model:v1", ("model",), "a model")
    assert (found.prices.cached_input, found.prices.date) == (0.1, "2025-06-01")
    assert found.limits.output_tokens == 1024
    content = b"".join(path.read_bytes() for path in (tmp_path / "router").iterdir())
    for secret in (KEY, "SOME_PROVIDER_KEY", "127.0.0.1"):
        assert secret.encode() not in content


# --- Bad input ------------------------------------------------------------------------------------


def refuse(arguments: list[str], monkeypatch: Any, capsys: Any) -> str:
    """Run the command line and return its one line; it must exit with code 2."""
    monkeypatch.setattr(sys, "argv", ["rlroute", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return str(lines[0])


def test_faulty_runs_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_text_run(tmp_path / "run")
    weights = folder / "best" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    capsys.readouterr()
    line = refuse(["export", str(folder), "--to", str(tmp_path / "x")], monkeypatch, capsys)
    assert "best: the policy cannot be loaded" in line
    assert not (tmp_path / "x").exists()
    assert "best: the policy cannot" in refuse(["evaluate", str(folder)], monkeypatch, capsys)
    shutil.rmtree(folder / "best")
    assert "has not kept a policy yet" in refuse(["evaluate", str(folder)], monkeypatch, capsys)
    line = refuse(["evaluate", str(tmp_path / "absent")], monkeypatch, capsys)
    assert "no run lies here" in line
