"""Splits of a query set by hash, and the check that no text stands on two sides.

What it is: a query's split depends on its text and the seed alone, so it stays when rows are
shuffled, added or removed, and two spellings that differ in blanks or case share a split.

What it leaves out: near-duplicates beyond blanks and case, and holding out whole tasks.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from rlroute.types import SPLITS, RLRouteError

DEFAULT_FRACTIONS = (0.7, 0.1, 0.2)


def normalise_text(text: str) -> str:
    """Return `text` with runs of blanks as one space and case folded; what counts as the same."""
    return " ".join(text.split()).casefold()


def assign_splits(
    texts: Sequence[str],
    fractions: tuple[float, float, float] = DEFAULT_FRACTIONS,
    seed: int = 0,
) -> npt.NDArray[np.str_]:
    """Return the split of each text, `fractions` being the expected shares of train, val and test.

    Raises:
        RLRouteError: a fraction is negative or they do not sum to 1.
    """
    if min(fractions) < 0 or not math.isclose(sum(fractions), 1.0, abs_tol=1e-9):
        raise RLRouteError(f"split fractions {fractions}: must be at least 0 and sum to 1")
    draw_Q = np.array([hash_to_unit(text, seed) for text in texts], dtype=np.float64)
    bounds = np.cumsum(fractions)[:2]
    return np.array(SPLITS)[np.searchsorted(bounds, draw_Q, side="right")]


def hash_to_unit(text: str, seed: int) -> float:
    """Return a number in [0, 1) that depends on the normalised text and the seed alone."""
    digest = hashlib.sha256(f"{seed}:{normalise_text(text)}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53  # 53 bits: exact, so never rounds to 1


def sample_texts(texts: Collection[str], count: int, seed: int) -> Collection[str]:
    """Return at most `count` of distinct texts; whether one is chosen depends on texts alone."""
    if len(texts) <= count:
        return texts
    return heapq.nsmallest(count, texts, key=lambda text: (hash_to_unit(text, seed), text))


def find_leak(texts: Sequence[str], splits: Sequence[str]) -> tuple[int, int] | None:
    """Return the first two positions with one normalised text in two splits, or None."""
    first: dict[str, int] = {}
    for index, text in enumerate(texts):
        earlier = first.setdefault(normalise_text(text), index)
        if splits[earlier] != splits[index]:
            return earlier, index
    return None
