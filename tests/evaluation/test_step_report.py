"""What a step-by-step evaluation says, draws and writes: plain words, whole files, escaped text."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the extra `train` is absent")

from test_step_results import make_played, make_weights

from rlroute.evaluation.step_comparison import (
    describe_step_result,
    list_rows,
    render_step_comparison,
)
from rlroute.evaluation.step_figures import (
    draw_step_curves,
    draw_step_frontier,
    smooth_history,
)
from rlroute.evaluation.step_measures import (
    StepPlayed,
    StepYardstick,
    measure_curves,
    measure_point,
)
from rlroute.evaluation.step_report import (
    StepReportContext,
    Transcript,
    TranscriptStep,
    list_cap_rows,
    write_step_report,
)
from rlroute.evaluation.step_results import StepEvaluation, StepPolicyResult, StepSetting
from rlroute.types import Candidate, Prices

PNG = b"\x89PNG\r\n\x1a\n"
TASKS = 40
CLASSES = ["easy"] * 10 + ["hard"] * 20 + ["intractable"] * 10
EVIL = '<img src="http://evil.example/x.png" onerror="alert(1)">'


def play(solved: int, cost: float, dear: int) -> StepPlayed:
    """Return a policy that solves the first tasks, with `dear` of ten steps by the large one."""
    success = [float(task < solved) for task in range(TASKS)]
    return make_played(success, [cost] * TASKS, [[10 - dear, dear]] * TASKS)


def make_result(
    subjects: tuple[StepPlayed, ...] = (play(30, 0.02, 4), play(20, 0.015, 2)),
    caps: tuple[float | None, ...] = (None, 2),
    others: dict[str, tuple[str, StepPlayed]] | None = None,
) -> StepEvaluation:
    """Return an evaluation in which everybody but the subject plays the same under every cap."""
    small, large = play(10, 0.01, 0), play(30, 0.05, 10)
    yardstick = StepYardstick(small, large, CLASSES, ("small", "large"), make_weights(TASKS))
    rivals = {
        "SFT only": ("start", play(20, 0.02, 3)),
        "run other": ("run", play(35, 0.02, 5)),
        "always small": ("static", small),
        "always large": ("static", large),
        "Bernoulli 0.5": ("sweep", play(15, 0.03, 5)),
        "world's best": ("optimal", play(30, 0.012, 2)),
    } | (others or {})
    settings = tuple(StepSetting(cap, 0.3) for cap in caps)
    baselines = [one for kind, one in rivals.values() if kind in ("static", "sweep")]
    points = tuple(
        measure_point(own, None, setting, yardstick, baselines)
        for own, setting in zip(subjects, settings, strict=True)
    )
    policies = [StepPolicyResult("grpo", "policy", "grpo", points)]
    for name, (kind, played) in rivals.items():
        points = tuple(
            measure_point(played, own, setting, yardstick)
            for own, setting in zip(subjects, settings, strict=True)
        )
        family = "Bernoulli" if kind == "sweep" else name
        policies.append(StepPolicyResult(name, kind, family, points))  # type: ignore[arg-type]
    families: dict[str, Any] = {"grpo": ("policy", subjects)}
    families |= {one.family: (one.kind, [rivals[one.name][1]]) for one in policies[1:]}
    free = StepSetting(None, 0.3)
    return StepEvaluation(
        world="chain",
        test_tasks=TASKS,
        val_tasks=TASKS,
        rollouts=1,
        executor_ids=("small", "large"),
        budget_unit="calls",
        settings=settings,
        class_tasks={"easy": 10, "hard": 20, "intractable": 10},
        policies=tuple(policies),
        shown=tuple(tuple(one.name for one in policies) for _ in settings),
        best_baselines=("always large",) * len(settings),
        small=measure_point(small, None, free, yardstick),
        large=measure_point(large, None, free, yardstick),
        curves=measure_curves(families, yardstick),
        left_out=(f"cascade: {EVIL}",),
        update=7,
        bootstrap=200,
        seed=0,
    )


def make_transcript(score: float | None, *, exhausted: bool = False, name: str = "") -> Transcript:
    step = TranscriptStep(
        text=f"You see {EVIL}.",
        features={"critical": 1.0, "hint": 0.0},
        allowed=("small", "large"),
        executor="small",
        probability=0.75,
        advised="large",
        budget_left=2.0,
        cost_usd=0.001,
        note=f"said {EVIL}",
    )
    return Transcript(
        task=f"task {name}{EVIL}",
        kind="k",
        task_class="hard",
        cap=2,
        cost_weight=0.3,
        score=score,
        cost_usd=None if score is None else 0.001,
        calls=0,
        exhausted=exhausted,
        steps=(step,),
    )


def make_context(**changes: Any) -> StepReportContext:
    stated: dict[str, Any] = {
        "run_name": f"run {EVIL}",
        "facts": {"world": "chain", "command": "rlroute train recipe.yaml"},
        "executors": (Candidate("small", Prices(0.4, 1.6)), Candidate("large", Prices(2, 8))),
        "labels": {
            "counts": {"easy": {"small": 1234, "large": 0}, "hard": {"small": 5, "large": 6}},
            "dear_share": 0.25,
            "dear_weight": 1.5,
        },
        "transcripts": [make_transcript(1.0), make_transcript(0.0, exhausted=True)],
        "recipe_yaml": "environment: step_budget",
        "history": [{"step": 0, "eval/reward": 0.1}, {"step": 1, "policy/entropy": 0.5}],
    }
    return StepReportContext(**(stated | changes))


@pytest.fixture(scope="module")
def result() -> StepEvaluation:
    return make_result()


# --- Words ----------------------------------------------------------------------------------------


def test_the_sentences_say_what_is_kept_at_what_cost(result: StepEvaluation) -> None:
    text = " ".join(describe_step_result(result))
    assert "No cap: grpo has success 0.750 for 20.00 USD per 1,000 tasks" in text
    assert "keeps 100.0% [100.0%, 100.0%] of the success of always large" in text
    assert "at 40.0% [40.0%, 40.0%] of its cost" in text
    assert "Cap of 2 calls: grpo has success 0.500" in text
    assert "it beats the best baseline on val, always large" in text  # in reward, without a cap
    assert "COLLAPSED" not in text


def test_what_is_not_better_is_said_as_plainly_as_what_is(result: StepEvaluation) -> None:
    text = " ".join(describe_step_result(result))
    assert "in success it does not clearly differ from it, by 0.000 [0.000, 0.000]" in text
    assert "in success it falls short of it" in text  # under the cap
    assert re.search(r"grpo falls short of run other \(no cap: .*; cap of 2 calls: ", text)
    assert re.search(
        r"grpo beats SFT only \(no cap: .*\); it does not clearly differ from it", text
    )
    frontier = next(line for line in describe_step_result(result) if "frontier of grpo" in line)
    assert re.search(r"It beats .*Bernoulli", frontier)
    assert re.search(r"It falls short of .*run other", frontier)
    assert "world's best" not in frontier  # a bound is no rival


def test_a_policy_that_gave_up_the_dear_executor_on_hard_tasks_is_called_collapsed() -> None:
    collapsed = make_result((play(10, 0.01, 0), play(20, 0.015, 2)))
    warnings = [line for line in describe_step_result(collapsed) if "COLLAPSED" in line]
    assert warnings == [
        "COLLAPSED (no cap): 0.0% of its steps on hard tasks go to anybody but small."
    ]
    nothing_allowed = make_result((play(10, 0.01, 0),), caps=(0,))
    assert not any("COLLAPSED" in line for line in describe_step_result(nothing_allowed))


def test_exhausted_budgets_and_failed_calls_are_told() -> None:
    own = play(20, 0.02, 3)
    poor = dataclasses.replace(own, exhausted_Q=np.full(TASKS, 0.25), failed=3)
    text = " ".join(describe_step_result(make_result((poor,), caps=(2,))))
    assert "cap of 2 calls: in 25.0% of the episodes nothing was affordable any more" in text
    assert "3 of 40 episodes had a failed call" in text


def test_a_rival_whose_calls_all_failed_is_named_and_not_compared() -> None:
    dead = make_played([float("nan")] * TASKS, [1.0] * TASKS)
    result = make_result(others={"run other": ("run", dead), "always large": ("static", dead)})
    text = " ".join(describe_step_result(result))
    assert "The best baseline on val, always large, has no reward: its calls failed." in text
    assert "cannot be compared with run other: its calls failed" in text


def test_the_cost_weight_is_named_where_there_are_several(result: StepEvaluation) -> None:
    settings = (StepSetting(None, 0.1), StepSetting(None, 0.5))
    several = dataclasses.replace(result, settings=settings)
    assert describe_step_result(several)[1].startswith("No cap, cost weight 0.5: ")


def test_the_table_fits_a_terminal_of_80_columns_and_aligns(result: StepEvaluation) -> None:
    from rich.console import Console

    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render_step_comparison(result))
    lines = console.export_text().splitlines()
    rows = [line.rstrip() for line in lines if line.startswith(("grpo", "SFT", "always", "run"))]
    assert len(rows) == 10
    assert max(map(len, lines)) <= 80
    assert len({len(row) for row in rows if row.endswith("]")}) == 1
    assert any(row.startswith("always large*") for row in rows)


def test_under_a_budget_in_usd_the_table_tells_bankruptcies_in_place_of_calls(
    result: StepEvaluation,
) -> None:
    from rich.console import Console

    point = result.subject.points[0]
    assert point is not None
    broke = dataclasses.replace(point, exhausted=0.125)
    subject = dataclasses.replace(result.subject, points=(broke, *result.subject.points[1:]))
    policies = (subject, *result.policies[1:])
    for unit, header in (("usd", "broke"), ("calls", "calls")):
        changed = dataclasses.replace(result, budget_unit=unit, policies=policies)
        console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
        console.print(render_step_comparison(changed))
        text = console.export_text()
        assert header in next(line for line in text.splitlines() if line.startswith("policy"))
        assert ("12.5%" in text) == (unit == "usd")


def test_a_run_named_like_markup_is_printed_as_it_is() -> None:
    from rich.console import Console

    result = make_result(others={"run [/x]": ("run", play(20, 0.02, 3))})
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render_step_comparison(result))
    assert "run [/x]" in console.export_text()


def test_rows_stand_policy_first_then_baselines_by_reward_then_the_bound(
    result: StepEvaluation,
) -> None:
    rows = list_rows(result, 0)
    assert [policy.name for policy, _ in rows[:3]] == ["grpo", "SFT only", "run other"]
    assert rows[-1][0].name == "world's best"
    rewards = [point.reward.value for _, point in rows[3:-1] if point.reward is not None]
    assert rewards == sorted(rewards, reverse=True)


# --- Pictures and files ---------------------------------------------------------------------------


def test_the_page_is_whole_by_itself_and_escapes_what_worlds_say(
    result: StepEvaluation, tmp_path: Path
) -> None:
    write_step_report(tmp_path, result, make_context())
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.findall(r'<[^>]*(?:src|href)="(?!data:image/png;base64,)', page) == []
    assert EVIL not in page
    assert "&lt;img src=" in page
    assert page.count("data:image/png;base64,") == 2
    assert page.count("<script>") == page.count("<script") == 1
    assert page.count('<details class="episode"') == 2
    for text in ("rlroute train recipe.yaml", "1,234", "best on val", "budget exhausted"):
        assert text in page
    assert "Budgets were passed in 0 of 560 test episodes" in page
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        *("evaluation.json", "frontier.png", "curves.png", "report.html", "transcripts.jsonl")
    }
    assert json.loads((tmp_path / "evaluation.json").read_text()) == result.to_dict()
    rows = [json.loads(line) for line in (tmp_path / "transcripts.jsonl").open()]
    assert [row["outcome"] for row in rows] == ["solved", "budget exhausted"]
    assert rows[0]["steps"][0]["features"] == {"critical": 1.0, "hint": 0.0}


def test_a_page_without_transcripts_labels_and_history_is_written_too(tmp_path: Path) -> None:
    context = make_context(transcripts=[], labels=None, history=[])
    result = make_result((play(30, 0.02, 4),), caps=(None,))
    write_step_report(tmp_path, result, context)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "What the warm start taught" not in page
    assert "Under every cap" not in page
    assert (tmp_path / "transcripts.jsonl").read_text() == ""


def test_an_episode_has_one_outcome() -> None:
    outcomes = {
        make_transcript(None).outcome: None,
        make_transcript(1.0).outcome: 1.0,
        make_transcript(0.5).outcome: 0.5,
        make_transcript(0.0).outcome: 0.0,
        make_transcript(0.0, exhausted=True).outcome: 0.0,
    }
    assert list(outcomes) == [
        *("call failed", "solved", "partly solved", "failed", "budget exhausted")
    ]


def test_success_by_cap_has_a_row_for_each_family(result: StepEvaluation) -> None:
    rows = dict(list_cap_rows(result))
    assert "Bernoulli" in rows
    assert [point.success.value for point in rows["grpo"]] == pytest.approx([0.75, 0.5])
    assert list_cap_rows(make_result((play(30, 0.02, 4),), caps=(None,))) == []


def test_pictures_are_drawn_whatever_is_missing() -> None:
    dead = make_played([float("nan")] * TASKS, [1.0] * TASKS)
    bare = make_result(others={"run other": ("run", dead), "always large": ("static", dead)})
    assert draw_step_frontier(bare).startswith(PNG)
    free = dataclasses.replace(play(30, 0.02, 4), cost_usd_Q=np.zeros(TASKS))
    nothing_paid = make_result((free,), caps=(None,))
    assert draw_step_frontier(nothing_paid).startswith(PNG)
    caps = make_result(tuple(play(n, 0.02, 3) for n in (10, 20, 30)), caps=(1, 2, 3))
    assert draw_step_frontier(caps).startswith(PNG)
    assert draw_step_curves([], ("small", "large")).startswith(PNG)
    rows: list[dict[str, Any]] = [
        {"step": 0, "eval/reward": 0.1},
        {"step": 1, "policy/kl": None, "eval/success": None},
    ]
    assert draw_step_curves(rows, ("small", "large")).startswith(PNG)


def test_training_metrics_are_smoothed_and_those_of_val_are_not() -> None:
    rows: list[dict[str, Any]] = [
        {"step": n, "a": float(n), "eval/b": float(n)} for n in range(4)
    ] + [{"step": 4}]
    smooth = smooth_history(rows, 2)
    assert [row.get("a") for row in smooth] == [0.0, 0.5, 1.5, 2.5, None]
    assert [row.get("eval/b") for row in smooth] == [0.0, 1.0, 2.0, 3.0, None]
    assert smooth_history(rows, 1) == rows
