"""Embeddings on disk, so that each text is encoded once: by content and by encoder.

A cache is a folder; below it one folder per encoder fingerprint holds shards, safetensors files
with the SHA-256 of each text and its vector. A shard is written whole and never changed, and its
name is the hash of its content: processes that write at once cannot disturb each other, and a
damaged shard does not fit its name, is thrown away and its texts are encoded again.

What it leaves out: eviction (delete the folder; it is only a cache) and access to single rows:
every call reads all shards of its encoder.

How to use: `vectors_NF = encode_cached(encoder, texts, folder)`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rlroute.data.encoders import Encoder
from rlroute.files import write_atomic
from rlroute.types import FloatArray, RLRouteError

# Texts between two writes: what an interrupted run loses at most.
TEXTS_PER_SHARD = 2048
SHARD_SUFFIX = ".safetensors"


class EmbeddingCache:
    """Vectors of texts under `folder`, kept apart by encoder fingerprint."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, fingerprint: str) -> dict[bytes, FloatArray]:
        """Return the vectors [F] that the cache holds for an encoder, by the hash of their text.

        A damaged shard is removed and counts as absent.
        """
        from safetensors.numpy import load

        vectors: dict[bytes, FloatArray] = {}
        for path in sorted((self.folder / fingerprint).glob(f"*{SHARD_SUFFIX}")):
            try:
                content = path.read_bytes()
            except FileNotFoundError:
                continue  # another process has just removed it as damaged
            if hashlib.sha256(content).hexdigest() != path.stem:
                path.unlink(missing_ok=True)
                continue
            shard = load(content)
            keys = (row.tobytes() for row in shard["keys"])
            vectors.update(zip(keys, shard["vectors"], strict=True))
        return vectors

    def write(self, fingerprint: str, vectors: Mapping[bytes, FloatArray]) -> None:
        """Add a shard with these vectors (at least one), by the hash of their text.

        Raises:
            RLRouteError: the folder cannot be written.
        """
        from safetensors.numpy import save

        keys = np.frombuffer(b"".join(vectors), dtype=np.uint8).reshape(len(vectors), -1)
        content = save({"keys": keys, "vectors": np.stack(list(vectors.values()))})
        name = hashlib.sha256(content).hexdigest() + SHARD_SUFFIX
        try:
            write_atomic(self.folder / fingerprint / name, content)
        except OSError as error:
            raise RLRouteError(
                f"embedding cache {self.folder}: cannot be written ({error.strerror})"
            ) from None


def encode_cached(
    encoder: Encoder, texts: Sequence[str], folder: Path, *, texts_per_shard: int | None = None
) -> FloatArray:
    """Return `encoder.encode(texts)` [N, F], bit for bit, encoding only texts that are new to it.

    New texts are written `texts_per_shard` at a time (None: `TEXTS_PER_SHARD`).

    Raises:
        RLRouteError: the folder cannot be written.
    """
    cache = EmbeddingCache(folder)
    fingerprint = encoder.fingerprint()
    keys = [hash_text(text) for text in texts]
    vectors = cache.read(fingerprint)
    missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in vectors}
    items = list(missing.items())
    step = texts_per_shard or TEXTS_PER_SHARD
    for start in range(0, len(items), step):
        chunk = items[start : start + step]
        rows_NF = encoder.encode([text for _, text in chunk])
        fresh = {key: row_F for (key, _), row_F in zip(chunk, rows_NF, strict=True)}
        cache.write(fingerprint, fresh)
        vectors.update(fresh)
    result_NF = np.zeros((len(texts), encoder.dimension), dtype=np.float32)
    for row, key in enumerate(keys):
        result_NF[row] = vectors[key]
    return result_NF


def hash_text(text: str) -> bytes:
    """Return the SHA-256 of a text, also of one with lone surrogates."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
