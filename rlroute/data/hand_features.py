"""Features by hand: what the look of a text says of it, without a vocabulary or a model.

Lengths, shares of kinds of characters, marks of mathematics and code, answer options, hints of the
language. Each column is standardised on the train texts and cut at 4 deviations. A row is

    [z_1 ... z_H, sqrt(H)] / its length

so it has length 1 as those of all encoders; the last column keeps what the division would lose, how
far a text lies from the mean. H is the number of `FEATURE_NAMES`.

`features: true` on another encoder joins both (`JoinedEncoder`):

    [sqrt(1 - s) * row of the encoder, sqrt(s) * row of the features]     s = 0.25

The row has length 1 again, and a product of two rows is 0.75 of the encoder's and 0.25 of the
features'. Where the encoder knows nothing of a text (zeros), the length is 0.5.

What it leaves out: parsing. These are counts by regular expressions, for speed.

How to use: `fit_encoder(FeaturesConfig(), train_texts, seed=0)`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlroute.data.encoder_config import FeaturesConfig
from rlroute.data.encoders import (
    FORMAT_VERSION,
    Encoder,
    check_texts,
    dump_json,
    hash_parts,
    read_tensors,
    write_header,
)
from rlroute.files import write_atomic
from rlroute.types import FloatArray, RLRouteError

FEATURES_FILE = "features.safetensors"
FEATURES_VERSION = 1  # to be raised with any change of a column
LARGEST_DEVIATION = 4.0
SMALLEST_SPREAD = 1e-6
FEATURE_SHARE = 0.25

WORD = re.compile(r"\w+")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
SENTENCE_END = re.compile(r"[.!?\u3002\uff01\uff1f](?:\s|$)")
LATEX = re.compile(r"\\[a-zA-Z]+")
CODE_WORD = re.compile(
    r"\b(?:def|return|import|class|function|const|let|var|void|int|printf?|SELECT|lambda|elif)\b"
)
CALL = re.compile(r"\b[a-z_][A-Za-z_0-9]*\(")
INDENTED = re.compile(r"^(?: {2,}|\t)\S", re.MULTILINE)
OPTION = re.compile(r"^\s*\(?([A-J])[.):]\s*(.*)$", re.MULTILINE)
BLANK = re.compile(r"_{2,}|\.{3,}")
QUESTION_MARKS = "?\uff1f"
QUOTES = "\"'\u201c\u201d\u2018\u2019\u00ab\u00bb"
FORMULA_MARKS = "+-*/=^<>$%\u00b1\u00d7\u00f7\u2264\u2265\u221a\u2211\u222b"
CODE_MARKS = "{}[]();_`#|&"
# By code points, first and last.
SCRIPTS = {
    "greek": ((0x370, 0x3FF),),
    "cyrillic": ((0x400, 0x4FF),),
    "arabic_hebrew": ((0x590, 0x6FF),),
    "indic": ((0x900, 0xDFF),),
    "east_asian": ((0x3040, 0x30FF), (0x3400, 0x9FFF), (0xAC00, 0xD7AF)),
}
STOP_WORDS = {
    "english": "the of and to is in that it for was with are on which be",
    "german": "der die das und ist nicht ein eine mit auf von zu den wie",
    "french": "le la les des et est une dans que pour qui pas sur avec",
    "spanish": "el los las y es una en que por con para del como no",
}
STOP_WORD_SETS = {language: frozenset(words.split()) for language, words in STOP_WORDS.items()}
ASKING_WORDS = ("what", "which", "why", "how", "who", "when", "where")
NEGATIONS = frozenset(("not", "except", "never", "none", "false", "incorrect"))


def measure_text(text: str) -> dict[str, float]:
    """Return the raw features of a text by name, before they are standardised."""
    words, characters = WORD.findall(text.lower()), Counter(text)
    return {
        **measure_lengths(text, words),
        **measure_characters(characters, max(len(text), 1)),
        **measure_formulas_and_code(text, characters),
        **measure_options(text),
        **measure_scripts(characters, max(len(text), 1)),
        **measure_words(words),
    }


def measure_lengths(text: str, words: Sequence[str]) -> dict[str, float]:
    """Return lengths as log(1 + n), and means."""
    count = max(len(words), 1)
    return {
        "log_characters": math.log1p(len(text)),
        "log_words": math.log1p(len(words)),
        "log_lines": math.log1p(text.count("\n")),
        "log_sentences": math.log1p(len(SENTENCE_END.findall(text))),
        "mean_word_length": sum(map(len, words)) / count,
        "long_word_share": sum(len(word) > 8 for word in words) / count,
        "distinct_word_share": len(set(words)) / count,
    }


def measure_characters(characters: Counter[str], size: int) -> dict[str, float]:
    """Return the shares of kinds of characters; of an empty text 0."""
    letters = sum(n for one, n in characters.items() if one.isalpha())
    digits = sum(n for one, n in characters.items() if one.isdigit())
    spaces = sum(n for one, n in characters.items() if one.isspace())
    capitals = sum(n for one, n in characters.items() if one.isupper())
    return {
        "digit_share": digits / size,
        "space_share": spaces / size,
        "punctuation_share": (characters.total() - letters - digits - spaces) / size,
        "capital_share": capitals / max(letters, 1),
        "comma_share": characters[","] / size,
        "quote_share": sum(characters[mark] for mark in QUOTES) / size,
        "log_question_marks": math.log1p(sum(characters[mark] for mark in QUESTION_MARKS)),
        "log_exclamation_marks": math.log1p(characters["!"]),
    }


def measure_formulas_and_code(text: str, characters: Counter[str]) -> dict[str, float]:
    """Return how much of a text looks like mathematics or like code."""
    size = max(len(text), 1)
    numbers = NUMBER.findall(text)
    return {
        "log_numbers": math.log1p(len(numbers)),
        "longest_number": math.log1p(max(map(len, numbers), default=0)),
        "formula_mark_share": sum(characters[mark] for mark in FORMULA_MARKS) / size,
        "log_latex_commands": math.log1p(len(LATEX.findall(text))),
        "code_mark_share": sum(characters[mark] for mark in CODE_MARKS) / size,
        "log_code_words": math.log1p(len(CODE_WORD.findall(text))),
        "log_calls": math.log1p(len(CALL.findall(text))),
        "log_indented_lines": math.log1p(len(INDENTED.findall(text))),
        "code_fence": float("```" in text),
        "address": float("http://" in text or "https://" in text),
    }


def measure_options(text: str) -> dict[str, float]:
    """Return what is known of answer options: lines such as "A. ...", "(B) ..." or "C) ...".

    A letter counts once, so that a list of names does not look like options.
    """
    options: dict[str, str] = dict(OPTION.findall(text))
    lengths = [len(rest) for rest in options.values()]
    return {
        "options": float(len(options)),
        "log_option_length": math.log1p(sum(lengths) / max(len(lengths), 1)),
        "numeric_option_share": sum(bool(re.search(r"\d", rest)) for rest in options.values())
        / max(len(options), 1),
        "blank_to_fill": float(BLANK.search(text) is not None),
    }


def measure_scripts(characters: Counter[str], size: int) -> dict[str, float]:
    """Return the shares of characters outside ASCII, and of some scripts."""
    foreign = {ord(one): n for one, n in characters.items() if not one.isascii()}
    shares = {"non_ascii_share": sum(foreign.values()) / size}
    for script, ranges in SCRIPTS.items():
        found = sum(
            n for code, n in foreign.items() if any(low <= code <= high for low, high in ranges)
        )
        shares[f"{script}_share"] = found / size
    return shares


def measure_words(words: Sequence[str]) -> dict[str, float]:
    """Return hints of the language by stop words, and which words ask or negate."""
    count, held = max(len(words), 1), set(words)
    shares = {
        f"{language}_share": sum(word in stop_words for word in words) / count
        for language, stop_words in STOP_WORD_SETS.items()
    }
    asking = {f"asks_{word}": float(word in held) for word in ASKING_WORDS}
    return {**shares, **asking, "negation": float(bool(held & NEGATIONS))}


FEATURE_NAMES = tuple(measure_text(""))


def measure_texts(texts: Sequence[str]) -> FloatArray:
    """Return the raw features [N, H] of N texts."""
    rows = [list(measure_text(text).values()) for text in texts]
    return np.array(rows, dtype=np.float32).reshape(len(texts), len(FEATURE_NAMES))


class FeaturesEncoder:
    """Standardised hand features; `offset_H` and `scale_H` are mean and deviation on train."""

    kind = "features"

    def __init__(self, config: FeaturesConfig, offset_H: FloatArray, scale_H: FloatArray) -> None:
        self.config = config
        self.offset_H, self.scale_H = offset_H, scale_H
        self.dimension = len(FEATURE_NAMES) + 1
        settings = {"format_version": FORMAT_VERSION, "features_version": FEATURES_VERSION}
        self._fingerprint = hash_parts(
            dump_json({**settings, "names": FEATURE_NAMES}), offset_H.tobytes(), scale_H.tobytes()
        )

    @classmethod
    def fit(cls, config: FeaturesConfig, train_texts: Sequence[str]) -> FeaturesEncoder:
        """Measure mean and deviation on the distinct train texts; order changes nothing.

        Raises:
            RLRouteError: there is no train text.
        """
        texts = sorted(set(train_texts))
        if not texts:
            raise RLRouteError("encoder: hand features are standardised on train texts; got none")
        raw_NH = measure_texts(texts).astype(np.float64)
        spread_H = raw_NH.std(axis=0)
        scale_H = np.where(spread_H > SMALLEST_SPREAD, spread_H, 1.0)
        return cls(config, raw_NH.mean(axis=0).astype(np.float32), scale_H.astype(np.float32))

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Return the rows [N, H + 1]; also an empty text has one."""
        check_texts(texts)
        deviation_NH = (measure_texts(texts) - self.offset_H) / self.scale_H
        deviation_NH = deviation_NH.clip(-LARGEST_DEVIATION, LARGEST_DEVIATION)
        anchor_N1 = np.full((len(texts), 1), math.sqrt(len(FEATURE_NAMES)), dtype=np.float32)
        rows_NF = np.concatenate([deviation_NH, anchor_N1], axis=1)
        rows_NF /= np.sqrt((rows_NF * rows_NF).sum(axis=1, keepdims=True))
        return rows_NF

    def fingerprint(self) -> str:
        """Return the hash of the columns and of their scale."""
        return self._fingerprint

    def describe(self) -> dict[str, Any]:
        """Return kind, dimension, names of the columns, fingerprint and settings."""
        return {
            "kind": self.kind,
            "dimension": self.dimension,
            "columns": list(FEATURE_NAMES),
            "fingerprint": self._fingerprint,
            "config": self.config.model_dump(mode="json"),
        }

    def save(self, folder: Path) -> None:
        """Write features.safetensors and encoder.json into `folder`."""
        self.save_scale(folder)
        write_header(folder, self.config, self._fingerprint)

    def save_scale(self, folder: Path) -> None:
        """Write features.safetensors alone."""
        from safetensors.numpy import save

        tensors = {"offset": self.offset_H, "scale": self.scale_H}
        write_atomic(folder / FEATURES_FILE, save(tensors))

    @classmethod
    def read(cls, config: FeaturesConfig, folder: Path) -> FeaturesEncoder:
        """Read the scale that `save` wrote.

        Raises:
            RLRouteError: the file is missing, torn, or belongs to other columns.
        """
        path = folder / FEATURES_FILE
        tensors = read_tensors(path, {"offset", "scale"})
        if any(array.shape != (len(FEATURE_NAMES),) for array in tensors.values()):
            raise RLRouteError(f"{path}: not the scale of {len(FEATURE_NAMES)} hand features")
        return cls(config, tensors["offset"], tensors["scale"])


class JoinedEncoder:
    """Another encoder with hand features appended; `base` keeps its own vectors and cache."""

    def __init__(self, base: Encoder, hand: FeaturesEncoder) -> None:
        self.base, self.hand = base, hand
        self.kind, self.config = base.kind, base.config
        self.dimension = base.dimension + hand.dimension
        self._fingerprint = hash_parts(
            dump_json({"share": FEATURE_SHARE}),
            base.fingerprint().encode("ascii"),
            hand.fingerprint().encode("ascii"),
        )

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Return the vectors [N, F] of the encoder, scaled, and those of the features."""
        return self.join(self.base.encode(texts), texts)

    def join(self, vectors_NF: FloatArray, texts: Sequence[str]) -> FloatArray:
        """Append the features of N texts to their vectors [N, F] by the base encoder."""
        kept, added = math.sqrt(1 - FEATURE_SHARE), math.sqrt(FEATURE_SHARE)
        parts = [vectors_NF * np.float32(kept), self.hand.encode(texts) * np.float32(added)]
        return np.concatenate(parts, axis=1)

    def fingerprint(self) -> str:
        """Return the hash of both parts and of their shares."""
        return self._fingerprint

    def describe(self) -> dict[str, Any]:
        """Return what the encoder says of itself, with the dimension and fingerprint of both."""
        own = {"dimension": self.dimension, "fingerprint": self._fingerprint}
        return {**self.base.describe(), **own, "columns": list(FEATURE_NAMES)}

    def save(self, folder: Path) -> None:
        """Write the files of both into `folder`, and encoder.json for both."""
        self.hand.save_scale(folder)
        self.base.save(folder)
        write_header(folder, self.config, self._fingerprint)
