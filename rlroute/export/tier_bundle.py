"""An exported router of memory tiers as a folder: safetensors, JSON, YAML and Markdown, no more.

    bundle.json          modules, tiers, costs, the network's shape; size and SHA-256 of the rest
    policy.safetensors   the weights, and the profiles that the policy starts from
    encoder/             what `rlroute.data.encoders.load_encoder` reads
    README.md            for people
    recipe.yaml          the resolved recipe of the run

A folder is read whole or refused in one line (`rlroute.export.sealed_folder`). Nothing in it is
run.

What it leaves out: the decision itself (`rlroute.tier_router`), the pipeline, which is the user's,
and the text of the card (`rlroute.export.tier_model_card`).

How to use: `write_tier_bundle(bundle, Path("my-router"))`, `read_tier_bundle(Path("my-router"))`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator

import rlroute
from rlroute.config import StrictModel, parse_config
from rlroute.data.encoders import ENCODER_FILE, Encoder, load_encoder
from rlroute.envs.memory_tiers import count_extras
from rlroute.export.bundle import SHA256, EncoderEntry, FileEntry
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
from rlroute.export.tier_model_card import TierSummary, render_tier_card
from rlroute.export.wishes import CostWeightRange
from rlroute.files import atomic_folder, write_atomic
from rlroute.memory.base import Role
from rlroute.memory.outcomes import ModuleFacts, PipelineFacts
from rlroute.policies.tier_scorer import TierScorer, TierScorerConfig, describe_tiers
from rlroute.policies.weights import check_weights
from rlroute.types import RLRouteError

FORMAT_VERSION = 1
WHAT = "tier router"
WEIGHTS_FILE = "policy.safetensors"
ENCODER_FOLDER = "encoder"
CARD_FILE = "README.md"
RECIPE_FILE = "recipe.yaml"
REQUIRED_FILES = (WEIGHTS_FILE, CARD_FILE, RECIPE_FILE, f"{ENCODER_FOLDER}/{ENCODER_FILE}")


@dataclass(frozen=True, eq=False)
class TierBundle:
    """Everything that makes a router, and what was trained on what.

    `facts` name modules and tiers, and hold the fingerprint of the pipeline that it learnt with.
    `tier_usd` are the mean costs of each module's tiers, from which the policy knows them, and
    `reference_usd` is the unit of costs. `summary` has the shape of `TierSummary`, `recipe_yaml` is
    the resolved recipe with secrets redacted.
    """

    facts: PipelineFacts
    tier_usd: tuple[tuple[float, ...], ...]
    reference_usd: float
    cost_weight_min: float
    cost_weight_max: float
    scorer: TierScorer
    encoder: Encoder
    summary: dict[str, Any]
    recipe_yaml: str


class TierEntry(StrictModel):
    """A tier, and what it cost on average in training."""

    name: str
    mean_cost_usd: float = Field(ge=0, allow_inf_nan=False)


class ModuleEntry(StrictModel):
    """A module and its tiers, from the cheapest to the dearest."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    role: Role
    description: str
    tiers: Annotated[list[TierEntry], Field(min_length=2)]


class TierManifest(StrictModel):
    """What bundle.json holds besides its own checksum."""

    format_version: int
    rlroute_version: str
    kind: Literal["tiers"]
    modules: Annotated[list[ModuleEntry], Field(min_length=3)]
    pipeline: SHA256
    encoder: EncoderEntry
    reference_usd: float = Field(gt=0, allow_inf_nan=False)
    cost_weight: CostWeightRange
    policy: TierScorerConfig
    summary: TierSummary
    files: dict[str, FileEntry]

    @model_validator(mode="after")
    def check_modules(self) -> TierManifest:
        """Refuse modules out of order, and names that stand twice."""
        roles = [module.role for module in self.modules]
        if roles != ["filter", *["extract"] * (len(roles) - 2), "summary"]:
            raise ValueError("modules: one filter, then extractors, then one summary")
        for names in (
            [module.name for module in self.modules],
            *([tier.name for tier in module.tiers] for module in self.modules),
        ):
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"modules: the name '{name}' stands twice")
        return self

    @model_validator(mode="after")
    def check_policy(self) -> TierManifest:
        """Refuse a network that does not belong to modules and encoder."""
        counts, shape = [len(module.tiers) for module in self.modules], self.policy
        fitting = {
            "dimension": self.encoder.dimension,
            "extras": count_extras(counts),
            "modules": len(counts),
            "tiers": max(counts),
        }
        for name, value in fitting.items():
            if getattr(shape, name) != value:
                raise ValueError(
                    f"policy.{name}: is {getattr(shape, name)}, the router has {value}"
                )
        if shape.start is not None and list(shape.start.counts) != counts:
            raise ValueError(
                f"policy.start.counts: is {list(shape.start.counts)}, the router has {counts}"
            )
        return self

    @model_validator(mode="after")
    def check_files(self) -> TierManifest:
        """Refuse names that may not be listed, and a list that lacks a file."""
        check_names(self.files, ENCODER_FOLDER, REQUIRED_FILES)
        return self


# --- Writing --------------------------------------------------------------------------------------


def write_tier_bundle(bundle: TierBundle, folder: Path) -> None:
    """Write a router to a folder, whole or not at all; the same router gives the same bytes.

    A folder that is empty or holds nothing but such a router is replaced.

    Raises:
        RLRouteError: the parts do not fit together, the folder holds something else, or it cannot
            be written.
    """
    folder = Path(os.path.abspath(folder))
    check_replaceable(folder, WHAT, lambda place: read_manifest(place).files)
    summary = parse_config(TierSummary, bundle.summary, "summary")
    try:
        with atomic_folder(folder) as temporary:
            write_weights(bundle.scorer.state_dict(), temporary / WEIGHTS_FILE)
            bundle.encoder.save(temporary / ENCODER_FOLDER)
            write_atomic(temporary / RECIPE_FILE, bundle.recipe_yaml)
            write_atomic(temporary / CARD_FILE, render_card(bundle, summary))
            write_atomic(temporary / BUNDLE_FILE, format_manifest(bundle, temporary))
            check_features(bundle, folder / WEIGHTS_FILE)
            open_up(temporary)
    except OSError as error:
        raise RLRouteError(f"{folder}: cannot be written ({error.strerror})") from None


def render_card(bundle: TierBundle, summary: TierSummary) -> str:
    """Return the model card."""
    return render_tier_card(
        summary,
        bundle.facts.modules,
        bundle.tier_usd,
        bundle.reference_usd,
        (bundle.cost_weight_min, bundle.cost_weight_max),
        bundle.encoder.kind,
    )


def format_manifest(bundle: TierBundle, folder: Path) -> str:
    """Return bundle.json for a router whose other files lie in `folder`."""
    encoder = bundle.encoder
    content = {
        "format_version": FORMAT_VERSION,
        "rlroute_version": rlroute.__version__,
        "kind": "tiers",
        "modules": [
            {
                "name": module.name,
                "role": module.role,
                "description": module.description,
                "tiers": [
                    {"name": name, "mean_cost_usd": cost}
                    for name, cost in zip(module.tiers, costs, strict=True)
                ],
            }
            for module, costs in zip(bundle.facts.modules, bundle.tier_usd, strict=True)
        ],
        "pipeline": bundle.facts.fingerprint,
        "encoder": {
            "kind": encoder.kind,
            "dimension": encoder.dimension,
            "fingerprint": encoder.fingerprint(),
        },
        "reference_usd": bundle.reference_usd,
        "cost_weight": {"min": bundle.cost_weight_min, "max": bundle.cost_weight_max},
        "policy": bundle.scorer.config.model_dump(mode="json"),
        "summary": bundle.summary,
        "files": describe_files(folder),
    }
    parse_config(TierManifest, content, BUNDLE_FILE)
    return seal(content)


# --- Reading --------------------------------------------------------------------------------------


def read_tier_bundle(folder: Path, *, model_folder: Path | None = None) -> TierBundle:
    """Read a router and check that every part is as it was written.

    `model_folder` says where the model of a `path` encoder lies on this machine, should it have
    moved.

    Raises:
        RLRouteError: no router lies there, it was made by a newer version, a file is missing, torn,
            changed or not listed, the parts do not fit together, or the encoder cannot be had.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    check_sealed(folder, manifest.files)
    encoder = load_encoder(folder / ENCODER_FOLDER, model_folder=model_folder)
    if encoder.fingerprint() != manifest.encoder.fingerprint:
        raise RLRouteError(
            f"{folder / ENCODER_FOLDER}: is not the encoder that the policy learnt with "
            f"(fingerprint {encoder.fingerprint()[:12]} instead of "
            f"{manifest.encoder.fingerprint[:12]})"
        )
    modules = tuple(
        ModuleFacts(one.name, one.role, one.description, tuple(tier.name for tier in one.tiers))
        for one in manifest.modules
    )
    bundle = TierBundle(
        facts=PipelineFacts(modules, manifest.pipeline),
        tier_usd=tuple(tuple(tier.mean_cost_usd for tier in one.tiers) for one in manifest.modules),
        reference_usd=manifest.reference_usd,
        cost_weight_min=manifest.cost_weight.min,
        cost_weight_max=manifest.cost_weight.max,
        scorer=read_scorer(manifest.policy, folder / WEIGHTS_FILE),
        encoder=encoder,
        summary=manifest.summary.model_dump(mode="json"),
        recipe_yaml=(folder / RECIPE_FILE).read_text(encoding="utf-8"),
    )
    check_features(bundle, folder / WEIGHTS_FILE)
    return bundle


def read_manifest(folder: Path) -> TierManifest:
    """Read and check bundle.json.

    Raises:
        RLRouteError: it is missing, torn, changed, or of a version that this rlroute cannot read.
    """
    content = read_sealed(folder, WHAT, FORMAT_VERSION)
    return parse_config(TierManifest, content, str(folder / BUNDLE_FILE))


def read_scorer(shape: TierScorerConfig, path: Path) -> TierScorer:
    """Return a network with the weights of a file, without gradients.

    Raises:
        RLRouteError: they cannot be read, are of another network, or not all finite.
    """
    weights = read_weights(path)
    try:
        with torch.device("meta"):  # takes no memory, whatever size the shape claims
            scorer = TierScorer(shape)
    except RuntimeError:  # a size beyond what torch can count
        raise RLRouteError(f"{path}: the weights are of another network") from None
    check_weights(scorer, weights, path)
    scorer.to_empty(device="cpu").load_state_dict(weights)
    return scorer.eval().requires_grad_(False)


def check_features(bundle: TierBundle, path: Path) -> None:
    """Check that the network knows the tiers by the costs that are stated.

    Raises:
        RLRouteError: it does not.
    """
    stated_MKD = describe_tiers(bundle.tier_usd, bundle.reference_usd)
    if not torch.equal(bundle.scorer.tier_features_MKD.cpu(), torch.as_tensor(stated_MKD)):
        raise RLRouteError(f"{path}: describes tiers of other costs than {BUNDLE_FILE}")
