"""What `rlroute compare` and `rlroute export` do with runs of environment bandit_stream.

What it is: two runs are read and their learners compared on the streams that both have met; the
policy that PPO has learnt online leaves as a router like any other (`rlroute.export.bundle`), with
the profiles that it measured on the stream, at the prices of its end.

What it leaves out: numbers (`rlroute.evaluation.bandit_difference`), playing
(`rlroute.trainers.bandit_run`), and an exported form of linear bandits, whose contexts (principal
components of a whole table) no router holds.

How to use: `compare_streams(Path("runs/a"), Path("runs/b"), names=("a", "b"), out=folder)`,
`export_stream_run(Path("runs/a"), Path("my-router"))`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from rlroute.bandits.contexts import fit_stream_encoder
from rlroute.bandits.play import Play
from rlroute.bandits.stream import Stream
from rlroute.config import dump_config, load_config
from rlroute.data.table import read_table
from rlroute.evaluation.bandit_difference import (
    PICTURE_FILE,
    compare_learners,
    describe_stream_difference,
    measure_regret,
    render_stream_difference,
    write_stream_difference,
)
from rlroute.evaluation.bandit_results import LearnerRun
from rlroute.export.bundle import BundleContents, write_bundle
from rlroute.trainers.bandit_recipe import BanditRecipe, name_learner
from rlroute.trainers.bandit_run import (
    check_table,
    load_play,
    load_run,
    locate_learner,
    make_learner,
    open_stream,
    open_stream_data,
)
from rlroute.trainers.online_ppo import OnlinePPO
from rlroute.trainers.run_folder import RECIPE_FILE, RUN_FILE, read_json
from rlroute.types import Candidate, RLRouteError

SAME_STREAM = ("stream", "events", "cost_weight")  # settings that decide what arrives


def compare_streams(first: Path, second: Path, *, names: tuple[str, str], out: Path) -> None:
    """Compare the learners of two runs, print what differs, and write it to `out`.

    Raises:
        RLRouteError: a run is unfinished, or they have no stream in common.
    """
    recipes = [load_config(BanditRecipe, folder / RECIPE_FILE) for folder in (first, second)]
    seeds = find_common_seeds(first, second, recipes)
    data = open_stream_data(recipes[0])
    check_table(read_json(first / RUN_FILE), data, first)
    streams = [open_stream(recipes[0], data, seed) for seed in seeds]
    runs = [
        read_learners(folder, recipe, streams)
        for folder, recipe in zip((first, second), recipes, strict=True)
    ]
    found = compare_learners(*runs, names=names, window=recipes[0].window, seed=seeds[0])
    write_stream_difference(out, found)
    console = Console()
    console.print(render_stream_difference(found))
    for sentence in describe_stream_difference(found):
        console.print(sentence, highlight=False)
    console.print(f"comparison: {out / PICTURE_FILE}", highlight=False, soft_wrap=True)


def find_common_seeds(first: Path, second: Path, recipes: Sequence[BanditRecipe]) -> list[int]:
    """Return the seeds of the streams that two runs have both met.

    Raises:
        RLRouteError: there is none, or the streams of equal seeds differ.
    """
    facts = [read_json(folder / RUN_FILE) for folder in (first, second)]
    if facts[0].get("table_digest") != facts[1].get("table_digest"):
        tables = [one.get("table") for one in facts]
        raise RLRouteError(
            f"{first} and {second} have streams of different tables ({tables[0]} and {tables[1]}; "
            "the same name may hold other outcomes): nothing to pair"
        )
    for name in SAME_STREAM:
        if getattr(recipes[0], name) != getattr(recipes[1], name):
            raise RLRouteError(
                f"{first} and {second} have met different streams ({name} differs): nothing to pair"
            )
    common = [seed for seed in recipes[0].seeds if seed in recipes[1].seeds]
    if not common:
        raise RLRouteError(
            f"{first} and {second} have no seed in common ({list(recipes[0].seeds)} and "
            f"{list(recipes[1].seeds)}): nothing to pair"
        )
    return common


def read_learners(
    folder: Path, recipe: BanditRecipe, streams: Sequence[Stream]
) -> list[LearnerRun]:
    """Read the picks of all learners of a run on some of its streams."""
    return [
        load_run(locate_learner(folder, name, stream.seed), name, stream)
        for name in map(name_learner, recipe.learners)
        for stream in streams
    ]


def export_stream_run(folder: Path, to: Path) -> None:
    """Write what PPO has learnt on the stream of a run's first seed as a router.

    Where several learners are PPO, it is the one of least mean regret. The router knows the
    candidates that were measured and are alive at the end.

    Raises:
        RLRouteError: no learner is a policy that can leave, the table has no texts, the run is
            unfinished, or `to` holds something else.
    """
    recipe = load_config(BanditRecipe, folder / RECIPE_FILE)
    configs = {name_learner(one): one for one in recipe.learners if one.kind == "ppo"}
    if not configs:
        kinds = ", ".join(dict.fromkeys(one.kind for one in recipe.learners))
        raise RLRouteError(
            f"export: {folder}: learners of kind {kinds} have no exported form (only ppo has: the "
            "others keep no network, or read contexts that no router holds)"
        )
    if recipe.table is None:
        raise RLRouteError(
            f"export: {folder}: streams of a made table (irt) have no exported form: it brings "
            "features of its own and no texts"
        )
    data = open_stream_data(recipe)
    check_table(read_json(folder / RUN_FILE), data, folder)
    streams = [open_stream(recipe, data, seed) for seed in recipe.seeds]
    runs = read_learners(folder, recipe, streams)
    regrets = {name: measure_regret([run for run in runs if run.name == name]) for name in configs}
    name = min(regrets, key=lambda one: regrets[one])
    stream = streams[0]
    learner = make_learner(configs[name], stream)
    state, _ = load_play(locate_learner(folder, name, stream.seed), stream)
    Play(stream, learner, recipe.availability).set_state(state)
    assert isinstance(learner, OnlinePPO)
    encoder = fit_stream_encoder(read_table(recipe.table), recipe.encoder, recipe.seeds[0])
    contents = BundleContents(
        scorer=learner.scorer.config,
        weights=learner.scorer.state_dict(),
        encoder=encoder,
        candidates=list_served(learner, stream, folder),
        scale=learner.profiles.fitted_scale,
        cost_weight_min=recipe.cost_weight.min,
        cost_weight_max=recipe.cost_weight.max,
        summary={
            "table": data.table.name,
            "queries": {"train": stream.length},
            "algorithm": f"{name}, online on a stream",
            "seed": stream.seed,
            "updates": learner.updates,
        },
        recipe_yaml=dump_config(recipe),
    )
    write_bundle(contents, to)
    Console(stderr=True).print(
        f"router written to {to}: learner {name}, seed {stream.seed}", highlight=False
    )


def list_served(learner: OnlinePPO, stream: Stream, folder: Path) -> tuple[Candidate, ...]:
    """Return the candidates whose profile is known and who are alive at the end of the stream.

    Profiles and prices are those of the end.

    Raises:
        RLRouteError: there is none.
    """
    profiles, last = learner.profiles, stream.phases[-1]
    found = tuple(
        profiles.describe(k, profile, last.price_factor_K)
        for k, profile in sorted(profiles.profile_by_column.items())
        if last.offered_K[k] and last.alive_K[k]
    )
    if not found:
        raise RLRouteError(
            f"export: {folder}: nobody was measured on the stream (probes: more than it has room "
            "for)"
        )
    return found
