"""What a policy sees of a memory pipeline's work: embeddings of chunks and notes.

    before the filter       mean embedding of the retrieved chunks
    before an extractor     mean embedding of the filtered chunks
    before the summary      mean over the extractors that have notes, the notes of each embedded as
                            one text; the filtered chunks where none has any

Training (`rlroute.memory.live`) and exported routers (`rlroute.tier_router`) both compute it here,
so they see the same, bit by bit. What it leaves out: the encoder, and what is to be embedded.

How to use: `vectors = TextVectors(encoder)`, then `average_texts(vectors, texts_of_chunks)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress

import numpy as np

from rlroute.data.encoders import Encoder
from rlroute.types import BoolArray, FloatArray


class TextVectors:
    """Embeddings of texts, each of which is encoded once."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self._vector_by_text: dict[str, FloatArray] = {}

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Return the vectors [N, E] of N texts."""
        new = [text for text in dict.fromkeys(texts) if text not in self._vector_by_text]
        if new:
            self._vector_by_text.update(zip(new, self.encoder.encode(new), strict=True))
        vectors_NE = np.zeros((len(texts), self.encoder.dimension), dtype=np.float32)
        for row_E, text in zip(vectors_NE, texts, strict=True):
            row_E[:] = self._vector_by_text[text]
        return vectors_NE


def average_texts(vectors: TextVectors, texts: Sequence[str]) -> FloatArray:
    """Return the mean embedding of some texts [E]; zero where there is none."""
    mean_E: FloatArray = vectors.encode(texts).sum(axis=0) / np.float32(max(len(texts), 1))
    return mean_E


def embed_notes(
    vectors: TextVectors, notes: Sequence[Sequence[str]]
) -> tuple[FloatArray, BoolArray]:
    """Return the embeddings of the notes of N extractors [N, E], zero without, and who has any."""
    texts = ["\n".join(some) for some in notes]
    has_notes_N = np.array([bool(text.strip()) for text in texts], dtype=np.bool_)
    notes_NE = np.zeros((len(notes), vectors.encoder.dimension), dtype=np.float32)
    notes_NE[has_notes_N] = vectors.encode(list(compress(texts, has_notes_N)))
    return notes_NE, has_notes_N


def combine_notes(
    notes_BXE: FloatArray, has_notes_BX: BoolArray, filtered_BE: FloatArray
) -> FloatArray:
    """Return the state before the summary [B, E] from the embeddings of each extractor's notes.

    It is their mean over the extractors that have notes, and `filtered_BE` where none has.
    """
    total_BE = np.zeros_like(filtered_BE)
    for place in range(notes_BXE.shape[1]):  # one after the other: equal sums for equal rows
        total_BE += np.where(has_notes_BX[:, place, None], notes_BXE[:, place], np.float32(0))
    count_B1 = has_notes_BX.sum(axis=1, dtype=np.float32)[:, None]
    return np.where(count_B1 > 0, total_BE / np.maximum(count_B1, 1), filtered_BE)
