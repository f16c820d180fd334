"""A run of the text trainer: from a recipe to a run folder.

    base model -> warm start -> for each update: episodes, loss, report -> validation, checkpoints

recipe.resolved.yaml, run.json   settings and versions
base/                            a model that was made here;  warm_start/  after demonstrations
metrics.jsonl, events.log        one row per update;  trajectories.jsonl  sampled episodes
trainer/checkpoint-N             to go on from;  best/  the policy that validation chose

Checkpoints are written by transformers' Trainer, which knows DeepSpeed and FSDP; beside each stands
`rlroute.json`, written last, without which a checkpoint does not count. Several processes share the
episodes of an update.

How to run: `accelerate launch -m rlroute train recipes/multi_round/tiny_grpo.yaml`.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from transformers import PrinterCallback, TrainerCallback

from rlroute.config import dump_config, redact
from rlroute.files import atomic_folder, write_atomic
from rlroute.policies.language_model import load_tokenizer
from rlroute.rewards.multi_round import MultiRoundReward
from rlroute.rollout.plan import EpisodePlan
from rlroute.tracking import EPISODES_FILE, METRICS_FILE, Tracker
from rlroute.trainers.checkpoint import TrainingState
from rlroute.trainers.run_folder import BEST_FOLDER, RECIPE_FILE, RUN_FILE, clear_folder
from rlroute.trainers.sft import run_warm_start
from rlroute.trainers.text import RoutingTrainer
from rlroute.trainers.text_access import make_access
from rlroute.trainers.text_advantages import CollectedUpdate
from rlroute.trainers.text_arguments import make_arguments
from rlroute.trainers.text_metrics import (
    count_episodes,
    describe_text_episodes,
    name_text_metrics,
)
from rlroute.trainers.text_model import (
    KEY,
    load_model,
    make_lora,
    make_new_model,
)
from rlroute.trainers.text_problem import (
    TextProblem,
    TextRollouts,
    build_problem,
    make_environment,
    write_episodes,
)
from rlroute.trainers.text_recipe import NewModelConfig, TextPPOConfig, TextRecipe
from rlroute.trainers.text_validation import measure_sweep, name_validation_metrics
from rlroute.types import RLRouteError, TextTrajectory

FORMAT_VERSION = 1
STATE_FILE = "rlroute.json"
TRAINER_FOLDER = "trainer"
BASE_FOLDER = "base"
WARM_START_FOLDER = "warm_start"
SAMPLED_EPISODES = 8


def train_text(
    recipe: TextRecipe,
    folder: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    command: str = "",
) -> TrainingState:
    """Train a language model as the recipe says and leave everything in `folder`.

    With `resume` the folder's last checkpoint is gone on from; with `overwrite` a run that lies
    there is replaced.

    Raises:
        RLRouteError: questions, pool, model, an extra or the folder does not allow it.
    """
    processes = join_processes()
    check_shares(recipe, processes.num_processes)
    problem = build_problem(recipe)
    if processes.is_main_process and not resume:
        clear_folder(folder, overwrite=overwrite)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / RECIPE_FILE, dump_config(recipe))  # with it the folder is a run
    processes.wait_for_everyone()
    source = prepare_base(recipe, problem, folder, processes)
    run = TextRun(recipe, folder, problem, source)
    if processes.is_main_process and not (folder / RUN_FILE).exists():
        write_facts(folder, processes, command)  # only the trainer's start tells a sharded run
    try:
        return run.train(resume=resume)
    finally:
        run.rollouts.close()
        run.access.close()


def join_processes() -> PartialState:
    """Return which process this is, of how many; on a CPU accelerate has to be told."""
    return PartialState(cpu=not torch.cuda.is_available())


def check_shares(recipe: TextRecipe, processes: int) -> None:
    """Refuse episodes that cannot be shared out equally, with groups whole, to micro-batches."""
    algorithm = recipe.algorithm
    groups = algorithm.episodes // algorithm.group_size
    if groups % processes:
        raise RLRouteError(
            f"algorithm: {groups} groups of {algorithm.group_size} cannot be shared out equally to "
            f"{processes} processes"
        )
    share = algorithm.episodes // processes
    step = algorithm.micro_batch * algorithm.minibatches
    if share % step:
        raise RLRouteError(
            f"algorithm: the {share} episodes of a process must be a multiple of micro_batch x "
            f"minibatches ({algorithm.micro_batch} x {algorithm.minibatches})"
        )


def write_facts(folder: Path, processes: PartialState, command: str) -> None:
    """Write how the run was started, on what, and by which versions."""
    facts = {
        "format_version": FORMAT_VERSION,
        "command": redact(command),
        "processes": processes.num_processes,
        "distributed_type": str(processes.distributed_type.value),
        "device": str(processes.device),
        "python": platform.python_version(),
        **{name: version(name) for name in ("rlroute", "torch", "transformers", "trl")},
    }
    write_atomic(folder / RUN_FILE, json.dumps(facts, indent=2))


def prepare_base(
    recipe: TextRecipe, problem: TextProblem, folder: Path, processes: PartialState
) -> str:
    """Make or name the model, and warm it up; return where the policy starts from.

    What a run that is gone on with has made already is taken as it is.
    """
    base, warm = recipe.policy.base, folder / WARM_START_FOLDER
    source = str(folder / BASE_FOLDER) if isinstance(base, NewModelConfig) else base.model
    if recipe.warm_start is None:
        return source
    if warm.exists():  # in a run that is gone on with
        return str(warm)
    played = [write_episodes(recipe, problem) if processes.is_main_process else []]
    episodes: list[TextTrajectory] = broadcast_object_list(played)[0]
    missing = not (folder / BASE_FOLDER).exists()
    if isinstance(base, NewModelConfig) and missing and processes.is_main_process:
        texts = [
            text
            for episode in episodes
            for step in episode.transitions
            for text in (step.observation.text, step.decision.text)
        ]
        with atomic_folder(folder / BASE_FOLDER) as temporary:
            make_new_model(
                base, texts, temporary, context=recipe.rollout.context_tokens, seed=recipe.seed
            )
    processes.wait_for_everyone()
    run_warm_start(recipe, source, episodes, warm, cpu=processes.device.type == "cpu")
    return str(warm)


class TextRun:
    """One run: the trainer, the rollouts that it learns from, and what is written down."""

    def __init__(self, recipe: TextRecipe, folder: Path, problem: TextProblem, source: str) -> None:
        self.recipe, self.folder, self.problem = recipe, folder, problem
        self.reward = MultiRoundReward(recipe.reward)
        self.state = TrainingState()
        self.tracker: Tracker | None = None
        self.started = self.rollout_seconds = 0.0
        tokenizer = load_tokenizer(source, KEY)
        ppo = isinstance(recipe.algorithm, TextPPOConfig)
        processes = join_processes()
        self.trainer = RoutingTrainer(
            recipe,
            make_arguments(
                recipe,
                str(folder / TRAINER_FOLDER),
                processes.num_processes,
                cpu=processes.device.type == "cpu",
            ),
            model=load_model(recipe.policy, source, value_head=ppo, seed=recipe.seed),
            tokenizer=tokenizer,
            queries=len(problem.train),
            reward=self.reward,
            collect=self.collect,
            report=self.report,
            callbacks=[KeepState(self)],
            peft_config=make_lora(recipe.policy.lora, value_head=ppo),
        )
        self.trainer.remove_callback(PrinterCallback)
        probe = make_environment(recipe, problem).reset(problem.train[0], seed=0).text
        self.access = make_access(
            recipe.rollout,
            self.trainer.model,
            tokenizer,
            probe,
            rank=processes.process_index,
        )
        self.rollouts = TextRollouts(problem, recipe, tokenizer, self.access.sampler)

    def train(self, *, resume: bool) -> TrainingState:
        """Run the updates; a run that is gone on with before its first checkpoint starts anew."""
        checkpoint = find_checkpoint(self.folder) if resume else None
        if checkpoint is not None:
            self.load_state(checkpoint)
        elif self.trainer.accelerator.is_main_process:
            for name in (METRICS_FILE, EPISODES_FILE):
                (self.folder / name).unlink(missing_ok=True)
        with self.open_tracker() as self.tracker:
            self.trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        return self.state

    @contextmanager
    def open_tracker(self) -> Iterator[Tracker | None]:
        """Yield the tracker on the main process and None on the others."""
        if not self.trainer.accelerator.is_main_process:
            yield None
            return
        recipe = self.recipe
        with Tracker(
            self.folder,
            updates=recipe.updates,
            start=self.state.update,
            wandb_project=recipe.tracking.project if recipe.tracking.wandb else None,
            config=redact(recipe.model_dump(mode="json")),
        ) as tracker:
            tracker.log_event(
                f"{'resumed' if self.state.update else 'started'} at update {self.state.update}"
            )
            yield tracker
            tracker.log_event(f"finished at update {recipe.updates}")

    # --- Episodes ---------------------------------------------------------------------------------

    def collect(self, plan: EpisodePlan, update: int) -> list[TextTrajectory]:
        """Play this process's episodes of an update with the present weights."""
        began = time.perf_counter()
        with self.access.open(self.trainer, update):
            played = self.rollouts.play(
                self.problem.train, plan, temperature=self.recipe.rollout.temperature
            )
        self.rollout_seconds = time.perf_counter() - began
        return played

    def validate(self) -> dict[str, float]:
        """Measure the greedy policy on questions of val, the same ones every time."""
        settings = self.recipe.validation
        weights = settings.cost_weights or self.recipe.episode.cost_weights
        queries = self.problem.val[: settings.questions]
        with self.access.open(self.trainer, self.state.update):
            points = measure_sweep(self.rollouts, queries, self.reward, weights, self.recipe.seed)
        return name_validation_metrics(points)

    # --- What is written down ---------------------------------------------------------------------

    def note_start(self) -> None:
        """Report where the curve starts; what was never trained is never the best."""
        found = self.validate()
        if self.tracker is not None:
            self.tracker.log(0, found, note="")

    def report(self, collected: CollectedUpdate, metrics: dict[str, float]) -> None:
        """Write the row of a finished update, and validate where it is time to."""
        trainer, recipe = self.trainer, self.recipe
        update = trainer.update
        sums = add_up(trainer, count_episodes(collected.trajectories, self.rollouts.retried))
        metrics = metrics | name_text_metrics(
            sums, collected.rewards, self.problem.candidates, recipe.algorithm.group_size
        )
        seconds = time.perf_counter() - self.started
        metrics["time/rollout"] = self.rollout_seconds
        metrics["time/update"] = seconds - self.rollout_seconds
        self.state = dataclasses.replace(
            self.state,
            update=update,
            cost_usd_total=self.state.cost_usd_total + sums["billed_usd"],
            seconds=self.state.seconds + seconds,
        )
        metrics["cost/usd_total"] = self.state.cost_usd_total
        last = update == recipe.updates
        if last or update % recipe.validation.every == 0:
            found = self.validate()
            metrics |= found
            self.keep_best(found)
            self.sample_episodes(collected)
        if self.tracker is not None:
            best = self.state.best_metric
            note = "" if best is None else f"best on val {best:.4f}"
            self.tracker.log(update, metrics, note)
            if metrics["collapse/alarm"]:
                self.tracker.log_event(f"update {update}: the policy may be collapsing")
        self.started = time.perf_counter()

    def sample_episodes(self, collected: CollectedUpdate) -> None:
        """Write a few episodes of this process with their reward terms; show them in W&B."""
        if self.tracker is None:
            return
        own = {
            name: value_N[: len(collected.trajectories)]
            for name, value_N in collected.rewards.items()
        }  # the main process comes first
        rows = describe_text_episodes(collected.trajectories, own, SAMPLED_EPISODES)
        self.tracker.log_episodes(self.state.update, rows)
        self.tracker.mirror_table("trajectories", rows)

    def keep_best(self, found: dict[str, float]) -> None:
        """Keep the policy where validation finds it the best so far."""
        metric = found["eval/reward"]
        if self.state.best_metric is not None and metric <= self.state.best_metric:
            return
        self.state = dataclasses.replace(
            self.state, best_metric=metric, best_update=self.state.update
        )
        facts = {"update": self.state.update, "metric": "reward"}
        facts |= {name.removeprefix("eval/"): value for name, value in found.items()}
        self.trainer.save_policy(self.folder / BEST_FOLDER, facts)

    def save_state(self, checkpoint: Path) -> None:
        """Write beside a checkpoint what the trainer does not know; the checkpoint is complete."""
        content = {
            "format_version": FORMAT_VERSION,
            "reward": self.reward.get_state(),
            **dataclasses.asdict(self.state),
        }
        write_atomic(checkpoint / STATE_FILE, json.dumps(content, indent=2))
        if self.tracker is not None:
            self.tracker.log_event(f"checkpoint at update {self.state.update}")

    def load_state(self, checkpoint: Path) -> None:
        """Read what `save_state` wrote."""
        content = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
        found = content.pop("format_version")
        if found != FORMAT_VERSION:
            raise RLRouteError(
                f"{checkpoint}: format_version {found}, this rlroute reads {FORMAT_VERSION}"
            )
        self.reward.set_state(content.pop("reward"))
        self.state = TrainingState(**content)


class KeepState(TrainerCallback):
    """Reports where the curve starts, and completes each checkpoint that was written."""

    def __init__(self, run: TextRun) -> None:
        self.run = run

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Measure the policy before the first update, now that it lies on its devices."""
        if state.global_step == 0:
            self.run.note_start()
        self.run.started = time.perf_counter()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the run's state on the main process, when all have written theirs."""
        self.run.trainer.accelerator.wait_for_everyone()
        if state.is_world_process_zero:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            self.run.save_state(checkpoint)
            for other in checkpoint.parent.glob("checkpoint-*"):
                if other != checkpoint:  # only now: one complete checkpoint is always there
                    shutil.rmtree(other)


def add_up(trainer: RoutingTrainer, sums: dict[str, float]) -> dict[str, float]:
    """Add named numbers up over all processes, which need not have the same names."""
    total: dict[str, float] = {}
    for part in gather_object([sums]):
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total


def find_checkpoint(folder: Path) -> Path | None:
    """Return the last complete checkpoint of a run, None where there is none yet."""
    found = [path.parent for path in (folder / TRAINER_FOLDER).glob(f"checkpoint-*/{STATE_FILE}")]
    return max(found, default=None, key=lambda path: int(path.name.removeprefix("checkpoint-")))
