"""Which queries a new candidate is asked for its profile, and what its calls gave.

    random       n queries of the train split, all equally likely
    stratified   n queries, every cluster by its share of them
    information  the n queries that tell most of its ability (Fisher information, given by the
                 caller; RADAR, arXiv 2509.25426)
    aptitude     up to 50 tasks, up to 20 queries of each, n in all (Model-SAT)

Draws follow from coordinates: the first 200 of 1,000 random queries are the 200 random queries.

What it leaves out: what is made of the calls (`rlroute.data.newcomer_profiles`).

How to use: `gather_calls(table, cluster_Q, "new-model", choose_queries("random", 200, ...))`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from rlroute.data.candidate_profiles import ProfileCalls
from rlroute.data.table import OutcomeTable
from rlroute.seeding import draw_permutation
from rlroute.types import BoolArray, IntArray, RLRouteError

Design = Literal["random", "stratified", "information", "aptitude"]
APTITUDE_TASKS = 50
APTITUDE_SHOTS = 20


def choose_queries(
    design: Design,
    calls: int,
    group_Q: npt.ArrayLike,
    seed: int,
    information_Q: npt.ArrayLike | None = None,
) -> IntArray:
    """Return the rows of at most `calls` queries to ask, sorted.

    `group_Q` is the cluster of each query that may be asked, for `aptitude` its task.
    """
    group_Q = np.asarray(group_Q)
    if design == "information":
        if information_Q is None:
            raise ValueError("design 'information' needs the information of each query")
        order_Q = np.argsort(-np.asarray(information_Q, np.float64), kind="stable")
    elif design == "random":
        order_Q = draw_permutation(len(group_Q), seed, "profile calls")
    elif design == "stratified":
        order_Q = order_by_share(group_Q, seed)
    else:
        order_Q = order_aptitude(group_Q, seed)
    return np.sort(np.asarray(order_Q[:calls], dtype=np.int64))


def order_by_share(group_Q: npt.ArrayLike, seed: int) -> IntArray:
    """Return the rows in an order whose every beginning has each group by its share.

    The j-th of the m queries of a group stands at (j + 1/2) / m of the way.
    """
    group_Q = np.asarray(group_Q)
    place_Q = np.empty(len(group_Q))
    shuffled_Q = draw_permutation(len(group_Q), seed, "profile calls")
    for group in np.unique(group_Q):
        rows = shuffled_Q[group_Q[shuffled_Q] == group]
        place_Q[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    return np.asarray(shuffled_Q[np.argsort(place_Q[shuffled_Q], kind="stable")])


def order_aptitude(
    task_Q: npt.ArrayLike,
    seed: int,
    tasks: int = APTITUDE_TASKS,
    shots: int = APTITUDE_SHOTS,
) -> IntArray:
    """Return the rows of an aptitude test: the first shot of every task, then the second, ..."""
    task_Q = np.asarray(task_Q)
    names = np.unique(task_Q)
    names = names[np.sort(draw_permutation(len(names), seed, "aptitude tasks")[:tasks])]
    shuffled_Q = draw_permutation(len(task_Q), seed, "profile calls")
    rows, shot = [], []
    for name in names:
        own = shuffled_Q[task_Q[shuffled_Q] == name][:shots]
        rows.append(own)
        shot.append(np.arange(len(own)))
    order = np.argsort(np.concatenate(shot), kind="stable")
    return np.asarray(np.concatenate(rows)[order])


@dataclass(frozen=True, eq=False)
class AptitudeTest:
    """What an aptitude test gave: success per task, from so many shots, for so much money."""

    tasks: tuple[str, ...]
    success_T: npt.NDArray[np.float64]
    shots_T: IntArray
    cost_usd: float


def take_aptitude_test(
    table: OutcomeTable,
    candidate_id: str,
    seed: int,
    tasks: int = APTITUDE_TASKS,
    shots: int = APTITUDE_SHOTS,
) -> OutcomeTable:
    """Return a candidate's outcomes on the queries of an aptitude test, by the table's tasks.

    Raises:
        RLRouteError: the table has no such candidate, or no outcome of it.
    """
    find_column(table, candidate_id)
    own = table.select_candidates([candidate_id])
    task_Q = [query.task for query in own.queries]
    return own.select_queries(np.sort(order_aptitude(task_Q, seed, tasks, shots)))


def measure_aptitude(table: OutcomeTable, candidate_id: str) -> AptitudeTest:
    """Return a candidate's success on each task of a table, and what the calls cost.

    Raises:
        RLRouteError: the table has no such candidate, or no outcome of it.
    """
    column = find_column(table, candidate_id)
    rows = np.flatnonzero(table.present_QK[:, column])
    name_N = np.array([table.queries[row].task for row in rows.tolist()])
    names, place_N = np.unique(name_N, return_inverse=True)
    shots_T = np.bincount(place_N)
    score_N = table.score_QK[rows, column].astype(np.float64)
    return AptitudeTest(
        tasks=tuple(names.tolist()),
        success_T=np.bincount(place_N, weights=score_N) / shots_T,
        shots_T=shots_T,
        cost_usd=float(table.cost_usd_QK[rows, column].sum(dtype=np.float64)),
    )


def gather_calls(
    table: OutcomeTable, cluster_Q: IntArray, candidate_id: str, index_N: npt.ArrayLike
) -> ProfileCalls:
    """Return what a table holds of a candidate's calls on the queries at `index_N`.

    Pairs that were never tried are left out.

    Raises:
        RLRouteError: the table has no such candidate, or no outcome of it.
    """
    column = find_column(table, candidate_id)
    asked_N = np.asarray(index_N, dtype=np.int64)
    row_N = asked_N[table.present_QK[asked_N, column]]
    return ProfileCalls(
        cluster_N=cluster_Q[row_N],
        score_N=table.score_QK[row_N, column],
        cost_usd_N=table.cost_usd_QK[row_N, column],
        prompt_tokens_N=table.prompt_tokens_QK[row_N, column],
        completion_tokens_N=table.completion_tokens_QK[row_N, column],
        latency_seconds_N=table.latency_seconds_QK[row_N, column],
    )


def find_column(table: OutcomeTable, candidate_id: str) -> int:
    """Return the column of a candidate that has outcomes.

    Raises:
        RLRouteError: the table has no such candidate, or no outcome of it.
    """
    ids = [candidate.id for candidate in table.candidates]
    if candidate_id not in ids:
        raise RLRouteError(
            f"table '{table.name}': no candidate '{candidate_id}' (it has: {', '.join(ids)})"
        )
    column = ids.index(candidate_id)
    present_Q: BoolArray = table.present_QK[:, column]
    if not present_Q.any():
        raise RLRouteError(f"table '{table.name}': no outcome of candidate '{candidate_id}'")
    return column
