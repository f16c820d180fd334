"""Weights of a policy: do they fit the network, and the network made from them.

What it leaves out: files. Checkpoints (`rlroute.trainers.checkpoint`) and exported routers
(`rlroute.export.bundle`) read and write them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from rlroute.policies.mlp import CandidateScorer, ScorerConfig
from rlroute.types import RLRouteError


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Load weights that must fit the model exactly.

    Raises:
        RLRouteError: names or shapes differ.
    """
    check_weights(model, weights, source)
    model.load_state_dict(dict(weights))


def check_weights(model: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Raise RLRouteError unless the weights have the names and shapes of the model's."""
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if expected != found:
        different = sorted(set(expected.items()) ^ set(found.items()))[0][0]
        raise RLRouteError(f"{source}: the weights are of another network ('{different}' differs)")


def build_scorer(
    config: ScorerConfig, weights: Mapping[str, Tensor], source: Path
) -> CandidateScorer:
    """Return a network that decides and does not learn: on the CPU, without gradients.

    Raises:
        RLRouteError: the weights are of another network, or not all of them are finite numbers.
    """
    with torch.device("meta"):  # takes no memory, whatever size the config claims
        model = CandidateScorer(config)
    check_weights(model, weights, source)
    for name, value in weights.items():
        if not value.isfinite().all():
            raise RLRouteError(f"{source}: '{name}' holds a value that is not a finite number")
    model.to_empty(device="cpu").load_state_dict(dict(weights))
    return model.eval().requires_grad_(False)
