"""Hand features: what a column counts, the scale of rows, joining with other encoders, storage."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlroute.data.encoders import (
    ENCODER_FILE,
    Encoder,
    FeaturesConfig,
    TfidfConfig,
    WordVectorsConfig,
    fit_encoder,
    load_encoder,
)
from rlroute.data.hand_features import (
    FEATURE_NAMES,
    FEATURE_SHARE,
    FEATURES_FILE,
    FeaturesEncoder,
    JoinedEncoder,
    measure_text,
    measure_texts,
)
from rlroute.types import RLRouteError

TEXTS = [
    "What is 12 + 30?",
    "Which is NOT a bird?\nA. crow\nB. hill\nC. wren\nD. gull",
    "def add(a, b):\n    return a + b\n",
    "Was ist die Hauptstadt von Bayern?",
    "Où est la gare, et que dit le chef?",
    "Explain to a child, in a few words, why the sea looks blue on a clear day.",
    "Solve \\frac{1}{2} x = 3 and \\sqrt{x} > 1.",
    "这是什么?",
    "Что это такое?",
]


def test_columns_count_what_their_names_say() -> None:
    raw = measure_text("Is 12 > 3.5? Yes!\nA. one\n(B) 22\nC) three")
    assert raw["options"] == 3
    assert raw["numeric_option_share"] == pytest.approx(1 / 3)
    assert raw["log_option_length"] == pytest.approx(np.log1p((3 + 2 + 5) / 3))
    assert raw["log_numbers"] == pytest.approx(np.log1p(3))
    assert raw["longest_number"] == pytest.approx(np.log1p(3))
    assert raw["log_lines"] == pytest.approx(np.log1p(3))
    assert raw["log_question_marks"] == pytest.approx(np.log1p(1))
    assert raw["log_exclamation_marks"] == pytest.approx(np.log1p(1))
    raw = measure_text("AB c1")
    assert (raw["digit_share"], raw["space_share"]) == (1 / 5, 1 / 5)
    assert (raw["capital_share"], raw["punctuation_share"]) == (2 / 3, 0)
    assert raw["mean_word_length"] == 2


def test_code_formulas_scripts_and_languages_are_told_apart() -> None:
    code, formula = measure_text(TEXTS[2]), measure_text(TEXTS[6])
    assert code["log_code_words"] > 0 == formula["log_code_words"]
    assert code["log_calls"] == code["log_indented_lines"] == pytest.approx(np.log1p(1))
    assert formula["log_latex_commands"] == pytest.approx(np.log1p(2))
    assert code["log_latex_commands"] == 0
    languages = [f"{name}_share" for name in ("english", "german", "french", "spanish")]
    for text, expected in ((TEXTS[5], 0), (TEXTS[3], 1), (TEXTS[4], 2), ("el mar es una luz", 3)):
        raw = measure_text(text)
        assert int(np.argmax([raw[name] for name in languages])) == expected
    assert measure_text(TEXTS[7])["east_asian_share"] == 4 / 5
    assert measure_text("Что это")["cyrillic_share"] == 6 / 7
    assert measure_text("plain")["non_ascii_share"] == 0
    asking = measure_text(TEXTS[1])
    assert (asking["asks_which"], asking["asks_what"], asking["negation"]) == (1, 0, 1)


def test_rows_are_standardised_on_the_train_texts_and_hold_what_the_division_loses() -> None:
    encoder = FeaturesEncoder.fit(FeaturesConfig(), TEXTS)
    raw_NH = measure_texts(TEXTS)
    np.testing.assert_allclose(encoder.offset_H, raw_NH.mean(axis=0), atol=1e-6)
    rows_NF = encoder.encode(TEXTS)
    assert rows_NF.shape == (len(TEXTS), len(FEATURE_NAMES) + 1)
    np.testing.assert_allclose(np.linalg.norm(rows_NF, axis=1), 1, rtol=1e-6)
    # the last column gives back the length, and with it every standardised value
    deviation_NH = rows_NF[:, :-1] / rows_NF[:, -1:] * np.sqrt(len(FEATURE_NAMES))
    expected_NH = ((raw_NH - encoder.offset_H) / encoder.scale_H).clip(-4, 4)
    np.testing.assert_allclose(deviation_NH, expected_NH, atol=1e-5)


def test_a_value_far_from_the_train_texts_is_cut_at_four_deviations() -> None:
    encoder = FeaturesEncoder.fit(FeaturesConfig(), TEXTS)
    row_F = encoder.encode(["9" * 100_000])[0]
    deviation_H = row_F[:-1] / row_F[-1] * np.sqrt(len(FEATURE_NAMES))
    assert np.abs(deviation_H).max() == pytest.approx(4, abs=1e-4)


def test_repeated_texts_and_their_order_change_nothing_and_no_text_is_refused() -> None:
    encoder = fit_encoder(FeaturesConfig(), TEXTS, seed=0)
    other = fit_encoder(FeaturesConfig(), [*TEXTS[::-1], *TEXTS[:3]], seed=5)
    assert other.fingerprint() == encoder.fingerprint()
    assert fit_encoder(FeaturesConfig(), TEXTS[1:], seed=0).fingerprint() != encoder.fingerprint()
    with pytest.raises(RLRouteError, match="got none"):
        fit_encoder(FeaturesConfig(), [], seed=0)


@cache
def fit_joined() -> Encoder:
    return fit_encoder(TfidfConfig(dimension=4, min_documents=1, features=True), TEXTS, seed=0)


@settings(max_examples=50)
@given(st.lists(st.one_of(st.sampled_from(TEXTS), st.text(max_size=40)), max_size=6))
def test_every_text_has_a_finite_row_that_depends_on_it_alone(texts: list[str]) -> None:
    encoder = fit_joined()
    vectors_NF = encoder.encode(texts)
    assert vectors_NF.shape == (len(texts), encoder.dimension)
    assert np.isfinite(vectors_NF).all()
    for row_F, text in zip(vectors_NF, texts, strict=True):
        assert row_F.tobytes() == encoder.encode([text])[0].tobytes()


@pytest.mark.parametrize(
    "config",
    [
        TfidfConfig(dimension=5, min_documents=1, features=True),
        WordVectorsConfig(dimension=5, min_count=1, features=True),
    ],
    ids=lambda config: config.kind,
)
def test_features_are_appended_with_a_quarter_of_the_squared_length(
    config: TfidfConfig | WordVectorsConfig, tmp_path: Path
) -> None:
    encoder = fit_encoder(config, TEXTS, seed=0)
    assert isinstance(encoder, JoinedEncoder)
    base = fit_encoder(config.model_copy(update={"features": False}), TEXTS, seed=0)
    hand = fit_encoder(FeaturesConfig(), TEXTS, seed=0)
    assert encoder.dimension == base.dimension + hand.dimension
    vectors_NF = encoder.encode(TEXTS[:6])
    np.testing.assert_allclose(np.linalg.norm(vectors_NF, axis=1), 1, rtol=1e-5)
    product_NN = vectors_NF @ vectors_NF.T
    base_NF, hand_NF = base.encode(TEXTS[:6]), hand.encode(TEXTS[:6])
    expected_NN = (1 - FEATURE_SHARE) * base_NF @ base_NF.T + FEATURE_SHARE * hand_NF @ hand_NF.T
    np.testing.assert_allclose(product_NN, expected_NN, atol=1e-6)
    unknown_F = encoder.encode(["zzz"])[0]
    assert np.linalg.norm(unknown_F) == pytest.approx(0.5, rel=1e-5)

    assert len({each.fingerprint() for each in (encoder, base, hand)}) == 3
    encoder.save(tmp_path)
    loaded = load_encoder(tmp_path)
    assert loaded.encode(TEXTS).tobytes() == encoder.encode(TEXTS).tobytes()
    assert loaded.describe() == encoder.describe()


def test_a_saved_encoder_is_read_again_and_another_scale_is_refused(tmp_path: Path) -> None:
    encoder = fit_encoder(FeaturesConfig(), TEXTS, seed=0)
    encoder.save(tmp_path)
    loaded = load_encoder(tmp_path)
    assert loaded.encode(TEXTS).tobytes() == encoder.encode(TEXTS).tobytes()
    assert json.loads(json.dumps(loaded.describe())) == encoder.describe()
    content = bytearray((tmp_path / FEATURES_FILE).read_bytes())
    content[-1] ^= 1
    (tmp_path / FEATURES_FILE).write_bytes(content)
    with pytest.raises(RLRouteError, match="not the encoder that was saved"):
        load_encoder(tmp_path)
    (tmp_path / FEATURES_FILE).write_bytes(content[:50])
    with pytest.raises(RLRouteError, match="torn"):
        load_encoder(tmp_path)
    (tmp_path / FEATURES_FILE).unlink()
    with pytest.raises(RLRouteError, match=FEATURES_FILE):
        load_encoder(tmp_path)


def test_features_switched_on_in_the_header_alone_are_refused(tmp_path: Path) -> None:
    fit_encoder(TfidfConfig(dimension=4, min_documents=1), TEXTS, seed=0).save(tmp_path)
    header = json.loads((tmp_path / ENCODER_FILE).read_text())
    header["config"]["features"] = True
    (tmp_path / ENCODER_FILE).write_text(json.dumps(header))
    with pytest.raises(RLRouteError, match=FEATURES_FILE):
        load_encoder(tmp_path)
