"""The one door through which anything is asked: `await pool.ask_many(calls)` -> replies.

Replies come in the order of the calls, one each: an answer with its price or a typed failure. What
waits, retries, caches or charges does so behind this interface; environments never see it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rlroute.types import Call, Reply


class Pool(Protocol):
    """What answers for the candidates of a problem."""

    async def ask_many(self, calls: Sequence[Call]) -> list[Reply]:
        """Return one reply per call, in the same order."""
