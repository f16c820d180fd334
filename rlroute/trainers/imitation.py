"""The supervised warm start of decision policies: learn the experts' choices of executors (BoSFT).

    experts   easy and intractable tasks: the cheapest executor at every step
              hard tasks: the cheapest success of sweep and boundary rollouts
    loss      weighted cross-entropy of the chosen executor, over all steps with a choice

Tasks that are all cheap dominate, so choices of dearer executors are weighed up until they carry
`dear_share` of the loss. The experts are played again step by step, under the recipe's own budgets,
so that the policy sees the states in which it will decide.

It works for any policy that the decision trainer trains. It leaves out finding the experts
(`rlroute.rollout.boundary`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from rlroute.algorithms.losses import compute_imitation_loss
from rlroute.rewards.boundary import TaskClass
from rlroute.rollout.boundary import BoundaryRollout
from rlroute.seeding import draw_permutation
from rlroute.tracking import make_progress
from rlroute.trainers.learner import Learner, MinibatchPart
from rlroute.trainers.step_recipe import ImitationConfig
from rlroute.types import Batch, FloatArray

COORDINATE = -1  # the "update" that minibatches of the warm start belong to


@dataclass(frozen=True)
class LabelBalance:
    """What the demonstrations teach: labels of each class and executor, and the dear ones' weight.

    `counts[class][executor]` counts choices, `dear_share` is the share of dear choices as they are,
    `dear_weight` what each counts in the loss.
    """

    counts: dict[str, dict[str, int]]
    dear_share: float
    dear_weight: float


def weigh_labels(
    batch: Batch, classes: Sequence[TaskClass], executors: Sequence[str], dear_share: float
) -> tuple[FloatArray, LabelBalance]:
    """Return the weight of each choice [B, T] (0 where there was none) and the balance report.

    `classes` names the class of each episode's task.
    """
    assert batch.ends is not None
    choice_BT = batch.ends.free_BT
    cheapest_BT = batch.mask_BTK.argmax(axis=2)
    dear_BT = choice_BT & (batch.action_BT != cheapest_BT)
    dear, cheap = int(dear_BT.sum()), int((choice_BT & ~dear_BT).sum())
    weight = 1.0
    if dear and cheap:
        weight = max(1.0, dear_share / (1 - dear_share) * cheap / dear)
    counts: dict[str, dict[str, int]] = {}
    class_B = np.array([str(one) for one in classes])
    for name in TaskClass:
        taken_N = batch.action_BT[choice_BT & (class_B == name)[:, None]]
        counts[str(name)] = {
            executor: int((taken_N == k).sum()) for k, executor in enumerate(executors)
        }
    weight_BT = np.where(dear_BT, weight, choice_BT).astype(np.float32)
    return weight_BT, LabelBalance(counts, dear / max(dear + cheap, 1), weight)


def choose_experts(
    classes: Sequence[TaskClass],
    cheap: Sequence[BoundaryRollout],
    hard: Sequence[BoundaryRollout | None],
) -> tuple[list[int], list[BoundaryRollout]]:
    """Return which tasks teach something, and the rollout that each of them teaches.

    A hard task without an expert is left out.
    """
    chosen = []
    for index, label in enumerate(classes):
        expert = hard[index] if label is TaskClass.HARD else cheap[index]
        if expert is not None:
            chosen.append((index, expert))
    return [index for index, _ in chosen], [expert for _, expert in chosen]


def imitate(
    learner: Learner, batch: Batch, weight_BT: FloatArray, settings: ImitationConfig
) -> float:
    """Train the policy on demonstrations; return the mean loss of the last epoch.

    Every process learns from all demonstrations, so all take the same steps.
    """
    accelerator = learner.accelerator
    parameters = [one for one in learner.model.parameters() if one.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0)
    episodes = len(batch.group_B)
    chunks = -(-episodes // settings.batch)
    console = Console(stderr=True, quiet=not accelerator.is_main_process)
    total = 0.0
    with make_progress(console, "steps") as progress:
        task = progress.add_task("warm start", total=settings.epochs * chunks, note="")
        for epoch in range(settings.epochs):
            order_B = draw_permutation(episodes, learner.recipe.seed, "imitation", epoch)
            total = 0.0
            for number, rows_B in enumerate(np.array_split(order_B, chunks)):
                place_B = np.arange(len(rows_B))
                whole = MinibatchPart(rows_B, place_B, len(rows_B), (COORDINATE, epoch, number))
                total_weight = float(weight_BT[rows_B].sum())
                optimiser.zero_grad()
                for part in whole.split(learner.micro_batch, len(rows_B)):
                    loss = compute_part_loss(learner, batch, weight_BT, part)
                    accelerator.backward(loss / max(total_weight, 1.0))
                    total += float(loss.detach())
                accelerator.clip_grad_norm_(parameters, learner.recipe.optimiser.max_grad_norm)
                optimiser.step()
                progress.update(task, advance=1)
    return total / max(float(weight_BT.sum()), 1.0)


def compute_part_loss(
    learner: Learner, batch: Batch, weight_BT: FloatArray, part: MinibatchPart
) -> Tensor:
    """Return the weighted cross-entropy of some rows, summed."""
    scores = learner.score_rows(learner, batch, part)
    device = scores.logp_BK.device
    action_N = torch.as_tensor(batch.action_BT[part.rows_B], device=device).flatten()
    logp_N = scores.logp_BK.gather(1, action_N[:, None]).squeeze(1)
    weight_N = torch.as_tensor(weight_BT[part.rows_B], device=device).flatten()
    idle = 0.0 * scores.value_B.sum()  # processes wait for every weight's gradient
    return compute_imitation_loss(logp_N, weight_N) + idle
