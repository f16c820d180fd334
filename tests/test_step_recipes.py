"""The recipes of step-by-step routing, and what the command line says to faulty ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlroute.config import load_config
from rlroute.pool.pool_file import load_pool
from rlroute.runs import find_schema
from rlroute.trainers.session_recipe import SessionRecipe
from rlroute.trainers.step_recipe import StepRecipe
from rlroute.types import RLRouteError

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "recipes" / "step_budget"
RECIPES = sorted(FOLDER.glob("*_*.yaml"))
CHAIN = FOLDER / "chain_grpo.yaml"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_parses_and_says_what_it_is(recipe):
    schema = find_schema(recipe)
    assert schema in (StepRecipe, SessionRecipe)
    parsed = load_config(schema, recipe)
    comments = "\n".join(
        line for line in recipe.read_text(encoding="utf-8").splitlines() if line.startswith("#")
    )
    for word in ("What:", "Command:", "Hardware:", "Time:", "Expected:"):
        assert word in comments, f"{recipe.name}: the header lacks {word}"
    assert recipe.name in comments
    if isinstance(parsed, StepRecipe) and parsed.pool is not None:
        assert load_pool(ROOT / parsed.pool).candidates


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("algorithm.group_sise=4", ["algorithm.group_sise", "group_size"]),
        ("algorithm.episodes=20", ["algorithm", "multiple of group_size"]),
        ("algorithm.blend_weight=0.3", ["blend_weight", "blend"]),
        ("world.kind=chess", ["world", "chain", "tool_graph", "dispatch", "twin_router"]),
        ("world.horizon=2", ["kinds", "horizon"]),
        ("budget.caps=[-1]", ["budget.caps", "0 or null"]),
        ("warm_start.dear_share=1", ["warm_start.dear_share"]),
        ("reward={charge: success, gate: false}", ["reward", "gate"]),
    ],
)
def test_a_faulty_setting_is_one_line_that_names_it(override, words):
    with pytest.raises(RLRouteError) as caught:
        load_config(StepRecipe, CHAIN, [override])
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_an_unknown_environment_is_refused_with_the_known_ones(tmp_path):
    text = CHAIN.read_text(encoding="utf-8")
    path = tmp_path / "recipe.yaml"
    path.write_text(text.replace("environment: step_budget", "environment: step_bugdet"))
    with pytest.raises(RLRouteError, match=r"'step_bugdet' is unknown .*step_budget, sessions"):
        find_schema(path)


def test_a_kl_term_without_a_warm_start_is_refused():
    with pytest.raises(RLRouteError, match="kl_weight holds on to the warm start"):
        load_config(StepRecipe, CHAIN, ["algorithm.kl_weight=0.01", "warm_start=null"])


@pytest.mark.parametrize(
    "recipe", [CHAIN, FOLDER / "sessions_cql.yaml"], ids=lambda path: path.stem
)
def test_a_dry_run_says_what_would_happen_and_writes_nothing(recipe, tmp_path):
    command = [sys.executable, "-m", "rlroute", "train", str(recipe), "--dry-run"]
    done = subprocess.run(
        [*command, "--run-folder", str(tmp_path / "run")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "nothing was trained or written" in done.stderr
    assert "updates x" in done.stderr
    assert "algorithm:" in done.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_train_evaluate_and_export_work_from_the_command_line(tmp_path):
    run = tmp_path / "run"
    small = ["world.train=40", "world.val=20", "world.test=40", "updates=4", "validation.every=2"]
    small += ["warm_start.epochs=2", "tracking.wandb=false"]
    for arguments in (
        ["train", CHAIN, *small, "--run-folder", run],
        ["evaluate", run],
        ["export", run, "--to", tmp_path / "router"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "rlroute", *map(str, arguments)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert (run / "report.html").exists()
    assert json.loads((run / "evaluation.json").read_text(encoding="utf-8"))["format_version"]
    assert (tmp_path / "router" / "bundle.json").exists()
