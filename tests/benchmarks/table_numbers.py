"""Numbers on other tables: does a trained router beat the best single candidate, and the hull?

Run: python tests/benchmarks/table_numbers.py TABLE... [--seeds 3] [--kinds ppo,grpo]
     [--encoder tfidf] [--runs FOLDER]

Trains the recipes recipes/single_turn/mlp_KIND_minilm.yaml (kernel start, measured margin) with
every seed on each table, on TF-IDF features unless `--encoder minilm`, and compares them on test
with the baselines of `fit_baselines`, fitted once, for the last seed. A table of fewer than three
train tasks cannot leave tasks out, so there the margin is 0, and the script says so.

Printed per table: AIQ, quality at the best single candidate's cost, cost at its quality (as a share
of its cost), and the peak of the frontier; with two candidates RouteLLM's APGR, CPT(50) and CPT(80)
as well. Frontiers are as in `rlroute.evaluation.evaluate`: of all cost weights, on test, mixed with
the cheapest candidate. Means over seeds with the spread (largest minus smallest); then leads over
the best single candidate (chosen on train) and over the hull of the single candidates (picked with
hindsight on test), means over seeds with a paired 95% bootstrap interval over queries (the same
resamples for all). The verdict rests on settings chosen on validation: the best quality for at most
the best single candidate's cost, and the least cost with at least its quality (where no setting has
that on validation, the one of the best quality).
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

from rlroute.config import load_config
from rlroute.data.table import read_table
from rlroute.evaluation import metrics
from rlroute.evaluation.comparison import (
    BOUNDS,
    format_estimate,
    format_number,
    format_share,
    judge,
)
from rlroute.evaluation.evaluate import choose_cost_weight
from rlroute.evaluation.frontier import Float64Array
from rlroute.evaluation.sampling import (
    RoutingPolicy,
    Yardstick,
    estimate,
    list_singles,
    make_yardstick,
    measure_cost,
    sample_frontier,
    sweep_policy,
)
from rlroute.policies.baselines import fit_baselines
from rlroute.policies.decision import GreedyPolicy
from rlroute.policies.margin import MINIMUM_TASKS
from rlroute.trainers.decision import make_cost_weights, train
from rlroute.trainers.recipe import Recipe
from rlroute.trainers.run_folder import Run, load_best, read_run

RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "single_turn"
KINDS = ("ppo", "grpo", "expected_gradient")
BOOTSTRAP, BOOTSTRAP_SEED = 1000, 0
HULL, BEST = "hull of single candidates", "best single"
# They pick blindly, or know more than a router can: never named as what beats a candidate.
NO_ROUTERS = (HULL, BEST, "cheapest", "random", "EMA", *BOUNDS)

FRONTIER = ("AIQ", "quality at its cost", "cost at its quality", "peak")
TWO_MODELS = ("APGR", "CPT(50)", "CPT(80)")
CHOSEN = (
    "best quality within its cost, chosen on val",
    "its cost",
    "least cost with its quality, chosen on val",
    "the cost",
)
Row = dict[str, Float64Array]  # a measure in each sample [S], the first of them over all queries


def train_run(table: str, kind: str, seed: int, encoder: str, folder: Path) -> Run:
    """Train a recipe on a table and read its run."""
    overrides = [f"table={table}", f"seed={seed}", "tracking.wandb=false"]
    if encoder != "minilm":
        overrides.append(f"encoder={{kind: {encoder}, features: true}}")
    if count_train_tasks(table) < MINIMUM_TASKS:
        overrides.append("policy.margin=0")
    recipe = load_config(Recipe, RECIPES / f"mlp_{kind}_minilm.yaml", overrides)
    train(recipe, folder, overwrite=True)
    return read_run(folder)


def count_train_tasks(table: str) -> int:
    """Return how many tasks the train split has."""
    found = read_table(table)
    rows = zip(found.queries, found.split_Q, strict=True)
    return len({query.task for query, split in rows if split == "train"})


def measure_frontier(cost_NQ: Float64Array, quality_NQ: Float64Array, yardstick: Yardstick) -> Row:
    """Measure the frontier of N points."""
    cost_SN, quality_SN = (yardstick.weight_SQ @ value.T for value in (cost_NQ, quality_NQ))
    sample = sample_frontier(cost_SN, quality_SN, yardstick)
    cost_S = 1 - sample.cost_saved_S
    peak_S = quality_SN.max(1)
    return dict(
        zip(FRONTIER, (sample.aiq_S, sample.quality_at_best_cost_S, cost_S, peak_S), strict=True)
    )


def measure_two_models(
    strong_NQ: Float64Array, quality_NQ: Float64Array, yardstick: Yardstick
) -> Row:
    """Measure N points of a pool of two by their shares of strong calls (see `metrics`)."""
    strong = yardstick.best
    share_SN, quality_SN = (yardstick.weight_SQ @ value.T for value in (strong_NQ, quality_NQ))
    rows = []
    for s, quality_K in enumerate(yardstick.quality_SK):
        weak_quality, strong_quality = quality_K[[1 - strong, strong]].tolist()
        share_N = np.array([0.0, *share_SN[s], 1.0])
        quality_N = np.array([weak_quality, *quality_SN[s], strong_quality])
        recovered_N = metrics.compute_gap_recovered(quality_N, weak_quality, strong_quality)
        if recovered_N is None:  # not defined where the strong one is no better
            rows.append([np.nan] * 3)
            continue
        thresholds = [metrics.compute_call_threshold(share_N, recovered_N, p) for p in (0.5, 0.8)]
        rows.append(
            [
                metrics.compute_average_gap_recovered(share_N, recovered_N),
                *(np.inf if one is None else one for one in thresholds),
            ]
        )
    return dict(zip(TWO_MODELS, np.array(rows).T, strict=True))


def choose_weights(policy: RoutingPolicy, run: Run, best: int) -> tuple[float | None, float]:
    """Choose two cost weights on validation; the first is None where no setting is cheap enough."""
    val = run.prepared.splits["val"]
    weights = make_cost_weights(run.recipe.cost_weight, run.recipe.evaluation.cost_weights)
    quality_K, cost_K = (value_QK.mean(0) for value_QK in list_singles(val))
    within = choose_cost_weight(policy, val, weights, float(cost_K[best]))
    sweep = sweep_policy(policy, val, np.array(weights))
    quality_N, cost_N = sweep.quality_NQ.mean(1), sweep.cost_usd_NQ.mean(1)
    enough_N = quality_N >= min(float(quality_K[best]), float(quality_N.max()))
    kept = sweep.weights[int(np.where(enough_N, cost_N, np.inf).argmin())]
    return within, kept or 0.0


def measure_chosen(policy: RoutingPolicy, run: Run, yardstick: Yardstick) -> Row:
    """Measure both chosen settings on test: quality, and cost over the best single candidate's."""
    test, found = run.prepared.splits["test"], []
    for weight in choose_weights(policy, run, yardstick.best):
        if weight is None:  # it answers none within that cost
            found += [np.full(len(yardstick.weight_SQ), value) for value in (-np.inf, np.inf)]
            continue
        probability_QK = policy.compute_probabilities(test, weight)
        cost_S = yardstick.weight_SQ @ measure_cost(policy, test, weight, probability_QK)[0]
        found += [
            yardstick.weight_SQ @ metrics.average_picks(test.table.score_QK, probability_QK),
            metrics.compute_cost_ratio(cost_S, yardstick.best_cost),
        ]
    return dict(zip(CHOSEN, found, strict=True))


def measure(policy: RoutingPolicy, run: Run, yardstick: Yardstick) -> Row:
    """Measure a policy on test."""
    test = run.prepared.splits["test"]
    weights = make_cost_weights(run.recipe.cost_weight, run.recipe.evaluation.cost_weights)
    sweep = sweep_policy(policy, test, np.array(weights))
    quality_QK, cost_QK = list_singles(test)
    cheapest_NQ = (value_QK[:, [yardstick.cheapest]].T for value_QK in (cost_QK, quality_QK))
    points = (sweep.cost_usd_NQ, sweep.quality_NQ)
    mixed = [np.vstack(pair) for pair in zip(points, cheapest_NQ, strict=True)]
    row = measure_frontier(mixed[0], mixed[1], yardstick) | measure_chosen(policy, run, yardstick)
    if len(run.prepared.candidates) == 2:
        shares = [
            policy.compute_probabilities(test, weight or 0.0)[:, yardstick.best]
            for weight in sweep.weights
        ]
        row |= measure_two_models(np.array(shares, np.float64), sweep.quality_NQ, yardstick)
    return row


def measure_hull(run: Run, yardstick: Yardstick) -> Row:
    """Measure the hull of the single candidates; with two of them it is a mixture by chance."""
    quality_QK, cost_QK = list_singles(run.prepared.splits["test"])
    row = measure_frontier(cost_QK.T, quality_QK.T, yardstick)
    if len(run.prepared.candidates) == 2:
        strong_NQ = np.zeros((1, len(quality_QK)))
        weak_NQ = quality_QK[:, [1 - yardstick.best]].T
        row |= measure_two_models(strong_NQ, weak_NQ, yardstick)
    return row


def subtract(value_S: Float64Array, reference_S: Float64Array) -> Float64Array:
    """Return a lead in each sample; two that never reach a quality do not differ."""
    same_S = np.isinf(value_S) & (value_S == reference_S)
    with np.errstate(invalid="ignore"):
        return np.where(same_S, 0.0, value_S - reference_S)


def average(rows: list[Row], name: str, reference: Row | None = None) -> Float64Array:
    """Return the mean over seeds of a measure in each sample, or of its lead over a reference."""
    values = [
        row[name] if reference is None else subtract(row[name], reference[name]) for row in rows
    ]
    mean_S: Float64Array = np.mean(values, axis=0)
    return mean_S


def print_values(found: dict[str, list[Row]], columns: tuple[str, ...]) -> None:
    """Print means and spreads over seeds."""
    print(f"| policy | {' | '.join(columns)} |\n| --- |{' --- |' * len(columns)}")
    for name, rows in found.items():
        cells = []
        for column in columns:
            value_R = np.array([row[column][0] for row in rows])
            spread = f" ({np.ptp(value_R):.4f})" if np.isfinite(value_R).all() else ""
            cells.append(format_number(float(value_R.mean()), 4) + spread * (len(rows) > 1))
        print(f"| {name} | {' | '.join(cells)} |")


def print_leads(
    found: dict[str, list[Row]], reference: str, columns: tuple[str, ...], kinds: list[str]
) -> None:
    """Print the leads of what was trained, of kNN and of ridge."""
    print(f"\n| minus {reference} | {' | '.join(columns)} |\n| --- |{' --- |' * len(columns)}")
    for name, rows in found.items():
        if name in kinds or name == "ridge" or name.startswith("kNN"):
            leads = [estimate(average(rows, one, found[reference][0])) for one in columns]
            cells = [format_estimate(lead, 4, sign=True) for lead in leads]
            print(f"| {name} | {' | '.join(cells)} |")


def describe(found: dict[str, list[Row]], best_id: str, kinds: list[str]) -> list[str]:
    """Return the verdict in sentences: what beats the best single candidate, what saves money."""
    best, within, kept = found[BEST][0], CHOSEN[0], CHOSEN[2]
    routers = [name for name in found if name not in NO_ROUTERS]
    verdicts = {name: judge(estimate(average(found[name], within, best))) for name in routers}
    better = [name for name in routers if verdicts[name] == "better"]
    verb = f"{', '.join(better)} beat" if better else f"None of {len(routers)} routers beats"
    sentences = [
        f"{verb} the best single candidate, {best_id}, in quality at its cost or less (setting "
        "chosen on validation, paired 95% interval above 0)."
    ]
    for kind in kinds:
        quality = estimate(average(found[kind], within, best))
        saved = estimate(average(found[kind], kept, best))
        sentences.append(
            f"{kind}: within its cost {format_estimate(quality, 4, sign=True)} at "
            f"{format_share(float(average(found[kind], CHOSEN[1])[0]))} of its cost; at its "
            f"quality on validation {format_estimate(saved, 4, sign=True)} at "
            f"{format_share(float(average(found[kind], CHOSEN[3])[0]))}."
        )
    return sentences


def run_table(table: str, seeds: int, kinds: list[str], encoder: str, runs: Path) -> None:
    """Train, measure and print one table."""
    found: dict[str, list[Row]] = defaultdict(list)
    name, margins = Path(table).name, []
    for seed in range(seeds):
        for kind in kinds:
            run = train_run(table, kind, seed, encoder, runs / f"{name}-{kind}-s{seed}")
            splits = run.prepared.splits
            yardstick = make_yardstick(splits["train"], splits["test"], BOOTSTRAP, BOOTSTRAP_SEED)
            scorer, _ = load_best(run)
            margins.append(float(scorer.margin) if scorer.config.margin else 0.0)
            found[kind].append(measure(GreedyPolicy(scorer, name=kind), run, yardstick))
            print(f"seed {seed}: {name}: {kind}: AIQ {found[kind][-1]['AIQ'][0]:.4f}", flush=True)
    found[HULL].append(measure_hull(run, yardstick))
    for baseline in fit_baselines(splits["train"], splits["val"]):
        found[baseline.name].append(measure(baseline, run, yardstick))
        print(f"{name}: {baseline.name}", flush=True)
    two_models = TWO_MODELS if len(run.prepared.candidates) == 2 else ()
    best_id = run.prepared.candidates[yardstick.best].id
    how = "fewer than 3 tasks" if run.recipe.policy.margin == 0 else "measured"
    margin = f"margin {min(margins):.2f} to {max(margins):.2f} ({how})"
    queries = [len(splits[split].table.queries) for split in ("train", "val", "test")]
    print(f"\n## {name}: {'/'.join(map(str, queries))} queries, {encoder}, {margin}\n")
    print(f"best single candidate {best_id}; {seeds} seeds, mean (spread)\n")
    print_values(found, FRONTIER + two_models)
    for reference in (BEST, HULL):
        print_leads(found, reference, FRONTIER + two_models, kinds)
    print()
    for sentence in describe(found, best_id, kinds):
        print(sentence)


def main() -> None:
    """Run every table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("tables", nargs="+", metavar="TABLE")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--kinds", default=",".join(KINDS), help="recipes mlp_KIND_minilm.yaml")
    parser.add_argument("--encoder", choices=("tfidf", "word_vectors", "minilm"), default="tfidf")
    parser.add_argument("--runs", type=Path, default=None)
    arguments = parser.parse_args()
    runs = arguments.runs or Path(tempfile.mkdtemp(prefix="rlroute-"))
    for table in arguments.tables:
        run_table(table, arguments.seeds, arguments.kinds.split(","), arguments.encoder, runs)


if __name__ == "__main__":
    main()
