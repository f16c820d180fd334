"""Routers over pairs and subsets: whom to ask, in parts, and what `allowed` leaves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rlroute import Router
from rlroute.export.bundle import BundleContents, read_bundle, write_bundle
from rlroute.export.model_card import CANDIDATES_SHOWN, render_card
from rlroute.types import Candidate, Member, RLRouteError

LOW, HIGH, PLAIN = Member("m@low", "m", "low"), Member("m@high", "m", "high"), Member("p", "p")


@pytest.fixture
def contents(router_contents: BundleContents) -> BundleContents:
    """A router over two efforts of a model, in pairs with another one, and skip."""
    one, two, three, four = router_contents.candidates
    candidates = (
        replace(one, id="m@low", kind="effort", members=(LOW,)),
        replace(two, id="m@low+m@high", kind="subset", members=(LOW, HIGH)),
        replace(three, id="m@high+p", kind="subset", members=(HIGH, PLAIN)),
        replace(four, id="skip", kind="skip", members=()),
    )
    return replace(router_contents, candidates=candidates)


def test_a_route_names_members_models_and_efforts_apart(contents):
    router = Router(contents)
    pair = router.route("list birds", allowed=["m@low"])
    assert (pair.members, pair.models, pair.efforts) == (("m@low",), ("m",), ("low",))
    assert pair.effort == "low"
    both = router.route("list birds", allowed=["m@high+p"])
    assert (both.members, both.models, both.efforts) == (
        *(("m@high", "p"), ("m", "p"), ("high", None)),
    )
    assert both.effort is None
    skip = router.route("list birds", allowed=["skip"])
    assert (skip.members, skip.models, skip.efforts, skip.effort) == ((), (), (), None)


@pytest.mark.parametrize(
    ("allowed", "left"),
    [
        (["m@low", "p"], {"m@low"}),  # both pairs ask m@high
        (["m@high", "p"], {"m@high+p"}),  # alone it is no action of this router
        (["m@low", "m@high"], {"m@low", "m@low+m@high"}),
        (["m@low", "m@high", "p", "skip"], {"m@low", "m@low+m@high", "m@high+p", "skip"}),
        (["m@high+p", "m@low"], {"m@high+p", "m@low"}),
    ],
)
def test_a_subset_with_a_member_that_is_not_allowed_is_left_out(contents, allowed, left):
    route = Router(contents).route("list birds", allowed=allowed)
    assert set(route.probabilities) == left
    assert sum(route.probabilities.values()) == pytest.approx(1)
    assert route.candidate_id in left
    assert set(route.ranking) == left


@pytest.mark.parametrize(
    ("allowed", "said"),
    [
        (["p"], "no action asks only p; name more of m@low, skip, m@high, p"),
        (["q"], r"unknown candidate 'q' \(known: m@low, skip, m@high, p\)"),
        ([["m@low"]], r"unknown candidate '\['m@low'\]'"),
    ],
)
def test_a_list_that_leaves_no_action_is_refused(contents, allowed, said):
    with pytest.raises(RLRouteError, match=said):
        Router(contents).route("list birds", allowed=allowed)


def test_members_are_kept_in_the_folder_and_plain_candidates_stay_as_they_were(
    contents, router_contents, tmp_path
):
    write_bundle(contents, tmp_path / "router")
    back = read_bundle(tmp_path / "router")
    assert [one.members for one in back.candidates] == [one.members for one in contents.candidates]
    write_bundle(router_contents, tmp_path / "plain")
    assert "members" not in (tmp_path / "plain" / "manifest.json").read_text(encoding="utf-8")


def test_the_card_of_many_actions_shows_the_first_ones(router_contents):
    first = router_contents.candidates[0]
    many: tuple[Candidate, ...] = tuple(replace(first, id=f"model-{k}") for k in range(78))
    card = render_card(replace(router_contents, candidates=many))
    assert f"{78 - CANDIDATES_SHOWN} more stand in `manifest.json`." in card
    assert "| model-39 " in card
    assert "| model-40 " not in card
