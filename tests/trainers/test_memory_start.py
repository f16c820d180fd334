"""Starts of memory-tier runs that come to nothing: what is said, and what is left behind."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from memory_run_example import (
    LARGE,
    MODELS,
    MODULES,
    RULES,
    SMALL,
    MakeRecipe,
    describe_model,
    describe_pipeline,
    make_memory_recipe,
)

from rlroute.tracking import read_metrics
from rlroute.trainers.memory_recipe import MemoryRecipe
from rlroute.trainers.memory_run import train_memory
from rlroute.trainers.memory_stage import STORE_FILE, MemoryStage
from rlroute.types import RLRouteError


@pytest.fixture(scope="module")
def make_recipe(tmp_path_factory: pytest.TempPathFactory) -> MakeRecipe:
    """Return a function that makes a short recipe; the trees are shared."""
    return partial(make_memory_recipe, tmp_path_factory.mktemp("tree"))


DEAD = describe_model(0.1, 0.6, failures={"timeout": 1.0})
FREE = {"small": describe_model(0.0, 0.6), "large": describe_model(0.0, 0.97)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"pipeline": describe_pipeline(entity=[RULES, RULES | {"name": "again"}])},
            "makes the same as tier",
        ),
        (
            {"pipeline": describe_pipeline(entity=[RULES, LARGE, SMALL])},
            "list tiers from the cheap",
        ),
        ({"pipeline": describe_pipeline(entity=[RULES, SMALL | {"candidate": "gone"}])}, "gone"),
        ({"models": {"kind": "simulated", "candidates": FREE}}, "there is nothing to trade"),
        ({"models": {"kind": "simulated", "candidates": MODELS | {"small": DEAD}}}, "runs failed"),
    ],
    ids=["equal", "order", "candidate", "free", "dead"],
)
def test_tiers_that_are_no_choice_are_refused_before_anything_is_trained(
    changes, message, make_recipe, tmp_path
):
    recipe = make_recipe(outcomes={"kind": "tabulated"}, **changes)
    with pytest.raises(RLRouteError, match=message) as caught:
        train_memory(recipe, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    if message == "gone":  # what is mended starts in the same folder, without a flag
        train_memory(make_recipe(updates=1), tmp_path / "run")


def make_pool_recipe(make_recipe: MakeRecipe, path: Path) -> MemoryRecipe:
    """Return a live recipe over a pool file with one server, at which nobody listens."""
    server = {"endpoint": "http://127.0.0.1:9/v1", "model": "m", "retries": 0}
    prices = {"input": 1.0, "output": 1.0}
    path.write_text(yaml.safe_dump({"candidates": {"small": {"prices": prices} | server}}))
    both = [SMALL | {"name": "first"}, SMALL | {"prompt": "cot", "name": "second"}]
    return make_recipe(
        models={"kind": "pool", "path": str(path)},
        pipeline=describe_pipeline(**dict.fromkeys(MODULES, both)),
        outcomes={"kind": "live"},
        audit_questions=2,
    )


def test_servers_that_are_down_are_named_and_nothing_stays(make_recipe, tmp_path):
    pytest.importorskip("httpx", reason="the extra `http` is absent")
    message = (
        r"^module 'filter', tier 'first': 2 of 2 runs failed \(\w+ at http://127\.0\.0\.1:9/v1\); "
        "module 'entity' has nothing left to read$"
    )
    recipe = make_pool_recipe(make_recipe, tmp_path / "pool.yaml")
    for _ in range(2):  # the second try is told the same, and of no run that lies here
        with pytest.raises(RLRouteError, match=message):
            train_memory(recipe, tmp_path / "run")
        assert not (tmp_path / "run").exists()


PRICED = {"prices": {"input": 1.0, "output": 1.0}}
NOWHERE = {"folder": "nowhere", "parameters": 1, "licence": "none"}


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        (None, r"pool\.yaml"),
        ({"candidates": {"small": {"endpoint": "http://127.0.0.1:9/v1", "model": "m"}}}, "prices"),
        (
            {
                "models": {"small": NOWHERE},
                "candidates": {"small": {"type": "local", "model": "small"} | PRICED},
            },
            "nowhere",
        ),
    ],
    ids=["file", "price", "checkpoint"],
)
def test_a_pool_that_cannot_be_opened_leaves_no_folder(pool, message, make_recipe, tmp_path):
    path = tmp_path / "pool.yaml"
    recipe = make_pool_recipe(make_recipe, path)
    path.unlink()
    if pool is not None:
        path.write_text(yaml.safe_dump(pool))
    with pytest.raises(RLRouteError, match=message):
        train_memory(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_start_that_is_cut_off_leaves_its_store_which_the_next_one_uses(
    make_recipe, tmp_path, monkeypatch
):
    recipe = make_recipe(updates=1, outcomes={"kind": "live"})

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("rlroute.trainers.memory_run.measure_reference", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train_memory(recipe, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [STORE_FILE]
    paid = (tmp_path / "run" / STORE_FILE).read_bytes()
    train_memory(recipe, tmp_path / "run")
    assert (tmp_path / "run" / STORE_FILE).read_bytes().startswith(paid)
    assert read_metrics(tmp_path / "run")[-1]["step"] == 1


def test_trees_that_a_pools_models_made_stay_where_a_start_is_cut_off(
    make_recipe, tmp_path, monkeypatch
):
    """They may have cost money; --overwrite takes them away."""
    simulated = {"type": "simulated", "skill": 1.0, "prices": {"input": 1.0, "output": 1.0}}
    path = tmp_path / "pool.yaml"
    path.write_text(yaml.safe_dump({"candidates": {"small": simulated, "large": simulated}}))
    recipe = make_recipe(
        models={"kind": "pool", "path": str(path)}, outcomes={"kind": "tabulated"}, updates=1
    )

    def make_tree(stage: MemoryStage, split: str) -> None:
        (stage.tree_folder / split).mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(MemoryStage, "audit", lambda stage: None)
    monkeypatch.setattr(MemoryStage, "open_outcomes", make_tree)
    with pytest.raises(KeyboardInterrupt):
        train_memory(recipe, tmp_path / "run")
    assert (tmp_path / "run" / "tree" / "train").exists()
    with pytest.raises(RLRouteError, match="--overwrite"):
        train_memory(recipe, tmp_path / "run")
