from __future__ import annotations

import hashlib
import os

import pytest

from rlroute.files import atomic_folder, compute_sha256, write_atomic


def test_text_and_bytes_are_written_whole_with_their_folders(tmp_path):
    write_atomic(tmp_path / "a" / "b" / "text", "größer\n")
    write_atomic(tmp_path / "bytes", b"\x00\xff")
    assert (tmp_path / "a" / "b" / "text").read_text(encoding="utf-8") == "größer\n"
    assert (tmp_path / "bytes").read_bytes() == b"\x00\xff"
    assert (tmp_path / "bytes").stat().st_mode & 0o777 == 0o644


def test_a_write_that_fails_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    write_atomic(tmp_path / "file", "old")

    def refuse(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(tmp_path / "file", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_a_folder_appears_whole_and_replaces_the_old_one(tmp_path):
    target = tmp_path / "out"
    for content in ("first", "second"):
        with atomic_folder(target) as folder:
            (folder / content).write_text(content)
            assert folder.parent == target.parent
            assert not (target / content).exists()
        assert [path.name for path in target.iterdir()] == [content]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert target.stat().st_mode & 0o777 == 0o755


def test_a_folder_whose_making_fails_leaves_everything_as_it_was(tmp_path):
    target = tmp_path / "out"
    with atomic_folder(target) as folder:
        (folder / "old").write_text("old")

    def fail() -> None:
        with atomic_folder(target) as folder:
            (folder / "new").write_text("half")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in target.iterdir()] == ["old"]


def test_the_checksum_is_sha256(tmp_path):
    (tmp_path / "file").write_bytes(b"rlroute")
    assert compute_sha256(tmp_path / "file") == hashlib.sha256(b"rlroute").hexdigest()
