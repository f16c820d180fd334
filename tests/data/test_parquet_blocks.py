"""Parquet read block by block: the same table as CSV gives, the same faults, little memory."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from large_tables import spell_out, write_large_table
from pyarrow import parquet

from rlroute.data import parquet_blocks
from rlroute.data.irt_table import IrtTableConfig, make_irt_table
from rlroute.data.prepare import compute_table_digest
from rlroute.data.records import FILE_COLUMNS
from rlroute.data.stored_queries import StoredQueries
from rlroute.data.table import OutcomeTable, list_arrays, read_table, write_table
from rlroute.types import RLRouteError

MODELS = "model,input_usd_per_mtok,output_usd_per_mtok\n" + "".join(
    f"{name},1,2\n" for name in ("a", "b", "c", "unused")
)
SPLITS = ("train", "val", "test")
BYTES_PER_QUERY = 3_500


def make_rows(seed: int, queries: int = 12) -> list[list[str]]:
    """Records of some queries in a mixed order, with holes and blanks."""
    random = np.random.default_rng(seed)
    rows = []
    for q in range(queries):
        for model in random.permutation(["a", "b", "c"])[: random.integers(1, 4)]:
            tokens = "" if random.random() < 0.3 else str(q)
            head = [f"q{q:02}", "set", f"task {q % 2}", f"text {q} é", str(model)]
            rows.append([*head, f"{random.random():.3f}", "1", tokens, "0.25", SPLITS[q % 3]])
    return [rows[i] for i in random.permutation(len(rows))]


def write_both(folder: Path, rows: list[list[str]]) -> tuple[Path, Path]:
    """Write the same records as CSV and as Parquet."""
    for name in ("csv", "parquet"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "models.csv").write_text(MODELS, encoding="utf-8")
    with (folder / "csv" / "records.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([list(FILE_COLUMNS), *rows])
    columns = {
        name: pa.array(cells)
        for name, cells in zip(FILE_COLUMNS, zip(*rows, strict=True), strict=True)
    }
    parquet.write_table(pa.table(columns), folder / "parquet" / "records.parquet")
    return folder / "csv", folder / "parquet"


def assert_equal_tables(left: OutcomeTable, right: OutcomeTable) -> None:
    assert left.queries == right.queries
    assert left.candidates == right.candidates
    assert left.split_Q.tolist() == right.split_Q.tolist()
    assert left.split_Q.dtype == right.split_Q.dtype
    for name in list_arrays():
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)
        assert getattr(left, name).dtype == getattr(right, name).dtype


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), block=st.integers(1, 40))
def test_blocks_of_any_size_give_the_table_that_csv_gives(tmp_path_factory, seed, block):
    csv_folder, parquet_folder = write_both(tmp_path_factory.mktemp("both"), make_rows(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet_blocks, "RECORDS_PER_BLOCK", block)
        found = read_table(parquet_folder)
    expected = read_table(csv_folder)
    assert isinstance(found.queries, StoredQueries)
    assert_equal_tables(found, expected)
    assert compute_table_digest(found) == compute_table_digest(expected)


@pytest.mark.parametrize(
    ("line", "column", "value", "fault"),
    [
        (20, 3, "another text", "query 'q{q}' has another query here than at"),
        (20, 2, "task 7", "query 'q{q}' has another task here than at"),
        (20, 9, "val", "query 'q{q}' has another split here than at"),
        (20, 5, "1.5", "score is 1.5, must be between 0 and 1"),
        (20, 4, "gpt", "unknown model 'gpt'"),
        (20, 3, "  ", "column 'query' is empty"),
        (20, 5, "x", "score 'x' is no number"),
    ],
)
def test_a_fault_in_a_late_block_names_its_row_in_the_file(
    tmp_path, monkeypatch, line, column, value, fault
):
    monkeypatch.setattr(parquet_blocks, "RECORDS_PER_BLOCK", 3)
    rows = [row for row in make_rows(0) if row[9] != "val"] + [
        ["v", "set", "t", "val text", "a", "1", "1", "1", "1", "val"]
    ]
    query = rows[0][0]
    extra = [query, "set", rows[0][2], rows[0][3], "", *rows[0][5:]]
    used = {row[4] for row in rows if row[0] == query}
    extra[4] = next((name for name in "abc" if name not in used), "unused")
    extra[column] = value
    rows.append(extra)
    with pytest.raises(RLRouteError) as caught:
        read_table(write_both(tmp_path, rows)[1])
    message = str(caught.value)
    assert f"records.parquet, row {len(rows)}: " in message
    assert fault.format(q=query[1:]) in message
    if "another" in fault:
        assert message.endswith("records.parquet, row 1")
    assert "\n" not in message


@pytest.mark.parametrize("block", [2, 1000])
def test_a_duplicate_names_both_rows_wherever_they_stand(tmp_path, monkeypatch, block):
    monkeypatch.setattr(parquet_blocks, "RECORDS_PER_BLOCK", block)
    rows = make_rows(1)
    rows.append(rows[4])
    with pytest.raises(RLRouteError) as caught:
        read_table(write_both(tmp_path, rows)[1])
    pair = f"query '{rows[4][0]}' and model '{rows[4][4]}'"
    assert f"row {len(rows)}: duplicate of {pair}, which stand at" in str(caught.value)
    assert str(caught.value).endswith("records.parquet, row 5 already")


def test_a_text_in_two_splits_is_refused_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_blocks, "RECORDS_PER_BLOCK", 1)
    base = ["set", "t"]
    rows = [
        ["q1", *base, "one", "a", "1", "1", "1", "1", "train"],
        ["q2", *base, "two", "a", "1", "1", "1", "1", "val"],
        ["q3", *base, " ONE ", "a", "1", "1", "1", "1", "test"],
    ]
    with pytest.raises(RLRouteError, match=r"row 3: the text of this test query stands in train"):
        read_table(write_both(tmp_path, rows)[1])
    with pytest.raises(RLRouteError, match="split 'test' is empty"):
        read_table(write_both(tmp_path, rows[:2])[1])


def test_selections_of_stored_queries_share_texts_and_equal_tuples(tmp_path):
    csv_folder, parquet_folder = write_both(tmp_path, make_rows(2))
    stored, plain = read_table(parquet_folder), read_table(csv_folder)
    chosen = stored.select_queries([5, 0, 3])
    assert chosen.queries == plain.select_queries([5, 0, 3]).queries
    assert isinstance(chosen.queries, StoredQueries)
    assert chosen.queries.columns is stored.queries.columns
    assert stored.queries[1:4] == plain.queries[1:4]
    assert stored.queries[-1] == plain.queries[-1]
    assert list(stored.texts) == [query.text for query in plain.queries]
    assert stored.texts[2:3][0] == plain.queries[2].text
    assert stored.queries != plain.queries[:-1]
    with pytest.raises(IndexError):
        stored.queries[len(stored.queries)]


def test_the_splits_of_a_grouped_table_are_views_of_it(tmp_path):
    table = read_table(write_both(tmp_path, make_rows(3))[1])
    grouped = table.group_splits()
    for split in SPLITS:
        part = grouped.select_split(split)
        assert_equal_tables(part, table.select_split(split))
        for name in list_arrays():
            assert np.shares_memory(getattr(part, name), getattr(grouped, name)), name


def test_a_table_written_from_stored_queries_reads_back(tmp_path):
    table = read_table(write_both(tmp_path, make_rows(4))[1])
    for kind in ("csv", "parquet"):
        write_table(table, tmp_path / "again" / kind, format=kind)
        assert_equal_tables(read_table(tmp_path / "again" / kind), table)


def test_a_large_table_is_written_and_read_in_blocks_as_it_is_made_whole(tmp_path):
    config = IrtTableConfig(queries=700, candidates=5)
    folder = write_large_table(tmp_path / "irt", config, seed=2, block=64)
    found, made = read_table(folder), spell_out(make_irt_table(config, seed=2).table)
    ids = [query.id for query in made.queries]
    order = sorted(range(700), key=lambda q: (made.queries[q].task, ids[q]))
    assert_equal_tables(found, made.select_queries(order))


MEASURE = """
import resource, sys
from rlroute.data.table import read_table
from rlroute.data.encoders import TfidfConfig
from rlroute.data.prepare import prepare_table
from rlroute.data.routing_data import ProfileConfig
for source in sys.argv[1:]:
    config = TfidfConfig(dimension=64, fit_texts=2000)
    prepare_table(read_table(source), config, ProfileConfig(clusters=4, fit_queries=2000), 0)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def test_a_query_costs_a_few_kilobytes_of_memory_at_its_peak(tmp_path):
    folders = []
    for queries in (2_000, 60_000):
        config = IrtTableConfig(queries=queries, candidates=12)
        folders.append(str(write_large_table(tmp_path / str(queries), config, seed=0)))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *folders], capture_output=True, text=True, check=True
    )
    small, large = (int(line) for line in done.stdout.split())
    assert (large - small) / 58_000 < BYTES_PER_QUERY
