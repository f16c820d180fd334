"""RouterBench's CSV and LLMRouter's JSON Lines, written here in the formats of those projects."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlroute.data.importers import import_llmrouter, import_routerbench, run_import
from rlroute.data.table import read_table
from rlroute.types import RLRouteError

MODELS = "model,input_usd_per_mtok,output_usd_per_mtok\nbig/model,10,30\nsmall,1,1\n"
WIDE_HEADER = [
    "sample_id",
    "prompt",
    "eval_name",
    "big/model",
    "small",
    "big/model|model_response",
    "small|model_response",
    "big/model|total_cost",
    "small|total_cost",
    "oracle_model_to_route_to",
]
N = 40


def make_wide_rows() -> list[list[str]]:
    return [
        [
            f"mmlu.val.{i}",
            str([f"Question {i}: isn't it?", 'say "A" or B']),
            "mmlu" if i % 2 else "mbpp",
            "1.0",
            str(i % 5 / 4),
            "['A,\\nB']",
            "['C']",
            "0.00074",
            "6.57e-05",
            "small",
        ]
        for i in range(N)
    ]


def write_wide(folder: Path, rows: list[list[str]], header: list[str] = WIDE_HEADER) -> Path:
    path = folder / "routerbench_0shot.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    (folder / "models.csv").write_text(MODELS)
    return path


def test_the_wide_csv_becomes_a_table(tmp_path):
    table = import_routerbench(write_wide(tmp_path, make_wide_rows()), tmp_path / "models.csv")
    assert table.name == "routerbench_0shot"
    assert [candidate.id for candidate in table.candidates] == ["big/model", "small"]
    assert table.score_QK.shape == (N, 2)
    assert table.present_QK.all()
    q = [query.id for query in table.queries].index("mmlu.val.7")
    assert table.queries[q].text == 'Question 7: isn\'t it?\nsay "A" or B'
    assert (table.queries[q].task, table.queries[q].dataset) == ("mmlu", "routerbench")
    assert table.score_QK[q].tolist() == [1.0, 0.5]
    assert table.cost_usd_QK[q].tolist() == [np.float32(0.00074), np.float32(6.57e-05)]
    assert np.isnan(table.prompt_tokens_QK).all()
    assert set(table.split_Q.tolist()) == {"train", "val", "test"}


def test_a_blank_score_with_a_blank_cost_is_a_hole(tmp_path):
    rows = make_wide_rows()
    rows[3][3] = rows[3][7] = ""
    table = import_routerbench(write_wide(tmp_path, rows), tmp_path / "models.csv")
    q = [query.id for query in table.queries].index("mmlu.val.3")
    assert table.present_QK[q].tolist() == [False, True]
    assert np.isnan(table.score_QK[q, 0])


def test_splits_that_the_user_gives_are_kept(tmp_path):
    rows = [[*row, ("train", "val", "test")[i % 3]] for i, row in enumerate(make_wide_rows())]
    path = write_wide(tmp_path, rows, [*WIDE_HEADER, "split"])
    table = import_routerbench(path, tmp_path / "models.csv")
    for query, split in zip(table.queries, table.split_Q, strict=True):
        assert split == ("train", "val", "test")[int(query.id.split(".")[-1]) % 3]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (3, "1.5", "line 4, model 'big/model': score is 1.5"),
        (3, "", "line 4, model 'big/model': score is blank or NaN"),
        (8, "", "line 4, model 'small': cost_usd is blank or NaN"),
        (8, "-1", "line 4, model 'small': cost_usd is -1.0"),
        (8, "cheap", "line 4: small|total_cost 'cheap' is no number"),
        (0, "mmlu.val.0", "line 4, model 'big/model': duplicate of query 'mmlu.val.0'"),
        (0, "", "line 4, model 'big/model': column 'query_id' is empty"),
    ],
)
def test_a_fault_of_the_wide_csv_names_file_and_line(tmp_path, column, value, message):
    rows = make_wide_rows()
    rows[2][column] = value
    with pytest.raises(RLRouteError) as caught:
        import_routerbench(write_wide(tmp_path, rows), tmp_path / "models.csv")
    assert f"routerbench_0shot.csv, {message}" in str(caught.value)


@pytest.mark.parametrize("missing", ["prompt", "small|total_cost", "big/model"])
def test_a_missing_column_of_the_wide_csv_is_named(tmp_path, missing):
    header = ["gone" if name == missing else name for name in WIDE_HEADER]
    with pytest.raises(RLRouteError) as caught:
        import_routerbench(write_wide(tmp_path, make_wide_rows(), header), tmp_path / "models.csv")
    assert f"routerbench_0shot.csv, line 1: missing column '{missing}'" in str(caught.value)


def test_a_model_of_the_wide_csv_without_a_price_is_refused(tmp_path):
    path = write_wide(tmp_path, make_wide_rows())
    (tmp_path / "models.csv").write_text("\n".join(MODELS.splitlines()[:2]))
    with pytest.raises(RLRouteError, match=r"line 2, model 'small': unknown model 'small'"):
        import_routerbench(path, tmp_path / "models.csv")


LLM_DATA = {
    "qwen2.5-7b-instruct": {
        "size": "7B",
        "feature": "a small model",
        "input_price": 0.2,
        "output_price": 0.4,
        "model": "qwen/qwen2.5-7b-instruct",
        "service": "NVIDIA",
    },
    "llama3-70b": {"feature": "a large one", "input_price": 0.9, "output_price": 0.9},
    "never-asked": {"input_price": 1, "output_price": 1},
}


def make_call(i: int, model: str, **fields: Any) -> dict[str, Any]:
    return {
        "task_name": "mmlu",
        "query": f"Which of these is {i}?",
        "ground_truth": "A",
        "metric": "em_mc",
        "choices": json.dumps({"text": [f"it, {i}", "not"], "labels": ["A", "B"]}),
        "task_id": None,
        "model_name": model,
        "response": "A",
        "token_num": 110,
        "input_tokens": 100,
        "output_tokens": 10,
        "response_time": 1.5,
        "api_key_used": "",
        "performance": 1.0,
        "embedding_id": i,
        "user_id": None,
        "fig_id": None,
    } | fields


def make_calls(start: int = 0, stop: int = N) -> list[dict[str, Any]]:
    models = ("qwen2.5-7b-instruct", "llama3-70b")
    return [make_call(i, model) for i in range(start, stop) for model in models]


def write_calls(path: Path, calls: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(call) + "\n" for call in calls))
    (path.parent / "llm.json").write_text(json.dumps(LLM_DATA))
    return path


def test_routing_data_become_a_table(tmp_path):
    path = write_calls(tmp_path / "routing.jsonl", make_calls())
    table = import_llmrouter(path, tmp_path / "llm.json")
    assert [candidate.id for candidate in table.candidates] == ["llama3-70b", "qwen2.5-7b-instruct"]
    assert table.candidates[1].description == "a small model"
    assert table.score_QK.shape == (N, 2)
    assert table.cost_usd_QK[0].tolist() == [np.float32(99e-6), np.float32(24e-6)]
    assert table.prompt_tokens_QK[0].tolist() == [100, 100]
    assert table.latency_seconds_QK[0, 0] == 1.5
    assert "Which of these is 3?\nA. it, 3\nB. not" in {query.text for query in table.queries}
    assert set(table.split_Q.tolist()) == {"train", "val", "test"}


def test_a_failed_call_is_a_hole_and_not_a_score_of_zero(tmp_path):
    calls = make_calls()
    failed = {"token_num": 0, "input_tokens": 0, "output_tokens": 0, "performance": 0.0}
    calls[0] |= {"response": "API Error: timeout"} | failed
    calls[3] |= {"response": "ERROR: no key"} | failed
    calls[4] |= {"response": "ERROR is what the program prints", "performance": 0.0}
    path = write_calls(tmp_path / "routing.jsonl", calls)
    table = import_llmrouter(path, tmp_path / "llm.json")
    assert table.present_QK.size - table.present_QK.sum() == 2
    assert np.nanmin(table.cost_usd_QK) > 0
    assert (table.score_QK == 0).sum() == 1


def test_a_folder_keeps_the_test_file_as_test(tmp_path):
    write_calls(tmp_path / "default_routing_train_data.jsonl", make_calls(0, N))
    write_calls(tmp_path / "default_routing_test_data.jsonl", make_calls(N, N + 5))
    table = import_llmrouter(tmp_path, tmp_path / "llm.json")
    assert (table.split_Q == "test").sum() == 5
    assert set(table.split_Q.tolist()) == {"train", "val", "test"}


def test_a_query_in_the_train_and_the_test_file_is_refused(tmp_path):
    write_calls(tmp_path / "default_routing_train_data.jsonl", make_calls(0, N))
    again = [make_call(N - 1, "llama3-70b", ground_truth="B")]
    write_calls(tmp_path / "default_routing_test_data.jsonl", again)
    with pytest.raises(RLRouteError, match=r"test_data.jsonl, line 1: .*stands in .* too"):
        import_llmrouter(tmp_path, tmp_path / "llm.json")


def test_a_folder_without_both_files_is_refused(tmp_path):
    write_calls(tmp_path / "default_routing_train_data.jsonl", make_calls(0, 3))
    with pytest.raises(RLRouteError, match=r"needs files named \*routing_train"):
        import_llmrouter(tmp_path, tmp_path / "llm.json")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"performance": None}, "line 3: field 'performance' is missing or no number"),
        ({"performance": 3}, "line 3: score is 3.0, must be between 0 and 1"),
        ({"input_tokens": "many"}, "line 3: field 'input_tokens' is missing or no number"),
        ({"query": None}, "line 3: field 'query' is missing or no text"),
        ({"model_name": "gpt"}, "line 3: unknown model 'gpt'"),
        ({"output_tokens": -9}, "line 3: completion_tokens is -9.0, must be at least 0"),
    ],
)
def test_a_fault_of_the_routing_data_names_file_and_line(tmp_path, fields, message):
    calls = make_calls()
    calls[2] |= fields
    path = write_calls(tmp_path / "routing.jsonl", calls)
    with pytest.raises(RLRouteError) as caught:
        import_llmrouter(path, tmp_path / "llm.json")
    assert f"routing.jsonl, {message}" in str(caught.value)


def test_a_line_that_is_no_json_is_refused(tmp_path):
    path = write_calls(tmp_path / "routing.jsonl", make_calls())
    path.write_text(path.read_text() + '{"task_name": ')
    with pytest.raises(RLRouteError, match=rf"routing.jsonl, line {2 * N + 1}: not valid JSON"):
        import_llmrouter(path, tmp_path / "llm.json")


def test_a_missing_price_of_the_model_file_is_an_error(tmp_path):
    path = write_calls(tmp_path / "routing.jsonl", make_calls())
    prices = LLM_DATA | {"llama3-70b": {"input_price": 0.9}}
    (tmp_path / "llm.json").write_text(json.dumps(prices))
    with pytest.raises(RLRouteError, match=r"llm.json, model 'llama3-70b': missing price"):
        import_llmrouter(path, tmp_path / "llm.json")


def test_the_command_writes_a_table_that_can_be_read(tmp_path, capsys):
    path = write_wide(tmp_path, make_wide_rows())
    run_import("routerbench", path, tmp_path / "models.csv", tmp_path / "out")
    assert "40 queries x 2 candidates, 0 without an outcome" in capsys.readouterr().out
    assert len(read_table(tmp_path / "out").queries) == N


def test_the_command_writes_nothing_when_there_is_a_fault(tmp_path):
    rows = make_wide_rows()
    rows[-1][3] = "2"
    path = write_wide(tmp_path, rows)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(RLRouteError):
        run_import("routerbench", path, tmp_path / "models.csv", tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(RLRouteError, match=r"unknown kind .* \(allowed: routerbench, llmrouter\)"):
        run_import("excel", path, tmp_path / "models.csv", tmp_path / "out")
