"""Checkpoints of decision policies: weights that two layers share are kept once."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from rlroute.trainers.checkpoint import (
    WEIGHTS_FILE,
    TrainingState,
    load_checkpoint,
    save_checkpoint,
)
from rlroute.types import RLRouteError


class Tied(nn.Module):
    """Two names for one matrix, as in a language model with tied embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.body = nn.Linear(3, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight


def make_pair(seed: int) -> tuple[Tied, torch.optim.AdamW]:
    torch.manual_seed(seed)
    model = Tied()
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def take_step(model: Tied, optimiser: torch.optim.AdamW) -> None:
    model.head(model.body(model.embedding(torch.arange(5)))).square().sum().backward()
    optimiser.step()
    optimiser.zero_grad()


def test_a_model_with_tied_weights_goes_on_as_if_it_had_never_stopped(tmp_path):
    model, optimiser = make_pair(0)
    take_step(model, optimiser)
    state = TrainingState(update=1, problem={"count": 2})
    path = save_checkpoint(tmp_path, model.state_dict(), optimiser, state)
    assert set(load_file(path / WEIGHTS_FILE)) == {"embedding.weight", "body.weight", "body.bias"}
    other, moments = make_pair(1)
    assert load_checkpoint(path, other, moments) == state
    for pair in ((model, optimiser), (other, moments)):
        take_step(*pair)
    assert torch.equal(model.head.weight, other.head.weight)
    assert torch.equal(model.body.weight, other.body.weight)
    assert other.head.weight is other.embedding.weight


def test_a_checkpoint_without_a_needed_weight_is_refused(tmp_path):
    model, optimiser = make_pair(0)
    weights = {n: w for n, w in model.state_dict().items() if not n.startswith("body")}
    path = save_checkpoint(tmp_path, weights, optimiser, TrainingState(update=1))
    with pytest.raises(RLRouteError, match="of another network"):
        load_checkpoint(path, *make_pair(1))
