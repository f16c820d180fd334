"""Reads what Weights & Biases wrote offline, without its own reader: no network, no server."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER, FILE_HEADER = 32768, 7, 7
WRITTEN_SECONDS = 30


def read_records(path: Path) -> Iterator[bytes]:
    """Yield the whole records of an offline file: LevelDB blocks behind a header of the file."""
    content = path.read_bytes()
    assert content[:4] in (b":W&B", b"")
    position, parts = FILE_HEADER, b""
    while position + HEADER <= len(content):
        room = BLOCK - position % BLOCK
        if room < HEADER:
            position += room
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + HEADER])
        if kind == 0:
            position += room
            continue
        if position + HEADER + length > len(content):
            return
        parts += content[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield parts
            parts = b""


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Return the rows that W&B was sent, once all are on disk: its process writes behind ours."""
    from wandb.proto.wandb_internal_pb2 import Record

    paths = list(folder.rglob("*.wandb"))
    assert len(paths) == 1
    limit = time.monotonic() + WRITTEN_SECONDS
    while True:
        records = [Record.FromString(content) for content in read_records(paths[0])]
        if any(record.HasField("exit") for record in records):
            break
        assert time.monotonic() < limit, "W&B did not finish its file"
        time.sleep(0.1)
    return [
        {
            item.key or "/".join(item.nested_key): json.loads(item.value_json)
            for item in record.history.item
        }
        for record in records
        if record.HasField("history")
    ]
