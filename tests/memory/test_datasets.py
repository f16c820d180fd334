"""The door to data: the kind in a recipe decides what is opened, and an unknown kind is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlroute.config import StrictModel, parse_config
from rlroute.memory.datasets import MemoryDataConfig, open_memory_data
from rlroute.types import SPLITS, RLRouteError

LONG = {"index": 0, "input": "Who?", "context": "Document 1:\nAna", "answers": "Ana"}
TURN = {"speaker": "Ana", "dia_id": "D1:1", "text": "Hello"}
TALK = {"session_1": [TURN], "session_1_date_time": "8 May 2023"}
ASKED = {"question": "Who?", "answer": "Ana", "category": 4}
LOCOMO = [{"sample_id": f"c{n}", "conversation": TALK, "qa": [ASKED]} for n in range(3)]


class Recipe(StrictModel):
    data: MemoryDataConfig


def read_config(**entry: Any) -> Any:
    return parse_config(Recipe, {"data": entry}, "recipe.yaml").data


@pytest.mark.parametrize(
    ("entry", "items"),
    [
        ({"kind": "locomo", "train_conversations": 1, "val_conversations": 1}, LOCOMO),
        ({"kind": "longmemeval"}, LOCOMO),
        ({"kind": "hotpotqa"}, [LONG]),
    ],
)
def test_each_kind_opens_its_own_file(tmp_path: Path, entry: dict[str, Any], items: Any) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps(items))
    opened = open_memory_data(read_config(path=str(path), **entry))
    assert opened.generated is None
    assert opened.data.name == entry["kind"]
    assert len(opened.data.histories) == len(items)
    asked = [question for split in SPLITS for question in opened.data.questions[split]]
    assert [opened.data.grade(question, "Ana") for question in asked] == [1.0] * len(items)


def test_the_generated_world_comes_with_what_is_behind_it() -> None:
    histories = {"train": 2, "val": 1, "test": 1}
    opened = open_memory_data(read_config(kind="generated", seed=3, histories=histories))
    assert opened.generated is not None
    assert opened.generated.data is opened.data
    assert len(opened.data.histories) == 4


def test_an_unknown_kind_and_an_unknown_key_are_refused() -> None:
    with pytest.raises(RLRouteError, match=r"recipe\.yaml: data.*'locomo', 'longmemeval'"):
        read_config(kind="squad", path="x")
    with pytest.raises(RLRouteError, match=r"unknown key 'data\.paths'; did you mean 'path'"):
        read_config(kind="locomo", paths="x")
