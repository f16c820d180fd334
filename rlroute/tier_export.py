"""What `rlroute export` does with a run on memory tiers.

What it is: the policy that validation chose (best/), with all that it needs to decide outside of
its pipeline: encoder, modules and tiers, the unit of costs. Neither histories nor models are
opened, so a run can be exported where they are not.

What it leaves out: the exported folder (`rlroute.export.tier_bundle`) and what loads it
(`rlroute.tier_router`).

How to use: `export_memory_run(Path("runs/mine"), Path("my-tier-router"))`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from rlroute.config import dump_config
from rlroute.data.encoders import load_encoder, read_json
from rlroute.evaluation.results import make_plain
from rlroute.export.tier_bundle import TierBundle, write_tier_bundle
from rlroute.export.tier_model_card import summarise_tier_test
from rlroute.memory.config import PipelineConfig
from rlroute.memory.open import complete_module, name_tiers
from rlroute.memory.outcomes import ModuleFacts, PipelineFacts
from rlroute.memory_runs import StoredMemoryRun, read_memory_run
from rlroute.trainers.memory_run import read_best_scorer, read_cost_facts, shape_scorer
from rlroute.trainers.run_folder import ENCODER_FOLDER

EVALUATION_FILE = "evaluation.json"


def export_memory_run(folder: Path, to: Path) -> None:
    """Write the run's policy as a folder that `TierRouter.load` reads.

    Raises:
        RLRouteError: no finished run lies there, a file of it is torn, or `to` holds something else
            than such a router.
    """
    run = read_memory_run(folder)
    recipe, costs = run.recipe, read_cost_facts(folder)
    facts = PipelineFacts(describe_pipeline(recipe.pipeline), run.facts["pipeline"])
    encoder = load_encoder(folder / ENCODER_FOLDER)
    shape = shape_scorer(recipe.policy, facts.tier_counts, encoder.dimension)
    scorer, _ = read_best_scorer(folder, shape)
    bundle = TierBundle(
        facts=facts,
        tier_usd=tuple(tuple(row) for row in costs.tier_usd),
        reference_usd=costs.reference_usd,
        cost_weight_min=recipe.cost_weight.min,
        cost_weight_max=recipe.cost_weight.max,
        scorer=scorer,
        encoder=encoder,
        summary=summarise_memory_run(run),
        recipe_yaml=dump_config(recipe),
    )
    write_tier_bundle(bundle, to)
    Console(stderr=True).print(f"router written to {to}", highlight=False)


def describe_pipeline(config: PipelineConfig) -> tuple[ModuleFacts, ...]:
    """Return the modules of a pipeline as it describes them itself, without opening it."""
    specs = [complete_module(spec) for spec in config.modules]
    return tuple(
        ModuleFacts(spec.name, spec.role, spec.description, name_tiers(spec)) for spec in specs
    )


def summarise_memory_run(run: StoredMemoryRun) -> dict[str, Any]:
    """Return what the export says of its training; test numbers only of these very weights."""
    recipe, best = run.recipe, run.best
    answerer = recipe.pipeline.answerer
    summary: dict[str, Any] = {
        "data": run.facts["data"],
        "questions": run.facts["questions"],
        "models": recipe.models.kind,
        "answerer": "a scripted reader, a program"
        if answerer.kind == "reader"
        else f"the language model {answerer.candidate}",
        "outcomes": recipe.outcomes.kind,
        "algorithm": recipe.algorithm.kind,
        "seed": recipe.seed,
        "updates": recipe.updates,
        "best": {
            "update": best["update"],
            "metric": best["metric"],
            "utility": best["utility"],
            "aiq": best["aiq"],
        },
    }
    path = run.folder / EVALUATION_FILE
    if path.exists():
        evaluation = read_json(path)
        if evaluation["update"] == best["update"]:
            summary["test"] = summarise_tier_test(evaluation)
    plain: dict[str, Any] = make_plain(summary)
    return plain
