"""The model card of an exported router, as Markdown: `model_card.md` with its blanks filled in.

What it leaves out: the report of a run, which compares the router with baselines in full
(`rlroute.evaluation`).

How to use: `text = render_card(contents)`.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from string import Template
from typing import TYPE_CHECKING

import numpy as np

import rlroute
from rlroute.config import parse_config
from rlroute.data.routing_data import get_profile
from rlroute.export.summary import Interval, TestSummary, TrainingSummary, ValidationSummary
from rlroute.types import Candidate

if TYPE_CHECKING:
    from rlroute.export.bundle import BundleContents

QUERIES_PER_PRICE = 1000
UNKNOWN = "-"
CANDIDATES_SHOWN = 40


def render_card(contents: BundleContents) -> str:
    """Return the model card of a router.

    Raises:
        RLRouteError: the summary has not the shape of `TrainingSummary`.
    """
    summary = parse_config(TrainingSummary, contents.summary, "summary")
    template = importlib.resources.files("rlroute.export").joinpath("model_card.md")
    low, high = contents.cost_weight_min, contents.cost_weight_max
    unit = contents.scale.cost_reference_usd
    return Template(template.read_text(encoding="utf-8")).substitute(
        table=summary.table,
        candidate_count=len(contents.candidates),
        version=rlroute.__version__,
        example_weight=f"{min(max(0.1, low), high):g}",
        unit=format_number(unit),
        one_percent=format_number(unit / 100),
        weight_min=f"{low:g}",
        weight_max=f"{high:g}",
        preferences=render_preferences(contents),
        candidates=render_candidates(contents.candidates),
        numbers=render_numbers(summary.test),
        training=render_training(contents, summary),
    )


def render_preferences(contents: BundleContents) -> str:
    """Return what may be weighed beside cost, with a blank line after it; nothing where nothing."""
    stated, unit = contents.preferences, contents.scale.latency_reference_seconds
    if stated is None:
        return ""
    parts = []
    if stated.latency_weight is not None and unit is not None:
        low, high = stated.latency_weight.min, stated.latency_weight.max
        source = "derived from tokens where nobody measured them, as `recipe.yaml` declares"
        parts.append(
            "`latency_weight` is the same for time: quality given up for one unit of waiting, the "
            f"slowest candidate's mean latency on the train split, **{format_number(unit)} "
            f"seconds**, from {low:g} to {high:g}. Latencies were "
            f"{source if stated.latency_derived else 'measured'}."
        )
    if stated.users:
        header = ["user", "cost weight", "latency weight", "favours"]
        rows = [
            [
                name,
                f"{user.cost_weight:g}",
                f"{user.latency_weight:g}",
                ", ".join(f"{one} {bias:+g}" for one, bias in user.candidate_bias.items()),
            ]
            for name, user in stated.users.items()
        ]
        parts.append('`route(text, user="name")` decides with the weights of a user:')
        parts.append(render_table(header, rows, text_columns=1))
    return "## What else may be weighed\n\n" + "\n\n".join(parts) + "\n\n"


def render_candidates(candidates: Sequence[Candidate]) -> str:
    """Return the table of candidates with prices and profiles, of the first ones where many."""
    header = [
        "candidate",
        "kind",
        "USD per million input tokens",
        "output tokens likewise",
        "USD per call",
        "train quality",
        "train USD per 1,000 queries",
    ]
    rows = []
    for candidate in candidates[:CANDIDATES_SHOWN]:
        prices, profile = candidate.prices, get_profile(candidate)
        rows.append(
            [
                candidate.id,
                candidate.kind,
                format_number(prices.input),
                format_number(prices.output),
                format_number(prices.per_call),
                f"{profile.mean_score:.3f}",
                format_number(profile.mean_cost_usd * QUERIES_PER_PRICE),
            ]
        )
    table = render_table(header, rows, text_columns=2)
    left = len(candidates) - len(rows)
    return f"{table}\n\n{left:,} more stand in `manifest.json`." if left > 0 else table


def render_numbers(test: TestSummary | None) -> str:
    """Return the test numbers with intervals, or say that there are none."""
    if test is None:
        return (
            "Not evaluated: this router was exported before its run was evaluated on a test split."
        )
    best = test.best_single
    header = ["setting", "cost weight", "quality", "against best single", "USD per 1,000 queries"]
    rows = [
        [
            setting.label,
            f"{setting.cost_weight:.3g}",
            render_interval(setting.quality),
            render_interval(setting.quality_gain, sign="+"),
            render_interval(setting.cost_usd, factor=QUERIES_PER_PRICE),
        ]
        for setting in test.settings
    ]
    cost = render_interval(best.cost_usd, factor=QUERIES_PER_PRICE)
    rows.append([f"always {best.id}", UNKNOWN, render_interval(best.quality), UNKNOWN, cost])
    return "\n\n".join(
        [
            f"Measured on the {test.queries:,} queries of the test split, which neither training "
            "nor the choice of weights has seen; 95 % intervals by paired bootstrap over queries. "
            f"The best single candidate, chosen on the train split, is `{best.id}`.",
            f"AIQ (mean quality over the range of cost): {render_interval(test.aiq)}; gain over "
            "the best mixture of single candidates, which is picked in hindsight: "
            f"{render_interval(test.aiq_gain, sign='+')}.",
            render_table(header, rows, text_columns=1),
        ]
    )


def render_training(contents: BundleContents, summary: TrainingSummary) -> str:
    """Return what was trained on what, as a list."""
    queries = ", ".join(f"{name} {count:,}" for name, count in summary.queries.items())
    encoder = contents.encoder
    lines = [
        f"Data: outcome table `{summary.table}`, queries per split: {queries}.",
        f"Algorithm: {summary.algorithm}, seed {summary.seed}, {summary.updates} updates. "
        f"{describe_choice(summary.validation)}",
        f"Encoder: {encoder.kind}, {encoder.dimension} dimensions "
        f"(fingerprint {encoder.fingerprint()[:12]}).",
        f"Policy: one hidden layer of {contents.scorer.hidden}, "
        f"{sum(value.numel() for value in contents.weights.values()):,} weights.",
        "Every setting stands in `recipe.yaml`.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def describe_choice(validation: ValidationSummary | None) -> str:
    """Say which weights these are."""
    if validation is None:
        return "These are the last weights."
    value = getattr(validation, validation.metric, None)
    reached = "" if value is None else f", where it was {value:.4f}"
    return (
        f"These are the weights of update {validation.update}, chosen by {validation.metric} on "
        f"the validation split{reached}."
    )


def render_table(header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int) -> str:
    """Return a Markdown table whose columns align in the source too.

    The first `text_columns` columns are flush left, the others, numbers, flush right.
    """
    lines = [[escape_cell(cell) for cell in line] for line in (header, *rows)]
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(header))]
    rule = [
        "-" * width if column < text_columns else "-" * (width - 1) + ":"
        for column, width in enumerate(widths)
    ]
    lines.insert(1, rule)
    return "\n".join(
        "| "
        + " | ".join(
            cell.ljust(width) if column < text_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in lines
    )


def escape_cell(text: str) -> str:
    """Return text that stays within its cell."""
    return " ".join(text.split()).replace("|", "\\|")


def format_number(value: float) -> str:
    """Return a number to three significant digits, without an exponent."""
    return np.format_float_positional(value, precision=3, fractional=False, trim="-")


def render_interval(interval: Interval, factor: float = 1.0, sign: str = "") -> str:
    """Return value and interval, such as "0.745 [0.731, 0.760]"; what is not finite as "-"."""
    if interval.value is None:
        return UNKNOWN
    spec = f"{sign}.3f" if factor == 1.0 else ""
    low, value, high = (
        UNKNOWN
        if number is None
        else format(number, spec)
        if spec
        else format_number(number * factor)
        for number in (interval.low, interval.value, interval.high)
    )
    return f"{value} [{low}, {high}]"
