"""What `rlroute evaluate` and `rlroute export` do with a run of a text policy.

What it is: evaluate plays the policy that validation chose (best/) on this machine, whatever served
it in training, and leaves evaluation.json, frontier.png, curves.png and report.html in the run's
folder. Export writes it with the rules of its episodes.

What it leaves out: who plays against whom (`rlroute.trainers.text_evaluation`), the exported folder
(`rlroute.export.text_bundle`).

How to use: `evaluate_text_run(Path("runs/mine"))`, `export_text_run(Path("runs/mine"), folder)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from rlroute.config import dump_config, load_config
from rlroute.evaluation.text_comparison import describe_text_result, render_text_comparison
from rlroute.evaluation.text_report import EVALUATION_FILE, TextReportContext, write_text_report
from rlroute.evaluation.text_results import TextEvaluation
from rlroute.export.text_bundle import TextBundle, summarise_text_test, write_text_bundle
from rlroute.pool.open import list_candidates
from rlroute.pool.pool_file import load_pool
from rlroute.pool.relations import RelationsWorld
from rlroute.rewards.charge import PercentileWindowConfig
from rlroute.rewards.multi_round import MultiRoundReward
from rlroute.rollout.policy_files import load_policy
from rlroute.rollout.samplers.transformers import TransformersSampler
from rlroute.tracking import read_metrics
from rlroute.trainers.run_folder import BEST_FILE, BEST_FOLDER, RECIPE_FILE, RUN_FILE, read_json
from rlroute.trainers.text_evaluation import Stage, compare
from rlroute.trainers.text_problem import TextProblem, TextRollouts, build_problem
from rlroute.trainers.text_recipe import (
    PretrainedConfig,
    RelationsQuestions,
    TextRecipe,
    TransformersSamplerConfig,
)
from rlroute.types import Candidate, RLRouteError

WARM_START_FOLDER = "warm_start"
CHECKPOINTS = "trainer/checkpoint-*/rlroute.json"


@dataclass(frozen=True)
class StoredRun:
    """A text run as read from its folder; `best` says which update validation chose, and why."""

    folder: Path
    recipe: TextRecipe
    facts: dict[str, Any]
    best: dict[str, Any]


def read_text_run(folder: Path) -> StoredRun:
    """Read a run folder.

    Raises:
        RLRouteError: no text run lies there, a file is torn, or no policy was kept yet.
    """
    recipe = load_config(TextRecipe, folder / RECIPE_FILE)
    if not (folder / BEST_FOLDER / BEST_FILE).exists():
        raise RLRouteError(
            f"{folder}: the run has not kept a policy yet ({BEST_FOLDER}/ is missing)"
        )
    best = read_json(folder / BEST_FOLDER / BEST_FILE)
    return StoredRun(folder, recipe, read_json(folder / RUN_FILE), best)


# --- Evaluate -------------------------------------------------------------------------------------


def evaluate_text_run(folder: Path) -> TextEvaluation:
    """Compare a run's policy with the baselines on the test questions, and write the report.

    Raises:
        RLRouteError: no finished run lies there, questions, pool or policy cannot be had, or every
            episode of the policy had a failed call.
    """
    run = read_text_run(folder)
    with Console(stderr=True).status("loading the policy and opening the pool"):
        problem = build_problem(run.recipe)
        reward = restore_reward(run)
        precision, warm = run.recipe.policy.precision, folder / WARM_START_FOLDER
        model, tokenizer = load_policy(folder / BEST_FOLDER, precision)
        start = load_policy(warm, precision)[0] if warm.exists() else None
    with open_rollouts(run.recipe, problem, model, tokenizer) as rollouts:
        stage = Stage(run.recipe, problem, rollouts, reward)
        with Console(stderr=True).status("") as status:
            result = compare(stage, model, start, update=run.best["update"], tell=status.update)
    write_text_report(folder, result, make_text_context(run, problem, result))
    console = Console()
    console.print(render_text_comparison(result))
    for sentence in describe_text_result(result):
        console.print(sentence, highlight=False)
    console.print(f"report: {folder / 'report.html'}", highlight=False)
    return result


def restore_reward(run: StoredRun) -> MultiRoundReward:
    """Return the run's reward with the state of its last checkpoint; scoring does not move it.

    Raises:
        RLRouteError: it needs a window of charges, and no checkpoint holds one.
    """
    reward = MultiRoundReward(run.recipe.reward)
    found = sorted(
        run.folder.glob(CHECKPOINTS),
        key=lambda path: int(path.parent.name.removeprefix("checkpoint-")),
    )
    if found:
        reward.set_state(read_json(found[-1])["reward"])
    elif isinstance(run.recipe.reward.normaliser, PercentileWindowConfig):
        raise RLRouteError(
            f"{run.folder}: no checkpoint holds the window of charges that rewards are reckoned by"
        )
    return reward


@contextmanager
def open_rollouts(
    recipe: TextRecipe, problem: TextProblem, model: Any, tokenizer: Any
) -> Iterator[TextRollouts]:
    """Yield what plays episodes here; a failed call never ends the evaluation."""
    stated = recipe.rollout
    here = stated.sampler
    if not isinstance(here, TransformersSamplerConfig):  # a server may long be gone
        here = TransformersSamplerConfig()
    sampler = TransformersSampler(model, tokenizer, max_batch=here.max_batch)
    on_failure = "retry" if stated.on_failure == "retry" else "drop"
    gentle = recipe.model_copy(
        update={"rollout": stated.model_copy(update={"on_failure": on_failure})}
    )
    rollouts = TextRollouts(problem, gentle, tokenizer, sampler)
    try:
        yield rollouts
    finally:
        rollouts.close()


def make_text_context(
    run: StoredRun, problem: TextProblem, result: TextEvaluation
) -> TextReportContext:
    """Gather what the report tells besides numbers."""
    recipe = run.recipe
    base = recipe.policy.base
    model = base.model if isinstance(base, PretrainedConfig) else f"new, {base.layers} layers"
    start = recipe.warm_start
    sizes = {"train": problem.train, "val": problem.val, "test": problem.test}
    optimum = float(np.mean([one.reward for one in result.optima])) if result.optima else None
    return TextReportContext(
        run_name=run.folder.resolve().name,
        facts={
            "questions": f"{recipe.questions.kind}: "
            + ", ".join(f"{len(queries):,} {name}" for name, queries in sizes.items()),
            "candidates": ", ".join(result.candidate_ids),
            "model": model,
            "warm start": f"{start.episodes:,} scripted episodes ({start.planner})"
            if start
            else "none",
            "algorithm": f"{recipe.algorithm.kind}, {recipe.updates} updates of "
            f"{recipe.algorithm.episodes} episodes; weights of update {result.update}, best reward "
            f"on val",
            "seed": str(recipe.seed),
            "command": str(run.facts["command"]),
            "versions": ", ".join(
                f"{name} {run.facts[name]}"
                for name in ("rlroute", "torch", "transformers", "trl", "python")
            ),
        },
        candidates=tuple(problem.candidates),
        recipe_yaml=dump_config(recipe),
        history=read_metrics(run.folder),
        optimum_reward=optimum,
    )


# --- Export ---------------------------------------------------------------------------------------


def export_text_run(folder: Path, to: Path) -> None:
    """Write the run's policy as a folder that `TextRouter.load` reads.

    Raises:
        RLRouteError: no finished run lies there, or `to` holds something.
    """
    run = read_text_run(folder)
    recipe = run.recipe
    bundle = TextBundle(
        environment=recipe.episode,
        candidates=find_candidates(recipe),
        max_new_tokens=recipe.rollout.max_new_tokens,
        context_tokens=recipe.rollout.context_tokens,
        precision=recipe.policy.precision,
        summary=summarise_text_run(run),
    )
    write_text_bundle(bundle, folder / BEST_FOLDER, to)
    Console(stderr=True).print(f"router written to {to}", highlight=False)


def find_candidates(recipe: TextRecipe) -> tuple[Candidate, ...]:
    """Return whom the policy learnt to ask; nothing is opened, no key is read."""
    if isinstance(recipe.questions, RelationsQuestions):
        return RelationsWorld(recipe.questions.world).candidates
    assert recipe.pool is not None  # the recipe's own check
    return tuple(list_candidates(load_pool(recipe.pool)).values())


def summarise_text_run(run: StoredRun) -> dict[str, Any]:
    """Return what the export says of its training; test numbers only of these very weights."""
    recipe = run.recipe
    base = recipe.policy.base
    summary: dict[str, Any] = {
        "questions": recipe.questions.kind,
        "base_model": base.model if isinstance(base, PretrainedConfig) else "new",
        "algorithm": recipe.algorithm.kind,
        "seed": recipe.seed,
        "updates": recipe.updates,
        "best": {name: run.best[name] for name in ("update", "metric", "reward")},
    }
    path = run.folder / EVALUATION_FILE
    if path.exists():
        evaluation = read_json(path)
        if evaluation["update"] == run.best["update"]:
            summary["test"] = summarise_text_test(evaluation)
    return summary
