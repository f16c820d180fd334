"""Trees of memory tiers whose right choices are planted, and the trainer's loop on them.

Scores and costs are given for each module and tier; no pipeline runs. Questions are of kinds that
their embeddings tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from accelerate import Accelerator

from rlroute.config import parse_config
from rlroute.memory.base import MemoryQuestion, Role
from rlroute.memory.outcomes import ModuleFacts, PipelineFacts
from rlroute.memory.tree import TierTree
from rlroute.policies.tier_scorer import TierScorerPolicy
from rlroute.trainers.learner import Learner
from rlroute.trainers.loop import set_schedules
from rlroute.trainers.memory_problem import GreedyRun, MemoryProblem, play_greedily
from rlroute.trainers.memory_recipe import MemoryRecipe
from rlroute.trainers.memory_run import CostFacts, make_learner, measure_start
from rlroute.trainers.update import update_policy
from rlroute.types import Query

ROLES: dict[str, Role] = {
    "filter": "filter",
    "entity": "extract",
    "temporal": "extract",
    "topic": "extract",
    "summary": "summary",
}
TIERS = ("Low", "Mid", "High")
PRICES = np.array([[0.0, 0.0004, 0.002]] * 5)  # USD by module and tier
FACTS = PipelineFacts(
    tuple(ModuleFacts(name, role, f"Does {name}.", TIERS) for name, role in ROLES.items()),
    fingerprint="planted",
)
NOTHING: dict[str, Any] = {"kind": "rules"}
RECIPE: dict[str, Any] = {
    "environment": "memory_tiers",
    "data": {"kind": "generated"},
    "models": {"kind": "simulated", "candidates": {"m": {"prices": {"input": 1, "output": 1}}}},
    "pipeline": {
        "modules": [
            {"name": name, "role": role, "tiers": [NOTHING, NOTHING]}
            for name, role in ROLES.items()
        ],
        "answerer": {"kind": "reader"},
    },
    "updates": 100,
    "cost_weight": {"min": 0, "max": 3, "power": 1.5},
    "reward": {"cost": {"kind": "fixed", "clip": False}, "alignment": None},
    "policy": {"hidden": 64, "action_hidden": 32},
    "algorithm": {"kind": "ppo", "episodes": 256, "minibatches": 2, "target_kl": None},
    "optimiser": {"learning_rate": 0.003, "decay": "linear"},
    "tracking": {"wandb": False},
}


def make_tree(
    score_CL: np.ndarray, prices_MK: np.ndarray = PRICES, *, questions: int = 60, seed: int = 0
) -> TierTree:
    """Return a tree of questions of C kinds in turn; a leaf's score depends on the kind alone.

    A price of NaN is that of a tier that always fails.
    """
    rng = np.random.default_rng(seed)
    kinds = len(score_CL)
    kind_Q = np.arange(questions) % kinds
    query_QE = rng.normal(0, 0.1, (questions, 8)).astype(np.float32)
    query_QE[np.arange(questions), kind_Q] += 1
    query_QE /= np.linalg.norm(query_QE, axis=1, keepdims=True)
    leaf_LM = FACTS.list_leaves()
    known_L = ~np.isnan(prices_MK[np.arange(5), leaf_LM]).any(axis=1)
    summary_L = np.where(known_L, prices_MK[4, leaf_LM[:, 4]], np.nan)
    extract_KXN = prices_MK[1:4] + np.where(np.isnan(prices_MK[0]), np.nan, 0.0)[:, None, None]
    shape = (questions, 3, 3, 3)
    return TierTree(
        facts=FACTS,
        questions=tuple(
            MemoryQuestion(Query(f"q{q}", f"question {q}", f"kind {kind_Q[q]}"), f"h{q // 6}")
            for q in range(questions)
        ),
        encoder_fingerprint="planted",
        query_QE=query_QE,
        retrieved_QE=query_QE,
        filtered_QKE=np.repeat(query_QE[:, None], 3, axis=1),
        notes_QKXNE=np.zeros((*shape, 8), dtype=np.float32),
        has_notes_QKXN=np.zeros(shape, dtype=np.bool_),
        filter_cost_QK=np.tile(prices_MK[0], (questions, 1)),
        extract_cost_QKXN=np.broadcast_to(extract_KXN, shape).copy(),
        summary_cost_QL=np.tile(summary_L, (questions, 1)),
        answer_cost_QL=np.tile(np.where(known_L, 0.0001, np.nan), (questions, 1)),
        leaf_score_QL=np.where(known_L, score_CL[kind_Q], np.nan).astype(np.float32),
    )


@dataclass(frozen=True)
class Trained:
    """A learner that was trained on a tree, and its metrics by update."""

    learner: Learner
    problem: MemoryProblem
    rows: list[dict[str, float]]

    def play(self, cost_weight: float, tree: TierTree | None = None) -> GreedyRun:
        """Play every question greedily, those of training where no others are given."""
        policy = TierScorerPolicy(self.learner.scorer.eval(), greedy=True)
        outcomes = tree or self.problem.train
        return play_greedily(policy, outcomes, cost_weight, self.problem.reference_usd)

    def compute_utility(self, cost_weight: float, tree: TierTree) -> float:
        """Return the mean utility of greedy play; a failure is an error."""
        run = self.play(cost_weight, tree)
        share_Q = run.cost_usd_Q / self.problem.reference_usd
        return float((run.score_Q - cost_weight * share_Q).mean())


def compute_leaf_utility(tree: TierTree, cost_weight: float, reference_usd: float) -> np.ndarray:
    """Return the utility of every question and leaf [Q, L]."""
    return tree.leaf_score_QL - cost_weight * tree.leaf_cost_QL / reference_usd


def start(tree: TierTree, **changes: Any) -> Trained:
    """Return what a run on a tree starts from."""
    recipe = parse_config(MemoryRecipe, RECIPE | changes, "recipe")
    reference = tree.find_reference_cost()
    problem = MemoryProblem(recipe, tree, tree, reference, [0.0, 1.0])
    stage: Any = SimpleNamespace(
        encoder=SimpleNamespace(
            dimension=8, encode=lambda texts: np.eye(len(texts), 8, dtype=np.float32)
        ),
        pipeline=SimpleNamespace(facts=FACTS),
    )
    usd_MK = [np.nan_to_num(tree.filter_cost_QK[0]).tolist()]
    usd_MK += np.nan_to_num(tree.extract_cost_QKXN[0, 0]).tolist()
    usd_MK += [np.nan_to_num(tree.summary_cost_QL[0, :3]).tolist()]
    costs = CostFacts(reference, usd_MK)
    profiles = None
    if recipe.policy.profiles is not None:
        profiles = measure_start(recipe, tree, reference)
    learner = make_learner(recipe, stage, costs, problem.reward, Accelerator(cpu=True), profiles)
    return Trained(learner, problem, [])


def train(tree: TierTree, **changes: Any) -> Trained:
    """Train on a tree as the loop does, without its files."""
    run = start(tree, **changes)
    for update in range(run.problem.recipe.updates):
        set_schedules(run.learner, run.problem.recipe, update)
        batch = run.problem.collect(run.learner, update)
        metrics = update_policy(run.learner, batch, update)
        run.rows.append(metrics | run.problem.summarise(run.learner, batch))
    return run
