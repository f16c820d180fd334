"""Append-only JSONL whose lines carry a checksum: what a crash tore off is seen and dropped.

A line is the first 16 hexadecimal digits of the SHA-256 of its JSON, a space, and the JSON. A
process that is killed, or a disk that is full, can only tear the end of the file: an end that does
not check out is cut off. A damaged line with good ones after it is something else, and an error.

What it leaves out: what the lines mean (`rlroute.pool.cassette`, `rlroute.collection.journal`).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlroute.types import RLRouteError

DIGITS = 16


def seal_line(record: Mapping[str, Any]) -> bytes:
    """Return a record as one line with its checksum."""
    text = json.dumps(record, ensure_ascii=True, sort_keys=True).encode()
    return hashlib.sha256(text).hexdigest()[:DIGITS].encode() + b" " + text + b"\n"


def open_line(line: bytes) -> dict[str, Any] | None:
    """Return the record of a line without its newline; None where the checksum does not fit."""
    seal, _, text = line.partition(b" ")
    if hashlib.sha256(text).hexdigest()[:DIGITS].encode() != seal:
        return None
    record = json.loads(text)
    return record if isinstance(record, dict) else None


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the records of a file and the number of bytes that they fill, without a torn end.

    Raises:
        RLRouteError: the file cannot be read, or a damaged line has good ones after it.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RLRouteError(f"{path}: cannot be read ({error.strerror})") from None
    records: list[dict[str, Any]] = []
    good_bytes, damaged = 0, 0
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):  # the rest has no newline
        record = open_line(line)
        if record is None:
            damaged = damaged or number
        elif damaged:
            raise RLRouteError(
                f"{path}, line {damaged}: damaged, with good lines after it; delete the line "
                "to have its call asked again"
            )
        else:
            records.append(record)
            good_bytes += len(line) + 1
    return records, good_bytes


def _sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


class LineWriter:
    """Appends sealed lines to a file that no other process may write meanwhile.

    A line stands in the file when `write` returns, so it survives the end of this process; `sync`
    makes it survive the end of the machine.

    Raises:
        RLRouteError: another process writes the file, or it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            _sync_folder(path.parent)
        except OSError as error:
            raise RLRouteError(f"{path}: cannot be written ({error.strerror})") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise RLRouteError(f"{path}: another process is writing it; wait for it") from None

    def read_and_repair(self) -> list[dict[str, Any]]:
        """Return the records that the file holds, having cut off a torn end."""
        records, good_bytes = read_lines(self.path)
        os.ftruncate(self._file, good_bytes)
        return records

    def write(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Append records.

        Raises:
            RLRouteError: the disk is full or gave another fault; what was written stays.
        """
        data = b"".join(seal_line(record) for record in records)
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            hint = "; make room and start again" if error.errno == errno.ENOSPC else ""
            raise RLRouteError(f"{self.path}: cannot write ({error.strerror}){hint}") from None

    def sync(self) -> None:
        """Wait until what was written is on the disk; RLRouteError where it cannot be."""
        try:
            os.fsync(self._file)
        except OSError as error:
            raise RLRouteError(f"{self.path}: cannot write ({error.strerror})") from None

    def close(self) -> None:
        """Close the file and let other processes write it."""
        os.close(self._file)
