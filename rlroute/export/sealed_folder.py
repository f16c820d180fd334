"""A folder with a manifest that vouches for every file in it: bundle.json.

bundle.json holds size and SHA-256 of every other file, and a checksum over the rest of itself. A
folder is read whole or refused in one line: a file that it lists must be there as it was written, a
file that it does not list is refused, except hidden ones, which are never read. Names leave no room
for code or a pickle. Checksums find damage and careless edits; they do not say who wrote it.

What it leaves out: what the manifest says besides (`step_bundle`, `tier_bundle`).

How to use: `write_atomic(folder / BUNDLE_FILE, seal(content))` at the end; `read_sealed(...)`, then
`check_sealed(folder, manifest.files)`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from rlroute.data.encoders import read_json
from rlroute.export.bundle import CHECKSUM_KEY, FileEntry, compute_checksum, list_files
from rlroute.files import write_atomic
from rlroute.types import RLRouteError

BUNDLE_FILE = "bundle.json"
ENDINGS = r"(json|safetensors|txt|jinja|model|md|yaml)"


# --- Writing --------------------------------------------------------------------------------------


def seal(content: Mapping[str, Any]) -> str:
    """Return a manifest with its checksum, as text."""
    sealed = {**content, CHECKSUM_KEY: compute_checksum(content)}
    return json.dumps(sealed, indent=1, allow_nan=False) + "\n"


def describe_files(folder: Path) -> dict[str, Any]:
    """Return size and SHA-256 of every file in a folder, as a manifest lists them."""
    return {name: describe_file(folder / name) for name in list_files(folder)}


def describe_file(path: Path) -> dict[str, Any]:
    """Return size and SHA-256 of a file, which may be larger than the memory.

    Raises:
        RLRouteError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return {"bytes": os.fstat(file.fileno()).st_size, "sha256": digest}
    except OSError as error:
        raise RLRouteError(f"{path}: cannot be read ({error.strerror})") from None


def open_up(folder: Path) -> None:
    """Let everybody read the files: safetensors makes its own private to the owner."""
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def check_replaceable(
    folder: Path, what: str, list_listed: Callable[[Path], Iterable[str]]
) -> None:
    """Check that nothing but a folder of this kind would be lost if `folder` were replaced.

    `list_listed` returns the files that its manifest lists, or raises RLRouteError.

    Raises:
        RLRouteError: it is a file, or holds something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / BUNDLE_FILE).is_file():
        raise RLRouteError(f"{folder}: holds no exported {what}; name a new folder")
    other = sorted(set(list_files(folder, hidden=True)) - {BUNDLE_FILE, *list_listed(folder)})
    if other:
        raise RLRouteError(
            f"{folder}: holds '{other[0]}', which is no part of the router there; name a new folder"
        )


# --- Reading --------------------------------------------------------------------------------------


def read_sealed(folder: Path, what: str, version: int) -> dict[str, Any]:
    """Return the content of bundle.json without its checksum; `what` says what should lie there.

    Raises:
        RLRouteError: it is missing, torn, changed, or of a version that this rlroute cannot read.
    """
    path = folder / BUNDLE_FILE
    if not path.is_file():
        raise RLRouteError(f"{folder}: no exported {what} lies here ({path.name} is missing)")
    content = read_json(path)
    if not isinstance(content, dict):
        raise RLRouteError(f"{path}: not the manifest of an exported {what}")
    found = content.get("format_version")
    if found != version:
        newer = isinstance(found, int) and found > version
        hint = "; it was made by a newer rlroute: update this one" if newer else ""
        raise RLRouteError(f"{path}: format_version {found!r}, this rlroute reads {version}{hint}")
    if content.pop(CHECKSUM_KEY, None) != compute_checksum(content):
        raise RLRouteError(f"{path}: checksum differs: it was changed after it was written")
    return content


def check_sealed(folder: Path, files: Mapping[str, FileEntry]) -> None:
    """Check that a folder holds the listed files as they were written, and no others.

    Raises:
        RLRouteError: it does not.
    """
    for name, entry in files.items():
        check_file(folder / name, entry)
    unlisted = sorted(set(list_files(folder)) - {BUNDLE_FILE, *files})
    if unlisted:
        raise RLRouteError(f"{folder / unlisted[0]}: is not listed in {BUNDLE_FILE}")


def check_file(path: Path, entry: FileEntry) -> None:
    """Raise RLRouteError where a listed file is missing, torn or changed."""
    if not path.is_file():
        raise RLRouteError(f"{path}: is missing, though {BUNDLE_FILE} lists it")
    found = describe_file(path)
    if found["bytes"] != entry.bytes:
        raise RLRouteError(f"{path}: torn: {found['bytes']} bytes instead of {entry.bytes}")
    if found["sha256"] != entry.sha256:
        raise RLRouteError(f"{path}: checksum differs: it was changed after it was written")


def check_names(files: Iterable[str], subfolder: str, needed: Iterable[str]) -> None:
    """Check the names that a manifest lists, and that what is needed is among them.

    A plain name with an ending of data, in the folder itself or in `subfolder`, cannot lead out, be
    hidden, or hold code or a pickle.

    Raises:
        ValueError: a name is another, or one is not listed.
    """
    pattern = re.compile(rf"({re.escape(subfolder)}/)?[A-Za-z0-9_][A-Za-z0-9_.-]*\.{ENDINGS}")
    listed = set(files)
    for name in files:
        if not pattern.fullmatch(name) or name == BUNDLE_FILE:
            raise ValueError(f"files: {name!r} is no name that a bundle may list")
    for name in needed:
        if name not in listed:
            raise ValueError(f"files: '{name}' is not listed")


# --- Weights --------------------------------------------------------------------------------------


def write_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write weights as safetensors.

    Raises:
        RLRouteError: not all of them are finite.
    """
    kept = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    check_finite(kept, path)
    write_atomic(path, save(kept))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the weights of a file.

    Raises:
        RLRouteError: it is torn or no such file, or not all of them are finite.
    """
    try:
        weights: dict[str, Tensor] = load_file(path)
    except SafetensorError:
        raise RLRouteError(f"{path}: torn or no safetensors file") from None
    check_finite(weights, path)
    return weights


def check_finite(weights: Mapping[str, Tensor], path: Path) -> None:
    """Raise RLRouteError where a weight is no finite number."""
    for name, value in weights.items():
        if not value.isfinite().all():
            raise RLRouteError(f"{path}: '{name}' holds a value that is not a finite number")
