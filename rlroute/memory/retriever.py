"""Finds the chunks of a history that a question may need: by words, by meaning, or by both.

`bm25` compares stemmed words (bm25s), `encoder` the embeddings of question and chunks, `hybrid`
fuses both rankings by reciprocal rank (Cormack, Clarke and Buettcher, 2009: the sum of
1 / (60 + rank); a chunk that shares no word with the question has no rank among words). Equal
scores stand in the order of the history, so a question without a known word gets its first chunks.

What it leaves out: modules; saving of indices (a history of months is indexed in milliseconds, and
the embedding of a text is kept for as long as the retriever lives).

How to use: `retriever = Retriever(RetrieverConfig(), data.histories, chunk_tokens=128)`, then
`retriever.retrieve(question.query.text, question.history_id)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from rlroute.data.encoders import (
    Encoder,
    EncoderConfig,
    TfidfConfig,
    dump_json,
    fit_encoder,
    hash_parts,
)
from rlroute.extras import require
from rlroute.memory.base import Chunk, History
from rlroute.memory.chunks import CountTokens, count_words, split_history
from rlroute.memory.config import RetrieverConfig
from rlroute.types import FloatArray, IntArray, RLRouteError

FORMAT_VERSION = 1
RANK_OFFSET = 60  # the constant of reciprocal rank fusion
SCORE_DECIMALS = 6  # an encoder's rounding noise is no difference in meaning


class TextEmbedder:
    """An encoder that remembers the vectors of the texts that it has seen."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self._vectors: dict[str, FloatArray] = {}

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """Return the vectors [N, E] of N texts; texts that are new are encoded in one batch."""
        new = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        if new:
            self._vectors.update(zip(new, self.encoder.encode(new), strict=True))
        vectors_NE = np.zeros((len(texts), self.encoder.dimension), dtype=np.float32)
        for row_E, text in zip(vectors_NE, texts, strict=True):
            row_E[:] = self._vectors[text]
        return vectors_NE


@lru_cache(maxsize=4)
def share_embedder(config: EncoderConfig) -> TextEmbedder:
    """Return the encoder of a config, loaded once, with its vectors shared by all who name it.

    Raises:
        RLRouteError: the config is of a kind that has to be fitted, or `fit_encoder` fails.
    """
    if isinstance(config, TfidfConfig):
        raise RLRouteError(
            "encoder: kind 'tfidf' is fitted on train texts, which a memory pipeline has none of; "
            "write minilm or path"
        )
    return TextEmbedder(fit_encoder(config, (), seed=0))


class Bm25Index:
    """BM25 over the stemmed words of N texts, without stop words."""

    def __init__(self, texts: Sequence[str]) -> None:
        bm25s = require("bm25s", "memory")
        self._size = len(texts)
        self._words: Any = bm25s.BM25()
        words = split_stems(texts)
        self._empty = not any(words)
        if not self._empty:
            self._words.index(words, show_progress=False)

    def score(self, query: str) -> FloatArray:
        """Return the score of each text [N]; 0 where it shares no word with the query."""
        known = [] if self._empty else self._words.get_tokens_ids(split_stems([query])[0])
        if not known:
            return np.zeros(self._size, dtype=np.float32)
        return np.asarray(self._words.get_scores(known), dtype=np.float32)


def split_stems(texts: Sequence[str]) -> list[list[str]]:
    """Return the stems of the words of each text, stop words left out."""
    bm25s = require("bm25s", "memory")
    stemmer = require("snowballstemmer", "memory").stemmer("english")
    stems: list[list[str]] = bm25s.tokenize(
        list(texts), stopwords="en", stemmer=stemmer, return_ids=False, show_progress=False
    )
    return stems


class Retriever:
    """The chunks of several histories, each indexed when it is first asked about.

    Args:
        config: which ranking, and how many chunks.
        histories: by id.
        chunk_tokens: the most tokens of a chunk.
        encoder: embeds chunks; None makes the one that `config.encoder` names.
        count_tokens: what a token is, see `rlroute.memory.chunks`.

    Raises:
        RLRouteError: the encoder cannot be made.
    """

    def __init__(
        self,
        config: RetrieverConfig,
        histories: Mapping[str, History],
        chunk_tokens: int,
        encoder: Encoder | None = None,
        count_tokens: CountTokens = count_words,
    ) -> None:
        self.config = config
        self._histories = histories
        self._chunk_tokens = chunk_tokens
        self._count_tokens = count_tokens
        own = None if encoder is None else TextEmbedder(encoder)
        self._embedder = own or share_embedder(config.encoder)
        self.encoder = self._embedder.encoder
        self._chunks: dict[str, tuple[Chunk, ...]] = {}
        self._indices: dict[str, Bm25Index] = {}

    def fingerprint(self) -> str:
        """Return a hash of all that decides what is found, besides histories and questions."""
        settings = self.config.model_dump(mode="json", exclude={"encoder"})
        settings |= {"format_version": FORMAT_VERSION, "chunk_tokens": self._chunk_tokens}
        name = f"{self._count_tokens.__module__}.{self._count_tokens.__qualname__}"
        return hash_parts(
            dump_json(settings), name.encode(), self.encoder.fingerprint().encode("ascii")
        )

    def list_chunks(self, history_id: str) -> tuple[Chunk, ...]:
        """Return all chunks of a history in its order.

        Raises:
            RLRouteError: there is no such history.
        """
        if history_id not in self._chunks:
            history = self._histories.get(history_id)
            if history is None:
                raise RLRouteError(
                    f"history '{history_id}' is not there; there are {len(self._histories)}, such "
                    f"as {', '.join(sorted(self._histories)[:3])}"
                )
            self._chunks[history_id] = split_history(
                history, self._chunk_tokens, self._count_tokens
            )
        return self._chunks[history_id]

    def retrieve(self, question: str, history_id: str) -> tuple[Chunk, ...]:
        """Return the `top` chunks of a history, the best first (fewer where it has fewer).

        Raises:
            RLRouteError: there is no such history.
        """
        chunks = self.list_chunks(history_id)
        if not chunks:
            return ()
        if self.config.kind == "bm25":
            score_N = self._score_words(question, history_id)
        elif self.config.kind == "encoder":
            score_N = self._score_meaning(question, chunks)
        else:
            score_N = fuse_rankings(
                self._score_words(question, history_id), self._score_meaning(question, chunks)
            )
        return tuple(chunks[index] for index in rank(score_N)[: self.config.top])

    def embed_chunks(self, chunks: Sequence[Chunk]) -> FloatArray:
        """Return the embeddings of the texts of N chunks [N, E]."""
        return self._embedder.embed([chunk.text for chunk in chunks])

    def _score_words(self, text: str, history_id: str) -> FloatArray:
        """Return the BM25 scores of a history's chunks [N]."""
        if history_id not in self._indices:
            texts = [chunk.text for chunk in self.list_chunks(history_id)]
            self._indices[history_id] = Bm25Index(texts)
        return self._indices[history_id].score(text)

    def _score_meaning(self, text: str, chunks: Sequence[Chunk]) -> FloatArray:
        """Return the cosines of a text and N chunks [N]."""
        return compute_cosines(self._embedder.embed([text])[0], self.embed_chunks(chunks))


def compute_cosines(query_E: FloatArray, vector_NE: FloatArray) -> FloatArray:
    """Return the products of a vector and N others [N], rounded.

    They are summed row by row: a matrix product may round a row by how many others there are.
    """
    cosine_N: FloatArray = (vector_NE * query_E).sum(axis=1).round(SCORE_DECIMALS)
    return cosine_N


def rank(score_N: FloatArray) -> IntArray:
    """Return the places of scores from the highest to the lowest, equal ones in their order."""
    return np.argsort(-score_N, kind="stable").astype(np.int64)


def fuse_rankings(word_N: FloatArray, meaning_N: FloatArray) -> FloatArray:
    """Return the sum of 1 / (60 + rank) over both rankings [N]; ranks begin at 1."""
    fused_N = np.zeros(len(word_N), dtype=np.float64)
    place_N = np.arange(1, len(word_N) + 1)
    fused_N[rank(meaning_N)] += 1.0 / (RANK_OFFSET + place_N)
    by_words_N = rank(word_N)
    fused_N[by_words_N] += np.where(word_N[by_words_N] > 0, 1.0 / (RANK_OFFSET + place_N), 0.0)
    return fused_N.astype(np.float32)
