"""Answers that were paid once, kept on disk under everything that changes them.

What it is: one SQLite file in write-ahead mode, shared by any number of processes of one machine.
The key of an answer is the SHA-256 of endpoint, served model, texts, temperature and output limit;
above temperature 0 the number of the sample joins it, so each sample is drawn once and kept. The
candidate's id and its prices are no part of it: renaming or repricing pays for nothing again.
Failures are never kept. Prompts are kept as their hash only.

Two processes that ask for one key at once: the first takes a lease and asks the server, the others
wait for what it writes. A key that is written is never paid again; one that is being asked is not
paid twice as long as its process renews its lease. Leases of a process that died run out after
`LEASE_SECONDS`; what it had in flight then is paid again.

What it leaves out: network file systems (write-ahead mode needs shared memory), and durability at
power loss: the last writes may be lost then, the file stays whole.

How to use:
    if (stored := cache.get(key)) is None and cache.claim(key):
        cache.put(key, ask_and_pay())
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlroute.pool.chat import build_body
from rlroute.pool.http import Endpoint
from rlroute.types import Call, RLRouteError

KEY_FORMAT = 1  # part of every key: raise it when an answer comes to depend on something new
LEASE_SECONDS = 20.0
BUSY_SECONDS = 30.0  # how long a process waits for another one's write

SCHEMA = """
CREATE TABLE IF NOT EXISTS replies (
    number INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT UNIQUE NOT NULL, reply TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS leases (
    key TEXT PRIMARY KEY, owner TEXT NOT NULL, expires REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS size (bytes INTEGER NOT NULL);
INSERT INTO size SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM size);
CREATE TRIGGER IF NOT EXISTS grow AFTER INSERT ON replies BEGIN
    UPDATE size SET bytes = bytes + length(CAST(new.reply AS BLOB)); END;
CREATE TRIGGER IF NOT EXISTS shrink AFTER DELETE ON replies BEGIN
    UPDATE size SET bytes = bytes - length(CAST(old.reply AS BLOB)); END;
"""

logger = logging.getLogger(__name__)


def make_key(endpoint: Endpoint, call: Call) -> str:
    """Return the key of the answer to a call: hexadecimal digits, nothing can be read from it."""
    facts = {
        "format": KEY_FORMAT,
        "url": endpoint.url.rstrip("/"),
        "body": build_body(endpoint, call),
        "sample": call.sample if call.temperature > 0 else 0,
    }
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


class ReplyCache:
    """Replies by key, with leases.

    Args:
        path: the file; it is made where there is none.
        max_bytes: how much the stored replies may hold; the oldest go first. The file is somewhat
            larger, for keys and free pages.
        clock: seconds since the epoch; processes that share a file must agree on them.

    Raises:
        RLRouteError: the file is no SQLite database, or cannot be opened.
    """

    def __init__(
        self, path: Path, max_bytes: int = 2**30, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.path, self.max_bytes, self._clock = path, max_bytes, clock
        self._owner = uuid.uuid4().hex
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
            self._turn_on_write_ahead()
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.executescript(f"BEGIN IMMEDIATE;{SCHEMA}COMMIT;")
        except (OSError, sqlite3.Error) as error:
            raise RLRouteError(f"{path}: cannot be used as a cache of replies ({error})") from None

    def _turn_on_write_ahead(self) -> None:
        """Switch the file's mode; SQLite does not wait by itself while another process switches."""
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                self._database.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(0.01)

    def get(self, key: str) -> dict[str, Any] | None:
        """Return what was stored under a key, or None."""
        row = self._database.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def claim(self, key: str) -> bool:
        """Take the lease of a key; False where it is stored by now or another one holds it.

        Raises:
            RLRouteError: the file cannot be written (full disk): better found before paying.
        """
        now = self._clock()
        try:
            done = self._database.execute(
                "INSERT INTO leases SELECT ?, ?, ? WHERE NOT EXISTS "
                "(SELECT 1 FROM replies WHERE key = ?) "
                "ON CONFLICT (key) DO UPDATE SET owner = excluded.owner, "
                "expires = excluded.expires WHERE expires < ?",
                (key, self._owner, now + LEASE_SECONDS, key, now),
            )
        except sqlite3.OperationalError as error:
            raise RLRouteError(f"{self.path}: cannot be written ({error})") from None
        return done.rowcount > 0

    def renew_leases(self) -> None:
        """Prolong the leases that were claimed through this object; call it every few seconds."""
        self._write_lease(
            "UPDATE leases SET expires = ? WHERE owner = ?",
            (self._clock() + LEASE_SECONDS, self._owner),
        )

    def release(self, key: str) -> None:
        """Give a lease back; nothing happens where it is not held."""
        self._write_lease("DELETE FROM leases WHERE key = ? AND owner = ?", (key, self._owner))

    def put(self, key: str, reply: dict[str, Any]) -> None:
        """Store a reply (JSON values only) unless the key has one; the oldest make room for it.

        A reply that cannot be stored (full disk) is not lost: that is logged, and it is paid again
        the next time.
        """
        text = json.dumps(reply)
        try:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                self._database.execute(
                    "INSERT OR IGNORE INTO replies (key, reply) VALUES (?, ?)", (key, text)
                )
                self._evict()
                self._database.execute("COMMIT")
            finally:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
        except sqlite3.OperationalError as error:
            logger.warning("%s: a reply was not stored (%s)", self.path, error)

    def close(self) -> None:
        """Give back what leases are left and close the file."""
        self._write_lease("DELETE FROM leases WHERE owner = ?", (self._owner,))
        self._database.close()

    def _write_lease(self, statement: str, values: tuple[float | str, ...]) -> None:
        """Change leases; where that fails (full disk) they run out by themselves."""
        try:
            self._database.execute(statement, values)
        except sqlite3.OperationalError as error:
            logger.warning("%s: a lease was not written (%s)", self.path, error)

    def _evict(self) -> None:
        """Delete the oldest replies until the rest fits; inside a transaction."""
        excess = self._database.execute("SELECT bytes FROM size").fetchone()[0] - self.max_bytes
        while excess > 0:
            number, size = self._database.execute(
                "SELECT number, length(CAST(reply AS BLOB)) FROM replies ORDER BY number LIMIT 1"
            ).fetchone()
            self._database.execute("DELETE FROM replies WHERE number = ?", (number,))
            excess -= size
