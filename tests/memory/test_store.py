"""What was run is kept by content: in memory, in a file, never a failure, never out of date."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_example import CHUNKS, make_question

from rlroute.memory.base import AnswerRun, ModuleInput, ModuleRun
from rlroute.memory.store import RunStore, make_answer_key, make_run_key
from rlroute.types import FailureKind, RLRouteError, Usage

WORK = ModuleInput(make_question(), CHUNKS, {"entity": ("a",), "topic": ()})
RUNS = [
    ModuleRun((CHUNKS[3], CHUNKS[1]), 0.25, Usage(5, 2, 1, True), 1.5),
    ModuleRun(("a - b - c", "d"), 0.1 + 0.2, None, None, malformed=True),
    ModuleRun("a text\nof two lines", 1e-7),
    ModuleRun((), 0.0),
    ModuleRun("", 0.0),
]


@pytest.mark.parametrize("run", RUNS)
def test_a_run_comes_back_as_it_was_with_its_cost(run, tmp_path):
    path = tmp_path / "deep" / "runs.jsonl"
    store = RunStore(path)
    store.keep_runs({"k": run})
    assert store.find_run("k", WORK) == run
    store.close()
    reopened = RunStore(path)
    assert reopened.find_run("k", WORK) == run
    reopened.close()


def test_an_answer_comes_back_as_it_was(tmp_path):
    answer = AnswerRun("7 May", 0.3, Usage(1, 2))
    store = RunStore(tmp_path / "runs.jsonl")
    store.keep_answers({"k": answer})
    store.close()
    reopened = RunStore(tmp_path / "runs.jsonl")
    assert reopened.find_answer("k") == answer
    reopened.close()


def test_failures_are_not_kept():
    store = RunStore()
    store.keep_runs({"a": ModuleRun((), failure=FailureKind.TIMEOUT), "b": RUNS[0]})
    store.keep_answers({"c": AnswerRun("", failure=FailureKind.SERVER)})
    assert store.find_run("a", WORK) is None
    assert store.find_answer("c") is None
    assert len(store) == 1


def test_what_was_found_and_what_was_not_is_counted():
    store = RunStore()
    store.keep_runs({"a": RUNS[0]})
    for key in ("a", "b", "a"):
        store.find_run(key, WORK)
    store.find_answer("c")
    assert (store.hits, store.misses) == (2, 2)


def test_what_is_kept_once_stays():
    store = RunStore()
    store.keep_runs({"a": RUNS[1]})
    store.keep_runs({"a": RUNS[2]})
    assert store.find_run("a", WORK) == RUNS[1]


# --- Keys -----------------------------------------------------------------------------------------


def test_a_key_changes_with_everything_that_is_read():
    question = WORK.question
    works = [
        WORK,
        replace(WORK, chunks=CHUNKS[::-1]),
        replace(WORK, chunks=(replace(CHUNKS[0], text="other"), *CHUNKS[1:])),
        replace(WORK, chunks=(replace(CHUNKS[0], when="2024"), *CHUNKS[1:])),
        replace(WORK, notes={"entity": ("b",), "topic": ()}),
        replace(WORK, notes={"topic": (), "entity": ("a",)}),  # their order is read too
        replace(WORK, question=replace(question, asked_on="2023-06-01")),
        replace(WORK, question=replace(question, history_id="other")),
        replace(WORK, question=replace(question, query=replace(question.query, text="Who?"))),
        replace(WORK, question=replace(question, query=replace(question.query, id="q2"))),
    ]
    keys = [make_run_key("tier", "summary", work) for work in works]
    assert len(set(keys)) == len(works)
    assert make_run_key("another tier", "summary", WORK) not in keys


def test_only_a_summary_reads_notes():
    bare = replace(WORK, notes={})
    for role, equal in (("filter", True), ("extract", True), ("summary", False)):
        assert (make_run_key("t", role, bare) == make_run_key("t", role, WORK)) is equal


def test_gold_answers_are_no_part_of_a_key():
    query = replace(WORK.question.query, references=("other",))
    question = replace(WORK.question, query=query, evidence=("t4",))
    work = replace(WORK, question=question)
    assert make_run_key("t", "filter", work) == make_run_key("t", "filter", WORK)
    assert make_answer_key("t", question, "s") == make_answer_key("t", WORK.question, "s")


@given(st.text(), st.text())
def test_equal_texts_have_equal_keys_and_others_have_not(one, other):
    keys = [make_answer_key("t", WORK.question, text) for text in (one, other)]
    assert (keys[0] == keys[1]) is (one == other)


# --- The file -------------------------------------------------------------------------------------


def test_a_torn_end_is_dropped_and_the_rest_is_read(tmp_path):
    path = tmp_path / "runs.jsonl"
    store = RunStore(path)
    store.keep_runs({"a": RUNS[0]})
    store.keep_runs({"b": RUNS[1]})
    store.close()
    path.write_bytes(path.read_bytes()[:-5])
    reopened = RunStore(path)
    assert reopened.find_run("a", WORK) == RUNS[0]
    assert reopened.find_run("b", WORK) is None
    reopened.keep_runs({"b": RUNS[1]})
    reopened.close()
    again = RunStore(path)
    assert len(again) == 2
    again.close()


def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("dear diary\nmore\n")
    with pytest.raises(RLRouteError, match=r"notes\.txt: not a store of module runs"):
        RunStore(path)
    assert path.read_text() == "dear diary\nmore\n"
    path.unlink()
    RunStore(path).close()  # and the lock is free


def test_a_header_that_was_torn_is_written_again(tmp_path):
    path = tmp_path / "runs.jsonl"
    store = RunStore(path)
    whole = path.read_bytes()
    store.close()
    assert not path.exists()  # a new store that holds nothing leaves no file
    path.write_bytes(whole[:9])
    RunStore(path).close()
    assert path.read_bytes() == whole


def test_a_second_process_has_to_wait(tmp_path):
    store = RunStore(tmp_path / "runs.jsonl")
    with pytest.raises(RLRouteError, match="another process is writing it"):
        RunStore(tmp_path / "runs.jsonl")
    store.close()
