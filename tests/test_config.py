from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from pydantic import Field, ValidationError

from rlroute.config import StrictModel, apply_override, dump_config, load_config, parse_config
from rlroute.trainers.recipe import Recipe
from rlroute.types import RLRouteError

CANARY = "canary-9f8e7d6c5b4a"


class Fast(StrictModel):
    kind: Literal["fast"]
    speed: int = 1


class Slow(StrictModel):
    kind: Literal["slow"]
    patience: float = 0.5


class Inner(StrictModel):
    rate: float = 0.1
    names: list[str] = Field(default=[])


class Outer(StrictModel):
    seed: int = 0
    inner: Inner = Inner()
    mode: Annotated[Fast | Slow, Field(discriminator="kind")] = Fast(kind="fast")
    parts: list[Inner] = Field(default=[])
    options: dict[str, object] = Field(default={})


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def fault(folder: Path, text: str, *overrides: str) -> str:
    path = write(folder, text)
    with pytest.raises(RLRouteError) as caught:
        load_config(Outer, path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(path), "FILE")


def test_a_file_is_read_and_overrides_win(tmp_path):
    path = write(tmp_path, "seed: 3\ninner: {rate: 0.5}\n")
    config = load_config(Outer, path, ["inner.rate=2", "inner.names=[a, b]", "seed=4"])
    assert (config.seed, config.inner.rate, config.inner.names) == (4, 2.0, ["a", "b"])


def test_an_override_makes_nested_keys_and_reads_its_value_as_yaml():
    data: dict = {}
    apply_override(data, "a.b.c=1e-3")
    apply_override(data, "a.b.d=null")
    apply_override(data, "a.text=x=y")
    assert data == {"a": {"b": {"c": "1e-3", "d": None}, "text": "x=y"}}  # YAML 1.1: 1.0e-3


def test_a_number_in_short_scientific_form_reaches_its_field_as_a_number(tmp_path):
    assert load_config(Outer, write(tmp_path, "seed: 1"), ["inner.rate=1e-3"]).inner.rate == 1e-3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "override 'seed': write key=value, with dots between nested keys"),
        ("=3", "override '=3': write key=value"),
        ("inner..rate=3", "override 'inner..rate=3': write key=value"),
        ("seed.low=3", "override 'seed.low=3': 'seed' holds a value, not nested keys"),
        ("seed=[1", "override 'seed=[1': the value is not valid YAML"),
    ],
)
def test_a_malformed_override_is_named(tmp_path, override, message):
    assert fault(tmp_path, "seed: 1", override).startswith(message)


def test_an_unknown_key_is_refused_with_a_close_one_and_all_valid_ones(tmp_path):
    assert fault(tmp_path, "sead: 3") == (
        "FILE: unknown key 'sead'; did you mean 'seed'? "
        "(valid here: inner, mode, options, parts, seed)"
    )
    assert fault(tmp_path, "inner: {zzz: 1}") == (
        "FILE: unknown key 'inner.zzz' (valid here: names, rate)"
    )


def test_an_unknown_key_in_a_union_is_told_by_the_kind_that_was_chosen(tmp_path):
    assert fault(tmp_path, "mode: {kind: slow, patiense: 1}") == (
        "FILE: unknown key 'mode.patiense'; did you mean 'patience'? (valid here: kind, patience)"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{kind: path, folder: X}", "unknown key 'encoder.folder' (valid here: batch_size, "),
        ("{kind: path, path: X, foldr: 1}", "unknown key 'encoder.foldr'"),
        ("{kind: features, columns: 1}", "unknown key 'encoder.columns' (valid here: kind)"),
        ("{kind: path}", "encoder.path: Field required"),
        ("{kind: path, path: [1]}", "encoder.path: Input should be a valid string"),
    ],
)
def test_a_kind_that_is_called_like_a_field_is_no_key(tmp_path, text, message):
    path = write(tmp_path, f"table: t\nalgorithm: {{kind: expected_gradient}}\nencoder: {text}\n")
    with pytest.raises(RLRouteError) as caught:
        load_config(Recipe, path)
    assert f"{path}: {message}" in str(caught.value)


def test_an_unknown_key_in_a_list_names_its_place(tmp_path):
    assert fault(tmp_path, "parts: [{rate: 1}, {rates: 2}]") == (
        "FILE: unknown key 'parts.1.rates'; did you mean 'rate'? (valid here: names, rate)"
    )


def test_an_unknown_key_is_reported_before_other_faults(tmp_path):
    assert "unknown key 'sead'" in fault(tmp_path, "seed: many\nsead: 3")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: many", "FILE: seed: Input should be a valid integer"),
        ("inner: {rate: high}", "FILE: inner.rate: Input should be a valid number"),
        ("mode: {kind: slow, patience: no way}", "FILE: mode.patience: Input should be a valid"),
        ("mode: {kind: sluggish}", "'fast', 'slow'"),
        ("- 1\n- 2", "FILE: the top level must be a mapping"),
        ("", "FILE: the top level must be a mapping"),
        ("a: [1\nb: 2", "FILE, line 2: not valid YAML"),
    ],
)
def test_a_fault_names_file_and_key(tmp_path, text, message):
    assert message in fault(tmp_path, text)


def test_a_missing_or_binary_file_is_one_line(tmp_path):
    with pytest.raises(RLRouteError, match=r"nowhere\.yaml: cannot be read \(No such file"):
        load_config(Outer, tmp_path / "nowhere.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"seed: \xff")
    with pytest.raises(RLRouteError, match=r"binary\.yaml: not UTF-8 text \(byte 6\)"):
        load_config(Outer, tmp_path / "binary.yaml")


def test_a_recipe_names_the_keys_of_the_algorithm_it_chose():
    data = {"table": "x", "algorithm": {"kind": "grpo", "group_sise": 4}}
    with pytest.raises(RLRouteError) as caught:
        parse_config(Recipe, data, "mine")
    assert str(caught.value).startswith(
        "mine: unknown key 'algorithm.group_sise'; did you mean 'group_size'?"
    )
    assert "scale_by_std" in str(caught.value)
    assert "gae_lambda" not in str(caught.value)


def test_a_fault_of_a_whole_model_is_named_too():
    data = {"table": "x", "algorithm": {"kind": "grpo", "group_size": 3, "episodes": 10}}
    message = r"mine: algorithm: episodes \(10\) must be a multiple of group_size \(3\)"
    with pytest.raises(RLRouteError, match=message):
        parse_config(Recipe, data, "mine")


def test_models_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Outer().seed = 3


def test_a_dump_reads_back_as_the_same_config(tmp_path):
    config = Outer(seed=5, mode=Slow(kind="slow"), parts=[Inner(rate=3)])
    assert load_config(Outer, write(tmp_path, dump_config(config))) == config


@pytest.mark.parametrize(
    "options",
    [
        {"api_key": CANARY},
        {"OPENAI_API_KEY": CANARY},
        {"apiKey": CANARY},
        {"x-api-key": CANARY},
        {"api_keys": [CANARY, CANARY]},
        {"hf_token": CANARY},
        {"password": CANARY},
        {"client_secret": CANARY},
        {"headers": {"Authorization": CANARY}},
        {"deep": [{"list": [{"token": [CANARY]}]}]},
        {"note": f"use Bearer {CANARY}"},
        {"note": f"my key is sk-{CANARY}"},
        {"url": f"https://user?key=hf_{CANARY.replace('-', '')}"},
    ],
)
def test_no_secret_reaches_a_dump(options):
    text = dump_config(Outer(options=options))
    assert CANARY not in text
    assert CANARY.replace("-", "") not in text
    assert "[redacted]" in text


def test_redaction_leaves_what_is_no_secret():
    options = {"max_tokens": 16, "tokenizer": "bpe", "api_key_env": "OPENAI_API_KEY", "task": "sk"}
    assert yaml.safe_load(dump_config(Outer(options=options)))["options"] == options
