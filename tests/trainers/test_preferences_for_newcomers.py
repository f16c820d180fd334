"""Candidates never trained on, for policies that weigh latency and serve users.

Five candidates write sums and poems; `swift` is as good as the best at a tenth of its wait, and
held out. Who minds waiting gains by it, who does not gains nothing.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlroute import Router
from rlroute.config import parse_config
from rlroute.data.candidate_files import dump_candidates
from rlroute.data.table import RESULT_SPLITS, OutcomeTable, read_results, read_table, write_table
from rlroute.runs import evaluate_run, export_run
from rlroute.trainers.decision import train
from rlroute.trainers.recipe import Recipe
from rlroute.trainers.run_folder import open_table, read_run
from rlroute.types import Candidate, Prices, Query, RLRouteError
from rlroute.unseen_candidates import measure_unseen, name_calls

WORDS = {"sum": ["add", "number", "plus", "total"], "poem": ["verse", "rhyme", "moon", "river"]}
# id: price per million tokens, score on sums and on poems, seconds
KINDS = {
    "strong": (10.0, 0.9, 0.9, 10.0),
    "adder": (4.0, 0.9, 0.2, 6.0),
    "poet": (4.0, 0.2, 0.9, 6.0),
    "weak": (1.0, 0.3, 0.3, 1.0),
    "swift": (10.0, 0.9, 0.9, 1.0),
}
USERS: dict[str, dict[str, Any]] = {
    "patient": {"cost_weight": 0.0},
    "hurried": {"cost_weight": 0.0, "latency_weight": 0.6, "candidate_bias": {"weak": 0.05}},
}
TRAIN = 120


def make_world(queries: int = 2 * TRAIN) -> OutcomeTable:
    """Return the table: 1,000 tokens a call, half of the queries are for training."""
    draw = np.random.default_rng(5)
    kinds = [("sum", "poem")[q % 2] for q in range(queries)]
    texts = [" ".join([*draw.choice(WORDS[kind], 3), f"item{q}"]) for q, kind in enumerate(kinds)]
    chance_QK = np.array([[one[1 + (kind == "poem")] for one in KINDS.values()] for kind in kinds])
    price_K, seconds_K = (np.array([one[k] for one in KINDS.values()]) for k in (0, 3))
    shape = chance_QK.shape
    return OutcomeTable(
        name="waiting",
        queries=tuple(Query(f"q{q:04d}", texts[q], kinds[q]) for q in range(queries)),
        candidates=tuple(Candidate(name, Prices(one[0], one[0])) for name, one in KINDS.items()),
        score_QK=(draw.random(shape) < chance_QK).astype(np.float32),
        cost_usd_QK=np.tile(price_K * 1e-3, (queries, 1)).astype(np.float32),
        present_QK=np.ones(shape, np.bool_),
        prompt_tokens_QK=np.full(shape, 500, np.float32),
        completion_tokens_QK=np.full(shape, 500, np.float32),
        latency_seconds_QK=(seconds_K * draw.uniform(0.8, 1.2, shape)).astype(np.float32),
        split_Q=np.array([("train", "train", "val", "test")[q // 2 % 4] for q in range(queries)]),
    )


def make_recipe(table: Path, **changes: Any) -> Recipe:
    """Return a short recipe that weighs latency, serves users and holds out `swift`."""
    data: dict[str, Any] = {
        "table": str(table),
        "updates": 20,
        "encoder": {"kind": "tfidf", "dimension": 16},
        "profile": {"clusters": 2, "unseen": {"calls": [0, 40, TRAIN, 1000]}},
        "hold_out_candidates": ["swift"],
        "cost_weight": {"max": 1.0},
        "latency_weight": {"max": 1.0},
        "users": USERS,
        "policy": {"hidden": 16, "dropout": 0.0},
        "algorithm": {"kind": "expected_gradient", "queries": 60},
        "validation": {"metric": "utility", "every": 10, "cost_weights": 5},
        "evaluation": {"cost_weights": 5, "bootstrap": 50},
        "tracking": {"wandb": False},
    }
    return parse_config(Recipe, data | changes, "recipe")


@pytest.fixture(scope="module")
def table_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world on disk."""
    folder = tmp_path_factory.mktemp("tables") / "waiting"
    write_table(make_world(), folder)
    return folder


@pytest.fixture(scope="module")
def run_folder(table_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that never saw `swift`."""
    folder = tmp_path_factory.mktemp("runs") / "waiting"
    train(make_recipe(table_folder), folder)
    return folder


def test_who_minds_waiting_gains_by_a_quick_newcomer(run_folder: Path) -> None:
    evaluate_run(run_folder)
    rows = json.loads((run_folder / "unseen_candidates.json").read_text())
    # of 1,000 calls no more than the train queries could be asked: one row, by what was asked
    names = ["without them", "0 calls", "40 calls", f"{TRAIN} calls", "all train queries"]
    assert [row["name"] for row in rows] == names
    users = json.loads((run_folder / "unseen_candidates_users.json").read_text())
    assert len(users) == len(names) * len(USERS)
    found = {(row["user"], row["name"]): row for row in users}
    for name in ("40 calls", "all train queries"):
        hurried = found["hurried", name]
        assert hurried["gain"]["low"] > 0.15  # the others' wait costs .36 to .6, its own .06
        assert hurried["regret"] < found["hurried", "without them"]["regret"] - 0.15
        assert hurried["share"] > 0.8
        assert abs(found["patient", name]["gain"]["value"]) < 0.1
    assert found["hurried", "without them"]["gain"] is None
    assert found["hurried", "without them"]["share"] == 0
    page = (run_folder / "report.html").read_text(encoding="utf-8")
    assert "User by user" in page
    gain = found["hurried", "40 calls"]["gain"]["value"]
    assert f"{gain:+.4f}" in page


def test_an_added_candidate_is_served_as_it_was_evaluated(
    run_folder: Path, table_folder: Path, tmp_path: Path
) -> None:
    swift = read_table(table_folder).select_candidates(["swift"])
    write_table(swift.select_split("train"), tmp_path / "swift", needed=RESULT_SPLITS)
    export_run(run_folder, tmp_path / "router", [tmp_path / "swift"])
    export_run(run_folder, tmp_path / "plain")
    router = Router.load(tmp_path / "router")
    added = Router.load(tmp_path / "plain").add_candidate(
        swift.candidates[0], read_results(tmp_path / "swift")
    )
    assert dump_candidates(added.candidates) == dump_candidates(router.candidates)
    measured = measure_unseen(read_run(run_folder))
    one = next(one for one in measured.measured if one.result.name == f"{TRAIN} calls")
    profile, served = one.added[0].profile, router.candidates[-1].profile
    assert profile is not None
    assert served is not None
    assert profile.latency_seconds_C is not None
    assert served.latency_seconds_C == pytest.approx(profile.latency_seconds_C, rel=1e-5)
    assert served.latency_seconds_C == pytest.approx([1, 1], rel=0.1)
    for name, user in router.users.items():
        data, policy = measured.bench.serve(one.added, user)
        pick_Q = policy.compute_probabilities(data, user.cost_weight).argmax(axis=1)
        expected = [data.table.candidates[k].id for k in pick_Q]
        routes = router.route_many(list(data.table.texts), user=name)
        assert [route.candidate_id for route in routes] == expected
    # without a call it is expected to take as long as the known ones do
    blind = Router.load(tmp_path / "plain").add_candidate(swift.candidates[0])
    assert blind.candidates[-1].profile is not None
    assert blind.candidates[-1].profile.latency_seconds == pytest.approx(23 / 4, rel=0.05)


def test_untimed_results_are_refused_and_an_untimed_call_is_a_hole(
    run_folder: Path, table_folder: Path, tmp_path: Path
) -> None:
    swift = read_table(table_folder).select_candidates(["swift"]).select_split("train")
    seconds_QK = swift.latency_seconds_QK.copy()
    seconds_QK[40:] = np.nan
    for name, seconds in (("none", np.full_like(seconds_QK, np.nan)), ("some", seconds_QK)):
        table = replace(swift, latency_seconds_QK=seconds)
        write_table(table, tmp_path / name, needed=RESULT_SPLITS)
    said = "no train result of candidate 'swift' has latency_seconds, and this policy weighs"
    with pytest.raises(RLRouteError, match=said):
        export_run(run_folder, tmp_path / "router", [tmp_path / "none"])
    export_run(run_folder, tmp_path / "router")
    router = Router.load(tmp_path / "router")
    with pytest.raises(RLRouteError, match=said):
        router.add_candidate(swift.candidates[0], read_results(tmp_path / "none"))
    some = router.add_candidate(swift.candidates[0], read_results(tmp_path / "some"))
    whole = swift.select_queries(np.arange(40))
    same = router.add_candidate(swift.candidates[0], whole)
    assert dump_candidates(some.candidates) == dump_candidates(same.candidates)


def test_a_latency_may_be_declared_of_who_is_held_out(table_folder: Path, tmp_path: Path) -> None:
    world = read_table(table_folder)
    blank_QK = np.full(world.score_QK.shape, np.nan, np.float32)
    write_table(replace(world, latency_seconds_QK=blank_QK), tmp_path / "untimed")
    latency = {
        "seconds_per_output_token": dict.fromkeys(KINDS, 0.01),
        "seconds_to_first_token": dict.fromkeys(KINDS, 0.5),
    }
    recipe = make_recipe(tmp_path / "untimed", latency=latency)
    assert open_table(recipe).table.latency_seconds_QK == pytest.approx(5.5)
    whole = open_table(recipe.model_copy(update={"hold_out_candidates": ()})).table
    assert whole.latency_seconds_QK.shape == world.score_QK.shape


def test_results_are_named_by_what_was_asked() -> None:
    assert name_calls((200, 200)) == "200 calls"
    assert name_calls((200, 140)) == "at most 200 calls"
