"""Files of static word vectors: the text format of GloVe and word2vec, and safetensors.

Text: a word and its numbers on each line, apart by single spaces; a first line of two numbers (how
many words, how long) as word2vec writes it is read over. A word may hold spaces itself.
Safetensors: one matrix of two dimensions, of any name; its words stand in a second file, a JSON
list, a JSON mapping from word to row, or one word a line.

What it leaves out: word2vec's binary format and compressed files. Nothing in a file is run.

How to use: `words, vectors_VF = read_word_vectors(WordVectorsConfig(source="glove.6B.100d.txt"))`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rlroute.data.encoder_config import WordVectorsConfig
from rlroute.data.encoders import read_bytes
from rlroute.types import FloatArray, RLRouteError


def read_word_vectors(config: WordVectorsConfig) -> tuple[list[str], FloatArray]:
    """Return the first `max_vocabulary` words of a file and their vectors [V, F].

    A word that stands twice keeps its first vector.

    Raises:
        RLRouteError: a file cannot be read, a line is malformed (it is named), the matrix and its
            words differ in length, or a number is not finite.
    """
    path = Path(config.source).expanduser()
    if config.vocabulary is None:
        found = read_text_vectors(path, config.max_vocabulary)
    else:
        found = read_matrix(path, Path(config.vocabulary).expanduser(), config.max_vocabulary)
    if not found:
        raise RLRouteError(f"{path}: holds no word vector")
    vectors_VF = np.stack(list(found.values())).astype(np.float32)
    if not np.isfinite(vectors_VF).all():
        word = list(found)[int(np.argmin(np.isfinite(vectors_VF).all(axis=1)))]
        raise RLRouteError(f"{path}: the vector of {word!r} holds a value that is not finite")
    return list(found), vectors_VF


def read_text_vectors(path: Path, limit: int) -> dict[str, FloatArray]:
    """Return up to `limit` words with their vectors [F] from a text file."""
    found: dict[str, FloatArray] = {}
    length = 0
    for number, line in enumerate(read_lines(path), start=1):
        parts = line.rstrip().split(" ")
        if number == 1 and len(parts) == 2 and all(part.isdigit() for part in parts):
            length = int(parts[1])
            continue
        length = length or len(parts) - 1
        if len(parts) <= length or length < 1:
            raise RLRouteError(f"{path}, line {number}: not a word and {max(length, 1)} numbers")
        try:
            vector_F = np.array(parts[-length:], dtype=np.float32)
        except ValueError:
            raise RLRouteError(f"{path}, line {number}: {length} numbers must end it") from None
        found.setdefault(" ".join(parts[:-length]), vector_F)
        if len(found) == limit:
            break
    return found


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file, one at a time: such files are large.

    Raises:
        RLRouteError: it cannot be read, or is not UTF-8 text.
    """
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            yield from file
    except OSError as error:
        raise RLRouteError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise RLRouteError(f"{path}: not UTF-8 text (binary formats are not read)") from None


def read_matrix(path: Path, vocabulary: Path, limit: int) -> dict[str, FloatArray]:
    """Return up to `limit` words of a vocabulary with their rows [F] of a safetensors matrix."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise RLRouteError(f"{path}: cannot be read (no such file)")
    try:
        with safe_open(path, framework="numpy") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
            matrices = [name for name, shape in shapes.items() if len(shape) == 2]
            if len(matrices) != 1:
                raise RLRouteError(f"{path}: must hold one matrix, not {len(matrices)}")
            matrix_VF = np.asarray(file.get_tensor(matrices[0]), dtype=np.float32)
    except SafetensorError:
        raise RLRouteError(f"{path}: torn or no safetensors file") from None
    except TypeError:  # what numpy says of bfloat16
        raise RLRouteError(f"{path}: the matrix must be of float32, float16 or float64") from None
    words = read_vocabulary(vocabulary, len(matrix_VF))
    found: dict[str, FloatArray] = {}
    for word, row_F in zip(words, matrix_VF, strict=True):
        if len(found) < limit:
            found.setdefault(word, row_F)
    return found


def read_vocabulary(path: Path, rows: int) -> list[str]:
    """Return the words of a vocabulary file in the order of their rows.

    Raises:
        RLRouteError: it cannot be read, holds something else, or another number of words.
    """
    try:
        text = read_bytes(path).decode("utf-8")
    except UnicodeDecodeError:
        raise RLRouteError(f"{path}: not UTF-8 text") from None
    if path.suffix != ".json":
        words: object = text.splitlines()
    else:
        try:
            words = json.loads(text)
        except ValueError:
            raise RLRouteError(f"{path}: torn or not JSON") from None
    if isinstance(words, dict):
        if sorted(words.values(), key=str) != sorted(range(len(words)), key=str):
            raise RLRouteError(f"{path}: its numbers must be the rows 0 to {len(words) - 1}")
        words = sorted(words, key=words.__getitem__)
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise RLRouteError(f"{path}: must be a list of words, or a mapping from word to row")
    if len(words) != rows:
        raise RLRouteError(f"{path}: {len(words)} words for a matrix of {rows} rows")
    return words
