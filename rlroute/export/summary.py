"""What an exported router says of its training: table, algorithm, validation and test numbers.

Costs are mean USD per query, qualities mean scores in [0, 1]; an `Interval` holds 95 % of the
resamples. A number that is not finite is null.

What it leaves out: everything a router needs to decide (`rlroute.export.bundle`).

How to use: `summary["test"] = summarise_test(evaluation)`, with an evaluation as plain data
(`EvaluationResult.to_dict()`, or evaluation.json of a run).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from rlroute.config import StrictModel
from rlroute.types import SplitName

Number = Annotated[float, Field(allow_inf_nan=False)] | None
Count = Annotated[int, Field(ge=0)]


class Interval(StrictModel):
    """A value with its interval."""

    value: Number
    low: Number
    high: Number


class ValidationSummary(StrictModel):
    """The update whose weights were chosen, the metric that chose them, and all metrics of it."""

    update: Count
    metric: str
    aiq: Number = None
    utility: Number = None
    quality: Number = None
    cost_usd: Number = None
    regret_oracle: Number = None
    margin: Number = None
    effective_rows: Number = None


class SettingSummary(StrictModel):
    """One cost weight on the test split; `quality_gain` is against the best single candidate."""

    label: str
    cost_weight: float
    quality: Interval
    quality_gain: Interval
    cost_usd: Interval


class SingleSummary(StrictModel):
    """The best single candidate (chosen on train) on the test split."""

    id: str
    quality: Interval
    cost_usd: Interval


class TestSummary(StrictModel):
    """The router on the test split. `aiq_gain` is relative to the hull of the single candidates."""

    queries: Count
    aiq: Interval
    aiq_gain: Interval
    best_single: SingleSummary
    settings: list[SettingSummary]


class TrainingSummary(StrictModel):
    """What was trained on what; `test` is null where the router was not evaluated.

    `validation` is null where the last weights are served, which nothing has chosen.
    """

    table: str
    queries: dict[SplitName, Count]
    algorithm: str
    seed: int
    updates: Count
    validation: ValidationSummary | None = None
    test: TestSummary | None = None


def summarise_test(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Return the test numbers of an evaluation (plain data), the shape of `TestSummary`."""
    subject = evaluation["policies"][0]
    best = evaluation["best_single"]
    single = next(one for one in evaluation["singles"] if one["candidate_id"] == best)
    keys = tuple(SettingSummary.model_fields)
    return {
        "queries": evaluation["queries"],
        "aiq": subject["frontier"]["aiq"],
        "aiq_gain": subject["frontier"]["aiq_gain"],
        "best_single": {
            "id": best,
            "quality": single["quality"],
            "cost_usd": single["cost_usd"],
        },
        "settings": [{key: point[key] for key in keys} for point in subject["operating_points"]],
    }
