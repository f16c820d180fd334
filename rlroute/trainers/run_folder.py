"""A run folder: what a run leaves, and how evaluation, export and a resumed run read it again.

recipe.resolved.yaml    every setting, secrets redacted
run.json                versions, command, table with its digest, encoder, devices
encoder/                the fitted encoder
candidates.json         candidates with measured profiles, feature scale
clusters.safetensors    centres of the query clusters of the profiles
metrics.jsonl           one row per update;  events.log  dated lines
trajectories.jsonl      sampled episodes with their reward terms
checkpoints/step-N      to go on from;  best/  the weights that validation chose
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save
from safetensors.torch import load_file, save_file

from rlroute.config import dump_config, load_config
from rlroute.data.actions import build_actions
from rlroute.data.candidate_files import (
    dump_candidates,
    dump_scale,
    parse_candidates,
    parse_scale,
)
from rlroute.data.encoders import load_encoder
from rlroute.data.latencies import fill_latencies, require_latencies
from rlroute.data.logs import LoggedTable, apply_logs
from rlroute.data.prepare import PreparedTable, compute_table_digest, encode_texts
from rlroute.data.routing_data import prepare_splits
from rlroute.data.table import OutcomeTable, find_folder, read_table
from rlroute.data.task_splits import split_table
from rlroute.data.users import check_biases
from rlroute.files import atomic_folder, write_atomic
from rlroute.policies.mlp import CandidateScorer, ScorerConfig
from rlroute.policies.weights import load_weights
from rlroute.trainers.checkpoint import WEIGHTS_FILE
from rlroute.trainers.recipe import Recipe
from rlroute.types import SPLITS, FloatArray, RLRouteError, SplitName

FORMAT_VERSION = 1
RECIPE_FILE = "recipe.resolved.yaml"
RUN_FILE = "run.json"
CANDIDATES_FILE = "candidates.json"
CLUSTERS_FILE = "clusters.safetensors"
ENCODER_FOLDER = "encoder"
BEST_FOLDER = "best"
BEST_FILE = "best.json"
CHECKPOINTS_FOLDER = "checkpoints"


@dataclass(frozen=True)
class Run:
    """A run as read from its folder; `propensities` [Q, K] are there where it learns from a log."""

    folder: Path
    recipe: Recipe
    facts: dict[str, Any]
    prepared: PreparedTable
    propensities: dict[SplitName, FloatArray] | None = None


def clear_folder(folder: Path, *, overwrite: bool, keep: Sequence[str] = ()) -> None:
    """Make sure that no other run lies in the folder; files named in `keep` cost money and stay.

    Raises:
        RLRouteError: one does and `overwrite` is not given, or the folder holds something else.
    """
    held = list(folder.iterdir()) if folder.exists() else []
    others = [path for path in held if path.name not in keep]
    if not others:
        return
    if not (folder / RECIPE_FILE).exists():
        raise RLRouteError(f"{folder}: holds files that are no run; choose another --run-folder")
    if not overwrite:
        raise RLRouteError(
            f"{folder}: a run lies here; go on with --resume {folder}, replace it with "
            f"--overwrite, or choose another --run-folder"
        )
    if len(others) == len(held):
        shutil.rmtree(folder)
        return
    for path in sorted(others, key=lambda path: path.name == RECIPE_FILE):  # a run to the last
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def start_run_folder(
    folder: Path,
    recipe: Recipe,
    table: OutcomeTable,
    prepared: PreparedTable,
    facts: dict[str, Any],
) -> None:
    """Write what is known before the first update."""
    folder.mkdir(parents=True, exist_ok=True)
    prepared.encoder.save(folder / ENCODER_FOLDER)
    write_atomic(folder / CLUSTERS_FILE, save({"centroids_CF": prepared.centroids_CF}))
    candidates = {
        "candidates": dump_candidates(prepared.candidates),
        "scale": dump_scale(prepared.scale),
    }
    write_atomic(folder / CANDIDATES_FILE, json.dumps(candidates, indent=1))
    run = {
        "format_version": FORMAT_VERSION,
        "table": table.name,
        "table_digest": compute_table_digest(table, latency=recipe.weighs_latency),
        "encoder": prepared.encoder.describe(),
        "rlroute": version("rlroute"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        **facts,
    }
    write_atomic(folder / RUN_FILE, json.dumps(run, indent=2))
    write_atomic(folder / RECIPE_FILE, dump_config(recipe))  # last: with it the folder is a run


def read_run(folder: Path) -> Run:
    """Read a run folder and prepare its table as the run did.

    Raises:
        RLRouteError: no run lies there, a file is torn or of another version, or the table has
            changed since.
    """
    if not (folder / RECIPE_FILE).exists():
        raise RLRouteError(f"{folder}: no run lies here ({RECIPE_FILE} is missing)")
    recipe = load_config(Recipe, folder / RECIPE_FILE)
    facts = read_json(folder / RUN_FILE)
    if facts.get("format_version") != FORMAT_VERSION:
        raise RLRouteError(
            f"{folder / RUN_FILE}: format_version {facts.get('format_version')}, "
            f"this rlroute reads {FORMAT_VERSION}"
        )
    opened = open_table(recipe)
    table = opened.table
    digest = compute_table_digest(table, latency=recipe.weighs_latency)
    if digest != facts["table_digest"]:
        raise RLRouteError(f"table '{recipe.table}' has changed since {folder} was trained on it")
    source = folder / CANDIDATES_FILE
    content = read_json(source)
    encoder = load_encoder(folder / ENCODER_FOLDER)
    candidates = parse_candidates(content["candidates"], str(source))
    scale = parse_scale(content["scale"], str(source))
    centroids_CF = read_centroids(folder / CLUSTERS_FILE)
    table = table.group_splits()
    features_QF = encode_texts(encoder, table.texts)
    splits = prepare_splits(table, features_QF, candidates, scale)
    prepared = PreparedTable(encoder, centroids_CF, candidates, scale, splits)
    propensities = None
    if opened.propensity_QK is not None:
        split_Q = opened.table.split_Q
        propensities = {split: opened.propensity_QK[split_Q == split] for split in SPLITS}
    return Run(folder, recipe, facts, prepared, propensities)


def open_table(recipe: Recipe) -> LoggedTable:
    """Read a recipe's table: with its splits, its actions, or only what a log holds of it.

    Raises:
        RLRouteError: the table, or something that the recipe asks of it, does not allow it.
    """
    return build_table(recipe, split_table(read_table(recipe.table), recipe.split))


def build_table(recipe: Recipe, table: OutcomeTable) -> LoggedTable:
    """Make of a table with its splits what a recipe trains on.

    Raises:
        RLRouteError: the recipe asks for something that the table does not allow.
    """
    table = fill_latencies(table, recipe.latency)  # first: of held-out candidates too
    table = leave_out(table, recipe.hold_out_candidates)
    if recipe.logs is None:
        table = build_actions(table, recipe.actions)
        if recipe.weighs_latency:
            table = require_latencies(table)
        check_biases(recipe.users, [candidate.id for candidate in table.candidates])
        return LoggedTable(table, None)
    return apply_logs(table, find_folder(recipe.table), recipe.logs, recipe.seed)


def leave_out(table: OutcomeTable, held_ids: Sequence[str]) -> OutcomeTable:
    """Return a table as if some candidates had never been tried.

    Raises:
        RLRouteError: one of them is unknown, or nobody is left.
    """
    ids = [candidate.id for candidate in table.candidates]
    unknown = sorted(set(held_ids) - set(ids))
    if unknown:
        raise RLRouteError(
            f"hold_out_candidates: table '{table.name}' has no candidate '{unknown[0]}' "
            f"(it has: {', '.join(ids)})"
        )
    if not held_ids:
        return table
    return table.select_candidates([one for one in ids if one not in held_ids])


def read_centroids(path: Path) -> FloatArray:
    """Read the centres of the query clusters [C, F].

    Raises:
        RLRouteError: the file is missing or torn.
    """
    try:
        return np.asarray(load(path.read_bytes())["centroids_CF"], dtype=np.float32)
    except (OSError, KeyError, SafetensorError) as error:
        raise RLRouteError(f"{path}: cannot be read ({error})") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        RLRouteError: the file is missing or torn.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RLRouteError(f"{path}: cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise RLRouteError(f"{path}: an object was expected")
    return content


def make_scorer_config(recipe: Recipe, prepared: PreparedTable) -> ScorerConfig:
    """Return the shape of the network for a recipe and its data."""
    kernel, queries = recipe.policy.kernel, len(prepared.splits["train"].features_QF)
    return ScorerConfig(
        features=prepared.encoder.dimension,
        clusters=len(prepared.centroids_CF),
        hidden=recipe.policy.hidden,
        dropout=recipe.policy.dropout,
        sharpness=recipe.policy.sharpness,
        anchors=min(kernel.anchors, queries) if kernel else 0,
        decay=kernel.decay if kernel else 1.0,
        margin=recipe.policy.margin != 0,
        latency=recipe.weighs_latency,
    )


def save_best(folder: Path, scorer: CandidateScorer, facts: dict[str, Any]) -> None:
    """Replace the weights that validation chose."""
    with atomic_folder(folder / BEST_FOLDER) as temporary:
        weights = {name: value.contiguous().cpu() for name, value in scorer.state_dict().items()}
        save_file(weights, temporary / WEIGHTS_FILE)
        write_atomic(temporary / BEST_FILE, json.dumps(facts, indent=2))


def load_best(run: Run) -> tuple[CandidateScorer, dict[str, Any]]:
    """Return the policy that validation chose, and what was written beside it.

    Raises:
        RLRouteError: the run has no best weights yet, or they are torn.
    """
    path = run.folder / BEST_FOLDER / WEIGHTS_FILE
    scorer = CandidateScorer(make_scorer_config(run.recipe, run.prepared))
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RLRouteError(f"{path}: cannot be read ({error})") from None
    load_weights(scorer, weights, path)
    return scorer.eval(), read_json(run.folder / BEST_FOLDER / BEST_FILE)
