"""The policy of sessions under a total budget: a perceptron that scores executors for a turn.

What it is: scores [N, K] from the turn's features (an embedding of what the router reads) joined
with where the session stands:

    share   balance / total budget
    calls   turns of the dearest executor that the balance pays, at most T, over T (T: most turns)
    turn    turns done / T

SeqRoute knows the share alone, which is 1 at the start of every session, whatever its budget; with
`balance: share` it is done so here. Trained as action values or as logits of the log's choices, the
scores are used alike: the executor with the greatest score - cost weight * cost is asked. The cost
weight is no input: one network serves all of them.

What it leaves out: the choice and the losses (`rlroute.algorithms.offline`).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, TypeAlias

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from rlroute.config import StrictModel
from rlroute.types import FloatArray

BalanceInputs: TypeAlias = Literal["share", "share_and_calls"]


class SessionScorerConfig(StrictModel):
    """Shape of the network: F features of a turn, P numbers of its standing, K executors."""

    features: int = Field(ge=0)
    standing: int = Field(ge=1)
    executors: int = Field(ge=2)
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (512, 256, 256)


class SessionScorer(nn.Module):
    """Scores the executors of a turn; see the module's text."""

    def __init__(self, config: SessionScorerConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((config.features + config.standing, *config.hidden)):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        last = config.hidden[-1] if config.hidden else config.features + config.standing
        self.layers = nn.Sequential(*layers, nn.Linear(last, config.executors))

    def forward(self, features_NF: Tensor, standing_NP: Tensor) -> Tensor:
        """Return the scores [N, K] of N turns."""
        scores_NK: Tensor = self.layers(torch.cat([features_NF, standing_NP], dim=1))
        return scores_NK


def describe_standing(
    balance_N: np.ndarray,
    budget_N: np.ndarray,
    turn_N: np.ndarray | int,
    *,
    dearest_cost: float,
    max_turns: int,
    balance: BalanceInputs,
) -> FloatArray:
    """Return the standing [N, P] of N sessions that are to decide.

    Balances (at least 0), budgets (above 0) and `dearest_cost`, the mean cost of a turn of the
    dearest executor, are in the log's unit; `turn_N` counts from 0.
    """
    share_N = balance_N / budget_N
    calls_N = np.minimum(balance_N / dearest_cost, max_turns) / max_turns
    progress_N = np.broadcast_to(np.asarray(turn_N) / max_turns, share_N.shape)
    columns = [share_N, progress_N] if balance == "share" else [share_N, calls_N, progress_N]
    return np.stack(columns, axis=1).astype(np.float32)


def count_standing(balance: BalanceInputs) -> int:
    """Return how many numbers `describe_standing` gives."""
    return 2 if balance == "share" else 3
