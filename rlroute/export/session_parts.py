"""What an exported router of query sessions holds besides: how a query becomes features.

    encoder/   what `rlroute.data.encoders.load_encoder` reads

So the caller hands over the query's text and what each candidate can cost at most. What it leaves
out: the network and its folder (`rlroute.export.step_bundle`), deciding (`rlroute.step_router`).

How to use: `write_sessions(parts, folder)`, `read_sessions(entry, folder)`, `parts.describe(...)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field

from rlroute.config import StrictModel
from rlroute.data.encoders import ENCODER_FILE, Encoder, load_encoder
from rlroute.export.bundle import ENCODER_FOLDER, EncoderEntry
from rlroute.types import FloatArray, RLRouteError, UsdArray
from rlroute.worlds.query_session_tasks import measure_dearest

SESSION_FILES = (f"{ENCODER_FOLDER}/{ENCODER_FILE}",)


@dataclass(frozen=True, eq=False)
class SessionParts:
    """The encoder, and the mean train cost of the dearest candidate that money is measured by."""

    encoder: Encoder
    reference_usd: float

    def describe(self, text: str | None, bound_1K: UsdArray) -> FloatArray:
        """Return the features [W] of a query, as `rlroute.worlds.query_session` shows them.

        Raises:
            RLRouteError: there is no text.
        """
        if not isinstance(text, str):
            raise RLRouteError("text is missing: give the query at hand")
        features_1F = self.encoder.encode([text])
        dearest_1 = measure_dearest(bound_1K, self.reference_usd)
        return np.concatenate([features_1F[0], dearest_1]).astype(np.float32)


class SessionEntry(StrictModel):
    """What the manifest says of it."""

    encoder: EncoderEntry
    reference_usd: float = Field(gt=0, allow_inf_nan=False)


def describe_sessions(parts: SessionParts) -> SessionEntry:
    """Return what the manifest says of it."""
    encoder = parts.encoder
    return SessionEntry(
        encoder=EncoderEntry(
            kind=encoder.kind, dimension=encoder.dimension, fingerprint=encoder.fingerprint()
        ),
        reference_usd=parts.reference_usd,
    )


def write_sessions(parts: SessionParts, folder: Path) -> None:
    """Write the encoder into a router's folder."""
    parts.encoder.save(folder / ENCODER_FOLDER)


def read_sessions(entry: SessionEntry, folder: Path) -> SessionParts:
    """Return what `write_sessions` wrote.

    Raises:
        RLRouteError: a file is torn, or the encoder is another one.
    """
    encoder = load_encoder(folder / ENCODER_FOLDER)
    if encoder.fingerprint() != entry.encoder.fingerprint:
        raise RLRouteError(
            f"{folder / ENCODER_FOLDER}: is not the encoder that the policy learnt with"
        )
    return SessionParts(encoder, entry.reference_usd)
