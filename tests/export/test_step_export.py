"""What is exported of a step-by-step run, and what the card of a step router says."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from step_router_example import find_choice_run, find_step_run, make_bundle

from rlroute import StepRouter
from rlroute.evaluation.intervals import Estimate
from rlroute.evaluation.step_results import StepPoint
from rlroute.export.step_bundle import write_step_bundle
from rlroute.export.step_model_card import summarise_step_test
from rlroute.runs import export_run
from rlroute.types import RLRouteError

# --- From a run -----------------------------------------------------------------------------------


def make_evaluation(update: int) -> dict[str, Any]:
    """Return an evaluation as plain data: the policy and one baseline at two caps."""

    def make_point(cap: float | None, success: float, *, lead: Estimate | None) -> dict[str, Any]:
        point = StepPoint(
            cap=cap,
            cost_weight=0.3,
            episodes=100,
            failed=0,
            violations=0,
            success=Estimate(success, success - 0.01, success + 0.01),
            cost_usd=Estimate(0.0123, 0.012, 0.013),
            reward=None,
            calls=1.25,
            steps=6.0,
            utilisation=None,
            exhausted=0.0,
            success_kept=Estimate(0.985, 0.97, 1.0),
            cost_ratio=Estimate(0.55, 0.5, 0.6),
            gap_recovered=None,
            share_by_executor={},
            by_class={},
            lead=lead,
            reward_lead=None,
            above_baselines=None,
        )
        return asdict(point)

    lead = Estimate(0.06, 0.05, 0.07)
    return {
        "update": update,
        "test_tasks": 1200,
        "rollouts": 2,
        "best_baselines": ["random", "random"],
        "policies": [
            {"name": "ppo", "points": [make_point(cap, 0.745, lead=None) for cap in (2, None)]},
            {"name": "random", "points": [make_point(cap, 0.685, lead=lead) for cap in (2, None)]},
        ],
    }


def test_test_numbers_are_those_of_the_exported_weights_or_none(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(find_step_run()[1], run)
    best = json.loads((run / "best" / "best.json").read_text(encoding="utf-8"))
    for update, known in ((best["update"] + 1, False), (best["update"], True)):
        evaluation = json.dumps(make_evaluation(update))
        (run / "evaluation.json").write_text(evaluation, encoding="utf-8")
        export_run(run, tmp_path / "router")
        summary = StepRouter.load(tmp_path / "router").summary
        assert (summary["test"] is not None) == known
        assert summary["best"]["update"] == best["update"]
    card = (tmp_path / "router" / "README.md").read_text(encoding="utf-8")
    assert "1,200 test tasks (rollouts of each: 2)" in card
    assert "0.745 [0.735, 0.755]" in card
    assert "random (0.685)" in card
    assert "+0.060 [+0.050, +0.070]" in card
    assert "12.3 [12, 13]" in card  # USD per 1,000 tasks
    assert "Episodes that passed their cap: 0" in card


def test_a_run_without_a_kept_policy_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(find_step_run()[1], run)
    shutil.rmtree(run / "best")
    with pytest.raises(RLRouteError, match="has not kept a policy yet"):
        export_run(run, tmp_path / "router")
    with pytest.raises(RLRouteError, match="no run lies here"):
        export_run(tmp_path / "absent", tmp_path / "router")


# --- The card -------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["calls", "usd"])
def test_the_card_says_what_the_router_needs(tmp_path: Path, unit: str) -> None:
    write_step_bundle(make_bundle(unit), tmp_path / "router")
    card = (tmp_path / "router" / "README.md").read_text(encoding="utf-8")
    assert "$" not in card
    assert "Not evaluated" in card
    assert "`critical`, `hint`, `critical_hint`" in card
    assert "**0.1 to 0.5**" in card
    assert "An episode has at most 6" in card
    assert "update 25, chosen by reward on the val tasks, where it was 0.7123" in card
    stated = {
        "calls": "A cap counts calls. Caps in training: 0, 2, 4, none.",
        "usd": "A cap is in USD. Caps in training: 0.003, 0.012, 0.03, none.",
    }
    assert stated[unit] in card
    assert ("Counted are calls of `large`." in card) == (unit == "calls")
    assert ("bounds_usd" in card) == (unit == "usd")


def test_the_card_of_a_language_model_shows_what_it_reads_first(tmp_path: Path) -> None:
    export_run(find_choice_run()[1], tmp_path / "router")
    card = (tmp_path / "router" / "README.md").read_text(encoding="utf-8")
    assert "pip install 'rlroute[text]'" in card
    assert "      Choose who takes each next step. Solve the task and spend little.\n" in card
    assert "      LARGE = large: 2 / 8\n" in card
    assert "a language model, from `" in card


def test_the_tables_of_the_card_align(tmp_path: Path) -> None:
    summary = make_bundle().summary | {"test": summarise_step_test(make_evaluation(25))}
    write_step_bundle(replace(make_bundle(), summary=summary), tmp_path / "router")
    card = (tmp_path / "router" / "README.md").read_text(encoding="utf-8")
    for block in card.split("\n\n"):
        lines = block.splitlines()
        if lines and lines[0].startswith("|"):
            assert len({len(line) for line in lines}) == 1
            assert len(lines) == 4
