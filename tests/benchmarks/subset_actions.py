"""What subsets are worth: routers over subsets against routers over one of n, on one yardstick.

How to run: `python tests/benchmarks/subset_actions.py ONE SUBSETS [ONE SUBSETS ...]`, each
a finished single-turn run; a pair has the same table, split and seed, with and without `actions`.

Everything is measured on the test split with the single candidates of the run without actions: AIQ
is taken from the mean cost of the cheapest to that of the dearest of them, so a subset that costs
more than any candidate widens nothing. Prints per pair AIQ of both policies and of the oracle,
the paired difference with its 95% interval, and the share of queries that get more than one call.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from rlroute.evaluation.sampling import (
    check_cost_weights,
    estimate,
    make_yardstick,
    sample_sweep,
    sweep_policy,
)
from rlroute.policies.baselines import Oracle
from rlroute.policies.decision import GreedyPolicy
from rlroute.trainers.decision import make_cost_weights
from rlroute.trainers.run_folder import Run, load_best, read_run


def main() -> None:
    """Print one line per pair of runs, and the mean over pairs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", type=Path, nargs="+")
    runs = [read_run(folder) for folder in parser.parse_args().runs]
    if len(runs) % 2:
        parser.error("give runs in pairs: one of n, subsets")
    rows = [measure_pair(*pair) for pair in zip(runs[::2], runs[1::2], strict=True)]
    if len(rows) > 1:
        one, other, lead = np.mean(rows, axis=0)
        print(f"mean of {len(rows)}: one of n {one:.4f}, subsets {other:.4f}, lead {lead:+.4f}")


def measure_pair(single: Run, wider: Run) -> tuple[float, float, float]:
    """Print what the two runs of a pair reach, and return both AIQ and the lead of the second."""
    splits = single.prepared.splits
    yardstick = make_yardstick(splits["train"], splits["test"], 1000, single.recipe.seed)
    policy_S = []
    for run in (single, wider):
        test = run.prepared.splits["test"]
        weights = make_cost_weights(run.recipe.cost_weight, run.recipe.evaluation.cost_weights)
        weight_L = check_cost_weights(weights)
        sweep = sweep_policy(GreedyPolicy(load_best(run)[0]), test, weight_L)
        policy_S.append(sample_sweep(sweep, yardstick).aiq_S)
        if run is single:
            oracle = sample_sweep(sweep_policy(Oracle(), test, weight_L), yardstick).aiq_S[0]
    several_K = np.array([len(one.asked) > 1 for one in test.table.candidates])
    lead = estimate(policy_S[1] - policy_S[0])
    print(
        f"seed {single.recipe.seed}: AIQ one of n {policy_S[0][0]:.4f}, subsets "
        f"{policy_S[1][0]:.4f}, lead {lead.value:+.4f} [{lead.low:+.4f}, {lead.high:+.4f}]; "
        f"oracle {oracle:.4f}; more than one call at cost weight "
        f"{weight_L[0]:g}: {sweep.share_NK[0, several_K].sum():.0%}, at {weight_L[20]:.2g}: "
        f"{sweep.share_NK[20, several_K].sum():.0%}; quality and USD per 1,000 at the smallest "
        f"weight {sweep.quality_NQ[0].mean():.4f}, {1000 * sweep.cost_usd_NQ[0].mean():.4g}"
    )
    return float(policy_S[0][0]), float(policy_S[1][0]), lead.value


if __name__ == "__main__":
    main()
