"""The journal of a collection: every finished call, written down before anything else happens.

What it is: an append-only file of sealed lines (`rlroute.pool.sealed_lines`), keyed by a hash of
everything that decides an answer. The kinds of lines:

- start: the command was given, once or again;
- begin: a call that costs money is about to be sent, with the most that it may cost;
- end: its reply (an answer, or a failure that another start would not mend);
- void: it was given up (a cap, an interruption) after so much money;
- forget: its failure is to be asked again.

A begin without an end or void was in flight when the process died: nobody knows whether it was
paid, so its upper bound is counted as spent. So are requests whose bill is unknown (ends and voids
carry the ledger's sum of them in this start). A cap thus holds over all starts together.

What is guaranteed: a line survives the end of the process as soon as it is written; ends are
waited for until they are on the disk (many in one wait), so they survive the end of the machine.

What it leaves out: the prompts, which the queries hold, and keys.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlroute.pool.cassette import dump_reply
from rlroute.pool.sealed_lines import LineWriter
from rlroute.types import Reply


class Journal:
    """The finished calls of a collection; see the module.

    Raises:
        RLRouteError: the file is damaged, cannot be opened, or another collection writes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.replies: dict[str, dict[str, Any]] = {}
        self._paid: list[float] = []
        self._open: dict[str, list[float]] = {}
        self._uncertain: list[float] = []  # one sum for every start
        self._lines = LineWriter(path)
        self._lock = asyncio.Lock()
        self._written = self._synced = 0
        for record in self._lines.read_and_repair():
            self._apply(record)
        self._write([{"event": "start"}])

    @property
    def paid_usd(self) -> float:
        """What all calls of all starts are known to have cost."""
        return math.fsum(self._paid)

    @property
    def unknown_usd(self) -> float:
        """The most that was paid besides: calls in flight, and requests with an unknown bill."""
        in_flight = (usd for held in self._open.values() for usd in held)
        return math.fsum([*self._uncertain, *in_flight])

    @property
    def in_flight(self) -> int:
        """How many calls began and neither ended nor were given up."""
        return sum(len(held) for held in self._open.values())

    def begin(self, bounds: Mapping[str, float]) -> None:
        """Write that calls are about to be sent: key -> the most that it may cost in USD."""
        self._write([{"event": "begin", "key": k, "usd": usd} for k, usd in bounds.items()])

    async def end(
        self, replies: Mapping[str, Reply], paid_usd: Mapping[str, float], uncertain_usd: float
    ) -> None:
        """Write what calls replied and cost, and wait until it is on the disk."""
        sums = {"event": "end", "uncertain": uncertain_usd}
        self._write(
            [
                sums | {"key": key, "usd": paid_usd[key], "reply": dump_reply(reply)}
                for key, reply in replies.items()
            ]
        )
        await self._sync()

    def void(self, paid_usd: Mapping[str, float], uncertain_usd: float) -> None:
        """Write that calls were given up, and what they cost all the same."""
        sums = {"event": "void", "uncertain": uncertain_usd}
        self._write([sums | {"key": key, "usd": usd} for key, usd in paid_usd.items()])

    def forget_failures(self) -> int:
        """Forget the failed calls, so that they are asked again; return how many they were."""
        failed = [key for key, reply in self.replies.items() if reply["failure"] is not None]
        self._write([{"event": "forget", "key": key} for key in failed])
        return len(failed)

    def close(self) -> None:
        """Close the file."""
        self._lines.close()

    def _write(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Append records, and know them from now on."""
        self._lines.write(records)
        self._written += 1
        for record in records:
            self._apply(record)

    async def _sync(self) -> None:
        """Wait for the disk; those who wait at the same time wait once."""
        mine = self._written
        async with self._lock:
            if self._synced < mine:
                reached = self._written
                await asyncio.to_thread(self._lines.sync)
                self._synced = reached

    def _apply(self, record: Mapping[str, Any]) -> None:
        """Take one line into account."""
        match record["event"]:
            case "start":
                self._uncertain.append(0.0)
            case "begin":
                self._open.setdefault(record["key"], []).append(record["usd"])
            case "forget":
                self.replies.pop(record["key"], None)
            case event:
                key = record["key"]
                if self._open.get(key):
                    self._open[key].pop()
                self._paid.append(record["usd"])
                self._uncertain[-1] = record["uncertain"]
                if event == "end":
                    self.replies[key] = record["reply"]
