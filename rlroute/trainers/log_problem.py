"""Learning from a log: what the loop of decision policies gets where only some pairs are known.

    collect   queries of the log at drawn cost weights; the reward of a logged pair is known at all
    update    the exact expected gradient on pseudo-rewards (IPS, doubly robust), or SNIPS, or
              conservative Q-learning                               algorithms/off_policy.py
    validate  the same estimate of the greedy policy's utility on the validation log

Nothing of the pairs that were not logged is read: not by profiles, encoder scale, predictions or
validation. Predictions of the doubly robust form are ridge regressions on the log; those of train
queries come from fits that did not see them (four folds by the hash of the query's id).

Profiles are plain means of the logged pairs of a cluster. They are fair where the behaviour policy
does not look at the query beyond its cluster, and only the start of what is learnt otherwise.

What it leaves out: the log itself (`rlroute.data.logs`), estimates with intervals
(`rlroute.evaluation.log_estimates`).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from rlroute.algorithms.off_policy import compute_pseudo_rewards, compute_weights
from rlroute.data.prepare import PreparedTable
from rlroute.data.routing_data import RoutingData
from rlroute.envs.single_turn import build_reward_stack
from rlroute.policies.baselines import RidgeRegression
from rlroute.policies.decision import GreedyPolicy
from rlroute.rewards.base import Outcomes
from rlroute.seeding import draw_uniform
from rlroute.tracking import Tracker
from rlroute.trainers.learner import Learner
from rlroute.trainers.metrics import describe_episodes, summarise_batch
from rlroute.trainers.recipe import OffPolicyConfig, Recipe
from rlroute.trainers.run_folder import save_best
from rlroute.types import Batch, FloatArray, SplitName

FOLDS = 4


@dataclasses.dataclass(frozen=True)
class LoggedSplit:
    """A split of a log: weights 1/p [Q, K], 0 where nothing was logged, and terms [Q, K].

    `pseudo` are the reward terms that the exact expectation is taken over, for SNIPS and
    conservative Q-learning those of the logged pairs (NaN elsewhere).
    """

    data: RoutingData
    weight_QK: FloatArray
    propensity_QK: FloatArray
    terms: dict[str, FloatArray]
    pseudo: dict[str, FloatArray]


class LogProblem:
    """What the loop needs of a log (`rlroute.trainers.loop.Problem`)."""

    def __init__(
        self,
        recipe: Recipe,
        prepared: PreparedTable,
        propensities: dict[SplitName, FloatArray],
        sweep: list[float],
        plan: Any,
    ) -> None:
        self.recipe, self.sweep, self.plan = recipe, sweep, plan
        train, val = prepared.splits["train"], prepared.splits["val"]
        predicted = predict_outcomes(train, val) if uses_predictions(recipe) else (None, None)
        self.train = make_logged_split(recipe, train, propensities["train"], predicted[0])
        self.val = make_logged_split(recipe, val, propensities["val"], predicted[1])

    def collect(self, learner: Learner, update: int) -> Batch:
        """Return the log of this update's queries at the cost weights drawn for them."""
        plan = self.plan(self.recipe, update, len(self.train.weight_QK), learner.accelerator)
        split, rows = self.train, plan.query_index_B
        pick_B = np.nan_to_num(split.propensity_QK[rows]).argmax(axis=1)
        mask_BK = np.ones_like(split.weight_QK[rows], dtype=np.bool_)
        picked = (np.arange(len(rows)), pick_B)
        return Batch(
            features_BTF=split.data.features_QF[rows][:, None],
            candidate_features_KD=split.data.candidate_features_KD,
            mask_BTK=mask_BK[:, None],
            cost_weight_B=self.recipe.cost_weight.draw(plan.episode_seed_B),
            action_BT=pick_B[:, None],
            logp_BT=np.log(split.propensity_QK[rows][picked])[:, None],
            value_BT=np.zeros((len(rows), 1), dtype=np.float32),
            valid_BT=np.ones((len(rows), 1), dtype=np.bool_),
            terminated_B=np.ones(len(rows), dtype=np.bool_),
            reward_terms_BT={
                name: t_QK[rows][picked][:, None] for name, t_QK in split.terms.items()
            },
            query_index_B=rows,
            group_B=plan.group_B,
            policy_version=update,
            outcome_terms_BK={name: term_QK[rows] for name, term_QK in split.pseudo.items()},
            log_weight_BK=split.weight_QK[rows],
        )

    def summarise(self, learner: Learner, batch: Batch) -> dict[str, float]:
        """Return the batch's metrics; selections and costs are the log's own."""
        return summarise_batch(learner, batch, self.train.data)

    def validate(self, learner: Learner) -> dict[str, float]:
        """Estimate the greedy policy's mean utility over the sweep from the validation log."""
        policy = GreedyPolicy(learner.scorer.eval())
        rewards, found, rows = build_reward_stack(self.val.data), [], []
        for weight in self.sweep:
            share_QK = compute_unmasked(policy, self.val.data, weight)
            reward_QK = rewards.combine(self.val.pseudo, np.asarray(weight, np.float32))
            found.append(estimate_value(self.recipe, share_QK, reward_QK, self.val.weight_QK))
            rows.append(count_effective_rows(share_QK * self.val.weight_QK))
        return {
            "eval/utility": float(np.mean(found)),
            "eval/effective_rows": float(min(rows)),
        }

    def describe_episodes(self, batch: Batch, count: int) -> list[dict[str, Any]]:
        """Return the first logged picks of a batch as plain rows."""
        return describe_episodes(batch, self.train.data, count)

    def save_best(self, folder: Path, learner: Learner, facts: dict[str, Any]) -> None:
        """Replace the weights that validation chose."""
        save_best(folder, learner.scorer, facts)

    def get_state(self) -> dict[str, Any]:
        """Return nothing: every draw follows from its coordinates."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Take the empty state."""

    def finish(self, tracker: Tracker, learner: Learner) -> None:
        """Say how many rows the estimate of the final policy rests on."""
        rows = self.validate(learner)["eval/effective_rows"]
        tracker.log_event(f"validation log: {rows:.0f} effective rows at the least cost weight")


def uses_predictions(recipe: Recipe) -> bool:
    """Say whether the recipe's estimator predicts outcomes."""
    algorithm = recipe.algorithm
    return isinstance(algorithm, OffPolicyConfig) and algorithm.estimator == "doubly_robust"


def make_logged_split(
    recipe: Recipe,
    data: RoutingData,
    propensity_QK: FloatArray,
    predicted: dict[str, FloatArray] | None,
) -> LoggedSplit:
    """Compute weights and (pseudo-)reward terms of a split."""
    table, algorithm = data.table, recipe.algorithm
    limit = algorithm.weight_limit if isinstance(algorithm, OffPolicyConfig) else None
    weight_QK = compute_weights(propensity_QK, limit)
    terms = build_reward_stack(data).score(
        Outcomes(table.score_QK, table.cost_usd_QK, ~table.present_QK)
    )
    pseudo = terms
    if isinstance(algorithm, OffPolicyConfig) and algorithm.estimator != "snips":
        pseudo = {
            name: compute_pseudo_rewards(term_QK, weight_QK, (predicted or {}).get(name))
            for name, term_QK in terms.items()
        }
    return LoggedSplit(data, weight_QK, propensity_QK, terms, pseudo)


def predict_outcomes(
    train: RoutingData, val: RoutingData
) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
    """Return predicted outcome and cost terms of train and val, by ridge regression on the log."""
    ids = [query.id for query in train.table.queries]
    fold_Q = np.array([int(FOLDS * float(draw_uniform("fold", name))) for name in ids])
    held = [np.empty(train.table.score_QK.shape, dtype=np.float32) for _ in range(2)]
    for fold in range(FOLDS):
        inside_Q = fold_Q == fold
        model = RidgeRegression(train.select_queries(~inside_Q), val)
        for target_QK, found_QK in zip(
            held, model.predict(train.features_QF[inside_Q]), strict=True
        ):
            target_QK[inside_Q] = found_QK
    whole = RidgeRegression(train, val).predict(val.features_QF)
    names = ("outcome", "cost")
    return (
        dict(zip(names, held, strict=True)),
        {name: one.astype(np.float32) for name, one in zip(names, whole, strict=True)},
    )


def compute_unmasked(policy: GreedyPolicy, data: RoutingData, cost_weight: float) -> FloatArray:
    """Return the policy's picks [Q, K] among all candidates, logged here or not."""
    table = dataclasses.replace(data.table, present_QK=np.ones_like(data.table.present_QK))
    return policy.compute_probabilities(dataclasses.replace(data, table=table), cost_weight)


def estimate_value(
    recipe: Recipe, share_QK: FloatArray, reward_QK: FloatArray, weight_QK: FloatArray
) -> float:
    """Return the estimated mean reward of a policy's picks [Q, K], as the recipe estimates."""
    algorithm = recipe.algorithm
    if isinstance(algorithm, OffPolicyConfig) and algorithm.estimator != "snips":
        return float((share_QK * reward_QK).sum(1, dtype=np.float64).mean())
    weighed_QK = share_QK * weight_QK
    total = float(weighed_QK.sum(dtype=np.float64))
    earned = float((weighed_QK * np.nan_to_num(reward_QK)).sum(dtype=np.float64))
    return earned / total if total else float("-inf")  # it never does what was logged


def count_effective_rows(weight_QK: FloatArray) -> float:
    """Return (sum of weights)^2 / sum of squared weights; 0 where there are none."""
    square = float((weight_QK.astype(np.float64) ** 2).sum())
    return float(weight_QK.sum(dtype=np.float64)) ** 2 / square if square else 0.0
