"""What `rlroute evaluate` does with a run of step-by-step routing.

What it is: it plays the policy that validation chose (best/), greedy and sampled, against its own
warm start, the untrained language model, other runs of the same world and all baselines, and leaves
evaluation.json, frontier.png, curves.png, transcripts.jsonl and report.html in the run's folder.

What it leaves out: how they are compared (`rlroute.trainers.step_evaluation`), the baselines
(`rlroute.trainers.step_contenders`), the report (`rlroute.evaluation.step_report`).

How to use: `evaluate_step_run(Path("runs/mine"), beside=[Path("runs/plain-grpo")])`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape

from rlroute.config import dump_config, load_config, read_yaml_mapping
from rlroute.evaluation.step_comparison import describe_step_result, render_step_comparison
from rlroute.evaluation.step_report import (
    REPORT_FILE,
    StepReportContext,
    Transcript,
    TranscriptStep,
    write_step_report,
)
from rlroute.evaluation.step_results import StepEvaluation, StepKind, StepSetting
from rlroute.policies.choice import ChoiceConfig, build_choice
from rlroute.policies.stepwise import StepPolicy
from rlroute.rollout.boundary import RolloutFile
from rlroute.rollout.stage import Stage
from rlroute.rollout.step_plan import plan_static
from rlroute.rollout.steps import Moment
from rlroute.tracking import read_metrics
from rlroute.trainers.run_folder import BEST_FILE, BEST_FOLDER, RECIPE_FILE, RUN_FILE, read_json
from rlroute.trainers.step_arena import Arena, Contender
from rlroute.trainers.step_contenders import PROBES, list_baselines
from rlroute.trainers.step_evaluation import compare
from rlroute.trainers.step_policy import StepModel, load_policy, make_policy
from rlroute.trainers.step_problem import SplitFacts, fix_setting, read_split_facts
from rlroute.trainers.step_recipe import StepRecipe
from rlroute.trainers.step_run import (
    LABELS_FILE,
    WARM_START_FOLDER,
    open_rollout_file,
    open_stage,
    play_boundaries,
)
from rlroute.types import Batch, RLRouteError, SplitName

ENVIRONMENT = "step_budget"


@dataclass(frozen=True)
class StoredStepRun:
    """A step-by-step run as read from its folder; `best` says which update was chosen, and why."""

    folder: Path
    recipe: StepRecipe
    facts: dict[str, Any]
    best: dict[str, Any]


def read_step_run(folder: Path) -> StoredStepRun:
    """Read a run folder.

    Raises:
        RLRouteError: no such run lies there, a file is torn, or no policy was kept yet.
    """
    path = folder / RECIPE_FILE
    if not path.exists():
        raise RLRouteError(f"{folder}: no run lies here ({RECIPE_FILE} is missing)")
    kind = read_yaml_mapping(path).get("environment")
    if kind != ENVIRONMENT:
        raise RLRouteError(f"{folder}: a run of '{kind}', and one of '{ENVIRONMENT}' was expected")
    recipe = load_config(StepRecipe, path)
    if not (folder / BEST_FOLDER / BEST_FILE).exists():
        raise RLRouteError(
            f"{folder}: the run has not kept a policy yet ({BEST_FOLDER}/ is missing)"
        )
    best = read_json(folder / BEST_FOLDER / BEST_FILE)
    return StoredStepRun(folder, recipe, read_json(folder / RUN_FILE), best)


def evaluate_step_run(folder: Path, beside: Sequence[Path] = ()) -> StepEvaluation:
    """Compare a run's policy with baselines and other runs on the test tasks; write the report.

    Raises:
        RLRouteError: no finished run lies there, a run beside it is of another world, the world,
            the pool or a policy cannot be had, or a budget was passed.
    """
    run = read_step_run(folder)
    others = [read_step_run(path) for path in beside]
    for other in others:
        check_same_world(run, other)
    with open_arena(run, others) as arena, Console(stderr=True).status("") as status:
        baselines, left_out = list_baselines(arena)
        policies = list_policies(run, others, arena.stage)
        result = compare(
            arena,
            [*policies, *baselines],
            update=run.best["update"],
            left_out=left_out,
            tell=lambda text: status.update(escape(text)),
        )
        status.update("writing the report")
        transcripts = list_transcripts(arena, policies[0].load("test"))
        write_step_report(folder, result, make_step_context(run, arena, result, transcripts))
    console = Console()
    console.print(render_step_comparison(result))
    for sentence in describe_step_result(result):
        console.print(sentence, highlight=False, markup=False)
    console.print(f"report: {folder / REPORT_FILE}", highlight=False, markup=False)
    return result


def check_same_world(run: StoredStepRun, other: StoredStepRun) -> None:
    """Refuse a run beside another that is the same one, or of another world.

    Raises:
        RLRouteError: it is.
    """
    if other.folder.resolve() == run.folder.resolve():
        raise RLRouteError(f"{other.folder}: a run is not compared with itself")
    if other.recipe.world != run.recipe.world:
        raise RLRouteError(
            f"{other.folder}: its world is not that of {run.folder}; only runs of one world, with "
            "the same settings of it, can be compared"
        )


@contextmanager
def open_arena(run: StoredStepRun, others: Sequence[StoredStepRun]) -> Iterator[Arena]:
    """Open the world, texts included where somebody reads them, and play what is still missing.

    Raises:
        RLRouteError: the world has no test tasks, or does not open.
    """
    recipe = run.recipe
    reading = [one.recipe.policy for one in (run, *others) if is_reading(one.recipe)]
    opened = recipe.model_copy(update={"policy": reading[0]}) if reading else recipe
    with open_stage(opened) as stage:
        if not stage.tasks["test"]:
            raise RLRouteError(f"world '{stage.world.name}': it has no test tasks to evaluate on")
        file = open_rollout_file(recipe, run.folder)
        yield Arena(recipe, stage, file, prepare_facts(recipe, stage, file))


def is_reading(recipe: StepRecipe) -> bool:
    """Tell whether a recipe's policy is a language model."""
    return isinstance(recipe.policy, ChoiceConfig)


def prepare_facts(
    recipe: StepRecipe, stage: Stage, file: RolloutFile
) -> dict[SplitName, SplitFacts]:
    """Play the static policies on all splits, as far as they are missing, and read their facts."""
    settings, facts = recipe.boundary, {}
    rollouts: dict[SplitName, int] = {
        "train": settings.rollouts,
        "val": settings.evaluation_rollouts,
        "test": settings.evaluation_rollouts,
    }
    for split, count in rollouts.items():
        play_boundaries(
            recipe, stage, file, split, count if split == "train" else max(count, PROBES)
        )
        facts[split] = read_split_facts(recipe, stage, file, split, count)
    return facts


# --- Policies -------------------------------------------------------------------------------------


def list_policies(
    run: StoredStepRun, others: Sequence[StoredStepRun], stage: Stage
) -> list[Contender]:
    """Return the run's policy, first of all, and its relatives."""
    name, folder = run.recipe.algorithm.kind, run.folder / BEST_FOLDER
    found = [
        make_contender(name, "policy", run, folder, stage),
        make_contender(f"{name} sampled", "sampled", run, folder, stage, greedy=False),
    ]
    if (run.folder / WARM_START_FOLDER).exists():
        folder = run.folder / WARM_START_FOLDER
        found.append(make_contender("SFT only", "start", run, folder, stage))
    if is_reading(run.recipe):
        found.append(
            Contender(
                "prompted LLM",
                "prompted",
                lambda split: load_prompted(run, stage),
                reads_weight=True,
            )
        )
    for other in others:
        names = [one.folder.resolve().name for one in others]
        alone = names.count(other.folder.resolve().name) == 1
        label = f"run {other.folder.resolve().name if alone else other.folder}"
        found.append(make_contender(label, "run", other, other.folder / BEST_FOLDER, stage))
    return found


def make_contender(
    name: str,
    kind: StepKind,
    run: StoredStepRun,
    folder: Path,
    stage: Stage,
    *,
    greedy: bool = True,
) -> Contender:
    """Return a kept policy of a run, which is loaded when it plays."""

    def load(split: SplitName) -> StepPolicy:
        model, _ = load_policy(folder, run.recipe.policy, stage.world, len(stage.feature_names))
        return act(model, version=run.best["update"], greedy=greedy)

    return Contender(name, kind, load, reads_weight=True)


def load_prompted(run: StoredStepRun, stage: Stage) -> StepPolicy:
    """Return the language model that the run started from, before any training."""
    config = run.recipe.policy
    assert isinstance(config, ChoiceConfig)
    plain = config.model_copy(update={"lora": None})  # fresh adapters would change nothing
    network, encoder = build_choice(
        plain, stage.world.executors, value_head=False, seed=run.recipe.seed
    )
    return act(StepModel(plain, network, encoder), version=0, greedy=True)


def act(model: StepModel, *, version: int, greedy: bool) -> StepPolicy:
    """Return what acts with a model; a language model goes to the GPU where there is one."""
    if isinstance(model.config, ChoiceConfig) and torch.cuda.is_available():
        model.network.to("cuda")
    return make_policy(model, model.network, version=version, greedy=greedy)


# --- Transcripts ----------------------------------------------------------------------------------


def list_transcripts(arena: Arena, policy: StepPolicy) -> list[Transcript]:
    """Return test episodes of a policy, step by step, spread over tasks and settings.

    They are the first rollouts of their tasks, as they were evaluated.
    """
    count = min(arena.recipe.evaluation.transcripts, arena.tasks["test"])
    task_N = np.unique(np.linspace(0, arena.tasks["test"] - 1, count).round().astype(np.int64))
    settings = arena.settings
    found = []
    for place, setting in enumerate(settings):
        rows = task_N[place :: len(settings)]
        if len(rows):
            found += play_transcripts(arena, policy, setting, rows.tolist())
    return found


def play_transcripts(
    arena: Arena, policy: StepPolicy, setting: StepSetting, tasks: Sequence[int]
) -> list[Transcript]:
    """Play the first rollouts of some tasks under a setting, and tell them."""
    stage, facts = arena.stage, arena.facts["test"]
    plan = plan_static(np.array(tasks), arena.plans["test"].world_seed_B[list(tasks)])
    config = fix_setting(arena.recipe.episode, setting.cap, setting.cost_weight)
    moments: dict[int, list[Moment]] = {}
    batch = stage.play(policy, plan, "test", config, facts.yardsticks, moments=moments)
    ends = batch.ends
    assert ends is not None
    found = []
    for row, index in enumerate(tasks):
        task = stage.tasks["test"][index]
        failed = bool(np.isnan(ends.score_B[row]))
        found.append(
            Transcript(
                task=task.id,
                kind=task.task,
                task_class=str(facts.classes[index]),
                cap=setting.cap,
                cost_weight=setting.cost_weight,
                score=None if failed else float(ends.score_B[row]),
                cost_usd=None if failed else float(ends.cost_usd_B[row]),
                calls=int(ends.calls_B[row]),
                exhausted=bool(ends.exhausted_B[row]),
                steps=tuple(tell_steps(arena, batch, row, setting, moments[row])),
            )
        )
    return found


def tell_steps(
    arena: Arena, batch: Batch, row: int, setting: StepSetting, moments: Sequence[Moment]
) -> Iterator[TranscriptStep]:
    """Tell an episode step by step, with what is left of its budget before each."""
    stage, budget = arena.stage, arena.recipe.budget
    counted_K = budget.find_counted(stage.world.executors)
    reading = is_reading(arena.recipe)
    left = setting.cap
    for turn, moment in enumerate(moments):
        feature_F = [] if reading else batch.features_BTF[row, turn].tolist()
        yield TranscriptStep(
            text=moment.text,
            features=dict(zip(stage.feature_names, feature_F, strict=False)),
            allowed=moment.allowed,
            executor=moment.executor,
            probability=moment.probability,
            advised=moment.advised,
            budget_left=left,
            cost_usd=moment.cost_usd,
            note=moment.note,
        )
        if left is not None:
            counted = counted_K[arena.executor_ids.index(moment.executor)]
            left -= float(counted) if budget.unit == "calls" else moment.cost_usd


# --- The report -----------------------------------------------------------------------------------


def make_step_context(
    run: StoredStepRun, arena: Arena, result: StepEvaluation, transcripts: Sequence[Transcript]
) -> StepReportContext:
    """Gather what the report tells besides numbers."""
    recipe, stage = run.recipe, arena.stage
    policy, labels = recipe.policy, run.folder / LABELS_FILE
    described = (
        f"{policy.kind}, {policy.hidden} hidden" if policy.kind != "choice" else policy.model
    )
    unit = "USD" if recipe.budget.unit == "usd" else "counted calls"
    caps = ", ".join("none" if cap is None else f"{cap:g}" for cap in recipe.budget.caps)
    weight = recipe.cost_weight
    algorithm = recipe.algorithm
    versions = ("rlroute", "torch", "python")
    return StepReportContext(
        run_name=run.folder.resolve().name,
        facts={
            "world": f"{recipe.world.kind}: "
            + ", ".join(f"{len(tasks):,} {name}" for name, tasks in stage.tasks.items())
            + f" tasks of at most {stage.world.horizon} steps",
            "executors": ", ".join(arena.executor_ids),
            "policy": described,
            "caps": f"{caps} ({unit}), one drawn for each training episode",
            "cost weight": f"{weight.min:g}"
            if weight.min == weight.max
            else f"{weight.min:g} to {weight.max:g}",
            "warm start": f"{recipe.warm_start.epochs} epochs on experts"
            if recipe.warm_start
            else "none",
            "algorithm": f"{algorithm.kind}, {recipe.updates} updates of {algorithm.episodes} "
            f"episodes; weights of update {result.update}, best {run.best['metric']} on val",
            "seed": str(recipe.seed),
            "command": str(run.facts["command"]),
            "versions": ", ".join(f"{name} {run.facts[name]}" for name in versions),
        },
        executors=stage.world.executors,
        labels=read_json(labels) if labels.exists() else None,
        transcripts=transcripts,
        recipe_yaml=dump_config(recipe),
        history=read_metrics(run.folder),
    )
