"""A critic with several horizons beside an actor that uses one: targets, gradients, whole runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from step_groups import FEATURES, combine, make_batch, make_recipe

from rlroute.config import parse_config
from rlroute.policies.step_scorer import StepScorer, StepScorerConfig
from rlroute.rewards.boundary import BoundaryReward
from rlroute.step_export import export_step_run
from rlroute.step_router import StepRouter
from rlroute.tracking import read_metrics
from rlroute.trainers.checkpoint import WEIGHTS_FILE
from rlroute.trainers.learner import Learner
from rlroute.trainers.run_folder import BEST_FOLDER, CHECKPOINTS_FOLDER
from rlroute.trainers.step_policy import score_steps
from rlroute.trainers.step_recipe import StepRecipe
from rlroute.trainers.step_run import train_steps
from rlroute.trainers.targets import compute_targets
from rlroute.trainers.update import update_policy
from rlroute.types import RLRouteError

CRITIC = {"discounts": [0.5, 0.9, 0.999], "actor": 0.999}
ORDER = (0.999, 0.5, 0.9)  # of the heads: the actor's first


def make_ppo(**fields) -> StepRecipe:
    algorithm = {"kind": "ppo", "episodes": 4, "epochs": 1, "minibatches": 1, "gae_lambda": 0.9}
    return make_recipe(algorithm | {"normalise_advantages": False} | fields)


def make_learner(recipe: StepRecipe, heads: int) -> Learner:
    shape = StepScorerConfig(features=FEATURES, described=3, hidden=0, value_heads=heads)
    scorer = StepScorer(shape)
    torch.manual_seed(0)  # equal weights of the actor, however many heads were drawn before
    torch.nn.init.normal_(scorer.executor_tower.weight, std=0.5)
    optimiser = torch.optim.SGD(scorer.parameters(), lr=0.1)
    rewards = BoundaryReward(recipe.reward)
    return Learner(Accelerator(cpu=True), scorer, optimiser, score_steps, rewards, recipe)


BATCH = make_batch((1, 0, 1, 1), (0.2, 0.1, 0.9, 0.5), group=1, lengths=(5, 2, 4, 3))


def test_every_head_has_the_returns_of_its_own_discount_and_the_actor_one_of_them():
    recipe = make_ppo(critic=CRITIC)
    learner = make_learner(recipe, heads=3)
    targets = compute_targets(learner, BATCH)
    reward_B = combine(recipe, BATCH).numpy()  # all of it on the last step; values start at 0
    for b, length in enumerate((5, 2, 4, 3)):
        left_T = np.arange(length)[::-1]
        for head, discount in enumerate(ORDER):
            expected_T = reward_B[b] * (discount * 0.9) ** left_T
            np.testing.assert_allclose(targets.return_BTV[b, :length, head], expected_T, rtol=1e-5)
    assert torch.equal(targets.adv_BT, targets.adv_BTV[:, :, 0])
    assert torch.equal(targets.return_BT, targets.return_BTV[:, :, 0])


def test_the_actor_follows_its_own_head_alone():
    weights = []
    for recipe, heads in (
        (make_ppo(critic=CRITIC), 3),
        (make_ppo(discount=0.999), 1),
        (make_ppo(discount=0.5), 1),
    ):
        learner = make_learner(recipe, heads)
        metrics = update_policy(learner, BATCH, 0)
        weights.append(learner.model.executor_tower.weight.detach().clone())
        assert ("policy/hack_rate" in metrics) == (heads > 1)
    torch.testing.assert_close(weights[0], weights[1])
    assert (weights[0] - weights[2]).abs().max() > 1e-3


def test_the_heads_values_are_read_as_the_batch_was_played_and_all_of_them_are_learnt():
    recipe = make_ppo(critic=CRITIC, gae_lambda=1.0, value_weight=1.0)
    learner = make_learner(recipe, heads=3)
    learner.optimiser = torch.optim.Adam(learner.model.parameters(), lr=0.02)
    for update in range(200):
        metrics = update_policy(learner, BATCH, update)
    targets = compute_targets(learner, BATCH)
    first_BV = targets.return_BTV[:, 0] - targets.adv_BTV[:, 0]  # the values of the first step
    reward_B = combine(recipe, BATCH).numpy()
    for head, discount in enumerate(ORDER):
        expected_B = reward_B * np.array([discount**left for left in (4, 1, 3, 2)])
        np.testing.assert_allclose(first_BV[:, head], expected_B, atol=0.15)
    assert metrics["policy/explained_variance"] > 0.9
    assert 0 <= metrics["policy/hack_rate"] <= 1


def make_chain_recipe(folder: Path, **changes) -> StepRecipe:
    data = {
        "environment": "step_budget",
        "world": {"kind": "chain", "train": 40, "val": 20, "test": 20},
        "updates": 4,
        "budget": {"unit": "calls", "caps": [2]},
        "reward": {"unit": "calls"},
        "boundary": {"rollouts": 2, "sweep": 3, "folder": str(folder)},
        "policy": {"kind": "mlp", "hidden": 8},
        "warm_start": {"epochs": 1},
        "algorithm": {"kind": "ppo", "episodes": 32, "critic": CRITIC},
        "validation": {"every": 1},
        "checkpoint_every": 2,
        "tracking": {"wandb": False},
    }
    return parse_config(StepRecipe, data | changes, "recipe")


def test_a_run_with_several_horizons_resumes_bit_for_bit_and_is_exported(tmp_path: Path):
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    train_steps(make_chain_recipe(tmp_path), whole)
    train_steps(make_chain_recipe(tmp_path, updates=2), parted)
    shutil.copyfile(whole / "recipe.resolved.yaml", parted / "recipe.resolved.yaml")
    train_steps(make_chain_recipe(tmp_path), parted, resume=True)
    for path in (f"{CHECKPOINTS_FOLDER}/step-4/{WEIGHTS_FILE}", f"{BEST_FOLDER}/{WEIGHTS_FILE}"):
        assert (whole / path).read_bytes() == (parted / path).read_bytes()
    assert "policy/hack_rate" in read_metrics(whole)[-1]
    export_step_run(whole, tmp_path / "router")
    assert StepRouter.load(tmp_path / "router")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": {"kind": "ppo", "critic": {"actor": 0.8}}}, "must be one of them"),
        ({"algorithm": {"kind": "ppo", "critic": {"discounts": [0.999, 0.999]}}}, "must differ"),
        ({"algorithm": {"kind": "ppo", "critic": CRITIC, "discount": 0.9}}, "critic.actor"),
        (
            {
                "algorithm": {"kind": "ppo", "critic": CRITIC},
                "policy": {"kind": "choice", "model": "x"},
            },
            "policy.kind 'mlp'",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, message, tmp_path: Path):
    with pytest.raises(RLRouteError, match=message):
        make_chain_recipe(tmp_path, **changes)
