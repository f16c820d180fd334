"""Cuts a history into chunks: what retrieval finds and what modules read.

A turn is one line, `NAME said "TEXT"`, followed by `and shared CAPTION` where a picture came with
it. Lines are packed greedily into chunks of at most `max_tokens`, inside a session and never across
sessions; a longer turn is cut into several lines, each with its speaker. Documents are packed in
the same way, each under a header `Document N:`; a longer one is cut at sentence ends. All documents
of a history stand in one more session, after the last, without a date.

What it leaves out: finding chunks (`rlroute.memory.retriever`).

How to use: `chunks = split_history(history, 128, count_words)`. Source: BudgetMem (arXiv
2602.06025), section on chunking; there the tokens are those of the embedder, and what is too long
is cut off.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from rlroute.memory.base import Chunk, History, Turn
from rlroute.types import RLRouteError

CountTokens = Callable[[str], int]

WORD_OR_MARK = re.compile(r"\w+|[^\w\s]")
LINE = re.compile(r'^(?P<speaker>.+?) said "(?P<text>.*)"(?: and shared (?P<caption>.*))?$')
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


class Piece(NamedTuple):
    """A line of a chunk to be, with the id of its turn (empty: a document)."""

    line: str
    turn_id: str


class SpokenLine(NamedTuple):
    """What a line of a chunk says; `speaker` is empty where it is a document's."""

    speaker: str
    text: str


def count_words(text: str) -> int:
    """Count words and punctuation marks: what a token is where no tokenizer is at hand."""
    return len(WORD_OR_MARK.findall(text))


def split_history(
    history: History, max_tokens: int, count_tokens: CountTokens = count_words
) -> tuple[Chunk, ...]:
    """Return the chunks of a history in its order, with ids `HISTORY:SESSION:INDEX`.

    A chunk has at most `max_tokens` tokens if those of its lines add up, unless a speaker's name or
    a header alone is longer: every line holds at least one character of its turn.

    Raises:
        RLRouteError: `max_tokens` is below 1.
    """
    if max_tokens < 1:
        raise RLRouteError(f"chunks: max_tokens {max_tokens}: it must be 1 or more")
    parts: list[tuple[str, list[Piece]]] = []
    for session in history.sessions:
        pieces = [
            Piece(line, turn.id)
            for turn in session.turns
            for line in cut_turn(turn, max_tokens, count_tokens)
        ]
        parts.append((session.when, pieces))
    lines = [
        Piece(line, "")
        for number, document in enumerate(history.documents, start=1)
        for line in cut_document(number, document, max_tokens, count_tokens)
    ]
    parts.append(("", lines))
    return tuple(
        Chunk(
            id=f"{history.id}:{session_index}:{index}",
            text="\n".join(piece.line for piece in pieces),
            when=when,
            turn_ids=tuple(dict.fromkeys(piece.turn_id for piece in pieces if piece.turn_id)),
        )
        for session_index, (when, all_pieces) in enumerate(parts)
        for index, pieces in enumerate(pack_pieces(all_pieces, max_tokens, count_tokens))
    )


def render_turn(speaker: str, text: str, caption: str = "") -> str:
    """Return the line of a turn; line breaks in it become spaces."""
    shared = f" and shared {flatten(caption)}" if caption.strip() else ""
    return f'{flatten(speaker)} said "{flatten(text)}"{shared}'


def read_line(line: str) -> SpokenLine:
    """Return who says what in a line of a chunk; a caption is no part of it."""
    match = LINE.match(line)
    if match is None:
        return SpokenLine("", line)
    return SpokenLine(match["speaker"], match["text"])


def split_sentences(text: str) -> list[str]:
    """Split a text after `.`, `!` and `?` that white space follows."""
    return [sentence for sentence in SENTENCE_END.split(text.strip()) if sentence]


def flatten(text: str) -> str:
    """Return a text in one line, with single spaces."""
    return " ".join(text.split())


def cut_turn(turn: Turn, max_tokens: int, count_tokens: CountTokens) -> list[str]:
    """Return the lines of a turn, more than one where it is too long; the last has the caption."""
    whole = render_turn(turn.speaker, turn.text, turn.caption)
    if count_tokens(whole) <= max_tokens:
        return [whole]

    def fits(text: str) -> bool:
        return count_tokens(render_turn(turn.speaker, text)) <= max_tokens

    texts = list(cut_text(flatten(turn.text), fits))
    lines = [render_turn(turn.speaker, text) for text in texts]
    if turn.caption.strip():
        captioned = render_turn(turn.speaker, texts.pop() if texts else "", turn.caption)
        if count_tokens(captioned) > max_tokens and lines:
            captioned = cut_caption(turn, max_tokens, count_tokens)
            return [*lines, captioned]
        lines = [*lines[:-1], captioned]
    return lines


def cut_caption(turn: Turn, max_tokens: int, count_tokens: CountTokens) -> str:
    """Return a line with as much of a turn's caption as one line takes."""

    def fits(caption: str) -> bool:
        return count_tokens(render_turn(turn.speaker, "", caption)) <= max_tokens

    return render_turn(turn.speaker, "", next(cut_text(flatten(turn.caption), fits)))


def cut_document(
    number: int, document: str, max_tokens: int, count_tokens: CountTokens
) -> list[str]:
    """Return a document under its header, in several lines with that header where it is long."""
    header = f"Document {number}:"

    def fits(text: str) -> bool:
        return count_tokens(f"{header} {text}") <= max_tokens

    lines: list[str] = []
    packed = ""
    for sentence in split_sentences(flatten(document)):
        for part in [sentence] if fits(sentence) else cut_text(sentence, fits):
            longer = f"{packed} {part}".strip()
            if packed and not fits(longer):
                lines.append(f"{header} {packed}")
                longer = part
            packed = longer
    return [*lines, f"{header} {packed}"] if packed else lines


def cut_text(text: str, fits: Callable[[str], bool]) -> Iterator[str]:
    """Yield parts of a text that fit, cut between words where a word fits, else inside it."""
    while text:
        words = text.split(" ")
        count = find_longest(len(words), lambda size: fits(" ".join(words[:size])))  # noqa: B023
        if count:
            part = " ".join(words[:count])
        else:
            word = words[0]
            part = word[: max(1, find_longest(len(word), lambda size: fits(word[:size])))]  # noqa: B023
        yield part
        text = text[len(part) :].lstrip(" ")


def find_longest(length: int, fits: Callable[[int], bool]) -> int:
    """Return the greatest size up to `length` that fits, 0 if none does (by bisection)."""
    low, high = 0, length
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def pack_pieces(
    pieces: Sequence[Piece], max_tokens: int, count_tokens: CountTokens
) -> Iterator[list[Piece]]:
    """Yield runs of pieces whose tokens add up to at most `max_tokens` (a longer piece alone)."""
    packed: list[Piece] = []
    used = 0
    for piece in pieces:
        tokens = count_tokens(piece.line)
        if packed and used + tokens > max_tokens:
            yield packed
            packed, used = [], 0
        packed.append(piece)
        used += tokens
    if packed:
        yield packed
