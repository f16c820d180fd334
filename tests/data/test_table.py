from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlroute.data import table as table_module
from rlroute.data.records import FILE_COLUMNS
from rlroute.data.table import OutcomeTable, list_arrays, read_table, write_table
from rlroute.types import Candidate, Limits, Prices, Query, RLRouteError

SHARED = Path(__file__).resolve().parents[2].parent / "shared"

MODELS = "model,input_usd_per_mtok,output_usd_per_mtok\nb,1,2\na,0.5,0\nunused,3,3\n"
ROWS = [
    ["q1", "set", "maths", "one, two\nthree", "a", "1", "10", "", "0.001", "train"],
    ["q1", "set", "maths", "one, two\nthree", "b", "0.25", "10", "5", "0", "train"],
    ["q2", "set", "", 'say "two"', "b", "0", "7", "5", "0.5", "val"],
    ["q0", "set", "maths", "drei €", "a", "0.5", "", "", "2e-05", "test"],
]


def write_folder(folder: Path, rows: list[list[str]], models: str = MODELS) -> Path:
    folder.mkdir(exist_ok=True)
    with (folder / "records.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([list(FILE_COLUMNS), *rows])
    (folder / "models.csv").write_text(models, encoding="utf-8")
    return folder


def assert_equal_tables(left: OutcomeTable, right: OutcomeTable) -> None:
    assert left.queries == right.queries
    assert left.candidates == right.candidates
    assert left.split_Q.tolist() == right.split_Q.tolist()
    for name in list_arrays():
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)
        assert getattr(left, name).dtype == getattr(right, name).dtype


def test_a_table_is_read_sorted_with_its_candidates(tmp_path):
    table = read_table(write_folder(tmp_path / "mine", ROWS))
    assert table.name == "mine"
    assert [query.id for query in table.queries] == ["q2", "q0", "q1"]  # by task, then id
    assert table.queries[2] == Query("q1", "one, two\nthree", "maths", "set")
    assert table.candidates == (Candidate("a", Prices(0.5, 0)), Candidate("b", Prices(1, 2)))
    assert table.split_Q.tolist() == ["val", "test", "train"]
    assert table.score_QK.dtype == np.float32
    assert table.score_QK[2].tolist() == [1.0, 0.25]


def test_a_hole_in_the_table_is_masked_and_never_zero(tmp_path):
    table = read_table(write_folder(tmp_path / "mine", ROWS))
    assert table.present_QK.tolist() == [[False, True], [True, False], [True, True]]
    for name in list_arrays():
        if name != "present_QK":
            assert np.isnan(getattr(table, name)[~table.present_QK]).all(), name
    assert np.isfinite(table.score_QK[table.present_QK]).all()
    assert np.isnan(table.completion_tokens_QK[1, 0])  # a blank count is unknown, not 0


def test_the_order_of_rows_and_models_changes_nothing(tmp_path):
    straight = read_table(write_folder(tmp_path / "straight", ROWS))
    models = "\n".join([MODELS.splitlines()[0], *reversed(MODELS.splitlines()[1:])])
    for seed in range(3):
        rows = [ROWS[i] for i in np.random.default_rng(seed).permutation(len(ROWS))]
        assert_equal_tables(straight, read_table(write_folder(tmp_path / "mixed", rows, models)))


@pytest.mark.parametrize("table_format", ["csv", "parquet"])
def test_what_is_written_reads_back_exactly(tmp_path, table_format):
    table = read_table(write_folder(tmp_path / "mine", ROWS))
    write_table(table, tmp_path / "copy", format=table_format)
    assert_equal_tables(table, read_table(tmp_path / "copy"))


def test_latency_and_optional_columns_of_models_survive(tmp_path):
    models = (
        "model,input_usd_per_mtok,output_usd_per_mtok,kind,description,usd_per_call,"
        'context_tokens,output_tokens\na,0.1,0.2,tool,"adds, fast",0.003,4096,\nb,1,2,,,,,\n'
    )
    folder = write_folder(tmp_path / "mine", ROWS, models)
    lines = [[*FILE_COLUMNS, "latency_seconds"], *([*row, ""] for row in ROWS)]
    lines[1][-1] = "0.125"
    with (folder / "records.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)
    table = read_table(folder)
    assert table.candidates[0] == Candidate(
        "a", Prices(0.1, 0.2, 0.003), "tool", "adds, fast", Limits(4096, None)
    )
    assert table.latency_seconds_QK[2, 0] == np.float32(0.125)
    assert np.isnan(table.latency_seconds_QK).sum() == 5
    for table_format in ("csv", "parquet"):
        write_table(table, tmp_path / "copy", format=table_format)
        assert_equal_tables(table, read_table(tmp_path / "copy"))


def make_table(scores: list[list[float | None]], costs: list[float]) -> OutcomeTable:
    score_QK = np.array(
        [[np.nan if s is None else s for s in row] for row in scores], dtype=np.float32
    )
    present_QK = ~np.isnan(score_QK)
    queries = len(scores)
    unknown_QK = np.full_like(score_QK, np.nan)
    cost_QK = np.where(present_QK, np.array(costs, dtype=np.float32), np.nan)
    return OutcomeTable(
        name="made",
        queries=tuple(Query(f"q{q}", f"text\r\n{q} \u2028,") for q in range(queries)),
        candidates=tuple(Candidate(f"m{k}", Prices(0.1 + k, 1 / 3)) for k in range(len(costs))),
        score_QK=score_QK,
        cost_usd_QK=cost_QK.astype(np.float32),
        present_QK=present_QK,
        prompt_tokens_QK=unknown_QK,
        completion_tokens_QK=unknown_QK,
        latency_seconds_QK=unknown_QK,
        split_Q=np.array([("train", "val", "test")[q % 3] for q in range(queries)]),
    )


score = st.floats(0, 1, width=32)
amount = st.floats(0, 2.0**100, width=32)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(score, st.none() | score), min_size=3, max_size=9),
    costs=st.tuples(amount, amount),
    table_format=st.sampled_from(["csv", "parquet"]),
)
def test_any_table_reads_back_exactly(tmp_path_factory, rows, costs, table_format):
    table = make_table([list(row) for row in rows], list(costs)).select_candidates(["m0", "m1"])
    folder = tmp_path_factory.mktemp("any") / "table"
    write_table(table, folder, format=table_format)
    copy = read_table(folder)
    seen = [k for k in range(2) if table.present_QK[:, k].any()]
    assert_equal_tables(table.select_candidates([f"m{k}" for k in seen]), copy)


def test_the_same_table_gives_the_same_bytes(tmp_path):
    table = read_table(write_folder(tmp_path / "mine", ROWS))
    for name in ("one", "two"):
        write_table(table, tmp_path / name)
    for file in ("records.csv.gz", "models.csv"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    header = (tmp_path / "one" / "records.csv.gz").read_bytes()[:10]
    assert header[4:8] == bytes(4)  # no time stamp


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    folder = write_folder(tmp_path / "mine", ROWS)
    table = read_table(folder)
    data = (folder / "records.csv").read_bytes()
    (folder / "records.csv").unlink()
    (folder / "records.csv.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + data))
    assert_equal_tables(table, read_table(folder))


def test_a_split_a_subset_and_some_candidates_can_be_selected(tmp_path):
    table = read_table(write_folder(tmp_path / "mine", ROWS))
    assert [query.id for query in table.select_split("test").queries] == ["q0"]
    assert [query.id for query in table.select_queries([2, 0]).queries] == ["q1", "q2"]
    only_b = table.select_candidates(["b"])
    assert [query.id for query in only_b.queries] == ["q2", "q1"]  # q0 has no outcome of b
    assert only_b.score_QK.tolist() == [[0.0], [0.25]]
    with pytest.raises(RLRouteError, match=r"split 'train' is empty \(it holds: val\)"):
        table.select_split("val").select_split("train")
    with pytest.raises(RLRouteError, match=r"unknown candidate 'c' \(it has: a, b\)"):
        table.select_candidates(["a", "c"])
    with pytest.raises(RLRouteError, match="no candidate selected"):
        table.select_candidates([])


def test_an_unknown_table_is_refused_with_the_shipped_names(tmp_path, monkeypatch):
    (tmp_path / "tables" / "shelf").mkdir(parents=True)
    write_folder(tmp_path / "tables" / "shelf", ROWS)
    monkeypatch.setattr(table_module.importlib.resources, "files", lambda package: tmp_path)
    assert read_table("shelf").name == "shelf"
    with pytest.raises(RLRouteError, match=r"table 'nowhere': no such folder.*\(shipped: shelf\)"):
        read_table("nowhere")


def test_writing_never_removes_files_that_are_no_table(tmp_path):
    table = read_table(write_folder(tmp_path / "mine", ROWS))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(RLRouteError, match="holds other files"):
        write_table(table, tmp_path / "home")
    assert (tmp_path / "home" / "thesis.tex").read_text() == "years of work"


def test_a_table_that_could_not_be_read_is_not_written(tmp_path):
    table = read_table(write_folder(tmp_path / "mine", ROWS))
    with pytest.raises(RLRouteError, match="split 'train' is empty"):
        write_table(table.select_split("val"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.skipif(not SHARED.exists(), reason="the shared tables are not here")
@pytest.mark.parametrize(
    ("name", "shape", "splits"),
    [
        ("mmlu_pro", (7779, 12), (5473, 762, 1544)),
        ("routellm_evals", (15256, 2), (10619, 1542, 3095)),
        ("llmrouter_example", (3736, 9), (2932, 454, 350)),
        ("zeroeval_gsm8k", (1319, 14), (929, 136, 254)),
    ],
)
def test_the_shared_tables_have_the_size_that_they_state(name, shape, splits):
    table = read_table(SHARED / "data" / name)
    assert table.score_QK.shape == shape
    assert table.present_QK.all()
    assert tuple((table.split_Q == split).sum() for split in ("train", "val", "test")) == splits
