"""Text encoders: a query as a vector of fixed length, in training and in an exported router.

`tfidf` (the default, no downloads) is TF-IDF over words and pairs of words, projected by a
truncated SVD; the other kinds stand in files of their own: `minilm` and `path` in
`rlroute.data.transformer_encoder`, `word_vectors`, `features` and `openai` in `word_vectors`,
`hand_features` and `endpoint_encoder` beside it, all settings in `encoder_config`. The fingerprint
of an encoder is a hash of everything that decides its vectors: it keys the embedding cache, and an
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
from rlroute.data.splits import sample_texts
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
        encoder = TfidfEncoder.read(config, folder)
    elif isinstance(config, WordVectorsConfig):
        from rlroute.data.word_vectors import WordVectorEncoder

        encoder = WordVectorEncoder.read(config, folder)
    else:
        encoder = make_unfitted(config, model_folder, may_download=False)
    if not config.features:
        return encoder
    return JoinedEncoder(encoder, FeaturesEncoder.read(FeaturesConfig(), folder))


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

        texts = sorted(sample_texts(set(train_texts), config.fit_texts, seed))
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
        vocabulary = read_json(folder / VOCABULARY_FILE)
        path = folder / WEIGHTS_FILE
        tensors = read_tensors(path, {"idf", "components"})
        if not isinstance(vocabulary, list):
            raise RLRouteError(f"{folder}: not the vocabulary and weights of a TF-IDF encoder")
        idf_V, components_VF = tensors["idf"], tensors["components"]
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
