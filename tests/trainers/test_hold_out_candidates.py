"""Candidates that are held out: nothing of them leaks; they are added by their profiles."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlroute import Router
from rlroute.data.candidate_files import dump_candidates
from rlroute.data.routing_data import standardise_candidate
from rlroute.data.table import RESULT_SPLITS, OutcomeTable, read_results, read_table, write_table
from rlroute.policies.table_baselines_item_response import compute_success, estimate_ability
from rlroute.runs import evaluate_run, export_run
from rlroute.trainers.decision import train
from rlroute.trainers.recipe import Recipe
from rlroute.trainers.run_folder import read_run
from rlroute.types import RLRouteError
from rlroute.unseen_candidates import evaluate_unseen

MakeRecipe = Callable[..., Recipe]
UNSEEN = {"calls": [0, 40], "design": "random"}


@pytest.fixture(scope="module")
def counted_folder(world_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world with counted tokens: costs are what they cost at the prices of each candidate."""
    table = read_table(world_folder)
    tokens_QK = np.full(table.score_QK.shape, 100, np.float32)
    cost_K = np.array([1.0, 0.1, 5.0, 1.0]) * 0.002
    candidates = tuple(
        replace(one, prices=replace(one.prices, input=cost * 5e3, output=cost * 5e3))
        for one, cost in zip(table.candidates, cost_K, strict=True)
    )
    table = replace(
        table, candidates=candidates, prompt_tokens_QK=tokens_QK, completion_tokens_QK=tokens_QK
    )
    folder = tmp_path_factory.mktemp("counted") / "world"
    write_table(table, folder)
    return folder


@pytest.fixture(scope="module")
def runs(
    make_recipe: MakeRecipe, counted_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A run that never saw the poet, and one that did."""
    root = tmp_path_factory.mktemp("runs")
    changes = {"table": str(counted_folder), "evaluation": {"bootstrap": 20, "cost_weights": 9}}
    held = {"hold_out_candidates": ["poet"], "profile": {"clusters": 4, "unseen": UNSEEN}}
    train(make_recipe("expected_gradient", **changes, **held), root / "without")
    train(make_recipe("expected_gradient", **changes), root / "with")
    return root / "without", root / "with"


def poison(table: OutcomeTable, candidate_id: str) -> OutcomeTable:
    """Return the table with other scores, costs and tokens of one candidate."""
    column = [one.id for one in table.candidates].index(candidate_id)
    changed = {}
    for name in ("score_QK", "cost_usd_QK", "prompt_tokens_QK", "completion_tokens_QK"):
        changed[name] = getattr(table, name).copy()
        changed[name][:, column] = 0.125
    return replace(table, **changed)


def test_training_sees_nothing_of_who_is_held_out(
    make_recipe: MakeRecipe, counted_folder: Path, tmp_path: Path
) -> None:
    held = {"hold_out_candidates": ["generalist"], "updates": 5}
    poisoned = tmp_path / "world"
    write_table(poison(read_table(counted_folder), "generalist"), poisoned)
    for name, table in (("a", counted_folder), ("b", poisoned)):
        train(make_recipe("ppo", table=str(table), **held), tmp_path / name)
    for file in ("candidates.json", "clusters.safetensors", "best/policy.safetensors"):
        same = [(tmp_path / name / file).read_bytes() for name in ("a", "b")]
        assert same[0] == same[1], file
    facts = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("a", "b")]
    assert facts[0]["table_digest"] == facts[1]["table_digest"]
    assert "generalist" not in (tmp_path / "a" / "candidates.json").read_text()


def test_a_specialist_is_picked_after_its_profile_as_by_a_policy_that_learnt_it(
    runs: tuple[Path, Path],
) -> None:
    without, trained = (read_run(folder) for folder in runs)
    report = evaluate_unseen(without, trained)
    found = {one.name: one for one in report.results}
    assert list(found)[:4] == ["without them", "0 calls", "40 calls", "all train queries"]
    absent, measured = found["without them"], found["40 calls"]
    assert absent.share == 0
    assert measured.share > 0.05
    assert measured.calls == 40
    assert measured.calls_cost_usd == pytest.approx(40 * 0.002, rel=1e-5)
    assert measured.regret < 0.7 * absent.regret
    learnt = found["trained with them (with)"]
    assert measured.regret - learnt.regret < 0.5 * (absent.regret - learnt.regret)
    assert report.compared_with == learnt
    assert absent.regret_gap is not None
    assert absent.regret_gap.value == pytest.approx(absent.regret - learnt.regret)
    assert absent.regret_gap.low < absent.regret_gap.value < absent.regret_gap.high


def test_a_candidate_that_turns_out_bad_is_not_picked(
    runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = read_run(runs[0])
    from rlroute import unseen_profiles

    opened = unseen_profiles.open_table(run.recipe.model_copy(update={"hold_out_candidates": ()}))
    column = [one.id for one in opened.table.candidates].index("poet")
    bad_QK = opened.table.score_QK.copy()
    bad_QK[:, column] = 0
    bad = replace(opened, table=replace(opened.table, score_QK=bad_QK))
    monkeypatch.setattr(unseen_profiles, "open_table", lambda recipe: bad)
    found = {one.name: one for one in evaluate_unseen(run).results}
    assert found["all train queries"].share == 0
    assert found["40 calls"].share == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"design": "information"},
        {"design": "aptitude"},
        {"design": "stratified", "representation": "embedding", "form": "graph", "hops": 2},
        {"representation": "text"},
        {"representation": "text", "form": "graph", "hops": 1},
        {"representation": "random"},
    ],
)
def test_every_design_and_description_gives_a_profile(
    settings: dict[str, object], runs: tuple[Path, Path]
) -> None:
    run = read_run(runs[0])
    data = run.recipe.model_dump()
    data["profile"]["unseen"] = {"calls": (0, 40), **settings}
    changed = replace(run, recipe=Recipe.model_validate(data))
    found = {one.name: one for one in evaluate_unseen(changed).results}
    assert 0 < found["40 calls"].calls_cost_usd <= 40 * 0.002 * 1.001
    assert np.isfinite([one.regret for one in found.values()]).all()


def test_the_command_writes_the_numbers_and_refuses_a_run_that_does_not_fit(
    runs: tuple[Path, Path],
) -> None:
    evaluate_run(runs[0], [runs[1]])
    rows = json.loads((runs[0] / "unseen_candidates.json").read_text())
    assert [row["calls"] for row in rows] == [0, 0, 40, 120, None]
    assert rows[-1]["regret_gap"] is None
    page = (runs[0] / "report.html").read_text()
    assert "Candidates it was never trained on" in page
    assert f"{rows[2]['regret_gap']['value']:+.4f}" in page.replace("\N{MINUS SIGN}", "-")
    with pytest.raises(RLRouteError, match="--beside takes one run, trained with the candidates"):
        evaluate_run(runs[1], [runs[0]])
    with pytest.raises(RLRouteError, match="--beside takes a run on the same table"):
        evaluate_unseen(read_run(runs[0]), read_run(runs[0]))


def test_a_router_is_exported_with_a_candidate_added_from_results(
    runs: tuple[Path, Path], counted_folder: Path, tmp_path: Path
) -> None:
    results = tmp_path / "poet"
    poet = read_table(counted_folder).select_candidates(["poet"])
    write_table(poet.select_split("train"), results, needed=RESULT_SPLITS)
    export_run(runs[0], tmp_path / "router", [results])
    export_run(runs[0], tmp_path / "plain")
    router, plain = Router.load(tmp_path / "router"), Router.load(tmp_path / "plain")
    assert [one.id for one in router.candidates][-1] == "poet"
    added = plain.add_candidate(poet.candidates[0], read_results(results))
    assert dump_candidates(added.candidates) == dump_candidates(router.candidates)
    assert router.candidates[-1].unseen
    run = read_run(runs[0])
    described = {
        tuple(standardise_candidate(one, run.prepared.scale).tolist())
        for one in run.prepared.candidates
    }
    for name in ("router", "plain"):  # those that lend travel with the router
        manifest = json.loads((tmp_path / name / "manifest.json").read_text())
        lenders = manifest["features"]["scale"]["lenders"]
        assert {tuple(np.float32(one["described"]).tolist()) for one in lenders} <= described
        assert sum(one["share"] for one in lenders) == pytest.approx(1)
    test = poet.select_split("test")
    texts = list(test.texts)
    routes = router.route_many(texts, cost_weight=0.3)
    assert routes == added.route_many(texts, cost_weight=0.3)
    picked = {
        (query.task, route.candidate_id) for query, route in zip(test.queries, routes, strict=True)
    }
    assert ("poem", "poet") in picked
    with pytest.raises(RLRouteError, match="'poet' is known already"):
        export_run(runs[1], tmp_path / "other", [results])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"profile": {"unseen": {"calls": [5]}}}, "unseen.calls: read with hold_out_candidates"),
        ({"profile": {"unseen": {"design": "random"}}}, "unseen.design: read with hold_out_cand"),
        ({"hold_out_candidates": ["poet", "poet"]}, "named twice"),
        (
            {"hold_out_candidates": ["poet"], "actions": [{"kind": "skip", "cost_usd": 0.0}]},
            "goes with neither actions nor logs",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    make_recipe: MakeRecipe, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(RLRouteError, match=said):
        make_recipe("ppo", **changes)


def test_an_unknown_candidate_cannot_be_held_out(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe("ppo", hold_out_candidates=["gpt"])
    with pytest.raises(RLRouteError, match=r"no candidate 'gpt' \(it has: adder, cheap"):
        train(recipe, tmp_path / "run")


def test_an_ability_is_found_from_scores_and_stays_finite() -> None:
    draw = np.random.default_rng(0)
    slope_N, difficulty_N = draw.uniform(0.5, 2, 4000), draw.normal(size=4000)
    success_N = compute_success(slope_N, difficulty_N, [1.3])[:, 0]
    found = estimate_ability(slope_N, difficulty_N, success_N, mean=0.0, spread=10.0)
    assert found == pytest.approx(1.3, abs=0.01)
    assert 0 < estimate_ability([1.0, 1.0], [0.0, 0.0], [1, 1], mean=0.0, spread=1.0) < 2
