"""What an exported step router of a cascade holds besides: how a query and its answers are seen.

    cascade.safetensors  clusters of the queries, and scores, costs and lengths of the candidates
    encoder/             what `rlroute.data.encoders.load_encoder` reads

The rest stands in the manifest (`CascadeEntry`). What it leaves out: the network and its folder
(`rlroute.export.step_bundle`), deciding (`rlroute.cascade_router`).

How to use: `write_cascade(parts, folder)`, `read_cascade(entry, candidate_ids, folder)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from rlroute.config import StrictModel
from rlroute.data.encoders import ENCODER_FILE, Encoder, load_encoder
from rlroute.export.bundle import ENCODER_FOLDER, EncoderEntry
from rlroute.export.sealed_folder import read_weights, write_weights
from rlroute.types import FloatArray, RLRouteError
from rlroute.worlds.cascade_view import CascadeView, CheckerConfig, Keep

VIEW_FILE = "cascade.safetensors"
CASCADE_FILES = (VIEW_FILE, f"{ENCODER_FOLDER}/{ENCODER_FILE}")
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, eq=False)
class CascadeParts:
    """What turns a query and the looks at its answers into features.

    `bound_usd_K` is what a look cost at most in the table [1 + K], `stop` first.
    """

    view: CascadeView
    encoder: Encoder
    allow_skip: bool
    bound_usd_K: npt.NDArray[np.float64]


class CascadeEntry(StrictModel):
    """What the manifest says of it; candidates are the executors after the first, which stops."""

    encoder: EncoderEntry
    show_query: bool
    reference_usd: float = Field(gt=0, allow_inf_nan=False)
    checker: CheckerConfig | None
    keep: Keep
    max_looks: int = Field(ge=1)
    allow_skip: bool
    skip_score: float = Field(ge=0, le=1)
    bound_usd: tuple[Amount, ...]


def describe_cascade(parts: CascadeParts) -> CascadeEntry:
    """Return what the manifest says of it."""
    view, encoder = parts.view, parts.encoder
    return CascadeEntry(
        encoder=EncoderEntry(
            kind=encoder.kind, dimension=encoder.dimension, fingerprint=encoder.fingerprint()
        ),
        show_query=view.show_query,
        reference_usd=view.reference_usd,
        checker=view.checker,
        keep=view.keep,
        max_looks=view.max_looks,
        allow_skip=parts.allow_skip,
        skip_score=view.skip_score,
        bound_usd=tuple(parts.bound_usd_K.tolist()),
    )


def write_cascade(parts: CascadeParts, folder: Path) -> None:
    """Write numbers and encoder into a router's folder."""
    view = parts.view
    arrays = {"centroids": view.centroids_CF, "score": view.score_CK, "charge": view.charge_CK}
    if view.tokens_K is not None:
        arrays["tokens"] = view.tokens_K
    write_weights({name: torch.as_tensor(one) for name, one in arrays.items()}, folder / VIEW_FILE)
    parts.encoder.save(folder / ENCODER_FOLDER)


def read_cascade(entry: CascadeEntry, candidate_ids: tuple[str, ...], folder: Path) -> CascadeParts:
    """Return what `write_cascade` wrote.

    Raises:
        RLRouteError: a file is torn, the encoder is another one, or the numbers do not fit.
    """
    path = folder / VIEW_FILE
    arrays = {name: np.asarray(one) for name, one in read_weights(path).items()}
    check_shapes(arrays, entry, len(candidate_ids), path)
    encoder = load_encoder(folder / ENCODER_FOLDER)
    if encoder.fingerprint() != entry.encoder.fingerprint:
        raise RLRouteError(
            f"{folder / ENCODER_FOLDER}: is not the encoder that the policy learnt with"
        )
    view = CascadeView(
        candidate_ids=candidate_ids,
        dimension=entry.encoder.dimension,
        show_query=entry.show_query,
        centroids_CF=arrays["centroids"],
        score_CK=arrays["score"],
        charge_CK=arrays["charge"],
        tokens_K=arrays.get("tokens"),
        reference_usd=entry.reference_usd,
        checker=entry.checker,
        keep=entry.keep,
        max_looks=entry.max_looks,
        skip_score=entry.skip_score,
    )
    return CascadeParts(view, encoder, entry.allow_skip, np.array(entry.bound_usd))


def check_shapes(
    arrays: dict[str, FloatArray], entry: CascadeEntry, candidates: int, path: Path
) -> None:
    """Raise RLRouteError where an array is missing, unknown, or of another shape."""
    clusters = len(arrays["centroids"]) if "centroids" in arrays else 0
    shapes = {
        "centroids": (clusters, entry.encoder.dimension),
        "score": (clusters, candidates),
        "charge": (clusters, candidates),
        "tokens": (candidates,),
    }
    names = set(arrays) | (set(shapes) - {"tokens"})
    fits = len(entry.bound_usd) == candidates + 1 and all(
        name in shapes and name in arrays and arrays[name].shape == shapes[name] for name in names
    )
    if not fits or not clusters:
        raise RLRouteError(f"{path}: does not fit the executors and the encoder of the router")
