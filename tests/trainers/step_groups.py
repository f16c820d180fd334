"""Groups of many-step episodes as arrays, and their advantages and gradients worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from accelerate import Accelerator

from rlroute.config import parse_config
from rlroute.policies.step_scorer import StepScorer, StepScorerConfig
from rlroute.rewards.boundary import BoundaryReward
from rlroute.trainers.learner import Learner
from rlroute.trainers.step_policy import score_steps
from rlroute.trainers.step_recipe import StepRecipe
from rlroute.trainers.step_targets import compute_step_advantages
from rlroute.trainers.update import update_policy
from rlroute.types import FORCED, MEMBER, REFERENCE, Batch, EpisodeEnds

EXECUTORS_KD = np.array([[1.0, 0.0, 0.0], [1.0, 0.7, 1.0]], dtype=np.float32)
FEATURES, STEPS = 3, 5
SMOOTHING = 0.1  # of the shaped ratio of a reference


def make_recipe(algorithm: dict, **fields) -> StepRecipe:
    data = {
        "environment": "step_budget",
        "world": {"kind": "chain"},
        "algorithm": algorithm,
        "optimiser": {"learning_rate": 1.0, "max_grad_norm": 1e6},
    }
    return parse_config(StepRecipe, data | fields, "test")


def make_grpo(**fields) -> StepRecipe:
    return make_recipe({"kind": "grpo", "group_size": 2, "episodes": 4} | fields)


def make_batch(
    scores,
    costs,
    *,
    group: int,
    lengths=None,
    hard: bool = True,
    roles=None,
    references=(),
    mask_BTK=None,
    weight: float = 0.3,
) -> Batch:
    """Return episodes with these scores and normalised costs, groups side by side."""
    rng = np.random.default_rng(0)
    episodes = len(scores)
    score_B, cost_B = np.float32(scores), np.float32(costs)
    length_B = np.full(episodes, STEPS) if lengths is None else np.array(lengths)
    valid_BT = np.arange(STEPS) < length_B[:, None]
    if mask_BTK is None:
        mask_BTK = np.ones((episodes, STEPS, 2), dtype=np.bool_)
    role_B = np.full(episodes, MEMBER) if roles is None else np.array(roles)
    drawn_BT = rng.integers(0, 2, (episodes, STEPS))
    action_BT = np.where(mask_BTK[..., 1], drawn_BT, 0)
    action_BT = np.where(role_B[:, None] == REFERENCE, mask_BTK[..., 1].astype(int), action_BT)
    last_BT = np.arange(STEPS) == length_B[:, None] - 1

    def place(value_B) -> np.ndarray:
        return np.where(last_BT, np.float32(value_B)[:, None], np.float32(0))

    reference_BR = np.tile(np.float32(references), (episodes, 1)).reshape(episodes, len(references))
    choice_BT = valid_BT & mask_BTK.all(axis=2)
    return Batch(
        features_BTF=rng.normal(size=(episodes, STEPS, FEATURES)).astype(np.float32),
        candidate_features_KD=EXECUTORS_KD,
        mask_BTK=mask_BTK,
        cost_weight_B=np.full(episodes, weight, dtype=np.float32),
        action_BT=action_BT,
        logp_BT=np.zeros((episodes, STEPS), dtype=np.float32),
        value_BT=np.zeros((episodes, STEPS), dtype=np.float32),
        valid_BT=valid_BT,
        terminated_B=np.ones(episodes, dtype=np.bool_),
        reward_terms_BT={
            "outcome": place(score_B),
            "hard_bonus": place(score_B * hard),
            "cost": place(np.where(hard & (score_B == 0), np.float32(0), cost_B)),  # the gate
        },
        query_index_B=np.zeros(episodes, dtype=np.int64),
        group_B=np.repeat(np.arange(episodes // group), group),
        ends=EpisodeEnds(
            score_B=score_B,
            cost_usd_B=cost_B,
            calls_B=np.zeros(episodes, dtype=np.int64),
            cap_B=np.full(episodes, np.inf, dtype=np.float32),
            exhausted_B=np.zeros(episodes, dtype=np.bool_),
            free_BT=choice_BT & (role_B != FORCED)[:, None],
            role_B=role_B,
            reference_BR=reference_BR,
            solvable_B=np.full(episodes, any(value > 0 for value in references)),
            hard_B=np.full(episodes, hard),
        ),
    )


def combine(recipe: StepRecipe, batch: Batch) -> torch.Tensor:
    reward_BT = BoundaryReward(recipe.reward).combine(
        batch.reward_terms_BT, batch.cost_weight_B[:, None]
    )
    return torch.as_tensor(np.where(batch.valid_BT, reward_BT, 0).sum(axis=1))


def compute(recipe: StepRecipe, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    adv_B, valid_B = compute_step_advantages(recipe.algorithm, batch, combine(recipe, batch))
    return adv_B.numpy(), valid_B.numpy()


def make_learner(recipe: StepRecipe, *, micro_batch: int | None = None, seed: int = 0) -> Learner:
    """Return a logistic policy with some weights, and plain gradient descent with step size 1."""
    scorer = make_scorer(seed)
    scorer.value_head.requires_grad_(recipe.algorithm.kind == "ppo")
    optimiser = torch.optim.SGD([p for p in scorer.parameters() if p.requires_grad], lr=1.0)
    return Learner(
        Accelerator(cpu=True),
        scorer,
        optimiser,
        score_steps,
        BoundaryReward(recipe.reward),
        recipe,
        micro_batch=micro_batch,
    )


def make_scorer(seed: int) -> StepScorer:
    torch.manual_seed(seed)
    scorer = StepScorer(StepScorerConfig(features=FEATURES, described=3, hidden=0))
    torch.nn.init.normal_(scorer.executor_tower.weight, std=0.5)
    return scorer


def find_gradient(
    recipe: StepRecipe, batch: Batch, *, micro_batch: int | None = None, reference=None
) -> tuple[np.ndarray, dict[str, float]]:
    """Return the gradient that an update follows, and its metrics; old log-probs are current."""
    learner = make_learner(recipe, micro_batch=micro_batch)
    learner.reference = reference
    before = learner.model.executor_tower.weight.detach().clone()
    logp_BTK = score_by_hand(before.numpy(), batch)[1]
    logp_BT = np.take_along_axis(logp_BTK, batch.action_BT[..., None], axis=2)[..., 0]
    forced_B1 = (batch.ends.role_B != MEMBER)[:, None]
    logp_BT = np.where(forced_B1, 0.0, logp_BT).astype(np.float32)
    metrics = update_policy(learner, replace(batch, logp_BT=logp_BT), 0)
    return (before - learner.model.executor_tower.weight.detach()).numpy(), metrics


def score_by_hand(weight_HD: np.ndarray, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Return a logistic policy's inputs [B, T, H] and log-probs [B, T, K]."""
    episodes = len(batch.group_B)
    weight_BT1 = np.log1p(batch.cost_weight_B)[:, None, None] * np.ones((1, STEPS, 1))
    one_BT1 = np.ones((episodes, STEPS, 1))
    x_BTH = np.concatenate([batch.features_BTF, weight_BT1, one_BT1], axis=2)
    logit_BTK = np.where(batch.mask_BTK, x_BTH @ weight_HD @ EXECUTORS_KD.T, -np.inf)
    logit_BTK -= logit_BTK.max(axis=2, keepdims=True)
    logp_BTK = logit_BTK - np.log(np.exp(logit_BTK).sum(axis=2, keepdims=True))
    return x_BTH, logp_BTK


def compute_gradient_by_hand(
    batch: Batch, adv_B: np.ndarray, learnt_B: np.ndarray, static_B: np.ndarray
) -> np.ndarray:
    """Return the gradient of the loss over all decisions: -A * d logp, or that of r / (r + s)."""
    x_BTH, logp_BTK = score_by_hand(make_scorer(0).executor_tower.weight.detach().numpy(), batch)
    total, count = 0.0, 0
    for b in range(len(adv_B)):
        for t in range(STEPS):
            if not (learnt_B[b] and batch.ends.free_BT[b, t]):
                continue
            p_K, action = np.exp(logp_BTK[b, t]), batch.action_BT[b, t]
            slope = np.outer(x_BTH[b, t], EXECUTORS_KD[action] - p_K @ EXECUTORS_KD)
            if static_B[b]:
                r = p_K[action]
                slope = slope * r * SMOOTHING / (r + SMOOTHING) ** 2
            total, count = total - adv_B[b] * slope, count + 1
    return total / count
