"""The sessions of `rlroute.worlds.query_session`: which queries, in which order, at which prices.

What it is: the settings of the world, the draw of sessions, and upper bounds of cost that are known
before a candidate is asked. The output limit of a candidate is a quantile (`limit_quantile`) of the
completion tokens it wrote on train, and

    bound = price per call + prompt tokens * input price + output limit * output price

for a query whose prompt tokens the table knows, else the same quantile of the candidate's train
costs. A recorded answer that cost more than its bound cannot have been given under that limit: the
pair is a hole like one that was never tried. So no step of a session ever costs more than was
reserved for it, whatever the table says, and a cap cannot be passed. (That such a pair is masked
tells a policy that the candidate would have run on; all policies are told alike.)

A query of which no candidate is left belongs to no session.

What it leaves out: the steps themselves (`rlroute.worlds.query_session`).

How to use: `load_sessions(QuerySessionConfig(table="pocket")).splits["test"].session_ST`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from rlroute.data.prepare import PreparedTable
from rlroute.data.routing_data import RoutingData, get_profile
from rlroute.data.table import OutcomeTable, read_table
from rlroute.data.task_splits import split_table
from rlroute.seeding import draw_permutation
from rlroute.types import (
    SPLITS,
    TOKENS_PER_PRICE,
    BoolArray,
    Candidate,
    FloatArray,
    IntArray,
    Query,
    RLRouteError,
    SplitName,
    UsdArray,
)
from rlroute.worlds.base import describe_executors
from rlroute.worlds.table_queries import TableQueries, prepare_queries

MIXED = "mixed"
ROUNDING = 1e-6  # tables hold costs as float32: a bound must not be missed by its last digit


class QuerySessionConfig(TableQueries):
    """Sessions of `queries` queries of one split of a table.

    With `mix` a session takes queries of all areas (`Query.task`), without it of one. `train`,
    `val` and `test` are the numbers of sessions; null makes as many as there are when every query
    stands in one session at most, which keeps sessions independent of each other.
    """

    kind: Literal["query_session"]
    queries: int = Field(default=10, ge=1)
    mix: bool = True
    train: int | None = Field(default=2000, ge=1)
    val: int | None = Field(default=None, ge=1)
    test: int | None = Field(default=None, ge=1)
    limit_quantile: float = Field(default=0.99, gt=0, le=1)


@dataclass(frozen=True, eq=False)
class SessionSplit:
    """The queries of a split, executors in the order of the world, and its S sessions.

    `score_QK` and `cost_usd_QK` are NaN in holes; `legal_QK` is False there and where the recorded
    cost is above `bound_usd_QK`. `session_ST` holds rows of the queries, `area_S` the sessions'
    areas.
    """

    table: OutcomeTable
    features_QF: FloatArray
    score_QK: FloatArray
    cost_usd_QK: UsdArray
    bound_usd_QK: UsdArray
    legal_QK: BoolArray
    session_ST: IntArray
    area_S: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class SessionData:
    """All that a world of sessions reads.

    `column_K` says which column of the table each executor is. `cost_reference_usd` is the mean
    train cost of the dearest.
    """

    prepared: PreparedTable
    executors: tuple[Candidate, ...]
    column_K: IntArray
    executor_features_KD: FloatArray
    cost_reference_usd: float
    splits: Mapping[SplitName, SessionSplit]


def load_sessions(config: QuerySessionConfig) -> SessionData:
    """Return the sessions of a table; what was made last is kept.

    Raises:
        RLRouteError: the table has a fault, or a split has too few queries for one session.
    """
    return make_sessions(config, Path.cwd())


@functools.lru_cache(maxsize=2)
def make_sessions(config: QuerySessionConfig, where: Path) -> SessionData:
    """Prepare a table and draw its sessions; `where` is what a relative path starts from."""
    prepared = prepare_queries(config)
    cost_K = np.array([get_profile(one).mean_cost_usd for one in prepared.candidates])
    column_K = np.argsort(cost_K, kind="stable")
    executors = tuple(prepared.candidates[column] for column in column_K)
    train = prepared.splits["train"]
    limits = measure_limits(train.table, config.limit_quantile)
    counts = {"train": config.train, "val": config.val, "test": config.test}
    described_KD = train.candidate_features_KD[column_K]
    return SessionData(
        prepared=prepared,
        executors=executors,
        column_K=column_K,
        executor_features_KD=np.concatenate([describe_executors(executors), described_KD], axis=1),
        cost_reference_usd=train.cost_reference_usd,
        splits={
            name: make_split(config, name, prepared.splits[name], column_K, limits, counts[name])
            for name in SPLITS
        },
    )


def make_split(
    config: QuerySessionConfig,
    name: SplitName,
    data: RoutingData,
    column_K: IntArray,
    limits: tuple[UsdArray, UsdArray],
    count: int | None,
) -> SessionSplit:
    """Return one split with its sessions."""
    bound_usd_QK, legal_QK = find_legal(data.table, limits)
    cost_usd_QK = data.table.cost_usd_QK.astype(np.float64)
    session_ST, area_S = draw_sessions(
        config, name, data.table.queries, np.asarray(legal_QK.any(axis=1)), count
    )
    return SessionSplit(
        table=data.table,
        features_QF=data.features_QF,
        score_QK=data.table.score_QK[:, column_K],
        cost_usd_QK=cost_usd_QK[:, column_K],
        bound_usd_QK=bound_usd_QK[:, column_K],
        legal_QK=legal_QK[:, column_K],
        session_ST=session_ST,
        area_S=area_S,
    )


def check_sessions(config: QuerySessionConfig) -> None:
    """Read a table and see whether every split has queries for a session, without encoding them.

    Raises:
        RLRouteError: as `load_sessions`.
    """
    table = split_table(read_table(config.table), config.split)
    parts = {name: table.select_split(name) for name in SPLITS}
    limits = measure_limits(parts["train"], config.limit_quantile)
    for name, part in parts.items():
        usable_Q = np.asarray(find_legal(part, limits)[1].any(axis=1))
        draw_sessions(config, name, part.queries, usable_Q, count=1)


# --- Bounds of cost -------------------------------------------------------------------------------


def measure_limits(train: OutcomeTable, quantile: float) -> tuple[UsdArray, UsdArray]:
    """Return each candidate's output limit in tokens (NaN: unknown) and of cost in USD [K], [K]."""
    limit_K = np.full(len(train.candidates), np.nan)
    cost_limit_K = np.empty(len(train.candidates))
    for k in range(len(train.candidates)):
        present_Q = train.present_QK[:, k]
        tokens_N = train.completion_tokens_QK[present_Q, k].astype(np.float64)
        if not np.isnan(tokens_N).any():
            limit_K[k] = np.ceil(np.quantile(tokens_N, quantile))
        cost_limit_K[k] = np.quantile(train.cost_usd_QK[present_Q, k].astype(np.float64), quantile)
    return limit_K, cost_limit_K


def bound_costs(table: OutcomeTable, limit_K: UsdArray, cost_limit_K: UsdArray) -> UsdArray:
    """Return what each call can cost at most under the limits, in USD [Q, K]; see the module."""
    prices = [one.prices for one in table.candidates]
    input_K = np.array([one.input for one in prices])
    output_K = np.array([one.output for one in prices])
    per_call_K = np.array([one.per_call for one in prices])
    prompt_QK = table.prompt_tokens_QK.astype(np.float64)
    stated_QK = per_call_K + (prompt_QK * input_K + limit_K * output_K) / TOKENS_PER_PRICE
    bound_QK = np.where(np.isnan(stated_QK), cost_limit_K, stated_QK)
    return np.asarray(bound_QK * (1 + ROUNDING))


def find_legal(
    table: OutcomeTable, limits: tuple[UsdArray, UsdArray]
) -> tuple[UsdArray, BoolArray]:
    """Return what each call can cost at most [Q, K], and which pairs keep to it [Q, K]."""
    bound_usd_QK = bound_costs(table, *limits)
    cost_usd_QK = np.nan_to_num(table.cost_usd_QK.astype(np.float64), nan=np.inf)
    return bound_usd_QK, np.asarray(table.present_QK & (cost_usd_QK <= bound_usd_QK))


def measure_dearest(bound_QK: UsdArray, reference_usd: float) -> UsdArray:
    """Return the log of what the dearest candidate can cost over the reference [Q]."""
    share_Q = bound_QK.max(axis=1) / reference_usd
    return np.asarray(np.log(np.maximum(share_Q, np.finfo(np.float32).tiny)))


# --- Sessions -------------------------------------------------------------------------------------


def draw_sessions(
    config: QuerySessionConfig,
    split: SplitName,
    queries: Sequence[Query],
    usable_Q: BoolArray,
    count: int | None,
) -> tuple[IntArray, tuple[str, ...]]:
    """Return rows of the queries of each session [S, T], and its area.

    The usable queries are shuffled by hash and cut into sessions, as often as it takes; what is
    over at the end of a round is left out of it.

    Raises:
        RLRouteError: no area has enough queries for one session.
    """
    size = config.queries
    areas = np.array([MIXED if config.mix else query.task for query in queries])
    rounds: list[tuple[IntArray, list[str]]] = []
    drawn = 0
    while not rounds or (count is not None and drawn < count):
        order_N = draw_permutation(len(queries), config.seed, "sessions", split, len(rounds))
        order_N = order_N[usable_Q[order_N]]
        found: list[tuple[IntArray, str]] = []
        for area in np.unique(areas):
            own_N = order_N[areas[order_N] == area]
            found += [
                (own_N[start : start + size], str(area))
                for start in range(0, len(own_N) - size + 1, size)
            ]
        if not found:
            raise RLRouteError(
                f"table '{config.table}': split '{split}' has too few queries for a session of "
                f"{size}{'' if config.mix else ' of one area'} (queries: a smaller number)"
            )
        place_N = draw_permutation(len(found), config.seed, "order", split, len(rounds))
        rounds.append(
            (np.stack([found[i][0] for i in place_N]), [found[i][1] for i in place_N.tolist()])
        )
        drawn += len(found)
    session_ST = np.concatenate([rows for rows, _ in rounds])[:count]
    return session_ST, tuple([name for _, names in rounds for name in names][:count])


def list_budget_levels(config: QuerySessionConfig, levels: int = 5) -> list[float]:
    """Return caps in USD from 1.1 times the cheapest's mean train session to the dearest's.

    They are equally far apart on a scale of ratios, with three significant digits.

    Raises:
        RLRouteError: as `load_sessions`; or the cheapest candidate is free, so nothing is scarce.
    """
    executors = load_sessions(config).executors
    cost_K = [config.queries * get_profile(one).mean_cost_usd for one in executors]
    if cost_K[0] <= 0:
        raise RLRouteError(f"table '{config.table}': '{executors[0].id}' is free: no budget binds")
    return [float(f"{cap:.3g}") for cap in np.geomspace(1.1 * cost_K[0], cost_K[-1], levels)]
