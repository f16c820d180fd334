"""How long one update of memory-tier routing takes: 32 episodes, by credit and start, side by side.

    PYTHONPATH=.:tests python tests/benchmarks/memory_update.py [--episodes 32] [--rounds 30]

It prints milliseconds for collecting the episodes on a planted tree and for the update on them (the
source's four epochs in one minibatch each), as medians on one thread. It asserts nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch
from planted_tiers import make_tree, start

from rlroute.trainers.update import update_policy

STARTS = {"uniform": None, "profiles": {"clusters": 4, "sharpness": 100}}


def measure(credit: str, begin: str, episodes: int, rounds: int) -> tuple[float, float]:
    """Return the medians of collecting and updating, in milliseconds."""
    tree = make_tree(np.tile(np.linspace(0.2, 0.9, 243), (4, 1)))
    algorithm = {"kind": "ppo", "credit": credit, "episodes": episodes, "minibatches": 1}
    settings = {**algorithm, "epochs": 4, "target_kl": None}
    run = start(tree, algorithm=settings, policy={"hidden": 256, "profiles": STARTS[begin]})
    problem, learner = run.problem, run.learner
    seconds: list[tuple[float, float]] = []
    for update in range(rounds):
        began = time.perf_counter()
        batch = problem.collect(learner, update)
        collected = time.perf_counter()
        update_policy(learner, batch, update)
        seconds.append((collected - began, time.perf_counter() - collected))
    collect, learn = zip(*seconds, strict=True)
    return 1e3 * statistics.median(collect), 1e3 * statistics.median(learn)


def main() -> None:
    """Print a row for each credit and start."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--episodes", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'credit':<10}{'start':<10}{'collect, ms':>14}{'update, ms':>14}")
    for credit in ("decision", "joint"):
        for begin in STARTS:
            collect, learn = measure(credit, begin, arguments.episodes, arguments.rounds)
            print(f"{credit:<10}{begin:<10}{collect:>14.1f}{learn:>14.1f}")


if __name__ == "__main__":
    main()
