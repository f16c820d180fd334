"""Compare routing policies on one split: frontier, AIQ, intervals, operating points, selections.

What it is: `evaluate_policies` for the final report, `compute_validation_metrics` for the trainer
(the same sweep without bootstrap), `choose_cost_weight` for the point one would deploy.

Conventions. A policy's quality and cost are expectations under its probabilities. Every router may
be mixed with the cheapest single candidate (chosen on train), which needs no router, so every hull
includes that candidate's point; policies without a knob stand on the same footing. AIQ is taken
from the mean cost of the cheapest to that of the dearest single candidate on the evaluated split,
and the bootstrap recomputes all of it, range included, in every resample. The best single candidate
is chosen on train. Cost weights of operating points are chosen on validation; test is only read.

What it leaves out: fitting (`rlroute.policies.baselines`) and looks (`report`).

How to use: `evaluate_policies([policy, *baselines], train, test, weights, val=val, seed=0)`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rlroute.evaluation import metrics
from rlroute.evaluation.efficiency import measure_efficiency
from rlroute.evaluation.frontier import Float64Array, compute_aiq, compute_hull
from rlroute.evaluation.results import (
    EvaluationResult,
    FrontierResult,
    OperatingPoint,
    Point,
    PolicyResult,
    ReferencePoint,
    SingleResult,
    TwoModelMetrics,
)
from rlroute.evaluation.sampling import (
    FrontierSample,
    RoutingPolicy,
    Sweep,
    Yardstick,
    check_cost_weights,
    estimate,
    list_arrays,
    list_singles,
    make_yardstick,
    measure_cost,
    sample_frontier,
    sample_sweep,
    sweep_policy,
)
from rlroute.types import RLRouteError

if TYPE_CHECKING:
    from rlroute.data.routing_data import RoutingData

HIGHEST_QUALITY = "quality first"
# Operating points under a cap: the part of the best single candidate's cost that may be spent.
BUDGETS = {"at most the best single's cost": 1.0, "at most 30% of the best single's cost": 0.3}


@dataclass(frozen=True)
class Comparison:
    """What the results of all policies are made from."""

    train: RoutingData
    val: RoutingData | None
    test: RoutingData
    weight_L: Float64Array
    yardstick: Yardstick
    zero_sample: FrontierSample
    router_seconds: float | None
    references: tuple[ReferencePoint, ...]


def evaluate_policies(
    policies: Sequence[RoutingPolicy],
    train: RoutingData,
    test: RoutingData,
    cost_weights: Sequence[float],
    *,
    val: RoutingData | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    router_seconds: float | None = None,
) -> EvaluationResult:
    """Compare policies on `test`; the first one is the subject of the report.

    `cost_weights` is quality given up per unit of normalised cost. `train` names the best and the
    cheapest single candidate. With `val`, operating points under a cap get cost weights chosen
    there. `bootstrap` is the number of resamples behind every interval. `router_seconds`, what the
    first policy takes to encode and decide one query, counts in its latencies; None: not measured.

    Raises:
        RLRouteError: no policy, a bad cost weight, or splits with different candidates.
    """
    if not policies:
        raise RLRouteError("evaluation: needs at least one policy")
    weight_L = check_cost_weights(cost_weights)
    check_same_candidates(train, test)
    yardstick = make_yardstick(train, test, bootstrap, seed)
    zero_sample = sample_frontier(yardstick.cost_usd_SK, yardstick.quality_SK, yardstick)
    references = list_references(test)
    comparison = Comparison(
        train, val, test, weight_L, yardstick, zero_sample, router_seconds, references
    )
    sweeps = [sweep_policy(policy, test, weight_L) for policy in policies]
    samples = [sample_sweep(sweep, yardstick) for sweep in sweeps]
    results = tuple(
        make_policy_result(policy, sweep, sample, samples[0], comparison)
        for policy, sweep, sample in zip(policies, sweeps, samples, strict=True)
    )
    return make_result(results, comparison, bootstrap, seed)


def choose_cost_weight(
    policy: RoutingPolicy, val: RoutingData, cost_weights: Sequence[float], budget_usd: float
) -> float | None:
    """Return the cost weight of the best validation quality for at most `budget_usd` per query.

    Ties go to the lower cost, then to the smaller weight; None where no weight is within budget.
    """
    weight_L = check_cost_weights(cost_weights)
    sweep = sweep_policy(policy, val, weight_L)
    quality_N, cost_N = sweep.quality_NQ.mean(1), sweep.cost_usd_NQ.mean(1)
    affordable = np.flatnonzero(cost_N <= budget_usd)
    if not affordable.size:
        return None
    return float(weight_L[min(affordable, key=lambda n: (-quality_N[n], cost_N[n]))])


def compute_validation_metrics(
    policy: RoutingPolicy, data: RoutingData, cost_weights: Sequence[float]
) -> dict[str, float]:
    """Return aiq, utility, quality, cost_usd and regret_oracle of a policy, without intervals.

    `quality` and `cost_usd` (mean USD per query) are those of the smallest cost weight, `utility`
    and `regret_oracle` are means over the cost weights. The range of AIQ and the cheapest candidate
    are those of `data`. Cheap enough to run every few updates.
    """
    weight_L = check_cost_weights(cost_weights)
    return summarise_sweep(sweep_policy(policy, data, weight_L), data, weight_L)


def summarise_sweep(sweep: Sweep, data: RoutingData, weight_L: Float64Array) -> dict[str, float]:
    """Return the metrics of `compute_validation_metrics` for a sweep over `weight_L`."""
    quality_N, cost_N = sweep.quality_NQ.mean(1), sweep.cost_usd_NQ.mean(1)
    single_quality_K, single_cost_K = (value_QK.mean(0) for value_QK in list_singles(data))
    cheapest = int(np.argmin(single_cost_K))
    return {
        "aiq": compute_aiq(
            np.append(cost_N, single_cost_K[cheapest]),
            np.append(quality_N, single_quality_K[cheapest]),
            float(single_cost_K[cheapest]),
            float(single_cost_K.max()),
        ),
        "utility": float((quality_N - weight_L * cost_N / data.cost_reference_usd).mean()),
        "quality": float(quality_N[0]),
        "cost_usd": float(cost_N[0]),
        "regret_oracle": float(sweep.regret_LQ.mean()),
    }


def check_same_candidates(train: RoutingData, test: RoutingData) -> None:
    """Refuse splits whose candidates differ.

    Raises:
        RLRouteError: the candidates differ.
    """
    train_ids, test_ids = ([one.id for one in data.table.candidates] for data in (train, test))
    if train_ids != test_ids:
        raise RLRouteError(
            f"evaluation: train has candidates {', '.join(train_ids)}; "
            f"the evaluated split has {', '.join(test_ids)}"
        )


# --- Results --------------------------------------------------------------------------------------


def list_references(test: RoutingData) -> tuple[ReferencePoint, ...]:
    """Return the quality oracle, the task oracle and random picks."""
    score_QK, cost_QK, present_QK = list_arrays(test)
    task_Q = [query.task for query in test.table.queries]
    candidates = present_QK.shape[1]
    picks = {
        "quality oracle": metrics.make_one_hot(
            metrics.pick_oracle(score_QK, cost_QK, present_QK), candidates
        ),
        "task oracle": metrics.make_one_hot(
            metrics.pick_task_oracle(score_QK, cost_QK, present_QK, task_Q), candidates
        ),
        "random": metrics.make_uniform(present_QK),
    }
    return tuple(
        ReferencePoint(
            name,
            float(metrics.average_picks(score_QK, probability_QK).mean()),
            float(metrics.average_picks(cost_QK, probability_QK).mean()),
        )
        for name, probability_QK in picks.items()
    )


def make_points(sweep: Sweep, yardstick: Yardstick) -> tuple[Point, ...]:
    """Return one point per setting of a policy."""
    quality_SN = yardstick.weight_SQ @ sweep.quality_NQ.T
    cost_SN = yardstick.weight_SQ @ sweep.cost_usd_NQ.T
    return tuple(
        Point(
            cost_weight=weight,
            quality=estimate(quality_SN[:, n]),
            cost_usd=estimate(cost_SN[:, n]),
            quality_gain=estimate(quality_SN[:, n] - yardstick.best_quality),
            share_K=tuple(sweep.share_NK[n].tolist()),
            entropy=metrics.compute_selection_entropy(sweep.share_NK[n]),
        )
        for n, weight in enumerate(sweep.weights)
    )


def make_policy_result(
    policy: RoutingPolicy,
    sweep: Sweep,
    sample: FrontierSample,
    subject_sample: FrontierSample,
    comparison: Comparison,
) -> PolicyResult:
    """Return the result of one policy."""
    yardstick = comparison.yardstick
    points = make_points(sweep, yardstick)
    is_subject = sample is subject_sample
    best_quality = float(yardstick.best_quality[0])
    return PolicyResult(
        name=policy.name,
        points=points,
        frontier=make_frontier(
            [yardstick.cost_usd_SK[0, yardstick.cheapest], *(p.cost_usd.value for p in points)],
            [yardstick.quality_SK[0, yardstick.cheapest], *(p.quality.value for p in points)],
            sample,
            comparison,
        ),
        subject_lead=None if is_subject else estimate(subject_sample.aiq_S - sample.aiq_S),
        gap_closed=metrics.compute_gap_closed(
            points[0].quality.value, best_quality, comparison.references[0].quality
        ),
        regrets=tuple(estimate(row_S) for row_S in sweep.regret_LQ @ yardstick.weight_SQ.T),
        operating_points=make_operating_points(
            policy, comparison, comparison.router_seconds if is_subject else None
        ),
        two_model=compute_two_model_metrics(sweep, yardstick),
    )


def make_frontier(
    cost_N: Sequence[float],
    quality_N: Sequence[float],
    sample: FrontierSample,
    comparison: Comparison,
) -> FrontierResult:
    """Return the hull of N points of the split with the estimates of its sample."""
    hull_cost_H, hull_quality_H = compute_hull(cost_N, quality_N)
    return FrontierResult(
        cost_usd=tuple(hull_cost_H.tolist()),
        quality=tuple(hull_quality_H.tolist()),
        aiq=estimate(sample.aiq_S),
        aiq_gain=estimate(sample.aiq_S - comparison.zero_sample.aiq_S),
        quality_at_best_single_cost=estimate(sample.quality_at_best_cost_S),
        quality_neutral_cost=estimate(sample.quality_neutral_cost_S),
        cost_saved=estimate(sample.cost_saved_S),
        peak_quality=metrics.compute_peak(hull_quality_H),
    )


def make_operating_points(
    policy: RoutingPolicy, comparison: Comparison, router_seconds: float | None
) -> tuple[OperatingPoint, ...]:
    """Return the settings to report: quality first, and the best on validation under each cap."""
    weight_L, val = comparison.weight_L.tolist(), comparison.val
    chosen: list[tuple[str, float | None, float | None]] = [(HIGHEST_QUALITY, None, weight_L[0])]
    if val is not None:
        best_cost = float(list_singles(val)[1].mean(0)[comparison.yardstick.best])
        for label, part in BUDGETS.items():
            budget = part * best_cost
            chosen.append((label, budget, choose_cost_weight(policy, val, weight_L, budget)))
    return tuple(
        measure_operating_point(policy, label, budget, weight, comparison, router_seconds)
        for label, budget, weight in chosen
        if weight is not None
    )


def measure_operating_point(
    policy: RoutingPolicy,
    label: str,
    budget_usd: float | None,
    cost_weight: float,
    comparison: Comparison,
    router_seconds: float | None,
) -> OperatingPoint:
    """Measure a policy at one cost weight on the evaluated split, task by task."""
    test, yardstick = comparison.test, comparison.yardstick
    probability_QK = policy.compute_probabilities(test, cost_weight)
    quality_Q = metrics.average_picks(test.table.score_QK, probability_QK)
    cost_Q, _ = measure_cost(policy, test, cost_weight, probability_QK)
    quality_S, cost_S = yardstick.weight_SQ @ quality_Q, yardstick.weight_SQ @ cost_Q
    share_K = metrics.compute_selection_shares(probability_QK)
    task_Q = np.array([query.task for query in test.table.queries])
    return OperatingPoint(
        label=label,
        budget_usd=budget_usd,
        cost_weight=cost_weight,
        quality=estimate(quality_S),
        cost_usd=estimate(cost_S),
        quality_gain=estimate(quality_S - yardstick.best_quality),
        cost_ratio=estimate(metrics.compute_cost_ratio(cost_S, yardstick.best_cost)),
        share_K=tuple(share_K.tolist()),
        entropy=metrics.compute_selection_entropy(share_K),
        share_by_task={
            str(task): tuple(
                metrics.compute_selection_shares(probability_QK[task_Q == task]).tolist()
            )
            for task in np.unique(task_Q)
        },
        efficiency=measure_efficiency(test, probability_QK, cost_Q, yardstick, router_seconds),
    )


def compute_two_model_metrics(sweep: Sweep, yardstick: Yardstick) -> TwoModelMetrics | None:
    """Return RouteLLM's metrics where the pool has two candidates, else None.

    Strong is the best single candidate; all-weak and all-strong are points of every curve.
    """
    if yardstick.quality_SK.shape[1] != 2:
        return None
    strong = yardstick.best
    weak_quality, strong_quality = yardstick.quality_SK[0, [1 - strong, strong]].tolist()
    share_N = np.array([0.0, *sweep.share_NK[:, strong], 1.0])
    quality_N = np.array([weak_quality, *sweep.quality_NQ.mean(1), strong_quality])
    recovered_N = metrics.compute_gap_recovered(quality_N, weak_quality, strong_quality)
    if recovered_N is None:
        return TwoModelMetrics(None, None, None)
    return TwoModelMetrics(
        average_gap_recovered=metrics.compute_average_gap_recovered(share_N, recovered_N),
        call_threshold_50=metrics.compute_call_threshold(share_N, recovered_N, 0.5),
        call_threshold_80=metrics.compute_call_threshold(share_N, recovered_N, 0.8),
    )


def make_result(
    results: tuple[PolicyResult, ...], comparison: Comparison, bootstrap: int, seed: int
) -> EvaluationResult:
    """Put together what was found, with the single candidates and their hull."""
    train, test, yardstick = comparison.train, comparison.test, comparison.yardstick
    ids = tuple(candidate.id for candidate in test.table.candidates)
    cost_K, quality_K = yardstick.cost_usd_SK[0], yardstick.quality_SK[0]
    zero_router = make_frontier(
        cost_K.tolist(), quality_K.tolist(), comparison.zero_sample, comparison
    )
    on_hull = set(zip(zero_router.cost_usd, zero_router.quality, strict=True))
    train_quality_K, train_cost_K = (value_QK.mean(0) for value_QK in list_singles(train))
    return EvaluationResult(
        table=test.table.name,
        queries=len(test.table.queries),
        task_queries=dict(sorted(Counter(query.task for query in test.table.queries).items())),
        candidate_ids=ids,
        cost_weights=tuple(comparison.weight_L.tolist()),
        cost_reference_usd=float(test.cost_reference_usd),
        cost_min_usd=float(cost_K.min()),
        cost_max_usd=float(cost_K.max()),
        best_single=ids[yardstick.best],
        cheapest=ids[yardstick.cheapest],
        singles=tuple(
            SingleResult(
                candidate_id=ids[k],
                quality=estimate(yardstick.quality_SK[:, k]),
                cost_usd=estimate(yardstick.cost_usd_SK[:, k]),
                train_quality=float(train_quality_K[k]),
                train_cost_usd=float(train_cost_K[k]),
                on_hull=(float(cost_K[k]), float(quality_K[k])) in on_hull,
            )
            for k in range(len(ids))
        ),
        references=comparison.references,
        zero_router=zero_router,
        policies=results,
        bootstrap=bootstrap,
        seed=seed,
    )
