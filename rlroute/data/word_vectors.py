"""The encoder made of static word vectors: a text is the weighted mean of the vectors of its words.

The vectors come from a file (`rlroute.data.word_vector_files`) or, offline, from the train texts:
positive pointwise mutual information of words that stand within `window` words of each other
(contexts smoothed by the power 0.75, nearer words count more, 1/distance), a truncated SVD of it,
and for a word its row of U sqrt(S) (Levy, Goldberg and Dagan 2015, "Improving distributional
similarity"). `pooling: sif` is the smooth inverse frequency of Arora, Liang and Ma 2017 ("A simple
but tough-to-beat baseline for sentence embeddings").

A word is looked up as it stands, then in lower case, then with every digit read as 0; a corpus is
read in lower case with digits as 0. Words that are not found are left out.

What it leaves out: pieces of words, so vocabularies of tokenizers give whole words only.

How to use: `fit_encoder(WordVectorsConfig(), train_texts, seed=0)`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlroute.data.encoder_config import CORPUS, WordVectorsConfig
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
from rlroute.data.word_vector_files import read_word_vectors
from rlroute.files import write_atomic
from rlroute.types import FloatArray, IntArray, RLRouteError

CONTEXT_POWER = 0.75
TENSORS = frozenset({"vectors", "weight", "common"})

TOKEN = re.compile(r"\w+|[^\w\s]")
DIGIT = re.compile(r"\d")


def split_words(text: str) -> list[str]:
    """Return the words and marks of a text, as they stand."""
    return TOKEN.findall(text)


def normalise_word(word: str) -> str:
    """Return a word in lower case with every digit as 0."""
    return DIGIT.sub("0", word.lower())


class WordVectorEncoder:
    """Pools word vectors: the normalised sum over words of weight times vector, less `common_F`.

    `vectors_VF` and `weight_V` belong to the V words of `vocabulary`, in its order; `common_F` is
    the direction (length 1) that is taken out of every text, zeros where none is.
    """

    kind = "word_vectors"

    def __init__(
        self,
        config: WordVectorsConfig,
        vocabulary: Sequence[str],
        vectors_VF: FloatArray,
        weight_V: FloatArray,
        common_F: FloatArray,
    ) -> None:
        self.config = config
        self.vocabulary = {word: row for row, word in enumerate(vocabulary)}
        self.vectors_VF, self.weight_V, self.common_F = vectors_VF, weight_V, common_F
        self.dimension = vectors_VF.shape[1]
        self._fingerprint = hash_parts(
            dump_json({"format_version": FORMAT_VERSION, "kind": self.kind}),
            dump_json(list(vocabulary)),
            *(np.ascontiguousarray(array).tobytes() for array in (vectors_VF, weight_V, common_F)),
        )

    @classmethod
    def fit(
        cls, config: WordVectorsConfig, train_texts: Sequence[str], seed: int
    ) -> WordVectorEncoder:
        """Read or make the vectors, and weigh words by how often train texts use them.

        Raises:
            RLRouteError: the file cannot be used, or the distinct train texts hold too few words.
        """
        texts = sorted(set(train_texts))
        if config.source == CORPUS:
            vocabulary, vectors_VF = make_word_vectors(config, texts, seed)
        else:
            vocabulary, vectors_VF = read_word_vectors(config)
        weight_V = np.ones(len(vocabulary), dtype=np.float32)
        common_F = np.zeros(vectors_VF.shape[1], dtype=np.float32)
        encoder = cls(config, vocabulary, vectors_VF, weight_V, common_F)
        if config.pooling == "mean":
            return encoder
        count_V = np.zeros(len(vocabulary), dtype=np.float64)
        for text in texts:
            np.add.at(count_V, encoder.find_words(text), 1)
        if not count_V.any():
            raise RLRouteError(
                f"encoder: pooling 'sif' weighs words by the train texts, and none of the "
                f"{len(vocabulary)} words occurs in the {len(texts)} of them; write pooling: mean"
            )
        share_V = count_V / count_V.sum()
        weight_V = (config.sif_weight / (config.sif_weight + share_V)).astype(np.float32)
        weighted = cls(config, vocabulary, vectors_VF, weight_V, common_F)
        common_F = find_common_direction(weighted.encode(texts))
        return cls(config, vocabulary, vectors_VF, weight_V, common_F)

    def find_words(self, text: str) -> IntArray:
        """Return the rows of the words of a text that are known, in its order."""
        rows = []
        for word in split_words(text):
            for form in (word, word.lower(), normalise_word(word)):
                if form in self.vocabulary:
                    rows.append(self.vocabulary[form])
                    break
        return np.array(rows, dtype=np.int64)

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Return the vectors [N, F]; a text without a known word gets zeros."""
        check_texts(texts)
        vectors_NF = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for row_F, text in zip(vectors_NF, texts, strict=True):
            index_W = self.find_words(text)
            # Sums over rows, not matrix products, whose rounding depends on their shape.
            row_F[:] = (self.weight_V[index_W, None] * self.vectors_VF[index_W]).sum(axis=0)
            norm = np.sqrt((row_F * row_F).sum())
            if norm == 0:
                continue
            row_F /= norm
            row_F -= (row_F * self.common_F).sum() * self.common_F
            norm = np.sqrt((row_F * row_F).sum())
            # what is left of a text in the common direction alone is rounding noise
            row_F[:] = row_F / norm if norm > SMALLEST_SINGULAR_SHARE else 0
        return vectors_NF

    def fingerprint(self) -> str:
        """Return the hash of words, vectors, weights and common direction."""
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
        """Write vocabulary.json, encoder.safetensors and encoder.json: the source is not needed."""
        from safetensors.numpy import save

        write_atomic(folder / VOCABULARY_FILE, dump_json(list(self.vocabulary)))
        tensors = {"vectors": self.vectors_VF, "weight": self.weight_V, "common": self.common_F}
        write_atomic(folder / WEIGHTS_FILE, save(tensors))
        write_header(folder, self.config, self._fingerprint)

    @classmethod
    def read(cls, config: WordVectorsConfig, folder: Path) -> WordVectorEncoder:
        """Read what `save` wrote.

        Raises:
            RLRouteError: a file is missing or torn, or the two do not belong together.
        """
        vocabulary = read_json(folder / VOCABULARY_FILE)
        tensors = read_tensors(folder / WEIGHTS_FILE, TENSORS)
        vectors_VF, weight_V = tensors["vectors"], tensors["weight"]
        if not isinstance(vocabulary, list) or vectors_VF.ndim != 2:
            raise RLRouteError(f"{folder}: not the vocabulary and weights of word vectors")
        size, dimension = vectors_VF.shape
        shapes = (weight_V.shape, tensors["common"].shape)
        if len(vocabulary) != size or shapes != ((size,), (dimension,)):
            raise RLRouteError(f"{folder}: {VOCABULARY_FILE} and {WEIGHTS_FILE} differ in length")
        return cls(config, vocabulary, vectors_VF, weight_V, tensors["common"])


def find_common_direction(vectors_NF: FloatArray) -> FloatArray:
    """Return the first right singular vector [F] of the rows, of length 1."""
    product_FF = vectors_NF.astype(np.float64).T @ vectors_NF.astype(np.float64)
    direction_F = np.linalg.eigh(product_FF).eigenvectors[:, -1]
    # its sign changes no vector, but it would change the fingerprint
    sign = np.sign(direction_F[np.abs(direction_F).argmax()])
    return np.asarray(direction_F * sign, dtype=np.float32)


def make_word_vectors(
    config: WordVectorsConfig, texts: Sequence[str], seed: int
) -> tuple[list[str], FloatArray]:
    """Return the words of a corpus, the most frequent first, and their vectors [V, F].

    Raises:
        RLRouteError: fewer than 3 words occur `min_count` times, or none beside another.
    """
    from sklearn.decomposition import TruncatedSVD

    texts_W = [[normalise_word(word) for word in split_words(text)] for text in texts]
    counts = Counter(word for words in texts_W for word in words)
    frequent = sorted((-count, word) for word, count in counts.items() if count >= config.min_count)
    vocabulary = [word for _, word in frequent[: config.max_vocabulary]]
    fault = RLRouteError(
        f"encoder: fewer than 3 words occur min_count={config.min_count} times beside others in "
        f"the {len(texts)} distinct train texts; lower min_count or give more texts"
    )
    if len(vocabulary) < 3:
        raise fault
    rows = {word: row for row, word in enumerate(vocabulary)}
    gap = [-1] * config.window  # keeps the end of a text apart from the beginning of the next
    index_L = np.array(
        [row for words in texts_W for row in (*(rows.get(word, -1) for word in words), *gap)]
    )
    association_VV = compute_association(index_L, len(vocabulary), config.window)
    if association_VV.nnz == 0:
        raise fault
    svd = TruncatedSVD(min(config.dimension, len(vocabulary) - 1), random_state=seed)
    product_VF = svd.fit_transform(association_VV)  # U S
    singular_F = svd.singular_values_
    kept = singular_F > SMALLEST_SINGULAR_SHARE * singular_F[0]
    vectors_VF = product_VF[:, kept] / np.sqrt(singular_F[kept])
    return vocabulary, np.ascontiguousarray(vectors_VF, dtype=np.float32)


def compute_association(index_L: IntArray, size: int, window: int) -> Any:
    """Return the positive pointwise mutual information of words, a sparse matrix [V, V].

    `index_L` holds the words of all texts in a row; -1 stands for what is no word.
    """
    from scipy.sparse import coo_array

    counts_VV = coo_array((size, size), dtype=np.float64).tocsr()
    for distance in range(1, window + 1):
        left_P, right_P = index_L[:-distance], index_L[distance:]
        held_P = (left_P >= 0) & (right_P >= 0)
        pairs = (left_P[held_P], right_P[held_P])
        weight_P = np.full(len(pairs[0]), 1 / distance)
        counts_VV = counts_VV + coo_array((weight_P, pairs), shape=(size, size)).tocsr()
    counts_VV = (counts_VV + counts_VV.T).tocoo()
    word_V = np.asarray(counts_VV.sum(axis=1)).ravel()
    context_V = word_V**CONTEXT_POWER
    context_V = context_V / max(context_V.sum(), np.finfo(np.float64).tiny)
    row_P, column_P = counts_VV.coords
    expected_P = word_V[row_P] * context_V[column_P]
    information_P = np.log(counts_VV.data / expected_P).clip(min=0)
    result = coo_array((information_P, (row_P, column_P)), shape=(size, size)).tocsr()
    result.eliminate_zeros()
    return result
