"""The numbers of the README: every single-turn recipe on a table, several seeds, beside baselines.

Run: python tests/benchmarks/single_turn_numbers.py TABLE [--seeds 3] [--kinds ppo,grpo]
     [--runs FOLDER] [--set KEY=VALUE ...]

Trains each recipe with each seed (run folders go to FOLDER, by default a temporary one), evaluates
on the test split with the sweep of the recipe, and prints a Markdown table of means and spreads
(largest minus smallest over seeds). Encoder and profiles are refitted with each seed, so baselines
have a spread too. The setting within the budget is chosen on val, so its cost on test may differ a
little. Costs are USD per 1,000 queries. `calls` are those that training asked for, in thousands;
the expected gradient is shown every outcome of its queries. Of a log each query is shown once per
time that it is learnt from; nothing is asked.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

from rlroute.config import load_config
from rlroute.evaluation.evaluate import choose_cost_weight, evaluate_policies
from rlroute.evaluation.sampling import sweep_policy
from rlroute.policies.baselines import fit_baselines
from rlroute.policies.decision import GreedyPolicy
from rlroute.tracking import read_metrics
from rlroute.trainers.decision import make_cost_weights, train
from rlroute.trainers.recipe import Recipe
from rlroute.trainers.run_folder import load_best, read_run

RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "single_turn"
KINDS = (
    *("ppo", "grpo", "forced_arms_grpo", "prior_grpo", "rloo", "reinforce"),
    "expected_gradient",
)
COLUMNS = ("AIQ", "quality at weight 0", "its cost", "quality within the budget", "its cost")

Row = tuple[float, float, float, float, float]


def count_calls(folder: Path) -> int:
    """Return how many outcomes a run was shown while it trained."""
    run = read_run(folder)
    algorithm = run.recipe.algorithm
    groups = algorithm.episodes // algorithm.group_size
    sizes = [row["group/size_mean"] for row in read_metrics(folder) if "group/size_mean" in row]
    if sizes:
        return round(sum(sizes) * groups)
    shown = len(run.prepared.candidates) if algorithm.kind == "expected_gradient" else 1
    return run.recipe.updates * algorithm.episodes * shown


def measure(folder: Path, budget_usd: float, *, name: str, with_baselines: bool) -> dict[str, Row]:
    """Evaluate a run on test and return a row for its policy and, if asked, the baselines."""
    run = read_run(folder)
    scorer, _ = load_best(run)
    splits = run.prepared.splits
    weights = make_cost_weights(run.recipe.cost_weight, run.recipe.evaluation.cost_weights)
    policies = [GreedyPolicy(scorer, name=name)]
    if with_baselines:
        policies += fit_baselines(splits["train"], splits["val"])
    result = evaluate_policies(policies, splits["train"], splits["test"], weights, bootstrap=10)
    hull = result.zero_router
    rows: dict[str, Row] = {}
    if with_baselines:
        rows["hull of single candidates"] = (
            hull.aiq.value,
            hull.quality[-1],
            hull.cost_usd[-1] * 1000,
            float(np.interp(budget_usd, hull.cost_usd, hull.quality)),
            budget_usd * 1000,
        )
    for policy, found in zip(policies, result.policies, strict=True):
        sweep = sweep_policy(policy, splits["test"], np.array(weights))
        weight = choose_cost_weight(policy, splits["val"], weights, budget_usd)
        chosen = sweep_policy(policy, splits["test"], np.array([weight or 0.0]))
        affordable = 1.0 if weight is not None else float("nan")
        rows[policy.name] = (
            found.frontier.aiq.value,
            float(sweep.quality_NQ[0].mean()),
            float(sweep.cost_usd_NQ[0].mean()) * 1000,
            float(chosen.quality_NQ[0].mean()) * affordable,
            float(chosen.cost_usd_NQ[0].mean()) * 1000 * affordable,
        )
    return rows


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--kinds", default=",".join(KINDS), help="recipes mlp_KIND.yaml")
    parser.add_argument("--budget", type=float, default=2e-4, help="USD per query, chosen on val")
    parser.add_argument("--runs", type=Path, default=None)
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE of every recipe")
    arguments = parser.parse_args()
    runs = arguments.runs or Path(tempfile.mkdtemp(prefix="rlroute-numbers-"))
    found: dict[str, list[Row]] = defaultdict(list)
    kinds, calls = arguments.kinds.split(","), {}
    for seed in range(arguments.seeds):
        for kind in kinds:
            overrides = [f"table={arguments.table}", f"seed={seed}", "tracking.wandb=false"]
            overrides += arguments.set
            recipe = load_config(Recipe, RECIPES / f"mlp_{kind}.yaml", overrides)
            folder = runs / f"{kind}-s{seed}"
            train(recipe, folder, overwrite=True)
            first = kind == kinds[0]
            rows = measure(folder, arguments.budget, name=kind, with_baselines=first)
            calls[kind] = count_calls(folder) // 1000
            for name, row in rows.items():
                found[name].append(row)
    print(f"{arguments.table}, test split, {arguments.seeds} seeds: mean (spread)\n")
    print(f"| policy | {' | '.join(COLUMNS)} | calls |\n| --- |{' --- |' * len(COLUMNS)} --- |")
    for name, rows in found.items():
        value_SC = np.array(rows)
        digits = [4, 4, 4, 4, 4] if value_SC[:, 2].max() > 0.1 else [4, 4, 5, 4, 5]
        cells = [
            f"{mean:.{places}f} ({spread:.{places}f})"
            for mean, spread, places in zip(
                value_SC.mean(0), np.ptp(value_SC, axis=0), digits, strict=True
            )
        ]
        print(f"| {name} | {' | '.join(cells)} | {calls.get(name, '-')} |")


if __name__ == "__main__":
    main()
