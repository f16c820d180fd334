"""Runs whose policy weighs latency or serves users: what `evaluate` and `export` add for them.

What it leaves out: the numbers themselves (`rlroute.evaluation.preferences`,
`rlroute.evaluation.user_estimation`) and the rest of a table run (`rlroute.table_runs`).

How to use: `evaluate_preferences(run, scorer)`, None where the recipe weighs cost alone.
"""

from __future__ import annotations

from rlroute.data.users import Preference
from rlroute.evaluation.preference_report import PreferenceReport
from rlroute.evaluation.preferences import measure_users, sweep_latency
from rlroute.evaluation.user_estimation import measure_ratings
from rlroute.export.wishes import CostWeightRange, PreferencesEntry
from rlroute.policies.decision import GreedyPolicy
from rlroute.policies.mlp import CandidateScorer
from rlroute.trainers.decision import list_latency_weights, make_cost_weights
from rlroute.trainers.recipe import Recipe
from rlroute.trainers.run_folder import Run

COST_WEIGHTS = 11  # of the sweep at each latency weight


def evaluate_preferences(run: Run, scorer: CandidateScorer) -> PreferenceReport | None:
    """Measure a run's policy over latency weights, user by user, and on ratings of new users."""
    recipe, splits = run.recipe, run.prepared.splits
    if not (recipe.weighs_latency or recipe.users):
        return None

    def make_policy(preference: Preference) -> GreedyPolicy:
        return GreedyPolicy(scorer, recipe.algorithm.kind, preference)

    settings = {"bootstrap": recipe.evaluation.bootstrap, "seed": recipe.seed}
    latency, ratings = [], []
    if recipe.weighs_latency:
        count = min(COST_WEIGHTS, recipe.evaluation.cost_weights)
        latency = sweep_latency(
            make_policy,
            splits["train"],
            splits["test"],
            make_cost_weights(recipe.cost_weight, count),
            recipe.evaluation.latency_weights or list_latency_weights(recipe.latency_weight),
            **settings,
        )
    users = measure_users(
        make_policy,
        recipe.users,
        splits["train"],
        splits["test"],
        held_out=recipe.hold_out_users,
        **settings,
    )
    if recipe.hold_out_users:
        weights = (recipe.cost_weight, recipe.latency_weight)
        cost, waiting = ((one.min, one.max) for one in weights)
        ratings = measure_ratings(
            make_policy,
            recipe.users,
            recipe.hold_out_users,
            (splits["val"], splits["test"]),
            bounds=(cost, waiting),
            seed=recipe.seed,
        )
    derived = recipe.latency is not None
    return PreferenceReport(tuple(latency), derived, tuple(users), tuple(ratings))


def state_preferences(recipe: Recipe) -> PreferencesEntry | None:
    """Return what an exported router says of latency and users; None where there is nothing."""
    if not (recipe.weighs_latency or recipe.users):
        return None
    latency = None
    if recipe.weighs_latency:
        weights = recipe.latency_weight
        latency = CostWeightRange(min=weights.min, max=weights.max)
    return PreferencesEntry(
        latency_weight=latency, latency_derived=recipe.latency is not None, users=recipe.users
    )
