"""What a run of a text policy leaves behind: files, a mirror in W&B offline, and no key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from text_world import ALGORITHMS, DEAD_WORLD, make_recipe
from wandb_files import read_history

torch = pytest.importorskip("torch")
pytest.importorskip("trl", reason="the extra `text` is absent")
pytest.importorskip("wandb", reason="the extra `train` is absent")

from rlroute.config import load_config  # noqa: E402
from rlroute.tracking import read_metrics  # noqa: E402
from rlroute.trainers.text_recipe import TextRecipe  # noqa: E402
from rlroute.trainers.text_run import train_text  # noqa: E402

KEY = "f" * 31 + "0123456789"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three updates, tracked offline, with keys in the environment."""
    folder = tmp_path_factory.mktemp("tracked") / "run"
    recipe = make_recipe(
        updates=3,
        world=DEAD_WORLD,
        validation={"every": 2, "questions": 8, "cost_weights": [0.0, 0.8]},
        tracking={"wandb": True, "project": "rlroute-tests"},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_DIR", str(folder))
        patch.setenv("WANDB_MODE", "offline")
        for name in ("WANDB_API_KEY", "OPENAI_API_KEY", "HF_TOKEN"):
            patch.setenv(name, KEY)
        train_text(recipe, folder, command="rlroute train x.yaml")
    return folder


def test_wandb_offline_holds_every_scalar_of_the_local_rows(folder: Path) -> None:
    history = read_history(folder)
    for row in read_metrics(folder):
        step = row["step"]
        told: dict[str, Any] = {}
        for found in history:
            if found.get("step") == step or found.get("_step") == step:
                told |= found
        for name, value in row.items():
            if value is not None:
                assert told[name] == pytest.approx(value), (step, name)


def test_wandb_offline_holds_a_table_of_sampled_episodes_with_reward_terms(folder: Path) -> None:
    tables = sorted(folder.rglob("media/table/trajectories*.table.json"))
    assert len(tables) == 2  # after updates 2 and 3
    written = [
        json.loads(line) for line in (folder / "trajectories.jsonl").read_text("utf-8").splitlines()
    ]
    rows = []
    for path in sorted(tables, key=lambda path: int(path.name.split("_")[1])):
        content = json.loads(path.read_text("utf-8"))
        assert {
            *("query", "question", "text", "calls", "failure", "policy_version"),
            *("format", "outcome", "cost", "charge_usd", "reward"),
        } <= set(content["columns"])
        rows += [dict(zip(content["columns"], data, strict=True)) for data in content["data"]]
    assert len(rows) == len(written) == 2 * 8
    for row, line in zip(rows, written, strict=True):
        assert row == {name: value for name, value in line.items() if name != "step"}
    assert any(row["failure"] == "server" and row["reward"] is None for row in rows)
    assert any(row["failure"] == "" and row["reward"] is not None for row in rows)


def test_no_key_is_in_any_file(folder: Path) -> None:
    assert read_history(folder)  # all is written
    paths = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in paths)
    for path in paths:
        content = path.read_bytes()
        assert KEY.encode() not in content, path
        assert KEY.encode("utf-16-le") not in content, path


def test_the_run_folder_holds_what_its_description_says(folder: Path) -> None:
    names = {path.name for path in folder.iterdir() if path.name != "wandb"}
    assert names == {
        *("recipe.resolved.yaml", "run.json", "metrics.jsonl", "events.log"),
        *("trajectories.jsonl", "trainer", "best"),
    }
    recipe = load_config(TextRecipe, folder / "recipe.resolved.yaml")
    assert recipe.algorithm.kind == "grpo"
    assert recipe.algorithm.episodes == ALGORITHMS["grpo"]["episodes"]
    facts = json.loads((folder / "run.json").read_text("utf-8"))
    assert facts["processes"] == 1
    assert {"rlroute", "torch", "transformers", "trl", "python", "command"} <= set(facts)
    for path in (folder / "best").iterdir():
        assert path.suffix in {".json", ".jinja", ".safetensors"}, path


def test_the_rows_have_the_fixed_names(folder: Path) -> None:
    rows = read_metrics(folder)
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    evaluated = {
        *("eval/reward", "eval/success", "eval/valid_format", "eval/charge_usd", "eval/calls"),
        *("eval/reward/at_0", "eval/reward/at_0.8", "eval/success/at_0.8"),
    }
    assert evaluated <= set(rows[0])
    trained = {
        *("policy/loss", "policy/entropy", "policy/grad_norm", "policy/clip_frac"),
        *("policy/learning_rate", "mismatch/kl", "mismatch/abs_diff", "mismatch/ratio_p95"),
        *("reward/mean", "reward/format/mean", "reward/outcome/mean", "reward/cost/mean"),
        *("reward/outcome/std", "reward/outcome/frac_undefined", "group/frac_zero_std"),
        *("group/dropped", "format/valid_rate", "cost/usd_per_query", "cost/usd_billed"),
        *("cost/usd_total", "cache/hit_rate", "episode/calls", "episode/turns"),
        *("episode/tokens", "episode/frac_truncated", "selection/entropy", "collapse/alarm"),
        *("time/rollout", "time/update", "errors/server"),
        *(f"selection/share/{name}" for name in ("alpha", "beta", "large", "small")),
    }
    for row in rows[1:]:
        assert trained <= set(row), trained - set(row)
    assert not evaluated & set(rows[1])
    assert evaluated <= set(rows[2])
    assert evaluated <= set(rows[3])  # the last one is always measured
    assert all(name.partition("/")[1] for name in rows[3] if name != "step")
