"""Runs of online learners: the folder, the report, interruption, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load
from wandb_files import read_history

from rlroute.config import load_config, parse_config
from rlroute.data.irt_table import IrtTableConfig, make_irt_table
from rlroute.data.table import write_table
from rlroute.runs import evaluate_run, find_schema, name_run
from rlroute.trainers import bandit_run
from rlroute.trainers.bandit_recipe import BanditRecipe
from rlroute.trainers.bandit_run import evaluate_bandit_run, train_bandits
from rlroute.types import RLRouteError

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes" / "bandits").glob("*.yaml"))
POCKET = next(path for path in RECIPES if path.stem == "pocket_stream")
SMALL = {
    "environment": "bandit_stream",
    "irt": {"queries": 200, "topics": 2, "words": 6},
    "seeds": [0, 1],
    "stream": {"queries": 300},
    "context": 12,
    "profile": {"clusters": 4},
    "events": [
        {"kind": "joins", "candidate": "candidate-c", "at": 100},
        {"kind": "dies", "candidate": "candidate-d", "at": 200, "billed": 1.0},
    ],
    "learners": [
        {"kind": "linucb"},
        {"kind": "ppo", "probes": 5, "episodes": 32, "hidden": 16},
        {"kind": "always", "name": "always-e", "candidate": "candidate-e"},
        {"kind": "random"},
    ],
    "window": 50,
    "checkpoint_every": 120,
    "tracking": {"wandb": False},
}


KEY = "regret/best_available"


def make_recipe(**changes) -> BanditRecipe:
    return parse_config(BanditRecipe, SMALL | changes, "test")


def make_table(seed):
    """Return a made table whose words an encoder can tell apart: it reads no digits."""
    table = make_irt_table(IrtTableConfig(queries=120, topics=2, words=6), seed).table
    letters = str.maketrans("0123456789", "abcdefghij")
    queries = [replace(query, text=query.text.translate(letters)) for query in table.queries]
    return replace(table, queries=tuple(queries))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bandits") / "run"
    train_bandits(make_recipe(), path, command="rlroute train stream.yaml")
    return path


def read_state(folder: Path, name: str) -> dict[str, np.ndarray]:
    state = load((folder / "learners" / f"{name}.safetensors").read_bytes())
    del state["seconds"]
    return state


def test_a_run_leaves_picks_states_metrics_and_a_report(folder):
    found = sorted(path.name for path in (folder / "learners").iterdir())
    names = ("always-e", "linucb", "ppo", "random")
    assert found == sorted(f"{name}-s{seed}.safetensors" for name in names for seed in (0, 1))
    result = json.loads((folder / "regret.json").read_text(encoding="utf-8"))
    assert {one["name"] for one in result["learners"]} == set(names)
    assert result["comparator_names"][-1] == "optimum"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 4 * 2 * 6
    assert (folder / "regret.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "report.html").read_text(encoding="utf-8")
    for words in ("candidate-d", "after it died", "had its share", "optimum", "always-e"):
        assert words in page
    assert "rlroute train stream.yaml" in page


def test_numbers_of_the_report_follow_from_the_picks(folder):
    result = json.loads((folder / "regret.json").read_text(encoding="utf-8"))
    (always,) = (one for one in result["learners"] if one["name"] == "always-e")
    for number in range(3):
        assert always["shares"][number]["candidate-e"] == 1.0
    assert always["failures"]["candidate-d"]["largest"] == 0
    spent = [read_state(folder, f"random-s{seed}")["picks.cost_usd_T"].sum() for seed in (0, 1)]
    (random,) = (one for one in result["learners"] if one["name"] == "random")
    assert random["cost_usd"]["mean"] == pytest.approx(np.mean(spent))
    assert random["failures"]["candidate-d"]["mean"] >= 1


def test_wandb_offline_holds_what_each_learner_did_along_the_stream(folder, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the extra `train` is absent")
    run = tmp_path / "run"
    monkeypatch.setenv("WANDB_DIR", str(run))
    monkeypatch.setenv("WANDB_MODE", "offline")
    learners = [{"kind": "linucb"}, {"kind": "random"}]
    recipe = make_recipe(learners=learners, tracking={"wandb": True, "project": "rlroute-tests"})
    train_bandits(recipe, run)
    history = read_history(run)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 2 * 6
    for row in rows:
        name = f"{row.pop('learner')}-s{row.pop('seed')}"
        query = row.pop("step")
        (told,) = (one for one in history if one.get("query") == query and f"{name}/{KEY}" in one)
        for key, value in row.items():
            assert told[f"{name}/{key}"] == pytest.approx(value), (name, query, key)
    assert {KEY, "reward/utility/mean", "cost/usd_total", "selection/share/candidate-e"} <= set(row)
    assert list(run.rglob("media/images/regret*.png"))
    assert not list(folder.rglob("wandb"))  # wandb: false


def test_an_interrupted_run_goes_on_and_equals_one_that_was_not(folder, tmp_path, monkeypatch):
    class InterruptedRunError(Exception):
        pass

    calls = iter(range(100))
    write = bandit_run.write_atomic

    def stop_soon(path, content):
        write(path, content)
        if path.parent.name == "learners" and next(calls) == 4:  # inside ppo's first stream
            raise InterruptedRunError

    monkeypatch.setattr(bandit_run, "write_atomic", stop_soon)
    other = tmp_path / "run"
    with pytest.raises(InterruptedRunError):
        train_bandits(make_recipe(), other)
    with pytest.raises(RLRouteError, match="--resume"):
        evaluate_bandit_run(other)
    monkeypatch.setattr(bandit_run, "write_atomic", write)
    train_bandits(make_recipe(), other, resume=True)
    for name in ("linucb-s0", "ppo-s0", "ppo-s1", "random-s1"):
        whole, parts = read_state(folder, name), read_state(other, name)
        assert whole.keys() == parts.keys()
        for key, value in whole.items():
            np.testing.assert_array_equal(value, parts[key], err_msg=f"{name} {key}")


def test_evaluate_writes_the_report_again(folder, capsys):
    before = (folder / "regret.json").read_bytes()
    (folder / "regret.json").unlink()
    evaluate_run(folder)
    assert (folder / "regret.json").read_bytes() == before
    assert "has the least regret" in " ".join(capsys.readouterr().out.split())


def test_a_table_that_changed_and_a_torn_file_are_refused(tmp_path):
    write_table(make_table(0), tmp_path / "table")
    changes = {
        "irt": None,
        "table": str(tmp_path / "table"),
        "seeds": [0],
        "events": [],
        "learners": [{"kind": "random"}],
    }
    run = tmp_path / "run"
    train_bandits(make_recipe(**changes), run)
    with pytest.raises(RLRouteError, match="a run lies here"):
        train_bandits(make_recipe(**changes), run)
    path = run / "learners" / "random-s0.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    with pytest.raises(RLRouteError, match=r"random-s0\.safetensors: cannot be read"):
        evaluate_bandit_run(run)
    path.write_bytes(whole)
    write_table(make_table(1), tmp_path / "table")
    with pytest.raises(RLRouteError, match="has changed since"):
        evaluate_bandit_run(run)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"irt": None}, "either table .* or irt"),
        ({"table": "pocket"}, "either table .* or irt"),
        ({"encoder": {"kind": "features"}}, "leave encoder out"),
        ({"learners": [{"kind": "random"}, {"kind": "random"}]}, "two are called 'random'"),
        ({"learners": [{"kind": "random", "name": "../up"}]}, "learners"),
        ({"learners": [{"kind": "linucb", "ridge": 0}]}, "ridge"),
        ({"learners": [{"kind": "ucb"}]}, "linucb"),
        ({"seeds": [1, 1]}, "one is given twice"),
        ({"events": [{"kind": "dies", "candidate": "x", "at": 0}]}, "at"),
        ({"events": [{"kind": "dies", "candidate": "x", "at": 1, "cost": 0}]}, "billed"),
    ],
)
def test_a_faulty_recipe_is_one_line_that_names_the_fault(changes, words):
    with pytest.raises(RLRouteError, match=words) as caught:
        make_recipe(**changes)
    assert "\n" not in str(caught.value)


def test_an_unknown_candidate_is_refused_before_anything_is_written(tmp_path):
    learners = [{"kind": "random"}, {"kind": "always", "candidate": "nobody"}]
    with pytest.raises(RLRouteError, match=r"no candidate 'nobody' .*candidate-a"):
        train_bandits(make_recipe(learners=learners), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_parses_and_says_what_it_is(recipe):
    assert find_schema(recipe) is BanditRecipe
    load_config(BanditRecipe, recipe)
    text = recipe.read_text(encoding="utf-8")
    for word in ("What:", "Command:", "Hardware:", "Time:", "Expected:", recipe.name):
        assert word in text, f"{recipe.name}: the header lacks {word}"
    assert "TODO" not in text


def test_a_dry_run_says_what_would_happen_and_writes_nothing(tmp_path):
    command = ["train", str(POCKET), "--dry-run", "--run-folder", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-m", "rlroute", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "nothing was trained or written" in done.stderr
    assert "linucb, linear_thompson" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_is_named_after_its_source():
    assert name_run(make_recipe()) == "stream-irt-s0"
    assert name_run(make_recipe(irt=None, table="a/pocket", seeds=[3])) == "stream-pocket-s3"
