"""LongMemEval's file in both forms: fields, kinds, evidence, splits and faults."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import pytest

from rlroute.memory.base import MemoryData
from rlroute.memory.longmemeval import LongMemEvalConfig, QuestionType, read_longmemeval
from rlroute.types import SPLITS, RLRouteError


def make_published(name: str, **other: Any) -> dict[str, Any]:
    """Return an item as the authors publish it: two sessions, the answer in the second."""
    return {
        "question_id": name,
        "question_type": "single-session-user",
        "question": f"What is the cat of {name} called?",
        "answer": "Minka",
        "question_date": "2023/05/30 (Tue) 23:40",
        "haystack_dates": ["2023/05/20 (Sat) 02:21", "2023/05/21 (Sun) 09:00"],
        "haystack_session_ids": ["sharegpt_1_0", "answer_1"],
        "haystack_sessions": [
            [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}],
            [
                {"role": "user", "content": "My cat is called Minka", "has_answer": True},
                {"role": "assistant", "content": "A fine name", "has_answer": False},
            ],
        ],
        "answer_session_ids": ["answer_1"],
    } | other


def make_converted(name: str, **other: Any) -> dict[str, Any]:
    """Return an item in LoCoMo's shape."""
    conversation = {
        "session_1_date_time": "2023/05/20 (Sat) 02:21",
        "session_1": [
            {"speaker": "user", "dia_id": "D1:1", "text": "My cat is called Minka"},
            {"speaker": "assistant", "dia_id": "D1:2", "text": "A fine name"},
        ],
    }
    asked = {"question": "How many cats?", "answer": 1, "category": 6}
    asked |= {"question_date": "2023/05/30 (Tue) 23:40", "evidence": ["D1:1"]} | other
    return {"sample_id": name, "conversation": conversation, "qa": [asked]}


def read(tmp_path: Path, items: Any, splits: Any = None, **options: Any) -> MemoryData:
    path = tmp_path / "longmemeval.json"
    path.write_text(json.dumps(items), encoding="utf-8")
    if splits is not None:
        options["splits"] = tmp_path / "splits.json"
        options["splits"].write_text(json.dumps(splits), encoding="utf-8")
    return read_longmemeval(LongMemEvalConfig(kind="longmemeval", path=path, **options))


def read_one(tmp_path: Path, item: dict[str, Any]) -> MemoryData:
    return read(tmp_path, [item], fractions=(1.0, 0.0, 0.0))


def list_ids(data: MemoryData) -> dict[str, list[str]]:
    return {split: [one.history_id for one in asked] for split, asked in data.questions.items()}


def test_an_item_of_the_authors_form_is_read_whole(tmp_path: Path) -> None:
    data = read_one(tmp_path, make_published("e47becba"))
    question = data.questions["train"][0]
    assert question.query.id == question.history_id == "e47becba"
    assert question.query.task == "single-session-user"
    assert question.query.references == ("Minka",)
    assert question.asked_on == "2023-05-30"
    assert question.evidence == ("answer_1#2:1",)
    history = data.histories["e47becba"]
    assert [session.when for session in history.sessions] == [
        "2023-05-20T02:21",
        "2023-05-21T09:00",
    ]
    turn = history.sessions[1].turns[0]
    assert (turn.id, turn.speaker, turn.text) == ("answer_1#2:1", "user", "My cat is called Minka")
    assert data.grade(question, "minka!") == 1.0
    assert data.grade(question, "Minka, a cat") == pytest.approx(2 / 3)


def test_an_item_of_the_converted_form_is_read_whole(tmp_path: Path) -> None:
    data = read_one(tmp_path, make_converted("s1"))
    question = data.questions["train"][0]
    assert (question.query.id, question.history_id) == ("s1/0", "s1")
    assert (question.query.task, question.query.references) == ("category-6", ("1",))
    assert (question.asked_on, question.evidence) == ("2023-05-30", ("D1:1",))
    assert data.histories["s1"].sessions[0].when == "2023-05-20T02:21"


def test_both_forms_may_stand_in_one_file(tmp_path: Path) -> None:
    items = [make_published("a"), make_converted("b")]
    assert list_ids(read(tmp_path, items, fractions=(0.0, 0.0, 1.0)))["test"] == ["a", "b"]


def test_questions_that_cannot_be_answered_are_a_kind_of_their_own(tmp_path: Path) -> None:
    item = make_published("a_abs", question_type="multi-session", answer="You did not say.")
    assert read_one(tmp_path, item).questions["train"][0].query.task == "abstention"


def test_a_session_that_stands_twice_has_turns_with_different_ids(tmp_path: Path) -> None:
    item = make_published("a", haystack_session_ids=["same", "same"])
    sessions = read_one(tmp_path, item).histories["a"].sessions
    assert len({turn.id for session in sessions for turn in session.turns}) == 4


def test_splits_by_hash_hold_everything_once_and_stay_when_items_move(tmp_path: Path) -> None:
    items = [make_published(f"q{number}") for number in range(60)]
    held = list_ids(read(tmp_path, items))
    assert sorted(one for ids in held.values() for one in ids) == sorted(
        item["question_id"] for item in items
    )
    assert all(len(held[split]) >= 4 for split in SPLITS)
    moved = list_ids(read(tmp_path, items[::-1][:40]))
    assert all(set(moved[split]) <= set(held[split]) for split in SPLITS)
    assert list_ids(read(tmp_path, items, seed=1)) != held


def test_a_question_and_its_abstention_twin_share_a_split(tmp_path: Path) -> None:
    items = [make_published(f"q{n}{mark}") for n in range(40) for mark in ("", "_abs")]
    for ids in list_ids(read(tmp_path, items)).values():
        assert {one for one in ids if one.endswith("_abs")} == {
            f"{one}_abs" for one in ids if not one.endswith("_abs")
        }


def test_a_file_of_splits_names_places_or_ids_and_leaves_the_rest_out(tmp_path: Path) -> None:
    items = [make_published(f"q{number}") for number in range(5)]
    data = read(tmp_path, items, {"train": [3, 0], "val": ["q1"], "test": [4]})
    assert list_ids(data) == {"train": ["q0", "q3"], "val": ["q1"], "test": ["q4"]}
    assert sorted(data.histories) == ["q0", "q1", "q3", "q4"]


def make_whole_file() -> list[dict[str, Any]]:
    """Return 500 items as in the authors' file: 470 of the six types and 30 abstentions."""
    types = get_args(QuestionType)
    plain = [make_published(f"q{n}", question_type=types[n % len(types)]) for n in range(470)]
    return plain + [make_published(f"q{n}_abs", answer="You did not say.") for n in range(30)]


def test_a_file_of_splits_gives_the_counts_of_the_original(tmp_path: Path) -> None:
    """The sheet's: 500 items in 297, 98 and 105, which are disjoint and complete."""
    places = random.Random(0).sample(range(500), 500)
    splits = {"train": places[:297], "val": places[297:395], "test": places[395:]}
    data = read(tmp_path, make_whole_file(), splits)
    assert [len(data.questions[split]) for split in SPLITS] == [297, 98, 105]
    assert len(data.histories) == 500
    kinds = Counter(one.query.task for asked in data.questions.values() for one in asked)
    assert kinds["abstention"] == 30
    assert sum(kinds.values()) - kinds["abstention"] == 470
    assert set(kinds) == {*get_args(QuestionType), "abstention"}


def test_the_splits_of_the_paper_leave_the_abstentions_out(tmp_path: Path) -> None:
    """282, 94 and 94 in the paper: all 470 without the abstentions; shares give about as many."""
    plain = [item for item in make_whole_file() if not item["question_id"].endswith("_abs")]
    ids = [item["question_id"] for item in plain]
    splits = {"train": ids[:282], "val": ids[282:376], "test": ids[376:]}
    data = read(tmp_path, make_whole_file(), splits)
    assert [len(data.questions[split]) for split in SPLITS] == [282, 94, 94]
    assert all(one.query.task != "abstention" for one in data.questions["test"])
    by_hash = read(tmp_path, plain)
    for split, expected in zip(SPLITS, (282, 94, 94), strict=True):
        assert len(by_hash.questions[split]) == pytest.approx(expected, abs=40)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": [0], "val": [1], "test": ["q0"]}, "test: 'q0' stands in train already"),
        ({"train": [0], "val": [1], "test": [2]}, "test: '2' is no id .* no place from 0 to 1"),
        ({"train": [0], "val": [-1], "test": []}, "val: '-1' is no id"),
        ({"train": [0], "val": [1]}, "test: Field required"),
        ({"train": [0], "val": [1], "test": [], "dev": []}, "unknown key 'dev'"),
        ([0, 1], "valid dictionary"),
    ],
)
def test_faults_of_a_file_of_splits_are_named(tmp_path: Path, splits: Any, message: str) -> None:
    with pytest.raises(RLRouteError, match=rf"splits\.json.*{message}"):
        read(tmp_path, [make_published("q0"), make_published("q1")], splits)


def test_a_file_of_splits_stands_alone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not both"):
        LongMemEvalConfig(kind="longmemeval", path=tmp_path, splits=tmp_path, seed=1)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (make_published("b", answer=None), "item 1: answer: "),
        (make_published("b", question_type="riddle"), "item 1: question_type: .*'multi-session'"),
        (make_published("b", haystack_dates=["x"]), "must be equally long, not 2, 1 and 2"),
        (
            make_published("b", haystack_sessions=[[{"role": "bot", "content": "x"}], []]),
            "item 1: haystack_sessions.0.0.role: ",
        ),
        (make_converted("b", category=7), "item 1: qa.0.category: "),
        (make_published("a"), "id 'a' stands twice"),
        ({"question": "x"}, "item 1: must be an object with 'haystack_sessions'.*'conversation'"),
        ("x", "item 1: must be an object"),
    ],
)
def test_a_fault_names_item_and_key(tmp_path: Path, item: Any, message: str) -> None:
    with pytest.raises(RLRouteError, match=message) as caught:
        read(tmp_path, [make_published("a"), item])
    assert "longmemeval.json" in str(caught.value)
    assert "\n" not in str(caught.value)
