"""Recipes as pydantic models: YAML with dotted overrides, unknown keys refused with the valid ones.

What it leaves out: the recipes' own fields, which stand beside the code that uses them
(`rlroute.trainers.recipe`). How to use: `load_config(Recipe, Path("recipe.yaml"), ["seed=3"])`.
"""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from rlroute.types import RLRouteError

Schema = TypeVar("Schema", bound=BaseModel)

# A key is named by its environment variable; should one be pasted all the same, it is not written.
SECRET_NAME = re.compile(r"(api[_-]?keys?|token|secrets?|passwords?|authorization)$", re.IGNORECASE)
SECRET_VALUE = re.compile(r"\b(sk|hf|pk|ghp|xox[bp])[-_][A-Za-z0-9_-]{8,}|\bBearer\s+\S+")
REDACTED = "[redacted]"


class StrictModel(BaseModel):
    """A frozen model that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def load_config(schema: type[Schema], path: Path, overrides: Sequence[str] = ()) -> Schema:
    """Read a YAML file, apply `a.b=value` overrides, and check the result against `schema`.

    Raises:
        RLRouteError: the file is missing or no YAML mapping, an override is malformed, a key is
            unknown or a value does not fit. The message names file, key and what is allowed.
    """
    data = read_yaml_mapping(path)
    for override in overrides:
        apply_override(data, override)
    return parse_config(schema, data, str(path))


def read_yaml_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping.

    Raises:
        RLRouteError: no such file, not UTF-8, not YAML, or the top level is not a mapping.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RLRouteError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise RLRouteError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise RLRouteError(f"{path}{line}: not valid YAML") from None
    if not isinstance(data, dict):
        raise RLRouteError(f"{path}: the top level must be a mapping of keys to values")
    return data


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set `a.b=value` (value as YAML) in `data`, making mappings on the way.

    Raises:
        RLRouteError: no '=' in it, an empty key, an unreadable value, or a path through a scalar.
    """
    key, separator, text = override.partition("=")
    parts = key.split(".")
    if not separator or not all(parts):
        raise RLRouteError(f"override '{override}': write key=value, with dots between nested keys")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise RLRouteError(f"override '{override}': the value is not valid YAML") from None
    node = data
    for part in parts[:-1]:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise RLRouteError(f"override '{override}': '{part}' holds a value, not nested keys")
    node[parts[-1]] = value


def parse_config(schema: type[Schema], data: Mapping[str, Any], source: str) -> Schema:
    """Check `data` against `schema`; `source` names it in the error.

    Raises:
        RLRouteError: the first fault, in one line.
    """
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        raise RLRouteError(f"{source}: {describe_fault(schema, error)}") from None


def describe_fault(schema: type[BaseModel], error: ValidationError) -> str:
    """Say in one line what the first fault of a validation is and what would be allowed."""
    faults = error.errors(include_url=False)
    fault = next((f for f in faults if f["type"] == "extra_forbidden"), faults[0])
    models, keys = follow_location(schema, fault["loc"])
    location = ".".join(keys)
    if fault["type"] == "union_tag_not_found":
        return f"{location}: 'kind' is missing"
    if fault["type"] != "extra_forbidden":
        message = fault["msg"].removeprefix("Value error, ")
        return f"{location}: {message}" if location else message
    valid = sorted({key for model in models for key in model.model_fields})
    close = difflib.get_close_matches(str(fault["loc"][-1]), valid, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return f"unknown key '{location}'{hint} (valid here: {', '.join(valid)})"


def follow_location(
    schema: type[BaseModel], location: Sequence[int | str]
) -> tuple[list[type[BaseModel]], list[str]]:
    """Follow a location of pydantic; return the models around its last part, and its keys.

    The tag of a union stands in the location, but in no file: it picks the model and is no key. A
    tag may be called like a field, so it is looked for first where a union has just been entered.
    """
    models, keys, entered_union = [schema], [], False
    for number, part in enumerate(location):
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        tagged = [model for model in models if has_tag(model, part)]
        if tagged and (entered_union or not fields):
            models, entered_union = tagged, False
            continue
        keys.append(str(part))
        if fields and number + 1 < len(location):
            models = [model for field in fields for model in list_models(field.annotation)]
            entered_union = len(models) > 1
    return models, keys


def has_tag(model: type[BaseModel], tag: int | str) -> bool:
    """Say whether a field of the model is a Literal of this tag, which tells it from its union."""
    annotations = [field.annotation for field in model.model_fields.values()]
    return any(
        typing.get_origin(annotation) is typing.Literal and tag in typing.get_args(annotation)
        for annotation in annotations
    )


def list_models(annotation: Any) -> list[type[BaseModel]]:
    """Return the pydantic models inside a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in list_models(part)]


def dump_config(config: BaseModel) -> str:
    """Return a config as YAML with secrets redacted: what run folders and trackers get."""
    return yaml.safe_dump(redact(config.model_dump(mode="json")), sort_keys=False, width=100)


def redact(value: Any, name: str = "") -> Any:
    """Replace values under secret-like names, and secret-like strings anywhere, by a mark."""
    if isinstance(value, dict):
        return {key: redact(item, str(key)) for key, item in value.items()}
    if isinstance(value, list):
        return [redact(item, name) for item in value]
    if isinstance(value, str):
        return REDACTED if SECRET_NAME.search(name) else SECRET_VALUE.sub(REDACTED, value)
    return value
