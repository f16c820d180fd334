"""The best policy asks two candidates, one, or nobody, by the kind of query: it is learnt.

On `hard` queries one of two models is right, and the text does not say which: at cost weight 0.5
both together are worth 1 - 0.5 = 0.5, one alone 0.5 - 0.25. On `easy` ones the cheap model is right
(1 - 0.1). On `void` ones nobody is, so the best is to ask nobody (0).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlroute import Router
from rlroute.config import parse_config
from rlroute.data.table import OutcomeTable, write_table
from rlroute.policies.decision import GreedyPolicy
from rlroute.runs import evaluate_run, export_run
from rlroute.trainers.decision import train
from rlroute.trainers.recipe import Recipe
from rlroute.trainers.run_folder import load_best, read_run
from rlroute.types import Candidate, Prices, Query, RLRouteError

WORDS = {
    "easy": ["add", "number", "plus", "total", "digit", "carry"],
    "hard": ["prove", "lemma", "theorem", "axiom", "bound", "norm"],
    "void": ["hello", "thanks", "bye", "cheers", "welcome", "greetings"],
}
BEST = {"easy": "cheap", "hard": "a+b", "void": "skip"}
COST_WEIGHT = 0.5
ALGORITHMS: dict[str, dict[str, Any]] = {
    "ppo": {"kind": "ppo", "episodes": 256, "minibatches": 2, "epochs": 2},
    "grpo": {"kind": "grpo", "episodes": 256, "group_size": 8, "epochs": 2},
    "rloo": {"kind": "rloo", "episodes": 256, "group_size": 8, "epochs": 2},
    "expected_gradient": {"kind": "expected_gradient", "queries": 64},
}


def make_world(queries: int = 360) -> OutcomeTable:
    """Return the table; a few outcomes of b are missing."""
    draw = np.random.default_rng(1)
    kinds = [sorted(WORDS)[q % 3] for q in range(queries)]
    lucky_Q = draw.integers(2, size=queries)
    rows = {
        "easy": lambda q: (1, 1, 1),
        "hard": lambda q: (lucky_Q[q], 1 - lucky_Q[q], 0),
        "void": lambda q: (0, 0, 0),
    }
    score_QK = np.array([rows[kind](q) for q, kind in enumerate(kinds)], dtype=np.float32)
    cost_QK = np.array([[0.002, 0.002, 0.0008]] * queries, dtype=np.float32)
    present_QK = np.ones(score_QK.shape, dtype=np.bool_)
    present_QK[np.arange(0, queries, 25), 1] = False
    score_QK[~present_QK] = cost_QK[~present_QK] = np.nan
    unknown_QK = np.full_like(score_QK, np.nan)
    order = sorted(range(queries), key=lambda q: (kinds[q], q))
    return OutcomeTable(
        name="kinds",
        queries=tuple(
            Query(f"q{q:04d}", " ".join([*draw.choice(WORDS[kinds[q]], 4), f"item{q}"]), kinds[q])
            for q in order
        ),
        candidates=tuple(Candidate(name, Prices(1.0, 2.0)) for name in ("a", "b", "cheap")),
        score_QK=score_QK[order],
        cost_usd_QK=cost_QK[order],
        present_QK=present_QK[order],
        prompt_tokens_QK=unknown_QK,
        completion_tokens_QK=unknown_QK,
        latency_seconds_QK=unknown_QK,
        split_Q=np.array([("train", "train", "val", "test")[q // 3 % 4] for q in order]),
    )


@pytest.fixture(scope="module")
def table_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world as a table on disk."""
    folder = tmp_path_factory.mktemp("tables") / "kinds"
    write_table(make_world(), folder)
    return folder


def make_recipe(table_folder: Path, algorithm: str) -> Recipe:
    """Return a short recipe over subsets of one or two, and skip."""
    data = {
        "table": str(table_folder),
        "updates": 60,
        "actions": [
            {"kind": "subsets", "sizes": [1, 2], "combine": "best_of"},
            {"kind": "skip", "cost_usd": 0},
        ],
        "encoder": {"kind": "tfidf", "dimension": 16},
        "profile": {"clusters": 1},  # the profiles tell nothing of the kinds: all must be learnt
        "cost_weight": {"min": COST_WEIGHT, "max": COST_WEIGHT},
        "policy": {"hidden": 32, "dropout": 0.1},
        "algorithm": ALGORITHMS[algorithm],
        "optimiser": {"learning_rate": 0.02},
        "validation": {"metric": "utility", "every": 10, "cost_weights": 2},
        "evaluation": {"cost_weights": 2, "bootstrap": 50},
        "tracking": {"wandb": False},
    }
    return parse_config(Recipe, data, "recipe")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_two_are_asked_one_or_nobody_as_the_kind_of_query_asks_for(
    algorithm, table_folder, tmp_path
):
    folder = tmp_path / "run"
    train(make_recipe(table_folder, algorithm), folder)
    run = read_run(folder)
    data = run.prepared.splits["test"]
    policy = GreedyPolicy(load_best(run)[0])
    pick_Q = policy.compute_probabilities(data, COST_WEIGHT).argmax(axis=1)
    ids = [candidate.id for candidate in data.table.candidates]
    assert ids == ["a", "b", "cheap", "a+b", "a+cheap", "b+cheap", "skip"]
    assert data.table.present_QK[np.arange(len(pick_Q)), pick_Q].all()
    whole = data.table.present_QK.all(axis=1)
    assert not whole.all()
    right = [
        ids[pick] == BEST[query.task]
        for pick, query in zip(pick_Q[whole], np.array(data.table.queries)[whole], strict=True)
    ]
    assert np.mean(right) > 0.9, [ids[pick] for pick in pick_Q]


def test_the_exported_router_decides_as_the_policy_and_names_whom_to_ask(
    table_folder, tmp_path, capsys
):
    folder, to = tmp_path / "run", tmp_path / "router"
    train(make_recipe(table_folder, "expected_gradient"), folder)
    evaluate_run(folder)
    assert "best single: a+b" in capsys.readouterr().out
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "A subset (<code>a+b</code>) asks all its members" in page
    export_run(folder, to)
    router = Router.load(to)
    run = read_run(folder)
    data = run.prepared.splits["test"]
    policy = GreedyPolicy(load_best(run)[0])
    pick_Q = policy.compute_probabilities(data, COST_WEIGHT).argmax(axis=1)
    seen = set()
    for q, query in enumerate(data.table.queries):
        named = np.array(data.table.candidates)[data.table.present_QK[q]]
        route = router.route(query.text, cost_weight=COST_WEIGHT, allowed=[one.id for one in named])
        assert route.candidate_id == data.table.candidates[pick_Q[q]].id
        if data.table.present_QK[q].all():
            asked = () if route.candidate_id == "skip" else tuple(route.candidate_id.split("+"))
            assert route.members == asked
            assert route.models == route.members
            assert route.effort is None
            seen.add(route.candidate_id)
    assert seen >= set(BEST.values())
    hard = "prove lemma theorem axiom"
    kept = router.route(hard, cost_weight=COST_WEIGHT, allowed=["a", "cheap"])
    assert set(kept.probabilities) == {"a", "cheap", "a+cheap"}  # nothing that asks b
    both = router.route(hard, cost_weight=COST_WEIGHT, allowed=["a", "b", "skip"])
    assert both.members == ("a", "b")
    with pytest.raises(RLRouteError, match=r"unknown candidate 'd' \(known: a, b, cheap, skip\)"):
        router.route(hard, cost_weight=COST_WEIGHT, allowed=["d"])
    again = Router.load(to).with_candidates([one for one in router.candidates if one.id != "skip"])
    assert [len(one.asked) for one in again.candidates] == [1, 1, 1, 2, 2, 2]
