"""The recipes of the multi-round shape, and what the command line says to faulty ones."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rlroute.config import load_config
from rlroute.pool.pool_file import load_pool
from rlroute.trainers.text_recipe import TextRecipe
from rlroute.types import RLRouteError

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "recipes" / "multi_round"
RECIPES = sorted([*FOLDER.glob("*_grpo.yaml"), *FOLDER.glob("*_ppo.yaml")])
TINY = FOLDER / "tiny_grpo.yaml"


def run_cli(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "rlroute", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_multi_round_recipe_parses_and_says_what_it_is(recipe):
    parsed = load_config(TextRecipe, recipe)
    comments = "\n".join(
        line for line in recipe.read_text(encoding="utf-8").splitlines() if line.startswith("#")
    )
    for word in ("What:", "Command:", "Hardware:", "Time:", "Expected:"):
        assert word in comments, f"{recipe.name}: the header lacks {word}"
    assert recipe.name in comments or "make smollm2" in comments
    if parsed.pool is not None:
        assert load_pool(ROOT / parsed.pool).candidates


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("algorithm.group_sise=4", ["algorithm.group_sise", "group_size"]),
        ("algorithm.episodes=22", ["algorithm", "multiple of group_size"]),
        ("warm_start=null", ["warm_start", "new model"]),
        ("pool=pool.yaml", ["pool", "relations"]),
        ("rollout.max_new_tokens=400", ["context_tokens"]),
        ("reward.normaliser.reference_usd=1", ["questions.world.reference_usd"]),
        ("rollout.sampler={kind: vllm, url: u, served_model: m, sync: folder}", ["folder"]),
        ("environment=multi_rond", ["environment"]),
    ],
)
def test_a_recipe_that_does_not_hold_together_is_refused_by_key(override, words):
    with pytest.raises(RLRouteError) as caught:
        load_config(TextRecipe, TINY, [override])
    for word in words:
        assert word in str(caught.value)


def test_an_unknown_environment_is_refused_with_the_known_ones(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("environment: chess\n", encoding="utf-8")
    done = run_cli("train", recipe, cwd=tmp_path)
    assert done.returncode == 2
    assert "environment 'chess' is unknown (allowed: single_turn, multi_round, " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_dry_run_of_a_text_recipe_writes_nothing(tmp_path):
    done = run_cli("train", TINY, "updates=3", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "updates: 3" in done.stdout
    assert "3 updates x 128 episodes (grpo, groups of 4)" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_shares_that_do_not_come_out_are_refused_before_anything_is_written(tmp_path):
    done = run_cli("train", TINY, "algorithm.micro_batch=48", cwd=tmp_path)
    assert done.returncode == 2
    assert "must be a multiple of micro_batch x minibatches" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_commands_of_the_readme_run_as_written(tmp_path):
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```sh\npip install .*?\n(.*?)```", text, re.DOTALL)
    commands = block[1]
    short = ["updates=1", "warm_start.episodes=128", "warm_start.epochs=1", "questions.test=8"]
    short += ["validation.questions=8", "algorithm.episodes=16", "algorithm.micro_batch=16"]
    short += ["algorithm.minibatches=1"]
    assert TINY.name in commands
    commands = commands.replace(TINY.name, " ".join([TINY.name, *short]), 1)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-ec", commands],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "runs" / "tiny" / "report.html").exists()


def test_a_missing_text_extra_is_named(tmp_path):
    code = (
        "import sys\nsys.modules['trl'] = None\nfrom rlroute.cli import main\n"
        f"sys.argv = ['rlroute', 'train', {str(TINY)!r}]\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "rlroute[text]" in done.stderr
    assert list(tmp_path.iterdir()) == []
