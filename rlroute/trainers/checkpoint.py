"""Checkpoints: weights and optimiser as safetensors, the rest as JSON; written whole or not at all.

No generator state is among them, since every draw follows from its coordinates: the number of the
next update is all that a resumed run needs to draw what the uninterrupted run would have drawn.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from rlroute.files import atomic_folder, write_atomic
from rlroute.policies.weights import load_weights
from rlroute.types import RLRouteError

FORMAT_VERSION = 1
WEIGHTS_FILE = "policy.safetensors"
OPTIMISER_FILE = "optimiser.safetensors"
STATE_FILE = "state.json"
STEP_NAME = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class TrainingState:
    """Where a run stands: updates done, the best validation so far, and money and time spent.

    `problem` is what the problem itself has to go on from, as plain JSON values.
    """

    update: int = 0
    best_metric: float | None = None
    best_update: int = 0
    cost_usd_total: float = 0.0
    seconds: float = 0.0
    problem: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(
    folder: Path, weights: Mapping[str, Tensor], optimiser: Optimizer, state: TrainingState
) -> Path:
    """Write `folder/step-N`, N the updates done, and remove the older steps."""
    path = folder / f"step-{state.update}"
    with atomic_folder(path) as temporary:
        tied = find_tied(weights)  # a file holds them once
        own = {name: value.contiguous() for name, value in weights.items() if name not in tied}
        save_file(own, temporary / WEIGHTS_FILE)
        save_file(flatten_optimiser(optimiser), temporary / OPTIMISER_FILE)
        content = {"format_version": FORMAT_VERSION, **asdict(state)}
        write_atomic(temporary / STATE_FILE, json.dumps(content, indent=2))
    for other in list_checkpoints(folder):
        if other != path:
            shutil.rmtree(other)
    return path


def find_tied(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the names whose tensor is that of an earlier name, such as tied embeddings."""
    firsts: dict[tuple[int, torch.Size], str] = {}
    tied = {}
    for name, value in weights.items():
        first = firsts.setdefault((value.data_ptr(), value.shape), name)
        if first != name and value.numel():
            tied[name] = first
    return tied


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints of a folder, oldest first."""
    steps = [path for path in folder.glob("step-*") if STEP_NAME.fullmatch(path.name)]
    return sorted(steps, key=lambda path: int(path.name.removeprefix("step-")))


def load_checkpoint(path: Path, model: torch.nn.Module, optimiser: Optimizer) -> TrainingState:
    """Load weights and optimiser in place and return the state.

    Raises:
        RLRouteError: a file is missing or torn, of another format version, or of another model.
    """
    state = read_state(path)
    try:
        weights = load_file(path / WEIGHTS_FILE)
        moments = load_file(path / OPTIMISER_FILE)
    except (OSError, SafetensorError) as error:
        raise RLRouteError(f"{path}: the checkpoint cannot be read ({error})") from None
    tied = find_tied(model.state_dict())
    weights |= {name: weights[first] for name, first in tied.items() if first in weights}
    load_weights(model, weights, path)
    restore_optimiser(optimiser, moments)
    return state


def read_state(path: Path) -> TrainingState:
    """Read where the run of a checkpoint stood.

    Raises:
        RLRouteError: the file is missing or torn, or of another format version.
    """
    try:
        content = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RLRouteError(f"{path / STATE_FILE}: cannot be read ({error})") from None
    version = content.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise RLRouteError(f"{path}: format_version {version}, this rlroute reads {FORMAT_VERSION}")
    return TrainingState(**content)


def flatten_optimiser(optimiser: Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's moments as named tensors: `<parameter>.<moment>`."""
    state: dict[int, dict[str, Any]] = optimiser.state_dict()["state"]
    return {
        f"{parameter}.{name}": torch.as_tensor(value).contiguous()
        for parameter, moments in state.items()
        for name, value in moments.items()
    }


def restore_optimiser(optimiser: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put named moments back; the settings stay those of the recipe."""
    content = optimiser.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        parameter, _, name = key.partition(".")
        state.setdefault(int(parameter), {})[name] = value
    content["state"] = state
    optimiser.load_state_dict(content)
