"""Unseen candidates borrow a description: who lends, what is borrowed, and what stays their own."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from rlroute import Router
from rlroute.data.lenders import Lenders
from rlroute.data.routing_data import (
    FeatureScale,
    RoutingData,
    build_candidate_features,
    standardise_candidate,
)
from rlroute.data.table import OutcomeTable
from rlroute.export.bundle import BundleContents
from rlroute.policies.lending import lend_descriptions
from rlroute.types import Candidate, FloatArray, Member, Query

TEXTS = ["how many birds are there", "name three rivers", "list verbs", "are sums old"]


@dataclass(frozen=True)
class Picks:
    """Picks a column at each cost weight."""

    by_weight: dict[float, int]
    name: str = "picks"

    def compute_probabilities(self, data: RoutingData, cost_weight: float) -> FloatArray:
        assert data.table.present_QK.all()  # a pair that was not tried may be picked
        found_QK = np.zeros(data.table.present_QK.shape, np.float32)
        found_QK[:, self.by_weight[cost_weight]] = 1
        return found_QK


def make_val(contents: BundleContents, candidates: tuple[Candidate, ...]) -> RoutingData:
    shape = (3, len(candidates))
    present_QK = np.zeros(shape, np.bool_)
    present_QK[:, 0] = True
    nothing_QK = np.full(shape, np.nan, np.float32)
    table = OutcomeTable(
        name="val",
        queries=tuple(Query(str(q), TEXTS[q]) for q in range(3)),
        candidates=candidates,
        score_QK=np.where(present_QK, 0.5, np.nan).astype(np.float32),
        cost_usd_QK=np.where(present_QK, 0.1, np.nan).astype(np.float32),
        present_QK=present_QK,
        prompt_tokens_QK=nothing_QK,
        completion_tokens_QK=nothing_QK,
        latency_seconds_QK=nothing_QK,
        split_Q=np.array(["val"] * 3),
    )
    features_KD = build_candidate_features(candidates, contents.scale)
    return RoutingData(table, np.zeros((3, 16), np.float32), features_KD, 1.0)


def test_those_who_are_picked_lend_by_their_share(router_contents: BundleContents) -> None:
    candidates, scale = router_contents.candidates, router_contents.scale
    picks = Picks({0.0: 1, 0.1: 2, 0.2: 2, 0.3: 2})
    val = make_val(router_contents, candidates)
    found = lend_descriptions([picks], val, [0.0, 0.1, 0.2, 0.3], candidates, scale).lenders
    assert found is not None
    assert found.share_L.tolist() == [0.25, 0.75]
    for row, one in enumerate(candidates[1:3]):
        assert one.profile is not None
        expected_D = standardise_candidate(one, scale)
        np.testing.assert_array_equal(found.described_LD[row], expected_D)
        np.testing.assert_array_equal(found.score_LC[row], one.profile.score_C)


def test_an_action_that_asks_several_does_not_lend(router_contents: BundleContents) -> None:
    both = (Member("model-0", "model-0"), Member("model-1", "model-1"))
    one, two, three, four = router_contents.candidates
    candidates = (one, two, replace(three, kind="subset", members=both), four)
    val, scale = make_val(router_contents, candidates), router_contents.scale
    found = lend_descriptions([Picks({0.0: 2, 0.1: 3})], val, [0.0, 0.1], candidates, scale)
    assert found.lenders is not None
    assert found.lenders.share_L.tolist() == [0.5]
    assert lend_descriptions([Picks({0.0: 2})], val, [0.0], candidates, scale).lenders is None


def test_a_lender_counts_by_its_share_and_by_its_likeness() -> None:
    lenders = Lenders(
        share_L=np.array([0.6, 0.3], np.float32),
        described_LD=np.array([[1.0, 0.0], [0.0, 1.0]], np.float32),
        score_LC=np.array([[0.5, 0.5], [0.7, 0.5]], np.float32),
    )
    # as like the one as the other: the shares alone; at 0.1 root mean square, e times less
    assert lenders.describe(np.float32([0.6, 0.9])) == pytest.approx([2 / 3, 1 / 3], rel=1e-5)
    far = 0.3 * np.exp(-(0.2**2 / 2) / 0.1**2)
    assert lenders.describe(np.float32([0.5, 0.5])) == pytest.approx(
        [0.6 / (0.6 + far), far / (0.6 + far)], rel=1e-5
    )
    unlike = replace(lenders, score_LC=lenders.score_LC * np.float32(1e4))
    assert np.isfinite(unlike.describe(np.float32([0.0, 0.0]))).all()


def lend(contents: BundleContents, lender: Candidate) -> FeatureScale:
    """Return the scale of a router of which one candidate lends."""
    assert lender.profile is not None
    lenders = Lenders(
        share_L=np.ones(1, np.float32),
        described_LD=standardise_candidate(lender, contents.scale)[None],
        score_LC=lender.profile.score_C[None],
    )
    return replace(contents.scale, lenders=lenders)


def test_prices_and_deviations_are_borrowed_and_what_was_measured_is_its_own(
    router_contents: BundleContents,
) -> None:
    new, lender = router_contents.candidates[0], router_contents.candidates[2]
    scale = router_contents.scale
    lent_D = standardise_candidate(lender, scale)
    lending = lend(router_contents, lender)
    own_D, plain_D = build_candidate_features([replace(new, unseen=True), new], lending)
    as_ever_D = build_candidate_features([new], scale)[0]
    np.testing.assert_array_equal(plain_D, as_ever_D)  # one that was trained with is as ever
    np.testing.assert_array_equal(own_D[2 : 2 + len(lent_D)], lent_D)
    np.testing.assert_array_equal(own_D[:2], as_ever_D[:2])
    np.testing.assert_array_equal(own_D[2 + len(lent_D) :], as_ever_D[2 + len(lent_D) :])
    older_D = build_candidate_features([replace(new, unseen=True)], scale)[0]
    np.testing.assert_array_equal(older_D, as_ever_D)  # nobody lends


def test_a_newcomer_better_by_a_tenth_everywhere_looks_better_by_a_tenth_on_every_query(
    router_contents: BundleContents,
) -> None:
    lender = router_contents.candidates[2]
    assert lender.profile is not None
    better = replace(lender.profile, score_C=lender.profile.score_C + np.float32(0.1))
    dear = replace(lender.prices, input=lender.prices.input * 3)
    new = replace(lender, id="new", profile=better, prices=dear, unseen=True)
    lending = lend(router_contents, lender)
    everybody = [*router_contents.candidates, new]
    router = Router(replace(router_contents, scale=lending)).with_candidates(everybody)
    older = Router(router_contents).with_candidates(everybody)
    gains, before = [], []
    for text in TEXTS:
        quality = router.route(text, cost_weight=0.0).estimated_quality
        gains.append(quality["new"] - quality["model-2"])
        quality = older.route(text, cost_weight=0.0).estimated_quality
        before.append(quality["new"] - quality["model-2"])
    assert gains == pytest.approx([0.1] * len(TEXTS), abs=1e-5)
    assert before != pytest.approx([0.1] * len(TEXTS), abs=1e-2)
