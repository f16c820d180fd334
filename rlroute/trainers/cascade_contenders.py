"""The baselines of a cascade over a table, beside those of every world.

What it is: routers that look once and stop (ridge, kNN-40, fitted on the train queries), a cascade
by the check whose order is chosen on train at each cost weight and one from the cheapest to the
dearest, the world's own look-ahead without learning, and the oracle of hindsight, which knows every
outcome and so needs one look or none. Costs are in the reward's unit where it is one for all tasks
(`reward.scale: train`), else in the mean train cost of the dearest candidate.

What it leaves out: who looks at the true score of an answer (`PaidProbes`); with an exact check and
scores of 0 and 1 that is the cascade by the check.

How to use: `list_cascade_baselines(arena, world)`, `list_left_out(world)`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from rlroute.evaluation.metrics import pick_oracle
from rlroute.policies.baselines import NearestNeighbours, RidgeRegression
from rlroute.policies.cascade_baselines import (
    CheckedAnswers,
    CheckedCascade,
    LookAhead,
    TaskPicks,
    plan_cascade,
)
from rlroute.policies.step_baselines import CascadePolicy
from rlroute.policies.stepwise import StepPolicy
from rlroute.policies.table_baselines import OutcomePredictor, PredictThenOptimise
from rlroute.trainers.step_arena import Arena, Contender
from rlroute.trainers.step_policy import locate_estimates
from rlroute.types import IntArray, SplitName
from rlroute.worlds.cascade import REST, CascadeWorld
from rlroute.worlds.cascade_table import CascadeSplit
from rlroute.worlds.cascade_view import CONFIDENCE

Load = Callable[[SplitName], StepPolicy]


def list_cascade_baselines(arena: Arena, world: CascadeWorld) -> list[Contender]:
    """Return the baselines that cascades over tables have and other worlds have not."""
    splits, unit = world.table.prepared.splits, find_unit(arena, world)
    train, val = splits["train"], splits["val"]
    predictors: list[OutcomePredictor] = [RidgeRegression(train, val), NearestNeighbours(train)]
    found = [
        make_contender(f"one-shot {one.name}", functools.partial(make_one_shot, world, one, unit))
        for one in predictors
    ]
    ahead = LookAhead(locate_estimates(world, sharpness=1.0))
    found.append(make_contender("look-ahead", lambda split: ahead))
    if world.view.checker is not None:
        found += list_cascades(world, unit)
    oracle = functools.partial(make_oracle, world, unit)
    found.append(Contender("oracle, one look", "optimal", oracle, reads_weight=True))
    return found


def list_left_out(world: CascadeWorld) -> list[str]:
    """Return which of the usual baselines say nothing here, and why."""
    return [
        "first-large: the dearest once and stop is the dearest alone",
        "sigma of probes: the answers of a table are the same at every probe",
        f"LinUCB: {len(world.feature_names)} features are too many for it",
    ]


def find_unit(arena: Arena, world: CascadeWorld) -> float:
    """Return what a cost of 1 is in USD."""
    return arena.facts["train"].train_cost or world.view.reference_usd


def make_contender(name: str, load: Load) -> Contender:
    """Return a baseline that reads the cost weight."""
    return Contender(name, "sweep", load, family=name, reads_weight=True)


def make_one_shot(
    world: CascadeWorld, predictor: OutcomePredictor, unit: float, split: SplitName
) -> StepPolicy:
    """Return a router of single queries: it asks its pick and stops."""
    prepared = world.table.prepared
    router = PredictThenOptimise(predictor, prepared.splits["train"])
    data = prepared.splits[split]
    place_K = np.argsort(world.table.column_K)  # of each candidate of the table in the view

    def choose(cost_weight: float) -> IntArray:
        """Return the executor of each query; its costs are in the table's unit."""
        weight = cost_weight * data.cost_reference_usd / unit
        pick_Q = router.compute_probabilities(data, weight).argmax(axis=1)
        return np.asarray(place_K[pick_Q] + 1)

    return TaskPicks(choose)


def make_oracle(world: CascadeWorld, unit: float, split: SplitName) -> StepPolicy:
    """Return who knows all outcomes: the best single look, or to skip where that is allowed."""
    part, config = world.table.splits[split], world.lanes.config

    def choose(cost_weight: float) -> IntArray:
        """Return the executor of each query."""
        cost_QK = part.cost_usd_QK / unit
        pick_Q = pick_oracle(part.score_QK, cost_QK, part.present_QK, cost_weight)
        row_Q = np.arange(len(pick_Q))
        best_Q = part.score_QK[row_Q, pick_Q] - cost_weight * cost_QK[row_Q, pick_Q]
        skips_Q = config.allow_skip & (best_Q < config.skip_score)
        return np.where(skips_Q, REST, pick_Q + 1)

    return TaskPicks(choose)


def list_cascades(world: CascadeWorld, unit: float) -> list[Contender]:
    """Return the fixed cascades by the check."""
    column = world.feature_names.index(CONFIDENCE)
    answers = read_answers(world.table.splits["train"], unit)

    @functools.cache
    def plan(cost_weight: float) -> tuple[int, ...]:
        """Return whom to ask in turn, by executor."""
        return tuple(k + 1 for k in plan_cascade(answers, cost_weight, world.horizon))

    return [
        make_contender("cascade by check", lambda split: CheckedCascade(plan, column)),
        Contender(
            "cheapest, then dearest", "sweep", lambda split: CascadePolicy(column, 0.5), "two steps"
        ),
    ]


def read_answers(split: CascadeSplit, unit: float) -> CheckedAnswers:
    """Return a split's outcomes as a cascade is planned on them."""
    cost_QK = split.cost_usd_QK / unit
    return CheckedAnswers(split.score_QK, cost_QK, split.present_QK, split.passed_QK)
