"""What `rlroute evaluate` does with a run of memory-tier routing.

What it is: it plays the policy that validation chose, greedily at every cost weight of the sweep,
on the test questions, beside other runs of the same pipeline and all baselines, and leaves
evaluation.json, the pictures, questions.jsonl and report.html in the run's folder. Where outcomes
are tabulated, the test tree is made now; where the pipeline runs live, only what can be played is
compared: the policies, the static levels and random tiers.

What it leaves out: how they are compared (`rlroute.evaluation.memory_measures`), the baselines
(`rlroute.policies.tier_baselines`).

How to use: `evaluate_memory_run(Path("runs/mine"), beside=[Path("runs/joint")])`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from rlroute.config import dump_config, load_config, read_yaml_mapping
from rlroute.evaluation.memory_comparison import describe_memory_result, render_memory_comparison
from rlroute.evaluation.memory_measures import MemoryFrame, MemoryPlays, measure_memory
from rlroute.evaluation.memory_report import (
    REPORT_FILE,
    MemoryReportContext,
    WorkedModule,
    WorkedQuestion,
    write_memory_report,
)
from rlroute.evaluation.memory_results import MemoryEvaluation, MemoryModule
from rlroute.evaluation.memory_table import TierPlayed, TierTable, play_tiers
from rlroute.memory.audit import TierAudit, TierRow, list_audit_cells
from rlroute.memory.base import Chunk, MemoryQuestion, ModuleRun
from rlroute.memory.outcomes import PipelineFacts, TierOutcomes
from rlroute.memory.tree import TierTree
from rlroute.policies.decision import Decisions
from rlroute.policies.tier_baselines import (
    fit_tier_baselines,
    list_level_statics,
    pick_oracle_leaves,
    play_baseline,
)
from rlroute.policies.tier_scorer import TierScorerPolicy
from rlroute.policies.tierwise import TierInputs
from rlroute.seeding import draw_uniform
from rlroute.tracking import read_metrics
from rlroute.trainers.decision import make_cost_weights
from rlroute.trainers.memory_problem import play_greedily
from rlroute.trainers.memory_recipe import MemoryRecipe
from rlroute.trainers.memory_run import (
    AUDIT_FILE,
    check_format,
    load_best_scorer,
    read_cost_facts,
)
from rlroute.trainers.memory_stage import MemoryStage, open_memory_stage
from rlroute.trainers.run_folder import BEST_FILE, BEST_FOLDER, RECIPE_FILE, RUN_FILE, read_json
from rlroute.types import RLRouteError, SplitName, UsdArray

ENVIRONMENT = "memory_tiers"


@dataclass(frozen=True)
class StoredMemoryRun:
    """A run as read from its folder; `best` says which update was chosen, and why."""

    folder: Path
    recipe: MemoryRecipe
    facts: dict[str, Any]
    best: dict[str, Any]


def read_memory_run(folder: Path) -> StoredMemoryRun:
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
    facts = read_json(folder / RUN_FILE)
    check_format(folder, facts)
    if not (folder / BEST_FOLDER / BEST_FILE).exists():
        raise RLRouteError(
            f"{folder}: the run has not kept a policy yet ({BEST_FOLDER}/ is missing)"
        )
    best = read_json(folder / BEST_FOLDER / BEST_FILE)
    return StoredMemoryRun(folder, load_config(MemoryRecipe, path), facts, best)


def evaluate_memory_run(folder: Path, beside: Sequence[Path] = ()) -> MemoryEvaluation:
    """Compare a run's policy with baselines and other runs on test; write and print the report.

    Raises:
        RLRouteError: no finished run lies there, a run beside it is of another pipeline, or data,
            models or a policy cannot be had.
    """
    run = read_memory_run(folder)
    others = [read_memory_run(path) for path in beside]
    for other in others:
        check_same_pipeline(run, other)
    recipe, costs = run.recipe, read_cost_facts(folder)
    weights = make_cost_weights(recipe.cost_weight, recipe.evaluation.cost_weights)
    with open_memory_stage(recipe, folder) as stage:
        test = stage.open_outcomes("test")
        modules = describe_modules(test.facts)
        contenders = [
            play_policy(one, stage, test, weights, read_cost_facts(one.folder).reference_usd)
            for one in (run, *others)
        ]
        table = make_table(test) if isinstance(test, TierTree) else None
        with Console(stderr=True).status("playing the baselines and resampling"):
            contenders += list_baselines(stage, test, table, weights, costs.reference_usd)
            frame = MemoryFrame(
                data=stage.data.name,
                modules=modules,
                kind_Q=list_kinds(test.questions),
                history_Q=list_histories(test.questions),
                cost_weights=tuple(weights),
                reference_usd=costs.reference_usd,
                bootstrap=recipe.evaluation.bootstrap,
                seed=recipe.seed,
                update=run.best["update"],
            )
            result = measure_memory(contenders, frame, table)
            worked = work_questions(run, stage, test, table, weights, costs.reference_usd)
            context = make_context(run, others, stage, worked)
            write_memory_report(folder, result, context)
    console = Console()
    console.print(render_memory_comparison(result))
    for sentence in describe_memory_result(result):
        console.print(sentence, highlight=False, markup=False)
    console.print(f"report: {folder / REPORT_FILE}", highlight=False, markup=False)
    return result


def check_same_pipeline(run: StoredMemoryRun, other: StoredMemoryRun) -> None:
    """Refuse to show runs beside each other whose outcomes, or what policies see, are not the same.

    Raises:
        RLRouteError: they are not.
    """
    for key in ("pipeline", "questions", "encoder"):
        if run.facts[key] != other.facts[key]:
            raise RLRouteError(
                f"evaluate: {other.folder} and {run.folder} differ in their {key}, and runs beside "
                "each other must answer the same questions through the same pipeline, and read "
                "them by the same encoder"
            )


# --- Contenders -----------------------------------------------------------------------------------


def describe_modules(facts: PipelineFacts) -> tuple[MemoryModule, ...]:
    """Return the modules as an evaluation names them."""
    return tuple(MemoryModule(one.name, one.role, one.tiers) for one in facts.modules)


def list_kinds(questions: Sequence[MemoryQuestion]) -> tuple[str, ...]:
    """Return the kind of each question."""
    return tuple(question.query.task or "question" for question in questions)


def list_histories(questions: Sequence[MemoryQuestion]) -> tuple[str, ...]:
    """Return the history of each question."""
    return tuple(question.history_id for question in questions)


def make_table(tree: TierTree) -> TierTable:
    """Lay a tree out as the arrays that an evaluation works on."""
    return TierTable(
        score_QL=tree.leaf_score_QL,
        cost_usd_QL=tree.leaf_cost_QL,
        answer_cost_usd_QL=tree.answer_cost_QL,
        kind_Q=list_kinds(tree.questions),
        history_Q=list_histories(tree.questions),
        query_QE=tree.query_QE,
        leaf_tier_LM=tree.facts.list_leaves(),
        modules=describe_modules(tree.facts),
    )


def play_policy(
    run: StoredMemoryRun,
    stage: MemoryStage,
    test: TierOutcomes,
    cost_weights: Sequence[float],
    reference_usd: float,
) -> MemoryPlays:
    """Return what a run's greedy policy gets at each cost weight.

    `reference_usd` is the run's own: the unit of what it sees that was spent.
    """
    scorer, _ = load_best_scorer(run.folder, run.recipe, stage)
    policy = TierScorerPolicy(scorer, greedy=True)
    plays = [play(policy, test, weight, reference_usd) for weight in cost_weights]
    subject = run.recipe is stage.recipe
    name = run.recipe.algorithm.kind if subject else f"run {run.folder.name}"
    return MemoryPlays(name, "policy" if subject else "run", tuple(plays))


def play(policy: Any, test: TierOutcomes, weight: float, reference_usd: float) -> TierPlayed:
    """Play every test question once."""
    found = play_greedily(policy, test, weight, reference_usd)
    modules = describe_modules(test.facts)
    return play_tiers(
        *(found.score_Q, found.cost_usd_Q, found.answer_cost_usd_Q, found.tier_QM, modules)
    )


@dataclass(frozen=True)
class DrawnTiers:
    """Takes the same tiers for every question, or (None) tiers drawn from the seed."""

    tier_M: tuple[int, ...] | None
    seed: int = 0
    version: int = 0

    def decide(self, inputs: TierInputs, uniform_B: UsdArray) -> Decisions:
        """Decide for B lanes."""
        lanes = len(inputs.mask_BK)
        nothing_B = np.zeros(lanes, dtype=np.float32)
        if self.tier_M is not None:
            action_B = np.full(lanes, self.tier_M[inputs.module], dtype=np.int64)
        else:
            drawn_B = draw_uniform(self.seed, "tiers", inputs.module, np.arange(lanes))
            action_B = (drawn_B * inputs.mask_BK.sum(axis=1)).astype(np.int64)
        return Decisions(action_B, nothing_B, nothing_B)


def list_baselines(
    stage: MemoryStage,
    test: TierOutcomes,
    table: TierTable | None,
    cost_weights: Sequence[float],
    reference_usd: float,
) -> list[MemoryPlays]:
    """Return all baselines on a tree; on a live pipeline those that can be played."""
    if table is not None:
        splits: tuple[SplitName, ...] = ("train", "val")
        train, val = (make_table(stage.open_tree(split)) for split in splits)
        fitted = fit_tier_baselines(train, val, reference_usd)
        return [play_baseline(one, table, cost_weights) for one in fitted]
    leaves = test.facts.list_leaves()
    found = []
    for one in list_level_statics(leaves, describe_modules(test.facts)):
        tiers = DrawnTiers(tuple(leaves[one.leaf].tolist()))
        played = play(tiers, test, 0.0, reference_usd)
        found.append(MemoryPlays(one.name, "static", (played,) * len(cost_weights)))
    drawn = play(DrawnTiers(None, stage.recipe.seed), test, 0.0, reference_usd)
    return [*found, MemoryPlays("random", "random", (drawn,) * len(cost_weights))]


# --- What the report shows besides ----------------------------------------------------------------


def work_questions(
    run: StoredMemoryRun,
    stage: MemoryStage,
    test: TierOutcomes,
    table: TierTable | None,
    cost_weights: Sequence[float],
    reference_usd: float,
) -> list[WorkedQuestion]:
    """Return some test questions from beginning to end, at the middle cost weight."""
    weight = cost_weights[len(cost_weights) // 2]
    scorer, _ = load_best_scorer(run.folder, run.recipe, stage)
    found = play_greedily(TierScorerPolicy(scorer, greedy=True), test, weight, reference_usd)
    chosen = choose_examples(list_kinds(test.questions), run.recipe.evaluation.examples)
    questions = [test.questions[q] for q in chosen]
    traces = asyncio.run(stage.pipeline.run(questions, found.tier_QM[chosen].tolist()))
    oracle_Q = None if table is None else pick_oracle_leaves(table, weight, reference_usd)
    rows = []
    for q, trace in zip(chosen, traces, strict=True):
        best_M, best_score, best_cost = None, None, None
        if table is not None and oracle_Q is not None and table.present_QL[q].any():
            leaf = int(oracle_Q[q])
            best_M = table.leaf_tier_LM[leaf].tolist()
            best_score = float(table.score_QL[q, leaf])
            best_cost = float(table.cost_usd_QL[q, leaf])
        modules = [
            WorkedModule(
                name=module.name,
                tier=module.tiers[trace.tiers[m]],
                text=write_output(trace.runs[m]),
                cost_usd=None if trace.runs[m].failure else trace.runs[m].cost_usd,
                oracle_tier=None if best_M is None else module.tiers[best_M[m]],
            )
            for m, module in enumerate(test.facts.modules)
        ]
        failed = trace.failure is not None
        rows.append(
            WorkedQuestion(
                question=trace.question.query.text,
                gold=trace.question.query.references,
                kind=trace.question.query.task,
                cost_weight=weight,
                modules=tuple(modules),
                answer=trace.answer.text,
                score=None if failed else stage.data.grade(trace.question, trace.answer.text),
                cost_usd=None if failed else trace.cost_usd,
                answer_cost_usd=None if failed else trace.answer.cost_usd,
                oracle_score=best_score,
                oracle_cost_usd=best_cost,
            )
        )
    return rows


def choose_examples(kind_Q: Sequence[str], count: int) -> list[int]:
    """Return the places of `count` questions, the kinds taking turns."""
    by_kind: dict[str, list[int]] = {}
    for q, kind in enumerate(kind_Q):
        by_kind.setdefault(kind, []).append(q)
    turns = [
        (turn, number, places[turn])
        for number, places in enumerate(by_kind.values())
        for turn in range(len(places))
    ]
    return [place for _, _, place in sorted(turns)[:count]]


def write_output(run: ModuleRun) -> str:
    """Return what a module returned, as text."""
    if run.failure is not None:
        return f"failed: {run.failure}"
    if isinstance(run.output, str):
        return run.output
    lines = [one.text if isinstance(one, Chunk) else one for one in run.output]
    return "\n".join(lines) if lines else "(nothing)"


def make_context(
    run: StoredMemoryRun,
    others: Sequence[StoredMemoryRun],
    stage: MemoryStage,
    worked: Sequence[WorkedQuestion],
) -> MemoryReportContext:
    """Gather what the report tells besides numbers."""
    recipe, audit = run.recipe, read_json(run.folder / AUDIT_FILE)
    found = TierAudit(tuple(TierRow(**row) for row in audit["rows"]))
    columns, cells = list_audit_cells(found)
    models = "simulated language models" if recipe.models.kind == "simulated" else "a pool's models"
    facts = {
        "data": f"{stage.data.name}, "
        + ", ".join(f"{split} {len(questions):,}" for split, questions in stage.questions.items()),
        "models": models,
        "answered by": "the scripted reader, a program"
        if recipe.pipeline.answerer.kind == "reader"
        else f"the language model {recipe.pipeline.answerer.candidate}",
        "outcomes": recipe.outcomes.kind,
        "policy reads": f"{stage.encoder.kind}, {stage.encoder.dimension} dimensions",
        "algorithm": f"{recipe.algorithm.kind} (weights of update {run.best['update']}, "
        f"best {run.best['metric']} on validation)",
        "seed": str(recipe.seed),
        "command": run.facts["command"],
    } | {name: run.facts[name] for name in ("rlroute", "torch", "python")}
    return MemoryReportContext(
        run_name=run.folder.name,
        facts=facts,
        recipe_yaml=dump_config(recipe),
        questions=worked,
        audit_columns=columns,
        audit_rows=cells,
        audit_notes=audit["equal_costs"],
        histories={one.folder.name: read_metrics(one.folder) for one in (run, *others)},
    )
