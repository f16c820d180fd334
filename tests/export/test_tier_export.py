"""What is exported of a run on memory tiers, and what the card of a tier router says."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from tier_router_example import find_tier_run, make_bundle

from rlroute import TierRouter
from rlroute.evaluation.intervals import Estimate
from rlroute.evaluation.memory_results import MemoryContender, MemoryKind, MemoryPoint
from rlroute.export.tier_bundle import write_tier_bundle
from rlroute.export.tier_model_card import summarise_tier_test
from rlroute.runs import export_run
from rlroute.types import RLRouteError

LEAD = Estimate(0.06, 0.05, 0.07)


def make_contender(name: str, kind: MemoryKind, aiq: float, *, live: bool) -> MemoryContender:
    """Return a contender at two cost weights; live ones know of no oracle."""
    lead = None if kind == "policy" else LEAD
    points = tuple(
        MemoryPoint(
            cost_weight=weight,
            questions=97,
            failed=3.0,
            quality=Estimate(0.745, 0.735, 0.755),
            cost_usd=Estimate(0.00123, 0.0012, 0.0013),
            answer_cost_usd=0.0,
            utility=Estimate(0.7, 0.69, 0.71),
            regret=None,
            oracle_share=None if live else Estimate(0.955, 0.95, 0.96),
            lead=lead,
            quality_lead=lead,
            above_static=None,
            cost_change_usd=None,
            shares=(),
            information=(),
            by_kind={},
        )
        for weight in (0.0, 0.5)
    )
    return MemoryContender(
        name, kind, points, (), (), Estimate(aiq, aiq, aiq), None if kind == "policy" else LEAD
    )


def make_evaluation(update: int, *, live: bool = False) -> dict[str, Any]:
    """Return an evaluation as plain data: the policy and some baselines."""
    kinds: list[tuple[str, MemoryKind, float]] = [
        ("ppo", "policy", 0.8),
        ("all Low", "static", 0.5),
        ("all High", "static", 0.75),
        *([] if live else [("best static", "best_static", 0.7)]),  # type: ignore[list-item]
        ("random", "random", 0.79),
    ]
    return {
        "update": update,
        "questions": 100,
        "histories": 12,
        "contenders": [
            asdict(make_contender(name, kind, aiq, live=live)) for name, kind, aiq in kinds
        ],
    }


# --- From a run -----------------------------------------------------------------------------------


def test_test_numbers_are_those_of_the_exported_weights_or_none(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(find_tier_run()[1], run)
    best = json.loads((run / "best" / "best.json").read_text(encoding="utf-8"))
    for update, known in ((best["update"] + 1, False), (best["update"], True)):
        evaluation = json.dumps(make_evaluation(update))
        (run / "evaluation.json").write_text(evaluation, encoding="utf-8")
        export_run(run, tmp_path / "router")
        router = TierRouter.load(tmp_path / "router")
        assert (router.summary["test"] is not None) == known
        assert router.summary["best"]["update"] == best["update"]
        assert router.summary["questions"]["train"] == 21
    card = (tmp_path / "router" / "README.md").read_text(encoding="utf-8")
    assert "the 100 test questions about 12 histories" in card
    assert "lead over best static: +0.060 [+0.050, +0.070]" in card


def test_a_run_without_a_kept_policy_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(find_tier_run()[1], run)
    weights = run / "best" / "policy.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(RLRouteError, match=r"policy\.safetensors: cannot be read"):
        export_run(run, tmp_path / "router")
    shutil.rmtree(run / "best")
    with pytest.raises(RLRouteError, match="has not kept a policy yet"):
        export_run(run, tmp_path / "router")
    with pytest.raises(RLRouteError, match="no run lies here"):
        export_run(tmp_path / "absent", tmp_path / "router")
    assert not (tmp_path / "router").exists()


# --- The card -------------------------------------------------------------------------------------


def read_card(folder: Path, **summary: Any) -> str:
    """Return the card of a router of random weights."""
    bundle = make_bundle()
    write_tier_bundle(replace(bundle, summary=bundle.summary | summary), folder)
    return (folder / "README.md").read_text(encoding="utf-8")


def test_the_card_says_what_the_router_knows(tmp_path: Path) -> None:
    card = read_card(tmp_path / "router")
    assert "$" not in card
    assert "Not evaluated" in card
    assert "each of the 4\nmodules" in card
    assert "- `entity`: What \\| entity does." in card
    assert "**0.1 to 0.5**" in card
    assert "**0.005 USD**" in card
    assert "update 25, chosen by utility on the val questions, where it was 0.7123" in card
    assert "train 30, val 10, test 20" in card
    assert max(len(line) for line in card.splitlines() if not line.startswith("|")) <= 300


def test_the_card_says_whether_models_were_simulated(tmp_path: Path) -> None:
    simulated = read_card(tmp_path / "simulated")
    pool = read_card(tmp_path / "pool", models="pool", answerer="the language model gpt")
    assert "**simulated**" in simulated
    assert "Answered by: a scripted reader, a program." in simulated
    assert "simulated" not in pool
    assert "those of a pool. Answered by: the language model gpt." in pool


@pytest.mark.parametrize(
    ("live", "static", "oracle"),
    [(False, "best static", "0.955 [0.950, 0.960]"), (True, "all High", "-")],
)
def test_the_card_shows_the_test_numbers(
    tmp_path: Path, live: bool, static: str, oracle: str
) -> None:
    test = summarise_tier_test(make_evaluation(25, live=live))
    card = read_card(tmp_path / "router", test=test)
    (table,) = [block for block in card.split("\n\n") if block.startswith("| cost weight")]
    header, _, *rows = [[cell.strip() for cell in line.split("|")] for line in table.splitlines()]
    assert f"lead over {static}" in header
    assert [row[1] for row in rows] == ["0", "0.5"]
    assert rows[0][2:-1] == [
        *("0.745 [0.735, 0.755]", "1.23 [1.2, 1.3]", "0.700 [0.690, 0.710]", oracle),
        *("+0.060 [+0.050, +0.070]", "3"),
    ]
    assert "AIQ, the mean quality over the range of costs: 0.800 [0.800, 0.800]" in card


def test_the_tables_of_the_card_align(tmp_path: Path) -> None:
    card = read_card(tmp_path / "router", test=summarise_tier_test(make_evaluation(25)))
    tables = [block.splitlines() for block in card.split("\n\n") if block.startswith("|")]
    assert [len(lines) for lines in tables] == [2 + 9, 2 + 2]
    for lines in tables:
        assert len({len(line) for line in lines}) == 1


def test_the_example_of_the_card_runs(tmp_path: Path) -> None:
    card = read_card(tmp_path / "router")
    example = card.split("```python\n")[1].split("```")[0]
    found: dict[str, Any] = {}
    exec(example.replace("path/to/this/folder", str(tmp_path / "router")), found)
    assert [choice.module for choice in found["episode"].choices] == [
        *("filter", "entity", "temporal", "summary"),
    ]
    assert found["episode"].cost_usd == pytest.approx(0.0015)
