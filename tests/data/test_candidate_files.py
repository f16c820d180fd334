"""Candidates and feature scales as JSON: exact round trips, strict reading."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlroute.data.candidate_files import (
    check_profiles,
    dump_candidates,
    dump_scale,
    parse_candidates,
    parse_scale,
)
from rlroute.data.lenders import Lenders
from rlroute.data.routing_data import FeatureScale, fit_feature_scale
from rlroute.types import Candidate, Limits, Member, Prices, Profile, RLRouteError

money = st.floats(0, 1e6)
score = st.floats(0, 1)
tokens = st.none() | st.integers(1, 10**9)
ONE_COLUMN = {"cost_reference_usd": 1, "offset": [1.0], "scale": [1.0]}


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    clusters = draw(st.integers(0, 4))
    score_32, money_32 = st.floats(0, 1, width=32), st.floats(0, 2.0**20, width=32)
    return Profile(
        draw(score),
        draw(money),
        np.array(draw(st.lists(score_32, min_size=clusters, max_size=clusters)), np.float32),
        np.array(draw(st.lists(money_32, min_size=clusters, max_size=clusters)), np.float32),
        draw(st.none() | money),
    )


candidates = st.builds(
    Candidate,
    id=st.text(min_size=1),
    prices=st.builds(Prices, money, money, money),
    kind=st.sampled_from(["model", "tool", "tier"]),
    description=st.text(),
    limits=st.builds(Limits, tokens, tokens),
    profile=st.none() | profiles(),
    members=st.none()
    | st.lists(
        st.builds(Member, st.text(min_size=1), st.text(min_size=1), st.none() | st.text()),
        max_size=3,
    ).map(tuple),
)


def make_candidate() -> Candidate:
    profile = Profile(
        0.5, 1e-4, np.array([0.1, 0.7], np.float32), np.array([1e-4, 3e-4], np.float32)
    )
    return Candidate("small", Prices(0.1, 0.4), profile=profile)


def describe(candidate: Candidate) -> tuple[Any, ...]:
    """Return everything of a candidate as values that compare exactly."""
    profile = candidate.profile
    arrays = profile and (
        profile.mean_score,
        profile.mean_cost_usd,
        profile.score_C.dtype,
        profile.score_C.tobytes(),
        profile.cost_usd_C.dtype,
        profile.cost_usd_C.tobytes(),
        profile.latency_seconds,
    )
    return (
        candidate.id,
        candidate.kind,
        candidate.description,
        candidate.prices,
        candidate.limits,
        arrays,
        candidate.members,
    )


@given(st.lists(candidates, min_size=1, max_size=4, unique_by=lambda candidate: candidate.id))
def test_candidates_read_back_from_json_exactly(items: list[Candidate]) -> None:
    back = parse_candidates(json.loads(json.dumps(dump_candidates(items))), "file")
    assert [describe(one) for one in back] == [describe(one) for one in items]


@given(
    st.floats(1e-12, 1e6),
    st.lists(
        st.tuples(
            st.floats(-(2.0**20), 2.0**20, width=32),
            st.floats(2.0**-20, 2.0**20, width=32),
        ),
        max_size=5,
    ),
)
def test_a_feature_scale_reads_back_from_json_exactly(
    reference: float, columns: list[tuple[float, float]]
) -> None:
    offset_D = np.array([offset for offset, _ in columns], np.float32)
    scale_D = np.array([scale for _, scale in columns], np.float32)
    lenders = Lenders(
        share_L=np.array([0.7, 0.1], np.float32),
        described_LD=np.stack([offset_D, scale_D]),
        score_LC=np.array([[0.3, 0.9], [0.1, 0.2]], np.float32),
    )
    scale = FeatureScale(reference, offset_D, scale_D, lenders=lenders)
    back = parse_scale(json.loads(json.dumps(dump_scale(scale))), "file")
    assert back.cost_reference_usd == reference
    assert back.offset_D.tobytes() == offset_D.tobytes()
    assert back.scale_D.tobytes() == scale_D.tobytes()
    assert back.lenders is not None
    for name in ("share_L", "described_LD", "score_LC"):
        assert getattr(back.lenders, name).tobytes() == getattr(lenders, name).tobytes()
    assert "lenders" not in dump_scale(FeatureScale(reference, offset_D, scale_D))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("price",), 1, "unknown key 'candidates.0.price'"),
        (("prices", "input"), None, "candidates.0.prices.input"),
        (("prices", "output"), -1, "candidates.0.prices.output"),
        (("prices", "per_call"), float("nan"), "candidates.0.prices.per_call"),
        (("kind",), "person", "candidates.0.kind"),
        (("kind",), "subset", "'small' is a subset without members"),
        (("kind",), "skip", "'small' is a skip: members must be an empty list"),
        (("members",), [{"model": "m"}], "candidates.0.members.0.candidate_id"),
        (("id",), "", "candidates.0.id"),
        (("limits", "context_tokens"), 0, "candidates.0.limits.context_tokens"),
        (("profile", "mean_score"), 1.5, "candidates.0.profile.mean_score"),
        (("profile", "score"), [0.5], "1 scores but 2 costs"),
    ],
)
def test_a_fault_is_refused_in_one_line_that_names_file_and_key(
    path: tuple[str, ...], value: Any, said: str
) -> None:
    data = copy.deepcopy(dump_candidates([make_candidate()]))
    node = data[0]
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    with pytest.raises(RLRouteError) as caught:
        parse_candidates(data, "router/manifest.json")
    message = str(caught.value)
    assert message.startswith("router/manifest.json: ")
    assert said in message
    assert "\n" not in message


def test_a_missing_price_is_an_error_and_not_zero() -> None:
    data = dump_candidates([make_candidate()])
    del data[0]["prices"]["per_call"]
    with pytest.raises(RLRouteError, match="per_call"):
        parse_candidates(data, "file")


@pytest.mark.parametrize("data", [[], None, {}, "small"])
def test_what_is_no_list_of_candidates_is_refused(data: Any) -> None:
    with pytest.raises(RLRouteError, match=r"file: candidates"):
        parse_candidates(data, "file")


def test_an_id_that_stands_twice_is_refused() -> None:
    with pytest.raises(RLRouteError, match="'small' is listed twice"):
        parse_candidates(dump_candidates([make_candidate(), make_candidate()]), "file")


@pytest.mark.parametrize(
    "data",
    [
        {"cost_reference_usd": 0, "offset": [], "scale": []},
        {"cost_reference_usd": 1, "offset": [1.0], "scale": []},
        {"cost_reference_usd": 1, "offset": [1.0], "scale": [0.0]},
        {**ONE_COLUMN, "lenders": []},
        {**ONE_COLUMN, "lenders": [{"share": 0.0, "described": [1.0], "score": [0.5]}]},
        {**ONE_COLUMN, "lenders": [{"share": 0.5, "described": [1.0, 2.0], "score": [0.5]}]},
        {
            **ONE_COLUMN,
            "lenders": [
                {"share": 0.5, "described": [1.0], "score": [0.5]},
                {"share": 0.5, "described": [1.0], "score": [0.5, 0.5]},
            ],
        },
        {"cost_reference_usd": 1, "offset": [float("inf")], "scale": [1.0]},
        {"cost_reference_usd": 1, "offset": []},
        [],
    ],
)
def test_what_is_no_feature_scale_is_refused(data: Any) -> None:
    with pytest.raises(RLRouteError, match=r"^file: "):
        parse_scale(data, "file")


def test_a_profile_of_another_number_of_clusters_is_named() -> None:
    scale = fit_feature_scale([make_candidate()])
    profile = Profile(0.5, 1e-4, np.array([0.1], np.float32), np.array([1e-4], np.float32))
    with pytest.raises(RLRouteError, match=r"'odd' gives 7 features, not 9"):
        check_profiles([Candidate("odd", Prices(1, 1), profile=profile)], scale, "file")
    with pytest.raises(RLRouteError, match="file: candidate 'bare' has no measured profile"):
        check_profiles([Candidate("bare", Prices(1, 1))], scale, "file")
