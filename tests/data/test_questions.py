"""Question sets: the draw, what leaks and is dropped, and which line or row is named in a fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlroute.config import parse_config
from rlroute.data.questions import (
    TASKS,
    Questions,
    QuestionSetConfig,
    check_questions,
    end_with_question_mark,
    read_questions,
)
from rlroute.data.splits import normalise_text
from rlroute.types import Query, RLRouteError

Row = dict[str, Any]


def make_row(split: str, number: int, subject: str = "river") -> Row:
    question = f"how long is {subject} {split} {number}"
    return {"id": f"{split}_{number}", "question": question, "golden_answers": [str(number)]}


def write_rows(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_sets(folder: Path, sizes: dict[str, dict[str, int]]) -> Path:
    for name, splits in sizes.items():
        for split, size in splits.items():
            rows = [make_row(split, number, name) for number in range(size)]
            write_rows(folder / name / f"{split}.jsonl", rows)
    return folder


SIZES = {
    "nq": {"train": 40, "dev": 12, "test": 12},
    "hotpotqa": {"train": 30, "dev": 15},
    "bamboogle": {"test": 5},
}


def configure(folder: Path, **changes: Any) -> QuestionSetConfig:
    counts: dict[str, Any] = {
        "train": {"nq": 20, "hotpotqa": 10},
        "val": {"nq": 4, "hotpotqa": 4},
        "test": {"nq": 8, "hotpotqa": 8, "bamboogle": 8},
    }
    return QuestionSetConfig(**{"source": str(folder), **counts, **changes})


def count_sets(queries: tuple[Query, ...]) -> dict[str, int]:
    names = [query.dataset for query in queries]
    return {name: names.count(name) for name in dict.fromkeys(names)}


def list_ids(queries: tuple[Query, ...], name: str) -> list[str]:
    return [query.id for query in queries if query.dataset == name]


def test_the_default_is_the_mixture_that_router_r1_was_trained_on() -> None:
    config = QuestionSetConfig()
    assert config.source == "hub"
    assert (config.train, config.val) == (
        {"nq": 7000, "hotpotqa": 7000},
        {"nq": 100, "hotpotqa": 100},
    )
    assert config.test == dict.fromkeys(TASKS, 500)
    assert (len(TASKS), config.seed) == (7, 42)


def test_the_parts_have_the_numbers_asked_for_and_a_small_set_gives_all(tmp_path: Path) -> None:
    questions = read_questions(configure(write_sets(tmp_path, SIZES)))
    assert count_sets(questions.val) == {"nq": 4, "hotpotqa": 4}
    assert count_sets(questions.test) == {"nq": 8, "hotpotqa": 8, "bamboogle": 5}
    assert sorted(list_ids(questions.test, "bamboogle")) == [
        f"bamboogle/test_{n}" for n in range(5)
    ]
    trained = count_sets(questions.train)
    assert (trained["nq"], trained["hotpotqa"], len(questions.train)) == (20, 10, 30)
    first_ten = {query.dataset for query in questions.train[:10]}
    assert first_ten == {"nq", "hotpotqa"}, "the mixture is shuffled"
    assert (questions.leaks, questions.duplicates) == ({}, {})


def test_test_comes_from_test_and_val_from_dev_where_the_set_has_them(tmp_path: Path) -> None:
    questions = read_questions(configure(write_sets(tmp_path, SIZES)))
    assert all("/test_" in name for name in list_ids(questions.test, "nq"))
    assert all("/dev_" in name for name in list_ids(questions.val, "nq"))
    tested, validated = (
        set(list_ids(part, "hotpotqa")) for part in (questions.test, questions.val)
    )
    assert all("/dev_" in name for name in tested | validated)
    assert not tested & validated
    assert all("/train_" in query.id for query in questions.train)


def test_a_query_has_dataset_task_references_and_a_question_mark(tmp_path: Path) -> None:
    write_rows(tmp_path / "musique" / "dev.jsonl", [make_row("dev", 7) | {"metadata": {"a": [1]}}])
    config = configure(tmp_path, train={}, val={}, test={"musique": 1})
    text = "how long is river dev 7?"
    expected = Query("musique/dev_7", text, "multi_hop", "musique", ("7",))
    assert read_questions(config).test == (expected,)


def test_the_fields_of_our_own_query_files_are_read_too(tmp_path: Path) -> None:
    row = {"id": 3, "text": "Why? ", "references": ["a", "b"], "task": "t", "dataset": ""}
    write_rows(tmp_path / "nq" / "test.jsonl", [row])
    config = configure(tmp_path, train={}, val={}, test={"nq": 1})
    assert read_questions(config).test == (Query("nq/3", "Why?", "t", "nq", ("a", "b")),)


def test_the_draw_depends_on_the_seed_alone(tmp_path: Path) -> None:
    config = configure(write_sets(tmp_path, SIZES))
    assert read_questions(config) == read_questions(config)
    other = read_questions(config.model_copy(update={"seed": 43}))
    assert {query.id for query in other.train} != {q.id for q in read_questions(config).train}


def test_more_questions_of_one_set_leave_the_draw_of_another(tmp_path: Path) -> None:
    config = configure(write_sets(tmp_path, SIZES))
    more = configure(tmp_path, train={"nq": 35, "hotpotqa": 10})
    first, second = read_questions(config), read_questions(more)
    assert first.test == second.test
    names = [set(list_ids(part.train, "hotpotqa")) for part in (first, second)]
    assert names[0] == names[1]
    assert set(list_ids(first.train, "nq")) < set(list_ids(second.train, "nq"))


def test_questions_to_test_on_leave_train_and_val_and_are_counted(tmp_path: Path) -> None:
    write_sets(tmp_path, SIZES)
    leaking = make_row("test", 0, "bamboogle")
    same = str(leaking["question"]).upper().replace(" ", "  ") + "?"
    rows = [make_row("train", number, "nq") for number in range(20)]
    rows.append({"id": "train_20", "question": same, "golden_answers": ["0"]})
    write_rows(tmp_path / "nq" / "train.jsonl", rows)
    dev = [make_row("dev", number, "nq") for number in range(4)]
    write_rows(tmp_path / "nq" / "dev.jsonl", [*dev, leaking | {"id": "dev_4"}])
    questions = read_questions(configure(tmp_path))
    assert questions.leaks == {"nq/train": 1, "nq/val": 1}
    tested = {normalise_text(query.text) for query in questions.test}
    assert not tested & {normalise_text(query.text) for query in questions.train}
    assert len(list_ids(questions.train, "nq")) == 20


def test_a_question_that_stands_twice_in_a_part_is_taken_once_and_counted(tmp_path: Path) -> None:
    write_sets(tmp_path, SIZES)
    rows = [make_row("test", number, "nq") for number in range(4)]
    write_rows(tmp_path / "nq" / "test.jsonl", [*rows, rows[0] | {"id": "test_4"}])
    shared = [make_row("train", number, "nq") | {"id": f"h_{number}"} for number in range(3)]
    rest = [make_row("train", number, "hotpotqa") for number in range(10)]
    write_rows(tmp_path / "hotpotqa" / "train.jsonl", [*shared, *rest])
    questions = read_questions(configure(tmp_path))
    assert len(list_ids(questions.test, "nq")) == 4
    assert questions.duplicates == {"nq/test": 1, "hotpotqa/train": 3}
    texts = [normalise_text(query.text) for query in questions.train]
    assert len(set(texts)) == len(texts) == 30


def test_two_sets_may_test_on_the_same_question(tmp_path: Path) -> None:
    write_rows(tmp_path / "nq" / "test.jsonl", [make_row("test", 0)])
    write_rows(tmp_path / "popqa" / "test.jsonl", [make_row("test", 0)])
    config = configure(tmp_path, train={}, val={}, test={"nq": 5, "popqa": 5})
    assert count_sets(read_questions(config).test) == {"nq": 1, "popqa": 1}


GOOD = make_row("test", 0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "must be a JSON object"),
        ({"id": "x"}, "'question' must be a text that is not empty"),
        (GOOD | {"id": " "}, "'id' must be a text that is not empty, or a whole number"),
        (GOOD | {"id": True}, "'id' must be"),
        (GOOD, "id 'test_0' stands in line 1 already"),
        (GOOD | {"id": "x", "golden_answers": []}, "'golden_answers' must be a list of one or"),
        (GOOD | {"id": "x", "golden_answers": "7"}, "'golden_answers' must be a list of one or"),
        (GOOD | {"id": "x", "golden_answers": [7]}, "'golden_answers' must be a list of one or"),
        (GOOD | {"id": "x", "answer": "7"}, "unknown key 'answer' .valid here: id, question"),
        ({"id": "x", "text": "t", "golden_answers": ["7"]}, "unknown key 'golden_answers'"),
        ({"id": "x", "text": "t"}, "'references' must be a list of one or more texts"),
        (GOOD | {"id": "x", "task": 3}, "'task' must be a text"),
        ('{"id": "x", "question": "\\ud800", "golden_answers": ["7"]}', "half of a surrogate"),
    ],
)
def test_a_fault_is_one_line_that_names_file_and_line(
    tmp_path: Path, line: object, message: str
) -> None:
    path = tmp_path / "nq" / "test.jsonl"
    path.parent.mkdir()
    text = line if isinstance(line, str) else json.dumps(line)
    path.write_text(f"{json.dumps(GOOD)}\n\n{text}\n", encoding="utf-8")
    with pytest.raises(RLRouteError, match=message) as caught:
        read_questions(configure(tmp_path, train={}, val={}, test={"nq": 1}))
    assert "test.jsonl, line 3" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"nq": 41}}, r"nq/train\.jsonl: train asks for 41 questions, 40 are left"),
        ({"val": {"hotpotqa": 9}}, r"hotpotqa/dev\.jsonl: val asks for 9 questions, 7 are left"),
        ({"train": {"bamboogle": 1}}, r"no split for train .wanted: train; there: test"),
        ({"test": {"popqa": 1}}, r"popqa: holds none of train\.jsonl, dev\.jsonl, test\.jsonl"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RLRouteError, match=message):
        read_questions(configure(write_sets(tmp_path, SIZES), **changes))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"train": {"nqq": 1}}, r"train: unknown set 'nqq' \(known: nq, triviaqa"),
        ({"test": {"nq": -1}}, r"test\.nq: Input should be greater than or equal to 0"),
        ({"validation": {}}, "unknown key 'validation'"),
    ],
)
def test_a_fault_of_the_configuration_names_its_key(data: dict[str, Any], message: str) -> None:
    with pytest.raises(RLRouteError, match=message):
        parse_config(QuestionSetConfig, data, "recipe.yaml")


def test_an_id_that_two_splits_share_is_refused(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_rows(tmp_path / "nq" / f"{split}.jsonl", [make_row(split, 0) | {"id": "0"}])
    with pytest.raises(RLRouteError, match="question id 'nq/0' stands in test and again in train"):
        read_questions(configure(tmp_path, train={"nq": 1}, val={}, test={"nq": 1}))


def test_the_last_check_finds_a_test_question_in_train() -> None:
    asked, same = Query("nq/a", "Why?"), Query("nq/b", " why? ")
    with pytest.raises(RLRouteError, match="question 'nq/b' of train stands in test too"):
        check_questions(Questions((same,), (), (asked,), {}, {}))


@given(st.text(), st.text())
def test_a_question_mark_is_appended_once(text: str, other: str) -> None:
    once = end_with_question_mark(text)
    assert once.endswith("?")
    assert end_with_question_mark(once) == once
    assert end_with_question_mark(f" {other}? ") == f"{other}?".strip()


def write_collection(folder: Path, *, parquet: bool) -> Path:
    """Write a folder laid out like a collection on the hub: its card names sets and files."""
    datasets = pytest.importorskip("datasets", reason="the extra `text` is absent")
    configs = []
    for name, splits in SIZES.items():
        files = []
        for split, size in splits.items():
            rows = [make_row(split, n, name) | {"metadata": {"n": n}} for n in range(size)]
            path = folder / name / f"{split}.{'parquet' if parquet else 'jsonl'}"
            if parquet:
                path.parent.mkdir(parents=True, exist_ok=True)
                datasets.Dataset.from_list(rows).to_parquet(path)
            else:
                write_rows(path, rows)
            files.append({"split": split, "path": f"{name}/{path.name}"})
        configs.append({"config_name": name, "data_files": files})
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    return folder


@pytest.mark.parametrize("parquet", [False, True], ids=["jsonl", "parquet"])
def test_the_path_of_the_hub_gives_what_the_files_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parquet: bool
) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra `text` is absent")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    collection = write_collection(tmp_path / "collection", parquet=parquet)
    files = write_sets(tmp_path / "files", SIZES)
    loaded = read_questions(configure(tmp_path, source="hub", repository=str(collection)))
    assert loaded == read_questions(configure(files))


def test_a_set_that_the_hub_does_not_give_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra `text` is absent")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    collection = str(write_collection(tmp_path / "collection", parquet=False))
    config = configure(tmp_path, source="hub", repository=collection, test={"popqa": 1})
    with pytest.raises(RLRouteError, match=r"set 'popqa': cannot be loaded") as caught:
        read_questions(config)
    assert "\n" not in str(caught.value)
    row = make_row("test", 0) | {"golden_answers": [""]}
    write_rows(Path(collection) / "bamboogle" / "test.jsonl", [row])
    with pytest.raises(RLRouteError, match=r"'bamboogle', split test, row 0: 'golden_answers'"):
        read_questions(config.model_copy(update={"test": {"bamboogle": 1}}))


def test_a_hub_that_cannot_be_reached_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra `text` is absent")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    config = configure(tmp_path, source="hub", repository="nobody/such-a-collection")
    with pytest.raises(RLRouteError, match="such-a-collection, set 'nq': cannot be loaded") as e:
        read_questions(config)
    assert "\n" not in str(e.value)
