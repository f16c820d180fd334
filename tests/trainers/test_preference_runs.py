"""One policy for many wishes: learnt corners, users, resume, export, and what is refused.

On a `sum` query `left` is slow and cheap and `right` quick and dear, on a `poem` query the other
way round; both are always right, `weak` is right in two of five cases, for nothing and at once. So
the best candidate flips with the cost weight and with the latency weight. With one cluster the
profiles of `left` and `right` are the same: where the policy starts it cannot tell them apart.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlroute import Router
from rlroute.config import parse_config
from rlroute.data.routing_data import RoutingData
from rlroute.data.table import OutcomeTable, write_table
from rlroute.data.users import Preference, UserWeights
from rlroute.envs.single_turn_vector import SingleTurnVector
from rlroute.policies.decision import GreedyPolicy
from rlroute.policies.mlp import CandidateScorer
from rlroute.rollout.plan import plan_episodes
from rlroute.runs import evaluate_run, export_run
from rlroute.trainers.checkpoint import WEIGHTS_FILE
from rlroute.trainers.decision import make_learner, train
from rlroute.trainers.recipe import Recipe
from rlroute.trainers.run_folder import BEST_FOLDER, CHECKPOINTS_FOLDER, Run, load_best, read_run
from rlroute.types import Candidate, Prices, Query, RLRouteError

WORDS = {
    "sum": ["add", "number", "plus", "total", "minus", "digit", "carry", "count"],
    "poem": ["verse", "rhyme", "moon", "river", "stanza", "lyric", "song", "dream"],
}
NAMES = ("left", "right", "weak")
CHEAP, QUICK = {"sum": "left", "poem": "right"}, {"sum": "right", "poem": "left"}
USERS: dict[str, dict[str, Any]] = {
    "scholar": {"cost_weight": 0.05, "latency_weight": 0.0},
    "thrifty": {"cost_weight": 0.5, "latency_weight": 0.0},
    "hurried": {"cost_weight": 0.0, "latency_weight": 0.5},
    "both": {"cost_weight": 1.0, "latency_weight": 1.0},
    "fond": {"cost_weight": 0.3, "latency_weight": 0.0, "candidate_bias": {"left": 0.9}},
    "new-thrifty": {"cost_weight": 0.4, "latency_weight": 0.05},
    "new-hurried": {"cost_weight": 0.05, "latency_weight": 0.4},
}
NEW = ["new-thrifty", "new-hurried"]


def make_world(queries: int = 320) -> OutcomeTable:
    """Return the table; the kind of a query is readable from its words."""
    draw = np.random.default_rng(3)
    kinds = ["sum" if q % 2 == 0 else "poem" for q in range(queries)]
    texts = [" ".join([*draw.choice(WORDS[kind], 5), f"item{q}"]) for q, kind in enumerate(kinds)]
    weak_Q = (draw.permutation(queries) % 5 < 2).astype(np.float32)
    slow_Q = np.array([kind == "sum" for kind in kinds])
    order = sorted(range(queries), key=lambda q: (kinds[q], q))
    dear, zero_Q = np.float32(0.01), np.zeros(queries)
    cost_QK = np.stack([np.where(slow_Q, 0.1, 1), np.where(slow_Q, 1, 0.1), zero_Q], 1) * dear
    seconds_QK = np.stack([np.where(slow_Q, 10, 1), np.where(slow_Q, 1, 10), zero_Q], 1)
    score_QK = np.stack([zero_Q + 1, zero_Q + 1, weak_Q], axis=1)
    unknown_QK = np.full(score_QK.shape, np.nan, np.float32)
    return OutcomeTable(
        name="wishes",
        queries=tuple(Query(f"q{q:04d}", texts[q], kinds[q]) for q in order),
        candidates=tuple(Candidate(name, Prices(1.0 + k, 2.0)) for k, name in enumerate(NAMES)),
        score_QK=score_QK[order].astype(np.float32),
        cost_usd_QK=cost_QK[order].astype(np.float32),
        present_QK=np.ones(score_QK.shape, dtype=np.bool_),
        prompt_tokens_QK=unknown_QK,
        completion_tokens_QK=unknown_QK,
        latency_seconds_QK=seconds_QK[order].astype(np.float32),
        split_Q=np.array([("train", "train", "val", "test")[q // 2 % 4] for q in order]),
    )


@pytest.fixture(scope="module")
def table_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world as a table on disk."""
    folder = tmp_path_factory.mktemp("tables") / "wishes"
    write_table(make_world(), folder)
    return folder


ALGORITHMS: dict[str, dict[str, Any]] = {
    "ppo": {"kind": "ppo", "episodes": 128, "minibatches": 2, "epochs": 2},
    "reinforce": {"kind": "reinforce", "episodes": 512},
    "expected_gradient": {"kind": "expected_gradient", "queries": 128},
}


def make_recipe(table: Path, learner: str = "expected_gradient", **changes: Any) -> Recipe:
    """Return a short recipe that weighs latency."""
    data: dict[str, Any] = {
        "table": str(table),
        "updates": 400,
        "encoder": {"kind": "tfidf", "dimension": 16},
        "profile": {"clusters": 1},
        "cost_weight": {"max": 1.0, "power": 1.0},
        "latency_weight": {"max": 1.0, "power": 1.0},
        "policy": {"hidden": 32, "dropout": 0.0, "sharpness": 4},
        "algorithm": ALGORITHMS[learner],
        "optimiser": {"learning_rate": 0.02},
        "validation": {"metric": "utility", "every": 25, "cost_weights": 5},
        "evaluation": {"cost_weights": 5, "bootstrap": 20},
        "checkpoint_every": 50,
        "tracking": {"wandb": False},
    }
    return parse_config(Recipe, data | changes, "recipe")


@pytest.fixture(scope="module")
def users_run(table_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run trained for users; two of them it never saw."""
    folder = tmp_path_factory.mktemp("runs") / "users"
    train(make_recipe(table_folder, users=USERS, hold_out_users=NEW), folder)
    return folder


def measure_share(
    scorer: CandidateScorer, data: RoutingData, weights: tuple[float, float], best: dict[str, str]
) -> float:
    """Return the share of queries that get the best candidate of their kind."""
    policy = GreedyPolicy(scorer, preference=Preference(weights[1]))
    pick_Q = policy.compute_probabilities(data, weights[0]).argmax(axis=1)
    return float(
        np.mean([best[q.task] == NAMES[k] for q, k in zip(data.table.queries, pick_Q, strict=True)])
    )


# The mean costs 5.5 of 1 and 10, and so does the mean wait, so normalised they are .18 and 1.82.
# Utility where only one weight is .7: .87, -.27, weak .4; where both are 1: -1, -1, weak .4.
CORNERS = [
    ((0.7, 0.0), CHEAP),
    ((0.0, 0.7), QUICK),
    ((0.3, 0.0), CHEAP),
    ((0.0, 0.3), QUICK),
    ((1.0, 1.0), {"sum": "weak", "poem": "weak"}),
]


@pytest.mark.parametrize("algorithm", ["reinforce", "expected_gradient"])
def test_one_policy_reaches_all_corners_and_its_start_does_not(
    algorithm: str, table_folder: Path, tmp_path: Path
) -> None:
    recipe = make_recipe(table_folder, algorithm)
    train(recipe, tmp_path / "run")
    run = read_run(tmp_path / "run")
    scorer, data = load_best(run)[0], run.prepared.splits["test"]
    start = start_scorer(recipe, run)
    for weights, best in CORNERS:
        assert measure_share(scorer, data, weights, best) > 0.9, weights
        if best in (CHEAP, QUICK):
            assert measure_share(start, data, weights, best) < 0.6, weights


def start_scorer(recipe: Recipe, run: Run) -> CandidateScorer:
    """Return the policy as it was before the first update."""
    from accelerate import Accelerator

    scorer: CandidateScorer = make_learner(recipe, run.prepared, Accelerator(cpu=True)).scorer
    return scorer.eval()


def test_unseen_users_are_served_nearly_as_their_oracles_would(users_run: Path) -> None:
    evaluate_run(users_run)
    found = json.loads((users_run / "preferences.json").read_text(encoding="utf-8"))
    users = {one["name"]: one for one in found["users"]}
    assert [name for name in users if users[name]["held_out"]] == NEW
    for name, one in users.items():
        result = one["result"]
        assert result["regret"]["value"] < 0.15, name
        assert result["lead"]["value"] > -0.05, name
    for name in NEW:
        assert users[name]["result"]["lead"]["low"] > 0.2
    assert users["both"]["result"]["best_single"] == "weak"
    assert users["fond"]["result"]["best_single"] == "left"
    lost = {(one["user"], one["ratings"]): one["lost"]["value"] for one in found["ratings"]}
    for name in NEW:
        assert {count for user, count in lost if user == name} == {0, 5, 20, 100}
        assert abs(lost[name, 100]) < 0.02 <= lost[name, 0]
    page = (users_run / "report.html").read_text(encoding="utf-8")
    for title in ("When waiting counts too", "User by user", "A new user's first ratings"):
        assert title in page
    assert "measured latency" in page


def test_the_exported_router_decides_as_the_policy_for_weights_and_for_users(
    users_run: Path, tmp_path: Path
) -> None:
    export_run(users_run, tmp_path / "router")
    router = Router.load(tmp_path / "router")
    run = read_run(users_run)
    scorer, data = load_best(run)[0], run.prepared.splits["test"]
    texts = [query.text for query in data.table.queries][::4]
    for latency_weight in (0.0, 0.4, 1.0):
        policy = GreedyPolicy(scorer, preference=Preference(latency_weight))
        pick_Q, _, _ = policy.estimate_picks(data, 0.3)
        routes = router.route_many(texts, cost_weight=0.3, latency_weight=latency_weight)
        assert [one.candidate_id for one in routes] == [NAMES[k] for k in pick_Q[::4]]
    thrifty = router.route(texts[0], user="thrifty")
    same = router.route(texts[0], cost_weight=0.5, latency_weight=0.0)
    assert thrifty == same
    assert thrifty.latency_weight == 0.0
    seconds = same.estimated_latency_seconds
    assert seconds is not None
    assert set(seconds) == set(NAMES)
    assert seconds["weak"] == 0
    fond = [one.candidate_id for one in router.route_many(texts, user="fond")]
    unbiased = router.route_many(texts, cost_weight=0.3, latency_weight=0.0)
    # of 20 queries half are of the kind on which the cheap one is `left`
    assert fond.count("left") >= 15
    assert 8 <= [one.candidate_id for one in unbiased].count("left") <= 12
    guest = UserWeights(cost_weight=1.0, latency_weight=1.0)
    assert router.route(texts[0], user=guest).candidate_id == "weak"
    card = (tmp_path / "router" / "MODEL_CARD.md").read_text(encoding="utf-8")
    for words in ("| thrifty", "`latency_weight`", "Latencies were measured"):
        assert words in card


def test_the_router_refuses_who_and_what_it_was_not_trained_for(
    users_run: Path, tmp_path: Path
) -> None:
    export_run(users_run, tmp_path / "router")
    router = Router.load(tmp_path / "router")
    with pytest.raises(RLRouteError, match=r"unknown user 'eve' \(known: both, fond, hurried"):
        router.route("add", user="eve")
    with pytest.raises(RLRouteError, match="a user or weights, not both"):
        router.route("add", user="both", cost_weight=0.5)
    with pytest.raises(RLRouteError, match=r"latency_weight 3\.0 lies outside"):
        router.route("add", latency_weight=3.0)
    with pytest.raises(RLRouteError, match="user is a dict: give the name of a user, or UserW"):
        router.route("add", user={"cost_weight": 0.1})  # type: ignore[arg-type]
    odd = UserWeights(cost_weight=0.1, candidate_bias={"nobody": 0.1})
    with pytest.raises(RLRouteError, match="unknown candidate 'nobody'"):
        router.route("add", user=odd)
    one = router.candidates[0]
    assert router.with_candidates(router.candidates[1:]).route("add", user="fond")  # of who left
    assert one.profile is not None
    untimed = replace(one, profile=replace(one.profile, latency_seconds_C=None))
    with pytest.raises(RLRouteError, match="'left' has no latency per query cluster"):
        router.with_candidates([untimed, *router.candidates[1:]])


def test_a_router_without_latencies_refuses_a_weight_of_them(
    table_folder: Path, tmp_path: Path
) -> None:
    recipe = make_recipe(table_folder, updates=2, latency_weight={"max": 0})
    train(recipe, tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "router")
    router = Router.load(tmp_path / "router")
    assert router.latency_weight_range == (0, 0)
    assert router.route("add", latency_weight=0.0) == router.route("add")
    with pytest.raises(RLRouteError, match="trained without latencies"):
        router.route("add", latency_weight=0.1)


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    table_folder: Path, tmp_path: Path
) -> None:
    short = {"checkpoint_every": 5, "users": USERS, "hold_out_users": NEW}
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    recipe = make_recipe(table_folder, "ppo", updates=10, **short)
    train(recipe, whole)
    train(make_recipe(table_folder, "ppo", updates=5, **short), parted)
    shutil.copyfile(whole / "recipe.resolved.yaml", parted / "recipe.resolved.yaml")
    train(recipe, parted, resume=True)
    for name in (BEST_FOLDER, f"{CHECKPOINTS_FOLDER}/step-10"):
        files = [folder / name / WEIGHTS_FILE for folder in (whole, parted)]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_users_and_latency_weights_follow_from_the_episode_alone(users_run: Path) -> None:
    run = read_run(users_run)
    data, preferences = run.prepared.splits["train"], run.recipe.preferences
    plan = plan_episodes(0, 0, queries=len(data.features_QF), groups=64, group_size=2)

    def draw(part) -> Any:
        environment = SingleTurnVector(data, len(part.group_B), preferences=preferences)
        options = {"query_index": part.query_index_B, "episode_seed": part.episode_seed_B}
        return environment.reset(options=options)[0]

    whole, halves = draw(plan), [draw(plan.select_part(p, 2)) for p in range(2)]
    for key in ("cost_weight", "latency_weight", "candidate_bias"):
        joined = np.concatenate([half[key] for half in halves])
        np.testing.assert_array_equal(whole[key], joined)
    taught = {(u["cost_weight"], u["latency_weight"]) for n, u in USERS.items() if n not in NEW}
    drawn_B2 = np.concatenate([whole["cost_weight"], whole["latency_weight"]], axis=1).round(4)
    own_B = np.array([tuple(float(f"{one:.4g}") for one in row) in taught for row in drawn_B2])
    assert {tuple(float(f"{one:.4g}") for one in row) for row in drawn_B2[own_B]} == taught
    assert 0.3 < own_B.mean() < 0.7  # the others' weights are drawn from the ranges
    assert (whole["candidate_bias"][~own_B] == 0).all()
    assert whole["candidate_bias"].max() == np.float32(0.9)


def test_a_users_file_is_read_into_the_recipe(table_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "users.yaml"
    path.write_text("ada: {cost_weight: 0.5}\n", encoding="utf-8")
    recipe = make_recipe(table_folder, users=str(path))
    assert recipe.users == {"ada": UserWeights(cost_weight=0.5)}
    path.write_text("ada: {cost_weight: -1}\n", encoding="utf-8")
    with pytest.raises(
        RLRouteError, match=r"users\.yaml: ada.cost_weight: Input should be greater"
    ):
        make_recipe(table_folder, users=str(path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"users": {"ada": {"cost_weight": 3}}}, "users.ada.cost_weight: 3 lies outside"),
        ({"hold_out_users": ["ada"]}, "'ada' is no user"),
        ({"user_share": 0.3}, "user_share: read with users only"),
        (
            {"users": {"ada": {"cost_weight": 1}}, "hold_out_users": ["ada"]},
            "nobody is left to train for",
        ),
        ({"validation": {"metric": "aiq"}}, "the metric must be 'utility'"),
        (
            {"latency_weight": {"max": 0, "power": 2}},
            "latency_weight.power: read with latency_weight.max above 0 only",
        ),
        ({"algorithm": {"kind": "prior_grpo"}}, "prior_grpo do not go together"),
        ({"evaluation": {"latency_weights": [5]}}, "5 lies outside latency_weight"),
        (
            {"latency_weight": {"max": 0}, "evaluation": {"latency_weights": [0]}},
            "read with latency_weight.max above 0 only",
        ),
    ],
)
def test_recipes_that_fit_together_in_no_way_are_refused(
    changes: dict[str, Any], message: str, table_folder: Path
) -> None:
    with pytest.raises(RLRouteError, match=message):
        make_recipe(table_folder, **changes)


def test_latencies_derived_from_tokens_serve_and_are_named_as_such(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = make_world()
    counted = replace(
        world,
        latency_seconds_QK=np.full(world.score_QK.shape, np.nan, np.float32),
        prompt_tokens_QK=np.ones(world.score_QK.shape, np.float32),
        completion_tokens_QK=10 * world.latency_seconds_QK,
    )
    write_table(counted, tmp_path / "counted")
    speeds = {
        "seconds_per_output_token": dict.fromkeys(NAMES, 0.1),
        "seconds_to_first_token": dict.fromkeys(NAMES, 0.5),
    }
    train(make_recipe(tmp_path / "counted", updates=2, latency=speeds), tmp_path / "run")
    data = read_run(tmp_path / "run").prepared.splits["train"]
    assert data.latency_reference_seconds == pytest.approx(6.0)  # 5.5 + .5
    evaluate_run(tmp_path / "run")
    assert "latency derived from tokens" in " ".join(capsys.readouterr().out.split())
    assert "latency derived from tokens" in (tmp_path / "run" / "report.html").read_text("utf-8")
    export_run(tmp_path / "run", tmp_path / "router")
    card = (tmp_path / "router" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "derived from tokens where nobody measured them" in card


def test_a_run_on_a_table_without_latencies_or_candidate_is_refused(
    table_folder: Path, tmp_path: Path
) -> None:
    fond = {"ada": {"cost_weight": 1, "candidate_bias": {"nobody": 0.1}}}
    with pytest.raises(RLRouteError, match="candidate_bias: unknown candidate 'nobody'"):
        train(make_recipe(table_folder, users=fond), tmp_path / "one")
    world = make_world()
    blank_QK = np.full(world.score_QK.shape, np.nan, np.float32)
    write_table(replace(world, latency_seconds_QK=blank_QK), tmp_path / "untimed")
    with pytest.raises(RLRouteError, match="has no latency_seconds of candidate 'left'"):
        train(make_recipe(tmp_path / "untimed"), tmp_path / "two")
    assert not (tmp_path / "two").exists()
