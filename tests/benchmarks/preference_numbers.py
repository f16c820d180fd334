"""What one policy is worth to users who weigh quality, cost and waiting differently.

Trains recipes/single_turn/mlp_preferences.yaml with several seeds and prints, user by user on the
test split, means over the seeds: the utility of the policy told the user's weights, of the same
policy told the cost weight alone, of where it started (nothing learnt), of the user's own best
single candidate and of the oracle that sees every outcome; then what new users lose by having their
weights estimated from a few choices.

    python tests/benchmarks/preference_numbers.py [--seeds 3] [KEY=VALUE ...]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from rlroute.config import load_config
from rlroute.data.users import ANYBODY, Preference, make_preference
from rlroute.evaluation.preferences import Setting, draw_samples, measure_setting
from rlroute.policies.decision import GreedyPolicy
from rlroute.policies.mlp import CandidateScorer
from rlroute.preference_runs import evaluate_preferences
from rlroute.trainers.decision import make_learner, train
from rlroute.trainers.recipe import Recipe
from rlroute.trainers.run_folder import load_best, read_run

RECIPE = Path(__file__).resolve().parents[2] / "recipes/single_turn/mlp_preferences.yaml"
COLUMNS = ("policy", "cost alone", "start", "single", "oracle", "lead", "seconds")


def measure_seed(recipe: Recipe, folder: Path) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Train once; return the columns of each user, and what each number of choices loses."""
    train(recipe, folder)
    run = read_run(folder)
    scorer, data, test = (
        load_best(run)[0],
        run.prepared.splits["train"],
        run.prepared.splits["test"],
    )
    start = make_learner(recipe, run.prepared, Accelerator(cpu=True)).scorer.eval()
    weight_SQ = draw_samples(len(test.table.queries), 2, 0)
    ids = [candidate.id for candidate in test.table.candidates]
    rows = {}
    for name, user in recipe.users.items():
        setting = Setting(user.cost_weight, make_preference(user, ids))

        def measure(model: CandidateScorer, told: Preference, setting: Setting = setting):
            policy = GreedyPolicy(model, preference=told)
            return measure_setting(policy, setting, data, test, weight_SQ)

        found = measure(scorer, setting.preference)
        deaf, untaught = measure(scorer, ANYBODY), measure(start, setting.preference)
        utilities = [found.utility.value, deaf.utility.value, untaught.utility.value]
        seconds = found.latency_seconds.value if found.latency_seconds else float("nan")
        rows[name] = [*utilities, found.single, found.oracle, found.lead.value, seconds]
    report = evaluate_preferences(run, scorer)
    assert report is not None
    return rows, {f"{one.user} after {one.ratings}": one.lost.value for one in report.ratings}


def main() -> None:
    """Run it; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    with tempfile.TemporaryDirectory() as root:
        for seed in range(arguments.seeds):
            settings = [*arguments.overrides, f"seed={seed}", "tracking.wandb=false"]
            recipe = load_config(Recipe, RECIPE, [*settings, "evaluation.bootstrap=2"])
            found.append(measure_seed(recipe, Path(root) / str(seed)))
    print(f"{'user':20}", *(f"{name:>11}" for name in COLUMNS))
    for name in found[0][0]:
        mean = np.mean([rows[name] for rows, _ in found], axis=0)
        new = " (new)" if name in recipe.hold_out_users else ""
        print(f"{name + new:20}", *(f"{value:11.4f}" for value in mean))
    print("\nutility that a new user loses, by choices; mean over seeds, and the largest")
    for name in found[0][1]:
        lost = [one[name] for _, one in found]
        print(f"{name:24} {np.mean(lost):8.4f} {max(lost):8.4f}")


if __name__ == "__main__":
    main()
