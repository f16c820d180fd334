"""What language models wrote, read as scores, notes, a summary or an answer.

What counts is the last text in answer tags; code fences around it are dropped; JSON is taken from
the first `[` to the last `]`, or from `{` to `}`. A reply is well-formed where strict JSON of the
asked shape can be read from it (for a summary: text in tags). Any other is `malformed`, and the
most is made of it, in this order:

    filter   repaired JSON; whole numbers in the text; if these are not as many scores in [0, 10] as
             there are chunks, the first chunks in their order
    extract  repaired JSON; where there is none, the whole text as one note. A list loses what is no
             text; JSON of another shape gives no notes
    summary  the text under `response` of a JSON object, else the whole text

Nothing raises, whatever the text; a malformed reply keeps its question.

What it leaves out: failures of calls, which have no text. Source: BudgetMem (arXiv 2602.06025 and
its authors' code, whose parser loses the question where JSON has another shape; this one does not).

How to use: `read_notes('<answer>["Anna - owns - a cat"]</answer>')`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from rlroute.extras import require
from rlroute.memory.base import Chunk

READING_VERSION = 1  # part of fingerprints: raise it when a reply comes to be read otherwise
HIGHEST_SCORE = 10
MAX_REPAIR_CHARACTERS = 4_000  # time to repair JSON can grow with the square of its length

TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
FENCE = re.compile(r"^\s*```[\w-]*|```\s*$")
NUMBER = re.compile(r"(?<![\w.-])\d{1,2}(?![\w.])")

Output = TypeVar("Output")
NOTHING = object()  # no JSON could be read


@dataclass(frozen=True)
class Reading(Generic[Output]):
    """What a reply says; `malformed` where it did not say it as asked."""

    output: Output
    malformed: bool = False


def read_filter(text: str, chunks: Sequence[Chunk], keep: int) -> Reading[tuple[Chunk, ...]]:
    """Return the `keep` chunks of the highest scores, best first; ties in their order."""
    scores, malformed = _read_scores(text, len(chunks))
    if scores is None:
        return Reading(tuple(chunks[:keep]), malformed=True)
    order = sorted(range(len(chunks)), key=lambda place: -scores[place])
    return Reading(tuple(chunks[place] for place in order[:keep]), malformed)


def read_notes(text: str) -> Reading[tuple[str, ...]]:
    """Return the notes of an extractor: one line each, none empty, none twice."""
    content, _ = find_answer(text)
    found, strict = _read_json(content)
    if found is NOTHING:
        return Reading(_clean([content]), malformed=True)
    if not isinstance(found, list):
        return Reading((), malformed=True)
    lines = [item for item in found if isinstance(item, str)]
    return Reading(_clean(lines), malformed=not strict or len(lines) < len(found))


def read_summary(text: str) -> Reading[str]:
    """Return the text of a summary."""
    content, tagged = find_answer(text)
    if tagged:
        return Reading(_drop_surrogates(content), malformed=not content)
    found, _ = _read_json(content)
    response = found.get("response") if isinstance(found, dict) else None
    chosen = response.strip() if isinstance(response, str) else content
    return Reading(_drop_surrogates(chosen), malformed=True)


def read_answer(text: str) -> str:
    """Return the answer of the answering model: the text in answer tags, else all of it."""
    return _drop_surrogates(find_answer(text)[0])


def find_answer(text: str) -> tuple[str, bool]:
    """Return what stands in the last pair of answer tags, without fences, and whether it is closed.

    Without a pair it is what follows the last opening tag (the reply may have been cut), or else
    the whole text.
    """
    tags = list(TAG.finditer(text))
    for first, second in zip(reversed(tags[:-1]), reversed(tags[1:]), strict=True):
        if not first[1] and second[1]:
            return _strip_fences(text[first.end() : second.start()]), True
    opening = next((tag for tag in reversed(tags) if not tag[1]), None)
    return _strip_fences(text[0 if opening is None else opening.end() :]), False


def _read_scores(text: str, count: int) -> tuple[list[float] | None, bool]:
    """Return a score per chunk, None where the reply has no such; and whether it is malformed."""
    content, _ = find_answer(text)
    found, strict = _read_json(content)
    scores = _check_scores(found, count)
    if scores is None and not strict:
        scores = _check_scores([int(number) for number in NUMBER.findall(content)], count)
    return scores, not strict


def _check_scores(found: Any, count: int) -> list[float] | None:
    """Return a list of `count` numbers in [0, 10], None where it is not that."""
    if not isinstance(found, list) or len(found) != count:
        return None
    fits = all(type(item) in (int, float) and 0 <= item <= HIGHEST_SCORE for item in found)
    return found if fits else None


def _read_json(content: str) -> tuple[Any, bool]:
    """Return the JSON in a text, or NOTHING, and whether it was read without repair."""
    for left, right in ("[]", "{}"):
        start, end = content.find(left), content.rfind(right)
        if start < 0:
            continue
        piece = content[start : end + 1] if end > start else content[start:]
        try:
            return json.loads(piece), True
        except (ValueError, RecursionError):
            return _repair_json(piece, list if left == "[" else dict), False
    return NOTHING, False


def _repair_json(piece: str, kind: type) -> Any:
    """Return repaired JSON of the kind that its first bracket announces, or NOTHING."""
    if len(piece) > MAX_REPAIR_CHARACTERS:
        return NOTHING
    try:
        found = require("json_repair", "memory").loads(piece, skip_json_loads=True)
    except (ValueError, RecursionError):
        return NOTHING
    return found if isinstance(found, kind) else NOTHING


def _strip_fences(text: str) -> str:
    """Return a text without code fences at its ends."""
    return FENCE.sub("", text.strip()).strip()


def _clean(lines: Sequence[str]) -> tuple[str, ...]:
    """Return lines with single blanks, the empty and the repeated ones left out."""
    cleaned = (" ".join(_drop_surrogates(line).split()) for line in lines)
    return tuple(dict.fromkeys(line for line in cleaned if line))


def _drop_surrogates(text: str) -> str:
    """Return a text that can be written as UTF-8: JSON may hold halves of characters."""
    return text.encode("utf-8", "replace").decode("utf-8")
