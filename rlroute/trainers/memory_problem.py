"""Memory-tier routing for the loop (`rlroute.trainers.loop.Problem`), and its validation.

Utility of an answer at a cost weight is score - weight * cost / reference, cost being that of the
modules and the reference what the dearest tier everywhere costs on average on the training split.
Training uses the recipe's reward, which may be of another form; validation always uses this.

It leaves out set-up and files (`rlroute.trainers.memory_run`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlroute.envs.memory_tiers import TierEpisodes
from rlroute.evaluation.frontier import compute_aiq
from rlroute.evaluation.metrics import compute_selection_entropy
from rlroute.memory.outcomes import TierOutcomes
from rlroute.policies.tier_scorer import TierScorerPolicy
from rlroute.policies.tierwise import TierInputs, TierPolicy
from rlroute.rewards.memory import MemoryReward
from rlroute.rollout.plan import plan_episodes
from rlroute.rollout.tiers import collect_tier_batch, place_terms
from rlroute.tracking import Tracker
from rlroute.trainers.learner import DecisionScores, Learner, MinibatchPart
from rlroute.trainers.memory_recipe import MemoryRecipe
from rlroute.trainers.metrics import reduce_sums
from rlroute.trainers.run_folder import save_best
from rlroute.types import Batch, BoolArray, FloatArray, IntArray, UsdArray


def score_tiers(learner: Learner, batch: Batch, part: MinibatchPart) -> DecisionScores:
    """Run a tier scorer on rows of a batch; step t of an episode is module t."""
    device, steps = learner.accelerator.device, batch.valid_BT.shape[1]
    features_NF = torch.as_tensor(batch.features_BTF[part.rows_B], device=device).flatten(0, 1)
    scores: DecisionScores = learner.model(
        features_NF,
        torch.arange(steps, device=device).repeat(len(part.rows_B)),
        torch.as_tensor(batch.mask_BTK[part.rows_B], device=device).flatten(0, 1),
    )
    return scores


@dataclass(frozen=True)
class GreedyRun:
    """What the greedy policy got for each question at one cost weight; NaN where a call failed."""

    score_Q: FloatArray
    cost_usd_Q: UsdArray
    answer_cost_usd_Q: UsdArray
    tier_QM: IntArray

    @property
    def failed_Q(self) -> BoolArray:
        """Where a module or the answer failed."""
        return np.isnan(self.score_Q) | np.isnan(self.cost_usd_Q)


def average_known(value_Q: FloatArray | UsdArray, failed_Q: BoolArray) -> float:
    """Return the mean of what did not fail; NaN where all did."""
    return float("nan") if failed_Q.all() else float(value_Q[~failed_Q].mean())


def play_greedily(
    policy: TierPolicy, outcomes: TierOutcomes, cost_weight: float, reference_usd: float
) -> GreedyRun:
    """Play every question of a split once at a cost weight."""
    questions = np.arange(len(outcomes.questions))
    episodes = TierEpisodes(outcomes, reference_usd=reference_usd)
    episodes.start(questions, np.full(len(questions), cost_weight, dtype=np.float32))
    no_chance_B = np.zeros(len(questions))
    while not episodes.ended:
        seen = episodes.observe()
        inputs = TierInputs(seen.features_BF, seen.module, seen.mask_BK, seen.cost_weight_B)
        episodes.act(policy.decide(inputs, no_chance_B).action_B)
    ends = episodes.end()
    return GreedyRun(ends.score_B, ends.cost_usd_B, ends.answer_cost_usd_B, ends.tier_BM)


class MemoryProblem:
    """Memory-tier routing for the loop; `reference_usd` is the unit of costs."""

    def __init__(
        self,
        recipe: MemoryRecipe,
        train: TierOutcomes,
        val: TierOutcomes,
        reference_usd: float,
        cost_weights: list[float],
    ) -> None:
        self.recipe, self.train, self.val = recipe, train, val
        self.reference_usd, self.cost_weights = reference_usd, cost_weights
        self.reward = MemoryReward(recipe.reward.resolve(reference_usd))
        self.episodes = TierEpisodes(train, reference_usd=reference_usd)

    def collect(self, learner: Learner, update: int) -> Batch:
        """Play this process's episodes; those of all processes join the reward's window."""
        algorithm, accelerator = self.recipe.algorithm, learner.accelerator
        plan = plan_episodes(
            self.recipe.seed,
            update,
            queries=len(self.train.questions),
            groups=algorithm.episodes // algorithm.group_size,
            group_size=algorithm.group_size,
        ).select_part(accelerator.process_index, accelerator.num_processes)
        scorer = learner.scorer.eval()
        modules = scorer.config.modules
        batch = collect_tier_batch(
            TierScorerPolicy(scorer, version=update),
            self.episodes,
            plan,
            self.recipe.cost_weight.draw(plan.episode_seed_B),
            self.reward,
            candidate_features_KD=scorer.tier_features_MKD.flatten(0, 1).cpu().numpy(),
            push=False,
        )
        ends = batch.ends
        assert ends is not None
        both_B2 = torch.as_tensor(
            np.stack([ends.score_B, ends.cost_usd_B], axis=1), device=accelerator.device
        )
        all_B2 = accelerator.gather(both_B2).cpu().numpy()
        self.reward.push(all_B2[:, 0], all_B2[:, 1])
        terms = place_terms(self.reward, ends.score_B, ends.cost_usd_B, modules)
        return replace(batch, reward_terms_BT=terms)

    def summarise(self, learner: Learner, batch: Batch) -> dict[str, float]:
        """Return the batch's metrics over all processes, of the episodes that did not fail."""
        ends = batch.ends
        assert ends is not None
        known_B = ~np.isnan(ends.score_B)
        sums: dict[str, float] = {
            "episodes": len(known_B),
            "known": known_B.sum(),
            "dropped": batch.dropped,
            "score": ends.score_B[known_B].sum(),
            "cost": ends.cost_usd_B[known_B].sum(),
        }
        for name, value_BT in batch.reward_terms_BT.items():
            value_B = value_BT[known_B, -1].astype(np.float64)
            sums |= {f"{name}/sum": value_B.sum(), f"{name}/squares": (value_B**2).sum()}
        for m, module in enumerate(self.train.facts.modules):
            picks_K = np.bincount(batch.action_BT[known_B, m], minlength=len(module.tiers))
            sums |= {f"pick/{m}/{k}": count for k, count in enumerate(picks_K)}
        return self.name_metrics(reduce_sums(learner, sums), list(batch.reward_terms_BT))

    def name_metrics(self, total: dict[str, float], terms: list[str]) -> dict[str, float]:
        """Turn sums over all processes into metrics."""
        known = max(total["known"], 1.0)
        metrics = {
            "cost/usd_per_query": total["cost"] / known,
            "group/dropped": total["dropped"],
            "reward/scale": self.reward.scale,
        }
        for name in terms:
            mean = total[f"{name}/sum"] / known
            variance = max(total[f"{name}/squares"] / known - mean**2, 0.0)
            metrics |= {
                f"reward/{name}/mean": mean,
                f"reward/{name}/std": variance**0.5,
                f"reward/{name}/frac_undefined": 1 - total["known"] / total["episodes"],
            }
        entropies = []
        for m, module in enumerate(self.train.facts.modules):
            share_K = np.array([total[f"pick/{m}/{k}"] for k in range(len(module.tiers))]) / known
            entropies.append(compute_selection_entropy(share_K))
            metrics |= {
                f"selection/share/{module.name}/{tier}": float(share)
                for tier, share in zip(module.tiers, share_K, strict=True)
            }
        metrics["selection/entropy"] = float(np.mean(entropies))
        return metrics

    def validate(self, learner: Learner) -> dict[str, float]:
        """Play val greedily over the sweep of cost weights; see `MemoryValidationConfig`.

        In utility and AIQ, which choose the best weights, a failed question counts as a wrong
        answer at the reference cost: failing where a question is hard or dear never pays. Quality
        and cost are those of what did not fail, NaN where all did.
        """
        policy = TierScorerPolicy(learner.scorer.eval(), greedy=True)
        runs = [
            play_greedily(policy, self.val, weight, self.reference_usd)
            for weight in self.cost_weights
        ]
        quality = [float(np.where(run.failed_Q, 0.0, run.score_Q).mean()) for run in runs]
        cost_usd = [
            float(np.where(run.failed_Q, self.reference_usd, run.cost_usd_Q).mean()) for run in runs
        ]
        utility = [
            quality[w] - weight * cost_usd[w] / self.reference_usd
            for w, weight in enumerate(self.cost_weights)
        ]
        return {
            "eval/utility": float(np.mean(utility)),
            "eval/aiq": compute_aiq(cost_usd, quality, 0.0, self.reference_usd),
            "eval/quality": average_known(runs[0].score_Q, runs[0].failed_Q),
            "eval/cost": average_known(runs[0].cost_usd_Q, runs[0].failed_Q),
            "eval/quality_last": average_known(runs[-1].score_Q, runs[-1].failed_Q),
            "eval/cost_last": average_known(runs[-1].cost_usd_Q, runs[-1].failed_Q),
            "eval/failed": float(np.mean([run.failed_Q for run in runs])),
        }

    def describe_episodes(self, batch: Batch, count: int) -> list[dict[str, Any]]:
        """Return the first episodes of a batch as plain rows (question ids, not texts)."""
        ends, facts = batch.ends, self.train.facts
        assert ends is not None
        rows = []
        for b in range(min(count, len(batch.group_B))):
            question = self.train.questions[batch.query_index_B[b]]
            failed = bool(np.isnan(ends.score_B[b]))
            row: dict[str, Any] = {
                "question": question.query.id,
                "kind": question.query.task,
                "cost_weight": float(batch.cost_weight_B[b]),
                "score": None if failed else float(ends.score_B[b]),
                "cost_usd": None if failed else float(ends.cost_usd_B[b]),
            }
            for m, module in enumerate(facts.modules):
                probability = float(np.exp(batch.logp_BT[b, m]))
                row[module.name] = f"{module.tiers[batch.action_BT[b, m]]} ({probability:.2f})"
            for name, value_BT in batch.reward_terms_BT.items():
                row[f"reward/{name}"] = None if failed else float(value_BT[b, -1])
            rows.append(row)
        return rows

    def save_best(self, folder: Path, learner: Learner, facts: dict[str, Any]) -> None:
        """Replace the weights that validation chose."""
        save_best(folder, learner.scorer, facts)

    def get_state(self) -> dict[str, Any]:
        """Return the reward's window and alignment."""
        return {"reward": self.reward.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on with a reward's window and alignment."""
        self.reward.set_state(state["reward"])

    def finish(self, tracker: Tracker, learner: Learner) -> None:
        """Show the greedy policy's choices on val in W&B."""
        policy = TierScorerPolicy(learner.scorer.eval(), greedy=True)
        rows = []
        for weight in self.cost_weights:
            run = play_greedily(policy, self.val, weight, self.reference_usd)
            for m, module in enumerate(self.val.facts.modules):
                share_K = np.bincount(run.tier_QM[:, m], minlength=len(module.tiers))
                rows.append(
                    {"cost_weight": weight, "module": module.name}
                    | dict(zip(module.tiers, (share_K / len(run.tier_QM)).tolist(), strict=True))
                )
        tracker.mirror_table("tiers", rows)
