"""What the parts of a single-turn recipe have to agree on.

What it leaves out: the recipe's fields (`rlroute.trainers.recipe`), which calls these checks.

How to use: `check_logs(recipe)` and the others in the recipe's validators; a fault is a ValueError,
which pydantic turns into one line.
"""

from __future__ import annotations

from typing import Any

LEARNS_FROM_LOGS = ("off_policy", "cql")


def check_logs(recipe: Any) -> None:
    """Refuse a log without an algorithm that learns from one, and the other way round."""
    learns = recipe.algorithm.kind in LEARNS_FROM_LOGS
    if learns != (recipe.logs is not None):
        raise ValueError(
            f"logs and algorithm.kind '{recipe.algorithm.kind}' do not go together (off_policy "
            "and cql learn from logs, all others try what they learn from)"
        )
    if recipe.logs is not None and recipe.actions:
        raise ValueError("logs and actions do not go together: a log holds single candidates")
    if recipe.logs is not None and recipe.validation.metric != "utility":
        raise ValueError(
            f"validation.metric '{recipe.validation.metric}' needs outcomes of all candidates; "
            "with logs it must be 'utility'"
        )


def check_held_out(recipe: Any) -> None:
    """Refuse settings of held-out candidates without one, and shapes that have no profile."""
    held, unseen = recipe.hold_out_candidates, recipe.profile.unseen
    stated = set() if unseen is None else unseen.model_fields_set
    for key in ("calls", "design"):
        if key in stated and not held:
            raise ValueError(f"profile.unseen.{key}: read with hold_out_candidates only")
    if held and (recipe.actions or recipe.logs is not None):
        raise ValueError("hold_out_candidates goes with neither actions nor logs")
    if len(set(held)) < len(held):
        raise ValueError("hold_out_candidates: a candidate is named twice")


def check_latency(recipe: Any) -> None:
    """Refuse settings of latency that nothing would read, and weights outside its range."""
    weights, swept = recipe.latency_weight, recipe.evaluation.latency_weights
    if not recipe.weighs_latency and weights.power != type(weights)().power:
        raise ValueError("latency_weight.power: read with latency_weight.max above 0 only")
    for name, value in (("latency", recipe.latency), ("evaluation.latency_weights", swept)):
        if value is not None and not recipe.weighs_latency:
            raise ValueError(f"{name}: read with latency_weight.max above 0 only")
    for weight in swept or ():
        if not weights.min <= weight <= weights.max:
            raise ValueError(
                f"evaluation.latency_weights: {weight:g} lies outside latency_weight "
                f"({weights.min:g} to {weights.max:g})"
            )


def check_users(recipe: Any) -> None:
    """Refuse users outside the ranges of weights, and held-out ones that are no users."""
    cost, latency = recipe.cost_weight, recipe.latency_weight
    ranges = {"cost_weight": (cost.min, cost.max), "latency_weight": (latency.min, latency.max)}
    for name, user in recipe.users.items():
        for key, (low, high) in ranges.items():
            weight = getattr(user, key)
            if not low <= weight <= high:
                raise ValueError(
                    f"users.{name}.{key}: {weight:g} lies outside {key} ({low:g} to {high:g})"
                )
    held = recipe.hold_out_users
    unknown = sorted(set(held) - set(recipe.users))
    if unknown:
        known = ", ".join(recipe.users) or "nobody"
        raise ValueError(f"hold_out_users: '{unknown[0]}' is no user (there are: {known})")
    if not recipe.users and "user_share" in recipe.model_fields_set and recipe.user_share != 0.5:
        raise ValueError("user_share: read with users only")
    if recipe.users and len(set(held)) == len(recipe.users):
        raise ValueError("hold_out_users: nobody is left to train for")


def check_surroundings(recipe: Any) -> None:
    """Refuse what preferences do not go with, and a metric that does not see them."""
    if not (recipe.weighs_latency or recipe.users):
        return
    which = "latency_weight" if recipe.weighs_latency else "users"
    if recipe.logs is not None:
        raise ValueError(f"{which} and logs do not go together")
    if recipe.algorithm.kind == "prior_grpo":
        raise ValueError(f"{which} and algorithm.kind prior_grpo do not go together")
    if recipe.validation.metric != "utility":
        raise ValueError(
            f"validation.metric '{recipe.validation.metric}' sees no {which}; with it the metric "
            "must be 'utility'"
        )
