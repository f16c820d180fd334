"""The numbers of an evaluation of step-by-step routing: means over tasks, frontiers, intervals.

What it is: `StepPlayed` holds what a policy did, as means over the rollouts of each task;
`measure_point` makes a `StepPoint` of it. `measure_curves` takes all points of a policy, or of a
baseline with a knob, as one frontier, and returns the mean height of its hull: AIQ on the range of
cost from the cheapest to the dearest executor alone. Everything is resampled over tasks, paired.

What it leaves out: playing (`rlroute.trainers.step_evaluation`), the nouns (`step_results`).

How to use: `measure_point(played, subject, setting, yardstick)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from rlroute.evaluation.frontier import (
    Float64Array,
    average_hull,
    compute_hull,
    compute_quality_at,
)
from rlroute.evaluation.intervals import Estimate, make_estimate
from rlroute.evaluation.step_results import (
    StepClassPoint,
    StepCurve,
    StepKind,
    StepPoint,
    StepSetting,
)


@dataclass(frozen=True)
class StepPlayed:
    """One policy under one setting: means over the rollouts of each of Q tasks.

    Success in [0, 1], USD, counted calls, steps, the share of the cap that was used (NaN without a
    cap), how often the budget was exhausted, reward, and how many steps each executor took. Rows
    are NaN where all rollouts of a task had a failed call. `failed` of `episodes` had one, and
    `violations` of them spent more than their cap.
    """

    success_Q: Float64Array
    cost_usd_Q: Float64Array
    calls_Q: Float64Array
    steps_Q: Float64Array
    used_Q: Float64Array
    exhausted_Q: Float64Array
    reward_Q: Float64Array
    picks_QK: Float64Array
    episodes: int
    failed: int
    violations: int


@dataclass(frozen=True)
class StepYardstick:
    """What points are measured by.

    `small` and `large` are the cheapest and the dearest executor alone, without a cap; `class_Q`
    names the class of each task. `weight_SQ` holds the tasks' weights in the sample (row 0: all
    alike) and its resamples.
    """

    small: StepPlayed
    large: StepPlayed
    class_Q: Sequence[str]
    executor_ids: Sequence[str]
    weight_SQ: Float64Array


# --- Means with intervals -------------------------------------------------------------------------


def average_rollouts(value_B: npt.ArrayLike, tasks: int) -> Float64Array:
    """Return the mean of each task's rollouts [Q, ...], NaN where all of them are NaN.

    Episodes stand rollout by rollout, the tasks in order within each.
    """
    value_B = np.asarray(value_B, dtype=np.float64)
    value_RQ = value_B.reshape(-1, tasks, *value_B.shape[1:])
    known_RQ = ~np.isnan(value_RQ)
    count_Q = known_RQ.sum(axis=0)
    total_Q = np.where(known_RQ, value_RQ, 0.0).sum(axis=0)
    mean_Q: Float64Array = np.where(count_Q > 0, total_Q / np.maximum(count_Q, 1), np.nan)
    return mean_Q


def average_resamples(value_Q: Float64Array, weight_SQ: Float64Array) -> Float64Array:
    """Return the mean over the tasks with a value in each resample [S], NaN where it holds none."""
    known_Q = ~np.isnan(value_Q)
    total_S = weight_SQ[:, known_Q].sum(axis=1)
    sum_S = weight_SQ[:, known_Q] @ value_Q[known_Q]
    mean_S: Float64Array = np.where(total_S > 0, sum_S / np.where(total_S > 0, total_S, 1), np.nan)
    return mean_S


def estimate_sample(value_S: Float64Array) -> Estimate | None:
    """Return row 0 with the interval of the others, leaving out NaN; None where row 0 is NaN."""
    if np.isnan(value_S[0]):
        return None
    known_S = value_S[~np.isnan(value_S)]
    return make_estimate(float(value_S[0]), known_S[1:] if len(known_S) > 1 else known_S)


def estimate_mean(value_Q: Float64Array, weight_SQ: Float64Array) -> Estimate | None:
    """Return the mean over the tasks with a value and its interval; None without a value."""
    return estimate_sample(average_resamples(value_Q, weight_SQ))


def estimate_ratio(
    value_Q: Float64Array, reference_Q: Float64Array, weight_SQ: Float64Array
) -> Estimate | None:
    """Return the ratio of two means over the tasks that both have; None over a mean of 0."""
    known_Q = ~np.isnan(value_Q) & ~np.isnan(reference_Q)
    top_S = average_resamples(np.where(known_Q, value_Q, np.nan), weight_SQ)
    bottom_S = average_resamples(np.where(known_Q, reference_Q, np.nan), weight_SQ)
    safe_S = np.where(bottom_S > 0, bottom_S, 1.0)
    return estimate_sample(np.where(bottom_S > 0, top_S / safe_S, np.nan))


def compute_gap_recovered(success: float, small: float, large: float) -> float | None:
    """Return the part of the way from the small to the large success; None where there is none."""
    return (success - small) / (large - small) if large > small else None


# --- Points ---------------------------------------------------------------------------------------


def measure_point(
    played: StepPlayed,
    subject: StepPlayed | None,
    setting: StepSetting,
    yardstick: StepYardstick,
    baselines: Sequence[StepPlayed] = (),
) -> StepPoint:
    """Return what a policy did under a setting; `subject` is None where it is the subject.

    `baselines`, where given, are all of them under the same cap.
    """
    weight_SQ, scored_Q = yardstick.weight_SQ, ~np.isnan(played.success_Q)

    def average(value_Q: Float64Array) -> float | None:
        known_Q = ~np.isnan(value_Q)
        return float(value_Q[known_Q].mean()) if known_Q.any() else None

    common_Q = scored_Q & ~np.isnan(yardstick.small.success_Q + yardstick.large.success_Q)
    gap = None
    if common_Q.any():
        rows = (played, yardstick.small, yardstick.large)
        gap = compute_gap_recovered(*(float(one.success_Q[common_Q].mean()) for one in rows))
    picks_K = played.picks_QK[scored_Q].sum(axis=0)
    share_K = picks_K / max(float(picks_K.sum()), 1e-12)
    return StepPoint(
        cap=setting.cap,
        cost_weight=setting.cost_weight,
        episodes=played.episodes,
        failed=played.failed,
        violations=played.violations,
        success=estimate_mean(played.success_Q, weight_SQ),
        cost_usd=estimate_mean(played.cost_usd_Q, weight_SQ),
        reward=estimate_mean(played.reward_Q, weight_SQ),
        calls=average(played.calls_Q),
        steps=average(played.steps_Q),
        utilisation=average(played.used_Q),
        exhausted=average(played.exhausted_Q),
        success_kept=estimate_ratio(played.success_Q, yardstick.large.success_Q, weight_SQ),
        cost_ratio=estimate_ratio(played.cost_usd_Q, yardstick.large.cost_usd_Q, weight_SQ),
        gap_recovered=gap,
        share_by_executor=dict(zip(yardstick.executor_ids, share_K.tolist(), strict=True)),
        by_class=measure_classes(played, yardstick.class_Q),
        lead=estimate_lead(subject, played, "success_Q", weight_SQ),
        reward_lead=estimate_lead(subject, played, "reward_Q", weight_SQ),
        above_baselines=measure_above(played, baselines, weight_SQ) if baselines else None,
    )


def estimate_lead(
    subject: StepPlayed | None,
    other: StepPlayed,
    name: Literal["success_Q", "reward_Q"],
    weight_SQ: Float64Array,
) -> Estimate | None:
    """Return the subject's mean minus another policy's, over the tasks that both have."""
    if subject is None:
        return None
    return estimate_mean(getattr(subject, name) - getattr(other, name), weight_SQ)


def measure_classes(played: StepPlayed, class_Q: Sequence[str]) -> dict[str, StepClassPoint]:
    """Return a policy's means on the tasks of each class that has one with a value."""
    scored_Q, label_Q = ~np.isnan(played.success_Q), np.array(class_Q)
    found = {}
    for name in dict.fromkeys(sorted(class_Q)):
        of_Q = scored_Q & (label_Q == name)
        if of_Q.any():
            picks_K = played.picks_QK[of_Q].sum(axis=0)
            found[name] = StepClassPoint(
                tasks=int(of_Q.sum()),
                success=float(played.success_Q[of_Q].mean()),
                cost_usd=float(played.cost_usd_Q[of_Q].mean()),
                dear_share=float(picks_K[1:].sum() / max(float(picks_K.sum()), 1e-12)),
            )
    return found


# --- Frontiers ------------------------------------------------------------------------------------


def is_known(played: StepPlayed) -> bool:
    """Tell whether a policy has a value for any task."""
    return not bool(np.isnan(played.success_Q).all())


def sample_points(
    points: Sequence[StepPlayed], weight_SQ: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """Return mean cost in USD and success of N points in each resample [S, N]."""
    known = [one for one in points if is_known(one)]
    cost_NS = [average_resamples(one.cost_usd_Q, weight_SQ) for one in known]
    success_NS = [average_resamples(one.success_Q, weight_SQ) for one in known]
    return np.array(cost_NS).T, np.array(success_NS).T


def measure_curves(
    families: Mapping[str, tuple[StepKind, Sequence[StepPlayed]]], yardstick: StepYardstick
) -> tuple[StepCurve, ...]:
    """Return the frontier of each family; the first is the subject's.

    The range of cost is, in each resample, that between the two static policies. A family none of
    whose points has a value has no curve; without the range nobody has.
    """
    weight_SQ = yardstick.weight_SQ
    if not (is_known(yardstick.small) and is_known(yardstick.large)):
        return ()
    bound_SN, _ = sample_points([yardstick.small, yardstick.large], weight_SQ)
    curves: list[StepCurve] = []
    subject_S: Float64Array | None = None
    for family, (kind, points) in families.items():
        if not any(is_known(one) for one in points):
            continue
        cost_SN, success_SN = sample_points([yardstick.small, *points], weight_SQ)
        area_S = np.full(len(weight_SQ), np.nan)
        for row in range(len(weight_SQ)):
            if not np.isnan([*cost_SN[row], *bound_SN[row]]).any():
                hull = compute_hull(cost_SN[row], success_SN[row])
                area_S[row] = average_hull(hull, bound_SN[row].min(), bound_SN[row].max())
        area = estimate_sample(area_S)
        assert area is not None  # row 0 holds all tasks
        lead = None if subject_S is None else estimate_sample(subject_S - area_S)
        subject_S = area_S if subject_S is None else subject_S
        cost_H, success_H = compute_hull(cost_SN[0], success_SN[0])
        curves.append(
            StepCurve(family, kind, tuple(cost_H.tolist()), tuple(success_H.tolist()), area, lead)
        )
    return tuple(curves)


def measure_above(
    played: StepPlayed, baselines: Sequence[StepPlayed], weight_SQ: Float64Array
) -> Estimate | None:
    """Return success minus the height of the baselines' hull at the same cost; see `StepPoint`."""
    if not is_known(played):
        return None
    cost_SN, success_SN = sample_points([played, *baselines], weight_SQ)
    above_S = np.full(len(weight_SQ), np.nan)
    for row in range(len(weight_SQ)):
        if not np.isnan(cost_SN[row]).any():
            hull = compute_hull(cost_SN[row, 1:], success_SN[row, 1:])
            height = compute_quality_at(hull, cost_SN[row, 0])
            above_S[row] = np.nan if height is None else success_SN[row, 0] - height
    return estimate_sample(above_S)
