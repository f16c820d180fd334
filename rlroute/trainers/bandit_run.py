"""Online learners on streams: from a recipe to a run folder.

    for every seed: one stream            bandits/stream.py
        for every learner: play it        bandits/play.py
            keep picks and state          learners/<name>-s<seed>.safetensors
    measure regret, write the report      evaluation/bandit_report.py

All learners of a seed meet the same arrivals with the same uniform numbers. A learner's state is
written every so often, so a resumed run goes on where it was, and equals an uninterrupted one. The
run folder holds recipe.resolved.yaml, run.json, learners/, metrics.jsonl, and the report's files;
Weights & Biases is shown the rows of metrics.jsonl whenever a learner is through.

It leaves out several processes: learning online is one query after the other.

How to use: `train_bandits(recipe, Path("runs/stream"))`; `evaluate_bandit_run(folder)` writes the
report again.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from safetensors import SafetensorError
from safetensors.numpy import load, save

from rlroute.bandits.base import Bandit, StateArrays
from rlroute.bandits.comparators import rank_candidates
from rlroute.bandits.config import (
    AlwaysConfig,
    AnyLearnerConfig,
    EpsilonGreedyConfig,
    LeaderConfig,
    LinearEpsilonGreedyConfig,
    LinearThompsonConfig,
    LinUCBConfig,
    OnlinePPOConfig,
    check_learners,
)
from rlroute.bandits.contexts import encode_queries, prepare_stream
from rlroute.bandits.linear import LinearEpsilonGreedy, LinearThompson, LinUCB
from rlroute.bandits.play import Play, read_picks
from rlroute.bandits.simple import EpsilonGreedy, FixedOrder, FollowLeader, Random
from rlroute.bandits.stream import Stream, StreamData, make_stream
from rlroute.config import dump_config, load_config, redact
from rlroute.data.irt_table import make_irt_table
from rlroute.data.prepare import compute_table_digest
from rlroute.data.table import read_table
from rlroute.evaluation.bandit_report import PICTURE_FILE, BanditContext, write_bandit_report
from rlroute.evaluation.bandit_results import (
    BanditResult,
    LearnerRun,
    list_metrics,
    measure_bandits,
)
from rlroute.files import write_atomic
from rlroute.tracking import METRICS_FILE, StreamMirror, make_progress, open_stream_mirror
from rlroute.trainers.bandit_recipe import BanditRecipe, name_learner
from rlroute.trainers.online_ppo import OnlinePPO
from rlroute.trainers.run_folder import RECIPE_FILE, RUN_FILE, clear_folder, read_json
from rlroute.types import RLRouteError

FORMAT_VERSION = 1
LEARNERS_FOLDER = "learners"
SECONDS = "seconds"
REPORT_EVERY = 500  # queries between two moves of the progress bar


def train_bandits(
    recipe: BanditRecipe,
    folder: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    command: str = "",
) -> BanditResult:
    """Play every learner on every stream and leave everything in `folder`.

    With `resume` what was played already is kept; with `overwrite` a run that lies there is
    replaced.

    Raises:
        RLRouteError: table, events, an extra or the folder does not allow it.
    """
    data = open_stream_data(recipe)
    streams = [open_stream(recipe, data, seed) for seed in recipe.seeds]
    for config in recipe.learners:  # faults come first
        make_learner(config, streams[0])
    if resume:
        check_table(read_json(folder / RUN_FILE), data, folder)
    else:
        clear_folder(folder, overwrite=overwrite)
        start_bandit_folder(folder, recipe, data, command)
    project = recipe.tracking.project if recipe.tracking.wandb else None
    config = redact(recipe.model_dump(mode="json"))
    with open_stream_mirror(folder, project, config) as mirror:
        play_learners(folder, recipe, streams, mirror)
        result = report_bandits(folder, recipe, streams)
        mirror.mirror_picture("regret", folder / PICTURE_FILE)
    return result


def play_learners(
    folder: Path, recipe: BanditRecipe, streams: list[Stream], mirror: StreamMirror
) -> None:
    """Play every learner on every stream to the end, and show the mirror what it did."""
    total = recipe.stream.queries * len(recipe.learners) * len(recipe.seeds)
    progress = make_progress(Console(stderr=True), "queries")
    with progress:
        task = progress.add_task("playing", total=total, note="")
        for stream in streams:
            for config in recipe.learners:
                name = name_learner(config)
                progress.update(task, note=f"{name}, seed {stream.seed}")
                path = locate_learner(folder, name, stream.seed)
                game = Play(stream, make_learner(config, stream), recipe.availability)
                finish_play(game, path, recipe.checkpoint_every, partial(progress.advance, task))
                rows = list_metrics(load_run(path, name, stream), recipe.window)
                mirror.mirror_rows(f"{name}-s{stream.seed}", rows)


def evaluate_bandit_run(folder: Path) -> BanditResult:
    """Measure a finished run again and write its report.

    Raises:
        RLRouteError: no finished run lies there, a file is torn, or the table has changed.
    """
    if not (folder / RECIPE_FILE).exists():
        raise RLRouteError(f"{folder}: no run lies here ({RECIPE_FILE} is missing)")
    recipe = load_config(BanditRecipe, folder / RECIPE_FILE)
    data = open_stream_data(recipe)
    check_table(read_json(folder / RUN_FILE), data, folder)
    streams = [open_stream(recipe, data, seed) for seed in recipe.seeds]
    return report_bandits(folder, recipe, streams)


def report_bandits(folder: Path, recipe: BanditRecipe, streams: list[Stream]) -> BanditResult:
    """Measure what was played, and write metrics.jsonl, regret.json, regret.png and report.html."""
    names = [name_learner(config) for config in recipe.learners]
    runs = [
        load_run(locate_learner(folder, name, stream.seed), name, stream)
        for name in names
        for stream in streams
    ]
    result = measure_bandits(streams, runs, recipe.window)
    rows = [row for run in runs for row in list_metrics(run, recipe.window)]
    write_atomic(folder / METRICS_FILE, "".join(json.dumps(row) + "\n" for row in rows))
    facts = read_json(folder / RUN_FILE)
    context = BanditContext(folder.name, facts["command"], dump_config(recipe), facts["contexts"])
    write_bandit_report(folder, result, context)
    return result


# --- Streams and learners -------------------------------------------------------------------------


def open_stream_data(recipe: BanditRecipe) -> StreamData:
    """Read or make the table and prepare the queries that streams are drawn from."""
    seed, success_QK = recipe.seeds[0], None
    if recipe.irt is not None:
        made = make_irt_table(recipe.irt, seed)
        table, success_QK = made.table, made.success_QK
        length_Q1 = np.linalg.norm(made.features_QF, axis=1, keepdims=True)
        features_QE = (made.features_QF / length_Q1).astype(np.float32)  # as encoders give them
    else:
        assert recipe.table is not None  # the recipe has one of the two
        table = read_table(recipe.table)
        features_QE = encode_queries(table, recipe.encoder, seed)
    data = prepare_stream(
        table,
        features_QE,
        dimension=recipe.context,
        clusters=recipe.profile.clusters,
        seed=seed,
        success_QK=success_QK,
    )
    if recipe.stream.split == "all":
        return data
    return data.select_rows(np.flatnonzero(data.table.split_Q == recipe.stream.split))


def open_stream(recipe: BanditRecipe, data: StreamData, seed: int) -> Stream:
    """Return the stream of a seed."""
    return make_stream(
        data,
        length=recipe.stream.queries,
        seed=seed,
        events=recipe.events,
        weights=recipe.cost_weight,
    )


def make_learner(config: AnyLearnerConfig, stream: Stream) -> Bandit:
    """Return a learner that knows nothing yet.

    Raises:
        RLRouteError: the candidate of an `always` is unknown.
    """
    candidates, features = len(stream.candidate_ids), stream.data.context_QF.shape[1]
    match config:
        case LinUCBConfig():
            return LinUCB(config, features, candidates)
        case LinearThompsonConfig():
            return LinearThompson(config, features, candidates)
        case LinearEpsilonGreedyConfig():
            return LinearEpsilonGreedy(config, features, candidates)
        case OnlinePPOConfig():
            return OnlinePPO(config, stream.data, stream.seed)
        case EpsilonGreedyConfig():
            return EpsilonGreedy(config, candidates)
        case LeaderConfig():
            return FollowLeader(candidates)
        case AlwaysConfig():
            return FixedOrder(order_always(config, stream))
        case _:
            return Random()


def order_always(config: AlwaysConfig, stream: Stream) -> list[int]:
    """Return all candidates by mean utility in hindsight, after the one that is named."""
    order: list[int] = rank_candidates(stream).tolist()
    if config.candidate is None:
        return order
    check_learners([config], stream.candidate_ids)
    first = stream.candidate_ids.index(config.candidate)
    return [first, *(k for k in order if k != first)]


# --- Run folder -----------------------------------------------------------------------------------


def start_bandit_folder(folder: Path, recipe: BanditRecipe, data: StreamData, command: str) -> None:
    """Write what is known before the first query."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "format_version": FORMAT_VERSION,
        "table": data.table.name,
        "table_digest": compute_table_digest(data.table),
        "contexts": f"{data.features_QE.shape[1]} dimensions from the encoder; linear learners see "
        f"{data.context_QF.shape[1] - 1} principal components and a constant",
        "rlroute": version("rlroute"),
        "python": platform.python_version(),
        "command": redact(command),
    }
    write_atomic(folder / RUN_FILE, json.dumps(facts, indent=2))
    write_atomic(folder / RECIPE_FILE, dump_config(recipe))  # last: with it the folder is a run


def check_table(facts: dict[str, Any], data: StreamData, folder: Path) -> None:
    """Refuse to go on with another table or another format.

    Raises:
        RLRouteError: it is one.
    """
    if facts.get("format_version") != FORMAT_VERSION:
        raise RLRouteError(
            f"{folder / RUN_FILE}: format_version {facts.get('format_version')}, "
            f"this rlroute reads {FORMAT_VERSION}"
        )
    if compute_table_digest(data.table) != facts["table_digest"]:
        raise RLRouteError(f"table '{data.table.name}' has changed since {folder} was started")


def locate_learner(folder: Path, name: str, seed: int) -> Path:
    """Return where a learner's picks and state lie."""
    return folder / LEARNERS_FOLDER / f"{name}-s{seed}.safetensors"


def finish_play(game: Play, path: Path, every: int, report: Callable[[int], None]) -> None:
    """Play to the end from wherever the file stands, and write it every so many queries.

    Raises:
        RLRouteError: the file is torn or of another stream.
    """
    seconds = 0.0
    if path.exists():
        state, seconds = load_play(path, game.stream)
        game.set_state(state)
        report(game.done)
    while game.done < game.stream.length:
        started = time.perf_counter()
        until = min(game.done + every, game.stream.length)
        while game.done < until:
            report(game.advance(min(REPORT_EVERY, until - game.done)))
        seconds += time.perf_counter() - started
        arrays = {name: value.copy(order="C") for name, value in game.get_state().items()}
        write_atomic(path, save(arrays | {SECONDS: np.array([seconds])}))


def load_play(path: Path, stream: Stream) -> tuple[StateArrays, float]:
    """Read a play's state and the seconds behind it.

    Raises:
        RLRouteError: the file is torn, or of a stream of another length.
    """
    try:
        state: StateArrays = load(path.read_bytes())
        picks, seconds = read_picks(state), float(state.pop(SECONDS)[0])
    except (OSError, KeyError, SafetensorError) as error:
        raise RLRouteError(f"{path}: cannot be read ({error})") from None
    if len(picks.action_T) != stream.length:
        raise RLRouteError(f"{path}: {len(picks.action_T)} picks for {stream.length} queries")
    return state, seconds


def load_run(path: Path, name: str, stream: Stream) -> LearnerRun:
    """Read the picks of a learner that is through.

    Raises:
        RLRouteError: it is not, or the file is torn.
    """
    hint = f"finish the run with --resume {path.parents[1]}"
    if not path.exists():
        raise RLRouteError(f"{path}: missing; {hint}")
    state, seconds = load_play(path, stream)
    if int(state["done"][0]) < stream.length:
        raise RLRouteError(f"{path}: only {int(state['done'][0]):,} queries are done; {hint}")
    return LearnerRun(name, stream, read_picks(state), seconds)
