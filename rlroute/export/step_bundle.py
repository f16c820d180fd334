"""An exported step-by-step router as a folder: nothing but safetensors, JSON, YAML and Markdown.

    bundle.json          everything but the weights, and size and SHA-256 of every other file
    policy.safetensors   the weights, where a small network decides
    policy/              where a language model does: a checkpoint of transformers, `choice.json`
    README.md            for people
    recipe.yaml          the resolved recipe of the run

A folder is read whole or refused in one line (`rlroute.export.sealed_folder`). Nothing in it is
run.

What it leaves out: the decision itself (`rlroute.step_router`), and the text of the card
(`rlroute.export.step_model_card`).

How to use: `write_step_bundle(bundle, Path("my-router"))`, `read_step_bundle(Path("my-router"))`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import AfterValidator, Field, model_validator

import rlroute
from rlroute.config import StrictModel, parse_config
from rlroute.data.candidate_files import Finite, check_ids
from rlroute.envs.budget import BUDGET_FEATURES
from rlroute.envs.step_budget import StepBudgetConfig
from rlroute.export.bundle import FileEntry
from rlroute.export.sealed_folder import (
    BUNDLE_FILE,
    check_names,
    check_replaceable,
    check_sealed,
    describe_files,
    open_up,
    read_sealed,
    read_weights,
    seal,
    write_weights,
)
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
WHAT = "step router"
WEIGHTS_FILE = "policy.safetensors"
POLICY_FOLDER = "policy"
CARD_FILE = "README.md"
RECIPE_FILE = "recipe.yaml"


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
        weights = [WEIGHTS_FILE]
        if isinstance(self.policy, ChoiceEntry):
            weights = [f"{POLICY_FOLDER}/{name}" for name in ("config.json", "choice.json")]
        check_names(self.files, POLICY_FOLDER, (*weights, CARD_FILE, RECIPE_FILE))
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
    check_replaceable(folder, WHAT, lambda place: read_manifest(place).files)
    try:
        with atomic_folder(folder) as temporary:
            write_network(bundle.network, temporary)
            write_atomic(temporary / RECIPE_FILE, bundle.recipe_yaml)
            write_atomic(temporary / CARD_FILE, render_card(bundle))
            write_atomic(temporary / BUNDLE_FILE, format_manifest(bundle, temporary))
            open_up(temporary)
    except OSError as error:
        raise RLRouteError(f"{folder}: cannot be written ({error.strerror})") from None


def write_network(network: StepScorer | ChoiceNetwork, folder: Path) -> None:
    """Write the weights, and what a language model needs besides."""
    if isinstance(network, ChoiceNetwork):
        save_choice(folder / POLICY_FOLDER, network.model, network.encoder)
        return
    write_weights(network.state_dict(), folder / WEIGHTS_FILE)


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
        "files": describe_files(folder),
    }
    parse_config(StepManifest, content, BUNDLE_FILE)
    return seal(content)


# --- Reading --------------------------------------------------------------------------------------


def read_step_bundle(folder: Path) -> StepBundle:
    """Read a router and check that every part is as it was written.

    Raises:
        RLRouteError: no router lies there, it was made by a newer version, a file is missing, torn,
            changed or not listed, the parts do not fit together, or an extra is missing.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    check_sealed(folder, manifest.files)
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
    content = read_sealed(folder, WHAT, FORMAT_VERSION)
    return parse_config(StepManifest, content, str(folder / BUNDLE_FILE))


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
    weights = read_weights(path)
    try:
        with torch.device("meta"):  # takes no memory, whatever size the shape claims
            scorer = StepScorer(shape)
    except RuntimeError:  # a size beyond what torch can count
        raise RLRouteError(f"{path}: the weights are of another network") from None
    check_weights(scorer, weights, path)
    scorer.to_empty(device="cpu").load_state_dict(weights)
    return scorer.eval().requires_grad_(False)
