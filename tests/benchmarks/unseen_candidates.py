"""Candidates never trained on: regret after 0, 200 and 1,000 profile calls against trained with it.

Run: python tests/benchmarks/unseen_candidates.py TABLE [--seeds 0,1,2] [--runs FOLDER]
     [--newcomers gemini-1.5-flash-002,gemini-1.5-pro-002,jamba-1.5-large]

Every seed trains recipes/single_turn/mlp_expected_gradient.yaml with all candidates and once
without each newcomer, and adds it by its profile (`rlroute.unseen_candidates`). Finished runs in
FOLDER are used again.

Printed per newcomer and number of calls: AIQ, mean regret to the oracle over the cost weights (mean
over seeds, in brackets largest minus smallest), the share of picks, and the regret minus that of
the policy trained with it, with a paired 95% interval over the test queries of the mean over seeds.
Last line: the price of the candidate that is picked most, times 0.1 and 10, and its share of the
picks of the exported policy, without training.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np

from rlroute.config import load_config
from rlroute.data.repricing import reprice_candidates
from rlroute.data.routing_data import build_candidate_features
from rlroute.evaluation.intervals import draw_resamples, make_estimate
from rlroute.policies.decision import GreedyPolicy
from rlroute.trainers.decision import make_cost_weights, train
from rlroute.trainers.recipe import Recipe
from rlroute.trainers.run_folder import Run, load_best, read_run
from rlroute.types import Prices
from rlroute.unseen_candidates import Measured, measure_unseen

RECIPE = (
    Path(__file__).resolve().parents[2] / "recipes" / "single_turn" / "mlp_expected_gradient.yaml"
)
NEWCOMERS = "gemini-1.5-flash-002,gemini-1.5-pro-002,jamba-1.5-large"
RESAMPLES = 1000
FACTORS = (0.1, 10.0)


def train_once(folder: Path, table: str, seed: int, held: str | None) -> Run:
    """Return a finished run, trained now if it is not there."""
    if not (folder / "best").exists():
        overrides = [f"table={table}", f"seed={seed}", "tracking.wandb=false"]
        if held is not None:
            overrides.append(f"hold_out_candidates=[{held}]")
        train(load_config(Recipe, RECIPE, overrides), folder, overwrite=True)
    return read_run(folder)


def print_rows(newcomer: str, by_name: dict[str, list[Measured]]) -> None:
    """Print the rows of a newcomer, one per result, over the seeds."""
    trained_SQ = np.array([one.regret_Q for one in by_name["trained with it"]])
    weight_RQ = draw_resamples(trained_SQ.shape[1], RESAMPLES, 0)
    for name, found in by_name.items():
        aiq_S = np.array([one.result.aiq for one in found])
        regret_S = np.array([one.result.regret for one in found])
        share = np.mean([one.result.share for one in found])
        gap_Q = (np.array([one.regret_Q for one in found]) - trained_SQ).mean(axis=0)
        gap = make_estimate(float(gap_Q.mean()), weight_RQ @ gap_Q)
        against = f"{gap.value:+.4f} [{gap.low:.4f}, {gap.high:.4f}]"
        print(
            f"| {newcomer} | {name} | {aiq_S.mean():.4f} ({np.ptp(aiq_S):.4f}) "
            f"| {regret_S.mean():.4f} ({np.ptp(regret_S):.4f}) | {share:.1%} "
            f"| {'' if name == 'trained with it' else against} |",
            flush=True,
        )


def measure_prices(run: Run) -> str:
    """Return a line: the share of the most-picked candidate at its price and at others."""
    policy, test = GreedyPolicy(load_best(run)[0]), run.prepared.splits["test"]
    candidates, scale = run.prepared.candidates, run.prepared.scale
    weights = make_cost_weights(run.recipe.cost_weight, run.recipe.evaluation.cost_weights)
    clusters = len(run.prepared.centroids_CF)

    def share_at(prices: dict[str, Prices]) -> np.ndarray:
        features_KD = test.candidate_features_KD.copy()
        repriced = build_candidate_features(reprice_candidates(candidates, prices), scale)
        features_KD[:, -clusters:] = repriced[:, -clusters:]  # as `Router.reprice`
        data = replace(test, candidate_features_KD=features_KD)
        share_LK = [policy.compute_probabilities(data, w).mean(axis=0) for w in weights]
        return np.asarray(np.mean(share_LK, axis=0))

    share_K = share_at({})
    k = int(share_K.argmax())
    old = candidates[k].prices
    parts = [f"{candidates[k].id}: picked {share_K[k]:.1%} at its price"]
    for factor in FACTORS:
        new = Prices(old.input * factor, old.output * factor, old.per_call * factor)
        parts.append(f"{share_at({candidates[k].id: new})[k]:.1%} at {factor:g} times it")
    return ", ".join(parts)


def main() -> None:
    """Train, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("table")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--newcomers", default=NEWCOMERS)
    parser.add_argument("--runs", type=Path, default=None)
    arguments = parser.parse_args()
    root = arguments.runs or Path(tempfile.mkdtemp(prefix="rlroute-"))
    rows: dict[str, dict[str, list[Measured]]] = defaultdict(lambda: defaultdict(list))
    lines = []
    for seed in map(int, arguments.seeds.split(",")):
        whole = train_once(root / f"with-s{seed}", arguments.table, seed, None)
        lines.append(f"seed {seed}: {measure_prices(whole)}")
        for newcomer in arguments.newcomers.split(","):
            run = train_once(root / f"{newcomer}-s{seed}", arguments.table, seed, newcomer)
            for one in measure_unseen(run, whole).measured:
                name = "trained with it" if one.result.calls is None else one.result.name
                rows[newcomer][name].append(one)
    print("| newcomer | policy | AIQ | regret | picked | regret minus trained with it |")
    print("| --- | --- | --- | --- | --- | --- |")
    for newcomer, by_name in rows.items():
        print_rows(newcomer, by_name)
    print("\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
