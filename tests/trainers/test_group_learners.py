"""REINFORCE, groups shrunk to a prior, groups with forced arms: they learn, resume, and pay.

The world of conftest has a known optimum; see `test_decision_trainer`.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from test_dead_candidate import COST_WEIGHT, DEAD, PoolWithDeadCandidate
from test_decision_trainer import pick

from rlroute.config import parse_config
from rlroute.data.prepare import prepare_table
from rlroute.data.routing_data import RoutingData
from rlroute.data.table import read_table
from rlroute.envs.single_turn import SingleTurn, build_reward_stack
from rlroute.policies.decision import SamplingPolicy, score
from rlroute.pool.recorded import RecordedPool
from rlroute.rollout.engine import run_plan
from rlroute.rollout.plan import force_arms
from rlroute.tracking import read_metrics
from rlroute.trainers.checkpoint import WEIGHTS_FILE
from rlroute.trainers.decision import TableProblem, make_learner, plan_update, train
from rlroute.trainers.growing_groups import ProfilePrior, build_prior, collect_growing
from rlroute.trainers.recipe import Recipe
from rlroute.trainers.run_folder import CHECKPOINTS_FOLDER
from rlroute.trainers.targets import compute_targets
from rlroute.trainers.update import update_policy
from rlroute.types import FORCED, Batch, RLRouteError

MakeRecipe = Callable[..., Recipe]
KINDS = ["reinforce", "reinforce_none", "reinforce_critic", "prior_grpo", "forced_arms"]
RIGHT = {("sum", "adder"), ("poem", "poet")}


@pytest.mark.parametrize("kind", KINDS)
def test_the_known_optimum_is_reached(kind: str, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    validation = {"metric": "utility", "every": 20, "cost_weights": 9}
    train(make_recipe(kind, updates=60, validation=validation), folder)
    for cost_weight in (0.3, 2.0):
        found = [one in RIGHT for one in zip(*pick(folder, cost_weight), strict=True)]
        assert np.mean(found) > 0.9, cost_weight


@pytest.mark.parametrize("kind", ["reinforce_critic", "prior_grpo", "forced_arms"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    kind: str, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    changes = {"checkpoint_every": 3, "validation": {"every": 3, "cost_weights": 3}}
    train(make_recipe(kind, updates=6, **changes), whole)
    train(make_recipe(kind, updates=3, **changes), parted)
    shutil.copyfile(whole / "recipe.resolved.yaml", parted / "recipe.resolved.yaml")
    train(make_recipe(kind, updates=6, **changes), parted, resume=True)
    for name in (WEIGHTS_FILE, "optimiser.safetensors"):
        path = Path(CHECKPOINTS_FOLDER) / "step-6" / name
        assert (whole / path).read_bytes() == (parted / path).read_bytes()
    timeless = [
        [{k: v for k, v in row.items() if "time/" not in k} for row in read_metrics(folder)]
        for folder in (whole, parted)
    ]
    assert timeless[0] == timeless[1]


def collect(recipe: Recipe, update: int = 0) -> tuple[TableProblem, Batch]:
    """Return a problem and the batch of its first, untrained update."""
    prepared = prepare_table(read_table(recipe.table), recipe.encoder, recipe.profile, recipe.seed)
    learner = make_learner(recipe, prepared, Accelerator())
    problem = TableProblem(recipe, prepared, learner)
    return problem, problem.collect(learner, update)


def read_rewards(problem: TableProblem, batch: Batch) -> np.ndarray:
    cost_B = batch.reward_terms_BT["cost"][:, 0]
    return batch.reward_terms_BT["outcome"][:, 0] - batch.cost_weight_B * cost_B


def fuse_by_hand(reward: np.ndarray, prior: float, expected: float) -> tuple[float, float, float]:
    """Return the fused baseline, the prior's squared bias and the variance of one reward."""
    mean, variance = reward.mean(), max(reward.var(ddof=1), expected)
    noise = variance / len(reward)
    bias = max(0.0, (mean - prior) ** 2 - noise)
    share = bias / (bias + noise)
    return share * mean + (1 - share) * prior, bias, variance


def test_groups_grow_where_the_look_ahead_says_and_their_advantages_are_over_the_fused_baseline(
    make_recipe: MakeRecipe,
) -> None:
    recipe = make_recipe("prior_grpo", policy={"hidden": 8, "dropout": 0.0, "sharpness": 1.0})
    problem, batch = collect(recipe)
    learner = make_learner(recipe, problem.prepared, Accelerator())
    targets = compute_targets(learner, batch)
    reward_B = read_rewards(problem, batch)
    sizes = []
    for group in range(32):
        rows = np.flatnonzero(batch.group_B == group)
        reward, prior = reward_B[rows].astype(np.float64), float(batch.prior_mean_B[rows[0]])
        expected = float(batch.prior_variance_B[rows[0]])
        size = 4
        while size < 16:
            _, bias, variance = fuse_by_hand(reward[:size], prior, expected)
            now, then = (  # right and wrong are 1 apart, not 2 as in the source: a quarter
                bias * variance / (k * bias + variance) + 0.0039 / 4 * k for k in (size, size + 4)
            )
            if then >= now:
                break
            size += 4
        assert len(rows) == size
        found = targets.adv_BT[rows, 0].numpy()
        baseline = fuse_by_hand(reward, prior, expected)[0]
        np.testing.assert_allclose(found, reward - baseline, atol=1e-5)
        sizes.append(size)
    assert len(set(sizes)) > 1  # some grew, not all
    metrics = problem.summarise(learner, batch)
    assert metrics["group/size_mean"] == pytest.approx(np.mean(sizes))
    paid_usd = batch.reward_terms_BT["cost"].sum() * problem.train_data.cost_reference_usd
    assert metrics["cost/usd_update"] == pytest.approx(paid_usd, rel=1e-6)


def test_the_prior_is_what_the_profiles_expect_of_the_policys_picks(
    make_recipe: MakeRecipe,
) -> None:
    recipe = make_recipe(
        "prior_grpo", profile={"clusters": 1}, cost_weight={"min": 0.5, "max": 0.5}
    )
    problem, batch = collect(recipe)
    learner = make_learner(recipe, problem.prepared, Accelerator())
    profiles = [one.profile for one in problem.prepared.candidates]
    score_K = np.array([one.mean_score for one in profiles])
    cost_K = np.array([one.mean_cost_usd for one in profiles])
    utility_K = score_K - 0.5 * cost_K / cost_K.max()
    for row in (0, 5):
        found = score(
            learner.scorer.eval(),
            batch.features_BTF[[row], 0],
            batch.candidate_features_KD,
            batch.mask_BTK[[row], 0],
            batch.cost_weight_B[[row]],
            served=False,
        )
        chance_K = found.logp_BK.exp().numpy()[0]
        mean = chance_K @ utility_K
        spread_K = (utility_K - mean) ** 2 + (1 - chance_K) * score_K * (1 - score_K)
        variance = chance_K @ spread_K
        assert batch.prior_mean_B[row] == pytest.approx(mean, abs=1e-5)
        assert batch.prior_variance_B[row] == pytest.approx(variance, abs=1e-5)


def test_the_priors_variance_is_what_a_groups_rewards_vary_by_on_average_over_all_outcomes(
    tiny_data: RoutingData,
) -> None:
    chance_K, cost_K = np.array([0.8, 0.4, 0.6]), np.array([0.1, 0.0, 0.3])
    probability_K = np.array([0.5, 0.3, 0.2])
    terms = {"outcome": chance_K[None].astype(np.float32), "cost": cost_K[None].astype(np.float32)}
    prior = ProfilePrior(terms, cluster_Q=np.zeros(1, dtype=np.int64))
    mean_B, variance_B = prior.expect(
        np.zeros(1, dtype=np.int64),
        probability_K[None].astype(np.float32),
        np.full(1, 2.0, dtype=np.float32),
        build_reward_stack(tiny_data),
    )
    mean = variance = 0.0
    for outcome in itertools.product((0, 1), repeat=3):  # which candidates answer the query right
        likelihood = np.where(outcome, chance_K, 1 - chance_K).prod()
        reward_K = outcome - 2 * cost_K
        expected = probability_K @ reward_K
        mean += likelihood * expected
        variance += likelihood * (probability_K @ (reward_K - expected) ** 2)
    assert mean_B[0] == pytest.approx(mean, abs=1e-6)
    assert variance_B[0] == pytest.approx(variance, abs=1e-6)


def test_forced_arms_join_the_mean_are_paid_for_and_are_not_learnt_from(
    make_recipe: MakeRecipe,
) -> None:
    recipe = make_recipe("forced_arms", policy={"hidden": 8, "dropout": 0.0})
    problem, batch = collect(recipe)
    assert len(batch.group_B) == 32 * (4 + 4)
    reward_NG = read_rewards(problem, batch).reshape(32, 8)
    forced_B = batch.role_B == FORCED
    assert batch.action_BT[forced_B, 0].tolist() == [0, 1, 2, 3] * 32
    learner = make_learner(recipe, problem.prepared, Accelerator())
    targets = compute_targets(learner, batch)
    expected_NG = reward_NG - reward_NG.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(targets.adv_BT[:, 0], expected_NG.reshape(-1), atol=1e-6)
    assert (targets.valid_BT[:, 0].numpy() == ~forced_B).all()
    metrics = problem.summarise(learner, batch)
    cost_BT = batch.reward_terms_BT["cost"]
    assert metrics["reward/cost/mean"] == pytest.approx(cost_BT[~forced_B].mean(), rel=1e-5)
    reference_usd = problem.train_data.cost_reference_usd
    assert metrics["cost/usd_update"] == pytest.approx(cost_BT.sum() * reference_usd, rel=1e-6)
    # what forced episodes saw and did moves no weight; the rewards they earned do
    blind = replace(
        batch,
        features_BTF=np.where(forced_B[:, None, None], 1e3, batch.features_BTF).astype(np.float32),
        action_BT=np.where(forced_B[:, None], 0, batch.action_BT),
    )
    poor = {**batch.reward_terms_BT}
    poor["outcome"] = np.where(forced_B[:, None], 0, poor["outcome"]).astype(np.float32)
    weights = []
    for one in (batch, blind, replace(batch, reward_terms_BT=poor)):
        learner = make_learner(recipe, problem.prepared, Accelerator())
        update_policy(learner, one, 0)
        weights.append(learner.scorer.state_dict()["quality_tower.weight"].clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("kind", ["reinforce", "prior_grpo", "forced_arms"])
def test_a_dead_candidate_is_never_preferred(
    kind: str, make_recipe: MakeRecipe, world_folder: Path
) -> None:
    recipe = make_recipe(kind, cost_weight={"min": COST_WEIGHT, "max": COST_WEIGHT})
    table = read_table(world_folder).select_candidates(["generalist", "poet"])
    prepared = prepare_table(table, recipe.encoder, recipe.profile, recipe.seed)
    data, learner = prepared.splits["train"], make_learner(recipe, prepared, Accelerator())
    pool = PoolWithDeadCandidate(RecordedPool(data.table))
    dead = [one.id for one in data.table.candidates].index(DEAD)
    data.candidate_features_KD[:] = data.candidate_features_KD.mean(axis=0)  # both start equal
    data.candidate_features_KD[:, 0] += (0.1, -0.1)  # but are told apart
    algorithm = recipe.algorithm

    def play(plan) -> Batch:
        policy = SamplingPolicy(learner.scorer.eval())
        episodes = run_plan(
            lambda: SingleTurn(data, recipe.cost_weight), policy, pool, data.table.queries, plan
        )
        return asyncio.run(episodes)

    size = {"reinforce": 1, "prior_grpo": 16, "forced_arms": 4 + 2}[kind]
    for update in range(12):
        plan = plan_update(recipe, update, len(data.features_QF), learner.accelerator, size)
        plan = plan.select_rows(slice(0, 64 if kind == "reinforce" else 8 * size))
        if kind == "forced_arms":
            batch = play(force_arms(plan, 2, 1, data.table.present_QK))
        elif kind == "prior_grpo":
            prior = build_prior(data, prepared.centroids_CF)
            batch = collect_growing(play, plan, prior, learner, algorithm)
        else:
            batch = play(plan)
        assert batch.dropped > 0
        update_policy(learner, batch, update)
    weight_Q = np.full(len(data.features_QF), COST_WEIGHT, dtype=np.float32)
    found = score(
        learner.scorer.eval(),
        data.features_QF,
        data.candidate_features_KD,
        data.table.present_QK,
        weight_Q,
        served=False,
    )
    # every answer of the other candidate is worth less than 0: taken for free, failing would win
    assert float(found.logp_BK.exp()[:, dead].mean()) < 0.6


def test_no_baseline_refuses_failed_calls_in_one_line(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("reinforce_none")
    problem, batch = collect(recipe)
    learner = make_learner(recipe, problem.prepared, Accelerator())
    batch.reward_terms_BT["outcome"][3] = np.nan
    with pytest.raises(RLRouteError, match=r"baseline: none.*use batch or critic"):
        compute_targets(learner, batch)


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        ({"kind": "prior_grpo", "max_group_size": 15}, "plus a multiple of grow_by"),
        ({"kind": "prior_grpo", "group_size": 8, "max_group_size": 4}, "plus a multiple"),
        ({"kind": "reinforce", "value_weight": 1.0}, "read by baseline 'critic' only"),
        ({"kind": "grpo", "forced_arms": -1}, "forced_arms"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(algorithm: dict, message: str) -> None:
    with pytest.raises(RLRouteError, match=message):
        parse_config(Recipe, {"table": "pocket", "algorithm": algorithm}, "recipe")
