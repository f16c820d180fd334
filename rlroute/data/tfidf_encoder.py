"""TF-IDF over words and pairs of words, projected by a truncated SVD: the default encoder.

It needs no downloads, and scikit-learn only to be fitted, not to be used.

What it leaves out: the other encoders, and how one is chosen (`rlroute.data.encoders`).

How to use: `encoder = TfidfEncoder.fit(TfidfConfig(), train_texts, seed=0)`,
`encoder.encode(["text"])`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlroute.data.encoder_config import TfidfConfig
from rlroute.data.encoders import (
    FORMAT_VERSION,
    SMALLEST_SINGULAR_SHARE,
    VOCABULARY_FILE,
    WEIGHTS_FILE,
    check_texts,
    dump_json,
    hash_parts,
    read_json,
    read_tensors,
    write_header,
)
from rlroute.data.splits import sample_texts
from rlroute.files import write_atomic
from rlroute.types import FloatArray, RLRouteError

WORD = re.compile(r"\b\w\w+\b|\b0\b")
DIGIT = re.compile(r"\d")


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
