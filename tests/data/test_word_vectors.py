"""Word vectors: made of a corpus, read from files, pooled as stated, stored whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.numpy import save_file

from rlroute.data.encoder_config import WordVectorsConfig
from rlroute.data.encoders import WEIGHTS_FILE, fit_encoder, load_encoder
from rlroute.data.word_vectors import (
    WordVectorEncoder,
    compute_association,
    find_common_direction,
    make_word_vectors,
)
from rlroute.types import RLRouteError

NUMBERS = ["two", "seven", "nine"]
COLOURS = ["red", "blue", "green"]
CORPUS = [
    *(f"add {one} plus {two} to a sum of {three}" for one in NUMBERS for two in NUMBERS
      for three in NUMBERS),
    *(f"paint the {one} sky over {two} hills with {three}" for one in COLOURS for two in COLOURS
      for three in COLOURS),
]  # fmt: skip
GLOVE = "sum 1 0 0\nsea 0 2 0\nSea 0 0 4\n, 1 1 1\n000 0 3 4\n"


def write(path: Path, content: str) -> str:
    path.write_text(content, encoding="utf-8")
    return str(path)


def test_association_is_positive_pointwise_mutual_information_within_the_window() -> None:
    # texts "a b" and "a c", kept apart; distance 1 only
    found_VV = compute_association(np.array([0, 1, -1, 0, 2, -1]), 3, window=1).toarray()
    # each pair counts twice (once from each side): a-b 1, a-c 1, and back; sums 2, 1, 1
    context_V = np.array([2, 1, 1]) ** 0.75
    context_V = context_V / context_V.sum()
    expected_VV = np.zeros((3, 3))
    for row, column, count, total in ((0, 1, 1, 2), (0, 2, 1, 2), (1, 0, 1, 1), (2, 0, 1, 1)):
        expected_VV[row, column] = max(0, np.log(count / (total * context_V[column])))
    np.testing.assert_allclose(found_VV, expected_VV, atol=1e-12)
    assert expected_VV.max() > 0


def test_words_two_places_apart_count_half() -> None:
    near_VV = compute_association(np.array([0, 1, 2]), 3, window=1).toarray()
    wide_VV = compute_association(np.array([0, 1, 2]), 3, window=2).toarray()
    assert near_VV[0, 2] == 0 < wide_VV[0, 2]
    context_V = np.array([1.5, 2, 1.5]) ** 0.75
    expected = np.log(0.5 / (1.5 * context_V[2] / context_V.sum()))
    assert wide_VV[0, 2] == pytest.approx(max(0, expected))


def test_vectors_of_a_corpus_put_words_of_one_use_together() -> None:
    config = WordVectorsConfig(dimension=8, min_count=1)
    words, vectors_VF = make_word_vectors(config, CORPUS, seed=0)
    vectors_VF = vectors_VF / np.linalg.norm(vectors_VF, axis=1, keepdims=True)
    vector = dict(zip(words, vectors_VF, strict=True))
    alike = min(vector["red"] @ vector["blue"], vector["two"] @ vector["nine"])
    assert alike > 0.5 > 0.2 > vector["red"] @ vector["nine"]


def test_texts_about_the_same_lie_together() -> None:
    config = WordVectorsConfig(dimension=8, min_count=1, pooling="mean")
    encoder = fit_encoder(config, CORPUS, seed=0)
    sums_F, more_F, hills_F = encoder.encode(["add two", "sum of nine", "the blue sky"])
    assert sums_F @ more_F > 0.4 > 0.2 > sums_F @ hills_F


def test_rows_have_length_one_and_order_and_repetition_of_texts_change_nothing() -> None:
    mean = WordVectorsConfig(dimension=8, min_count=1, pooling="mean")
    vectors_NF = fit_encoder(mean, CORPUS, seed=0).encode(CORPUS)
    np.testing.assert_allclose(np.linalg.norm(vectors_NF, axis=1), 1, rtol=1e-5)
    config = WordVectorsConfig(dimension=8, min_count=1)
    encoder = fit_encoder(config, CORPUS, seed=0)
    other = fit_encoder(config, [*CORPUS[::-1], CORPUS[3]], seed=0)
    assert other.fingerprint() == encoder.fingerprint()
    assert fit_encoder(config, CORPUS[:-5], seed=0).fingerprint() != encoder.fingerprint()


def test_a_row_depends_on_its_own_text_and_unknown_texts_get_zeros() -> None:
    encoder = fit_encoder(WordVectorsConfig(dimension=8, min_count=1), CORPUS, seed=0)
    texts = [*CORPUS[:7], "", "zebra", "\ud800", "zebra red"]
    vectors_NF = encoder.encode(texts)
    for row_F, text in zip(vectors_NF, texts, strict=True):
        assert row_F.tobytes() == encoder.encode([text])[0].tobytes()
    assert not vectors_NF[7:10].any()
    np.testing.assert_array_equal(vectors_NF[10], encoder.encode(["red"])[0])
    assert encoder.encode([]).shape == (0, encoder.dimension)
    with pytest.raises(RLRouteError, match=r"write \[text\]"):
        encoder.encode("red")


def test_a_file_of_glove_is_read_and_a_word_is_looked_up_as_it_stands_first(
    tmp_path: Path,
) -> None:
    source = write(tmp_path / "glove.txt", GLOVE)
    encoder = fit_encoder(WordVectorsConfig(source=source, pooling="mean"), [], seed=0)
    assert encoder.dimension == 3
    found_NF = encoder.encode(["SUM", "sea", "Sea", "342", "sum sea,", "nothing"])
    third = 1 / np.sqrt(3)
    expected_NF = [
        *([1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0.6, 0.8]),
        np.array([2, 3, 1]) / np.sqrt(14),
        [0, 0, 0],
    ]
    np.testing.assert_allclose(found_NF, expected_NF, atol=1e-6)
    np.testing.assert_allclose(encoder.encode([","])[0], [third] * 3, atol=1e-6)


def test_sif_weighs_words_by_the_train_texts_and_takes_out_what_they_share(
    tmp_path: Path,
) -> None:
    source = write(tmp_path / "glove.txt", "sum 1 0\nsea 0 1\nsky 1 1\n")
    config = WordVectorsConfig(source=source, sif_weight=0.25)
    encoder = fit_encoder(config, ["sum sum sum sea", "sum sea"], seed=0)
    assert isinstance(encoder, WordVectorEncoder)
    # sum is 4 of 6 words, sea 2 of 6, sky none: 0.25 / (0.25 + 2/3), 0.25 / (0.25 + 1/3), 1
    np.testing.assert_allclose(encoder.weight_V, [3 / 11, 3 / 7, 1], rtol=1e-6)
    rows_NF = np.array([[9 / 11, 3 / 7], [3 / 11, 3 / 7]], dtype=np.float32)
    rows_NF /= np.linalg.norm(rows_NF, axis=1, keepdims=True)
    common_F = find_common_direction(rows_NF)
    np.testing.assert_allclose(encoder.common_F, common_F, atol=1e-6)
    row_F = np.array([1, 0]) - common_F[0] * common_F
    np.testing.assert_allclose(encoder.encode(["sum"])[0], row_F / np.linalg.norm(row_F), atol=1e-5)


def test_word2vec_headers_twice_given_words_and_the_limit_are_heeded(tmp_path: Path) -> None:
    source = write(tmp_path / "w2v.txt", "4 2\nnew york 1 2\na 3 4\na 5 6\nb 7 8\n")
    config = WordVectorsConfig(source=source, pooling="mean", max_vocabulary=2)
    encoder = fit_encoder(config, [], seed=0)
    assert isinstance(encoder, WordVectorEncoder)
    assert encoder.vocabulary == {"new york": 0, "a": 1}
    np.testing.assert_array_equal(encoder.vectors_VF, [[1, 2], [3, 4]])


@pytest.mark.parametrize("form", ["list", "mapping", "lines"])
def test_a_safetensors_matrix_with_its_vocabulary_is_read(tmp_path: Path, form: str) -> None:
    matrix_VF = np.array([[1, 0], [0, 1], [1, 1]], dtype=np.float16)
    save_file({"embedding.weight": matrix_VF, "norms": np.ones(3)}, tmp_path / "v.safetensors")
    content = {
        "list": json.dumps(["sea", "sky", "sum"]),
        "mapping": json.dumps({"sum": 2, "sea": 0, "sky": 1}),
        "lines": "sea\nsky\nsum\n",
    }[form]
    name = "words.txt" if form == "lines" else "words.json"
    config = WordVectorsConfig(
        source=str(tmp_path / "v.safetensors"),
        vocabulary=write(tmp_path / name, content),
        pooling="mean",
    )
    vectors_NF = fit_encoder(config, [], seed=0).encode(["sea", "sky", "sum"])
    half = 1 / np.sqrt(2)
    np.testing.assert_allclose(vectors_NF, [[1, 0], [0, 1], [half, half]], atol=1e-6)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("sum 1 2\nsea 1\n", "line 2"),
        ("sum 1 2\nsea 1 x\n", "line 2: 2 numbers"),
        ("sum 1 nan\n", "'sum' holds a value that is not finite"),
        ("sum\n", "line 1: not a word"),
        ("", "holds no word vector"),
    ],
)
def test_a_malformed_file_is_refused_with_its_line(
    tmp_path: Path, content: str, fault: str
) -> None:
    source = write(tmp_path / "broken.txt", content)
    with pytest.raises(RLRouteError, match=fault) as caught:
        fit_encoder(WordVectorsConfig(source=source, pooling="mean"), [], seed=0)
    assert source in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_binary_and_unfitting_files_are_refused(tmp_path: Path) -> None:
    def refuse(fault: str, **settings: str) -> None:
        config = WordVectorsConfig.model_validate({"pooling": "mean", **settings})
        with pytest.raises(RLRouteError, match=fault):
            fit_encoder(config, [], seed=0)

    refuse("no-such.txt: cannot be read", source=str(tmp_path / "no-such.txt"))
    (tmp_path / "vectors.bin").write_bytes(b"2 2\nsea \xff\xfe\x00\x80")
    refuse("not UTF-8", source=str(tmp_path / "vectors.bin"))
    tensors = tmp_path / "v.safetensors"
    words = write(tmp_path / "words.txt", "sea\nsky\n")
    refuse("no such file", source=str(tensors), vocabulary=words)
    save_file({"a": np.ones((3, 2), np.float32)}, tensors)
    refuse("2 words for a matrix of 3 rows", source=str(tensors), vocabulary=words)
    mapping = write(tmp_path / "words.json", '{"sea": 0, "sky": 1, "sum": 1}')
    refuse("rows 0 to 2", source=str(tensors), vocabulary=mapping)
    save_file({"a": np.ones((2, 2), np.float32), "b": np.ones((2, 2), np.float32)}, tensors)
    refuse("one matrix, not 2", source=str(tensors), vocabulary=words)
    tensors.write_bytes(b"torn")
    refuse("torn", source=str(tensors), vocabulary=words)


def test_settings_that_the_source_does_not_read_are_refused() -> None:
    for fault, settings in (
        ("needs vocabulary", {"source": "v.safetensors"}),
        ("takes no vocabulary", {"source": "glove.txt", "vocabulary": "words.txt"}),
        ("dimension belongs to source 'corpus'", {"source": "glove.txt", "dimension": 50}),
        ("window belongs", {"source": "glove.txt", "window": 3}),
    ):
        with pytest.raises(ValidationError, match=fault):
            WordVectorsConfig.model_validate(settings)
    config = WordVectorsConfig(source="glove.txt")
    assert WordVectorsConfig.model_validate(config.model_dump()) == config


def test_too_little_text_is_refused(tmp_path: Path) -> None:
    for texts in ([], ["sea sky"], ["sea", "sky", "sum"] * 3):
        with pytest.raises(RLRouteError, match="fewer than 3 words"):
            fit_encoder(WordVectorsConfig(min_count=1), texts, seed=0)
    source = write(tmp_path / "glove.txt", GLOVE)
    with pytest.raises(RLRouteError, match="write pooling: mean"):
        fit_encoder(WordVectorsConfig(source=source), ["zebra"], seed=0)


@pytest.mark.parametrize("kind", ["corpus", "file"])
def test_a_saved_encoder_needs_no_source_and_refuses_changed_vectors(
    tmp_path: Path, kind: str
) -> None:
    source = write(tmp_path / "glove.txt", GLOVE) if kind == "file" else "corpus"
    encoder = fit_encoder(WordVectorsConfig(source=source), [*CORPUS, "sea of 000"], seed=0)
    (tmp_path / "glove.txt").unlink(missing_ok=True)
    saved = tmp_path / "saved"
    encoder.save(saved)
    loaded = load_encoder(saved)
    assert loaded.encode(CORPUS).tobytes() == encoder.encode(CORPUS).tobytes()
    assert loaded.describe() == encoder.describe()
    weights = bytearray((saved / WEIGHTS_FILE).read_bytes())
    weights[-1] ^= 1
    (saved / WEIGHTS_FILE).write_bytes(weights)
    with pytest.raises(RLRouteError, match="not the encoder that was saved"):
        load_encoder(saved)
