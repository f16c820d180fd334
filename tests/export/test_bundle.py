"""Exported routers on disk: round trip, refusals, what the folder holds and what its card says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlroute.config import StrictModel, dump_config
from rlroute.data.candidate_files import dump_candidates, dump_scale
from rlroute.export.bundle import (
    CHECKSUM_KEY,
    MANIFEST_FILE,
    WEIGHTS_FILE,
    BundleContents,
    compute_checksum,
    describe_file,
    list_files,
    read_bundle,
    write_bundle,
)
from rlroute.export.model_card import render_card
from rlroute.export.summary import TrainingSummary, summarise_test
from rlroute.types import RLRouteError

FILES = [
    "MODEL_CARD.md",
    "encoder/encoder.json",
    "encoder/encoder.safetensors",
    "encoder/vocabulary.json",
    "manifest.json",
    "policy.safetensors",
    "recipe.yaml",
]


@pytest.fixture
def folder(router_contents: BundleContents, tmp_path: Path) -> Path:
    path = tmp_path / "my-router"
    write_bundle(router_contents, path)
    return path


def refuse(folder: Path) -> str:
    """Return the one line with which a folder is refused."""
    with pytest.raises(RLRouteError) as caught:
        read_bundle(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def reseal(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest and give it a checksum that fits."""
    path = folder / MANIFEST_FILE
    content = json.loads(path.read_bytes())
    change(content)
    content[CHECKSUM_KEY] = compute_checksum(content)
    path.write_text(json.dumps(content), encoding="utf-8")


# --- Round trip -----------------------------------------------------------------------------------


def test_a_router_reads_back_exactly(router_contents: BundleContents, folder: Path) -> None:
    back = read_bundle(folder)
    assert back.scorer == router_contents.scorer
    assert back.weights.keys() == router_contents.weights.keys()
    for name, value in router_contents.weights.items():
        assert torch.equal(back.weights[name], value)
    assert back.encoder.fingerprint() == router_contents.encoder.fingerprint()
    assert dump_candidates(back.candidates) == dump_candidates(router_contents.candidates)
    assert dump_scale(back.scale) == dump_scale(router_contents.scale)
    assert (back.cost_weight_min, back.cost_weight_max) == (0.0, 10.0)
    assert TrainingSummary.model_validate(back.summary) == TrainingSummary.model_validate(
        router_contents.summary
    )
    assert back.recipe_yaml == router_contents.recipe_yaml


def test_the_same_router_gives_the_same_bytes(
    router_contents: BundleContents, folder: Path, tmp_path: Path
) -> None:
    write_bundle(router_contents, tmp_path / "again")
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_the_folder_holds_these_files_and_no_pickle(folder: Path) -> None:
    assert list_files(folder, hidden=True) == FILES
    for name in FILES:
        data = (folder / name).read_bytes()
        assert not data.startswith((b"\x80", b"PK")), name  # pickle, and torch's zip of pickles
        if not name.endswith(".safetensors"):
            data.decode("utf-8")


def test_a_bundle_is_replaced_and_nothing_else_is(
    router_contents: BundleContents, folder: Path, tmp_path: Path
) -> None:
    write_bundle(replace(router_contents, recipe_yaml="seed: 4\n"), folder)
    assert read_bundle(folder).recipe_yaml == "seed: 4\n"
    assert [path.name for path in tmp_path.iterdir()] == ["my-router"]

    (folder / "notes.txt").write_text("mine")
    with pytest.raises(RLRouteError, match=r"'notes.txt', which is no part of the router"):
        write_bundle(router_contents, folder)
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_foreign_folder_is_not_overwritten(
    router_contents: BundleContents, tmp_path: Path
) -> None:
    (tmp_path / "thesis.md").write_text("mine")
    with pytest.raises(RLRouteError, match="no exported router; name a new folder"):
        write_bundle(router_contents, tmp_path)
    with pytest.raises(RLRouteError, match="is a file"):
        write_bundle(router_contents, tmp_path / "thesis.md")
    assert (tmp_path / "thesis.md").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.md"]


def test_parts_that_do_not_fit_are_not_written(
    router_contents: BundleContents, tmp_path: Path
) -> None:
    weights = dict(router_contents.weights)
    name = "quality_tower.weight"
    bare = replace(router_contents.candidates[0], profile=None)
    wrongs: list[tuple[dict[str, Any], str]] = [
        ({"weights": weights | {name: weights[name][:-1]}}, f"another network \\('{name}'"),
        ({"weights": weights | {name: weights[name] * np.nan}}, f"'{name}' holds a value"),
        ({"scorer": router_contents.scorer.model_copy(update={"features": 9})}, "query features"),
        ({"candidates": (bare,)}, "no measured profile"),
        ({"candidates": ()}, "candidates"),
        ({"cost_weight_min": 11.0}, "min \\(11\\) is above max"),
        ({"summary": {"table": "birds"}}, "summary: queries"),
    ]
    for wrong, said in wrongs:
        with pytest.raises(RLRouteError, match=said):
            write_bundle(replace(router_contents, **wrong), tmp_path / "router")
    assert list(tmp_path.iterdir()) == []


def test_a_secret_in_a_recipe_reaches_no_file(
    router_contents: BundleContents, tmp_path: Path
) -> None:
    class Recipe(StrictModel):
        table: str
        api_key: str
        note: str

    canary = "sk-canary0123456789abcdef"
    recipe = Recipe(table="birds", api_key="plain-canary0123", note=f"billed to {canary}")
    write_bundle(replace(router_contents, recipe_yaml=dump_config(recipe)), tmp_path / "router")
    for name in FILES:
        assert b"canary0123" not in (tmp_path / "router" / name).read_bytes()


# --- Refusals -------------------------------------------------------------------------------------


def test_a_folder_without_a_router_is_refused(tmp_path: Path) -> None:
    assert "no exported router lies here" in refuse(tmp_path)
    assert "no exported router lies here" in refuse(tmp_path / "absent")


@pytest.mark.parametrize("name", FILES)
def test_a_torn_file_is_refused(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    for part in (data[: len(data) // 2], b""):
        (folder / name).write_bytes(part)
        message = refuse(folder)
        assert str(folder / name) in message
        assert "torn" in message


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    message = refuse(folder)
    assert name in message
    assert "missing" in message


@pytest.mark.parametrize("name", [name for name in FILES if name != MANIFEST_FILE])
def test_a_changed_byte_is_refused(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    for position in (0, len(data) // 2, len(data) - 1):
        changed = data.copy()
        changed[position] ^= 1
        (folder / name).write_bytes(changed)
        assert refuse(folder).startswith(f"{folder / name}: checksum differs")


@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_byte_of_the_manifest_is_refused_unless_it_says_the_same(
    folder: Path, place: float, byte: int
) -> None:
    path = folder / MANIFEST_FILE
    data = path.read_bytes()
    changed = bytearray(data)
    changed[int(place * len(data))] = byte
    path.write_bytes(changed)
    try:
        says_the_same = json.loads(changed) == json.loads(data)  # white space between two tokens
    except ValueError:
        says_the_same = False
    try:
        if says_the_same:
            read_bundle(folder)
        else:
            assert str(path) in refuse(folder)
    finally:
        path.write_bytes(data)


def test_a_changed_number_of_the_manifest_is_refused(folder: Path) -> None:
    path = folder / MANIFEST_FILE
    content = json.loads(path.read_bytes())
    content["candidates"][0]["prices"]["output"] = 0.0
    path.write_text(json.dumps(content))
    assert refuse(folder).startswith(f"{path}: checksum differs")


def test_a_newer_router_is_refused_before_anything_else_is_read(folder: Path) -> None:
    (folder / MANIFEST_FILE).write_text('{"format_version": 2, "shape": "another"}')
    assert "made by a newer rlroute (format_version 2, this one reads 1)" in refuse(folder)


@pytest.mark.parametrize("version", [0, None, "1", 1.5])
def test_a_version_that_never_was_is_refused(folder: Path, version: Any) -> None:
    reseal(folder, lambda content: content.update(format_version=version))
    assert "format_version" in refuse(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "1", '"text"', "\x00", "{}"])
def test_a_manifest_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / MANIFEST_FILE).write_text(text)
    assert str(folder / MANIFEST_FILE) in refuse(folder)


@pytest.mark.parametrize(
    "name",
    [
        "../outside.txt",
        "/etc/hostname",
        "encoder/../../outside.txt",
        "a/b.txt",
        "..",
        ".hidden",
        "encoder\\file",
        "",
        "line\nbreak",
        "manifest.json",
    ],
)
def test_a_listed_name_that_leads_elsewhere_is_refused(folder: Path, name: str) -> None:
    (folder.parent / "outside.txt").write_text("outside")
    entry = describe_file(folder.parent / "outside.txt")
    reseal(folder, lambda content: content["files"].update({name: entry}))
    assert "is no name that a bundle may list" in refuse(folder)


def test_a_file_that_is_not_listed_is_refused_unless_hidden(folder: Path) -> None:
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "state.json").write_text("{}")
    read_bundle(folder)
    (folder / "encoder" / "setup.py").write_text("print('run')")
    assert refuse(folder) == f"{folder / 'encoder' / 'setup.py'}: is not listed in manifest.json"


def test_a_list_without_a_required_file_is_refused(folder: Path) -> None:
    reseal(folder, lambda content: content["files"].pop(WEIGHTS_FILE))
    assert f"'{WEIGHTS_FILE}' is not listed" in refuse(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.update(extra=1), "unknown key 'extra'"),
        (lambda m: m.pop("cost_weight"), "cost_weight"),
        (lambda m: m["policy"].update(hidden=10**12), "another network"),
        (lambda m: m["policy"].update(features=15), "the policy reads 15 query features"),
        (lambda m: m["features"].update(layout=["mean_score"]), "features.layout differs"),
        (lambda m: m["features"]["scale"]["scale"].append(1.0), "offsets but"),
        (lambda m: m["candidates"].append(m["candidates"][0]), "is listed twice"),
        (lambda m: m["candidates"][1].update(profile=None), "'model-1' has no measured profile"),
        (lambda m: m["encoder"].update(fingerprint="0" * 64), "not the encoder that the policy"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(
    folder: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    reseal(folder, change)
    message = refuse(folder)
    assert said in message
    assert str(folder) in message


def test_weights_that_are_no_safetensors_are_refused(folder: Path) -> None:
    (folder / WEIGHTS_FILE).write_bytes(b"\x80\x04K\x01.")  # a pickle
    entry = describe_file(folder / WEIGHTS_FILE)
    reseal(folder, lambda content: content["files"].update({WEIGHTS_FILE: entry}))
    assert refuse(folder) == f"{folder / WEIGHTS_FILE}: torn or no safetensors file"


# --- The card -------------------------------------------------------------------------------------


def make_estimate(value: float | None) -> dict[str, float | None]:
    if value is None:
        return {"value": None, "low": None, "high": None}
    return {"value": value, "low": value - 0.01, "high": value + 0.01}


EVALUATION: dict[str, Any] = {
    "queries": 1200,
    "best_single": "model-3",
    "singles": [
        {"candidate_id": "model-0", "quality": {}, "cost_usd": {}},
        {
            "candidate_id": "model-3",
            "quality": make_estimate(0.7),
            "cost_usd": make_estimate(0.02),
        },
    ],
    "policies": [
        {
            "frontier": {"aiq": make_estimate(0.745), "aiq_gain": make_estimate(None)},
            "operating_points": [
                {
                    "label": "quality first",
                    "budget_usd": None,
                    "cost_weight": 0.0,
                    "quality": make_estimate(0.76),
                    "quality_gain": make_estimate(0.06),
                    "cost_usd": make_estimate(0.015),
                }
            ],
        }
    ],
}


def test_the_card_says_when_a_router_was_not_evaluated(router_contents: BundleContents) -> None:
    assert "Not evaluated" in render_card(router_contents)


def test_the_card_shows_test_numbers_with_intervals(router_contents: BundleContents) -> None:
    summary = router_contents.summary | {"test": summarise_test(EVALUATION)}
    card = render_card(replace(router_contents, summary=summary))
    assert "Not evaluated" not in card
    assert "1,200 queries" in card
    assert "0.745 [0.735, 0.755]" in card
    assert "+0.060 [+0.050, +0.070]" in card
    assert "15 [5, 25]" in card  # USD per 1,000 queries
    assert "always model-3" in card


def test_the_card_explains_the_cost_weight_in_money(router_contents: BundleContents) -> None:
    card = render_card(router_contents)
    assert "**0.00054 USD**" in card
    assert "**0 to 10**" in card
    assert "update 25, chosen by aiq on the validation split, where it was 0.7123" in card
    assert "$" not in card


def test_the_tables_of_the_card_align(router_contents: BundleContents) -> None:
    odd = replace(router_contents.candidates[0], id="a|b\nc")
    card = render_card(replace(router_contents, candidates=(odd, *router_contents.candidates)))
    lines = [line for line in card.splitlines() if line.startswith("|")]
    assert len(lines) == 7
    assert len({len(line) for line in lines}) == 1
    assert lines[2].startswith("| a\\|b c ")
