"""How long candidates take, where a policy is to weigh it: measured, or derived from tokens.

A table's `latency_seconds` is what was measured. Where it is blank, a recipe may declare how fast a
candidate writes, and the latency of a call is derived:

    latency = seconds to the first token + seconds per output token * output tokens

A latency that is neither measured nor derived is unknown, never 0: that pair is a hole where
latency counts. `skip` asks nobody and takes no time.

What it leaves out: the weight of latency (`rlroute.envs.preferences`), queues and retries.

How to use: `require_latencies(fill_latencies(table, config))`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import numpy as np
from pydantic import Field, model_validator

from rlroute.config import StrictModel
from rlroute.data.table import OutcomeTable
from rlroute.types import RLRouteError

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class LatencyConfig(StrictModel):
    """How fast candidates write, as their user declares it: id -> seconds."""

    seconds_per_output_token: dict[str, Seconds] = Field(min_length=1)
    seconds_to_first_token: dict[str, Seconds]

    @model_validator(mode="after")
    def check_candidates(self) -> LatencyConfig:
        """Refuse a candidate that only one of the two is declared for: the other is not 0."""
        apart = set(self.seconds_per_output_token) ^ set(self.seconds_to_first_token)
        if apart:
            raise ValueError(
                f"'{sorted(apart)[0]}' stands in one of seconds_per_output_token and "
                "seconds_to_first_token only; declare both"
            )
        return self


def fill_latencies(table: OutcomeTable, config: LatencyConfig | None) -> OutcomeTable:
    """Return a table whose unmeasured latencies are derived from tokens where they are declared.

    Raises:
        RLRouteError: a candidate is declared that the table does not have.
    """
    if config is None:
        return table
    ids = [candidate.id for candidate in table.candidates]
    unknown = sorted(set(config.seconds_per_output_token) - set(ids))
    if unknown:
        raise RLRouteError(
            f"latency: table '{table.name}' has no candidate '{unknown[0]}' "
            f"(it has: {', '.join(ids)})"
        )
    seconds_QK = table.latency_seconds_QK.copy()
    for name, per_token in config.seconds_per_output_token.items():
        k = ids.index(name)
        derived_Q = (
            config.seconds_to_first_token[name] + per_token * (table.completion_tokens_QK[:, k])
        )
        seconds_QK[:, k] = np.where(np.isfinite(seconds_QK[:, k]), seconds_QK[:, k], derived_Q)
    return replace(table, latency_seconds_QK=seconds_QK)


def require_latencies(table: OutcomeTable) -> OutcomeTable:
    """Return a table in which every pair without a latency is a hole.

    Raises:
        RLRouteError: no latency of some candidate is known, or none of a whole split.
    """
    seconds_QK = table.latency_seconds_QK.copy()
    for k, candidate in enumerate(table.candidates):
        if candidate.members == ():
            seconds_QK[:, k] = 0.0
    held_QK = table.present_QK & np.isfinite(seconds_QK)
    for k, candidate in enumerate(table.candidates):
        if not held_QK[:, k].any():
            raise RLRouteError(
                f"latency_weight: table '{table.name}' has no latency_seconds of candidate "
                f"'{candidate.id}' (measure them, or declare latency.seconds_per_output_token and "
                "latency.seconds_to_first_token)"
            )
    whole = replace(
        table,
        latency_seconds_QK=np.where(held_QK, seconds_QK, np.float32(np.nan)),
        score_QK=np.where(held_QK, table.score_QK, np.float32(np.nan)),
        cost_usd_QK=np.where(held_QK, table.cost_usd_QK, np.float32(np.nan)),
        present_QK=held_QK,
    )
    kept_Q = held_QK.any(axis=1)
    return whole if kept_Q.all() else whole.select_queries(kept_Q)
