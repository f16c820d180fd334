"""Runs of online learners from the command line: compare, sweep, export; and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from rlroute import Router
from rlroute.bandits.play import Play
from rlroute.cli import app
from rlroute.config import dump_config, parse_config
from rlroute.data.irt_table import IrtTableConfig, make_irt_table
from rlroute.data.table import read_table, write_table
from rlroute.policies.decision import score
from rlroute.run_comparison import run_compare
from rlroute.runs import export_run
from rlroute.sweep import Processes, count_done, list_train_arguments, plan_sweep, run_sweep
from rlroute.trainers.bandit_recipe import BanditRecipe
from rlroute.trainers.bandit_run import (
    load_play,
    locate_learner,
    make_learner,
    open_stream,
    open_stream_data,
    train_bandits,
)
from rlroute.types import RLRouteError

SMALL = {
    "environment": "bandit_stream",
    "tracking": {"wandb": False},
    "seeds": [0, 1],
    "stream": {"queries": 300},
    "encoder": {"kind": "tfidf", "dimension": 16, "min_documents": 1},
    "context": 8,
    "profile": {"clusters": 4},
    "events": [{"kind": "dies", "candidate": "candidate-d", "at": 200}],
    "learners": [
        {"kind": "ppo", "probes": 5, "episodes": 32, "hidden": 16},
        {"kind": "random"},
    ],
    "window": 50,
    "checkpoint_every": 300,
}


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """Write a made table whose words an encoder can tell apart: it reads no digits."""
    made = make_irt_table(IrtTableConfig(queries=120, topics=2, words=6), 0).table
    letters = str.maketrans("0123456789", "abcdefghij")
    queries = [replace(query, text=query.text.translate(letters)) for query in made.queries]
    folder = tmp_path_factory.mktemp("tables") / "made"
    write_table(replace(made, queries=tuple(queries)), folder)
    return folder


def make_recipe(table: Path, **changes) -> BanditRecipe:
    return parse_config(BanditRecipe, SMALL | {"table": str(table)} | changes, "test")


@pytest.fixture(scope="module")
def runs(table, tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("runs")
    always = {"kind": "always", "candidate": "candidate-e"}
    changes = {
        "one": {},
        "two": {"learners": [always, {"kind": "random"}], "seeds": [1, 2]},
        "apart": {"learners": [always], "seeds": [7]},
        "calm": {"learners": [always], "events": []},
    }
    for name, change in changes.items():
        train_bandits(make_recipe(table, **change), root / name)
    return {name: root / name for name in changes}


def compare(first: Path, second: Path, **options) -> None:
    run_compare(first, second, **({"at_weight": None, "at_budget": None, "out": None} | options))


def test_compare_pairs_learners_on_the_streams_that_both_met(runs, tmp_path, capsys):
    compare(runs["one"], runs["two"], out=tmp_path / "out")
    found = json.loads((tmp_path / "out" / "compare.json").read_text(encoding="utf-8"))
    assert found["seeds"] == [1]  # the other seeds stand in one run only
    assert (found["first"], found["second"], found["block"]) == ("one", "two", 15)
    random = next(one for one in found["learners"] if one["first"] == one["second"] == "random")
    assert random["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}  # the same draws
    best = found["learners"][0]
    regrets = {}
    for name in ("one", "two"):
        data = open_stream_data(make_recipe(Path(found_table(runs[name]))))
        stream = open_stream(make_recipe(Path(found_table(runs[name]))), data, 1)
        label = best["first"] if name == "one" else best["second"]
        state, _ = load_play(locate_learner(runs[name], label, 1), stream)
        utility_T = stream.compute_utility(state["picks.action_T"])
        regrets[name] = float((stream.best_T - utility_T).sum())
    assert best["difference"]["value"] == pytest.approx(regrets["one"] - regrets["two"])
    assert (tmp_path / "out" / "compare.png").exists()
    assert "over 300 queries" in " ".join(capsys.readouterr().out.split())


def found_table(run: Path) -> str:
    return next(
        line.removeprefix("table: ").strip()
        for line in (run / "recipe.resolved.yaml").read_text(encoding="utf-8").splitlines()
        if line.startswith("table: ")
    )


def test_streams_that_have_nothing_in_common_are_refused_in_one_line(runs, tmp_path):
    faults = [
        (runs["one"], runs["apart"], {}, "no seed in common"),
        (runs["one"], runs["calm"], {}, "events differs"),
        (runs["one"], runs["two"], {"at_weight": 0.1}, "--at-weight"),
        (runs["one"], runs["one"], {}, "the same run"),
    ]
    for first, second, options, words in faults:
        with pytest.raises(RLRouteError, match=words) as caught:
            compare(first, second, out=tmp_path / "out", **options)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_other_outcomes_under_the_same_name_are_refused(runs, table, tmp_path):
    first = read_table(str(table))
    write_table(replace(first, score_QK=1 - first.score_QK), tmp_path / "made")
    recipe = make_recipe(tmp_path / "made", learners=[{"kind": "random"}])
    train_bandits(recipe, tmp_path / "run")
    with pytest.raises(RLRouteError, match="different tables"):
        compare(runs["one"], tmp_path / "run")


def test_the_exported_router_decides_as_the_policy_at_the_end_of_the_stream(runs, table, tmp_path):
    export_run(runs["one"], tmp_path / "router")
    router = Router.load(tmp_path / "router")
    served = tuple(candidate.id for candidate in router.candidates)
    assert "candidate-d" not in served  # it died
    recipe = make_recipe(table)
    stream = open_stream(recipe, open_stream_data(recipe), 0)
    learner = make_learner(recipe.learners[0], stream)
    state, _ = load_play(locate_learner(runs["one"], "ppo", 0), stream)
    Play(stream, learner, recipe.availability).set_state(state)
    assert learner.updates > 0
    ids = stream.candidate_ids
    alive_K = learner.profiles.known_K & stream.phases[-1].alive_K
    assert served == tuple(i for i, known in zip(ids, alive_K, strict=True) if known)
    texts = read_table(str(table)).queries
    for row in range(20):
        scores = score(
            learner.scorer,
            stream.data.features_QE[row : row + 1],
            learner.features_KD,
            alive_K[None],
            np.array([0.1], dtype=np.float32),
            served=False,
        )
        expected_K = scores.logp_BK.exp().numpy()[0]
        found = router.route(texts[row].text, cost_weight=0.1)
        for number in np.flatnonzero(alive_K):
            assert found.probabilities[ids[number]] == pytest.approx(expected_K[number], abs=1e-5)
    card = (tmp_path / "router" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "These are the last weights" in card
    assert "ppo, online on a stream" in card


def test_what_cannot_be_exported_is_said_in_one_line(runs, tmp_path):
    with pytest.raises(RLRouteError, match="kind always, random have no exported form") as caught:
        export_run(runs["two"], tmp_path / "router")
    assert "\n" not in str(caught.value)
    made = {"irt": {"queries": 150, "topics": 2, "words": 6}, "stream": {"queries": 60}}
    recipe = parse_config(
        BanditRecipe,
        {key: value for key, value in SMALL.items() if key not in ("encoder", "events")} | made,
        "test",
    )
    train_bandits(recipe, tmp_path / "made")
    with pytest.raises(RLRouteError, match="made table"):
        export_run(tmp_path / "made", tmp_path / "router")
    assert not (tmp_path / "router").exists()


def test_a_sweep_over_streams_plays_a_seed_a_run_and_merges_their_regret(
    table, tmp_path, monkeypatch
):
    def call(self, arguments, log):
        """Run a command in this process: a new one takes seconds to start."""
        log.touch()
        return CliRunner().invoke(app, list(arguments)).exit_code

    monkeypatch.setattr(Processes, "call", call)
    path = tmp_path / "stream.yaml"
    path.write_text(dump_config(make_recipe(table)), encoding="utf-8")
    out = tmp_path / "out"
    settings = ["cost_weight.max=0.1,0.5"]
    plan = plan_sweep(path, [], [0, 3], settings, out)
    assert [run.recipe.seeds for run in plan] == [(0,), (3,)] * 2
    start = list_train_arguments(plan[0], path)
    assert start is not None
    assert "seeds=[0]" in start
    assert run_sweep(path, [], "0,3", settings, jobs=1, out=out)
    found = json.loads((out / "sweep.json").read_text(encoding="utf-8"))
    assert found["failures"] == {}
    rows = [row for row in found["rows"] if row["is_learner"]]
    assert len(rows) == 4  # two learners at two settings
    for row in rows:
        single = [
            json.loads((run.folder / "regret.json").read_text(encoding="utf-8"))
            for run in plan
            if run.setting == row["setting"]
        ]
        regrets = [
            next(one for one in result["learners"] if one["name"] == row["learner"])["regret"]
            for result in single
        ]
        values = [one["best available"]["mean"] for one in regrets]
        assert row["spreads"]["regret"]["mean"] == pytest.approx(np.mean(values))
        assert row["spreads"]["regret"]["largest"] == pytest.approx(max(values))
        assert row["seeds"] == [0, 3]
    assert "**ppo**" in (out / "sweep.md").read_text(encoding="utf-8")
    assert (out / "sweep.png").exists()
    assert count_done(plan[0]) == 2
    assert list_train_arguments(plan[0], path) is None  # a second start keeps it
    (plan[0].folder / "regret.json").unlink()
    assert list_train_arguments(plan[0], path) == ["train", "--resume", str(plan[0].folder)]


def test_a_seed_among_the_settings_of_a_stream_is_refused(table, tmp_path):
    path = tmp_path / "stream.yaml"
    path.write_text(dump_config(make_recipe(table)), encoding="utf-8")
    for settings, overrides in ((["seeds=[1],[2]"], []), ([], ["seeds=[4]"])):
        with pytest.raises(RLRouteError, match="--seeds"):
            plan_sweep(path, overrides, [0], settings, tmp_path / "out")
