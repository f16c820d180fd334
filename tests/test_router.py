"""Routers at work: the trainer's decisions, without its libraries; masks, ranges, threads."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlroute import Router
from rlroute.data.routing_data import RoutingData, build_candidate_features
from rlroute.data.table import OutcomeTable
from rlroute.export.bundle import BundleContents, write_bundle
from rlroute.policies.decision import GreedyPolicy, score
from rlroute.policies.mlp import CandidateScorer
from rlroute.types import Query, RLRouteError

WORDS = "how many birds hills primes rivers verbs sums are there name three explain to a child list"
WEIGHTS = [0.0, 0.03, 0.1, 0.5, 1.0, 3.0, 10.0]

BLOCKED = (
    "accelerate",
    "deepspeed",
    "gymnasium",
    "jinja2",
    "matplotlib",
    "pandas",
    "pyarrow",
    "sklearn",
    "transformers",
    "trl",
    "vllm",
    "wandb",
)
SCRIPT = """
import json, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked")

BLOCKED = json.loads(sys.argv[2])
sys.meta_path.insert(0, Blocker())
from rlroute import Router

router = Router.load(sys.argv[1])
routes = [
    router.route(text, cost_weight=weight) for text, weight in json.loads(sys.stdin.read())
]
assert not set(BLOCKED) & set(sys.modules)
print(json.dumps([[route.candidate_id, route.probabilities] for route in routes]))
"""


def make_texts(count: int) -> list[str]:
    draw = random.Random(7)
    words = WORDS.split()
    return [" ".join(draw.choices(words, k=draw.randint(2, 12))) for _ in range(count)]


@pytest.fixture(scope="module")
def folder(router_contents: BundleContents, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "router"
    write_bundle(router_contents, path)
    return path


@pytest.fixture(scope="module")
def router(folder: Path) -> Router:
    return Router.load(folder)


def make_data(contents: BundleContents, texts: list[str]) -> RoutingData:
    """Return queries as the trainer's policy sees them; their outcomes play no part."""
    zero_QK = np.zeros((len(texts), len(contents.candidates)), np.float32)
    table = OutcomeTable(
        name="birds",
        queries=tuple(Query(str(q), text) for q, text in enumerate(texts)),
        candidates=contents.candidates,
        score_QK=zero_QK,
        cost_usd_QK=zero_QK,
        present_QK=np.ones(zero_QK.shape, np.bool_),
        prompt_tokens_QK=zero_QK,
        completion_tokens_QK=zero_QK,
        latency_seconds_QK=zero_QK,
        split_Q=np.array(["test"] * len(texts)),
    )
    return RoutingData(
        table=table,
        features_QF=contents.encoder.encode(texts),
        candidate_features_KD=build_candidate_features(contents.candidates, contents.scale),
        cost_reference_usd=contents.scale.cost_reference_usd,
    )


def make_scorer(contents: BundleContents) -> CandidateScorer:
    scorer = CandidateScorer(contents.scorer)
    scorer.load_state_dict(dict(contents.weights))
    return scorer


# --- Decisions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", WEIGHTS)
def test_the_router_decides_as_the_trained_policy(
    router_contents: BundleContents, router: Router, weight: float
) -> None:
    texts = make_texts(300)
    data = make_data(router_contents, texts)
    policy = GreedyPolicy(make_scorer(router_contents))
    pick_Q = policy.compute_probabilities(data, weight).argmax(axis=1)
    routes = router.route_many(texts, cost_weight=weight)
    ids = [candidate.id for candidate in router_contents.candidates]
    assert [route.candidate_id for route in routes] == [ids[pick] for pick in pick_Q]


def test_the_decisions_of_this_test_differ_from_query_to_query(router: Router) -> None:
    for weight in WEIGHTS[:4]:
        routes = router.route_many(make_texts(300), cost_weight=weight)
        assert len({route.candidate_id for route in routes}) >= 3


def test_probabilities_and_estimates_are_those_of_the_network(
    router_contents: BundleContents, router: Router
) -> None:
    texts = make_texts(40)
    data = make_data(router_contents, texts)
    scores = score(
        make_scorer(router_contents),
        data.features_QF,
        data.candidate_features_KD,
        data.table.present_QK,
        np.full(len(texts), 0.5, np.float32),
        served=True,
    )
    for q, route in enumerate(router.route_many(texts, cost_weight=0.5)):
        ids = list(route.probabilities)
        assert ids == [candidate.id for candidate in router.candidates]
        probability_K = scores.logp_BK[q].exp().tolist()
        cost_K = scores.cost_BK[q] * router_contents.scale.cost_reference_usd
        assert list(route.probabilities.values()) == pytest.approx(probability_K, abs=1e-6)
        assert list(route.estimated_quality.values()) == pytest.approx(
            scores.quality_BK[q].tolist(), abs=1e-5
        )
        assert list(route.estimated_cost_usd.values()) == pytest.approx(cost_K.tolist(), rel=1e-5)
        assert sum(route.probabilities.values()) == pytest.approx(1)
        assert route.ranking[0] == route.candidate_id
        assert route.ranking == tuple(sorted(ids, key=lambda name: -route.probabilities[name]))


def test_all_ways_to_route_agree_exactly(router_contents: BundleContents, router: Router) -> None:
    texts = make_texts(50)
    together = router.route_many(texts, cost_weight=0.3)
    assert [router.route(text, cost_weight=0.3) for text in texts] == together
    assert router.route_many(texts[::-1], cost_weight=0.3)[::-1] == together
    features_QF = router_contents.encoder.encode(texts)
    assert [router.route_features(row_F, cost_weight=0.3) for row_F in features_QF] == together
    assert router.route_many([]) == []


def test_a_text_of_unknown_words_gets_a_route(router: Router) -> None:
    assert sum(router.route("zzz qqq 我们").probabilities.values()) == pytest.approx(1)


def test_a_tie_goes_to_the_candidate_that_comes_first(router_contents: BundleContents) -> None:
    weights = CandidateScorer(router_contents.scorer).state_dict()  # exactly equal scores
    router = Router(replace(router_contents, weights=weights))
    twin = replace(router_contents.candidates[2], id="another")
    ids = [twin.id, router_contents.candidates[2].id]
    route = router.with_candidates([twin, router_contents.candidates[2]]).route("list birds")
    assert list(route.ranking) == ids


def test_threads_share_a_router(router: Router) -> None:
    jobs = [(text, weight) for text in make_texts(60) for weight in WEIGHTS]
    expected = [router.route(text, cost_weight=weight) for text, weight in jobs]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda job: router.route(job[0], cost_weight=job[1]), jobs))
    assert found == expected


def test_a_process_without_training_libraries_decides_the_same(
    router: Router, folder: Path
) -> None:
    jobs = [(text, weight) for text in make_texts(20) for weight in WEIGHTS]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), json.dumps(BLOCKED)],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for (text, weight), (candidate_id, probabilities) in zip(
        jobs, json.loads(done.stdout), strict=True
    ):
        route = router.route(text, cost_weight=weight)
        assert route.candidate_id == candidate_id
        assert route.probabilities == pytest.approx(probabilities, abs=1e-6)


# --- Candidates that may be chosen ----------------------------------------------------------------


def test_only_allowed_candidates_are_chosen_and_ranked(router: Router) -> None:
    allowed = {"model-1", "model-3"}
    for text in make_texts(60):
        free = router.route(text, cost_weight=0.1)
        route = router.route(text, cost_weight=0.1, allowed=allowed)
        assert set(route.ranking) == set(route.probabilities) == allowed
        assert route.ranking == tuple(name for name in free.ranking if name in allowed)
        assert sum(route.probabilities.values()) == pytest.approx(1)
    assert router.route("list birds", allowed=["model-2"]).probabilities == {"model-2": 1.0}


def test_candidates_are_removed_without_training(
    router_contents: BundleContents, router: Router
) -> None:
    kept = router_contents.candidates[1:3]
    smaller = router.with_candidates(kept)
    for text in make_texts(30):
        route = smaller.route(text, cost_weight=0.2)
        masked = router.route(text, cost_weight=0.2, allowed=[one.id for one in kept])
        assert route.ranking == masked.ranking
        assert route.probabilities == pytest.approx(masked.probabilities, abs=1e-5)
    assert len(router.candidates) == 4
    assert len(router.route("list birds").ranking) == 4


def test_a_dearer_candidate_is_left_without_training(router_contents: BundleContents) -> None:
    # The first weights know the profiles only: quality - 0.1 x cost decides.
    weights = CandidateScorer(router_contents.scorer).state_dict()
    router = Router(replace(router_contents, weights=weights))
    chosen = router.route("list birds", cost_weight=0.1).candidate_id
    candidate = next(item for item in router_contents.candidates if item.id == chosen)
    profile, factor = candidate.profile, 1000.0
    assert profile is not None
    dear = replace(
        candidate,
        prices=replace(candidate.prices, output=candidate.prices.output * factor),
        profile=replace(
            profile,
            mean_cost_usd=profile.mean_cost_usd * factor,
            cost_usd_C=profile.cost_usd_C * np.float32(factor),
        ),
    )
    others = [item for item in router_contents.candidates if item.id != chosen]
    repriced = router.with_candidates([*others, dear])
    assert repriced.route("list birds", cost_weight=0.1).candidate_id != chosen
    before, after = (one.route("list birds", cost_weight=0.0) for one in (router, repriced))
    assert before.candidate_id == after.candidate_id


def test_candidates_that_cannot_be_described_are_refused(
    router_contents: BundleContents, router: Router
) -> None:
    first = router_contents.candidates[0]
    assert first.profile is not None
    short = replace(
        first.profile, score_C=first.profile.score_C[:1], cost_usd_C=first.profile.cost_usd_C[:1]
    )
    for candidates, said in [
        ([], "with_candidates: candidates"),
        ([first, first], "'model-0' is listed twice"),
        ([replace(first, profile=None)], "'model-0' has no measured profile"),
        ([replace(first, profile=short)], "another number of query clusters"),
        ([replace(first, prices=replace(first.prices, input=-1.0))], "prices.input"),
    ]:
        with pytest.raises(RLRouteError, match=said):
            router.with_candidates(candidates)


# --- Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [-0.1, 10.01, float("nan"), float("inf"), "0.1", None])
def test_a_cost_weight_outside_the_trained_range_is_refused(router: Router, weight: Any) -> None:
    with pytest.raises(RLRouteError, match=r"trained for \(0 to 10\)"):
        router.route("list birds", cost_weight=weight)


def test_a_cost_weight_of_numpy_is_a_number(router: Router) -> None:
    weight: Any = np.float32(0.5)
    assert router.route("list birds", cost_weight=weight).cost_weight == 0.5


@pytest.mark.parametrize("text", ["", "  \n", None, 3, b"list birds", ["list birds"]])
def test_what_is_no_text_is_refused(router: Router, text: Any) -> None:
    with pytest.raises(RLRouteError, match="give the text of a query"):
        router.route(text)


def test_a_single_text_is_no_list_of_texts(router: Router) -> None:
    with pytest.raises(RLRouteError, match="use route for a single one"):
        router.route_many("list birds")


@pytest.mark.parametrize(
    ("allowed", "said"),
    [
        ([], "allowed is empty: name at least one of model-0"),
        (["model-0", "gpt"], "unknown candidate 'gpt' .known: model-0"),
        ("model-0", r"write \['model-0'\]"),
    ],
)
def test_a_wrong_list_of_allowed_candidates_is_refused(
    router: Router, allowed: Any, said: str
) -> None:
    with pytest.raises(RLRouteError, match=said):
        router.route("list birds", allowed=allowed)


def test_features_of_another_encoder_are_refused(
    router_contents: BundleContents, router: Router
) -> None:
    with pytest.raises(RLRouteError, match=r"features have shape \(3,\)"):
        router.route_features([0.1, 0.2, 0.3])
    with pytest.raises(RLRouteError, match="not a finite number"):
        router.route_features(np.full(router_contents.encoder.dimension, np.nan))
    with pytest.raises(RLRouteError, match="overflow"):
        router.route_features(np.full(router_contents.encoder.dimension, 3e38))


def test_a_folder_without_a_router_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(RLRouteError, match="no exported router lies here") as caught:
        Router.load(tmp_path)
    assert "\n" not in str(caught.value)
