"""Policy gradients over a cascade are unbiased: all ways through it enumerated, every look paid.

The world plays each way; what a way earns is worked out by hand from the table. The loss is summed
over decisions and divided by episodes; an update divides by decisions, which changes its length.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from cascade_tables import EXACT, UNIT, make_config

from rlroute.config import parse_config
from rlroute.rewards.boundary import Yardstick
from rlroute.rollout.boundary import make_script
from rlroute.rollout.stage import Stage
from rlroute.rollout.step_plan import plan_static
from rlroute.trainers.learner import Learner, MinibatchPart
from rlroute.trainers.step_recipe import StepRecipe
from rlroute.trainers.step_run import make_learner
from rlroute.trainers.targets import compute_targets
from rlroute.trainers.update import compute_loss
from rlroute.types import Batch

STOP, SMALL, LARGE = 0, 1, 2
WEIGHT = 0.7
CHECK_USD = 0.1 * UNIT
# Of a query, every way through the cascade: score in the end, and what was paid in units. The
# first: small (0.1) is wrong, large (1) right. The second: small (0.2) is right, large a hole, so
# that the episode ends with small's answer. Every look pays for its check (0.1).
WAYS = {
    "meadow-train-12": {
        (STOP,): (0.1, 0.0),
        (SMALL, STOP): (0.0, 0.2),
        (SMALL, LARGE): (1.0, 1.3),
        (LARGE, STOP): (1.0, 1.1),
        (LARGE, SMALL): (1.0, 1.3),  # large's answer passed the check and is kept
    },
    "glacier-train-00": {(STOP,): (0.1, 0.0), (SMALL,): (1.0, 0.3)},
}
HOLES = ((20, 0),)  # large, for glacier-train-00
# kind, episodes that are compared with each other, and the part of the exact gradient that the
# estimator has: a member of a pair is half of its own baseline in GRPO
ESTIMATORS = [
    ({"kind": "rloo", "episodes": 2, "group_size": 2}, 2, 1.0),
    (
        {"kind": "grpo", "episodes": 2, "group_size": 2, "baseline": "group"}
        | {"scale_by_std": False, "hold_failures": False},
        *(2, 0.5),
    ),
    ({"kind": "ppo", "normalise_advantages": False, "value_weight": 0.0}, 1, 1.0),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    checker = EXACT | {"price_usd": CHECK_USD}
    fields = {"checker": checker, "allow_skip": True, "skip_score": 0.1}
    return make_config(tmp_path_factory.mktemp("table"), HOLES, **fields)


def make_recipe(world, algorithm) -> StepRecipe:
    data = {
        "environment": "step_budget",
        "world": world.model_dump(),
        "reward": {"unit": "usd", "scale": "train", "hard_bonus": 0, "gate": False},
        "cost_weight": {"min": WEIGHT, "max": WEIGHT},
        "policy": {"kind": "mlp", "hidden": 8},
        "warm_start": None,
        "algorithm": algorithm,
    }
    return parse_config(StepRecipe, data, "test")


class Cascade:
    """A learner whose policy is far from its start, and the played ways through a query."""

    def __init__(self, world, algorithm, query: str) -> None:
        recipe = make_recipe(world, algorithm)
        stage = Stage(recipe.world, lanes=1)
        _, self.learner = make_learner(recipe, stage, Accelerator(cpu=True))
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in self.learner.scorer.parameters():
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
        self.ways, count = WAYS[query], len(WAYS[query])
        index = [task.id for task in stage.tasks["train"]].index(query)
        yardsticks = {task.id: Yardstick(0.0, UNIT, False) for task in stage.tasks["train"]}
        batch = stage.play(
            make_script(list(self.ways), stage.world.horizon),
            plan_static(np.full(count, index), np.arange(count)),
            *("train", recipe.episode, yardsticks),
        )
        scores = score(self.learner, batch)
        shape = batch.valid_BT.shape
        action_N1 = torch.as_tensor(batch.action_BT).reshape(-1, 1)
        logp_BT = scores.logp_BK.detach().gather(1, action_N1).reshape(shape)
        self.batch = replace(
            batch,
            logp_BT=logp_BT.numpy(),
            value_BT=scores.value_B.detach().reshape(shape).numpy(),
        )
        self.probability_B = np.exp(np.where(batch.valid_BT, logp_BT.double(), 0.0).sum(1))

    def compute_exact(self) -> np.ndarray:
        """Return the gradient of minus the expected utility, summed over ways by hand."""
        logp_BTK = score(self.learner, self.batch).logp_BK.reshape(self.batch.mask_BTK.shape)
        utility = torch.zeros(())
        for row, (way, (earned, paid)) in enumerate(self.ways.items()):
            logp = sum(logp_BTK[row, step, action] for step, action in enumerate(way))
            utility = utility + logp.exp() * (earned - WEIGHT * paid)
        return read_gradient(self.learner, -utility)

    def compute_expectation(self, group: int, batch: Batch | None = None) -> np.ndarray:
        """Return the mean gradient over all groups of ways, weighted by their probability."""
        total, batch = np.zeros(1), batch or self.batch
        for rows in itertools.product(range(len(self.ways)), repeat=group):
            chance = np.prod(self.probability_B[list(rows)])
            total = total + chance * compute_gradient(self.learner, select(batch, rows))
        return total


def select(batch: Batch, rows: tuple[int, ...]) -> Batch:
    """Return some of the episodes as one group."""
    row_B, whole = list(rows), ("candidate_features_KD", "ends", "reward_terms_BT")
    arrays = {
        name: value[row_B]
        for name, value in vars(batch).items()
        if isinstance(value, np.ndarray) and name not in whole
    }
    return replace(
        batch,
        **arrays | {"group_B": np.zeros(len(rows), dtype=np.int64)},
        reward_terms_BT={name: term[row_B] for name, term in batch.reward_terms_BT.items()},
        ends=replace(batch.ends, **{name: one[row_B] for name, one in vars(batch.ends).items()}),
    )


def score(learner: Learner, batch: Batch):
    row_B = np.arange(len(batch.group_B))
    return learner.score_rows(learner, batch, MinibatchPart(row_B, row_B, len(row_B), (0, 0, 0)))


def compute_gradient(learner: Learner, batch: Batch) -> np.ndarray:
    """Return the gradient of the update's loss per episode, of the policy's weights."""
    row_B = torch.arange(len(batch.group_B))
    targets = compute_targets(learner, batch)
    loss, _ = compute_loss(learner, batch, targets, score(learner, batch), row_B)
    return read_gradient(learner, loss / len(row_B))


def read_gradient(learner: Learner, loss: torch.Tensor) -> np.ndarray:
    """Return the gradient of a loss of the policy's weights, those of the critic left out."""
    named = dict(learner.scorer.named_parameters())
    own = [one for name, one in named.items() if not name.startswith("value_head")]
    found = torch.autograd.grad(loss, own)
    return np.concatenate([one.flatten().double().numpy() for one in found])


@pytest.mark.parametrize("query", WAYS)
@pytest.mark.parametrize(("algorithm", "group", "part"), ESTIMATORS)
def test_the_mean_over_all_ways_is_the_exact_gradient(world, algorithm, group, part, query):
    cascade = Cascade(world, algorithm, query)
    exact = cascade.compute_exact()
    assert np.linalg.norm(exact) > 0.05
    found = cascade.compute_expectation(group)
    np.testing.assert_allclose(found, part * exact, atol=2e-6)


@pytest.mark.parametrize("query", WAYS)
def test_masks_leave_exactly_the_ways_that_the_rules_allow(world, query):
    cascade = Cascade(world, ESTIMATORS[0][0], query)
    batch = cascade.batch
    assert cascade.probability_B.sum() == pytest.approx(1, abs=1e-6)
    assert (cascade.probability_B > 0.001).all()
    assert batch.valid_BT.sum(1).tolist() == [len(way) for way in cascade.ways]
    for row, way in enumerate(cascade.ways):
        first, second = {STOP, SMALL, LARGE}, {STOP, SMALL, LARGE} - set(way[:1])
        if query.startswith("glacier"):
            first.discard(LARGE)
        allowed = [set(np.flatnonzero(mask_K)) for mask_K in batch.mask_BTK[row, : len(way)]]
        assert allowed == [first, second][: len(way)]


@pytest.mark.parametrize(("algorithm", "group", "part"), ESTIMATORS)
@pytest.mark.parametrize("row", [1, 2, 3])
def test_a_look_that_is_not_paid_gives_another_gradient(world, algorithm, group, part, row):
    cascade = Cascade(world, algorithm, "meadow-train-12")
    cost_BT = cascade.batch.reward_terms_BT["cost"].copy()
    last = cascade.batch.valid_BT[row].sum() - 1
    cost_BT[row, last] -= 0.2 if row < 3 else 1.1  # the first look of the way, check included
    freed = replace(
        cascade.batch, reward_terms_BT=cascade.batch.reward_terms_BT | {"cost": cost_BT}
    )
    found = cascade.compute_expectation(group, freed)
    assert np.abs(found - part * cascade.compute_exact()).max() > 1e-3
