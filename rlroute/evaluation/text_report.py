"""The report of a text run as files: evaluation.json, the two pictures, and one HTML page.

What it is: what somebody who was not there needs to judge a policy that thinks, calls and answers.
Styles and pictures are inside the page; it loads nothing from a network and runs no script.

What it leaves out: computing (`text_results`) and wording (`text_comparison`). Needs the extra
`text`.

How to use: `write_text_report(run_folder, result, context)`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlroute.evaluation.report import embed_png, make_page_environment
from rlroute.evaluation.text_comparison import OPTIMUM, describe_text_result, order_policies
from rlroute.evaluation.text_figures import draw_text_curves, draw_text_frontier
from rlroute.evaluation.text_results import TextEvaluation
from rlroute.files import write_atomic
from rlroute.types import Candidate

TEMPLATE = "text_report.html"
EVALUATION_FILE = "evaluation.json"
FRONTIER_FILE = "frontier.png"
CURVES_FILE = "curves.png"
REPORT_FILE = "report.html"


@dataclass(frozen=True)
class TextReportContext:
    """What a report tells about a run besides its evaluation.

    `facts` are shown as they are, by name. `history` holds the rows of metrics.jsonl, `recipe_yaml`
    the resolved recipe with secrets redacted. `optimum_reward` is the mean of the optimum's reward
    over the cost weights, None where it is not known.
    """

    run_name: str
    facts: Mapping[str, str]
    candidates: Sequence[Candidate]
    recipe_yaml: str
    history: Sequence[Mapping[str, Any]]
    optimum_reward: float | None


def write_text_report(run_folder: Path, result: TextEvaluation, context: TextReportContext) -> None:
    """Write the four files into a run folder, each atomically.

    Raises:
        RLRouteError: matplotlib or jinja2 is not installed.
    """
    frontier_png = draw_text_frontier(result)
    curves_png = draw_text_curves(context.history, context.optimum_reward)
    page = render_text_report(result, context, frontier_png, curves_png)
    plain = json.dumps(result.to_dict(), indent=1, allow_nan=False)
    write_atomic(run_folder / EVALUATION_FILE, plain + "\n")
    write_atomic(run_folder / FRONTIER_FILE, frontier_png)
    write_atomic(run_folder / CURVES_FILE, curves_png)
    write_atomic(run_folder / REPORT_FILE, page)


def render_text_report(
    result: TextEvaluation, context: TextReportContext, frontier_png: bytes, curves_png: bytes
) -> str:
    """Return the page; everything that comes from questions, pools and recipes is escaped."""
    points = result.subject.points
    page: str = (
        make_page_environment()
        .get_template(TEMPLATE)
        .render(
            result=result,
            subject=result.subject,
            sections=[(order_policies(result, place), place) for place in range(len(points))],
            sentences=describe_text_result(result),
            optimum_name=OPTIMUM,
            datasets=sorted({name for point in points for name in point.success_by_dataset}),
            context=context,
            pictures={"frontier": embed_png(frontier_png), "curves": embed_png(curves_png)},
        )
    )
    return page
