"""An exported step-by-step router as a folder: nothing but safetensors, JSON, YAML and Markdown.

    bundle.json          everything but the weights, and size and SHA-256 of every other file
    policy.safetensors   the weights, where a small network decides
    policy/              where a language model does: a checkpoint of transformers, `choice.json`
    cascade.safetensors  and encoder/: where the world is a cascade (`rlroute.export.cascade_parts`)
    encoder/             alone: where it is query sessions (`rlroute.export.session_parts`)
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
from rlroute.data.routing_data import count_candidate_features
from rlroute.envs.budget import BUDGET_FEATURES
from rlroute.envs.step_budget import StepBudgetConfig
from rlroute.export.bundle import ENCODER_FOLDER, FileEntry
from rlroute.export.cascade_parts import (
    CASCADE_FILES,
    CascadeEntry,
    CascadeParts,
    describe_cascade,
    read_cascade,
    write_cascade,
)
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
from rlroute.export.session_parts import (
    SESSION_FILES,
    SessionEntry,
    SessionParts,
    describe_sessions,
    read_sessions,
    write_sessions,
)
from rlroute.export.step_model_card import StepSummary, render_step_card
from rlroute.export.text_bundle import TextCandidateEntry, dump_text_candidate
from rlroute.files import atomic_folder, write_atomic
from rlroute.policies.choice import ChoiceModel, load_choice, save_choice
from rlroute.policies.choice_tokens import ChoiceEncoder
from rlroute.policies.language_model import Precision
from rlroute.policies.priced_scorer import COMMON_COLUMNS, PricedScorer, PricedScorerConfig
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
    resolved recipe with secrets redacted. `cascade` is there where the features are those of a
    cascade over a table, `sessions` where they are those of query sessions.
    """

    executors: tuple[Candidate, ...]
    executor_features_KD: FloatArray
    feature_names: tuple[str, ...]
    horizon: int
    environment: StepBudgetConfig
    network: StepScorer | PricedScorer | ChoiceNetwork
    summary: dict[str, Any]
    recipe_yaml: str
    cascade: CascadeParts | None = None
    sessions: SessionParts | None = None


class ScorerEntry(StrictModel):
    """A small network, which reads features; its weights are `policy.safetensors`."""

    kind: Literal["mlp"] = "mlp"
    shape: StepScorerConfig


class PricedEntry(StrictModel):
    """A single-turn router with a price of money; its weights are `policy.safetensors`."""

    kind: Literal["priced"] = "priced"
    shape: PricedScorerConfig


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
    policy: Annotated[ScorerEntry | PricedEntry | ChoiceEntry, Field(discriminator="kind")]
    summary: StepSummary
    cascade: CascadeEntry | None = None
    sessions: SessionEntry | None = None
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
        if isinstance(self.policy, ScorerEntry) and (start := self.policy.shape.start) is not None:
            last = max(start.expected, start.charge) + len(self.executors)
            if last > len(self.feature_names):
                raise ValueError("policy.shape.start: lies outside of the features")
        if isinstance(self.policy, PricedEntry):
            table = count_candidate_features(self.policy.shape.clusters)
            needed = (self.policy.shape.features + 1, COMMON_COLUMNS + table)
            if (len(self.feature_names), *widths) != needed:
                raise ValueError(
                    f"policy.shape: reads {needed[0]} features and {needed[1]} of an executor, the "
                    f"router has {len(self.feature_names)} and {min(widths)}"
                )
        sessions = self.sessions
        if sessions is not None and sessions.encoder.dimension + 1 != len(self.feature_names):
            raise ValueError("sessions.encoder: makes other features than the policy reads")
        return self

    @model_validator(mode="after")
    def check_files(self) -> StepManifest:
        """Refuse names that may not be listed, and a list that lacks a file."""
        weights = [WEIGHTS_FILE]
        if isinstance(self.policy, ChoiceEntry):
            weights = [f"{POLICY_FOLDER}/{name}" for name in ("config.json", "choice.json")]
        if self.cascade is not None:
            weights += CASCADE_FILES
        if self.sessions is not None:
            weights += SESSION_FILES
        encoding = self.cascade is not None or self.sessions is not None
        subfolder = ENCODER_FOLDER if encoding else POLICY_FOLDER
        check_names(self.files, subfolder, (*weights, CARD_FILE, RECIPE_FILE))
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
            if bundle.cascade is not None:
                write_cascade(bundle.cascade, temporary)
            if bundle.sessions is not None:
                write_sessions(bundle.sessions, temporary)
            write_atomic(temporary / RECIPE_FILE, bundle.recipe_yaml)
            write_atomic(temporary / CARD_FILE, render_card(bundle))
            write_atomic(temporary / BUNDLE_FILE, format_manifest(bundle, temporary))
            open_up(temporary)
    except OSError as error:
        raise RLRouteError(f"{folder}: cannot be written ({error.strerror})") from None


def write_network(network: StepScorer | PricedScorer | ChoiceNetwork, folder: Path) -> None:
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
        cascade=bundle.cascade is not None,
        sessions=bundle.sessions is not None,
    )


def format_manifest(bundle: StepBundle, folder: Path) -> str:
    """Return bundle.json for a router whose other files lie in `folder`."""
    network = bundle.network
    policy: ScorerEntry | PricedEntry | ChoiceEntry
    if isinstance(network, ChoiceNetwork):
        policy = ChoiceEntry(
            precision=network.model.precision, context_tokens=network.context_tokens
        )
    elif isinstance(network, PricedScorer):
        policy = PricedEntry(shape=network.config)
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
        "cascade": bundle.cascade and describe_cascade(bundle.cascade).model_dump(mode="json"),
        "sessions": bundle.sessions and describe_sessions(bundle.sessions).model_dump(mode="json"),
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
    executors = tuple(entry.to_candidate() for entry in manifest.executors)
    cascade = None
    if manifest.cascade is not None:
        cascade = read_cascade(manifest.cascade, tuple(one.id for one in executors[1:]), folder)
        if cascade.view.feature_names != tuple(manifest.feature_names):
            raise RLRouteError(f"{folder}: the features are not those of its cascade")
    return StepBundle(
        executors=executors,
        executor_features_KD=np.array(manifest.executor_features, dtype=np.float32),
        feature_names=tuple(manifest.feature_names),
        horizon=manifest.horizon,
        environment=manifest.environment,
        network=read_network(folder, manifest),
        summary=manifest.summary.model_dump(mode="json"),
        recipe_yaml=(folder / RECIPE_FILE).read_text(encoding="utf-8"),
        cascade=cascade,
        sessions=None if manifest.sessions is None else read_sessions(manifest.sessions, folder),
    )


def read_manifest(folder: Path) -> StepManifest:
    """Read and check bundle.json.

    Raises:
        RLRouteError: it is missing, torn, changed, or of a version that this rlroute cannot read.
    """
    content = read_sealed(folder, WHAT, FORMAT_VERSION)
    return parse_config(StepManifest, content, str(folder / BUNDLE_FILE))


def read_network(folder: Path, manifest: StepManifest) -> StepScorer | PricedScorer | ChoiceNetwork:
    """Return what decides, without gradients; a language model on the first GPU if there is one.

    Raises:
        RLRouteError: the weights cannot be read, or are of another network or other executors.
    """
    policy = manifest.policy
    if isinstance(policy, ScorerEntry | PricedEntry):
        return read_scorer(policy.shape, folder / WEIGHTS_FILE)
    place = folder / POLICY_FOLDER
    model, encoder = load_choice(place, precision=policy.precision)
    if list(encoder.labels) != [one.id for one in manifest.executors]:
        raise RLRouteError(f"{place}: has labels for other executors than {BUNDLE_FILE}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return ChoiceNetwork(model.to(device), encoder, policy.context_tokens)


def read_scorer(
    shape: StepScorerConfig | PricedScorerConfig, path: Path
) -> StepScorer | PricedScorer:
    """Return a small network with the weights of a file.

    Raises:
        RLRouteError: they cannot be read, are of another network, or not all finite.
    """
    weights = read_weights(path)
    try:
        with torch.device("meta"):  # takes no memory, whatever size the shape claims
            scorer: StepScorer | PricedScorer = (
                PricedScorer(shape) if isinstance(shape, PricedScorerConfig) else StepScorer(shape)
            )
    except RuntimeError:  # a size beyond what torch can count
        raise RLRouteError(f"{path}: the weights are of another network") from None
    check_weights(scorer, weights, path)
    scorer.to_empty(device="cpu").load_state_dict(weights)
    return scorer.eval().requires_grad_(False)
