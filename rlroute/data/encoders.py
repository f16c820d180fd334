"""Text encoders: a query as a vector of fixed length, in training and in an exported router.

`tfidf` (the default, no downloads) is TF-IDF over words and pairs of words, projected by a
truncated SVD; `minilm` is all-MiniLM-L6-v2 from a package; `path` is any transformers or
sentence-transformers folder (both in `rlroute.data.transformer_encoder`). The fingerprint of an
encoder is a hash of everything that decides its vectors: it keys the embedding cache, and an
exported router refuses to start with another encoder than it learnt with.

What it leaves out: fine-tuning of encoders. scikit-learn is needed to fit a TF-IDF encoder, not to
use one.

How to use: `encoder = fit_encoder(TfidfConfig(), train_texts, seed=0)`, `encoder.encode(["text"])`,
`encoder.save(folder)`, `load_encoder(folder)`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from pydantic import Field, model_validator

from rlroute.config import StrictModel, parse_config
from rlroute.files import write_atomic
from rlroute.types import FloatArray, RLRouteError

FORMAT_VERSION = 1
ENCODER_FILE = "encoder.json"
VOCABULARY_FILE = "vocabulary.json"
WEIGHTS_FILE = "encoder.safetensors"

# Directions whose singular value is below this share of the largest are rounding noise.
SMALLEST_SINGULAR_SHARE = 1e-5

WORD = re.compile(r"\b\w\w+\b|\b0\b")
DIGIT = re.compile(r"\d")


class Encoder(Protocol):
    """Turns texts into float32 rows of length 1 (all 0 where a text holds nothing it knows)."""

    kind: str
    dimension: int

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Return the vectors [N, F] of N texts; a row depends on its own text only."""

    def fingerprint(self) -> str:
        """Return a hash that changes with anything that changes a vector."""

    def describe(self) -> dict[str, Any]:
        """Return the settings that identify the encoder, ready for JSON."""

    def save(self, folder: Path) -> None:
        """Write what `load_encoder` needs into `folder`."""


class TfidfConfig(StrictModel):
    """Settings of the TF-IDF encoder. `dimension` is an upper limit: small corpora give fewer."""

    kind: Literal["tfidf"] = "tfidf"
    dimension: int = Field(default=256, ge=1)
    ngram_range: tuple[int, int] = (1, 2)
    max_vocabulary: int = Field(default=10_000, ge=1)
    min_documents: int = Field(default=2, ge=1)

    @model_validator(mode="after")
    def check_ngram_range(self) -> TfidfConfig:
        """Refuse a range that holds no n-gram."""
        if not 1 <= self.ngram_range[0] <= self.ngram_range[1]:
            raise ValueError(f"ngram_range {list(self.ngram_range)}: write [low, high], 1 <= low")
        return self


class MinilmConfig(StrictModel):
    """all-MiniLM-L6-v2, 384 dimensions, from the package of the extra `minilm`."""

    kind: Literal["minilm"] = "minilm"
    max_tokens: int = Field(default=256, ge=1)
    batch_size: int = Field(default=32, ge=1)


class PathConfig(StrictModel):
    """A model folder, or `hub:owner/name`, which is downloaded when the encoder is first made."""

    kind: Literal["path"] = "path"
    path: str
    max_tokens: int = Field(default=256, ge=1)
    batch_size: int = Field(default=32, ge=1)


EncoderConfig = Annotated[TfidfConfig | MinilmConfig | PathConfig, Field(discriminator="kind")]


class EncoderFile(StrictModel):
    """What encoder.json holds."""

    format_version: int
    fingerprint: str
    config: EncoderConfig


def fit_encoder(
    config: TfidfConfig | MinilmConfig | PathConfig, train_texts: Sequence[str], seed: int
) -> Encoder:
    """Make an encoder; only `tfidf` learns from the texts, and draws from the seed.

    Raises:
        RLRouteError: too few terms are frequent enough, an extra is missing, or the model folder
            cannot be used.
    """
    if isinstance(config, TfidfConfig):
        return TfidfEncoder.fit(config, train_texts, seed)
    from rlroute.data.transformer_encoder import TransformerEncoder, find_model_folder

    return TransformerEncoder(config, find_model_folder(config, may_download=True))


def load_encoder(folder: Path, *, model_folder: Path | None = None) -> Encoder:
    """Load what `Encoder.save` wrote and check that it gives the vectors that it gave then.

    `model_folder` says where a `path` model lies on this machine, should it have moved. Nothing is
    downloaded.

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
    encoder: Encoder
    if isinstance(header.config, TfidfConfig):
        encoder, where = TfidfEncoder.read(header.config, folder), folder
    else:
        from rlroute.data.transformer_encoder import TransformerEncoder, find_model_folder

        where = model_folder or find_model_folder(header.config, may_download=False)
        encoder = TransformerEncoder(header.config, where)
    if encoder.fingerprint() != header.fingerprint:
        raise RLRouteError(
            f"{where}: encoder fingerprint {encoder.fingerprint()[:12]} instead of "
            f"{header.fingerprint[:12]} as in {source}: it is not the encoder that was saved"
        )
    return encoder


def split_terms(text: str, low: int, high: int) -> list[str]:
    """Return the n-grams of `low` to `high` words of a text, in lower case.

    Every digit reads as 0: how long the numbers of a query are says how hard it is, which numbers
    they are says little and would mostly be unknown. Other words of one character are left out.
    """
    words = WORD.findall(DIGIT.sub("0", text.lower()))
    terms = words if low == 1 else []
    for length in range(max(low, 2), high + 1):
        terms = terms + [
            " ".join(gram) for gram in zip(*(words[i:] for i in range(length)), strict=False)
        ]
    return terms


class TfidfEncoder:
    """TF-IDF (sublinear term counts) times the leading right singular vectors of the train texts.

    `idf_V` and `components_VF` belong to the V terms of `vocabulary`, in its order.
    """

    kind = "tfidf"

    def __init__(
        self,
        config: TfidfConfig,
        vocabulary: Sequence[str],
        idf_V: FloatArray,
        components_VF: FloatArray,
    ) -> None:
        self.config = config
        self.vocabulary = {term: index for index, term in enumerate(vocabulary)}
        self.idf_V = idf_V
        self.components_VF = components_VF
        self.dimension = components_VF.shape[1]
        settings = {"format_version": FORMAT_VERSION, "ngram_range": config.ngram_range}
        self._fingerprint = hash_parts(
            dump_json(settings),
            dump_json(list(vocabulary)),
            np.ascontiguousarray(idf_V).tobytes(),
            np.ascontiguousarray(components_VF).tobytes(),
        )

    @classmethod
    def fit(cls, config: TfidfConfig, train_texts: Sequence[str], seed: int) -> TfidfEncoder:
        """Fit on the distinct train texts, sorted, so that the order of rows changes nothing.

        Raises:
            RLRouteError: fewer than two terms occur in `min_documents` of them.
        """
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer

        texts = sorted(set(train_texts))
        vectorizer = TfidfVectorizer(
            analyzer=lambda text: split_terms(text, *config.ngram_range),
            min_df=config.min_documents,
            max_features=config.max_vocabulary,
            sublinear_tf=True,
        )
        try:
            weights_NV = vectorizer.fit_transform(texts)
            svd = TruncatedSVD(min(config.dimension, *weights_NV.shape), random_state=seed)
            svd.fit(weights_NV)
        except ValueError:  # what scikit-learn says of an empty or one-word vocabulary
            raise RLRouteError(
                f"encoder: fewer than 2 terms occur in min_documents={config.min_documents} of the "
                f"{len(texts)} distinct train texts; lower min_documents or give more texts"
            ) from None
        kept = svd.singular_values_ > SMALLEST_SINGULAR_SHARE * svd.singular_values_[0]
        return cls(
            config,
            vectorizer.get_feature_names_out().tolist(),
            vectorizer.idf_.astype(np.float32),
            np.ascontiguousarray(svd.components_[kept].T, dtype=np.float32),
        )

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Return the vectors [N, F]; a text without a known term gets zeros."""
        check_texts(texts)
        vectors_NF = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for row_F, text in zip(vectors_NF, texts, strict=True):
            terms = split_terms(text, *self.config.ngram_range)
            counts = Counter(self.vocabulary[term] for term in terms if term in self.vocabulary)
            if not counts:
                continue
            index_W, count_W = np.array(sorted(counts.items())).T
            weight_W = (1 + np.log(count_W, dtype=np.float32)) * self.idf_V[index_W]
            # A sum over rows, not a matrix product, whose rounding depends on its shape.
            row_F[:] = (weight_W[:, None] * self.components_VF[index_W]).sum(axis=0)
            norm = np.sqrt((row_F * row_F).sum())
            if norm > 0:
                row_F /= norm
        return vectors_NF

    def fingerprint(self) -> str:
        """Return the hash of the terms, their weights and the projection."""
        return self._fingerprint

    def describe(self) -> dict[str, Any]:
        """Return kind, dimension, size of the vocabulary, fingerprint and settings."""
        return {
            "kind": self.kind,
            "dimension": self.dimension,
            "vocabulary": len(self.vocabulary),
            "fingerprint": self._fingerprint,
            "config": self.config.model_dump(mode="json"),
        }

    def save(self, folder: Path) -> None:
        """Write encoder.json, vocabulary.json and encoder.safetensors into `folder`."""
        from safetensors.numpy import save

        write_atomic(folder / VOCABULARY_FILE, dump_json(list(self.vocabulary)))
        tensors = {"idf": self.idf_V, "components": self.components_VF}
        write_atomic(folder / WEIGHTS_FILE, save(tensors))
        write_header(folder, self.config, self._fingerprint)

    @classmethod
    def read(cls, config: TfidfConfig, folder: Path) -> TfidfEncoder:
        """Read the vocabulary and the weights that `save` wrote.

        Raises:
            RLRouteError: a file is missing or torn, or the two do not belong together.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        vocabulary = read_json(folder / VOCABULARY_FILE)
        path = folder / WEIGHTS_FILE
        try:
            tensors = load(read_bytes(path))
        except SafetensorError:
            raise RLRouteError(f"{path}: torn or no safetensors file") from None
        if not isinstance(vocabulary, list) or set(tensors) != {"idf", "components"}:
            raise RLRouteError(f"{folder}: not the vocabulary and weights of a TF-IDF encoder")
        idf_V, components_VF = tensors["idf"], tensors["components"]
        if idf_V.dtype != np.float32 or components_VF.dtype != np.float32:
            raise RLRouteError(f"{path}: weights must be float32")
        if idf_V.shape != (len(vocabulary),) or components_VF.shape[:-1] != idf_V.shape:
            raise RLRouteError(f"{folder}: {VOCABULARY_FILE} and {WEIGHTS_FILE} differ in length")
        return cls(config, vocabulary, idf_V, components_VF)


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
