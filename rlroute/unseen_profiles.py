"""Profiles of the candidates that a run held out, from n calls on train queries.

What it leaves out: estimating a profile (`rlroute.data.newcomer_profiles`), which queries are asked
(`rlroute.data.profile_calls`), and what the policy does with them (`rlroute.unseen_candidates`).

How to use: `profile_candidate(run, open_whole_table(run), "new-model", 200, UnseenConfig(), seed)`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from rlroute.data.candidate_profiles import ProfileCalls
from rlroute.data.newcomer_profiles import embed_descriptions, estimate_newcomer, quote_solved
from rlroute.data.prepare import encode_texts
from rlroute.data.profile_calls import choose_queries, gather_calls
from rlroute.data.routing_data import assign_clusters, find_split, measure_profiles
from rlroute.data.table import OutcomeTable
from rlroute.policies.table_baselines_item_response import (
    ItemResponse,
    compute_information,
    compute_success,
    estimate_ability,
)
from rlroute.trainers.recipe import UnseenConfig
from rlroute.trainers.run_folder import Run, open_table
from rlroute.types import Candidate, FloatArray, IntArray, Profile

ALL_CALLS = "all"


@dataclass(frozen=True, eq=False)
class WholeTable:
    """The table of a run with the candidates that were held out, embedded by the run's encoder."""

    table: OutcomeTable
    features_QF: FloatArray
    train_cluster_Q: IntArray

    @property
    def train(self) -> OutcomeTable:
        """The train split."""
        return self.table.select_split("train")

    @property
    def train_features_QF(self) -> FloatArray:
        """The embeddings of the train split."""
        return self.features_QF[find_split(self.table, "train")]


def open_whole_table(run: Run) -> WholeTable:
    """Read the table of a run as it would be had nobody been held out."""
    table = open_table(run.recipe.model_copy(update={"hold_out_candidates": ()})).table
    table = table.group_splits()
    features_QF = encode_texts(run.prepared.encoder, table.texts)
    train_QF = features_QF[find_split(table, "train")]
    return WholeTable(table, features_QF, assign_clusters(train_QF, run.prepared.centroids_CF))


def profile_candidate(
    run: Run,
    whole: WholeTable,
    candidate_id: str,
    number: int | str,
    config: UnseenConfig,
    seed: int,
) -> tuple[Candidate, ProfileCalls]:
    """Return a held-out candidate with a profile from so many calls, and the calls."""
    train = whole.train
    ids = [candidate.id for candidate in train.candidates]
    column = ids.index(candidate_id)
    held_Q = np.flatnonzero(train.present_QK[:, column])
    if number == ALL_CALLS:
        alone = train.select_candidates([candidate_id])
        calls = gather_calls(train, whole.train_cluster_Q, candidate_id, held_Q)
        measured = measure_profiles(
            alone,
            whole.train_features_QF[held_Q],
            run.prepared.centroids_CF,
            latency=run.recipe.weighs_latency,
        )
        return replace(measured[0], unseen=True), calls
    response = None
    if config.design == "information" and number:
        response = ItemResponse(run.prepared.splits["train"], run.prepared.splits["val"])
    rows_N = held_Q[choose_rows(whole, held_Q, int(number), config, seed, response)]
    calls = gather_calls(train, whole.train_cluster_Q, candidate_id, rows_N)
    candidate = train.candidates[column]
    known, centroids_CF = run.prepared.candidates, run.prepared.centroids_CF
    texts_KF = None
    if config.representation == "text":
        texts_KF = embed_texts(run, train, candidate, rows_N)
    profile = estimate_newcomer(candidate, known, calls, config, centroids_CF, seed, texts_KF)
    if response is not None:
        profile = follow_ability(profile, response, whole, rows_N, calls)
    return replace(candidate, profile=profile, unseen=True), calls


def choose_rows(
    whole: WholeTable,
    held_Q: IntArray,
    number: int,
    config: UnseenConfig,
    seed: int,
    response: ItemResponse | None,
) -> IntArray:
    """Return which of the queries that the candidate has outcomes for are asked."""
    group_Q: Any = whole.train_cluster_Q[held_Q]
    if config.design == "aptitude":
        queries = whole.train.queries
        group_Q = np.array([queries[row].task for row in held_Q.tolist()])
    information_Q = None
    if response is not None:
        slope_Q, difficulty_Q, ability_K = response.describe(whole.train_features_QF[held_Q])
        # what the calls tell if the new one is as able as the known ones are on average
        information_Q = compute_information(slope_Q, difficulty_Q, [ability_K.mean()])[:, 0]
    design = "stratified" if config.design == "information" and not number else config.design
    return choose_queries(design, number, group_Q, seed, information_Q)


def follow_ability(
    profile: Profile,
    response: ItemResponse,
    whole: WholeTable,
    rows_N: IntArray,
    calls: ProfileCalls,
) -> Profile:
    """Return the profile with the scores that an ability estimated from the calls stands for."""
    slope_Q, difficulty_Q, ability_K = response.describe(whole.train_features_QF)
    ability = estimate_ability(
        slope_Q[rows_N],
        difficulty_Q[rows_N],
        calls.score_N,
        float(ability_K.mean()),
        float(ability_K.std()),
    )
    success_Q = compute_success(slope_Q, difficulty_Q, [ability])[:, 0]
    count_C = np.bincount(whole.train_cluster_Q, minlength=len(profile.score_C))
    total_C = np.bincount(whole.train_cluster_Q, weights=success_Q, minlength=len(count_C))
    score_C = np.where(count_C > 0, total_C / np.maximum(count_C, 1), success_Q.mean())
    return replace(profile, mean_score=float(success_Q.mean()), score_C=score_C.astype(np.float32))


def embed_texts(
    run: Run, train: OutcomeTable, candidate: Candidate, rows_N: IntArray
) -> FloatArray:
    """Return the embedded descriptions and solved queries of the known and the new one [K + 1, F].

    The new one's are among those that it was asked, at `rows_N`.
    """
    known, everything = run.prepared.candidates, np.arange(len(train.queries))
    quotes = [quote_solved(train, one.id, everything, run.recipe.seed) for one in known]
    quotes.append(quote_solved(train, candidate.id, rows_N, run.recipe.seed))
    encoder = run.prepared.encoder
    encode = partial(encode_texts, encoder)
    return embed_descriptions([*known, candidate], quotes, encode, encoder.dimension)
