"""Exported tier routers on disk: round trip, and folders that are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from step_router_example import make_bundle as make_step_bundle
from tier_router_example import make_bundle

from rlroute import StepRouter, TierRouter
from rlroute.config import StrictModel, dump_config
from rlroute.export.bundle import CHECKSUM_KEY, compute_checksum, list_files
from rlroute.export.sealed_folder import BUNDLE_FILE, describe_file
from rlroute.export.step_bundle import write_step_bundle
from rlroute.export.tier_bundle import WEIGHTS_FILE, read_tier_bundle, write_tier_bundle
from rlroute.export.tier_model_card import TierSummary
from rlroute.memory.outcomes import PipelineFacts
from rlroute.policies.tier_scorer import TierScorer
from rlroute.types import RLRouteError

FILES = [
    *("README.md", "bundle.json", "encoder/encoder.json", "encoder/encoder.safetensors"),
    *("encoder/vocabulary.json", "policy.safetensors", "recipe.yaml"),
]
# how pickles of protocols 2 to 5 begin, and torch's zip of pickles
PICKLES = (*(bytes([0x80, protocol]) for protocol in range(2, 6)), b"PK")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "my-router"
    write_tier_bundle(make_bundle(), path)
    return path


def refuse(folder: Path) -> str:
    """Return the one line with which a folder is refused."""
    with pytest.raises(RLRouteError) as caught:
        TierRouter.load(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def reseal(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest and give it a checksum that fits."""
    path = folder / BUNDLE_FILE
    content = json.loads(path.read_bytes())
    change(content)
    content[CHECKSUM_KEY] = compute_checksum(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def relist(folder: Path, name: str) -> None:
    """Let the manifest list a file as it is now."""
    entry = describe_file(folder / name)
    reseal(folder, lambda content: content["files"].update({name: entry}))


# --- Round trip -----------------------------------------------------------------------------------


def test_a_router_reads_back_exactly(folder: Path) -> None:
    bundle, back = make_bundle(), read_tier_bundle(folder)
    for name in ("facts", "tier_usd", "reference_usd", "cost_weight_min", "cost_weight_max"):
        assert getattr(back, name) == getattr(bundle, name)
    assert back.recipe_yaml == bundle.recipe_yaml
    assert TierSummary.model_validate(back.summary) == TierSummary.model_validate(bundle.summary)
    assert back.encoder.fingerprint() == bundle.encoder.fingerprint()
    assert back.scorer.config == bundle.scorer.config
    for name, value in bundle.scorer.state_dict().items():
        assert torch.equal(back.scorer.state_dict()[name], value)


def test_a_router_keeps_the_profiles_that_its_policy_started_from(tmp_path: Path) -> None:
    bundle = make_bundle(profiles=True)
    write_tier_bundle(bundle, tmp_path / "router")
    back = read_tier_bundle(tmp_path / "router")
    assert back.scorer.config.start == bundle.scorer.config.start
    held, kept = bundle.scorer.state_dict(), back.scorer.state_dict()
    assert {"start.score_CL", "start.projection_EP"} <= set(held)
    assert all(torch.equal(kept[name], value) for name, value in held.items())
    for counts, said in (
        ([2, 3, 2, 3], "is \\[2, 3, 2, 3\\], the router"),
        ([2, 3], "start.counts"),
    ):
        reseal(tmp_path / "router", lambda m, c=counts: m["policy"]["start"].update(counts=c))
        with pytest.raises(RLRouteError, match=said):
            read_tier_bundle(tmp_path / "router")


def test_the_same_router_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_tier_bundle(make_bundle(), tmp_path / "again")
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_the_folder_holds_these_files_and_no_pickle(folder: Path) -> None:
    assert list_files(folder, hidden=True) == FILES
    for name in FILES:
        data = (folder / name).read_bytes()
        assert not data.startswith(PICKLES), name
        assert (folder / name).stat().st_mode & 0o777 == 0o644
        if not name.endswith(".safetensors"):
            data.decode("utf-8")


def test_a_secret_in_a_recipe_reaches_no_file(tmp_path: Path) -> None:
    class Recipe(StrictModel):
        api_key: str
        note: str

    recipe = Recipe(api_key="plain-canary0123", note="billed to sk-canary0123456789abcdef")
    write_tier_bundle(replace(make_bundle(), recipe_yaml=dump_config(recipe)), tmp_path / "router")
    for name in FILES:
        assert b"canary0123" not in (tmp_path / "router" / name).read_bytes()


def test_a_router_is_replaced_and_nothing_else_is(folder: Path, tmp_path: Path) -> None:
    write_tier_bundle(replace(make_bundle(), recipe_yaml="seed: 4\n"), folder)
    assert read_tier_bundle(folder).recipe_yaml == "seed: 4\n"
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(RLRouteError, match=r"'notes.txt', which is no part of the router"):
        write_tier_bundle(make_bundle(), folder)
    write_step_bundle(make_step_bundle(), tmp_path / "other")
    for place, said in (
        (tmp_path, "holds no exported tier router; name a new folder"),
        (folder / "notes.txt", "holds no exported tier router"),
        (tmp_path / "other", "kind"),  # a router of another kind
    ):
        with pytest.raises(RLRouteError, match=said):
            write_tier_bundle(make_bundle(), place)
    assert (folder / "notes.txt").read_text() == "mine"
    StepRouter.load(tmp_path / "other")


def test_parts_that_do_not_fit_are_not_written(tmp_path: Path) -> None:
    bundle = make_bundle()
    modules = bundle.facts.modules
    swapped = (modules[3], *modules[1:3], modules[0])
    broken, undescribed = TierScorer(bundle.scorer.config), TierScorer(bundle.scorer.config)
    broken.text_layer.weight.data.fill_(float("nan"))
    other = bundle.scorer.config.model_copy(update={"tiers": 4})
    wrongs: list[tuple[dict[str, Any], str]] = [
        ({"scorer": broken}, "'text_layer.weight' holds a value"),
        ({"scorer": undescribed}, "describes tiers of other costs"),
        ({"scorer": TierScorer(other)}, "policy.tiers: is 4, the router has 3"),
        ({"reference_usd": 0.0}, "reference_usd"),
        ({"reference_usd": 0.006}, "describes tiers of other costs"),
        ({"tier_usd": ((0.0, float("nan")), *bundle.tier_usd[1:])}, "mean_cost_usd"),
        ({"cost_weight_min": 0.6}, r"min \(0.6\) is above max \(0.5\)"),
        ({"facts": PipelineFacts(modules, "none")}, "pipeline"),
        ({"facts": PipelineFacts(swapped, "ab" * 32)}, "one filter, then"),
        ({"summary": {"data": "generated"}}, "summary: questions"),
    ]
    for wrong, said in wrongs:
        with pytest.raises(RLRouteError, match=said):
            write_tier_bundle(replace(bundle, **wrong), tmp_path / "router")
    assert list(tmp_path.iterdir()) == []


# --- Refusals -------------------------------------------------------------------------------------


def test_a_folder_without_a_router_or_with_another_is_refused(tmp_path: Path) -> None:
    assert "no exported tier router lies here" in refuse(tmp_path)
    assert "no exported tier router lies here" in refuse(tmp_path / "absent")
    write_step_bundle(make_step_bundle(), tmp_path / "step")
    assert str(tmp_path / "step") in refuse(tmp_path / "step")
    write_tier_bundle(make_bundle(), tmp_path / "tiers")
    with pytest.raises(RLRouteError, match=r"kind|unknown key"):
        StepRouter.load(tmp_path / "tiers")


@pytest.mark.parametrize("name", FILES)
def test_a_torn_missing_or_changed_file_is_refused(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    for part in (data[: len(data) // 2], b""):
        (folder / name).write_bytes(part)
        assert str(folder / name) in refuse(folder)
    if name != BUNDLE_FILE:
        changed = bytearray(data)
        changed[len(data) // 2] ^= 1
        (folder / name).write_bytes(changed)
        assert refuse(folder).startswith(f"{folder / name}: checksum differs")
    (folder / name).unlink()
    assert "missing" in refuse(folder)


@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_byte_of_the_manifest_is_refused_unless_it_says_the_same(
    folder: Path, place: float, byte: int
) -> None:
    path = folder / BUNDLE_FILE
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
            read_tier_bundle(folder)
        else:
            assert str(path) in refuse(folder)
    finally:
        path.write_bytes(data)


@pytest.mark.parametrize("version", [2, 0, None, "1"])
def test_another_version_is_refused_before_anything_else_is_read(
    folder: Path, version: Any
) -> None:
    (folder / BUNDLE_FILE).write_text(json.dumps({"format_version": version, "shape": "another"}))
    message = refuse(folder)
    assert f"format_version {version!r}, this rlroute reads 1" in message
    assert ("made by a newer rlroute" in message) == (version == 2)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "../outside.txt",
            "/etc/hosts.txt",
            "encoder/../../outside.txt",
            "policy/a.txt",
            ".h.txt",
        ),
        *("encoder/model.bin", "weights.pkl", "encoder/code.py", "", "bundle.json"),
    ],
)
def test_a_name_that_leads_elsewhere_or_may_hold_code_is_refused(folder: Path, name: str) -> None:
    (folder.parent / "outside.txt").write_text("outside")
    entry = describe_file(folder.parent / "outside.txt")
    reseal(folder, lambda content: content["files"].update({name: entry}))
    assert "is no name that a bundle may list" in refuse(folder)


def test_a_file_that_is_not_listed_is_refused_unless_hidden(folder: Path) -> None:
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs")
    read_tier_bundle(folder)
    (folder / "setup.py").write_text("print('run')")
    assert refuse(folder) == f"{folder / 'setup.py'}: is not listed in bundle.json"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.update(extra=1), "unknown key 'extra'"),
        (lambda m: m.update(kind="step"), "kind"),
        (lambda m: m.pop("reference_usd"), "reference_usd"),
        (lambda m: m.update(reference_usd=0.004), "describes tiers of other costs"),
        (lambda m: m["files"].pop(WEIGHTS_FILE), f"'{WEIGHTS_FILE}' is not listed"),
        (lambda m: m["files"].pop("encoder/encoder.json"), "'encoder/encoder.json' is not listed"),
        (lambda m: m["policy"].update(hidden=16), "of another network"),
        (lambda m: m["policy"].update(hidden=10**12), "of another network"),
        (lambda m: m["policy"].update(extras=14), "policy.extras: is 14, the router has 15"),
        (lambda m: m["policy"].update(dimension=5), "policy.dimension: is 5, the router has 4"),
        (lambda m: m["encoder"].update(fingerprint="0" * 64), "is not the encoder"),
        (lambda m: m["modules"].pop(0), "one filter, then extractors"),
        (lambda m: m["modules"][1].update(name="filter"), "the name 'filter' stands twice"),
        (lambda m: m["modules"][1].update(name="a b"), "modules.1.name"),
        (lambda m: m["modules"][1]["tiers"].pop(), "policy.extras: is 15, the router has 11"),
        (lambda m: m["modules"][0]["tiers"][1].update(name="Low"), "'Low' stands twice"),
        (lambda m: m["modules"][0]["tiers"][1].update(mean_cost_usd=0.002), "of other costs"),
        (lambda m: m["modules"][0]["tiers"][1].update(mean_cost_usd=-1), "mean_cost_usd"),
        (lambda m: m["cost_weight"].update(min=2.0), "min (2) is above max"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(
    folder: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    reseal(folder, change)
    message = refuse(folder)
    assert said in message
    assert str(folder) in message


def test_weights_that_are_none_are_refused(folder: Path) -> None:
    (folder / WEIGHTS_FILE).write_bytes(b"\x80\x04K\x01.")  # a pickle
    relist(folder, WEIGHTS_FILE)
    assert refuse(folder) == f"{folder / WEIGHTS_FILE}: torn or no safetensors file"
