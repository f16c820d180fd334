"""What the commands train, evaluate and export do, between the command line and the packages."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from rlroute.config import load_config, read_yaml_mapping
from rlroute.extras import require
from rlroute.run_plans import AnyRecipe, TrainedRecipe, describe_plan
from rlroute.trainers.bandit_recipe import BanditRecipe
from rlroute.trainers.memory_recipe import MemoryRecipe
from rlroute.trainers.recipe import Recipe
from rlroute.trainers.session_recipe import SessionRecipe
from rlroute.trainers.step_recipe import StepRecipe
from rlroute.trainers.text_recipe import TextRecipe
from rlroute.types import RLRouteError

# what stands under `environment` in a recipe, and the settings that it has then
SCHEMAS: dict[str, type[AnyRecipe]] = {
    "single_turn": Recipe,
    "multi_round": TextRecipe,
    "step_budget": StepRecipe,
    "sessions": SessionRecipe,
    "memory_tiers": MemoryRecipe,
    "bandit_stream": BanditRecipe,
}


def run_training(
    recipe_path: Path | None,
    overrides: Sequence[str],
    *,
    run_folder: Path | None,
    overwrite: bool,
    resume: Path | None,
    dry_run: bool,
) -> None:
    """Train as the command line says, or say what would happen.

    Raises:
        RLRouteError: the arguments do not go together, or the run cannot start.
    """
    if (recipe_path is None) == (resume is None):
        raise RLRouteError("train: give either a recipe or --resume RUN")
    moved = [override for override in overrides if not override.startswith("rollout.sampler.")]
    if resume is not None and (moved or run_folder or overwrite or dry_run):
        raise RLRouteError(
            "train: --resume goes on with a run as it is, without other arguments than where its "
            "rollout server is now (rollout.sampler.url=..., rollout.sampler.folder=...)"
        )
    path = find_recipe(resume) if resume else recipe_path
    assert path is not None
    schema = find_schema(path)
    recipe = load_config(schema, path, overrides)
    folder = resume or run_folder or Path("runs") / name_run(recipe)
    if dry_run:
        describe_plan(recipe, folder)
        return
    arguments: dict[str, Any] = {
        "resume": resume is not None,
        "overwrite": overwrite,
        "command": " ".join(["rlroute", *sys.argv[1:]]),
    }
    state = find_trainer(recipe)(recipe, folder, **arguments)
    if isinstance(recipe, BanditRecipe):
        print_bandit_result(state, folder)
        return
    metric = name_metric(recipe)
    Console(stderr=True).print(
        f"trained {state.update} updates in {state.seconds:.1f} s; best on val: "
        f"{metric} {state.best_metric:.4f} at update {state.best_update}\n"
        f"next: rlroute evaluate {folder}; rlroute export {folder} --to DIR",
        highlight=False,
    )


def find_schema(path: Path) -> type[AnyRecipe]:
    """Return the kind of recipe in a file, which its `environment` names.

    Raises:
        RLRouteError: the file cannot be read, or no such environment.
    """
    name = read_yaml_mapping(path).get("environment", "single_turn")
    if name not in SCHEMAS:
        raise RLRouteError(
            f"{path}: environment '{name}' is unknown (allowed: {', '.join(SCHEMAS)})"
        )
    return SCHEMAS[name]


def find_trainer(recipe: AnyRecipe) -> Callable[..., Any]:
    """Return what trains a recipe, its libraries at hand.

    Raises:
        RLRouteError: one is missing; the message names the extra.
    """
    if isinstance(recipe, TextRecipe):
        prepare_text_libraries()
        from rlroute.trainers.text_run import train_text

        return train_text
    require_training_libraries()
    if isinstance(recipe, StepRecipe):
        if recipe.policy.kind == "choice":
            prepare_text_libraries()
        from rlroute.trainers.step_run import train_steps

        return train_steps
    if isinstance(recipe, SessionRecipe):
        from rlroute.trainers.session_run import train_sessions

        return train_sessions
    if isinstance(recipe, MemoryRecipe):
        from rlroute.trainers.memory_run import train_memory

        return train_memory
    if isinstance(recipe, BanditRecipe):
        from rlroute.trainers.bandit_run import train_bandits

        return train_bandits
    from rlroute.trainers.decision import train

    return train


def prepare_text_libraries() -> None:
    """Make sure that text policies can be trained, and have the libraries say only what matters.

    Raises:
        RLRouteError: one is missing; the message names the extra.
    """
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # its hooks are held by our tests
    silence_deepspeed()
    warnings.filterwarnings("ignore", ".*gradient_checkpointing.*deprecated", FutureWarning)
    for name in ("datasets", "peft", "transformers", "trl"):
        library = require(name, "text")
        if name == "datasets":
            library.disable_progress_bars()
        if name == "transformers":
            library.utils.logging.disable_progress_bar()


def silence_deepspeed() -> None:
    """Tell DeepSpeed, where it is installed, that there is no GPU: it would warn at every start."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def require_training_libraries() -> None:
    """Raise RLRouteError, naming the extra, unless training and reports can run."""
    silence_deepspeed()
    for name in ("accelerate", "gymnasium", "jinja2", "matplotlib"):
        require(name, "train")


def name_run(recipe: AnyRecipe) -> str:
    """Return the default name of a run."""
    if isinstance(recipe, BanditRecipe):
        source = "irt" if recipe.table is None else Path(recipe.table).name
        return f"stream-{source}-s{recipe.seeds[0]}"
    if isinstance(recipe, Recipe):
        subject = Path(recipe.table).name
    elif isinstance(recipe, TextRecipe):
        subject = recipe.questions.kind
    elif isinstance(recipe, StepRecipe):
        subject = f"{recipe.world.kind}-{recipe.policy.kind}"
    elif isinstance(recipe, MemoryRecipe):
        subject = f"memory-{recipe.data.kind}-{recipe.outcomes.kind}"
    else:
        subject = f"sessions-{recipe.sessions.kind}"
    return f"{subject}-{recipe.algorithm.kind}-s{recipe.seed}"


def name_metric(recipe: TrainedRecipe) -> str:
    """Return what the best weights of a run are chosen by."""
    if isinstance(recipe, TextRecipe):
        return "reward"
    return "return" if isinstance(recipe, SessionRecipe) else recipe.validation.metric


def find_recipe(folder: Path) -> Path:
    """Return where the recipe lies that a run was started with."""
    from rlroute.trainers.run_folder import RECIPE_FILE

    return folder / RECIPE_FILE


def find_run_schema(folder: Path) -> type[AnyRecipe]:
    """Return the kind of recipe that a run was trained with.

    Raises:
        RLRouteError: no run lies in the folder.
    """
    path = find_recipe(folder)
    if not path.exists():
        raise RLRouteError(f"{folder}: no run lies here ({path.name} is missing)")
    return find_schema(path)


def evaluate_run(folder: Path, beside: Sequence[Path] = ()) -> None:
    """Compare a run's policy with the baselines on the test split, and write the report.

    Raises:
        RLRouteError: no finished run lies there, its table has changed, or `beside` is given and
            runs of its kind are not shown beside each other.
    """
    schema = find_run_schema(folder)
    if beside and schema not in (StepRecipe, MemoryRecipe, Recipe):
        raise RLRouteError(
            "evaluate: --beside is for runs of environment step_budget or memory_tiers, and of "
            "single_turn with hold_out_candidates"
        )
    if schema is TextRecipe:
        prepare_text_libraries()
        from rlroute.text_runs import evaluate_text_run

        evaluate_text_run(folder)
        return
    require_training_libraries()
    if schema is StepRecipe:
        from rlroute.step_runs import evaluate_step_run

        evaluate_step_run(folder, beside=beside)
        return
    if schema is SessionRecipe:
        from rlroute.trainers.session_evaluation import evaluate_session_run

        evaluate_session_run(folder)
        return
    if schema is MemoryRecipe:
        from rlroute.memory_runs import evaluate_memory_run

        evaluate_memory_run(folder, beside=beside)
        return
    if schema is BanditRecipe:
        from rlroute.trainers.bandit_run import evaluate_bandit_run

        print_bandit_result(evaluate_bandit_run(folder), folder)
        return
    from rlroute.table_runs import evaluate_table_run

    evaluate_table_run(folder, beside=beside)


def print_bandit_result(result: Any, folder: Path) -> None:
    """Print what online learners made of their streams."""
    from rlroute.evaluation.bandit_comparison import describe_bandits, render_bandits

    console = Console()
    console.print(render_bandits(result))
    for sentence in describe_bandits(result):
        console.print(sentence, highlight=False)
    console.print(f"report: {folder / 'report.html'}", highlight=False)


def export_run(folder: Path, to: Path, add: Sequence[Path] = ()) -> None:
    """Write the run's router as a folder that the `load` of `Router` or of its like reads.

    `add` are tables with results of candidates that are added by their profiles.

    Raises:
        RLRouteError: no finished run lies there, `to` holds something else, or candidates are
            added to something else than a single-turn router.
    """
    schema = find_run_schema(folder)
    if add and schema is not Recipe:
        raise RLRouteError("export: --add is for runs of environment single_turn")
    if schema is TextRecipe:
        prepare_text_libraries()
        from rlroute.text_runs import export_text_run

        export_text_run(folder, to)
        return
    if schema is StepRecipe:
        from rlroute.step_export import export_step_run

        export_step_run(folder, to)
        return
    if schema is MemoryRecipe:
        from rlroute.tier_export import export_memory_run

        export_memory_run(folder, to)
        return
    if schema is SessionRecipe:
        raise RLRouteError("export: runs of environment sessions have no exported form yet")
    if schema is BanditRecipe:
        require_training_libraries()
        from rlroute.stream_runs import export_stream_run

        export_stream_run(folder, to)
        return
    from rlroute.table_runs import export_table_run

    export_table_run(folder, to, add)
