"""Steps per second of `rlroute/StepBudget-v0` on the chain: hand-batched lanes, and one by one.

Run: python tests/benchmarks/step_environment.py [--seconds 3] [--lanes 4096]

Random actions, the large executor only where the mask allows it. Beside the hand-batched
environment stand single environments behind Gymnasium's interface, stepped in a loop and restarted
when they end, as its SyncVectorEnv does; and the rollout drivers with a small network, which
choose, step and write down. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import gymnasium
import numpy as np
import torch

import rlroute.envs  # noqa: F401 - registers the environments
from rlroute.config import parse_config
from rlroute.envs.step_budget import StepBudget, StepBudgetConfig
from rlroute.envs.step_budget_vector import StepBudgetVector
from rlroute.policies.step_scorer import ScorerPolicy, StepScorer, StepScorerConfig
from rlroute.rollout.step_plan import GroupShape, plan_steps
from rlroute.rollout.steps import collect_lanes, collect_worlds
from rlroute.worlds.chain import ChainConfig, ChainLanes, ChainWorld

BUDGETS = {
    "no cap": {"unit": "calls", "caps": [None]},
    "calls": {"unit": "calls", "caps": [1, 3, None]},
    "USD": {"unit": "usd", "caps": [0.02, 0.05]},
}
SINGLE_LANES = 64


def count_rate(step: Callable[[], int], seconds: float) -> float:
    """Return how many steps a second are taken by calling `step`, which says how many it took."""
    step()
    started, taken = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        taken += step()
    return taken / (time.perf_counter() - started)


def measure_lanes(config: StepBudgetConfig, lanes: int, seconds: float) -> float:
    """Step the hand-batched environment."""
    vector = StepBudgetVector(ChainLanes(ChainConfig()), config, lanes)
    observation, _ = vector.reset(seed=0)
    wish_RB = np.random.default_rng(0).integers(0, 2, (64, lanes))
    turn = 0

    def step() -> int:
        nonlocal observation, turn
        action_B = wish_RB[turn % 64] & observation["mask"][:, 1]  # large where it may act
        observation = vector.step(action_B)[0]
        turn += 1
        return lanes

    return count_rate(step, seconds)


def measure_single(budget: dict[str, object], seconds: float) -> float:
    """Step single environments in a loop."""
    settings = {"world": {"kind": "chain"}, "budget": budget, "disable_env_checker": True}
    environments = [
        gymnasium.make("rlroute/StepBudget-v0", **settings) for _ in range(SINGLE_LANES)
    ]
    observations = [one.reset(seed=n)[0] for n, one in enumerate(environments)]
    rng = np.random.default_rng(0)

    def step() -> int:
        wish_B = rng.integers(0, 2, SINGLE_LANES)
        for n, one in enumerate(environments):
            action = wish_B[n] & observations[n]["mask"][1]
            observations[n], _, terminated, _, _ = one.step(action)
            if terminated:
                observations[n] = one.reset()[0]
        return SINGLE_LANES

    return count_rate(step, seconds)


def measure_drivers(config: StepBudgetConfig, lanes: int, seconds: float) -> tuple[float, float]:
    """Play whole plans with a small network, in lanes and in single environments."""
    chain = ChainConfig()
    world = ChainWorld(chain)
    environment = StepBudget(world, config)
    shape = StepScorerConfig(features=len(environment.feature_names), described=3, hidden=64)
    policy = ScorerPolicy(StepScorer(shape).eval())
    vector = StepBudgetVector(ChainLanes(chain), config, lanes)
    tasks = world.list_tasks("train")

    def plan(groups: int):
        return plan_steps(0, 0, tasks=len(tasks), groups=groups, shape=GroupShape(1))

    many, few = plan(lanes), plan(SINGLE_LANES)

    def play_lanes() -> int:
        return int(collect_lanes(policy, vector, many).valid_BT.sum())

    def play_worlds() -> int:
        return int(collect_worlds(policy, environment, tasks, few).valid_BT.sum())

    return count_rate(play_lanes, seconds), count_rate(play_worlds, seconds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--lanes", type=int, default=4096)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"steps per second; {arguments.lanes} lanes by hand, {SINGLE_LANES} single environments\n"
    )
    print("| budget | lanes by hand | single, looped | times | driver, lanes | driver, single |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, budget in BUDGETS.items():
        config = parse_config(StepBudgetConfig, {"budget": budget}, name)
        fast = measure_lanes(config, arguments.lanes, arguments.seconds)
        slow = measure_single(budget, arguments.seconds)
        drivers = measure_drivers(config, arguments.lanes, arguments.seconds)
        cells = [f"{fast:,.0f}", f"{slow:,.0f}", f"{fast / slow:.0f}"]
        cells += [f"{rate:,.0f}" for rate in drivers]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
