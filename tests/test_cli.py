"""The command line: quick help, refusals in one line with exit code 2, the way to a router."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlroute.data.table import OutcomeTable, write_table

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "recipes" / "single_turn").glob("*.yaml"))
SMALL = [
    "updates=2",
    "encoder.dimension=8",
    "encoder.min_documents=1",
    "profile.clusters=2",
    "cost_weight.max=2",
    "evaluation.cost_weights=5",
    "evaluation.bootstrap=20",
    "algorithm.episodes=64",
]


def run_cli(
    *arguments: object, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "rlroute", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture
def table(tiny_table: OutcomeTable, tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    write_table(tiny_table, folder)
    return folder


def assert_refused(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Check exit code 2 and one line that holds all parts."""
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    for part in parts:
        assert part in lines[0]


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys\nfrom rlroute import cli\n"
        "try:\n    cli.app(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'sklearn', 'scipy', 'numpy.linalg', 'pyarrow', 'matplotlib', 'wandb',"
        " 'accelerate', 'transformers', 'gymnasium', 'pydantic'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules) - {'numpy.linalg'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout
    commands = ("train", "evaluate", "compare", "sweep", "export", "validate", "import", "collect")
    for command in (*commands, "check-env", "robustness"):
        assert command in done.stdout


def test_unknown_keys_are_refused_before_anything_starts(
    tmp_path: Path,
) -> None:
    done = run_cli("train", RECIPES[0], "cost_wieght.max=2", cwd=tmp_path)
    assert_refused(done, "cost_wieght", "did you mean 'cost_weight'?", "valid here:")
    assert list(tmp_path.iterdir()) == []


def test_a_value_that_does_not_fit_is_refused_by_key(tmp_path: Path) -> None:
    assert_refused(run_cli("train", RECIPES[0], "updates=none", cwd=tmp_path), "updates")
    done = run_cli("train", RECIPES[0], "cost_weight.min=3", "cost_weight.max=2", cwd=tmp_path)
    assert_refused(done, "cost_weight", "min (3) must not be above max (2)")
    assert_refused(run_cli("train", RECIPES[0], "updates", cwd=tmp_path), "key=value")
    done = run_cli("train", RECIPES[0], "validation.metric=acc", cwd=tmp_path)
    assert_refused(done, "validation.metric", "'aiq', 'quality' or 'utility'")
    assert list(tmp_path.iterdir()) == []


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    assert_refused(run_cli("train", "absent.yaml", cwd=tmp_path), "absent.yaml")
    assert_refused(run_cli("train", RECIPES[0], "table=absent", cwd=tmp_path), "absent")
    assert_refused(run_cli("evaluate", "absent", cwd=tmp_path), "no run lies here")
    assert_refused(run_cli("export", "absent", "--to", "router", cwd=tmp_path), "no run lies here")
    assert_refused(run_cli("validate", "absent", cwd=tmp_path), "absent")
    assert_refused(run_cli("train", "--resume", "absent", cwd=tmp_path), "absent")
    assert list(tmp_path.iterdir()) == []


def test_a_faulty_table_leaves_no_run_behind(table: Path, tmp_path: Path) -> None:
    models = table / "models.csv"
    lines = models.read_text(encoding="utf-8").splitlines()
    models.write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")
    done = run_cli("train", RECIPES[0], f"table={table}", "--run-folder", tmp_path / "run")
    assert_refused(done, "records.csv.gz")
    assert not (tmp_path / "run").exists()


def test_a_dry_run_prints_the_recipe_and_writes_nothing(table: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = run_cli("train", RECIPES[0], f"table={table}", "updates=7", "--dry-run", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    assert "updates: 7" in done.stdout
    assert "12 queries" in done.stderr
    assert list(elsewhere.iterdir()) == []


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    code = (
        "import sys\nsys.modules['accelerate'] = None\nfrom rlroute.cli import main\n"
        f"sys.argv = ['rlroute', 'train', {str(RECIPES[0])!r}]\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert_refused(done, "accelerate", "rlroute[train]")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_parses_and_says_what_it_is(recipe: Path) -> None:
    from rlroute.config import load_config
    from rlroute.trainers.recipe import Recipe

    load_config(Recipe, recipe)
    header = recipe.read_text(encoding="utf-8").splitlines()
    comments = "\n".join(line for line in header if line.startswith("#"))
    for word in ("What:", "Command:", "Hardware:", "Time:", "Expected:"):
        assert word in comments, f"{recipe.name}: the header lacks {word}"


@pytest.mark.slow
def test_the_way_from_table_to_router_works_and_shows_no_key(table: Path, tmp_path: Path) -> None:
    canary = "sk-canary-7f3a91c2d4e5"
    environment = {
        "WANDB_MODE": "offline",
        "OPENAI_API_KEY": canary,
        "WANDB_API_KEY": f"{'a' * 31}canary9zz",
    }
    recipe = ROOT / "recipes" / "single_turn" / "mlp_ppo.yaml"
    run, router = tmp_path / "run", tmp_path / "router"
    steps = (
        ("train", recipe, f"table={table}", *SMALL, "--run-folder", run),
        ("evaluate", run),
        ("export", run, "--to", router),
    )
    for step in steps:
        done = run_cli(*step, cwd=tmp_path, **environment)
        assert done.returncode == 0, done.stderr
    assert (run / "report.html").stat().st_size > 10_000
    assert (run / "frontier.png").read_bytes().startswith(b"\x89PNG")
    evaluation = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    timed = [one["operating_points"][0]["efficiency"] for one in evaluation["policies"]]
    assert timed[0]["latency"]["router_seconds"] > 0
    assert {one["latency"]["router_seconds"] for one in timed[1:]} == {None}
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        content = path.read_bytes()
        assert canary.encode() not in content, path
        assert b"canary9zz" not in content, path
    code = (
        "from rlroute import Router\n"
        f"router = Router.load({str(router)!r})\n"
        "print(router.route('what is 3 plus 4', cost_weight=0.1).candidate_id)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in {"large", "small", "tool"}


@pytest.mark.slow
def test_wandb_holds_scalars_a_figure_and_a_table_offline(table: Path, tmp_path: Path) -> None:
    recipe = ROOT / "recipes" / "single_turn" / "mlp_ppo.yaml"
    run = tmp_path / "run"
    environment = {"WANDB_MODE": "offline", "WANDB_DIR": str(run)}
    done = run_cli("train", recipe, f"table={table}", *SMALL, "--run-folder", run, **environment)
    assert done.returncode == 0, done.stderr
    files = [path.name for path in run.rglob("wandb/**/*") if path.is_file()]
    assert any(name.endswith(".wandb") for name in files)
    assert any(name.startswith("decisions") and name.endswith(".table.json") for name in files)
    assert any(name.startswith("frontier") and name.endswith(".png") for name in files)
