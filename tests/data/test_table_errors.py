"""Each fault of a table gives its own line, with file and row."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from rlroute.data.table import read_table
from rlroute.types import RLRouteError

HEADER = (
    "query_id,dataset,task,query,model,score,prompt_tokens,completion_tokens,cost_usd,"
    "split,latency_seconds"
)
# Line 2 is a record whose text spans two lines, so that records and lines do not coincide.
LINES = [
    'q1,d,t,"first\ntext",a,1,1,1,0.1,train,',
    'q1,d,t,"first\ntext",b,0,1,1,0.2,train,',
    "q2,d,t,second text,a,1,1,1,0.1,val,",
    "q3,d,t,third text,a,1,1,1,0.1,test,",
]
MODELS = "model,input_usd_per_mtok,output_usd_per_mtok\na,1,2\nb,1,2\n"


def make_folder(folder: Path, lines: list[str], header: str = HEADER) -> Path:
    text = "\n".join([header, *lines]) + "\n"
    (folder / "records.csv").write_text(text, encoding="utf-8")
    (folder / "models.csv").write_text(MODELS, encoding="utf-8")
    return folder


def read_fault(folder: Path) -> str:
    """Return the message that reading gives: one line."""
    with pytest.raises(RLRouteError) as caught:
        read_table(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_table_without_a_fault_is_read(tmp_path):
    assert read_table(make_folder(tmp_path, LINES)).score_QK.shape == (3, 2)


# Each appended record starts on line 8: header, twice two lines, two lines, then it.
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q4,d,t,x,zzz,1,1,1,0.1,train,", "unknown model 'zzz': it is not in .*models.csv"),
        ("q4,d,t,x,a,1.5,1,1,0.1,train,", "score is 1.5, must be between 0 and 1"),
        ("q4,d,t,x,a,-0.1,1,1,0.1,train,", "score is -0.1, must be between 0 and 1"),
        ("q4,d,t,x,a,nan,1,1,0.1,train,", "score is blank or NaN"),
        ("q4,d,t,x,a,,1,1,0.1,train,", "score is blank or NaN"),
        ("q4,d,t,x,a,good,1,1,0.1,train,", "score 'good' is no number"),
        ("q4,d,t,x,a,1,1,1,-0.1,train,", "cost_usd is -0.1, must be a finite number"),
        ("q4,d,t,x,a,1,1,1,inf,train,", "cost_usd is inf, must be a finite number"),
        ("q4,d,t,x,a,1,1,1,1e99,train,", "cost_usd is inf, must be a finite number"),
        ("q4,d,t,x,a,1,1,1,,train,", "cost_usd is blank or NaN, must be a finite number"),
        ("q4,d,t,x,a,1,-1,1,0.1,train,", "prompt_tokens is -1.0, must be at least 0 or blank"),
        ("q4,d,t,x,a,1,1,1,0.1,train,-2", "latency_seconds is -2.0, must be at least 0"),
        ("q2,d,t,second text,a,1,1,1,0.1,val,", "duplicate of query 'q2' and model 'a'.*line 6"),
        ("q4,d,t,x,a,1,1,1,0.1,dev,", r"unknown split 'dev' \(allowed: train, val, test\)"),
        ("q4,d,t,x,a,1,1,1,0.1,,", r"unknown split '' \(allowed: train, val, test\)"),
        (
            "q4,d,t, Second  TEXT,a,1,1,1,0.1,train,",
            "the text of this train query.* in val too.*line 6",
        ),
        ("q2,d,t,other,b,1,1,1,0.1,val,", "query 'q2' has another query here than at .*line 6"),
        ("q2,d,u,second text,b,1,1,1,0.1,val,", "query 'q2' has another task here"),
        ("q2,e,t,second text,b,1,1,1,0.1,val,", "query 'q2' has another dataset here"),
        ("q2,d,t,second text,b,1,1,1,0.1,test,", "query 'q2' has another split here"),
        (",d,t,x,a,1,1,1,0.1,train,", "column 'query_id' is empty"),
        ("q4,d,t, ,a,1,1,1,0.1,train,", "column 'query' is empty"),
        ("q4,d,t,x,a,1,1,1,0.1", "9 values, but 11 columns"),
    ],
)
def test_a_fault_of_a_record_names_file_and_line(tmp_path, line, message):
    fault = read_fault(make_folder(tmp_path, [*LINES, line]))
    assert re.match(f"{re.escape(str(tmp_path))}/records.csv, line 8: {message}", fault), fault


def test_a_missing_column_is_named(tmp_path):
    folder = make_folder(tmp_path, LINES, HEADER.replace("cost_usd", "price"))
    assert "records.csv, line 1: missing column 'cost_usd'" in read_fault(folder)


def test_a_column_that_occurs_twice_is_refused(tmp_path):
    folder = make_folder(tmp_path, LINES, HEADER.replace("latency_seconds", "score"))
    assert "records.csv, line 1: column 'score' occurs more than once" in read_fault(folder)


@pytest.mark.parametrize("price", ["", "nan", "-1", "inf", "free"])
def test_a_missing_price_is_an_error_and_never_zero(tmp_path, price):
    folder = make_folder(tmp_path, LINES)
    (folder / "models.csv").write_text(MODELS.replace("b,1,2", f"b,1,{price}"))
    expected = f"models.csv, line 3: missing price of model 'b': output_usd_per_mtok is '{price}'"
    assert expected in read_fault(folder)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ("model,input_usd_per_mtok\na,1\n", "line 1: missing column 'output_usd_per_mtok'"),
        (MODELS + "a,1,2\n", "line 4: model 'a' is listed twice"),
        (MODELS + "c,1\n", "line 4: 2 values, but 3 columns"),
        (MODELS + ",1,2\n", "line 4: empty model name"),
        (MODELS.splitlines()[0], "models.csv: lists no model"),
        ("", "models.csv: the file is empty"),
        (
            "model,input_usd_per_mtok,output_usd_per_mtok,kind\na,1,2,robot\n",
            "line 2: unknown kind 'robot' (allowed: model, agent",
        ),
        (
            "model,input_usd_per_mtok,output_usd_per_mtok,context_tokens\na,1,2,-5\n",
            "line 2: context_tokens is '-5', must be a positive whole number",
        ),
    ],
)
def test_a_fault_of_the_models_names_file_and_line(tmp_path, models, message):
    folder = make_folder(tmp_path, LINES)
    (folder / "models.csv").write_text(models)
    fault = read_fault(folder)
    assert "models.csv" in fault
    assert message in fault


def test_a_table_without_models_is_refused(tmp_path):
    folder = make_folder(tmp_path, LINES)
    (folder / "models.csv").unlink()
    assert "models.csv: cannot be read" in read_fault(folder)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_an_empty_split_is_refused(tmp_path, split):
    other = "val" if split == "train" else "train"
    lines = [line.replace(f",{split},", f",{other},") for line in LINES]
    assert f"records.csv: split '{split}' is empty" in read_fault(make_folder(tmp_path, lines))


def test_bytes_that_are_not_utf8_are_refused_with_their_line(tmp_path):
    folder = make_folder(tmp_path, LINES)
    path = folder / "records.csv"
    path.write_bytes(path.read_bytes().replace(b"second text", b"s\xe9cond"))
    assert "records.csv, line 6: not UTF-8 (byte 0xe9)" in read_fault(folder)


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_file_is_refused(tmp_path, content):
    folder = make_folder(tmp_path, LINES)
    (folder / "records.csv").write_bytes(content)
    assert "records.csv: the file is empty" in read_fault(folder)


def test_a_header_without_records_is_refused(tmp_path):
    assert "records.csv: holds no records" in read_fault(make_folder(tmp_path, []))


@pytest.mark.parametrize("kept", [0, 8, 60, -1])
def test_a_gzip_that_was_cut_off_is_refused(tmp_path, kept):
    folder = make_folder(tmp_path, LINES)
    data = gzip.compress((folder / "records.csv").read_bytes())
    (folder / "records.csv").unlink()
    (folder / "records.csv.gz").write_bytes(data[:kept])
    expected = "the file is empty" if kept == 0 else "the gzip file is damaged or cut off"
    assert f"records.csv.gz: {expected}" in read_fault(folder)


def test_a_missing_quote_is_refused_and_not_swallowed(tmp_path):
    lines = [*LINES[:2], 'q2,d,t,"second text,a,1,1,1,0.1,val,', LINES[3]]
    assert "records.csv, line 6: 4 values, but 11 columns" in read_fault(
        make_folder(tmp_path, lines)
    )


def test_two_files_of_records_are_refused(tmp_path):
    folder = make_folder(tmp_path, LINES)
    (folder / "records.parquet").write_bytes(b"")
    assert "holds more than one of records.csv.gz, records.csv" in read_fault(folder)


def test_a_folder_without_records_is_refused(tmp_path):
    assert "holds none of records.csv.gz" in read_fault(tmp_path)


def make_parquet_folder(folder: Path, **columns: list[object]) -> Path:
    values = {
        "query_id": ["q1", "q2", "q3"],
        "dataset": ["d"] * 3,
        "task": ["t"] * 3,
        "query": ["x", "y", "z"],
        "model": ["a"] * 3,
        "score": [1.0, 0.0, 1.0],
        "prompt_tokens": [1, None, 3],
        "completion_tokens": [1, 2, 3],
        "cost_usd": [0.1, 0.1, 0.1],
        "split": ["train", "val", "test"],
    } | columns
    kept = {name: value for name, value in values.items() if len(value)}
    parquet.write_table(pa.table(kept), folder / "records.parquet")
    (folder / "models.csv").write_text(MODELS)
    return folder


def test_a_parquet_table_without_a_fault_is_read(tmp_path):
    table = read_table(make_parquet_folder(tmp_path))
    assert table.score_QK.ravel().tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"score": [1.0, 0.5, 2.0]}, "records.parquet, row 3: score is 2.0"),
        ({"score": [1.0, None, 1.0]}, "records.parquet, row 2: score is blank or NaN"),
        ({"score": [[1], [1], [1]]}, "records.parquet: column 'score' holds list"),
        ({"model": ["a", "a", "c"]}, "records.parquet, row 3: unknown model 'c'"),
        ({"query": ["x", None, "z"]}, "records.parquet, row 2: column 'query' is empty"),
        (
            {
                "task": pa.array([1, 2, 3], pa.timestamp("s")),
                "score": pa.array([1, 2, 3], pa.date32()),
            },
            "records.parquet, row 1: column 'score' holds date32[day], not numbers",
        ),
        ({"query_id": [b"a", b"b", b"c"]}, "records.parquet: column 'query_id' holds binary"),
        ({"query_id": [[1], [2], [3]]}, "records.parquet: column 'query_id' holds list"),
        ({"cost_usd": []}, "records.parquet: missing column 'cost_usd'"),
    ],
)
def test_a_fault_of_a_parquet_file_names_its_row(tmp_path, columns, message):
    assert message in read_fault(make_parquet_folder(tmp_path, **columns))


def test_a_parquet_text_that_is_not_utf8_is_refused_with_its_row(tmp_path):
    text = pa.array([b"x", b"\xff", b"z"], pa.binary()).cast(pa.string(), safe=False)
    message = "records.parquet, row 2: column 'query' is not UTF-8"
    with pytest.raises(RLRouteError, match=message):
        read_table(make_parquet_folder(tmp_path, query=text))


def test_a_parquet_file_that_was_cut_off_is_refused(tmp_path):
    path = make_parquet_folder(tmp_path) / "records.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    assert "records.parquet: not a Parquet file, or cut off" in read_fault(tmp_path)
    path.write_bytes(b"")
    assert "records.parquet: the file is empty" in read_fault(tmp_path)
