"""The trainer of memory-tier routing: from a recipe to a run folder (BudgetMem and ours).

    audit   which tiers differ and what they cost; refuses tiers that do not differ
    tree    every choice of tiers for the train and val questions, run once      (or live)
    loop    episodes, advantages, updates                                        trainers/loop.py

What a run leaves: recipe.resolved.yaml, run.json, encoder/, audit.json, tree/ (or in
`outcomes.folder`; live runs: module_runs.jsonl), profiles.safetensors (with `policy.profiles`),
metrics.jsonl, trajectories.jsonl, checkpoints/,
best/. Test questions are not touched before `rlroute evaluate` (`rlroute.memory_runs`).
"""

from __future__ import annotations

import json
import platform
import shutil
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save
from safetensors.torch import load_file

from rlroute.config import dump_config, redact
from rlroute.envs.memory_tiers import count_extras
from rlroute.extras import require
from rlroute.files import write_atomic
from rlroute.memory.outcomes import TierOutcomes
from rlroute.memory.tree import TierTree
from rlroute.policies.tier_profiles import TierProfiles, TierStartShape, measure_tier_profiles
from rlroute.policies.tier_scorer import TierScorer, TierScorerConfig, describe_tiers
from rlroute.policies.weights import load_weights
from rlroute.rewards.memory import MemoryReward
from rlroute.seeding import derive_seed
from rlroute.trainers.checkpoint import WEIGHTS_FILE, TrainingState
from rlroute.trainers.decision import make_cost_weights
from rlroute.trainers.learner import Learner
from rlroute.trainers.loop import check_distribution, check_processes, run_loop
from rlroute.trainers.memory_problem import MemoryProblem, score_tiers
from rlroute.trainers.memory_recipe import MemoryRecipe, TierPolicyConfig
from rlroute.trainers.memory_stage import (
    STORE_FILE,
    TREE_FOLDER,
    MemoryStage,
    open_memory_stage,
    spread,
)
from rlroute.trainers.run_folder import (
    BEST_FILE,
    BEST_FOLDER,
    ENCODER_FOLDER,
    RECIPE_FILE,
    RUN_FILE,
    clear_folder,
    read_json,
)
from rlroute.types import FloatArray, RLRouteError

FORMAT_VERSION = 1
AUDIT_FILE = "audit.json"
PROFILES_FILE = "profiles.safetensors"


@dataclass(frozen=True)
class CostFacts:
    """What a run's costs are measured by, in USD.

    `reference_usd` is what the dearest tier everywhere costs on average; `tier_usd` the mean cost
    of each module's tiers in the audit.
    """

    reference_usd: float
    tier_usd: list[list[float]]


def train_memory(
    recipe: MemoryRecipe,
    folder: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    command: str = "",
) -> TrainingState:
    """Train a policy as the recipe says and leave everything in `folder`.

    `overwrite` keeps the store of a live run: what was paid for is found in it again. A start that
    comes to nothing leaves that store and no more, so the next one needs no flag; but trees that
    a pool's models made stay, with the folder as it is, until `overwrite` takes them away.

    Raises:
        RLRouteError: data, models, tiers, an extra or the folder do not allow it.
    """
    accelerator = require("accelerate", "train").Accelerator()
    check_distribution(accelerator)
    check_processes(recipe.algorithm, accelerator.num_processes)
    if not resume and accelerator.is_main_process:
        clear_folder(folder, overwrite=overwrite, keep=(STORE_FILE,))
        try:
            prepare_run(recipe, folder, accelerator, command)
        finally:
            if folder.exists() and not any(folder.iterdir()):
                folder.rmdir()
    accelerator.wait_for_everyone()
    costs = read_cost_facts(folder)
    with open_memory_stage(recipe, folder) as stage:
        train, val = stage.open_outcomes("train"), stage.open_outcomes("val")
        weights = make_cost_weights(recipe.cost_weight, recipe.validation.cost_weights)
        problem = MemoryProblem(recipe, train, val, costs.reference_usd, weights)
        profiles = None if recipe.policy.profiles is None else read_profiles(folder)
        learner = make_learner(recipe, stage, costs, problem.reward, accelerator, profiles)
        return run_loop(problem, learner, folder, resume=resume)


def prepare_run(recipe: MemoryRecipe, folder: Path, accelerator: Any, command: str) -> None:
    """Write the run folder; where that fails, what was written goes, see `train_memory`."""
    with open_memory_stage(recipe, folder) as stage:
        try:
            write_start(stage, accelerator, command)
        except BaseException:  # also when interrupted
            if recipe.models.kind != "pool" or not (folder / TREE_FOLDER).exists():
                drop_start(folder)
            raise


def write_start(stage: MemoryStage, accelerator: Any, command: str) -> None:
    """Keep the encoder, audit the tiers, make the trees of train and val, say what the run is."""
    recipe, folder = stage.recipe, stage.folder
    facts = {
        "format_version": FORMAT_VERSION,
        "rlroute": version("rlroute"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "command": redact(command),
        "processes": accelerator.num_processes,
        "device": str(accelerator.device),
    }
    stage.encoder.save(folder / ENCODER_FOLDER)
    facts |= {
        "data": stage.data.name,
        "questions": {split: len(chosen) for split, chosen in stage.questions.items()},
        "pipeline": stage.pipeline.facts.fingerprint,
        "encoder": stage.encoder.describe(),
    }
    write_atomic(folder / RUN_FILE, json.dumps(facts, indent=2))
    write_atomic(folder / RECIPE_FILE, dump_config(recipe))  # with it the folder is a run
    audit = stage.audit()
    train = stage.open_outcomes("train")
    stage.open_outcomes("val")
    reference_usd = measure_reference(stage, train)
    content = {
        "reference_usd": reference_usd,
        "rows": audit.to_rows(),
        "equal_costs": audit.list_equal_costs(),
    }
    if recipe.policy.profiles is not None:
        profiles = measure_start(recipe, train, reference_usd)
        write_atomic(folder / PROFILES_FILE, save(asdict(profiles)))
    write_atomic(folder / AUDIT_FILE, json.dumps(content, indent=1))


def drop_start(folder: Path) -> None:
    """Remove what `write_start` wrote before it failed; a store stays."""
    for name in (ENCODER_FOLDER, TREE_FOLDER):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (RUN_FILE, PROFILES_FILE, AUDIT_FILE, RECIPE_FILE):  # a run to the last
        (folder / name).unlink(missing_ok=True)


def measure_start(recipe: MemoryRecipe, train: TierOutcomes, reference_usd: float) -> TierProfiles:
    """Return the profiles that the policy starts from, measured on the tree of train."""
    assert isinstance(train, TierTree)  # the recipe sees to it
    assert recipe.policy.profiles is not None
    return measure_tier_profiles(
        train.query_QE,
        train.leaf_score_QL,
        train.leaf_cost_QL,
        reference_usd,
        recipe.policy.profiles,
        recipe.seed,
    )


def read_profiles(folder: Path) -> TierProfiles:
    """Read the profiles of a run.

    Raises:
        RLRouteError: they are missing or torn.
    """
    path = folder / PROFILES_FILE
    try:
        return TierProfiles(**load_arrays(path))
    except (OSError, SafetensorError, TypeError) as error:
        raise RLRouteError(f"{path}: cannot be read ({error})") from None


def measure_reference(stage: MemoryStage, outcomes: TierOutcomes) -> float:
    """Return what the dearest tier everywhere costs on average in USD.

    Of all questions that are tabulated; of the audit's where the pipeline runs live.

    Raises:
        RLRouteError: that is nothing, or all of them failed.
    """
    chosen = np.arange(len(outcomes.questions))
    if not isinstance(outcomes, TierTree):
        place = {question.query.id: q for q, question in enumerate(outcomes.questions)}
        audited = spread(outcomes.questions, stage.recipe.audit_questions)
        chosen = np.array([place[question.query.id] for question in audited])
    last_M = np.array(outcomes.facts.tier_counts) - 1
    tier_BM = np.tile(last_M, (len(chosen), 1))
    modules = len(outcomes.facts.modules)
    cost_MB = np.stack([outcomes.run(chosen, step, tier_BM) for step in range(modules)])
    cost_B = cost_MB.sum(axis=0)
    mean = float(np.nanmean(cost_B)) if not np.isnan(cost_B).all() else 0.0
    if mean <= 0:
        raise RLRouteError(
            "pipeline: the dearest tiers cost nothing, so there is nothing to trade; give an llm "
            "tier's candidate, or an encoder tier, its price"
        )
    return mean


def read_cost_facts(folder: Path) -> CostFacts:
    """Read what a run's costs are measured by."""
    content = read_json(folder / AUDIT_FILE)
    tiers: dict[str, list[float]] = {}
    for row in content["rows"]:
        tiers.setdefault(row["module"], []).append(row["mean_cost_usd"])
    return CostFacts(content["reference_usd"], list(tiers.values()))


def make_scorer_config(recipe: MemoryRecipe, stage: MemoryStage) -> TierScorerConfig:
    """Return the shape of the network for a recipe and its pipeline."""
    return shape_scorer(recipe.policy, stage.pipeline.facts.tier_counts, stage.encoder.dimension)


def shape_scorer(
    policy: TierPolicyConfig, counts: tuple[int, ...], dimension: int
) -> TierScorerConfig:
    """Return the shape of the network for modules of `counts` tiers and embeddings of a width."""
    start = None
    if policy.profiles is not None:
        start = TierStartShape(**policy.profiles.model_dump(), counts=counts)
    return TierScorerConfig(
        dimension=dimension,
        extras=count_extras(counts),
        modules=len(counts),
        tiers=max(counts),
        hidden=policy.hidden,
        action_hidden=policy.action_hidden,
        head=policy.head,
        read_extras=policy.read_extras,
        unit_variance=policy.unit_variance,
        start=start,
    )


def make_learner(
    recipe: MemoryRecipe,
    stage: MemoryStage,
    costs: CostFacts,
    reward: MemoryReward,
    accelerator: Any,
    profiles: TierProfiles | None = None,
) -> Learner:
    """Build model and optimiser; equal seeds give equal weights on every process.

    `reward` is the problem's own: its alignment moves as episodes join it. `profiles` are there
    where the recipe starts the policy from them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(recipe.seed, "weights"))
        scorer = TierScorer(make_scorer_config(recipe, stage))
    modules = stage.pipeline.facts.modules
    descriptions: FloatArray = stage.encoder.encode([module.description for module in modules])
    scorer.describe(descriptions, describe_tiers(costs.tier_usd, costs.reference_usd))
    if profiles is not None:
        scorer.begin_from(profiles)
    for head in (scorer.value_layer, scorer.value_output):
        head.requires_grad_(recipe.algorithm.kind == "ppo")  # the others have no critic
    settings = recipe.optimiser
    optimiser = torch.optim.AdamW(
        [parameter for parameter in scorer.parameters() if parameter.requires_grad],
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
    )
    model, optimiser = accelerator.prepare(scorer, optimiser)
    return Learner(accelerator, model, optimiser, score_tiers, reward, recipe)


def load_best_scorer(
    folder: Path, recipe: MemoryRecipe, stage: MemoryStage
) -> tuple[TierScorer, dict[str, Any]]:
    """Return the network that validation chose, and what was written beside it.

    Raises:
        RLRouteError: the run has no best weights yet, or they are torn.
    """
    return read_best_scorer(folder, make_scorer_config(recipe, stage))


def read_best_scorer(folder: Path, config: TierScorerConfig) -> tuple[TierScorer, dict[str, Any]]:
    """Return the network of a shape that validation chose; see `load_best_scorer`."""
    path = folder / BEST_FOLDER / WEIGHTS_FILE
    scorer = TierScorer(config)
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RLRouteError(f"{path}: cannot be read ({error})") from None
    load_weights(scorer, weights, path)
    return scorer.eval(), read_json(folder / BEST_FOLDER / BEST_FILE)


def check_format(folder: Path, facts: dict[str, Any]) -> None:
    """Refuse a run folder of another version.

    Raises:
        RLRouteError: it is.
    """
    if facts.get("format_version") != FORMAT_VERSION:
        raise RLRouteError(
            f"{folder / RUN_FILE}: format_version {facts.get('format_version')}, "
            f"this rlroute reads {FORMAT_VERSION}"
        )
