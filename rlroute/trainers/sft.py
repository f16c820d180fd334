"""The warm start: supervised training on scripted episodes, through TRL's SFTTrainer.

Without it a language model hardly ever writes a usable action, and reinforcement learning has
nothing to compare. Texts of the environment are in the input and never in the loss, and every piece
of text is tokenised apart from its neighbours, as in rollouts.

It leaves out where the episodes come from (`rlroute.policies.scripted`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from rich.console import Console
from rich.progress import Progress
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from rlroute.policies.language_model import load_tokenizer
from rlroute.rollout.text_agent import encode_observation
from rlroute.tracking import make_progress
from rlroute.trainers.text_model import KEY, load_model, make_lora, write_policy
from rlroute.trainers.text_recipe import TextRecipe
from rlroute.types import TextDecision, TextObservation, Trajectory

IGNORED = -100  # the label of a token that is not learnt


def tokenise_demonstration(
    trajectory: Trajectory[TextObservation, TextDecision], tokenizer: Any
) -> dict[str, list[int]]:
    """Return `input_ids` and `labels` of a scripted episode; the environment's are ignored."""
    input_ids: list[int] = []
    labels: list[int] = []
    for turn, step in enumerate(trajectory.transitions):
        seen = encode_observation(tokenizer, step.observation.text, first=turn == 0)
        written = tokenizer.encode(  # a script may repeat a reply that spells a special token
            step.decision.text, add_special_tokens=False, split_special_tokens=True
        )
        input_ids += [*seen, *written]
        labels += [*[IGNORED] * len(seen), *written]
    return {"input_ids": input_ids, "labels": labels}


class ShowProgress(TrainerCallback):
    """Moves a progress bar along with the optimiser steps of the main process."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.task = progress.add_task("warm start", total=None, note="")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Show how many steps are done."""
        if state.is_world_process_zero:
            self.progress.update(self.task, completed=state.global_step, total=state.max_steps)


def run_warm_start(
    recipe: TextRecipe,
    source: str | Path,
    demonstrations: Sequence[Trajectory[TextObservation, TextDecision]],
    folder: Path,
    *,
    cpu: bool,
) -> None:
    """Train a copy of the model at `source` on demonstrations and save it in `folder`."""
    settings = recipe.warm_start
    assert settings is not None
    tokenizer = load_tokenizer(source, KEY)
    rows = [tokenise_demonstration(item, tokenizer) for item in demonstrations]
    arguments = SFTConfig(
        output_dir=str(folder.with_name("trainer")),
        per_device_train_batch_size=settings.batch,
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=10,
        max_length=recipe.rollout.context_tokens,
        bf16=recipe.policy.precision == "bfloat16",
        gradient_checkpointing=recipe.policy.gradient_checkpointing,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        use_cpu=cpu,
        seed=recipe.seed,
    )
    trainer = SFTTrainer(
        model=load_model(recipe.policy, source, value_head=False),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=make_lora(recipe.policy.lora, value_head=False),
    )
    trainer.remove_callback(PrinterCallback)
    with make_progress(Console(stderr=True), "steps") as progress:
        trainer.add_callback(ShowProgress(progress))
        trainer.train()
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    facts = {"episodes": len(demonstrations), "metric": "none"}
    write_policy(trainer.accelerator, model, tokenizer, folder, facts)
