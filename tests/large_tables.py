"""Item-response tables of any size, written to Parquet block by block, never whole in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from rlroute.data.irt_table import IrtTableConfig, make_irt_outcomes
from rlroute.data.prices import format_candidates
from rlroute.data.records import NUMBER_COLUMNS, TEXT_COLUMNS
from rlroute.data.table import OutcomeTable, make_records


def write_large_table(
    folder: Path, config: IrtTableConfig, seed: int, *, block: int = 20_000
) -> Path:
    """Write `make_irt_table(config, seed).table`, spelt out, one row group per `block` queries.

    No text is held twice and no table whole, so a million queries need no more than a few.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writer: parquet.ParquetWriter | None = None
    for start in range(0, config.queries, block):
        index_Q = np.arange(start, min(start + block, config.queries))
        table = spell_out(make_irt_outcomes(config, seed, index_Q))
        rows = make_arrow_rows(table)
        writer = writer or parquet.ParquetWriter(
            folder / "records.parquet", rows.schema, compression="zstd"
        )
        writer.write_table(rows)
    assert writer is not None
    writer.close()
    (folder / "models.csv").write_text(format_candidates(table.candidates), encoding="utf-8")
    return folder


def spell_out(table: OutcomeTable) -> OutcomeTable:
    """Return the table with the digits of its made-up words as letters.

    TF-IDF reads every digit as 0, and hardly two words would differ.
    """
    letters = str.maketrans("0123456789", "abcdefghij")
    queries = tuple(replace(query, text=query.text.translate(letters)) for query in table.queries)
    return replace(table, queries=queries)


def make_arrow_rows(table: OutcomeTable) -> pa.Table:
    """Return a table's records as plain Arrow columns, NaN as null."""
    records = make_records(table)
    columns = {
        name: pa.array(records.text[name].values).take(pa.array(records.text[name].codes_N))
        for name in TEXT_COLUMNS
    }
    numbers = {name: pa.array(records.numbers[name], from_pandas=True) for name in NUMBER_COLUMNS}
    return pa.table(columns | numbers)
