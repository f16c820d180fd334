"""The trainer of text policies: a thin subclass of TRL's GRPOTrainer.

TRL brings the optimiser loop, the fused log-probs, the clipped loss, DeepSpeed, FSDP and adapters.
Ours are, in the order of an update:

    rollout_func                    episodes of the plan, through the rollout engine
    _calculate_rewards              reward terms of all processes -> combined rewards
    _generate_and_score_completions advantages: group-relative, leave-one-out, or GAE
    _compute_loss                   TRL's loss on these advantages, and the value loss

An episode without a defined reward (a failed call) has no policy token in its mask, so neither loss
nor KL nor entropy sees it, and it leaves its group's mean and standard deviation.

The hooks are private or experimental in TRL: `tests/trainers/test_trl_contract.py` holds what is
relied on. It leaves out the run around it (`rlroute.trainers.text_run`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Sampler
from trl import GRPOConfig, GRPOTrainer
from trl.models.utils import unwrap_model_for_generation

from rlroute.algorithms.advantages import (
    compute_gae,
    normalise_advantages,
)
from rlroute.algorithms.corrections import compute_importance_weights
from rlroute.algorithms.losses import compute_clipped_value_loss
from rlroute.rewards.multi_round import MultiRoundReward
from rlroute.rollout.batching import TokenRow, flatten_tokens
from rlroute.rollout.plan import EpisodePlan
from rlroute.trainers.text_advantages import (
    CollectedUpdate,
    compute_group_relative,
    compute_kl,
    place_rewards,
)
from rlroute.trainers.text_arguments import PlanSampler, make_plan, split_value_head
from rlroute.trainers.text_model import ValueCapture, write_policy
from rlroute.trainers.text_recipe import TextPPOConfig, TextRecipe
from rlroute.trainers.text_validation import stack_terms
from rlroute.types import TextTrajectory

Collect = Callable[[EpisodePlan, int], list[TextTrajectory]]
Report = Callable[[CollectedUpdate, dict[str, float]], None]
# TRL's names of metrics -> ours; the others are not kept
METRICS = {
    "loss": "policy/loss",
    "grad_norm": "policy/grad_norm",
    "learning_rate": "policy/learning_rate",
    "entropy": "policy/entropy",
    "kl": "policy/kl_ref",
    "clip_ratio/region_mean": "policy/clip_frac",
}
MINIMUM_SPREAD = 1e-6  # of returns: below it they are equal, and nothing is to be explained


class RoutingTrainer(GRPOTrainer):  # type: ignore[misc]
    """Trains a language model on episodes that `collect` plays.

    `model` has a value head where the algorithm is PPO. `collect(plan, update)` returns this
    process's episodes of a plan, in its order; `report(collected, metrics)` is called after each
    update.
    """

    def __init__(
        self,
        recipe: TextRecipe,
        args: GRPOConfig,
        *,
        model: Any,
        tokenizer: Any,
        queries: int,
        reward: MultiRoundReward,
        collect: Collect,
        report: Report,
        callbacks: list[Any],
        peft_config: Any = None,
    ) -> None:
        self.recipe, self.reward = recipe, reward
        self.collect_episodes, self.report = collect, report
        self.queries = queries
        self.collected = CollectedUpdate([])
        self.update_metrics: dict[str, list[float]] = {}
        self.last_logp_BT: Tensor | None = None
        super().__init__(
            model=model,
            reward_funcs=[combined_reward],
            args=args,
            train_dataset=Dataset.from_dict({"prompt": [str(index) for index in range(queries)]}),
            processing_class=tokenizer,
            callbacks=callbacks,
            peft_config=peft_config,
            rollout_func=roll_out,
        )
        self.capture: ValueCapture | None = None
        algorithm = recipe.algorithm
        if isinstance(algorithm, TextPPOConfig):
            base = self.model.get_base_model() if peft_config is not None else self.model
            self.capture = ValueCapture(base, share_backbone=algorithm.share_backbone)

    @property
    def update(self) -> int:
        """The number of updates behind the weights."""
        return int(self.state.global_step) // self.recipe.algorithm.steps_per_update

    def _get_train_sampler(self, dataset: Any = None) -> Sampler[int]:
        """Take the order of the queries from the plans, which a resumed run draws again."""
        return PlanSampler(  # TRL reads a whole update's batch at each micro-step
            self.recipe, self.queries, self.num_iterations * self.args.steps_per_generation
        )

    # --- Episodes and rewards ---------------------------------------------------------------------

    def collect(self, prompts: list[str]) -> dict[str, Any]:
        """Play this process's episodes of the update and return their tokens for TRL."""
        plan = make_plan(self.recipe, self.update, self.queries)
        part = plan.select_part(self.accelerator.process_index, self.accelerator.num_processes)
        if [str(index) for index in part.query_index_B] != prompts:
            raise RuntimeError("the rows that TRL asks for are not those of the plan")
        self.collected = CollectedUpdate(self.collect_episodes(part, self.update))
        rows = [flatten_tokens(trajectory) for trajectory in self.collected.trajectories]
        learnt = [trajectory.failure is None for trajectory in self.collected.trajectories]
        return {
            "prompt_ids": [list(row.prompt_ids) for row in rows],
            "completion_ids": [list(row.completion_ids) for row in rows],
            "logprobs": [list(row.logps) for row in rows],
            "env_mask": [make_mask(row, keep) for row, keep in zip(rows, learnt, strict=True)],
        }

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> Tensor:
        """Return the combined reward of the episodes of all processes [N, 1]; NaN undefined."""
        played = self.collected.trajectories
        local = stack_terms(played)
        weights = [item.transitions[0].observation.cost_weight for item in played]
        table = torch.tensor(
            np.stack([*local.values(), np.array(weights)], axis=1), device=self.accelerator.device
        )
        columns = self.accelerator.gather(table).cpu().numpy().T.astype(np.float32)
        terms = dict(zip(local, columns, strict=False))
        self.collected.cost_weight_N = columns[-1]
        self.collected.rewards = self.reward.score(terms, columns[-1], frozen=False) | {
            "charge_usd": terms["charge_usd"]
        }
        reward_N = torch.as_tensor(self.collected.rewards["reward"])
        return reward_N.to(self.accelerator.device)[:, None]

    # --- Advantages -------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """Let TRL collect and tokenise, then put our advantages in the place of its own."""
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        algorithm = self.recipe.algorithm
        mask_BT = (output["completion_mask"] * output["tool_mask"]).bool()
        correction = self.recipe.rollout.correction
        if isinstance(algorithm, TextPPOConfig) or correction is not None:
            self.score_again(output)
        if isinstance(algorithm, TextPPOConfig):
            adv = self.compute_value_advantages(algorithm, output, mask_BT)
        else:
            adv_N = compute_group_relative(algorithm, self.reward, self.collected)
            adv = self.take_own_part(adv_N).to(mask_BT.device)
        if correction is not None:
            weights = compute_importance_weights(
                output["old_per_token_logps"],
                output["sampling_per_token_logps"],
                mask_BT,
                level=correction.level,
                cap=correction.cap,
                mode=correction.mode,
            )
            # the clipped loss is linear in a weight >= 0, so the advantage can carry it
            adv = (adv if adv.dim() == 2 else adv[:, None]) * weights.weight_BT
            self.note_mismatch(weights.metrics)
        output["advantages"] = adv
        return output

    def take_own_part(self, value_N: Tensor) -> Tensor:
        """Return this process's rows of a tensor over all processes."""
        size = len(value_N) // self.accelerator.num_processes
        return value_N[self.accelerator.process_index * size :][:size]

    @torch.no_grad()
    def score_again(self, output: dict[str, Any]) -> None:
        """Compute log-probs (and values) of the collected tokens under the present weights."""
        if self.capture is not None:
            self.capture.values.clear()  # of passes that TRL made for other ends
        length = output["completion_ids"].size(1)
        logp_BT, _, _ = self._get_per_token_logps_and_entropies(
            self.model,
            torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1),
            torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1),
            length,
            batch_size=self.args.per_device_train_batch_size,
        )
        output["old_per_token_logps"] = logp_BT
        if self.capture is not None:
            output["old_value"] = self.capture.take()[:, -length:]

    def compute_value_advantages(
        self, algorithm: TextPPOConfig, output: dict[str, Any], mask_BT: Tensor
    ) -> Tensor:
        """Return GAE over the policy's tokens [B, T]; the reward lies on the last of them.

        Every episode ends inside its row, so nothing lies behind its last token. The returns that
        the value head should meet become part of `output`.
        """
        reward_B = self.take_own_part(torch.as_tensor(self.collected.rewards["reward"]))
        reward_BT = place_rewards(reward_B, output, mask_BT, algorithm)
        if algorithm.kl_in_reward:
            kl, _, _ = self.compute_moments(compute_kl(output)[mask_BT])
            self.note_metrics({"policy/kl_ref": float(kl)})
        adv_BT, return_BT = compute_gae(
            reward_BT,
            output["old_value"],
            mask_BT,
            mask_BT.new_ones(len(mask_BT)),
            torch.zeros_like(reward_BT[:, 0]),
            algorithm.discount,
            algorithm.gae_lambda,
        )
        output["return"] = return_BT
        self.note_explained_variance(output["old_value"], return_BT, mask_BT)
        if not algorithm.normalise_advantages:
            return adv_BT
        mean, std, _ = self.compute_moments(adv_BT[mask_BT])
        return normalise_advantages(adv_BT, mean, std) * mask_BT

    def compute_moments(self, value_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean, standard deviation and number of values over all processes."""
        value_N = value_N.double()  # float32 sums of equal values would have a spread
        local_3 = torch.stack([value_N.sum(), (value_N**2).sum(), torch.ones_like(value_N).sum()])
        total, squares, count = self.accelerator.reduce(local_3, reduction="sum")
        mean = total / count.clamp(min=1)
        variance = (squares / count.clamp(min=1) - mean**2).clamp(min=0)
        return mean.float(), variance.sqrt().float(), count

    def note_explained_variance(self, value_BT: Tensor, return_BT: Tensor, mask_BT: Tensor) -> None:
        """Note how much of the returns' variance the value head explains."""
        _, spread, _ = self.compute_moments(return_BT[mask_BT])
        _, error, _ = self.compute_moments((return_BT - value_BT)[mask_BT])
        if spread > MINIMUM_SPREAD:
            self.note_metrics({"policy/explained_variance": float(1 - (error / spread) ** 2)})

    # --- Loss -------------------------------------------------------------------------------------

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        """Score tokens as TRL does; remember the log-probs for the mismatch metrics."""
        found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self.last_logp_BT = found[0].detach()
        return found

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Return TRL's loss on our advantages, and the value loss of PPO."""
        algorithm = self.recipe.algorithm
        with self.leave_out_kl():
            loss: Tensor = super()._compute_loss(model, inputs)
        mask_BT = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
        if self.is_first_pass and self.recipe.rollout.correction is None:
            assert self.last_logp_BT is not None
            weights = compute_importance_weights(
                self.last_logp_BT,
                inputs["sampling_per_token_logps"],
                mask_BT,
                level="token",
                cap=math.inf,
                mode="truncate",
            )
            self.note_mismatch(weights.metrics)
        if not isinstance(algorithm, TextPPOConfig):
            return loss
        assert self.capture is not None
        value_loss = compute_clipped_value_loss(
            self.capture.take()[:, -mask_BT.size(1) :],
            inputs["return"],
            inputs["old_value"],
            mask_BT,
            algorithm.value_clip,
        )
        own_tokens = mask_BT.sum().clamp(min=1)
        self.note_metrics({"policy/value_loss": float(value_loss.detach() / own_tokens)})
        # a mean over the tokens of the update, scaled as TRL scales its token-mean loss
        tokens = inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes
        share = self.current_gradient_accumulation_steps / self.args.steps_per_generation
        value_loss = value_loss / (tokens * share)
        total: Tensor = loss + algorithm.value_weight * value_loss
        return total

    @contextlib.contextmanager
    def leave_out_kl(self) -> Iterator[None]:
        """Keep the KL out of the loss where the reward holds it already."""
        weight: float = self.args.beta
        if isinstance(self.recipe.algorithm, TextPPOConfig) and self.recipe.algorithm.kl_in_reward:
            self.beta = 0.0
        try:
            yield
        finally:
            self.beta = weight

    @property
    def is_first_pass(self) -> bool:
        """Whether the weights are still those that the episodes were sampled with."""
        return int(self.state.global_step) % self.recipe.algorithm.steps_per_update == 0

    def note_mismatch(self, sums: Mapping[str, Tensor]) -> None:
        """Note how far the trainer's log-probs lie from the sampler's on the same tokens."""
        count = max(float(sums["count"]), 1.0)
        found = {name: float(sums[name]) / count for name in ("kl", "abs_diff", "kept")}
        found["ratio_p95"] = float(sums["ratio_p95"])
        self.note_metrics({f"mismatch/{name}": value for name, value in found.items()})

    def note_metrics(self, metrics: dict[str, float]) -> None:
        """Keep metrics of this process until the update is reported."""
        for name, value in metrics.items():
            self.update_metrics.setdefault(name, []).append(value)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Keep what TRL tells after each optimiser step; report when an update is done."""
        if "loss" not in logs:  # the summary at the end
            return
        found = dict(logs)
        for name, values in self._metrics["train"].items():
            defined = [value for value in values if not math.isnan(value)]
            if defined:
                found[name] = sum(defined) / len(defined)
        self._metrics["train"].clear()
        self.note_metrics(
            {own: float(found[name]) for name, own in METRICS.items() if name in found}
        )
        if int(self.state.global_step) % self.recipe.algorithm.steps_per_update == 0:
            metrics = {name: float(np.mean(v)) for name, v in self.update_metrics.items()}
            self.update_metrics.clear()
            self.report(self.collected, metrics)

    @contextlib.contextmanager
    def open_model(self) -> Iterator[Any]:
        """Yield the bare model for generation, whole where it is sharded."""
        with (
            unwrap_model_for_generation(self.model_wrapped, self.accelerator) as model,
            torch.no_grad(),
            self._dist.summon_full_params(self.model_wrapped, recurse=False),
        ):
            yield model

    def save_policy(self, folder: Path, facts: dict[str, Any]) -> None:
        """Write the policy as a checkpoint of transformers, and `facts` beside it."""
        model = self.accelerator.unwrap_model(self.model_wrapped)
        write_policy(self.accelerator, model, self.processing_class, folder, facts)

    def create_optimizer(self, model: Any = None) -> Any:
        """Give the value head its own learning rate."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if fresh and isinstance(self.recipe.algorithm, TextPPOConfig):
            split_value_head(optimizer, self.model, self.recipe.algorithm.value_learning_rate)
        return optimizer


# --- Helpers --------------------------------------------------------------------------------------


def combined_reward(**_: Any) -> list[float]:
    """Stand where TRL wants a reward function; `_calculate_rewards` answers in its place."""
    raise NotImplementedError("rewards are computed by RoutingTrainer._calculate_rewards")


def roll_out(prompts: list[str], trainer: RoutingTrainer) -> dict[str, Any]:
    """Collect episodes: what TRL calls as `rollout_func`."""
    return trainer.collect(prompts)


def make_mask(row: TokenRow, keep: bool) -> list[int]:
    """Return 1 for tokens that are learnt from: the policy's, of an episode that did not fail."""
    return [int(keep and own) for own in row.policy_mask]
