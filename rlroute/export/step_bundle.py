"""An exported step-by-step router as a folder: nothing but safetensors, JSON, YAML and Markdown.

    bundle.json          everything but the weights, and size and SHA-256 of every other file
    policy.safetensors   the weights, where a small network decides
    policy/              where a language model does: a checkpoint of transformers, `choice.json`
    README.md            for people
    recipe.yaml          the resolved recipe of the run

bundle.json carries a checksum over the rest of itself. A folder is read whole or refused in one
line: a file that it lists must be there as it was written, a file that it does not list is refused,
except hidden ones, which are never read. Checksums find damage and careless edits; they do not say
who wrote the folder. Nothing in it is run, and its names leave no room for a pickle.

What it leaves out: the decision itself (`rlroute.step_router`), and the text of the card
(`rlroute.export.step_model_card`).

How to use: `write_step_bundle(bundle, Path("my-router"))`, `read_step_bundle(Path("my-router"))`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import AfterValidator, Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

import rlroute
from rlroute.config import StrictModel, parse_config
from rlroute.data.candidate_files import Finite, check_ids
from rlroute.data.encoders import read_json
from rlroute.envs.budget import BUDGET_FEATURES
from rlroute.envs.step_budget import StepBudgetConfig
from rlroute.export.bundle import CHECKSUM_KEY, FileEntry, compute_checksum, list_files
from rlroute.export.step_model_card import StepSummary, render_step_card
from rlroute.export.text_bundle import TextCandidateEntry, dump_text_candidate
from rlroute.files import atomic_folder, write_atomic
from rlroute.policies.choice import ChoiceModel, load_choice, save_choice
from rlroute.policies.choice_tokens import ChoiceEncoder
from rlroute.policies.language_model import Precision
from rlroute.policies.step_scorer import StepScorer, StepScorerConfig
from rlroute.policies.weights import check_weights
from rlroute.types import Candidate, FloatArray, RLRouteError

FORMAT_VERSION = 1
BUNDLE_FILE = "bundle.json"
WEIGHTS_FILE = "policy.safetensors"
POLICY_FOLDER = "policy"
CARD_FILE = "README.md"
RECIPE_FILE = "recipe.yaml"

# A plain name with an ending of data, in the folder itself or in policy/: it cannot lead out, be
# hidden, or hold code or a pickle.
FILE_NAME = re.compile(
    rf"({POLICY_FOLDER}/)?[A-Za-z0-9_][A-Za-z0-9_.-]*\.(json|safetensors|txt|jinja|model|md|yaml)"
)


@dataclass(frozen=True, eq=False)
class ChoiceNetwork:
    """A language model that decides, and how many tokens an episode may have."""

    model: ChoiceModel
    encoder: ChoiceEncoder
    context_tokens: int


@dataclass(frozen=True, eq=False)
class StepBundle:
    """Everything that makes a router, and what was trained on what.

    `feature_names` are those of the world; row k of `executor_features_KD` describes executor k.
    An episode has `horizon` steps. `environment` holds budget, reward and cost weights; its budget
    names the `counted` executors. `summary` has the shape of `StepSummary`, `recipe_yaml` is the
    resolved recipe with secrets redacted.
    """

    executors: tuple[Candidate, ...]
    executor_features_KD: FloatArray
    feature_names: tuple[str, ...]
    horizon: int
    environment: StepBudgetConfig
    network: StepScorer | ChoiceNetwork
    summary: dict[str, Any]
    recipe_yaml: str


class ScorerEntry(StrictModel):
    """A small network, which reads features; its weights are `policy.safetensors`."""

    kind: Literal["mlp"] = "mlp"
    shape: StepScorerConfig


class ChoiceEntry(StrictModel):
    """A language model, which reads texts; its checkpoint is `policy/`."""

    kind: Literal["choice"] = "choice"
    precision: Precision
    context_tokens: int = Field(ge=1)


class StepManifest(StrictModel):
    """What bundle.json holds besides its own checksum."""

    format_version: int
    rlroute_version: str
    kind: Literal["step"]
    executors: Annotated[list[TextCandidateEntry], Field(min_length=1), AfterValidator(check_ids)]
    executor_features: list[list[Finite]]
    feature_names: list[str]
    horizon: int = Field(ge=1)
    environment: StepBudgetConfig
    policy: Annotated[ScorerEntry | ChoiceEntry, Field(discriminator="kind")]
    summary: StepSummary
    files: dict[str, FileEntry]

    @model_validator(mode="after")
    def check_parts(self) -> StepManifest:
        """Refuse features, counted executors and a network that do not belong together."""
        widths = {len(row) for row in self.executor_features}
        if len(self.executor_features) != len(self.executors) or len(widths) != 1:
            raise ValueError("executor_features: one row for each executor, all of one length")
        if len(set(self.feature_names)) != len(self.feature_names):
            raise ValueError("feature_names: a name stands twice")
        counted, ids = self.environment.budget.counted, {one.id for one in self.executors}
        if counted is None or not ids.issuperset(counted):
            raise ValueError("environment.budget.counted: must name executors of the list")
        if isinstance(self.policy, ScorerEntry):
            shape, features = self.policy.shape, len(self.feature_names) + len(BUDGET_FEATURES)
            if (shape.features, shape.described) != (features, *widths):
                raise ValueError(
                    f"policy.shape: reads {shape.features} features and {shape.described} of an "
                    f"executor, the router has {features} and {min(widths)}"
                )
        return self

    @model_validator(mode="after")
    def check_files(self) -> StepManifest:
        """Refuse names that may not be listed, and a list that lacks a file."""
        for name in self.files:
            if not FILE_NAME.fullmatch(name) or name == BUNDLE_FILE:
                raise ValueError(f"files: {name!r} is no name that a bundle may list")
        weights = [WEIGHTS_FILE]
        if isinstance(self.policy, ChoiceEntry):
            weights = [f"{POLICY_FOLDER}/{name}" for name in ("config.json", "choice.json")]
        for name in (*weights, CARD_FILE, RECIPE_FILE):
            if name not in self.files:
                raise ValueError(f"files: '{name}' is not listed")
        return self


# --- Writing --------------------------------------------------------------------------------------


def write_step_bundle(bundle: StepBundle, folder: Path) -> None:
    """Write a router to a folder, whole or not at all.

    A folder that is empty or holds nothing but such a router is replaced.

    Raises:
        RLRouteError: the parts do not fit together, the folder holds something else, or it cannot
            be written.
    """
    folder = Path(os.path.abspath(folder))
    check_replaceable(folder)
    try:
        with atomic_folder(folder) as temporary:
            write_network(bundle.network, temporary)
            write_atomic(temporary / RECIPE_FILE, bundle.recipe_yaml)
            write_atomic(temporary / CARD_FILE, render_card(bundle))
            write_atomic(temporary / BUNDLE_FILE, format_manifest(bundle, temporary))
            for path in temporary.rglob("*"):  # safetensors makes its files private to the owner
                path.chmod(0o755 if path.is_dir() else 0o644)
    except OSError as error:
        raise RLRouteError(f"{folder}: cannot be written ({error.strerror})") from None


def write_network(network: StepScorer | ChoiceNetwork, folder: Path) -> None:
    """Write the weights, and what a language model needs besides."""
    if isinstance(network, ChoiceNetwork):
        save_choice(folder / POLICY_FOLDER, network.model, network.encoder)
        return
    state = network.state_dict().items()
    weights = {name: value.detach().cpu().contiguous() for name, value in state}
    check_finite(weights, folder / WEIGHTS_FILE)
    write_atomic(folder / WEIGHTS_FILE, save(weights))


def render_card(bundle: StepBundle) -> str:
    """Return the model card.

    Raises:
        RLRouteError: the summary has not the shape of `StepSummary`.
    """
    instructions = None
    if isinstance(bundle.network, ChoiceNetwork):
        instructions = bundle.network.encoder.instructions
    return render_step_card(
        parse_config(StepSummary, bundle.summary, "summary"),
        bundle.executors,
        bundle.feature_names,
        bundle.horizon,
        bundle.environment,
        instructions,
    )


def format_manifest(bundle: StepBundle, folder: Path) -> str:
    """Return bundle.json for a router whose other files lie in `folder`."""
    network = bundle.network
    policy: ScorerEntry | ChoiceEntry
    if isinstance(network, ChoiceNetwork):
        policy = ChoiceEntry(
            precision=network.model.precision, context_tokens=network.context_tokens
        )
    else:
        policy = ScorerEntry(shape=network.config)
    content = {
        "format_version": FORMAT_VERSION,
        "rlroute_version": rlroute.__version__,
        "kind": "step",
        "executors": [dump_text_candidate(executor) for executor in bundle.executors],
        "executor_features": bundle.executor_features_KD.tolist(),
        "feature_names": list(bundle.feature_names),
        "horizon": bundle.horizon,
        "environment": bundle.environment.model_dump(mode="json"),
        "policy": policy.model_dump(mode="json"),
        "summary": bundle.summary,
        "files": {name: describe_file(folder / name) for name in list_files(folder)},
    }
    parse_config(StepManifest, content, BUNDLE_FILE)
    content[CHECKSUM_KEY] = compute_checksum(content)
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


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


def check_replaceable(folder: Path) -> None:
    """Check that nothing but a router would be lost if `folder` were replaced.

    Raises:
        RLRouteError: it is a file, or holds something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / BUNDLE_FILE).is_file():
        raise RLRouteError(f"{folder}: holds no exported step router; name a new folder")
    listed = read_manifest(folder).files
    other = sorted(set(list_files(folder, hidden=True)) - {BUNDLE_FILE, *listed})
    if other:
        raise RLRouteError(
            f"{folder}: holds '{other[0]}', which is no part of the router there; name a new folder"
        )


# --- Reading --------------------------------------------------------------------------------------


def read_step_bundle(folder: Path) -> StepBundle:
    """Read a router and check that every part is as it was written.

    Raises:
        RLRouteError: no router lies there, it was made by a newer version, a file is missing, torn,
            changed or not listed, the parts do not fit together, or an extra is missing.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    for name, entry in manifest.files.items():
        check_file(folder / name, entry)
    unlisted = sorted(set(list_files(folder)) - {BUNDLE_FILE, *manifest.files})
    if unlisted:
        raise RLRouteError(f"{folder / unlisted[0]}: is not listed in {BUNDLE_FILE}")
    return StepBundle(
        executors=tuple(entry.to_candidate() for entry in manifest.executors),
        executor_features_KD=np.array(manifest.executor_features, dtype=np.float32),
        feature_names=tuple(manifest.feature_names),
        horizon=manifest.horizon,
        environment=manifest.environment,
        network=read_network(folder, manifest),
        summary=manifest.summary.model_dump(mode="json"),
        recipe_yaml=(folder / RECIPE_FILE).read_text(encoding="utf-8"),
    )


def read_manifest(folder: Path) -> StepManifest:
    """Read and check bundle.json.

    Raises:
        RLRouteError: it is missing, torn, changed, or of a version that this rlroute cannot read.
    """
    path = folder / BUNDLE_FILE
    if not path.is_file():
        raise RLRouteError(f"{folder}: no exported step router lies here ({path.name} is missing)")
    content = read_json(path)
    if not isinstance(content, dict):
        raise RLRouteError(f"{path}: not the manifest of an exported step router")
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        newer = isinstance(version, int) and version > FORMAT_VERSION
        hint = "; it was made by a newer rlroute: update this one" if newer else ""
        raise RLRouteError(
            f"{path}: format_version {version!r}, this rlroute reads {FORMAT_VERSION}{hint}"
        )
    if content.pop(CHECKSUM_KEY, None) != compute_checksum(content):
        raise RLRouteError(f"{path}: checksum differs: it was changed after it was written")
    return parse_config(StepManifest, content, str(path))


def check_file(path: Path, entry: FileEntry) -> None:
    """Raise RLRouteError where a listed file is missing, torn or changed."""
    if not path.is_file():
        raise RLRouteError(f"{path}: is missing, though {BUNDLE_FILE} lists it")
    found = describe_file(path)
    if found["bytes"] != entry.bytes:
        raise RLRouteError(f"{path}: torn: {found['bytes']} bytes instead of {entry.bytes}")
    if found["sha256"] != entry.sha256:
        raise RLRouteError(f"{path}: checksum differs: it was changed after it was written")


def read_network(folder: Path, manifest: StepManifest) -> StepScorer | ChoiceNetwork:
    """Return what decides, without gradients; a language model on the first GPU if there is one.

    Raises:
        RLRouteError: the weights cannot be read, or are of another network or other executors.
    """
    policy = manifest.policy
    if isinstance(policy, ScorerEntry):
        return read_scorer(policy.shape, folder / WEIGHTS_FILE)
    place = folder / POLICY_FOLDER
    model, encoder = load_choice(place, precision=policy.precision)
    if list(encoder.labels) != [one.id for one in manifest.executors]:
        raise RLRouteError(f"{place}: has labels for other executors than {BUNDLE_FILE}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return ChoiceNetwork(model.to(device), encoder, policy.context_tokens)


def read_scorer(shape: StepScorerConfig, path: Path) -> StepScorer:
    """Return a small network with the weights of a file.

    Raises:
        RLRouteError: they cannot be read, are of another network, or not all finite.
    """
    try:
        weights = load_file(path)
    except SafetensorError:
        raise RLRouteError(f"{path}: torn or no safetensors file") from None
    try:
        with torch.device("meta"):  # takes no memory, whatever size the shape claims
            scorer = StepScorer(shape)
    except RuntimeError:  # a size beyond what torch can count
        raise RLRouteError(f"{path}: the weights are of another network") from None
    check_weights(scorer, weights, path)
    check_finite(weights, path)
    scorer.to_empty(device="cpu").load_state_dict(weights)
    return scorer.eval().requires_grad_(False)


def check_finite(weights: Mapping[str, Tensor], path: Path) -> None:
    """Raise RLRouteError where a weight is no finite number."""
    for name, value in weights.items():
        if not value.isfinite().all():
            raise RLRouteError(f"{path}: '{name}' holds a value that is not a finite number")
