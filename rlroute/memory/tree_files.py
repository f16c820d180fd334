"""A `TierTree` as a folder: `tree.json` (questions, modules, fingerprints), `tree.safetensors`.

The questions lie in the folder in full, so it can be opened on its own; whoever has questions,
pipeline or encoder of their own says so to `load_tree`, which refuses a tree of others.

What it leaves out: texts of modules, see `rlroute.memory.tree`.

How to use: `save_tree(tree, folder)`, `load_tree(folder, fingerprint=pipeline.facts.fingerprint)`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rlroute.config import StrictModel, parse_config
from rlroute.data.encoders import read_bytes, read_json
from rlroute.files import atomic_folder, write_atomic
from rlroute.memory.base import MemoryQuestion
from rlroute.memory.outcomes import PipelineFacts
from rlroute.memory.tree import TREE_ARRAYS, TierTree
from rlroute.types import RLRouteError

FORMAT_VERSION = 1
HEADER_FILE = "tree.json"
ARRAYS_FILE = "tree.safetensors"


class TreeHeader(StrictModel):
    """What tree.json holds."""

    format_version: int
    encoder_fingerprint: str
    facts: PipelineFacts
    questions: tuple[MemoryQuestion, ...]


def save_tree(tree: TierTree, folder: Path) -> None:
    """Write a tree into `folder`, all of it or nothing; what stood there goes."""
    from safetensors.numpy import save

    header = {
        "format_version": FORMAT_VERSION,
        "encoder_fingerprint": tree.encoder_fingerprint,
        "facts": asdict(tree.facts),
        "questions": [asdict(question) for question in tree.questions],
    }
    arrays = {name: np.ascontiguousarray(getattr(tree, name)) for name in TREE_ARRAYS}
    with atomic_folder(folder) as temporary:
        write_atomic(temporary / ARRAYS_FILE, save(arrays))
        write_atomic(temporary / HEADER_FILE, json.dumps(header, indent=1) + "\n")


def load_tree(
    folder: Path,
    *,
    questions: Sequence[MemoryQuestion] | None = None,
    fingerprint: str | None = None,
    encoder_fingerprint: str | None = None,
) -> TierTree:
    """Read what `save_tree` wrote; what is given besides must be what the tree was made of.

    Raises:
        RLRouteError: a file is missing, torn or newer than this version; the arrays do not fit the
            header; or the tree was made of other questions, another pipeline or another encoder.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    source = folder / HEADER_FILE
    data = read_json(source)
    version = data.get("format_version") if isinstance(data, dict) else None
    if version != FORMAT_VERSION:
        raise RLRouteError(
            f"{source}: format_version {version!r} cannot be read (this version of rlroute reads "
            f"{FORMAT_VERSION})"
        )
    header = parse_config(TreeHeader, data, str(source))
    try:
        arrays = load(read_bytes(folder / ARRAYS_FILE))
    except SafetensorError:
        raise RLRouteError(f"{folder / ARRAYS_FILE}: torn or no safetensors file") from None
    check_arrays(header, arrays, folder / ARRAYS_FILE)
    check_origin(header, folder, questions, fingerprint, encoder_fingerprint)
    return TierTree(
        facts=header.facts,
        questions=header.questions,
        encoder_fingerprint=header.encoder_fingerprint,
        **{name: arrays[name] for name in TREE_ARRAYS},
    )


def list_shapes(facts: PipelineFacts, questions: int, width: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes that the arrays of a tree must have."""
    filters, *counts, _ = facts.tier_counts
    extractors = (questions, filters, len(counts), max(counts))
    return {
        "query_QE": (questions, width),
        "retrieved_QE": (questions, width),
        "filtered_QKE": (questions, filters, width),
        "notes_QKXNE": (*extractors, width),
        "has_notes_QKXN": extractors,
        "filter_cost_QK": (questions, filters),
        "extract_cost_QKXN": extractors,
        **dict.fromkeys(
            ("summary_cost_QL", "answer_cost_QL", "leaf_score_QL"), (questions, facts.leaves)
        ),
    }


def check_arrays(header: TreeHeader, arrays: Mapping[str, npt.NDArray[Any]], source: Path) -> None:
    """Refuse arrays that do not fit the header.

    Raises:
        RLRouteError: one is missing, or has another shape or type.
    """
    if set(arrays) != set(TREE_ARRAYS):
        raise RLRouteError(f"{source}: holds other arrays than a tree's ({', '.join(TREE_ARRAYS)})")
    width = arrays["query_QE"].shape[-1] if arrays["query_QE"].ndim else 0
    for name, shape in list_shapes(header.facts, len(header.questions), width).items():
        found = arrays[name]
        if found.shape != shape or found.dtype != TREE_ARRAYS[name]:
            raise RLRouteError(
                f"{source}: {name} is {found.dtype} {found.shape}, the header asks for "
                f"{np.dtype(TREE_ARRAYS[name])} {shape}"
            )


def check_origin(
    header: TreeHeader,
    folder: Path,
    questions: Sequence[MemoryQuestion] | None,
    fingerprint: str | None,
    encoder_fingerprint: str | None,
) -> None:
    """Refuse a tree that was made of something else than what is given.

    Raises:
        RLRouteError: questions, pipeline or encoder differ.
    """
    advice = "enumerate it anew, or name another folder"
    if questions is not None and tuple(questions) != header.questions:
        raise RLRouteError(
            f"{folder}: the tree was made of other questions ({len(header.questions)} there, "
            f"{len(questions)} here); {advice}"
        )
    for what, asked, found in (
        ("pipeline", fingerprint, header.facts.fingerprint),
        ("encoder", encoder_fingerprint, header.encoder_fingerprint),
    ):
        if asked is not None and asked != found:
            raise RLRouteError(
                f"{folder}: the tree was made with another {what} (fingerprint {found[:12]} "
                f"there, {asked[:12]} here); {advice}"
            )
