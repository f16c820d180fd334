"""Text encoders: a query as a vector of fixed length, in training and in an exported router.

The kinds stand in files of their own: `tfidf` (the default, no downloads) in
`rlroute.data.tfidf_encoder`, `minilm` and `path` in `transformer_encoder`, `word_vectors`,
`features` and `openai` in `word_vectors`, `hand_features` and `endpoint_encoder` beside it, all
settings in `encoder_config`. The fingerprint of an encoder is a hash of everything that decides its
vectors: it keys the embedding cache, and an exported router refuses to start with another encoder
than it learnt with.

What it leaves out: fine-tuning of encoders.

How to use: `encoder = fit_encoder(TfidfConfig(), train_texts, seed=0)`, `encoder.encode(["text"])`,
`encoder.save(folder)`, `load_encoder(folder)`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rlroute.config import StrictModel, parse_config
from rlroute.data.encoder_config import AnyEncoderConfig, FeaturesConfig, WordVectorsConfig
from rlroute.data.encoder_config import EncoderConfig as EncoderConfig  # exported here too
from rlroute.data.encoder_config import MinilmConfig as MinilmConfig
from rlroute.data.encoder_config import OpenaiConfig as OpenaiConfig
from rlroute.data.encoder_config import PathConfig as PathConfig
from rlroute.data.encoder_config import TfidfConfig as TfidfConfig
from rlroute.files import write_atomic
from rlroute.types import FloatArray, RLRouteError

FORMAT_VERSION = 1
ENCODER_FILE = "encoder.json"
VOCABULARY_FILE = "vocabulary.json"
WEIGHTS_FILE = "encoder.safetensors"

# Directions whose singular value is below this share of the largest are rounding noise.
SMALLEST_SINGULAR_SHARE = 1e-5


class Encoder(Protocol):
    """Turns texts into float32 rows of length 1 (all 0 where a text holds nothing it knows)."""

    kind: str
    dimension: int

    @property
    def config(self) -> StrictModel:
        """The settings it was made with."""

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Return the vectors [N, F] of N texts; a row depends on its own text only."""

    def fingerprint(self) -> str:
        """Return a hash that changes with anything that changes a vector."""

    def describe(self) -> dict[str, Any]:
        """Return the settings that identify the encoder, ready for JSON."""

    def save(self, folder: Path) -> None:
        """Write what `load_encoder` needs into `folder`."""


class EncoderFile(StrictModel):
    """What encoder.json holds."""

    format_version: int
    fingerprint: str
    config: EncoderConfig


def fit_encoder(config: AnyEncoderConfig, train_texts: Sequence[str], seed: int) -> Encoder:
    """Make an encoder; `tfidf`, `features` and `word_vectors` learn from the texts.

    Raises:
        RLRouteError: the texts are too few, an extra is missing, or the file, the model folder or
            the endpoint cannot be used.
    """
    encoder = fit_base(config, train_texts, seed)
    if isinstance(config, FeaturesConfig) or not config.features:
        return encoder
    from rlroute.data.hand_features import FeaturesEncoder, JoinedEncoder

    return JoinedEncoder(encoder, FeaturesEncoder.fit(FeaturesConfig(), train_texts))


def fit_base(config: AnyEncoderConfig, train_texts: Sequence[str], seed: int) -> Encoder:
    """Make an encoder of the kind that a config names, without appended features."""
    if isinstance(config, TfidfConfig):
        from rlroute.data.tfidf_encoder import TfidfEncoder

        return TfidfEncoder.fit(config, train_texts, seed)
    if isinstance(config, FeaturesConfig):
        from rlroute.data.hand_features import FeaturesEncoder

        return FeaturesEncoder.fit(config, train_texts)
    if isinstance(config, WordVectorsConfig):
        from rlroute.data.word_vectors import WordVectorEncoder

        return WordVectorEncoder.fit(config, train_texts, seed)
    return make_unfitted(config, None, may_download=True)


def make_unfitted(
    config: MinilmConfig | PathConfig | OpenaiConfig,
    model_folder: Path | None,
    *,
    may_download: bool,
) -> Encoder:
    """Make an encoder that learns nothing from texts: its settings are all that it is."""
    if isinstance(config, OpenaiConfig):
        from rlroute.data.endpoint_encoder import EndpointEncoder

        return EndpointEncoder(config)
    from rlroute.data.transformer_encoder import TransformerEncoder, find_model_folder

    where = model_folder or find_model_folder(config, may_download=may_download)
    return TransformerEncoder(config, where)


def load_encoder(folder: Path, *, model_folder: Path | None = None) -> Encoder:
    """Load what `Encoder.save` wrote and check that it gives the vectors that it gave then.

    `model_folder` says where a `path` model lies on this machine, should it have moved. Nothing is
    downloaded and no endpoint is asked.

    Raises:
        RLRouteError: a file is missing, torn or newer than this version; the kind is unknown; the
            contents or the model differ from those that were saved.
    """
    source = folder / ENCODER_FILE
    data = read_json(source)
    version = data.get("format_version") if isinstance(data, dict) else None
    if version != FORMAT_VERSION:
        raise RLRouteError(
            f"{source}: format_version {version!r} cannot be read (this version of rlroute reads "
            f"{FORMAT_VERSION})"
        )
    header = parse_config(EncoderFile, data, str(source))
    encoder = read_encoder(header.config, folder, model_folder)
    if encoder.fingerprint() != header.fingerprint:
        moved = isinstance(header.config, PathConfig) and model_folder
        raise RLRouteError(
            f"{moved or folder}: encoder fingerprint {encoder.fingerprint()[:12]} instead of "
            f"{header.fingerprint[:12]} as in {source}: it is not the encoder that was saved"
        )
    return encoder


def check_endpoint(encoder: Encoder, endpoint: str | None, folder: Path) -> None:
    """Refuse an encoder of a router that would send texts and a key to a url nobody agreed to.

    Raises:
        RLRouteError: the folder names an endpoint, and `endpoint` is not the same.
    """
    config = encoder.config
    if isinstance(config, OpenaiConfig) and config.url != endpoint:
        key = f" and the key in {config.api_key_env}" if config.api_key_env else ""
        raise RLRouteError(
            f"{folder}: this router sends every text{key} to {config.url}; if you agree, load it "
            f"with endpoint='{config.url}'"
        )


def read_encoder(config: AnyEncoderConfig, folder: Path, model_folder: Path | None) -> Encoder:
    """Read the files of an encoder, and of the features that are appended to it."""
    from rlroute.data.hand_features import FeaturesEncoder, JoinedEncoder

    encoder: Encoder
    if isinstance(config, FeaturesConfig):
        return FeaturesEncoder.read(config, folder)
    if isinstance(config, TfidfConfig):
        from rlroute.data.tfidf_encoder import TfidfEncoder

        encoder = TfidfEncoder.read(config, folder)
    elif isinstance(config, WordVectorsConfig):
        from rlroute.data.word_vectors import WordVectorEncoder

        encoder = WordVectorEncoder.read(config, folder)
    else:
        encoder = make_unfitted(config, model_folder, may_download=False)
    if not config.features:
        return encoder
    return JoinedEncoder(encoder, FeaturesEncoder.read(FeaturesConfig(), folder))


def check_texts(texts: Sequence[str]) -> None:
    """Refuse a bare string, which is a sequence of its letters.

    Raises:
        RLRouteError: `texts` is a string.
    """
    if isinstance(texts, str):
        raise RLRouteError("encode takes a list of texts; write [text] for a single one")


def write_header(folder: Path, config: StrictModel, fingerprint: str) -> None:
    """Write encoder.json, the last file of an encoder: without it a folder is not one."""
    header: Mapping[str, Any] = {
        "format_version": FORMAT_VERSION,
        "fingerprint": fingerprint,
        "config": config.model_dump(mode="json"),
    }
    write_atomic(folder / ENCODER_FILE, json.dumps(header, indent=2) + "\n")


def read_bytes(path: Path) -> bytes:
    """Return the content of a file.

    Raises:
        RLRouteError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise RLRouteError(f"{path}: cannot be read ({error.strerror})") from None


def read_tensors(path: Path, names: Collection[str]) -> dict[str, FloatArray]:
    """Return the tensors of a safetensors file that an encoder wrote: these names, in float32.

    Raises:
        RLRouteError: the file is missing or torn, or holds something else.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(read_bytes(path))
    except SafetensorError:
        raise RLRouteError(f"{path}: torn or no safetensors file") from None
    if set(tensors) != set(names):
        raise RLRouteError(f"{path}: must hold {', '.join(sorted(names))} and nothing else")
    if any(array.dtype != np.float32 for array in tensors.values()):
        raise RLRouteError(f"{path}: weights must be float32")
    return tensors


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        RLRouteError: it cannot be read or is not JSON.
    """
    try:
        return json.loads(read_bytes(path))
    except ValueError:
        raise RLRouteError(f"{path}: torn or not JSON") from None


def dump_json(value: Any) -> bytes:
    """Return `value` as JSON in ASCII, the same bytes for the same value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def hash_parts(*parts: bytes) -> str:
    """Return the SHA-256 of several parts; where one ends is part of what is hashed."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()
