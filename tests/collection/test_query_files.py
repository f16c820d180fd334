"""Query files: what is read, and which line is named where something is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlroute.collection.grading import make_grader
from rlroute.collection.queries import QuerySet, parse_fractions, read_queries, write_queries
from rlroute.types import Query, RLRouteError

FRACTIONS = (0.7, 0.1, 0.2)
GOOD = [
    {"id": f"q{i}", "text": f"text {i}", "split": split, "references": ["1"]}
    for i, split in enumerate(("train", "val", "test"))
]


def read(tmp_path: Path, *lines: object) -> QuerySet:
    path = tmp_path / "q.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return read_queries(path, FRACTIONS, 0)


def test_queries_are_read_with_splits_and_metadata(tmp_path: Path) -> None:
    first = GOOD[0] | {"task": "t", "dataset": "d", "metadata": {"level": 3, "hard": True}}
    held = read(tmp_path, first, "", *GOOD[1:])
    metadata = {"level": "3", "hard": "True"}
    assert held.queries[0] == Query("q0", "text 0", "t", "d", ("1",), metadata)
    assert held.splits == ("train", "val", "test")
    assert held.locate(1).endswith("q.jsonl, line 3")


def test_splits_are_assigned_by_hash_where_none_is_stated(tmp_path: Path) -> None:
    rows = [{"id": str(i), "text": f"text {i}"} for i in range(200)]
    held = read(tmp_path, *rows)
    assert held.splits == read(tmp_path, *rows[::-1]).splits[::-1]
    assert 120 <= held.splits.count("train") <= 160


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "must be a JSON object"),
        ({"id": "x"}, "'text' must be a text that is not empty"),
        ({"id": "", "text": "t", "split": "train"}, "'id' must be"),
        ({"id": 3, "text": "t", "split": "train"}, "'id' must be"),
        ({"id": "x", "text": "t", "answer": "4"}, "unknown key 'answer' .valid here: id, text"),
        ({"id": "x", "text": "t", "references": "4"}, "'references' must be a list of texts"),
        ({"id": "x", "text": "t", "references": [4]}, "'references' must be a list of texts"),
        ({"id": "x", "text": "t", "metadata": {"a": []}}, "'metadata' must be an object"),
        ({"id": "x", "text": "t", "split": "dev"}, "'split' must be one of train, val, test"),
        ({"id": "x", "text": "t"}, "state 'split' in every line or in none"),
        ({"id": "q0", "text": "t", "split": "train"}, "id 'q0' stands in line 1 already"),
        ({"id": "x", "text": "TEXT  0", "split": "test"}, "stands in train too, in line 1"),
        ('{"id": "x", "text": "\\ud800", "split": "test"}', "half of a surrogate pair"),
    ],
)
def test_a_fault_is_one_line_that_names_file_and_line(
    tmp_path: Path, row: object, message: str
) -> None:
    with pytest.raises(RLRouteError, match=message) as caught:
        read(tmp_path, *GOOD, row)
    assert "q.jsonl, line 4" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_split_is_refused_before_anybody_is_asked(tmp_path: Path) -> None:
    with pytest.raises(RLRouteError, match="2 queries leave the split 'val' empty"):
        read(tmp_path, GOOD[0], GOOD[2])


@pytest.mark.parametrize(
    ("grade", "change", "message"),
    [
        ("exact", {"references": []}, "needs 'references'"),
        ("f1", {"references": [" "]}, "needs 'references'"),
        ("numeric", {"references": ["two"]}, "needs numbers"),
        ("choice", {"references": ["some text"]}, "needs letters"),
        ("reasoning_gym", {}, "needs 'index' in 'metadata'"),
    ],
)
def test_queries_that_cannot_be_graded_are_refused_with_their_line(
    tmp_path: Path, grade: str, change: dict[str, object], message: str
) -> None:
    gold = ["A"] if grade == "choice" else ["0"]
    held = read(tmp_path, *[row | {"references": gold} for row in GOOD[:2]], GOOD[2] | change)
    with pytest.raises(RLRouteError, match=message):
        make_grader(grade).check(held)


def test_queries_that_are_written_read_back(tmp_path: Path) -> None:
    queries = [Query(f"q{i}", f"täxt {i}", "t", "d", ("1",), {"seed": "1"}) for i in range(40)]
    write_queries(queries, tmp_path / "w.jsonl")
    assert read_queries(tmp_path / "w.jsonl", FRACTIONS, 0).queries == tuple(queries)


def test_fractions_are_three_numbers() -> None:
    assert parse_fractions("0.5,0.25,0.25") == (0.5, 0.25, 0.25)
    with pytest.raises(RLRouteError, match="write three fractions"):
        parse_fractions("0.5,0.5")
