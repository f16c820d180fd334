"""Updates on memory-tier episodes, worked out by hand: joint credit, per-decision credit, failures.

The hand computation uses plain tensors: no loss or advantage of the library.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from rlroute.config import parse_config
from rlroute.policies.tier_scorer import TierScorer, TierScorerConfig, describe_tiers
from rlroute.rewards.memory import MemoryReward, MemoryRewardConfig
from rlroute.seeding import draw_permutation
from rlroute.trainers.learner import Learner
from rlroute.trainers.memory_problem import score_tiers
from rlroute.trainers.memory_recipe import MemoryPPOConfig
from rlroute.trainers.recipe import OptimiserConfig
from rlroute.trainers.update import update_policy
from rlroute.types import MEMBER, Batch, EpisodeEnds

MODULES, TIERS, WIDTH, EXTRAS = 5, 3, 4, 18
EPISODES = 32  # as in the sheet
PRICES = [[0.0, 0.0001, 0.002]] * 5
PAPER = {"form": "paper", "cost": {"kind": "window"}}
JOINT = {  # the sheet's update
    "kind": "ppo",
    "credit": "joint",
    "episodes": EPISODES,
    "epochs": 1,
    "minibatches": 1,
    "clip_range": 0.2,
    "value_clip": 0.2,
    "value_weight": 1.0,
    "entropy_weight": 0.01,
    "target_kl": None,
}
DECISION = JOINT | {"credit": "decision", "value_clip": None, "value_weight": 0.5}


class Settings:
    """What an update reads of a recipe."""

    def __init__(self, algorithm: dict[str, Any], max_grad_norm: float) -> None:
        self.seed, self.updates = 3, 10
        self.algorithm = parse_config(MemoryPPOConfig, algorithm, "algorithm")
        self.optimiser = OptimiserConfig(learning_rate=0.1, max_grad_norm=max_grad_norm)


def make_learner(
    algorithm: dict[str, Any],
    reward: MemoryReward | None = None,
    *,
    entropy_weight: float = 0.01,
    max_grad_norm: float = 1e6,
) -> Learner:
    """Return a learner whose step is plain descent of rate 0.1, so that it shows the gradient."""
    torch.manual_seed(0)
    scorer = TierScorer(
        TierScorerConfig(
            dimension=WIDTH, extras=EXTRAS, modules=MODULES, tiers=TIERS, hidden=8, action_hidden=6
        )
    )
    description_ME = np.random.default_rng(1).normal(size=(MODULES, WIDTH)).astype(np.float32)
    scorer.describe(description_ME, describe_tiers(PRICES, 0.01))
    for weight in (scorer.output.weight, scorer.value_output.weight):
        torch.nn.init.normal_(weight, std=0.5)
    return Learner(
        Accelerator(cpu=True),
        scorer,
        torch.optim.SGD(scorer.parameters(), lr=0.1),
        score_tiers,
        reward or MemoryReward(MemoryRewardConfig.model_validate(PAPER)),
        Settings(algorithm, max_grad_norm),
        entropy_weight=entropy_weight,
    )


def make_batch(
    reward: MemoryReward,
    *,
    seed: int = 0,
    failed: tuple[int, ...] = (),
    weight: float | None = None,
) -> Batch:
    """Return episodes of a policy near the learner's: ratios fall on both sides of the clip."""
    rng = np.random.default_rng(seed)
    shape = (EPISODES, MODULES)
    features_BTF = rng.normal(size=(*shape, 2 * WIDTH + EXTRAS)).astype(np.float32)
    action_BT = rng.integers(0, TIERS, shape)
    features_BTF[:, :, 2 * WIDTH :] *= 0.3
    score_B = rng.choice([0.0, 0.5, 1.0], EPISODES).astype(np.float32)
    cost_usd_B = rng.uniform(0, 0.01, EPISODES).astype(np.float32)
    score_B[list(failed)] = cost_usd_B[list(failed)] = np.nan
    reward.push(score_B, cost_usd_B)
    terms = {}
    for name, value_B in reward.score(score_B, cost_usd_B).items():
        terms[name] = np.zeros(shape, dtype=np.float32)
        terms[name][:, -1] = value_B
    weight_B = rng.uniform(0, 1, EPISODES) if weight is None else np.full(EPISODES, weight)
    none_B = np.zeros(EPISODES, dtype=np.bool_)
    return Batch(
        features_BTF=features_BTF,
        candidate_features_KD=np.zeros((1, 1), dtype=np.float32),
        mask_BTK=np.ones((*shape, TIERS), dtype=np.bool_),
        cost_weight_B=weight_B.astype(np.float32),
        action_BT=action_BT,
        logp_BT=np.zeros(shape, dtype=np.float32),
        value_BT=rng.normal(0.4, 0.3, shape).astype(np.float32),
        valid_BT=np.ones(shape, dtype=np.bool_),
        terminated_B=~np.isnan(score_B),
        reward_terms_BT=terms,
        query_index_B=np.arange(EPISODES),
        group_B=np.arange(EPISODES),
        policy_version=0,
        dropped=len(failed),
        ends=EpisodeEnds(
            score_B=score_B,
            cost_usd_B=cost_usd_B,
            calls_B=np.zeros(EPISODES, dtype=np.int64),
            cap_B=np.full(EPISODES, np.inf, dtype=np.float32),
            exhausted_B=none_B,
            free_BT=np.ones(shape, dtype=np.bool_),
            role_B=np.full(EPISODES, MEMBER),
            reference_BR=np.full((EPISODES, 0), np.nan, dtype=np.float32),
            solvable_B=none_B,
            hard_B=none_B,
        ),
    )


def run_network(learner: Learner, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the actions' log-probs [B, T], entropies [B, T] and values [B, T]."""
    scores = learner.model(
        torch.as_tensor(batch.features_BTF).flatten(0, 1),
        torch.arange(MODULES).repeat(len(batch.group_B)),
        torch.as_tensor(batch.mask_BTK).flatten(0, 1),
    )
    shape = batch.action_BT.shape
    logp_NK = scores.logits_BK - scores.logits_BK.logsumexp(dim=1, keepdim=True)
    entropy_BT = -(logp_NK.exp() * logp_NK).sum(dim=1).reshape(shape)
    action_N1 = torch.as_tensor(batch.action_BT).reshape(-1, 1)
    return logp_NK.gather(1, action_N1).reshape(shape), entropy_BT, scores.value_B.reshape(shape)


def near_old(learner: Learner, batch: Batch, spread: float = 0.08, shift: float = 0.3) -> Batch:
    """Return the batch with old log-probs and values near the network's own."""
    rng = np.random.default_rng(9)
    with torch.no_grad():
        logp_BT, _, value_BT = run_network(learner, batch)
    noise_BT = rng.normal(0, spread, logp_BT.shape).astype(np.float32)
    moved_BT = rng.normal(0, shift, logp_BT.shape).astype(np.float32)
    return replace(batch, logp_BT=logp_BT.numpy() + noise_BT, value_BT=value_BT.numpy() + moved_BT)


def find_gradients(
    learner: Learner, batch: Batch
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Return the gradients behind one update's step of plain descent, and its metrics."""
    before = {name: value.detach().clone() for name, value in learner.model.named_parameters()}
    metrics = update_policy(learner, batch, update=0)
    moved = {
        name: ((before[name] - value.detach()) / 0.1).numpy()
        for name, value in learner.model.named_parameters()
    }
    return moved, metrics


def differentiate(learner: Learner, loss: torch.Tensor) -> dict[str, np.ndarray]:
    names = [name for name, _ in learner.model.named_parameters()]
    found = torch.autograd.grad(loss, list(learner.model.parameters()))
    return {name: value.numpy() for name, value in zip(names, found, strict=True)}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(found) == set(expected)
    assert max(np.abs(value).max() for value in expected.values()) > 1e-2
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=3e-5, err_msg=name)


def clip_surrogate(ratio: torch.Tensor, adv: torch.Tensor) -> torch.Tensor:
    return -torch.min(ratio * adv, ratio.clamp(0.8, 1.2) * adv)


# --- Joint credit ---------------------------------------------------------------------------------


def compute_joint_by_hand(learner: Learner, batch: Batch, return_B: torch.Tensor) -> torch.Tensor:
    """Return the sheet's loss: one ratio and advantage per episode, value of the first state."""
    logp_BT, entropy_BT, value_BT = run_network(learner, batch)
    old_logp_BT, old_value_B = torch.as_tensor(batch.logp_BT), torch.as_tensor(batch.value_BT[:, 0])
    ratio_B = (logp_BT - old_logp_BT).sum(dim=1).clamp(-10, 10).exp()
    raw_B = return_B - old_value_B
    adv_B = (raw_B - raw_B.mean()) / raw_B.std(unbiased=True)
    near_B = old_value_B + (value_BT[:, 0] - old_value_B).clamp(-0.2, 0.2)
    value_B = torch.max((value_BT[:, 0] - return_B) ** 2, (near_B - return_B) ** 2)
    policy = clip_surrogate(ratio_B, adv_B).mean()
    return policy + 0.5 * value_B.mean() - 0.01 * entropy_BT.mean(dim=1).mean()


def test_joint_credit_is_the_sheets_update_in_loss_and_gradients():
    reward = MemoryReward(MemoryRewardConfig.model_validate(PAPER))
    learner = make_learner(JOINT, reward)
    batch = near_old(learner, make_batch(reward))
    terms = {name: torch.as_tensor(value[:, -1]) for name, value in batch.reward_terms_BT.items()}
    beta = 1 / reward.scale
    return_B = terms["outcome"] + torch.as_tensor(batch.cost_weight_B) * beta * terms["cost"]
    expected = differentiate(learner, compute_joint_by_hand(learner, batch, return_B))
    with torch.no_grad():
        logp_BT, _, value_BT = run_network(learner, batch)
        ratio_B = (logp_BT - torch.as_tensor(batch.logp_BT)).sum(dim=1).exp()
        step_B = (value_BT[:, 0] - torch.as_tensor(batch.value_BT[:, 0])).abs()
    outside = int(((ratio_B < 0.8) | (ratio_B > 1.2)).sum())
    assert 3 < outside < EPISODES - 3
    assert 3 < int((step_B > 0.2).sum()) < EPISODES - 3
    found, metrics = find_gradients(learner, batch)
    assert_same(found, expected)
    assert metrics["policy/clip_frac"] == pytest.approx(outside / EPISODES)
    norm = np.sqrt(sum((value**2).sum() for value in expected.values()))
    assert metrics["policy/grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_joint_losses_are_means_over_episodes():
    reward = MemoryReward(MemoryRewardConfig.model_validate(PAPER))
    learner = make_learner(JOINT, reward)
    batch = near_old(learner, make_batch(reward))
    terms = {name: torch.as_tensor(value[:, -1]) for name, value in batch.reward_terms_BT.items()}
    weight_B = torch.as_tensor(batch.cost_weight_B)
    return_B = terms["outcome"] + weight_B / reward.scale * terms["cost"]
    with torch.no_grad():
        logp_BT, entropy_BT, value_BT = run_network(learner, batch)
    old_B = torch.as_tensor(batch.value_BT[:, 0])
    raw_B = return_B - old_B
    adv_B = (raw_B - raw_B.mean()) / raw_B.std()
    ratio_B = (logp_BT - torch.as_tensor(batch.logp_BT)).sum(dim=1).exp()
    near_B = old_B + (value_BT[:, 0] - old_B).clamp(-0.2, 0.2)
    value_B = torch.max((value_BT[:, 0] - return_B) ** 2, (near_B - return_B) ** 2)
    metrics = update_policy(learner, batch, update=0)
    loss = clip_surrogate(ratio_B, adv_B).mean().item()
    assert metrics["policy/loss"] == pytest.approx(loss, abs=1e-5)
    assert metrics["policy/entropy"] == pytest.approx(entropy_BT.mean().item(), rel=1e-5)
    assert metrics["policy/value_loss"] == pytest.approx(0.5 * value_B.mean().item(), rel=1e-4)


def test_the_critic_of_joint_credit_learns_at_the_first_state_only():
    reward = MemoryReward(MemoryRewardConfig.model_validate(PAPER))
    batches = []
    for later in (0.0, 7.0):
        learner = make_learner(JOINT, reward)
        batch = near_old(learner, make_batch(MemoryReward(reward.config)))
        batch.value_BT[:, 1:] += later
        batches.append(find_gradients(learner, batch)[0])
    assert_same(*batches)


def test_the_only_known_episode_keeps_its_advantage_as_it_is():
    reward = MemoryReward(MemoryRewardConfig.model_validate(PAPER))
    learner = make_learner(JOINT | {"value_weight": 0.0}, reward, entropy_weight=0.0)
    batch = near_old(learner, make_batch(reward, failed=tuple(range(1, EPISODES))), spread=0.0)
    terms = {name: value_BT[0, -1] for name, value_BT in batch.reward_terms_BT.items()}
    total = terms["outcome"] + batch.cost_weight_B[0] * terms["cost"]  # no history, so k is 1
    adv = float(total - batch.value_BT[0, 0])
    logp_BT, _, _ = run_network(learner, batch)
    parameters = [
        parameter
        for name, parameter in learner.model.named_parameters()
        if not name.startswith("value")
    ]
    expected = torch.autograd.grad(-adv * logp_BT[0].sum(), parameters)
    found, _ = find_gradients(learner, batch)
    assert abs(adv) > 0.05
    moved = [value for name, value in found.items() if not name.startswith("value")]
    for one, other in zip(moved, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=3e-5)


# --- Per-decision credit --------------------------------------------------------------------------


def test_credit_by_decision_is_the_plain_clipped_loss_of_each():
    reward = MemoryReward(MemoryRewardConfig.model_validate(PAPER))
    learner = make_learner(DECISION, reward)
    batch = near_old(learner, make_batch(reward), spread=0.2)
    terms = {name: torch.as_tensor(value[:, -1]) for name, value in batch.reward_terms_BT.items()}
    weight_B = torch.as_tensor(batch.cost_weight_B)
    return_B = terms["outcome"] + weight_B / reward.scale * terms["cost"]
    logp_BT, entropy_BT, value_BT = run_network(learner, batch)
    raw_BT = return_B[:, None] - torch.as_tensor(batch.value_BT)  # GAE, discount and lambda 1
    adv_BT = (raw_BT - raw_BT.mean()) / raw_BT.std(unbiased=False)
    ratio_BT = (logp_BT - torch.as_tensor(batch.logp_BT)).exp()
    policy = clip_surrogate(ratio_BT, adv_BT).mean()
    critic = 0.5 * ((value_BT - return_B[:, None]) ** 2).mean()
    expected = differentiate(learner, policy + 0.5 * critic - 0.01 * entropy_BT.mean())
    outside = ((ratio_BT < 0.8) | (ratio_BT > 1.2)).float().mean().item()
    assert 0.1 < outside < 0.9
    found, metrics = find_gradients(learner, batch)
    assert_same(found, expected)
    assert metrics["policy/loss"] == pytest.approx(policy.item(), abs=1e-5)
    assert metrics["policy/clip_frac"] == pytest.approx(outside, abs=1e-6)


# --- Failures and costs ---------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [JOINT, DECISION], ids=["joint", "decision"])
def test_failed_episodes_contribute_exactly_nothing(algorithm):
    failed = (0, 5, 31)
    found = []
    for junk in (0.0, 50.0):
        reward = MemoryReward(MemoryRewardConfig.model_validate(PAPER))
        learner = make_learner(algorithm, reward)
        batch = near_old(learner, make_batch(reward, failed=failed))
        batch.features_BTF[list(failed)] *= junk  # whatever stands there
        batch.value_BT[list(failed)] += junk
        batch.logp_BT[list(failed)] -= junk
        batch.action_BT[list(failed)] = 0 if junk else 2
        gradients, metrics = find_gradients(learner, batch)
        assert batch.dropped == 3
        found.append((gradients, metrics))
    for name, value in found[0][0].items():
        np.testing.assert_array_equal(value, found[1][0][name], err_msg=name)
    assert found[0][1] == found[1][1]


@pytest.mark.parametrize("algorithm", [JOINT, DECISION], ids=["joint", "decision"])
def test_failed_episodes_change_no_mean_of_the_others(algorithm):
    kept = np.arange(EPISODES) >= 16
    reward = MemoryReward(MemoryRewardConfig.model_validate(PAPER))
    learner = make_learner(algorithm, reward)
    batch = near_old(learner, make_batch(reward, failed=tuple(range(16))))
    holed, _ = find_gradients(learner, batch)
    part = {
        name: getattr(batch, name)[kept]
        for name in (
            *("features_BTF", "mask_BTK", "cost_weight_B", "action_BT", "logp_BT", "value_BT"),
            *("valid_BT", "terminated_B", "query_index_B", "group_B"),
        )
    }
    terms = {name: value_BT[kept] for name, value_BT in batch.reward_terms_BT.items()}
    ends = replace(batch.ends, free_BT=batch.ends.free_BT[kept])
    alone = make_learner(algorithm, reward)
    whole, _ = find_gradients(
        alone, replace(batch, **part, reward_terms_BT=terms, ends=ends, dropped=0)
    )
    assert_same(holed, whole)


@pytest.mark.parametrize("algorithm", [JOINT, DECISION], ids=["joint", "decision"])
def test_a_batch_that_failed_throughout_moves_nothing(algorithm):
    reward = MemoryReward(MemoryRewardConfig.model_validate(PAPER))
    learner = make_learner(algorithm, reward)
    batch = near_old(learner, make_batch(reward, failed=tuple(range(EPISODES))))
    found, _ = find_gradients(learner, batch)
    assert all((value == 0).all() for value in found.values())


@pytest.mark.parametrize("algorithm", [JOINT, DECISION], ids=["joint", "decision"])
@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_without_a_cost_weight_costs_change_no_update(algorithm, weight):
    found = []
    for permuted in (False, True):
        reward = MemoryReward(MemoryRewardConfig.model_validate(PAPER))
        learner = make_learner(algorithm, reward)
        batch = near_old(learner, make_batch(reward, weight=weight))
        if permuted:
            order = draw_permutation(EPISODES, "costs")
            batch.reward_terms_BT["cost"][:] = batch.reward_terms_BT["cost"][order]
        found.append(find_gradients(learner, batch)[0])
    equal = all(np.array_equal(value, found[1][name]) for name, value in found[0].items())
    assert equal == (weight == 0)


def test_both_forms_of_the_reward_take_the_same_step_without_a_value():
    # standardised advantages agree where V = 0 and the statistics are equal (11.8)
    found = []
    for form in ("paper", "code"):
        reward = MemoryReward(MemoryRewardConfig.model_validate(PAPER | {"form": form}))
        learner = make_learner(JOINT | {"value_weight": 0.0}, reward)
        # 256 episodes more, so that the alignment is past its warm-up
        rng = np.random.default_rng(5)
        reward.push(
            rng.choice([0.0, 1.0], 256).astype(np.float32),
            rng.uniform(0, 0.01, 256).astype(np.float32),
        )
        batch = near_old(learner, make_batch(reward))
        batch.value_BT[:] = 0
        assert abs(reward.scale - 1) > 0.2
        found.append(find_gradients(learner, batch)[0])
    assert_same(*found)
