"""Compares a step-by-step policy with baselines and other policies on the test tasks.

What it is: all contenders play test under every setting; baselines play val too, where the knobs
that get a row and the best baseline are chosen, by mean reward. Then everything is measured against
the cheapest and the dearest executor alone, without a cap.

What it leaves out: playing (`rlroute.trainers.step_arena`), the contenders
(`rlroute.trainers.step_contenders`, `rlroute.step_runs`), files.

How to use: `compare(arena, contenders, update=..., left_out=[], tell=print)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rlroute.evaluation.intervals import draw_resamples
from rlroute.evaluation.step_measures import (
    StepPlayed,
    StepYardstick,
    measure_curves,
    measure_point,
)
from rlroute.evaluation.step_results import (
    BASELINES,
    StepEvaluation,
    StepKind,
    StepPoint,
    StepPolicyResult,
    StepSetting,
)
from rlroute.evaluation.text_results import choose_best
from rlroute.trainers.step_arena import Arena, Contender
from rlroute.types import RLRouteError

Played = dict[str, list[StepPlayed | None]]


def compare(
    arena: Arena,
    contenders: Sequence[Contender],
    *,
    update: int,
    left_out: Sequence[str],
    tell: Callable[[str], None],
) -> StepEvaluation:
    """Let a policy, the first contender (after `update` updates), meet all others.

    `tell` hears who plays now.

    Raises:
        RLRouteError: a cap was passed, or every test episode of the policy had a failed call.
    """
    test, val = Played(), Played()
    for number, contender in enumerate(contenders, start=1):
        tell(f"playing test ({number} of {len(contenders)}): {contender.name}")
        test[contender.name] = arena.measure(contender, "test")
        if contender.kind in BASELINES:
            tell(f"playing val ({number} of {len(contenders)}): {contender.name}")
            val[contender.name] = arena.measure(contender, "val")
    yardstick = make_yardstick(arena, contenders, test)
    shown, best = choose_rows(arena, contenders, val)
    results = measure_results(arena, contenders, test, yardstick)
    if any(point is None or point.success is None for point in results[0].points):
        raise RLRouteError("all test episodes of the policy had a failed call")
    class_Q, free = list(yardstick.class_Q), StepSetting(None, arena.settings[0].cost_weight)
    return StepEvaluation(
        world=arena.stage.world.name,
        test_tasks=arena.tasks["test"],
        val_tasks=arena.tasks["val"],
        rollouts=arena.recipe.evaluation.rollouts,
        executor_ids=arena.executor_ids,
        budget_unit=arena.recipe.budget.unit,
        settings=arena.settings,
        class_tasks={name: class_Q.count(name) for name in sorted(set(class_Q))},
        policies=results,
        shown=shown,
        best_baselines=best,
        small=measure_point(yardstick.small, None, free, yardstick),
        large=measure_point(yardstick.large, None, free, yardstick),
        curves=measure_curves(join_families(contenders, test), yardstick),
        left_out=tuple(left_out),
        update=update,
        bootstrap=arena.recipe.evaluation.bootstrap,
        seed=arena.recipe.seed,
    )


def make_yardstick(arena: Arena, contenders: Sequence[Contender], test: Played) -> StepYardstick:
    """Return what points are measured by; the static policies are played without a cap."""
    free = StepSetting(None, arena.settings[0].cost_weight)
    static = [one for one in contenders if one.kind == "static"]
    ends = []
    for contender in (static[0], static[-1]):
        played = None
        if free in arena.settings:
            played = test[contender.name][arena.settings.index(free)]
        if played is None:
            batch = arena.play(contender.load("test"), "test", free)
            played = arena.score(contender, batch, "test", free)
        ends.append(played)
    tasks, bootstrap = arena.tasks["test"], arena.recipe.evaluation.bootstrap
    resample_SQ = draw_resamples(tasks, bootstrap, arena.recipe.seed)
    return StepYardstick(
        small=ends[0],
        large=ends[1],
        class_Q=[str(label) for label in arena.facts["test"].classes],
        executor_ids=arena.executor_ids,
        weight_SQ=np.concatenate([np.full((1, tasks), 1 / tasks), resample_SQ]),
    )


def choose_rows(
    arena: Arena, contenders: Sequence[Contender], val: Played
) -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]:
    """Return who gets a row under each setting, and the best baseline there, by reward on val."""
    shown, best = [], []
    for place in range(len(arena.settings)):
        reward = {
            name: played.reward_Q
            for name, points in val.items()
            if (played := points[place]) is not None
        }
        names: list[str] = []
        for contender in contenders:
            family = [one.name for one in contenders if one.family == contender.family]
            if not contender.family:
                names.append(contender.name)
            elif known := {name: reward[name] for name in family if name in reward}:
                names.append(choose_best(known))
        shown.append(tuple(dict.fromkeys(names)))
        best.append(choose_best(reward))
    return tuple(shown), tuple(best)


def measure_results(
    arena: Arena, contenders: Sequence[Contender], test: Played, yardstick: StepYardstick
) -> tuple[StepPolicyResult, ...]:
    """Return the results of what was played on test; the first contender is the subject."""
    subject = test[contenders[0].name]
    baselines = [test[one.name] for one in contenders if one.kind in BASELINES]
    results = []
    for contender in contenders:
        bound = contender.kind in (*BASELINES, "optimal")
        points: list[StepPoint | None] = []
        for place, setting in enumerate(arena.settings):
            own, first = test[contender.name][place], subject[place]
            if own is None:
                points.append(None)
                continue
            rivals = [] if bound else [one for row in baselines if (one := row[place]) is not None]
            rival = None if own is first else first
            points.append(measure_point(own, rival, setting, yardstick, rivals))
        family = contender.family or contender.name
        results.append(StepPolicyResult(contender.name, contender.kind, family, tuple(points)))
    return tuple(results)


def join_families(
    contenders: Sequence[Contender], test: Played
) -> dict[str, tuple[StepKind, list[StepPlayed]]]:
    """Return all points of each family; the subject's come first."""
    found: dict[str, tuple[StepKind, list[StepPlayed]]] = {}
    for contender in contenders:
        _, points = found.setdefault(contender.family or contender.name, (contender.kind, []))
        points += [played for played in test[contender.name] if played is not None]
    return found
