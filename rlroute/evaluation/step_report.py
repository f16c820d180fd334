"""The report of a step-by-step run as files: numbers, pictures, transcripts, and one HTML page.

What it is: evaluation.json, frontier.png, curves.png, transcripts.jsonl, and report.html, which has
all of it inside: it loads nothing from a network, and its only script filters the transcripts.

What it leaves out: computing (`step_measures`) and wording (`step_comparison`). Needs the extra
`train`.

How to use: `write_step_report(run_folder, result, context)`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlroute.evaluation.report import embed_png, make_page_environment
from rlroute.evaluation.results import make_plain
from rlroute.evaluation.step_comparison import (
    describe_step_result,
    format_cap,
    format_setting,
    list_rows,
)
from rlroute.evaluation.step_figures import draw_step_curves, draw_step_frontier
from rlroute.evaluation.step_results import StepEvaluation
from rlroute.files import write_atomic
from rlroute.types import Candidate

TEMPLATE = "step_report.html"
EVALUATION_FILE = "evaluation.json"
FRONTIER_FILE = "frontier.png"
CURVES_FILE = "curves.png"
TRANSCRIPTS_FILE = "transcripts.jsonl"
REPORT_FILE = "report.html"


@dataclass(frozen=True)
class TranscriptStep:
    """One step of an episode.

    `text` is what was new in words; `features` what a small network saw (empty for a language
    model). `probability` is that of `executor` under the policy, `budget_left` what was left before
    the step, in the budget's unit (None without a cap), `advised` what the world's own best policy
    would have chosen (None where it is not known).
    """

    text: str
    features: Mapping[str, float]
    allowed: tuple[str, ...]
    executor: str
    probability: float
    advised: str | None
    budget_left: float | None
    cost_usd: float
    note: str


@dataclass(frozen=True)
class Transcript:
    """One test episode of the greedy policy; score and cost are None where a call failed."""

    task: str
    kind: str
    task_class: str
    cap: float | None
    cost_weight: float
    score: float | None
    cost_usd: float | None
    calls: int
    exhausted: bool
    steps: tuple[TranscriptStep, ...]

    @property
    def outcome(self) -> str:
        """How it ended, in one word or two."""
        if self.score is None:
            return "call failed"
        if self.exhausted:
            return "budget exhausted"
        if self.score >= 1:
            return "solved"
        return "partly solved" if self.score > 0 else "failed"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that JSON can hold."""
        plain: dict[str, Any] = make_plain({"outcome": self.outcome, **asdict(self)})
        return plain


@dataclass(frozen=True)
class StepReportContext:
    """What a report tells about a run besides its evaluation.

    `facts` are shown as they are, by name. `labels` is what the warm start taught (the content of
    labels.json; None without one), `history` holds the rows of metrics.jsonl, `recipe_yaml` the
    resolved recipe with secrets redacted.
    """

    run_name: str
    facts: Mapping[str, str]
    executors: Sequence[Candidate]
    labels: Mapping[str, Any] | None
    transcripts: Sequence[Transcript]
    recipe_yaml: str
    history: Sequence[Mapping[str, Any]]


def write_step_report(run_folder: Path, result: StepEvaluation, context: StepReportContext) -> None:
    """Write the five files into a run folder, each atomically.

    Raises:
        RLRouteError: matplotlib or jinja2 is not installed.
    """
    frontier_png = draw_step_frontier(result)
    curves_png = draw_step_curves(context.history, result.executor_ids)
    page = render_step_report(result, context, frontier_png, curves_png)
    plain = json.dumps(result.to_dict(), indent=1, allow_nan=False)
    rows = [json.dumps(one.to_dict(), allow_nan=False) + "\n" for one in context.transcripts]
    write_atomic(run_folder / EVALUATION_FILE, plain + "\n")
    write_atomic(run_folder / FRONTIER_FILE, frontier_png)
    write_atomic(run_folder / CURVES_FILE, curves_png)
    write_atomic(run_folder / TRANSCRIPTS_FILE, "".join(rows))
    write_atomic(run_folder / REPORT_FILE, page)


def render_step_report(
    result: StepEvaluation, context: StepReportContext, frontier_png: bytes, curves_png: bytes
) -> str:
    """Return the page; everything that comes from worlds, pools and recipes is escaped."""
    environment = make_page_environment()
    environment.filters.update(
        cap=lambda cap: format_cap(cap, result.budget_unit),
        setting=lambda setting: format_setting(result, setting),
    )
    points = [point for one in result.policies for point in one.points if point is not None]
    page: str = environment.get_template(TEMPLATE).render(
        result=result,
        subject=result.subject,
        sections=[(list_rows(result, place), place) for place in range(len(result.settings))],
        sentences=describe_step_result(result),
        matrix=list_cap_rows(result),
        context=context,
        episodes=sum(point.episodes for point in points),
        passed=sum(point.violations for point in points),
        outcomes=sorted({one.outcome for one in context.transcripts}),
        pictures={"frontier": embed_png(frontier_png), "curves": embed_png(curves_png)},
    )
    return page


def list_cap_rows(result: StepEvaluation) -> list[tuple[str, list[Any]]]:
    """Return success by cap at the first cost weight: a name and a point for each cap.

    A baseline with a knob is the one that was chosen on val for each cap. Empty where there is
    one cap.
    """
    if len(result.caps) < 2:
        return []
    weight = result.settings[0].cost_weight
    places = [n for n, one in enumerate(result.settings) if one.cost_weight == weight]
    rows: dict[str, list[Any]] = {}
    for column, place in enumerate(places):
        for policy, point in list_rows(result, place):
            rows.setdefault(policy.family, [None] * len(places))[column] = point
    return list(rows.items())
