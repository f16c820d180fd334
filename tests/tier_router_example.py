"""A run of seconds on a small generated memory, made once per test process, and random routers."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from rlroute.config import parse_config
from rlroute.data.encoders import Encoder, TfidfConfig, fit_encoder
from rlroute.envs.memory_tiers import count_extras
from rlroute.export.tier_bundle import TierBundle
from rlroute.memory.outcomes import ModuleFacts, PipelineFacts
from rlroute.policies.tier_profiles import TierStartShape
from rlroute.policies.tier_scorer import TierScorer, TierScorerConfig, describe_tiers
from rlroute.trainers.memory_recipe import MemoryRecipe
from rlroute.trainers.memory_run import train_memory

RULES: dict[str, Any] = {"kind": "rules"}
LLM: dict[str, Any] = {"kind": "llm", "candidate": "large", "prompt": "direct"}
REFLECT = LLM | {"prompt": "reflect"}
LARGE: dict[str, Any] = {
    "description": "simulated",
    "prices": {"input": 0.88, "output": 0.88},
    "skill": {"recall": 0.97, "filter_noise": 2},
}
ROLES = {"filter": "filter", "entity": "extract", "temporal": "extract", "summary": "summary"}
TEXTS = [
    "Anna said she moved to Rome in May.",
    "Ben said the weather is nice in Rome.",
    "Anna said Ben works as a nurse.",
    "Ben said he moved to Oslo, where the weather is not nice.",
    "Where does Anna live, and where does Ben work?",
]


@functools.cache
def find_tier_run() -> tuple[MemoryRecipe, Path]:
    """Return recipe and folder of a finished run; it is not to be written to.

    Its policy started from profiles. Two histories to learn from; rules and a simulated language
    model; entity has a third tier.
    """
    roles = {"filter": "filter", "entity": "extract", "temporal": "extract", "topic": "extract"}
    modules = [
        {
            "name": name,
            "role": role,
            "tiers": [RULES, LLM, *([REFLECT] if name == "entity" else [])],
        }
        for name, role in (roles | {"summary": "summary"}).items()
    ]
    stated: dict[str, Any] = {
        "environment": "memory_tiers",
        "data": {
            "kind": "generated",
            "histories": {"train": 2, "val": 1, "test": 2},
            "sessions": 6,
            "questions_per_kind": 3,
        },
        "models": {"kind": "simulated", "candidates": {"large": LARGE}},
        "pipeline": {
            "retriever": {"kind": "bm25"},
            "modules": modules,
            "answerer": {"kind": "reader"},
        },
        "encoder": {"kind": "tfidf", "dimension": 16},
        "audit_questions": 6,
        "updates": 12,
        "cost_weight": {"max": 1.0},
        "policy": {"hidden": 32, "action_hidden": 16, "profiles": {"clusters": 4}},
        "algorithm": {"kind": "ppo", "episodes": 128},
        "optimiser": {"learning_rate": 1e-2},
        "validation": {"every": 4, "cost_weights": 3},
        "evaluation": {"cost_weights": 3, "bootstrap": 20, "examples": 1},
        "tracking": {"wandb": False},
    }
    scratch = Path(tempfile.mkdtemp(prefix="rlroute-tier-run-"))
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    recipe = parse_config(MemoryRecipe, stated, "recipe")
    train_memory(recipe, scratch / "run")
    return recipe, scratch / "run"


@functools.cache
def make_encoder() -> Encoder:
    """Return a small encoder."""
    return fit_encoder(TfidfConfig(dimension=4, min_documents=2), TEXTS, seed=0)


def make_bundle(*, hidden: int = 8, profiles: bool = False) -> TierBundle:
    """Return a router of random weights whose decisions differ from state to state.

    With `profiles` its policy started from some, random as well.
    """
    counts = [3 if name == "entity" else 2 for name in ROLES]
    modules = tuple(
        ModuleFacts(name, role, f"What | {name} does.", ("Low", "Mid", "High")[:count])
        for (name, role), count in zip(ROLES.items(), counts, strict=True)
    )
    tier_usd = tuple(tuple(0.001 * tier for tier in range(count)) for count in counts)
    encoder = make_encoder()
    scorer = TierScorer(
        TierScorerConfig(
            dimension=encoder.dimension,
            extras=count_extras(counts),
            modules=len(counts),
            tiers=max(counts),
            hidden=hidden,
            action_hidden=8,
            start=TierStartShape(clusters=3, directions=2, counts=tuple(counts))
            if profiles
            else None,
        )
    )
    generator = torch.Generator().manual_seed(4)
    for parameter in scorer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    if scorer.start is not None:
        for buffer in scorer.start.buffers():
            buffer.copy_(torch.rand(buffer.shape, generator=generator))
    descriptions = encoder.encode([module.description for module in modules])
    scorer.describe(descriptions, describe_tiers(tier_usd, 0.005))
    return TierBundle(
        facts=PipelineFacts(modules, "ab" * 32),
        tier_usd=tier_usd,
        reference_usd=0.005,
        cost_weight_min=0.1,
        cost_weight_max=0.5,
        scorer=scorer.eval().requires_grad_(False),
        encoder=encoder,
        summary={
            "data": "generated",
            "questions": {"train": 30, "val": 10, "test": 20},
            "models": "simulated",
            "answerer": "a scripted reader, a program",
            "outcomes": "tabulated",
            "algorithm": "ppo",
            "seed": 3,
            "updates": 40,
            "best": {"update": 25, "metric": "utility", "utility": 0.71234, "aiq": None},
        },
        recipe_yaml="environment: memory_tiers\nseed: 3\n",
    )
