"""The bar on MMLU-Pro outcomes: every algorithm from the same start, seeds, baselines, ablation.

Run: python tests/benchmarks/mmlu_pro_bar.py TABLE [--seeds 5] [--kinds ppo,grpo] [--ablation]
     [--all-baselines] [--runs FOLDER]

Trains the MiniLM recipes (recipes/single_turn/mlp_*_minilm.yaml) with each seed and prints the mean
AIQ on test with its spread (largest minus smallest over seeds), quality and cost at weight 0 (USD
per 1,000 queries), and the lead over kNN-40 of the same run: the mean over seeds with a paired 95%
bootstrap interval over queries (the same resamples for all). `--ablation` builds the
expected-gradient recipe up from the plain one, a step a row, and adds kNN-40 and ridge on MiniLM
alone, without features by hand. `--all-baselines` adds every baseline of the report, fitted for the
first seed.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlroute.config import load_config
from rlroute.evaluation.sampling import (
    RoutingPolicy,
    Yardstick,
    estimate,
    make_yardstick,
    sample_frontier,
    sample_sweep,
    sweep_policy,
)
from rlroute.policies.baselines import (
    NearestNeighbours,
    RidgeRegression,
    fit_baselines,
)
from rlroute.policies.decision import GreedyPolicy
from rlroute.policies.table_baselines import PredictThenOptimise
from rlroute.trainers.decision import make_cost_weights, train
from rlroute.trainers.recipe import Recipe
from rlroute.trainers.run_folder import Run, load_best, read_run

RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "single_turn"
KINDS = ("expected_gradient", "ppo", "grpo", "rloo")
BOOTSTRAP, BOOTSTRAP_SEED = 1000, 0
ALONE = " on MiniLM alone"

# From the plain recipe to the shipped one; overrides of each step, and of no learning at all.
PLAIN = ("encoder={kind: minilm}", "policy={hidden: 256}", "cost_weight.power=3")
STEPS = {
    "clusters only, MiniLM (the recipe without `_minilm`)": (
        *PLAIN,
        "optimiser.learning_rate=0.0005",
        "updates=400",
        "validation.every=20",
    ),
    "+ features by hand": (
        "encoder={kind: minilm, features: true}",
        *PLAIN[1:],
        "optimiser.learning_rate=0.0005",
        "updates=400",
        "validation.every=20",
    ),
    "+ sharp policy, small steps": ("policy.kernel=null", "policy.margin=0"),
    "+ kernel start": ("policy.margin=0",),
    "+ margin (the shipped recipe)": (),
    "the same, nothing learnt": ("updates=1", "optimiser.learning_rate=1e-12"),
}


@dataclass(frozen=True)
class Row:
    """A policy on test: AIQ per resample [S], the first of them over all queries; at weight 0."""

    aiq_S: np.ndarray
    quality: float
    cost_usd: float


def measure(policy: RoutingPolicy, run: Run, yardstick: Yardstick) -> Row:
    """Sweep a policy over the cost weights on test."""
    weights = make_cost_weights(run.recipe.cost_weight, run.recipe.evaluation.cost_weights)
    sweep = sweep_policy(policy, run.prepared.splits["test"], np.array(weights))
    aiq_S = sample_sweep(sweep, yardstick).aiq_S
    return Row(aiq_S, float(sweep.quality_NQ[0].mean()), float(sweep.cost_usd_NQ[0].mean()))


def train_and_measure(
    recipe: Path, overrides: list[str], folder: Path, baselines: str
) -> dict[str, Row]:
    """Train one run; return a row for its policy, and for `simple` or `all` baselines if asked."""
    train(load_config(Recipe, recipe, overrides), folder, overwrite=True)
    run = read_run(folder)
    splits = run.prepared.splits
    yardstick = make_yardstick(splits["train"], splits["test"], BOOTSTRAP, BOOTSTRAP_SEED)
    rows = {"policy": measure(GreedyPolicy(load_best(run)[0]), run, yardstick)}
    policies: list[RoutingPolicy] = []
    if baselines == "simple":
        simple = (
            NearestNeighbours(splits["train"]),
            RidgeRegression(splits["train"], splits["val"]),
        )
        policies += [PredictThenOptimise(one, splits["train"]) for one in simple]
    elif baselines == "all":
        policies += fit_baselines(splits["train"], splits["val"])
    rows |= {policy.name: measure(policy, run, yardstick) for policy in policies}
    hull = sample_frontier(yardstick.cost_usd_SK, yardstick.quality_SK, yardstick)
    best = yardstick.best
    rows["hull of single candidates"] = Row(
        hull.aiq_S, float(yardstick.quality_SK[0, best]), float(yardstick.cost_usd_SK[0, best])
    )
    return rows


def print_table(found: dict[str, list[Row]]) -> None:
    """Print a Markdown table: means over seeds, spreads, and the leads over kNN-40."""
    rivals = [name for name in ("kNN-40", f"kNN-40{ALONE}") if name in found]
    heads = [f"lead over {name}" for name in rivals]
    print(f"| policy | AIQ | quality at weight 0 | its cost | {' | '.join(heads)} |")
    print("| --- | --- | --- | --- |" + " --- |" * len(rivals))
    for name, rows in found.items():
        aiq_R = np.array([row.aiq_S[0] for row in rows])
        leads = []
        for rival in rivals:  # baselines of the first seed have one row
            pairs = zip(rows, found[rival], strict=False)
            lead = estimate(np.mean([row.aiq_S - other.aiq_S for row, other in pairs], axis=0))
            leads.append(f"{lead.value:+.4f} [{lead.low:+.4f}, {lead.high:+.4f}]")
        print(
            f"| {name} | {aiq_R.mean():.4f} ({np.ptp(aiq_R):.4f}) "
            f"| {np.mean([row.quality for row in rows]):.4f} "
            f"| {1000 * np.mean([row.cost_usd for row in rows]):.4f} | {' | '.join(leads)} |"
        )


def main() -> None:
    """Train every run and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("table")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--ablation", action="store_true")
    parser.add_argument("--all-baselines", action="store_true")
    parser.add_argument("--runs", type=Path, default=None)
    arguments = parser.parse_args()
    runs = arguments.runs or Path(tempfile.mkdtemp(prefix="rlroute-"))
    found: dict[str, list[Row]] = defaultdict(list)
    jobs: list[tuple[str, Path, tuple[str, ...]]] = [
        (kind, RECIPES / f"mlp_{kind}_minilm.yaml", ())
        for kind in arguments.kinds.split(",")
        if kind
    ]
    if arguments.ablation:
        recipe = RECIPES / "mlp_expected_gradient_minilm.yaml"
        jobs += [(name, recipe, step) for name, step in STEPS.items()]
    for seed in range(arguments.seeds):
        for number, (name, recipe, step) in enumerate(jobs):
            overrides = [f"table={arguments.table}", f"seed={seed}", "tracking.wandb=false", *step]
            first = "all" if arguments.all_baselines and seed == 0 else "simple"
            plain = bool(step) and step[0] == PLAIN[0]
            baselines = "simple" if plain else first if number == 0 else "none"
            rows = train_and_measure(recipe, overrides, runs / f"job{number}-s{seed}", baselines)
            found[name].append(rows.pop("policy"))
            if plain:
                for other in ("kNN-40", "ridge"):
                    found[f"{other}{ALONE}"].append(rows[other])
            elif number == 0:
                for other, row in rows.items():
                    found[other].append(row)
            print(f"seed {seed}: {name}: AIQ {found[name][-1].aiq_S[0]:.4f}", flush=True)
    print(f"\n{arguments.table}, test split, {arguments.seeds} seeds: mean (spread)\n")
    print_table(found)


if __name__ == "__main__":
    main()
