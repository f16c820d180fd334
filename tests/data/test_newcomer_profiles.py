"""A newcomer's profile from a table of results, under the switches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from rlroute.data.newcomer_profiles import (
    embed_descriptions,
    profile_from_results,
    quote_solved,
)
from rlroute.data.route_profiles import ProfileSwitches
from rlroute.data.table import OutcomeTable
from rlroute.types import Candidate, FloatArray, Member, Prices, Profile, RLRouteError, TokenProfile

CLUSTERS = 3
CENTROIDS_CF = np.eye(CLUSTERS, dtype=np.float32)
WORDS = ("seven", "river", "verse")


def encode(texts: Sequence[str]) -> FloatArray:
    """Count three words."""
    return np.array([[text.count(word) for word in WORDS] for text in texts], np.float32)


def make_known(count: int = 5) -> list[Candidate]:
    known = []
    for k in range(count):
        score_C = np.array([0.3 + 0.1 * k, 0.5, 0.8 - 0.1 * k], np.float32)
        cost = 1e-4 * (1 + k)
        hundred_C = np.full(CLUSTERS, 100, np.float32)
        profile = Profile(
            *(float(score_C.mean()), cost, score_C, np.full(CLUSTERS, cost, np.float32)),
            tokens=TokenProfile(100.0, 100.0, hundred_C, hundred_C),
        )
        known.append(Candidate(f"model{k}", Prices(0.5 + k % 2, 0.5), profile=profile))
    return known


def make_results(tiny_table: OutcomeTable) -> OutcomeTable:
    return replace(tiny_table, split_Q=np.array(["train"] * len(tiny_table.queries)))


NEW = Candidate("large", Prices(1.0, 1.0))


@pytest.mark.parametrize(
    "settings",
    [
        {"representation": "embedding"},
        {"representation": "embedding", "form": "graph", "hops": 2},
        {"representation": "random"},
        {"representation": "text"},
        {"learning": "trained"},
    ],
)
def test_every_switch_moves_the_profile(
    settings: dict[str, object], tiny_table: OutcomeTable
) -> None:
    results, known = make_results(tiny_table), make_known()
    candidates = tuple(replace(known[k], id=f"model{k}") for k in range(3))
    train = replace(tiny_table, candidates=candidates)
    found = [
        profile_from_results(
            *(NEW, known[:3] if switches.representation == "text" else known),
            *(CENTROIDS_CF, results, encode),
            switches=switches,
            train=train,
        )
        for switches in (ProfileSwitches(), ProfileSwitches.model_validate(settings))
    ]
    scores = []
    for one in found:
        assert one.unseen
        assert one.profile is not None
        scores.append([one.profile.mean_score, *one.profile.score_C.tolist()])
    assert np.abs(np.subtract(*scores)).max() > 1e-6


def test_neither_actions_nor_earlier_newcomers_tell_of_a_new_one(tiny_table: OutcomeTable) -> None:
    results, known = make_results(tiny_table), make_known()
    plain = profile_from_results(NEW, known, CENTROIDS_CF, results, encode)
    both = (Member("model0", "model0"), Member("model1", "model1"))
    more = [
        *known,
        replace(known[0], id="pair", kind="subset", members=both),
        replace(known[1], id="earlier", unseen=True),
    ]
    again = profile_from_results(NEW, more, CENTROIDS_CF, results, encode)
    assert plain.profile is not None
    assert again.profile is not None
    assert plain.profile.score_C.tolist() == again.profile.score_C.tolist()


def test_texts_are_refused_where_the_train_queries_are_not_at_hand(
    tiny_table: OutcomeTable,
) -> None:
    switches = ProfileSwitches(representation="text")
    with pytest.raises(RLRouteError, match="quotes train queries, which a router does not keep"):
        profile_from_results(
            *(NEW, make_known(), CENTROIDS_CF, make_results(tiny_table), encode), switches=switches
        )


def test_only_solved_queries_are_quoted_and_no_word_gives_zeros(tiny_table: OutcomeTable) -> None:
    rows = np.arange(len(tiny_table.queries))
    quoted = quote_solved(tiny_table, "tool", rows, seed=0)
    column = [one.id for one in tiny_table.candidates].index("tool")
    solved_Q = np.nan_to_num(tiny_table.score_QK[:, column]) > 0.5
    assert sorted(quoted) == sorted(
        query.text for query, solved in zip(tiny_table.queries, solved_Q, strict=True) if solved
    )
    described = [Candidate("a", Prices(1, 1), description="river"), Candidate("b", Prices(1, 1))]
    vector_KF = embed_descriptions(described, [["a verse"], []], encode, CLUSTERS)
    assert vector_KF.tolist() == [[0, 1, 1], [0, 0, 0]]
