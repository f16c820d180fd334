"""A pool that answers from an outcome table: what was measured once is replayed for nothing.

It leaves out live calls and answer texts (tables keep grades, not answers).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlroute.data.table import OutcomeTable
from rlroute.types import Call, Reply, RLRouteError, Usage


class RecordedPool:
    """Replays the outcomes of a table."""

    def __init__(self, table: OutcomeTable) -> None:
        self.table = table
        self.row_by_query = {query.id: row for row, query in enumerate(table.queries)}
        self.column_by_candidate = {item.id: column for column, item in enumerate(table.candidates)}

    async def ask_many(self, calls: Sequence[Call]) -> list[Reply]:
        """Return the recorded outcome of each call.

        Raises:
            RLRouteError: a call asks for a query, a candidate or a pair that was not recorded; the
                environment's mask forbids such a call, so this is a fault of the caller.
        """
        return [self.replay(call) for call in calls]

    def replay(self, call: Call) -> Reply:
        """Return the recorded outcome of one call; see `ask_many`."""
        row = self.row_by_query.get(call.query.id)
        column = self.column_by_candidate.get(call.candidate_id)
        if row is None or column is None or not self.table.present_QK[row, column]:
            raise RLRouteError(
                f"{self.table.name}: no outcome of candidate '{call.candidate_id}' "
                f"for query '{call.query.id}'"
            )
        table = self.table
        tokens = (table.prompt_tokens_QK[row, column], table.completion_tokens_QK[row, column])
        latency = float(table.latency_seconds_QK[row, column])
        return Reply(
            call=call,
            usage=None if np.isnan(tokens).any() else Usage(int(tokens[0]), int(tokens[1])),
            cost_usd=float(self.table.cost_usd_QK[row, column]),
            latency_seconds=None if np.isnan(latency) else latency,
            score=float(self.table.score_QK[row, column]),
        )
