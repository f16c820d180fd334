"""Grades of answers about long histories: token F1 of word stems, whole or part by part.

Both map (answer, gold) to [0, 1] and are pure. A text is read as LoCoMo's script reads it (Maharana
et al., 2024), which BudgetMem uses too: commas and ASCII punctuation vanish ("1,000" is "1000"),
lower case, no a, an, the, and; the words that are left are stemmed by Porter's algorithm.

- `grade_stemmed_f1`: harmonic mean of precision and recall over the stems, counted with repetition.
- `grade_partial_f1`: answer and gold are lists with commas; the mean over the gold's parts of the
  best F1 with a part of the answer. Blank parts are left out.

Yes and no are words like others. The text that the original writes for a failed call grades 0, but
here a failed call has no answer and never gets so far.

What it leaves out: which question is graded how (`rlroute.memory.locomo` and its neighbours), and
judges (`rlroute.memory.judge`).
"""

from __future__ import annotations

import functools
import re
import string
from collections import Counter
from typing import Any

from rlroute.extras import require

ERROR_REPLY = "API Request Error"
NO_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation))
DROPPED_WORDS = re.compile(r"\b(?:a|an|the|and)\b")


@functools.cache
def load_stemmer() -> Any:
    """Return Porter's stemmer.

    Raises:
        RLRouteError: the extra `memory` is not installed.
    """
    return require("snowballstemmer", "memory").stemmer("porter")


@functools.lru_cache(maxsize=65536)
def stem_word(word: str) -> str:
    """Return the stem of a word in lower case."""
    return str(load_stemmer().stemWord(word))


def list_stems(text: str) -> list[str]:
    """Return the stems of a text's words in order, as the module's text says."""
    plain = text.lower().translate(NO_PUNCTUATION)
    return [stem_word(word) for word in DROPPED_WORDS.sub(" ", plain).split()]


def grade_stemmed_f1(answer: str, gold: str) -> float:
    """Return the F1 of the stems of two texts; 0 where either has none."""
    if answer.strip() == ERROR_REPLY:
        return 0.0
    found, wanted = Counter(list_stems(answer)), Counter(list_stems(gold))
    shared = (found & wanted).total()
    return 2 * shared / (found.total() + wanted.total()) if shared else 0.0


def grade_partial_f1(answer: str, gold: str) -> float:
    """Return the mean over the gold's parts of the best F1 with a part of the answer."""
    found, wanted = (
        [part.strip() for part in text.split(",") if part.strip()] for text in (answer, gold)
    )
    best = [max((grade_stemmed_f1(one, part) for one in found), default=0.0) for part in wanted]
    return sum(best) / len(best) if best else 0.0
