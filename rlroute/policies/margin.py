"""Do no harm on unseen tasks: how much better than the best single candidate is better enough?

A router sends a query away from the best single candidate (best mean train score) where another one
looks better. On tasks like those of the train split that is mostly right. On tasks that were never
seen it is mostly noise: of several noisy estimates the highest is too high (the winner's curse),
and the router ends below the candidate that it left. The cure is a margin: the best single
candidate is left only where another one looks better by more than that. It costs little where tasks
are known, since there most gains are larger, and nothing has to know whether a task is new.

The margin is measured, not guessed. The train tasks are left out in turn; where the policy would
start is fitted on the others, and on the task left out

    loss(margin) = mean over queries of (score of the best single - score of the pick)

at cost weight 0. A task's harm is its loss, 0 where it gains. A task never seen is one more of
them: with confidence `CONFIDENCE` its harm stays below the one-sided prediction bound

    mean + t * deviation * sqrt(1 + 1 / P)         over P tasks left out, t with P - 1 degrees

(Student's t; Hahn and Meeker, Statistical Intervals). The margin is the smallest one of a grid from
which on this bound stays within `TOLERATED_LOSS`. A bound on the mean loss is not enough: a task
that looks like no other is hardly ever routed away from the best single candidate and loses
nothing, and other tasks gain, so the mean hides what is lost on the one that does lose.

What it leaves out: the learnt part of the policy, since training once per task would cost as many
runs; and where the margin is added (`rlroute.policies.mlp`).

How to use: `measure_margin(train, centroids_CF, KernelConfig(), seed=0)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from rlroute.data.routing_data import RoutingData, assign_clusters, average_by_cluster
from rlroute.evaluation.metrics import average_candidates
from rlroute.policies.kernel_start import (
    Float64Array,
    KernelConfig,
    compute_kernel,
    draw_anchors,
    fit_coefficients,
)
from rlroute.seeding import draw_permutation
from rlroute.types import FloatArray, IntArray, RLRouteError

# A number in units of quality, or to be measured by leaving train tasks out.
MarginConfig = Literal["unseen_tasks"] | Annotated[float, Field(ge=0, allow_inf_nan=False)]

MARGINS = np.arange(0, 1.005, 0.01)
# Quality that a task may lose against the best single candidate.
TOLERATED_LOSS = 0.005
CONFIDENCE = 0.95
MINIMUM_TASKS = 3
MAXIMUM_FOLDS = 12  # more tasks are left out several at a time
MAXIMUM_QUERIES = 20_000  # what a fit reads of a larger table


@dataclass(frozen=True)
class LeftOut:
    """Queries [Q] of tasks left out of a fit where the best single candidate has an outcome.

    `gap_Q` is how much better another candidate looks than the best single one, `loss_Q` what
    following the look costs: the best single's score minus the other's.
    """

    gap_Q: Float64Array
    loss_Q: Float64Array


def measure_margin(
    train: RoutingData, centroids_CF: FloatArray, kernel: KernelConfig | None, *, seed: int
) -> float:
    """Return the smallest margin of `MARGINS` that does no harm to a task like those of train.

    `kernel` is the policy's start, None where it starts from the clusters around `centroids_CF`.

    Raises:
        RLRouteError: the train split has fewer than 3 tasks, so that too little is left to learn
            from, or a candidate has no outcome on the tasks left.
    """
    return choose_margin(leave_tasks_out(train, centroids_CF, kernel, seed))


def choose_margin(parts: Sequence[LeftOut]) -> float:
    """Return the smallest margin from which on one more task loses no more than is tolerated.

    `parts` are the tasks left out, 3 or more.
    """
    from scipy.stats import t as student

    loss_PT = np.stack(
        [((part.gap_Q[:, None] > MARGINS) * part.loss_Q[:, None]).mean(axis=0) for part in parts]
    )
    harm_PT = np.maximum(loss_PT, 0.0)
    width = student.ppf(CONFIDENCE, len(parts) - 1) * np.sqrt(1 + 1 / len(parts))
    bound_T = harm_PT.mean(axis=0) + width * harm_PT.std(axis=0, ddof=1)
    harmful_T = np.flatnonzero(bound_T > TOLERATED_LOSS)
    if not harmful_T.size:
        return 0.0
    return float(MARGINS[min(int(harmful_T[-1]) + 1, len(MARGINS) - 1)])


def leave_tasks_out(
    train: RoutingData, centroids_CF: FloatArray, kernel: KernelConfig | None, seed: int
) -> list[LeftOut]:
    """Fit where the policy starts once per fold of whole tasks, without the fold's queries."""
    fold_Q = assign_folds(train)
    sample_N = draw_permutation(len(fold_Q), seed, "margin")[:MAXIMUM_QUERIES]
    parts = []
    for fold in range(int(fold_Q.max()) + 1):
        rest = train.select_queries(np.sort(sample_N[fold_Q[sample_N] != fold]))
        held = train.select_queries(np.flatnonzero(fold_Q == fold))
        mean_K = average_candidates(rest.table.score_QK, rest.table.present_QK)
        quality_QK = predict_by_cluster(rest, centroids_CF, held.features_QF)
        if kernel is not None:
            anchors_MF = rest.features_QF[draw_anchors(len(rest.features_QF), kernel, seed)]
            coefficient_MK = fit_coefficients(rest, anchors_MF, mean_K, kernel)
            kernel_QM = compute_kernel(held.features_QF, anchors_MF, kernel.decay)
            quality_QK = (quality_QK + mean_K + kernel_QM @ coefficient_MK) / 2
        part = compare_with_best(held, quality_QK, best=int(mean_K.argmax()))
        if len(part.gap_Q):
            parts.append(part)
    if len(parts) < MINIMUM_TASKS:
        raise RLRouteError(
            f"policy.margin: unseen_tasks: on the tasks of table '{train.table.name}' the best "
            "single candidate of the others has too few outcomes; give a number"
        )
    return parts


def compare_with_best(held: RoutingData, quality_QK: Float64Array, best: int) -> LeftOut:
    """Return how much better the best-looking candidate looks than `best`, and what it scores."""
    rows = np.flatnonzero(held.table.present_QK[:, best])
    present_QK, score_QK = held.table.present_QK[rows], held.table.score_QK[rows]
    pick_Q = np.where(present_QK, quality_QK[rows], -np.inf).argmax(axis=1)
    each_Q = np.arange(len(rows))
    gap_Q = quality_QK[rows][each_Q, pick_Q] - quality_QK[rows, best]
    loss_Q = score_QK[:, best].astype(np.float64) - score_QK[each_Q, pick_Q]
    return LeftOut(gap_Q, loss_Q)


def predict_by_cluster(
    rest: RoutingData, centroids_CF: FloatArray, features_QF: FloatArray
) -> Float64Array:
    """Return the mean score [Q, K] on the cluster of each query, as measured on `rest`.

    Clusters that hold no query of `rest` are as unknown as the tasks left out: they are not there.
    """
    kept_CF = centroids_CF[np.unique(assign_clusters(rest.features_QF, centroids_CF))]
    cluster_N = assign_clusters(rest.features_QF, kept_CF)
    columns = [
        average_by_cluster(rest.table.score_QK[held_N, k], cluster_N[held_N], len(kept_CF))
        for k, held_N in enumerate(rest.table.present_QK.T)
    ]
    score_CK = np.stack(columns, axis=1).astype(np.float64)
    return score_CK[assign_clusters(features_QF, kept_CF)]


def assign_folds(train: RoutingData) -> IntArray:
    """Return the fold of each query [Q]: its task, or one of `MAXIMUM_FOLDS` groups of tasks.

    Raises:
        RLRouteError: there are fewer than 3 tasks.
    """
    tasks = sorted({query.task for query in train.table.queries})
    if len(tasks) < MINIMUM_TASKS:
        raise RLRouteError(
            f"policy.margin: unseen_tasks needs {MINIMUM_TASKS} train tasks or more, table "
            f"'{train.table.name}' has {len(tasks)}; give a number"
        )
    position = {task: number % MAXIMUM_FOLDS for number, task in enumerate(tasks)}
    return np.array([position[query.task] for query in train.table.queries], dtype=np.int64)
