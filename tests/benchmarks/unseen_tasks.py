"""Do no harm: whole tasks held out, every task equally often; which cure helps how much.

Run: python tests/benchmarks/unseen_tasks.py TABLE [--rotations 10] [--held 3] [--seeds 1]
     [--cures none,margin] [--runs FOLDER]

Rotation r holds out `held` tasks that follow each other in the sorted list, from task r on, trains
the shipped recipe (recipes/single_turn/mlp_expected_gradient_minilm.yaml) on the others with and
without its cures, and measures on the tasks held out. Nothing tells the policy that they are new.
With as many rotations as tasks every task is held out equally often.

Printed per rotation: what the first cure gains in quality at cost weight 0 over the best single
candidate, mean over seeds, with a paired 95% bootstrap interval over queries. Printed per cure and
baseline, as means over rotations (of the means over seeds) with the standard error and the worst
rotation:
AIQ minus the AIQ of the hull of the single candidates (picked with hindsight on the tasks held
out); quality at cost weight 0 minus that of the best single candidate (chosen on train); and the
cost there as a share of the best single candidate's. `plain` is the recipe without the kernel, the
margin, features by hand, and small steps; `none` lacks the first two.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlroute.config import load_config
from rlroute.data.table import read_table
from rlroute.evaluation.sampling import (
    RoutingPolicy,
    estimate,
    make_yardstick,
    sample_frontier,
    sample_sweep,
    sweep_policy,
)
from rlroute.policies.baselines import NearestNeighbours, RidgeRegression
from rlroute.policies.decision import GreedyPolicy
from rlroute.policies.table_baselines import PredictThenOptimise
from rlroute.trainers.decision import make_cost_weights, train
from rlroute.trainers.recipe import Recipe
from rlroute.trainers.run_folder import Run, load_best, read_run

RECIPE = (
    Path(__file__).resolve().parents[2]
    / "recipes"
    / "single_turn"
    / "mlp_expected_gradient_minilm.yaml"
)
CURES = {
    "plain": (  # the recipe without `_minilm`, on MiniLM
        "encoder={kind: minilm}",
        "policy={hidden: 256}",
        "cost_weight.power=3",
        "optimiser.learning_rate=0.0005",
        "updates=400",
    ),
    "none": ("policy.kernel=null", "policy.margin=0"),
    "kernel": ("policy.margin=0",),
    "margin": ("policy.kernel=null",),
    "both": (),
}

BOOTSTRAP, BOOTSTRAP_SEED = 1000, 0


@dataclass(frozen=True)
class Row:
    """A policy on the tasks held out.

    `values_3` are AIQ minus the hull's, and at weight 0 the quality gained over the best single
    candidate and the cost as a share of its. `gain_S` is that gain per resample of the queries, the
    first of them over all.
    """

    values_3: np.ndarray
    gain_S: np.ndarray


def measure(policy: RoutingPolicy, run: Run) -> Row:
    """Return what a policy reaches on test."""
    train_data, test = run.prepared.splits["train"], run.prepared.splits["test"]
    yardstick = make_yardstick(train_data, test, BOOTSTRAP, BOOTSTRAP_SEED)
    weights = make_cost_weights(run.recipe.cost_weight, run.recipe.evaluation.cost_weights)
    sweep = sweep_policy(policy, test, np.array(weights))
    hull = sample_frontier(yardstick.cost_usd_SK, yardstick.quality_SK, yardstick)
    gain_S = yardstick.weight_SQ @ sweep.quality_NQ[0] - yardstick.best_quality
    lead = sample_sweep(sweep, yardstick).aiq_S[0] - hull.aiq_S[0]
    share = sweep.cost_usd_NQ[0].mean() / yardstick.best_cost[0]
    return Row(np.array([lead, gain_S[0], share]), gain_S)


def run_rotation(
    table: str, held: list[str], cures: list[str], seed: int, folder: Path
) -> dict[str, Row]:
    """Train without the tasks held out, once per cure; return rows of policies and baselines."""
    found: dict[str, Row] = {}
    for cure in cures:
        overrides = [
            f"table={table}",
            f"seed={seed}",
            "tracking.wandb=false",
            f"split={{kind: held_out_tasks, test: [{', '.join(held)}]}}",
            *CURES[cure],
        ]
        train(load_config(Recipe, RECIPE, overrides), folder, overwrite=True)
        run = read_run(folder)
        scorer, _ = load_best(run)
        found[f"cure: {cure}"] = measure(GreedyPolicy(scorer), run)
        if cure == cures[0]:
            splits = run.prepared.splits
            neighbours = NearestNeighbours(splits["train"])
            ridge = RidgeRegression(splits["train"], splits["val"])
            for fitted in (neighbours, ridge):
                policy = PredictThenOptimise(fitted, splits["train"])
                found[policy.name] = measure(policy, run)
        note = f"{float(scorer.margin):.2f}" if scorer.config.margin else "-"
        values_3 = np.round(found[f"cure: {cure}"].values_3, 4)
        print(f"  seed {seed}, {cure}: margin {note}, {values_3}", flush=True)
    return found


def main() -> None:
    """Run every rotation and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("table")
    parser.add_argument("--rotations", type=int, default=10)
    parser.add_argument("--held", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--cures", default=",".join(CURES))
    parser.add_argument("--runs", type=Path, default=None)
    arguments = parser.parse_args()
    folder = (arguments.runs or Path(tempfile.mkdtemp(prefix="rlroute-"))) / "unseen"
    tasks = sorted({query.task for query in read_table(arguments.table).queries})
    value_RS3: dict[str, list[np.ndarray]] = defaultdict(list)
    for rotation in range(arguments.rotations):
        held = [tasks[(rotation + place) % len(tasks)] for place in range(arguments.held)]
        print(f"rotation {rotation}: {', '.join(held)}", flush=True)
        cures = arguments.cures.split(",")
        found = [
            run_rotation(arguments.table, held, cures, seed, folder)
            for seed in range(arguments.seeds)
        ]
        for name in found[0]:
            value_RS3[name].append(np.array([rows[name].values_3 for rows in found]))
        gain = estimate(np.mean([rows[f"cure: {cures[0]}"].gain_S for rows in found], axis=0))
        print(
            f"  {cures[0]}: gain {gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]", flush=True
        )
    print(
        f"\n{arguments.table}, {arguments.rotations} rotations, {arguments.held} tasks held out, "
        f"{arguments.seeds} seeds\n"
    )
    print(
        "| policy | AIQ minus hull's | worst | quality minus best single's | worst | cost ratio |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for name, values in value_RS3.items():
        value_R3 = np.array(values).mean(axis=1)
        mean_3 = value_R3.mean(axis=0)
        error_3 = value_R3.std(axis=0, ddof=1) / np.sqrt(len(value_R3))
        worst_3 = value_R3.min(axis=0)
        print(
            f"| {name} | {mean_3[0]:+.4f} ± {error_3[0]:.4f} | {worst_3[0]:+.4f} "
            f"| {mean_3[1]:+.4f} ± {error_3[1]:.4f} | {worst_3[1]:+.4f} | {mean_3[2]:.3f} |"
        )


if __name__ == "__main__":
    main()
