"""An exported router as a folder: nothing but safetensors, JSON, YAML and Markdown.

    manifest.json        everything but the weights, and size and SHA-256 of every other file
    policy.safetensors   weights of the policy
    encoder/             what `rlroute.data.encoders.load_encoder` reads
    MODEL_CARD.md        for people
    recipe.yaml          the resolved recipe of the run

The manifest carries a checksum over the rest of itself. A folder is read whole or refused in one
line: a file that the manifest lists must be there as it was written, a file that it does not list
is refused, except hidden ones (a name that starts with a dot), which are never read. Checksums find
damage and careless edits; they do not say who wrote the folder. Nothing in it is run.

What it leaves out: the decision itself (`rlroute.router`) and the text of the card
(`rlroute.export.model_card`).

How to use: `write_bundle(contents, Path("my-router"))`, `read_bundle(Path("my-router"))`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

import rlroute
from rlroute.config import StrictModel, parse_config
from rlroute.data.candidate_files import (
    CandidateEntries,
    ScaleEntry,
    check_profiles,
    dump_candidates,
    dump_scale,
    parse_candidates,
    parse_scale,
)
from rlroute.data.encoders import (
    ENCODER_FILE,
    Encoder,
    dump_json,
    load_encoder,
    read_bytes,
    read_json,
)
from rlroute.data.routing_data import PRICE_COLUMNS, FeatureScale
from rlroute.data.users import check_biases
from rlroute.export.summary import TrainingSummary
from rlroute.export.wishes import CostWeightRange, PreferencesEntry
from rlroute.files import atomic_folder, write_atomic
from rlroute.policies.mlp import ScorerConfig
from rlroute.policies.weights import build_scorer
from rlroute.types import Candidate, RLRouteError

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
WEIGHTS_FILE = "policy.safetensors"
ENCODER_FOLDER = "encoder"
CARD_FILE = "MODEL_CARD.md"
RECIPE_FILE = "recipe.yaml"
REQUIRED_FILES = (WEIGHTS_FILE, CARD_FILE, RECIPE_FILE, f"{ENCODER_FOLDER}/{ENCODER_FILE}")
CHECKSUM_KEY = "manifest_sha256"

# What the columns of the candidate features are, in order; see `routing_data.describe_candidate`.
FEATURE_LAYOUT = (
    "mean_score",
    "mean_cost",
    "log10_prices",
    "cluster_score_deviations",
    "cluster_log_cost_ratios",
)

# A plain name, in the folder itself or in encoder/: it cannot lead out, nor be hidden.
FILE_NAME = re.compile(rf"({ENCODER_FOLDER}/)?[A-Za-z0-9_][A-Za-z0-9_.-]*")
SHA256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True, eq=False)
class BundleContents:
    """Everything that makes a router, and what was trained on what.

    `summary` has the shape of `rlroute.export.summary.TrainingSummary`, `recipe_yaml` is the
    resolved recipe with secrets redacted (`rlroute.config.dump_config`).
    """

    scorer: ScorerConfig
    weights: Mapping[str, Tensor]
    encoder: Encoder
    candidates: tuple[Candidate, ...]
    scale: FeatureScale
    cost_weight_min: float
    cost_weight_max: float
    summary: dict[str, Any]
    recipe_yaml: str
    preferences: PreferencesEntry | None = None


class FileEntry(StrictModel):
    """Size in bytes and SHA-256 of a file of the bundle."""

    bytes: int = Field(ge=0)
    sha256: SHA256


class EncoderEntry(StrictModel):
    """The encoder that the policy learnt with."""

    kind: str
    dimension: int = Field(ge=1)
    fingerprint: SHA256


class FeaturesEntry(StrictModel):
    """What the columns of the candidate features are, and their scale."""

    layout: tuple[str, ...]
    scale: ScaleEntry


class Manifest(StrictModel):
    """What manifest.json holds besides its own checksum."""

    format_version: int
    rlroute_version: str
    candidates: CandidateEntries
    encoder: EncoderEntry
    features: FeaturesEntry
    cost_weight: CostWeightRange
    policy: ScorerConfig
    summary: TrainingSummary
    files: dict[str, FileEntry]
    preferences: PreferencesEntry | None = None

    @model_validator(mode="after")
    def check_files(self) -> Manifest:
        """Refuse file names that could lead out of the folder, and a list that lacks a file."""
        for name in self.files:
            if not FILE_NAME.fullmatch(name) or name == MANIFEST_FILE:
                raise ValueError(f"files: {name!r} is no name that a bundle may list")
        for name in REQUIRED_FILES:
            if name not in self.files:
                raise ValueError(f"files: '{name}' is not listed")
        return self


# --- Writing --------------------------------------------------------------------------------------


def write_bundle(contents: BundleContents, folder: Path) -> None:
    """Write a router to a folder, whole or not at all; the same router gives the same bytes.

    A folder that is empty or holds nothing but a bundle is replaced.

    Raises:
        RLRouteError: the parts do not fit together, the folder holds something else, or it cannot
            be written.
    """
    from rlroute.export.model_card import render_card

    folder = Path(os.path.abspath(folder))
    check_replaceable(folder)
    check_contents(contents, folder)
    parse_config(TrainingSummary, contents.summary, f"{folder}: summary")
    weights = {name: value.detach().cpu().contiguous() for name, value in contents.weights.items()}
    try:
        with atomic_folder(folder) as temporary:
            write_atomic(temporary / WEIGHTS_FILE, save(weights))
            contents.encoder.save(temporary / ENCODER_FOLDER)
            write_atomic(temporary / CARD_FILE, render_card(contents))
            write_atomic(temporary / RECIPE_FILE, contents.recipe_yaml)
            write_atomic(temporary / MANIFEST_FILE, format_manifest(contents, temporary))
    except OSError as error:
        raise RLRouteError(f"{folder}: cannot be written ({error.strerror})") from None


def format_manifest(contents: BundleContents, folder: Path) -> str:
    """Return manifest.json for contents whose other files lie in `folder`."""
    content = {
        "format_version": FORMAT_VERSION,
        "rlroute_version": rlroute.__version__,
        "candidates": dump_candidates(contents.candidates),
        "encoder": {
            "kind": contents.encoder.kind,
            "dimension": contents.encoder.dimension,
            "fingerprint": contents.encoder.fingerprint(),
        },
        "features": {"layout": FEATURE_LAYOUT, "scale": dump_scale(contents.scale)},
        "cost_weight": {"min": contents.cost_weight_min, "max": contents.cost_weight_max},
        "policy": contents.scorer.model_dump(mode="json"),
        "summary": contents.summary,
        "files": {name: describe_file(folder / name) for name in list_files(folder)},
    }
    if contents.preferences is not None:
        content["preferences"] = contents.preferences.model_dump(mode="json")
    parse_config(Manifest, content, f"{folder.name}/{MANIFEST_FILE}")
    content[CHECKSUM_KEY] = compute_checksum(content)
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def compute_checksum(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a manifest without its checksum, as canonical JSON."""
    rest = {key: value for key, value in content.items() if key != CHECKSUM_KEY}
    return hashlib.sha256(dump_json(rest)).hexdigest()


def describe_file(path: Path) -> dict[str, Any]:
    """Return size and SHA-256 of a file."""
    data = read_bytes(path)
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def list_files(folder: Path, *, hidden: bool = False) -> list[str]:
    """Return the names of all files below `folder`, relative to it and sorted."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
    return sorted(
        path.as_posix()
        for path in paths
        if hidden or not any(part.startswith(".") for part in path.parts)
    )


def check_replaceable(folder: Path) -> None:
    """Check that nothing but a bundle would be lost if `folder` were replaced.

    Raises:
        RLRouteError: it is a file, or holds something else.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise RLRouteError(f"{folder}: is a file; name a new folder")
    if not any(folder.iterdir()):
        return
    if not (folder / MANIFEST_FILE).is_file():
        raise RLRouteError(f"{folder}: holds files but no exported router; name a new folder")
    listed = read_manifest(folder).files
    other = sorted(set(list_files(folder, hidden=True)) - {MANIFEST_FILE, *listed})
    if other:
        raise RLRouteError(
            f"{folder}: holds '{other[0]}', which is no part of the router there; name a new folder"
        )


# --- Reading --------------------------------------------------------------------------------------


def read_bundle(folder: Path, *, model_folder: Path | None = None) -> BundleContents:
    """Read a router and check that every part is as it was written.

    `model_folder` says where the model of a `path` encoder lies on this machine, should it have
    moved.

    Raises:
        RLRouteError: no router lies there, it was made by a newer version, a file is missing, torn,
            changed or not listed, the parts do not fit together, or the encoder cannot be had.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    files = {name: read_file(folder / name, entry) for name, entry in manifest.files.items()}
    unlisted = sorted(set(list_files(folder)) - {MANIFEST_FILE, *files})
    if unlisted:
        raise RLRouteError(f"{folder / unlisted[0]}: is not listed in {MANIFEST_FILE}")
    try:
        weights = load(files[WEIGHTS_FILE])
    except SafetensorError:
        raise RLRouteError(f"{folder / WEIGHTS_FILE}: torn or no safetensors file") from None
    encoder = load_encoder(folder / ENCODER_FOLDER, model_folder=model_folder)
    if encoder.fingerprint() != manifest.encoder.fingerprint:
        raise RLRouteError(
            f"{folder / ENCODER_FOLDER}: is not the encoder that the policy learnt with "
            f"(fingerprint {encoder.fingerprint()[:12]} instead of "
            f"{manifest.encoder.fingerprint[:12]})"
        )
    source = str(folder / MANIFEST_FILE)
    data = manifest.model_dump(mode="json")
    contents = BundleContents(
        scorer=manifest.policy,
        weights=weights,
        encoder=encoder,
        candidates=parse_candidates(data["candidates"], source),
        scale=parse_scale(data["features"]["scale"], source),
        cost_weight_min=manifest.cost_weight.min,
        cost_weight_max=manifest.cost_weight.max,
        summary=data["summary"],
        recipe_yaml=files[RECIPE_FILE].decode("utf-8", "replace"),
        preferences=manifest.preferences,
    )
    check_contents(contents, folder)
    return contents


def read_manifest(folder: Path) -> Manifest:
    """Read and check manifest.json.

    Raises:
        RLRouteError: it is missing, torn, changed, or of a version that this rlroute cannot read.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise RLRouteError(f"{folder}: no exported router lies here ({MANIFEST_FILE} is missing)")
    content = read_json(path)
    if not isinstance(content, dict):
        raise RLRouteError(f"{path}: not the manifest of an exported router")
    version = content.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise RLRouteError(
            f"{path}: made by a newer rlroute (format_version {version}, this one reads "
            f"{FORMAT_VERSION}); update rlroute"
        )
    if version != FORMAT_VERSION:
        raise RLRouteError(
            f"{path}: format_version {version!r}, this rlroute reads {FORMAT_VERSION}"
        )
    if content.pop(CHECKSUM_KEY, None) != compute_checksum(content):
        raise RLRouteError(f"{path}: checksum differs: it was changed after it was written")
    manifest = parse_config(Manifest, content, str(path))
    if manifest.features.layout != FEATURE_LAYOUT:
        raise RLRouteError(
            f"{path}: features.layout differs from what this rlroute computes "
            f"({', '.join(FEATURE_LAYOUT)})"
        )
    return manifest


def read_file(path: Path, entry: FileEntry) -> bytes:
    """Return the content of a listed file.

    Raises:
        RLRouteError: it is missing, torn or changed.
    """
    if not path.is_file():
        raise RLRouteError(f"{path}: is missing, though {MANIFEST_FILE} lists it")
    data = read_bytes(path)
    if len(data) != entry.bytes:
        raise RLRouteError(f"{path}: torn: {len(data)} bytes instead of {entry.bytes}")
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise RLRouteError(f"{path}: checksum differs: it was changed after it was written")
    return data


def check_contents(contents: BundleContents, folder: Path) -> None:
    """Check that policy, encoder, candidates and feature scale belong together.

    Raises:
        RLRouteError: they do not; the message names the part.
    """
    check_profiles(contents.candidates, contents.scale, str(folder))
    scorer, dimension = contents.scorer, contents.encoder.dimension
    clusters = (len(contents.scale.offset_D) - PRICE_COLUMNS) // 2
    if scorer.features != dimension:
        raise RLRouteError(
            f"{folder}: the policy reads {scorer.features} query features, the encoder gives "
            f"{dimension}"
        )
    timed, stated = contents.scale.latency_reference_seconds is not None, contents.preferences
    ranged = stated is not None and stated.latency_weight is not None
    if not scorer.latency == timed == ranged:
        raise RLRouteError(
            f"{folder}: policy, feature scale and range of weights do not agree on whether latency "
            "counts"
        )
    if stated is not None:
        check_biases(stated.users, [candidate.id for candidate in contents.candidates])
    if scorer.clusters != clusters:
        raise RLRouteError(
            f"{folder}: the policy knows {scorer.clusters} query clusters, the feature scale "
            f"{clusters}"
        )
    build_scorer(scorer, contents.weights, folder / WEIGHTS_FILE)
