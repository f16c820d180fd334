"""Do no harm: whole tasks held out, every task equally often; which cure helps how much.

Run: python tests/benchmarks/unseen_tasks.py TABLE [--rotations 10] [--held 3] [--seed 0]
     [--cures none,margin] [--runs FOLDER]

Rotation r holds out `held` tasks that follow each other in the sorted list, from task r on, trains
the shipped recipe (recipes/single_turn/mlp_expected_gradient_minilm.yaml) on the others with and
without its cures, and measures on the tasks held out. Nothing tells the policy that they are new.
With as many rotations as tasks every task is held out equally often.

Printed per cure and baseline, as means over rotations with the standard error and the worst one:
AIQ minus the AIQ of the hull of the single candidates (picked with hindsight on the tasks held
out); quality at cost weight 0 minus that of the best single candidate (chosen on train); and the
cost there as a share of the best single candidate's. `plain` is the recipe without the kernel, the
margin, features by hand, and small steps; `none` lacks the first two.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

from rlroute.config import load_config
from rlroute.data.table import read_table
from rlroute.evaluation.sampling import (
    RoutingPolicy,
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

Row = tuple[float, float, float]


def measure(policy: RoutingPolicy, run: Run) -> Row:
    """Return AIQ minus the hull's, and quality gain and cost ratio at weight 0, on test."""
    train_data, test = run.prepared.splits["train"], run.prepared.splits["test"]
    yardstick = make_yardstick(train_data, test, 1, 0)
    weights = make_cost_weights(run.recipe.cost_weight, run.recipe.evaluation.cost_weights)
    sweep = sweep_policy(policy, test, np.array(weights))
    hull = sample_frontier(yardstick.cost_usd_SK, yardstick.quality_SK, yardstick)
    return (
        float(sample_sweep(sweep, yardstick).aiq_S[0] - hull.aiq_S[0]),
        float(sweep.quality_NQ[0].mean() - yardstick.best_quality[0]),
        float(sweep.cost_usd_NQ[0].mean() / yardstick.best_cost[0]),
    )


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
        print(f"  {cure}: margin {note}, {np.round(found[f'cure: {cure}'], 4)}", flush=True)
    return found


def main() -> None:
    """Run every rotation and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("table")
    parser.add_argument("--rotations", type=int, default=10)
    parser.add_argument("--held", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cures", default=",".join(CURES))
    parser.add_argument("--runs", type=Path, default=None)
    arguments = parser.parse_args()
    folder = (arguments.runs or Path(tempfile.mkdtemp(prefix="rlroute-"))) / "unseen"
    tasks = sorted({query.task for query in read_table(arguments.table).queries})
    rows: dict[str, list[Row]] = defaultdict(list)
    for rotation in range(arguments.rotations):
        held = [tasks[(rotation + place) % len(tasks)] for place in range(arguments.held)]
        print(f"rotation {rotation}: {', '.join(held)}", flush=True)
        cures = arguments.cures.split(",")
        found = run_rotation(arguments.table, held, cures, arguments.seed, folder)
        for name, row in found.items():
            rows[name].append(row)
    print(
        f"\n{arguments.table}, {arguments.rotations} rotations, {arguments.held} tasks held out\n"
    )
    print(
        "| policy | AIQ minus hull's | worst | quality minus best single's | worst | cost ratio |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for name, found_rows in rows.items():
        value_R3 = np.array(found_rows)
        mean_3 = value_R3.mean(axis=0)
        error_3 = value_R3.std(axis=0, ddof=1) / np.sqrt(len(value_R3))
        worst_3 = value_R3.min(axis=0)
        print(
            f"| {name} | {mean_3[0]:+.4f} ± {error_3[0]:.4f} | {worst_3[0]:+.4f} "
            f"| {mean_3[1]:+.4f} ± {error_3[1]:.4f} | {worst_3[1]:+.4f} | {mean_3[2]:.3f} |"
        )


if __name__ == "__main__":
    main()
