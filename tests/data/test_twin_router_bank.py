"""The question bank: what is read of its rows, what is refused, and how trajectories are split."""

from __future__ import annotations

import copy
import gzip
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from twin_router_examples import (
    PUBLISHED,
    make_published_rows,
    make_row,
    make_toy_rows,
    write_bank,
)

from rlroute.data.twin_router_bank import (
    WORKLOADS,
    FoldSplit,
    FractionSplit,
    LoggedTrajectory,
    parse_message,
    read_bank,
    split_trajectories,
)
from rlroute.types import SPLITS, RLRouteError


def make_trajectories(counts: dict[str, int]) -> list[LoggedTrajectory]:
    """Return trajectories without rows, which splits do not look at."""
    return [
        LoggedTrajectory(f"{workload}-{number}", workload, ())
        for workload, count in counts.items()
        for number in range(count)
    ]


def test_rows_become_trajectories_by_workload_and_step_whatever_the_order_of_lines(
    tmp_path: Path,
) -> None:
    rows = make_toy_rows()
    bank = read_bank(write_bank(tmp_path / "bank.jsonl", rows))
    assert [(one.id, one.workload) for one in bank] == [("toy-1", "swebench"), ("toy-2", "mtrag")]
    assert [row.step_index for row in bank[0].rows] == [1, 2, 3]
    assert [row.gold for row in bank[0].rows] == [0, 3, 1]
    assert bank[0].rows[1].id == "swebench_toy-1_step_2"
    assert bank == read_bank(write_bank(tmp_path / "reversed.jsonl", rows[::-1]))


def test_a_bank_may_be_compressed_and_have_blank_lines(tmp_path: Path) -> None:
    plain = write_bank(tmp_path / "bank.jsonl", make_toy_rows())
    packed = tmp_path / "bank.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes().replace(b"\n", b"\n\n")))
    assert read_bank(packed) == read_bank(plain)


def test_text_null_and_lists_of_blocks_are_normalised_to_text() -> None:
    image = {"type": "image_url", "image_url": "x"}
    blocks = ["one", {"type": "text", "text": "two"}, image, {"text": ""}]
    texts = [
        parse_message("m", {"role": "user", "content": content}).text
        for content in ("one\ntwo", blocks, None, "")
    ]
    assert texts == ["one\ntwo", "one\ntwo", "", ""]


def test_a_message_that_turns_from_a_text_into_a_list_is_the_same_message() -> None:
    text = parse_message("m", {"role": "system", "content": "be brief"})
    listed = parse_message(
        "m", {"role": "system", "content": [{"type": "text", "text": "be brief"}]}
    )
    assert text == listed


@pytest.mark.parametrize(
    "change",
    [
        {"role": "tool"},
        {"content": "be long"},
        {"tool_calls": [{"function": {"name": "bash"}}]},
        {"tool_call_id": "c1"},
        {"name": "bash"},
        {"tool_calls": None},  # present and null is not absent
    ],
)
def test_messages_differ_by_role_content_calls_and_names(change: dict[str, Any]) -> None:
    message = {"role": "user", "content": "be brief"}
    before = parse_message("m", message).identity
    assert (
        parse_message("m", {**message, "cache_control": {"type": "ephemeral"}}).identity == before
    )
    assert parse_message("m", {**message, **change}).identity != before


def test_the_counted_text_has_names_and_arguments_of_tool_calls_on_lines_of_their_own() -> None:
    calls = [
        {"id": "a", "function": {"name": "search", "arguments": {"q": "größe"}}},
        {"id": "b", "function": {"name": "bash", "arguments": '{"command": "ls"}'}},
        {"name": "stop", "arguments": ""},
    ]
    message = {"role": "assistant", "content": None, "tool_calls": calls}
    parsed = parse_message("m", message)
    assert parsed.text == 'search\n{"q": "größe"}\nbash\n{"command": "ls"}\nstop'
    assert parsed.tool_calls == 3
    assert parse_message("m", {**message, "content": ""}).text == "\n" + parsed.text
    assert parse_message("m", {**message, "content": "so:"}).text == "so:\n" + parsed.text


def test_provenance_schemas_and_total_steps_change_nothing_that_is_read(tmp_path: Path) -> None:
    rows = make_toy_rows()
    plain = read_bank(write_bank(tmp_path / "bank.jsonl", rows))
    for row in rows:
        row |= {"total_steps": 99, "notes": "hard!", "collector": "x", "functions": [{"name": "f"}]}
        row |= {"scenario": "other", "benchmark_version": "v9", "a_new_key": 1}
        del row["collected_at"], row["pipeline_stage"]
    assert read_bank(write_bank(tmp_path / "other.jsonl", rows)) == plain


def change_third_row(key: str, value: Any) -> list[dict[str, Any]]:
    """Return the toy rows with another value in the third line; None takes the key away."""
    rows = copy.deepcopy(make_toy_rows())
    if value is None:
        del rows[2][key]
    else:
        rows[2][key] = value
    return rows


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("id", None, "'id' must be a text that is not empty"),
        ("id", " ", "'id' must be a text that is not empty"),
        ("id", "swebench_toy-1_step_1", "id 'swebench_toy-1_step_1' stands in line 1 already"),
        ("instance_id", 7, "'instance_id' must be a text that is not empty"),
        ("benchmark", "swe", "'benchmark' must be one of swebench, bfcl, mtrag, qmsum, pinchbench"),
        ("benchmark", "bfcl", "benchmark 'bfcl' but instance_id 'toy-1' is of 'swebench'"),
        ("step_index", 0, "'step_index' must be a whole number from 1"),
        ("step_index", True, "'step_index' must be a whole number from 1"),
        ("step_index", 2, "step_index 2 of instance_id 'toy-1' is that of row 'swebench_toy-1_st"),
        ("target_tier_id", 4, "'target_tier_id' must be a whole number from 0 to 3"),
        ("target_tier_id", None, "'target_tier_id' must be a whole number from 0 to 3"),
        ("target_tier_id", 2, "'target_tier' must be 'mid_high', as 'target_tier_id' is 2"),
        ("messages", [], "'messages' must be a list of one or more messages"),
        ("messages", None, "'messages' must be a list of one or more messages"),
        ("messages", ["hi"], "'messages[0]' must be a JSON object"),
        ("messages", [{"role": "bot"}], "'messages[0]': 'role' must be one of system, user,"),
        ("messages", [{"role": "user", "content": 3}], "'messages[0]': 'content' must be a text,"),
        ("messages", [{"role": "user", "content": [3]}], "a block of 'content' must be a text"),
        ("messages", [{"role": "user", "tool_calls": "x"}], "'tool_calls' must be a list, or null"),
        ("messages", [{"role": "user", "tool_calls": ["x"]}], "a tool call must have a 'function'"),
        (
            "messages",
            [{"role": "user", "tool_calls": [{"name": "f", "arguments": 3}]}],
            "'arguments' of a tool call must be a text or an object",
        ),
    ],
)
def test_a_fault_names_file_line_and_key(tmp_path: Path, key: str, value: Any, fault: str) -> None:
    path = write_bank(tmp_path / "bank.jsonl", change_third_row(key, value))
    with pytest.raises(RLRouteError) as caught:
        read_bank(path)
    assert str(caught.value).startswith(f"{path}, line 3: ")
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", "line 1: not valid JSON"),
        ("[]", "line 1: must be a JSON object"),
        ('{"id": "\\ud800"}', "line 1: holds half of a surrogate pair"),
        ("", "the file is empty"),
    ],
)
def test_a_line_that_is_no_object_is_named(tmp_path: Path, line: str, fault: str) -> None:
    (tmp_path / "bank.jsonl").write_text(line)
    with pytest.raises(RLRouteError, match=fault):
        read_bank(tmp_path / "bank.jsonl")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RLRouteError, match=r"bank.jsonl: cannot be read"):
        read_bank(tmp_path / "bank.jsonl")


def test_steps_may_be_missing_from_a_trajectory(tmp_path: Path) -> None:
    rows = [make_row("bfcl", "a", step, [{"role": "user", "content": "x"}], 0) for step in (7, 2)]
    (one,) = read_bank(write_bank(tmp_path / "bank.jsonl", rows))
    assert [row.step_index for row in one.rows] == [2, 7]


def test_a_bank_of_the_published_size_has_its_counts(tmp_path: Path) -> None:
    bank = read_bank(write_bank(tmp_path / "bank.jsonl", make_published_rows()))
    assert Counter(one.workload for one in bank) == {
        workload: trajectories for workload, (trajectories, _) in PUBLISHED.items()
    }
    labels = Counter(row.gold for one in bank for row in one.rows)
    assert labels == {0: 689, 1: 62, 2: 49, 3: 170}
    assert (len(bank), labels.total()) == (520, 970)


def test_splits_are_stratified_by_workload_to_the_nearest_trajectory() -> None:
    trajectories = make_trajectories({name: count for name, (count, _) in PUBLISHED.items()})
    splits = split_trajectories(trajectories, FractionSplit())
    counts = Counter((one.workload, splits[one.id]) for one in trajectories)
    expected = {  # 70, 10 and 20 per cent of 40, 130, 193, 145 and 12
        "swebench": (28, 4, 8),
        "bfcl": (91, 13, 26),
        "mtrag": (135, 19, 39),
        "qmsum": (101, 15, 29),
        "pinchbench": (8, 2, 2),
    }
    for workload, numbers in expected.items():
        found = tuple(counts[workload, split] for split in SPLITS)
        assert all(abs(a - b) <= 1 for a, b in zip(found, numbers, strict=True)), workload
        assert sum(found) == PUBLISHED[workload][0]
    assert tuple(counts["swebench", split] for split in SPLITS) == (28, 4, 8)


def test_a_split_depends_on_seed_and_id_and_not_on_order_or_other_workloads() -> None:
    counts = {"swebench": 40, "bfcl": 30}
    trajectories = make_trajectories(counts)
    splits = split_trajectories(trajectories, FractionSplit())
    assert splits == split_trajectories(trajectories[::-1], FractionSplit())
    alone = split_trajectories(make_trajectories({"swebench": 40}), FractionSplit())
    assert alone.items() <= splits.items()
    assert splits != split_trajectories(trajectories, FractionSplit(seed=1))


@given(
    st.dictionaries(st.sampled_from(WORKLOADS), st.integers(1, 30), min_size=1),
    st.integers(3, 7),
    st.integers(0, 99),
)
def test_over_all_folds_every_trajectory_is_tested_once_and_validated_once(
    counts: dict[str, int], folds: int, seed: int
) -> None:
    trajectories = make_trajectories(counts)
    seen: Counter[tuple[str, str]] = Counter()
    for fold in range(folds):
        config = FoldSplit(folds=folds, fold=fold, seed=seed)
        splits = split_trajectories(trajectories, config)
        seen.update(splits.items())
        for workload, count in counts.items():
            tested = sum(splits[f"{workload}-{number}"] == "test" for number in range(count))
            assert tested in (count // folds, -(-count // folds))
    for one in trajectories:
        assert (seen[one.id, "test"], seen[one.id, "val"]) == (1, 1)
        assert seen[one.id, "train"] == folds - 2


@pytest.mark.parametrize(
    ("config", "values", "fault"),
    [
        (FractionSplit, {"train": 0.5, "val": 0.1, "test": 0.2}, "must sum to 1"),
        (FractionSplit, {"train": 1.2, "val": -0.1, "test": -0.1}, "less than or equal to 1"),
        (FoldSplit, {"folds": 5, "fold": 5}, "fold must be from 0 to 4"),
        (FoldSplit, {"folds": 2}, "greater than or equal to 3"),
        (FoldSplit, {"train": 0.7}, "Extra inputs are not permitted"),
    ],
)
def test_impossible_splits_are_refused(config: Any, values: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        config(**values)
