"""Exported step routers on disk: round trip, and folders that are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from step_router_example import find_choice_run, make_bundle

from rlroute.config import StrictModel, dump_config
from rlroute.export.bundle import CHECKSUM_KEY, compute_checksum, list_files
from rlroute.export.sealed_folder import BUNDLE_FILE, describe_file
from rlroute.export.step_bundle import (
    WEIGHTS_FILE,
    ChoiceNetwork,
    StepBundle,
    read_step_bundle,
    write_step_bundle,
)
from rlroute.export.step_model_card import StepSummary
from rlroute.policies.step_scorer import StepScorer, StepScorerConfig
from rlroute.runs import export_run
from rlroute.trainers.step_policy import load_policy
from rlroute.types import Prices, RLRouteError
from rlroute.worlds.open import open_world

FILES = ["README.md", "bundle.json", "policy.safetensors", "recipe.yaml"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "my-router"
    write_step_bundle(make_bundle(), path)
    return path


@pytest.fixture(scope="module")
def choice_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported language model; tests work on copies."""
    to = tmp_path_factory.mktemp("exports") / "router"
    export_run(find_choice_run()[1], to)
    return to


def refuse(folder: Path) -> str:
    """Return the one line with which a folder is refused."""
    with pytest.raises(RLRouteError) as caught:
        read_step_bundle(folder)
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


def get_weights(bundle: StepBundle) -> Mapping[str, torch.Tensor]:
    assert isinstance(bundle.network, StepScorer)
    return bundle.network.state_dict()


# --- Round trip -----------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["calls", "usd"])
def test_a_router_reads_back_exactly(tmp_path: Path, unit: str) -> None:
    bundle = make_bundle(unit)
    priced = replace(
        bundle.executors[1],
        prices=Prices(2.0, 8.0, per_call=0.001, cached_input=0.5, date="2026-01-31"),
        kind="agent",
        description="Größe | 小",
        aliases=("big",),
    )
    bundle = replace(bundle, executors=(bundle.executors[0], priced))
    write_step_bundle(bundle, tmp_path / "router")
    back = read_step_bundle(tmp_path / "router")
    assert back.executors == bundle.executors
    np.testing.assert_array_equal(back.executor_features_KD, bundle.executor_features_KD)
    assert back.executor_features_KD.dtype == np.float32
    assert (back.feature_names, back.horizon) == (bundle.feature_names, bundle.horizon)
    assert back.environment == bundle.environment
    assert StepSummary.model_validate(back.summary) == StepSummary.model_validate(bundle.summary)
    assert back.recipe_yaml == bundle.recipe_yaml
    for name, value in get_weights(bundle).items():
        assert torch.equal(get_weights(back)[name], value)


def test_the_same_router_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_step_bundle(make_bundle(), tmp_path / "again")
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_the_folder_holds_these_files_and_no_pickle(folder: Path, choice_folder: Path) -> None:
    assert list_files(folder, hidden=True) == FILES
    names = list_files(choice_folder, hidden=True)
    assert set(FILES) - {WEIGHTS_FILE} <= set(names)
    assert {"policy/config.json", "policy/choice.json", "policy/model.safetensors"} <= set(names)
    assert not any("best" in name for name in names)
    for place, name in [(folder, name) for name in FILES] + [
        (choice_folder, name) for name in names
    ]:
        data = (place / name).read_bytes()
        assert not data.startswith((b"\x80", b"PK")), name  # pickle, and torch's zip of pickles
        assert (place / name).stat().st_mode & 0o777 == 0o644
        if not name.endswith(".safetensors"):
            data.decode("utf-8")


def test_a_language_model_reads_back_exactly(choice_folder: Path) -> None:
    recipe, run = find_choice_run()
    world = open_world(recipe.world)
    trained, _ = load_policy(run / "best", recipe.policy, world, features=8)
    back = read_step_bundle(choice_folder).network
    assert isinstance(back, ChoiceNetwork)
    assert trained.encoder is not None
    assert back.encoder.labels == trained.encoder.labels
    assert back.encoder.instructions == trained.encoder.instructions
    assert back.context_tokens == 300
    weights = back.model.state_dict()
    for name, value in trained.network.state_dict().items():
        assert torch.equal(weights[name].cpu(), value.cpu())


def test_a_router_is_replaced_and_nothing_else_is(folder: Path, tmp_path: Path) -> None:
    write_step_bundle(replace(make_bundle(), recipe_yaml="seed: 4\n"), folder)
    assert read_step_bundle(folder).recipe_yaml == "seed: 4\n"
    assert [path.name for path in tmp_path.iterdir()] == ["my-router"]

    (folder / "notes.txt").write_text("mine")
    with pytest.raises(RLRouteError, match=r"'notes.txt', which is no part of the router"):
        write_step_bundle(make_bundle(), folder)
    assert (folder / "notes.txt").read_text() == "mine"
    for place, said in (
        (tmp_path, "holds no exported step router; name a new folder"),
        (folder / "notes.txt", "holds no exported step router"),
    ):
        with pytest.raises(RLRouteError, match=said):
            write_step_bundle(make_bundle(), place)
    assert (folder / "notes.txt").read_text() == "mine"


def test_parts_that_do_not_fit_are_not_written(tmp_path: Path) -> None:
    bundle = make_bundle()
    assert isinstance(bundle.network, StepScorer)
    broken = StepScorer(bundle.network.config)
    broken.executor_tower.weight.data.fill_(float("nan"))
    uncounted = bundle.environment.budget.model_copy(update={"counted": ("gpt",)})
    wrongs: list[tuple[dict[str, Any], str]] = [
        ({"network": broken}, "'executor_tower.weight' holds a value"),
        ({"network": StepScorer(StepScorerConfig(features=9, described=3))}, "reads 9 features"),
        ({"network": StepScorer(StepScorerConfig(features=8, described=4))}, "4 of an executor"),
        ({"executors": bundle.executors[:1]}, "executor_features: one row for each executor"),
        ({"executors": bundle.executors[:1] * 2}, "'small' is listed twice"),
        ({"feature_names": ("critical", "hint", "hint")}, "feature_names: a name stands twice"),
        ({"horizon": 0}, "horizon"),
        ({"summary": {"world": "chain"}}, "summary: tasks"),
        (
            {"environment": bundle.environment.model_copy(update={"budget": uncounted})},
            "counted: must name executors",
        ),
    ]
    for wrong, said in wrongs:
        with pytest.raises(RLRouteError, match=said):
            write_step_bundle(replace(bundle, **wrong), tmp_path / "router")
    assert list(tmp_path.iterdir()) == []


def test_a_secret_in_a_recipe_reaches_no_file(tmp_path: Path) -> None:
    class Recipe(StrictModel):
        api_key: str
        note: str

    recipe = Recipe(api_key="plain-canary0123", note="billed to sk-canary0123456789abcdef")
    write_step_bundle(replace(make_bundle(), recipe_yaml=dump_config(recipe)), tmp_path / "router")
    for name in FILES:
        assert b"canary0123" not in (tmp_path / "router" / name).read_bytes()


# --- Refusals -------------------------------------------------------------------------------------


def test_a_folder_without_a_router_is_refused(tmp_path: Path) -> None:
    assert "no exported step router lies here" in refuse(tmp_path)
    assert "no exported step router lies here" in refuse(tmp_path / "absent")


@pytest.mark.parametrize("name", FILES)
def test_a_torn_or_missing_file_is_refused(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    for part in (data[: len(data) // 2], b""):
        (folder / name).write_bytes(part)
        message = refuse(folder)
        assert str(folder / name) in message
        assert "torn" in message
    (folder / name).unlink()
    message = refuse(folder)
    assert name in message
    assert "missing" in message


@pytest.mark.parametrize("name", [name for name in FILES if name != BUNDLE_FILE])
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
            read_step_bundle(folder)
        else:
            assert str(path) in refuse(folder)
    finally:
        path.write_bytes(data)


@pytest.mark.parametrize("version", [2, 0, None, "1", 1.5])
def test_another_version_is_refused_before_anything_else_is_read(
    folder: Path, version: Any
) -> None:
    content = {"format_version": version, "shape": "another"}
    (folder / BUNDLE_FILE).write_text(json.dumps(content))
    message = refuse(folder)
    assert f"format_version {version!r}, this rlroute reads 1" in message
    assert ("made by a newer rlroute" in message) == (version == 2)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "1", '"text"', "\x00", "{}"])
def test_a_manifest_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / BUNDLE_FILE).write_text(text)
    assert str(folder / BUNDLE_FILE) in refuse(folder)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "../outside.txt",
            "/etc/hosts.txt",
            "policy/../../outside.txt",
            "a/b.txt",
            "..",
            ".h.txt",
        ),
        *("policy\\file.txt", "", "line\nbreak.txt", "bundle.json", "policy/pytorch_model.bin"),
        *("policy/model.pt", "weights.pkl", "policy/modeling.py", "policy/x.npy", "policy/.x.json"),
    ],
)
def test_a_name_that_leads_elsewhere_or_may_hold_code_is_refused(folder: Path, name: str) -> None:
    (folder.parent / "outside.txt").write_text("outside")
    entry = describe_file(folder.parent / "outside.txt")
    reseal(folder, lambda content: content["files"].update({name: entry}))
    assert "is no name that a bundle may list" in refuse(folder)


def test_a_file_that_is_not_listed_is_refused_unless_hidden(folder: Path) -> None:
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs")
    read_step_bundle(folder)
    (folder / "setup.py").write_text("print('run')")
    assert refuse(folder) == f"{folder / 'setup.py'}: is not listed in bundle.json"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.update(extra=1), "unknown key 'extra'"),
        (lambda m: m.update(kind="text"), "kind"),
        (lambda m: m.pop("horizon"), "horizon"),
        (lambda m: m["files"].pop(WEIGHTS_FILE), f"'{WEIGHTS_FILE}' is not listed"),
        (lambda m: m["files"].pop("README.md"), "'README.md' is not listed"),
        (lambda m: m["policy"]["shape"].update(hidden=16), "of another network"),
        (lambda m: m["policy"]["shape"].update(hidden=10**12), "of another network"),
        (lambda m: m["policy"]["shape"].update(features=9), "reads 9 features"),
        (lambda m: m["feature_names"].append("more"), "the router has 9 and 3"),
        (lambda m: m["executor_features"].pop(), "one row for each executor"),
        (lambda m: m["executor_features"][0].pop(), "all of one length"),
        (lambda m: m["executors"][0]["prices"].pop("output"), "executors.0.prices.output"),
        (lambda m: m["executors"][0]["prices"].update(input=-1), "executors.0.prices.input"),
        (lambda m: m["environment"]["budget"].update(counted=None), "must name executors"),
        (lambda m: m["environment"]["budget"].update(unit="euro"), "environment.budget.unit"),
        (lambda m: m["environment"]["cost_weight"].update(min=2.0), "min (2) must not be above"),
        (
            lambda m: m.update(
                policy={"kind": "choice", "precision": "float32", "context_tokens": 9}
            ),
            "'policy/config.json' is not listed",
        ),
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


def test_a_language_model_that_is_damaged_or_of_others_is_refused(
    choice_folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(choice_folder, copy)
    path = copy / "policy" / "choice.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["labels"] = dict(reversed(content["labels"].items()))
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")  # of the same length
    assert "choice.json: checksum differs" in refuse(copy)
    relist(copy, "policy/choice.json")
    assert "has labels for other executors than bundle.json" in refuse(copy)
    (copy / "policy" / "model.safetensors").unlink()
    assert "model.safetensors: is missing" in refuse(copy)
