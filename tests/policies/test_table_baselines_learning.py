"""Every baseline on made item-response tables, where what the best policy earns is known."""

from __future__ import annotations

import numpy as np
import pytest

from rlroute.data.irt_table import IrtTable, IrtTableConfig, make_irt_table
from rlroute.data.routing_data import RoutingData
from rlroute.evaluation.metrics import make_uniform
from rlroute.policies.baselines import fit_baselines

WEIGHTS = (0.0, 0.3, 1.0)
# The part of the way from random picks to the best policy that each baseline goes at least.
LEAST_GAIN = {
    **dict.fromkeys(("kNN-40", "ridge", "centroids", "skill profile"), 0.75),
    **dict.fromkeys(("soft labels", "boosted trees", "pheromones", "loss with flags"), 0.7),
    **{"sufficient": 0.7, "task oracle": 0.75, "EMA": 0.25, "IRT": 0.15},
    "IRT, Chebyshev": 0.1,
}


def give_splits(made: IrtTable) -> dict[str, tuple[IrtTable, RoutingData]]:
    splits = {}
    for name in ("train", "val", "test"):
        part = made.select_split(name)
        described_KD = np.zeros((len(part.table.candidates), 1), np.float32)
        splits[name] = (
            part,
            RoutingData(part.table, part.features_QF, described_KD, part.cost_reference_usd),
        )
    return splits


def measure_gains(made: IrtTable) -> dict[str, float]:
    """Return the part of the way from random to best that each baseline goes, over weights."""
    splits = give_splits(made)
    part, test = splits["test"]
    uniform_QK = make_uniform(part.table.present_QK)
    gains = {}
    for policy in fit_baselines(splits["train"][1], splits["val"][1]):
        way, gone = 0.0, 0.0
        for weight in WEIGHTS:
            random = part.compute_policy_value(uniform_QK, weight)
            probability_QK = policy.compute_probabilities(test, weight)
            gone += part.compute_policy_value(probability_QK, weight) - random
            way += part.compute_best_value(weight) - random
        gains[policy.name] = gone / way
    return gains


@pytest.fixture(scope="module")
def gains() -> dict[str, float]:
    return measure_gains(make_irt_table(IrtTableConfig(), seed=0))


@pytest.fixture(scope="module")
def plain_gains() -> dict[str, float]:
    """Plain item response: one topic, no specialties; difficulty is all there is to learn."""
    config = IrtTableConfig(topics=1, specialty=0, ability_step=0.8, discrimination=3.0)
    return measure_gains(make_irt_table(config, seed=0))


@pytest.mark.parametrize("name", LEAST_GAIN)
def test_a_baseline_goes_its_part_of_the_way_to_the_best_policy(gains, name):
    assert gains[name] >= LEAST_GAIN[name]


def test_no_router_that_is_blind_to_the_draws_beats_the_best_policy(gains):
    seeing = {"oracle", "task oracle", "paid probes"}
    assert max(gain for name, gain in gains.items() if name not in seeing) <= 1.0


def test_where_item_response_holds_its_baseline_is_near_the_best_policy(plain_gains):
    assert plain_gains["IRT"] >= 0.9
    assert plain_gains["IRT"] >= plain_gains["kNN-40"] + 0.01
    assert plain_gains["IRT, Chebyshev"] >= 0.8


def test_item_response_cannot_know_specialties(gains):
    assert gains["IRT"] <= gains["ridge"] - 0.15
