"""LoCoMo's file: the sheet's counts on a file of its shape, categories, evidence and faults."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rlroute.memory.base import MemoryData
from rlroute.memory.dataset_files import read_when
from rlroute.memory.locomo import LocomoConfig, read_locomo
from rlroute.types import RLRouteError

# id, questions of categories 1-4, those used, sessions, turns
COUNTS = [
    ("conv-26", (32, 37, 13, 70), 152, 19, 419),
    ("conv-30", (11, 26, 0, 44), 81, 19, 369),
    ("conv-41", (31, 27, 8, 86), 152, 32, 663),
    ("conv-42", (37, 40, 11, 111), 199, 29, 629),
    ("conv-43", (31, 26, 14, 107), 178, 29, 680),
    ("conv-44", (30, 24, 7, 62), 123, 28, 675),
    ("conv-47", (20, 34, 13, 83), 150, 31, 689),
    ("conv-48", (21, 42, 10, 118), 191, 30, 681),
    ("conv-49", (37, 33, 13, 73), 156, 25, 509),
    ("conv-50", (32, 32, 7, 87), 158, 30, 568),
]
KINDS = ("multi-hop", "temporal", "open-domain", "single-hop")


def make_turns(session: int, count: int) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = [
        {
            "speaker": ("Ana", "Ben")[turn % 2],
            "dia_id": f"D{session}:{turn}",
            "text": f"line {turn}",
        }
        for turn in range(1, count + 1)
    ]
    turns[0] |= {"img_url": ["http://x"], "blip_caption": "a photo of a cup", "query": "cup"}
    return turns


def make_item(
    name: str, questions: tuple[int, ...] = (1, 1, 1, 1), sessions: int = 2, turns: int = 5
) -> dict[str, Any]:
    conversation: dict[str, Any] = {"speaker_a": "Ana", "speaker_b": "Ben"}
    for session in range(sessions, 0, -1):  # the order of the keys must not count
        held = turns // sessions + (session <= turns % sessions)
        conversation[f"session_{session}_date_time"] = f"1:56 pm on {session % 28 + 1} May, 2023"
        conversation[f"session_{session}"] = make_turns(session, held)
    conversation[f"session_{sessions + 1}_date_time"] = "1:56 pm on 8 May, 2024"  # without session
    asked: list[dict[str, Any]] = [
        {"question": f"q {category} {number}?", "answer": "tea; maybe milk", "category": category}
        | {"evidence": ["D1:1"]}
        for category, count in enumerate(questions, start=1)
        for number in range(count)
    ]
    asked += [{"question": "trap?", "adversarial_answer": "no", "category": 5, "evidence": []}] * 3
    other = {"event_summary": {}, "observation": {}, "session_summary": {}}
    return {"sample_id": name, "conversation": conversation, "qa": asked, **other}


def read(tmp_path: Path, items: Any, **options: Any) -> MemoryData:
    path = tmp_path / "locomo.json"
    path.write_text(json.dumps(items), encoding="utf-8")
    return read_locomo(LocomoConfig(kind="locomo", path=path, **options))


def read_three(tmp_path: Path, change: dict[str, Any], asked: dict[str, Any]) -> MemoryData:
    """Read three conversations, the first of them with other fields and one question."""
    items = [make_item(f"c{number}") for number in range(3)]
    items[0]["conversation"] |= change
    items[0]["qa"] = [{"question": "who?", "answer": "Ana", "category": 4} | asked]
    return read(tmp_path, items, train_conversations=1, val_conversations=1)


def test_a_file_of_the_published_shape_has_the_counts_of_the_sheet(tmp_path: Path) -> None:
    data = read(tmp_path, [make_item(name, q, s, t) for name, q, _, s, t in COUNTS])
    assert {split: len(asked) for split, asked in data.questions.items()} == {
        "train": 885,
        "val": 341,
        "test": 314,
    }
    asked = [question for part in data.questions.values() for question in part]
    for name, by_category, used, sessions, turns in COUNTS:
        history = data.histories[name]
        assert len(history.sessions) == sessions
        assert sum(len(session.turns) for session in history.sessions) == turns
        kinds = Counter(one.query.task for one in asked if one.history_id == name)
        assert tuple(kinds[kind] for kind in KINDS) == by_category
        assert kinds.total() == used
    assert len({one.query.id for one in asked}) == 1540


def test_conversations_are_split_by_place(tmp_path: Path) -> None:
    data = read(tmp_path, [make_item(f"c{number}") for number in range(10)])
    held = {
        split: sorted({one.history_id for one in asked}) for split, asked in data.questions.items()
    }
    assert held == {
        "train": ["c0", "c1", "c2", "c3", "c4", "c5"],
        "val": ["c6", "c7"],
        "test": ["c8", "c9"],
    }


def test_only_the_gold_of_open_domain_questions_ends_at_the_semicolon(tmp_path: Path) -> None:
    data = read(tmp_path, [make_item(f"c{number}") for number in range(10)])
    gold = {one.query.task: one.query.references for one in data.questions["train"]}
    whole = ("tea; maybe milk",)
    assert gold == {
        "multi-hop": whole,
        "temporal": whole,
        "open-domain": ("tea",),
        "single-hop": whole,
    }


def test_sessions_stand_in_order_with_iso_dates_and_captions(tmp_path: Path) -> None:
    items = [make_item(f"c{number}", sessions=12, turns=24) for number in range(10)]
    history = read(tmp_path, items).histories["c0"]
    assert [session.turns[0].id for session in history.sessions] == [
        f"D{session}:1" for session in range(1, 13)
    ]
    assert history.sessions[6].when == "2023-05-08T13:56"
    first, second = history.sessions[0].turns
    assert (first.speaker, first.caption, second.caption) == ("Ben", "a photo of a cup", "")
    assert history.documents == ()


def test_multi_hop_answers_are_graded_part_by_part_and_others_whole(tmp_path: Path) -> None:
    for category, score in ((1, 0.5), (4, pytest.approx(2 / 3))):
        asked = {"answer": "tea, milk", "category": category}
        data = read_three(tmp_path, {}, asked)
        assert data.grade(data.questions["train"][0], "tea") == score
        assert data.grade(data.questions["train"][0], "milk, tea") == 1.0
        assert data.grade(data.questions["train"][0], "") == 0.0


def test_a_gold_answer_may_be_a_number(tmp_path: Path) -> None:
    question = read_three(tmp_path, {}, {"answer": 2022}).questions["train"][0]
    assert question.query.references == ("2022",)


def test_evidence_is_told_apart_and_what_names_no_turn_is_left_out(tmp_path: Path) -> None:
    named = ["D2:1; D1:03", "D1:3", "D", "D9:9", "D:1:2"]
    question = read_three(tmp_path, {}, {"evidence": named}).questions["train"][0]
    assert question.evidence == ("D2:1", "D1:3")


@pytest.mark.parametrize(
    ("change", "asked", "message"),
    [
        ({}, {"answer": " "}, "item 0: qa.0: 'answer' is missing or empty"),
        ({}, {"answer": None}, "item 0: qa.0: 'answer' is missing or empty"),
        ({}, {"category": 6}, "item 0: qa.0.category: Input should be less than or equal to 5"),
        ({}, {"question": ""}, "item 0: qa.0.question: "),
        ({"session_2": [{"speaker": "Ana"}]}, {}, "item 0, session_2: turns.0.dia_id: "),
        ({"session_2": "x"}, {}, "item 0, session_2: turns: "),
        ({"session_2_date_time": 3}, {}, "item 0, conversation: 'session_2_date_time' must be"),
    ],
)
def test_a_fault_names_file_item_and_key_in_one_line(
    tmp_path: Path, change: dict[str, Any], asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(RLRouteError) as caught:
        read_three(tmp_path, change, asked)
    assert str(caught.value).startswith(f"{tmp_path / 'locomo.json'}, {message}")
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_divided_or_hold_no_items_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RLRouteError, match=r"8 conversations.*leave none for test"):
        read(tmp_path, [make_item(f"c{number}") for number in range(8)])
    with pytest.raises(RLRouteError, match="item 9: sample_id 'c0' stands twice"):
        read(tmp_path, [make_item(f"c{number % 9}") for number in range(10)])
    with pytest.raises(RLRouteError, match="must hold a JSON list"):
        read(tmp_path, {"data": []})
    (tmp_path / "bad.json").write_text('[\n{"sample_id": }]')
    with pytest.raises(RLRouteError, match=r"bad\.json, line 2: not valid JSON"):
        read_locomo(LocomoConfig(kind="locomo", path=tmp_path / "bad.json"))
    with pytest.raises(RLRouteError, match="cannot be read"):
        read_locomo(LocomoConfig(kind="locomo", path=tmp_path / "none.json"))


def test_a_conversation_without_turns_is_refused(tmp_path: Path) -> None:
    items = [make_item(f"c{number}") for number in range(10)]
    items[3]["conversation"] = {"speaker_a": "Ana", "session_1": [], "session_1_date_time": "May"}
    with pytest.raises(RLRouteError, match="item 3, conversation: has no turns"):
        read(tmp_path, items)


@pytest.mark.parametrize(
    ("text", "iso"),
    [
        ("1:56 pm on 8 May, 2023", "2023-05-08T13:56"),
        ("12:09 am on 13 September, 2023", "2023-09-13T00:09"),
        ("2023/05/30 (Tue) 23:40", "2023-05-30T23:40"),
        ("2023/05/30", "2023-05-30"),
        ("2023-05-30", "2023-05-30"),
        ("8 May 2023", "2023-05-08"),
        (" 2023-05-30T23:40:11 ", "2023-05-30T23:40:11"),
        ("last spring (May)", "last spring (May)"),
        ("31 February, 2023", "31 February, 2023"),
    ],
)
def test_dates_become_iso_where_they_can(text: str, iso: str) -> None:
    assert read_when(text) == iso
