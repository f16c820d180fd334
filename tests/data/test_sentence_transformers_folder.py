"""Folders as sentence-transformers saves them: vectors are those that their modules describe."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rlroute.data.encoders import PathConfig, fit_encoder, load_encoder
from rlroute.types import RLRouteError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", reason="needs the extra 'minilm'")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "sum", "of", "two", "numbers", "sea", "blue"]
TEXTS = ["sum of two numbers", "blue", "the blue sea of numbers", "two two two"]
MODULES = ("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")
# The keys of versions 2 to 5 of sentence-transformers, and the short form.
SWITCHES = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A real BERT of two layers in the layout of sentence-transformers, pooling not yet said."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    transformers.BertTokenizerFast(str(path / "vocab.txt")).save_pretrained(path)
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=20,
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(path)
    modules = [
        {"idx": n, "name": str(n), "path": place, "type": f"sentence_transformers.models.{kind}"}
        for n, (place, kind) in enumerate(MODULES)
    ]
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "config_sentence_transformers.json").write_text('{"similarity_fn_name": "cosine"}')
    (path / "sentence_bert_config.json").write_text('{"max_seq_length": 20}')
    (path / "2_Normalize").mkdir()
    (path / "1_Pooling").mkdir()
    return path


def write_pooling(folder: Path, chosen: str, *, short: bool = False) -> None:
    switches = {f"pooling_mode_{name}": name.startswith(chosen + "_") for name in SWITCHES}
    switches["pooling_mode_mean_sqrt_len_tokens"] = False
    settings = {"pooling_mode": chosen} if short else switches
    settings |= {"word_embedding_dimension": 16, "include_prompt": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))


def compute_expected(folder: Path, pooling: str) -> np.ndarray:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    rows = []
    with torch.inference_mode():
        for text in TEXTS:
            hidden_LF = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
            row_F = hidden_LF[0] if pooling == "cls" else hidden_LF.mean(dim=0)
            rows.append((row_F / row_F.norm()).numpy())
    return np.stack(rows)


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_texts_are_pooled_as_the_folder_says_and_after_storage_too(
    folder: Path, tmp_path: Path, pooling: str, short: bool
) -> None:
    write_pooling(folder, pooling, short=short)
    encoder = fit_encoder(PathConfig(path=str(folder)), [], seed=0)
    assert encoder.describe()["pooling"] == pooling
    np.testing.assert_allclose(encoder.encode(TEXTS), compute_expected(folder, pooling), atol=1e-6)
    encoder.save(tmp_path / "saved")
    loaded = load_encoder(tmp_path / "saved")
    assert loaded.encode(TEXTS).tobytes() == encoder.encode(TEXTS).tobytes()


def test_another_pooling_is_another_encoder_and_a_changed_folder_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    write_pooling(folder, "mean")
    mean = fit_encoder(PathConfig(path=str(folder)), [], seed=0)
    mean.save(tmp_path / "saved")
    write_pooling(folder, "cls")
    cls = fit_encoder(PathConfig(path=str(folder)), [], seed=0)
    assert cls.fingerprint() != mean.fingerprint()
    with pytest.raises(RLRouteError, match="not the encoder that was saved"):
        load_encoder(tmp_path / "saved")


def test_hand_features_can_be_appended_to_a_model_that_moves(folder: Path, tmp_path: Path) -> None:
    write_pooling(folder, "mean")
    encoder = fit_encoder(PathConfig(path=str(folder), features=True), TEXTS, seed=0)
    np.testing.assert_allclose(
        encoder.encode(TEXTS)[:, :16], compute_expected(folder, "mean") * np.sqrt(0.75), atol=1e-6
    )
    encoder.save(tmp_path / "saved")
    moved = folder.rename(tmp_path / "moved")
    with pytest.raises(RLRouteError, match=r"no config.json with \*.safetensors"):
        load_encoder(tmp_path / "saved")
    loaded = load_encoder(tmp_path / "saved", model_folder=moved)
    assert loaded.encode(TEXTS).tobytes() == encoder.encode(TEXTS).tobytes()


def test_a_pooling_that_is_not_known_is_refused_by_name(folder: Path) -> None:
    write_pooling(folder, "max")
    with pytest.raises(RLRouteError, match=r"pooling_mode_max_tokens.*not supported"):
        fit_encoder(PathConfig(path=str(folder)), [], seed=0)
