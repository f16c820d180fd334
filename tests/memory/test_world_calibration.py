"""The generated world through the real pipeline: better tiers help, each kind by its own module.

Rules, the MiniLM encoder and a simulated model answer the questions of two histories; the gaps that
are asked for are far wider than what two histories leave to chance.
"""

from __future__ import annotations

import asyncio

import pytest

from rlroute.config import parse_config
from rlroute.memory.config import PipelineConfig
from rlroute.memory.open import open_models, open_pipeline
from rlroute.memory.simulated_models import SimulatedModelsConfig
from rlroute.memory.world import generate_memory
from rlroute.memory.world_config import GeneratedMemoryConfig, HistoryCounts

MODELS = {
    "kind": "simulated",
    "candidates": {
        "large": {
            "prices": {"input": 0.88, "output": 0.88},
            "skill": {
                **{"recall": 0.97, "paraphrase_recall": 0.93, "invented": 0.1},
                **{"date_errors": 0.06, "filter_noise": 3.0, "summary_recall": 0.99},
                "malformed": 0.01,
            },
        }
    },
    "styles": {"reflect": {"errors": 1.0, "reasoning_tokens": 150}},
}
TIERS = [
    {"kind": "rules"},
    {"kind": "encoder", "price": 0.02},
    {"kind": "llm", "candidate": "large", "prompt": "reflect"},
]
MODULES = [
    {"name": "filter", "role": "filter", "tiers": TIERS},
    *(
        {"name": name, "role": "extract", "tiers": TIERS}
        for name in ("entity", "temporal", "topic")
    ),
    {"name": "summary", "role": "summary", "tiers": TIERS},
]
CHOICES = {
    "low": (0, 0, 0, 0, 0),
    "mid": (1, 1, 1, 1, 1),
    "high": (2, 2, 2, 2, 2),
    "entity": (0, 2, 0, 0, 1),
    "temporal": (0, 0, 2, 0, 1),
    "topic": (0, 0, 0, 2, 1),
}
Means = dict[str, dict[str, float]]


@pytest.fixture(scope="module")
def played() -> tuple[Means, dict[str, float]]:
    """Return mean scores by choice of tiers and kind of question (`all` too), and mean costs."""
    counts = HistoryCounts(train=2, val=0, test=0)
    world = generate_memory(GeneratedMemoryConfig(histories=counts))
    models = open_models(parse_config(SimulatedModelsConfig, MODELS, "models"), world)
    settings = {"modules": MODULES, "answerer": {"kind": "reader"}}
    config = parse_config(PipelineConfig, settings, "pipeline")
    pipeline = open_pipeline(config, world.data, models.pool, models.candidates)
    questions = world.data.questions["train"]
    scores: Means = {}
    costs = {}
    for name, tiers in CHOICES.items():
        traces = asyncio.run(pipeline.run(questions, [tiers] * len(questions)))
        costs[name] = sum(trace.cost_usd for trace in traces) / len(traces)
        graded = [
            (question.query.task, world.data.grade(question, trace.answer.text))
            for question, trace in zip(questions, traces, strict=True)
        ]
        kinds = {kind: [s for k, s in graded if k == kind] for kind, _ in graded}
        kinds["all"] = [score for _, score in graded]
        scores[name] = {kind: sum(some) / len(some) for kind, some in kinds.items()}
    return scores, costs


def test_better_tiers_answer_more_and_cost_more(played: tuple[Means, dict[str, float]]) -> None:
    scores, costs = played
    assert scores["low"]["all"] + 0.1 < scores["mid"]["all"] < scores["high"]["all"] - 0.1
    assert 0.2 <= scores["low"]["all"] <= 0.45
    assert scores["high"]["all"] >= 0.75
    assert costs["low"] == 0 < costs["mid"] < 0.05 * costs["high"]


def test_each_kind_of_question_needs_a_module_of_its_own(
    played: tuple[Means, dict[str, float]],
) -> None:
    scores, _ = played
    needs = {"single": "entity", "update": "entity", "temporal": "temporal", "aggregate": "topic"}
    for kind, module in needs.items():
        for other in {"entity", "temporal", "topic"} - {module}:
            assert scores[module][kind] >= scores[other][kind] + 0.3, (kind, other)
        assert scores[module][kind] >= scores["high"][kind] - 0.2, kind


def test_what_was_never_said_needs_no_dear_tier(played: tuple[Means, dict[str, float]]) -> None:
    scores, _ = played
    assert scores["low"]["unanswerable"] == 1
    assert scores["low"]["unanswerable"] >= scores["high"]["unanswerable"]


def test_one_dear_module_costs_far_less_than_all(played: tuple[Means, dict[str, float]]) -> None:
    _, costs = played
    for module in ("entity", "temporal", "topic"):
        assert 0 < costs[module] < 0.3 * costs["high"]
