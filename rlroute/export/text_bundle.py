"""An exported text policy as a folder: weights, tokenizer, `router.json` and a model card.

    model.safetensors, config.json, tokenizer.json, ...   a checkpoint of transformers
    router.json     the environment's rules, the candidates that it learnt with (prices, names,
                    limits; no address, no key), limits of tokens, numbers
    README.md       for people

Nothing in it is a pickle and nothing in it is run. What it leaves out: playing an episode
(`rlroute.text_router`), and the pool, which is the user's.

How to use: `write_text_bundle(bundle, run / "best", Path("my-router"))`, `read_text_bundle(...)`.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any, Literal

from pydantic import Field

import rlroute
from rlroute.config import StrictModel, parse_config
from rlroute.data.candidate_files import CandidateEntry, Money, PricesEntry, dump_candidate
from rlroute.data.encoders import read_json
from rlroute.envs.multi_round import MultiRoundConfig
from rlroute.export.model_card import UNKNOWN, format_number, render_interval, render_table
from rlroute.export.summary import Interval
from rlroute.files import atomic_folder, write_atomic
from rlroute.rollout.policy_files import load_policy
from rlroute.types import Candidate, RLRouteError

FORMAT_VERSION = 1
ROUTER_FILE = "router.json"
CARD_FILE = "README.md"
CARD_TEMPLATE = "text_model_card.md"
QUERIES_PER_PRICE = 1000


class FullPricesEntry(PricesEntry):
    """Prices with what only live candidates state."""

    cached_input: Money | None = None
    date: str = ""


class TextCandidateEntry(CandidateEntry):
    """A candidate with the other names that it can be called by."""

    prices: FullPricesEntry
    aliases: tuple[str, ...] = ()

    def to_candidate(self) -> Candidate:
        """Return the candidate that the entry describes."""
        return dataclasses.replace(super().to_candidate(), aliases=self.aliases)


class BestSummary(StrictModel):
    """The update whose weights were chosen, and the val metric that chose them."""

    update: int = Field(ge=0)
    metric: str
    reward: float | None


class TextPointSummary(StrictModel):
    """The policy on the test questions at one cost weight, and its lead over the best baseline."""

    cost_weight: float
    reward: Interval
    success: Interval
    cost_usd: Interval
    calls: float
    failed: int
    best_baseline: str
    baseline_reward: float | None
    lead: Interval | None
    optimum_reward: float | None


class TextTestSummary(StrictModel):
    """The policy on the test questions."""

    questions: int = Field(ge=1)
    points: tuple[TextPointSummary, ...]


class TextSummary(StrictModel):
    """What was trained on what; `test` is null where these weights were not evaluated."""

    questions: str
    base_model: str
    algorithm: str
    seed: int
    updates: int
    best: BestSummary
    test: TextTestSummary | None = None


class RouterFile(StrictModel):
    """What router.json holds."""

    format_version: Literal[1]
    rlroute_version: str
    environment: MultiRoundConfig
    candidates: tuple[TextCandidateEntry, ...] = Field(min_length=1)
    max_new_tokens: int = Field(ge=1)
    context_tokens: int = Field(ge=1)
    precision: Literal["float32", "bfloat16"]
    summary: TextSummary


@dataclass(frozen=True)
class TextBundle:
    """Everything but the weights; `candidates` are those that the policy learnt with."""

    environment: MultiRoundConfig
    candidates: tuple[Candidate, ...]
    max_new_tokens: int
    context_tokens: int
    precision: str
    summary: dict[str, Any]


def write_text_bundle(bundle: TextBundle, policy: Path, folder: Path) -> None:
    """Write a router with the weights of the checkpoint `policy`, whole or not at all.

    Raises:
        RLRouteError: the folder is not empty or cannot be written, or the policy cannot be loaded.
    """
    folder = Path(os.path.abspath(folder))
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise RLRouteError(f"{folder}: is not an empty folder; name a new one")
    content = format_router_file(bundle)
    parsed = parse_config(RouterFile, content, ROUTER_FILE)
    model, tokenizer = load_policy(policy, bundle.precision)
    try:
        with atomic_folder(folder) as temporary:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            write_atomic(temporary / CARD_FILE, render_text_card(bundle, parsed.summary))
            plain = json.dumps(content, indent=1, allow_nan=False)
            write_atomic(temporary / ROUTER_FILE, plain + "\n")
            for path in temporary.iterdir():
                path.chmod(0o644)  # safetensors makes its files private to the owner
    except OSError as error:
        raise RLRouteError(f"{folder}: cannot be written ({error.strerror})") from None


def format_router_file(bundle: TextBundle) -> dict[str, Any]:
    """Return the content of router.json."""
    return {
        "format_version": FORMAT_VERSION,
        "rlroute_version": rlroute.__version__,
        "environment": bundle.environment.model_dump(mode="json"),
        "candidates": [dump_text_candidate(candidate) for candidate in bundle.candidates],
        "max_new_tokens": bundle.max_new_tokens,
        "context_tokens": bundle.context_tokens,
        "precision": bundle.precision,
        "summary": bundle.summary,
    }


def dump_text_candidate(candidate: Candidate) -> dict[str, Any]:
    """Return a candidate, with all its prices and names, as plain values."""
    return {
        **dump_candidate(candidate),
        "prices": dataclasses.asdict(candidate.prices),
        "aliases": list(candidate.aliases),
    }


def read_text_bundle(folder: Path) -> TextBundle:
    """Read router.json of an exported text policy.

    Raises:
        RLRouteError: no such router lies there, it was made by a newer version, or is damaged.
    """
    path = folder / ROUTER_FILE
    if not path.is_file():
        raise RLRouteError(
            f"{folder}: no exported text router lies here ({ROUTER_FILE} is missing)"
        )
    content = read_json(path)
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise RLRouteError(
            f"{path}: format_version {version!r}, this rlroute reads {FORMAT_VERSION}"
        )
    parsed = parse_config(RouterFile, content, str(path))
    return TextBundle(
        environment=parsed.environment,
        candidates=tuple(entry.to_candidate() for entry in parsed.candidates),
        max_new_tokens=parsed.max_new_tokens,
        context_tokens=parsed.context_tokens,
        precision=parsed.precision,
        summary=parsed.summary.model_dump(mode="json"),
    )


def summarise_text_test(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Return the test numbers of an evaluation as plain data: the shape of `TextTestSummary`."""
    by_name = {policy["name"]: policy["points"] for policy in evaluation["policies"]}
    points = []
    for place, point in enumerate(evaluation["policies"][0]["points"]):
        name = evaluation["best_baselines"][place]
        baseline = by_name[name][place]
        optima = evaluation["optima"]
        points.append(
            {key: point[key] for key in ("cost_weight", "reward", "success", "cost_usd")}
            | {"calls": point["calls"], "failed": point["failed"], "best_baseline": name}
            | {
                "baseline_reward": baseline["reward"] and baseline["reward"]["value"],
                "lead": baseline["lead"],
                "optimum_reward": optima[place]["reward"] if optima else None,
            }
        )
    return {"questions": evaluation["test_questions"], "points": points}


# --- Model card -----------------------------------------------------------------------------------


def render_text_card(bundle: TextBundle, summary: TextSummary) -> str:
    """Return the model card as Markdown."""
    template = importlib.resources.files("rlroute.export").joinpath(CARD_TEMPLATE)
    weights = bundle.environment.cost_weights
    return Template(template.read_text(encoding="utf-8")).substitute(
        questions=summary.questions,
        version=rlroute.__version__,
        weight=f"{min(weights):g}",
        weights=describe_weights(weights),
        max_calls=bundle.environment.max_calls,
        context_tokens=bundle.context_tokens,
        candidates=render_text_candidates(bundle.candidates),
        numbers=render_text_numbers(summary.test),
        base_model=summary.base_model,
        algorithm=summary.algorithm,
        seed=summary.seed,
        updates=summary.updates,
        update=summary.best.update,
        metric=summary.best.metric,
    )


def describe_weights(weights: tuple[float, ...]) -> str:
    """Say which cost weights the policy was trained for."""
    stated = ", ".join(f"{weight:g}" for weight in sorted(set(weights)))
    if len(set(weights)) == 1:
        return f"It was trained for the cost weight {stated} alone and refuses others."
    return (
        f"It was trained at the cost weights {stated}, takes any between the least and the largest "
        "of them, and refuses others."
    )


def render_text_candidates(candidates: tuple[Candidate, ...]) -> str:
    """Return the table of candidates with their prices."""
    header = ["candidate", "what it is", "USD per million tokens in", "out", "USD per call"]
    rows = [
        [
            candidate.id,
            candidate.description or candidate.kind,
            format_number(candidate.prices.input),
            format_number(candidate.prices.output),
            format_number(candidate.prices.per_call),
        ]
        for candidate in candidates
    ]
    return render_table(header, rows, text_columns=2)


def render_text_numbers(test: TextTestSummary | None) -> str:
    """Return the test numbers with intervals, or say that there are none."""
    if test is None:
        return "Not evaluated: these weights were exported before they met the test questions."
    known = any(point.optimum_reward is not None for point in test.points)
    header = ["cost weight", "reward", "success", "USD per 1,000 questions", "calls", "failed"]
    header += ["best baseline on val", "lead over it", *(["optimum's reward"] if known else [])]
    rows = []
    for point in test.points:
        baseline = UNKNOWN if point.baseline_reward is None else f"{point.baseline_reward:.3f}"
        row = [
            f"{point.cost_weight:g}",
            render_interval(point.reward),
            render_interval(point.success),
            render_interval(point.cost_usd, factor=QUERIES_PER_PRICE),
            f"{point.calls:.2f}",
            str(point.failed),
            f"{point.best_baseline} ({baseline})",
            UNKNOWN if point.lead is None else render_interval(point.lead, sign="+"),
        ]
        if known:
            row.append(UNKNOWN if point.optimum_reward is None else f"{point.optimum_reward:.3f}")
        rows.append(row)
    return "\n\n".join(
        [
            f"Measured greedily on the {test.questions:,} test questions, which neither training "
            "nor the choice of weights has seen; 95 % intervals by paired bootstrap over "
            "questions. Rewards at different cost weights are not comparable.",
            render_table(header, rows, text_columns=1),
        ]
    )
