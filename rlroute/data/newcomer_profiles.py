"""A newcomer's profile under the four switches, from its calls or from a table of its results.

The switches (`rlroute.data.route_profiles`) say how known and new candidates are described when the
profile is estimated (`rlroute.data.candidate_profiles`). They act alike wherever a profile is made:
`rlroute evaluate` on candidates that were held out, `rlroute export --add`, `Router.add_candidate`.
`text` quotes train queries that a candidate solved, so it needs the train table of the known ones:
a router, which keeps none, refuses it.

What it leaves out: which queries are asked (`rlroute.data.profile_calls`).

How to use: `profile_from_results(candidate, known, centroids_CF, results, encode)`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rlroute.data.candidate_profiles import ProfileCalls, estimate_profile, fit_prior
from rlroute.data.profile_calls import choose_queries, find_column, gather_calls
from rlroute.data.route_profiles import (
    ProfileSwitches,
    draw_random_vectors,
    propagate,
    scale_min_max,
)
from rlroute.data.routing_data import assign_clusters, get_profile
from rlroute.data.table import OutcomeTable
from rlroute.types import Candidate, FloatArray, Profile, RLRouteError

Encode = Callable[[Sequence[str]], FloatArray]
DEFAULT_SWITCHES = ProfileSwitches()
SAMPLED_TEXTS = 32  # queries that a text representation quotes per candidate


def estimate_newcomer(
    candidate: Candidate,
    known: Sequence[Candidate],
    calls: ProfileCalls | None,
    switches: ProfileSwitches,
    centroids_CF: FloatArray,
    seed: int,
    texts_KF: npt.ArrayLike | None = None,
) -> Profile:
    """Return the profile that description and calls give a new candidate.

    `texts_KF` embeds the texts of the known candidates and, last, of the new one, for `text`.

    Raises:
        RLRouteError: too little is known of the others, or the switches say nothing about them.
    """
    extra_KE, extra_E = describe_further(
        candidate, known, calls, switches, centroids_CF, seed, texts_KF
    )
    factor_seed = seed if switches.learning == "trained" else None
    return estimate_profile(candidate, fit_prior(known, extra_KE, factor_seed), calls, extra_E)


def describe_further(
    candidate: Candidate,
    known: Sequence[Candidate],
    calls: ProfileCalls | None,
    switches: ProfileSwitches,
    centroids_CF: FloatArray,
    seed: int,
    texts_KF: npt.ArrayLike | None,
) -> tuple[FloatArray | None, Any]:
    """Return what the switches add to the descriptions of the known [K, E] and of the new one [E].

    Raises:
        RLRouteError: a representation by texts where there are none.
    """
    if switches.representation == "prices":
        return None, ()
    if switches.representation == "random":
        drawn = draw_random_vectors([*(one.id for one in known), candidate.id], seed)
        return drawn[:-1].astype(np.float32), drawn[-1]
    # the new one's own vector: what the calls say by prices alone
    plain = estimate_profile(candidate, fit_prior(known), calls)
    score_KC = np.array([get_profile(one).score_C for one in known] + [plain.score_C])
    vector_KE: Any = score_KC
    cluster_CE: Any = np.eye(score_KC.shape[1])
    if switches.representation == "text":
        if texts_KF is None:
            raise RLRouteError(
                "representation 'text' quotes train queries, which a router does not keep; use "
                "'embedding', or rlroute export --add"
            )
        vector_KE, cluster_CE = np.asarray(texts_KF), centroids_CF
    if switches.form == "graph":
        vector_KE = propagate(vector_KE, cluster_CE, scale_min_max(score_KC), switches.hops)
    return vector_KE[:-1].astype(np.float32), vector_KE[-1]


def quote_solved(
    table: OutcomeTable, candidate_id: str, rows_N: npt.ArrayLike, seed: int
) -> list[str]:
    """Return the texts of some of the queries at `rows_N` that a candidate solved."""
    asked_N = np.asarray(rows_N, dtype=np.int64)
    score_N = table.score_QK[asked_N, find_column(table, candidate_id)]
    solved_N = asked_N[np.nan_to_num(score_N) > 0.5]
    rows = solved_N[choose_queries("random", SAMPLED_TEXTS, solved_N, seed)]
    return [table.queries[row].text for row in rows.tolist()]


def embed_descriptions(
    candidates: Sequence[Candidate], quotes: Sequence[Sequence[str]], encode: Encode, width: int
) -> FloatArray:
    """Return the embedded descriptions and quotes of candidates [K, width]; no word gives zeros."""
    texts = [
        "\n".join([one.description, *quoted]).strip()
        for one, quoted in zip(candidates, quotes, strict=True)
    ]
    filled = [place for place, text in enumerate(texts) if text]
    vector_KF = np.zeros((len(texts), width), dtype=np.float32)
    if filled:
        vector_KF[filled] = encode([texts[place] for place in filled])
    return vector_KF


def profile_from_results(
    candidate: Candidate,
    known: Sequence[Candidate],
    centroids_CF: FloatArray,
    results: OutcomeTable | None,
    encode: Encode,
    switches: ProfileSwitches = DEFAULT_SWITCHES,
    seed: int = 0,
    train: OutcomeTable | None = None,
) -> Candidate:
    """Return an unseen candidate with the profile that its results on queries of any kind give it.

    `results` holds its outcomes (split `train` is read, nothing else), None where it was never
    tried. `encode` embeds queries as those behind the centroids [C, F] were. `train` holds the
    outcomes of the known ones, for texts.

    Raises:
        RLRouteError: no outcome of it in the train split, none with a latency where the known ones
            have latencies per cluster, or too little is known of the others.
    """
    known = [one for one in known if one.members is None and not one.unseen]
    calls, quoted = None, list[str]()
    if results is not None:
        if "train" not in results.split_Q:
            raise RLRouteError(
                f"table '{results.name}': no query is of split 'train', and a profile is measured "
                "on nothing else"
            )
        own = results.select_split("train")
        column = find_column(own, candidate.id)
        held_Q = own.present_QK[:, column]
        if all(get_profile(one).latency_seconds_C is not None for one in known):
            # where latency counts an untimed call is a hole, as in training
            held_Q = held_Q & np.isfinite(own.latency_seconds_QK[:, column])
            if not held_Q.any():
                raise RLRouteError(
                    f"table '{results.name}': no train result of candidate '{candidate.id}' has "
                    "latency_seconds, and this policy weighs latency"
                )
        held_N = np.flatnonzero(held_Q)
        asked = own.select_queries(held_N)
        cluster_N = assign_clusters(encode(list(asked.texts)), centroids_CF)
        calls = gather_calls(asked, cluster_N, candidate.id, np.arange(len(held_N)))
        quoted = quote_solved(asked, candidate.id, np.arange(len(held_N)), seed)
    texts_KF = None
    if switches.representation == "text" and train is not None:
        everything = np.arange(len(train.queries))
        quotes = [quote_solved(train, one.id, everything, seed) for one in known]
        width = centroids_CF.shape[1]
        texts_KF = embed_descriptions([*known, candidate], [*quotes, quoted], encode, width)
    profile = estimate_newcomer(candidate, known, calls, switches, centroids_CF, seed, texts_KF)
    return dataclasses.replace(candidate, profile=profile, unseen=True)
