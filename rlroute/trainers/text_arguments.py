"""What TRL is told: a recipe as its arguments, the order of the queries, learning rates by part.

It leaves out the trainer itself (`rlroute.trainers.text`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import Sampler
from trl import GRPOConfig

from rlroute.policies.language_model import VALUE_HEAD
from rlroute.rollout.plan import EpisodePlan, plan_episodes
from rlroute.trainers.text_recipe import TextRecipe

LOSSES = {"token": "dapo", "sequence": "grpo", "constant": "dr_grpo"}


class PlanSampler(Sampler[int]):
    """Yields the queries of every update's plan, as often as TRL asks for each batch."""

    def __init__(self, recipe: TextRecipe, queries: int, repeats: int) -> None:
        self.recipe, self.queries, self.repeats = recipe, queries, repeats

    def __len__(self) -> int:
        return self.recipe.updates * self.recipe.algorithm.episodes * self.repeats

    def __iter__(self) -> Iterator[int]:
        for update in range(self.recipe.updates):
            plan = make_plan(self.recipe, update, self.queries)
            for _ in range(self.repeats):
                yield from plan.query_index_B.tolist()


def make_plan(recipe: TextRecipe, update: int, queries: int) -> EpisodePlan:
    """Return the episodes of an update over all processes."""
    size = recipe.algorithm.group_size
    groups = recipe.algorithm.episodes // size
    return plan_episodes(recipe.seed, update, queries=queries, groups=groups, group_size=size)


def split_value_head(optimizer: Any, model: Any, learning_rate: float) -> None:
    """Move the value head's parameters into optimiser groups with their own learning rate."""
    own = {id(p) for name, p in model.named_parameters() if VALUE_HEAD in name}
    groups = []
    for group in optimizer.param_groups:
        picked = [p for p in group["params"] if id(p) in own]
        group["params"] = [p for p in group["params"] if id(p) not in own]
        if picked:
            groups.append({**group, "params": picked, "lr": learning_rate})
    for group in groups:
        optimizer.add_param_group(group)


def make_arguments(recipe: TextRecipe, folder: str, processes: int, *, cpu: bool) -> GRPOConfig:
    """Translate a recipe into TRL's arguments.

    Raises:
        ValueError: TRL does not accept them.
    """
    algorithm = recipe.algorithm
    per_process = algorithm.episodes // processes
    micro_steps = per_process // algorithm.micro_batch
    steps = recipe.updates * algorithm.steps_per_update
    return GRPOConfig(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=algorithm.micro_batch,
        gradient_accumulation_steps=micro_steps // algorithm.minibatches,
        steps_per_generation=micro_steps,
        num_generations=max(algorithm.group_size, 2),  # PPO's groups of one are ours alone
        num_iterations=algorithm.epochs,
        max_completion_length=recipe.rollout.context_tokens,
        temperature=recipe.rollout.temperature,
        beta=algorithm.kl_weight,
        epsilon=algorithm.clip_range,
        epsilon_high=algorithm.clip_range_high,
        entropy_coef=algorithm.entropy_weight,
        loss_type=LOSSES[algorithm.loss],
        scale_rewards="group",
        learning_rate=recipe.optimiser.learning_rate,
        weight_decay=recipe.optimiser.weight_decay,
        max_grad_norm=recipe.optimiser.max_grad_norm,
        lr_scheduler_type=(
            "linear" if recipe.optimiser.decay == "linear" else "constant_with_warmup"
        ),
        warmup_steps=recipe.warmup_updates * algorithm.steps_per_update,
        bf16=recipe.policy.precision == "bfloat16",
        gradient_checkpointing=recipe.policy.gradient_checkpointing,
        save_strategy="steps",
        save_steps=recipe.checkpoint_every * algorithm.steps_per_update,
        save_total_limit=None,  # the run removes older ones, when the new one is complete
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=cpu,
        seed=recipe.seed,
        data_seed=recipe.seed,
        disable_dropout=True,
        remove_unused_columns=False,
    )
