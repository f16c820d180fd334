"""The difference between two routers on the same queries: frontier, each cost weight, one setting.

What it is: `compare_contenders` measures two policies, each on its own features, over the same test
queries and the same bootstrap resamples. It gives AIQ; quality, cost and utility at every cost
weight that both know; and for one setting tests of the difference, the tasks and the queries where
the picks differ. A lead is always the first one's minus the second one's. Axes: Q queries, K
candidates, L cost weights, S samples (row 0 is the split itself, see `sampling`).

What it leaves out: reading runs (`rlroute.run_comparison`), words and pictures
(`run_difference_report`), the spread over training seeds (`sweep_report`).

How to use: `compare_contenders(first, second, Setting(cost_weight=0.1))`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rlroute.evaluation import metrics
from rlroute.evaluation.contenders import (
    Contender,
    Setting,
    align_contenders,
    find_common_weights,
    list_notes,
    make_common_yardstick,
)
from rlroute.evaluation.evaluate import choose_cost_weight
from rlroute.evaluation.frontier import Float64Array
from rlroute.evaluation.run_difference_results import (
    Frontier,
    Move,
    Pair,
    QueryDifference,
    RunDifference,
    SettingDifference,
    TaskDifference,
    WeightDifference,
)
from rlroute.evaluation.sampling import (
    Yardstick,
    check_cost_weights,
    estimate,
    measure_cost,
    sample_sweep,
    sweep_policy,
)
from rlroute.evaluation.tests_of_difference import (
    McNemar,
    compute_equivalence,
    compute_mcnemar,
    compute_permutation_p,
    count_queries_needed,
    is_binary,
)
from rlroute.types import RLRouteError

if TYPE_CHECKING:
    from rlroute.data.routing_data import RoutingData

PickArray = npt.NDArray[np.str_]


def compare_contenders(
    first: Contender,
    second: Contender,
    setting: Setting,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
) -> RunDifference:
    """Compare two policies on the test split; `first` says which single candidates are best.

    Raises:
        RLRouteError: they were not measured on the same queries and outcomes, have no cost weight
            in common, or the setting is out of their range.
    """
    first, second = align_contenders(first, second)
    weight_L = find_common_weights(first, second)
    test = first.splits["test"]
    yardstick = make_common_yardstick(first, second, bootstrap, seed)
    sweeps = [
        sweep_policy(one.policy, one.splits["test"], check_cost_weights(one.cost_weights))
        for one in (first, second)
    ]
    aiq_S = [sample_sweep(sweep, yardstick).aiq_S for sweep in sweeps]
    cheapest = yardstick.cheapest
    frontiers = [
        Frontier(
            (*sweep.cost_usd_NQ.mean(1).tolist(), float(yardstick.cost_usd_SK[0, cheapest])),
            (*sweep.quality_NQ.mean(1).tolist(), float(yardstick.quality_SK[0, cheapest])),
        )
        for sweep in sweeps
    ]
    return RunDifference(
        table=test.table.name,
        test_queries=len(test.table.queries),
        first=first.name,
        second=second.name,
        cost_min_usd=float(yardstick.cost_usd_SK[0].min()),
        cost_max_usd=float(yardstick.cost_usd_SK[0].max()),
        aiq=make_pair(*aiq_S),
        first_frontier=frontiers[0],
        second_frontier=frontiers[1],
        weights=compare_weights(first, second, weight_L, yardstick),
        setting=compare_setting(first, second, setting, weight_L, yardstick, seed),
        bootstrap=bootstrap,
        seed=seed,
        notes=list_notes(first, second),
    )


def make_pair(first_S: Float64Array, second_S: Float64Array) -> Pair:
    """Return two numbers with their paired difference."""
    return Pair(estimate(first_S), estimate(second_S), estimate(first_S - second_S))


def compare_weights(
    first: Contender, second: Contender, weight_L: Float64Array, yardstick: Yardstick
) -> tuple[WeightDifference, ...]:
    """Compare the two at every common cost weight."""
    reference = first.splits["test"].cost_reference_usd
    quality, cost = [], []
    for one in (first, second):
        sweep = sweep_policy(one.policy, one.splits["test"], weight_L * one.weight_factor)
        shape = (len(weight_L), len(yardstick.weight_SQ))  # one setting stands for all
        quality.append(np.broadcast_to(sweep.quality_NQ @ yardstick.weight_SQ.T, shape))
        cost.append(np.broadcast_to(sweep.cost_usd_NQ @ yardstick.weight_SQ.T, shape))
    return tuple(
        WeightDifference(
            cost_weight=weight,
            quality=make_pair(quality[0][row], quality[1][row]),
            cost_usd=make_pair(cost[0][row], cost[1][row]),
            utility=make_pair(
                *(quality[k][row] - weight * cost[k][row] / reference for k in (0, 1))
            ),
        )
        for row, weight in enumerate(weight_L.tolist())
    )


def choose_weights(
    first: Contender, second: Contender, setting: Setting, weight_L: Float64Array
) -> tuple[float, float]:
    """Return the cost weights of a setting, each in the contender's own unit of cost.

    Raises:
        RLRouteError: both a weight and a budget, a weight that one does not know, or a budget
            that one cannot keep at any weight.
    """
    if setting.cost_weight is not None and setting.budget_usd is not None:
        raise RLRouteError("compare: give either a cost weight or a budget, not both")
    if setting.budget_usd is not None:
        chosen = []
        for one in (first, second):
            weight = choose_cost_weight(
                one.policy, one.splits["val"], one.cost_weights, setting.budget_usd
            )
            if weight is None:
                raise RLRouteError(
                    f"{one.name} has no cost weight that keeps {1000 * setting.budget_usd:g} USD "
                    "per 1,000 queries on the validation split"
                )
            chosen.append(weight)
        return chosen[0], chosen[1]
    weight = float(weight_L[0]) if setting.cost_weight is None else setting.cost_weight
    if not weight_L[0] <= weight <= weight_L[-1]:
        raise RLRouteError(
            f"compare: cost weight {weight:g} is out of the range that both runs were trained "
            f"for, {weight_L[0]:g} to {weight_L[-1]:g}"
        )
    return weight * first.weight_factor, weight * second.weight_factor


def compare_setting(
    first: Contender,
    second: Contender,
    setting: Setting,
    weight_L: Float64Array,
    yardstick: Yardstick,
    seed: int,
) -> SettingDifference:
    """Compare the two query by query."""
    weights = choose_weights(first, second, setting, weight_L)
    test = first.splits["test"]
    score, cost, pick = [], [], []
    for one, weight in zip((first, second), weights, strict=True):
        probability_QK = one.policy.compute_probabilities(one.splits["test"], weight)
        score.append(metrics.average_picks(one.splits["test"].table.score_QK, probability_QK))
        cost.append(measure_cost(one.policy, one.splits["test"], weight, probability_QK)[0])
        pick.append(np.array(one.candidate_ids)[np.asarray(probability_QK).argmax(1)])
    quality_S = [yardstick.weight_SQ @ score_Q for score_Q in score]
    cost_S = [yardstick.weight_SQ @ cost_Q for cost_Q in cost]
    utility = None
    if setting.budget_usd is None:
        unit = weights[0] / test.cost_reference_usd
        utility = make_pair(*(quality_S[k] - unit * cost_S[k] for k in (0, 1)))
    binary = all(is_binary(score_Q) for score_Q in score)
    mcnemar = compute_mcnemar(*score) if binary else None
    return SettingDifference(
        budget_usd=setting.budget_usd,
        first_weight=weights[0],
        second_weight=weights[1],
        quality=make_pair(*quality_S),
        cost_usd=make_pair(*cost_S),
        utility=utility,
        mcnemar=mcnemar,
        queries_needed=count_queries(mcnemar, len(test.table.queries)),
        permutation_p=compute_permutation_p(score[0] - score[1], seed=seed),
        equivalence=compute_equivalence(score[0] - score[1]),
        tasks=compare_tasks(test, score, pick, yardstick),
        moves=list_moves(score, cost, pick),
        queries=list_queries(test, score, cost, pick),
    )


def count_queries(test: McNemar | None, queries: int) -> int | None:
    """Return how many queries show the difference found on Q `queries`; None where not known."""
    if test is None or test.only_first == test.only_second:
        return None
    return count_queries_needed(
        disagreement=(test.only_first + test.only_second) / queries,
        difference=(test.only_first - test.only_second) / queries,
    )


def compare_tasks(
    test: RoutingData,
    score: Sequence[Float64Array],
    pick: Sequence[PickArray],
    yardstick: Yardstick,
) -> tuple[TaskDifference, ...]:
    """Compare the two task by task; resamples without a query of a task are left out there."""
    task_Q = np.array([query.task for query in test.table.queries])
    found = []
    for task in np.unique(task_Q):
        rows = task_Q == task
        weight_SQ = yardstick.weight_SQ[:, rows]
        weight_SQ = weight_SQ[weight_SQ.sum(1) > 0]
        weight_SQ = weight_SQ / weight_SQ.sum(1, keepdims=True)
        if len(weight_SQ) == 1:  # no resample holds the task: the value without a spread
            weight_SQ = np.repeat(weight_SQ, 2, axis=0)
        found.append(
            TaskDifference(
                task=str(task),
                queries=int(rows.sum()),
                differing=int((pick[0][rows] != pick[1][rows]).sum()),
                quality=make_pair(*(weight_SQ @ score_Q[rows] for score_Q in score)),
            )
        )
    return tuple(found)


def list_moves(
    score: Sequence[Float64Array],
    cost: Sequence[Float64Array],
    pick: Sequence[PickArray],
) -> tuple[Move, ...]:
    """Return who gets what the other gives elsewhere, most queries first; leads are sums."""
    pairs = list(zip(pick[0].tolist(), pick[1].tolist(), strict=True))
    counts = Counter(pair for pair in pairs if pair[0] != pair[1])
    found = []
    for (one, other), queries in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        rows = (pick[0] == one) & (pick[1] == other)
        found.append(
            Move(
                first_pick=one,
                second_pick=other,
                queries=queries,
                score_lead=float((score[0] - score[1])[rows].sum()),
                cost_lead_usd=float((cost[0] - cost[1])[rows].sum()),
            )
        )
    return tuple(found)


def list_queries(
    test: RoutingData,
    score: Sequence[Float64Array],
    cost: Sequence[Float64Array],
    pick: Sequence[PickArray],
) -> tuple[QueryDifference, ...]:
    """Return the queries with different picks: largest difference in score, then in cost, first."""
    queries = test.table.queries
    rows = np.flatnonzero(pick[0] != pick[1])
    score_lead, cost_lead = (np.abs(pair[0] - pair[1])[rows] for pair in (score, cost))
    return tuple(
        QueryDifference(
            query_id=queries[q].id,
            task=queries[q].task,
            first_pick=str(pick[0][q]),
            second_pick=str(pick[1][q]),
            first_score=float(score[0][q]),
            second_score=float(score[1][q]),
            first_cost_usd=float(cost[0][q]),
            second_cost_usd=float(cost[1][q]),
        )
        for q in rows[np.lexsort((-cost_lead, -score_lead))]
    )
