"""The report of a run: one HTML page that needs nothing else, frontier.png and evaluation.json.

What it is: everything that someone who was not there needs to judge a router: what was trained on
what, whether it beats the baselines and by how much, what it picks, and the recipe. Styles and
pictures are inside the page; it loads nothing from a network and runs no script.

What it leaves out: computing (`evaluate`) and wording (`comparison`). Needs the extra `train`.

How to use: `write_report(run_folder, result, context)`.
"""

from __future__ import annotations

import base64
import importlib.resources
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlroute.evaluation import comparison
from rlroute.evaluation.decisions import DecisionReport
from rlroute.evaluation.figures import draw_frontier, draw_learning_curve
from rlroute.evaluation.figures_decisions import draw_calibration, draw_shares_over_training
from rlroute.evaluation.figures_preferences import draw_latency, draw_ratings
from rlroute.evaluation.figures_selection import (
    TASKS_SHOWN,
    draw_selection_by_task,
    draw_selection_by_weight,
)
from rlroute.evaluation.figures_unseen import draw_unseen
from rlroute.evaluation.preference_report import PreferenceReport
from rlroute.evaluation.results import EvaluationResult
from rlroute.evaluation.unseen import UnseenReport
from rlroute.extras import require
from rlroute.files import write_atomic
from rlroute.types import Candidate

TEMPLATE = "report.html"
CANDIDATES_SHOWN = 40


@dataclass(frozen=True)
class RouterSeconds:
    """How long a router takes for one query, in seconds, over so many queries.

    `total_p50` is the median of encoding and deciding together, which counts in latencies.
    """

    queries: int
    encode_p50: float
    encode_p95: float
    decide_p50: float
    decide_p95: float
    total_p50: float


@dataclass(frozen=True)
class ReportContext:
    """What a report tells about a run besides its evaluation.

    `split_queries` maps split to number of queries, `history` holds the rows of metrics.jsonl (each
    with `step`), `recipe_yaml` is the resolved recipe with secrets redacted, `versions` maps
    library to version, `wall_seconds` is the time of the training. `decisions`, `router_seconds`,
    `unseen` and `preferences` are left out of the page where they are None; `encoding_is_paid` says
    that the router's time was not measured because every encoding is a paid call.
    """

    run_name: str
    split_queries: Mapping[str, int]
    candidates: Sequence[Candidate]
    encoder: str
    algorithm: str
    seed: int
    recipe_yaml: str
    history: Sequence[Mapping[str, Any]]
    command: str
    versions: Mapping[str, str]
    wall_seconds: float
    decisions: DecisionReport | None = None
    router_seconds: RouterSeconds | None = None
    encoding_is_paid: bool = False
    unseen: UnseenReport | None = None
    preferences: PreferenceReport | None = None


def write_report(run_folder: Path, result: EvaluationResult, context: ReportContext) -> None:
    """Write evaluation.json, frontier.png and report.html into a run folder, each atomically.

    Raises:
        RLRouteError: matplotlib or jinja2 is not installed.
    """
    frontier_png = draw_frontier(result)
    page = render_report(result, context, frontier_png)
    plain = json.dumps(result.to_dict(), indent=1, allow_nan=False)
    write_atomic(run_folder / "evaluation.json", plain + "\n")
    write_atomic(run_folder / "frontier.png", frontier_png)
    write_atomic(run_folder / "report.html", page)


def render_report(result: EvaluationResult, context: ReportContext, frontier_png: bytes) -> str:
    """Return the page; everything that comes from tables and recipes is escaped."""
    learning_png = draw_learning_curve(context.history)
    training_png = draw_shares_over_training(context.history)
    calibration_png = draw_calibration(context.decisions) if context.decisions else None
    wishes = context.preferences
    latency_png = draw_latency(wishes) if wishes and wishes.latency else None
    ratings_png = draw_ratings(wishes) if wishes and wishes.ratings else None
    page: str = (
        make_page_environment()
        .get_template(TEMPLATE)
        .render(
            result=result,
            subject=result.subject,
            # Operating points with the same cost weight are one setting.
            settings={point.cost_weight: point for point in result.subject.operating_points},
            best=result.find_single(result.best_single),
            policies=comparison.order_policies(result),
            shown=comparison.rank_singles(result)[:CANDIDATES_SHOWN],
            dearest=comparison.find_dearest(result),
            sentences=comparison.describe_result(result),
            candidates={candidate.id: candidate for candidate in context.candidates},
            compound=any(one.kind in ("subset", "skip") for one in context.candidates),
            context=context,
            decisions=context.decisions,
            unseen=context.unseen,
            preferences=wishes,
            bounds=comparison.BOUNDS,
            tasks_shown=TASKS_SHOWN,
            log_candidates=math.log(len(result.candidate_ids)),
            pictures={
                "frontier": embed_png(frontier_png),
                "tasks": embed_png(draw_selection_by_task(result)),
                "weights": embed_png(draw_selection_by_weight(result)),
                "learning": embed_png(learning_png) if learning_png else None,
                "training": embed_png(training_png) if training_png else None,
                "calibration": embed_png(calibration_png) if calibration_png else None,
                "unseen": embed_png(draw_unseen(context.unseen)) if context.unseen else None,
                "latency": embed_png(latency_png) if latency_png else None,
                "ratings": embed_png(ratings_png) if ratings_png else None,
            },
        )
    )
    return page


def make_page_environment() -> Any:
    """Return jinja's environment for the pages of this package: escaping, strict, our filters."""
    jinja2 = require("jinja2", "train")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(read_template),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=comparison.format_number,
        interval=comparison.format_interval,
        price=comparison.format_price,
        share=comparison.format_share,
        duration=format_duration,
        milliseconds=format_milliseconds,
        judge=comparison.judge,
        saved=format_saved,
        known=format_known,
        seconds=format_seconds,
    )
    return environment


def read_template(name: str) -> str:
    """Return a template that stands beside this module."""
    source = importlib.resources.files("rlroute.evaluation").joinpath(name)
    return source.read_text(encoding="utf-8")


def embed_png(png: bytes) -> str:
    """Return a picture as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def format_saved(part: float) -> str:
    """Return a saved part of a cost; minus infinity, a quality out of reach, is "never"."""
    return comparison.format_share(part) if math.isfinite(part) else "never"


def format_known(value: float | None, digits: int = 3) -> str:
    """Return a number, or a dash for what is not known or not defined."""
    return "\N{EN DASH}" if value is None else comparison.format_number(value, digits)


def format_seconds(value: float | None) -> str:
    """Return seconds, or a dash for what is not known; what is short is not shown as nothing."""
    if value is not None and 0 < value < 0.0005:
        return "<0.001"
    return format_known(value)


def format_milliseconds(seconds: float) -> str:
    """Return a short time in milliseconds."""
    return f"{1000 * seconds:.3g} ms"


def format_duration(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
