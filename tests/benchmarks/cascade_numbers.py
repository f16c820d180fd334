"""What looking is worth: a run on a cascade against one-shot routing and against paid probes.

    python tests/benchmarks/cascade_numbers.py RUN [RUN ...]

For each cost weight of an evaluated run: its test quality and cost (in the mean train cost of the
dearest candidate), the quality of the best one-shot router at the same cost (the hull over all cost
weights of ridge and kNN-40, and of the candidates alone, picked with hindsight), and `PaidProbes`,
which sees the true score of every answer it has paid for.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from rlroute.config import load_config
from rlroute.evaluation.frontier import compute_hull, compute_quality_at
from rlroute.policies.baselines import NearestNeighbours, RidgeRegression
from rlroute.policies.table_baselines import PredictThenOptimise
from rlroute.policies.table_baselines_cascade import PaidProbes
from rlroute.trainers.run_folder import RECIPE_FILE
from rlroute.trainers.step_recipe import StepRecipe
from rlroute.worlds.table_queries import TableQueries, prepare_queries

COST_WEIGHTS = np.concatenate([[0.0], np.geomspace(0.01, 30, 80)])


def list_one_shot(splits) -> np.ndarray:
    """Return (cost, quality) on test of one-shot routers at all weights, and of each candidate."""
    train, val, test = (splits[name] for name in ("train", "val", "test"))
    score_QK, cost_QK = test.table.score_QK, test.normalised_cost_QK
    points = list(zip(np.nanmean(cost_QK, axis=0), np.nanmean(score_QK, axis=0), strict=True))
    row_Q = np.arange(len(score_QK))
    for predictor in (RidgeRegression(train, val), NearestNeighbours(train)):
        router = PredictThenOptimise(predictor, train)
        for weight in COST_WEIGHTS:
            pick_Q = router.compute_probabilities(test, float(weight)).argmax(axis=1)
            points.append((cost_QK[row_Q, pick_Q].mean(), score_QK[row_Q, pick_Q].mean()))
    return np.array(points, dtype=np.float64)


def show(folder: Path) -> None:
    """Print the table of a run."""
    recipe = load_config(StepRecipe, folder / RECIPE_FILE)
    assert isinstance(recipe.world, TableQueries)
    splits = prepare_queries(recipe.world).splits
    test, reference = splits["test"], splits["train"].cost_reference_usd
    hull = compute_hull(*list_one_shot(splits).T)
    probes = PaidProbes(splits["train"], splits["val"])
    evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    print(f"\n{folder.name}: {recipe.world.table}, check {recipe.world.checker}")
    print("weight  policy: quality  cost  looks  one-shot at this cost  paid probes: quality  cost")
    for point in evaluation["policies"][0]["points"]:
        weight, cost = point["cost_weight"], point["cost_usd"]["value"] / reference
        pick_Q, paid_usd_Q = probes.ask(probes.choose_plan(weight), test)
        seen = float(test.table.score_QK[np.arange(len(pick_Q)), pick_Q].mean())
        single = compute_quality_at(hull, cost)
        shown = "-" if single is None else f"{single:.4f}"
        own = f"{point['success']['value']:.4f}  {cost:.3f}   {point['calls']:.2f}"
        rival = f"{seen:.4f}  {paid_usd_Q.mean() / reference:.3f}"
        print(f"{weight:6.2f}          {own}                 {shown}                {rival}")


def main() -> None:
    """Show the runs that are named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="an evaluated run")
    for folder in parser.parse_args().runs:
        show(folder)


if __name__ == "__main__":
    main()
