"""What `rlroute sweep` does: one recipe over seeds and settings, in parallel processes.

What it is: every (setting, seed) is a run of its own folder, trained and evaluated by `rlroute
train` and `rlroute evaluate` in processes of one thread. The same command goes on after an
interruption: finished runs are kept, torn ones resumed. A run that fails is reported at the end and
stops no other. The folder then holds

    runs/NAME     a run with its own report          logs/NAME.log   what its processes said
    sweep.json    sweep.md    sweep.png              the merged report over seeds

Recipes are of environment single_turn or bandit_stream; a run of the latter plays the streams of
one seed.

What it leaves out: recipes of other kinds, several machines, and the numbers of the merged report
(`rlroute.evaluation.sweep_report` and `bandit_sweep`).

How to use: `rlroute sweep recipe.yaml --seeds 0,1,2 --set policy.hidden=64,256 --jobs 2`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console

from rlroute.config import dump_config, load_config
from rlroute.tracking import METRICS_FILE, make_progress
from rlroute.trainers.bandit_recipe import BanditRecipe
from rlroute.trainers.recipe import Recipe
from rlroute.types import RLRouteError

if TYPE_CHECKING:
    from rich.table import Table

SEED_KEYS = ("seed", "seeds")  # of a recipe with one, of one with a list
REGRET_FILE = "regret.json"  # of a run of streams, written when all are through
NAME_LIMIT = 100
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
POLL_SECONDS = 0.5
STOP_SECONDS = 10.0
# what a start that was cut short leaves: a folder without a recipe that holds nothing else
STARTED = ("encoder", "clusters.safetensors", "candidates.json", "run.json")


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep: its setting in words, its seed, its overrides and resolved recipe."""

    name: str
    setting: str
    seed: int
    overrides: tuple[str, ...]
    recipe: Recipe | BanditRecipe
    folder: Path
    log: Path


@dataclass
class Processes:
    """The processes that run now, so that an interruption can end them; no more may then start."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    running: set[subprocess.Popen[bytes]] = field(default_factory=set)
    stopped: bool = False

    def call(self, arguments: Sequence[str], log: Path) -> int:
        """Run `python -m rlroute ...`, append what it says to a log, return its exit code."""
        with log.open("ab") as file:
            file.write(f"$ rlroute {' '.join(arguments)}\n".encode())
            file.flush()
            with self.lock:
                if self.stopped:
                    return 1
                process = subprocess.Popen(
                    [sys.executable, "-m", "rlroute", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=os.environ | THREADS,
                )
                self.running.add(process)
            code = process.wait()
        with self.lock:
            self.running.discard(process)
        return code

    def stop(self) -> None:
        """End what runs; it can be resumed."""
        with self.lock:
            self.stopped = True
            running = list(self.running)
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def run_sweep(
    recipe_path: Path,
    overrides: Sequence[str],
    seeds: str,
    settings: Sequence[str],
    *,
    jobs: int | None,
    out: Path | None,
) -> bool:
    """Train, evaluate and report; return whether every run came through.

    Raises:
        RLRouteError: the arguments do not fit, a folder holds a run of other settings (nothing
            has been trained then), or not one run came through.
    """
    from rlroute.runs import require_training_libraries

    require_training_libraries()
    folder = out or Path("runs") / f"sweep-{recipe_path.stem}"
    plan = plan_sweep(recipe_path, overrides, parse_seeds(seeds), settings, folder)
    for run in plan:
        check_folder(run)
    console = Console(stderr=True)
    failures = run_all(plan, min(jobs or count_cores(), len(plan)), recipe_path, console)
    for name, reason in failures.items():
        console.print(f"failed: {name}: {reason}", highlight=False, style="red")
    finished = [run for run in plan if run.name not in failures]
    if not finished:
        raise RLRouteError(f"sweep: none of {len(plan)} runs came through; see {folder / 'logs'}")
    Console().print(report_runs(folder, finished, failures))
    console.print(f"report: {folder / 'sweep.md'}", highlight=False, soft_wrap=True)
    return not failures


def report_runs(folder: Path, finished: Sequence[PlannedRun], failures: Mapping[str, str]) -> Table:
    """Write the merged report of the runs that came through; return it for the terminal."""
    if isinstance(finished[0].recipe, BanditRecipe):
        from rlroute.evaluation.bandit_sweep import (
            read_stream_result,
            render_stream_sweep,
            write_stream_sweep,
        )

        streams = [
            read_stream_result(run.folder / REGRET_FILE, run.setting, run.seed) for run in finished
        ]
        return render_stream_sweep(write_stream_sweep(folder, streams, failures))
    from rlroute.evaluation.sweep_report import read_seed_result, render_sweep, write_sweep
    from rlroute.table_runs import EVALUATION_FILE

    results = [
        read_seed_result(run.folder / EVALUATION_FILE, run.setting, run.seed) for run in finished
    ]
    return render_sweep(write_sweep(folder, results, failures))


# --- The plan -------------------------------------------------------------------------------------


def parse_seeds(text: str) -> list[int]:
    """Return the seeds of "0,1,2".

    Raises:
        RLRouteError: something else than whole numbers from 0 on, or one twice.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"\d+", part) for part in parts):
        raise RLRouteError(f"--seeds '{text}': write whole numbers with commas, such as 0,1,2")
    seeds = [int(part) for part in parts]
    if len(set(seeds)) < len(seeds):
        raise RLRouteError(f"--seeds '{text}': a seed stands there twice")
    return seeds


def parse_setting(text: str) -> tuple[str, list[str]]:
    """Return the key of "key=v1,v2" and an override for each value; commas in brackets stay.

    Raises:
        RLRouteError: no key, no value, one twice, or the seed, which has its own option.
    """
    key, separator, values = text.partition("=")
    if not separator or not key or not values.strip():
        raise RLRouteError(f"--set '{text}': write key=value1,value2")
    if key in SEED_KEYS:
        raise RLRouteError("--set: seeds are given by --seeds")
    try:
        parsed = yaml.safe_load(f"[{values}]")
    except yaml.YAMLError:
        raise RLRouteError(f"--set '{text}': the values are not valid YAML") from None
    try:
        shown = [value if isinstance(value, str) else json.dumps(value) for value in parsed]
    except TypeError:  # a date, which no setting is
        raise RLRouteError(f"--set '{text}': values must be numbers, words or lists") from None
    if len(set(shown)) < len(shown):
        raise RLRouteError(f"--set '{text}': a value stands there twice")
    return key, [f"{key}={value}" for value in shown]


def plan_sweep(
    recipe_path: Path,
    overrides: Sequence[str],
    seeds: Sequence[int],
    settings: Sequence[str],
    folder: Path,
) -> list[PlannedRun]:
    """Return all runs, setting by setting; every recipe is resolved and checked.

    Raises:
        RLRouteError: a recipe of another kind, or a setting that does not fit.
    """
    from rlroute.runs import find_schema

    schema = find_schema(recipe_path)
    if schema not in (Recipe, BanditRecipe):
        raise RLRouteError(
            f"{recipe_path}: sweep takes recipes of environment single_turn or bandit_stream"
        )
    if any(override.partition("=")[0] in SEED_KEYS for override in overrides):
        raise RLRouteError("sweep: seeds are given by --seeds")
    parsed = [parse_setting(text) for text in settings]
    keys = [key for key, _ in parsed]
    if len(set(keys)) < len(keys):
        raise RLRouteError("sweep: a key stands in two --set; give all its values in one")
    plan = []
    for chosen in itertools.product(*(values for _, values in parsed)):
        for seed in seeds:
            setting = ", ".join(chosen) or "recipe as it is"
            name = name_run(chosen, seed)
            recipe: Recipe | BanditRecipe
            if schema is BanditRecipe:
                own = (*overrides, *chosen, f"seeds=[{seed}]")
                recipe = load_config(BanditRecipe, recipe_path, own)
            else:
                own = (*overrides, *chosen, f"seed={seed}")
                recipe = load_config(Recipe, recipe_path, own)
            run_folder, log = folder / "runs" / name, folder / "logs" / f"{name}.log"
            plan.append(PlannedRun(name, setting, seed, own, recipe, run_folder, log))
    return plan


def name_run(chosen: Sequence[str], seed: int) -> str:
    """Return a folder name that tells setting and seed, and is another for every setting."""
    text = ",".join(chosen) or "base"
    plain = re.sub(r"[^A-Za-z0-9._=,+-]", "_", text)[:NAME_LIMIT]
    if plain != text:  # two settings could look alike now
        plain += "-" + hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{plain}-s{seed}"


def count_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# --- The runs -------------------------------------------------------------------------------------


def check_folder(run: PlannedRun) -> None:
    """Refuse a folder in which a run of other settings lies.

    Raises:
        RLRouteError: one does.
    """
    from rlroute.trainers.run_folder import RECIPE_FILE

    path = run.folder / RECIPE_FILE
    if path.exists() and path.read_text(encoding="utf-8") != dump_config(run.recipe):
        raise RLRouteError(
            f"{run.folder}: was trained with other settings than this sweep's; choose another --out"
        )


def run_all(
    plan: Sequence[PlannedRun], jobs: int, recipe_path: Path, console: Console
) -> dict[str, str]:
    """Bring all runs to their evaluation; return why some failed, by name."""
    processes = Processes()
    total = sum(count_work(run.recipe) for run in plan)
    unit = "learners" if isinstance(plan[0].recipe, BanditRecipe) else "updates"
    with ThreadPoolExecutor(jobs) as pool, make_progress(console, unit) as progress:
        task = progress.add_task(f"{len(plan)} runs", total=total, note="")
        try:
            futures = {
                run.name: pool.submit(bring_through, run, recipe_path, processes) for run in plan
            }
            waiting: set[Future[str | None]] = set(futures.values())
            while waiting:
                _, waiting = wait(waiting, timeout=POLL_SECONDS)
                done = sum(count_done(run) for run in plan)
                note = f"{len(plan) - len(waiting)} of {len(plan)} runs done"
                progress.update(task, completed=done, note=note)
        except BaseException:  # an interruption: what was started is ended, and can be resumed
            processes.stop()
            raise
    reasons = {name: future.result() for name, future in futures.items()}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def bring_through(run: PlannedRun, recipe_path: Path, processes: Processes) -> str | None:
    """Train and evaluate one run as far as it is not done; return why it failed, or None."""
    run.log.parent.mkdir(parents=True, exist_ok=True)
    started = time.time()
    arguments = list_train_arguments(run, recipe_path)
    if arguments is not None and processes.call(arguments, run.log):
        return f"training: {read_last_line(run.log)}"
    if not is_evaluated(run) and processes.call(["evaluate", str(run.folder)], run.log):
        return f"evaluation: {read_last_line(run.log)}"
    with run.log.open("a", encoding="utf-8") as file:
        file.write(f"done in {time.time() - started:.1f} s\n")
    return None


def list_train_arguments(run: PlannedRun, recipe_path: Path) -> list[str] | None:
    """Return how training starts or goes on, or None where it is finished."""
    from rlroute.trainers.run_folder import RECIPE_FILE

    start = ["train", str(recipe_path), *run.overrides, "--run-folder", str(run.folder)]
    if not (run.folder / RECIPE_FILE).exists():
        clear_cut_start(run.folder)
        return start
    if isinstance(run.recipe, BanditRecipe):
        finished = (run.folder / REGRET_FILE).exists()
        return None if finished else ["train", "--resume", str(run.folder)]
    update = find_last_checkpoint(run)
    if update is None:
        return [*start, "--overwrite"]
    return None if update >= run.recipe.updates else ["train", "--resume", str(run.folder)]


def clear_cut_start(folder: Path) -> None:
    """Remove what a start that was cut short has left; other files stay, and training says so."""
    if folder.exists():
        names = {path.name for path in folder.iterdir()}
        if all(name in STARTED or name.startswith(".") for name in names):
            shutil.rmtree(folder)


def find_last_checkpoint(run: PlannedRun) -> int | None:
    """Return the update of a run's last checkpoint."""
    from rlroute.trainers.checkpoint import list_checkpoints
    from rlroute.trainers.run_folder import CHECKPOINTS_FOLDER

    checkpoints = list_checkpoints(run.folder / CHECKPOINTS_FOLDER)
    return int(checkpoints[-1].name.removeprefix("step-")) if checkpoints else None


def is_evaluated(run: PlannedRun) -> bool:
    """Say whether the evaluation is younger than the best weights; streams need no other."""
    from rlroute.table_runs import EVALUATION_FILE
    from rlroute.trainers.run_folder import BEST_FILE, BEST_FOLDER

    if isinstance(run.recipe, BanditRecipe):
        return (run.folder / REGRET_FILE).exists()
    evaluation, best = run.folder / EVALUATION_FILE, run.folder / BEST_FOLDER / BEST_FILE
    if not (evaluation.exists() and best.exists()):
        return False
    return evaluation.stat().st_mtime >= best.stat().st_mtime


def count_work(recipe: Recipe | BanditRecipe) -> int:
    """Return what there is to do: updates, or learners that play."""
    return len(recipe.learners) if isinstance(recipe, BanditRecipe) else recipe.updates


def count_done(run: PlannedRun) -> int:
    """Return how much of it is done."""
    if isinstance(run.recipe, BanditRecipe):
        return len(list((run.folder / "learners").glob("*.safetensors")))
    return count_updates(run.folder, run.recipe.updates)


def count_updates(folder: Path, most: int) -> int:
    """Return how many updates a run has told of so far; the first row is update 0."""
    path = folder / METRICS_FILE
    if not path.exists():
        return 0
    return min(max(0, path.read_bytes().count(b"\n") - 1), most)


def read_last_line(log: Path) -> str:
    """Return what a process said last, without its prefix."""
    lines: list[Any] = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip().removeprefix("rlroute: ") if lines else "no message"
