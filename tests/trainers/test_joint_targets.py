"""The advantages that an update with joint credit takes: BudgetMem's worked numbers."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from rlroute.rewards.memory import MemoryReward, MemoryRewardConfig
from rlroute.trainers.memory_recipe import MemoryPPOConfig
from rlroute.trainers.targets import compute_joint_targets

PLAIN = MemoryReward(MemoryRewardConfig.model_validate({"alignment": None}))
MODULES = 5
# outcome, cost, weight, value, return, advantage, standardised: the last row stands alone
SHEET = [
    ([1, 0], [0.2, 0.8], 0.5, 0.0, [1.1, 0.4], [1.1, 0.4], [0.7071, -0.7071]),
    ([1, 0, 0.5], [0, 1, 0.5], 0.3, 0.1, [1.0, 0.3, 0.65], [0.9, 0.2, 0.55], [1, -1, 0]),
    ([1], [0.5], 0.5, 0.2, [1.25], [1.05], [1.05]),
]


@pytest.mark.parametrize("standardise", [True, False])
@pytest.mark.parametrize(
    ("outcome", "cost", "weight", "value", "returns", "raw", "standardised"), SHEET
)
def test_every_decision_has_the_advantage_of_the_sheet(
    outcome, cost, weight, value, returns, raw, standardised, standardise
):
    items = len(outcome)
    terms = {"outcome": np.array(outcome, np.float32), "cost": np.array(cost, np.float32)}
    return_B = torch.as_tensor(PLAIN.combine(terms, np.full(items, weight, np.float32)))
    algorithm = MemoryPPOConfig(kind="ppo", credit="joint", normalise_advantages=standardise)
    learner = SimpleNamespace(
        recipe=SimpleNamespace(algorithm=algorithm), accelerator=Accelerator(cpu=True)
    )
    batch = SimpleNamespace(value_BT=np.full((items, MODULES), value, np.float32))
    everywhere_BT = torch.ones(items, MODULES, dtype=torch.bool)
    found = compute_joint_targets(learner, batch, return_B, everywhere_BT)
    expected_B = np.array(standardised if standardise else raw)
    for adv_B in found.adv_BT.numpy().T:
        np.testing.assert_allclose(adv_B, expected_B, atol=5e-5)
    np.testing.assert_allclose(found.return_BT[:, 0], returns, atol=1e-6)
