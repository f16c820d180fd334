"""What tests of the drivers of many-step episodes share: settings, plans, how batches compare."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import torch
from step_worlds import THREE_EXECUTORS, THREE_KINDS

from rlroute.config import parse_config
from rlroute.envs.step_budget import StepBudgetConfig
from rlroute.policies.step_scorer import ScorerPolicy, StepScorer, StepScorerConfig
from rlroute.rollout.step_plan import GroupShape, plan_steps
from rlroute.types import Batch
from rlroute.worlds.chain import ChainConfig

CHAIN = ChainConfig(kinds=THREE_KINDS, executors=THREE_EXECUTORS, train=40, val=5, test=5)
SETTINGS = {
    "free": ("calls", [None]),
    "calls": ("calls", [0, 1, 3, None]),
    "usd": ("usd", [0.001, 0.02, 0.05]),
}


def make_config(unit: str = "calls", caps=(None,)) -> StepBudgetConfig:
    data = {
        "budget": {"unit": unit, "caps": list(caps)},
        "reward": {"unit": unit},
        "cost_weight": {"min": 0.0, "max": 1.0},
    }
    return parse_config(StepBudgetConfig, data, "test")


def make_policy(environment, *, greedy: bool = False) -> ScorerPolicy:
    torch.manual_seed(0)
    names = len(environment.feature_names)
    scorer = StepScorer(StepScorerConfig(features=names, described=3, hidden=8))
    torch.nn.init.normal_(scorer.executor_tower.weight)
    torch.nn.init.normal_(scorer.value_head[2].weight)
    return ScorerPolicy(scorer, greedy=greedy)


def make_plan(groups: int = 12, update: int = 0, tasks: int = 40, shape=None):
    shape = GroupShape(3, forced_arms=(0, 1, 2), reference_arm=2) if shape is None else shape
    seeds_Q = np.arange(tasks) * 31 + 5
    return plan_steps(0, update, tasks=tasks, groups=groups, shape=shape, reference_seed_Q=seeds_Q)


def assert_equal_batches(one: Batch, two: Batch) -> None:
    """Compare everything but what stands at padding, which nobody reads."""
    inside_BT = one.valid_BT
    np.testing.assert_array_equal(inside_BT, two.valid_BT)
    for field in fields(Batch):
        left, right = getattr(one, field.name), getattr(two, field.name)
        if field.name in ("features_BTF", "mask_BTK", "action_BT"):
            np.testing.assert_array_equal(left[inside_BT], right[inside_BT], field.name)
        elif field.name in ("logp_BT", "value_BT"):  # matrix products of other sizes
            np.testing.assert_allclose(left[inside_BT], right[inside_BT], atol=1e-5)
        elif field.name == "reward_terms_BT":
            assert set(left) == set(right) == {"outcome", "hard_bonus", "cost"}
            for name in left:
                np.testing.assert_array_equal(left[name], right[name], name)
        elif field.name == "ends":
            for end in fields(left):
                np.testing.assert_array_equal(
                    getattr(left, end.name), getattr(right, end.name), end.name
                )
        else:
            np.testing.assert_array_equal(left, right, field.name)
