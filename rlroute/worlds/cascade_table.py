"""The table of a cascade, made ready: what policies see of it, and its splits with their checks.

Executors are `stop` and the candidates in the order of their mean train costs. Their features are
those of `describe_executors` (with mean train costs in the place of prices), then those of their
profiles; `stop` has zeros there.

What it leaves out: episodes (`rlroute.worlds.cascade`), features of a state (`cascade_view`).

How to use: `prepare_cascade(config).splits["train"]`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from rlroute.data.prepare import PreparedTable
from rlroute.data.routing_data import RoutingData, get_profile
from rlroute.seeding import draw_uniform, mix
from rlroute.types import (
    BoolArray,
    Candidate,
    FloatArray,
    IntArray,
    Prices,
    Query,
    RLRouteError,
    SplitName,
)
from rlroute.worlds.cascade_view import (
    STOP,
    CascadeView,
    CheckerConfig,
    Keep,
    find_clusters,
    read_profiles,
)
from rlroute.worlds.table_queries import TableQueries, prepare_queries


class CascadeConfig(TableQueries):
    """A cascade over a table; `max_looks` null allows to ask everybody.

    `tokens` shows the lengths of answers, `checker` checks them. `show_query` shows the query's
    embedding beside what follows from its cluster.
    """

    kind: Literal["cascade"] = "cascade"
    max_looks: int | None = Field(default=None, ge=1)
    keep: Keep = "last"
    tokens: bool = True
    show_query: bool = True
    checker: CheckerConfig | None = None
    allow_skip: bool = False
    skip_score: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def check_settings(self) -> CascadeConfig:
        """Refuse settings that nothing would read."""
        if self.keep == "best_checked" and self.checker is None:
            raise ValueError("keep 'best_checked' needs a checker")
        if self.skip_score and not self.allow_skip:
            raise ValueError("skip_score: read with allow_skip: true only")
        return self


@dataclass(frozen=True, eq=False)
class CascadeSplit:
    """A split of the table for the world; candidates in the order of the view, checks included.

    `passed_QK` is what the check says of each answer (False without a checker).
    """

    tasks: tuple[Query, ...]
    features_QF: FloatArray
    cluster_Q: IntArray
    score_QK: FloatArray
    cost_usd_QK: npt.NDArray[np.float64]
    prompt_tokens_QK: FloatArray
    tokens_QK: FloatArray
    length_QK: FloatArray
    present_QK: BoolArray
    passed_QK: BoolArray


@dataclass(frozen=True, eq=False)
class CascadeTable:
    """A table made ready: the prepared table, what policies see of it, and its splits.

    `column_K` is where each candidate of the view stands in the prepared table.
    """

    prepared: PreparedTable
    view: CascadeView
    column_K: IntArray
    executors: tuple[Candidate, ...]
    executor_features_KD: FloatArray
    bound_usd_K: npt.NDArray[np.float64]
    splits: Mapping[SplitName, CascadeSplit]


@functools.lru_cache(maxsize=4)
def prepare_cascade(config: CascadeConfig) -> CascadeTable:
    """Return a table made ready for cascades.

    Raises:
        RLRouteError: the table has a fault, a candidate is called "stop", or `tokens` asks for
            lengths that the table does not hold.
    """
    prepared = prepare_queries(config)
    mean_cost_K = [get_profile(one).mean_cost_usd for one in prepared.candidates]
    column_K = np.argsort(mean_cost_K, kind="stable")
    candidates = tuple(prepared.candidates[k] for k in column_K)
    for one in candidates:
        if one.id == STOP:
            raise RLRouteError(
                f"table '{config.table}': a candidate is called '{STOP}', which is the name of "
                "what ends a cascade; rename it"
            )
    view = make_view(config, prepared, candidates, column_K)
    splits = {
        split: make_split(config, split, data, view, column_K)
        for split, data in prepared.splits.items()
    }
    cost_NK = np.concatenate([one.cost_usd_QK for one in splits.values()])
    data = prepared.splits["train"]
    return CascadeTable(
        prepared=prepared,
        view=view,
        column_K=column_K,
        executors=(Candidate(STOP, Prices(0.0, 0.0)), *candidates),
        executor_features_KD=describe_candidates(
            candidates, data.candidate_features_KD[column_K], view
        ),
        bound_usd_K=np.array([0.0, *np.nanmax(cost_NK, axis=0)]),
        splits=splits,
    )


def make_view(
    config: CascadeConfig,
    prepared: PreparedTable,
    candidates: tuple[Candidate, ...],
    column_K: IntArray,
) -> CascadeView:
    """Return what policies see, fitted on train."""
    score_CK, cost_CK = read_profiles(candidates)
    price = config.checker.price_usd if config.checker else 0.0
    reference = prepared.scale.cost_reference_usd
    tokens_K = None
    if config.tokens:
        tokens_QK = prepared.splits["train"].table.completion_tokens_QK[:, column_K]
        for k in np.flatnonzero(np.isnan(tokens_QK).all(axis=0))[:1]:
            raise RLRouteError(
                f"table '{config.table}': no completion tokens of '{candidates[k].id}' on train; "
                "leave the signal out (tokens: false)"
            )
        tokens_K = np.nanmean(tokens_QK, axis=0).astype(np.float32)
    return CascadeView(
        candidate_ids=tuple(one.id for one in candidates),
        dimension=prepared.encoder.dimension,
        show_query=config.show_query,
        centroids_CF=prepared.centroids_CF,
        score_CK=score_CK,
        charge_CK=((cost_CK + price) / reference).astype(np.float32),
        tokens_K=tokens_K,
        reference_usd=reference,
        checker=config.checker,
        keep=config.keep,
        max_looks=min(config.max_looks or len(candidates), len(candidates)),
        skip_score=config.skip_score,
    )


def make_split(
    config: CascadeConfig,
    split: SplitName,
    data: RoutingData,
    view: CascadeView,
    column_K: IntArray,
) -> CascadeSplit:
    """Return a split in the order of the view, its answers checked."""
    table = data.table
    score_QK = table.score_QK[:, column_K]
    passed_QK = np.zeros(score_QK.shape, dtype=np.bool_)
    price = 0.0
    if config.checker:
        price = config.checker.price_usd
        passed_QK = draw_checks(config.checker, config.seed, table.queries, view, score_QK)
    return CascadeSplit(
        tasks=tuple(
            replace(query, metadata={"split": split, "number": str(number)})
            for number, query in enumerate(table.queries)
        ),
        features_QF=data.features_QF,
        cluster_Q=find_clusters(data.features_QF, view.centroids_CF),
        score_QK=score_QK,
        cost_usd_QK=table.cost_usd_QK[:, column_K].astype(np.float64) + price,
        prompt_tokens_QK=table.prompt_tokens_QK[:, column_K],
        tokens_QK=table.completion_tokens_QK[:, column_K],
        length_QK=view.read_length(table.completion_tokens_QK[:, column_K]),
        present_QK=table.present_QK[:, column_K],
        passed_QK=passed_QK,
    )


def draw_checks(
    checker: CheckerConfig,
    seed: int,
    queries: Sequence[Query],
    view: CascadeView,
    score_QK: FloatArray,
) -> BoolArray:
    """Return which answers pass [Q, K], by hash of (seed, query, candidate); holes do not."""
    word_Q = np.array([int(mix("check", seed, one.id)) for one in queries], dtype=np.uint64)
    word_K = np.array([int(mix("check", one)) for one in view.candidate_ids], dtype=np.uint64)
    uniform_QK = draw_uniform(word_Q[:, None], word_K[None, :])
    rate_QK = score_QK * checker.true_positive + (1 - score_QK) * checker.false_positive
    return np.asarray(uniform_QK < rate_QK)  # NaN in a hole compares as False


def describe_candidates(
    candidates: tuple[Candidate, ...], features_KD: FloatArray, view: CascadeView
) -> FloatArray:
    """Return the executors' features [1 + K, D]; see the module's text."""
    cost_K = np.array([get_profile(one).mean_cost_usd for one in candidates])
    least = float(cost_K[cost_K > 0].min())
    ratio_K = np.log10(np.maximum([0.0, *cost_K], least / 1000) / least)
    rank_K = np.arange(len(ratio_K)) / (len(ratio_K) - 1)
    profile_KD = features_KD[:, : -2 * len(view.centroids_CF)]  # its clusters stand there once
    return np.concatenate(
        [
            np.stack([np.ones(len(ratio_K)), ratio_K, rank_K], axis=1),
            np.concatenate([np.zeros_like(profile_KD[:1]), profile_KD]),
        ],
        axis=1,
    ).astype(np.float32)
