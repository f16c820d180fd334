"""The report of a memory-tier run as files: numbers, pictures, worked questions, one HTML page.

What it is: evaluation.json, frontier.png, shares.png, pipeline.png, questions.jsonl, and
report.html, which has all of it inside, loads nothing from a network and runs no script. What
modules returned and what people asked is escaped.

What it leaves out: computing (`memory_measures`) and wording (`memory_comparison`). Needs the extra
`train`.

How to use: `write_memory_report(run_folder, result, context)`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rlroute.evaluation.memory_comparison import (
    choose_places,
    describe_memory_result,
    order_contenders,
)
from rlroute.evaluation.memory_figures import (
    draw_learning_curves,
    draw_memory_frontier,
    draw_tier_shares,
)
from rlroute.evaluation.memory_pipeline_figure import draw_pipeline
from rlroute.evaluation.memory_results import MemoryEvaluation
from rlroute.evaluation.report import embed_png, make_page_environment
from rlroute.evaluation.results import make_plain
from rlroute.evaluation.text_figures import History
from rlroute.files import write_atomic

TEMPLATE = "memory_report.html"
EVALUATION_FILE = "evaluation.json"
FRONTIER_FILE = "frontier.png"
SHARES_FILE = "shares.png"
PIPELINE_FILE = "pipeline.png"
QUESTIONS_FILE = "questions.jsonl"
REPORT_FILE = "report.html"
LONGEST_TEXT = 400  # characters of what a module returned that the page shows


@dataclass(frozen=True)
class WorkedModule:
    """What a module did for a question; `text` is what it returned, `cost_usd` None if it failed.

    `oracle_tier` is the tier that the oracle would have taken, None where it is not known.
    """

    name: str
    tier: str
    text: str
    cost_usd: float | None
    oracle_tier: str | None = None


@dataclass(frozen=True)
class WorkedQuestion:
    """A test question from beginning to end; score and costs are None where a call failed.

    `oracle_score` and `oracle_cost_usd` are what the oracle's tiers would have given.
    """

    question: str
    gold: tuple[str, ...]
    kind: str
    cost_weight: float
    modules: tuple[WorkedModule, ...]
    answer: str
    score: float | None
    cost_usd: float | None
    answer_cost_usd: float | None
    oracle_score: float | None = None
    oracle_cost_usd: float | None = None


@dataclass(frozen=True)
class MemoryReportContext:
    """What a report tells about a run besides its evaluation.

    `facts` are shown as they are, by name. `audit_columns` and `audit_rows` are the tier audit as
    text, `audit_notes` what it found. `histories` maps runs to their rows of metrics.jsonl, the
    report's own run first; `recipe_yaml` is the resolved recipe with secrets redacted.
    """

    run_name: str
    facts: Mapping[str, str]
    recipe_yaml: str
    questions: Sequence[WorkedQuestion] = ()
    audit_columns: Sequence[str] = ()
    audit_rows: Sequence[Sequence[str]] = ()
    audit_notes: Sequence[str] = ()
    histories: Mapping[str, History] = field(default_factory=dict)


def write_memory_report(
    run_folder: Path, result: MemoryEvaluation, context: MemoryReportContext
) -> None:
    """Write the files into a run folder, each atomically.

    Raises:
        RLRouteError: matplotlib or jinja2 is not installed, or `histories` hold no known metric.
    """
    places = choose_places(result)
    frontier_png, shares_png = draw_memory_frontier(result), draw_tier_shares(result)
    pipeline_pngs = [draw_pipeline(result, place) for place in places]
    curves_png = draw_learning_curves(context.histories) if context.histories else None
    pictures = {
        "frontier": embed_png(frontier_png),
        "shares": embed_png(shares_png),
        "pipelines": [embed_png(png) for png in pipeline_pngs],
        "curves": None if curves_png is None else embed_png(curves_png),
    }
    page = render_memory_report(result, context, pictures)
    plain = json.dumps(result.to_dict(), indent=1, allow_nan=False)
    rows = [
        json.dumps(make_plain(asdict(one)), allow_nan=False) + "\n" for one in context.questions
    ]
    write_atomic(run_folder / EVALUATION_FILE, plain + "\n")
    write_atomic(run_folder / FRONTIER_FILE, frontier_png)
    write_atomic(run_folder / SHARES_FILE, shares_png)
    write_atomic(run_folder / PIPELINE_FILE, pipeline_pngs[len(places) // 2])
    write_atomic(run_folder / QUESTIONS_FILE, "".join(rows))
    write_atomic(run_folder / REPORT_FILE, page)


def render_memory_report(
    result: MemoryEvaluation, context: MemoryReportContext, pictures: Mapping[str, Any]
) -> str:
    """Return the page; `pictures` are data URIs."""
    environment = make_page_environment()
    environment.filters["shorten"] = shorten_text
    places = choose_places(result)
    page: str = environment.get_template(TEMPLATE).render(
        result=result,
        subject=result.subject,
        sections=[(place, order_contenders(result, place)) for place in places],
        middle=len(places) // 2,
        sentences=describe_memory_result(result),
        context=context,
        pictures=pictures,
    )
    return page


def shorten_text(text: str, longest: int = LONGEST_TEXT) -> str:
    """Return a text cut to a number of characters, with "..." where something is missing."""
    return text if len(text) <= longest else text[: longest - 3].rstrip() + "..."
