"""A router that gets a candidate more, and other prices, without training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rlroute import Router
from rlroute.data.table import OutcomeTable
from rlroute.export.bundle import BundleContents
from rlroute.policies.mlp import CandidateScorer
from rlroute.types import Candidate, Prices, Query, RLRouteError, TokenProfile

TEXTS = ["how many birds are there", "name three rivers", "list verbs", "are sums old"]


@pytest.fixture(scope="module")
def contents(router_contents: BundleContents) -> BundleContents:
    """The router of the tests with tokens that explain its costs."""
    candidates = []
    for one in router_contents.candidates:
        assert one.profile is not None
        mean = one.profile.mean_cost_usd * 1e6 / (one.prices.input + one.prices.output)
        part_C = one.profile.cost_usd_C / one.profile.mean_cost_usd * np.float32(mean)
        tokens = TokenProfile(mean, mean, part_C, part_C)
        candidates.append(replace(one, profile=replace(one.profile, tokens=tokens)))
    return replace(router_contents, candidates=tuple(candidates))


@pytest.fixture(scope="module")
def router(contents: BundleContents) -> Router:
    return Router(contents)


@pytest.fixture(scope="module")
def fresh_router(contents: BundleContents) -> Router:
    """A router that knows the profiles only."""
    return Router(replace(contents, weights=CandidateScorer(contents.scorer).state_dict()))


def make_results(score: float, cost_usd: float, queries: int = 200) -> OutcomeTable:
    shape = (queries, 1)
    tokens_QK = np.full(shape, 20, np.float32)
    return OutcomeTable(
        name="results",
        queries=tuple(Query(str(q), f"{TEXTS[q % 4]} {q}") for q in range(queries)),
        candidates=(Candidate("new", Prices(0.1, 0.4)),),
        score_QK=np.full(shape, score, np.float32),
        cost_usd_QK=np.full(shape, cost_usd, np.float32),
        present_QK=np.ones(shape, np.bool_),
        prompt_tokens_QK=tokens_QK,
        completion_tokens_QK=tokens_QK,
        latency_seconds_QK=np.full(shape, np.nan, np.float32),
        split_Q=np.array(["train"] * queries),
    )


def test_a_twin_of_a_known_candidate_gets_its_scores(router: Router) -> None:
    twin = replace(router.candidates[1], id="twin")
    both = router.with_candidates([*router.candidates, twin])
    for route in both.route_many(TEXTS, cost_weight=0.3):
        quality, cost = route.estimated_quality, route.estimated_cost_usd
        # a product rounds by where a column stands
        assert quality["twin"] == pytest.approx(quality["model-1"], abs=1e-5)
        assert cost["twin"] == pytest.approx(cost["model-1"], rel=1e-5)


def test_a_candidate_that_does_better_for_less_is_picked_and_a_bad_one_is_not(
    fresh_router: Router,
) -> None:
    good = fresh_router.add_candidate(Candidate("new", Prices(0.1, 0.4)), make_results(1.0, 1e-5))
    bad = fresh_router.add_candidate(Candidate("new", Prices(0.1, 0.4)), make_results(0.0, 1e-5))
    assert {route.candidate_id for route in good.route_many(TEXTS, cost_weight=0.1)} == {"new"}
    assert "new" not in {route.candidate_id for route in bad.route_many(TEXTS, cost_weight=0.1)}
    assert len(fresh_router.candidates) == 4  # the router itself is as it was


def test_without_results_a_candidate_is_what_its_prices_say(router: Router) -> None:
    added = router.add_candidate(Candidate("new", Prices(0.1, 0.4)))
    profile = added.candidates[-1].profile
    assert profile is not None
    assert 0 <= profile.mean_score <= 1
    dearer = router.add_candidate(Candidate("new", Prices(1.0, 4.0))).candidates[-1].profile
    assert dearer is not None
    assert dearer.mean_cost_usd == pytest.approx(10 * profile.mean_cost_usd)


def test_only_the_train_split_of_results_is_read(router: Router) -> None:
    results = make_results(1.0, 1e-5)
    split_Q = np.array(["train", "test"] * 100)
    poisoned = replace(results, split_Q=split_Q, score_QK=results.score_QK.copy())
    poisoned.score_QK[1::2] = 0
    clean = replace(results, split_Q=split_Q)
    new = Candidate("new", Prices(0.1, 0.4))
    first, second = (router.add_candidate(new, one).candidates[-1] for one in (poisoned, clean))
    assert first.profile is not None
    assert second.profile is not None
    assert first.profile.score_C.tolist() == second.profile.score_C.tolist()
    with pytest.raises(RLRouteError, match="no query is of split 'train'"):
        router.add_candidate(new, replace(results, split_Q=np.array(["test"] * 200)))


def test_a_candidate_that_is_known_or_has_no_price_is_refused(router: Router) -> None:
    with pytest.raises(RLRouteError, match="'model-1' is a candidate of this router"):
        router.add_candidate(Candidate("model-1", Prices(1, 1)))
    with pytest.raises(RLRouteError, match="input of 'new' is nan"):
        router.add_candidate(Candidate("new", Prices(float("nan"), 1)))


def test_ten_times_the_price_is_ten_times_the_cost_and_the_same_quality(router: Router) -> None:
    old = router.candidates[2].prices
    ten = Prices(old.input * 10, old.output * 10, old.per_call * 10)
    after = router.reprice({"model-2": ten})
    for before, route in zip(
        router.route_many(TEXTS, cost_weight=0.1),
        after.route_many(TEXTS, cost_weight=0.1),
        strict=True,
    ):
        assert route.estimated_quality == before.estimated_quality
        cost, was = route.estimated_cost_usd, before.estimated_cost_usd
        assert cost.pop("model-2") == pytest.approx(10 * was.pop("model-2"), rel=1e-4)
        assert cost == was
    assert after.candidates[2].prices == ten


def test_a_price_at_call_time_moves_the_picks(router: Router) -> None:
    picked = router.route(TEXTS[0], cost_weight=0.3).candidate_id
    old = next(one.prices for one in router.candidates if one.id == picked)
    dear = {picked: Prices(old.input * 1000, old.output * 1000, old.per_call * 1000)}
    route = router.route(TEXTS[0], cost_weight=0.3, prices=dear)
    assert route.candidate_id != picked
    assert route == router.reprice(dear).route(TEXTS[0], cost_weight=0.3)
    assert router.route(TEXTS[0], cost_weight=0.3).candidate_id == picked
    assert router.route(TEXTS[0], cost_weight=0.0, prices=dear).candidate_id == (
        router.route(TEXTS[0], cost_weight=0.0).candidate_id
    )


def test_prices_of_nobody_are_refused(router: Router) -> None:
    with pytest.raises(RLRouteError, match="prices: no candidate 'gpt'"):
        router.route(TEXTS[0], prices={"gpt": Prices(1, 1)})


def test_a_candidate_added_after_new_prices_leaves_them_as_they_are(router: Router) -> None:
    dear = {"model-2": Prices(100, 100)}
    new = Candidate("new", Prices(0.1, 0.4))
    first = router.reprice(dear).add_candidate(new, make_results(0.5, 1e-5))
    plain = router.add_candidate(new, make_results(0.5, 1e-5)).route(TEXTS[1], cost_weight=0.1)
    route = first.route(TEXTS[1], cost_weight=0.1)
    assert route.estimated_quality["model-2"] == plain.estimated_quality["model-2"]
    assert route.estimated_cost_usd["model-2"] > plain.estimated_cost_usd["model-2"]
