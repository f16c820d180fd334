"""The embedding cache: exact, keyed by content and encoder, safe with several writers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from rlroute.data import embedding_cache
from rlroute.data.embedding_cache import EmbeddingCache, encode_cached, hash_text
from rlroute.data.encoders import Encoder, TfidfConfig, fit_encoder
from rlroute.types import FloatArray, RLRouteError

WORDS = (
    "sea",
    "hills",
    "birds",
    "colours",
    "sums",
    "rivers",
    "planets",
    "proofs",
    "rhymes",
    "laws",
)
TEXTS = [
    f"{WORDS[i % 10]} and {WORDS[i // 6]} or {WORDS[i * 7 % 9]}, text {'x' * i}" for i in range(60)
]


class CountingEncoder:
    """A real encoder that remembers which texts it was asked for."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder, self.kind, self.dimension = encoder, encoder.kind, encoder.dimension
        self.asked: list[str] = []
        self.fingerprint, self.describe, self.save = (
            encoder.fingerprint,
            encoder.describe,
            encoder.save,
        )

    def encode(self, texts: Sequence[str]) -> FloatArray:
        self.asked.extend(texts)
        return self.encoder.encode(texts)


def make_encoder(dimension: int = 8) -> CountingEncoder:
    return CountingEncoder(fit_encoder(TfidfConfig(dimension=dimension), TEXTS, seed=0))


def test_a_cached_result_is_the_fresh_one_bit_for_bit(tmp_path: Path) -> None:
    encoder = make_encoder()
    texts = [*TEXTS, "", "\ud800 birds", TEXTS[3]]
    fresh_NF = encoder.encoder.encode(texts)
    for _ in range(2):
        cached_NF = encode_cached(encoder, texts, tmp_path)
        assert cached_NF.dtype == np.float32
        assert cached_NF.tobytes() == fresh_NF.tobytes()
    assert len(encoder.asked) == 62  # each distinct text once, in the first round
    assert encode_cached(encoder, [], tmp_path).shape == (0, encoder.dimension)


def test_only_new_texts_are_encoded(tmp_path: Path) -> None:
    encoder = make_encoder()
    encode_cached(encoder, TEXTS[:20], tmp_path)
    encoder.asked.clear()
    encode_cached(encoder, TEXTS[10:30], tmp_path)
    assert encoder.asked == TEXTS[20:30]


def test_another_encoder_gets_its_own_vectors(tmp_path: Path) -> None:
    first, second = make_encoder(8), make_encoder(5)
    encode_cached(first, TEXTS, tmp_path)
    assert encode_cached(second, TEXTS, tmp_path).shape == (60, 5)
    assert second.asked == TEXTS


def test_a_damaged_shard_is_thrown_away_and_encoded_again(tmp_path: Path) -> None:
    encoder = make_encoder()
    fresh_NF = encode_cached(encoder, TEXTS, tmp_path)
    (shard,) = (tmp_path / encoder.fingerprint()).iterdir()
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    for damaged in (bytes(content), bytes(content[:100]), b""):
        shard.write_bytes(damaged)
        encoder.asked.clear()
        assert encode_cached(encoder, TEXTS, tmp_path).tobytes() == fresh_NF.tobytes()
        assert encoder.asked == TEXTS
    assert [path.name for path in shard.parent.iterdir()] == [shard.name]


def test_an_interrupted_run_keeps_what_it_has_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(CountingEncoder):
        def encode(self, texts: Sequence[str]) -> FloatArray:
            if len(self.asked) >= 20:
                raise KeyboardInterrupt
            return super().encode(texts)

    monkeypatch.setattr(embedding_cache, "TEXTS_PER_SHARD", 10)
    encoder = make_encoder()
    with pytest.raises(KeyboardInterrupt):
        encode_cached(Interrupted(encoder.encoder), TEXTS, tmp_path)
    encode_cached(encoder, TEXTS, tmp_path)
    assert encoder.asked == TEXTS[20:]


WRITER = """
import sys
from pathlib import Path
from rlroute.data import embedding_cache
from rlroute.data.encoders import load_encoder
embedding_cache.TEXTS_PER_SHARD = 3
folder, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
encoder = load_encoder(folder / "encoder")
texts = (folder / "texts.txt").read_text().splitlines()[first:last]
print("ready", flush=True)
sys.stdin.readline()
for _ in range(5):
    rows_NF = embedding_cache.encode_cached(encoder, texts, folder / "cache")
    assert rows_NF.tobytes() == encoder.encode(texts).tobytes()
"""


def test_two_processes_write_the_same_cache_at_once(tmp_path: Path) -> None:
    encoder = make_encoder()
    encoder.save(tmp_path / "encoder")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(first), str(last)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for first, last in ((0, 45), (15, 60))
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:  # both wait for this line, so that they write together
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=60)
        assert writer.returncode == 0
    vectors = EmbeddingCache(tmp_path / "cache").read(encoder.fingerprint())
    assert set(vectors) == {hash_text(text) for text in TEXTS}
    cached_NF = encode_cached(encoder, TEXTS, tmp_path / "cache")
    assert encoder.asked == []
    assert cached_NF.tobytes() == encoder.encoder.encode(TEXTS).tobytes()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(RLRouteError, match="cannot be written"):
        encode_cached(make_encoder(), TEXTS[:2], tmp_path / "cache")
