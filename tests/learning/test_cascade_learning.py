"""A cascade learns to look where looking pays, and never where it does not: the optimum is known.

The table and its best policy by enumeration stand in `tests/cascade_tables.py`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cascade_tables import EXACT, make_config, solve

from rlroute.config import parse_config
from rlroute.policies.step_baselines import RandomPolicy, StaticPolicy
from rlroute.policies.stepwise import StepPolicy
from rlroute.rewards.boundary import BoundaryReward
from rlroute.rollout.stage import Stage, compute_rewards
from rlroute.rollout.step_plan import plan_static
from rlroute.trainers.run_folder import BEST_FOLDER
from rlroute.trainers.step_policy import load_policy, make_policy
from rlroute.trainers.step_problem import fix_setting, read_split_facts
from rlroute.trainers.step_recipe import StepRecipe
from rlroute.trainers.step_run import open_rollout_file, play_boundaries, train_steps
from rlroute.types import Batch
from rlroute.worlds.cascade import CascadeWorld
from rlroute.worlds.cascade_table import CascadeConfig

STOP, SMALL, LARGE = 0, 1, 2
FALLIBLE = {"true_positive": 0.95, "false_positive": 0.1, "price_usd": 0.0}
PPO = {"kind": "ppo", "episodes": 256, "minibatches": 2, "entropy_weight": 0.01}
SLOW = pytest.mark.slow
RLOO = {"kind": "rloo", "episodes": 256, "group_size": 8, "minibatches": 2, "entropy_weight": 0.01}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the table and the runs lie."""
    return tmp_path_factory.mktemp("cascades")


def make_recipe(world: CascadeConfig, seed: int = 0, **parts) -> StepRecipe:
    stated = {
        "environment": "step_budget",
        "world": world.model_dump(mode="json"),
        "seed": seed,
        "updates": 40,
        "reward": {"unit": "usd", "scale": "train", "hard_bonus": 0.0, "gate": False},
        "cost_weight": {"min": 0.3, "max": 0.3},
        "boundary": {"rollouts": 1, "evaluation_rollouts": 1, "sweep": 0},
        "policy": {"kind": "mlp", "hidden": 32},
        "warm_start": None,
        "algorithm": PPO,
        "optimiser": {"learning_rate": 0.005},
        "validation": {"every": 5},
        "tracking": {"wandb": False},
    }
    return parse_config(StepRecipe, stated | parts, "recipe")


def play_test(recipe: StepRecipe, run: Path, policy: StepPolicy | None = None, weight: float = 0.3):
    """Play the test queries; by the run's policy where none is given. Return batch and reward."""
    stage = Stage(recipe.world, lanes=8)
    if policy is None:
        features = len(stage.feature_names)
        model, _ = load_policy(run / BEST_FOLDER, recipe.policy, stage.world, features)
        policy = make_policy(model, model.network, version=0, greedy=True)
    file = open_rollout_file(recipe, run)
    for split in ("train", "test"):
        play_boundaries(recipe, stage, file, split, 1)
    facts = read_split_facts(recipe, stage, file, "test", 1)
    plan = plan_static(np.arange(60), np.arange(60))
    config = fix_setting(recipe.episode, None, weight)
    batch = stage.play(policy, plan, "test", config, facts.yardsticks)
    return batch, float(compute_rewards(batch, BoundaryReward(recipe.reward)).mean())


def find_optimum(world: CascadeConfig, weight: float = 0.3) -> float:
    table = CascadeWorld(world).table
    return solve(table.splits["test"], table.view.reference_usd, weight, world.keep)


def list_actions(batch: Batch, topic: str) -> set[tuple[int, ...]]:
    """Return what was done on the test queries of a topic: glacier, harbour, meadow by 20."""
    start = ("glacier", "harbour", "meadow").index(topic) * 20
    rows = range(start, start + 20)
    return {tuple(batch.action_BT[b, batch.valid_BT[b]].tolist()) for b in rows}


def test_the_optimum_is_what_the_table_was_made_for(folder):
    world = make_config(folder / "table")
    # meadow: (12 + 8 - 0.3 * (2 + 8)) / 20; glacier 19/20 - 0.3; harbour 10/20 - 0.03
    expected = (0.85 + 0.65 + 0.47) / 3
    assert find_optimum(world) == pytest.approx(expected, abs=1e-6)
    assert find_optimum(world, 0.0) == pytest.approx((1.0 + 0.95 + 0.5) / 3, abs=1e-6)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=SLOW), pytest.param(2, marks=SLOW)])
def test_it_looks_and_goes_on_where_that_pays_and_nowhere_else(folder, seed):
    world = make_config(folder / "table")
    recipe, run = make_recipe(world, seed), folder / f"exact-{seed}"
    train_steps(recipe, run)
    batch, reward = play_test(recipe, run)
    assert reward > find_optimum(world) - 0.01
    assert list_actions(batch, "meadow") == {(SMALL, STOP), (SMALL, LARGE)}
    assert list_actions(batch, "glacier") == {(LARGE, STOP)}  # looking at small does not pay
    assert list_actions(batch, "harbour") == {(SMALL, STOP)}  # nor going on
    for policy in (StaticPolicy(STOP), StaticPolicy(SMALL), StaticPolicy(LARGE), RandomPolicy()):
        assert play_test(recipe, run, policy)[1] < reward - 0.05


@pytest.mark.parametrize("algorithm", [PPO, pytest.param(RLOO, marks=SLOW)], ids=["ppo", "rloo"])
def test_one_policy_for_all_cost_weights_by_a_check_that_errs(folder, algorithm):
    world = make_config(folder / "table", checker=FALLIBLE)
    weights = {"cost_weight": {"min": 0.0, "max": 1.0, "power": 1.0}, "updates": 60}
    start = {"policy": {"kind": "mlp", "hidden": 32, "start": 10.0}}
    recipe = make_recipe(world, algorithm=algorithm, **weights, **start)
    run = folder / f"fallible-{algorithm['kind']}"
    train_steps(recipe, run)
    costs = []
    for weight in (0.1, 0.3, 0.8):
        batch, reward = play_test(recipe, run, weight=weight)
        assert reward > find_optimum(world, weight) - 0.06
        costs.append(float(batch.ends.cost_usd_B.mean()))
    assert costs[0] >= costs[1] > costs[2]


def test_a_free_skip_is_taken_where_no_answer_is_worth_its_price(folder):
    world = make_config(folder / "table", checker=EXACT, allow_skip=True)
    recipe = make_recipe(world, cost_weight={"min": 3.0, "max": 3.0})
    run = folder / "skip"
    train_steps(recipe, run)
    batch, reward = play_test(recipe, run, weight=3.0)
    assert list_actions(batch, "glacier") == {(STOP,)}  # 0.95 - 3, and 0.05 - 0.6
    assert list_actions(batch, "meadow") == {(SMALL, STOP)}
    assert reward > (0.6 - 0.3 + 0.5 - 0.3) / 3 - 0.01
