"""What an exported tier router says of itself: training, test numbers, and the card for people.

The card is `tier_model_card.md` with its blanks filled in; its example runs as it stands. Costs are
mean USD per question, of the memory's modules alone, qualities mean scores in [0, 1]; an `Interval`
holds 95 % of the resamples.

What it leaves out: the comparison with all baselines (the run's report), and everything that the
router needs to decide (`rlroute.export.tier_bundle`).

How to use: `summary["test"] = summarise_tier_test(evaluation)`, `render_tier_card(...)`.
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Mapping, Sequence
from string import Template
from typing import Any, Literal

from pydantic import Field

import rlroute
from rlroute.config import StrictModel
from rlroute.export.model_card import (
    UNKNOWN,
    escape_cell,
    format_number,
    render_interval,
    render_table,
)
from rlroute.export.summary import Count, Interval, Number
from rlroute.memory.outcomes import ModuleFacts
from rlroute.types import SplitName

CARD_TEMPLATE = "tier_model_card.md"
QUESTIONS_PER_PRICE = 1000
EXAMPLE_WEIGHT = 0.3
TRANSFORMERS = ("minilm", "path")  # encoders that need the extra


class TierBestSummary(StrictModel):
    """The update whose weights were chosen, the val metric that chose them, and its two metrics."""

    update: Count
    metric: str
    utility: Number
    aiq: Number


class TierPointSummary(StrictModel):
    """The policy on the test questions at one cost weight.

    `failed` is the number of questions with a failed call; they enter no mean. `oracle_share` is
    the share of the oracle's utility, `lead` the utility above the best static choice's.
    """

    cost_weight: float
    quality: Interval | None
    cost_usd: Interval | None
    utility: Interval | None
    failed: Number
    oracle_share: Interval | None
    lead: Interval | None


class TierTestSummary(StrictModel):
    """The policy on the test questions; `aiq_lead` is over the static choice that is named."""

    questions: int = Field(ge=1)
    histories: int = Field(ge=1)
    aiq: Interval | None
    best_static: str
    aiq_lead: Interval | None
    points: tuple[TierPointSummary, ...]


class TierSummary(StrictModel):
    """What was trained on what; `test` is null where these weights were not evaluated.

    `models` says whether the language models were simulated, `answerer` who answered.
    """

    data: str
    questions: dict[SplitName, Count]
    models: Literal["simulated", "pool"]
    answerer: str
    outcomes: str
    algorithm: str
    seed: int
    updates: Count
    best: TierBestSummary
    test: TierTestSummary | None = None


def summarise_tier_test(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Return the test numbers of an evaluation (plain data), the shape of `TierTestSummary`.

    The best static choice is the one that train chose; where the pipeline ran live, and only some
    could be played, the one of the highest AIQ.
    """
    subject, *others = evaluation["contenders"]
    statics = [one for one in others if one["kind"] == "best_static"]
    statics = statics or [one for one in others if one["kind"] == "static"]
    best = max(statics, key=lambda one: one["aiq"]["value"] if one["aiq"] else -1.0)
    keys = ("cost_weight", "quality", "cost_usd", "utility", "failed", "oracle_share")
    return {
        "questions": evaluation["questions"],
        "histories": evaluation["histories"],
        "aiq": subject["aiq"],
        "best_static": best["name"],
        "aiq_lead": best["aiq_lead"],
        "points": [
            {key: point[key] for key in keys} | {"lead": static["lead"]}
            for point, static in zip(subject["points"], best["points"], strict=True)
        ],
    }


# --- Card -----------------------------------------------------------------------------------------


def render_tier_card(
    summary: TierSummary,
    modules: Sequence[ModuleFacts],
    tier_usd: Sequence[Sequence[float]],
    reference_usd: float,
    cost_weights: tuple[float, float],
    encoder: str,
) -> str:
    """Return the card as Markdown; `encoder` is the kind of the encoder."""
    template = importlib.resources.files("rlroute.export").joinpath(CARD_TEMPLATE)
    low, high = cost_weights
    return Template(template.read_text(encoding="utf-8")).substitute(
        data=summary.data,
        module_count=len(modules),
        version=rlroute.__version__,
        example=write_example(modules, min(max(EXAMPLE_WEIGHT, low), high)),
        install="'rlroute[minilm]'" if encoder in TRANSFORMERS else "rlroute",
        weights=f"**{low:g}** alone" if low == high else f"**{low:g} to {high:g}**",
        unit=format_number(reference_usd),
        one_percent=format_number(reference_usd / 100),
        modules=render_modules(modules, tier_usd),
        models=describe_models(summary),
        numbers=render_tier_numbers(summary.test),
        training=render_training(summary, encoder),
    )


def write_example(modules: Sequence[ModuleFacts], cost_weight: float) -> str:
    """Return a program that decides for one question; it runs once the folder is filled in."""
    first, *extractors, last = [module.name for module in modules]
    found = '["Anna - moved to - Rome (on 2024-05-01)"]'
    notes = ", ".join(f'"{name}": {"[]" if n else found}' for n, name in enumerate(extractors))
    return "\n".join(
        [
            "from rlroute import TierRouter",
            "",
            'router = TierRouter.load("path/to/this/folder")',
            f'episode = router.start("Where does Anna live?", cost_weight={cost_weight:g})',
            "",
            "retrieved = ['Anna said \"I moved to Rome.\"', 'Ben said \"Nice weather.\"']",
            f'choice = episode.choose("{first}", texts=retrieved)',
            "choice.tier           # run the module in this tier",
            "choice.probabilities  # of all its tiers",
            "episode.settle(cost_usd=0.0004)  # what that cost",
            "",
            "filtered = retrieved[:1]  # what came out",
            f"for name in {json.dumps(extractors)}:",
            "    choice = episode.choose(name, texts=filtered)  # none has run yet",
            "episode.settle(cost_usd=0.0009)  # what they cost together",
            "",
            f"notes = {{{notes}}}",
            f'choice = episode.choose("{last}", texts=filtered, notes=notes)',
            "episode.settle(cost_usd=0.0002)",
            "episode.cost_usd      # of the whole memory",
        ]
    )


def describe_models(summary: TierSummary) -> str:
    """Say whether real language models stood behind the tiers, and who answered."""
    if summary.models == "simulated":
        models = (
            "The language models of its tiers were **simulated**: programs that know the generated "
            "histories, charge real prices and make errors at stated rates. No real model was "
            "called, and with real ones it has not been measured."
        )
    else:
        models = "The language models of its tiers were those of a pool."
    return f"{models} Answered by: {summary.answerer}."


def render_modules(modules: Sequence[ModuleFacts], tier_usd: Sequence[Sequence[float]]) -> str:
    """Return what the modules do, and the table of their tiers with the mean costs."""
    header = ["module", "role", "tier", "USD per 1,000 runs"]
    rows = [
        [module.name, module.role, tier, format_price(cost)]
        for module, costs in zip(modules, tier_usd, strict=True)
        for tier, cost in zip(module.tiers, costs, strict=True)
    ]
    said = "\n".join(f"- `{module.name}`: {escape_cell(module.description)}" for module in modules)
    return f"{said}\n\n{render_table(header, rows, text_columns=3)}"


def format_price(cost_usd: float) -> str:
    """Return a cost per run as one per 1,000 runs."""
    return format_number(cost_usd * QUESTIONS_PER_PRICE)


def render_tier_numbers(test: TierTestSummary | None) -> str:
    """Return the test numbers with intervals, or say that there are none."""
    if test is None:
        return "Not evaluated: these weights were exported before they met the test questions."
    header = ["cost weight", "quality", "USD per 1,000 questions", "utility"]
    header += ["of the oracle's", f"lead over {test.best_static}", "failed"]
    rows = [
        [
            f"{point.cost_weight:g}",
            render_estimate(point.quality),
            render_estimate(point.cost_usd, factor=QUESTIONS_PER_PRICE),
            render_estimate(point.utility),
            render_estimate(point.oracle_share),
            render_estimate(point.lead, sign="+"),
            UNKNOWN if point.failed is None else f"{point.failed:g}",
        ]
        for point in test.points
    ]
    return "\n\n".join(
        [
            f"Measured greedily on the {test.questions:,} test questions about "
            f"{test.histories:,} histories, which neither training nor the choice of weights has "
            "seen; 95 % intervals by paired bootstrap. Utility is quality minus cost weight times "
            "cost over the unit above; the lead is in utility.",
            render_table(header, rows, text_columns=0),
            f"AIQ, the mean quality over the range of costs: {render_estimate(test.aiq)}; lead "
            f"over {test.best_static}: {render_estimate(test.aiq_lead, sign='+')}.",
        ]
    )


def render_estimate(interval: Interval | None, factor: float = 1.0, sign: str = "") -> str:
    """Return a value with its interval, "-" where there is none."""
    return UNKNOWN if interval is None else render_interval(interval, factor, sign)


def render_training(summary: TierSummary, encoder: str) -> str:
    """Return what was trained on what, as a list."""
    best = summary.best
    value = getattr(best, best.metric, None)
    reached = "" if value is None else f", where it was {value:.4f}"
    questions = ", ".join(f"{split} {count:,}" for split, count in summary.questions.items())
    lines = [
        f"Data: `{summary.data}`, questions: {questions}. Outcomes: {summary.outcomes}.",
        f"Algorithm: {summary.algorithm}, seed {summary.seed}, {summary.updates} updates. These "
        f"are the weights of update {best.update}, chosen by {best.metric} on the val "
        f"questions{reached}.",
        f"Encoder of questions, chunks and notes: {encoder}.",
        "Every setting stands in `recipe.yaml`.",
    ]
    return "\n".join(f"- {line}" for line in lines)
