"""Queries of a large table: texts in Arrow columns, a `Query` made when it is asked for.

What it is: two sequences. `StoredQueries` holds a million queries in little more than the bytes of
their texts; a selection shares the columns and holds row numbers. `QueryTexts` are the texts of any
sequence of queries, read one by one.

What it leaves out: references and metadata of a query, which tables do not have.

How to use: `table.queries[3]`, `table.texts`; both behave like tuples that cannot be hashed.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from rlroute.types import IntArray, Query

BLOCK = 4096  # queries that are read at once while iterating
COLUMNS = ("query_id", "query", "task", "dataset")  # in the order of the fields of a query


class StoredQueries(Sequence[Query]):
    """Q queries as rows of four Arrow columns of text; see `COLUMNS`."""

    def __init__(self, columns: Mapping[str, Any], row_Q: IntArray) -> None:
        self.columns = columns
        self.row_Q = row_Q

    def __len__(self) -> int:
        return len(self.row_Q)

    @overload
    def __getitem__(self, index: int) -> Query: ...

    @overload
    def __getitem__(self, index: slice) -> StoredQueries: ...

    def __getitem__(self, index: int | slice) -> Query | StoredQueries:
        if isinstance(index, slice):
            return StoredQueries(self.columns, self.row_Q[index])
        row = int(self.row_Q[index])
        return Query(*(self.columns[name][row].as_py() for name in COLUMNS))

    def __iter__(self) -> Iterator[Query]:
        for query_id, text, task, dataset in self.read_cells(COLUMNS):
            yield Query(query_id, text, task, dataset)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(other) == len(self) and all(map(operator.eq, self, other))

    __hash__ = None  # type: ignore[assignment] # as that of a list: equality looks at the contents

    def take(self, index_Q: npt.ArrayLike) -> StoredQueries:
        """Return the queries at some positions, in that order; the texts are shared."""
        return StoredQueries(self.columns, self.row_Q[np.asarray(index_Q)])

    def read_cells(self, names: Sequence[str]) -> Iterator[tuple[str, ...]]:
        """Yield the cells of some columns, query by query; a block of them is text at a time."""
        for start in range(0, len(self), BLOCK):
            row_B = self.row_Q[start : start + BLOCK]
            cells = [self.columns[name].take(row_B).to_pylist() for name in names]
            yield from zip(*cells, strict=True)


class QueryTexts(Sequence[str]):
    """The texts of queries, one after the other."""

    def __init__(self, queries: Sequence[Query]) -> None:
        self.queries = queries

    def __len__(self) -> int:
        return len(self.queries)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> QueryTexts: ...

    def __getitem__(self, index: int | slice) -> str | QueryTexts:
        if isinstance(index, slice):
            return QueryTexts(self.queries[index])
        return self.queries[index].text

    def __iter__(self) -> Iterator[str]:
        if isinstance(self.queries, StoredQueries):
            return (text for (text,) in self.queries.read_cells(("query",)))
        return (query.text for query in self.queries)


def take_queries(queries: Sequence[Query], row_Q: IntArray) -> Sequence[Query]:
    """Return the queries at some positions, in that order."""
    if isinstance(queries, StoredQueries):
        return queries.take(row_Q)
    return tuple(queries[row] for row in row_Q)
