"""HotpotQA's files in both forms: documents, answers, splits and faults."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlroute.memory.base import MemoryData
from rlroute.memory.hotpotqa import HotpotConfig, read_hotpotqa, split_documents
from rlroute.types import SPLITS, RLRouteError

CONTEXT = "Document 1:\nEd Wood\nEd Wood is a film.\n\nDocument 2:\nTim Burton\nHe made Ed Wood."


def make_long(index: int, **other: Any) -> dict[str, Any]:
    return {
        "index": index,
        "input": f"Who made film {index}?",
        "context": CONTEXT,
        "answers": ["Tim Burton"],
        "num_docs": 2,
    } | other


def make_distractor(name: str, **other: Any) -> dict[str, Any]:
    return {
        "_id": name,
        "question": f"Who made {name}?",
        "answer": "Tim Burton",
        "type": "bridge",
        "level": "hard",
        "supporting_facts": [["Ed Wood", 0]],
        "context": [["Ed Wood", ["Ed Wood is a film.", " It is long."]], ["Tim Burton", ["He."]]],
    } | other


def write(path: Path, items: list[Any]) -> Path:
    path.write_text(json.dumps(items), encoding="utf-8")
    return path


def read(tmp_path: Path, items: list[Any], **options: Any) -> MemoryData:
    path = write(tmp_path / "hotpot.json", items)
    return read_hotpotqa(HotpotConfig(kind="hotpotqa", path=path, **options))


def read_one(tmp_path: Path, item: Any) -> MemoryData:
    return read(tmp_path, [item], fractions=(1.0, 0.0, 0.0))


def list_ids(data: MemoryData) -> dict[str, list[str]]:
    return {split: [one.query.id for one in asked] for split, asked in data.questions.items()}


def test_an_item_of_the_long_context_variant_is_read_whole(tmp_path: Path) -> None:
    data = read_one(tmp_path, make_long(7))
    question = data.questions["train"][0]
    assert (question.query.id, question.query.task) == ("7", "multi-hop")
    assert question.query.references == ("Tim Burton",)
    history = data.histories[question.history_id]
    assert history.documents == ("Ed Wood\nEd Wood is a film.", "Tim Burton\nHe made Ed Wood.")
    assert (history.sessions, question.evidence) == ((), ())
    assert data.grade(question, "Burton") == pytest.approx(2 / 3)
    assert data.grade(question, "the Tim Burton.") == 1.0


def test_several_answers_are_joined_and_a_lone_one_is_no_list(tmp_path: Path) -> None:
    for answers, gold in ((["Tim", 1990], "Tim, 1990"), ("Tim", "Tim"), (3, "3")):
        data = read_one(tmp_path, make_long(0, answers=answers))
        assert data.questions["train"][0].query.references == (gold,)


def test_an_item_of_the_authors_form_is_read_whole(tmp_path: Path) -> None:
    data = read_one(tmp_path, make_distractor("5a7a"))
    question = data.questions["train"][0]
    assert (question.query.id, question.query.task) == ("5a7a", "bridge")
    assert data.histories["5a7a"].documents == (
        "Ed Wood\nEd Wood is a film. It is long.",
        "Tim Burton\nHe.",
    )


def test_a_line_like_a_header_inside_a_document_divides_nothing() -> None:
    context = "Document 1: one\nDocument 9:\nsee Document 2: here\nDocument 2:\ntwo\nDocument 3:"
    assert split_documents(context) == ("one\nDocument 9:\nsee Document 2: here", "two", "")
    assert split_documents("no header") == ()
    assert split_documents("Document 0:\nzero\nDocument 1:\none") == ("zero", "one")


def test_splits_by_hash_hold_every_question_once(tmp_path: Path) -> None:
    held = list_ids(read(tmp_path, [make_long(index) for index in range(80)]))
    assert sorted(map(int, (one for ids in held.values() for one in ids))) == list(range(80))
    assert all(len(held[split]) >= 4 for split in SPLITS)


def test_one_question_with_two_contexts_stays_on_one_side(tmp_path: Path) -> None:
    items = [make_long(index, input=f"question {index // 2}?") for index in range(80)]
    for ids in list_ids(read(tmp_path, items)).values():
        assert {int(one) ^ 1 for one in ids} == {int(one) for one in ids}


def test_a_test_file_is_the_test_split_and_the_rest_is_train_and_val(tmp_path: Path) -> None:
    test_items = [make_long(index, input=f"asked {index}?") for index in range(3)]
    test_path = write(tmp_path / "eval.json", test_items)
    items = [make_long(index) for index in range(200)]
    held = list_ids(read(tmp_path, items, test_path=test_path))
    assert held["test"] == ["test/0", "test/1", "test/2"]
    assert len(held["train"]) + len(held["val"]) == 200
    assert 20 <= len(held["val"]) <= 60  # a fifth


@pytest.mark.parametrize("make", [make_long, lambda n: make_distractor(f"id{n}")])
def test_the_counts_of_the_original_7000_in_80_to_20_and_200_to_test(
    tmp_path: Path, make: Callable[[int], dict[str, Any]]
) -> None:
    """7,000 questions are sampled from a longer file and divided; 200 of another are the test."""
    test_path = write(tmp_path / "eval.json", [make(n) for n in range(7600, 7800)])
    data = read(tmp_path, [make(n) for n in range(7600)], test_path=test_path, limit=7000)
    counts = {split: len(data.questions[split]) for split in SPLITS}
    assert counts["test"] == 200
    assert counts["train"] + counts["val"] == 7000
    assert counts["train"] == pytest.approx(5600, abs=150)  # by hash; four deviations are 134


def test_a_test_question_that_is_trained_on_is_refused(tmp_path: Path) -> None:
    test_path = write(tmp_path / "eval.json", [make_long(5, input="Who made  FILM 1?")])
    with pytest.raises(RLRouteError, match=r"eval\.json: question 'test/5' stands in .*, as '1'"):
        read(tmp_path, [make_long(index) for index in range(3)], test_path=test_path)


def test_a_limit_takes_so_many_and_the_same_again(tmp_path: Path) -> None:
    items = [make_long(index) for index in range(50)]
    held, whole = list_ids(read(tmp_path, items, limit=20)), list_ids(read(tmp_path, items))
    assert sum(map(len, held.values())) == 20
    assert all(set(held[split]) <= set(whole[split]) for split in SPLITS)
    assert list_ids(read(tmp_path, items[::-1], limit=20)) == {
        split: ids[::-1] for split, ids in held.items()
    }
    assert sorted(held["train"], key=int) != [str(index) for index in range(len(held["train"]))]


def test_json_lines_are_read_and_a_fault_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "hotpot.jsonl"
    lines = [json.dumps(make_long(0)), "", json.dumps(make_long(1))]
    path.write_text("\n".join(lines) + "\n")
    config = HotpotConfig(kind="hotpotqa", path=path)
    assert sum(map(len, read_hotpotqa(config).questions.values())) == 2
    path.write_text("\n".join([*lines, "{"]))
    with pytest.raises(RLRouteError, match=r"hotpot\.jsonl, line 4: not valid JSON"):
        read_hotpotqa(config)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (make_long(1, num_docs=3), "item 1, context: holds 2 documents of 3"),
        (make_long(1, context="x", num_docs=None), "item 1, context: holds 0 documents of 1"),
        (make_long(1, answers=[]), "item 1: answers: "),
        (make_long(1, input=" "), "item 1: input: "),
        (make_distractor("a", answer=None), "item 1: answer: "),
        (make_distractor("a", context=[["Ed Wood"]]), "item 1: context.0.1: Field required"),
        (make_long(0), "question id '0' stands twice"),
        ({"question": "x"}, "item 1: must be an object with 'input' .* or '_id'"),
    ],
)
def test_a_fault_names_item_and_key(tmp_path: Path, item: Any, message: str) -> None:
    with pytest.raises(RLRouteError, match=message) as caught:
        read(tmp_path, [make_long(0), item])
    assert "hotpot.json" in str(caught.value)
    assert "\n" not in str(caught.value)
