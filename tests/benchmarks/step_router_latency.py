"""Time of a decision of an exported step router.

    python tests/benchmarks/step_router_latency.py my-step-router
    python tests/benchmarks/step_router_latency.py

The argument is a folder that `rlroute export` wrote of a step-by-step run. Without one a small
network of the recipes' size is made for the critical-step chain; it keeps its first weights, which
take the same time as trained ones.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch

from rlroute import StepRouter
from rlroute.envs.budget import BUDGET_FEATURES, BudgetConfig
from rlroute.envs.step_budget import StepBudgetConfig
from rlroute.export.step_bundle import StepBundle
from rlroute.policies.step_scorer import StepScorer, StepScorerConfig
from rlroute.worlds.chain import ChainConfig, ChainWorld

TEXT = "This step is simple."


def main() -> None:
    """Print p50 and p99 of `choose` and of `choose` with `settle`, in milliseconds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("router", nargs="?", help="exported step router")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--repeats", type=int, default=10_000, help="decisions to time")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    router = StepRouter.load(arguments.router) if arguments.router else make_router()
    print(
        f"{len(router.executors)} executors, reads {router.reads} "
        f"({len(router.feature_names)} of the world), horizon {router.horizon}, "
        f"{arguments.threads} thread(s), {arguments.repeats} decisions"
    )
    measure(router, arguments.repeats // 10)
    seconds_N2 = measure(router, arguments.repeats)
    for name, seconds_N in (
        ("choose", seconds_N2[:, 0]),
        ("choose and settle", seconds_N2.sum(axis=1)),
    ):
        p50, p99 = np.percentile(seconds_N, [50, 99]) * 1000
        print(f"{name:<18} p50 {p50:.3f} ms   p99 {p99:.3f} ms")


def make_router() -> StepRouter:
    """Return an untrained router for the chain, with a budget in USD."""
    world = ChainWorld(ChainConfig())
    features = len(world.feature_names) + len(BUDGET_FEATURES)
    bundle = StepBundle(
        executors=world.executors,
        executor_features_KD=world.executor_features_KD,
        feature_names=world.feature_names,
        horizon=world.horizon,
        environment=StepBudgetConfig(budget=BudgetConfig(unit="usd", counted=("large",))),
        network=StepScorer(StepScorerConfig(features=features, described=3)).eval(),
        summary={},
        recipe_yaml="",
    )
    return StepRouter(bundle)


def measure(router: StepRouter, repeats: int) -> np.ndarray[Any, Any]:
    """Return the seconds of `choose` and of `settle` [N, 2] in whole episodes under a cap."""
    seconds = []
    bounds = {one.id: one.prices.compute_cost(3000, 200) for one in router.executors}
    cap = router.horizon * max(bounds.values()) if router.unit == "usd" else router.horizon
    features = dict.fromkeys(router.feature_names, 0.0)
    while len(seconds) < repeats:
        episode = router.start(cap=cap)
        for _ in range(router.horizon):
            start = time.perf_counter()
            step = episode.choose(text=TEXT, features=features, bounds_usd=bounds)
            chosen = time.perf_counter()
            episode.settle(bounds[step.executor])
            seconds.append((chosen - start, time.perf_counter() - chosen))
    return np.array(seconds[:repeats])


if __name__ == "__main__":
    main()
